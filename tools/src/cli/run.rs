//! `towpath-lab run`: options, progress, and the result as text.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;

use super::{EXIT_INTERRUPTED, EXIT_INVALID};
use crate::compare::quantile_cell;
use crate::format::bundle;
use crate::live::View;
use crate::progress;
use crate::report::{Cell, Report, Section, Table};
use crate::run::ledger::{Ledger, loss_statement};
use crate::run::server::ServerAdmin;
use crate::run::verdict::Validity;
use crate::run::{self, Arrivals, Distribution, Kind, Pace, Problem, RunResult, RunSpec};
use crate::units::{self, Rate};

/// Options of `towpath-lab run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The way the load takes
    #[arg(value_enum)]
    kind: Kind,
    /// ADDRESS:PORT of the reflector, or of the relay for the TURN kinds
    target: String,
    #[command(flatten)]
    load: Load,
    /// Directory for run.json, latency.hlog, detail.hlog and latency.hgrm
    #[arg(long)]
    out: Option<PathBuf>,
    /// Name of the run in tables and plots
    #[arg(long, default_value = "")]
    label: String,
    /// Print run.json instead of a table
    #[arg(long)]
    json: bool,
    /// Show each second on the terminal while the run goes on
    #[arg(long)]
    live: bool,
}

/// What is sent and how: the options of every command that makes runs.
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// Datagrams or payload bits per second over all flows: 20kpps, 100Mbit
    #[arg(long, default_value = "1kpps")]
    rate: Rate,
    /// UDP payload in bytes
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// Source ports, or TURN channels
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Datagrams of one flow due at the same instant; the rate stays
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// Send each burst as one superpacket (UDP GSO)
    #[arg(long)]
    gso: bool,
    /// The law of the gaps
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: Arrivals,
    /// How the sender waits for the next send time
    #[arg(long, value_enum, default_value = "hybrid")]
    pace: Pace,
    /// Time of measured sending
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Unmeasured sending before it
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// How long after the last send an arrival still counts
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// Length of one line of the interval log
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// p99.9 of the sender's lateness above which the run counts as generator-limited
    #[arg(long, default_value = "1ms", value_parser = humantime::parse_duration)]
    lateness_limit: Duration,
    /// Fixes the send times and the choice of flows
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// TURN credentials NAME:PASSWORD (visible in the process list)
    #[arg(long)]
    user: Option<String>,
    /// TURN allocations over which the flows are spread
    #[arg(long, default_value_t = 1)]
    allocations: u32,
    /// Source address of the load
    #[arg(long)]
    bind: Option<IpAddr>,
    /// Address of the in-process peer of the TURN kinds, as the relay reaches it [default: the source address]
    #[arg(long)]
    peer: Option<IpAddr>,
    /// --admin address of a towpath or towpath-relay on the way, whose drops are put into the account by cause; may be repeated
    #[arg(long = "server-admin", value_name = "ADDR:PORT")]
    server_admins: Vec<ServerAdmin>,
    /// Process whose CPU time is divided by the datagrams; may be repeated
    #[arg(long = "dut-pid", value_name = "PID")]
    dut_pids: Vec<u32>,
}

/// A run's options alone, as scenarios have them.
#[derive(Debug, clap::Parser)]
#[command(name = "towpath-lab run")]
struct Alone {
    #[command(flatten)]
    args: Args,
}

/// What the words behind `towpath-lab run` ask for.
///
/// # Errors
/// What is wrong with them, in one line.
pub(crate) fn spec_of(words: &[String]) -> Result<RunSpec, String> {
    use clap::Parser as _;
    let words = std::iter::once("towpath-lab run").chain(words.iter().map(String::as_str));
    let alone = Alone::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })?;
    let spec = spec_of_args(alone.args).map_err(|problem| problem.to_string())?;
    spec.check().map_err(|problem| problem.to_string())?;
    Ok(spec)
}

fn spec_of_args(args: Args) -> Result<RunSpec, Problem> {
    let target = resolve(&args.target)?;
    Ok(RunSpec { label: args.label, ..spec(args.kind, target, args.load)? })
}

/// Makes the run, writes and prints it.
pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let (json, out, live) = (args.json, args.out.clone(), args.live);
    let mut spec = spec_of_args(args)?;
    spec.live = live.then(Arc::default);
    spec.check()?;
    perform(spec, out.as_deref(), json)
}

/// Makes the directory that a run is written to: one that cannot be made must not cost a minute of measurement.
pub(super) fn make_directory(dir: Option<&Path>) -> anyhow::Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))
}

/// Makes the run of `spec`, writes and prints it.
pub(super) fn perform(mut spec: RunSpec, out: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    make_directory(out)?;
    let stop: Arc<AtomicBool> = super::stop_flag()?;
    spec.stop = Some(stop);
    let result = if spec.live.is_some() { run_live(&spec)? } else { run_with_bar(&spec)? };
    if let Some(dir) = out {
        bundle::write(&result, dir)?;
    }
    if json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&result)?))?;
    } else {
        super::print(&text(&result, out))?;
    }
    Ok(ExitCode::from(match (result.interrupted, result.verdict.validity) {
        (true, _) => EXIT_INTERRUPTED,
        (false, Validity::Valid) => 0,
        (false, _) => EXIT_INVALID,
    }))
}

fn run_with_bar(spec: &RunSpec) -> anyhow::Result<RunResult> {
    let bar = progress::bar(1);
    bar.set_message(format!("{} {}", spec.kind.name(), spec.target));
    let result = run::run(spec, |share| progress::step(&bar, 0, share));
    bar.finish_and_clear();
    result
}

/// The terminal is given back before anything is printed.
fn run_live(spec: &RunSpec) -> anyhow::Result<RunResult> {
    if !std::io::stdout().is_terminal() {
        let text = "--live draws on a terminal, which standard output is not; leave it out";
        return Err(Problem::Usage(text.to_owned()).into());
    }
    let view =
        View::start(spec, spec.live.clone().unwrap_or_default(), spec.stop.clone().unwrap_or_default())?;
    let result = run::run(spec, |_| {});
    let ended = view.end();
    let result = result?;
    // What was measured counts more than how it was shown.
    if let Err(error) = ended {
        super::tell(&format!("{error:#}"));
    }
    Ok(result)
}

/// NAME:PASSWORD in its parts.
pub(super) fn credentials(user: &str) -> Result<(String, String), Problem> {
    let (name, password) = user
        .split_once(':')
        .ok_or_else(|| Problem::Usage("--user needs NAME:PASSWORD, with a colon between them".to_owned()))?;
    Ok((name.to_owned(), password.to_owned()))
}

/// The runs that are asked for.
///
/// # Errors
/// [`Problem::Usage`] when the credentials are not NAME:PASSWORD.
pub(super) fn spec(kind: Kind, target: SocketAddr, args: Load) -> Result<RunSpec, Problem> {
    let (username, password) = args.user.as_deref().map(credentials).transpose()?.unzip();
    let rate_pps = args.rate.packets_per_second(args.size);
    Ok(RunSpec {
        rate_pps,
        size: args.size,
        flows: args.flows,
        burst: args.burst,
        gso: args.gso,
        arrivals: args.arrivals,
        pace: args.pace,
        duration: args.duration,
        warmup: args.warmup,
        drain: args.drain,
        interval: args.interval,
        lateness_limit: args.lateness_limit,
        seed: args.seed,
        allocations: args.allocations,
        username,
        password,
        bind: args.bind,
        peer: args.peer,
        server_admins: args.server_admins,
        dut_pids: args.dut_pids,
        ..RunSpec::new(kind, target)
    })
}

/// The first address of `target`.
///
/// # Errors
/// [`Problem::Usage`] when there is none.
pub(super) fn resolve(target: &str) -> Result<SocketAddr, Problem> {
    let form = "write it as ADDRESS:PORT, for example 127.0.0.1:9000 or [::1]:9000";
    let mut addresses = target
        .to_socket_addrs()
        .map_err(|error| Problem::Usage(format!("target {target:?}: {error}; {form}")))?;
    addresses.next().ok_or_else(|| Problem::Usage(format!("target {target:?} has no address; {form}")))
}

/// The result as a person reads it.
pub(super) fn text(result: &RunResult, out: Option<&Path>) -> String {
    let spec = &result.spec;
    let mut table = Table { header: header(), rows: Vec::new() };
    let latency = &result.latency;
    table.rows.push(row("response (from the intended send time)", &latency.response));
    table.rows.push(row("service (from the actual send time)", &latency.service));
    if let Some(up) = &latency.up {
        table.rows.push(row("  there, one way", up));
    }
    if let Some(down) = &latency.down {
        table.rows.push(row("  back, one way", down));
    }
    table.rows.push(row("lateness of the sender", &latency.lateness));
    let mut notes: Vec<String> = result
        .verdict
        .reasons
        .iter()
        .map(|reason| format!("{}: {reason}", result.verdict.validity.name()))
        .collect();
    notes.extend([
        format!(
            "offered {} (intended {}), received {}; {} B, {} flows, seed {}",
            units::rate(result.offered_pps),
            units::rate(spec.rate_pps),
            units::rate(result.received_pps),
            spec.size,
            spec.flows,
            spec.seed
        ),
        sums("ledger", &result.ledger),
    ]);
    notes.extend(result.ledger_up.iter().map(|ledger| sums("  there", ledger)));
    notes.extend(result.ledger_down.iter().map(|ledger| sums("  back", ledger)));
    notes.push(result.account.line());
    notes.push(loss_statement(&result.ledger));
    notes.extend(result.dut.iter().map(|dut| {
        let early = if dut.ended_early { " (ended before the run)" } else { "" };
        format!("process {} {}: {} on a processor{early}", dut.pid, dut.name, units::nanoseconds(dut.cpu_ns))
    }));
    notes.extend(
        result
            .dut_cpu_ns_per_packet
            .map(|ns| format!("CPU per datagram carried one way: {}", units::nanoseconds(ns as u64))),
    );
    notes.extend(result.verdict.notes.iter().cloned());
    notes.extend(out.map(|dir| format!("written to {}", dir.display())));
    let title = format!("{}  {} {}", result.verdict.validity.name(), spec.kind.name(), spec.target);
    Report { title, notes: vec![], sections: vec![Section { table, notes, ..Section::default() }] }.to_text()
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
