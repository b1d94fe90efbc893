//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers: addresses and the length the packet claims.
//!
//! What is behind the first header is not looked at: fragments, extension headers and ICMP errors pass as they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of an IPv6 header, bytes.
pub const IPV6_HEADER: usize = 40;
/// Length of the shortest IPv4 header, bytes.
pub const IPV4_HEADER: usize = 20;

/// What the first header of an IP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// Length of the whole packet in bytes, at most that of the bytes given; what follows is padding.
    pub total_len: usize,
}

/// Reads the header of an IP packet that may be followed by padding. `None` when it is not one: another version, cut
/// off, or with lengths that contradict each other. IPv6 jumbograms (RFC 2675) are refused.
#[must_use]
pub fn parse(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => parse_ipv4(packet),
        6 => parse_ipv6(packet),
        _ => None,
    }
}

fn parse_ipv4(packet: &[u8]) -> Option<Header> {
    let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_len < IPV4_HEADER || total_len < header_len || total_len > packet.len() {
        return None;
    }
    let [.., a, b, c, d, e, f, g, h] = *header;
    Some(Header {
        source: Ipv4Addr::new(a, b, c, d).into(),
        destination: Ipv4Addr::new(e, f, g, h).into(),
        total_len,
    })
}

fn parse_ipv6(packet: &[u8]) -> Option<Header> {
    /// Next header value of hop-by-hop options, which alone can carry a jumbo length.
    const HOP_BY_HOP: u8 = 0;
    let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let total_len = IPV6_HEADER + payload_len;
    if total_len > packet.len() || (payload_len == 0 && header[6] == HOP_BY_HOP) {
        return None;
    }
    let (_, source) = header[..24].split_last_chunk::<16>()?;
    let (_, destination) = header.split_last_chunk::<16>()?;
    Some(Header {
        source: Ipv6Addr::from(*source).into(),
        destination: Ipv6Addr::from(*destination).into(),
        total_len,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ipv4(header_words: u8, total_len: u16, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x40 | header_words;
        packet[2..4].copy_from_slice(&total_len.to_be_bytes());
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet
    }

    fn ipv6(payload_len: u16, next_header: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload_len.to_be_bytes());
        packet[6] = next_header;
        packet[23] = 1;
        packet[39] = 2;
        packet
    }

    #[test]
    fn addresses_and_length_are_read() {
        let header = parse(&ipv4(5, 28, 32)).expect("IPv4 with padding");
        assert_eq!(header.source, "10.0.0.1".parse::<IpAddr>().expect("address"));
        assert_eq!(header.destination, "10.0.0.2".parse::<IpAddr>().expect("address"));
        assert_eq!(header.total_len, 28);

        let header = parse(&ipv6(8, 17, 64)).expect("IPv6 with padding");
        assert_eq!(header.source, "::1".parse::<IpAddr>().expect("address"));
        assert_eq!(header.destination, "::2".parse::<IpAddr>().expect("address"));
        assert_eq!(header.total_len, 48);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert!(parse(&[]).is_none());
        assert!(parse(&ipv4(5, 20, 20)[..19]).is_none(), "shorter than a header");
        assert!(parse(&ipv4(4, 20, 20)).is_none(), "IHL below 5");
        assert!(parse(&ipv4(15, 59, 60)).is_none(), "total length below IHL");
        assert!(parse(&ipv4(15, 60, 59)).is_none(), "IHL beyond the packet");
        assert!(parse(&ipv4(5, 21, 20)).is_none(), "total length beyond the packet");
        assert!(parse(&ipv4(5, 0, 20)).is_none(), "total length zero");
        assert!(parse(&ipv6(0, 59, 40)[..39]).is_none(), "shorter than a header");
        assert!(parse(&ipv6(1, 17, 40)).is_none(), "payload beyond the packet");
        assert!(parse(&ipv6(0, 0, 80)).is_none(), "jumbogram");
        assert!(parse(&ipv6(0, 59, 40)).is_some(), "no next header, no payload");
        for version in [0_u8, 5, 15] {
            let mut packet = ipv4(5, 20, 20);
            packet[0] = version << 4 | 5;
            assert!(parse(&packet).is_none(), "version {version}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_lengths_stay_inside(packet in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Some(header) = parse(&packet) {
                prop_assert!(header.total_len <= packet.len());
                prop_assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
            }
        }
    }
}
