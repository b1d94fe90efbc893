//! Tells when an address of this network namespace comes or goes, so that nobody has to ask again and again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::Error;

/// Both multicast groups of rtnetlink(7) that tell of addresses.
const GROUPS: u32 = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;

/// A subscription to the addresses of one network namespace. It says that something changed, not what: news that did not
/// fit into the socket's buffer are lost, so that only [`super::Handle::addresses`] tells how things stand.
pub struct AddressWatch {
    socket: Socket,
    /// Only the fact that news came is wanted: the rest of a longer message is cut off by the kernel.
    scratch: Vec<u8>,
}

impl AddressWatch {
    /// Subscribes in the calling thread's network namespace. Changes made after this are not missed.
    ///
    /// # Errors
    /// When the kernel has no NETLINK_ROUTE or a sandbox forbids it.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| Error::new("watch the addresses of this machine", source))?;
        Ok(Self { socket, scratch: Vec::with_capacity(64) })
    }

    /// Takes all news there are; whether there were any.
    pub fn take(&mut self) -> bool {
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

impl AsFd for AddressWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
