//! The catalogue of abuse on the wire: rows T1 to T60 by their numbers, over real sockets, against a running relay with live
//! clients. After each row the relay holds what it held before it, has forwarded nothing but what the row may forward, and
//! two witnesses have gone on without losing a datagram or getting one twice.
//!
//! `server::tests::replay` sends the same datagrams to the state machine, and compares all that it holds after each one; what
//! cannot be replayed there is in `wire` and `process`.
//!
//! What a single relay on loopback cannot show of a row is named in a comment there, with the test that does. The witness
//! outside the process is `ssrf_namespace.rs`, ten million sources are `spoofed.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test panics when it cannot go on, prints what it did, and measures time"
)]

mod harness;

#[path = "abuse/allocations.rs"]
mod allocations;
#[path = "abuse/attacker.rs"]
mod attacker;
#[path = "abuse/bench.rs"]
mod bench;
#[path = "abuse/channels.rs"]
mod channels;
#[path = "abuse/configuration.rs"]
mod configuration;
#[path = "abuse/format.rs"]
mod format;
#[path = "abuse/identity.rs"]
mod identity;
#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;
#[path = "abuse/mutations.rs"]
mod mutations;
#[path = "abuse/peers.rs"]
mod peers;
#[path = "abuse/process.rs"]
mod process;
#[path = "abuse/ranges.rs"]
mod ranges;
#[path = "abuse/wire.rs"]
mod wire;

use std::collections::BTreeSet;
use std::time::Instant;

use bench::Bench;
use configuration::DISTINCT_MIN;

/// Number, how many inputs it has, what is expected, and the row.
type Row = (u32, u64, &'static str, fn(&mut Bench));

/// Rows of the catalogue.
const ROWS: u32 = 60;
/// How much the process may grow over the whole suite, in KiB. Its rings and buffers fill up with the load, and hold up to 12
/// MiB a worker when they are full (README, "Many cores"); nothing here fills them.
const GROWTH_MAX_KIB: u64 = 4 * 1024;

#[test]
fn every_row_of_the_catalogue_leaves_the_relay_as_it_was() {
    let start = Instant::now();
    let mut bench = Bench::start();
    let rows: Vec<Row> = [
        format::ROWS,
        identity::ROWS,
        allocations::ROWS,
        peers::ROWS,
        channels::ROWS,
        process::ROWS,
        wire::ROWS,
        mutations::ROWS,
    ]
    .concat();
    let numbers: BTreeSet<u32> = rows.iter().map(|&(number, ..)| number).collect();
    assert!(numbers.iter().copied().eq(1..=ROWS), "{numbers:?}");
    let before = bench.resident_kib();
    let mut total = 0;
    for (number, expected, expectation, run) in rows {
        let began = Instant::now();
        run(&mut bench);
        let inputs = bench.settle(number);
        let expected = match number {
            13 if wire::forger().is_none() => wire::T13_UNFORGED,
            _ => mutations::expected(number, expected),
        };
        assert_eq!(inputs, expected, "inputs of T{number}");
        total += inputs;
        let grown = bench.resident_kib().saturating_sub(before);
        let took = began.elapsed().as_millis();
        println!("T{number:<3} {inputs:>6} inputs {took:>6} ms {grown:>6} KiB  {expectation}");
    }
    let grown = bench.resident_kib().saturating_sub(before);
    let distinct = bench.inputs.distinct();
    let rounds = bench.finish();
    println!(
        "{total} inputs, {distinct} different datagrams, {rounds} rounds of the witnesses, grown by {grown} KiB, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    assert!(distinct >= DISTINCT_MIN, "{distinct} different datagrams of {total} inputs");
    assert!(grown <= GROWTH_MAX_KIB, "{grown} KiB");
}
