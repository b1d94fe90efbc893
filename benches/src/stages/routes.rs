//! Allowed IPs of a tunnel with many peers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::tunnel::PeerIndex;
use dataplane::tunnel::routes::AllowedIps;

/// A table of prefixes, and addresses to look up in it.
pub struct Routes {
    table: AllowedIps,
    addresses: Vec<IpAddr>,
    next: usize,
}

impl Routes {
    /// `count` prefixes, whose lengths take turns. Every address looked up is in one of them.
    ///
    /// # Panics
    /// When there are no prefixes or no lengths, or a length is none of IPv4's.
    #[must_use]
    pub fn new(count: u32, prefix_lens: &[u8]) -> Self {
        let mut table = AllowedIps::new(1);
        // A thousand addresses: more than a processor remembers the branches of, few enough to stay in its cache.
        let mut addresses = Vec::new();
        for (index, len) in (0..count).zip(prefix_lens.iter().cycle()) {
            let address = Ipv4Addr::from_bits(10 << 24 | index << 8 | 1);
            table.insert(format!("{address}/{len}").parse().expect("a prefix"), PeerIndex(index.into()));
            if index % count.div_ceil(1_000) == 0 {
                addresses.push(address.into());
            }
        }
        assert!(!addresses.is_empty());
        Self { table, addresses, next: 0 }
    }

    /// What a gateway with `peers` of them has, 13 prefixes for each: seven of IPv4 of as many lengths, six of IPv6 of five. The
    /// addresses looked up are of one family, a thousand of all kinds, spread over the peers.
    ///
    /// # Panics
    /// When there are no peers, or more than 16,384.
    #[must_use]
    pub fn gateway(peers: u32, v4: bool) -> Self {
        assert!((1..=1 << 14).contains(&peers));
        let mut table = AllowedIps::new(1);
        let mut addresses = Vec::new();
        let kinds = if v4 { 7 } else { 6 };
        let mut insert = |address: IpAddr, len: u8, peer: u32, at: u32| {
            table.insert(format!("{address}/{len}").parse().expect("a prefix"), PeerIndex(peer.into()));
            if address.is_ipv4() == v4 && peer.is_multiple_of(peers.div_ceil(1_000)) && peer / 7 % kinds == at
            {
                addresses.push(address);
            }
        };
        for peer in 0..peers {
            insert(Ipv4Addr::from_bits(0x6440_0000 | peer).into(), 32, peer, 6);
            for (at, len) in (0..).zip(25..=30) {
                insert(Ipv4Addr::from_bits((10 << 24 | peer << 10) + (at << 7)).into(), len, peer, at);
            }
            insert(Ipv6Addr::from_bits(0xfd64 << 112 | u128::from(peer)).into(), 128, peer, 0);
            for (at, len) in (0..).zip([48, 56, 60, 64, 64]) {
                let network = 0x2001_0db8 << 96 | u128::from(peer) << 80 | u128::from(at) << 72;
                insert(Ipv6Addr::from_bits(network).into(), len, peer, at + 1);
            }
        }
        assert!(!addresses.is_empty());
        Self { table, addresses, next: 0 }
    }

    /// Looks up the next address.
    pub fn find(&mut self) -> Option<PeerIndex> {
        let address = self.addresses[self.next];
        self.next = if self.next + 1 == self.addresses.len() { 0 } else { self.next + 1 };
        self.table.find(address)
    }
}
