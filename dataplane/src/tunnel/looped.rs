//! Recognises our own datagrams where the host routes them back into the tunnel they came out of.
//!
//! That happens when the address of a peer or of the relay lies in AllowedIPs and no narrower route, mark or rule leads there.
//! Sealed again, each round would be longer by a header and never end; where a peer sends them back, the tunnel
//! would become its own way. The kernel's WireGuard looks at the route that its datagrams take; a program sees them only when
//! they come back.
//!
//! Ours is what leaves our port for an address that we send to, and a data message for a session that we have with who is there,
//! whatever port a rule of the host's has given it. A port or an address alone says nothing: who is behind a gateway may have a
//! tunnel of his own, from the same port or to the same peer. Where our sockets carry a mark, for rules that lead what they
//! send around the tunnel, even both say little, and only the message counts.
//!
//! What is longer than the device's MTU comes back in fragments. The first one shows ports and message, and ends here. The others
//! are short: sealed once more, they are a datagram of one piece.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::FixedState;

use super::peer::Peer;
use super::{PeerIndex, Tunnel};
use crate::wire::ip::{Header, IPV4_HEADER, IPV6_HEADER};
use crate::wire::wireguard::{self, Message};

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
    /// The sockets carry a mark.
    marked: bool,
    relay: Option<RelayServer>,
    /// How many peers an address is of, most often one, and the last that came to be there.
    peers: HashMap<SocketAddr, (u32, PeerIndex), FixedState>,
}

impl Outside {
    pub(super) fn new(seed: u64) -> Self {
        Self { port: 0, marked: false, relay: None, peers: HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    /// Remembers where a peer is, or may be, reached directly.
    pub(super) fn note(&mut self, index: PeerIndex, peer: &mut Peer) {
        let path = peer.path.filter(|path| matches!(path, super::Path::Direct { .. }));
        let ways = peer.paths.iter().flat_map(|paths| paths.direct_addresses());
        let addresses = || path.map(|path| path.remote()).into_iter().chain(ways.clone());
        if addresses().eq(peer.outside.iter().copied()) {
            return;
        }
        self.forget(&peer.outside);
        peer.outside = addresses().collect();
        for address in &peer.outside {
            let known = self.peers.entry(*address).or_insert((0, index));
            *known = (known.0 + 1, index);
        }
    }

    /// Forgets addresses of a peer.
    pub(super) fn forget(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            if let Some((count, _)) = self.peers.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.peers.remove(address);
                }
            }
        }
    }
}

impl Tunnel {
    /// The port that our datagrams come from, 0 while there is none.
    pub fn set_own_port(&mut self, port: u16) {
        self.outside.port = port;
    }

    /// Whether what we send carries a mark (SO_MARK), by which the host can tell it from all else.
    pub fn set_marked(&mut self, marked: bool) {
        self.outside.marked = marked;
    }

    /// Whether a packet for the network behind the tunnel is one of our own datagrams.
    pub(super) fn is_own(&self, packet: &[u8], header: &Header) -> bool {
        let Self { outside, peers, .. } = self;
        let Some(Segment { protocol, from, to, payload }) = segment(packet, header.destination) else {
            return false;
        };
        let to = SocketAddr::new(header.destination, to);
        let relay = outside.relay.filter(|relay| relay.address == to);
        if protocol == TCP {
            return relay.is_some_and(|relay| relay.stream_port == Some(from));
        }
        let from_us = from == outside.port && from != 0;
        if from_us && relay.is_some_and(|relay| relay.stream_port.is_none()) {
            return true;
        }
        let receiver = match wireguard::parse(payload) {
            Some(Message::Data { receiver, .. }) => Some(receiver),
            _ => None,
        };
        if !from_us && receiver.is_none() {
            return false;
        }
        let Some((_, peer)) = outside.peers.get(&to) else {
            return false;
        };
        let seals = |receiver| peers.get(*peer).is_some_and(|peer| peer.noise.seals_for(receiver));
        from_us && !outside.marked || receiver.is_some_and(seals)
    }

    /// The relay in use: what we send there must not come back.
    pub fn set_relay_server(&mut self, relay: RelayServer) {
        self.outside.relay = Some(relay);
    }

    /// Notes where a peer is reached now.
    pub(super) fn note_outside(&mut self, index: PeerIndex) {
        let Self { peers, outside, .. } = self;
        if let Some(peer) = peers.get_mut(index) {
            outside.note(index, peer);
        }
    }
}

/// What stands in front of a packet's payload.
struct Segment<'a> {
    /// UDP or TCP.
    protocol: u8,
    from: u16,
    to: u16,
    /// Behind a header of UDP's length.
    payload: &'a [u8],
}

/// The ports of a packet of UDP or TCP that has them, or of its first fragment. We send no other extension headers.
fn segment(packet: &[u8], destination: IpAddr) -> Option<Segment<'_>> {
    /// The lower 13 bits of the word at 6 (RFC 791).
    const OFFSET: u16 = 0x1fff;
    /// Next header value, length, and the bits at 2 that are the offset (RFC 8200, section 4.5).
    const FRAGMENT: (u8, usize, u16) = (44, 8, 0xfff8);
    const UDP_HEADER: usize = 8;
    let (protocol, at) = match destination {
        IpAddr::V4(_) => {
            let header = packet.first_chunk::<IPV4_HEADER>()?;
            if u16::from_be_bytes([header[6], header[7]]) & OFFSET != 0 {
                return None;
            }
            (header[9], usize::from(header[0] & 0x0f) * 4)
        }
        IpAddr::V6(_) if *packet.get(6)? == FRAGMENT.0 => {
            let [next, _, offset @ ..]: [u8; 4] = *packet.get(IPV6_HEADER..)?.first_chunk()?;
            if u16::from_be_bytes(offset) & FRAGMENT.2 != 0 {
                return None;
            }
            (next, IPV6_HEADER + FRAGMENT.1)
        }
        IpAddr::V6(_) => (*packet.get(6)?, IPV6_HEADER),
    };
    if protocol != UDP && protocol != TCP {
        return None;
    }
    let transport = packet.get(at..)?;
    let [a, b, c, d] = *transport.first_chunk()?;
    let payload = transport.get(UDP_HEADER..).unwrap_or_default();
    Some(Segment { protocol, from: u16::from_be_bytes([a, b]), to: u16::from_be_bytes([c, d]), payload })
}
