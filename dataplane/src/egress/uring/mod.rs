//! The `uring` design: a fixed ring of superpacket slots, full-queue submission, a completion thread.
//!
//! Sends of one socket within a submit are linked, so that none overtakes one that the socket could not take. When
//! `io_uring_enter` returns, the results are there and are looked at: what failed is judged at once, what succeeded is
//! left for the completion thread (or whoever needs its slot first) to reap.

pub mod completion;
pub mod handover;
mod retry;
mod sync;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::completion::{Completer, Expected};
use super::errno::{Verdict, judge_send, judge_write};
use super::ports::{Kind, Ports};
use super::staging::{Content, Filled, Place, Staging};
use super::waiting::{Change, To, Waiting};
pub use super::waiting::{WAITING_BYTES, WAITING_TIME};
use super::{Class, Egress, EgressStats, Flush, Port, Target};
use crate::drops::Cause;
use crate::engine::Completions;
use crate::sys::ring::{self, ReapHalf, SubmitHalf};
use crate::sys::slab::{Slab, Slot};
use crate::sys::tun::Offloads;

/// Slots for datagrams: more than the superpackets of one batch, few enough to stay in the last-level cache.
const SOCKET_SLOTS: usize = 64;
/// Slots for a device: registered, 15 × 66 KiB stays below 1 MiB of locked memory.
const DEVICE_SLOTS: usize = 15;
/// How long a superpacket size that the path refused is avoided.
const SEGMENT_LIMIT_TIME: Duration = Duration::from_secs(1);
/// How long one wait for completions lasts before everything is looked at again.
const WAIT: Duration = Duration::from_millis(100);
/// Waits without any progress before the ring is given up as broken.
const WAITS_MAX: usize = 100;

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
    /// Shows the results of the last `count` operations without consuming them; `false` when they are not all there.
    fn peek_last(&self, count: usize, each: impl FnMut(i32)) -> bool;
    /// Operations whose slot has not come back.
    fn in_flight(&self) -> usize;
    /// `io_uring_enter` calls so far.
    fn enters(&self) -> u64;
    /// Asks the kernel to cancel everything.
    fn cancel_all(&mut self);
}

/// The reaping side of a ring, real or simulated.
pub trait Reap: Send + 'static {
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
    fn peek_last(&self, count: usize, each: impl FnMut(i32)) -> bool {
        self.peek_last(count, each)
    }
    fn in_flight(&self) -> usize {
        self.in_flight()
    }
    fn enters(&self) -> u64 {
        self.enters()
    }
    fn cancel_all(&mut self) {
        self.cancel_all();
    }
}

impl Reap for ReapHalf {
    fn reap(&mut self, each: impl FnMut(Slot, i32)) -> usize {
        self.reap(each)
    }
    fn wait(&self, timeout: Duration) -> io::Result<()> {
        self.wait(timeout)
    }
}

/// What the submitter has to know about an operation in case it fails.
#[derive(Clone, Copy, Debug)]
struct Flight {
    to: To,
    len: usize,
    segments: usize,
    class: Class,
}

/// The `uring` design; see the module.
pub struct Uring<S, R: Reap> {
    submit: S,
    completer: Arc<Completer<R>>,
    thread: Option<JoinHandle<()>>,
    staging: Staging,
    ports: Ports<Waiting>,
    /// Ports whose waiting queue is not empty.
    waiting: Vec<Port>,
    /// By slot.
    flights: Box<[Option<Flight>]>,
    /// Scratch: slots about to be pushed.
    sealed: Vec<Filled>,
    /// Scratch: slots that failed.
    failed: Vec<(Slot, i32)>,
    /// Something submitted has no known outcome yet, so nothing may be submitted behind it.
    unsettled: bool,
    segment_limit_until: Option<Instant>,
    /// Of the last flush: a full ring is submitted between two flushes.
    now: Instant,
    capacity: usize,
    stats: EgressStats,
}

impl Uring<SubmitHalf, ReapHalf> {
    /// Sets up the ring; the calling thread is its submitter from then on.
    ///
    /// # Errors
    /// What io_uring_setup(2) and mmap(2) answer.
    pub fn new(gso: bool, completions: Completions, now: Instant) -> io::Result<Self> {
        let (slab, slots) = Slab::new(SOCKET_SLOTS + DEVICE_SLOTS)?;
        let slab = Arc::new(slab);
        let (submit, reap) = ring::new(slab.clone(), SOCKET_SLOTS)?;
        if !submit.is_registered() {
            tracing::warn!(
                "the limit on locked memory (RLIMIT_MEMLOCK, counted per user) is too small to register {} KiB of \
                 device slots; TUN writes use unregistered memory. Raise it with `ulimit -l 16384`",
                DEVICE_SLOTS * 66
            );
        }
        Self::with_ring(submit, reap, slab, slots, SOCKET_SLOTS, gso, completions, now)
    }
}

impl<S: Submit, R: Reap> Uring<S, R> {
    /// Builds the design on any ring over `slab`.
    ///
    /// # Errors
    /// When the completion thread cannot be started.
    pub fn with_ring(
        submit: S,
        reap: R,
        slab: Arc<Slab>,
        slots: Vec<Slot>,
        devices_from: usize,
        gso: bool,
        completions: Completions,
        now: Instant,
    ) -> io::Result<Self> {
        let capacity = slots.len();
        let completer = Arc::new(Completer::new(reap, capacity, capacity / 2));
        let thread = match completions {
            Completions::Thread => Some(completion::start(completer.clone())?),
            Completions::Inline => None,
        };
        Ok(Self {
            submit,
            completer,
            thread,
            staging: Staging::new(slab, slots, devices_from, gso),
            ports: Ports::default(),
            waiting: Vec::new(),
            flights: vec![None; capacity].into(),
            sealed: Vec::with_capacity(capacity),
            failed: Vec::with_capacity(capacity),
            unsettled: false,
            segment_limit_until: None,
            now,
            capacity,
            stats: EgressStats::default(),
        })
    }

    /// Slots free, being filled, and with the kernel or on their way back; the sum is the capacity.
    pub fn slots(&mut self) -> SlotCount {
        self.recycle();
        let (free, filling) = (self.staging.free_count(), self.staging.filled_count() + self.sealed.len());
        SlotCount { free, filling, in_flight: self.submit.in_flight(), capacity: self.capacity }
    }

    /// Bytes that wait for a socket or device; at most [`WAITING_BYTES`].
    pub fn waiting_len(&self, port: Port) -> usize {
        self.ports.get(port).map_or(0, |entry| entry.state.len())
    }

    /// Reaps everything that has completed, as the completion thread would.
    pub fn reap(&mut self) {
        self.completer.reap();
    }

    /// Moves slots that have come back to the free list.
    fn recycle(&mut self) {
        while let Some(slot) = self.completer.handover.take_free() {
            self.staging.release(slot);
        }
    }

    /// A full ring: everything is submitted, and the submitter waits until a slot of the wanted kind is free.
    fn make_room(&mut self, has_room: impl Fn(&Self) -> bool) -> io::Result<()> {
        self.recycle();
        if has_room(self) {
            return Ok(());
        }
        self.stats.ring_full += 1;
        for _ in 0..WAITS_MAX {
            self.submit_filled(self.now)?;
            self.completer.try_reap();
            self.recycle();
            if has_room(self) {
                return Ok(());
            }
            self.completer.reap();
            self.recycle();
            if has_room(self) {
                return Ok(());
            }
            self.completer.wait(WAIT)?;
            self.recycle();
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "no slot of the ring has come back for 10 s"))
    }

    /// Submits every filled slot, socket by socket, unless its socket is busy: then it waits behind the others.
    fn submit_filled(&mut self, now: Instant) -> io::Result<()> {
        if self.unsettled && !self.settle(Duration::from_millis(1), now)? {
            return Ok(());
        }
        let mut sealed = std::mem::take(&mut self.sealed);
        self.staging.seal(&mut sealed);
        if !sealed.is_sorted_by_key(Filled::port) {
            sealed.sort_unstable_by_key(|filled| (filled.port(), filled.order));
        }
        let mut pushed = 0;
        let mut rest = sealed.drain(..).peekable();
        while let Some(filled) = rest.next() {
            let link = rest.peek().is_some_and(|next| next.port() == filled.port());
            pushed += self.push(filled, link, now);
        }
        drop(rest);
        self.sealed = sealed;
        if pushed > 0 { self.submit_and_settle(pushed, now) } else { Ok(()) }
    }

    /// Pushes one slot, or puts its content into the waiting queue of a busy socket. The answer is how many operations
    /// were pushed.
    fn push(&mut self, mut filled: Filled, link: bool, now: Instant) -> usize {
        let segments = filled.segments();
        let Some(entry) = self.ports.get_mut(filled.port()) else {
            self.stats.drops.add(Cause::EgressClosed, segments as u64);
            self.staging.release(filled.slot);
            return 0;
        };
        let class = filled.class();
        let to = match filled.content {
            Content::Datagrams { target, segment_size, .. } => To::Target(target, segment_size),
            Content::Device { port, .. } => To::Device(port),
        };
        if !entry.state.is_empty() {
            let bytes = &self.staging.slab().bytes(&mut filled.slot)[..filled.len];
            entry.state.push(to, segments, false, class, bytes, now, &mut self.stats.drops);
            self.stats.waited += segments as u64;
            self.staging.release(filled.slot);
            return 0;
        }
        let (index, len) = (filled.slot.index(), filled.len);
        self.flights[index] = Some(Flight { to, len, segments, class });
        self.completer.expect(index, Expected { len, segments });
        match to {
            To::Target(target, size) => {
                self.submit.push_send(filled.slot, entry.fd.as_fd(), &target, len, size, link);
            }
            To::Device(_) => self.submit.push_write(filled.slot, entry.fd.as_fd(), len),
        }
        1
    }

    /// Submits `pushed` operations and looks at their results.
    fn submit_and_settle(&mut self, pushed: usize, now: Instant) -> io::Result<()> {
        self.enter(pushed)?;
        self.stats.operations += pushed as u64;
        let wake = self.completer.handover.submitted(pushed);
        if let Some(thread) = &self.thread {
            let mut succeeded = true;
            let all = self.submit.peek_last(pushed, |result| succeeded &= result >= 0);
            if wake {
                self.stats.completion_wakeups += 1;
                thread.thread().unpark();
            }
            if all && succeeded {
                return Ok(());
            }
        }
        self.settle(Duration::ZERO, now)?;
        Ok(())
    }

    /// `io_uring_enter` until everything queued is with the kernel.
    fn enter(&mut self, mut queued: usize) -> io::Result<()> {
        let mut refused = 0;
        while queued > 0 {
            match self.submit.submit() {
                Ok(count) => queued = queued.saturating_sub(count.max(1)),
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) && refused < 3 =>
                {
                    // The kernel wants its completions taken before it accepts more.
                    refused += 1;
                    self.completer.reap();
                }
                Err(error) => return Err(io::Error::new(error.kind(), format!("io_uring_enter: {error}"))),
            }
        }
        Ok(())
    }

    /// Reaps, waits up to `wait` for what has not completed, and judges what failed. `true` when every outcome is known.
    fn settle(&mut self, wait: Duration, now: Instant) -> io::Result<bool> {
        self.completer.reap();
        if self.submit.in_flight() > 0 && wait > Duration::ZERO {
            self.completer.wait(wait)?;
        }
        self.unsettled = self.submit.in_flight() > 0;
        self.recycle();
        let mut failed = std::mem::take(&mut self.failed);
        while let Some(failure) = self.completer.handover.take_failed() {
            failed.push(failure);
        }
        let mut again = None;
        for (slot, result) in failed.drain(..) {
            if let Some(port) = self.judge(slot, result, now)? {
                again = Some(port);
            }
        }
        self.failed = failed;
        if let Some(port) = again.filter(|_| !self.unsettled) {
            self.retry_port(port, now)?;
            // More than one socket may have had an operation cancelled; the others wait for the next flush.
        }
        Ok(!self.unsettled)
    }

    /// Decides what becomes of a failed operation. `Some`: its port has something to send again at once.
    fn judge(&mut self, mut slot: Slot, result: i32, now: Instant) -> io::Result<Option<Port>> {
        let Some(flight) = self.flights[slot.index()].take() else {
            self.staging.release(slot);
            return Ok(None);
        };
        let (port, verdict) = match flight.to {
            _ if result >= 0 => (None, Verdict::Drop(Cause::EgressInvalid)),
            To::Target(target, _) => (Some(target.port), judge_send(-result, flight.segments)),
            To::Device(port) => (Some(port), judge_write(-result)),
        };
        let mut again = None;
        let keep = |this: &mut Self, slot: &mut Slot, retried: bool| {
            let Some(entry) = port.and_then(|port| this.ports.get_mut(port)) else {
                this.stats.drops.add(Cause::EgressClosed, flight.segments as u64);
                return;
            };
            let bytes = &this.staging.slab().bytes(slot)[..flight.len];
            let drops = &mut this.stats.drops;
            entry.state.push(flight.to, flight.segments, retried, flight.class, bytes, now, drops);
            this.stats.waited += flight.segments as u64;
            if let Some(port) = port.filter(|port| !this.waiting.contains(port)) {
                this.waiting.push(port);
            }
        };
        match verdict {
            Verdict::Busy => keep(self, &mut slot, false),
            Verdict::Again => {
                keep(self, &mut slot, false);
                again = port;
            }
            Verdict::Once(_) => {
                keep(self, &mut slot, true);
                again = port;
            }
            Verdict::Resegment => {
                keep(self, &mut slot, false);
                self.resegmented(flight.to, -result, now);
                if let Some(entry) = port.and_then(|port| self.ports.get_mut(port)) {
                    entry.state.replace_front(Change::Resegment);
                }
                again = port;
            }
            Verdict::Drop(cause) => self.stats.drops.add(cause, flight.segments as u64),
            Verdict::Fatal => return Err(fatal(result)),
        }
        self.staging.release(slot);
        Ok(again)
    }

    /// Notes that a superpacket was refused; one that was above the path's MTU lowers the limit for a while.
    fn resegmented(&mut self, to: To, errno: i32, now: Instant) {
        self.stats.gso_fallbacks += 1;
        if let (To::Target(_, size), libc::EMSGSIZE) = (to, errno) {
            self.staging.set_segment_limit(size.min(self.staging.segment_limit()));
            self.segment_limit_until = Some(now + SEGMENT_LIMIT_TIME);
        }
    }
}

/// The error that ends the program when a descriptor is gone.
fn fatal(result: i32) -> io::Error {
    let error = io::Error::from_raw_os_error(-result);
    io::Error::new(error.kind(), format!("a socket or TUN device can no longer be written: {error}"))
}

/// Where the slots are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCount {
    /// Free.
    pub free: usize,
    /// Being filled.
    pub filling: usize,
    /// With the kernel, or completed and not reaped.
    pub in_flight: usize,
    /// All.
    pub capacity: usize,
}

impl<S: Submit, R: Reap> Egress for Uring<S, R> {
    fn add_socket(&mut self, fd: Arc<OwnedFd>) -> io::Result<Port> {
        self.ports.add(fd, Kind::Socket, Waiting::default())
    }

    fn add_device(&mut self, fd: Arc<OwnedFd>, offloads: Offloads) -> io::Result<Port> {
        self.ports.add(fd, Kind::Device(offloads), Waiting::default())
    }

    fn remove(&mut self, port: Port) {
        // What was appended before is sent, not lost; errors come up again at the next flush.
        let _ = self.submit_filled(self.now);
        if let Some(mut entry) = self.ports.remove(port) {
            entry.state.clear(Cause::EgressClosed, &mut self.stats.drops);
            self.waiting.retain(|&other| other != port);
        }
    }

    fn append(&mut self, target: &Target, len: usize, class: Class, fill: impl FnOnce(&mut [u8]) -> bool) {
        let mut place = self.staging.place(target, len, class);
        if place == Place::Full {
            let made = self.make_room(|this| this.staging.place(target, len, class) != Place::Full);
            place = self.staging.place(target, len, class);
            if made.is_err() || place == Place::Full {
                // The ring is broken: the next flush says so and ends the program.
                self.stats.offered += 1;
                self.stats.drops.count(Cause::Shutdown);
                return;
            }
        }
        if self.staging.append(place, target, len, class, fill) {
            self.stats.offered += 1;
        }
    }

    fn deliver(&mut self, device: Port, packet: &[u8]) {
        self.stats.offered += 1;
        let Some(&Kind::Device(offloads)) = self.ports.get(device).map(|entry| &entry.kind) else {
            self.stats.drops.count(Cause::EgressClosed);
            return;
        };
        if self.staging.deliver(device, packet, offloads) {
            return;
        }
        let made = self.make_room(|this| this.staging.has_device_slot());
        if made.is_err() || !self.staging.deliver(device, packet, offloads) {
            self.stats.drops.count(Cause::Shutdown);
        }
    }

    fn flush(&mut self, now: Instant) -> io::Result<Flush> {
        self.now = now;
        if self.segment_limit_until.is_some_and(|until| until <= now) {
            self.segment_limit_until = None;
            self.staging.set_segment_limit(usize::MAX);
        }
        if self.unsettled {
            self.settle(Duration::ZERO, now)?;
        }
        if !self.waiting.is_empty() && !self.unsettled {
            self.retry_all(now)?;
        }
        self.submit_filled(now)?;
        Ok(if self.waiting.is_empty() && !self.unsettled { Flush::Done } else { Flush::Waiting })
    }

    /// Reaps before the loop goes to sleep: the slot used next is then the one still in the cache, and the completion
    /// thread is left alone.
    fn idle(&mut self) {
        self.completer.try_reap();
        self.recycle();
    }

    fn pending(&self) -> u64 {
        let (sent, _) = self.completer.sent();
        self.stats.offered - sent - self.stats.drops.total()
    }

    fn waiting_ports(&self) -> impl Iterator<Item = Port> {
        self.waiting.iter().copied()
    }

    fn stats(&self) -> EgressStats {
        let (sent, sent_bytes) = self.completer.sent();
        EgressStats { sent, sent_bytes, enters: self.submit.enters(), ..self.stats.clone() }
    }

    fn close(&mut self) -> EgressStats {
        // Errors change nothing here: what did not leave is counted below.
        let _ = self.submit_filled(self.now);
        for _ in 0..20 {
            self.completer.reap();
            if self.submit.in_flight() == 0 {
                break;
            }
            self.submit.cancel_all();
            let _ = self.completer.wait(WAIT);
        }
        self.completer.handover.stop();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.recycle();
        self.waiting.clear();
        // What failed last, what waits and what never completed: all of it is what is still pending.
        while let Some((slot, _)) = self.completer.handover.take_failed() {
            self.staging.release(slot);
        }
        let pending = self.pending();
        self.stats.drops.add(Cause::Shutdown, pending);
        self.stats()
    }
}

impl<S, R: Reap> Drop for Uring<S, R> {
    fn drop(&mut self) {
        self.completer.handover.stop();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
