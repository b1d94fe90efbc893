//! `towpath-relay`: see `towpath-relay --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    relay::cli::main(std::env::args_os())
}
