//! One measured run: open-loop load, exact ledger, latency from the intended send time, and a verdict on itself.
//!
//! ```text
//!  schedule (seed) ─► sender thread ─► path under test ─► receiver thread ─► ledger, histograms
//!                                    (TURN kinds: a peer thread is the far end)
//! ```

pub mod account;
pub mod clock;
pub mod distribution;
pub mod dut;
pub mod environment;
pub mod ledger;
pub mod live;
mod measure;
mod pace;
pub mod path;
pub mod payload;
mod peer;
mod problem;
pub mod receiver;
mod result;
pub mod schedule;
pub mod sender;
pub mod server;
mod spec;
mod turn;
pub mod verdict;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

pub use distribution::{CurvePoint, Distribution, Grade, Quantile};
pub use problem::Problem;
pub use result::{Histograms, Interval, Latency, RunResult, SCHEMA};
pub use spec::{Arrivals, CHANNELS_PER_ALLOCATION, Kind, Pace, RunSpec};

use clock::monotonic_ns;
use path::Path;
use payload::{Header, Parsed, Phase};
use peer::{Books, Peer};
use receiver::{Framing, Plain, Poller};

/// How often the check that the far end answers is repeated.
const PROBE_EVERY_NS: u64 = 200_000_000;

/// Makes one run. `progress` is called about ten times a second with the share of the sending time that has passed.
///
/// # Errors
/// [`Problem`] inside the error says whether the request or the surroundings are at fault; the message names the fix.
pub fn run(spec: &RunSpec, progress: impl Fn(f64)) -> anyhow::Result<RunResult> {
    spec.check()?;
    // Read again when measured sending starts; a wrong process id should not cost a warm-up.
    dut::Snapshot::take(&spec.dut_pids)?;
    let run_id = run_id();
    if !spec.kind.is_turn() {
        let path = Path::plain(spec)?;
        probe(spec, &path, run_id, &mut Plain, None)?;
        let (result, _) = measure::measure(spec, &path, run_id, Plain, None, progress)?;
        return Ok(result);
    }
    let turn::Relayed { path, mut framing, peers } = turn::connect(spec)?;
    let probed = Peer::new(&peers, Books::new(spec, run_id, &[]))
        .map_err(|error| Problem::Setup(format!("cannot wait for the relay's datagrams: {error}")))
        .and_then(|mut peer| probe(spec, &path, run_id, &mut framing, Some(&mut peer)));
    if let Err(problem) = probed {
        framing.close();
        return Err(problem.into());
    }
    let (mut result, mut framing) = measure::measure(spec, &path, run_id, framing, Some(&peers), progress)?;
    result.verdict.notes.extend(framing.trouble().map(str::to_owned));
    framing.close();
    Ok(result)
}

/// Sends a datagram on the first flow until it comes back: a run against nothing would only measure its absence.
/// `peer` is the far end when it is in this process.
fn probe<F: Framing>(
    spec: &RunSpec,
    path: &Path,
    run_id: u64,
    framing: &mut F,
    mut peer: Option<&mut Peer<'_>>,
) -> Result<(), Problem> {
    let failed = |error: std::io::Error| Problem::Setup(format!("cannot send to {}: {error}", spec.target));
    // A tunnel may first have to make its handshake, which is tried again after 5 s (WireGuard's REKEY_TIMEOUT).
    let patience_ns = if spec.kind == Kind::Tunnel { 12_000_000_000 } else { 3_000_000_000 };
    let deadline = monotonic_ns() + patience_ns;
    let mut poller = Poller::new(&path.sockets).map_err(failed)?;
    let mut next_probe = 0;
    let mut last_error = None;
    let mut answered = false;
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
            last_error = send_probe(spec, path, run_id, now).err();
        }
        poller
            .receive(&path.sockets, |socket, datagram, _| {
                let Some(payload) = framing.payload(socket, datagram) else { return };
                let parsed = payload::parse(payload, spec.size);
                answered |= matches!(parsed, Parsed::Good(header) if header.run_id == run_id);
            })
            .map_err(failed)?;
        framing.tick();
        if let Some(peer) = &mut peer {
            peer.poll(u64::MAX).map_err(failed)?;
        }
    }
    Ok(())
}

fn send_probe(spec: &RunSpec, path: &Path, run_id: u64, now: u64) -> std::io::Result<()> {
    let flow = &path.flows[0];
    let mut frame = flow.prefix.clone();
    frame.resize(path.prefix_len + spec.size + path.padding, 0);
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
    payload::write(&mut frame[path.prefix_len..path.prefix_len + spec.size], &header);
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
    format!(
        "nothing came back from {target}{cause}; start `towpath-lab reflect {target}` there, or check route and firewall"
    )
}

/// A number that no other run is likely to have: random keys of the standard library over time and process id.
fn run_id() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one((clock::realtime_ns(), std::process::id()))
}
