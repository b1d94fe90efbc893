//! The loop's side: it looks whether somebody asked, counts what the server holds a step at a time, and publishes.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::admin::Shared;
use dataplane::drops::Drops;
use dataplane::egress::{Egress, EgressStats};
use dataplane::ingress::{Ingress, IngressStats, Source};

use super::Admin;
use super::unexplained::Unexplained;
use crate::app::duties::Subjects;
use crate::life::Reloads;
use crate::ready::ReadySource;
use crate::server::Server;
use crate::server::figures::{Census, Figures, Volume};
use crate::server::rules::Rule;
use crate::stream::StreamFigures;

/// Where the relay is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Clients are served.
    Serving,
    /// Those who are there are served until they go; others should go elsewhere.
    Draining,
}

impl Phase {
    /// The one of a number, as [`Shared::phase`] has it.
    pub(super) const fn of(number: u8) -> Self {
        match number {
            number if number == Self::Serving as u8 => Self::Serving,
            number if number == Self::Draining as u8 => Self::Draining,
            _ => Self::Starting,
        }
    }

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// All figures at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub taken: Instant,
    /// Whose figures these are, together.
    pub workers: usize,
    pub figures: Figures,
    /// Requests answered with an error, for every error code.
    pub refusals: Vec<(u16, u64)>,
    /// Requests and indications refused by a rule of the operator's, for every rule.
    pub rules: Vec<(Rule, u64)>,
    pub allocations: usize,
    /// Most allocations in all, and of one user.
    pub allocations_limits: (u32, u32),
    pub census: Census,
    /// Datagrams that went from client to client inside.
    pub hairpinned: Volume,
    /// Requests refused because another allocation on the same port had the peer.
    pub port_conflicts: u64,
    pub streams: StreamFigures,
    pub drops: Drops,
    pub reloads: Reloads,
    pub egress: EgressStats,
    pub egress_pending: u64,
    /// Packets that are nowhere.
    pub egress_unexplained: u64,
    /// Slots that the kernel does not have, of the ring that has fewest.
    pub slots_free_min: u64,
    pub ingress: IngressStats,
    /// The longest that a timer was overdue lately.
    pub timer_lag: Duration,
    /// How packets leave and come in, by the names of the flags.
    pub design: (&'static str, &'static str),
}

/// The loop's side; without an admin address it does nothing.
#[derive(Debug)]
pub struct Observer {
    /// Bound, and not served yet; one worker's of several.
    admin: Option<Admin>,
    /// What several have together, until the loop runs.
    shared: Option<Arc<Shared<Snapshot>>>,
    worker: usize,
    work: Option<Work>,
}

/// What the loop keeps while figures are served.
#[derive(Debug)]
struct Work {
    shared: Arc<Shared<Snapshot>>,
    worker: usize,
    /// Serves HTTP, and owns the listener and its connections; ends when the observer is dropped.
    thread: Option<JoinHandle<()>>,
    census: Option<Census>,
    unexplained: Unexplained,
    /// When the last step of a census was taken that is not through.
    continue_at: Option<Instant>,
}

impl Observer {
    /// An observer that will serve on `admin`.
    #[must_use]
    pub fn new(admin: Option<Admin>) -> Self {
        Self { admin, shared: None, worker: 0, work: None }
    }

    /// The observers of so many workers, whose figures will be shown together. The first one serves, and is started last.
    ///
    /// # Errors
    /// When there are no descriptors to be had.
    pub fn of_crew(admin: Option<Admin>, workers: usize) -> io::Result<Vec<Self>> {
        let shared = admin.is_some().then(|| Shared::new(workers)).transpose()?;
        let mut admin = admin;
        let observer = |worker| Self { admin: admin.take(), shared: shared.clone(), worker, work: None };
        Ok((0..workers).map(observer).collect())
    }

    /// Starts serving. Called when signals are blocked already, so that they never arrive in the admin thread.
    ///
    /// # Errors
    /// When there is no descriptor or thread to be had.
    pub fn start<I: Ingress>(&mut self, ingress: &mut I) -> io::Result<()> {
        let shared = match self.shared.take() {
            Some(shared) => shared,
            None if self.admin.is_some() => Shared::new(1)?,
            None => return Ok(()),
        };
        ingress.add_borrowed(shared.loop_fd(self.worker), ReadySource::Figures.token(), Source::Ready)?;
        let Some(admin) = self.admin.take() else {
            self.work = Some(Work::new(shared, self.worker, None));
            return Ok(());
        };
        let address = admin.address();
        let server = admin.serve(shared.clone());
        // Owns the listener and all connections; ends when `stopped` is set.
        let thread = std::thread::Builder::new().name("towpath-admin".into()).spawn(move || server.run())?;
        tracing::info!(%address, "metrics and status page");
        self.work = Some(Work::new(shared, self.worker, Some(thread)));
        Ok(())
    }

    /// Its source is readable: somebody asked.
    pub fn handle_ready(&mut self) {
        if let Some(work) = &mut self.work {
            work.shared.clear_loop_fd(work.worker);
            work.look();
        }
    }

    /// Looks whether somebody asked: a loop that is suspended does not see its source.
    pub fn handle_timeout(&mut self) {
        if let Some(work) = &mut self.work {
            work.look();
        }
    }

    /// When the loop should turn again at the latest: at once while a census is being taken.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.work.as_ref()?.continue_at
    }

    /// Takes a step of a census that is wanted, and publishes when it was the last. O(1) when nobody asked.
    pub fn maintain<I: Ingress, E: Egress>(
        &mut self,
        subjects: &Subjects<'_>,
        reloads: Reloads,
        ingress: &I,
        egress: &E,
        now: Instant,
    ) {
        let Some(work) = &mut self.work else { return };
        let server = subjects.server;
        let Some(census) = work.census_taken(server, egress, now) else { return };
        let stats = egress.stats();
        let egress_unexplained = work.unexplained.look(egress, &stats);
        work.shared.publish(
            work.worker,
            Snapshot {
                taken: now,
                workers: 1,
                figures: server.figures().clone(),
                refusals: server.all_refusals().collect(),
                rules: server.refusals_by_rule().collect(),
                allocations: server.allocations(),
                allocations_limits: server.allocations_limits(),
                census,
                hairpinned: subjects.hairpinned,
                port_conflicts: server.port_conflicts().0,
                streams: subjects.streams.figures(),
                drops: subjects.drops.clone(),
                reloads,
                egress_pending: egress.pending(),
                egress_unexplained,
                slots_free_min: stats.slots.saturating_sub(stats.slots_in_flight),
                egress: stats,
                ingress: ingress.stats(),
                timer_lag: subjects.timer_lag,
                design: (egress.design(), ingress.design()),
            },
        );
    }

    /// Says where the relay is in its life; `/readyz` answers by it at once.
    pub fn set_phase(&self, phase: Phase) {
        if let Some(work) = &self.work {
            work.shared.set_phase(phase as u8);
        }
    }
}

impl Work {
    fn new(shared: Arc<Shared<Snapshot>>, worker: usize, thread: Option<JoinHandle<()>>) -> Self {
        Self { shared, worker, thread, census: None, unexplained: Unexplained::default(), continue_at: None }
    }

    fn look(&mut self) {
        if self.census.is_none() && self.shared.take_question(self.worker) {
            self.census = Some(Census::default());
        }
    }

    /// The census, once its last step is taken: in the turn after the first at the earliest.
    fn census_taken<E: Egress>(&mut self, server: &Server, egress: &E, now: Instant) -> Option<Census> {
        let census = self.census.as_mut()?;
        if !self.unexplained.is_prepared() || !server.census(census, now) {
            self.unexplained.look_before(egress);
            self.continue_at = Some(now);
            return None;
        }
        self.continue_at = None;
        self.census.take()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.stop();
            // A panic there was reported where it happened, and there is nothing left to serve.
            let _ = thread.join();
        }
    }
}
