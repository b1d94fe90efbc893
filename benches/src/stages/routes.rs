//! Allowed IPs of a tunnel with many peers.

use std::net::{IpAddr, Ipv4Addr};

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

    /// Looks up the next address.
    pub fn find(&mut self) -> Option<PeerIndex> {
        let address = self.addresses[self.next];
        self.next = if self.next + 1 == self.addresses.len() { 0 } else { self.next + 1 };
        self.table.find(address)
    }
}
