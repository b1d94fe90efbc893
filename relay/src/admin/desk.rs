//! The admin thread's side: what is known of the loop, how fresh it is, and whether the loop turns at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::observer::{Phase, Shared, Snapshot};

/// Figures that are not older than this are shown again, so that the loop is asked ten times a second at most.
const FRESH_TIME: Duration = Duration::from_millis(100);
/// How long an answer is waited for before older figures are shown.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// The loop is well as long as it has not left a question open for longer.
pub(super) const TURN_TIME_MAX: Duration = Duration::from_secs(3);

/// What is known of the loop.
#[derive(Debug)]
pub(super) struct Desk {
    shared: Arc<Shared>,
    /// By worker: what has come of an answer that is not complete.
    gathered: Vec<Option<Box<Snapshot>>>,
    latest: Option<Box<Snapshot>>,
    /// The oldest question that has no answer.
    asked: Option<Instant>,
}

impl Desk {
    pub fn new(shared: Arc<Shared>) -> Self {
        let gathered = (0..shared.workers()).map(|_| None).collect();
        Self { shared, gathered, latest: None, asked: None }
    }

    /// The loop may have published.
    pub fn handle_wake(&mut self) {
        self.shared.clear_admin_fd();
        for (worker, place) in self.gathered.iter_mut().enumerate() {
            *place = self.shared.take(worker).or(place.take());
        }
        if self.gathered.iter().all(Option::is_some) {
            self.latest = self.gathered.iter_mut().filter_map(Option::take).reduce(|mut sum, other| {
                sum.merge(*other);
                sum
            });
            self.asked = None;
        }
    }

    /// Whether somebody who asked at `since` can be answered; asks the loop where its figures are too old.
    pub fn is_fresh(&mut self, since: Instant, now: Instant) -> bool {
        let fresh = self.latest.as_ref().is_some_and(|latest| latest.taken + FRESH_TIME > since);
        if !fresh && self.asked.is_none() {
            self.asked = Some(now);
            self.shared.ask();
        }
        fresh
    }

    /// The last figures, however old.
    pub fn latest(&self) -> Option<&Snapshot> {
        self.latest.as_deref()
    }

    /// Whether every loop has turned within the last seconds, as far as it was asked.
    pub fn is_turning(&self, now: Instant) -> bool {
        self.asked.is_none_or(|asked| now < asked + TURN_TIME_MAX)
    }

    /// Where the relay is in its life.
    pub fn phase(&self) -> Phase {
        self.shared.phase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::tests::{origin, snapshot};

    #[test]
    fn a_loop_that_leaves_a_question_open_for_seconds_does_not_turn() {
        let shared = Shared::new(1).unwrap();
        let mut desk = Desk::new(shared.clone());
        let start = origin();
        let later = start + Duration::from_secs(3600);
        assert!(desk.is_turning(later), "nobody has asked");
        assert!(!desk.is_fresh(later, later));
        // Asking again does not begin the time again.
        let second = later + Duration::from_secs(2);
        assert!(!desk.is_fresh(second, second) && desk.is_turning(second));
        assert!(!desk.is_turning(later + TURN_TIME_MAX));
        shared.publish(0, snapshot(later + TURN_TIME_MAX));
        desk.handle_wake();
        assert!(desk.is_turning(later + 2 * TURN_TIME_MAX));
    }

    #[test]
    fn figures_are_those_of_all_workers_and_one_that_hangs_is_noticed() {
        let shared = Shared::new(3).unwrap();
        let mut desk = Desk::new(shared.clone());
        let start = origin();
        assert!(!desk.is_fresh(start, start));
        for worker in [2, 0] {
            shared.publish(worker, snapshot(start + Duration::from_millis(worker as u64)));
            desk.handle_wake();
            assert!(desk.latest().is_none());
        }
        assert!(!desk.is_turning(start + TURN_TIME_MAX));
        shared.publish(1, snapshot(start + Duration::from_secs(5)));
        desk.handle_wake();
        let latest = desk.latest().unwrap();
        assert_eq!((latest.workers, latest.allocations, latest.taken), (3, 3 * 12, start));
        assert!(desk.is_turning(start + TURN_TIME_MAX));
    }

    #[test]
    fn figures_are_shown_again_for_a_tenth_of_a_second() {
        let shared = Shared::new(1).unwrap();
        let mut desk = Desk::new(shared.clone());
        let start = origin();
        shared.publish(0, snapshot(start));
        // Only the last one counts.
        shared.publish(0, snapshot(start + Duration::from_millis(1)));
        desk.handle_wake();
        let taken = start + Duration::from_millis(1);
        let almost = taken + FRESH_TIME - Duration::from_millis(1);
        assert!(desk.is_fresh(almost, almost));
        assert!(!desk.is_fresh(taken + FRESH_TIME, taken + FRESH_TIME));
        assert_eq!(desk.latest().unwrap().taken, taken);
    }
}
