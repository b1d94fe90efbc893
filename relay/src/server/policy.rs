//! Which peers may be reached. Everything that is not plainly public is refused unless a flag allows it; what the operator
//! denies is refused whatever is allowed, and so are the relay's own control sockets.
//!
//! Addresses are judged when a permission is made, and again when the rules change ([`Server::set_policy`]); ports when a
//! channel is bound, and with every Send indication. What is relayed on a channel is not judged again.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::port_set::PortSet;
use super::rules::{Rule, Why};
use super::{AllocationId, Server};

/// The IPv4 ranges of the IANA IPv4 Special-Purpose Address Registry, those for AS112 and AMT included that are reached
/// globally: no client has a peer there. Also multicast and the reserved class E, which includes the broadcast address.
const DENIED_V4: [(Ipv4Addr, u8); 18] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 52, 193, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(192, 175, 48, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The IPv6 ranges of the IANA IPv6 Special-Purpose Address Registry, and multicast. The local-use NAT64 prefix of RFC 8215
/// embeds as the site likes. 2001::/23 includes Teredo, 100::/63 the dummy prefix of RFC 9780. Prefixes that carry an IPv4
/// address are judged by that: [`canonical`].
const DENIED_V6: [(Ipv6Addr, u8); 12] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 63),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 9),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// The rules for peers.
#[derive(Clone, Debug, Default)]
pub struct PeerPolicy {
    /// Exceptions from the refused ranges and from [`PeerPolicy::own_addresses`].
    pub allow: Vec<IpNet>,
    /// Ranges that are refused in every encoding, whatever [`PeerPolicy::allow`] says: order and length do not matter.
    pub deny: Vec<IpNet>,
    /// Ports that are refused on every address, excepted ones included.
    pub deny_ports: PortSet,
    /// The sockets clients and administrators talk to; never a peer. May hold wildcard addresses.
    pub own_sockets: Vec<SocketAddr>,
    /// Those of them that datagrams come from. (A client beside the relay may well have a UDP port of the number of a TCP listener.)
    pub own_datagram_sockets: Vec<SocketAddr>,
    /// Addresses that are this relay's whatever the machine says: where it listens and relays, and what it is called outside.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Every address of this machine, as last read ([`Server::set_machine_addresses`]).
    pub machine_addresses: BTreeSet<IpAddr>,
}

impl PeerPolicy {
    /// Whether datagrams may go to this peer.
    #[must_use]
    pub fn permits(&self, peer: SocketAddr) -> bool {
        self.judge(peer).is_ok()
    }

    /// Whether datagrams may go to this peer.
    ///
    /// # Errors
    /// The rule against it.
    pub fn judge(&self, peer: SocketAddr) -> Result<(), Why> {
        self.judge_port(peer)?;
        self.judge_permission(peer)
    }

    /// Whether a permission may be made for this peer: its port does not matter (RFC 8656 section 9), unless it is that of
    /// one of the relay's own sockets.
    ///
    /// # Errors
    /// The rule against it.
    pub fn judge_permission(&self, peer: SocketAddr) -> Result<(), Why> {
        if self.is_own_socket(peer) {
            return Err(Why::about(Rule::OwnSocket, peer));
        }
        self.judge_address(peer.ip()).map_err(|why| Why { peer: Some(peer), ..why })
    }

    /// Whether datagrams may go to this port of an address that was judged before; the cost does not depend on the lists
    /// of ranges and ports.
    ///
    /// # Errors
    /// The rule against it.
    pub fn judge_port(&self, peer: SocketAddr) -> Result<(), Why> {
        let rule = if self.is_own_socket(peer) {
            Rule::OwnSocket
        } else if self.deny_ports.contains(peer.port()) {
            Rule::PeerPort
        } else {
            return Ok(());
        };
        Err(Why::about(rule, peer))
    }

    /// Whether a peer address is public or excepted, and not denied. Ports do not matter here.
    ///
    /// # Errors
    /// The rule against it, without the peer.
    pub fn judge_address(&self, peer: IpAddr) -> Result<(), Why> {
        let why = |rule, range| Err(Why { rule, peer: None, range });
        // What carries an IPv4 address ends up there, so that address has to be permitted too.
        let carried = canonical(peer);
        if let Some(&net) = self.deny.iter().find(|net| net.contains(&peer) || net.contains(&carried)) {
            return why(Rule::DenyPeer, Some(net));
        }
        if self.allow.iter().any(|net| net.contains(&peer)) {
            return Ok(());
        }
        if let Some(net) = special_range(peer) {
            return why(Rule::SpecialRange, Some(net));
        }
        if self.is_own_address(peer) {
            return why(Rule::OwnAddress, None);
        }
        if carried == peer { Ok(()) } else { self.judge_address(carried) }
    }

    fn is_own_address(&self, address: IpAddr) -> bool {
        self.own_addresses.contains(&address) || self.machine_addresses.contains(&address)
    }

    /// Whether a peer is one of the relay's own sockets: nothing excepts those, or a client could talk to the relay
    /// in the relay's name.
    #[must_use]
    pub fn is_own_socket(&self, peer: SocketAddr) -> bool {
        self.is_among(&self.own_sockets, peer)
    }

    /// Whether a datagram says to be from one of the relay's own sockets.
    #[must_use]
    pub fn is_own_source(&self, source: SocketAddr) -> bool {
        self.is_among(&self.own_datagram_sockets, source)
    }

    fn is_among(&self, sockets: &[SocketAddr], address: SocketAddr) -> bool {
        let ip = canonical(address.ip());
        sockets.iter().any(|own| {
            own.port() == address.port()
                && (own.ip() == ip
                    || ip.is_unspecified()
                    || own.ip().is_unspecified() && (ip.is_loopback() || self.is_own_address(ip)))
        })
    }
}

impl Server {
    /// Replaces the rules for peers. Permissions and channels that the new ones forbid end at once. Looks at every
    /// allocation.
    ///
    /// The addresses of the machine stay as last read.
    pub fn set_policy(&mut self, policy: PeerPolicy) {
        let machine_addresses = std::mem::take(&mut self.policy.machine_addresses);
        self.policy = PeerPolicy { machine_addresses, ..policy };
        self.judge_again();
    }

    /// Replaces [`PeerPolicy::machine_addresses`]; otherwise as [`Server::set_policy`].
    pub fn set_machine_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.policy.machine_addresses != addresses {
            self.policy.machine_addresses = addresses;
            self.judge_again();
        }
    }

    fn judge_again(&mut self) {
        let mut table = std::mem::take(&mut self.table);
        // Other clients' relayed addresses are judged with each run of data, by who is there then.
        let may_stay = |judged: Result<(), Why>, address: IpAddr| match judged {
            Ok(()) => true,
            Err(why) => self.hairpin && why.rule.is_about_place() && self.is_relay_address(address),
        };
        let mut gone = Vec::new();
        for (id, allocation) in table.iter_mut() {
            let reaches = allocation.retain_peers(
                |reach| may_stay(self.policy.judge_address(reach.address), reach.address),
                |peer| {
                    self.policy.judge_port(peer.0).is_ok()
                        && may_stay(self.policy.judge_address(peer.0.ip()), peer.0.ip())
                },
            );
            gone.extend(reaches.into_iter().map(|reach| (id, allocation.relayed, reach)));
        }
        self.table = table;
        for (id, relayed, reach) in gone {
            self.unclaim(id, relayed, reach);
        }
        (0..self.table.index_end() as u32).map(AllocationId).for_each(|id| self.count_listed(id));
        self.show_all();
    }
}

/// The range that is refused by default in which an address lies.
fn special_range(address: IpAddr) -> Option<IpNet> {
    match address {
        IpAddr::V4(ip) => DENIED_V4
            .iter()
            .filter_map(|&(net, len)| Ipv4Net::new(net, len).ok())
            .find(|net| net.contains(&ip))
            .map(IpNet::V4),
        IpAddr::V6(ip) => DENIED_V6
            .iter()
            .filter_map(|&(net, len)| Ipv6Net::new(net, len).ok())
            .find(|net| net.contains(&ip))
            .map(IpNet::V6),
    }
}

/// The address a packet really goes to: the IPv4 address inside an IPv6 one that carries it (mapped and compatible,
/// RFC 4291; NAT64, RFC 6052; 6to4, RFC 3056; ISATAP, RFC 5214), else the address itself.
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(ip) = address else { return address };
    let words = ip.segments();
    let from_words =
        |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match words {
        // Routing looks at the prefix first, so 6to4 comes before the interface identifier of ISATAP.
        [0x2002, high, low, ..] => from_words(high, low),
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => from_words(high, low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permits(policy: &PeerPolicy, peer: &str) -> bool {
        policy.judge(SocketAddr::new(peer.parse().unwrap(), 5000)).is_ok()
    }

    /// Every way to write an IPv4 address as an IPv6 one that this relay knows.
    fn embeddings(ip: Ipv4Addr) -> [Ipv6Addr; 7] {
        let bits = ip.to_bits();
        let (high, low) = ((bits >> 16) as u16, bits as u16);
        [
            ip.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2600, 1, 2, 3, 0, 0x5efe, high, low),
            Ipv6Addr::new(0x2600, 1, 2, 3, 0x200, 0x5efe, high, low),
        ]
    }

    #[test]
    fn special_addresses_are_refused_to_the_last_address_and_their_neighbours_are_not() {
        let policy = PeerPolicy::default();
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.0.0.0", "192.0.0.255"),
            ("192.0.2.0", "192.0.2.255"),
            ("192.31.196.0", "192.31.196.255"),
            ("192.52.193.0", "192.52.193.255"),
            ("192.88.99.0", "192.88.99.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("192.175.48.0", "192.175.48.255"),
            ("198.18.0.0", "198.19.255.255"),
            ("198.51.100.0", "198.51.100.255"),
            ("203.0.113.0", "203.0.113.255"),
            ("224.0.0.0", "255.255.255.255"),
        ] {
            let (first, last): (Ipv4Addr, Ipv4Addr) = (first.parse().unwrap(), last.parse().unwrap());
            assert!(!permits(&policy, &first.to_string()), "{first}");
            assert!(!permits(&policy, &last.to_string()), "{last}");
            if let Some(before) = first.to_bits().checked_sub(1) {
                assert!(permits(&policy, &Ipv4Addr::from_bits(before).to_string()), "before {first}");
            }
            if let Some(after) = last.to_bits().checked_add(1) {
                assert!(permits(&policy, &Ipv4Addr::from_bits(after).to_string()), "after {last}");
            }
        }
        for refused in [
            "::",
            "::1",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2620:4f:8000::1",
            "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "feff::1",
            "ff02::1",
            "3fff::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fe80::5efe:8.8.8.8",
            "2600::5efe:10.0.0.1",
        ] {
            assert!(!permits(&policy, refused), "{refused}");
        }
        for allowed in [
            "8.8.8.8",
            "2001:200::1",
            "2606:4700::1",
            "64:ff9b::8.8.8.8",
            "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
            "2620:4f:8001::",
        ] {
            assert!(permits(&policy, allowed), "{allowed}");
        }
    }

    #[test]
    fn exceptions_open_ranges_but_never_own_sockets() {
        let mut policy = PeerPolicy {
            allow: vec![
                "127.0.0.0/8".parse().unwrap(),
                "0.0.0.0/8".parse().unwrap(),
                "::/0".parse().unwrap(),
            ],
            own_sockets: vec!["0.0.0.0:3478".parse().unwrap(), "[2600::1]:3478".parse().unwrap()],
            own_addresses: ["198.41.0.4".parse().unwrap()].into(),
            ..PeerPolicy::default()
        };
        for (peer, permitted) in [
            ("127.0.0.1:5000", true),
            ("127.0.0.1:3478", false),
            ("127.9.9.9:3478", false),
            ("0.0.0.0:3478", false),
            ("[::]:3478", false),
            ("[::ffff:127.0.0.1]:3478", false),
            ("[64:ff9b::127.0.0.1]:3478", false),
            ("[2600::1]:3478", false),
            ("[2600::1]:3479", true),
            ("198.41.0.4:3478", false),
            ("198.41.0.4:5000", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(policy.judge(peer.parse().unwrap()).is_ok(), permitted, "{peer}");
        }
        policy.allow.push("198.41.0.0/16".parse().unwrap());
        assert_eq!(policy.judge("198.41.0.4:5000".parse().unwrap()), Ok(()));
        assert!(policy.judge("198.41.0.4:3478".parse().unwrap()).is_err());
    }

    #[test]
    fn what_is_denied_stays_denied_whatever_is_allowed() {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        let policy = PeerPolicy {
            allow: nets(&["8.8.8.8/32", "10.0.0.0/8", "2600:1::/64"]),
            deny: nets(&["8.8.0.0/16", "10.1.0.0/16", "2600::/16"]),
            ..PeerPolicy::default()
        };
        let embedded = embeddings(Ipv4Addr::new(8, 8, 8, 8)).map(|ip| ip.to_string());
        let plain = ["8.8.8.8", "8.8.0.1", "10.1.2.3", "2600:1::1"].map(str::to_owned);
        for denied in plain.iter().chain(&embedded) {
            let why = policy.judge_address(denied.parse().unwrap()).unwrap_err();
            assert_eq!(why.rule, Rule::DenyPeer, "{denied}");
        }
        for allowed in ["8.9.0.1", "10.2.0.1", "2601::1", "64:ff9b::8.9.0.1"] {
            assert!(permits(&policy, allowed), "{allowed}");
        }
    }

    #[test]
    fn ports_are_judged_apart_from_addresses() {
        let policy = PeerPolicy {
            deny_ports: PortSet::of(&[1..=442, 444..=1023]),
            allow: vec!["10.0.0.0/8".parse().unwrap()],
            own_sockets: vec!["198.41.0.4:3478".parse().unwrap()],
            ..PeerPolicy::default()
        };
        let rule = |judged: Result<(), Why>| judged.err().map(|why| why.rule);
        for (peer, to_send, to_permit) in [
            ("8.8.8.8:53", Some(Rule::PeerPort), None),
            ("10.0.0.1:53", Some(Rule::PeerPort), None),
            ("8.8.8.8:443", None, None),
            ("8.8.8.8:1024", None, None),
            ("198.41.0.4:3478", Some(Rule::OwnSocket), Some(Rule::OwnSocket)),
            ("192.168.0.1:5000", Some(Rule::SpecialRange), Some(Rule::SpecialRange)),
        ] {
            let peer = peer.parse().unwrap();
            assert_eq!(rule(policy.judge(peer)), to_send, "{peer}");
            assert_eq!(rule(policy.judge_permission(peer)), to_permit, "{peer}");
        }
    }

    #[test]
    fn a_refusal_names_the_range() {
        let policy = PeerPolicy::default();
        for (peer, range) in [
            ("10.1.2.3", "10.0.0.0/8"),
            ("::ffff:169.254.169.254", "169.254.0.0/16"),
            ("2002:7f00:1::1", "127.0.0.0/8"),
            ("fe80::1", "fe80::/9"),
        ] {
            let why = policy.judge_address(peer.parse().unwrap()).unwrap_err();
            assert_eq!((why.rule, why.range), (Rule::SpecialRange, Some(range.parse().unwrap())), "{peer}");
        }
    }

    proptest! {
        #[test]
        fn every_embedding_follows_the_rule_of_its_ipv4_address(bits in any::<u32>()) {
            // `::0` and `::1` are no embeddings.
            prop_assume!(bits > 1);
            let policy = PeerPolicy { own_addresses: ["198.41.0.4".parse().unwrap()].into(), ..PeerPolicy::default() };
            for ip in [Ipv4Addr::from_bits(bits), Ipv4Addr::new(198, 41, 0, 4), Ipv4Addr::new(127, 0, 0, 1)] {
                for embedding in embeddings(ip) {
                    prop_assert_eq!(
                        policy.judge_address(embedding.into()),
                        policy.judge_address(ip.into()),
                        "{} as {}", ip, embedding
                    );
                }
            }
        }
    }
}
