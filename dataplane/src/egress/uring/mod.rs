//! The `uring` design: a fixed ring of superpacket slots, full-queue submission, a completion thread.
//!
//! Sends of one socket within a submit are linked, so that none overtakes one that the socket could not take. When
//! `io_uring_enter` returns, the results are there and are looked at: what failed is judged at once, what succeeded is
//! left for the completion thread (or whoever needs its slot first) to reap.

pub mod completion;
mod halves;
pub mod handover;
mod resend;
mod retry;
mod settle;
mod submission;
mod sync;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::completion::Completer;
pub use self::halves::{Reap, Submit};
use self::settle::Flight;
use super::ports::{Kind, Ports};
use super::staging::{Filled, Staging};
use super::waiting::Waiting;
pub use super::waiting::{WAITING_BYTES, WAITING_TIME};
use super::{Class, Egress, EgressStats, Flush, Port, Target, Unsealed};
use crate::crypto::crew::Boss;
use crate::drops::Cause;
use crate::engine::Completions;
use crate::ingress::{DEVICE_BYTES, DEVICE_BYTES_AHEAD};
use crate::stages::Stopwatch;
use crate::sys::ring::{self, ReapHalf, SubmitHalf};
use crate::sys::slab::{SLOT_LEN, Slab, Slot};
use crate::sys::tun::Offloads;

/// Slots for datagrams: more than the superpackets of one batch, few enough to stay in the last-level cache.
const SOCKET_SLOTS: usize = 64;
/// Slots for a device: registered, 15 × 66 KiB stays below 1 MiB of locked memory.
const DEVICE_SLOTS: usize = 15;
/// Slots that may be with the crypto threads while the loop reads on: enough for one that has just been woken to catch up.
const SEALING_MAX: usize = 12;
/// How long one wait for completions lasts before everything is looked at again.
const WAIT: Duration = Duration::from_millis(100);
/// Waits without any progress before the ring is given up as broken.
const WAITS_MAX: usize = 100;
/// Waits when the egress closes.
const CLOSE_WAITS: usize = 20;

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
    /// Slots that failed and are not judged yet.
    failed: Vec<(Slot, i32)>,
    /// Operations pushed so far.
    pushed: u64,
    /// Bytes in the operations pushed and not yet submitted.
    pushed_bytes: usize,
    /// Something submitted has no known outcome yet, so nothing may be submitted behind it.
    unsettled: bool,
    refusals_until: Option<Instant>,
    /// Of the last flush: a full ring is submitted between two flushes.
    now: Instant,
    waiting_time: Duration,
    /// Bytes that may wait for a socket beyond [`WAITING_BYTES`].
    waiting_extra: usize,
    capacity: usize,
    stats: EgressStats,
    stopwatch: Stopwatch,
}

impl Uring<SubmitHalf, ReapHalf> {
    /// Sets up the ring, with slots for TUN `devices` or without; the calling thread is its submitter from then on.
    ///
    /// # Errors
    /// What io_uring_setup(2) and mmap(2) answer.
    pub fn new(gso: bool, completions: Completions, devices: bool, now: Instant) -> io::Result<Self> {
        let (slab, slots) = Slab::new(SOCKET_SLOTS + if devices { DEVICE_SLOTS } else { 0 })?;
        let slab = Arc::new(slab);
        let (submit, reap) = ring::new(slab.clone(), SOCKET_SLOTS)?;
        if devices && !submit.is_registered() {
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
            pushed: 0,
            pushed_bytes: 0,
            unsettled: false,
            refusals_until: None,
            now,
            waiting_time: WAITING_TIME,
            waiting_extra: 0,
            capacity,
            stats: EgressStats::default(),
            stopwatch: Stopwatch::default(),
        })
    }

    /// Slots free, being filled, and with the kernel or on their way back; the sum is the capacity.
    pub fn slots(&mut self) -> SlotCount {
        let completer = self.completer.clone();
        let _nobody_reaps = completer.hold();
        self.recycle();
        self.collect_failed();
        let (free, filling) = (self.staging.free_count(), self.staging.filled_count() + self.sealed.len());
        let in_flight = self.submit.in_flight() + self.failed.len();
        SlotCount { free, filling, in_flight, capacity: self.capacity }
    }

    /// Has crypto threads seal beside the loop, from before the first port on. Devices are read in larger batches then, and what a
    /// busy socket refuses of one has to fit into its waiting queue, and to leave it in time.
    pub fn set_boss(&mut self, boss: Boss) {
        self.staging.set_boss(boss);
        self.waiting_extra = DEVICE_BYTES_AHEAD + SEALING_MAX * SLOT_LEN - DEVICE_BYTES;
    }

    /// How long a packet may wait for a busy socket, from now on: so long where [`WAITING_BYTES`] may wait, and longer in proportion.
    pub fn set_waiting_time(&mut self, time: Duration) {
        let bytes = (WAITING_BYTES + self.waiting_extra) as f64;
        self.waiting_time = time.mul_f64(bytes / WAITING_BYTES as f64);
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
}

/// The error that ends the program when the ring gives nothing back.
fn stuck() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no operation of the ring has completed for 10 s")
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
        self.ports.add(fd, Kind::Socket, Waiting::with_extra(self.waiting_extra))
    }

    fn add_device(&mut self, fd: Arc<OwnedFd>, offloads: Offloads) -> io::Result<Port> {
        self.ports.add(fd, Kind::Device(offloads), Waiting::with_extra(self.waiting_extra))
    }

    fn remove(&mut self, port: Port) {
        // What was appended before is sent, not lost; errors come up again at the next flush. All outcomes are known before
        // the number is free: what failed must not be sent again through the next socket of that number.
        let _ = self.quiesce(WAITS_MAX);
        if let Some(mut entry) = self.ports.remove(port) {
            entry.state.clear(Cause::EgressClosed, &mut self.stats.drops);
            self.waiting.retain(|&other| other != port);
        }
        self.staging.forget_port(port);
    }

    fn append(&mut self, target: &Target, len: usize, class: Class, fill: impl FnOnce(&mut [u8]) -> bool) {
        if let Some(place) = self.find_place(target, len, class)
            && self.staging.append(place, target, len, class, fill)
        {
            self.stats.offered += 1;
        }
    }

    fn append_unsealed<'k>(
        &mut self,
        target: &Target,
        len: usize,
        class: Class,
        fill: impl FnOnce(&mut [u8]) -> Option<Unsealed<'k>>,
    ) {
        if let Some(place) = self.find_place(target, len, class)
            && self.staging.append_unsealed(place, target, len, class, |bytes| fill(bytes).map(Some))
        {
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
        self.flush_but(0, now)
    }

    fn flush_sealed(&mut self, now: Instant) -> io::Result<Flush> {
        self.flush_but(SEALING_MAX, now)
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
        EgressStats {
            sent,
            sent_bytes,
            enters: self.submit.enters(),
            cq_overflows: self.submit.overflows(),
            slots: self.capacity as u64,
            slots_in_flight: self.submit.in_flight() as u64,
            ..self.stats.clone()
        }
    }

    fn offered(&self) -> u64 {
        self.stats.offered
    }

    fn boss(&self) -> Option<Boss> {
        self.staging.boss().cloned()
    }

    fn stopwatch(&mut self) -> Option<&mut Stopwatch> {
        Some(&mut self.stopwatch)
    }

    fn design(&self) -> &'static str {
        "uring"
    }

    fn close(&mut self) -> EgressStats {
        // Errors change nothing here: what did not leave is counted below.
        let _ = self.quiesce(CLOSE_WAITS);
        self.completer.reap();
        for _ in 0..CLOSE_WAITS {
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
        self.collect_failed();
        for (slot, _) in std::mem::take(&mut self.failed) {
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
