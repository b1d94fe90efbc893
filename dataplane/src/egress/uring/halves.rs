//! The two halves of a ring as the design sees them: the real one, and in tests a simulated one.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::super::Target;
use crate::sys::ring::{ReapHalf, SubmitHalf};
use crate::sys::slab::Slot;

/// The submitting side of a ring, real or simulated.
pub trait Submit {
    /// Queues a datagram or superpacket; with `link` the next operation depends on it.
    fn push_send(
        &mut self,
        slot: Slot,
        fd: BorrowedFd<'_>,
        target: &Target,
        len: usize,
        segment_size: usize,
        link: bool,
    );
    /// Queues a write to a device.
    fn push_write(&mut self, slot: Slot, fd: BorrowedFd<'_>, len: usize);
    /// Submits everything queued; the answer is how many went.
    ///
    /// # Errors
    /// EAGAIN and EBUSY ask for reaping; others are fatal.
    fn submit(&mut self) -> io::Result<usize>;
    /// Operations whose slot has not come back.
    fn in_flight(&self) -> usize;
    /// `io_uring_enter` calls so far.
    fn enters(&self) -> u64;
    /// Submits after which the kernel had more completions than the ring has room for.
    fn overflows(&self) -> u64 {
        0
    }
    /// Asks the kernel to cancel everything.
    fn cancel_all(&mut self);
}

/// The reaping side of a ring, real or simulated.
pub trait Reap: Send + 'static {
    /// Shows the results of the last `count` operations without consuming them; `false` when they are not all there.
    fn peek_last(&mut self, count: usize, each: impl FnMut(i32)) -> bool;
    /// Hands over every completed slot with its result.
    fn reap(&mut self, each: impl FnMut(Slot, i32)) -> usize;
    /// Waits for a completion, at most `timeout`.
    ///
    /// # Errors
    /// Fatal ones.
    fn wait(&self, timeout: Duration) -> io::Result<()>;
}

impl Submit for SubmitHalf {
    fn push_send(
        &mut self,
        slot: Slot,
        fd: BorrowedFd<'_>,
        target: &Target,
        len: usize,
        segment_size: usize,
        link: bool,
    ) {
        self.push_send(slot, fd, target, len, segment_size, link);
    }
    fn push_write(&mut self, slot: Slot, fd: BorrowedFd<'_>, len: usize) {
        self.push_write(slot, fd, len);
    }
    fn submit(&mut self) -> io::Result<usize> {
        self.submit()
    }
    fn in_flight(&self) -> usize {
        self.in_flight()
    }
    fn enters(&self) -> u64 {
        self.enters()
    }
    fn overflows(&self) -> u64 {
        self.overflows()
    }
    fn cancel_all(&mut self) {
        self.cancel_all();
    }
}

impl Reap for ReapHalf {
    fn peek_last(&mut self, count: usize, each: impl FnMut(i32)) -> bool {
        self.peek_last(count, each)
    }
    fn reap(&mut self, each: impl FnMut(Slot, i32)) -> usize {
        self.reap(each)
    }
    fn wait(&self, timeout: Duration) -> io::Result<()> {
        self.wait(timeout)
    }
}
