//! The life of a relay process: it starts, reads its configuration again at SIGHUP, drains at SIGTERM, and ends.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::driver::Next;
use dataplane::notify::Notifier;
use dataplane::sys::signal::Signal;

use crate::config::Config;
use crate::confine::Confinement;
use crate::crew::{Crew, Reconfiguration};
use crate::reload::{Reloaded, Reloader, Source};
use crate::server::{Alternates, Server};

/// How often the end of a reading is looked for while nothing else wakes the loop, and whether all workers go by it.
const RELOAD_INTERVAL: Duration = Duration::from_millis(10);
/// How often it is looked while draining whether the other workers have any allocations left.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);
/// How often it is looked whether a worker that has given no sign of life has given one.
const PULSE_INTERVAL: Duration = Duration::from_millis(100);

/// What SIGTERM does.
#[derive(Clone, Debug, Default)]
pub struct DrainPlan {
    /// How long allocations may go on; zero ends at once.
    pub timeout: Duration,
    /// Where new clients are sent meanwhile.
    pub alternates: Alternates,
}

impl DrainPlan {
    /// As configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self { timeout: config.drain_timeout, alternates: config.alternates.clone() }
    }
}

/// Readings of the configuration since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    /// Applied.
    pub applied: u64,
    /// Refused, because something was wrong: the configuration before stays in force.
    pub refused: u64,
    /// The last one was refused, so that the files are not what is in force.
    pub last_refused: bool,
}

/// What someone who embeds the relay wants done once it serves.
struct Hook(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook(…)")
    }
}

/// Where a relay process is in its life. Without a source of configuration SIGHUP changes nothing.
#[derive(Debug, Default)]
pub struct Life {
    /// Until the loop runs.
    source: Option<Box<Source>>,
    reloader: Option<Reloader>,
    reload_due: Option<Instant>,
    reloads: Reloads,
    confinement: Option<Confinement>,
    once_ready: Option<Hook>,
    notifier: Notifier,
    plan: DrainPlan,
    /// When draining is over at the latest.
    drained_by: Option<Instant>,
    /// The number of the order to drain, where there are workers.
    drain_order: Option<u64>,
    /// Every worker drains, and the log says so.
    is_drain_told: bool,
    /// When the allocations of others are counted next.
    count_at: Option<Instant>,
    /// All workers. The loop of the first one has this life, the others do as they are told.
    crew: Option<Arc<Crew>>,
    /// The number of an order that some workers may not have carried out yet, and how many users it has.
    applying: Option<(u64, usize)>,
    /// When the others' signs of life are looked for again.
    pulse_at: Option<Instant>,
}

impl Life {
    /// A life with something to read again, a plan for its end, and someone to tell.
    #[must_use]
    pub(crate) fn new(
        source: Source,
        plan: DrainPlan,
        notifier: Notifier,
        confinement: Option<Confinement>,
        crew: Arc<Crew>,
    ) -> Self {
        let (source, crew) = (Some(Box::new(source)), Some(crew));
        Self { source, plan, notifier, confinement, crew, ..Self::default() }
    }

    /// The same, with something to be called by the loop's thread, confined as it is, once the relay serves.
    #[must_use]
    pub fn once_ready(self, hook: impl FnOnce() + Send + 'static) -> Self {
        Self { once_ready: Some(Hook(Box::new(hook))), ..self }
    }

    /// The loop is about to take the first packet: signals are blocked and every other thread runs.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(&mut self, now: Instant) -> io::Result<()> {
        if let Some(source) = self.source.take() {
            self.reloader = Some(Reloader::start(*source)?);
        }
        if let Some(confinement) = &self.confinement {
            confinement.when_ready();
        }
        self.notifier.ready("serving", now);
        if let Some(Hook(hook)) = self.once_ready.take() {
            hook();
        }
        Ok(())
    }

    /// Readings of the configuration since the start.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        self.reloads
    }

    /// Whether it only serves what is allocated, until that ends.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drained_by.is_some()
    }

    /// SIGHUP reads the configuration again. SIGTERM drains, unless there is nothing to wait for; a second one ends.
    /// SIGINT ends: whoever presses Ctrl-C waits for it.
    pub fn handle_signal(&mut self, signal: Signal, server: &mut Server, now: Instant) -> Next {
        match signal {
            Signal::Hangup => {
                if let Some(reloader) = &mut self.reloader {
                    if self.drained_by.is_none() {
                        self.notifier.reloading();
                    }
                    reloader.request();
                    self.reload_due = Some(now + RELOAD_INTERVAL);
                }
                Next::Continue
            }
            Signal::Interrupt => Next::Stop,
            Signal::Terminate if self.drained_by.is_some() => {
                tracing::info!(
                    allocations = server.allocations_of_all(),
                    "told to stop a second time, not drained"
                );
                Next::Stop
            }
            Signal::Terminate => {
                let time = if server.allocations_of_all() == 0 { Duration::ZERO } else { self.plan.timeout };
                self.notifier.stopping("draining", time);
                if time.is_zero() {
                    return Next::Stop;
                }
                server.drain(self.plan.alternates.clone(), now);
                self.drained_by = Some(now + time);
                self.drain_order = self.order_drain();
                self.look_whether_all_drain(server);
                Next::Continue
            }
        }
    }

    /// Called after each batch; O(1) unless a configuration has just been read.
    pub fn maintain(&mut self, server: &Server, now: Instant) -> Next {
        if self.reload_due.is_some() {
            self.take_reloaded(now);
        }
        let Some(drained_by) = self.drained_by else { return Next::Continue };
        if !self.is_drain_told {
            self.look_whether_all_drain(server);
        }
        let has_others = self.crew.as_ref().is_some_and(|crew| crew.workers() > 1);
        self.count_at = (has_others || !self.is_drain_told).then(|| now + DRAIN_INTERVAL);
        // Before all of them drain, one may be about to make another.
        if self.is_drain_told && server.allocations_of_all() == 0 {
            tracing::info!("drained");
            return Next::Stop;
        }
        if now >= drained_by {
            tracing::warn!(
                allocations = server.allocations_of_all(),
                "the time to drain is over; --drain-timeout is how long it lasts"
            );
            return Next::Stop;
        }
        Next::Continue
    }

    /// Has every worker apply what has been read, or tells why not.
    fn take_reloaded(&mut self, now: Instant) {
        let (Some(reloader), Some(crew)) = (&mut self.reloader, &self.crew) else { return };
        // One after the other, so that what is said is true of one reading.
        let result = if self.applying.is_none() { reloader.poll() } else { None };
        match result {
            None => {}
            Some(Ok(Reloaded { settings, limits, tls, drain, users })) => {
                self.plan = drain;
                let new = Arc::new(Reconfiguration { settings, limits, tls });
                self.applying = Some((crew.order(|orders| orders.settings = Some(new)), users));
                if self.is_draining() {
                    self.order_drain();
                }
            }
            Some(Err(error)) => {
                self.reloads.refused += 1;
                self.reloads.last_refused = true;
                tracing::error!(refused = self.reloads.refused, "the configuration stays as it was: {error}");
                self.reloaded(now);
            }
        }
        self.look_whether_applied(now);
        let is_reading = self.reloader.as_ref().is_some_and(Reloader::is_under_way);
        self.reload_due = (is_reading || self.applying.is_some()).then(|| now + RELOAD_INTERVAL);
    }

    fn look_whether_applied(&mut self, now: Instant) {
        let (Some((number, users)), Some(crew)) = (self.applying, &self.crew) else { return };
        if !crew.have_obeyed(number) {
            return;
        }
        self.applying = None;
        self.reloads.applied += 1;
        self.reloads.last_refused = false;
        tracing::info!(users, "the configuration has been read again and is in force");
        self.reloaded(now);
    }

    fn reloaded(&mut self, now: Instant) {
        if self.drained_by.is_none() {
            self.notifier.ready("serving", now);
        }
    }

    /// The number of the order, where there are workers to obey it.
    fn order_drain(&self) -> Option<u64> {
        let alternates = self.plan.alternates.clone();
        self.crew.as_ref().map(|crew| crew.order(|orders| orders.drain = Some(alternates)))
    }

    /// Says so once it is true: nobody gets an allocation from a worker that has not heard of it yet.
    fn look_whether_all_drain(&mut self, server: &Server) {
        if let (Some(number), Some(crew)) = (self.drain_order, &self.crew)
            && !crew.have_obeyed(number)
        {
            return;
        }
        self.is_drain_told = true;
        tracing::info!(
            allocations = server.allocations_of_all(),
            seconds = self.plan.timeout.as_secs(),
            "draining: what is allocated goes on, nothing new is"
        );
    }

    /// Gives signs of life.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.notifier.is_due(now) {
            return;
        }
        // A worker that hangs lets the watchdog bite as if all did.
        if self.crew.as_ref().is_none_or(|crew| crew.are_alive()) {
            self.pulse_at = None;
            self.notifier.handle_timeout(now);
            if let Some(crew) = &self.crew {
                crew.ask();
            }
        } else {
            self.pulse_at = Some(now + PULSE_INTERVAL);
        }
    }

    /// When the loop has to come by; O(1).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let notifier = self.pulse_at.or(self.notifier.poll_timeout());
        [self.reload_due, self.drained_by, self.count_at, notifier].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn the_watchdog_hears_nothing_while_any_worker_hangs_and_the_loop_does_not_spin() {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let is_heard = || far.recv(&mut [0; 200]).is_ok();
        let crew = Crew::new(3).unwrap();
        let workers = [0, 1, 2].map(|number| crew.member(number));
        let notifier = Notifier::to(near, Duration::from_secs(2));
        let mut life = Life { notifier, crew: Some(crew), ..Life::default() };
        let mut now = Instant::now();
        life.start(now).unwrap();
        assert!(is_heard(), "it is ready");
        for hanging in [None, Some(1), None, Some(2), Some(0), None] {
            // Whatever was asked before is answered, by all of them.
            workers.iter().for_each(|worker| worker.handle_ready());
            now += Duration::from_secs(1);
            life.handle_timeout(now);
            assert!(is_heard());
            let turning = (0..3).filter(|&number| hanging != Some(number));
            turning.for_each(|number| workers[number].handle_ready());
            now += Duration::from_secs(1);
            life.handle_timeout(now);
            assert_eq!(is_heard(), hanging.is_none());
            assert!(life.poll_timeout().is_some_and(|at| at > now));
            if let Some(hanging) = hanging {
                workers[hanging].handle_timeout();
                now += PULSE_INTERVAL;
                life.handle_timeout(now);
                assert!(is_heard(), "it turns again");
            }
        }
    }
}
