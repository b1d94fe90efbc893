//! Addresses that must not be reached, written from the registries and not from the relay: ranges, and every way to write an
//! IPv4 address as one of IPv6.

use std::net::{Ipv4Addr, Ipv6Addr};

/// IPv4 ranges that are not public (IANA IPv4 Special-Purpose Address Registry), but for loopback.
pub const V4: &[(&str, u8)] = &[
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.0.2.0", 24),
    ("192.31.196.0", 24),
    ("192.52.193.0", 24),
    ("192.88.99.0", 24),
    ("192.168.0.0", 16),
    ("192.175.48.0", 24),
    ("198.18.0.0", 15),
    ("198.51.100.0", 24),
    ("203.0.113.0", 24),
    ("224.0.0.0", 4),
    ("240.0.0.0", 4),
];
/// The same of IPv6.
pub const V6: &[(&str, u8)] = &[
    ("::", 128),
    ("::1", 128),
    ("fe80::", 10),
    ("fec0::", 10),
    ("fc00::", 7),
    ("ff00::", 8),
    ("2001:db8::", 32),
    ("3fff::", 20),
    ("5f00::", 16),
    ("100::", 64),
    ("100:0:0:1::", 64),
    ("2620:4f:8000::", 48),
    ("2001::", 23),
    ("64:ff9b:1::", 48),
];

/// First and last address of a range.
pub fn ends_v4(net: &str, prefix: u8) -> (u32, u32) {
    let first = net.parse::<Ipv4Addr>().unwrap().to_bits();
    (first, first | u32::MAX.checked_shr(prefix.into()).unwrap_or(0))
}

pub fn ends_v6(net: &str, prefix: u8) -> (u128, u128) {
    let first = net.parse::<Ipv6Addr>().unwrap().to_bits();
    (first, first | u128::MAX.checked_shr(prefix.into()).unwrap_or(0))
}

/// Whether an address lies in one of these ranges.
pub fn is_in_v4(ranges: &[(&str, u8)], bits: u32) -> bool {
    ranges.iter().any(|&(net, prefix)| {
        let (first, last) = ends_v4(net, prefix);
        (first..=last).contains(&bits)
    })
}

pub fn is_in_v6(ranges: &[(&str, u8)], bits: u128) -> bool {
    ranges.iter().any(|&(net, prefix)| {
        let (first, last) = ends_v6(net, prefix);
        (first..=last).contains(&bits)
    })
}

/// Every encoding of an IPv4 address as one of IPv6: mapped, compatible, translated, 6to4, NAT64 by the well-known prefix and by
/// the one for local use, Teredo, ISATAP with either identifier.
pub fn encodings(address: Ipv4Addr) -> [Ipv6Addr; ENCODINGS] {
    let bits = u128::from(address.to_bits());
    let at = |prefix: &str, shift: u32| {
        Ipv6Addr::from_bits(prefix.parse::<Ipv6Addr>().unwrap().to_bits() | bits << shift)
    };
    [
        at("::ffff:0:0", 0),
        at("::", 0),
        at("::ffff:0:0:0", 0),
        at("2002::", 80),
        at("64:ff9b::", 0),
        at("64:ff9b:1::", 0),
        // Teredo has the complement of a client's address.
        Ipv6Addr::from_bits(at("2001:0:808:808::", 0).to_bits() ^ u128::from(u32::MAX)),
        at("2606::5efe:0:0", 0),
        at("2606::200:5efe:0:0", 0),
    ]
}

/// How many encodings there are.
pub const ENCODINGS: usize = 9;
