//! Recognises our own datagrams where the host routes them back into the tunnel they came out of.
//!
//! That happens when the address of a peer or of the relay lies in AllowedIPs and no narrower route, mark or rule leads there.
//! Sealed again, each round would be longer by a header and never end; where a peer sends them back, the tunnel
//! would become its own way. The kernel's WireGuard looks at the route that its datagrams take; a program sees them only when
//! they come back.
//!
//! Ours is what leaves our port for an address that we send to. A port or an address alone says nothing: who is behind a
//! gateway may have a tunnel of his own, from the same port or to the same peer. Only what is for the very address of the peer
//! that it is routed to is taken for ours whatever port it has, because later fragments have none.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::FixedState;

use super::peer::Peer;
use super::{PeerIndex, Tunnel};
use crate::wire::ip::{Header, IPV4_HEADER, IPV6_HEADER};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The relay that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayServer {
    /// Its address.
    pub address: SocketAddr,
    /// Our port of the TCP connection to it; `None` where it is spoken to over UDP, from the port of our sockets.
    pub stream_port: Option<u16>,
}

/// Where our datagrams come from and go to.
pub(super) struct Outside {
    /// The port of our sockets, 0 while there are none.
    port: u16,
    relay: Option<RelayServer>,
    /// How many peers an address is of; most often one.
    peers: HashMap<SocketAddr, u32, FixedState>,
}

impl Outside {
    pub(super) fn new(seed: u64) -> Self {
        Self { port: 0, relay: None, peers: HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    /// Remembers where a peer is, or may be, reached directly.
    pub(super) fn note(&mut self, peer: &mut Peer) {
        let path = peer.path.filter(|path| matches!(path, super::Path::Direct { .. }));
        let ways = peer.paths.iter().flat_map(|paths| paths.direct_addresses());
        let addresses = || path.map(|path| path.remote()).into_iter().chain(ways.clone());
        if addresses().eq(peer.outside.iter().copied()) {
            return;
        }
        self.forget(&peer.outside);
        peer.outside.clear();
        peer.outside.extend(addresses());
        for address in &peer.outside {
            *self.peers.entry(*address).or_insert(0) += 1;
        }
    }

    /// Forgets addresses of a peer.
    pub(super) fn forget(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            if let Some(count) = self.peers.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.peers.remove(address);
                }
            }
        }
    }

    /// Whether a packet is one of ours.
    pub(super) fn is_own(&self, packet: &[u8], header: &Header) -> bool {
        let Some((protocol, [from, to])) = ports(packet, header.destination) else {
            return false;
        };
        let to = SocketAddr::new(header.destination, to);
        match protocol {
            UDP if from == self.port && from != 0 => {
                self.peers.contains_key(&to)
                    || self.relay.is_some_and(|relay| relay.stream_port.is_none() && relay.address == to)
            }
            TCP => self.relay.is_some_and(|relay| relay.stream_port == Some(from) && relay.address == to),
            _ => false,
        }
    }
}

impl Tunnel {
    /// The port that our datagrams come from, 0 while there is none.
    pub fn set_own_port(&mut self, port: u16) {
        self.outside.port = port;
    }

    /// The relay in use: what we send there must not come back.
    pub fn set_relay_server(&mut self, relay: RelayServer) {
        self.outside.relay = Some(relay);
    }

    /// Notes where a peer is reached now.
    pub(super) fn note_outside(&mut self, index: PeerIndex) {
        let Self { peers, outside, .. } = self;
        if let Some(peer) = peers.get_mut(index) {
            outside.note(peer);
        }
    }
}

/// Protocol and ports of a packet of UDP or TCP that has them. We send no extension headers of our own.
fn ports(packet: &[u8], destination: IpAddr) -> Option<(u8, [u16; 2])> {
    /// The lower 13 bits of the word at 6 (RFC 791).
    const OFFSET: u16 = 0x1fff;
    let (protocol, at) = match destination {
        IpAddr::V4(_) => {
            let header = packet.first_chunk::<IPV4_HEADER>()?;
            if u16::from_be_bytes([header[6], header[7]]) & OFFSET != 0 {
                return None;
            }
            (header[9], usize::from(header[0] & 0x0f) * 4)
        }
        IpAddr::V6(_) => (*packet.get(6)?, IPV6_HEADER),
    };
    if protocol != UDP && protocol != TCP {
        return None;
    }
    let [a, b, c, d] = *packet.get(at..)?.first_chunk()?;
    Some((protocol, [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]))
}

/// Whether an IP packet (as [`crate::wire::ip::parse`] lets pass) for `destination` is a UDP datagram to `endpoint`, or a
/// part of one without ports.
pub(super) fn is_to_endpoint(packet: &[u8], destination: IpAddr, endpoint: SocketAddr) -> bool {
    if destination != endpoint.ip() {
        return false;
    }
    let (protocol, udp_at) = match destination {
        IpAddr::V4(_) => {
            /// The lower 13 bits of the word at 6 (RFC 791).
            const OFFSET: u16 = 0x1fff;
            let Some(header) = packet.first_chunk::<IPV4_HEADER>() else {
                return false;
            };
            if header[9] == UDP && u16::from_be_bytes([header[6], header[7]]) & OFFSET != 0 {
                return true;
            }
            (header[9], usize::from(header[0] & 0x0f) * 4)
        }
        // We send no fragments and no extension headers of our own.
        IpAddr::V6(_) => (packet.get(6).copied().unwrap_or(0), IPV6_HEADER),
    };
    let port = packet.get(udp_at + 2..udp_at + 4);
    protocol == UDP && port.is_some_and(|port| port == endpoint.port().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, fragment: u16, port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend([0, 9]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 8, 0, 0]);
        packet
    }

    #[test]
    fn only_datagrams_to_the_endpoint_itself_are_ours() {
        let endpoint: SocketAddr = "192.0.2.1:51820".parse().expect("address");
        let ours = |packet: &[u8]| is_to_endpoint(packet, endpoint.ip(), endpoint);
        assert!(ours(&ipv4(UDP, 0x4000, 51_820)));
        assert!(ours(&ipv4(UDP, 100, 1)), "a later fragment has no ports");
        assert!(!ours(&ipv4(UDP, 0, 53)), "another service of the same host");
        assert!(!ours(&ipv4(6, 0, 51_820)), "TCP");
        assert!(!ours(&ipv4(UDP, 0, 51_820)[..22]), "cut off");
        let elsewhere = "192.0.2.2:51820".parse().expect("address");
        assert!(!is_to_endpoint(&ipv4(UDP, 0, 51_820), endpoint.ip(), elsewhere));

        let mut packet = vec![0; 48];
        (packet[0], packet[6]) = (0x60, UDP);
        packet[42..44].copy_from_slice(&51_820_u16.to_be_bytes());
        let endpoint: SocketAddr = "[2001:db8::1]:51820".parse().expect("address");
        assert!(is_to_endpoint(&packet, endpoint.ip(), endpoint));
        packet[43] ^= 1;
        assert!(!is_to_endpoint(&packet, endpoint.ip(), endpoint));
    }
}
