//! What the admin thread and the loops share: flags, a queue of one each, and a descriptor each to be woken by.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

/// Figures of a loop at one moment.
pub trait Snapshot: Send + 'static {
    /// When that was.
    fn taken(&self) -> Instant;
    /// Adds another loop's.
    fn merge(&mut self, other: Self);
}

/// See the module.
#[derive(Debug)]
pub struct Shared<S> {
    /// Where the program is in its life, as a number of its own.
    phase: AtomicU8,
    stopped: AtomicBool,
    to_admin: OwnedFd,
    loops: Box<[ToLoop<S>]>,
}

/// What the admin thread shares with one loop.
#[derive(Debug)]
struct ToLoop<S> {
    asked: AtomicBool,
    snapshots: ArrayQueue<Box<S>>,
    fd: OwnedFd,
}

impl<S> Shared<S> {
    /// For so many loops.
    ///
    /// # Errors
    /// When there are no descriptors to be had.
    pub fn new(loops: usize) -> io::Result<Arc<Self>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let to_loop = |_| {
            let (asked, snapshots) = (AtomicBool::new(false), ArrayQueue::new(1));
            Ok(ToLoop { asked, snapshots, fd: eventfd(0, flags)? })
        };
        Ok(Arc::new(Self {
            phase: AtomicU8::new(0),
            stopped: AtomicBool::new(false),
            to_admin: eventfd(0, flags)?,
            loops: (0..loops).map(to_loop).collect::<io::Result<_>>()?,
        }))
    }

    /// How many loops there are.
    #[must_use]
    pub fn loops(&self) -> usize {
        self.loops.len()
    }

    /// The admin thread wants a snapshot of each.
    pub(super) fn ask(&self) {
        for to_loop in &self.loops {
            to_loop.asked.store(true, Ordering::Release);
            wake(&to_loop.fd);
        }
    }

    /// What a loop waits on: readable when it was asked.
    #[must_use]
    pub fn loop_fd(&self, number: usize) -> BorrowedFd<'_> {
        self.loops[number].fd.as_fd()
    }

    /// Makes [`Shared::loop_fd`] unreadable until the loop is asked again.
    pub fn clear_loop_fd(&self, number: usize) {
        clear(&self.loops[number].fd);
    }

    /// A loop looks whether it was asked; if so, it will publish.
    #[must_use]
    pub fn take_question(&self, number: usize) -> bool {
        self.loops[number].asked.swap(false, Ordering::AcqRel)
    }

    /// A loop answers.
    pub fn publish(&self, number: usize, snapshot: S) {
        // One that nobody took is older.
        drop(self.loops[number].snapshots.force_push(Box::new(snapshot)));
        wake(&self.to_admin);
    }

    /// The admin thread takes what a loop has published.
    pub(super) fn take(&self, number: usize) -> Option<Box<S>> {
        self.loops[number].snapshots.pop()
    }

    /// What the admin thread waits on.
    pub(super) fn admin_fd(&self) -> BorrowedFd<'_> {
        self.to_admin.as_fd()
    }

    /// Makes [`Shared::admin_fd`] unreadable until somebody wakes the admin thread again.
    pub(super) fn clear_admin_fd(&self) {
        clear(&self.to_admin);
    }

    /// Ends the admin thread.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        wake(&self.to_admin);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Says where the program is in its life; 0 at first.
    pub fn set_phase(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
    }

    /// Where the program is in its life.
    #[must_use]
    pub fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
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
