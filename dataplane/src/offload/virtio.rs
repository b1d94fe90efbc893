//! `struct virtio_net_hdr` as a TUN device with `IFF_VNET_HDR` reads and writes it.
//!
//! ```text
//!  0       1          2         4          6            8             10
//!  | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset |
//! ```
//!
//! Ten bytes in the byte order of the machine (`TUNSETVNETHDRSZ` and `TUNSETVNETLE` left at their defaults); source:
//! `linux/virtio_net.h` and the virtio specification, section 5.1.6. Offsets and lengths count from the byte behind
//! this header, where the IP header starts.

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What the packet behind the header is made of (`gso_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// One packet.
    #[default]
    None,
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams over either (Linux 6.2).
    Udp,
}

/// A checksum the other side is to complete: sum from `start` to the end of the packet, write at `start + offset`,
/// where the sum of the pseudo header already stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the sum starts, in bytes from the IP header.
    pub start: u16,
    /// Where the field is, in bytes from `start`: 16 for TCP, 6 for UDP.
    pub offset: u16,
}

/// The header, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Set when the checksum is partial (`NEEDS_CSUM`). A superpacket has it always.
    pub partial_checksum: Option<PartialChecksum>,
    /// The sender vouches for the checksum (`DATA_VALID`).
    pub data_valid: bool,
    /// What the packet is made of.
    pub gso: Gso,
    /// TCP with CWR on the first segment (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// IP and TCP or UDP headers together, in bytes. A hint from the kernel, which [`super::split`] does not trust.
    pub header_len: u16,
    /// Payload of each segment but the last, in bytes (`gso_size`).
    pub segment_size: u16,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` when they are too few or `gso_type` is unknown.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let gso = match header[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::Tcp4,
            GSO_TCPV6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return None,
        };
        let partial = PartialChecksum { start: word(6), offset: word(8) };
        Some(Self {
            partial_checksum: (header[0] & NEEDS_CSUM != 0).then_some(partial),
            data_valid: header[0] & DATA_VALID != 0,
            gso,
            ecn: header[1] & GSO_ECN != 0,
            header_len: word(2),
            segment_size: word(4),
        })
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let partial = self.partial_checksum.unwrap_or(PartialChecksum { start: 0, offset: 0 });
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = if self.partial_checksum.is_some() { NEEDS_CSUM } else { 0 };
        bytes[0] |= if self.data_valid { DATA_VALID } else { 0 };
        bytes[1] = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        bytes[1] |= if self.ecn { GSO_ECN } else { 0 };
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&partial.start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&partial.offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_is_the_one_of_linux() {
        let header = Header {
            partial_checksum: Some(PartialChecksum { start: 20, offset: 16 }),
            data_valid: false,
            gso: Gso::Tcp4,
            ecn: true,
            header_len: 52,
            segment_size: 1228,
        };
        let mut expected = vec![1u8, 0x81];
        for word in [52u16, 1228, 20, 16] {
            expected.extend_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(header.encode()[..], expected);
        assert_eq!(Header::default().encode(), [0; HEADER_LEN]);
    }

    #[test]
    fn refuses_short_and_unknown() {
        assert_eq!(Header::decode(&[0; HEADER_LEN - 1]), None);
        for gso_type in (0..=255u8).filter(|gso_type| ![0, 1, 4, 5].contains(&(gso_type & 0x7f))) {
            let mut bytes = [0; HEADER_LEN];
            bytes[1] = gso_type;
            assert_eq!(Header::decode(&bytes), None, "gso_type {gso_type}");
        }
    }

    proptest! {
        #[test]
        fn decoding_random_bytes_and_encoding_again_keeps_what_is_meant(bytes in any::<[u8; HEADER_LEN]>()) {
            if let Some(header) = Header::decode(&bytes) {
                prop_assert_eq!(Header::decode(&header.encode()), Some(header));
            }
        }
    }
}
