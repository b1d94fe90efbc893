//! Seeing what the relay does: [`dataplane::admin`] with a page, metrics, and the figures as JSON.
//!
//! Each worker has a loop, and what is shown are the figures of all together. Without a question there is nothing to do but the
//! additions that count.

mod client;
mod merge;
mod metrics;
mod observer;
mod page;
mod respond;
mod status;
mod table;
mod unexplained;

#[cfg(test)]
mod serving_tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use dataplane::admin::{Listener, Server, Shared};

pub use self::client::StatusArgs;
use self::observer::Snapshot;
pub use self::observer::{Observer, Phase};
use self::respond::Responder;
pub use self::table::run as run_status;

/// Where the figures are when nothing is said: the port that Prometheus' list of exporters has for TURN servers.
pub const ADDRESS_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9641);

/// What `--admin` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum AdminChoice {
    /// Here.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl AdminChoice {
    /// The address, where there is one.
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::At(address) => Some(address),
            Self::Off => None,
        }
    }
}

impl fmt::Display for AdminChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

impl FromStr for AdminChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| format!("{text:?} is neither ADDRESS:PORT, for example {ADDRESS_DEFAULT}, nor off"))
    }
}

impl TryFrom<String> for AdminChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A socket for the figures, bound and not served yet: its port has to be known before the first peer is judged.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
    users: bool,
    gso: bool,
}

impl Admin {
    /// Binds what was asked for, or the default. `None`: there is to be none, or the default could not be had, which is
    /// warned about. `users`: user names are among the figures. `gso` is told to those who ask.
    ///
    /// # Errors
    /// An address that was asked for cannot be had; the text names the remedy.
    pub fn bind(choice: Option<AdminChoice>, users: bool, gso: bool) -> io::Result<Option<Self>> {
        let what = if users { "user names and figures" } else { "figures" };
        let listener = match choice {
            Some(AdminChoice::Off) => return Ok(None),
            Some(AdminChoice::At(address)) => Listener::bind_flag(address, what)?,
            None => match Listener::bind(ADDRESS_DEFAULT, what) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "no metrics and no status page: {ADDRESS_DEFAULT} cannot be had; choose another address \
                         with --admin, or --admin off"
                    );
                    return Ok(None);
                }
            },
        };
        Ok(Some(Self { listener, users, gso }))
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// What serves the figures of the loops behind `shared`.
    fn serve(self, shared: Arc<Shared<Snapshot>>) -> Server<Responder> {
        Server::new(self.listener, Responder::new(self.gso, self.users), shared)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_or_off_is_understood_and_anything_else_explained() {
        assert_eq!("off".parse(), Ok(AdminChoice::Off));
        assert_eq!("[::1]:80".parse(), Ok(AdminChoice::At("[::1]:80".parse().unwrap())));
        for text in ["", "9641", "localhost:9641", "127.0.0.1", "on"] {
            let error = text.parse::<AdminChoice>().unwrap_err();
            assert!(error.contains("ADDRESS:PORT") && error.contains("off"), "{error}");
        }
    }

    #[test]
    fn an_address_that_was_asked_for_and_is_taken_is_an_error() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let choice = AdminChoice::At(taken.local_addr().unwrap());
        let error = Admin::bind(Some(choice), true, true).unwrap_err().to_string();
        assert!(error.contains("another program has it") && error.contains("--admin 127.0.0.1:"), "{error}");
        assert!(Admin::bind(Some(AdminChoice::Off), true, true).unwrap().is_none());
    }
}
