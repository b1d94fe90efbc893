//! Sockets that accept connections.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dataplane::sys::steering::{self, Family};
use rustix::net::{SocketFlags, acceptfrom_with, getsockname};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel may keep ready (it caps this at net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// Bytes that the kernel keeps unsent for one connection, beyond which its socket is not writable (TCP_NOTSENT_LOWAT):
/// what waits in the kernel cannot be dropped any more and would come late instead.
const UNSENT_BYTES: u32 = 64 * 1024;

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// STUN and TURN over TCP.
    Tcp,
    /// The same under TLS.
    Tls,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
        })
    }
}

/// A listener among those on its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The one that is refused where another program has the address.
    First { of: u32 },
    /// One of those that join it.
    Later,
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct StreamListener {
    fd: OwnedFd,
    local: SocketAddr,
    kind: Kind,
}

/// A connection as the kernel hands it over.
#[derive(Debug)]
pub(super) struct Accepted {
    pub fd: OwnedFd,
    pub from: SocketAddr,
    pub to: SocketAddr,
}

impl StreamListener {
    /// Binds and listens. IPv6 sockets take IPv6 only, as those for UDP do.
    ///
    /// # Errors
    /// What socket(2), bind(2) and listen(2) answer; the message names address and remedy.
    pub fn bind(address: SocketAddr, kind: Kind) -> io::Result<Self> {
        Self::bind_with(address, kind, Place::First { of: 1 })
    }

    fn bind_with(address: SocketAddr, kind: Kind, place: Place) -> io::Result<Self> {
        Self::bind_plain(address, kind, place).map_err(|error| on(address, kind, &error))
    }

    /// As many listeners on one address, of which each client has one for as long as they are there
    /// ([`steering`]).
    ///
    /// # Errors
    /// As [`StreamListener::bind`]; the address may not be anybody else's.
    pub fn bind_group(address: SocketAddr, kind: Kind, members: u32, seed: u32) -> io::Result<Vec<Self>> {
        let mut group = vec![Self::bind_with(address, kind, Place::First { of: members })?];
        let address = group[0].local;
        for _ in 1..members {
            group.push(Self::bind_with(address, kind, Place::Later)?);
        }
        if members > 1 {
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            let steered = steering::steer(&group[0].fd, family, members, seed);
            steered.map_err(|error| on(address, kind, &error))?;
        }
        Ok(group)
    }

    fn bind_plain(address: SocketAddr, kind: Kind, place: Place) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Connections of an earlier run that are still closing do not keep the next one from its port.
        socket.set_reuse_address(true)?;
        // Connections inherit both.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
        if place == Place::Later {
            steering::open_group(&socket)?;
        }
        socket.bind(&address.into())?;
        // A group is one of listening sockets: this comes between the two.
        if matches!(place, Place::First { of: 2.. }) {
            steering::open_group(&socket)?;
        }
        socket.listen(BACKLOG)?;
        let local = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))?;
        Ok(Self { fd: socket.into(), local, kind })
    }

    /// The address it is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What is spoken on it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next connection, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<Accepted>> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (fd, from) = match acceptfrom_with(&self.fd, flags).map_err(io::Error::from) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // It is gone again (accept(2)).
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            let to = getsockname(&fd).ok().and_then(|to| SocketAddr::try_from(to).ok());
            if let (Some(from), Some(to)) = (from, to) {
                return Ok(Some(Accepted { fd, from, to }));
            }
        }
    }
}

/// An error with the address that it is about, and the remedy.
fn on(address: SocketAddr, kind: Kind, error: &io::Error) -> io::Error {
    let flag = format!("--listen-{}", kind.to_string().to_lowercase());
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another program has it, perhaps a relay that still drains, which a second SIGTERM ends: stop that one or choose another {flag}"
            )
        }
        io::ErrorKind::AddrNotAvailable => format!("no interface has this address: choose another {flag}"),
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE".to_owned(),
        io::ErrorKind::Unsupported => "start the relay with --workers 1".to_owned(),
        _ => format!("choose another {flag}"),
    };
    io::Error::new(error.kind(), format!("{kind} socket on {address}: {error}; {remedy}"))
}
