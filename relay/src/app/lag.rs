//! How late timers are served: allocations and permissions end by them, and a loop that is held up serves them late.

use std::time::{Duration, Instant};

/// How long the worst is remembered at least: longer than whoever asks for figures waits in between.
const WINDOW: Duration = Duration::from_secs(60);

/// The longest that a timer was overdue lately.
#[derive(Debug, Default)]
pub struct TimerLag {
    /// When this window began.
    since: Option<Instant>,
    /// In this window, and in the one before.
    worst: Duration,
    before: Duration,
}

impl TimerLag {
    /// Timers are served now, the first of which was due at `due`.
    pub fn note(&mut self, due: Option<Instant>, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now >= since + WINDOW {
            self.before = std::mem::take(&mut self.worst);
            self.since = Some(now);
        }
        if let Some(due) = due {
            self.worst = self.worst.max(now.saturating_duration_since(due));
        }
    }

    /// The longest of the last minute, or two.
    #[must_use]
    pub fn worst(&self) -> Duration {
        self.worst.max(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn the_worst_is_remembered_for_a_minute_and_forgotten_after_two() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lag = TimerLag::default();
        lag.note(None, at(0));
        assert_eq!(lag.worst(), Duration::ZERO);
        lag.note(Some(at(10)), at(13));
        lag.note(Some(at(20)), at(21));
        // One that is to come is not late.
        lag.note(Some(at(90)), at(30));
        assert_eq!(lag.worst(), Duration::from_secs(3));
        lag.note(Some(at(70)), at(72));
        assert_eq!(lag.worst(), Duration::from_secs(3));
        lag.note(None, at(140));
        assert_eq!(lag.worst(), Duration::from_secs(2));
        lag.note(None, at(200));
        assert_eq!(lag.worst(), Duration::ZERO);
    }
}
