//! The catalogue of abuse of a WireGuard endpoint, rows W1 to W32 by their numbers, at the state machine. What has to be lost is
//! lost for the cause expected, without an answer, and after each input the endpoint holds what it held before: sessions, windows,
//! paths, timers, tables and figures. After each row packets that had been sealed before it arrive, each once, in both directions.
//!
//! Overflow checks are on here, as in every build with debug assertions, and a panic anywhere fails the row.
//!
//! What a row asks of real sockets is elsewhere: `tests/tunnel_namespace.rs` has a flood with wrong mac1, a loop of routes (W27) and an endpoint
//! that is our own (W25); `tests/config_files.rs` what is wrong in a file (W30); the offload tests and their fuzzing lies of superpackets
//! (W32).

mod handshakes;
mod inner;
mod messages;
mod order;
mod ways;

use std::cell::Cell;
use std::collections::BTreeSet;

use super::*;

/// Number, how many inputs it has, what is expected, and the row.
type Row = (u32, u64, &'static str, fn(&mut Bench));

/// Rows of the catalogue.
const ROWS: u32 = 32;
/// What each handshake message that is looked at costs the endpoint.
const COST: Duration = Duration::from_micros(100);
/// A third end, whose messages are forged where they must be believed: those of the other two go on as before.
const THIRD: (&str, &str) = ("10.0.0.3", "192.0.2.3:3");
/// From where what must be refused comes.
const STRANGER: &str = "203.0.113.9:9";

/// Two live ends, and what was done to one of them.
struct Bench {
    pair: Pair,
    inputs: u64,
    /// Sealed before the row, to be opened after it.
    held: [Vec<u8>; 2],
}

impl Bench {
    fn new() -> Self {
        let mut pair = Pair::connected();
        for end in [&mut pair.a, &mut pair.b] {
            end.world.worked = work;
        }
        let mut bench = Self { pair, inputs: 0, held: [const { Vec::new() }; 2] };
        bench.hold();
        bench
    }

    /// Seals what is to arrive after the row.
    fn hold(&mut self) {
        let there = self.pair.seal_at_a(b"sealed before");
        let back = try_seal(&mut self.pair.b, &packet(B_INSIDE, A_INSIDE, b"sealed before"), self.pair.now);
        self.held = [there, back.expect("a session")];
    }

    /// Has `b` know a third end.
    fn know_third(&mut self) -> PeerIndex {
        self.pair.b.add_peer(&peer(3, &["10.0.0.3/32"], None), self.pair.now)
    }

    /// A session of the third end with `b`.
    fn third(&mut self) -> forge::Session {
        self.know_third();
        forge::Session::new(3, 2, &mut self.pair.b, THIRD.1, self.pair.now)
    }

    /// Hands `b` a datagram that must be lost for `cause`, and must not have any other effect.
    fn refused(&mut self, datagram: &[u8], from: &str, cause: Cause) {
        let found = self.refused_somehow(datagram, from);
        assert_eq!(found, cause, "input {}, {datagram:02x?}", self.inputs);
    }

    /// The same, for whatever cause.
    fn refused_somehow(&mut self, datagram: &[u8], from: &str) -> Cause {
        let before = picture(&self.pair.b);
        let outcome = open(&mut self.pair.b, datagram, from, self.pair.now);
        self.inputs += 1;
        assert_eq!(picture(&self.pair.b), before, "{datagram:02x?}");
        outcome.expect_err("refused")
    }

    /// Whether a handshake message got as far as to cost a Diffie-Hellman. A cookie reply that was sent instead is shorter.
    fn costs(&mut self, datagram: &[u8], from: &str) -> bool {
        self.inputs += 1;
        match open(&mut self.pair.b, datagram, from, self.pair.now) {
            Err(cause) => cause != Cause::RateLimited,
            Ok(_) => {
                let reply = self.pair.b.poll_transmit().expect("an answer");
                assert!(reply.bytes().len() < datagram.len() && reply.path == path(from), "{reply:?}");
                reply.bytes().len() != wireguard::COOKIE_REPLY
            }
        }
    }

    /// Uses up what the endpoint takes without cookies.
    fn make_busy(&mut self, noise: &[u8]) {
        make_busy(&mut self.pair.b, noise, self.pair.now);
    }

    /// After a row: what was sealed before it arrives, and both ends talk as before.
    fn settle(mut self) -> u64 {
        let Self { pair, held: [there, back], .. } = &mut self;
        if pair.a.ready(PEER, pair.now).is_none() {
            // The row has used the session up, or its time.
            pair.now += 200 * SECOND;
            pair.exchange();
            pair.now += 6 * SECOND;
        } else {
            // The abused end itself, as the row has left it.
            let expected = packet(A_INSIDE, B_INSIDE, b"sealed before");
            assert_eq!(open(&mut pair.b, there, A_OUTSIDE, pair.now), Ok(Some(expected)));
            assert_eq!(open(&mut pair.b, there, A_OUTSIDE, pair.now), Err(Cause::Replay));
            let expected = packet(B_INSIDE, A_INSIDE, b"sealed before");
            assert_eq!(open(&mut pair.a, back, B_OUTSIDE, pair.now), Ok(Some(expected)));
        }
        assert_eq!(pair.exchange().last(), Some(&packet(A_INSIDE, B_INSIDE, b"hello")));
        let answer = packet(B_INSIDE, A_INSIDE, b"answer");
        let sealed = try_seal(&mut pair.b, &answer, pair.now).expect("a session");
        assert_eq!(pair.at_a(&sealed), Some(answer));
        self.inputs
    }
}

/// Between two looks at this clock the processor has worked for [`COST`].
fn work() -> Duration {
    thread_local!(static WORKED: Cell<Duration> = const { Cell::new(Duration::ZERO) });
    WORKED.set(WORKED.get() + COST);
    WORKED.get()
}

/// All that an endpoint holds, but for what counts losses.
fn picture(tunnel: &Tunnel) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "{} {} {} {} {:?} {:?} {}\n",
        tunnel.by_key.len(),
        tunnel.by_index.len(),
        tunnel.staged_bytes,
        tunnel.control.len(),
        tunnel.unstaging,
        tunnel.wheel.next(),
        tunnel.control_overflows,
    );
    for index in (0..tunnel.peers.places()).filter_map(|place| tunnel.peers.at(place)) {
        let peer = &tunnel.peers[index];
        writeln!(
            text,
            "{index:?} {:?} {} {:?} {:?} {:?} {:?} {} {:?}\n{}",
            peer.path,
            peer.awaits_path,
            peer.allowed_ips.len(),
            peer.timers,
            peer.stats,
            peer.last_initiation_received,
            peer.unstaging,
            peer.staged.next_expiry(),
            peer.noise.picture(),
        )
        .expect("memory");
    }
    text
}

fn run(rows: &[Row]) {
    for (number, expected, expectation, row) in rows {
        let start = Instant::now();
        let mut bench = Bench::new();
        row(&mut bench);
        assert_eq!(bench.settle(), *expected, "inputs of W{number}");
        println!("W{number:<3} {expected:>8} inputs {:>6} ms  {expectation}", start.elapsed().as_millis());
    }
}

#[test]
fn every_row_is_there() {
    let rows = [messages::ROWS, handshakes::ROWS, order::ROWS, inner::ROWS, ways::ROWS].concat();
    let numbers: BTreeSet<u32> = rows.iter().map(|&(number, ..)| number).collect();
    assert!(numbers.into_iter().eq(1..=ROWS) && rows.len() == ROWS as usize);
}

#[test]
fn messages_w1_w2_w9_to_w13_and_w31() {
    run(messages::ROWS);
}

#[test]
fn handshakes_w3_to_w8_and_w26() {
    run(handshakes::ROWS);
}

#[test]
fn order_w14_to_w18() {
    run(order::ROWS);
}

#[test]
fn inner_packets_w19_to_w23_w28_and_w32() {
    run(inner::ROWS);
}

#[test]
fn ways_w24_w25_w27_w29_and_w30() {
    run(ways::ROWS);
}
