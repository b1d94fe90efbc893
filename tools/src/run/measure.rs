//! Runs sender and receiver side by side and puts together what they found.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::{self, ScopedJoinHandle, Thread};
use std::time::Duration;

use anyhow::Context;
use dataplane::sys::udp::UdpSocket;

use super::account::{Account, Own};
use super::clock::{Offset, StepWatch, monotonic_ns, rfc3339, suspended_ns};
use super::devices;
use super::distribution::{Distribution, curve};
use super::dut::{DutCpu, Snapshot};
use super::environment::{Environment, StealTicks, steal_share, steal_ticks};
use super::intervals::{self, Begun, Intervals};
use super::ledger::Ledger;
use super::legs::{Carried, Ledgers, cpu_per_packet};
use super::path::{socket_drops, tells_drops};
use super::peer::{Books, Peer};
use super::receiver::{Receiver, Shared};
use super::result::{Histograms, Latency, RunResult, SCHEMA};
use super::schedule::{self, Schedule};
use super::sender::{Outcome, Timing};
use super::server;
use super::spec::RunSpec;
use super::transmit;
use super::verdict::{self, Observations, Tolerance, Verdict};

/// Time for the threads to start before the first datagram is due.
const LEAD_NS: u64 = 20_000_000;
/// How often progress is reported and the request to stop is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the sockets of a run that is looked at are asked for what they dropped.
const LOOK_NS: u64 = 1_000_000_000;

/// Time between the warm-up and reading what was dropped and used until then, and between the last measured datagram and reading
/// what was used since: what is on its way comes through meanwhile.
const SETTLE_NS: u64 = 10_000_000;
/// Time between that and the first measured datagram.
const HEAD_NS: u64 = 2_000_000;
/// How often it is looked whether the warm-up is over, once it should be.
const LOOK_SOON: Duration = Duration::from_millis(1);
/// Shortest and longest silence between warm-up and measured sending, in which servers are asked what they have lost so far;
/// the drain in between.
const SILENCE_NS: (u64, u64) = (200_000_000, 2_000_000_000);

/// What the main thread reads before measured sending, to compare it with what it reads later: see [`Used`] for processor time.
struct Surroundings {
    /// When measured sending begins, in nanoseconds since the epoch.
    started_unix_ns: u64,
    cpu: Snapshot,
    servers: (server::Snapshot, devices::Snapshot),
    drops: u64,
    steal: Option<StealTicks>,
    suspended_ns: u64,
}

/// What was used during measured sending alone. How long the drain is depends on whether something was lost: a device that polls would
/// be charged for it by the loss of others.
struct Used {
    dut: Vec<DutCpu>,
    steal: Option<f64>,
    /// Until the drain was over.
    own_socket_drops: u64,
    tells_drops: bool,
}

impl Used {
    fn since(before: &Surroundings) -> Self {
        Self {
            dut: before.cpu.until_now(),
            steal: before.steal.as_ref().and_then(|before| steal_share(before, &steal_ticks()?)),
            own_socket_drops: 0,
            tells_drops: true,
        }
    }
}

/// What the threads found.
struct Found {
    outcome: Outcome,
    receiver: Receiver,
    peer: Option<Books>,
    before: Surroundings,
    used: Used,
    clock_step_ns: u64,
    interrupted: bool,
    measured_ns: u64,
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
    S: FnOnce(Timing, &Shared, &AtomicBool) -> std::io::Result<Outcome> + Send,
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
        SETTLE_NS
    } else {
        drain_ns.clamp(SILENCE_NS.0, SILENCE_NS.1)
    };
    let start_ns = warmup_end_ns + silence_ns + HEAD_NS;
    let timing = Timing { warmup_ns, warmup_end_ns, start_ns, end_ns: start_ns + duration_ns };
    if let Some(live) = &spec.live {
        live.begin(timing);
    }
    let mut receiver = Receiver::new(spec, run_id, timing, &intended);
    let (intervals, pieces) = spec.log.as_ref().map(|_| Intervals::new(intervals::length_ns(spec))).unzip();
    receiver.intervals = intervals;
    let shared = Shared::default();
    let never = AtomicBool::new(false);
    let stop = spec.stop.as_deref().unwrap_or(&never);
    let (outcome, peer, before, used, clock_step_ns, logged) = thread::scope(|scope| -> anyhow::Result<_> {
        // Whatever goes wrong below, the threads that were started must end: each waits for one of these flags.
        let sender_done = SenderDone(&shared, thread::current());
        let (receiver, shared) = (&mut receiver, &shared);
        // Owns the receiver; ends when the drain is over, which the sender's end starts.
        let receiving = named("lab-receiver")
            .spawn_scoped(scope, move || {
                let _ended = ReceiverEnded(shared);
                let received = receive(receiver, drain_ns, shared);
                receiver.intervals.take().into_iter().for_each(Intervals::finish);
                received
            })
            .context("cannot start the receiver thread")?;
        let writing = pieces.map(|pieces| intervals::spawn(scope, spec, pieces, &shared.finished));
        let writing = writing.transpose().context("cannot start the thread of the log")?;
        let (log, logging) = writing.unzip();
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
                let outcome = send(timing, shared, stop)?;
                let sent = outcome.sent.iter().map(|flow| flow.sent).sum();
                shared.sent.store(sent, Ordering::Relaxed);
                Ok(outcome)
            })
            .context("cannot start the sender thread")?;
        let mut watch = Watch {
            spec,
            sockets: &sockets,
            timing,
            shared,
            stop,
            sending: &sending,
            steps: StepWatch::default(),
            progress: &progress,
            log,
        };
        let before = watch.until_sent(silence_ns);
        let mut steps = watch.steps;
        // A log that was not begun is waited for no longer.
        watch.log = None;
        thread::sleep(Duration::from_nanos(SETTLE_NS));
        let used = before.as_ref().map(Used::since).ok();
        let outcome = sending.join().map_err(|_| anyhow::anyhow!("the sender thread failed"))?;
        receiving.join().map_err(|_| anyhow::anyhow!("the receiver thread failed"))?.context("receiving")?;
        let drops = socket_drops(&sockets);
        let returned =
            returning.map(|thread| thread.join().map_err(|_| anyhow::anyhow!("the peer thread failed")));
        let returned = returned.transpose()?.transpose().context("receiving as the peer")?;
        let logged =
            logging.map(|thread| thread.join().map_err(|_| anyhow::anyhow!("the thread of the log failed")));
        let logged = logged.transpose()?.flatten();
        steps.note(Offset::read());
        let (outcome, before) = (outcome.context("sending")?, before?);
        let used = used.context("what the device used was not read")?;
        let tells_drops = tells_drops(&sockets);
        let used = Used { own_socket_drops: drops.saturating_sub(before.drops), tells_drops, ..used };
        Ok((outcome, returned, before, used, steps.largest_ns(), logged))
    })?;
    progress(1.0);
    let timing = timing.begun_at(shared.start().unwrap_or(start_ns));
    let interrupted = stop.load(Ordering::Relaxed);
    let measured_ns = measured_ns(timing, interrupted, shared.sender_done_ns.load(Ordering::Acquire));
    // What was measured counts more than how it went over time.
    let log_error = logged.and_then(|log| log.and_then(|log| log.finish(measured_ns)).err());
    let found = Found { outcome, receiver, peer, before, used, clock_step_ns, interrupted, measured_ns };
    let result = assemble(spec, run_id, found);
    Ok(RunResult { log_error: log_error.map(|error| error.to_string()), ..result })
}

/// Says that the receiver has ended, however it ends: the peer waits for it.
struct ReceiverEnded<'a>(&'a Shared);

impl Drop for ReceiverEnded<'_> {
    fn drop(&mut self) {
        self.0.finished.store(true, Ordering::Release);
    }
}

/// Sets the time of the last send when the sender ends, however it ends: the receiver waits for it, and so does the thread that is
/// woken.
struct SenderDone<'a>(&'a Shared, Thread);

impl Drop for SenderDone<'_> {
    fn drop(&mut self) {
        self.0.sender_done_ns.store(monotonic_ns().max(1), Ordering::Release);
        self.1.unpark();
    }
}

fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

/// What the main thread does while the others work.
struct Watch<'a, P> {
    spec: &'a RunSpec,
    sockets: &'a [UdpSocket],
    timing: Timing,
    shared: &'a Shared,
    stop: &'a AtomicBool,
    sending: &'a ScopedJoinHandle<'a, std::io::Result<Outcome>>,
    steps: StepWatch,
    progress: &'a P,
    /// To the thread that writes the log.
    log: Option<SyncSender<Begun>>,
}

impl<P: Fn(f64)> Watch<'_, P> {
    /// Reads the surroundings between warm-up and measured sending, which it lets begin, and watches until the sender has ended.
    /// `silence_ns` lie between the two.
    fn until_sent(&mut self, silence_ns: u64) -> anyhow::Result<Surroundings> {
        let before = self.before_start(silence_ns);
        // The sender waits to be told when to begin.
        let gives_up = before.is_err() && !self.stop.swap(true, Ordering::Relaxed);
        let mut next_look_ns = 0;
        while self.shared.sender_done_ns.load(Ordering::Acquire) == 0 {
            let now = monotonic_ns();
            if let (Some(live), Ok(before), true) = (&self.spec.live, &before, now >= next_look_ns) {
                next_look_ns = now + LOOK_NS;
                live.observe(socket_drops(self.sockets).saturating_sub(before.drops));
            }
            self.pass(TICK);
        }
        if gives_up {
            // Nobody has asked for an end: the runs to come are the caller's affair.
            self.stop.store(false, Ordering::Relaxed);
        }
        before
    }

    fn before_start(&mut self, silence_ns: u64) -> anyhow::Result<Surroundings> {
        while !(self.shared.is_warm.load(Ordering::Acquire) || self.sending.is_finished()) {
            let left = Duration::from_nanos(self.timing.warmup_end_ns.saturating_sub(monotonic_ns()));
            self.pass(left.clamp(LOOK_SOON, TICK));
        }
        let end_ns = monotonic_ns() + silence_ns;
        // What the warm-up lost has been counted by then.
        self.pass_until(end_ns - silence_ns / 2);
        let servers =
            (server::Snapshot::take(&self.spec.server_admins)?, devices::Snapshot::take(&self.spec.hosts)?);
        self.pass_until(end_ns);
        let file = self.spec.log.as_deref().map(intervals::create).transpose()?;
        let mut before = read_surroundings(self.spec, self.sockets, servers)?;
        let start_ns = monotonic_ns() + HEAD_NS;
        before.started_unix_ns = unix_ns(start_ns);
        if let Some((log, file)) = self.log.take().zip(file) {
            // There is room for it.
            let _ = log.send((file, before.started_unix_ns));
        }
        if let Some(live) = &self.spec.live {
            live.begin(self.timing.begun_at(start_ns));
        }
        self.shared.start_ns.store(start_ns, Ordering::Release);
        Ok(before)
    }

    fn pass_until(&mut self, end_ns: u64) {
        loop {
            let left = Duration::from_nanos(end_ns.saturating_sub(monotonic_ns()));
            if left.is_zero() || self.sending.is_finished() {
                return;
            }
            self.pass(left.min(TICK));
        }
    }

    /// Reports progress, looks at the clock and lets some time pass, less when the sender ends.
    fn pass(&mut self, time: Duration) {
        let start_ns = self.shared.start();
        let Timing { warmup_ns, end_ns, .. } = self.timing.begun_at(start_ns.unwrap_or(self.timing.start_ns));
        // Late as this thread may be, nothing measured is sent before it lets that begin.
        let last_ns = if start_ns.is_some() { end_ns } else { self.timing.start_ns };
        let now = monotonic_ns().min(last_ns);
        self.steps.note(Offset::read());
        let share = now.saturating_sub(warmup_ns) as f64 / (end_ns - warmup_ns) as f64;
        (self.progress)(share);
        // The end of the sender ends it.
        thread::park_timeout(time);
    }
}

/// A time as nanoseconds since the epoch.
fn unix_ns(monotonic_ns: u64) -> u64 {
    monotonic_ns.saturating_add_signed(Offset::read().ns)
}

fn read_surroundings(
    spec: &RunSpec,
    sockets: &[UdpSocket],
    servers: (server::Snapshot, devices::Snapshot),
) -> anyhow::Result<Surroundings> {
    Ok(Surroundings {
        started_unix_ns: 0,
        cpu: Snapshot::take(&spec.dut_pids)?,
        servers,
        drops: socket_drops(sockets),
        steal: steal_ticks(),
        suspended_ns: suspended_ns(),
    })
}

/// Puts the result together after all threads have ended.
fn assemble(spec: &RunSpec, run_id: u64, found: Found) -> RunResult {
    let Found { outcome, mut receiver, peer, before, used, clock_step_ns, interrupted, measured_ns } = found;
    let Used { dut, steal, own_socket_drops, tells_drops } = used;
    let ledgers = Ledgers::close(&outcome, &receiver, peer.as_ref());
    let ledger = ledgers.round;
    let carried = Carried::of(spec, &ledgers);
    // An interrupted run answers for what it sent until then. In others what a late sender left out was to be waited for, too.
    let left_out = if interrupted { 0 } else { ledger.unsent };
    let to_device = (spec.tx_stamps > 0).then(|| transmit::joined(outcome.asked, &mut receiver.came));
    if let Some(peer) = &peer {
        let added = receiver.lateness.add(&peer.lateness);
        debug_assert!(added.is_ok(), "all histograms have the same bounds");
    }
    let receiving = Distribution::new(&receiver.lateness, 0);
    let latency = Latency {
        response: Distribution::new(&receiver.response, ledger.gone() + left_out),
        service: Distribution::new(&receiver.service, ledger.gone()),
        lateness: Distribution::new(&outcome.lateness, 0),
        receiving: (receiving.count > 0).then_some(receiving),
        to_device: to_device.as_ref().map(|(histogram, missing)| Distribution::new(histogram, *missing)),
        kernel: spec.kernel_stamps.then(|| Distribution::new(&receiver.kernel, ledger.gone())),
        up: peer.as_ref().zip(ledgers.up).map(|(peer, up)| Distribution::new(&peer.up, up.gone())),
        down: ledgers.down.map(|down| Distribution::new(&receiver.down, down.gone())),
    };
    let tells_arrival = latency.receiving.is_some() || ledger.received == 0;
    let observed = Observations {
        ledger,
        legs_balance: ledgers.up.iter().chain(&ledgers.down).all(Ledger::balances),
        own_socket_drops,
        clock_backwards: receiver.clock_backwards + peer.as_ref().map_or(0, |peer| peer.clock_backwards),
        suspended_ns: suspended_ns().saturating_sub(before.suspended_ns),
        unknown_arrivals: receiver.unknown + peer.as_ref().map_or(0, |peer| peer.unknown),
        clock_step_ns,
        steal,
        unchecked: verdict::unchecked(tells_drops, tells_arrival, steal),
        peer_refused: ledgers.down.map_or(0, |down| down.refused),
        interrupted,
        stalls: outcome.stalls,
        refusal: outcome.refusal.map(|error| error.to_string()),
        refused_far: outcome.refused_far,
        slack_error: outcome.slack_error,
    };
    let lateness_ns = spec.lateness_limit.as_nanos() as u64;
    let tolerance = Tolerance { lateness_ns, steal: spec.steal_limit, blind: spec.blind };
    let (admins, devices) = before.servers;
    let mut servers = admins.until_now();
    servers.extend(devices.until_now());
    let peer_segments = peer.as_ref().map_or(0, |peer| peer.segments_max);
    let own_segments = outcome.segments_max.max(receiver.segments_max).max(peer_segments) as u64;
    // Where both ends are here, they know what was sent in one. What lies between others shows in what these got.
    let all_ends = peer.is_some() || spec.kind.is_wireguard();
    let others = servers.iter().filter(|_| !all_ends).map(server::ServerDrops::segments_max);
    let own = Own {
        receive_skbs: observed.own_socket_drops,
        peer_refused: observed.peer_refused,
        segments_max: others.fold(own_segments, u64::max),
    };
    let account = Account::new(&ledger, own, &servers, !spec.server_admins.is_empty());
    let verdict = verdict::judge(&observed, latency.delays(), tolerance);
    let troubles =
        servers.iter().filter_map(|server| Some(format!("{}: {}", server.name, server.trouble.as_ref()?)));
    let longer = spec.log.as_ref().and_then(|_| intervals::lengthened(spec));
    let remarks = account.remark().into_iter().chain(troubles).chain(longer);
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
        curve: curve(&receiver.response, ledger.gone() + left_out),
        dut_cpu_ns_per_packet: cpu_per_packet(&dut, carried.delivered),
        dut_cpu_ns_per_offered: cpu_per_packet(&dut, carried.offered),
        dut,
        scenario: None,
        histograms: Some(Histograms {
            response: receiver.response,
            service: receiver.service,
            lateness: outcome.lateness,
            to_device: to_device.map(|(histogram, _)| histogram),
            kernel: spec.kernel_stamps.then_some(receiver.kernel),
            down: peer.is_some().then_some(receiver.down),
            tail: receiver.tail,
            up: peer.map(|peer| peer.up),
        }),
        log_error: None,
    }
}

/// The length of measured sending; an interrupted run ended with its sender, and not with the drain behind it.
fn measured_ns(timing: Timing, interrupted: bool, sender_done_ns: u64) -> u64 {
    let end_ns = if interrupted { timing.end_ns.min(sender_done_ns) } else { timing.end_ns };
    end_ns.saturating_sub(timing.start_ns).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::super::clock::tests::set;
    use super::super::clock::thread_cpu_ns;
    use super::super::distribution::histogram;
    use super::super::kind::Kind;
    use super::super::ledger::Sent;
    use super::super::stall::Stalls;
    use super::*;

    fn spec() -> RunSpec {
        RunSpec {
            duration: Duration::from_millis(50),
            warmup: Duration::ZERO,
            drain: Duration::ZERO,
            dut_pids: vec![std::process::id()],
            ..RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap())
        }
    }

    /// What a sender found that had nothing to send.
    fn nothing() -> Outcome {
        Outcome {
            sent: vec![Sent::default()],
            bytes: 0,
            cpu_ns: 0,
            stalls: Stalls::default(),
            lateness: histogram(),
            asked: Vec::new(),
            segments_max: 0,
            refusal: None,
            refused_far: 0,
            slack_error: None,
        }
    }

    #[test]
    fn measured_sending_waits_for_a_main_thread_that_is_late() {
        const BUSY_NS: u64 = 50_000_000;
        // Takes as much processor time as soon as it may begin, and then is done.
        let send = |_, shared: &Shared, _: &AtomicBool| {
            shared.is_warm.store(true, Ordering::Release);
            while shared.start().is_none() {
                thread::yield_now();
            }
            let begin = thread_cpu_ns();
            while thread_cpu_ns() - begin < BUSY_NS {}
            Ok(nothing())
        };
        let receive = |_: &mut Receiver, _, shared: &Shared| {
            while shared.sender_done_ns.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            Ok(())
        };
        let ends = Ends { send, receive, sockets: Vec::new(), peers: None };
        // Longer than the sender needs.
        let late = |_| thread::sleep(Duration::from_millis(150));
        let result = measure(&spec(), 5, ends, late).unwrap();
        assert!(result.dut[0].cpu_ns >= BUSY_NS, "{:?}", result.dut);
    }

    #[test]
    fn what_the_device_does_while_the_run_waits_for_lost_datagrams_is_not_charged_to_those_that_were_sent() {
        const BUSY_NS: u64 = 300_000_000;
        let send = |_, shared: &Shared, _: &AtomicBool| {
            shared.is_warm.store(true, Ordering::Release);
            while shared.start().is_none() {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(nothing())
        };
        // This process is the device; it is busy throughout a drain.
        let receive = |_: &mut Receiver, _, shared: &Shared| {
            while shared.sender_done_ns.load(Ordering::Acquire) == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            let begin = thread_cpu_ns();
            while thread_cpu_ns() - begin < BUSY_NS {}
            Ok(())
        };
        // Other tests of this process may be busy meanwhile, and this thread late.
        let charged = |_| {
            let ends = Ends { send, receive, sockets: Vec::new(), peers: None };
            measure(&spec(), 5, ends, |_| {}).unwrap().dut[0].cpu_ns
        };
        assert!((0..10).map(charged).any(|cpu_ns| cpu_ns < BUSY_NS / 2));
    }

    #[test]
    fn the_drain_is_no_part_of_an_interrupted_run_s_length() {
        let stop = Arc::new(AtomicBool::new(false));
        let sending_ns = AtomicU64::new(0);
        let send = |_, shared: &Shared, stop: &AtomicBool| {
            shared.is_warm.store(true, Ordering::Release);
            while shared.start().is_none() {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
            sending_ns.store(monotonic_ns() - shared.start().unwrap(), Ordering::Relaxed);
            Ok(nothing())
        };
        let receive = |_: &mut Receiver, _, shared: &Shared| {
            while shared.sender_done_ns.load(Ordering::Acquire) == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_secs(1));
            Ok(())
        };
        let ends = Ends { send, receive, sockets: Vec::new(), peers: None };
        let spec = RunSpec { duration: Duration::from_secs(60), stop: Some(stop), ..spec() };
        let result = measure(&spec, 5, ends, |_| {}).unwrap();
        let sending_s = sending_ns.load(Ordering::Relaxed) as f64 / 1e9;
        assert!(result.interrupted);
        assert!(
            (sending_s..sending_s + 0.5).contains(&result.measured_s),
            "{sending_s} {}",
            result.measured_s
        );
    }

    #[test]
    fn what_a_late_sender_left_out_is_waited_for_and_what_came_after_an_interruption_is_not() {
        let gone = |interrupted| {
            let stop = Arc::new(AtomicBool::new(false));
            let send = |_, shared: &Shared, stop: &AtomicBool| {
                shared.is_warm.store(true, Ordering::Release);
                while shared.start().is_none() {
                    thread::yield_now();
                }
                stop.store(interrupted, Ordering::Relaxed);
                Ok(Outcome { sent: vec![Sent { sent: 10, refused: 2, unsent: 5 }], ..nothing() })
            };
            let receive = |_: &mut Receiver, _, _: &Shared| Ok(());
            let ends = Ends { send, receive, sockets: Vec::new(), peers: None };
            let result = measure(&RunSpec { stop: Some(stop), ..spec() }, 5, ends, |_| {}).unwrap();
            (result.latency.response.lost, result.latency.service.lost)
        };
        assert_eq!(gone(false), (17, 12));
        assert_eq!(gone(true), (12, 12));
    }

    #[test]
    fn a_clock_that_is_set_and_a_host_that_was_suspended_void_the_run() {
        let reasons = |blind, realtime_ns, boottime_ns| {
            let send = |_, shared: &Shared, _: &AtomicBool| {
                shared.is_warm.store(true, Ordering::Release);
                while shared.start().is_none() {
                    thread::yield_now();
                }
                // Until the main thread has looked at the clocks after measured sending.
                thread::sleep(Duration::from_millis(250));
                Ok(nothing())
            };
            let receive = |_: &mut Receiver, _, _: &Shared| Ok(());
            let ends = Ends { send, receive, sockets: Vec::new(), peers: None };
            // The whole of measured sending has passed only once its surroundings were read.
            let at_the_end = |share| {
                if share >= 1.0 {
                    set(realtime_ns, boottime_ns);
                }
            };
            let result = measure(&RunSpec { blind, ..spec() }, 5, ends, at_the_end).unwrap();
            set(0, 0);
            assert_eq!(result.verdict.validity, verdict::Validity::Invalid);
            result.verdict.reasons.join("; ")
        };
        let said = ["the clock was set by 7.00 s", "the host was suspended for 7000 ms"];
        let found = |reasons: String| said.map(|said| reasons.contains(said));
        assert_eq!(found(reasons(None, 0, 0)), [false, false]);
        assert_eq!(found(reasons(None, 7_000_000_000, 0)), [true, false]);
        assert_eq!(found(reasons(Some(verdict::Check::ClockStep), 7_000_000_000, 0)), [false, false]);
        // What lies between the readings of two clocks is no millisecond.
        assert_eq!(found(reasons(None, 0, 7_000_500_000)), [false, true]);
    }
}
