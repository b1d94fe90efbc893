//! What `towpath-lab run` has found, as text.

use std::path::Path;

use crate::compare::quantile_cell;
use crate::report::{Cell, Report, Section, Table};
use crate::run::ledger::{Ledger, loss_statement};
use crate::run::{self, Distribution, RunResult, RunSpec, transmit};
use crate::units;

/// The result as a person reads it.
pub(in crate::cli) fn text(result: &RunResult, out: Option<&Path>) -> String {
    let spec = &result.spec;
    let mut table = Table { header: header(), rows: Vec::new() };
    let latency = &result.latency;
    table.rows.push(row("response (from the intended send time)", &latency.response));
    table.rows.push(row("service (from the actual send time)", &latency.service));
    if let Some(kernel) = &latency.kernel {
        table.rows.push(row("  as far as the kernel's receipt", kernel));
    }
    if let Some(up) = &latency.up {
        table.rows.push(row("  there, one way", up));
    }
    if let Some(down) = &latency.down {
        table.rows.push(row("  back, one way", down));
    }
    table.rows.push(row("lateness of the sender", &latency.lateness));
    if let Some(to_device) = &latency.to_device {
        table.rows.push(row("  then, as far as the device", to_device));
    }
    if let Some(receiving) = &latency.receiving {
        table.rows.push(row("lateness of the receiver", receiving));
    }
    let mut notes: Vec<String> = result
        .verdict
        .reasons
        .iter()
        .map(|reason| format!("{}: {reason}", result.verdict.validity.name()))
        .collect();
    notes.extend([
        format!(
            "offered {} (intended {}), {}; received {}, {}; {} B, {}, seed {}",
            units::rate(result.offered_pps),
            units::rate(spec.rate_pps),
            units::bits(result.offered_bps),
            units::rate(result.received_pps),
            units::bits(result.received_bps),
            size_text(spec),
            units::count(spec.flows, "flow"),
            spec.seed
        ),
        sums("ledger", &result.ledger),
    ]);
    notes.extend(reordering_text(result));
    if spec.kind.is_one_way() {
        notes.push("one way: what arrives at the far end is the end of it".to_owned());
    }
    notes.extend(
        spec.trace.as_ref().and_then(|trace| trace.points()).filter(|points| points.raised > 0).map(
            |points| {
                let smallest = run::payload::LEN;
                format!(
                    "{} datagrams of the trace are shorter than {smallest} B and were sent with that",
                    points.raised
                )
            },
        ),
    );
    notes.extend(worst_flow_text(result));
    notes.extend(result.ledger_up.iter().map(|ledger| sums("  there", ledger)));
    notes.extend(result.ledger_down.iter().map(|ledger| sums("  back", ledger)));
    notes.extend(latency.to_device.as_ref().map(|to_device| stamps_text(to_device, transmit::every(spec))));
    notes.push(result.account.line());
    notes.push(loss_statement(&result.ledger));
    notes.extend(result.dut.iter().map(|dut| {
        let early = if dut.ended_early { " (ended before the run)" } else { "" };
        format!("process {} {}: {} on a processor{early}", dut.pid, dut.name, units::nanoseconds(dut.cpu_ns))
    }));
    notes.extend(
        result.dut_cpu_ns_per_offered.map(|ns| {
            format!("CPU per datagram offered, each way counted: {}", units::nanoseconds(ns as u64))
        }),
    );
    notes.extend(result.dut_cpu_ns_per_packet.map(|ns| {
        format!("CPU per datagram delivered, each way counted: {}", units::nanoseconds(ns as u64))
    }));
    notes.push(format!(
        "the sender took {} of its core for each datagram",
        units::nanoseconds(result.sender_cpu_ns_per_packet as u64)
    ));
    notes.extend(result.verdict.notes.iter().cloned());
    notes.extend(out.map(|dir| format!("written to {}", dir.display())));
    let title = format!("{}  {} {}", result.verdict.validity.name(), spec.kind.name(), spec.target);
    Report { title, notes: vec![], sections: vec![Section { table, notes, ..Section::default() }] }.to_text()
}

fn size_text(spec: &RunSpec) -> String {
    if spec.mix.is_empty() {
        return spec.size.to_string();
    }
    let shares: Vec<String> =
        spec.mix.iter().map(|share| format!("{}:{}", share.size, share.weight)).collect();
    format!("{} (mean {:.0})", shares.join(","), spec.mean_size())
}

/// How many stamps there are, and of how many sends there should be some.
fn stamps_text(to_device: &Distribution, every: u32) -> String {
    let (came, asked) = (to_device.count, to_device.count + to_device.lost);
    let missing = if to_device.lost > 0 {
        ": the device's driver does not stamp, the queue to it was too long, or (before Linux 6.13) a send of the same socket was refused before"
    } else {
        ""
    };
    format!("stamps of the device: {came} came of {asked} (of one send in {every}){missing}")
}

/// How far datagrams were overtaken, when any was.
fn reordering_text(result: &RunResult) -> Option<String> {
    let (found, arrived) = (&result.reordering, result.ledger.received + result.ledger.late);
    (found.reordered > 0).then(|| {
        format!(
            "reordered {} of {arrived} ({}): extent at most {}, in the mean {:.1}; 3-reordered {}",
            found.reordered,
            units::share(found.reordered as f64 / arrived as f64),
            found.extent_max,
            found.extent_mean(),
            found.three()
        )
    })
}

/// The flow that lost the largest share, when there are several and any lost something.
fn worst_flow_text(result: &RunResult) -> Option<String> {
    let flows = &result.ledger_by_flow;
    let share = |flow: &(usize, &Ledger)| flow.1.loss_fraction();
    let worst = flows.iter().enumerate().max_by(|a, b| share(a).total_cmp(&share(b)));
    worst.filter(|worst| flows.len() > 1 && share(worst) > 0.0).map(|(index, ledger)| {
        let losing = flows.iter().filter(|flow| flow.gone() > 0).count();
        format!(
            "{losing} of {} flows lost something; flow {index} most: {} of {}",
            flows.len(),
            ledger.gone(),
            ledger.tried()
        )
    })
}

/// Quantiles of the table.
const COLUMNS: [&str; 5] = ["p50", "p90", "p99", "p99.9", "p99.99"];

fn header() -> Vec<String> {
    ["latency"].into_iter().chain(COLUMNS).chain(["max"]).map(str::to_owned).collect()
}

fn row(name: &str, distribution: &Distribution) -> Vec<Cell> {
    let mut cells = vec![Cell::from(name)];
    cells.extend(COLUMNS.map(|column| quantile_cell(distribution, column)));
    cells.push(Cell::from(distribution.max_ns.map_or("–".to_owned(), units::nanoseconds)));
    cells
}

/// Both sums of a ledger in one line.
fn sums(name: &str, ledger: &Ledger) -> String {
    format!(
        "{name}: intended {} = sent {} + refused {} + unsent {}; sent = received {} + late {} + lost {}; duplicate {}, reordered {}, corrupt {}",
        ledger.intended,
        ledger.sent,
        ledger.refused,
        ledger.unsent,
        ledger.received,
        ledger.late,
        ledger.lost,
        ledger.duplicate,
        ledger.reordered,
        ledger.corrupt
    )
}
