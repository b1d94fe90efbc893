//! Two endpoints back to back on virtual time. W numbers are those of the abuse catalogue these tests follow.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

mod abuse;
mod changes;
mod clocks;
mod forge;
mod indices;
mod loops;
mod outside;
mod paths;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use proptest::prelude::*;

use super::noise::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};
use super::timers::REKEY_AFTER_MESSAGES;
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const A_INSIDE: &str = "10.0.0.1";
const B_INSIDE: &str = "10.0.0.2";

fn path(address: &str) -> Path {
    Path::Direct { to: address.parse().expect("address"), from: None }
}

fn secret(seed: u8) -> SecretKey {
    SecretKey::new([seed; 32]).clamped()
}

fn peer(seed: u8, allowed_ips: &[&str], endpoint: Option<&str>) -> PeerConfig {
    PeerConfig {
        public_key: noise::public_key(&secret(seed)),
        preshared_key: None,
        allowed_ips: allowed_ips.iter().map(|net| net.parse().expect("prefix")).collect(),
        path: endpoint.map(path),
        awaits_path: false,
        persistent_keepalive: None,
    }
}

fn tunnel(seed: u8, peers: Vec<PeerConfig>, now: Instant) -> Tunnel {
    let config = TunnelConfig {
        private_key: secret(seed),
        mtu: 1_420,
        peers,
        seed: seed.into(),
        cookie_secret: [seed; 32],
    };
    Tunnel::new(&config, now)
}

/// An IPv4 or IPv6 packet with `payload` behind its header.
fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = match (source.parse().expect("address"), destination.parse().expect("address")) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
            header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
            header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        mixed => panic!("{mixed:?}"),
    };
    bytes.extend(payload);
    bytes
}

/// Two endpoints and the way between them; each sees the other at the address below.
struct Pair {
    a: Tunnel,
    b: Tunnel,
    now: Instant,
}

const A_OUTSIDE: &str = "192.0.2.1:1000";
const B_OUTSIDE: &str = "192.0.2.2:2000";
const PEER: PeerIndex = PeerIndex(0);

impl Pair {
    /// Only `a` knows where the other is.
    fn new() -> Self {
        Self::with(|_, _| ())
    }

    fn with(change: impl FnOnce(&mut PeerConfig, &mut PeerConfig)) -> Self {
        let now = Instant::now();
        let mut b_of_a = peer(2, &["10.0.0.2/32", "fd00::2/128"], Some(B_OUTSIDE));
        let mut a_of_b = peer(1, &["10.0.0.1/32", "fd00::1/128"], None);
        change(&mut b_of_a, &mut a_of_b);
        Self { a: tunnel(1, vec![b_of_a], now), b: tunnel(2, vec![a_of_b], now), now }
    }

    fn connected() -> Self {
        let mut pair = Self::new();
        assert_eq!(pair.exchange(), vec![packet(A_INSIDE, B_INSIDE, b"hello")]);
        pair
    }

    /// Sends a packet from `a` and lets control messages pass; what arrives at `b`.
    fn exchange(&mut self) -> Vec<Vec<u8>> {
        let inner = packet(A_INSIDE, B_INSIDE, b"hello");
        let mut arrived = Vec::new();
        match try_seal(&mut self.a, &inner, self.now) {
            Some(sealed) => arrived.extend(self.at_b(&sealed)),
            None => self.a.stage(PEER, &inner, self.now),
        }
        arrived.extend(self.settle());
        arrived
    }

    /// Carries control messages and staged packets both ways until there are none; what arrives at `b`.
    fn settle(&mut self) -> Vec<Vec<u8>> {
        let mut at_b = Vec::new();
        for _ in 0..20 {
            for message in outgoing(&mut self.a, self.now) {
                at_b.extend(self.at_b(&message));
            }
            for message in outgoing(&mut self.b, self.now) {
                self.at_a(&message);
            }
        }
        at_b
    }

    fn at_b(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        open(&mut self.b, datagram, A_OUTSIDE, self.now).ok().flatten()
    }

    fn at_a(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        open(&mut self.a, datagram, B_OUTSIDE, self.now).ok().flatten()
    }

    fn seal_at_a(&mut self, payload: &[u8]) -> Vec<u8> {
        try_seal(&mut self.a, &packet(A_INSIDE, B_INSIDE, payload), self.now).expect("a session")
    }

    /// Moves time on in steps of a tenth of a second, with timers and traffic of their own.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + SECOND / 10);
            self.a.handle_timeout(self.now);
            self.b.handle_timeout(self.now);
            self.settle();
        }
    }
}

fn try_seal(tunnel: &mut Tunnel, inner: &[u8], now: Instant) -> Option<Vec<u8>> {
    let index = tunnel.route(inner).expect("a route");
    tunnel.ready(index, now)?;
    let mut stack = Packet::new();
    stack.copy_from(inner).expect("fits");
    tunnel.pad(&mut stack);
    let mut sealed = vec![0; Tunnel::sealed_len(stack.len())];
    assert!(tunnel.seal(index, stack.as_slice(), &mut sealed, now));
    Some(sealed)
}

/// Control messages first, then staged packets.
fn outgoing(tunnel: &mut Tunnel, now: Instant) -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> =
        std::iter::from_fn(|| tunnel.poll_transmit()).map(|message| message.bytes().to_vec()).collect();
    let mut stack = Packet::new();
    while let Some(index) = tunnel.poll_staged(&mut stack, now) {
        tunnel.pad(&mut stack);
        let mut sealed = vec![0; Tunnel::sealed_len(stack.len())];
        assert!(tunnel.seal(index, stack.as_slice(), &mut sealed, now));
        messages.push(sealed);
    }
    messages
}

/// The packet inside, `None` for control; or the cause of its loss, checked against the counters.
fn open(tunnel: &mut Tunnel, datagram: &[u8], from: &str, now: Instant) -> Result<Option<Vec<u8>>, Cause> {
    let before = tunnel.drops().clone();
    let mut stack = Packet::new();
    let opened = tunnel.open(datagram, path(from), &mut stack, now);
    let lost = tunnel.drops().total() - before.total();
    match opened {
        Opened::Packet(_) => {
            assert_eq!(lost, 0);
            Ok(Some(stack.as_slice().to_vec()))
        }
        Opened::Consumed => {
            assert_eq!(lost, 0);
            Ok(None)
        }
        Opened::Dropped(cause) => {
            assert_eq!((lost, tunnel.drops().get(cause) - before.get(cause)), (1, 1));
            Err(cause)
        }
    }
}

#[test]
fn a_staged_packet_starts_the_handshake_and_follows_it() {
    let mut pair = Pair::new();
    assert_eq!(pair.exchange(), vec![packet(A_INSIDE, B_INSIDE, b"hello")]);
    assert_eq!(pair.b.path(PEER), Some(path(A_OUTSIDE)), "the responder learns the path");

    let answer = packet("fd00::2", "fd00::1", &[7; 1_000]);
    let sealed = try_seal(&mut pair.b, &answer, pair.now).expect("the session was confirmed");
    assert_eq!(pair.at_a(&sealed), Some(answer));
    assert_eq!(pair.a.stats(PEER).received_packets, 1);
    assert_eq!(pair.b.stats(PEER).received_bytes, 25);
    assert_eq!(pair.a.drops().total() + pair.b.drops().total(), 0);
}

#[test]
fn the_responder_sends_nothing_before_the_session_is_confirmed() {
    let mut pair = Pair::new();
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"x"), pair.now);
    let initiation = outgoing(&mut pair.a, pair.now).remove(0);
    pair.at_b(&initiation);
    let inner = packet(B_INSIDE, A_INSIDE, b"y");
    assert_eq!(try_seal(&mut pair.b, &inner, pair.now), None);
    pair.b.stage(PEER, &inner, pair.now);
    // The response, and an initiation of its own; the answer to either brings a session for both.
    let messages = outgoing(&mut pair.b, pair.now);
    assert_eq!(messages[0].len(), 92);
    for message in &messages {
        pair.at_a(message);
    }
    assert_eq!(pair.settle(), vec![packet(A_INSIDE, B_INSIDE, b"x")]);
    assert_eq!(pair.a.stats(PEER).received_packets, 1);
}

#[test]
fn preshared_keys_must_agree() {
    let agree = |ours: Option<u8>, theirs: Option<u8>| {
        let mut pair = Pair::with(|b_of_a, a_of_b| {
            b_of_a.preshared_key = ours.map(secret);
            a_of_b.preshared_key = theirs.map(secret);
        });
        !pair.exchange().is_empty()
    };
    assert!(agree(Some(5), Some(5)));
    assert!(!agree(Some(5), Some(6)));
    assert!(!agree(Some(5), None));
}

#[test]
fn packets_are_padded_to_16_but_not_beyond_the_mtu_and_trimmed_again() {
    let mut pair = Pair::connected();
    for (len, sealed_len) in [(21, 32 + 32), (32, 32 + 32), (1_409, 1_420 + 32), (1_420, 1_420 + 32)] {
        let inner = packet(A_INSIDE, B_INSIDE, &vec![9; len - 20]);
        let sealed = try_seal(&mut pair.a, &inner, pair.now).expect("a session");
        assert_eq!(sealed.len(), sealed_len);
        assert_eq!(pair.at_b(&sealed), Some(inner));
    }
    // W22: more padding than anyone needs.
    let mut padded = packet(A_INSIDE, B_INSIDE, b"z");
    let inner = padded.clone();
    padded.resize(1_000, 0);
    let mut sealed = vec![0; 1_032];
    assert!(pair.a.seal(PEER, &padded, &mut sealed, pair.now));
    assert_eq!(pair.at_b(&sealed), Some(inner));
}

#[test]
fn the_initiator_rekeys_after_120_seconds_without_losing_a_packet() {
    let mut pair = Pair::connected();
    let old = pair.seal_at_a(b"late, from the old session");
    let session_of = |sealed: &[u8]| sealed[4..8].to_vec();
    for second in 1..=150 {
        pair.now += SECOND;
        pair.a.handle_timeout(pair.now);
        pair.b.handle_timeout(pair.now);
        assert_eq!(pair.exchange().len(), 1, "second {second}");
        let fresh = session_of(&pair.seal_at_a(b"")) != session_of(&old);
        assert_eq!(fresh, second >= 120, "second {second}");
    }
    let newest = session_of(&pair.seal_at_a(b""));
    assert_eq!(pair.at_b(&old), Some(packet(A_INSIDE, B_INSIDE, b"late, from the old session")));
    // The late packet does not make anyone return to the old session.
    let back = try_seal(&mut pair.b, &packet(B_INSIDE, A_INSIDE, b"x"), pair.now).expect("a session");
    assert!(pair.at_a(&back).is_some());
    assert_eq!(session_of(&pair.seal_at_a(b"")), newest);
    assert_eq!(pair.a.drops().total() + pair.b.drops().total(), 0);
}

#[test]
fn a_session_is_refused_from_180_seconds_on_even_when_no_timer_ran() {
    let mut pair = Pair::connected();
    let start = pair.now;
    let sealed = pair.seal_at_a(b"x");
    let in_time = pair.seal_at_a(b"y");

    let almost = start + REJECT_AFTER_TIME - Duration::from_millis(1);
    assert!(open(&mut pair.b, &in_time, A_OUTSIDE, almost).is_ok());
    assert!(pair.a.ready(PEER, almost).is_some());

    let late = start + REJECT_AFTER_TIME;
    assert_eq!(open(&mut pair.b, &sealed, A_OUTSIDE, late), Err(Cause::NoSession));
    assert_eq!(pair.a.ready(PEER, late), None);
    let mut out = [0; 64];
    assert!(!pair.a.seal(PEER, &[0; 32], &mut out, late));
    assert_eq!(out, [0; 64]);
}

#[test]
fn keys_are_wiped_when_their_time_is_over_and_what_was_heard_is_not_forgotten() {
    let mut pair = Pair::new();
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"hello"), pair.now);
    let recorded = outgoing(&mut pair.a, pair.now).remove(0);
    pair.at_b(&recorded);
    pair.settle();
    let sealed = pair.seal_at_a(b"x");
    let later = pair.now + 181 * SECOND;
    pair.b.handle_timeout(pair.now + 180 * SECOND - Duration::from_millis(1));
    assert!(pair.b.peers[PEER].noise.has_state());
    pair.b.handle_timeout(later);
    assert!(!pair.b.peers[PEER].noise.has_state());
    assert_eq!(open(&mut pair.b, &recorded, "203.0.113.9:9", later), Err(Cause::Replay));
    assert_eq!((pair.b.path(PEER), pair.b.peers[PEER].noise.has_state()), (Some(path(A_OUTSIDE)), false));
    assert_eq!(open(&mut pair.b, &sealed, A_OUTSIDE, later), Err(Cause::UnknownIndex));
    pair.now = later;
    assert_eq!(pair.exchange().len(), 1, "a new handshake works");
}

#[test]
fn no_packet_is_accepted_twice() {
    let mut pair = Pair::connected();
    let sealed: Vec<_> = (0..2_000_u32).map(|number| pair.seal_at_a(&number.to_be_bytes())).collect();
    for message in &sealed {
        assert!(pair.at_b(message).is_some());
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    for _ in 0..10_000 {
        let message = &sealed[rng.next_u32() as usize % sealed.len()];
        assert_eq!(open(&mut pair.b, message, A_OUTSIDE, pair.now), Err(Cause::Replay));
    }
}

#[test]
fn packets_may_be_reordered_within_a_window_of_8128() {
    let mut pair = Pair::connected();
    let sealed: Vec<_> = (0..8_130_u32).map(|number| pair.seal_at_a(&number.to_be_bytes())).collect();
    let mut accepted = 0;
    for message in sealed[1..].iter().rev() {
        accepted += usize::from(pair.at_b(message).is_some());
    }
    assert_eq!(accepted, 8_129, "the newest and the 8,128 before it");
    assert_eq!(open(&mut pair.b, &sealed[0], A_OUTSIDE, pair.now), Err(Cause::Replay), "one too far back");
}

#[test]
fn a_flipped_bit_changes_nothing() {
    let mut pair = Pair::connected();
    let sealed = pair.seal_at_a(&[5; 40]);
    for byte in 0..sealed.len() {
        let mut forged = sealed.clone();
        forged[byte] ^= 1 << (byte % 8);
        let cause = open(&mut pair.b, &forged, "203.0.113.9:9", pair.now).expect_err("forged");
        let expected: &[Cause] = match byte {
            0..4 => &[Cause::MalformedOuter],
            4..8 => &[Cause::UnknownIndex],
            // A flipped counter may be one seen before, or beyond the limit.
            8..16 => &[Cause::BadTag, Cause::Replay, Cause::NoSession],
            _ => &[Cause::BadTag],
        };
        assert!(expected.contains(&cause), "byte {byte}: {cause:?}");
        assert_eq!(pair.b.path(PEER), Some(path(A_OUTSIDE)), "byte {byte}");
    }
    assert!(pair.at_b(&sealed).is_some(), "the window did not move");
}

#[test]
fn lengths_at_the_edges_with_a_garbage_tag_are_dropped() {
    let mut pair = Pair::connected();
    let sealed = pair.seal_at_a(b"");
    for (len, cause) in
        [(31, Cause::MalformedOuter), (32, Cause::BadTag), (33, Cause::BadTag), (65_507, Cause::BadTag)]
    {
        let mut datagram = sealed[..16].to_vec();
        datagram.resize(len, 0xa5);
        assert_eq!(open(&mut pair.b, &datagram, A_OUTSIDE, pair.now), Err(cause), "{len}");
    }
    let mut oversized = sealed[..16].to_vec();
    oversized.resize(70_000, 0);
    assert_eq!(open(&mut pair.b, &oversized, A_OUTSIDE, pair.now), Err(Cause::Truncated));
}

#[test]
fn the_longest_datagram_passes() {
    let mut pair = Pair::connected();
    let inner = packet(A_INSIDE, B_INSIDE, &vec![3; 65_475 - 20]);
    let sealed = try_seal(&mut pair.a, &inner, pair.now).expect("a session");
    assert_eq!(sealed.len(), 65_507);
    assert_eq!(pair.at_b(&sealed), Some(inner));
}

#[test]
fn counters_end_before_they_wrap() {
    let mut pair = Pair::connected();
    let sealed = pair.seal_at_a(b"x");
    for counter in [REJECT_AFTER_MESSAGES, u64::MAX] {
        let mut forged = sealed.clone();
        forged[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(open(&mut pair.b, &forged, A_OUTSIDE, pair.now), Err(Cause::NoSession));
    }
    let mut below = sealed.clone();
    below[8..16].copy_from_slice(&(REJECT_AFTER_MESSAGES - 1).to_le_bytes());
    assert_eq!(open(&mut pair.b, &below, A_OUTSIDE, pair.now), Err(Cause::BadTag), "tried, and not ours");
    assert!(pair.at_b(&sealed).is_some());

    // W17: a worn-out sending key is not used again; the next packet waits for a new one.
    pair.a.peers[PEER].noise.set_sent(REJECT_AFTER_MESSAGES);
    pair.now += 6 * SECOND;
    assert_eq!(pair.a.ready(PEER, pair.now), None);
    assert_eq!(pair.exchange().len(), 1);
    assert_eq!(pair.seal_at_a(b"")[8..16], 2_u64.to_le_bytes(), "a new session");
}

#[test]
fn many_messages_under_one_key_start_a_handshake() {
    let mut pair = Pair::connected();
    pair.now += 6 * SECOND;
    pair.seal_at_a(b"x");
    assert!(pair.a.poll_transmit().is_none());
    pair.a.peers[PEER].noise.set_sent(REKEY_AFTER_MESSAGES);
    // The count is looked at once in a batch, which has one time.
    pair.seal_at_a(b"still good");
    assert!(pair.a.poll_transmit().is_none());
    pair.now += Duration::from_micros(1);
    pair.seal_at_a(b"still good");
    assert_eq!(pair.a.poll_transmit().map(|message| message.bytes().len()), Some(148));
    pair.seal_at_a(b"still good");
    assert!(pair.a.poll_transmit().is_none(), "one is enough");
}

#[test]
fn timers_hear_of_every_change_between_sending_and_receiving_within_a_batch() {
    let mut pair = Pair::connected();
    pair.now += SECOND;
    let answers: Vec<_> =
        (0..2).map(|_| try_seal(&mut pair.b, &packet(B_INSIDE, A_INSIDE, b"x"), pair.now)).collect();
    let mut stack = Packet::new();
    // Sent, received, sent: what was sent last is unanswered.
    pair.seal_at_a(b"first");
    for answer in answers {
        let outcome = pair.a.open(&answer.expect("a session"), path("192.0.2.2:2"), &mut stack, pair.now);
        assert!(matches!(outcome, Opened::Packet(_)), "{outcome:?}");
    }
    pair.seal_at_a(b"second");
    pair.a.handle_timeout(pair.now + 14 * SECOND);
    assert!(pair.a.poll_transmit().is_none(), "neither a keepalive nor, before 15 s, a handshake");
    pair.a.handle_timeout(pair.now + 16 * SECOND);
    assert_eq!(pair.a.poll_transmit().map(|message| message.bytes().len()), Some(148));
}

#[test]
fn the_inner_source_must_belong_to_the_peer() {
    let mut pair = Pair::connected();
    for source in ["10.0.0.3", "10.0.0.2", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        let sealed = try_seal(&mut pair.a, &packet(source, B_INSIDE, b"x"), pair.now).expect("a session");
        let outcome = open(&mut pair.b, &sealed, "192.0.2.77:7", pair.now);
        assert_eq!(outcome, Err(Cause::AllowedIps), "{source}");
        assert_eq!(pair.b.path(PEER), Some(path("192.0.2.77:7")), "authentic, so it may roam");
    }
}

#[test]
fn inner_packets_that_lie_are_dropped() {
    let mut pair = Pair::connected();
    let good = packet(A_INSIDE, B_INSIDE, &[0; 20]);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let lies = [
        changed(&|bytes| bytes.truncate(19)),
        changed(&|bytes| bytes[0] = 0x44),
        changed(&|bytes| bytes[0] = 0x4f),
        changed(&|bytes| bytes[0] = 0x05),
        changed(&|bytes| bytes[0] = 0x55),
        changed(&|bytes| bytes[0] = 0xf5),
        changed(&|bytes| bytes[2..4].copy_from_slice(&41_u16.to_be_bytes())),
        changed(&|bytes| bytes[2..4].copy_from_slice(&19_u16.to_be_bytes())),
        changed(&|bytes| bytes[2..4].fill(0)),
        packet("fd00::1", "fd00::2", b"")[..39].to_vec(),
        vec![0],
    ];
    for lie in lies {
        let mut sealed = vec![0; lie.len() + 32];
        assert!(pair.a.seal(PEER, &lie, &mut sealed, pair.now));
        assert_eq!(open(&mut pair.b, &sealed, A_OUTSIDE, pair.now), Err(Cause::MalformedInner), "{lie:?}");
    }
    assert_eq!(pair.exchange().len(), 1);
}

#[test]
fn authentic_packets_roam_and_their_replays_do_not() {
    let mut pair = Pair::connected();
    let first = pair.seal_at_a(b"1");
    assert!(open(&mut pair.b, &first, "198.51.100.1:5", pair.now).is_ok());
    assert_eq!(pair.b.path(PEER), Some(path("198.51.100.1:5")));
    assert_eq!(open(&mut pair.b, &first, "203.0.113.9:9", pair.now), Err(Cause::Replay));
    assert_eq!(pair.b.path(PEER), Some(path("198.51.100.1:5")));
    let second = pair.seal_at_a(b"2");
    assert!(pair.at_b(&second).is_some());
    assert_eq!(pair.b.path(PEER), Some(path(A_OUTSIDE)), "the next packet roams back");

    // Packets come over a relay, or to another of our addresses: answers follow.
    let from: IpAddr = Ipv4Addr::new(192, 0, 2, 200).into();
    let remote: SocketAddr = A_OUTSIDE.parse().expect("address");
    for way in [Path::Direct { to: remote, from: Some(from) }, Path::Relayed { peer: remote }] {
        let sealed = pair.seal_at_a(b"3");
        let mut stack = Packet::new();
        assert_eq!(pair.b.open(&sealed, way, &mut stack, pair.now), Opened::Packet(PEER));
        assert_eq!(pair.b.path(PEER), Some(way));
    }
}

#[test]
fn messages_that_do_not_arrive_are_missed_until_they_come() {
    let mut pair = Pair::connected();
    let missing = |pair: &Pair| pair.b.stats(PEER).missing_messages;
    let sealed: Vec<_> = (0..6).map(|number| pair.seal_at_a(&[number])).collect();
    for (place, expected) in [(0, 0), (3, 2), (1, 1), (2, 0), (5, 1)] {
        assert!(pair.at_b(&sealed[place]).is_some());
        assert_eq!(missing(&pair), expected, "behind message {place}");
    }
    // Seen twice it arrives once, and what is no message of the peer's counts for nothing.
    let mut forged = sealed[4].clone();
    *forged.last_mut().expect("bytes") ^= 1;
    assert_eq!((pair.at_b(&sealed[5]), pair.at_b(&forged)), (None, None));
    assert_eq!(missing(&pair), 1);
    // A new session begins its own count; what the old one missed stays missed.
    pair.pass(125 * SECOND);
    pair.exchange();
    assert_eq!(missing(&pair), 1);
}

#[test]
fn a_replayed_initiation_changes_nothing() {
    let mut pair = Pair::new();
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"x"), pair.now);
    let initiation = outgoing(&mut pair.a, pair.now).remove(0);
    pair.at_b(&initiation);
    pair.settle();
    let path_before = pair.b.path(PEER);
    assert_eq!(open(&mut pair.b, &initiation, "203.0.113.9:9", pair.now), Err(Cause::RateLimited));
    let later = pair.now + SECOND;
    assert_eq!(open(&mut pair.b, &initiation, "203.0.113.9:9", later), Err(Cause::Replay));
    assert_eq!(pair.b.path(PEER), path_before);
    assert!(pair.b.poll_transmit().is_none(), "no answer");
    assert_eq!(pair.exchange().len(), 1);
}

#[test]
fn strangers_and_unsolicited_messages_are_dropped() {
    let mut pair = Pair::connected();
    // A valid handshake of somebody who is not configured.
    let mut stranger = tunnel(9, vec![peer(2, &["10.0.0.2/32"], Some(B_OUTSIDE))], pair.now);
    stranger.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"x"), pair.now);
    let initiation = outgoing(&mut stranger, pair.now).remove(0);
    assert_eq!(open(&mut pair.b, &initiation, "203.0.113.9:9", pair.now), Err(Cause::BadTag));

    let own_index = pair.seal_at_a(b"")[4..8].to_vec();
    for (kind, len) in [(2_u8, 92), (3, 64), (4, 32)] {
        let mut datagram = vec![0; len];
        datagram[0] = kind;
        let outcome = open(&mut pair.b, &datagram, "203.0.113.9:9", pair.now);
        assert_eq!(outcome, Err(Cause::UnknownIndex), "type {kind}, index of nobody");
        let index_at = if kind == 2 { 8 } else { 4 };
        datagram[index_at..index_at + 4].copy_from_slice(&own_index);
        assert!(open(&mut pair.b, &datagram, "203.0.113.9:9", pair.now).is_err(), "type {kind}");
        assert_eq!(pair.b.path(PEER), Some(path(A_OUTSIDE)));
    }
    assert!(pair.b.poll_transmit().is_none());
}

#[test]
fn an_initiation_with_a_low_order_key_is_refused() {
    let mut pair = Pair::new();
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"x"), pair.now);
    let mut initiation = outgoing(&mut pair.a, pair.now).remove(0);
    initiation[8..40].fill(0);
    assert_eq!(open(&mut pair.b, &initiation, A_OUTSIDE, pair.now), Err(Cause::BadTag));
}

/// Uses up what a tunnel takes without cookies, by a handshake message from many addresses. How many that needs depends on how fast
/// this machine is.
fn make_busy(tunnel: &mut Tunnel, noise: &[u8], now: Instant) {
    for host in 0..1 << 16 {
        let from = format!("198.18.{}.{}:9", host >> 8, host & 255);
        // What comes of it does not matter.
        let _ = open(tunnel, noise, &from, now);
        while tunnel.poll_transmit().is_some() {}
        if tunnel.limiter.left() <= 0 {
            return;
        }
    }
    panic!("{} ns are left", tunnel.limiter.left());
}

#[test]
fn a_handshake_under_load_succeeds_by_a_cookie_that_does_not_roam() {
    let mut pair = Pair::new();
    let mut flood = tunnel(9, vec![peer(2, &["10.0.0.2/32"], Some(B_OUTSIDE))], pair.now);
    flood.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"x"), pair.now);
    let noise = outgoing(&mut flood, pair.now).remove(0);
    make_busy(&mut pair.b, &noise, pair.now);
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"hello"), pair.now);
    let initiation = outgoing(&mut pair.a, pair.now).remove(0);
    assert_eq!(pair.at_b(&initiation), None);
    let cookie = outgoing(&mut pair.b, pair.now).remove(0);
    assert_eq!(cookie.len(), 64);
    assert_eq!(open(&mut pair.a, &cookie, "203.0.113.9:9", pair.now), Ok(None));
    assert_eq!(pair.a.path(PEER), Some(path(B_OUTSIDE)), "a cookie reply does not roam");

    pair.now += 6 * SECOND;
    make_busy(&mut pair.b, &noise, pair.now);
    pair.a.handle_timeout(pair.now);
    assert_eq!(pair.settle(), vec![packet(A_INSIDE, B_INSIDE, b"hello")]);
}

#[test]
fn both_may_start_at_once() {
    let mut pair = Pair::with(|_, a_of_b| a_of_b.path = Some(path(A_OUTSIDE)));
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"from a"), pair.now);
    pair.b.stage(PEER, &packet(B_INSIDE, A_INSIDE, b"from b"), pair.now);
    let of_a = outgoing(&mut pair.a, pair.now);
    let of_b = outgoing(&mut pair.b, pair.now);
    for message in &of_a {
        pair.at_b(message);
    }
    for message in &of_b {
        pair.at_a(message);
    }
    pair.settle();
    pair.pass(20 * SECOND);
    assert_eq!(pair.a.stats(PEER).received_packets, 1);
    assert_eq!(pair.b.stats(PEER).received_packets, 1);
    assert_eq!(pair.exchange().len(), 1);
}

#[test]
fn a_silent_peer_is_tried_for_90_seconds_and_packets_do_not_wait_for_ever() {
    let mut pair = Pair::new();
    let start = pair.now;
    let inner = packet(A_INSIDE, B_INSIDE, &[0; 1_000]);
    for _ in 0..10_000 {
        pair.a.stage(PEER, &inner, start);
    }
    assert_eq!(pair.a.drops().get(Cause::StagedFull), 10_000 - 128);
    let mut initiations = 0;
    while let Some(next) = pair.a.poll_timeout() {
        assert!(pair.now - start < 1_000 * SECOND, "timers must come to an end");
        pair.now = next;
        initiations += std::iter::from_fn(|| pair.a.poll_transmit()).count();
        pair.a.handle_timeout(pair.now);
    }
    assert_eq!(initiations, 18);
    assert_eq!(pair.a.drops().get(Cause::StagedExpired), 128);
    assert_eq!(pair.a.drops().total(), 10_000);
    assert_eq!(pair.exchange().len(), 1, "a new packet tries again");
}

#[test]
fn received_data_is_answered_by_a_keepalive() {
    let mut pair = Pair::connected();
    pair.pass(SECOND);
    let sent = |tunnel: &mut Tunnel, now| {
        tunnel.handle_timeout(now);
        outgoing(tunnel, now).iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(sent(&mut pair.b, pair.now + 8 * SECOND), Vec::<usize>::new());
    let keepalive_at = pair.now + 9 * SECOND;
    assert_eq!(sent(&mut pair.b, keepalive_at), [32]);
    assert_eq!(sent(&mut pair.b, keepalive_at + 100 * SECOND), Vec::<usize>::new(), "only once");
}

#[test]
fn data_without_an_answer_starts_a_handshake() {
    let mut pair = Pair::connected();
    pair.pass(20 * SECOND);
    pair.seal_at_a(b"lost");
    pair.now += 15 * SECOND + Duration::from_millis(400);
    pair.a.handle_timeout(pair.now);
    let lengths: Vec<_> = outgoing(&mut pair.a, pair.now).iter().map(Vec::len).collect();
    assert_eq!(lengths, [148]);
}

#[test]
fn persistent_keepalives_bring_the_tunnel_up_and_hold_it() {
    let mut pair = Pair::with(|b_of_a, _| b_of_a.persistent_keepalive = Some(25));
    pair.pass(SECOND);
    assert!(pair.b.stats(PEER).last_handshake.is_some(), "up without any packet");
    pair.now += 23 * SECOND;
    pair.a.handle_timeout(pair.now);
    assert!(pair.a.poll_transmit().is_none());
    pair.now += 3 * SECOND;
    pair.a.handle_timeout(pair.now);
    assert_eq!(pair.a.poll_transmit().map(|message| message.bytes().len()), Some(32));
    // It stays up for both, over many sessions and with keepalives only.
    for second in 0..1_000 {
        pair.pass(SECOND);
        assert!(pair.b.ready(PEER, pair.now).is_some(), "second {second}");
    }
}

#[test]
fn a_peer_without_a_path_gets_nothing_unless_one_is_expected() {
    let mut pair = Pair::new();
    pair.b.stage(PEER, &packet(B_INSIDE, A_INSIDE, b"x"), pair.now);
    assert_eq!(pair.b.drops().get(Cause::NoEndpoint), 1);

    let mut pair = Pair::with(|b_of_a, _| {
        b_of_a.path = None;
        b_of_a.awaits_path = true;
    });
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"x"), pair.now);
    assert!(pair.a.poll_transmit().is_none());
    pair.a.set_path(PEER, Some(path(B_OUTSIDE)), pair.now);
    assert_eq!(pair.settle(), vec![packet(A_INSIDE, B_INSIDE, b"x")]);
}

#[test]
fn many_peers_are_served_in_bounded_portions() {
    let start = Instant::now();
    let peers = (0..1_000_u32)
        .map(|number| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            PeerConfig {
                public_key: noise::public_key(&SecretKey::new(key)),
                persistent_keepalive: Some(25),
                ..peer(2, &[], Some(B_OUTSIDE))
            }
        })
        .collect();
    let mut tunnel = tunnel(1, peers, start);
    let mut served = 0;
    for round in 0..100 {
        tunnel.handle_timeout(start + round * SECOND / 20);
        let sent = std::iter::from_fn(|| tunnel.poll_transmit()).count();
        assert!(sent <= PEERS_AT_ONCE, "{sent} at once");
        served += sent;
    }
    assert_eq!((served, tunnel.control_overflows()), (1_000, 0));
}

#[test]
fn timers_cost_what_is_due_and_not_what_there_is() {
    const PEERS: u32 = 10_000;
    let start = Instant::now();
    let mut tunnel = tunnel(1, vec![], start);
    for number in 0..PEERS {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let config = PeerConfig { public_key: PublicKey(key), awaits_path: true, ..peer(2, &[], None) };
        let index = tunnel.add_peer(&config, start);
        // For one in a hundred something waits, 15 s from when it came.
        if number % 100 == 0 {
            tunnel.stage(index, &[0; 20], start + SECOND / 10_000 * number);
        }
    }
    let mut expired = 0;
    for millis in (0..30_000).step_by(10) {
        let (moves, lost) = (tunnel.wheel.moves, tunnel.drops().total());
        tunnel.handle_timeout(start + Duration::from_millis(millis));
        let moves = tunnel.wheel.moves - moves;
        let lost = tunnel.drops().total() - lost;
        // What is found due is moved once, and their slot of 3.2 s is divided when its time comes.
        assert!(
            moves <= 2 * lost + u64::from(PEERS / 100),
            "{moves} moves at {millis} ms for {lost} packets"
        );
        expired += lost;
    }
    assert_eq!(expired, u64::from(PEERS / 100));
    assert_eq!((tunnel.poll_timeout(), tunnel.staged_bytes), (None, 0));
    assert!(tunnel.wheel.moves <= 4 * expired, "{}", tunnel.wheel.moves);
}

proptest! {
    #[test]
    fn no_datagram_panics(
        kind in 0..6_u8,
        mut datagram in prop::collection::vec(any::<u8>(), 0..300),
        known_index in any::<bool>(),
    ) {
        let mut pair = Pair::connected();
        let index = pair.seal_at_a(b"")[4..8].to_vec();
        if datagram.len() >= 8 {
            datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
            if known_index {
                datagram[4..8].copy_from_slice(&index);
            }
        }
        prop_assert!(open(&mut pair.b, &datagram, "203.0.113.9:9", pair.now).is_err());
        prop_assert_eq!(pair.b.path(PEER), Some(path(A_OUTSIDE)));
    }
}
