//! The table of ports: small numbers for sockets and devices, reused after removal.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Port;
use crate::sys::tun::Offloads;

/// Ports of one egress: every allocation of a relay is one, so the bound is that of UDP ports and then some.
pub const PORTS_MAX: usize = 1 << 17;

/// What a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A UDP socket.
    Socket,
    /// A TUN device.
    Device(Offloads),
}

/// One port and what a design keeps with it.
#[derive(Debug)]
pub struct Entry<T> {
    /// Kept open until the port is removed.
    pub fd: Arc<OwnedFd>,
    /// What it leads to.
    pub kind: Kind,
    /// The design's own state.
    pub state: T,
}

impl Kind {
    /// Gives up the offload by which superpackets leave. `false` when that was done before.
    pub fn give_up_merging(&mut self) -> bool {
        let Self::Device(offloads) = self else { return false };
        let given_up = Offloads { bare: offloads.bare, ..Offloads::default() };
        std::mem::replace(offloads, given_up) != given_up
    }
}

/// Entries by port number.
#[derive(Debug)]
pub struct Ports<T> {
    entries: Vec<Option<Entry<T>>>,
    vacant: Vec<u32>,
}

impl<T> Default for Ports<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), vacant: Vec::new() }
    }
}

impl<T> Ports<T> {
    /// Takes the lowest vacant number.
    ///
    /// # Errors
    /// `QuotaExceeded` when [`PORTS_MAX`] are in use.
    pub fn add(&mut self, fd: Arc<OwnedFd>, kind: Kind, state: T) -> io::Result<Port> {
        let entry = Some(Entry { fd, kind, state });
        if let Some(number) = self.vacant.pop() {
            self.entries[number as usize] = entry;
            return Ok(Port(number));
        }
        if self.entries.len() >= PORTS_MAX {
            let text = format!("{PORTS_MAX} sockets are open, the most one process takes");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        self.entries.push(entry);
        Ok(Port(self.entries.len() as u32 - 1))
    }

    /// Takes the entry out; its number becomes vacant.
    pub fn remove(&mut self, port: Port) -> Option<Entry<T>> {
        let entry = self.entries.get_mut(port.0 as usize)?.take()?;
        self.vacant.push(port.0);
        Some(entry)
    }

    /// The entry of a port.
    pub fn get(&self, port: Port) -> Option<&Entry<T>> {
        self.entries.get(port.0 as usize)?.as_ref()
    }

    /// The entry of a port, writable.
    pub fn get_mut(&mut self, port: Port) -> Option<&mut Entry<T>> {
        self.entries.get_mut(port.0 as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reused_and_removed_ports_are_gone() {
        let fd = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null")));
        let mut ports = Ports::default();
        let first = ports.add(fd.clone(), Kind::Socket, 1).expect("room");
        let second = ports.add(fd.clone(), Kind::Socket, 2).expect("room");
        assert_eq!(ports.remove(first).map(|entry| entry.state), Some(1));
        assert!(ports.remove(first).is_none());
        assert!(ports.get(first).is_none());
        assert_eq!(ports.add(fd, Kind::Socket, 3).expect("room"), first);
        assert_eq!(ports.get(second).map(|entry| entry.state), Some(2));
    }
}
