//! Sending again, straight from its slot, what was cancelled because an earlier operation of its chain failed.
//!
//! It does not go through the waiting queue: that one has a bound, and a full ring of superpackets is more than it holds.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::super::waiting::To;
use super::completion::Expected;
use super::settle::Flight;
use super::{Reap, Submit, Uring, WAIT, WAITS_MAX, stuck};
use crate::sys::slab::Slot;

/// Operations sent again in one submit, at most.
pub(super) const BURST_MAX: usize = 16;

impl<S: Submit, R: Reap> Uring<S, R> {
    /// Sends again what is in `slots`, in order for each port. What finds its port busy goes to the waiting queue.
    pub(super) fn send_again(&mut self, slots: Vec<(Slot, Flight)>, now: Instant) -> io::Result<()> {
        let mut rest: VecDeque<(Slot, Flight)> = slots.into();
        while let Some((_, first)) = rest.front() {
            let port = first.port();
            let (group, others) = rest.into_iter().partition(|(_, flight)| flight.port() == port);
            rest = others;
            let mut group: VecDeque<_> = group;
            let outcome = self.send_group_again(&mut group, now);
            self.keep_all(&mut group, now);
            if outcome.is_err() {
                self.keep_all(&mut rest, now);
                return outcome;
            }
        }
        Ok(())
    }

    fn keep_all(&mut self, slots: &mut VecDeque<(Slot, Flight)>, now: Instant) {
        for (mut slot, flight) in slots.drain(..) {
            self.keep(&mut slot, &flight, now);
            self.staging.release(slot);
        }
    }

    /// One at a time after a failure, more as long as all goes well: when all fail, each costs two operations at most. What
    /// is left over is for the waiting queue.
    fn send_group_again(&mut self, rest: &mut VecDeque<(Slot, Flight)>, now: Instant) -> io::Result<()> {
        let mut burst = 1;
        while let Some((_, first)) = rest.front() {
            if self.ports.get(first.port()).is_none_or(|entry| !entry.state.is_empty()) {
                break;
            }
            let count = burst.min(rest.len());
            for (position, (slot, flight)) in rest.drain(..count).enumerate() {
                self.push_again(slot, flight, position + 1 < count);
            }
            self.enter(count)?;
            self.stats.operations += count as u64;
            self.settle_all(count)?;
            let mut failed = std::mem::take(&mut self.failed);
            failed.sort_unstable_by_key(|(slot, _)| self.flights[slot.index()].map(|flight| flight.order));
            burst = if failed.is_empty() { (burst * 2).min(BURST_MAX) } else { 1 };
            let mut failed = failed.into_iter();
            let first = failed.next();
            for (slot, _) in failed.rev() {
                // Cancelled behind the first; whatever else it is, it comes up again when it is the first.
                match self.flights[slot.index()].take() {
                    Some(flight) => rest.push_front((slot, flight)),
                    None => self.staging.release(slot),
                }
            }
            if let Some((slot, result)) = first
                && let Some(packet) = self.judge(slot, result, now)?
            {
                rest.push_front(packet);
            }
        }
        Ok(())
    }

    fn push_again(&mut self, slot: Slot, flight: Flight, link: bool) {
        let index = slot.index();
        self.pushed += 1;
        self.flights[index] = Some(Flight { order: self.pushed, ..flight });
        self.completer.expect(index, Expected { len: flight.len, segments: flight.segments });
        let Some(entry) = self.ports.get(flight.port()) else {
            self.staging.release(slot);
            return;
        };
        match flight.to {
            To::Target(target, size) => {
                self.submit.push_send(slot, entry.fd.as_fd(), &target, flight.len, size, link);
            }
            To::Device(_) => self.submit.push_write(slot, entry.fd.as_fd(), flight.len),
        }
    }

    /// Waits until the outcome of `operations` operations just submitted is known; the failed ones are collected.
    pub(super) fn settle_all(&mut self, operations: usize) -> io::Result<()> {
        // The completion thread is not needed for these: they are reaped right here.
        self.completer.handover.submitted_to_reap(operations);
        self.completer.reap();
        for _ in 0..WAITS_MAX {
            if self.submit.in_flight() == 0 {
                break;
            }
            self.completer.wait(WAIT)?;
        }
        self.recycle();
        self.collect_failed();
        self.unsettled = self.submit.in_flight() > 0;
        if self.unsettled { Err(stuck()) } else { Ok(()) }
    }
}
