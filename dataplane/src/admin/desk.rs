//! The admin thread's side: what is known of the loop, how fresh it is, and whether the loop turns at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exchange::{Shared, Snapshot};

/// Figures that are not older than this are shown again, so that the loop is asked ten times a second at most.
const FRESH_TIME: Duration = Duration::from_millis(100);
/// How long an answer is waited for before older figures are shown.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// The loop is well as long as it has not left a question open for longer.
pub const TURN_TIME_MAX: Duration = Duration::from_secs(3);

/// What is known of the loop.
#[derive(Debug)]
pub struct Desk<S> {
    shared: Arc<Shared<S>>,
    /// By loop: what has come of an answer that is not complete.
    gathered: Vec<Option<Box<S>>>,
    latest: Option<Box<S>>,
    /// The oldest question that has no answer.
    asked: Option<Instant>,
}

impl<S: Snapshot> Desk<S> {
    pub(super) fn new(shared: Arc<Shared<S>>) -> Self {
        let gathered = (0..shared.loops()).map(|_| None).collect();
        Self { shared, gathered, latest: None, asked: None }
    }

    /// The loop may have published.
    pub(super) fn handle_wake(&mut self) {
        self.shared.clear_admin_fd();
        for (number, place) in self.gathered.iter_mut().enumerate() {
            *place = self.shared.take(number).or(place.take());
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
    pub(super) fn is_fresh(&mut self, since: Instant, now: Instant) -> bool {
        let fresh = self.latest.as_ref().is_some_and(|latest| latest.taken() + FRESH_TIME > since);
        if !fresh && self.asked.is_none() {
            self.asked = Some(now);
            self.shared.ask();
        }
        fresh
    }

    /// The last figures, however old.
    #[must_use]
    pub fn latest(&self) -> Option<&S> {
        self.latest.as_deref()
    }

    /// Whether every loop has turned within the last seconds, as far as it was asked.
    #[must_use]
    pub fn is_turning(&self, now: Instant) -> bool {
        self.asked.is_none_or(|asked| now < asked + TURN_TIME_MAX)
    }

    /// Where the program is in its life: see [`Shared::set_phase`].
    #[must_use]
    pub fn phase(&self) -> u8 {
        self.shared.phase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Figures(Instant, u32);

    impl Snapshot for Figures {
        fn taken(&self) -> Instant {
            self.0
        }
        fn merge(&mut self, other: Self) {
            self.0 = self.0.min(other.0);
            self.1 += other.1;
        }
    }

    fn snapshot(taken: Instant) -> Figures {
        Figures(taken, 12)
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

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
        assert_eq!((latest.1, latest.0), (3 * 12, start));
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
        assert_eq!(desk.latest().unwrap().0, taken);
    }
}
