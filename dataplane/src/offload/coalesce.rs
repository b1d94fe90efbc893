//! Puts IP packets of one flow together into a superpacket for a TUN device.
//!
//! The caller owns the slots and keeps **at most one open superpacket per flow**. For each packet, in the order of
//! arrival:
//!
//! 1. [`inspect`](super::candidate::inspect) it.
//! 2. Is a superpacket open whose [`Superpacket::flow`] conflicts with the packet's
//!    ([`Flow::conflicts`])? Then [`Superpacket::try_append`].
//! 3. If that says no, [`Superpacket::finish`] the open one and hand it over **before** the packet: an unmergeable
//!    packet (a pure ACK, a FIN, a fragment) must not overtake its flow. Then [`Superpacket::start`] with the packet
//!    in another slot; when [`Superpacket::is_open`] is false at once, that slot may be finished and handed over too.
//!
//! Every checksum is verified before a segment is merged, while it is copied: merged with `NEEDS_CSUM`, a corrupt
//! segment would be delivered as good. One that fails goes alone, unchanged, for the receiver to judge.

use super::candidate::{Candidate, Flow, Kind};
use super::checksum;
use super::headers::{self, IPV6_LEN, TCP_CHECKSUM, TCP_FLAGS, TCP_LEN, UDP_CHECKSUM, flags};
use super::virtio::{self, Gso, PartialChecksum};

/// Segments in one superpacket. Linux before 6.11 takes no more for UDP (`UDP_MAX_SEGMENTS`).
pub const SEGMENTS_MAX: usize = 64;
/// The longest superpacket with its virtio_net header, in bytes: what a slot must hold at least.
pub const SLOT_LEN_MIN: usize = virtio::HEADER_LEN + crate::packet::MAX_LEN;

/// A superpacket being filled. The bytes are in the caller's slot, which every call gets anew; it must be the same one,
/// and nobody else may have written to it.
#[derive(Debug)]
pub struct Superpacket {
    kind: Kind,
    flow: Option<Flow>,
    ip_header_len: usize,
    header_len: usize,
    /// Payload of every segment but the last, in bytes.
    segment_size: usize,
    /// Bytes in the slot, virtio_net header included.
    len: usize,
    segments: usize,
    /// Whether another segment may follow.
    open: bool,
    /// TCP: the sequence number that the next segment has to have.
    next_sequence: u32,
    /// Sum of the pseudo header without length: equal for all packets of the flow.
    pseudo_sum: u64,
}

impl Superpacket {
    /// Starts with one packet: a zeroed virtio_net header, and the packet as it is.
    ///
    /// # Panics
    /// When `slot` is shorter than the packet and [`virtio::HEADER_LEN`]; a slot of [`SLOT_LEN_MIN`] holds every IP
    /// packet.
    pub fn start(slot: &mut [u8], packet: &[u8], candidate: &Candidate) -> Self {
        let len = virtio::HEADER_LEN + packet.len();
        let (vnet, body) = slot[..len].split_at_mut(virtio::HEADER_LEN);
        vnet.fill(0);
        let mut this = Self {
            kind: candidate.kind,
            flow: candidate.flow,
            ip_header_len: candidate.ip_header_len,
            header_len: candidate.header_len,
            segment_size: packet.len() - candidate.header_len,
            len,
            segments: 1,
            open: false,
            next_sequence: 0,
            pseudo_sum: 0,
        };
        if this.kind == Kind::Alone {
            body.copy_from_slice(packet);
            return this;
        }
        let (ip, transport) = body.split_at_mut(this.ip_header_len);
        let (packet_ip, packet_transport) = packet.split_at(this.ip_header_len);
        ip.copy_from_slice(packet_ip);
        let sum = checksum::copy_and_sum(transport, packet_transport);
        let protocol = if this.kind.is_tcp() { headers::TCP } else { headers::UDP };
        this.pseudo_sum = checksum::pseudo_header(headers::addresses(this.kind.is_v4(), packet), protocol);
        let valid = checksum::fold(this.pseudo_sum + packet_transport.len() as u64 + sum) == 0xffff;
        this.open = valid && candidate.flags & flags::PSH == 0;
        this.next_sequence = candidate.sequence.wrapping_add(this.segment_size as u32);
        this
    }

    /// Appends a packet if it continues this superpacket: same headers, next in sequence, not longer than the first, with
    /// a valid checksum, and with room for it. A shorter one and one with PSH are the last. When this answers `false`
    /// nothing has changed.
    pub fn try_append(&mut self, slot: &mut [u8], packet: &[u8], candidate: &Candidate) -> bool {
        if !self.open || candidate.kind != self.kind || candidate.header_len != self.header_len {
            return false;
        }
        let payload = &packet[self.header_len..];
        let len = self.len + payload.len();
        if payload.len() > self.segment_size || len > slot.len().min(SLOT_LEN_MIN) {
            return false;
        }
        let first = &slot[virtio::HEADER_LEN..][..self.header_len];
        if !self.continues(first, &packet[..self.header_len], candidate) {
            return false;
        }
        // The header's sum cannot be taken from the first one: a packet is verified with its own fields.
        let header_sum = checksum::sum(&packet[self.ip_header_len..self.header_len]);
        let payload_sum = checksum::copy_and_sum(&mut slot[self.len..len], payload);
        let transport_len = (packet.len() - self.ip_header_len) as u64;
        if checksum::fold(self.pseudo_sum + transport_len + header_sum + payload_sum) != 0xffff {
            return false;
        }
        let psh = candidate.flags & flags::PSH;
        if self.kind.is_tcp() {
            slot[virtio::HEADER_LEN + self.ip_header_len + TCP_FLAGS] |= psh;
        }
        self.len = len;
        self.segments += 1;
        self.next_sequence = self.next_sequence.wrapping_add(payload.len() as u32);
        self.open = psh == 0 && payload.len() == self.segment_size && self.segments < SEGMENTS_MAX;
        true
    }

    /// Whether a packet's headers say the same as those of the first, but for what follows from its place.
    fn continues(&self, first: &[u8], header: &[u8], candidate: &Candidate) -> bool {
        let (first_ip, first) = first.split_at(self.ip_header_len);
        let (ip, header) = header.split_at(self.ip_header_len);
        let same_ip = if self.kind.is_v4() {
            // The identification has to count up as Linux makes it when it takes superpackets apart, but where DF is set
            // it has no meaning (RFC 6864 section 4.1).
            let df = headers::word(ip, 6) & 0x4000 != 0;
            let identification = headers::word(first_ip, 4).wrapping_add(self.segments as u16);
            same(first_ip, ip, &IPV4_SAME) && (df || headers::word(ip, 4) == identification)
        } else {
            same(first_ip, ip, &IPV6_SAME)
        };
        if !self.kind.is_tcp() {
            return same_ip && same(first, header, &PORTS_SAME);
        }
        // CWR is the first segment's only: a packet with it starts anew. PSH on the first has closed the superpacket.
        same_ip
            && candidate.sequence == self.next_sequence
            && candidate.flags & !flags::PSH == first[TCP_FLAGS] & !flags::CWR
            && same(first, header, &TCP_SAME)
            && same(&first[TCP_LEN..], &header[TCP_LEN..], &[u32::MAX; 10])
    }

    /// Makes the headers those of the whole and returns its length in bytes, virtio_net header included. A single packet
    /// stays as it came, under a header that claims nothing.
    pub fn finish(self, slot: &mut [u8]) -> usize {
        if self.segments == 1 {
            return self.len;
        }
        let (vnet, packet) = slot[..self.len].split_at_mut(virtio::HEADER_LEN);
        let packet_len = packet.len();
        let transport_len = packet_len - self.ip_header_len;
        let (ip, transport) = packet.split_at_mut(self.ip_header_len);
        if self.kind.is_v4() {
            headers::set_word(ip, 2, packet_len as u16);
            headers::set_word(ip, 10, 0);
            headers::set_word(ip, 10, checksum::finish(checksum::sum(ip)));
        } else {
            headers::set_word(ip, 4, (packet_len - IPV6_LEN) as u16);
        }
        let tcp = self.kind.is_tcp();
        let offset = if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        if !tcp {
            headers::set_word(transport, 4, transport_len as u16);
        }
        headers::set_word(transport, offset, checksum::fold(self.pseudo_sum + transport_len as u64));
        let header = virtio::Header {
            partial_checksum: Some(PartialChecksum {
                start: self.ip_header_len as u16,
                offset: offset as u16,
            }),
            data_valid: false,
            gso: match self.kind {
                Kind::Alone => Gso::None,
                Kind::Tcp4 => Gso::Tcp4,
                Kind::Tcp6 => Gso::Tcp6,
                Kind::Udp4 | Kind::Udp6 => Gso::Udp,
            },
            ecn: tcp && transport[TCP_FLAGS] & flags::CWR != 0,
            header_len: self.header_len as u16,
            segment_size: self.segment_size as u16,
        };
        vnet.copy_from_slice(&header.encode());
        self.len
    }

    /// The flow of its packets; `None` for what is no IP packet.
    #[must_use]
    pub fn flow(&self) -> Option<Flow> {
        self.flow
    }

    /// Whether another packet may be appended. When not, nothing is gained by keeping it back.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Packets in it.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Bytes in the slot, virtio_net header included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a superpacket is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

/// IPv4: version, header length, TOS; flags, fragment offset; TTL, protocol; addresses.
const IPV4_SAME: [u32; 5] = [0xffff_0000, 0x0000_ffff, 0xffff_0000, u32::MAX, u32::MAX];
/// IPv6: version, traffic class, flow label; next header, hop limit; addresses.
const IPV6_SAME: [u32; 10] = {
    let mut same = [u32::MAX; 10];
    same[1] = 0x0000_ffff;
    same
};
/// UDP: ports.
const PORTS_SAME: [u32; 1] = [u32::MAX];
/// TCP: ports; acknowledgement; header length, reserved bits, window; urgent pointer.
const TCP_SAME: [u32; 5] = [u32::MAX, 0, u32::MAX, 0xff00_ffff, 0x0000_ffff];

/// Whether two headers are equal in the bits of `masks`, word by word, as far as the shortest of the three goes. Without
/// branches: headers of one flow nearly always are, and this is half the time of a slice comparison for each field.
fn same(one: &[u8], other: &[u8], masks: &[u32]) -> bool {
    let words = one.as_chunks::<4>().0.iter().zip(other.as_chunks::<4>().0).zip(masks);
    let difference = words.fold(0, |difference, ((one, other), mask)| {
        difference | ((u32::from_ne_bytes(*one) ^ u32::from_ne_bytes(*other)) & mask.to_be())
    });
    difference == 0
}
