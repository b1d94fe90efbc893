//! The catalogue of abuse, sent to the state machine: the datagrams of `relay/tests/abuse.rs`, by the same code, with a full
//! comparison of what the server holds after each single one. Whatever is not granted must have changed nothing, and what is
//! granted nothing of the witnesses.
//!
//! `harness` stands for the network and the relay process there, `bench` for the oracle.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "as where the same code runs on the wire"
)]

mod bench;
mod harness;

#[path = "../../../tests/abuse/allocations.rs"]
mod allocations;
#[path = "../../../tests/abuse/attacker.rs"]
mod attacker;
#[path = "../../../tests/abuse/channels.rs"]
mod channels;
#[path = "../../../tests/abuse/configuration.rs"]
mod configuration;
#[path = "../../../tests/abuse/format.rs"]
mod format;
#[path = "../../../tests/abuse/identity.rs"]
mod identity;
#[path = "../../../tests/abuse/mutations.rs"]
mod mutations;
#[path = "../../../tests/abuse/peers.rs"]
mod peers;
#[path = "../../../tests/abuse/ranges.rs"]
mod ranges;

use std::collections::BTreeSet;

use bench::Bench;
use configuration::DISTINCT_MIN;

/// Number, how many inputs it has, what is expected, and the row.
type Row = (u32, u64, &'static str, fn(&mut Bench));

/// Rows whose inputs are no datagrams of clients, or which are about more than the server: spoofed sources and floods
/// (`server::tests::abuse` and `strangers`), and the life of a process.
const NOT_REPLAYED: [u32; 8] = [13, 14, 52, 53, 54, 55, 56, 57];

/// How many of the datagrams are granted something, at least, and have changed what is compared.
const CHANGES_MIN: u64 = 1_000;

#[test]
fn every_datagram_of_the_catalogue_leaves_the_server_as_it_was() {
    let mut bench = Bench::start();
    let rows: Vec<Row> =
        [format::ROWS, identity::ROWS, allocations::ROWS, peers::ROWS, channels::ROWS, mutations::ROWS]
            .concat();
    let numbers: BTreeSet<u32> = rows.iter().map(|&(number, ..)| number).collect();
    assert!((1..=60).filter(|number| !NOT_REPLAYED.contains(number)).eq(numbers), "a row is missing");
    for (number, expected, _, run) in rows {
        run(&mut bench);
        let inputs = bench.settle(number);
        assert_eq!(inputs, mutations::expected(number, expected), "inputs of T{number}");
    }
    let distinct = bench.inputs.distinct();
    assert!(distinct >= DISTINCT_MIN, "{distinct} different datagrams");
    assert!(bench.changes() >= CHANGES_MIN, "{} changes: the comparison compares nothing", bench.changes());
}

#[test]
#[should_panic(expected = "were not granted changed what is held")]
fn the_comparison_sees_a_single_figure_that_a_refused_request_changes() {
    let bench = Bench::start();
    let mut attacker = bench.allocated();
    bench.tamper();
    attacker.permit("10.0.0.1:5000".parse().unwrap());
}
