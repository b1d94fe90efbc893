//! The command line of `towpath-lab`.
//!
//! Exit codes: 0 done, 1 a file could not be read or written, a rule failed, or `doctor` found what spoils measurements, 2 wrong
//! request, 3 inconclusive, 4 a run was invalid or limited by the generator, 5 set-up failed, 130 interrupted.

mod aa;
mod ab;
mod compare;
mod doctor;
mod files;
mod gate;
mod judging;
mod lab;
mod page;
mod reflect;
mod replay;
mod report;
mod run;
mod search;
mod sweep;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use clap::{Parser, Subcommand};
use dataplane::sys::signal::StopSignals;
use rustix::event::{PollFd, PollFlags, poll};

pub(crate) use run::spec_of as run_spec;

use crate::run::Problem;

/// A file could not be read or written.
const EXIT_FILES: u8 = 1;
/// A rule failed.
const EXIT_FAILED: u8 = 1;
/// The request is wrong.
const EXIT_USAGE: u8 = 2;
/// A rule could not be decided.
const EXIT_INCONCLUSIVE: u8 = 3;
/// The run cannot be believed.
const EXIT_INVALID: u8 = 4;
/// The far end, a socket or a permission is missing.
const EXIT_SETUP: u8 = 5;
/// Ended by SIGINT or SIGTERM.
const EXIT_INTERRUPTED: u8 = 130;

/// Load generation, latency histograms and their comparison.
#[derive(Debug, Parser)]
#[command(name = "towpath-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send load on a schedule and measure what comes back
    Run(Box<run::Args>),
    /// Send every datagram back: the far end of `run udp` and `run tunnel`
    Reflect(reflect::Args),
    /// Tunnel and relay on every I/O design, in a network of its own: one table, one page
    Demo(crate::demo::DemoOptions),
    /// Make a run once more, with the same datagrams at the same times
    Replay(replay::Args),
    /// Hosts in network namespaces, as a scenario file has them
    Lab(lab::Args),
    /// Put runs side by side: table, ratios, percentile plot; with `-- B…`, what differs between two sides of runs
    Compare(compare::Args),
    /// Tables and plots of repeated runs: terminal, HTML, Markdown, CSV, JUnit, JSON
    Report(report::Args),
    /// Print what a log or a distribution holds, whoever wrote it
    Show(files::Show),
    /// Write a log or a distribution in another format
    Convert(files::Convert),
    /// Add logs up: several generators of one moment, or runs one after the other
    Merge(files::Merge),
    /// Put two logs side by side, or subtract one from the other
    Diff(files::Diff),
    /// What on this host spoils a measurement, each with its fix
    Doctor(doctor::Args),
    /// Run two or more targets, or our own I/O designs, in interleaved random blocks and say what differs
    Ab(Box<ab::Args>),
    /// Run one target against itself: the false alarms and the smallest effect that is found on this host
    Aa(Box<aa::Args>),
    /// Judge runs by others: PASS, FAIL or INCONCLUSIVE
    Gate(gate::Args),
    /// Find the highest rate that holds: without loss, with little, or within a latency
    Search(Box<search::Args>),
    /// Measure latency and loss at several loads
    Sweep(Box<sweep::Args>),
    /// Find out what the generator itself can do here
    Calibrate(Box<search::CalibrateArgs>),
}

/// Runs the program named by `args` (the first is the program's own name) and returns its exit code.
#[must_use]
pub fn main<I, T>(args: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let roles = [crate::demo::dispatch, crate::ab::dispatch, crate::lab::dispatch];
    if let Some(code) = roles.into_iter().find_map(|dispatch| dispatch(&args)) {
        return code;
    }
    let cli = match Cli::try_parse_from(sides(args)) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal is no reason to change the exit code.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let outcome = match cli.command {
        Command::Run(args) => run::main(*args),
        Command::Replay(args) => replay::main(args),
        Command::Lab(args) => lab::main(&args),
        Command::Reflect(args) => reflect::main(&args),
        Command::Demo(options) => crate::demo::run(&options),
        Command::Compare(args) => compare::main(&args),
        Command::Report(args) => report::main(&args),
        Command::Show(args) => files::show(&args),
        Command::Convert(args) => files::convert(&args),
        Command::Merge(args) => files::merge(&args),
        Command::Diff(args) => files::diff(&args),
        Command::Doctor(args) => doctor::main(&args),
        Command::Ab(args) => ab::main(*args),
        Command::Aa(args) => aa::main(*args),
        Command::Gate(args) => gate::main(&args),
        Command::Search(args) => search::main(*args),
        Command::Sweep(args) => sweep::main(*args),
        Command::Calibrate(args) => search::calibrate_main(*args),
    };
    outcome.unwrap_or_else(|error| fail(&error))
}

/// `A… -- B… --fail RULE` as `A… --with B… --fail RULE`: what comes behind `--` could not be an option.
fn sides(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_some_and(|command| command == "gate" || command == "compare") {
        args.iter_mut().filter(|arg| *arg == "--").take(1).for_each(|arg| *arg = OsString::from("--with"));
    }
    args
}

/// Prints the error with its causes and chooses the exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    let code = match error.downcast_ref() {
        Some(Problem::Usage(_)) => EXIT_USAGE,
        Some(Problem::Setup(_)) => EXIT_SETUP,
        Some(Problem::Interrupted) => EXIT_INTERRUPTED,
        Some(Problem::File(_)) | None => EXIT_FILES,
    };
    // Nowhere is left to say that standard error is closed.
    let _ = writeln!(io::stderr(), "towpath-lab: {error:#}");
    ExitCode::from(code)
}

/// Prints to standard output; a reader that has gone away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Says something beside the result, on standard error.
fn tell(note: &str) {
    // Nowhere is left to say that standard error is closed.
    let _ = writeln!(io::stderr(), "towpath-lab: {note}");
}

/// A flag that SIGINT or SIGTERM sets; the second signal ends the program at once. Call it before other threads start.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let signals = StopSignals::new().context("cannot watch for signals")?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Owns the signal descriptor; ends with the process.
    thread::Builder::new()
        .name("lab-signals".to_owned())
        .spawn(move || {
            loop {
                // EINTR only means another look.
                let _ = poll(&mut [PollFd::new(signals.fd(), PollFlags::IN)], None);
                if signals.take().is_some() && flag.swap(true, Ordering::Relaxed) {
                    std::process::exit(i32::from(EXIT_INTERRUPTED));
                }
            }
        })
        .context("cannot start the signal thread")?;
    Ok(stop)
}
