//! Sending again what waits for a busy socket: the oldest first, more at a time as long as the socket takes it.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::super::errno::{FORGIVEN_MAX, Verdict, judge_send, judge_write, tells_of_offload};
use super::super::given_up::give_up;
use super::super::waiting::{Change, Record, To};
use super::super::{Class, Port};
use super::completion::Expected;
use super::resend::BURST_MAX;
use super::settle::{Flight, fatal};
use super::{Reap, Submit, Uring};
use crate::sys::slab::{SLOT_LEN, Slot};

/// What became of a burst.
enum Outcome {
    /// The socket took all of it, or something was dropped and the rest can go on.
    GoOn,
    /// The socket is still busy.
    Busy,
}

impl<S: Submit, R: Reap> Uring<S, R> {
    /// Tries every port that has something waiting.
    pub(super) fn retry_all(&mut self, now: Instant) -> io::Result<()> {
        for position in (0..self.waiting.len()).rev() {
            if let Some(&port) = self.waiting.get(position) {
                self.retry_port(port, now)?;
            }
        }
        Ok(())
    }

    /// Sends what waits for one port until it is busy again or nothing is left.
    pub(super) fn retry_port(&mut self, port: Port, now: Instant) -> io::Result<()> {
        let mut burst = 1;
        while !self.unsettled {
            let Some(entry) = self.ports.get_mut(port) else { break };
            entry.state.expire(self.waiting_time, now, &mut self.stats.drops);
            if entry.state.is_empty() {
                break;
            }
            let records = self.push_waiting(port, burst);
            if records.is_empty() {
                // No slot is free; the next flush goes on.
                return Ok(());
            }
            self.enter(records.len())?;
            self.stats.operations += records.len() as u64;
            if let Outcome::Busy = self.settle_burst(port, &records, now)? {
                return Ok(());
            }
            // Writes to a device are not linked, so that one at a time keeps them in order.
            let device = matches!(self.ports.get(port).map(|entry| entry.kind), Some(super::Kind::Device(_)));
            burst = if device { 1 } else { (burst * 2).min(BURST_MAX) };
        }
        if self.ports.get(port).is_none_or(|entry| entry.state.is_empty()) {
            self.waiting.retain(|&other| other != port);
        }
        Ok(())
    }

    /// Copies up to `burst` records into slots and pushes them, linked. A second copy, because what waits must not hold
    /// a slot.
    fn push_waiting(&mut self, port: Port, burst: usize) -> Vec<(usize, Record)> {
        let mut slots: Vec<(Slot, Record, usize)> = Vec::with_capacity(BURST_MAX);
        let Some(entry) = self.ports.get(port) else { return Vec::new() };
        let device = matches!(entry.kind, super::Kind::Device(_));
        while slots.len() < burst {
            let slot = if device { self.staging.take_device_slot() } else { self.staging.take_socket_slot() };
            let Some(mut slot) = slot else { break };
            let Some((record, len)) = entry.state.peek(slots.len(), self.staging.slab().bytes(&mut slot))
            else {
                self.staging.release(slot);
                break;
            };
            debug_assert!(len <= SLOT_LEN);
            slots.push((slot, record, len));
        }
        let count = slots.len();
        let fd = entry.fd.clone();
        let mut pushed = Vec::with_capacity(count);
        for (position, (slot, record, len)) in slots.into_iter().enumerate() {
            let index = slot.index();
            self.pushed += 1;
            self.flights[index] = Some(Flight {
                to: record.to,
                len,
                segments: record.segments,
                class: Class::Data,
                forgiven: record.forgiven,
                order: self.pushed,
            });
            self.completer.expect(index, Expected { len, segments: record.segments });
            let link = position + 1 < count;
            match record.to {
                To::Target(target, size) => self.submit.push_send(slot, fd.as_fd(), &target, len, size, link),
                To::Device(_) => self.submit.push_write(slot, fd.as_fd(), len),
            }
            pushed.push((index, record));
        }
        pushed
    }

    /// Reaps a burst and takes out of the queue what left or was lost; the rest stays where it is.
    fn settle_burst(&mut self, port: Port, records: &[(usize, Record)], now: Instant) -> io::Result<Outcome> {
        self.settle_all(records.len())?;
        let mut failed = std::mem::take(&mut self.failed);
        let mut outcome = Ok(Outcome::GoOn);
        let mut stopped = false;
        for (index, record) in records {
            let failure = failed.iter_mut().find(|(slot, _)| slot.index() == *index);
            let Some(entry) = self.ports.get_mut(port) else { break };
            let Some(&mut (ref mut slot, result)) = failure else {
                // It left.
                entry.state.pop();
                if record.segments == 1
                    && let Some(errno) = entry.state.take_suspicion()
                {
                    give_up(&mut self.staging, port, &mut entry.kind, errno);
                }
                continue;
            };
            if stopped {
                continue;
            }
            stopped = true;
            let verdict = match record.to {
                _ if result >= 0 => Verdict::Drop(crate::drops::Cause::EgressInvalid),
                To::Target(..) => judge_send(-result, record.segments),
                To::Device(_) => judge_write(-result, record.segments),
            };
            match verdict {
                Verdict::Busy => outcome = Ok(Outcome::Busy),
                Verdict::Again => {}
                Verdict::Forgive(_) if record.forgiven < FORGIVEN_MAX => {
                    entry.state.replace_front(Change::Forgiven);
                }
                Verdict::Forgive(cause) | Verdict::Drop(cause) => {
                    entry.state.pop();
                    // Refused one by one as well: no offload is to blame.
                    let _ = entry.state.take_suspicion();
                    self.stats.drops.add(cause, record.segments as u64);
                }
                Verdict::Resegment => {
                    self.stats.gso_fallbacks += 1;
                    self.stats.resent += record.segments as u64;
                    if tells_of_offload(-result) {
                        entry.state.suspect(-result);
                    }
                    if matches!(record.to, To::Target(..)) {
                        entry.state.replace_front(Change::Resegment);
                    } else {
                        entry.state.pop();
                        self.put_apart(port, slot, record.len, record.segments, now);
                    }
                }
                Verdict::Fatal => {
                    entry.state.pop();
                    self.stats.drops.add(crate::drops::Cause::EgressClosed, record.segments as u64);
                    outcome = Err(fatal(result));
                }
            }
        }
        for (slot, _) in failed.drain(..) {
            self.staging.release(slot);
        }
        self.failed = failed;
        outcome
    }
}
