//! Figures of a running loop over HTTP: a small server on a thread of its own, for probes, Prometheus and people.
//!
//! ```text
//!   loop ── snapshot ──► queue of one ──► Desk ── Site ──► page, metrics, JSON
//!        ◄── asked ◄────────────────────       ◄── HTTP ── up to 16 connections
//! ```
//! There may be several loops; what is shown are the figures of all together. A loop is asked when somebody asks, and then
//! answers between two batches; nobody waits for the other under a lock. What is shown is the business of a [`Site`].

pub mod client;
mod connection;
mod desk;
mod exchange;
pub mod metrics;
mod request;
mod respond;
mod serve;

use std::io;
use std::net::{SocketAddr, TcpListener};

pub use self::desk::{Desk, TURN_TIME_MAX};
pub use self::exchange::{Shared, Snapshot};
pub use self::respond::Answer;
pub use self::serve::{Server, Site};

/// A socket for the figures, bound and not served yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds an address. Beyond loopback everyone can read `what` is shown, which is warned about.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn bind(address: SocketAddr, what: &str) -> io::Result<Self> {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        let bound = socket.local_addr()?;
        if !address.ip().is_loopback() {
            tracing::warn!(
                %address,
                "everyone who reaches the admin address can read {what}: keep it behind a firewall, or on 127.0.0.1"
            );
        }
        Ok(Self { socket, address: bound })
    }

    /// As [`Listener::bind`], of an address that was asked for by `--admin`.
    ///
    /// # Errors
    /// When it cannot be had; the text names flag and remedy.
    pub fn bind_flag(address: SocketAddr, what: &str) -> io::Result<Self> {
        Self::bind(address, what).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => "another program has it: stop that one or choose another --admin",
                io::ErrorKind::AddrNotAvailable => "no interface has this address: choose another --admin",
                io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
                _ => "choose another --admin",
            };
            io::Error::new(error.kind(), format!("--admin {address}: {error}; {remedy}"))
        })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
