//! The loop's side: it looks whether somebody asked, counts what the server holds a step at a time, and publishes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use dataplane::drops::Drops;
use dataplane::egress::{Egress, EgressStats};
use dataplane::ingress::{Ingress, IngressStats, Source};
use rustix::event::{EventfdFlags, eventfd};

use super::{Admin, serve};
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
    pub ingress: IngressStats,
    /// How packets leave and come in, by the names of the flags.
    pub design: (&'static str, &'static str),
}

/// What the two threads share: flags, a queue of one, and a descriptor each to be woken by.
#[derive(Debug)]
pub(super) struct Shared {
    asked: AtomicBool,
    phase: AtomicU8,
    stopped: AtomicBool,
    snapshots: ArrayQueue<Box<Snapshot>>,
    to_loop: OwnedFd,
    to_admin: OwnedFd,
}

impl Shared {
    pub fn new() -> io::Result<Arc<Self>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Arc::new(Self {
            asked: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Starting as u8),
            stopped: AtomicBool::new(false),
            snapshots: ArrayQueue::new(1),
            to_loop: eventfd(0, flags)?,
            to_admin: eventfd(0, flags)?,
        }))
    }

    /// The admin thread wants a snapshot.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        wake(&self.to_loop);
    }

    /// The loop answers.
    pub fn publish(&self, snapshot: Snapshot) {
        // One that nobody took is older.
        drop(self.snapshots.force_push(Box::new(snapshot)));
        wake(&self.to_admin);
    }

    /// The admin thread takes what was published.
    pub fn take(&self) -> Option<Box<Snapshot>> {
        self.snapshots.pop()
    }

    /// What the admin thread waits on.
    pub fn admin_fd(&self) -> BorrowedFd<'_> {
        self.to_admin.as_fd()
    }

    /// Makes [`Shared::admin_fd`] unreadable until somebody wakes the admin thread again.
    pub fn clear_admin_fd(&self) {
        clear(&self.to_admin);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            phase if phase == Phase::Serving as u8 => Phase::Serving,
            phase if phase == Phase::Draining as u8 => Phase::Draining,
            _ => Phase::Starting,
        }
    }
}

fn wake(fd: &OwnedFd) {
    // It fails when the counter is full, and then the other side is being woken already.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

fn clear(fd: &OwnedFd) {
    // It fails when there is nothing to clear.
    let _ = rustix::io::read(fd, &mut [0_u8; 8]);
}

/// The loop's side; without an admin address it does nothing.
#[derive(Debug)]
pub struct Observer {
    /// Bound, and not served yet.
    admin: Option<Admin>,
    work: Option<Work>,
}

/// What the loop keeps while figures are served.
#[derive(Debug)]
struct Work {
    shared: Arc<Shared>,
    /// Serves HTTP, and owns the listener and its connections; ends when the observer is dropped.
    thread: Option<JoinHandle<()>>,
    census: Option<Census>,
    /// When the last step of a census was taken that is not through.
    continue_at: Option<Instant>,
}

impl Observer {
    /// An observer that will serve on `admin`.
    #[must_use]
    pub fn new(admin: Option<Admin>) -> Self {
        Self { admin, work: None }
    }

    /// Starts serving. Called when signals are blocked already, so that they never arrive in the admin thread.
    ///
    /// # Errors
    /// When there is no descriptor or thread to be had.
    pub fn start<I: Ingress>(&mut self, ingress: &mut I) -> io::Result<()> {
        let Some(admin) = self.admin.take() else { return Ok(()) };
        let shared = Shared::new()?;
        ingress.add(shared.to_loop.as_fd(), ReadySource::Figures.token(), Source::Ready)?;
        let address = admin.address;
        let server = serve::Server::new(admin, shared.clone());
        // Owns the listener and all connections; ends when `stopped` is set.
        let thread = std::thread::Builder::new().name("towpath-admin".into()).spawn(move || server.run())?;
        tracing::info!(%address, "metrics and status page");
        self.work = Some(Work::new(shared, Some(thread)));
        Ok(())
    }

    /// Its source is readable: somebody asked.
    pub fn handle_ready(&mut self) {
        if let Some(work) = &mut self.work {
            clear(&work.shared.to_loop);
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
        let server = &*subjects.server;
        let Some(census) = work.census_taken(server, now) else { return };
        work.shared.publish(Snapshot {
            taken: now,
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
            egress: egress.stats(),
            egress_pending: egress.pending(),
            ingress: ingress.stats(),
            design: (egress.design(), ingress.design()),
        });
    }

    /// Says where the relay is in its life; `/readyz` answers by it at once.
    pub fn set_phase(&self, phase: Phase) {
        if let Some(work) = &self.work {
            work.shared.phase.store(phase as u8, Ordering::Release);
        }
    }
}

impl Work {
    fn new(shared: Arc<Shared>, thread: Option<JoinHandle<()>>) -> Self {
        Self { shared, thread, census: None, continue_at: None }
    }

    fn look(&mut self) {
        if self.census.is_none() && self.shared.asked.swap(false, Ordering::AcqRel) {
            self.census = Some(Census::default());
        }
    }

    /// The census, once its last step is taken.
    fn census_taken(&mut self, server: &Server, now: Instant) -> Option<Census> {
        if !server.census(self.census.as_mut()?, now) {
            self.continue_at = Some(now);
            return None;
        }
        self.continue_at = None;
        self.census.take()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        wake(&self.shared.to_admin);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported where it happened, and there is nothing left to serve.
            let _ = thread.join();
        }
    }
}
