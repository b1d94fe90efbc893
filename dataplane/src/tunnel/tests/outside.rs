//! What changes outside: the way to a peer, our own addresses, the clock.

use super::*;

fn from_of(tunnel: &Tunnel) -> Option<IpAddr> {
    match tunnel.path(PEER) {
        Some(Path::Direct { from, .. }) => from,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_longest_packet_is_what_the_way_carries_less_what_stands_around_it() {
    let mut pair = Pair::connected();
    let limit = |tunnel: &Tunnel| tunnel.packet_limit(PEER);
    let outside: IpAddr = "192.0.2.2".parse().expect("address");
    assert_eq!(limit(&pair.a), usize::MAX, "nothing is known");
    assert!(!pair.a.note_path_mtu(PEER, outside, 1_500), "the device's MTU fits");
    assert_eq!(limit(&pair.a), usize::MAX);
    // 1,380 - 20 - 8 - 32 is 1,320, which padding would make longer than 1,312 and so too long.
    assert!(pair.a.note_path_mtu(PEER, outside, 1_380));
    assert_eq!(limit(&pair.a), 1_312);
    assert!(pair.a.padded_len(1_312) + 60 <= 1_380);
    assert!(!pair.a.note_path_mtu(PEER, outside, 1_380), "as before");
    assert!(pair.a.note_path_mtu(PEER, outside, 60), "of nothing nothing is left");
    assert_eq!(limit(&pair.a), 0);
    // What is exactly the device's MTU is not padded.
    assert!(pair.a.note_path_mtu(PEER, outside, 1_480));
    assert_eq!(limit(&pair.a), usize::MAX);
    assert!(pair.a.note_path_mtu(PEER, outside, 1_479));
    assert_eq!(limit(&pair.a), 1_408);
    pair.a.set_path(PEER, Some(path("[2001:db8::2]:2000")), pair.now);
    assert_eq!(limit(&pair.a), usize::MAX, "another way");
    assert!(pair.a.note_path_mtu(PEER, "2001:db8::2".parse().expect("address"), 1_380));
    assert_eq!(limit(&pair.a), 1_296);
    let relay: IpAddr = "192.0.2.3".parse().expect("address");
    pair.a.set_path(PEER, Some(Path::Relayed { peer: B_OUTSIDE.parse().expect("address") }), pair.now);
    assert!(pair.a.note_path_mtu(PEER, relay, 1_380));
    assert_eq!(limit(&pair.a), 1_312, "1,316 with the header of a channel");
    let nobody = PeerIndex(99);
    assert!(!pair.a.note_path_mtu(nobody, relay, 1_380) && !pair.a.wants_path_mtu(nobody, 1_400, pair.now));
}

#[test]
fn the_kernel_is_asked_once_a_second_and_for_long_packets_only() {
    let mut pair = Pair::connected();
    assert!(!pair.a.wants_path_mtu(PEER, 500, pair.now));
    assert!(pair.a.wants_path_mtu(PEER, 1_300, pair.now));
    let asked = (1..=3_000)
        .filter(|milliseconds| {
            pair.a.wants_path_mtu(PEER, 1_300, pair.now + Duration::from_millis(*milliseconds))
        })
        .count();
    assert_eq!(asked, 3);
}

#[test]
fn a_local_address_that_is_gone_is_forgotten_and_others_are_not() {
    let mut pair = Pair::connected();
    let local: IpAddr = "192.0.2.1".parse().expect("address");
    let path = Path::Direct { to: B_OUTSIDE.parse().expect("address"), from: Some(local) };
    pair.a.set_path(PEER, Some(path), pair.now);
    pair.a.forget_sources(|address| address != local);
    assert_eq!(from_of(&pair.a), Some(local));
    pair.a.forget_sources(|address| address == local);
    assert_eq!(from_of(&pair.a), None);
    assert!(pair.a.ready(PEER, pair.now).is_some(), "the session goes on");
}

#[test]
fn a_peer_that_does_not_answer_is_told_of_at_every_attempt_and_at_the_end() {
    let mut pair = Pair::new();
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"hello"), pair.now);
    assert!(pair.a.poll_unanswered().is_none());
    let mut told = Vec::new();
    let start = pair.now;
    for _ in 0..1_200 {
        pair.now += SECOND / 10;
        pair.a.handle_timeout(pair.now);
        outgoing(&mut pair.a, pair.now);
        told.extend(std::iter::from_fn(|| pair.a.poll_unanswered()).map(|peer| (peer, pair.now - start)));
    }
    assert_eq!(told.len(), 18, "once in five seconds, for 90: {told:?}");
    assert!(told.iter().all(|(peer, _)| *peer == PEER));
    assert!(told[0].1 >= 5 * SECOND && told[0].1 <= 6 * SECOND, "{told:?}");
}

/// Each packet begins the count of attempts anew, and sends the initiation that the timer would have sent a little later.
#[test]
fn a_peer_that_does_not_answer_is_told_of_under_traffic_too() {
    let mut pair = Pair::new();
    let (start, mut asked) = (pair.now, Vec::new());
    let log = logged(|| {
        for tenths in 0..2_000 {
            pair.now = start + tenths * SECOND / 10;
            pair.a.handle_timeout(pair.now);
            pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"hello"), pair.now);
            outgoing(&mut pair.a, pair.now);
            asked.extend(std::iter::from_fn(|| pair.a.poll_unanswered()).map(|_| pair.now - start));
            if pair.now - start == 89 * SECOND {
                tracing::warn!("89 seconds are over");
            }
        }
    });
    assert!((35..=40).contains(&asked.len()), "once in five seconds, for 200: {asked:?}");
    let lines: Vec<bool> = log.lines().map(|line| line.contains("no answer from the peer")).collect();
    assert_eq!(lines, [false, true], "after 90 seconds, once: {log}");

    // An answer ends that, and what comes after is counted from its own beginning.
    let log = logged(|| {
        pair.now += 10 * SECOND;
        assert!(!pair.exchange().is_empty());
        pair.pass(80 * SECOND);
    });
    assert_eq!(log, "");
}

/// What is logged meanwhile, from WARN on.
fn logged(work: impl FnOnce()) -> String {
    let file = tempfile::tempfile().expect("a file");
    let writer = file.try_clone().expect("a descriptor");
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.try_clone().expect("a descriptor"))
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    std::io::Seek::rewind(&mut &file).expect("a file");
    std::io::read_to_string(file).expect("text")
}

#[test]
fn nobody_has_to_ask_for_peers_that_do_not_answer() {
    let mut pair = Pair::with(|b, _| b.persistent_keepalive = Some(25));
    for _ in 0..20_000 {
        pair.now += SECOND;
        pair.a.handle_timeout(pair.now);
        outgoing(&mut pair.a, pair.now);
    }
    let told = std::iter::from_fn(|| pair.a.poll_unanswered()).count();
    assert!((100..=CONTROL_MAX).contains(&told), "{told}");
}

#[test]
fn a_clock_that_jumps_or_stands_still_ends_no_tunnel() {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let mut pair = Pair::connected();
    for jump in [200 * SECOND, 600 * SECOND, YEAR, 10 * YEAR] {
        // As after a suspend: both have slept, or one of them has.
        pair.now += jump;
        pair.a.handle_timeout(pair.now);
        pair.b.handle_timeout(pair.now);
        pair.settle();
        // The first attempt after it, or the next within one handshake's time.
        let arrived = (0..60).any(|_| {
            let arrived = pair.exchange();
            pair.pass(SECOND / 10);
            !arrived.is_empty()
        });
        assert!(arrived, "nothing passes after {jump:?}");
    }
    let before = pair.now;
    for back in [SECOND, 300 * SECOND] {
        // Instants never go back; should they, it is as if no time had passed.
        pair.now = before - back;
        pair.a.handle_timeout(pair.now);
        pair.b.handle_timeout(pair.now);
        assert!(!pair.exchange().is_empty(), "{back:?}");
    }
}
