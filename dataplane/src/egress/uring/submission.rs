//! Submitting: what is filled goes to the kernel socket by socket, and a full ring is submitted and waited for.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::super::staging::{Content, Filled, Place};
use super::super::waiting::To;
use super::super::{Class, Flush, Target};
use super::completion::Expected;
use super::settle::Flight;
use super::{Reap, Submit, Uring, WAIT, WAITS_MAX, stuck};
use crate::drops::Cause;

impl<S: Submit, R: Reap> Uring<S, R> {
    /// Where a datagram can go, after everything was submitted if need be; when nowhere, it is counted.
    pub(super) fn find_place(&mut self, target: &Target, len: usize, class: Class) -> Option<Place> {
        let mut place = self.staging.place(target, len, class);
        // An open slot was opened while the port was there, and leaves before the port goes.
        if !matches!(place, Place::Open(_)) && self.ports.get(target.port).is_none() {
            self.stats.offered += 1;
            self.stats.drops.count(Cause::EgressClosed);
            return None;
        }
        if place == Place::Full {
            let made = self.make_room(|this| this.staging.place(target, len, class) != Place::Full);
            place = self.staging.place(target, len, class);
            if made.is_err() || place == Place::Full {
                // The ring is broken: the next flush says so and ends the program.
                self.stats.offered += 1;
                self.stats.drops.count(Cause::Shutdown);
                return None;
            }
        }
        Some(place)
    }

    /// A full ring: everything is submitted, and the submitter waits until a slot of the wanted kind is free.
    pub(super) fn make_room(&mut self, has_room: impl Fn(&Self) -> bool) -> io::Result<()> {
        self.recycle();
        if has_room(self) {
            return Ok(());
        }
        self.stats.ring_full += 1;
        let since = self.stopwatch.begin();
        let made = self.submit_until(has_room);
        self.stopwatch.made_room(since);
        made
    }

    fn submit_until(&mut self, has_room: impl Fn(&Self) -> bool) -> io::Result<()> {
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
        Err(stuck())
    }

    /// Submits every filled slot, socket by socket, unless its socket is busy: then it waits behind the others.
    pub(super) fn submit_filled(&mut self, now: Instant) -> io::Result<()> {
        self.submit_filled_but(0, now)
    }

    /// The same, but so many slots may stay behind if they are not sealed yet.
    fn submit_filled_but(&mut self, behind: usize, now: Instant) -> io::Result<()> {
        if self.unsettled && !self.settle(Duration::from_millis(1), now)? {
            return Ok(());
        }
        self.staging.close();
        let mut sealed = std::mem::take(&mut self.sealed);
        let mut outcome = Ok(());
        // What is sealed leaves while the rest is being sealed, unless the outcome of what left before is not known.
        while outcome.is_ok() && !self.unsettled {
            match self.staging.take_sealed(behind, &mut sealed) {
                Ok(true) => outcome = self.submit_sealed(&mut sealed, now),
                Ok(false) => break,
                Err(error) => outcome = Err(error.into()),
            }
        }
        self.sealed = sealed;
        outcome
    }

    /// Flushes, but so many slots may stay behind if they are not sealed yet.
    pub(super) fn flush_but(&mut self, behind: usize, now: Instant) -> io::Result<Flush> {
        self.now = now;
        if self.refusals_until.is_some_and(|until| until <= now) {
            self.refusals_until = None;
            self.staging.forget_refusals();
        }
        if self.unsettled {
            self.settle(Duration::ZERO, now)?;
        }
        if !self.waiting.is_empty() && !self.unsettled {
            self.retry_all(now)?;
        }
        self.submit_filled_but(behind, now)?;
        Ok(match self.waiting.is_empty() && !self.unsettled {
            true if self.staging.filled_count() > 0 => Flush::Sealing,
            true => Flush::Done,
            false => Flush::Waiting,
        })
    }

    /// Submits these slots, socket by socket.
    fn submit_sealed(&mut self, sealed: &mut Vec<Filled>, now: Instant) -> io::Result<()> {
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
            entry.state.push(to, segments, 0, class, bytes, now, &mut self.stats.drops);
            self.stats.waited += segments as u64;
            self.staging.release(filled.slot);
            return 0;
        }
        let (index, len) = (filled.slot.index(), filled.len);
        self.pushed += 1;
        self.pushed_bytes += len;
        self.flights[index] = Some(Flight { to, len, segments, class, forgiven: 0, order: self.pushed });
        self.completer.expect(index, Expected { len, segments });
        match to {
            To::Target(target, size) => {
                self.submit.push_send(filled.slot, entry.fd.as_fd(), &target, len, size, link);
            }
            To::Device(_) => self.submit.push_write(filled.slot, entry.fd.as_fd(), len),
        }
        1
    }

    /// Submits everything and waits until every outcome is known, at most `waits` times 100 ms.
    pub(super) fn quiesce(&mut self, waits: usize) -> io::Result<()> {
        for _ in 0..waits {
            self.submit_filled(self.now)?;
            let settled = !self.unsettled || self.settle(WAIT, self.now)?;
            if settled && self.staging.filled_count() == 0 {
                return Ok(());
            }
        }
        Err(stuck())
    }

    /// Submits `pushed` operations and looks at their results.
    fn submit_and_settle(&mut self, pushed: usize, now: Instant) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.pushed_bytes);
        let since = self.stopwatch.begin();
        self.enter(pushed)?;
        self.stats.operations += pushed as u64;
        let wake = self.completer.handover.submitted(pushed);
        if let Some(thread) = &self.thread {
            // By the sum, because chains of different sockets complete in any order.
            let (mut failed, mut taken) = (false, 0);
            let all = self.completer.peek_last(pushed, |result| match usize::try_from(result) {
                Ok(len) => taken += len,
                Err(_) => failed = true,
            });
            let succeeded = !failed && taken == bytes;
            self.stopwatch.in_kernel(since);
            if wake {
                self.stats.completion_wakeups += 1;
                thread.thread().unpark();
            }
            if all && succeeded {
                return Ok(());
            }
        } else {
            // Reaped here, below: that takes no system call.
            self.stopwatch.in_kernel(since);
        }
        self.settle(Duration::ZERO, now)?;
        Ok(())
    }
}
