//! The loop: wait, hand over, flush, timers. The only place of the engine that reads the clock.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crypto::crew::{CryptoStats, Sealed};
use crate::drops::Drops;
use crate::egress::uring::WAITING_TIME;
use crate::egress::{Egress, EgressStats, Flush};
use crate::engine::IngressKind;
use crate::halt::Halt;
use crate::ingress::{Handler, Ingress, IngressStats, Received, Source, Token};
use crate::stages::{Stages, Stopwatch, Timing};
use crate::sys::signal::{Signal, StopSignals};
use crate::sys::tun::Offloads;

/// The tokens of the driver's own sources; ports, and so applications' tokens, never get that far.
const SIGNALS: Token = Token(u32::MAX);
const HALT: Token = Token(u32::MAX - 1);
/// The number of the first of them: an application's own sources have lower ones.
pub const OWN_TOKENS: u32 = HALT.0;
/// How long control traffic and timers may have to wait under load.
const CONTROL_INTERVAL: Duration = Duration::from_millis(10);
/// How soon a waiting queue is tried again when no write-readiness comes.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);
/// How long the drain at the end may take.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// What runs on the loop: the tunnel endpoint or the relay.
///
/// The number of a port and the token of its source are the same: an application adds a socket to the egress first, and
/// then to the ingress under `Token(port.0)`.
pub trait Application {
    /// The TUN device and what it takes, if there is one and it is open already: the probe of `--io auto` writes to it.
    fn device(&self) -> Option<(Arc<OwnedFd>, Offloads)> {
        None
    }

    /// How packets come in on the ring where the flags do not say: what measurements favour for this application.
    fn default_ingress(&self) -> IngressKind;

    /// Threads that seal and open beside the loop, where the design has them.
    fn crypto_threads(&self) -> usize {
        0
    }

    /// How long a packet may wait for a busy socket. An application that slows its source down loses nothing by a longer
    /// time, because no more than a queue's worth can come to wait.
    fn waiting_time(&self) -> Duration {
        WAITING_TIME
    }

    /// Registers sockets and devices, once, before the first packet.
    ///
    /// # Errors
    /// What keeps the program from serving; the message names the remedy.
    fn start<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> io::Result<()>;

    /// Takes one superpacket, appends what leaves to `egress`.
    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, now: Instant);

    /// What can be opened ahead in a UDP superpacket, while others are dealt with: datagrams of `segment_size` bytes one after
    /// another (the last may be shorter). [`Application::handle`] is told what was.
    fn foresee(
        &self,
        _from: SocketAddr,
        _bytes: &[u8],
        _segment_size: usize,
        _now: Instant,
    ) -> Option<Sealed> {
        None
    }

    /// Called at least every 10 ms under load and whenever [`Application::poll_timeout`] has passed.
    fn handle_timeout<E: Egress>(&mut self, egress: &mut E, now: Instant);

    /// When [`Application::handle_timeout`] wants to be called next; O(1).
    fn poll_timeout(&self) -> Option<Instant>;

    /// Called after each batch, outside the handler: sockets are opened and closed here. O(1) when there is nothing to do.
    fn maintain<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) -> Next;

    /// A device or a ring has failed for good. `Ok` ends the program in good order, as when the device was to go.
    ///
    /// # Errors
    /// The same error, which ends the program with it.
    fn handle_failure(&mut self, error: io::Error) -> io::Result<()> {
        Err(error)
    }

    /// Sources whose reading stops while egress answers [`crate::egress::Flush::Waiting`] (a TUN device).
    fn slow_down<I: Ingress>(&mut self, ingress: &mut I, reading: bool);

    /// Signals to be handed over besides SIGTERM and SIGINT; what is not named here keeps its default action.
    fn signals(&self) -> &'static [Signal] {
        &[]
    }

    /// Takes a signal, between two batches. Without more to say, each ends the program.
    fn handle_signal(&mut self, _signal: Signal, _now: Instant) -> Next {
        Next::Stop
    }

    /// Called once when the program is told to stop, before the egress is drained: last words (a TURN Refresh of zero).
    fn stop<E: Egress>(&mut self, egress: &mut E, now: Instant);

    /// Packets the application itself lost, by cause.
    fn drops(&self) -> Drops;

    /// Where the time that batches take is recorded, if it is.
    fn stages(&mut self) -> Option<&mut Stages> {
        None
    }
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// Drain and return.
    Stop,
}

/// What ends a loop from outside.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Signals; one loop of a process has them.
    pub signals: Option<&'a StopSignals>,
    /// Where there are several loops: the end of all of them.
    pub halt: Option<&'a Halt>,
}

impl Ends<'_> {
    fn are_near(&self) -> bool {
        self.halt.is_some_and(Halt::is_set)
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// How packets came in.
    pub ingress: IngressStats,
    /// How packets left.
    pub egress: EgressStats,
    /// What the application lost.
    pub application: Drops,
    /// What the crypto threads did.
    pub crypto: CryptoStats,
}

impl Ledger {
    /// Adds another run's to this one.
    pub fn merge(&mut self, other: &Self) {
        self.ingress.merge(&other.ingress);
        self.egress.merge(&other.egress);
        self.application.merge(&other.application);
        self.crypto.merge(&other.crypto);
    }
}

/// Starts `application`: afterwards it waits for its first packet.
///
/// # Errors
/// Set-up failures.
#[expect(clippy::disallowed_methods, reason = "the driver is where time enters")]
pub fn start<A: Application, I: Ingress, E: Egress>(
    application: &mut A,
    ingress: &mut I,
    egress: &mut E,
    ends: &Ends<'_>,
) -> io::Result<()> {
    if let Some(signals) = ends.signals {
        ingress.add_borrowed(signals.fd().as_fd(), SIGNALS, Source::Ready)?;
    }
    if let Some(halt) = ends.halt {
        ingress.add_borrowed(halt.as_fd(), HALT, Source::Ready)?;
    }
    application.start(ingress, egress, Instant::now())
}

/// Runs `application`, which has been started, until it stops, by itself or at a signal, then drains. After input the loop
/// looks for more for `busy_poll` before it sleeps.
///
/// # Errors
/// A broken ring or descriptor.
#[expect(clippy::disallowed_methods, reason = "the driver is where time enters")]
pub fn run<A: Application, I: Ingress, E: Egress>(
    application: &mut A,
    ingress: &mut I,
    egress: &mut E,
    ends: &Ends<'_>,
    busy_poll: Duration,
) -> io::Result<Ledger> {
    let mut state = Loop::new(busy_poll, Instant::now());
    while !state.stopping && !ends.are_near() {
        state.turn(application, ingress, egress, ends)?;
    }
    take_what_was_read(application, ingress, egress)?;
    application.stop(egress, Instant::now());
    drain(application, egress)?;
    let crypto = egress.boss().map(|boss| boss.stats()).unwrap_or_default();
    let egress = egress.close();
    Ok(Ledger { ingress: ingress.stats(), egress, application: application.drops(), crypto })
}

/// Deals with what the ingress has read ahead, no faster than it leaves: it was accepted, so it is delivered or counted.
#[expect(clippy::disallowed_methods, reason = "the driver is where time enters")]
fn take_what_was_read<A: Application, I: Ingress, E: Egress>(
    application: &mut A,
    ingress: &mut I,
    egress: &mut E,
) -> io::Result<()> {
    let deadline = Instant::now() + DRAIN_TIME;
    loop {
        let now = Instant::now();
        let more = ingress.finish(&mut |received: Received<'_>| {
            if received.token.0 < OWN_TOKENS {
                application.handle(received, egress, now);
            }
        });
        let more = more.or_else(|error| application.handle_failure(error).map(|()| false))?;
        while flush(application, egress, Instant::now())?.0 != Flush::Done && Instant::now() < deadline {
            std::thread::sleep(RETRY_INTERVAL);
        }
        if !more {
            return Ok(());
        }
    }
}

/// Flushes; whether it has failed for good, which is no error to the application.
fn flush(
    application: &mut impl Application,
    egress: &mut impl Egress,
    now: Instant,
) -> io::Result<(Flush, bool)> {
    outcome_of(egress.flush(now), application)
}

fn outcome_of(flushed: io::Result<Flush>, application: &mut impl Application) -> io::Result<(Flush, bool)> {
    match flushed {
        Ok(flush) => Ok((flush, false)),
        Err(error) => application.handle_failure(error).map(|()| (Flush::Done, true)),
    }
}

/// Flushes until nothing is pending, for as long as there is time.
#[expect(clippy::disallowed_methods, reason = "the driver is where time enters")]
fn drain(application: &mut impl Application, egress: &mut impl Egress) -> io::Result<()> {
    let deadline = Instant::now() + DRAIN_TIME;
    loop {
        let now = Instant::now();
        let (flush, _) = flush(application, egress, now)?;
        if now >= deadline || (flush == Flush::Done && egress.pending() == 0) {
            return Ok(());
        }
        if flush == Flush::Done {
            // Everything is with the kernel and only has to be reaped, or with a thread that is still writing.
            return Ok(());
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

/// The wait for input is over, and the batch is to be timed.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver is where time enters, once a batch more when it is timed"
)]
fn begin_timing(egress: &mut impl Egress) -> Timing {
    if let Some(stopwatch) = egress.stopwatch() {
        stopwatch.start();
    }
    Timing::new(egress.offered(), Instant::now())
}

/// Hands a batch of input over to the application.
struct HandOver<'a, A, E> {
    application: &'a mut A,
    egress: &'a mut E,
    timing: Option<&'a mut Timing>,
    signalled: bool,
    /// When the first of the batch came.
    now: Option<Instant>,
}

impl<A, E> HandOver<'_, A, E> {
    #[expect(clippy::disallowed_methods, reason = "the driver is where time enters, once a batch")]
    fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }
}

impl<A: Application, E: Egress> Handler for HandOver<'_, A, E> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the driver is where time enters, more often in a batch that is timed"
    )]
    fn handle(&mut self, received: Received<'_>) {
        if received.token.0 >= OWN_TOKENS {
            self.signalled |= received.token == SIGNALS;
            return;
        }
        let now = self.now();
        let begun = self.timing.is_some().then(Instant::now);
        self.application.handle(received, self.egress, now);
        if let (Some(timing), Some(begun)) = (&mut self.timing, begun) {
            timing.handled(begun.elapsed());
        }
    }

    fn foresee(&mut self, from: SocketAddr, bytes: &[u8], segment_size: usize) -> Option<Sealed> {
        let now = self.now();
        self.application.foresee(from, bytes, segment_size, now)
    }
}

/// The state of the loop between two turns.
struct Loop {
    now: Instant,
    next_control: Instant,
    flush: Flush,
    slowed: bool,
    stopping: bool,
    /// The last turn had input, so that there may be more.
    had_input: bool,
    busy_poll: Duration,
    /// The loop does not sleep before this.
    awake_until: Instant,
}

impl Loop {
    fn new(busy_poll: Duration, now: Instant) -> Self {
        Self {
            now,
            next_control: now,
            flush: Flush::Done,
            slowed: false,
            stopping: false,
            had_input: false,
            busy_poll,
            awake_until: now,
        }
    }

    /// One turn: a batch of input, its output, what is due.
    #[expect(clippy::disallowed_methods, reason = "the driver is where time enters, once a batch")]
    fn turn<A: Application, I: Ingress, E: Egress>(
        &mut self,
        application: &mut A,
        ingress: &mut I,
        egress: &mut E,
        ends: &Ends<'_>,
    ) -> io::Result<()> {
        let timing = if self.flush == Flush::Suspended {
            // The design stops the loop: only signals and timers get their turn.
            (self.now, self.had_input) = (Instant::now(), false);
            self.take_signals(application, ends);
            None
        } else {
            self.take_input(application, ingress, egress, ends)?
        };
        if self.now >= self.next_control || application.poll_timeout().is_some_and(|due| due <= self.now) {
            self.next_control = self.now + CONTROL_INTERVAL;
            application.handle_timeout(egress, self.now);
        }
        self.stopping |= application.maintain(ingress, egress, self.now) == Next::Stop;
        let (flush, failed) = if self.had_input {
            outcome_of(egress.flush_sealed(self.now), application)?
        } else {
            flush(application, egress, self.now)?
        };
        self.flush = flush;
        self.stopping |= failed;
        if let (Some(timing), Some(stages)) = (timing, application.stages()) {
            let outside = egress.stopwatch().map(Stopwatch::stop);
            timing.finish(stages, egress.offered(), outside, Instant::now());
        }
        self.react(application, ingress, egress);
        if !ingress.has_more() {
            egress.idle();
        }
        Ok(())
    }

    /// Waits for input and hands over a batch of it; the times so far, when it is one that is timed.
    #[expect(clippy::disallowed_methods, reason = "the driver is where time enters, once a batch")]
    fn take_input<A: Application, I: Ingress, E: Egress>(
        &mut self,
        application: &mut A,
        ingress: &mut I,
        egress: &mut E,
        ends: &Ends<'_>,
    ) -> io::Result<Option<Timing>> {
        let timeout = self.timeout(application);
        let timed = application.stages().is_some_and(Stages::is_due);
        let waited = ingress.wait(timeout);
        let mut timing = timed.then(|| begin_timing(egress));
        let mut hand_over =
            HandOver { application, egress, timing: timing.as_mut(), signalled: false, now: None };
        let taken = waited.and_then(|()| ingress.take(&mut hand_over));
        let HandOver { signalled, now, .. } = hand_over;
        if let Some(timing) = &mut timing {
            timing.all_handed_over(Instant::now());
        }
        if let Err(error) = taken {
            application.handle_failure(error)?;
            self.stopping = true;
        }
        self.had_input = now.is_some();
        if let Some(now) = now {
            self.awake_until = now + self.busy_poll;
        }
        self.now = now.unwrap_or_else(Instant::now);
        if signalled {
            self.take_signals(application, ends);
        }
        Ok(timing)
    }

    /// Hands over the signals that have come.
    fn take_signals(&mut self, application: &mut impl Application, ends: &Ends<'_>) {
        while let Some(signal) = ends.signals.and_then(StopSignals::take) {
            self.stopping |= application.handle_signal(signal, self.now) == Next::Stop;
        }
    }

    /// How long the next wait may last.
    fn timeout(&self, application: &impl Application) -> Option<Duration> {
        // A busy socket is tried again by the clock, not as often as there are turns.
        let looks_on = self.now < self.awake_until && self.flush == Flush::Done;
        if looks_on || self.flush == Flush::Sealing {
            return Some(Duration::ZERO);
        }
        let due = application.poll_timeout().map(|due| due.saturating_duration_since(self.now));
        let retry = (self.flush == Flush::Waiting).then_some(RETRY_INTERVAL);
        match (due, retry) {
            (Some(due), Some(retry)) => Some(due.min(retry)),
            (due, retry) => due.or(retry),
        }
    }

    /// Slows sources down while something waits, and asks to be woken when it can leave.
    fn react<A: Application, I: Ingress, E: Egress>(
        &mut self,
        application: &mut A,
        ingress: &mut I,
        egress: &E,
    ) {
        let waiting = self.flush == Flush::Waiting;
        if waiting != self.slowed {
            self.slowed = waiting;
            application.slow_down(ingress, !waiting);
        }
        if waiting {
            for port in egress.waiting_ports() {
                ingress.wake_when_writable(Token(port.0));
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    /// Has one deadline and nothing else.
    struct Timed(Option<Instant>);

    impl Application for Timed {
        fn default_ingress(&self) -> IngressKind {
            IngressKind::Epoll
        }
        fn start<I: Ingress, E: Egress>(&mut self, _: &mut I, _: &mut E, _: Instant) -> io::Result<()> {
            Ok(())
        }
        fn handle<E: Egress>(&mut self, _: Received<'_>, _: &mut E, _: Instant) {}
        fn handle_timeout<E: Egress>(&mut self, _: &mut E, _: Instant) {}
        fn poll_timeout(&self) -> Option<Instant> {
            self.0
        }
        fn maintain<I: Ingress, E: Egress>(&mut self, _: &mut I, _: &mut E, _: Instant) -> Next {
            Next::Continue
        }
        fn slow_down<I: Ingress>(&mut self, _: &mut I, _: bool) {}
        fn stop<E: Egress>(&mut self, _: &mut E, _: Instant) {}
        fn drops(&self) -> Drops {
            Drops::default()
        }
    }

    #[test]
    fn the_loop_stays_awake_for_as_long_as_it_polls_busily_and_no_socket_is_busy() {
        let start = Instant::now();
        let application = Timed(Some(start + Duration::from_secs(1)));
        let mut state = Loop::new(Duration::from_micros(200), start);
        assert_eq!(state.timeout(&application), Some(Duration::from_secs(1)), "nothing has come yet");
        state.awake_until = start + state.busy_poll;
        assert_eq!(state.timeout(&application), Some(Duration::ZERO));
        state.flush = Flush::Waiting;
        assert_eq!(state.timeout(&application), Some(RETRY_INTERVAL));
        state.flush = Flush::Done;
        state.now = start + Duration::from_micros(200);
        let left = Duration::from_secs(1) - Duration::from_micros(200);
        assert_eq!(state.timeout(&application), Some(left));
    }
}
