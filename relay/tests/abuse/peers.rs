//! T32 to T42: peers that must not be reached. That no packet leaves for them is seen here by the relay's own count and by the
//! peers' silence, and from outside the process by `ssrf_namespace.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane::stun::{AddressFamily, Method};

use super::Row;
use super::attacker::{Attacker, channel_data, send};
use super::bench::Bench;
use super::configuration::WITNESSES;
use super::harness::receive;
use super::ranges::{ENCODINGS, V4, V6, encodings, ends_v4, ends_v6, is_in_v4, is_in_v6};

pub const ROWS: &[Row] = &[
    (32, 2 + 8 * (3 * REFUSED_V4 + 3), "403, and Send is dropped", t32),
    (33, 2 + 8 * 3 * V6.len() as u64, "403, and Send is dropped", t33),
    (34, 2 + 8 * REFUSED_V4 * ENCODINGS as u64, "403, and Send is dropped", t34),
    (35, 117, "403 inside, permitted outside", t35),
    (36, 220, "403", t36),
    (37, 207, "403; a relayed address only while it is live", t37),
    (38, 306, "as many come out as go in", t38),
    (39, 156, "400 for port 0, 403 for ports of the list", t39),
    (40, 604, "64 permissions, 64 channels; then 508", t40),
    (41, 114, "400 beyond 16, all or nothing", t41),
    (42, 244, "443", t42),
];

/// What of loopback has no exception here, and what --deny-peer refuses.
const LOOPBACK: &[(&str, u8)] = &[("127.0.0.0", 31), ("127.2.0.0", 15), ("127.1.255.0", 24)];

fn refused_v4() -> impl Iterator<Item = &'static (&'static str, u8)> {
    V4.iter().chain(LOOPBACK)
}

/// How many that are.
const REFUSED_V4: u64 = (V4.len() + LOOPBACK.len()) as u64;

/// Every way to a peer that is refused: two requests, an indication, and a channel that nobody bound.
fn refused(attacker: &mut Attacker, peer: SocketAddr) {
    assert_eq!(attacker.permit(peer), Some(403), "CreatePermission {peer}");
    assert_eq!(attacker.bind(0x4002, peer), Some(403), "ChannelBind {peer}");
    attacker.silent(&send(peer, b"let me in"));
    attacker.silent(&channel_data(0x4002, b"let me in"));
}

fn all_refused(bench: &Bench, family: AddressFamily, addresses: impl Iterator<Item = IpAddr>) {
    let mut attacker = bench.attacker();
    attacker.allocate_of(family);
    for address in addresses {
        for port in [443, 5000] {
            refused(&mut attacker, SocketAddr::new(address, port));
        }
    }
    attacker.leave();
}

fn t32(bench: &mut Bench) {
    let addresses = refused_v4().flat_map(|&(net, prefix)| {
        let (first, last) = ends_v4(net, prefix);
        [first, first + (last - first) / 3, last].map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits)))
    });
    let metadata = ["169.254.169.254", "127.0.0.1", "100.100.100.200"].map(|text| text.parse().unwrap());
    all_refused(bench, AddressFamily::V4, addresses.chain(metadata));
}

fn t33(bench: &mut Bench) {
    let addresses = V6.iter().flat_map(|&(net, prefix)| {
        let (first, last) = ends_v6(net, prefix);
        [first, first + (last - first) / 3, last].map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)))
    });
    all_refused(bench, AddressFamily::V6, addresses);
}

fn t34(bench: &mut Bench) {
    let targets = refused_v4().map(|&(net, prefix)| Ipv4Addr::from_bits(ends_v4(net, prefix).1));
    let addresses = targets.flat_map(encodings).map(IpAddr::from);
    all_refused(bench, AddressFamily::V6, addresses);
}

/// The neighbours of every range. Permissions only: nothing is sent to addresses that are somebody's.
fn t35(bench: &mut Bench) {
    // What is loopback and neither excepted nor listed above.
    let is_loopback = |bits: u32| bits >> 24 == 127 && bits >> 16 != 0x7f01 && bits != 0x7f00_0002;
    for chunk in [V4, LOOPBACK].concat().chunks(8) {
        let mut attacker = bench.allocated();
        for &(net, prefix) in chunk {
            let (first, last) = ends_v4(net, prefix);
            for bits in [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)] {
                let Some(bits) = bits else { continue };
                let is_refused = is_in_v4(V4, bits) || is_in_v4(LOOPBACK, bits) || is_loopback(bits);
                let expected = is_refused.then_some(403);
                let peer = SocketAddr::new(Ipv4Addr::from_bits(bits).into(), 5000);
                assert_eq!(attacker.permit(peer), expected, "{peer}");
            }
        }
        attacker.leave();
    }
    let mut attacker = bench.attacker();
    attacker.allocate_of(AddressFamily::V6);
    // Between ::2 and 1::, and around 64:ff9b::, other rules hold: T34.
    for &(net, prefix) in V6.iter().filter(|(net, _)| !["::", "::1"].contains(net)) {
        let (first, last) = ends_v6(net, prefix);
        for bits in [Some(first), Some(last), last.checked_add(1)].into_iter().flatten() {
            let peer = SocketAddr::new(Ipv6Addr::from_bits(bits).into(), 5000);
            let expected = is_in_v6(V6, bits).then_some(403);
            if expected.is_some() || bits >> 125 == 1 {
                assert_eq!(attacker.permit(peer), expected, "{peer}");
            }
        }
    }
    attacker.leave();
}

/// With loopback excepted as a whole: `wire`. An address that comes to the machine later: `ssrf_namespace.rs`.
fn t36(bench: &mut Bench) {
    let mut attacker = bench.allocated();
    for address in bench.own_sockets() {
        refused(&mut attacker, address);
    }
    // Below those that live allocations may have.
    for port in (1024..49_152).step_by(1001) {
        refused(&mut attacker, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    attacker.leave();
    all_refused(bench, AddressFamily::V6, [Ipv6Addr::LOCALHOST.into()].into_iter());
}

fn t37(bench: &mut Bench) {
    let mut attacker = bench.allocated();
    let listen = bench.address();
    for number in 0..50 {
        assert_eq!(attacker.bind(0x4002 + number, listen), Some(403));
        // A Binding request to itself, in the hope that its answer is a request again.
        attacker.silent(&send(listen, &super::attacker::bare(Method::Binding)));
    }
    let mut other = bench.attacker();
    let relayed = other.allocate();
    assert_eq!(attacker.permit(relayed), None, "it is live");
    other.leave();
    let mut attacker_again = bench.allocated();
    for number in 0..50 {
        let dead = SocketAddr::new(relayed.ip(), relayed.port());
        assert_eq!(attacker_again.bind(0x4002 + number, dead), Some(403), "it is not live any more");
        assert_eq!(attacker_again.permit(dead), Some(403));
    }
    attacker_again.leave();
    attacker.leave();
}

fn t38(bench: &mut Bench) {
    const COUNT: usize = 300;
    let mut clients = [bench.attacker(), bench.attacker()];
    let relayed = [clients[0].allocate(), clients[1].allocate()];
    assert_eq!(clients[0].bind(0x4001, relayed[1]), None);
    assert_eq!(clients[1].bind(0x4001, relayed[0]), None);
    let before = bench.hairpinned();
    for round in 0..COUNT {
        let datagram = channel_data(0x4001, &round.to_be_bytes());
        clients[round % 2].send(&datagram);
        // The client of the other one has the move; if it sends it back, that is one more.
        assert_eq!(receive(&clients[1 - round % 2].socket).0, datagram);
    }
    bench.forwarded += COUNT as u64;
    assert_eq!(bench.hairpinned() - before, COUNT as u64, "nothing goes on by itself");
    clients.into_iter().for_each(Attacker::leave);
}

fn t39(bench: &mut Bench) {
    let (mut attacker, _peer, _) = bench.bound();
    let host: IpAddr = "127.0.0.2".parse().unwrap();
    for port in (1..443).step_by(7).chain([19, 53, 123, 161, 389, 442, 444, 1023, 1900, 11_211]) {
        let peer = SocketAddr::new(host, port);
        assert_eq!(attacker.bind(0x4002, peer), Some(403), "{peer}");
        attacker.silent(&send(peer, b"x"));
    }
    let nobody = SocketAddr::new(host, 0);
    assert_eq!(attacker.bind(0x4002, nobody), Some(400));
    attacker.silent(&send(nobody, b"x"));
    for port in [443, 1024, 3478] {
        assert_eq!(attacker.bind(0x4002 + port, SocketAddr::new(host, port)), None, "{port} is open");
    }
    attacker.leave();
}

/// How many of these are granted; everything else is 508.
pub fn granted(attempts: usize, mut attempt: impl FnMut(usize) -> Option<u16>) -> usize {
    let answers: Vec<_> = (0..attempts).map(&mut attempt).collect();
    assert!(answers.iter().all(|code| matches!(code, None | Some(508))), "{answers:?}");
    answers.iter().filter(|code| code.is_none()).count()
}

/// New peers a second: `wire`.
fn t40(bench: &mut Bench) {
    let target = |number: usize| {
        SocketAddr::new(Ipv4Addr::new(127, 1, (number >> 8) as u8, number as u8).into(), 5000)
    };
    let mut attacker = bench.allocated();
    assert_eq!(granted(300, |number| attacker.permit(target(number))), 64);
    attacker.leave();
    let mut attacker = bench.allocated();
    assert_eq!(granted(300, |number| attacker.bind(0x4000 + number as u16, target(number))), 64);
    attacker.leave();
}

fn t41(bench: &mut Bench) {
    let mut attacker = bench.allocated();
    let target = |number: u8| SocketAddr::new(Ipv4Addr::new(127, 1, 7, number).into(), 5000);
    let permit = |attacker: &mut Attacker, count: u8, bad: Option<SocketAddr>| {
        attacker.signed(Method::CreatePermission, |writer| {
            (0..count).for_each(|number| {
                writer.xor_peer_address(target(number));
            });
            if let Some(bad) = bad {
                writer.xor_peer_address(bad);
            }
        })
    };
    for count in 17..=59 {
        let asked = permit(&mut attacker, count, None);
        assert_eq!(attacker.code(&asked), Some(400), "{count}");
    }
    // Those have more attributes than a message may have.
    for count in [65, 100, 200, 255] {
        let asked = permit(&mut attacker, count, None);
        attacker.silent(&asked);
    }
    for bad in ["10.0.0.1:1", "127.0.0.1:5000", "127.1.255.1:1", "0.0.0.0:1"] {
        for count in 0..=15 {
            let asked = permit(&mut attacker, count, Some(bad.parse().unwrap()));
            assert_eq!(attacker.code(&asked), Some(403), "{count} and {bad}");
        }
    }
    assert_eq!(bench.permissions(), WITNESSES as u64, "none, where one was refused");
    let asked = permit(&mut attacker, 16, None);
    assert_eq!(attacker.code(&asked), None);
    attacker.leave();
}

fn t42(bench: &mut Bench) {
    for (family, foreign) in [
        (
            AddressFamily::V4,
            ["[2606::1]:5000", "[::ffff:127.0.0.2]:5000", "[::1]:5000", "[64:ff9b::7f00:2]:5000"],
        ),
        (AddressFamily::V6, ["127.0.0.2:5000", "127.1.0.1:5000", "0.0.0.0:5000", "255.255.255.255:5000"]),
    ] {
        let mut attacker = bench.attacker();
        attacker.allocate_of(family);
        for peer in foreign.map(|text| text.parse().unwrap()) {
            for _ in 0..10 {
                assert_eq!(attacker.permit(peer), Some(443), "{peer}");
                assert_eq!(attacker.bind(0x4002, peer), Some(443), "{peer}");
                attacker.silent(&send(peer, b"x"));
            }
        }
        attacker.leave();
    }
}
