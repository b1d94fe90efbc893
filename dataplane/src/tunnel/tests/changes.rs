//! Endpoints that change while packets pass.

use super::*;
use crate::tunnel::key::PublicKey;

const C_OUTSIDE: &str = "192.0.2.3:3000";

fn public(seed: u8) -> PublicKey {
    noise::public_key(&secret(seed))
}

fn route(tunnel: &Tunnel, destination: &str) -> Result<PeerIndex, Cause> {
    tunnel.route(&packet("10.0.0.9", destination, b""))
}

/// Allowed IPs of a peer as text.
fn allowed(tunnel: &Tunnel, index: PeerIndex) -> Vec<String> {
    tunnel.view(index).expect("a peer").allowed_ips.iter().map(ToString::to_string).collect()
}

#[test]
fn a_removed_peer_leaves_nothing_and_its_number_is_nobodys() {
    let mut pair = Pair::connected();
    let late = pair.seal_at_a(b"late");
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"waits"), pair.now);
    let index = pair.b.peer(&public(1)).expect("known");
    assert!(pair.b.remove_peer(index) && !pair.b.remove_peer(index));
    assert_eq!(open(&mut pair.b, &late, A_OUTSIDE, pair.now), Err(Cause::UnknownIndex));
    assert_eq!(route(&pair.b, A_INSIDE), Err(Cause::NoRoute));
    assert_eq!((pair.b.peer_count(), pair.b.by_key.len(), pair.b.by_index.len()), (0, 0, 0));

    // Another one in its place has another number; the old one finds nobody.
    let other = pair.b.add_peer(&peer(3, &["10.0.0.3/32"], Some(C_OUTSIDE)), pair.now);
    assert_ne!(other, index);
    assert_eq!(pair.b.path(index), None);
    assert!(pair.b.view(index).is_none() && pair.b.ready(index, pair.now).is_none());
    assert!(!pair.b.seal(index, &[0; 16], &mut [0; 48], pair.now));
    pair.b.set_path(index, Some(path("192.0.2.9:9")), pair.now);
    pair.b.add_allowed_ip(index, "10.0.0.9/32".parse().expect("prefix"));
    assert_eq!(route(&pair.b, "10.0.0.9"), Err(Cause::NoRoute));
    assert_eq!(pair.b.path(other), Some(path(C_OUTSIDE)));
    let before = pair.b.drops().get(Cause::NoRoute);
    pair.b.stage(index, &packet("10.0.0.2", "10.0.0.3", b""), pair.now);
    assert_eq!(pair.b.drops().get(Cause::NoRoute), before + 1);
    assert_eq!(pair.b.staged_bytes, 0);

    // Added again, it gets packets again, after a handshake.
    pair.b.add_peer(&peer(1, &["10.0.0.1/32"], None), pair.now);
    pair.pass(20 * SECOND);
    assert_eq!(pair.exchange().last(), Some(&packet(A_INSIDE, B_INSIDE, b"hello")));
}

#[test]
fn what_waits_for_a_removed_peer_is_counted() {
    let now = Instant::now();
    let mut a = tunnel(1, vec![peer(2, &["10.0.0.2/32"], Some(B_OUTSIDE))], now);
    for _ in 0..3 {
        a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"waits"), now);
    }
    a.remove_peer(PEER);
    assert_eq!((a.drops().get(Cause::StagedExpired), a.staged_bytes), (3, 0));
    assert_eq!(a.poll_staged(&mut Packet::new(), now), None);
    a.handle_timeout(now + SECOND);
}

#[test]
fn thousands_of_peers_that_come_and_go_leave_no_memory_behind() {
    let now = Instant::now();
    let mut tunnel = tunnel(1, Vec::new(), now);
    let mut seen = std::collections::HashSet::new();
    for round in 0..40_u8 {
        for number in 0..25_u8 {
            let prefix = format!("10.{round}.{number}.0/24");
            let mut config = peer(2, &[&prefix], Some(B_OUTSIDE));
            config.public_key = PublicKey([round, number].repeat(16).try_into().expect("32 bytes"));
            assert!(seen.insert(tunnel.add_peer(&config, now)), "a number is given twice");
        }
        assert_eq!(tunnel.peer_count(), 25);
        while let Some(index) = tunnel.next_peer(None) {
            assert!(tunnel.remove_peer(index));
        }
    }
    assert_eq!(tunnel.peers.places(), 25, "places are used again");
    assert_eq!((tunnel.by_key.len(), tunnel.by_index.len()), (0, 0));
    assert_eq!(route(&tunnel, "10.1.1.1"), Err(Cause::NoRoute));
}

#[test]
fn one_peer_comes_and_goes_while_packets_of_another_pass() {
    let mut pair = Pair::connected();
    for seed in 3..60 {
        let index = pair.a.add_peer(&peer(seed, &["10.0.1.0/24"], Some(C_OUTSIDE)), pair.now);
        pair.a.set_persistent_keepalive(index, 1, pair.now);
        let sealed = pair.seal_at_a(&[seed]);
        assert_eq!(pair.at_b(&sealed), Some(packet(A_INSIDE, B_INSIDE, &[seed])));
        if seed % 3 == 0 {
            pair.a.remove_peer(index);
        }
        pair.now += SECOND / 10;
        pair.a.handle_timeout(pair.now);
        // Initiations to the others.
        while pair.a.poll_transmit().is_some() {}
    }
    assert_eq!(pair.b.drops().total(), 0);
}

#[test]
fn what_was_counted_for_a_peer_that_goes_stays_counted() {
    let mut pair = Pair::connected();
    let sealed = pair.seal_at_a(b"x");
    pair.at_b(&sealed);
    let (sent, received) = (pair.a.stats(PEER), pair.b.stats(PEER));
    assert!(sent.sent_message_bytes > 0 && received.received_packets == 2);
    pair.a.remove_peer(PEER);
    pair.b.remove_peer(PEER);
    assert_eq!((pair.a.departed, pair.b.departed), (sent, received));
    let mut twice = received;
    twice.add(&received);
    assert_eq!(twice.received_packets, 4);
    assert_eq!(twice.last_handshake, received.last_handshake);
}

#[test]
fn a_prefix_belongs_to_whom_it_was_given_last() {
    let now = Instant::now();
    let peers = vec![peer(2, &["10.0.0.0/24", "fd00::/64"], None), peer(3, &[], None)];
    let mut tunnel = tunnel(1, peers, now);
    let (first, second) = (PeerIndex(0), PeerIndex(1));
    tunnel.add_allowed_ip(second, "10.0.0.7/24".parse().expect("prefix"));
    assert_eq!(route(&tunnel, "10.0.0.1"), Ok(second));
    assert_eq!(
        (allowed(&tunnel, first), allowed(&tunnel, second)),
        (vec!["fd00::/64".to_owned()], vec!["10.0.0.0/24".to_owned()])
    );
    // What is somebody else's cannot be taken away.
    tunnel.remove_allowed_ip(first, "10.0.0.0/24".parse().expect("prefix"));
    assert_eq!(route(&tunnel, "10.0.0.1"), Ok(second));
    // A longer prefix wins, and gives way again.
    tunnel.add_allowed_ip(first, "10.0.0.1/32".parse().expect("prefix"));
    assert_eq!(route(&tunnel, "10.0.0.1"), Ok(first));
    tunnel.remove_allowed_ip(first, "10.0.0.1/32".parse().expect("prefix"));
    assert_eq!(route(&tunnel, "10.0.0.1"), Ok(second));
    for number in 0..10 {
        tunnel.add_allowed_ip(second, format!("10.1.{number}.0/24").parse().expect("prefix"));
    }
    assert!(!tunnel.remove_allowed_ips(second, 6) && tunnel.remove_allowed_ips(second, 6));
    assert_eq!(route(&tunnel, "10.0.0.1"), Err(Cause::NoRoute));
    assert_eq!(route(&tunnel, "10.1.9.1"), Err(Cause::NoRoute));
    // The source of what arrives is judged by the same table.
    assert_eq!(tunnel.routes.find("fd00::1".parse().expect("address")), Some(first));
}

#[test]
fn another_private_key_ends_sessions_and_starts_new_ones() {
    let mut pair = Pair::connected();
    let late = pair.seal_at_a(b"late");
    pair.a.set_private_key(Some(secret(7)));
    assert_eq!(pair.a.public_key(), public(7));
    while !pair.a.renew_some(1) {}
    assert!(pair.a.ready(PEER, pair.now).is_none());
    assert_eq!(
        pair.at_b(&late),
        Some(packet(A_INSIDE, B_INSIDE, b"late")),
        "the other side's session lives on"
    );
    // Nobody knows the new key yet, and then somebody does.
    assert!(pair.exchange().is_empty());
    pair.b.add_peer(&peer(7, &["10.0.0.1/32"], None), pair.now);
    pair.pass(6 * SECOND);
    assert_eq!(pair.exchange(), vec![packet(A_INSIDE, B_INSIDE, b"hello")]);
}

#[test]
fn a_handshake_right_after_the_key_has_changed_is_not_ended_by_the_walk_over_the_peers() {
    let mut pair = Pair::connected();
    pair.a.set_private_key(Some(secret(7)));
    assert_eq!(pair.exchange().len(), 1, "the old session still carries it");
    pair.b.add_peer(&peer(7, &["10.0.0.1/32"], None), pair.now);
    pair.a.renew_some(0);
    pair.a.start_handshake(PEER, pair.now);
    pair.settle();
    while !pair.a.renew_some(1) {}
    assert!(pair.a.ready(PEER, pair.now).is_some());
}

#[test]
fn a_peer_with_our_own_new_key_is_removed_and_no_key_means_no_handshake() {
    let now = Instant::now();
    let mut tunnel = tunnel(1, vec![peer(2, &["10.0.0.2/32"], Some(B_OUTSIDE))], now);
    tunnel.set_private_key(Some(secret(2)));
    assert_eq!(tunnel.peer_count(), 0);
    let index = tunnel.add_peer(&peer(3, &["10.0.0.2/32"], Some(B_OUTSIDE)), now);
    tunnel.set_private_key(None);
    assert!(tunnel.private_key().is_none());
    while !tunnel.renew_some(1) {}
    tunnel.stage(index, &packet(A_INSIDE, B_INSIDE, b"waits"), now);
    assert!(tunnel.poll_transmit().is_none());
    let mut stranger = self::tunnel(3, vec![peer(2, &[], Some(A_OUTSIDE))], now);
    stranger.start_handshake(PEER, now);
    let initiation = stranger.poll_transmit().expect("an initiation");
    assert_eq!(open(&mut tunnel, initiation.bytes(), B_OUTSIDE, now), Err(Cause::BadTag));
}

fn psk(seed: u8) -> Option<SecretKey> {
    Some(SecretKey::new([seed; 32]))
}

#[test]
fn preshared_keys_change_on_one_side_after_the_other_without_a_loss() {
    let mut pair = Pair::connected();
    pair.a.set_preshared_key(PEER, psk(9));
    for _ in 0..100 {
        pair.pass(SECOND);
        assert_eq!(pair.exchange(), vec![packet(A_INSIDE, B_INSIDE, b"hello")]);
    }
    pair.b.set_preshared_key(PEER, psk(9));
    for second in 0..400 {
        pair.pass(SECOND);
        assert_eq!(pair.exchange(), vec![packet(A_INSIDE, B_INSIDE, b"hello")], "second {second}");
    }
    // A session, the one before, and one or two that were not used.
    assert!(pair.a.by_index.len() <= 4 && pair.b.by_index.len() <= 4, "{:?}", pair.a.by_index);
    // With another one, no new session comes about.
    pair.a.set_preshared_key(PEER, psk(10));
    pair.pass(REJECT_AFTER_TIME);
    assert!(pair.exchange().is_empty());
}

#[test]
fn preshared_keys_that_come_and_go_leave_sessions_and_indices_alone() {
    let mut pair = Pair::connected();
    let session = pair.seal_at_a(b"")[4..8].to_vec();
    for seed in 0..50 {
        pair.a.set_preshared_key(PEER, None);
        pair.b.set_preshared_key(PEER, psk(seed));
        assert_eq!(pair.exchange().len(), 1);
    }
    assert_eq!(pair.seal_at_a(b"")[4..8], session);
    assert_eq!(pair.b.by_index.len(), 1);
    pair.b.remove_peer(PEER);
    assert_eq!(pair.b.by_index.len(), 0);
}

#[test]
fn handshakes_that_never_finish_leave_the_session_alone() {
    let mut pair = Pair::connected();
    // The other end cannot know that its answers are of no use.
    for seed in 0..20 {
        pair.a.set_preshared_key(PEER, psk(seed));
        pair.a.start_handshake(PEER, pair.now);
        pair.settle();
        pair.now += 6 * SECOND;
        assert_eq!(pair.exchange().len(), 1, "the first session goes on");
        let answer = try_seal(&mut pair.b, &packet(B_INSIDE, A_INSIDE, b"x"), pair.now).expect("a session");
        assert!(pair.at_a(&answer).is_some(), "for both");
    }
}

#[test]
fn a_peer_that_never_shook_hands_costs_no_state() {
    let mut pair = Pair::new();
    let other = pair.a.add_peer(&peer(5, &["10.5.0.0/16"], Some(C_OUTSIDE)), pair.now);
    pair.a.set_preshared_key(other, psk(1));
    pair.a.set_private_key(Some(secret(1)));
    assert_eq!(pair.exchange().len(), 1);
    assert!(pair.a.peers[PEER].noise.has_state() && !pair.a.peers[other].noise.has_state());
    assert!(pair.a.remove_peer(other) && pair.a.by_index.len() == 1);
}

#[test]
fn a_recorded_initiation_is_a_replay_after_the_preshared_key_has_changed() {
    let mut pair = Pair::new();
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"hello"), pair.now);
    let recorded = pair.a.poll_transmit().expect("an initiation");
    pair.at_b(recorded.bytes());
    pair.settle();
    pair.b.set_preshared_key(PEER, psk(9));
    pair.b.set_preshared_key(PEER, psk(10));
    pair.now += SECOND;
    let from = "203.0.113.66:6";
    assert_eq!(open(&mut pair.b, recorded.bytes(), from, pair.now), Err(Cause::Replay));
    assert_eq!(pair.b.path(PEER), Some(path(A_OUTSIDE)), "it has not moved to whoever sent it");
}

#[test]
fn an_interface_that_is_down_is_silent_and_its_sessions_end() {
    let mut pair = Pair::with(|b_of_a, _| b_of_a.persistent_keepalive = Some(5));
    pair.pass(SECOND);
    assert!(pair.a.ready(PEER, pair.now).is_some());
    pair.a.set_running(false, pair.now);
    while !pair.a.renew_some(1) {}
    assert_eq!(pair.a.poll_timeout(), None);
    pair.pass(30 * SECOND);
    assert!(pair.a.poll_transmit().is_none() && pair.a.ready(PEER, pair.now).is_none());
    pair.a.set_running(true, pair.now);
    pair.pass(SECOND);
    assert!(pair.a.ready(PEER, pair.now).is_some(), "the persistent keepalive brings it up again");

    let mut pair = Pair::connected();
    pair.a.set_running(false, pair.now);
    while !pair.a.renew_some(1) {}
    pair.now += SECOND;
    assert!(pair.exchange().is_empty());
    pair.a.set_running(true, pair.now);
    assert_eq!(pair.settle(), vec![packet(A_INSIDE, B_INSIDE, b"hello")], "what waited leaves at once");
}

#[test]
fn an_interface_that_is_down_takes_nothing_whatever_socket_is_open() {
    let mut pair = Pair::connected();
    let sealed = pair.seal_at_a(b"x");
    let cookie = |tunnel: &mut Tunnel, now| {
        tunnel.start_handshake(PEER, now);
        let initiation = tunnel.poll_transmit().expect("an initiation");
        let mut reply = [0; wireguard::COOKIE_REPLY];
        reply[0] = 3;
        reply[4..8].copy_from_slice(&initiation.bytes()[4..8]);
        reply
    };
    pair.now += 6 * SECOND;
    let reply = cookie(&mut pair.b, pair.now);
    pair.b.set_running(false, pair.now);
    // Its sessions have not been ended yet.
    assert!(pair.b.is_renewing());
    pair.a.start_handshake(PEER, pair.now);
    let initiation = pair.a.poll_transmit().expect("an initiation");
    let before = pair.b.stats(PEER);
    for datagram in [&sealed, initiation.bytes(), &reply] {
        assert_eq!(open(&mut pair.b, datagram, A_OUTSIDE, pair.now), Err(Cause::TunDown));
    }
    assert!(pair.b.poll_transmit().is_none() && pair.b.stats(PEER) == before);
    pair.b.set_running(true, pair.now);
    assert_eq!(open(&mut pair.b, initiation.bytes(), A_OUTSIDE, pair.now), Ok(None));
}

#[test]
fn a_persistent_keepalive_begins_and_ends_while_running() {
    let mut pair = Pair::new();
    pair.pass(10 * SECOND);
    assert!(pair.a.ready(PEER, pair.now).is_none());
    pair.a.set_persistent_keepalive(PEER, 25, pair.now);
    pair.pass(SECOND / 5);
    assert!(pair.a.ready(PEER, pair.now).is_some());
    pair.a.set_persistent_keepalive(PEER, 0, pair.now);
    assert_eq!(pair.a.view(PEER).expect("a peer").persistent_keepalive, 0);
    let sent = pair.a.stats(PEER).sent_message_bytes;
    pair.pass(60 * SECOND);
    assert_eq!(pair.a.stats(PEER).sent_message_bytes, sent);
}

#[test]
fn both_ends_count_the_same_bytes_with_handshakes_and_keepalives() {
    let mut pair = Pair::with(|b_of_a, _| b_of_a.persistent_keepalive = Some(5));
    for _ in 0..200 {
        pair.pass(SECOND);
        pair.exchange();
    }
    let (a, b) = (pair.a.stats(PEER), pair.b.stats(PEER));
    assert_eq!(a.sent_message_bytes, b.received_message_bytes);
    assert_eq!(b.sent_message_bytes, a.received_message_bytes);
    // A response; a packet of 25 bytes padded to 32, in a message of 64.
    assert!(b.sent_message_bytes >= 92 && a.sent_message_bytes >= 148 + 200 * 64);
}

#[test]
fn every_peer_is_met_once_while_others_come_and_go() {
    let now = Instant::now();
    let mut tunnel = tunnel(1, (2..12).map(|seed| peer(seed, &[], None)).collect(), now);
    let mut met = Vec::new();
    let mut last = None;
    while let Some(index) = tunnel.next_peer(last) {
        met.push(tunnel.view(index).expect("a peer").public_key);
        if met.len() == 3 {
            tunnel.remove_peer(PeerIndex(5));
            tunnel.remove_peer(index);
            tunnel.add_peer(&peer(40, &[], None), now);
        }
        last = Some(index);
    }
    let stayed: Vec<_> = (2..12).filter(|seed| *seed != 7).map(public).collect();
    assert!(stayed.iter().all(|key| met.iter().filter(|other| *other == key).count() == 1), "{met:?}");
}
