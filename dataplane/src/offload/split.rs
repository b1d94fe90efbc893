//! Takes a superpacket read from a TUN device apart into IP packets with valid checksums, in the buffer it was read into.
//!
//! The header of every packet is built just in front of its payload, over the end of the packet before, which has left
//! by then:
//!
//! ```text
//!  | header | payload 0 | payload 1 | payload 2 |
//!             | header | payload 1 |
//!                         | header | payload 2 |
//! ```
//! So the payload's only copy is the one that seals it into the slot: copying each packet out of the superpacket first took 32 ns
//! for 1,375 bytes.

use std::ops::Range;

use super::checksum;
use super::headers::{self, Ip, TCP, TCP_CHECKSUM, TCP_FLAGS, UDP, UDP_CHECKSUM, UDP_LEN, flags};
use super::virtio::{self, Gso, PartialChecksum};
use crate::drops::Cause;
use crate::packet::MAX_LEN;

/// The packets of one TUN read, in order.
#[derive(Debug)]
pub struct Splitter<'a> {
    /// The IP packet or superpacket, without virtio_net header and without what is behind its IP length.
    bytes: &'a mut [u8],
    plan: Plan,
    /// Packets handed out so far.
    written: usize,
    count: usize,
}

/// What is to be done with the bytes.
#[derive(Debug)]
enum Plan {
    /// One packet, as it is.
    Whole,
    /// One packet whose transport checksum is to be completed.
    Complete(PartialChecksum),
    /// Many packets.
    Segment(Segmentation),
}

/// What the packets of a superpacket have in common.
#[derive(Debug)]
struct Segmentation {
    v4: bool,
    transport: Transport,
    /// Length of the IP header with options and extension headers, in bytes.
    ip_header_len: usize,
    /// The same plus the TCP or UDP header.
    header_len: usize,
    /// Payload of every packet but the last, in bytes.
    segment_size: usize,
    /// The IPv4 identification of the first packet.
    identification: u16,
    /// Sum of the IPv4 header without total length, identification and checksum.
    ip_sum: u64,
    /// Sum of the pseudo header without length and of the TCP or UDP header without what changes by packet.
    transport_sum: u64,
}

/// What changes by packet in the transport header.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

impl<'a> Splitter<'a> {
    /// Reads the headers of a virtio_net header and the IP packet behind it, as they come from a TUN device. Only the
    /// kind of offload, the segment size and the place of a partial checksum are taken from the virtio_net header; its
    /// `hdr_len` is a hint that Linux sets to the linear part of its buffer.
    ///
    /// # Errors
    /// [`Cause::MalformedInner`] for what is no IP packet, and for headers that contradict each other or the length.
    pub fn new(superpacket: &'a mut [u8]) -> Result<Self, Cause> {
        Self::parse(superpacket).ok_or(Cause::MalformedInner)
    }

    /// Reads an IP packet as it comes from a device without virtio_net headers.
    ///
    /// # Errors
    /// [`Cause::MalformedInner`] for what is none.
    pub fn bare(packet: &'a mut [u8]) -> Result<Self, Cause> {
        let total_len = Ip::parse(packet).ok_or(Cause::MalformedInner)?.total_len;
        Ok(Self { bytes: &mut packet[..total_len], plan: Plan::Whole, written: 0, count: 1 })
    }

    fn parse(superpacket: &'a mut [u8]) -> Option<Self> {
        let header = virtio::Header::decode(superpacket)?;
        let bytes = &mut superpacket[virtio::HEADER_LEN..];
        if bytes.len() > MAX_LEN {
            return None;
        }
        let ip = Ip::parse(bytes)?;
        let bytes = &mut bytes[..ip.total_len];
        let plan = match (header.gso, header.partial_checksum) {
            (Gso::None, None) => Plan::Whole,
            (Gso::None, Some(partial)) => {
                let start = usize::from(partial.start);
                if start < ip.header_len || start + usize::from(partial.offset) + 2 > bytes.len() {
                    return None;
                }
                Plan::Complete(partial)
            }
            (gso, _) => Plan::Segment(Segmentation::parse(gso, header.segment_size, ip, bytes)?),
        };
        let count = match &plan {
            Plan::Whole | Plan::Complete(_) => 1,
            Plan::Segment(it) => (bytes.len() - it.header_len).div_ceil(it.segment_size).max(1),
        };
        Some(Self { bytes, plan, written: 0, count })
    }

    /// How many packets the superpacket holds, those already handed out included. At least one.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.count
    }

    /// The next packet, complete. The one before is overwritten in part.
    pub fn next_packet(&mut self) -> Option<&[u8]> {
        if self.written == self.count {
            return None;
        }
        let range = match &self.plan {
            Plan::Whole => 0..self.bytes.len(),
            Plan::Complete(partial) => {
                complete(*partial, self.bytes);
                0..self.bytes.len()
            }
            Plan::Segment(segmentation) => segmentation.build(self.bytes, self.written, self.count),
        };
        self.written += 1;
        Some(&self.bytes[range])
    }
}

/// Completes the checksum of a packet. The field already holds the pseudo header's sum, so that the sum of everything from
/// `start` on is the checksum's.
fn complete(partial: PartialChecksum, bytes: &mut [u8]) {
    let offset = usize::from(partial.offset);
    let transport = &mut bytes[usize::from(partial.start)..];
    let sum = checksum::sum(transport);
    // A field at 6 is UDP's, where zero has a meaning of its own; to others 0xffff and zero are the same number.
    let field = if offset == UDP_CHECKSUM { checksum::finish_udp(sum) } else { checksum::finish(sum) };
    headers::set_word(transport, offset, field);
}

impl Segmentation {
    fn parse(gso: Gso, segment_size: u16, ip: Ip, bytes: &[u8]) -> Option<Self> {
        let ip = ip.skip_extensions(bytes)?;
        let consistent = match gso {
            Gso::None => false,
            Gso::Tcp4 => ip.v4 && ip.protocol == TCP,
            Gso::Tcp6 => !ip.v4 && ip.protocol == TCP,
            Gso::Udp => ip.protocol == UDP,
        };
        if !consistent || ip.fragment || segment_size == 0 {
            return None;
        }
        let body = &bytes[ip.header_len..];
        let (transport, transport_len) = if gso == Gso::Udp {
            (Transport::Udp, UDP_LEN)
        } else {
            let len = headers::tcp_header_len(body)?;
            (Transport::Tcp { sequence: headers::double_word(body, 4), flags: body[TCP_FLAGS] }, len)
        };
        let header = body.get(..transport_len)?;

        let mut pseudo = checksum::pseudo_header(headers::addresses(ip.v4, bytes), ip.protocol);
        if let Some(at) = ip.final_destination {
            let destinations = [&bytes[8..24], bytes.get(at..at + 16)?];
            pseudo = destinations.map(checksum::sum).iter().sum::<u64>() + u64::from(ip.protocol);
        }
        Some(Self {
            v4: ip.v4,
            transport,
            ip_header_len: ip.header_len,
            header_len: ip.header_len + transport_len,
            segment_size: usize::from(segment_size),
            identification: if ip.v4 { headers::word(bytes, 4) } else { 0 },
            ip_sum: if ip.v4 { without(&bytes[..ip.header_len], &[2, 4, 10]) } else { 0 },
            transport_sum: pseudo
                + match transport {
                    Transport::Tcp { flags, .. } => without(header, &[4, 6, TCP_CHECKSUM]) - u64::from(flags),
                    Transport::Udp => without(header, &[4, UDP_CHECKSUM]),
                },
        })
    }

    /// Builds packet `index` of `count`, after all before it; the answer is where it is.
    fn build(&self, bytes: &mut [u8], index: usize, count: usize) -> Range<usize> {
        let start = index * self.segment_size;
        let end = bytes.len().min(start + self.header_len + self.segment_size);
        if index > 0 {
            // From the packet before, not the first: with a payload shorter than the headers that one is no longer whole.
            let before = start - self.segment_size;
            bytes.copy_within(before..before + self.header_len, start);
        }
        let packet = &mut bytes[start..end];
        let len = packet.len();
        let (header, payload) = packet.split_at_mut(self.header_len);
        let payload_sum = checksum::sum(payload);
        let (ip, transport) = header.split_at_mut(self.ip_header_len);
        self.write_ip(ip, index, len);
        self.write_transport(transport, index, index + 1 == count, len - self.ip_header_len, payload_sum);
        start..end
    }

    /// Length, identification (one more for each packet, as Linux counts) and header checksum.
    fn write_ip(&self, header: &mut [u8], index: usize, len: usize) {
        if !self.v4 {
            headers::set_word(header, 4, (len - headers::IPV6_LEN) as u16);
            return;
        }
        let identification = self.identification.wrapping_add(index as u16);
        let sum = self.ip_sum + len as u64 + u64::from(identification);
        headers::set_word(header, 2, len as u16);
        headers::set_word(header, 4, identification);
        headers::set_word(header, 10, checksum::finish(sum));
    }

    /// Sequence number, flags and checksum, or UDP length and checksum. FIN and PSH are the last packet's, CWR the first
    /// one's (RFC 3168 section 6.1.2: it answers one ECE).
    fn write_transport(&self, header: &mut [u8], index: usize, last: bool, len: usize, payload_sum: u64) {
        let sum = self.transport_sum + payload_sum + len as u64;
        match self.transport {
            Transport::Tcp { sequence, flags } => {
                let sequence = sequence.wrapping_add((index * self.segment_size) as u32);
                let mut flags = flags;
                flags &= if last { 0xff } else { !(flags::FIN | flags::PSH) };
                flags &= if index == 0 { 0xff } else { !flags::CWR };
                let sum = sum + u64::from(sequence >> 16) + u64::from(sequence & 0xffff) + u64::from(flags);
                header[4..8].copy_from_slice(&sequence.to_be_bytes());
                header[TCP_FLAGS] = flags;
                headers::set_word(header, TCP_CHECKSUM, checksum::finish(sum));
            }
            Transport::Udp => {
                headers::set_word(header, 4, len as u16);
                // The length counts twice: in the pseudo header and in the header itself.
                headers::set_word(header, UDP_CHECKSUM, checksum::finish_udp(sum + len as u64));
            }
        }
    }
}

/// The sum of a header without the words at the given places. Subtracting is safe on the true sum of 16-bit words,
/// which a header of at most 64 KiB keeps within 31 bits.
fn without(header: &[u8], places: &[usize]) -> u64 {
    let all: u64 = header.chunks_exact(2).map(|pair| u64::from(headers::word(pair, 0))).sum();
    all - places.iter().map(|&at| u64::from(headers::word(header, at))).sum::<u64>()
}
