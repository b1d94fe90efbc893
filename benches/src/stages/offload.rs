//! Coalescing and splitting, on TCP over IPv4 with the timestamps option, as Linux sends it.

use std::hint::black_box;

use dataplane::offload::candidate::inspect;
use dataplane::offload::checksum;
use dataplane::offload::coalesce::{SLOT_LEN_MIN, Superpacket};
use dataplane::offload::split::Splitter;
use dataplane::offload::virtio;
use dataplane::sys::tun::Offloads;

use super::SEGMENTS;

/// IP and TCP header, bytes: 12 of them are options.
pub const HEADER_LEN: usize = 52;
/// TCP payload of a packet of 1,420 bytes.
pub const PAYLOAD_LEN: usize = 1_420 - HEADER_LEN;
/// A device with every offload.
pub const OFFLOADS: Offloads = Offloads { checksum: true, tso: true, uso: true, bare: false };

/// Consecutive TCP segments of one flow with valid checksums, none of which ends a superpacket.
#[must_use]
pub fn tcp_segments(count: usize, payload_len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|index| tcp_segment(index, payload_len)).collect()
}

fn tcp_segment(index: usize, payload_len: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER_LEN + payload_len];
    let total_len = packet.len() as u16;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total_len.to_be_bytes());
    packet[4..6].copy_from_slice(&(index as u16).to_be_bytes());
    packet[6] = 0x40; // DF
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    let ip_checksum = checksum::finish(checksum::sum(&packet[..20]));
    packet[10..12].copy_from_slice(&ip_checksum.to_be_bytes());
    packet[20..24].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]);
    packet[24..28].copy_from_slice(&((index * payload_len) as u32).to_be_bytes());
    packet[32..36].copy_from_slice(&[0x80, 0x10, 1, 0xf5]); // 32 bytes of header, ACK, window
    packet[40..52].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet[HEADER_LEN..].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 + index) as u8);
    let transport_len = (packet.len() - 20) as u64;
    let sum = checksum::pseudo_header(&packet[12..20], 6) + transport_len + checksum::sum(&packet[20..]);
    packet[36..38].copy_from_slice(&checksum::finish(sum).to_be_bytes());
    packet
}

/// Merges the segments of one superpacket, again and again.
pub struct Coalesce {
    packets: Vec<Vec<u8>>,
    slot: Vec<u8>,
}

impl Coalesce {
    /// [`SEGMENTS`] packets of 1,420 bytes.
    #[must_use]
    pub fn new() -> Self {
        Self { packets: tcp_segments(SEGMENTS, PAYLOAD_LEN), slot: vec![0; SLOT_LEN_MIN] }
    }

    /// Bytes of the packets that go in.
    #[must_use]
    pub fn input_len(&self) -> usize {
        self.packets.iter().map(Vec::len).sum()
    }

    /// Looks at each packet, merges all of them, and returns the superpacket.
    ///
    /// # Panics
    /// When a packet was not merged.
    pub fn run(&mut self) -> &[u8] {
        let (first, rest) = self.packets.split_first().expect("there are packets");
        let mut superpacket = Superpacket::start(&mut self.slot, first, &inspect(first, OFFLOADS));
        for packet in rest {
            assert!(superpacket.try_append(&mut self.slot, packet, &inspect(packet, OFFLOADS)));
        }
        let len = superpacket.finish(&mut self.slot);
        &self.slot[..len]
    }
}

impl Default for Coalesce {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of the virtio_net header and the headers behind it, options included.
const FRONT: usize = virtio::HEADER_LEN + HEADER_LEN;

/// Takes one superpacket apart, again and again. Its payload ends up different, which changes nothing about the work.
pub struct Split {
    superpacket: Vec<u8>,
    /// The front of it, which taking it apart changes.
    front: [u8; FRONT],
}

impl Split {
    /// What [`Coalesce`] makes: [`SEGMENTS`] packets of 1,420 bytes, their checksums left to do.
    #[must_use]
    pub fn new() -> Self {
        let superpacket = Coalesce::new().run().to_vec();
        let mut front = [0; FRONT];
        front.copy_from_slice(&superpacket[..FRONT]);
        Self { superpacket, front }
    }

    /// Bytes that go in.
    #[must_use]
    pub fn input_len(&self) -> usize {
        self.superpacket.len()
    }

    /// Makes every packet; how many there were.
    ///
    /// # Panics
    /// When the superpacket is none.
    pub fn run(&mut self) -> usize {
        self.superpacket[..FRONT].copy_from_slice(&self.front);
        let mut splitter = Splitter::new(&mut self.superpacket).expect("a superpacket");
        let mut count = 0;
        while let Some(packet) = splitter.next_packet() {
            black_box(packet);
            count += 1;
        }
        count
    }
}

impl Default for Split {
    fn default() -> Self {
        Self::new()
    }
}
