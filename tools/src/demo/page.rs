//! The demo's table and its page.

use super::cell::{Cell as Measurement, Measured};
use super::plan::{Bottleneck, Load, Route};
use super::verdict::Outcome;
use crate::compare::quantile_cell;
use crate::report::{Cell, Curve, Report, Section, Table, Tone};
use crate::run::verdict::Validity;
use crate::units;

/// Everything the demo found out.
pub struct Findings<'a> {
    /// In the order in which they were measured.
    pub cells: &'a [(Measurement, Outcome)],
    /// Equal for all.
    pub bottleneck: &'a Bottleneck,
    /// What was left out and why, and what the machine is.
    pub notes: Vec<String>,
    /// What should not be.
    pub failures: &'a [String],
}

const HEADER: [&str; 13] = [
    "design",
    "route",
    "p50",
    "p99",
    "lost",
    "CPU/pkt",
    "MiB",
    "ops",
    "enters",
    "pkts/op",
    "iou-wrk",
    "burst lost",
    "causes",
];
/// Cells that a design without a measurement leaves empty, up to those of the burst.
const STEADY_END: usize = 11;

/// One table for the terminal: a row for each design and route.
#[must_use]
pub fn summary(findings: &Findings<'_>) -> Report {
    let mut rows = Vec::new();
    for (cell, outcome) in findings.cells.iter().filter(|(cell, _)| cell.load == Load::Steady) {
        let burst = findings.cells.iter().find(|(other, _)| {
            other.design == cell.design && other.route == cell.route && other.load == Load::Bottleneck
        });
        rows.push(row(cell, outcome, burst.map(|(_, outcome)| outcome)));
    }
    let table = Table { header: HEADER.map(str::to_owned).into(), rows };
    let mut notes = vec![
        "Steady load: latency there and back from the intended send time; CPU of tunnels and relay for each datagram carried one \
         way; memory of the largest process; operations that send, io_uring_enter or other system calls for them, and packets in \
         one operation, all of the first process on the way."
            .to_owned(),
    ];
    if findings.cells.iter().any(|(cell, _)| cell.load == Load::Bottleneck) {
        notes.push(findings.bottleneck.sentence());
    }
    notes.extend(limited(findings.cells));
    notes.extend(findings.notes.iter().cloned());
    notes.extend(findings.failures.iter().map(|failure| format!("FAILED {failure}")));
    let section = Section { notes, table, ..Section::default() };
    Report { title: "towpath-lab demo".to_owned(), notes: Vec::new(), sections: vec![section] }
}

/// The steady loads that were not as asked for, a sentence each: their row would otherwise pass for the design's doing.
fn limited(cells: &[(Measurement, Outcome)]) -> impl Iterator<Item = String> + '_ {
    cells.iter().filter(|(cell, _)| cell.load == Load::Steady).filter_map(|(cell, outcome)| match outcome {
        Outcome::Measured(measured) if measured.run.verdict.validity != Validity::Valid => {
            Some(format!("{}, {}: {}", cell.design, cell.route.name(), measured.run.verdict.line()))
        }
        _ => None,
    })
}

/// The page: the summary, then curves and ledgers for each route and load.
#[must_use]
pub fn page(findings: &Findings<'_>) -> Report {
    let mut report = summary(findings);
    for load in [Load::Steady, Load::Bottleneck] {
        for route in [Route::Direct, Route::Relayed, Route::RelayOnly] {
            let cells: Vec<_> =
                findings.cells.iter().filter(|(cell, _)| cell.load == load && cell.route == route).collect();
            if !cells.is_empty() {
                report.sections.push(section(load, route, &cells));
            }
        }
    }
    report
}

fn section(load: Load, route: Route, cells: &[&(Measurement, Outcome)]) -> Section {
    let header = [
        "process",
        "offered",
        "sent",
        "operations",
        "enters",
        "per op.",
        "waited",
        "ring full",
        "memory",
        "threads",
        "iou-wrk",
        "causes",
    ];
    let mut table = Table { header: header.map(str::to_owned).into(), rows: Vec::new() };
    let mut curves = Vec::new();
    let mut notes = Vec::new();
    for (cell, outcome) in cells {
        match outcome {
            Outcome::Measured(measured) => {
                curves.push(Curve::of(cell.design, &measured.run));
                table.rows.extend(process_rows(cell, measured));
                notes.push(ledger_sentence(cell, measured));
            }
            Outcome::Unavailable(reason) => notes.push(format!("{}: unavailable: {reason}", cell.design)),
            Outcome::Failed(reason) => notes.push(format!("{}: failed: {reason}", cell.design)),
        }
    }
    Section {
        title: format!("{}, {}", route.name(), load.name()),
        notes,
        table,
        curves,
        ..Section::default()
    }
}

fn ledger_sentence(cell: &Measurement, measured: &Measured) -> String {
    let ledger = &measured.run.ledger;
    format!(
        "{}: {} sent, {} came back, {} late, {} lost ({}), {}, {} reordered, {} twice; load {}",
        cell.design,
        ledger.sent,
        ledger.received,
        ledger.late,
        ledger.lost,
        causes(measured),
        measured.unexplained.map_or_else(
            || "an skb may hold several datagrams, so what is unexplained cannot be counted".to_owned(),
            |datagrams| format!("{datagrams} unexplained")
        ),
        ledger.reordered,
        ledger.duplicate,
        measured.run.verdict.line(),
    )
}

fn process_rows(cell: &Measurement, measured: &Measured) -> Vec<Vec<Cell>> {
    let row = |process: &super::cell::Process| {
        let figures = &process.figures;
        let drops: Vec<String> =
            figures.drops().iter().map(|(cause, packets)| format!("{cause} {packets}")).collect();
        vec![
            Cell::from(format!("{} {}", cell.design, process.name)),
            Cell::from(figures.offered.to_string()),
            Cell::from(figures.sent.to_string()),
            Cell::from(figures.operations.to_string()),
            Cell::from(figures.enters.to_string()),
            Cell::from(format!("{:.1}", figures.segments_per_operation())),
            Cell::from(figures.waited.to_string()),
            Cell::from(figures.ring_full.to_string()),
            Cell::from(format!("{} MiB", mib(process.usage.resident_kib))),
            Cell::from(process.usage.threads.to_string()),
            Cell::from(process.workers().to_string()),
            Cell::from(if drops.is_empty() { "–".to_owned() } else { drops.join(", ") }),
        ]
    };
    measured.processes.iter().map(row).collect()
}

fn row(cell: &Measurement, steady: &Outcome, burst: Option<&Outcome>) -> Vec<Cell> {
    let mut cells = vec![Cell::from(cell.design), Cell::from(cell.route.name())];
    match steady {
        Outcome::Measured(measured) => cells.extend(steady_cells(measured)),
        // The widest column has the reason; the figures stay empty.
        Outcome::Unavailable(reason) => {
            cells.resize(HEADER.len() - 1, Cell::default());
            cells.push(Cell::from(format!("unavailable: {reason}")));
            return cells;
        }
        Outcome::Failed(_) => {
            cells.push(Cell::new("failed", Tone::Bad));
            cells.resize(STEADY_END, Cell::default());
        }
    }
    match burst {
        Some(Outcome::Measured(measured)) => cells.extend([lost(measured), Cell::from(causes(measured))]),
        Some(Outcome::Failed(_)) => cells.extend([Cell::new("failed", Tone::Bad), Cell::default()]),
        Some(Outcome::Unavailable(_)) | None => cells.extend([Cell::from("–"), Cell::from("–")]),
    }
    cells
}

fn steady_cells(measured: &Measured) -> Vec<Cell> {
    let response = &measured.run.latency.response;
    let first = measured.processes.first();
    let figure = |pick: fn(&super::ledger::Figures) -> String| {
        first.map_or(Cell::from("–"), |process| Cell::from(pick(&process.figures)))
    };
    let workers: usize = measured.processes.iter().map(|process| process.workers()).sum();
    let resident = measured.processes.iter().map(|process| process.usage.resident_kib).max().unwrap_or(0);
    vec![
        quantile_cell(response, "p50"),
        quantile_cell(response, "p99"),
        lost(measured),
        measured
            .run
            .dut_cpu_ns_per_packet
            .map_or(Cell::from("–"), |ns| Cell::from(units::nanoseconds(ns as u64))),
        Cell::from(mib(resident)),
        figure(|figures| figures.operations.to_string()),
        figure(|figures| figures.enters.to_string()),
        figure(|figures| format!("{:.1}", figures.segments_per_operation())),
        Cell::from(workers.to_string()),
    ]
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}

fn lost(measured: &Measured) -> Cell {
    let tone = if measured.lost() == 0 { Tone::Good } else { Tone::Bad };
    Cell::new(measured.lost().to_string(), tone)
}

fn causes(measured: &Measured) -> String {
    let mut causes: Vec<String> =
        measured.causes().iter().map(|(cause, packets)| format!("{cause} {packets}")).collect();
    if let Some(unexplained @ 1..) = measured.unexplained {
        causes.push(format!("unexplained {unexplained}"));
    }
    if causes.is_empty() { "–".to_owned() } else { causes.join(", ") }
}
