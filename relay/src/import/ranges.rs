//! Ranges of addresses, from the first to the last, as coturn has them, and the networks that they come to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// Addresses of one family. IPv4 addresses count as their 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    is_ipv4: bool,
    first: u128,
    last: u128,
}

impl FromStr for Range {
    type Err = ();

    /// Reads `FIRST-LAST`, `FIRST/BITS` or one address.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Self::between(net.network(), net.broadcast());
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| ());
        Self::between(address(first)?, address(last)?)
    }
}

impl Range {
    fn between(first: IpAddr, last: IpAddr) -> Result<Self, ()> {
        let number = |address| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        let range = Self { is_ipv4: first.is_ipv4(), first: number(first), last: number(last) };
        let is_good = first.is_ipv4() == last.is_ipv4() && range.first <= range.last;
        is_good.then_some(range).ok_or(())
    }

    /// The networks that hold these addresses and no other.
    pub fn networks(self) -> Vec<IpNet> {
        if self.is_ipv4 {
            // Both came from such addresses, or lie between two that did.
            let address = |number: u128| Ipv4Addr::from(number as u32);
            return Ipv4Subnets::new(address(self.first), address(self.last), 0).map(IpNet::V4).collect();
        }
        Ipv6Subnets::new(Ipv6Addr::from(self.first), Ipv6Addr::from(self.last), 0).map(IpNet::V6).collect()
    }

    /// What is left of it without `other`: nothing, or one or two parts.
    fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let apart = self.is_ipv4 != other.is_ipv4 || other.last < self.first || self.last < other.first;
        let whole = apart.then_some(self);
        let before = (!apart && self.first < other.first).then(|| Self { last: other.first - 1, ..self });
        let behind = (!apart && other.last < self.last).then(|| Self { first: other.last + 1, ..self });
        whole.into_iter().chain(before).chain(behind)
    }
}

/// The networks of `denied` but for what is `allowed`: with coturn an exception wins, here it does not.
pub fn denied_networks(denied: &[Range], allowed: &[Range]) -> Vec<IpNet> {
    let mut left = denied.to_vec();
    for &exception in allowed {
        left = left.into_iter().flat_map(|range| range.without(exception)).collect();
    }
    networks(&left)
}

/// The networks of all these ranges, each named once and none inside another.
pub fn networks(ranges: &[Range]) -> Vec<IpNet> {
    IpNet::aggregate(&ranges.iter().flat_map(|range| range.networks()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(texts: &[&str]) -> Vec<Range> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn texts(nets: &[IpNet]) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_become_the_networks_that_hold_just_them() {
        for (range, expected) in [
            ("83.166.64.0-83.166.95.255", &["83.166.64.0/19"][..]),
            ("10.0.0.1-10.0.0.4", &["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]),
            ("0.0.0.0-255.255.255.255", &["0.0.0.0/0"]),
            ("192.0.2.7", &["192.0.2.7/32"]),
            ("2001:db8::-2001:db8::ffff", &["2001:db8::/112"]),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", &["::/0"]),
            ("192.0.2.9/24", &["192.0.2.0/24"]),
        ] {
            assert_eq!(texts(&range.parse::<Range>().unwrap().networks()), expected, "{range}");
        }
        for wrong in ["", "host", "10.0.0.2-10.0.0.1", "10.0.0.1-::1", "10.0.0.0/33", "1-2-3"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_exception_is_cut_out_of_what_is_denied() {
        let denied = ranges(&["10.0.0.0-10.0.0.255", "::1"]);
        let left = denied_networks(&denied, &ranges(&["10.0.0.0-10.0.0.127", "10.0.0.129"]));
        let expected = [
            "10.0.0.128/32",
            "10.0.0.130/31",
            "10.0.0.132/30",
            "10.0.0.136/29",
            "10.0.0.144/28",
            "10.0.0.160/27",
        ];
        assert_eq!(texts(&left)[..6], expected);
        assert_eq!(texts(&left)[6..], ["10.0.0.192/26", "::1/128"]);
        assert!(denied_networks(&denied, &ranges(&["0.0.0.0/0", "::/0"])).is_empty());
    }

    proptest! {
        /// Against the definition, on the addresses of a /24.
        #[test]
        fn an_address_is_denied_where_coturn_denies_it(
            denied in prop::collection::vec((0u8.., 0u8..), 0..6),
            allowed in prop::collection::vec((0u8.., 0u8..), 0..6),
        ) {
            let range = |&(a, b): &(u8, u8)| {
                let at = |last: u8| IpAddr::from([10, 0, 0, last]);
                Range::between(at(a.min(b)), at(a.max(b))).unwrap()
            };
            let of = |list: &[(u8, u8)]| list.iter().map(range).collect::<Vec<_>>();
            let within = |list: &[(u8, u8)], last: u8| list.iter().any(|&(a, b)| (a.min(b)..=a.max(b)).contains(&last));
            let left = denied_networks(&of(&denied), &of(&allowed));
            for last in 0..=255 {
                let address = IpAddr::from([10, 0, 0, last]);
                let expected = within(&denied, last) && !within(&allowed, last);
                prop_assert_eq!(left.iter().any(|net| net.contains(&address)), expected, "{}", last);
            }
        }
    }
}
