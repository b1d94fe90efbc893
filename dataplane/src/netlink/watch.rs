//! Tells when an address or an interface of this network namespace comes, goes or changes, so that nobody has to ask again
//! and again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::Error;

/// Both multicast groups of rtnetlink(7) that tell of addresses.
const ADDRESSES: u32 = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;
/// Both that tell of routes.
const ROUTES: u32 = (libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE) as u32;
/// The one that tells of interfaces.
const LINKS: u32 = libc::RTMGRP_LINK as u32;

/// A subscription to the addresses of one network namespace. It says that something changed, not what: news that did not
/// fit into the socket's buffer are lost, so that only [`super::Handle::addresses`] tells how things stand.
pub struct AddressWatch(Watch);

impl AddressWatch {
    /// Subscribes in the calling thread's network namespace. Changes made after this are not missed.
    ///
    /// # Errors
    /// When the kernel has no NETLINK_ROUTE or a sandbox forbids it.
    pub fn open() -> Result<Self, Error> {
        Watch::open(ADDRESSES, "watch the addresses of this machine").map(Self)
    }

    /// Takes all news there are; whether there were any.
    pub fn take(&mut self) -> bool {
        self.0.take()
    }
}

impl AsFd for AddressWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// A subscription to the interfaces of one network namespace; how one of them stands, [`super::Handle::link_state`] tells.
pub struct LinkWatch(Watch);

impl LinkWatch {
    /// Subscribes in the calling thread's network namespace. Changes made after this are not missed.
    ///
    /// # Errors
    /// As [`AddressWatch::open`].
    pub fn open() -> Result<Self, Error> {
        Watch::open(LINKS, "watch the interfaces of this machine").map(Self)
    }

    /// Takes all news there are; whether there were any.
    pub fn take(&mut self) -> bool {
        self.0.take()
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// A subscription to routes and interfaces of one network namespace: to all that decides how long packets may be on their way.
pub struct RouteWatch(Watch);

impl RouteWatch {
    /// Subscribes in the calling thread's network namespace. Changes made after this are not missed.
    ///
    /// # Errors
    /// As [`AddressWatch::open`].
    pub fn open() -> Result<Self, Error> {
        Watch::open(ROUTES | LINKS, "watch the routes of this machine").map(Self)
    }

    /// Takes all news there are; whether there were any.
    pub fn take(&mut self) -> bool {
        self.0.take()
    }
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

struct Watch {
    socket: Socket,
    /// Only the fact that news came is wanted: the rest of a longer message is cut off by the kernel.
    scratch: Vec<u8>,
}

impl Watch {
    fn open(groups: u32, operation: &str) -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, groups))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| Error::new(operation, source))?;
        Ok(Self { socket, scratch: Vec::with_capacity(64) })
    }

    fn take(&mut self) -> bool {
        let mut news = false;
        loop {
            self.scratch.clear();
            match self.socket.recv(&mut self.scratch, 0) {
                Ok(_) => news = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return news,
                // ENOBUFS: some were lost, so there were some. Anything else is no reason to believe in the old state.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => news = true,
                Err(_) => return true,
            }
        }
    }
}
