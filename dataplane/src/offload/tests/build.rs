//! Builds packets and superpackets with a checksum that is written down apart from the one under test.

use crate::offload::virtio::{Gso, HEADER_LEN, Header, PartialChecksum};

/// A packet to be built.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) v4: bool,
    pub(super) tcp: bool,
    /// TOS or traffic class.
    pub(super) tos: u8,
    /// IPv4 identification.
    pub(super) id: u16,
    /// IPv4 flags and fragment offset.
    pub(super) fragment: u16,
    pub(super) ttl: u8,
    /// Last byte of the source address.
    pub(super) host: u8,
    pub(super) ports: (u16, u16),
    pub(super) sequence: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// TCP options, a multiple of four bytes.
    pub(super) options: Vec<u8>,
    /// IPv4 options, a multiple of four bytes, or IPv6 extension headers with the next header of the first and the place
    /// of the last one's next header put in by hand.
    pub(super) ip_options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Spec {
    pub(super) fn new(v4: bool, tcp: bool, payload: usize) -> Self {
        Self {
            v4,
            tcp,
            tos: 0,
            id: 0x1234,
            fragment: 0,
            ttl: 64,
            host: 1,
            ports: (40_000, 5_201),
            sequence: 0xffff_f000,
            flags: 0x10,
            window: 501,
            options: Vec::new(),
            ip_options: Vec::new(),
            payload: (0..payload).map(|at| (at * 31 + 7) as u8).collect(),
        }
    }

    pub(super) fn ip_header_len(&self) -> usize {
        if self.v4 { 20 + self.ip_options.len() } else { 40 + self.ip_options.len() }
    }

    pub(super) fn header_len(&self) -> usize {
        self.ip_header_len() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    /// The packet with valid checksums.
    pub(super) fn build(&self) -> Vec<u8> {
        let mut transport = self.transport();
        let sum = naive_sum(&[&self.pseudo(transport.len()), &transport]);
        let at = if self.tcp { 16 } else { 6 };
        let field = match !sum {
            0 if !self.tcp => 0xffff,
            field => field,
        };
        transport[at..at + 2].copy_from_slice(&field.to_be_bytes());
        [self.ip(transport.len()), transport].concat()
    }

    /// The same as a superpacket from the kernel, the checksum left to do.
    pub(super) fn build_super(&self, segment_size: u16) -> Vec<u8> {
        let mut transport = self.transport();
        let at = if self.tcp { 16 } else { 6 };
        let partial = naive_sum(&[&self.pseudo(transport.len())]);
        transport[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let header = Header {
            partial_checksum: Some(PartialChecksum { start: self.ip_header_len() as u16, offset: at as u16 }),
            data_valid: false,
            gso: match (segment_size, self.tcp, self.v4) {
                (0, ..) => Gso::None,
                (_, true, true) => Gso::Tcp4,
                (_, true, false) => Gso::Tcp6,
                (_, false, _) => Gso::Udp,
            },
            ecn: segment_size != 0 && self.tcp && self.flags & 0x80 != 0,
            header_len: self.header_len() as u16,
            segment_size,
        };
        [header.encode().to_vec(), self.ip(transport.len()), transport].concat()
    }

    fn addresses(&self) -> Vec<u8> {
        if self.v4 {
            vec![10, 0, 0, self.host, 10, 0, 1, 2]
        } else {
            let mut addresses = [0u8; 32];
            addresses[0] = 0xfd;
            addresses[15] = self.host;
            addresses[16] = 0xfd;
            addresses[31] = 2;
            addresses.to_vec()
        }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    fn pseudo(&self, len: usize) -> Vec<u8> {
        let mut pseudo = self.addresses();
        pseudo.extend_from_slice(&[0, self.protocol()]);
        pseudo.extend_from_slice(&(len as u16).to_be_bytes());
        pseudo
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        if self.tcp {
            bytes.extend_from_slice(&self.sequence.to_be_bytes());
            bytes.extend_from_slice(&0x0102_0304u32.to_be_bytes());
            bytes.push(((20 + self.options.len()) as u8 / 4) << 4);
            bytes.push(self.flags);
            bytes.extend_from_slice(&self.window.to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&self.options);
        } else {
            bytes.extend_from_slice(&((8 + self.payload.len()) as u16).to_be_bytes());
            bytes.extend_from_slice(&[0; 2]);
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    fn ip(&self, transport_len: usize) -> Vec<u8> {
        let total = self.ip_header_len() + transport_len;
        let mut bytes;
        if self.v4 {
            bytes = vec![0x40 | (self.ip_header_len() / 4) as u8, self.tos];
            bytes.extend_from_slice(&(total as u16).to_be_bytes());
            bytes.extend_from_slice(&self.id.to_be_bytes());
            bytes.extend_from_slice(&self.fragment.to_be_bytes());
            bytes.extend_from_slice(&[self.ttl, self.protocol(), 0, 0]);
            bytes.extend_from_slice(&self.addresses());
            bytes.extend_from_slice(&self.ip_options);
            let field = !naive_sum(&[&bytes]);
            bytes[10..12].copy_from_slice(&field.to_be_bytes());
        } else {
            let next = if self.ip_options.is_empty() { self.protocol() } else { 60 };
            bytes = vec![0x60 | self.tos >> 4, self.tos << 4, 0xab, 0xcd];
            bytes.extend_from_slice(&((total - 40) as u16).to_be_bytes());
            bytes.extend_from_slice(&[next, self.ttl]);
            bytes.extend_from_slice(&self.addresses());
            bytes.extend_from_slice(&self.ip_options);
        }
        bytes
    }
}

/// One's complement sum of the pieces one after another; every piece but the last has an even length.
pub(super) fn naive_sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Every packet of a superpacket.
pub(super) fn split(superpacket: &[u8]) -> Vec<Vec<u8>> {
    let mut buffer = superpacket.to_vec();
    let mut splitter = crate::offload::split::Splitter::new(&mut buffer).expect("a superpacket");
    let mut packets = Vec::new();
    while let Some(packet) = splitter.next_packet() {
        packets.push(packet.to_vec());
    }
    assert_eq!(packets.len(), splitter.segment_count());
    assert!(superpacket.len() >= HEADER_LEN);
    packets
}
