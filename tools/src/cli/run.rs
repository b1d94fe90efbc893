//! `towpath-lab run`: options and progress.

mod text;

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;

pub(super) use self::text::text;
use super::{EXIT_INTERRUPTED, EXIT_INVALID};
use crate::format::bundle;
use crate::live::View;
use crate::progress;
use crate::run::server::ServerAdmin;
use crate::run::sizes::{self, Sizes};
use crate::run::trace::Trace;
use crate::run::verdict::Validity;
use crate::run::{self, Arrivals, BUFFER, Kind, Pace, Problem, RunResult, RunSpec, SendBy, WireGuard};
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
    /// New directory for run.json, latency.hlog, detail.hlog and latency.hgrm
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
    /// Datagrams or payload bits per second over all flows: 20kpps, 100Mbit [default: 1kpps, or the trace's]
    #[arg(long)]
    rate: Option<Rate>,
    /// UDP payload in bytes: 200, a mix like 64,594,1472 or 64:7,594:4,1472:1 (with weights), or imix
    #[arg(long, default_value = "200")]
    size: Sizes,
    /// Source ports, TURN channels, or TCP connections
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Datagrams of one flow due at the same instant; the rate stays
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// Send each burst as one superpacket (UDP GSO)
    #[arg(long)]
    gso: bool,
    /// Send so many datagrams of a flow as one superpacket when the last is due, each being due at its own time
    #[arg(long, default_value_t = 1)]
    gather: u32,
    /// The law of the gaps: poisson, periodic, on-off:ON/OFF (on-off:20ms/80ms), trace:FILE
    #[arg(long, default_value = "poisson", value_parser = arrivals)]
    arrivals: (Arrivals, Option<Trace>),
    /// How messages get to the kernel
    #[arg(long, value_enum, default_value = "sendmmsg")]
    send: SendBy,
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
    /// p99.9 of the sender's or receiver's lateness above which the run counts as generator-limited
    #[arg(long, default_value = "1ms", value_parser = humantime::parse_duration)]
    lateness_limit: Duration,
    /// Whose time stamps of arrivals are kept: the program's alone, or the kernel's too
    #[arg(long, value_enum, default_value = "user")]
    stamps: Stamps,
    /// Ask the kernel when the device took one of N sends (SO_TIMESTAMPING), and so what lies between the send call and it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tx_stamps: Option<u32>,
    /// Share of any core's time, taken by the hypervisor, above which the run is invalid
    #[arg(long, default_value = "5%", value_parser = units::parse_share)]
    steal_limit: f64,
    /// Receive buffer of the load's sockets, bytes
    #[arg(long, value_name = "BYTES", default_value_t = BUFFER)]
    receive_buffer: usize,
    /// Send buffer of the load's sockets, bytes
    #[arg(long, value_name = "BYTES", default_value_t = BUFFER)]
    send_buffer: usize,
    /// Fixes the send times and the choice of flows
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// TURN credentials NAME:PASSWORD (visible in the process list)
    #[arg(long)]
    user: Option<String>,
    /// TURN allocations over which the flows are spread
    #[arg(long, default_value_t = 1)]
    allocations: u32,
    /// File with the private key by which the server of the WireGuard kinds knows this peer
    #[arg(long, value_name = "FILE", requires_all = ["wg_server", "inner"])]
    wg_key: Option<PathBuf>,
    /// The server's public key
    #[arg(long, value_name = "KEY", requires = "wg_key")]
    wg_server: Option<String>,
    /// File with the preshared key
    #[arg(long, value_name = "FILE", requires = "wg_key")]
    wg_psk: Option<PathBuf>,
    /// This peer's address inside the tunnel
    #[arg(long, value_name = "ADDR", requires = "wg_key")]
    inner: Option<IpAddr>,
    /// Source address of the load
    #[arg(long)]
    bind: Option<IpAddr>,
    /// Address of the in-process peer of the TURN kinds, as the relay reaches it [default: the source address]; of the
    /// WireGuard kinds the server's address inside the tunnel
    #[arg(long)]
    peer: Option<IpAddr>,
    /// --admin address of a towpath or towpath-relay on the way, whose drops are put into the account by cause; may be repeated
    #[arg(long = "server-admin", value_name = "ADDR:PORT")]
    server_admins: Vec<ServerAdmin>,
    /// Process whose CPU time is divided by the datagrams; may be repeated
    #[arg(long = "dut-pid", value_name = "PID")]
    dut_pids: Vec<u32>,
}

/// Who stamps arrivals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Stamps {
    /// This program
    User,
    /// This program, and the kernel (SO_TIMESTAMPING)
    Kernel,
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
        // What is wrong, and what would be right; how it is used is said elsewhere.
        let wrong = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        wrong.split_whitespace().collect::<Vec<_>>().join(" ")
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

/// Makes the directory that a run is written to: one that cannot be made must not cost a minute of measurement, and one that holds a
/// run already not that one.
pub(super) fn claim_directory(dir: Option<&Path>) -> anyhow::Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let mut inside =
        std::fs::read_dir(dir).with_context(|| format!("cannot read the directory {}", dir.display()))?;
    match inside.next() {
        None => Ok(()),
        Some(_) => {
            let dir = dir.display();
            let text = format!(
                "--out {dir}: something is there already, which the run would replace; choose a new directory, or remove {dir} first"
            );
            Err(Problem::Usage(text).into())
        }
    }
}

/// Makes the run of `spec`, writes and prints it.
pub(super) fn perform(mut spec: RunSpec, out: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    claim_directory(out)?;
    spec.log = out.map(|dir| dir.join(bundle::LATENCY_HLOG));
    let stop: Arc<AtomicBool> = super::stop_flag()?;
    spec.stop = Some(stop);
    let result = if spec.live.is_some() { run_live(&spec)? } else { run_with_bar(&spec)? };
    // What was measured is printed even where it cannot be written.
    let written = out.map_or(Ok(()), |dir| bundle::write(&result, dir));
    if json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&result)?))?;
    } else {
        super::print(&text(&result, out.filter(|_| written.is_ok())))?;
    }
    written?;
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
    let wireguard = args.wg_key.zip(args.wg_server).zip(args.inner).map(|((key_file, server), inner)| {
        WireGuard { key_file, preshared_file: args.wg_psk, server, inner }
    });
    let (size, mix) = args.size.resolve(kind, target);
    let (arrivals, trace) = args.arrivals;
    if trace.is_some() && args.rate.is_some() {
        return Err(Problem::Usage("--arrivals trace has its own rate; leave out --rate".to_owned()));
    }
    let rate = args.rate.unwrap_or(Rate::Packets(1_000.0));
    Ok(RunSpec {
        rate_pps: rate.packets_per_second(sizes::mean(size, &mix)),
        size,
        mix,
        flows: args.flows,
        burst: args.burst,
        gso: args.gso,
        gather: args.gather,
        arrivals,
        trace,
        send: args.send,
        pace: args.pace,
        duration: args.duration,
        warmup: args.warmup,
        drain: args.drain,
        interval: args.interval,
        lateness_limit: args.lateness_limit,
        tx_stamps: args.tx_stamps.unwrap_or(0),
        kernel_stamps: args.stamps == Stamps::Kernel,
        steal_limit: args.steal_limit,
        receive_buffer: args.receive_buffer,
        send_buffer: args.send_buffer,
        seed: args.seed,
        allocations: args.allocations,
        username,
        password,
        wireguard,
        bind: args.bind,
        peer: args.peer,
        server_admins: args.server_admins,
        dut_pids: args.dut_pids,
        ..RunSpec::new(kind, target)
    })
}

/// Reads the law of the gaps.
fn arrivals(text: &str) -> Result<(Arrivals, Option<Trace>), String> {
    let wrong = || {
        format!(
            "{text:?} is no law; write poisson, periodic, on-off:20ms/80ms (sending, silent) or trace:FILE"
        )
    };
    let time = |text: &str| humantime::parse_duration(text).ok();
    match text.split_once(':') {
        None if text == "poisson" => Ok((Arrivals::Poisson, None)),
        None if text == "periodic" => Ok((Arrivals::Periodic, None)),
        Some(("trace", file)) if !file.is_empty() => {
            Ok((Arrivals::Trace, Some(Trace::new(PathBuf::from(file)))))
        }
        Some(("on-off", times)) => {
            let (on, off) = times.split_once('/').ok_or_else(wrong)?;
            let (on, off) = time(on).zip(time(off)).ok_or_else(wrong)?;
            Ok((Arrivals::OnOff { on, off }, None))
        }
        _ => Err(wrong()),
    }
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
