//! Runs sender and receiver side by side and puts together what they found.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::Context;
use dataplane::sys::udp::UdpSocket;

use super::account::{Account, Own};
use super::clock::{Offset, StepWatch, monotonic_ns, realtime_ns, rfc3339, suspended_ns};
use super::devices;
use super::distribution::{Distribution, curve};
use super::dut::{DutCpu, Snapshot};
use super::environment::{Environment, steal_ticks};
use super::ledger::Ledger;
use super::path::socket_drops;
use super::peer::{Books, Peer};
use super::receiver::{Receiver, Shared};
use super::result::{Histograms, Latency, RunResult, SCHEMA};
use super::schedule::{self, Schedule};
use super::sender::{Outcome, Timing};
use super::server;
use super::spec::RunSpec;
use super::verdict::{self, Observations, Tolerance, Verdict};

/// Time for the threads to start before the first datagram is due.
const LEAD_NS: u64 = 20_000_000;
/// How often progress is reported and the request to stop is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the sockets of a run that is looked at are asked for what they dropped.
const LOOK_NS: u64 = 1_000_000_000;

/// Shortest and longest silence between warm-up and measured sending, in which servers are asked what they have lost so far;
/// the drain in between.
const SILENCE_NS: (u64, u64) = (200_000_000, 2_000_000_000);

/// What the main thread reads before and after measured sending.
struct Surroundings {
    cpu: Snapshot,
    servers: Option<(server::Snapshot, devices::Snapshot)>,
    drops: u64,
    steal: Option<(u64, u64)>,
    suspended_ns: u64,
    started_unix_ns: u64,
}

/// What the threads found.
struct Found {
    outcome: Outcome,
    receiver: Receiver,
    peer: Option<Books>,
    before: Surroundings,
    clock_step_ns: u64,
    interrupted: bool,
}

/// The two ends of a run, each worked by a thread of its own.
pub(super) struct Ends<'a, S, R> {
    /// Sends the schedule on the thread that calls it.
    pub send: S,
    /// Receives until the drain is over.
    pub receive: R,
    /// Every socket that the generator itself receives on.
    pub sockets: Vec<UdpSocket>,
    /// The sockets of a far end in this process that sends everything back.
    pub peers: Option<&'a [UdpSocket]>,
}

/// Measures between two ends that reach each other.
pub(super) fn measure<S, R>(
    spec: &RunSpec,
    run_id: u64,
    ends: Ends<'_, S, R>,
    progress: impl Fn(f64),
) -> anyhow::Result<RunResult>
where
    S: FnOnce(Timing, &AtomicBool) -> std::io::Result<Outcome> + Send,
    R: FnOnce(&mut Receiver, u64, &Shared) -> std::io::Result<()> + Send,
{
    let Ends { send, receive, sockets, peers } = ends;
    let duration_ns = spec.duration.as_nanos() as u64;
    let intended = Schedule::new(spec, 1, duration_ns).count_by_flow();
    let mut books = peers.map(|peers| (peers, Books::new(run_id, &intended)));
    let warmup_ns = monotonic_ns() + LEAD_NS;
    let warmup_end_ns = warmup_ns + spec.warmup.as_nanos() as u64;
    let drain_ns = spec.drain.as_nanos() as u64;
    let silence_ns = if spec.server_admins.is_empty() && spec.hosts.is_empty() {
        0
    } else {
        drain_ns.clamp(SILENCE_NS.0, SILENCE_NS.1)
    };
    let start_ns = warmup_end_ns + silence_ns;
    let timing = Timing { warmup_ns, warmup_end_ns, start_ns, end_ns: start_ns + duration_ns };
    if let Some(live) = &spec.live {
        live.begin(timing);
    }
    let mut receiver = Receiver::new(spec, run_id, timing, &intended);
    let shared = Shared::default();
    let never = AtomicBool::new(false);
    let stop = spec.stop.as_deref().unwrap_or(&never);
    let (outcome, peer, before, clock_step_ns) = thread::scope(|scope| -> anyhow::Result<_> {
        // Whatever goes wrong below, the threads that were started must end: each waits for one of these flags.
        let sender_done = SenderDone(&shared);
        let (receiver, shared) = (&mut receiver, &shared);
        // Owns the receiver; ends when the drain is over, which the sender's end starts.
        let receiving = named("lab-receiver")
            .spawn_scoped(scope, move || {
                let _ended = ReceiverEnded(shared);
                receive(receiver, drain_ns, shared)
            })
            .context("cannot start the receiver thread")?;
        // Owns the peer; ends after the receiver.
        let return_all = |(peers, books)| move || Peer::new(peers, books)?.run(drain_ns, shared);
        let returning = books
            .take()
            .map(|far_end| named("lab-peer").spawn_scoped(scope, return_all(far_end)))
            .transpose()
            .context("cannot start the peer thread")?;
        // Owns the schedule; ends with it or when `stop` is set.
        let sending = named("lab-sender")
            .spawn_scoped(scope, move || {
                let _done = sender_done;
                let outcome = send(timing, stop)?;
                let sent = outcome.sent.iter().map(|flow| flow.sent).sum();
                shared.sent.store(sent, Ordering::Relaxed);
                Ok(outcome)
            })
            .context("cannot start the sender thread")?;
        let mut steps = StepWatch::default();
        let before = watch(spec, &sockets, timing, stop, &sending, &mut steps, &progress);
        let outcome = sending.join().map_err(|_| anyhow::anyhow!("the sender thread failed"))?;
        receiving.join().map_err(|_| anyhow::anyhow!("the receiver thread failed"))?.context("receiving")?;
        let returned =
            returning.map(|thread| thread.join().map_err(|_| anyhow::anyhow!("the peer thread failed")));
        let returned = returned.transpose()?.transpose().context("receiving as the peer")?;
        steps.note(Offset::read());
        Ok((outcome.context("sending")?, returned, before?, steps.largest_ns()))
    })?;
    progress(1.0);
    let interrupted = stop.load(Ordering::Relaxed);
    let found = Found { outcome, receiver, peer, before, clock_step_ns, interrupted };
    Ok(assemble(spec, &sockets, run_id, timing, found))
}

/// Says that the receiver has ended, however it ends: the peer waits for it.
struct ReceiverEnded<'a>(&'a Shared);

impl Drop for ReceiverEnded<'_> {
    fn drop(&mut self) {
        self.0.finished.store(true, Ordering::Release);
    }
}

/// Sets the time of the last send when the sender ends, however it ends: the receiver waits for it.
struct SenderDone<'a>(&'a Shared);

impl Drop for SenderDone<'_> {
    fn drop(&mut self) {
        self.0.sender_done_ns.store(monotonic_ns().max(1), Ordering::Release);
    }
}

fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

/// Reports progress and watches the clock until the sender has ended, and reads the surroundings when measured sending
/// starts.
fn watch(
    spec: &RunSpec,
    sockets: &[UdpSocket],
    timing: Timing,
    stop: &AtomicBool,
    sending: &ScopedJoinHandle<'_, std::io::Result<Outcome>>,
    steps: &mut StepWatch,
    progress: &impl Fn(f64),
) -> anyhow::Result<Surroundings> {
    let mut surroundings: Option<anyhow::Result<Surroundings>> = None;
    let mut next_look_ns = 0;
    let mut servers = None;
    // What the warm-up lost has been counted by then.
    let ask_ns = timing.start_ns - (timing.start_ns - timing.warmup_end_ns) / 2;
    while !sending.is_finished() {
        let now = monotonic_ns();
        steps.note(Offset::read());
        progress(
            (now.saturating_sub(timing.warmup_ns) as f64 / (timing.end_ns - timing.warmup_ns) as f64)
                .min(1.0),
        );
        if now >= ask_ns && servers.is_none() {
            let asked = server::Snapshot::take(&spec.server_admins)
                .and_then(|admins| Ok((admins, devices::Snapshot::take(&spec.hosts)?)));
            servers = Some(asked.inspect_err(|_| stop.store(true, Ordering::Relaxed)));
            continue;
        }
        let until_start = Duration::from_nanos(timing.start_ns.saturating_sub(now));
        if until_start.is_zero() && surroundings.is_none() {
            let read = read_surroundings(spec, sockets);
            if read.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            surroundings = Some(read);
        }
        if let (Some(live), Some(Ok(before)), true) = (&spec.live, &surroundings, now >= next_look_ns) {
            next_look_ns = now + LOOK_NS;
            live.observe(socket_drops(sockets).saturating_sub(before.drops));
        }
        let until_question = Duration::from_nanos(ask_ns.saturating_sub(now));
        let until_next = if until_question.is_zero() { until_start } else { until_question };
        let left = if until_next.is_zero() { TICK } else { until_next.min(TICK) };
        thread::sleep(left);
    }
    let mut surroundings = surroundings.unwrap_or_else(|| read_surroundings(spec, sockets))?;
    surroundings.servers = servers.transpose()?;
    Ok(surroundings)
}

fn read_surroundings(spec: &RunSpec, sockets: &[UdpSocket]) -> anyhow::Result<Surroundings> {
    Ok(Surroundings {
        cpu: Snapshot::take(&spec.dut_pids)?,
        servers: None,
        drops: socket_drops(sockets),
        steal: steal_ticks(),
        suspended_ns: suspended_ns(),
        started_unix_ns: realtime_ns(),
    })
}

/// Ledgers of all legs.
struct Ledgers {
    by_flow: Vec<Ledger>,
    round: Ledger,
    up: Option<Ledger>,
    down: Option<Ledger>,
}

/// Balances what arrived against what was sent, on each leg.
fn ledgers(outcome: &Outcome, receiver: &Receiver, peer: Option<&Books>) -> Ledgers {
    let (by_flow, mut round) = receiver.arrivals.close_scheduled(&outcome.sent);
    let Some(peer) = peer else { return Ledgers { by_flow, round, up: None, down: None } };
    let (_, up) = peer.arrivals.close_scheduled(&outcome.sent);
    let (_, mut down) = receiver.arrivals.close(&peer.sent);
    // By sequence number the way back would be charged for what the way there overtook.
    down.reordered = receiver.down_reordered;
    // The peer returns each datagram once, so what was doubled or harmed on the way there shows only in its books.
    round.duplicate += up.duplicate;
    round.corrupt += up.corrupt;
    Ledgers { by_flow, round, up: Some(up), down: Some(down) }
}

/// Puts the result together after all threads have ended.
fn assemble(spec: &RunSpec, sockets: &[UdpSocket], run_id: u64, timing: Timing, found: Found) -> RunResult {
    let Found { outcome, mut receiver, peer, before, clock_step_ns, interrupted } = found;
    let dut = before.cpu.until_now();
    let ledgers = ledgers(&outcome, &receiver, peer.as_ref());
    let ledger = ledgers.round;
    let gone = |ledger: &Ledger| ledger.lost + ledger.late;
    let measured_ns = measured_ns(timing, interrupted);
    let latency = Latency {
        response: Distribution::new(&receiver.response, gone(&ledger)),
        service: Distribution::new(&receiver.service, gone(&ledger)),
        lateness: Distribution::new(&outcome.lateness, 0),
        kernel: spec.kernel_stamps.then(|| Distribution::new(&receiver.kernel, gone(&ledger))),
        up: peer.as_ref().zip(ledgers.up).map(|(peer, up)| Distribution::new(&peer.up, gone(&up))),
        down: ledgers.down.map(|down| Distribution::new(&receiver.down, gone(&down))),
    };
    let observed = Observations {
        ledger,
        legs_balance: ledgers.up.iter().chain(&ledgers.down).all(Ledger::balances),
        own_socket_drops: socket_drops(sockets).saturating_sub(before.drops),
        clock_backwards: receiver.clock_backwards + peer.as_ref().map_or(0, |peer| peer.clock_backwards),
        suspended_ns: suspended_ns().saturating_sub(before.suspended_ns),
        unknown_arrivals: receiver.unknown + peer.as_ref().map_or(0, |peer| peer.unknown),
        clock_step_ns,
        steal: steal_share(before.steal),
        peer_refused: ledgers.down.map_or(0, |down| down.refused),
        interrupted,
        refusal: outcome.refusal.map(|error| error.to_string()),
        slack_error: outcome.slack_error,
    };
    let tolerance = Tolerance { lateness_ns: spec.lateness_limit.as_nanos() as u64, steal: spec.steal_limit };
    let mut servers = Vec::new();
    if let Some((admins, devices)) = before.servers {
        servers.extend(admins.until_now());
        servers.extend(devices.until_now());
    }
    let own = Own { receive_skbs: observed.own_socket_drops, peer_refused: observed.peer_refused };
    let account = Account::new(&ledger, own, &servers, !spec.server_admins.is_empty());
    let verdict = verdict::judge(&observed, &latency.lateness, &latency.service, tolerance);
    let troubles =
        servers.iter().filter_map(|server| Some(format!("{}: {}", server.name, server.trouble.as_ref()?)));
    let remarks = account.remark().into_iter().chain(troubles).chain(receiver.longer_intervals(spec));
    let notes = verdict.notes.iter().cloned().chain(remarks).collect();
    let measured_s = measured_ns as f64 / 1e9;
    RunResult {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        spec: spec.clone(),
        schedule: Some(schedule::digest(spec)),
        run_id: format!("{run_id:016x}"),
        started: rfc3339(before.started_unix_ns),
        started_unix_ns: before.started_unix_ns,
        environment: Environment::read(),
        verdict: Verdict { notes, ..verdict },
        interrupted,
        measured_s,
        offered_pps: ledger.sent as f64 / measured_s,
        received_pps: ledger.received as f64 / measured_s,
        offered_bps: 8.0 * outcome.bytes as f64 / measured_s,
        received_bps: 8.0 * receiver.bytes as f64 / measured_s,
        sender_cpu_ns_per_packet: outcome.cpu_ns as f64 / ledger.sent.max(1) as f64,
        ledger,
        reordering: receiver.arrivals.reordering(),
        ledger_up: ledgers.up,
        ledger_down: ledgers.down,
        account,
        servers,
        ledger_by_flow: ledgers.by_flow,
        latency,
        curve: curve(&receiver.response, gone(&ledger)),
        dut_cpu_ns_per_packet: cpu_per_packet(&dut, carried(spec, &ledger)),
        dut,
        histograms: Some(Histograms {
            intervals: receiver.take_intervals(measured_ns),
            response: receiver.response,
            service: receiver.service,
            lateness: outcome.lateness,
            kernel: spec.kernel_stamps.then_some(receiver.kernel),
            down: peer.is_some().then_some(receiver.down),
            up: peer.map(|peer| peer.up),
        }),
    }
}

/// Datagrams that the device under test carried, each way counted.
fn carried(spec: &RunSpec, ledger: &Ledger) -> u64 {
    if spec.kind.is_one_way() { ledger.sent } else { ledger.sent + ledger.received }
}

/// The length of measured sending; an interrupted run ended now at the latest.
fn measured_ns(timing: Timing, interrupted: bool) -> u64 {
    let end_ns = if interrupted { timing.end_ns.min(monotonic_ns()) } else { timing.end_ns };
    end_ns.saturating_sub(timing.start_ns).max(1)
}

fn cpu_per_packet(dut: &[DutCpu], packets: u64) -> Option<f64> {
    let cpu_ns: u64 = dut.iter().map(|process| process.cpu_ns).sum();
    (!dut.is_empty() && packets > 0).then(|| cpu_ns as f64 / packets as f64)
}

fn steal_share(before: Option<(u64, u64)>) -> Option<f64> {
    let ((all_before, stolen_before), (all, stolen)) = (before?, steal_ticks()?);
    (all > all_before).then(|| stolen.saturating_sub(stolen_before) as f64 / (all - all_before) as f64)
}
