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
    pub ingress: IngressStats,
    /// How packets leave and come in, by the names of the flags.
    pub design: (&'static str, &'static str),
}

/// What the admin thread and the loops of all workers share: flags, a queue of one, and a descriptor each to be woken by.
#[derive(Debug)]
pub(super) struct Shared {
    phase: AtomicU8,
    stopped: AtomicBool,
    to_admin: OwnedFd,
    /// By worker.
    loops: Box<[ToLoop]>,
}

/// What the admin thread shares with one loop.
#[derive(Debug)]
struct ToLoop {
    asked: AtomicBool,
    snapshots: ArrayQueue<Box<Snapshot>>,
    fd: OwnedFd,
}

impl Shared {
    pub fn new(workers: usize) -> io::Result<Arc<Self>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let to_loop = |_| {
            let (asked, snapshots) = (AtomicBool::new(false), ArrayQueue::new(1));
            Ok(ToLoop { asked, snapshots, fd: eventfd(0, flags)? })
        };
        Ok(Arc::new(Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            stopped: AtomicBool::new(false),
            to_admin: eventfd(0, flags)?,
            loops: (0..workers).map(to_loop).collect::<io::Result<_>>()?,
        }))
    }

    /// How many loops there are.
    pub fn workers(&self) -> usize {
        self.loops.len()
    }

    /// The admin thread wants a snapshot of each.
    pub fn ask(&self) {
        for to_loop in &self.loops {
            to_loop.asked.store(true, Ordering::Release);
            wake(&to_loop.fd);
        }
    }

    /// A worker's loop answers.
    pub fn publish(&self, worker: usize, snapshot: Snapshot) {
        // One that nobody took is older.
        drop(self.loops[worker].snapshots.force_push(Box::new(snapshot)));
        wake(&self.to_admin);
    }

    /// The admin thread takes what a worker has published.
    pub fn take(&self, worker: usize) -> Option<Box<Snapshot>> {
        self.loops[worker].snapshots.pop()
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
    /// Bound, and not served yet; one worker's of several.
    admin: Option<Admin>,
    /// What several have together, until the loop runs.
    shared: Option<Arc<Shared>>,
    worker: usize,
    work: Option<Work>,
}

/// What the loop keeps while figures are served.
#[derive(Debug)]
struct Work {
    shared: Arc<Shared>,
    worker: usize,
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
        let to_loop = &shared.loops[self.worker];
        ingress.add_borrowed(to_loop.fd.as_fd(), ReadySource::Figures.token(), Source::Ready)?;
        let Some(admin) = self.admin.take() else {
            self.work = Some(Work::new(shared, self.worker, None));
            return Ok(());
        };
        let address = admin.address;
        let server = serve::Server::new(admin, shared.clone());
        // Owns the listener and all connections; ends when `stopped` is set.
        let thread = std::thread::Builder::new().name("towpath-admin".into()).spawn(move || server.run())?;
        tracing::info!(%address, "metrics and status page");
        self.work = Some(Work::new(shared, self.worker, Some(thread)));
        Ok(())
    }

    /// Its source is readable: somebody asked.
    pub fn handle_ready(&mut self) {
        if let Some(work) = &mut self.work {
            clear(&work.to_loop().fd);
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
        let Some(census) = work.census_taken(server, now) else { return };
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
                egress: egress.stats(),
                egress_pending: egress.pending(),
                ingress: ingress.stats(),
                design: (egress.design(), ingress.design()),
            },
        );
    }

    /// Says where the relay is in its life; `/readyz` answers by it at once.
    pub fn set_phase(&self, phase: Phase) {
        if let Some(work) = &self.work {
            work.shared.phase.store(phase as u8, Ordering::Release);
        }
    }
}

impl Work {
    fn new(shared: Arc<Shared>, worker: usize, thread: Option<JoinHandle<()>>) -> Self {
        Self { shared, worker, thread, census: None, continue_at: None }
    }

    fn to_loop(&self) -> &ToLoop {
        &self.shared.loops[self.worker]
    }

    fn look(&mut self) {
        if self.census.is_none() && self.to_loop().asked.swap(false, Ordering::AcqRel) {
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
        if let Some(thread) = self.thread.take() {
            self.shared.stopped.store(true, Ordering::Release);
            wake(&self.shared.to_admin);
            // A panic there was reported where it happened, and there is nothing left to serve.
            let _ = thread.join();
        }
    }
}
