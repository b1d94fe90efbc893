//! Sends the schedule: open loop, never waiting for answers, each datagram stamped with when it was due and when it left.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use hdrhistogram::Histogram;

use super::clock::monotonic_ns;
use super::distribution::histogram;
use super::ledger::Sent;
use super::pace::Pacer;
use super::path::Path;
use super::payload::{self, Header, Phase};
use super::schedule::{Burst, Schedule};
use super::spec::{GSO_SEGMENTS_MAX, RunSpec, SIZE_MAX};

/// How far behind the end of the run the sender may still be before it gives up on the rest of the schedule.
const OVERTIME_NS: u64 = 100_000_000;

/// When the phases of a run begin and end (CLOCK_MONOTONIC, nanoseconds).
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Start of the warm-up.
    pub warmup_ns: u64,
    /// End of the warm-up; nothing is sent between this and the start.
    pub warmup_end_ns: u64,
    /// Start of measured sending.
    pub start_ns: u64,
    /// End of measured sending.
    pub end_ns: u64,
}

/// What the sender did.
#[derive(Debug)]
pub struct Outcome {
    /// By flow, measured phase only.
    pub sent: Vec<Sent>,
    /// Actual less intended send time of every measured datagram that was sent.
    pub lateness: Histogram<u64>,
    /// Why the kernel refused the first measured send that it did.
    pub refusal: Option<io::Error>,
    /// Why the timer slack could not be lowered.
    pub slack_error: Option<String>,
}

/// Sends warm-up and measured phase; returns at the end or soon after `stop` is set.
#[must_use]
pub fn send(spec: &RunSpec, path: &Path, run_id: u64, timing: Timing, stop: &AtomicBool) -> Outcome {
    let (pacer, slack_error) = Pacer::new(spec.pace);
    let mut sender = Sender::new(spec, path, run_id);
    sender.phase(Phase::Warmup, &pacer, timing.warmup_ns, timing.warmup_end_ns, stop);
    sender.begin();
    sender.phase(Phase::Measured, &pacer, timing.start_ns, timing.end_ns, stop);
    Outcome { sent: sender.sent, lateness: sender.lateness, refusal: sender.refusal, slack_error }
}

struct Sender<'a> {
    spec: &'a RunSpec,
    path: &'a Path,
    run_id: u64,
    /// The frames of one burst side by side.
    frames: Vec<u8>,
    frame_len: usize,
    /// Frames that leave in one system call.
    frames_per_send: usize,
    next_seq: Vec<u64>,
    sent: Vec<Sent>,
    lateness: Histogram<u64>,
    refusal: Option<io::Error>,
}

impl<'a> Sender<'a> {
    fn new(spec: &'a RunSpec, path: &'a Path, run_id: u64) -> Self {
        let frame_len = path.prefix_len + spec.size + path.padding;
        let frames_per_send =
            if spec.gso { (SIZE_MAX / frame_len).clamp(1, GSO_SEGMENTS_MAX as usize) } else { 1 };
        // Filling that no protocol on the way can compress or mistake for its own.
        let filling =
            (0..frame_len * spec.burst as usize).map(|index| (index as u8).wrapping_mul(167) ^ 0x5a);
        Self {
            spec,
            path,
            run_id,
            frames: filling.collect(),
            frame_len,
            frames_per_send,
            next_seq: vec![0; path.flows.len()],
            sent: vec![Sent::default(); path.flows.len()],
            lateness: histogram(),
            refusal: None,
        }
    }

    /// Forgets the counts of the warm-up.
    fn begin(&mut self) {
        self.next_seq.fill(0);
        self.sent.fill(Sent::default());
        self.lateness.reset();
        self.refusal = None;
        if let Some(live) = &self.spec.live {
            live.restart();
        }
    }

    fn phase(&mut self, phase: Phase, pacer: &Pacer, start_ns: u64, end_ns: u64, stop: &AtomicBool) {
        let mut schedule = Schedule::new(self.spec, phase as u64 - 1, end_ns - start_ns);
        while let Some(burst) = schedule.next() {
            let due_ns = start_ns + burst.due_ns;
            let Some(now) = pacer.wait_until(due_ns, stop) else { return };
            // The pacer looks at `stop` only while it waits, and a sender behind its schedule never does.
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if now > end_ns + OVERTIME_NS {
                self.give_up(burst);
                schedule.for_each(|burst| self.give_up(burst));
                return;
            }
            self.burst(phase, burst, due_ns, now);
        }
    }

    fn give_up(&mut self, burst: Burst) {
        self.sent[burst.flow as usize].unsent += u64::from(burst.datagrams);
    }

    fn burst(&mut self, phase: Phase, burst: Burst, due_ns: u64, mut now: u64) {
        let mut left = burst.datagrams as usize;
        while left > 0 {
            let count = left.min(self.frames_per_send);
            self.send_together(phase, burst.flow, due_ns, now, count);
            left -= count;
            if left > 0 {
                now = monotonic_ns();
            }
        }
    }

    /// Writes and sends `count` datagrams in one system call.
    fn send_together(&mut self, phase: Phase, flow_index: u32, due_ns: u64, now: u64, count: usize) {
        let flow = &self.path.flows[flow_index as usize];
        let seq = self.next_seq[flow_index as usize];
        let bytes = &mut self.frames[..count * self.frame_len];
        for (index, frame) in bytes.chunks_exact_mut(self.frame_len).enumerate() {
            let header = Header {
                phase,
                returned: false,
                run_id: self.run_id,
                flow: flow_index,
                seq: seq + index as u64,
                intended_ns: due_ns,
                actual_ns: now,
                turned_ns: 0,
            };
            let (prefix, rest) = frame.split_at_mut(self.path.prefix_len);
            prefix.copy_from_slice(&flow.prefix);
            let (datagram, padding) = rest.split_at_mut(self.spec.size);
            padding.fill(0);
            payload::write(datagram, &header);
        }
        self.next_seq[flow_index as usize] += count as u64;
        let outcome = self.path.sockets[flow.socket].send_segments(flow.to, None, 0, bytes, self.frame_len);
        self.book(flow_index, count as u64, now.saturating_sub(due_ns), outcome);
    }

    fn book(&mut self, flow: u32, count: u64, lateness_ns: u64, outcome: io::Result<()>) {
        if let Some(live) = &self.spec.live {
            live.book(count, outcome.is_ok());
        }
        let sent = &mut self.sent[flow as usize];
        match outcome {
            Ok(()) => {
                sent.sent += count;
                self.lateness.saturating_record_n(lateness_ns.max(1), count);
            }
            Err(error) => {
                sent.refused += count;
                self.refusal.get_or_insert(error);
            }
        }
    }
}
