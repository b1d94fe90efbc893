//! Allowed IPs: which peer an address belongs to, by the longest prefix that holds it.
//!
//! One hash table for each prefix length in use, tried from the longest: a look-up costs at most as many probes as
//! there are different lengths, whatever the number of prefixes.
//!
//! Tries were tried: prefix-trie 0.10, treebitmap 0.5 and iptrie 0.11, with 130,000 prefixes of both families. A probe is one line of
//! memory, and a gateway has few lengths, so that the tables take 0.7 (IPv4) and 0.55 (IPv6) of the fastest trie's time with 7 and 4 lengths, and
//! 0.6 and 0.5 with the 17 and 29 of a full table of the internet. Only with all 128 lengths of IPv6 in use a trie is faster, twice.
//! Figures are in `benches/README.md`.

use std::net::IpAddr;

use foldhash::fast::FixedState;
use ipnet::IpNet;

use super::PeerIndex;

type Table<K> = std::collections::HashMap<K, PeerIndex, FixedState>;

/// Prefixes and the peers they belong to.
pub struct AllowedIps {
    v4: Family<u32>,
    v6: Family<u128>,
}

impl AllowedIps {
    /// An empty table; `seed` keys its hashes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { v4: Family::new(seed), v6: Family::new(seed) }
    }

    /// Gives a prefix to a peer; returns the peer it belonged to before. Host bits are ignored.
    pub fn insert(&mut self, prefix: IpNet, peer: PeerIndex) -> Option<PeerIndex> {
        match prefix {
            IpNet::V4(net) => self.v4.insert(net.network().to_bits(), net.prefix_len(), peer),
            IpNet::V6(net) => self.v6.insert(net.network().to_bits(), net.prefix_len(), peer),
        }
    }

    /// Takes a prefix from `peer`; `false` when it is not that peer's. Host bits are ignored.
    pub fn remove(&mut self, prefix: IpNet, peer: PeerIndex) -> bool {
        match prefix {
            IpNet::V4(net) => self.v4.remove(net.network().to_bits(), net.prefix_len(), peer),
            IpNet::V6(net) => self.v6.remove(net.network().to_bits(), net.prefix_len(), peer),
        }
    }

    /// The peer with the longest prefix that holds `address`.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<PeerIndex> {
        match address {
            IpAddr::V4(address) => self.v4.find(address.to_bits()),
            IpAddr::V6(address) => self.v6.find(address.to_bits()),
        }
    }
}

/// An address as a number.
trait Bits: Copy + Eq + std::hash::Hash {
    /// The address with all but its first `prefix_len` bits cleared.
    fn network(self, prefix_len: u8) -> Self;
}

impl Bits for u32 {
    fn network(self, prefix_len: u8) -> Self {
        self & Self::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)
    }
}

impl Bits for u128 {
    fn network(self, prefix_len: u8) -> Self {
        self & Self::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0)
    }
}

struct Family<B> {
    /// Longest first.
    lengths: Vec<(u8, Table<B>)>,
    seed: u64,
}

impl<B: Bits> Family<B> {
    fn new(seed: u64) -> Self {
        Self { lengths: Vec::new(), seed }
    }

    fn insert(&mut self, network: B, prefix_len: u8, peer: PeerIndex) -> Option<PeerIndex> {
        let position = self.lengths.partition_point(|(len, _)| *len > prefix_len);
        if self.lengths.get(position).is_none_or(|(len, _)| *len != prefix_len) {
            let table = Table::with_hasher(FixedState::with_seed(self.seed));
            self.lengths.insert(position, (prefix_len, table));
        }
        self.lengths[position].1.insert(network.network(prefix_len), peer)
    }

    fn remove(&mut self, network: B, prefix_len: u8, peer: PeerIndex) -> bool {
        let position = self.lengths.partition_point(|(len, _)| *len > prefix_len);
        let Some((_, table)) = self.lengths.get_mut(position).filter(|(len, _)| *len == prefix_len) else {
            return false;
        };
        let network = network.network(prefix_len);
        if table.get(&network) != Some(&peer) {
            return false;
        }
        table.remove(&network);
        if table.is_empty() {
            // Look-ups need not try this length any more.
            self.lengths.remove(position);
        }
        true
    }

    fn find(&self, address: B) -> Option<PeerIndex> {
        self.lengths.iter().find_map(|(len, table)| table.get(&address.network(*len)).copied())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// The same by trying every prefix.
    fn naive(prefixes: &[(IpNet, PeerIndex)], address: IpAddr) -> Option<PeerIndex> {
        let mut best: Option<(u8, PeerIndex)> = None;
        for (prefix, peer) in prefixes {
            let longer = best.is_none_or(|(len, _)| prefix.prefix_len() >= len);
            if prefix.contains(&address) && longer {
                best = Some((prefix.prefix_len(), *peer));
            }
        }
        best.map(|(_, peer)| peer)
    }

    // Few distinct bits, so that prefixes nest and repeat.
    fn v4() -> impl Strategy<Value = Ipv4Addr> {
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits & 0xc101_0083 | 0x0a00_0000))
    }

    fn v6() -> impl Strategy<Value = Ipv6Addr> {
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits & (0x8101 << 112 | 3 << 63 | 0x8003)))
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![v4().prop_map(IpAddr::from), v6().prop_map(IpAddr::from)]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128_u8).prop_map(|(address, len)| {
            let len = if address.is_ipv4() { len.min(32) } else { len };
            IpNet::new(address, len).expect("length in range")
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_searched_in_full(
            prefixes in prop::collection::vec((prefix(), 0..8_u64), 0..60),
            removed in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u64), 0..30),
            addresses in prop::collection::vec(address(), 1..60),
        ) {
            let mut prefixes: Vec<_> = prefixes.into_iter().map(|(net, peer)| (net, PeerIndex(peer))).collect();
            let mut table = AllowedIps::new(1);
            for (net, peer) in &prefixes {
                table.insert(*net, *peer);
            }
            for (which, peer) in removed {
                let Some((net, _)) = (!prefixes.is_empty()).then(|| prefixes[which.index(prefixes.len())]) else {
                    break;
                };
                let same = |other: &IpNet| other.trunc() == net.trunc();
                let owner = prefixes.iter().rev().find(|(other, _)| same(other)).map(|(_, peer)| *peer);
                let taken = table.remove(net, PeerIndex(peer));
                prop_assert_eq!(taken, owner == Some(PeerIndex(peer)));
                if taken {
                    prefixes.retain(|(other, _)| !same(other));
                }
            }
            for address in addresses.into_iter().chain(prefixes.iter().map(|(net, _)| net.addr())) {
                prop_assert_eq!(table.find(address), naive(&prefixes, address), "{}", address);
            }
        }
    }

    #[test]
    fn a_prefix_given_again_moves_and_families_stay_apart() {
        let mut table = AllowedIps::new(1);
        let net = |text: &str| text.parse::<IpNet>().expect("prefix");
        assert_eq!(table.insert(net("0.0.0.0/0"), PeerIndex(0)), None);
        assert_eq!(table.insert(net("10.0.0.1/24"), PeerIndex(1)), None);
        assert_eq!(table.insert(net("10.0.0.2/24"), PeerIndex(2)), Some(PeerIndex(1)));
        let find = |text: &str| table.find(text.parse().expect("address"));
        assert_eq!(find("10.0.0.77"), Some(PeerIndex(2)));
        assert_eq!(find("10.0.1.77"), Some(PeerIndex(0)));
        assert_eq!(find("::a00:4d"), None);
        assert_eq!(find("::ffff:10.0.0.77"), None);
    }
}
