//! Looks at an IP packet on its way to a TUN device: may it share a superpacket, and with which flow must it stay in
//! order?

use super::checksum;
use super::headers::{self, IPV4_LEN, IPV6_LEN, Ip, TCP, TCP_FLAGS, UDP, UDP_LEN, flags};
use crate::sys::tun::Offloads;

/// What an IP packet is to coalescing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes alone, unchanged.
    Alone,
    /// TCP over IPv4 with payload.
    Tcp4,
    /// TCP over IPv6 with payload.
    Tcp6,
    /// UDP over IPv4 with payload.
    Udp4,
    /// UDP over IPv6 with payload.
    Udp6,
}

impl Kind {
    pub(super) fn is_v4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }

    pub(super) fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }
}

/// A cheap name for a flow. Two flows may share one; [`super::coalesce::Superpacket::try_append`] compares the headers
/// themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Hash of the addresses.
    pair: u32,
    /// Hash of protocol and ports; zero where they cannot be seen (fragments, IPv6 extension headers), which may be any.
    transport: u32,
}

impl Flow {
    /// Whether a packet of the one may have to stay in order with a packet of the other.
    #[must_use]
    pub fn conflicts(self, other: Self) -> bool {
        self.pair == other.pair
            && (self.transport == other.transport || self.transport == 0 || other.transport == 0)
    }

    /// `ports` is `None` when they cannot be seen.
    fn new(addresses: &[u8], transport: Option<u64>) -> Self {
        let pair = addresses
            .as_chunks::<4>()
            .0
            .iter()
            .fold(0, |hash, word| mix(hash ^ u64::from(u32::from_ne_bytes(*word))));
        Self { pair: pair as u32, transport: transport.map_or(0, |transport| mix(transport) as u32 | 1) }
    }
}

/// Multiplies by 2^64 divided by the golden ratio and folds the product, so that every input bit reaches the low half.
/// Not keyed: who can choose addresses inside the tunnel gains nothing by a collision but smaller superpackets.
fn mix(value: u64) -> u64 {
    let product = u128::from(value ^ 0x5851_f42d_4c95_7f2d) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

/// What [`inspect`] found out about a packet; valid for that packet only.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub(super) kind: Kind,
    pub(super) flow: Option<Flow>,
    /// IP header length in bytes; 0 for [`Kind::Alone`].
    pub(super) ip_header_len: usize,
    /// IP and transport header length in bytes; 0 for [`Kind::Alone`].
    pub(super) header_len: usize,
    /// TCP sequence number, or 0.
    pub(super) sequence: u32,
    /// TCP flags, or 0.
    pub(super) flags: u8,
}

impl Candidate {
    /// May it share a superpacket, and of which kind? What says yes here may still turn out to have a wrong transport
    /// checksum, which is looked at while the payload is copied.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The flow it must stay in order with, also when it goes alone; `None` for what is no IP packet.
    #[must_use]
    pub fn flow(&self) -> Option<Flow> {
        self.flow
    }

    fn alone(flow: Option<Flow>) -> Self {
        Self { kind: Kind::Alone, flow, ip_header_len: 0, header_len: 0, sequence: 0, flags: 0 }
    }
}

/// Looks at the headers of an IP packet. Alone go: what is malformed or has trailing bytes; fragments, IPv4 options, IPv6
/// extension headers; a wrong IPv4 header checksum; TCP with SYN, FIN, RST or URG and without ACK or payload (pure ACKs);
/// UDP without payload or checksum; and everything whose offload the device lacks.
#[must_use]
pub fn inspect(packet: &[u8], offloads: Offloads) -> Candidate {
    let Some(ip) = Ip::parse(packet) else { return Candidate::alone(None) };
    let addresses = headers::addresses(ip.v4, packet);
    let body = &packet[ip.header_len..ip.total_len];
    let transport = match ip.protocol {
        _ if ip.fragment => None,
        // Ports are at the same place in both.
        TCP | UDP if body.len() >= 4 => {
            Some(u64::from(ip.protocol) << 32 | u64::from(headers::double_word(body, 0)))
        }
        protocol if !ip.v4 && headers::is_extension(protocol) => None,
        protocol => Some(u64::from(protocol) << 32),
    };
    let flow = Some(Flow::new(addresses, transport));
    mergeable(packet, ip, body, offloads)
        .map_or(Candidate::alone(flow), |candidate| Candidate { flow, ..candidate })
}

/// `None` when the packet has to go alone.
fn mergeable(packet: &[u8], ip: Ip, body: &[u8], offloads: Offloads) -> Option<Candidate> {
    if ip.total_len != packet.len() || !offloads.checksum {
        return None;
    }
    if ip.v4 {
        // The reserved bit, MF and the fragment offset: only DF may be set.
        if ip.header_len != IPV4_LEN || headers::word(packet, 6) & !0x4000 != 0 {
            return None;
        }
        // A field of 0xffff is the other way to write zero, and would not come back from the kernel as it was.
        if checksum::fold(checksum::sum(&packet[..IPV4_LEN])) != 0xffff || headers::word(packet, 10) == 0xffff
        {
            return None;
        }
    }
    debug_assert!(ip.v4 || ip.header_len == IPV6_LEN, "extension headers are not skipped here");
    let (kind, transport_len) = match ip.protocol {
        TCP if offloads.tso => (if ip.v4 { Kind::Tcp4 } else { Kind::Tcp6 }, mergeable_tcp(body)?),
        UDP if offloads.uso => (if ip.v4 { Kind::Udp4 } else { Kind::Udp6 }, mergeable_udp(body)?),
        _ => return None,
    };
    let tcp = kind.is_tcp();
    Some(Candidate {
        kind,
        flow: None,
        ip_header_len: ip.header_len,
        header_len: ip.header_len + transport_len,
        sequence: if tcp { headers::double_word(body, 4) } else { 0 },
        flags: if tcp { body[TCP_FLAGS] } else { 0 },
    })
}

/// Header length of a TCP packet that may be merged.
fn mergeable_tcp(body: &[u8]) -> Option<usize> {
    let len = headers::tcp_header_len(body)?;
    let alone = flags::SYN | flags::FIN | flags::RST | flags::URG;
    let plain = body[TCP_FLAGS] & (alone | flags::ACK) == flags::ACK;
    (plain && body.len() > len && headers::word(body, headers::TCP_CHECKSUM) != 0xffff).then_some(len)
}

/// Header length of a UDP datagram that may be merged.
fn mergeable_udp(body: &[u8]) -> Option<usize> {
    let whole = body.len() > UDP_LEN && usize::from(headers::word(body, 4)) == body.len();
    (whole && headers::word(body, headers::UDP_CHECKSUM) != 0).then_some(UDP_LEN)
}
