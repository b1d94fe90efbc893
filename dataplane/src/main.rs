//! The tunnel endpoint; everything is in the library, which the lab runs too.

use std::process::ExitCode;

fn main() -> ExitCode {
    dataplane::cli::main(std::env::args_os())
}
