//! Errors that a person can act on, sorted by what they should do: correct the command or the surroundings.

use std::fmt;

/// Why a run did not start. The program's exit code follows from it.
#[derive(Debug)]
pub enum Problem {
    /// The request itself is wrong (exit code 2); the message names the option and the fix.
    Usage(String),
    /// A file cannot be read, or is not what it should be (exit code 1); the message names it.
    File(String),
    /// The far end, a socket or a permission is missing (exit code 5); the message names the step and the fix.
    Setup(String),
    /// SIGINT or SIGTERM came before anything was measured (exit code 130).
    Interrupted,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::File(message) | Self::Setup(message) => formatter.write_str(message),
            Self::Interrupted => formatter.write_str("interrupted before anything was measured"),
        }
    }
}

impl std::error::Error for Problem {}
