//! Recognises our own datagrams where the host routes them back into the tunnel they came out of.
//!
//! That happens when the peer's endpoint lies in its own AllowedIPs and no narrower route, mark or rule leads there. Sealed
//! again, each round would be longer by a header and never end. The kernel's WireGuard looks at the route that its datagrams take;
//! a program sees them only when they come back.

use std::net::{IpAddr, SocketAddr};

use crate::wire::ip::{IPV4_HEADER, IPV6_HEADER};

const UDP: u8 = 17;

/// Whether an IP packet (as [`crate::wire::ip::parse`] lets pass) for `destination` is a UDP datagram to `endpoint`, or a
/// part of one without ports.
pub(super) fn is_to_endpoint(packet: &[u8], destination: IpAddr, endpoint: SocketAddr) -> bool {
    if destination != endpoint.ip() {
        return false;
    }
    let (protocol, udp_at) = match destination {
        IpAddr::V4(_) => {
            /// The lower 13 bits of the word at 6 (RFC 791).
            const OFFSET: u16 = 0x1fff;
            let Some(header) = packet.first_chunk::<IPV4_HEADER>() else {
                return false;
            };
            if header[9] == UDP && u16::from_be_bytes([header[6], header[7]]) & OFFSET != 0 {
                return true;
            }
            (header[9], usize::from(header[0] & 0x0f) * 4)
        }
        // We send no fragments and no extension headers of our own.
        IpAddr::V6(_) => (packet.get(6).copied().unwrap_or(0), IPV6_HEADER),
    };
    let port = packet.get(udp_at + 2..udp_at + 4);
    protocol == UDP && port.is_some_and(|port| port == endpoint.port().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, fragment: u16, port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend([0, 9]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 8, 0, 0]);
        packet
    }

    #[test]
    fn only_datagrams_to_the_endpoint_itself_are_ours() {
        let endpoint: SocketAddr = "192.0.2.1:51820".parse().expect("address");
        let ours = |packet: &[u8]| is_to_endpoint(packet, endpoint.ip(), endpoint);
        assert!(ours(&ipv4(UDP, 0x4000, 51_820)));
        assert!(ours(&ipv4(UDP, 100, 1)), "a later fragment has no ports");
        assert!(!ours(&ipv4(UDP, 0, 53)), "another service of the same host");
        assert!(!ours(&ipv4(6, 0, 51_820)), "TCP");
        assert!(!ours(&ipv4(UDP, 0, 51_820)[..22]), "cut off");
        let elsewhere = "192.0.2.2:51820".parse().expect("address");
        assert!(!is_to_endpoint(&ipv4(UDP, 0, 51_820), endpoint.ip(), elsewhere));

        let mut packet = vec![0; 48];
        (packet[0], packet[6]) = (0x60, UDP);
        packet[42..44].copy_from_slice(&51_820_u16.to_be_bytes());
        let endpoint: SocketAddr = "[2001:db8::1]:51820".parse().expect("address");
        assert!(is_to_endpoint(&packet, endpoint.ip(), endpoint));
        packet[43] ^= 1;
        assert!(!is_to_endpoint(&packet, endpoint.ip(), endpoint));
    }
}
