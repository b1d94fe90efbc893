//! Settling: what became of the operations of the last submit, and what is done about those that failed.

use std::io;
use std::time::{Duration, Instant};

use super::super::errno::{FORGIVEN_MAX, Verdict, judge_send, judge_write, tells_of_offload};
use super::super::waiting::{Change, To};
use super::super::{Class, Port};
use super::{Reap, Submit, Uring};
use crate::drops::Cause;
use crate::sys::slab::Slot;

/// How long a superpacket size that the path refused is avoided.
const SEGMENT_LIMIT_TIME: Duration = Duration::from_secs(1);
/// Times the kernel may refuse a submit before the ring is given up; all but the first few are a millisecond apart.
const REFUSALS_MAX: usize = 100;

/// What the submitter has to know about an operation in case it fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// Where it goes.
    pub to: To,
    /// Bytes in it.
    pub len: usize,
    /// Packets in it.
    pub segments: usize,
    /// Which go first.
    pub class: Class,
    /// How often an error that may not have been its own has been forgiven.
    pub forgiven: u8,
    /// Position in the order of submission.
    pub order: u64,
}

impl Flight {
    /// The port it leaves through.
    pub(super) fn port(&self) -> Port {
        match self.to {
            To::Target(target, _) => target.port,
            To::Device(port) => port,
        }
    }
}

impl<S: Submit, R: Reap> Uring<S, R> {
    /// `io_uring_enter` until everything queued is with the kernel.
    pub(super) fn enter(&mut self, mut queued: usize) -> io::Result<()> {
        let mut refusals = 0;
        while queued > 0 {
            match self.submit.submit() {
                Ok(count) => queued = queued.saturating_sub(count.max(1)),
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
                        && refusals < REFUSALS_MAX =>
                {
                    // The kernel is short of memory, or wants its completions taken before it accepts more.
                    refusals += 1;
                    self.completer.reap();
                    if refusals > 3 {
                        self.completer.wait(Duration::from_millis(1))?;
                    }
                }
                Err(error) => return Err(io::Error::new(error.kind(), format!("io_uring_enter: {error}"))),
            }
        }
        Ok(())
    }

    /// Reaps, waits up to `wait` for what has not completed, and judges what failed. `true` when every outcome is known.
    pub(super) fn settle(&mut self, wait: Duration, now: Instant) -> io::Result<bool> {
        self.completer.reap();
        if self.submit.in_flight() > 0 && wait > Duration::ZERO {
            self.completer.wait(wait)?;
        }
        self.unsettled = self.submit.in_flight() > 0;
        self.recycle();
        self.collect_failed();
        if self.unsettled {
            // A failure is judged only when those before it are known: their packets go back to the queue before its own.
            return Ok(false);
        }
        let mut failed = std::mem::take(&mut self.failed);
        failed.sort_unstable_by_key(|(slot, _)| self.flights[slot.index()].map(|flight| flight.order));
        // Failures are rare, and only they allocate.
        let mut again: Vec<(Slot, Flight)> = Vec::new();
        let mut outcome = Ok(());
        for (slot, result) in failed.drain(..) {
            match self.judge(slot, result, now) {
                Ok(packet) => again.extend(packet),
                Err(error) => outcome = Err(error),
            }
        }
        self.failed = failed;
        outcome.and(self.send_again(again, now))?;
        Ok(!self.unsettled)
    }

    /// Takes over the slots whose operation failed.
    pub(super) fn collect_failed(&mut self) {
        while let Some(failure) = self.completer.handover.take_failed() {
            self.failed.push(failure);
        }
    }

    /// Decides what becomes of a failed operation. `Some`: it is to be sent again at once, behind nothing that waits.
    pub(super) fn judge(
        &mut self,
        mut slot: Slot,
        result: i32,
        now: Instant,
    ) -> io::Result<Option<(Slot, Flight)>> {
        let Some(mut flight) = self.flights[slot.index()].take() else {
            self.staging.release(slot);
            return Ok(None);
        };
        let port = flight.port();
        let verdict = match flight.to {
            _ if result >= 0 => Verdict::Drop(Cause::EgressInvalid),
            To::Target(..) => judge_send(-result, flight.segments),
            To::Device(_) => judge_write(-result, flight.segments),
        };
        let behind_others = self.ports.get(port).is_none_or(|entry| !entry.state.is_empty());
        match verdict {
            Verdict::Forgive(cause) if flight.forgiven == FORGIVEN_MAX => {
                self.stats.drops.add(cause, flight.segments as u64);
            }
            Verdict::Again | Verdict::Forgive(_) => {
                flight.forgiven += u8::from(matches!(verdict, Verdict::Forgive(_)));
                if !behind_others {
                    return Ok(Some((slot, flight)));
                }
                self.keep(&mut slot, &flight, now);
            }
            Verdict::Busy => self.keep(&mut slot, &flight, now),
            Verdict::Resegment => {
                self.resegmented(flight.to, flight.segments, -result, now);
                if behind_others {
                    // It is refused again when its turn comes.
                    self.keep(&mut slot, &flight, now);
                    self.staging.release(slot);
                    return Ok(None);
                }
                self.keep_apart(&mut slot, &flight, -result, now);
                self.staging.release(slot);
                self.retry_port(port, now)?;
                return Ok(None);
            }
            Verdict::Drop(cause) => self.stats.drops.add(cause, flight.segments as u64),
            Verdict::Fatal => {
                self.stats.drops.add(Cause::EgressClosed, flight.segments as u64);
                self.staging.release(slot);
                return Err(fatal(result));
            }
        }
        self.staging.release(slot);
        Ok(None)
    }

    /// Puts the content of a slot into its port's waiting queue.
    pub(super) fn keep(&mut self, slot: &mut Slot, flight: &Flight, now: Instant) {
        let port = flight.port();
        let Some(entry) = self.ports.get_mut(port) else {
            self.stats.drops.add(Cause::EgressClosed, flight.segments as u64);
            return;
        };
        let bytes = &self.staging.slab().bytes(slot)[..flight.len];
        let drops = &mut self.stats.drops;
        entry.state.push(flight.to, flight.segments, flight.forgiven, flight.class, bytes, now, drops);
        self.stats.waited += flight.segments as u64;
        if !self.waiting.contains(&port) {
            self.waiting.push(port);
        }
    }

    /// Puts the packets of a refused superpacket into its port's waiting queue, which is empty, one by one.
    fn keep_apart(&mut self, slot: &mut Slot, flight: &Flight, errno: i32, now: Instant) {
        let port = flight.port();
        match flight.to {
            To::Target(..) => {
                self.keep(slot, flight, now);
                if let Some(entry) = self.ports.get_mut(port) {
                    entry.state.replace_front(Change::Resegment);
                }
            }
            To::Device(_) => self.put_apart(port, slot, flight.len, flight.segments, now),
        }
        if let Some(entry) = self.ports.get_mut(port).filter(|_| tells_of_offload(errno)) {
            entry.state.suspect(errno);
        }
    }

    /// Puts the packets of a device's refused superpacket in front of what waits for it.
    pub(super) fn put_apart(
        &mut self,
        port: Port,
        slot: &mut Slot,
        len: usize,
        segments: usize,
        now: Instant,
    ) {
        let Some(entry) = self.ports.get_mut(port) else {
            return self.stats.drops.add(Cause::EgressClosed, segments as u64);
        };
        match entry.state.put_apart(port, &mut self.staging.slab().bytes(slot)[..len], now) {
            Ok(packets) => {
                debug_assert_eq!(packets, segments);
                self.stats.waited += packets as u64;
                if !self.waiting.contains(&port) {
                    self.waiting.push(port);
                }
            }
            // It was made here, so that it can be taken apart here.
            Err(_) => self.stats.drops.add(Cause::EgressInvalid, segments as u64),
        }
    }

    /// Notes that a superpacket was refused; one that was above the path's MTU lowers the limit for a while.
    fn resegmented(&mut self, to: To, segments: usize, errno: i32, now: Instant) {
        self.stats.gso_fallbacks += 1;
        self.stats.resent += segments as u64;
        if let (To::Target(target, size), libc::EMSGSIZE) = (to, errno) {
            self.staging.note_refusal(target.to, size);
            self.refusals_until = Some(now + SEGMENT_LIMIT_TIME);
        }
    }
}

/// The error that ends the program when a descriptor is gone.
pub(super) fn fatal(result: i32) -> io::Error {
    let error = io::Error::from_raw_os_error(-result);
    io::Error::new(error.kind(), format!("a socket or TUN device can no longer be written: {error}"))
}
