//! Sends the schedule: open loop, never waiting for answers, each datagram stamped with when it was due and when it left.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hdrhistogram::Histogram;

use super::clock::{monotonic_ns, thread_cpu_ns};
use super::distribution::histogram;
use super::ledger::Sent;
use super::live::Live;
use super::pace::Pacer;
use super::payload::Phase;
use super::receiver::Shared;
use super::schedule::{Burst, Schedule};
use super::spec::RunSpec;
use super::stall::{Stalls, Watch};
use super::transmit::Noted;

/// How far behind the end of the run the sender may still be before it gives up on the rest of the schedule.
const OVERTIME_NS: u64 = 100_000_000;

/// How often it is looked whether measured sending may begin.
const LOOK_NS: u64 = 500_000;

/// When the phases of a run begin and end, as planned (CLOCK_MONOTONIC, nanoseconds). Measured sending begins when [`Shared`]
/// says.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Start of the warm-up.
    pub warmup_ns: u64,
    /// End of the warm-up; nothing is sent between this and the start.
    pub warmup_end_ns: u64,
    /// Start of measured sending.
    pub start_ns: u64,
    /// End of measured sending.
    pub end_ns: u64,
}

impl Timing {
    /// The same with measured sending from `start_ns` on.
    #[must_use]
    pub fn begun_at(self, start_ns: u64) -> Self {
        Self { start_ns, end_ns: start_ns + (self.end_ns - self.start_ns), ..self }
    }
}

/// What the sender did.
#[derive(Debug)]
pub struct Outcome {
    /// By flow, measured phase only.
    pub sent: Vec<Sent>,
    /// Bytes of payload that were sent, measured phase only.
    pub bytes: u64,
    /// Processor time of the sending thread in the measured phase, its waiting included, in nanoseconds.
    pub cpu_ns: u64,
    /// How long it stood still meanwhile, and why.
    pub stalls: Stalls,
    /// How much later than planned every measured datagram was sent.
    pub lateness: Histogram<u64>,
    /// The sends that asked when the device took them.
    pub asked: Vec<Noted>,
    /// Datagrams of the largest superpacket that was sent.
    pub segments_max: usize,
    /// Why the kernel refused the first measured send that it did.
    pub refusal: Option<io::Error>,
    /// Datagrams refused because of the far end or the way there ([`is_far`]); the others found no room on this host.
    pub refused_far: u64,
    /// Why the timer slack could not be lowered.
    pub slack_error: Option<String>,
}

/// What became of the datagrams so far.
#[derive(Debug)]
pub struct Tally {
    sent: Vec<Sent>,
    bytes: u64,
    lateness: Histogram<u64>,
    refusal: Option<io::Error>,
    refused_far: u64,
    live: Option<Arc<Live>>,
}

impl Tally {
    fn new(spec: &RunSpec) -> Self {
        let sent = vec![Sent::default(); spec.flows as usize];
        Self { sent, bytes: 0, lateness: histogram(), refusal: None, refused_far: 0, live: spec.live.clone() }
    }

    /// Books `count` datagrams of a flow, together of so many `bytes` of payload, that left, or did not, so long after the
    /// plan.
    pub fn book(&mut self, flow: u32, count: u64, bytes: u64, lateness_ns: u64, outcome: io::Result<()>) {
        if let Some(live) = &self.live {
            live.book(count, outcome.is_ok());
        }
        let sent = &mut self.sent[flow as usize];
        match outcome {
            Ok(()) => {
                sent.sent += count;
                self.bytes += bytes;
                self.lateness.saturating_record_n(lateness_ns.max(1), count);
            }
            Err(error) => {
                sent.refused += count;
                self.refused_far += if is_far(&error) { count } else { 0 };
                self.refusal.get_or_insert(error);
            }
        }
    }

    fn give_up(&mut self, burst: &Burst<'_>) {
        self.sent[burst.flow as usize].unsent += burst.datagrams.len() as u64;
    }
}

/// Whether a send was refused because of the far end or the way there, which are what is measured, and not for want of room here.
#[must_use]
pub fn is_far(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::BrokenPipe
            | Kind::NotConnected
            | Kind::TimedOut
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
    )
}

/// Takes what is due and brings it to the kernel.
pub trait Outlet {
    /// Takes a burst that is due now. Its datagrams are numbered from `number` on, its times count from `start_ns`. It may
    /// be held back until [`Outlet::flush`], so that several share a system call.
    ///
    /// # Errors
    /// Only what ends the run.
    fn push(
        &mut self,
        phase: Phase,
        burst: &Burst<'_>,
        number: u64,
        start_ns: u64,
        tally: &mut Tally,
    ) -> io::Result<()>;

    /// Hands over everything: the next burst is not due yet.
    ///
    /// # Errors
    /// Only what ends the run.
    fn flush(&mut self, tally: &mut Tally) -> io::Result<()>;

    /// After how many nanoseconds of waiting it wants to be flushed again, to do what time has made necessary.
    fn patience_ns(&self) -> u64;

    /// Whether something still waits for the kernel.
    fn is_idle(&self) -> bool;
}

/// Sends warm-up and, once `shared` says when, the measured phase; returns at the end or soon after `stop` is set.
///
/// # Errors
/// What the outlet answers.
pub fn send(
    spec: &RunSpec,
    outlet: &mut impl Outlet,
    timing: Timing,
    shared: &Shared,
    stop: &AtomicBool,
) -> io::Result<Outcome> {
    let (pacer, slack_error) = Pacer::new(spec.pace);
    let flows = spec.flows as usize;
    let watch = Watch::start();
    let mut sender =
        Sender { spec, outlet, pacer, stop, next: vec![0; flows], tally: Tally::new(spec), watch };
    sender.phase(Phase::Warmup, timing.warmup_ns, timing.warmup_end_ns)?;
    // What the warm-up came to does not count.
    sender.next.fill(0);
    sender.tally = Tally::new(spec);
    if let Some(live) = &spec.live {
        live.restart();
    }
    shared.is_warm.store(true, Ordering::Release);
    let start_ns = sender.wait_for_start(shared)?;
    let timing = timing.begun_at(start_ns);
    let cpu_before_ns = thread_cpu_ns();
    sender.watch = Watch::start();
    sender.phase(Phase::Measured, timing.start_ns, timing.end_ns)?;
    sender.finish(timing.end_ns)?;
    let cpu_ns = thread_cpu_ns() - cpu_before_ns;
    let stalls = sender.watch.stalls();
    let Tally { sent, bytes, lateness, refusal, refused_far, .. } = sender.tally;
    Ok(Outcome {
        sent,
        bytes,
        cpu_ns,
        stalls,
        lateness,
        asked: Vec::new(),
        segments_max: 0,
        refusal,
        refused_far,
        slack_error,
    })
}

struct Sender<'a, O> {
    spec: &'a RunSpec,
    outlet: &'a mut O,
    pacer: Pacer,
    stop: &'a AtomicBool,
    /// The number of each flow's next datagram.
    next: Vec<u64>,
    tally: Tally,
    watch: Watch,
}

impl<O: Outlet> Sender<'_, O> {
    /// When measured sending begins; now, when the run is to end before that is known: nothing is sent then.
    fn wait_for_start(&mut self, shared: &Shared) -> io::Result<u64> {
        loop {
            if let Some(start_ns) = shared.start() {
                return Ok(start_ns);
            }
            let until = monotonic_ns() + LOOK_NS.min(self.outlet.patience_ns());
            self.outlet.flush(&mut self.tally)?;
            if self.pacer.wait_until(until, self.stop).is_none() || self.stop.load(Ordering::Relaxed) {
                return Ok(monotonic_ns());
            }
        }
    }

    fn phase(&mut self, phase: Phase, start_ns: u64, end_ns: u64) -> io::Result<()> {
        let mut schedule = Schedule::new(self.spec, phase as u64 - 1, end_ns - start_ns);
        while let Some(burst) = schedule.next_burst() {
            let leave_ns = start_ns + burst.leave_ns();
            // Interrupted, or too late.
            if self.wait_until(leave_ns)?.is_none_or(|now| now > end_ns + OVERTIME_NS) {
                self.tally.give_up(&burst);
                while let Some(burst) = schedule.next_burst() {
                    self.tally.give_up(&burst);
                }
                break;
            }
            let number = &mut self.next[burst.flow as usize];
            self.outlet.push(phase, &burst, *number, start_ns, &mut self.tally)?;
            *number += burst.datagrams.len() as u64;
        }
        self.outlet.flush(&mut self.tally)
    }

    /// The time when `due_ns` has come, or `None` when the run is to end. What the outlet holds leaves before the wait.
    fn wait_until(&mut self, due_ns: u64) -> io::Result<Option<u64>> {
        loop {
            let now = monotonic_ns();
            // The pacer looks at `stop` only while it waits, and a sender behind its schedule never does.
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.watch.look(now, due_ns);
            if now >= due_ns {
                return Ok(Some(now));
            }
            self.outlet.flush(&mut self.tally)?;
            let until = due_ns.min(now.saturating_add(self.outlet.patience_ns()));
            if self.pacer.wait_until(until, self.stop).is_none() {
                return Ok(None);
            }
        }
    }

    /// Hands over what is left, with some patience for what the kernel has no room for yet.
    fn finish(&mut self, end_ns: u64) -> io::Result<()> {
        let patience_ns = OVERTIME_NS.max(self.spec.drain.as_nanos() as u64);
        loop {
            self.outlet.flush(&mut self.tally)?;
            let now = monotonic_ns();
            if self.outlet.is_idle() || now > end_ns + patience_ns || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let until = now + self.outlet.patience_ns();
            // `stop` is looked at above.
            let _ = self.pacer.wait_until(until, self.stop);
        }
    }
}
