//! Packets that the egress was given and that are nowhere: neither sent nor lost for a cause, nor on their way. There must never be
//! one; the ledger at the end says so exactly, and this as far as it can be seen from outside while the relay runs.

use dataplane::egress::{Egress, EgressStats};

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Unexplained {
    /// What had been offered at the end of the turn before; everything of that has been submitted since.
    submitted: Option<u64>,
    /// As it looked the last time, which may have been while something failed that is not counted yet.
    seen: u64,
    /// What it looked like twice in a row.
    sure: u64,
}

impl Unexplained {
    /// Looks for the first time, and a turn later again.
    pub fn look_before<E: Egress>(&mut self, egress: &E) {
        self.submitted = Some(egress.stats().offered);
    }

    /// Whether [`Unexplained::look_before`] was called since the last [`Unexplained::look`].
    pub fn is_prepared(&self) -> bool {
        self.submitted.is_some()
    }

    /// What is missing for sure. While something is on its way, it is what it was before.
    pub fn look<E: Egress>(&mut self, egress: &E, stats: &EgressStats) -> u64 {
        let submitted = self.submitted.take().unwrap_or(stats.offered);
        // The threads of these hold packets that nobody can count from here.
        let is_countable = !matches!(egress.design(), "threaded" | "runtime");
        let is_at_rest = stats.slots_in_flight == 0 && egress.waiting_ports().next().is_none();
        if is_countable && is_at_rest {
            // Asked for after the slots: what they carried is counted by then.
            self.note(egress.pending().saturating_sub(stats.offered - submitted));
        }
        self.sure
    }

    fn note(&mut self, missing: u64) {
        // What is lost stays lost, so that the smaller one is.
        self.sure = missing.min(self.seen);
        self.seen = missing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_once_may_be_failing_and_what_stays_missing_is_lost() {
        let mut unexplained = Unexplained::default();
        let mut sure = |missing| {
            unexplained.note(missing);
            unexplained.sure
        };
        assert_eq!([0, 5, 0, 0].map(&mut sure), [0, 0, 0, 0]);
        assert_eq!([3, 4, 3, 3].map(&mut sure), [0, 3, 3, 3]);
    }
}
