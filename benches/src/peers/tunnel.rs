//! What tunnels carry: streams of iperf3, datagrams, and both at once.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tools::netns::Address;

use super::ends::{INSIDE, MTU, PATIENCE, Tunnel, inner_sockets};
use super::figures::{Figure, Sample, times};
use super::programs::Programs;
use super::rows::Contender;
use super::search;
use super::world::World;
use crate::latency::{self, Probe};
use crate::load::{self, Flow, Load};
use crate::process::{Process, Role};

/// How long a stream runs before something else is measured beside it.
const RAMP: Duration = Duration::from_millis(500);

/// iperf3 from A to B.
pub(super) struct Iperf {
    client: Process,
    server: Process,
    seconds: u64,
}

/// What it says.
pub(super) struct Streams {
    bytes: f64,
    pub(super) gbit_s: f64,
    /// Segments sent again, by segments sent.
    again: f64,
}

impl Iperf {
    /// Starts it between two addresses, for `duration` in whole seconds, since it counts in these; as fast as it can or at
    /// `rate` bits a second.
    pub(super) fn start(
        world: &World,
        programs: &Programs,
        [from, to]: [Ipv4Addr; 2],
        streams: u8,
        duration: Duration,
        rate: Option<f64>,
    ) -> anyhow::Result<Self> {
        let iperf = programs.path("iperf3")?;
        let command = |arguments: &[&str]| -> Vec<String> {
            std::iter::once(iperf.as_str()).chain(arguments.iter().copied()).map(str::to_owned).collect()
        };
        let (from, to) = (from.to_string(), to.to_string());
        let serve = command(&["-s", "-1", "-B", &to, "--forceflush"]);
        let mut server = Process::start("iperf3 -s", Role::Program, &serve, Some(&world.topology.b))?;
        server.wait_for("listening", PATIENCE)?;
        let seconds = (duration.as_secs_f64().ceil() as u64).max(1);
        let (length, parallel) = (seconds.to_string(), streams.to_string());
        // 0 stands for no limit.
        let rate = format!("{:.0}", rate.unwrap_or(0.0));
        let call = [
            "-c",
            &to,
            "-B",
            &from,
            "-t",
            &length,
            "-P",
            &parallel,
            "-b",
            &rate,
            "-J",
            "--connect-timeout",
            "3000",
        ];
        let client = Process::start("iperf3 -c", Role::Program, &command(&call), Some(&world.topology.a))?;
        Ok(Self { client, server, seconds })
    }

    pub(super) fn finish(self) -> anyhow::Result<Streams> {
        let output = self.client.finish(Duration::from_secs(self.seconds) + PATIENCE)?.join("\n");
        drop(self.server);
        let result: Value = serde_json::from_str(&output).context("iperf3 answers no JSON")?;
        let figure = |part: &str, name: &str| result["end"][part][name].as_f64();
        let bytes = figure("sum_received", "bytes").context("iperf3 counts no bytes")?;
        let bits = figure("sum_received", "bits_per_second").context("iperf3 knows no rate")?;
        if bytes < 1e6 {
            bail!("iperf3 carried {bytes} bytes");
        }
        // 52 bytes of each packet are IP and TCP headers with timestamps.
        let segments = bytes / f64::from(MTU - 52);
        let again = figure("sum_sent", "retransmits").unwrap_or(0.0) / segments;
        Ok(Streams { bytes, gbit_s: bits / 1e9, again })
    }
}

/// One turn: TCP streams of iperf3 from A to B.
///
/// # Errors
/// When the tunnel or iperf3 does not work.
pub fn stream(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    streams: u8,
    duration: Duration,
) -> anyhow::Result<Sample> {
    let tunnel = Tunnel::start(world, contender, programs)?;
    let before = tunnel.cpu_seconds()?;
    let carried = Iperf::start(world, programs, INSIDE, streams, duration, None)?.finish()?;
    let used = tunnel.cpu_seconds_since(before)?;
    let mut figures = costs(used, carried.bytes / 1e9);
    figures.push((Figure::Rate, carried.gbit_s));
    finish(tunnel, figures, carried.again)
}

/// One turn: a TCP stream of iperf3 from A to B over the bare cable; the CPU time is iperf3's, which is what the stream
/// costs without a tunnel.
///
/// # Errors
/// When iperf3 does not work.
pub fn cable(world: &World, programs: &Programs, duration: Duration) -> anyhow::Result<Sample> {
    let iperf = Iperf::start(world, programs, [Address::A_DIRECT, Address::B_DIRECT], 1, duration, None)?;
    let both = [iperf.client.pid(), iperf.server.pid()];
    // Looked at before it ends, since then nothing is left to look at.
    let cpu = || both.iter().map(|&pid| load::cpu_seconds(pid)).sum::<std::io::Result<f64>>();
    let wait = Duration::from_secs(iperf.seconds).mul_f64(0.25);
    std::thread::sleep(wait);
    let before = cpu()?;
    std::thread::sleep(wait * 2);
    let used_a_second = (cpu()? - before) / (wait * 2).as_secs_f64();
    let resident_kib = both.iter().map(|&pid| load::resident_kib(pid, "VmHWM")).max().unwrap_or(0);
    let carried = iperf.finish()?;
    let bytes_a_second = carried.gbit_s * 1e9 / 8.0;
    let figures = vec![(Figure::Cost, used_a_second * 1e9 / bytes_a_second), (Figure::Rate, carried.gbit_s)];
    Ok(Sample { figures, lost: carried.again, resident_kib, ledger: None })
}

/// One turn: UDP datagrams from A to B.
///
/// # Errors
/// When the tunnel does not work.
pub fn datagrams(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    load: Load,
) -> anyhow::Result<Sample> {
    let tunnel = Tunnel::start(world, contender, programs)?;
    let [source, sink] = inner_sockets(world)?;
    let flow = Flow { socket: source, to: sink.local_addr(), header: Vec::new() };
    let before = tunnel.cpu_seconds()?;
    let counted = load::run(load, &[flow], &sink)?;
    let used = tunnel.cpu_seconds_since(before)?;
    if counted.arrived == 0 {
        bail!("nothing arrived at the other end");
    }
    let mut figures = costs(used, counted.arrived as f64 / 1e9);
    figures.push((Figure::Rate, counted.arrived as f64 / load.duration.as_secs_f64() / 1e3));
    finish(tunnel, figures, 1.0 - counted.share())
}

/// One turn: the search for the highest rate of datagrams of `size` bytes that arrive whole, but for
/// [`search::LOST_MAX`].
///
/// # Errors
/// When the tunnel does not work, or not even the lowest rate arrives.
pub fn loss_free(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    size: usize,
    trial: Duration,
) -> anyhow::Result<Sample> {
    let tunnel = Tunnel::start(world, contender, programs)?;
    let [source, sink] = inner_sockets(world)?;
    let flows = [Flow { socket: source, to: sink.local_addr(), header: Vec::new() }];
    let found = search::loss_free(size, trial, |load| Ok(load::run(load, &flows, &sink)?))?;
    finish(tunnel, vec![(Figure::Rate, found.rate as f64 / 1e3)], found.lost)
}

/// One turn: datagrams there and back, each timed; with `beside`, while a TCP stream goes from A to B.
///
/// # Errors
/// When the tunnel or iperf3 does not work.
pub fn echo(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    probe: Probe,
    beside: bool,
) -> anyhow::Result<Sample> {
    let tunnel = Tunnel::start(world, contender, programs)?;
    let [near, far] = inner_sockets(world)?;
    let flow = Flow { socket: near.clone(), to: far.local_addr(), header: Vec::new() };
    let iperf = if beside {
        let iperf = Iperf::start(world, programs, INSIDE, 1, probe.duration + RAMP * 2, None)?;
        std::thread::sleep(RAMP);
        Some(iperf)
    } else {
        None
    };
    let latencies = latency::run(probe, &flow, Some(&far), &near)?;
    let gbit_s = iperf.map(|iperf| Ok::<_, anyhow::Error>(iperf.finish()?.gbit_s)).transpose()?;
    if latencies.arrived() == 0 {
        bail!("nothing came back");
    }
    let mut figures = times(&latencies);
    figures.push((Figure::Rate, gbit_s.unwrap_or(probe.rate as f64 / 1e3)));
    finish(tunnel, figures, latencies.lost())
}

/// What `work` units cost both ends together, and each.
fn costs(used: [f64; 2], work: f64) -> Vec<(Figure, f64)> {
    let [sending, receiving] = used.map(|seconds| seconds / work);
    vec![
        (Figure::Cost, sending + receiving),
        (Figure::CostSending, sending),
        (Figure::CostReceiving, receiving),
    ]
}

/// Ends the tunnel; `figures` and what the ends say are the turn's.
fn finish(tunnel: Tunnel, figures: Vec<(Figure, f64)>, lost: f64) -> anyhow::Result<Sample> {
    let resident_kib = tunnel.resident_kib();
    Ok(Sample { figures, lost, resident_kib, ledger: tunnel.stop()? })
}
