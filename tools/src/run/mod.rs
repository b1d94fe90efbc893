//! One measured run: open-loop load, exact ledger, latency from the intended send time, and a verdict on itself.
//!
//! ```text
//!  schedule (seed) ─► sender thread ─► path under test ─► receiver thread ─► ledger, histograms
//!                                    (TURN kinds: a peer thread is the far end)
//! ```
//! What differs between kinds is the outlet ([`sender::Outlet`]), the framing on the way out ([`frame::Wrap`]) and on the way
//! in ([`receiver::Framing`]).

pub mod account;
pub mod clock;
pub mod datagrams;
pub mod devices;
pub mod distribution;
pub mod dut;
pub mod environment;
pub mod frame;
pub mod intervals;
mod kind;
pub mod ledger;
mod legs;
pub mod live;
mod measure;
pub mod order;
mod pace;
pub mod path;
pub mod payload;
mod peer;
mod post;
mod problem;
pub mod receiver;
mod result;
pub mod schedule;
pub mod sender;
pub mod server;
pub mod sizes;
mod spec;
pub mod stall;
pub mod tcp;
pub mod trace;
pub mod transmit;
mod turn;
pub mod verdict;
mod wireguard;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

pub use distribution::{CurvePoint, Distribution, Grade, Quantile};
pub use kind::Kind;
pub use problem::Problem;
pub use result::{Histograms, Latency, RunResult, SCHEMA};
pub use spec::{Arrivals, BUFFER, CHANNELS_PER_ALLOCATION, Pace, RunSpec, STEAL_LIMIT, SendBy};
pub use wireguard::WireGuard;

use clock::monotonic_ns;
use datagrams::Datagrams;
use dataplane::sys::udp::UdpSocket;
use frame::{Prefix, Wrap};
use measure::Ends;
use path::Path;
use payload::{Header, Parsed, Phase};
use peer::{Books, Peer};
use receiver::{Framing, Plain, Poller, Receiver, Shared};
use sender::Outcome;

/// How often the check that the far end answers is repeated.
const PROBE_EVERY_NS: u64 = 200_000_000;

/// Makes one run. `progress` is called about ten times a second with the share of the sending time that has passed.
///
/// # Errors
/// [`Problem`] inside the error says whether the request or the surroundings are at fault; the message names the fix.
pub fn run(spec: &RunSpec, progress: impl Fn(f64)) -> anyhow::Result<RunResult> {
    let loaded = load(spec)?;
    let spec = loaded.as_ref().unwrap_or(spec);
    spec.check()?;
    // Read again when measured sending starts; a wrong process id should not cost a warm-up.
    dut::Snapshot::take(&spec.dut_pids)?;
    let run_id = run_id();
    match spec.kind {
        Kind::Udp | Kind::Tunnel => {
            let path = Path::plain(spec)?;
            let mut way = Way { out: &path, wrap: Prefix::None, back: &path.sockets, framing: Plain };
            probe(spec, run_id, &mut way, None)?;
            measure_datagrams(spec, run_id, &mut way, &[], progress)
        }
        Kind::TurnChannel | Kind::TurnSend => run_turn(spec, run_id, progress),
        Kind::WgRx | Kind::WgTx => run_wireguard(spec, run_id, progress),
        Kind::Tcp => run_tcp(spec, run_id, progress),
    }
}

/// Reads the trace of a spec that has one, which decides rate and sizes; [`run`] does so itself.
///
/// # Errors
/// [`Problem::Usage`] when there is no such file, or a line of it is wrong.
pub fn load(spec: &RunSpec) -> Result<Option<RunSpec>, Problem> {
    if spec.arrivals != Arrivals::Trace {
        return Ok(None);
    }
    let Some(trace) = &spec.trace else {
        return Err(Problem::Usage("--arrivals trace needs its file: --arrivals trace:FILE".to_owned()));
    };
    let trace = trace.load()?;
    let mut loaded = spec.clone();
    if let Some(points) = trace.points() {
        loaded.rate_pps = points.rate_pps();
        loaded.size = points.size_max(spec.size);
    }
    loaded.trace = Some(trace);
    Ok(Some(loaded))
}

fn run_turn(spec: &RunSpec, run_id: u64, progress: impl Fn(f64)) -> anyhow::Result<RunResult> {
    let turn::Relayed { path, wrap, framing, peers } = turn::connect(spec)?;
    let mut way = Way { out: &path, wrap, back: &path.sockets, framing };
    let probed = Peer::new(&peers, Books::new(run_id, &[]))
        .map_err(|error| Problem::Setup(format!("cannot wait for the relay's datagrams: {error}")))
        .and_then(|mut peer| probe(spec, run_id, &mut way, Some(&mut peer)));
    if let Err(problem) = probed {
        way.framing.close();
        // Why nothing came through, where the relay has said it.
        return Err(match (problem, way.framing.trouble()) {
            (Problem::Setup(_), Some(trouble)) => Problem::Setup(trouble.to_owned()).into(),
            (problem, _) => problem.into(),
        });
    }
    let result = measure_datagrams(spec, run_id, &mut way, &peers, progress);
    let trouble = way.framing.trouble().map(str::to_owned);
    way.framing.close();
    let mut result = result?;
    result.verdict.notes.extend(trouble);
    Ok(result)
}

fn run_wireguard(spec: &RunSpec, run_id: u64, progress: impl Fn(f64)) -> anyhow::Result<RunResult> {
    let wireguard::Connected { outer, inner, peer } = wireguard::connect(spec)?;
    let outer = [outer];
    let (mut result, trouble) = if spec.kind == Kind::WgRx {
        let path = wireguard::sealed_path(spec, &outer[0]);
        let wrap = wireguard::Sealer::new(spec, peer, inner[0].local_addr());
        let mut way = Way { out: &path, wrap, back: &inner, framing: Plain };
        probe(spec, run_id, &mut way, None)?;
        (measure_datagrams(spec, run_id, &mut way, &[], progress)?, way.wrap.trouble())
    } else {
        let path = wireguard::plain_path(spec, &inner);
        let framing = wireguard::Opener::new(peer);
        let mut way = Way { out: &path, wrap: Prefix::None, back: &outer, framing };
        probe(spec, run_id, &mut way, None)?;
        (measure_datagrams(spec, run_id, &mut way, &[], progress)?, way.framing.trouble())
    };
    result.verdict.notes.extend(trouble.map(str::to_owned));
    Ok(result)
}

fn run_tcp(spec: &RunSpec, run_id: u64, progress: impl Fn(f64)) -> anyhow::Result<RunResult> {
    let streams = tcp::connect(spec, run_id)?;
    let ends = Ends {
        send: |timing, shared: &Shared, stop: &AtomicBool| {
            sender::send(spec, &mut tcp::Streams::new(spec, &streams, run_id), timing, shared, stop)
        },
        receive: |receiver: &mut Receiver, drain_ns, shared: &Shared| {
            tcp::receive(&streams, receiver, drain_ns, shared)
        },
        // A connection drops nothing without sending it again.
        sockets: Vec::new(),
        peers: None,
    };
    measure::measure(spec, run_id, ends, progress)
}

/// How datagrams leave, and how they come back.
struct Way<'a, W, F> {
    out: &'a Path,
    wrap: W,
    back: &'a [UdpSocket],
    framing: F,
}

/// Measures over UDP. `peers` are the sockets of a far end in this process that sends everything back, if there is one.
fn measure_datagrams<W: Wrap + Send, F: Framing + Send>(
    spec: &RunSpec,
    run_id: u64,
    way: &mut Way<'_, W, F>,
    peers: &[UdpSocket],
    progress: impl Fn(f64),
) -> anyhow::Result<RunResult> {
    let (out, back) = (way.out, way.back);
    let (wrap, framing) = (&mut way.wrap, &mut way.framing);
    let ends = Ends {
        send: move |timing, shared: &Shared, stop: &AtomicBool| {
            let mut outlet = Datagrams::new(spec, out, run_id, wrap)?;
            let outcome = sender::send(spec, &mut outlet, timing, shared, stop)?;
            let (asked, segments_max) = outlet.finish();
            Ok(Outcome { asked, segments_max, ..outcome })
        },
        receive: move |receiver: &mut Receiver, drain_ns, shared: &Shared| {
            receiver.run(back, framing, drain_ns, shared)
        },
        sockets: back.iter().chain(peers).cloned().collect(),
        peers: (!peers.is_empty()).then_some(peers),
    };
    measure::measure(spec, run_id, ends, progress)
}

/// Sends a datagram on the first flow until it arrives: a run against nothing would only measure its absence.
/// `peer` is the far end when it is in this process and sends back.
fn probe<W: Wrap, F: Framing>(
    spec: &RunSpec,
    run_id: u64,
    way: &mut Way<'_, W, F>,
    mut peer: Option<&mut Peer<'_>>,
) -> Result<(), Problem> {
    let failed = |error: std::io::Error| Problem::Setup(format!("cannot send to {}: {error}", spec.target));
    if spec.send == SendBy::Uring {
        post::Post::new(spec.send).map_err(|error| {
            Problem::Setup(format!("--send uring: {error}; use --send sendmmsg, or allow io_uring (sysctl kernel.io_uring_disabled=0)"))
        })?;
    }
    // A tunnel may first have to make its handshake, which is tried again after 5 s (WireGuard's REKEY_TIMEOUT).
    let patience_ns = if spec.kind.inside_tunnel() { 12_000_000_000 } else { 3_000_000_000 };
    let deadline = monotonic_ns() + patience_ns;
    let mut poller = Poller::new(way.back).map_err(failed)?;
    let mut next_probe = 0;
    let mut last_error = None;
    let mut answered = false;
    let nothing_yet = Shared::default();
    while !answered {
        let now = monotonic_ns();
        if spec.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(Problem::Interrupted);
        }
        if now > deadline {
            return Err(Problem::Setup(no_answer(spec, last_error)));
        }
        if now >= next_probe {
            next_probe = now + PROBE_EVERY_NS;
            last_error = send_probe(spec, run_id, way.out, &mut way.wrap, now).err();
        }
        let framing = &mut way.framing;
        poller
            .receive(way.back, |socket, datagram, _| {
                let Some(payload) = framing.payload(socket, datagram) else { return };
                let parsed = payload::parse(payload);
                answered |= matches!(parsed, Parsed::Good(header) if header.run_id == run_id);
            })
            .map_err(failed)?;
        framing.tick();
        way.wrap.tick();
        if let Some(peer) = &mut peer {
            peer.poll(u64::MAX, &nothing_yet).map_err(failed)?;
        }
    }
    Ok(())
}

fn send_probe<W: Wrap>(
    spec: &RunSpec,
    run_id: u64,
    path: &Path,
    wrap: &mut W,
    now: u64,
) -> std::io::Result<()> {
    let flow = &path.flows[0];
    let mut frame = vec![0; wrap.frame_len(spec.size)];
    let header = Header {
        phase: Phase::Probe,
        returned: false,
        run_id,
        flow: 0,
        seq: 0,
        intended_ns: now,
        actual_ns: now,
        turned_ns: 0,
    };
    wrap.begin();
    wrap.write(&mut frame, flow, &header, spec.size);
    path.sockets[flow.socket].send_segments(flow.to, None, 0, &frame, frame.len())
}

fn no_answer(spec: &RunSpec, last_error: Option<std::io::Error>) -> String {
    let target: SocketAddr = spec.target;
    let cause = last_error.map(|error| format!(" (last error: {error})")).unwrap_or_default();
    if spec.kind.is_turn() {
        return format!(
            "the relay {target} accepted the allocation but carries no data{cause}; allow this peer on it (towpath-relay: --allow-peer)"
        );
    }
    if let Some((wireguard, far)) = spec.wireguard.as_ref().zip(spec.peer) {
        let fix = format!(
            "--peer {far} has to be on its interface, --inner {} routed to that, --size to fit its MTU",
            wireguard.inner
        );
        return format!("the handshake with {target} succeeded but no packet came through{cause}; {fix}");
    }
    format!(
        "nothing came back from {target}{cause}; start `towpath-lab reflect {target}` there, or check route and firewall"
    )
}

/// A number that no other run is likely to have: random keys of the standard library over time and process id.
fn run_id() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one((clock::realtime_ns(), std::process::id()))
}
