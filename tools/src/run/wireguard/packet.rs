//! The packet inside the tunnel: an IP and a UDP header around a payload (RFC 791, RFC 8200, RFC 768).

use std::net::{IpAddr, SocketAddr};

use dataplane::offload::checksum;
use dataplane::wire::ip;

/// Length of a UDP header, bytes.
const UDP_HEADER: usize = 8;
/// Protocol number of UDP.
const UDP: u8 = 17;
/// Hops a packet may take.
const HOPS: u8 = 64;

/// Length of the headers between addresses of a family, bytes.
#[must_use]
pub fn headers(is_ipv4: bool) -> usize {
    UDP_HEADER + if is_ipv4 { ip::IPV4_HEADER } else { ip::IPV6_HEADER }
}

/// Puts the headers in front of a payload that ends where `packet` ends.
///
/// # Panics
/// When the families differ or `packet` is shorter than its headers: the run is checked before.
pub fn write_headers(packet: &mut [u8], from: SocketAddr, to: SocketAddr) {
    let len = packet.len();
    let addresses = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // Version and length of the header, then DF: what does not fit should be lost, not cut.
            packet[0..2].copy_from_slice(&[0x45, 0]);
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[4..12].copy_from_slice(&[0, 0, 0x40, 0, HOPS, UDP, 0, 0]);
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&destination.octets());
            let sum = checksum::finish(checksum::sum(&packet[..ip::IPV4_HEADER]));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            12..20
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet[0..4].copy_from_slice(&[0x60, 0, 0, 0]);
            packet[4..6].copy_from_slice(&((len - ip::IPV6_HEADER) as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&[UDP, HOPS]);
            packet[8..24].copy_from_slice(&source.octets());
            packet[24..40].copy_from_slice(&destination.octets());
            8..40
        }
        _ => panic!("addresses of two families in one packet"),
    };
    let (before, udp) = packet.split_at_mut(addresses.end);
    let udp_len = (udp.len() as u16).to_be_bytes();
    udp[0..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len);
    udp[6..8].fill(0);
    let pseudo = checksum::pseudo_header(&before[addresses], UDP) + u64::from(u16::from_be_bytes(udp_len));
    let sum = checksum::finish_udp(pseudo + checksum::sum(udp));
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// The payload of a UDP packet, which padding may follow; `None` for anything else, fragments included.
#[must_use]
pub fn payload(packet: &[u8]) -> Option<&[u8]> {
    let header = ip::parse(packet)?;
    let packet = packet.get(..header.total_len)?;
    let udp = if header.source.is_ipv4() {
        let start = usize::from(packet[0] & 0x0f) * 4;
        // Offset of a fragment, and whether more follow.
        let whole = packet[6] & 0x3f == 0 && packet[7] == 0;
        (whole && packet[9] == UDP).then(|| packet.get(start..)).flatten()?
    } else {
        (packet[6] == UDP).then(|| packet.get(ip::IPV6_HEADER..)).flatten()?
    };
    let len = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    udp.get(UDP_HEADER..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut packet = vec![0xee; headers(from.is_ipv4())];
        packet.extend_from_slice(payload);
        write_headers(&mut packet, from, to);
        packet
    }

    const PAIRS: [(&str, &str); 2] = [("10.9.0.3:4000", "10.9.0.1:9"), ("[fd00::3]:4000", "[fd00::1]:9")];

    #[test]
    fn what_is_written_is_read_back_and_its_checksums_are_right() {
        for (from, to) in PAIRS {
            for payload_len in [0, 1, 56, 1_391] {
                let content: Vec<u8> = (0..payload_len).map(|index| index as u8).collect();
                let mut packet = packet(from, to, &content);
                let is_ipv4 = packet[0] >> 4 == 4;
                let (addresses, start) = if is_ipv4 { (12..20, 20) } else { (8..40, 40) };
                let udp_len = (packet.len() - start) as u64;
                let sum = checksum::pseudo_header(&packet[addresses], UDP)
                    + udp_len
                    + checksum::sum(&packet[start..]);
                assert_eq!(checksum::fold(sum), 0xffff);
                assert!(!is_ipv4 || checksum::fold(checksum::sum(&packet[..20])) == 0xffff);
                packet.extend([0; 9]);
                assert_eq!(payload(&packet), Some(&content[..]));
            }
        }
    }

    #[test]
    fn what_is_cut_a_fragment_or_not_udp_is_nothing_and_never_panics() {
        for (from, to) in PAIRS {
            let whole = packet(from, to, &[7; 60]);
            for len in 0..whole.len() {
                assert_eq!(payload(&whole[..len]), None, "{len} bytes");
            }
            let mut lying = whole.clone();
            let udp = headers(whole[0] >> 4 == 4) - UDP_HEADER;
            lying[udp + 4..udp + 6].copy_from_slice(&[0xff, 0xff]);
            assert_eq!(payload(&lying), None);
            lying[udp + 4..udp + 6].copy_from_slice(&[0, 3]);
            assert_eq!(payload(&lying), None);
        }
        let (from, to) = PAIRS[0];
        let mut fragment = packet(from, to, &[7; 60]);
        fragment[6] = 0x20;
        assert_eq!(payload(&fragment), None);
        let mut tcp = packet(from, to, &[7; 60]);
        tcp[9] = 6;
        assert_eq!(payload(&tcp), None);
    }
}
