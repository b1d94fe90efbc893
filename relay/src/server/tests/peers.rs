//! Which peers are refused, by every method, in every encoding, beside a second opinion that shares no code with the
//! policy; and what becomes of peers when the rules change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::stun::{AddressFamily, Method};
use proptest::prelude::*;

use super::super::*;
use super::fixture::*;
use crate::server::port_set::PortSet;
use crate::server::rules::Rule;

/// Every IPv4 range that is not public, by its first and last address (T32).
const REFUSED_V4: [(&str, &str); 14] = [
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.0.2.0", "192.0.2.255"),
    ("192.88.99.0", "192.88.99.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("198.18.0.0", "198.19.255.255"),
    ("198.51.100.0", "198.51.100.255"),
    ("203.0.113.0", "203.0.113.255"),
    ("224.0.0.0", "255.255.255.255"),
];

/// The same for IPv6 (T33), with the whole of the embeddings that always are refused (T34): Teredo and local NAT64.
const REFUSED_V6: [(&str, &str); 11] = [
    ("::", "::1"),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
    ("100::", "100:0:0:1:ffff:ffff:ffff:ffff"),
    ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fe80::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
];

/// The second opinion: numbers and comparisons.
struct Oracle {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Oracle {
    fn new() -> Self {
        let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap().to_bits();
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap().to_bits();
        let mut ranges: Vec<_> = REFUSED_V4.iter().map(|(first, last)| (v4(first), v4(last))).collect();
        ranges.push((v4(LOCAL), v4(LOCAL)));
        Self { v4: ranges, v6: REFUSED_V6.iter().map(|(first, last)| (v6(first), v6(last))).collect() }
    }

    fn refuses_v4(&self, bits: u32) -> bool {
        self.v4.iter().any(|&(first, last)| first <= bits && bits <= last)
    }

    fn refuses_v6(&self, bits: u128) -> bool {
        self.v6.iter().any(|&(first, last)| first <= bits && bits <= last)
            || Self::carried(bits).is_some_and(|bits| self.refuses_v4(bits))
    }

    fn refuses(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => self.refuses_v4(ip.to_bits()),
            IpAddr::V6(ip) => self.refuses_v6(ip.to_bits()),
        }
    }

    /// The IPv4 address that an IPv6 address leads to.
    fn carried(bits: u128) -> Option<u32> {
        let low = bits as u32;
        if bits >> 112 == 0x2002 {
            return Some((bits >> 80) as u32);
        }
        let is_isatap = (bits >> 32) as u32 & 0xfdff_ffff == 0x5efe;
        match bits >> 32 {
            0 | 0xffff | 0xffff_0000 => Some(low),
            nat64 if nat64 == 0x0064_ff9b << 64 => Some(low),
            _ if is_isatap => Some(low),
            _ => None,
        }
    }
}

/// Every encoding of an IPv4 address as an IPv6 one (T34).
fn encodings(bits: u32) -> [u128; 10] {
    let low = u128::from(bits);
    [
        low,
        0xffff << 32 | low,
        0xffff << 48 | low,
        0x0064_ff9b << 96 | low,
        0x0064_ff9b_0001 << 80 | low,
        0x2002 << 112 | low << 80,
        0x2002 << 112 | low << 80 | 0x1234,
        // Teredo: the client's address, inverted, behind a public server's.
        0x2001_0000 << 96 | 0x0808_0808 << 64 | 0x8000_63bf << 32 | u128::from(!bits),
        0x2600_0001_0002_0003 << 64 | 0x5efe << 32 | low,
        0x2600_0001_0002_0003 << 64 | 0x0200_5efe << 32 | low,
    ]
}

/// The borders of a range, their neighbours on both sides, and some of its inside.
macro_rules! probes {
    ($first:expr, $last:expr) => {{
        let (first, last) = ($first, $last);
        let step = (last - first) / 5;
        let inside = (1..5).map(|part| first + part * step);
        let borders =
            [first.checked_sub(1), Some(first), first.checked_add(1), last.checked_sub(1), Some(last)];
        let borders = borders.into_iter().flatten();
        borders.chain(inside).chain(last.checked_add(1)).collect::<Vec<_>>()
    }};
}

fn inputs() -> Vec<IpAddr> {
    let oracle = Oracle::new();
    let v4 = oracle.v4.iter().flat_map(|&(first, last)| probes!(first, last));
    let mut all = Vec::new();
    for bits in v4 {
        all.push(IpAddr::V4(Ipv4Addr::from_bits(bits)));
        all.extend(encodings(bits).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))));
    }
    for bits in oracle.v6.iter().flat_map(|&(first, last)| probes!(first, last)) {
        all.push(IpAddr::V6(Ipv6Addr::from_bits(bits)));
    }
    all
}

/// A server that excepts nothing.
fn strict() -> Settings {
    let mut settings = settings();
    settings.policy.allow.clear();
    settings.limits.new_peers_per_s = None;
    settings
}

fn allocate(fixture: &mut Fixture, user: &User, family: AddressFamily) -> AllocationId {
    fixture.transactions = 0;
    if let Some(old) = fixture.server.find(&user.client, fixture.now) {
        assert_eq!(fixture.refresh(user, Some(0)).code(), None);
        assert_eq!(fixture.server.poll_command(), Some(Command::Close(old.first)));
        fixture.server.handle_relay_closed(old.first);
    }
    let reply = fixture.ask(user, Method::Allocate, |writer| {
        writer.requested_transport(17).requested_address_family(family);
    });
    assert_eq!(reply.code(), None);
    fixture.id(user)
}

/// T32 to T35, and the relay's own address of T36, by CreatePermission, ChannelBind and Send. Refused requests change
/// nothing at all.
#[test]
fn every_special_address_in_every_encoding_is_refused_by_every_method() {
    let oracle = Oracle::new();
    let mut fixture = Fixture::with(strict());
    let (mut tried, mut refused) = (0, 0);
    for address in inputs() {
        let (user, family) = match address {
            IpAddr::V4(_) => (User::alice(), AddressFamily::V4),
            IpAddr::V6(_) => (User::bob(), AddressFamily::V6),
        };
        // A new allocation for each peer that got through: lists are short.
        let known = fixture.server.find(&user.client, fixture.now);
        let id = known.map_or_else(|| allocate(&mut fixture, &user, family), |pair| pair.first);
        fixture.transactions = 0;
        let peer = SocketAddr::new(address, 5000).to_string();
        let before = format!("{:?}", fixture.server.table.get(id));
        let expected = oracle.refuses(address).then_some(403);
        assert_eq!(fixture.permit(&user, &[&peer]), expected, "CreatePermission {peer}");
        let sent = fixture.handle(&user.client, &send(&peer, b"x"));
        let bound = fixture.bind(&user, 0x4000, &peer);
        assert_eq!(bound, expected, "ChannelBind {peer}");
        tried += 3;
        if expected.is_some() {
            assert_eq!(sent, FromClient::Drop(Cause::NoPermission), "Send {peer}");
            assert_eq!(format!("{:?}", fixture.server.table.get(id)), before, "{peer} left something behind");
            refused += 3;
        } else {
            assert!(matches!(sent, FromClient::Forward { .. }), "Send {peer}");
            allocate(&mut fixture, &user, family);
        }
    }
    println!("{tried} inputs, {refused} of them to be refused");
    assert!(tried >= 5000 && refused > tried / 2 && tried - refused > 200, "{tried}, {refused}");
    let by_rule: u64 = fixture.server.refusals_by_rule().map(|(_, count)| count).sum();
    assert_eq!(by_rule, refused as u64 / 3 * 2, "Send is refused for want of a permission");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// R5: random addresses, IPv6 ones mostly where something is embedded.
    #[test]
    fn random_addresses_are_judged_as_the_second_opinion_has_it(
        bits in any::<u32>(), wide in any::<u128>(), encoding in 0_usize..10
    ) {
        let (oracle, policy) = (Oracle::new(), strict().policy);
        let encoded = encodings(bits)[encoding];
        let v6 = [encoded, wide, wide & u128::from(u32::MAX) | encoded & !u128::from(u32::MAX)];
        let v6 = v6.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)));
        for address in v6.into_iter().chain([IpAddr::V4(Ipv4Addr::from_bits(bits))]) {
            prop_assert_eq!(policy.judge_address(address).is_err(), oracle.refuses(address), "{}", address);
        }
    }
}

/// T39: ports of a list, in ChannelBind and Send; CreatePermission has no port to look at.
#[test]
fn refused_ports_are_refused_where_a_port_is_used() {
    let mut settings = settings();
    settings.policy.deny_ports = PortSet::of(&[1..=442, 444..=1023, 1900..=1900, 11_211..=11_211]);
    let mut fixture = Fixture::with(settings);
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:53"]), None);
    for (index, port) in [53, 123, 161, 389, 19, 1, 1023, 1900, 11_211].into_iter().enumerate() {
        let peer = format!("192.0.2.9:{port}");
        assert_eq!(fixture.bind(&alice, 0x4000 + index as u16, &peer), Some(403), "{peer}");
        let lost = FromClient::Drop(Cause::PolicyPeer);
        assert_eq!(fixture.handle(&alice.client, &send(&peer, b"x")), lost, "{peer}");
    }
    assert_eq!(fixture.bind(&alice, 0x4100, "192.0.2.9:0"), Some(400));
    for port in [443, 1024, 3478] {
        let peer = format!("192.0.2.9:{port}");
        assert_eq!(fixture.bind(&alice, 0x4000 + port, &peer), None, "{peer}");
        assert!(matches!(fixture.handle(&alice.client, &send(&peer, b"x")), FromClient::Forward { .. }));
    }
    let counts: Vec<_> = fixture.server.refusals_by_rule().filter(|&(_, count)| count > 0).collect();
    assert_eq!(counts, [(Rule::PeerPort, 18)]);
}

/// T36: an address that comes to this machine is no peer any more, whoever talks to it already.
#[test]
fn a_peer_that_becomes_an_address_of_this_machine_is_cut_off() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let id = fixture.id(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "8.8.8.8:5000"), None);
    assert_eq!(fixture.bind(&alice, 0x4002, "9.9.9.9:5000"), None);
    let to = |fixture: &mut Fixture, number| {
        matches!(fixture.handle(&alice.client, &channel_data(number, b"x")), FromClient::Forward { .. })
    };
    let from = |fixture: &Fixture, peer: &str| {
        !matches!(fixture.server.handle_peer(id, PeerSocket(address(peer)), fixture.now), FromPeer::Drop(_))
    };
    assert!(to(&mut fixture, 0x4001) && from(&fixture, "8.8.8.8:5000"));
    let own = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    fixture.server.set_machine_addresses(own(&[LOCAL, "8.8.8.8"]));
    assert!(!to(&mut fixture, 0x4001) && !from(&fixture, "8.8.8.8:5000"));
    let sent = fixture.handle(&alice.client, &send("8.8.8.8:5000", b"x"));
    assert_eq!(sent, FromClient::Drop(Cause::NoPermission));
    assert_eq!(fixture.permit(&alice, &["8.8.8.8:5000"]), Some(403));
    assert_eq!(fixture.bind(&alice, 0x4001, "8.8.8.8:5000"), Some(403));
    assert!(to(&mut fixture, 0x4002) && from(&fixture, "9.9.9.9:5000"), "others go on");
    fixture.server.set_machine_addresses(own(&[LOCAL]));
    assert!(!to(&mut fixture, 0x4001), "nothing comes back by itself");
    assert_eq!(fixture.bind(&alice, 0x4001, "8.8.8.8:5000"), None);
    assert!(to(&mut fixture, 0x4001));
}

#[test]
fn new_rules_hold_for_old_permissions_and_channels() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "8.8.8.8:5000"), None);
    assert_eq!(fixture.bind(&alice, 0x4002, "8.8.8.8:5001"), None);
    assert_eq!(fixture.bind(&alice, 0x4003, "192.0.2.9:5000"), None);
    let mut policy = settings().policy;
    policy.deny_ports = PortSet::of(&[5001..=5001]);
    fixture.server.set_policy(policy.clone());
    let mut lost = |number| match fixture.handle(&alice.client, &channel_data(number, b"x")) {
        FromClient::Drop(cause) => Some(cause),
        _ => None,
    };
    assert_eq!([0x4001, 0x4002, 0x4003].map(&mut lost), [None, Some(Cause::NoChannel), None]);
    policy.deny = vec!["8.0.0.0/8".parse().unwrap(), "192.0.0.0/16".parse().unwrap()];
    fixture.server.set_policy(policy);
    let mut lost = |number| match fixture.handle(&alice.client, &channel_data(number, b"x")) {
        FromClient::Drop(cause) => Some(cause),
        _ => None,
    };
    assert_eq!([0x4001, 0x4003].map(&mut lost), [Some(Cause::NoChannel); 2]);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), Some(403), "denied although it is allowed");
}
