//! The cipher of data messages, and the threads that apply it beside the loop.
//!
//! | file | what is in it |
//! |---|---|
//! | `aead` | sealing and opening data messages where they are |
//! | `args` | how many of them the command line asks for |
//! | `crew` | the crypto threads, and how work gets to them and back |

pub mod aead;
mod args;
pub mod crew;

pub use self::aead::{Key, Secret};
pub use self::args::CryptoArgs;
pub use self::crew::Boss;
