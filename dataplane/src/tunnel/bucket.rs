//! Token buckets: how many of something may happen in a second, and how many at once.

use std::time::{Duration, Instant};

/// How fast a bucket fills, and how much it holds, in messages.
pub(super) struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

/// One message's worth of a bucket: nanoseconds per second, so that no fraction is lost while it fills.
const TOKEN: u64 = 1_000_000_000;

/// A bucket of some [`Rate`], which is always the same one.
#[derive(Clone)]
pub(super) struct Bucket {
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub fn full(rate: &Rate, now: Instant) -> Self {
        Self { tokens: rate.burst * TOKEN, filled: now }
    }

    /// Takes one message's worth, if it is there.
    pub fn take(&mut self, rate: &Rate, now: Instant) -> bool {
        let full = rate.burst * TOKEN;
        // No longer than it takes to fill at one a second.
        let passed = now.saturating_duration_since(self.filled).min(Duration::from_secs(rate.burst));
        self.filled = self.filled.max(now);
        self.tokens = full.min(self.tokens + passed.as_nanos() as u64 * rate.per_second);
        let enough = self.tokens >= TOKEN;
        if enough {
            self.tokens -= TOKEN;
        }
        enough
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    #[test]
    fn it_is_emptied_at_once_and_fills_with_time() {
        const RATE: Rate = Rate { per_second: 100, burst: 50 };
        let start = Instant::now();
        let mut bucket = Bucket::full(&RATE, start);
        let mut taken = |after| (0..1_000).filter(|_| bucket.take(&RATE, start + after)).count();
        assert_eq!(taken(Duration::ZERO), 50);
        assert_eq!(taken(Duration::from_millis(9)), 0);
        assert_eq!(taken(Duration::from_millis(20)), 2);
        assert_eq!(taken(Duration::from_millis(10)), 0, "a clock that went back fills nothing");
        assert_eq!(taken(Duration::from_secs(3_600)), 50);
    }
}
