//! Where time goes on a packet's way through the loop: one histogram for each stage, always on.
//!
//! ```text
//!  woken ─ read ─► handler ─ crypto ─► slot ─ ring ─► io_uring_enter ─ kernel ─► result known
//! ```
//!
//! Stages follow one another and do not overlap. They are timed by batch, of which one in eight is, at random, so that
//! nothing periodic is always met or always missed; a packet is counted with the time of its whole batch. Batches that are not
//! timed read no clock for this.

pub mod histogram;
mod stopwatch;

pub use self::histogram::{Counts, Histogram};
pub use self::stopwatch::{Outside, Stopwatch};

use std::time::{Duration, Instant};

/// The next batch that is timed is at most so many behind the last one, and half as many on average.
const GAP: u32 = 16;

/// A part of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the end of the wait for input until the packets have been handed over: system calls that read, or a look into
    /// the receive ring.
    Read,
    /// Taking superpackets apart, routing, sealing or opening, and copying into slots.
    Crypto,
    /// From there until they are submitted, and waiting for a free slot.
    Ring,
    /// The system calls that submit, until their results are known.
    Kernel,
}

impl Stage {
    /// All of them, in the order in which a packet meets them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Crypto, Self::Ring, Self::Kernel];

    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Crypto => "crypto",
            Self::Ring => "ring",
            Self::Kernel => "kernel",
        }
    }
}

/// The histograms, and which batch is timed next.
#[derive(Clone, Debug)]
pub struct Stages {
    histograms: [Histogram; Stage::ALL.len()],
    /// Batches until one is timed.
    left: u32,
    /// State of a xorshift generator; never zero.
    random: u32,
}

impl Default for Stages {
    fn default() -> Self {
        let histograms = std::array::from_fn(|_| Histogram::default());
        // Which batches are timed is no secret: any number will do.
        Self { histograms, left: 0, random: 0x2545_f491 }
    }
}

impl Stages {
    /// Whether the batch that begins is timed. One without packets counts for nothing: then the next is.
    pub fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    /// The histogram of a stage, in packets.
    #[must_use]
    pub fn of(&self, stage: Stage) -> &Histogram {
        &self.histograms[stage as usize]
    }

    fn record(&mut self, stage: Stage, duration: Duration, packets: u64) {
        self.histograms[stage as usize].record(duration, packets);
    }

    fn next_gap(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        1 + self.random % GAP
    }
}

/// The times of one batch, as the loop takes them.
#[derive(Debug)]
pub struct Timing {
    woken: Instant,
    handed_over: Instant,
    in_handler: Duration,
    /// Packets given to the egress before the batch.
    offered: u64,
}

impl Timing {
    /// The wait for input is over. `offered` are the packets that the egress has been given so far.
    #[must_use]
    pub fn new(offered: u64, now: Instant) -> Self {
        Self { woken: now, handed_over: now, in_handler: Duration::ZERO, offered }
    }

    /// The handler has had a superpacket for that long.
    pub fn handled(&mut self, time: Duration) {
        self.in_handler += time;
    }

    /// All input has been handed over.
    pub fn all_handed_over(&mut self, now: Instant) {
        self.handed_over = now;
    }

    /// Everything is submitted: counts the batch, unless nothing was sent of it. `offered` as in [`Timing::new`]; `outside`
    /// is what the egress measured, where it does.
    pub fn finish(self, stages: &mut Stages, offered: u64, outside: Option<Outside>, now: Instant) {
        let packets = offered.saturating_sub(self.offered);
        if packets == 0 {
            return;
        }
        let (making_room, kernel) =
            outside.map_or((Duration::ZERO, None), |outside| (outside.making_room, Some(outside.kernel)));
        let input = self.handed_over.saturating_duration_since(self.woken);
        let behind = now.saturating_duration_since(self.handed_over);
        stages.record(Stage::Read, input.saturating_sub(self.in_handler), packets);
        stages.record(Stage::Crypto, self.in_handler.saturating_sub(making_room), packets);
        let in_ring = (making_room + behind).saturating_sub(kernel.unwrap_or_default());
        stages.record(Stage::Ring, in_ring, packets);
        if let Some(kernel) = kernel {
            stages.record(Stage::Kernel, kernel, packets);
        }
        stages.left = stages.next_gap();
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn counted(stages: &Stages, stage: Stage) -> (u64, Option<u64>) {
        let counts = Counts::from(stages.of(stage));
        (counts.total(), counts.quantile_ns(0.5))
    }

    #[test]
    fn the_stages_of_a_batch_add_up_to_its_time() {
        let mut stages = Stages::default();
        let start = Instant::now();
        let mut timing = Timing::new(100, start);
        timing.handled(20 * US);
        timing.handled(30 * US);
        timing.all_handed_over(start + 60 * US);
        let outside = Outside { making_room: 15 * US, kernel: 40 * US };
        timing.finish(&mut stages, 145, Some(outside), start + 100 * US);
        let of = |stage| {
            let (packets, ns) = counted(&stages, stage);
            assert_eq!(packets, 45, "{stage:?}");
            ns.unwrap() as f64 / 1e3
        };
        // 60 − 50, 50 − 15, 15 + 40 − 40, 40.
        for (stage, expected) in Stage::ALL.into_iter().zip([10.0, 35.0, 15.0, 40.0]) {
            assert!((of(stage) / expected - 1.0).abs() < 0.01, "{stage:?}: {}", of(stage));
        }
    }

    #[test]
    fn a_batch_without_packets_is_not_counted_and_the_next_is_timed_instead() {
        let mut stages = Stages::default();
        let now = Instant::now();
        assert!(stages.is_due());
        Timing::new(5, now).finish(&mut stages, 5, None, now);
        assert_eq!(counted(&stages, Stage::Read), (0, None));
        assert!(stages.is_due());
        Timing::new(5, now).finish(&mut stages, 6, None, now);
        assert_eq!(counted(&stages, Stage::Crypto).0, 1);
        assert_eq!(counted(&stages, Stage::Kernel).0, 0, "this egress does not see the kernel");
        assert!(!stages.is_due());
    }

    #[test]
    fn one_batch_in_eight_or_nine_is_timed_without_a_period() {
        let mut stages = Stages::default();
        let now = Instant::now();
        let mut gaps = std::collections::BTreeMap::<u32, u32>::new();
        let (mut last, mut timed) = (0, 0);
        for batch in 1..=100_000 {
            if stages.is_due() {
                Timing::new(0, now).finish(&mut stages, 1, None, now);
                *gaps.entry(batch - last).or_default() += 1;
                (last, timed) = (batch, timed + 1);
            }
        }
        assert!((9_000..=14_000).contains(&timed), "{timed}");
        assert!(gaps.len() >= GAP as usize && gaps.values().all(|&count| count < timed / 8), "{gaps:?}");
    }
}
