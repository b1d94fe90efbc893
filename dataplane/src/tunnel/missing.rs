//! Which messages of a session are missing: its counters, in which nothing but loss leaves gaps.

/// What has been received under one session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrived {
    /// The counter of the next message, when none is missing.
    next: u64,
}

impl Arrived {
    /// Notes the counter of an authentic message, which is never seen twice. How many more messages are missing than before
    /// it: those it skipped, or one less when it was itself missing.
    pub fn note(&mut self, counter: u64) -> i64 {
        let Some(skipped) = counter.checked_sub(self.next) else {
            return -1;
        };
        self.next = counter + 1;
        i64::try_from(skipped).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_missing_until_it_comes() {
        let mut arrived = Arrived::default();
        assert_eq!([0, 1, 5, 3, 6, 2, 4].map(|counter| arrived.note(counter)), [0, 0, 3, -1, 0, -1, -1]);
        // No counter that a session carries goes beyond what can be counted, whatever a peer skips.
        let last = super::super::noise::REJECT_AFTER_MESSAGES - 1;
        assert!(arrived.note(last) > 1 << 62);
        assert_eq!((arrived.next, arrived.note(7)), (last + 1, -1));
    }
}
