//! Our own datagrams, routed back into the tunnel by the host.

use std::collections::VecDeque;

use super::*;
use crate::tunnel::paths::Policy;

const OWN_PORT: u16 = 51_820;
const OTHER: &str = "198.51.100.3:3000";
const RELAY: &str = "203.0.113.9:3478";

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// A packet of `protocol` from this port of ours.
fn sent(protocol: u8, from: u16, to: &str) -> Vec<u8> {
    let to = address(to);
    let own = if to.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    let mut bytes = packet(own, &to.ip().to_string(), &[0; 40]);
    let (protocol_at, ports_at) = if to.is_ipv4() { (9, 20) } else { (6, 40) };
    bytes[protocol_at] = protocol;
    bytes[ports_at..ports_at + 2].copy_from_slice(&from.to_be_bytes());
    bytes[ports_at + 2..ports_at + 4].copy_from_slice(&to.port().to_be_bytes());
    bytes
}

/// `a` with a second peer, and each routed where the other is.
fn crossed() -> (Tunnel, PeerIndex, Instant) {
    let Pair { mut a, now, .. } = Pair::new();
    a.set_own_port(OWN_PORT);
    a.add_allowed_ip(PEER, "198.51.100.0/24".parse().expect("prefix"));
    let other = a.add_peer(&peer(5, &["192.0.2.0/24", "203.0.113.0/24"], Some(OTHER)), now);
    (a, other, now)
}

#[test]
fn two_peers_that_are_reached_through_each_other_do_not_go_round() {
    let (mut a, other, now) = crossed();
    let udp = |from, to| sent(17, from, to);
    assert_eq!(a.route(&udp(OWN_PORT, OTHER)), Err(Cause::RoutingLoop));
    assert_eq!(a.route(&udp(OWN_PORT, B_OUTSIDE)), Err(Cause::RoutingLoop));
    // Who is behind us may have the same peers, or the same port.
    assert_eq!(a.route(&udp(4_000, OTHER)), Ok(PEER));
    assert_eq!(a.route(&udp(OWN_PORT, "198.51.100.3:3001")), Ok(PEER));
    assert_eq!(a.route(&sent(6, OWN_PORT, OTHER)), Ok(PEER));
    // It goes by where the peers are now, as long as they are there.
    a.set_path(other, Some(path("198.51.100.4:4")), now);
    assert_eq!(a.route(&udp(OWN_PORT, OTHER)), Ok(PEER));
    assert_eq!(a.route(&udp(OWN_PORT, "198.51.100.4:4")), Err(Cause::RoutingLoop));
    a.remove_peer(other);
    assert_eq!(a.route(&udp(OWN_PORT, "198.51.100.4:4")), Ok(PEER));
    a.set_own_port(0);
    assert_eq!(a.route(&udp(0, B_OUTSIDE)), Err(Cause::NoRoute));
}

#[test]
fn a_peer_that_roams_is_known_where_it_is() {
    let mut pair = Pair::connected();
    pair.b.set_own_port(OWN_PORT);
    pair.b.add_peer(&peer(5, &["198.51.100.0/24"], None), pair.now);
    let to = sent(17, OWN_PORT, OTHER);
    assert!(pair.b.route(&to).is_ok());
    let sealed = pair.seal_at_a(b"x");
    open(&mut pair.b, &sealed, OTHER, pair.now).expect("authentic");
    assert_eq!(pair.b.route(&to), Err(Cause::RoutingLoop));
}

#[test]
fn what_goes_to_the_relay_does_not_go_round() {
    let (mut a, other, _) = crossed();
    let (over_udp, over_tcp) = (sent(17, OWN_PORT, RELAY), sent(6, 40_000, RELAY));
    assert_eq!((a.route(&over_udp), a.route(&over_tcp)), (Ok(other), Ok(other)));
    a.set_relay_server(RelayServer { address: address(RELAY), stream_port: None });
    assert_eq!((a.route(&over_udp), a.route(&over_tcp)), (Err(Cause::RoutingLoop), Ok(other)));
    a.set_relay_server(RelayServer { address: address(RELAY), stream_port: Some(40_000) });
    assert_eq!((a.route(&over_udp), a.route(&over_tcp)), (Ok(other), Err(Cause::RoutingLoop)));
    // Somebody else's connection to it.
    assert_eq!(a.route(&sent(6, 40_001, RELAY)), Ok(other));
}

#[test]
fn the_tunnel_is_no_direct_path_of_its_own() {
    const LAN: &str = "10.1.2.3:51820";
    let Pair { mut a, now, .. } = Pair::new();
    a.set_own_port(OWN_PORT);
    a.add_allowed_ip(PEER, "10.1.0.0/16".parse().expect("prefix"));
    a.choose_paths(PEER, Policy::Auto, true, now);
    // Within three seconds.
    let asked = |tunnel: &mut Tunnel, now: Instant| -> Vec<SocketAddr> {
        let mut asked = Vec::new();
        for step in 1..=30 {
            tunnel.handle_timeout(now + SECOND * step / 10);
            asked.extend(std::iter::from_fn(|| tunnel.poll_transmit()).map(|message| message.path.remote()));
        }
        asked
    };
    let candidates = || [LAN, OTHER].map(address).into_iter();
    a.set_candidates(PEER, candidates(), now + 60 * SECOND, false, now);
    let others = asked(&mut a, now);
    assert!(others.contains(&address(OTHER)) && !others.contains(&address(LAN)), "{others:?}");
    // Marked datagrams go elsewhere; should they come back all the same, they end there.
    let now = now + 4 * SECOND;
    a.set_candidates(PEER, candidates(), now + 60 * SECOND, true, now);
    assert!(asked(&mut a, now).contains(&address(LAN)));
    assert_eq!(a.route(&sent(17, OWN_PORT, LAN)), Err(Cause::RoutingLoop));
}

/// `pair.a` with a session, and its peer's endpoint in what is routed there; over IPv6 or IPv4.
fn surrounded(v6: bool) -> Pair {
    let mut pair = Pair::connected();
    if v6 {
        let (inner, now) = (packet(B_INSIDE, A_INSIDE, b"x"), pair.now);
        let sealed = try_seal(&mut pair.b, &inner, now).expect("a session");
        open(&mut pair.a, &sealed, "[2001:db8::2]:2000", now).expect("authentic");
    }
    pair.a.set_own_port(OWN_PORT);
    pair.a.add_allowed_ip(PEER, "192.0.2.0/24".parse().expect("prefix"));
    pair.a.add_allowed_ip(PEER, "2001:db8::/32".parse().expect("prefix"));
    pair
}

/// A datagram to the peer of [`surrounded`], as the kernel hands it to the device: in fragments that fit its MTU.
fn datagram(v6: bool, from: u16, payload: &[u8]) -> Vec<Vec<u8>> {
    const MTU: usize = 1_420;
    let (own, to) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") };
    let mut udp = [from, 2_000, 8 + payload.len() as u16, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let header = if v6 { 40 } else { 20 };
    if header + udp.len() <= MTU {
        return vec![packet(own, to, &udp)];
    }
    let room = (MTU - header - if v6 { 8 } else { 0 }) & !7;
    let pieces = udp.chunks(room).enumerate().map(|(number, piece)| {
        let (offset, more) = (number * room, number * room + piece.len() < udp.len());
        if v6 {
            let word = offset as u16 | u16::from(more);
            let extension = [17, 0, (word >> 8) as u8, word as u8, 0, 0, 0, 1];
            let mut whole = packet(own, to, &[&extension, piece].concat());
            whole[6] = 44;
            return whole;
        }
        let mut whole = packet(own, to, piece);
        whole[6..8].copy_from_slice(&((offset / 8) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes());
        whole
    });
    pieces.collect()
}

#[test]
fn what_others_send_to_the_peers_host_passes() {
    for v6 in [false, true] {
        let mut pair = surrounded(v6);
        let nested = [&[4, 0, 0, 0, 1, 2, 3, 4][..], &[0; 60]].concat();
        for marked in [false, true] {
            pair.a.set_marked(marked);
            for payload in [&[7; 3_000][..], &[7; 40], &nested] {
                for piece in datagram(v6, 4_000, payload) {
                    assert_eq!(pair.a.route(&piece), Ok(PEER), "{v6} {marked} {}", payload.len());
                }
            }
        }
        // From the port of ours: that of somebody behind us, where what is ours is led around the tunnel.
        let [theirs] = &datagram(v6, OWN_PORT, &nested)[..] else { panic!("one piece") };
        assert_eq!(pair.a.route(theirs), Ok(PEER));
        pair.a.set_marked(false);
        assert_eq!(pair.a.route(theirs), Err(Cause::RoutingLoop));
    }
}

#[test]
fn nothing_goes_round_more_than_three_times_whatever_its_length_port_and_mark() {
    for v6 in [false, true] {
        for (from, marked) in [(OWN_PORT, false), (OWN_PORT, true), (61_234, false), (61_234, true)] {
            for len in [0, 100, 1_300, 1_339, 1_340, 1_360, 1_379, 1_380, 1_392] {
                let mut pair = surrounded(v6);
                pair.a.set_marked(marked);
                let mut inside = VecDeque::from([packet(A_INSIDE, B_INSIDE, &vec![0; len])]);
                let mut rounds = 0;
                while let Some(packet) = inside.pop_front() {
                    if pair.a.route(&packet) == Err(Cause::RoutingLoop) {
                        continue;
                    }
                    let sealed = try_seal(&mut pair.a, &packet, pair.now).expect("a session");
                    inside.extend(datagram(v6, from, &sealed));
                    rounds += 1;
                    assert!(rounds <= 3, "{len} bytes from port {from}, IPv6 {v6}, marked {marked}");
                }
            }
        }
    }
}
