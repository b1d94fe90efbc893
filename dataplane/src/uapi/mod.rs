//! The configuration protocol that `wg` speaks with WireGuard in user space
//! (<https://www.wireguard.com/xplatform/>): requests and answers as text, over a socket in [`DIRECTORY`].
//!
//! ```text
//!  get=1                         set=1
//!  (empty line)                  private_key=…
//!                                public_key=…
//!                                allowed_ip=10.0.0.2/32
//!                                (empty line)
//! ```
//!
//! A thread of its own reads, parses and writes ([`server`]), so that no client holds up packets; the loop gets whole
//! requests and does a bounded part of one in each turn.

pub mod answer;
pub mod request;
pub mod server;
pub mod socket;
pub mod status;

use std::io;

pub use self::request::{Change, Request, Set};
pub use self::server::{Job, Uapi};
pub use self::socket::Listener;

/// Where the sockets are, as `wg` looks for them.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Why a request is refused. `wg` prints the words of the error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A line is not KEY=VALUE.
    Protocol,
    /// A key is unknown or its value is none.
    Invalid,
    /// The request is too long.
    TooLong,
    /// Not of this tunnel, as it was set up.
    Unsupported,
    /// What the system answered, as an error number.
    System(i32),
}

impl Refusal {
    /// The error number (errno(3)).
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::Protocol => libc::EPROTO,
            Self::Invalid => libc::EINVAL,
            Self::TooLong => libc::E2BIG,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::System(number) => number,
        }
    }
}

impl From<&io::Error> for Refusal {
    fn from(error: &io::Error) -> Self {
        let of_kind = || match error.kind() {
            io::ErrorKind::AddrInUse => libc::EADDRINUSE,
            io::ErrorKind::PermissionDenied => libc::EACCES,
            _ => libc::EIO,
        };
        Self::System(error.raw_os_error().unwrap_or_else(of_kind))
    }
}
