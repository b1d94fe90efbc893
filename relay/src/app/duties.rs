//! What the relay does beside its packets: it obeys signals, shows figures, and reports what went wrong. Each is O(1) for a
//! batch as long as nobody asks for anything.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataplane::driver::Next;
use dataplane::drops::Drops;
use dataplane::egress::Egress;
use dataplane::ingress::Ingress;
use dataplane::sys::signal::Signal;

use crate::admin::{Observer, Phase};
use crate::life::Life;
use crate::report::{Report, Tally};
use crate::server::Server;
use crate::server::figures::Volume;
use crate::stream::Streams;

/// The three, and what they have to know of each other.
#[derive(Debug)]
pub struct Duties {
    life: Life,
    observer: Observer,
    report: Report,
}

/// What is looked after.
#[derive(Debug)]
pub struct Subjects<'a> {
    /// The protocol.
    pub server: &'a Server,
    /// Clients over TCP and TLS.
    pub streams: &'a Streams,
    /// What was lost outside the egress.
    pub drops: &'a Drops,
    /// What went from client to client.
    pub hairpinned: Volume,
    /// The longest that a timer was overdue lately.
    pub timer_lag: Duration,
}

impl Duties {
    /// With what signals do, and with someone to show figures to.
    #[must_use]
    pub fn new(life: Life, observer: Observer) -> Self {
        Self { life, observer, report: Report::default() }
    }

    /// The same, with what was lost in one log with other workers'.
    #[must_use]
    pub(crate) fn reporting_to(self, tally: &Arc<Mutex<Tally>>) -> Self {
        Self { report: Report::to(tally.clone()), ..self }
    }

    /// The loop is about to take the first packet.
    ///
    /// # Errors
    /// When there is no descriptor or thread to be had.
    pub fn start<I: Ingress>(&mut self, ingress: &mut I, now: Instant) -> io::Result<()> {
        // The admin thread first: what sets it up takes system calls that a confined relay has no more.
        self.observer.start(ingress)?;
        // Whoever is told that the relay is ready must not be told something else by the probe.
        self.observer.set_phase(Phase::Serving);
        self.life.start(now)
    }

    /// The admin thread wants figures.
    pub fn handle_figures_wanted(&mut self) {
        self.observer.handle_ready();
    }

    /// A signal arrived. Once a drain begins, `/readyz` says so.
    pub fn handle_signal(&mut self, signal: Signal, server: &mut Server, now: Instant) -> Next {
        let next = self.life.handle_signal(signal, server, now);
        if self.life.is_draining() {
            self.observer.set_phase(Phase::Draining);
        }
        next
    }

    /// It is time for one of them.
    pub fn handle_timeout(&mut self, drops: &Drops, server: &Server, now: Instant) {
        self.report.handle_timeout(drops, server, now);
        self.observer.handle_timeout();
        self.life.handle_timeout(now);
    }

    /// When one of them wants the loop to come by.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [self.report.poll_timeout(), self.observer.poll_timeout(), self.life.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// Called after each batch. Figures come last, so that they are those of what has just been applied.
    pub fn maintain<I: Ingress, E: Egress>(
        &mut self,
        subjects: Subjects<'_>,
        ingress: &I,
        egress: &E,
        now: Instant,
    ) -> Next {
        let next = self.life.maintain(subjects.server, now);
        self.observer.maintain(&subjects, self.life.reloads(), ingress, egress, now);
        next
    }

    /// The loop ends, with or without a drain before. What has been accepted is still sent, and nobody new is welcome.
    pub fn finish(&mut self, drops: &Drops, server: &Server) {
        self.observer.set_phase(Phase::Draining);
        self.report.finish(drops, server);
    }
}
