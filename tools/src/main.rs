//! `towpath-lab`: see [`tools::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::cli::main(std::env::args_os())
}
