//! What a router says of a packet that is too long for the way ahead: "fragmentation needed" (RFC 792, RFC 1191) and "packet too
//! big" (RFC 4443 section 3.2).

use std::net::IpAddr;

use super::ip::{self, IPV4_HEADER, IPV6_HEADER};
use crate::offload::checksum;

/// No such message is longer, bytes: what every host takes over IPv4 (RFC 1812 section 4.3.2.3), and the MTU of IPv6.
const LEN_MAX_IPV4: usize = 576;
const LEN_MAX_IPV6: usize = 1_280;
/// The smallest MTU over IPv4 (RFC 791) and IPv6 (RFC 8200 section 5), bytes.
const MTU_MIN_IPV4: usize = 68;
const MTU_MIN_IPV6: usize = 1_280;
/// Length of an ICMP header, bytes.
const ICMP_HEADER: usize = 8;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 64;
/// DSCP CS6, as routers send their errors (RFC 1812 section 4.3.2.5).
const TRAFFIC_CLASS: u8 = 0xc0;

/// A message, at the start of its bytes.
pub struct Message {
    bytes: [u8; LEN_MAX_IPV6],
    len: usize,
}

impl Message {
    /// The message, an IP packet.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The MTU that the sender of a packet is to be told of where no more than `limit` bytes pass in one piece. `None`: it may pass,
/// because it is short enough, or because it does when it is carried in fragments: over IPv4 it is without DF, over IPv6 no
/// longer than what every path carries.
#[must_use]
pub fn mtu_to_tell(packet: &[u8], limit: usize) -> Option<usize> {
    if packet.len() <= limit {
        return None;
    }
    let mtu = match packet.first()? >> 4 {
        4 if packet.get(6)? & 0x40 != 0 => limit.max(MTU_MIN_IPV4),
        6 => limit.max(MTU_MIN_IPV6),
        _ => return None,
    };
    (packet.len() > mtu).then_some(mtu)
}

/// The message about a packet, for its sender. It comes from the packet's destination, which alone is known to be reached this
/// way. `None` about what gets no answer: errors, fragments but the first, and what has no single host at both ends
/// (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
#[must_use]
pub fn message(packet: &[u8], mtu: usize) -> Option<Message> {
    let header = ip::parse(packet)?;
    if !is_one_host(header.source) || !is_one_host(header.destination) {
        return None;
    }
    let packet = &packet[..header.total_len];
    let mut message = Message { bytes: [0; LEN_MAX_IPV6], len: 0 };
    let addresses = match header.source {
        IpAddr::V4(_) => packet.get(12..20)?,
        IpAddr::V6(_) => packet.get(8..40)?,
    };
    let (source, destination) = addresses.split_at(addresses.len() / 2);
    if header.source.is_ipv4() {
        let header_len = usize::from(packet[0] & 0x0f) * 4;
        let later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        let is_error = packet[9] == ICMP && matches!(packet.get(header_len), Some(3 | 4 | 5 | 11 | 12));
        if later_fragment || is_error {
            return None;
        }
        message.write_ipv4(packet, mtu, destination, source);
    } else {
        // Types below 128 are errors. Behind extension headers they are not looked for: the sender of an error does not
        // fill it beyond 1,280 bytes.
        if packet[6] == ICMPV6 && packet.get(IPV6_HEADER).is_none_or(|kind| *kind < 128) {
            return None;
        }
        message.write_ipv6(packet, mtu, destination, source);
    }
    Some(message)
}

impl Message {
    fn write_ipv4(&mut self, packet: &[u8], mtu: usize, from: &[u8], to: &[u8]) {
        self.len = (IPV4_HEADER + ICMP_HEADER + packet.len()).min(LEN_MAX_IPV4);
        let (header, icmp) = self.bytes[..self.len].split_at_mut(IPV4_HEADER);
        header[..10].copy_from_slice(&[0x45, TRAFFIC_CLASS, 0, 0, 0, 0, 0, 0, HOP_LIMIT, ICMP]);
        header[2..4].copy_from_slice(&(self.len as u16).to_be_bytes());
        header[12..16].copy_from_slice(from);
        header[16..20].copy_from_slice(to);
        let field = checksum::finish(checksum::sum(header));
        header[10..12].copy_from_slice(&field.to_be_bytes());
        // Destination unreachable, fragmentation needed.
        icmp[..2].copy_from_slice(&[3, 4]);
        icmp[6..8].copy_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
        let quoted = icmp.len() - ICMP_HEADER;
        icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
        let field = checksum::finish(checksum::sum(icmp));
        icmp[2..4].copy_from_slice(&field.to_be_bytes());
    }

    fn write_ipv6(&mut self, packet: &[u8], mtu: usize, from: &[u8], to: &[u8]) {
        self.len = (IPV6_HEADER + ICMP_HEADER + packet.len()).min(LEN_MAX_IPV6);
        let (header, icmp) = self.bytes[..self.len].split_at_mut(IPV6_HEADER);
        header[..2].copy_from_slice(&[0x60 | TRAFFIC_CLASS >> 4, TRAFFIC_CLASS << 4]);
        header[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
        header[6..8].copy_from_slice(&[ICMPV6, HOP_LIMIT]);
        header[8..24].copy_from_slice(from);
        header[24..40].copy_from_slice(to);
        icmp[0] = 2;
        icmp[4..8].copy_from_slice(&u32::try_from(mtu).unwrap_or(u32::MAX).to_be_bytes());
        let quoted = icmp.len() - ICMP_HEADER;
        icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
        let pseudo = checksum::pseudo_header(&header[8..40], ICMPV6) + icmp.len() as u64;
        let field = checksum::finish(pseudo + checksum::sum(icmp));
        icmp[2..4].copy_from_slice(&field.to_be_bytes());
    }
}

/// Whether an address can be that of one host that is elsewhere.
fn is_one_host(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    // 240.0.0.0/4 is nobody's, and holds the broadcast address.
    let reserved = matches!(address, IpAddr::V4(v4) if v4.octets()[0] >= 240);
    !special && !reserved
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ipv4(len: usize, flags: u8, protocol: u8) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..len).map(|index| index as u8).collect();
        packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 1, 2, flags, 0, 64, protocol, 0, 0]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet
    }

    fn ipv6(len: usize, next: u8) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..len).map(|index| index as u8).collect();
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, next, 64]);
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        packet[8..40].fill(0);
        (packet[8], packet[23], packet[24], packet[39]) = (0xfd, 1, 0xfd, 2);
        packet
    }

    #[test]
    fn who_asked_for_no_fragments_is_told_and_others_pass() {
        assert_eq!(mtu_to_tell(&ipv4(1_300, 0x40, 6), 1_300), None);
        assert_eq!(mtu_to_tell(&ipv4(1_301, 0x40, 6), 1_300), Some(1_300));
        assert_eq!(mtu_to_tell(&ipv4(1_301, 0, 6), 1_300), None, "without DF");
        assert_eq!(mtu_to_tell(&ipv4(100, 0x40, 6), 20), Some(68));
        assert_eq!(mtu_to_tell(&ipv6(1_400, 6), 1_300), Some(1_300));
        assert_eq!(mtu_to_tell(&ipv6(1_281, 6), 1_200), Some(1_280));
        assert_eq!(mtu_to_tell(&ipv6(1_280, 6), 1_200), None, "every path carries it");
        assert_eq!(mtu_to_tell(&[], 0), None);
    }

    #[test]
    fn a_message_quotes_the_packet_and_its_checksums_are_right() {
        for len in [28, 600, 1_400] {
            let packet = ipv4(len, 0x40, 17);
            let message = message(&packet, 1_300).expect("an answer");
            let bytes = message.as_slice();
            let header = ip::parse(bytes).expect("IPv4");
            assert_eq!(header.total_len, bytes.len());
            assert_eq!(bytes.len(), (28 + len).min(576));
            assert_eq!(
                (header.source.to_string(), header.destination.to_string()),
                ("10.0.0.2".into(), "10.0.0.1".into())
            );
            assert_eq!(checksum::fold(checksum::sum(&bytes[..20])), 0xffff);
            assert_eq!(checksum::fold(checksum::sum(&bytes[20..])), 0xffff);
            assert_eq!(
                (bytes[20..22].to_vec(), u16::from_be_bytes([bytes[26], bytes[27]])),
                (vec![3, 4], 1_300)
            );
            assert_eq!(bytes[28..], packet[..bytes.len() - 28]);
        }
        for len in [48, 1_400] {
            let packet = ipv6(len, 17);
            let message = message(&packet, 1_280).expect("an answer");
            let bytes = message.as_slice();
            assert_eq!(ip::parse(bytes).expect("IPv6").total_len, bytes.len());
            assert_eq!(bytes.len(), (48 + len).min(1_280));
            assert_eq!((bytes[8], bytes[23], bytes[24], bytes[39]), (0xfd, 2, 0xfd, 1));
            let pseudo = checksum::pseudo_header(&bytes[8..40], 58) + (bytes.len() - 40) as u64;
            assert_eq!(checksum::fold(pseudo + checksum::sum(&bytes[40..])), 0xffff);
            assert_eq!((bytes[40..42].to_vec(), &bytes[44..48]), (vec![2, 0], &1_280_u32.to_be_bytes()[..]));
            assert_eq!(bytes[48..], packet[..bytes.len() - 48]);
        }
    }

    #[test]
    fn errors_fragments_and_groups_get_no_answer() {
        let silent = |packet: &[u8], why: &str| assert!(message(packet, 1_280).is_none(), "{why}");
        for kind in [3, 4, 5, 11, 12] {
            let mut error = ipv4(1_400, 0x40, 1);
            error[20] = kind;
            silent(&error, "an ICMP error");
        }
        let mut echo = ipv4(1_400, 0x40, 1);
        echo[20] = 8;
        assert!(message(&echo, 1_280).is_some(), "an echo request");
        let mut fragment = ipv4(1_400, 0x40, 17);
        fragment[7] = 1;
        silent(&fragment, "a later fragment");
        for (at, first) in [(12, 224), (12, 255), (12, 127), (12, 0), (16, 239), (16, 255)] {
            let mut packet = ipv4(1_400, 0x40, 17);
            packet[at..at + 4].fill(first);
            silent(&packet, "not one host");
        }
        let mut error = ipv6(1_400, 58);
        error[40] = 1;
        silent(&error, "an ICMPv6 error");
        error[40] = 128;
        assert!(message(&error, 1_280).is_some());
        let mut group = ipv6(1_400, 17);
        group[24] = 0xff;
        silent(&group, "a group");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(packet in prop::collection::vec(any::<u8>(), 0..100), limit in 0usize..200) {
            let _ = mtu_to_tell(&packet, limit);
            if let Some(message) = message(&packet, limit) {
                prop_assert!(ip::parse(message.as_slice()).is_some());
            }
        }
    }
}
