//! What a run shows of itself while it goes on. Sender and receiver write into memory that was made before the run: the sender
//! into a counter, the receiver into histograms that it exchanges for empty ones once a second. Neither waits for who looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;

use super::distribution::{DIGITS, HIGHEST_NS};
use super::sender::Timing;

/// How often histograms are exchanged.
const INTERVAL_NS: u64 = 1_000_000_000;
/// Histograms on their way: one is written, one is looked at, and one is spare.
const SECONDS: usize = 3;

/// About a second of a run.
#[derive(Clone, Debug)]
pub struct Second {
    /// When it ended (CLOCK_MONOTONIC, nanoseconds).
    pub end_ns: u64,
    /// How long it was.
    pub length_ns: u64,
    /// Datagrams that were overtaken by later ones and have not come, of all until then.
    pub overtaken: u64,
    /// Arrival less intended send time.
    pub response: Histogram<u32>,
    /// Arrival less actual send time.
    pub service: Histogram<u32>,
    /// Actual less intended send time of what arrived.
    pub lateness: Histogram<u32>,
}

impl Second {
    fn new() -> Self {
        let empty = Histogram::new_with_bounds(1, HIGHEST_NS, DIGITS).expect("valid bounds");
        Self {
            end_ns: 0,
            length_ns: 0,
            overtaken: 0,
            response: empty.clone(),
            service: empty.clone(),
            lateness: empty,
        }
    }
}

/// A run that is looked at.
#[derive(Debug)]
pub struct Live {
    sent: AtomicU64,
    refused: AtomicU64,
    own_drops: AtomicU64,
    /// Start and end of measured sending (CLOCK_MONOTONIC); 0 until the run begins.
    start_ns: AtomicU64,
    end_ns: AtomicU64,
    full: ArrayQueue<Box<Second>>,
    empty: ArrayQueue<Box<Second>>,
}

impl Default for Live {
    fn default() -> Self {
        let live = Self {
            sent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            own_drops: AtomicU64::new(0),
            start_ns: AtomicU64::new(0),
            end_ns: AtomicU64::new(0),
            full: ArrayQueue::new(SECONDS),
            empty: ArrayQueue::new(SECONDS),
        };
        for _ in 0..SECONDS {
            // The receiver takes one of them for itself.
            let _ = live.empty.push(Box::new(Second::new()));
        }
        live
    }
}

impl Live {
    /// Says when measured sending begins and ends.
    pub(super) fn begin(&self, timing: Timing) {
        self.end_ns.store(timing.end_ns, Ordering::Relaxed);
        // Last: who sees a start sees an end.
        self.start_ns.store(timing.start_ns, Ordering::Release);
    }

    /// The warm-up is over: what it sent does not count. Called by the sender.
    pub(super) fn restart(&self) {
        self.sent.store(0, Ordering::Relaxed);
        self.refused.store(0, Ordering::Relaxed);
    }

    /// The kernel took or refused so many datagrams. Called by the sender, which alone writes: a plain store is enough.
    pub(super) fn book(&self, count: u64, accepted: bool) {
        let counter = if accepted { &self.sent } else { &self.refused };
        counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// Our own sockets have dropped so much since the start, in skbs.
    pub(super) fn observe(&self, own_drops_skbs: u64) {
        self.own_drops.store(own_drops_skbs, Ordering::Relaxed);
    }

    /// Start and end of measured sending, once they are known.
    #[must_use]
    pub fn timing(&self) -> Option<(u64, u64)> {
        let start = self.start_ns.load(Ordering::Acquire);
        (start > 0).then(|| (start, self.end_ns.load(Ordering::Relaxed)))
    }

    /// Datagrams that the kernel took and refused, and skbs that our own sockets dropped.
    #[must_use]
    pub fn counts(&self) -> [u64; 3] {
        [&self.sent, &self.refused, &self.own_drops].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Hands the next second over, when there is one, and takes it back empty.
    pub fn look(&self, mut take: impl FnMut(&Second)) {
        while let Some(mut second) = self.full.pop() {
            take(&second);
            second.response.reset();
            second.service.reset();
            second.lateness.reset();
            // There is room for all there are.
            let _ = self.empty.push(second);
        }
    }
}

/// The receiver's part.
#[derive(Debug)]
pub(super) struct Recorder {
    live: Arc<Live>,
    second: Box<Second>,
    began_ns: u64,
}

impl Recorder {
    /// A recorder for a run whose measured sending begins at `start_ns`. `None` when the run has one already.
    pub fn new(live: &Arc<Live>, start_ns: u64) -> Option<Self> {
        Some(Self { live: Arc::clone(live), second: live.empty.pop()?, began_ns: start_ns })
    }

    /// Measured sending begins at another time than was planned.
    pub fn begin(&mut self, start_ns: u64) {
        self.began_ns = start_ns;
    }

    /// One datagram came back; times in nanoseconds.
    pub fn record(&mut self, response: u64, service: u64) {
        self.second.response.saturating_record(response);
        self.second.service.saturating_record(service);
        self.second.lateness.saturating_record(response.saturating_sub(service).max(1));
    }

    /// Whether a second has passed.
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.began_ns + INTERVAL_NS
    }

    /// Exchanges the histograms for empty ones. Without any the second goes on: nobody has looked for long.
    pub fn exchange(&mut self, overtaken: u64, now: u64) {
        let Some(empty) = self.live.empty.pop() else { return };
        let mut full = std::mem::replace(&mut self.second, empty);
        full.end_ns = now;
        full.length_ns = now.saturating_sub(self.began_ns);
        full.overtaken = overtaken;
        self.began_ns = now;
        // There is room for all there are.
        let _ = self.live.full.push(full);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run that is made up.
    pub struct Feed {
        live: Arc<Live>,
        recorder: Recorder,
        now: u64,
    }

    impl Feed {
        /// One of 5 s, whose measured sending begins at `start_ns`.
        pub fn new(live: &Arc<Live>, start_ns: u64) -> Self {
            let timing = Timing {
                warmup_ns: start_ns,
                warmup_end_ns: start_ns,
                start_ns,
                end_ns: start_ns + 5 * INTERVAL_NS,
            };
            live.begin(timing);
            Self { live: Arc::clone(live), recorder: Recorder::new(live, start_ns).unwrap(), now: start_ns }
        }

        /// A second in which so many came back after so long, and so many were lost.
        pub fn second(&mut self, count: u64, response: u64, service: u64, lost: u64) {
            (0..count).for_each(|_| self.recorder.record(response, service));
            self.live.book(count + lost, true);
            self.now += INTERVAL_NS;
            self.recorder.exchange(lost, self.now);
        }
    }

    #[test]
    fn seconds_are_handed_over_and_come_back_empty_and_nothing_is_lost_when_nobody_looks() {
        let live = Arc::new(Live::default());
        let mut recorder = Recorder::new(&live, 1_000).unwrap();
        assert!(!recorder.is_due(INTERVAL_NS) && recorder.is_due(1_000 + INTERVAL_NS));
        for second in 1..=10_u64 {
            recorder.record(5_000, 4_000);
            recorder.exchange(second, 1_000 + second * INTERVAL_NS);
        }
        let mut seen = Vec::new();
        live.look(|second| {
            seen.push((second.response.len(), second.length_ns / INTERVAL_NS, second.overtaken));
        });
        assert_eq!(seen, [(1, 1, 1), (1, 1, 2)], "two of three are full, the third is written");
        recorder.exchange(11, 1_000 + 11 * INTERVAL_NS);
        live.look(|second| {
            assert_eq!((second.response.len(), second.length_ns / INTERVAL_NS), (8, 9));
            assert_eq!(second.lateness.max(), 1_000);
        });
        recorder.exchange(12, 1_000 + 12 * INTERVAL_NS);
        live.look(|second| assert!(second.response.is_empty() && second.service.is_empty()));
    }

    #[test]
    fn the_counts_are_those_of_measured_sending() {
        let live = Live::default();
        live.book(7, true);
        live.restart();
        live.book(2, true);
        live.book(1, false);
        live.observe(4);
        assert_eq!(live.counts(), [2, 1, 4]);
        assert_eq!(live.timing(), None);
        live.begin(Timing { warmup_ns: 5, warmup_end_ns: 10, start_ns: 10, end_ns: 20 });
        assert_eq!(live.timing(), Some((10, 20)));
    }
}
