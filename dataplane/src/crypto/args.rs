//! How many crypto threads there are, as the command line says.

use std::thread;

use clap::Args;

use crate::engine::Io;

/// More would find nothing to do: the loop reads no faster.
const THREADS_MAX: u8 = 16;

/// The flag of the tunnel.
#[derive(Clone, Copy, Debug, Args)]
pub struct CryptoArgs {
    /// Threads that seal and open packets beside the loop; only with `--io uring`. `auto`: one where the program has two cores or
    /// more
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse)]
    crypto_threads: CryptoThreads,
}

/// A number, or what this machine suggests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CryptoThreads {
    Auto,
    Fixed(u8),
}

fn parse(text: &str) -> Result<CryptoThreads, String> {
    match text {
        "auto" => Ok(CryptoThreads::Auto),
        _ => match text.parse() {
            Ok(number) if number <= THREADS_MAX => Ok(CryptoThreads::Fixed(number)),
            _ => Err(format!("it is auto or a number from 0 to {THREADS_MAX}")),
        },
    }
}

impl CryptoArgs {
    /// Usage errors that the flags alone show.
    ///
    /// # Errors
    /// The text names the flags.
    pub fn check(&self, io: Io) -> Result<(), String> {
        match (io, self.crypto_threads) {
            (Io::Uring | Io::Auto, _) | (_, CryptoThreads::Auto | CryptoThreads::Fixed(0)) => Ok(()),
            _ => Err(
                "--crypto-threads only goes with --io uring: with the other designs the loop seals and opens"
                    .into(),
            ),
        }
    }

    /// How many there are to be.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self.crypto_threads {
            CryptoThreads::Fixed(number) => number.into(),
            CryptoThreads::Auto => {
                usize::from(thread::available_parallelism().is_ok_and(|cores| cores.get() > 1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_as_it_is_and_nothing_else_is() {
        for (text, expected) in [("auto", Some(CryptoThreads::Auto)), ("0", Some(CryptoThreads::Fixed(0)))] {
            assert_eq!(parse(text).ok(), expected);
        }
        for wrong in ["", "17", "-1", "all"] {
            assert!(parse(wrong).is_err_and(|error| error.contains("16")), "{wrong:?}");
        }
        assert_eq!(CryptoArgs { crypto_threads: CryptoThreads::Fixed(3) }.threads(), 3);
    }

    #[test]
    fn other_designs_have_none() {
        let args = |crypto_threads| CryptoArgs { crypto_threads };
        assert!(args(CryptoThreads::Fixed(1)).check(Io::Suspend).is_err());
        assert!(args(CryptoThreads::Fixed(0)).check(Io::Suspend).is_ok());
        assert!(args(CryptoThreads::Auto).check(Io::Drop).is_ok());
        assert!(args(CryptoThreads::Fixed(1)).check(Io::Auto).is_ok());
    }
}
