//! A network of sockets in memory, with the server in its middle. Everything arrives at once, and nobody waits.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dataplane::stun::Message;

use super::bench::Relay;

/// As in the harness of the relay process.
pub const REALM: &str = "example.org";
pub const USER: &str = "alice";
pub const PASSWORD: &str = "secret";

/// Most payload bytes of an IPv4 datagram.
const PAYLOAD_MAX: usize = 65_507;
/// Ports of sockets: not below 1,024, where peers are refused, and not where relayed ports are.
const PORTS: std::ops::Range<u16> = 10_000..48_000;

type Datagram = (Vec<u8>, SocketAddr);

#[derive(Default)]
struct Network {
    /// What waits at each socket.
    inboxes: HashMap<SocketAddr, VecDeque<Datagram>>,
    last_port: u16,
}

thread_local! {
    static NETWORK: RefCell<Network> = RefCell::default();
    static RELAY: RefCell<Option<Relay>> = const { RefCell::new(None) };
}

/// Puts the relay into the network.
pub fn place(relay: Relay) {
    RELAY.set(Some(relay));
}

/// The relay.
pub fn with_relay<T>(act: impl FnOnce(&mut Relay) -> T) -> T {
    RELAY.with_borrow_mut(|relay| act(relay.as_mut().expect("it was placed")))
}

/// Brings a datagram where it belongs: to the relay, to one of its relayed addresses, or to a socket. What is for nobody is lost.
fn carry(bytes: &[u8], from: SocketAddr, to: SocketAddr) {
    for (bytes, from, to) in with_relay(|relay| relay.receive(bytes, from, to)) {
        if bytes.len() <= PAYLOAD_MAX {
            NETWORK.with_borrow_mut(|network| {
                if let Some(inbox) = network.inboxes.get_mut(&to) {
                    inbox.push_back((bytes, from));
                }
            });
        }
    }
}

/// A socket with as much of the interface of the real one as the rows use.
pub struct UdpSocket {
    address: SocketAddr,
    to: Cell<Option<SocketAddr>>,
}

#[allow(clippy::unnecessary_wraps, reason = "the real ones can fail")]
impl UdpSocket {
    pub fn connect(&self, to: SocketAddr) -> io::Result<()> {
        self.to.set(Some(to));
        Ok(())
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let to = self.to.get().ok_or(io::ErrorKind::NotConnected)?;
        self.send_to(bytes, to)
    }

    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        carry(bytes, self.address, to);
        Ok(bytes.len())
    }

    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (bytes, _) = self.next().ok_or(io::ErrorKind::WouldBlock)?;
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    pub fn set_nonblocking(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn next(&self) -> Option<Datagram> {
        NETWORK.with_borrow_mut(|network| network.inboxes.get_mut(&self.address)?.pop_front())
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        NETWORK.with_borrow_mut(|network| network.inboxes.remove(&self.address));
    }
}

/// A socket on this address.
pub fn socket_on(ip: IpAddr) -> UdpSocket {
    let address = NETWORK.with_borrow_mut(|network| {
        loop {
            network.last_port = network.last_port.max(PORTS.start) + 1;
            if !PORTS.contains(&network.last_port) {
                network.last_port = PORTS.start;
            }
            let address = SocketAddr::new(ip, network.last_port);
            if let std::collections::hash_map::Entry::Vacant(place) = network.inboxes.entry(address) {
                place.insert(VecDeque::new());
                return address;
            }
        }
    });
    UdpSocket { address, to: Cell::new(None) }
}

/// A peer, where the one on the wire is.
pub fn peer() -> UdpSocket {
    socket_on(Ipv4Addr::new(127, 0, 0, 2).into())
}

/// The next datagram and its sender.
pub fn receive(socket: &UdpSocket) -> Datagram {
    socket.next().expect("a datagram arrives")
}

/// The error code of an answer, or nothing.
pub fn code(reply: &[u8]) -> Option<u16> {
    Message::parse(reply).unwrap().error_code().unwrap().map(|code| code.0)
}
