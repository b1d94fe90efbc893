//! Waits for send times: sleeping is late by tens of microseconds, spinning takes a core, so the default does both.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::clock_nanosleep_absolute;
use rustix::time::ClockId;

use super::clock::{monotonic_ns, timespec};
use super::spec::Pace;

/// How long before the due time the hybrid pacer stops sleeping: above the usual wake-up delay at 1 ns of timer slack.
const SPIN_NS: u64 = 60_000;
/// Longest single sleep, so that a request to stop is seen soon.
const NAP_NS: u64 = 20_000_000;

/// Waits on the thread that made it.
#[derive(Debug)]
pub struct Pacer {
    pace: Pace,
}

impl Pacer {
    /// Lowers this thread's timer slack to 1 ns (PR_SET_TIMERSLACK; 50 µs is usual); also says why it could not.
    #[must_use]
    pub fn new(pace: Pace) -> (Self, Option<String>) {
        let slack = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        (Self { pace }, slack.err().map(|error| error.to_string()))
    }

    /// Returns the time when `due_ns` (CLOCK_MONOTONIC) has come, or `None` when `stop` was set before.
    #[must_use]
    pub fn wait_until(&self, due_ns: u64, stop: &AtomicBool) -> Option<u64> {
        let sleep_until = match self.pace {
            Pace::Hybrid => due_ns.saturating_sub(SPIN_NS),
            Pace::Sleep => due_ns,
            Pace::Spin => 0,
        };
        loop {
            let now = monotonic_ns();
            if now >= due_ns {
                return Some(now);
            }
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            if now < sleep_until {
                // EINTR only means an early look at the clock.
                let _ =
                    clock_nanosleep_absolute(ClockId::Monotonic, &timespec(sleep_until.min(now + NAP_NS)));
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pace_returns_early_and_stop_ends_the_wait() {
        let stop = AtomicBool::new(false);
        for pace in [Pace::Hybrid, Pace::Sleep, Pace::Spin] {
            let (pacer, _) = Pacer::new(pace);
            let due = monotonic_ns() + 2_000_000;
            assert!(pacer.wait_until(due, &stop).unwrap() >= due, "{pace:?}");
        }
        stop.store(true, Ordering::Relaxed);
        let (pacer, _) = Pacer::new(Pace::Sleep);
        assert_eq!(pacer.wait_until(monotonic_ns() + 3_600_000_000_000, &stop), None);
    }
}
