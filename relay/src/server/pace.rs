//! A rate and how far ahead of it somebody may be: a token bucket kept as one point in time.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// How far what was let through is ahead of its rate. A single piece is never split: it may overdraw, and what comes after
/// it waits for as long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// When everything let through so far would be through at exactly the rate; unset while nothing was.
    through_at: Option<Instant>,
}

impl Pace {
    /// Whether nothing may be let through now.
    #[must_use]
    pub fn is_ahead(&self, burst: Duration, now: Instant) -> bool {
        self.through_at.is_some_and(|at| at.saturating_duration_since(now) >= burst)
    }

    /// Counts what is let through.
    pub fn charge(&mut self, amount: u64, per_second: NonZeroU64, now: Instant) {
        let time = time_of(amount, per_second);
        self.through_at = Some(self.through_at.map_or(now, |at| at.max(now)) + time);
    }

    /// Both: lets the amount through unless it is ahead by `burst`.
    pub fn take(&mut self, amount: u64, per_second: NonZeroU64, burst: Duration, now: Instant) -> bool {
        let free = !self.is_ahead(burst, now);
        if free {
            self.charge(amount, per_second, now);
        }
        free
    }
}

/// How long an amount takes at a rate.
pub(super) fn time_of(amount: u64, per_second: NonZeroU64) -> Duration {
    let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(per_second.get());
    // An amount that would take centuries has no right time; a day is as good as never to a data path.
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)).min(DAY)
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn the_rate_is_exact_after_the_burst() {
        let start = Instant::now();
        let rate = NonZeroU64::new(20).unwrap();
        let burst = Duration::from_secs(5);
        let mut pace = Pace::default();
        let at_once = (0..1000).filter(|_| pace.take(1, rate, burst, start)).count();
        assert_eq!(at_once, 100);
        let later =
            (0..10_000).filter(|ms| pace.take(1, rate, burst, start + Duration::from_millis(*ms))).count();
        assert_eq!(later, 200, "20 a second for 9.999 s, the first as soon as there is any room");
        let mut whole = Pace::default();
        assert!(whole.take(1000, rate, burst, start), "a piece is not split");
        assert!(whole.is_ahead(burst, start + Duration::from_secs(44)));
        assert!(!whole.is_ahead(burst, start + Duration::from_millis(45_001)));
    }
}
