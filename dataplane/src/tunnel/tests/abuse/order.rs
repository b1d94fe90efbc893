//! Counters and the age of sessions: W14 to W18, and the cases of the sliding window.

use super::*;
use crate::tunnel::tests::forge::Session;

pub(super) const ROWS: &[Row] = &[
    (14, 1_000_000, "none is accepted", replays),
    (15, 32_812, "each is accepted once, up to 8,128 late", late_packets),
    (16, 9, "refused before decryption", counters_at_the_limit),
    (17, 3, "a new handshake, and no counter twice", sending_counter_at_the_limit),
    (18, 6, "refused when a packet comes, whether timers ran or not", old_sessions),
];

/// Counters that the window tells apart: the newest and 8,128 before it, as the kernel's.
const WINDOW: u64 = 8_129;

/// What `b` says to a counter; `session` belongs to it and the third end.
fn take(b: &mut Tunnel, session: &Session, counter: u64, now: Instant) -> Result<(), Cause> {
    let inner = packet(THIRD.0, B_INSIDE, &counter.to_be_bytes());
    open(b, &session.seal(counter, &inner), THIRD.1, now).map(|found| assert_eq!(found, Some(inner)))
}

fn replays(bench: &mut Bench) {
    const PACKETS: usize = 1_000_000;
    let mut sealed = vec![[0; 48]; PACKETS];
    let mut stack = Packet::new();
    let (now, inner) = (bench.pair.now, [0; 16]);
    for message in &mut sealed {
        assert!(bench.pair.a.seal(PEER, &inner, message, now));
        // Authentic, and no IP packet inside.
        let outcome = bench.pair.b.open(message, path(A_OUTSIDE), &mut stack, now);
        assert_eq!(outcome, Opened::Dropped(Cause::MalformedInner));
    }
    // What was sealed before those is too late by now; this is as new as they are.
    bench.hold();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(14);
    let before = picture(&bench.pair.b);
    for last in (0..PACKETS).rev() {
        sealed.swap(last, rng.next_u64() as usize % (last + 1));
        let outcome = bench.pair.b.open(&sealed[last], path(STRANGER), &mut stack, now);
        assert_eq!(outcome, Opened::Dropped(Cause::Replay));
        bench.inputs += 1;
    }
    assert_eq!(picture(&bench.pair.b), before);
}

fn late_packets(bench: &mut Bench) {
    let (session, now) = (bench.third(), bench.pair.now);
    let b = &mut bench.pair.b;
    let mut base = 0;
    for late in 1..WINDOW + 100 {
        let accepted = if late < WINDOW { Ok(()) } else { Err(Cause::Replay) };
        for (counter, expected) in [
            (base + late, Ok(())),
            (base, accepted),
            (base, Err(Cause::Replay)),
            (base + late, Err(Cause::Replay)),
        ] {
            // Beyond the window nothing new is learnt from the second look.
            if late >= WINDOW && counter == base + late && expected.is_err() {
                continue;
            }
            assert_eq!(take(b, &session, counter, now), expected, "{late} late, counter {counter}");
            bench.inputs += 1;
        }
        base += 4 * WINDOW;
    }
}

fn counters_at_the_limit(bench: &mut Bench) {
    let (session, now) = (bench.third(), bench.pair.now);
    let b = &mut bench.pair.b;
    let inner = packet(THIRD.0, B_INSIDE, b"x");
    let mut garbage = session.seal(5, &inner);
    for (counter, expected) in [
        (0, Ok(())),
        (REJECT_AFTER_MESSAGES, Err(Cause::NoSession)),
        (REJECT_AFTER_MESSAGES + 1, Err(Cause::NoSession)),
        (REJECT_AFTER_MESSAGES - 1, Ok(())),
        (REJECT_AFTER_MESSAGES - 1, Err(Cause::Replay)),
        (u64::MAX - 1, Err(Cause::NoSession)),
        (0, Err(Cause::Replay)),
    ] {
        assert_eq!(take(b, &session, counter, now), expected, "{counter}");
        bench.inputs += 1;
    }
    for counter in [u64::MAX, 0] {
        garbage[8..16].copy_from_slice(&counter.to_le_bytes());
        let cause = if counter == 0 { Cause::Replay } else { Cause::NoSession };
        bench.refused(&garbage, THIRD.1, cause);
    }
}

fn sending_counter_at_the_limit(bench: &mut Bench) {
    let inner = packet(A_INSIDE, B_INSIDE, b"last");
    let of_session = |sealed: &[u8]| sealed[4..8].to_vec();
    let old = of_session(&bench.pair.seal_at_a(b""));
    bench.pair.now += 6 * SECOND;
    let now = bench.pair.now;
    bench.pair.a.peers[PEER].noise.set_sent(REJECT_AFTER_MESSAGES - 1);
    // The last one may leave, and asks for a new session.
    assert!(try_seal(&mut bench.pair.a, &inner, now).is_some());
    assert_eq!(bench.pair.a.ready(PEER, now), None);
    let mut out = [0; 64];
    assert!(!bench.pair.a.seal(PEER, &[0; 32], &mut out, now) && out == [0; 64]);
    bench.pair.settle();
    let fresh = bench.pair.seal_at_a(b"new");
    assert_ne!(of_session(&fresh), old);
    assert_eq!(fresh[8..16], 1_u64.to_le_bytes(), "after the keepalive that confirms it");
    assert!(bench.pair.at_b(&fresh).is_some());
    bench.inputs += 3;
}

fn old_sessions(bench: &mut Bench) {
    let start = bench.pair.now;
    let sealed: Vec<_> = (0..2).map(|_| bench.pair.seal_at_a(b"x")).collect();
    bench.pair.now = start + REJECT_AFTER_TIME - Duration::from_millis(1);
    assert!(bench.pair.at_b(&sealed[0]).is_some());
    for seconds in [180, 181, 1_000, 1_000_000_000] {
        bench.pair.now = start + seconds * SECOND;
        bench.refused(&sealed[1], A_OUTSIDE, Cause::NoSession);
        assert_eq!(bench.pair.a.ready(PEER, bench.pair.now), None);
    }
    bench.inputs += 2;
}

/// The cases that the kernel tests its own window with (drivers/net/wireguard/selftest/counter.c; RFC 6479 is the algorithm), by
/// their numbers.
#[test]
fn the_window_in_34_cases() {
    const W: u64 = WINDOW;
    const END: u64 = REJECT_AFTER_MESSAGES;
    let cases: [(u64, bool, &str); 34] = [
        (0, true, "the first"),
        (1, true, "the next"),
        (1, false, "the same again"),
        (9, true, "some are missing"),
        (8, true, "a late one"),
        (7, true, "a later one"),
        (7, false, "that again"),
        (W, true, "a window ahead"),
        (W - 1, true, "late, in the word before"),
        (W - 1, false, "that again"),
        (W - 2, true, "another"),
        (2, true, "almost the oldest that fits"),
        (2, false, "that again"),
        (W + 16, true, "the window moves"),
        (3, false, "and leaves this behind"),
        (W + 16, false, "the newest again"),
        (4 * W, true, "far ahead: all is cleared"),
        (4 * W - (W - 1), true, "the oldest that fits"),
        (10, false, "long gone"),
        (4 * W - W, false, "one too late"),
        (4 * W - (W + 1), false, "two too late"),
        (4 * W - (W - 2), true, "the second oldest"),
        (4 * W + 1 - W, false, "the oldest that fits, again"),
        (0, false, "the first again"),
        (END, false, "at the limit"),
        (END - 1, true, "the last there is"),
        (END, false, "at the limit, with the window there"),
        (END - 1, false, "the last again"),
        (END - 2, true, "the last but one, late"),
        (END + 1, false, "beyond"),
        (END + 2, false, "beyond that"),
        (END - 2, false, "the last but one again"),
        (END - 3, true, "the last but two, late"),
        (0, false, "no wrap to the first"),
    ];
    let mut bench = Bench::new();
    let (session, mut pair) = (bench.third(), bench.pair);
    for (number, (counter, accepted, what)) in (1..).zip(cases) {
        let taken = take(&mut pair.b, &session, counter, pair.now).is_ok();
        assert_eq!(taken, accepted, "case {number}: {counter}, {what}");
    }
}

#[test]
fn the_window_in_six_sweeps() {
    const W: u64 = WINDOW;
    /// Counters in their order, all to be taken, and one at the end that is not.
    type Sweep = (Vec<u64>, u64);
    let sweeps: [Sweep; 6] = [
        // In order, then the one that was left out first; then it again, or the one before.
        ((1..W).chain([0]).collect(), 0),
        ((2..=W).chain([1]).collect(), 0),
        // Backwards, a whole window.
        ((0..W).rev().collect(), 0),
        ((1..=W).rev().collect(), 0),
        // All but the newest backwards, which comes last and shuts the oldest out.
        ((1..W).rev().chain([W]).collect(), 0),
        ((1..W).rev().chain([0, W]).collect(), 0),
    ];
    for (number, (taken, refused)) in (1..).zip(sweeps) {
        let mut bench = Bench::new();
        let (session, mut pair) = (bench.third(), bench.pair);
        for counter in taken {
            assert_eq!(take(&mut pair.b, &session, counter, pair.now), Ok(()), "sweep {number}, {counter}");
        }
        assert_eq!(take(&mut pair.b, &session, refused, pair.now), Err(Cause::Replay), "sweep {number}");
    }
}
