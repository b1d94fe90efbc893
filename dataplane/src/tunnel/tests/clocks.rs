//! Clocks that jump: the time of day is set, and the machine sleeps.

use std::cell::Cell;

use super::*;

thread_local! {
    /// The time of day, and how long the machine has slept, where a test says so.
    static WALL: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A pair of which `a` lives by these clocks.
fn connected() -> Pair {
    WALL.set(50 * YEAR);
    SLEPT.set(Duration::ZERO);
    let mut pair = Pair::new();
    pair.a.world.wall = || WALL.get();
    pair.a.world.slept = || SLEPT.get();
    assert_eq!(pair.exchange().len(), 1);
    pair
}

/// The session that `a` seals under.
fn session(pair: &mut Pair) -> [u8; 4] {
    pair.seal_at_a(b"")[4..8].try_into().expect("an index")
}

#[test]
fn handshakes_go_on_when_the_time_of_day_goes_back_or_far_ahead() {
    let mut pair = connected();
    let before = session(&mut pair);
    // An hour back, to before 1970, ten years ahead, and back again.
    for wall in [50 * YEAR - 3_600 * SECOND, Duration::ZERO, 60 * YEAR, 50 * YEAR] {
        WALL.set(wall);
        // Time for a new session of either end, whoever begins it.
        pair.pass(121 * SECOND);
        assert_eq!(pair.exchange(), [packet(A_INSIDE, B_INSIDE, b"hello")], "{wall:?}");
        pair.pass(SECOND);
        let now = session(&mut pair);
        assert_ne!(now, before, "{wall:?}");
        // All sessions end and everything is let go, but for what had been said last.
        pair.pass(500 * SECOND);
        assert!(!pair.a.peers[PEER].noise.has_state() && !pair.b.peers[PEER].noise.has_state());
        WALL.set(wall.saturating_sub(YEAR));
        assert_eq!(pair.exchange(), [packet(A_INSIDE, B_INSIDE, b"hello")], "after a rest, {wall:?}");
    }
    assert_eq!((pair.a.drops().total(), pair.b.drops().total()), (0, 0));
}

#[test]
fn a_session_grows_old_while_the_machine_sleeps() {
    let mut pair = connected();
    let before = session(&mut pair);
    pair.pass(59 * SECOND);
    // 59 s awake and 120 s asleep are 179.
    SLEPT.set(120 * SECOND);
    pair.now += SECOND - Duration::from_millis(1);
    assert_eq!(session(&mut pair), before);
    SLEPT.set(122 * SECOND);
    pair.now += SECOND;
    // One handshake later it goes on, without a packet lost.
    assert_eq!(pair.a.ready(PEER, pair.now), None);
    assert_eq!(pair.exchange(), [packet(A_INSIDE, B_INSIDE, b"hello")]);
    assert_ne!(session(&mut pair), before);
}

#[test]
fn after_sleep_a_peer_is_called_where_only_keepalives_are_sent() {
    let mut pair = Pair::with(|b_of_a, _| b_of_a.persistent_keepalive = Some(5));
    WALL.set(50 * YEAR);
    SLEPT.set(Duration::ZERO);
    pair.a.world.wall = || WALL.get();
    pair.a.world.slept = || SLEPT.get();
    let other = pair.a.add_peer(&peer(3, &["10.0.0.3/32"], None), pair.now);
    let idle = forge::Session::new(3, 1, &mut pair.a, "192.0.2.3:3", pair.now);
    let inner = packet("10.0.0.3", A_INSIDE, b"confirms");
    assert_eq!(open(&mut pair.a, &idle.seal(0, &inner), "192.0.2.3:3", pair.now), Ok(Some(inner)));
    pair.pass(20 * SECOND);
    assert!(pair.b.ready(PEER, pair.now).is_some());
    // An hour later the far end has forgotten the session long since.
    pair.b = tunnel(2, vec![peer(1, &["10.0.0.1/32", "fd00::1/128"], None)], pair.now);
    SLEPT.set(3_600 * SECOND);
    pair.now += Duration::from_millis(20);
    pair.a.handle_timeout(pair.now);
    // Nothing of any session is left, though no packet asks for one.
    assert!(pair.a.peers[other].noise.usable(pair.now).is_none() && pair.a.peers[other].indices.is_empty());
    pair.a.handle_timeout(pair.now);
    pair.settle();
    assert!(pair.b.ready(PEER, pair.now).is_some(), "the handshake is over");
    assert_eq!(pair.b.drops().total(), 0, "nothing was sent under the old session");
}

#[test]
fn short_sleeps_add_up() {
    let mut pair = connected();
    let before = session(&mut pair);
    for tenths in 1..=1_799 {
        SLEPT.set(SECOND / 10 * tenths);
        pair.now += Duration::from_millis(10);
        pair.a.handle_timeout(pair.now);
        // 18 s awake.
        let outlived = SECOND / 10 * tenths + Duration::from_millis(10) * tenths >= 180 * SECOND;
        if pair.a.ready(PEER, pair.now).is_none() {
            assert!(outlived, "after {tenths} tenths of a second");
            return;
        }
        assert_eq!(session(&mut pair), before);
        // A second of sleep later at most.
        assert!(tenths < 1_637 + 10, "after {tenths} tenths of a second");
    }
    panic!("it lives on");
}

#[test]
fn a_machine_that_has_slept_takes_nothing_under_an_old_session_and_is_called_again() {
    let mut pair = connected();
    let old = try_seal(&mut pair.b, &packet(B_INSIDE, A_INSIDE, b"x"), pair.now);
    SLEPT.set(3_600 * SECOND);
    pair.now += 2 * SECOND;
    let outcome = open(&mut pair.a, &old.expect("a session"), B_OUTSIDE, pair.now);
    assert_eq!(outcome, Err(Cause::UnknownIndex));
    // Who is awake sends into the void for 15 s.
    try_seal(&mut pair.b, &packet(B_INSIDE, A_INSIDE, b"y"), pair.now).expect("a session");
    pair.pass(16 * SECOND);
    let answer = try_seal(&mut pair.b, &packet(B_INSIDE, A_INSIDE, b"z"), pair.now).expect("a session");
    assert!(pair.at_a(&answer).is_some());
}

#[test]
fn a_handshake_keeps_its_time_of_day_and_its_age_counts_sleep() {
    let mut pair = connected();
    let told = |pair: &Pair| {
        let handshake = pair.a.stats(PEER).last_handshake.expect("a handshake");
        (handshake.wall, pair.a.age_of(&handshake, pair.now))
    };
    assert_eq!(told(&pair), (50 * YEAR, Duration::ZERO));
    pair.now += 22 * SECOND;
    SLEPT.set(3_600 * SECOND);
    WALL.set(51 * YEAR);
    assert_eq!(told(&pair), (50 * YEAR, 3_622 * SECOND));
    pair.now += 122 * SECOND;
    pair.exchange();
    assert_eq!(told(&pair), (51 * YEAR, Duration::ZERO));
}
