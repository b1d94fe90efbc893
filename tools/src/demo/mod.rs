//! `towpath-lab demo`: the whole product on one machine, in a network of its own, without privileges.
//!
//! Every I/O design tunnels between two clients, directly and through the relay, under steady load and through a
//! bottleneck. One table and one page say what each costs and loses, and a check fails where `uring` loses what it
//! promises to keep.

mod cell;
mod child;
mod facts;
mod ledger;
mod page;
mod plan;
mod role;
mod stage;
mod usage;
mod verdict;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, bail};
use dataplane::engine::Io;
use dataplane::sys::signal::StopSignals;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use role::dispatch;

pub(crate) use cell::with_reflector;
pub(crate) use child::output_of;
pub(crate) use facts::{Facts, isolate};
pub(crate) use plan::{B_INSIDE, REFLECTOR_PORT, RELAY_PORT, Route, with_user};
pub(crate) use role::Role;
pub(crate) use stage::{Site, Stage, USER};

use cell::Cell;
use page::Findings;
use plan::{Bottleneck, Load};
use verdict::Outcome;

use crate::format::output::whole_file;
use crate::netns::Topology;
use crate::run::Problem;
use crate::run::clock::monotonic_ns;
use crate::run::environment::Environment;

/// The demo ends by then, whatever hangs.
const TIME_LIMIT_NS: u64 = 85_000_000_000;
/// Until then a measurement that failed a check is repeated once.
const REPEAT_LIMIT_NS: u64 = 60_000_000_000;
/// A check failed.
const EXIT_FAILED: u8 = 1;

/// Options of `towpath-lab demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// Where the page goes
    #[arg(long, value_name = "FILE", default_value = "towpath-demo.html")]
    pub html: PathBuf,
    /// Print everything that was found as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// Only these I/O designs, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "DESIGN", default_values_t = DESIGNS)]
    pub io: Vec<Io>,
}

const DESIGNS: [Io; 5] = [Io::Uring, Io::Threaded, Io::Suspend, Io::Drop, Io::Runtime];

/// Set by SIGINT, SIGTERM and the time limit.
pub(crate) struct Interrupt {
    /// For the load.
    pub(crate) stop: Arc<AtomicBool>,
    late: Arc<AtomicBool>,
}

impl Interrupt {
    /// Watches signals on a thread, and the clock where there is a limit. Other threads must not have been started yet.
    pub(crate) fn new(limit_ns: Option<u64>) -> anyhow::Result<Self> {
        let signals = StopSignals::new().context("cannot watch for signals")?;
        let interrupt = Self { stop: Arc::default(), late: Arc::default() };
        let (stop, late) = (Arc::clone(&interrupt.stop), Arc::clone(&interrupt.late));
        let deadline = limit_ns.map_or(u64::MAX, |limit_ns| monotonic_ns() + limit_ns);
        // Owns the signal descriptor; ends with the process.
        thread::Builder::new().name("lab-signals".to_owned()).spawn(move || {
            loop {
                let left = deadline.saturating_sub(monotonic_ns());
                let wait = Timespec { tv_sec: (left / 1_000_000_000).cast_signed(), tv_nsec: 1_000_000 };
                // EINTR only means another look.
                let _ = poll(&mut [PollFd::new(signals.fd(), PollFlags::IN)], Some(&wait));
                if monotonic_ns() >= deadline {
                    late.store(true, Ordering::Relaxed);
                    stop.store(true, Ordering::Relaxed);
                    return;
                }
                if signals.take().is_some() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        })?;
        Ok(interrupt)
    }

    /// # Errors
    /// When the demo has to end.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.late.load(Ordering::Relaxed) {
            bail!("the time limit of {} s has passed", TIME_LIMIT_NS / 1_000_000_000);
        }
        if self.stop.load(Ordering::Relaxed) {
            return Err(Problem::Interrupted.into());
        }
        Ok(())
    }

    fn by_signal(&self) -> bool {
        self.stop.load(Ordering::Relaxed) && !self.late.load(Ordering::Relaxed)
    }
}

/// Runs the demo. Call it from the main thread, before any other thread exists.
///
/// # Errors
/// When not even the relay can be run, when the page cannot be written, or when interrupted. What a design does wrong is
/// in the table and in the exit code.
pub fn run(options: &DemoOptions) -> anyhow::Result<ExitCode> {
    let start = monotonic_ns();
    let facts = Facts::find()?;
    let mut notes = left_out(&facts);
    let topology = if facts.no_network.is_none() {
        isolate()?;
        Some(Topology::new()?)
    } else {
        None
    };
    let interrupt = Interrupt::new(Some(TIME_LIMIT_NS))?;
    let site = Site::new(topology)?;
    let bottleneck = Bottleneck::new(facts.send_buffer);
    let plan = plan_of(&facts, &options.io);
    let progress = progress_bar(plan.len());
    let mut cells = Vec::new();
    for cell in plan {
        progress.set_message(cell.name());
        let mut outcome = measure(&cell, &facts, &site, &bottleneck, &interrupt, &progress);
        let again = verdict::failures_of(&cell, &outcome);
        if !again.is_empty() && monotonic_ns() < start + REPEAT_LIMIT_NS {
            // Said in the report: a machine that was busy with something else explains a first failure, never a second.
            notes.extend(again.iter().map(|failure| format!("Measured twice, because of {failure}")));
            outcome = measure(&cell, &facts, &site, &bottleneck, &interrupt, &progress);
        }
        if interrupt.by_signal() {
            progress.finish_and_clear();
            return Err(Problem::Interrupted.into());
        }
        cells.push((cell, outcome));
        progress.set_position(cells.len() as u64 * STEPS);
    }
    progress.finish_and_clear();
    notes.push(machine());
    let failures = verdict::failures(&cells);
    let findings = Findings { cells: &cells, bottleneck: &bottleneck, notes, failures: &failures };
    publish(options, &findings)?;
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

/// What this machine does not let the demo show, one sentence each.
fn left_out(facts: &Facts) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(reason) = &facts.no_network {
        notes.push(format!("No network of our own, so the relay alone, on loopback: {reason}"));
    } else if let Some(reason) = &facts.no_tun {
        notes.push(format!("No tunnels, so the relay alone: {reason}"));
    } else if let Some(reason) = &facts.no_bottleneck {
        notes.push(format!("No bottleneck: {reason}"));
    }
    notes
}

/// Every design on every route and load that this machine allows.
fn plan_of(facts: &Facts, designs: &[Io]) -> Vec<Cell> {
    let tunnels = facts.no_network.is_none() && facts.no_tun.is_none();
    let routes: &[Route] = if tunnels { &[Route::Direct, Route::Relayed] } else { &[Route::RelayOnly] };
    let loads: &[Load] = if tunnels && facts.no_bottleneck.is_none() {
        &[Load::Steady, Load::Bottleneck]
    } else {
        &[Load::Steady]
    };
    let mut cells = Vec::new();
    for &load in loads {
        for &route in routes {
            cells.extend(designs.iter().map(|&design| Cell { design: name(design), route, load }));
        }
    }
    cells
}

/// The name `--io` takes.
pub(crate) fn name(design: Io) -> &'static str {
    match design {
        Io::Auto => "auto",
        Io::Uring => "uring",
        Io::Threaded => "threaded",
        Io::Suspend => "suspend",
        Io::Drop => "drop",
        Io::Runtime => "runtime",
    }
}

fn measure(
    cell: &Cell,
    facts: &Facts,
    site: &Site,
    bottleneck: &Bottleneck,
    interrupt: &Interrupt,
    progress: &ProgressBar,
) -> Outcome {
    if let (Some(reason), "uring" | "runtime") = (&facts.no_uring, cell.design) {
        return Outcome::Unavailable(reason.clone());
    }
    let begin = progress.position();
    let step = |share: f64| progress.set_position(begin + (share * STEPS as f64) as u64);
    let measured = interrupt.check().and_then(|()| cell::measure(cell, site, bottleneck, interrupt, step));
    match measured {
        Ok(measured) => Outcome::Measured(Box::new(measured)),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Steps of the progress bar for each cell.
const STEPS: u64 = 100;

fn progress_bar(cells: usize) -> ProgressBar {
    let bar = ProgressBar::new(cells as u64 * STEPS);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} % {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn machine() -> String {
    let environment = Environment::read();
    let build = if cfg!(debug_assertions) { "; a debug build, so costs mean little" } else { "" };
    format!("{} cores, {}, Linux {}{build}", environment.cores, environment.cpu_model, environment.kernel)
}

/// Prints the table and writes the page.
fn publish(options: &DemoOptions, findings: &Findings<'_>) -> anyhow::Result<()> {
    let html = page::page(findings).to_html();
    // Whoever reads its name below finds all of it.
    whole_file(&options.html, |out| Ok(out.write_all(html.as_bytes())?))
        .context("choose another file with --html")?;
    let text = if options.json {
        let value = serde_json::json!({
            "cells": findings.cells.iter().map(|(cell, outcome)| serde_json::json!({ "cell": cell, "outcome": outcome })).collect::<Vec<_>>(),
            "bottleneck": findings.bottleneck,
            "notes": findings.notes,
            "failures": findings.failures,
        });
        format!("{}\n", serde_json::to_string_pretty(&value)?)
    } else {
        format!("{}\nPage: {}\n", page::summary(findings).to_text(), options.html.display())
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
