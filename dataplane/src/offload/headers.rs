//! Where things are in IP, TCP and UDP headers, and reading them.

/// IP protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// IP protocol number of UDP.
pub(super) const UDP: u8 = 17;
/// Length of an IPv4 header without options, in bytes.
pub(super) const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extension headers, in bytes.
pub(super) const IPV6_LEN: usize = 40;
/// Length of a TCP header without options, in bytes.
pub(super) const TCP_LEN: usize = 20;
/// Length of a UDP header, in bytes.
pub(super) const UDP_LEN: usize = 8;
/// Where a TCP header has its checksum.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Where a UDP header has its checksum.
pub(super) const UDP_CHECKSUM: usize = 6;
/// Where a TCP header has its flags.
pub(super) const TCP_FLAGS: usize = 13;

/// TCP flags (RFC 9293 section 3.1).
pub(super) mod flags {
    pub(in super::super) const FIN: u8 = 0x01;
    pub(in super::super) const SYN: u8 = 0x02;
    pub(in super::super) const RST: u8 = 0x04;
    pub(in super::super) const PSH: u8 = 0x08;
    pub(in super::super) const ACK: u8 = 0x10;
    pub(in super::super) const URG: u8 = 0x20;
    pub(in super::super) const CWR: u8 = 0x80;
}

/// IPv6 extension headers (RFC 8200 section 4).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// The big-endian word at `at`, which the caller knows to be there.
pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian double word at `at`, which the caller knows to be there.
pub(super) fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes a big-endian word at `at`, which the caller knows to be there.
pub(super) fn set_word(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// The IP part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ip {
    /// IPv4, or else IPv6.
    pub(super) v4: bool,
    /// Length of the IPv4 header with options, or of the IPv6 header; with extension headers once they were skipped.
    pub(super) header_len: usize,
    /// Length of the packet as the header says, header included. Not above the bytes there are.
    pub(super) total_len: usize,
    /// What follows the header.
    pub(super) protocol: u8,
    /// A fragment, the first one included: what follows is not a whole TCP or UDP packet.
    pub(super) fragment: bool,
    /// Where the final destination is that the pseudo header wants: behind a routing header it is not the one in the
    /// IPv6 header (RFC 8200 section 8.1).
    pub(super) final_destination: Option<usize>,
}

impl Ip {
    /// Reads the IP header; `None` when there is none or its lengths lie.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        if packet.len() < IPV4_LEN {
            return None;
        }
        let header_len = usize::from(packet[0] & 0x0f) * 4;
        let total_len = usize::from(word(packet, 2));
        if header_len < IPV4_LEN || total_len < header_len || total_len > packet.len() {
            return None;
        }
        Some(Self {
            v4: true,
            header_len,
            total_len,
            protocol: packet[9],
            fragment: word(packet, 6) & 0x3fff != 0,
            final_destination: None,
        })
    }

    /// A jumbogram (RFC 2675) does not fit a superpacket and counts as lying about its length.
    fn parse_v6(packet: &[u8]) -> Option<Self> {
        if packet.len() < IPV6_LEN {
            return None;
        }
        let total_len = IPV6_LEN + usize::from(word(packet, 4));
        (total_len <= packet.len()).then_some(Self {
            v4: false,
            header_len: IPV6_LEN,
            total_len,
            protocol: packet[6],
            fragment: false,
            final_destination: None,
        })
    }

    /// Moves on to what follows the IPv6 extension headers of `packet`; does nothing to IPv4. `None` when they lie, or
    /// when a routing header hides the final destination.
    pub(super) fn skip_extensions(mut self, packet: &[u8]) -> Option<Self> {
        if self.v4 {
            return Some(self);
        }
        let packet = packet.get(..self.total_len)?;
        // Every round moves ahead by eight bytes at least, so the packet's length bounds the walk.
        while is_extension(self.protocol) {
            if self.protocol == extension::FRAGMENT {
                self.fragment = true;
                return Some(self);
            }
            let header = packet.get(self.header_len..)?;
            let &[next, length, ..] = header else { return None };
            let length = (usize::from(length) + 1) * 8;
            let header = header.get(..length)?;
            if self.protocol == extension::ROUTING && header[3] != 0 {
                // Types 2 (RFC 6275) and 4 (RFC 8754) have the final destination first; others are not in use.
                if !matches!(header[2], 2 | 4) || length < 24 {
                    return None;
                }
                self.final_destination = Some(self.header_len + 8);
            }
            self.header_len += length;
            self.protocol = next;
        }
        Some(self)
    }
}

/// Source and destination address as they stand in the IP header.
pub(super) fn addresses(v4: bool, packet: &[u8]) -> &[u8] {
    if v4 { &packet[12..20] } else { &packet[8..40] }
}

/// Whether an IPv6 next header is an extension header behind which TCP or UDP may follow.
pub(super) fn is_extension(protocol: u8) -> bool {
    use extension::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT)
}

/// Length of the TCP header at the start of `bytes` with its options; `None` when it lies.
pub(super) fn tcp_header_len(bytes: &[u8]) -> Option<usize> {
    let len = usize::from(bytes.get(12)? >> 4) * 4;
    (len >= TCP_LEN && len <= bytes.len()).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        packet.extend_from_slice(&[1; 32]);
        packet.extend_from_slice(payload);
        packet
    }

    fn walk(packet: &[u8]) -> Option<Ip> {
        Ip::parse(packet)?.skip_extensions(packet)
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport() {
        let mut chain = vec![extension::DESTINATION, 0, 0, 0, 0, 0, 0, 0];
        chain.extend_from_slice(&[UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend_from_slice(&[0; 8]);
        let ip = walk(&v6(extension::HOP_BY_HOP, &chain)).expect("a packet");
        assert_eq!((ip.header_len, ip.protocol, ip.fragment), (40 + 8 + 16, UDP, false));
    }

    #[test]
    fn routing_header_names_the_final_destination() {
        let mut routing = vec![TCP, 2, 4, 1, 0, 0, 0, 0];
        routing.extend_from_slice(&[9; 16]);
        let ip = walk(&v6(extension::ROUTING, &routing)).expect("a packet");
        assert_eq!((ip.header_len, ip.final_destination), (64, Some(48)));
        routing[2] = 3;
        assert_eq!(walk(&v6(extension::ROUTING, &routing)), None);
    }

    #[test]
    fn lying_lengths_are_refused() {
        assert_eq!(Ip::parse(&[]), None);
        assert_eq!(Ip::parse(&[0x45; 19]), None);
        let mut packet = [0u8; 24];
        packet[0] = 0x45;
        for (total, ihl, valid) in
            [(24, 5, true), (20, 5, true), (25, 5, false), (19, 5, false), (24, 4, false), (24, 7, false)]
        {
            packet[0] = 0x40 | ihl;
            set_word(&mut packet, 2, total);
            assert_eq!(Ip::parse(&packet).is_some(), valid, "total {total}, ihl {ihl}");
        }
        let mut packet = v6(extension::HOP_BY_HOP, &[UDP, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(walk(&packet), None, "extension header longer than the packet");
        packet[41] = 0;
        assert!(walk(&packet).is_some());
        packet[5] = 9;
        assert_eq!(Ip::parse(&packet), None, "payload longer than the packet");
    }

    #[test]
    fn fragments_are_known_as_such() {
        let ip = walk(&v6(extension::FRAGMENT, &[UDP, 0, 0, 0, 0, 0, 0, 0])).expect("a packet");
        assert!(ip.fragment);
        let mut packet = [0u8; 20];
        packet[0] = 0x45;
        set_word(&mut packet, 2, 20);
        for (field, fragment) in [(0x4000, false), (0x2000, true), (1, true), (0, false)] {
            set_word(&mut packet, 6, field);
            assert_eq!(Ip::parse(&packet).expect("a packet").fragment, fragment);
        }
    }
}
