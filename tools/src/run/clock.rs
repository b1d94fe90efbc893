//! The one clock of the lab: CLOCK_MONOTONIC in nanoseconds, the same for every process of the host.

use dataplane::sys::clock::{Clock, read};
use rustix::time::Timespec;

/// Nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanoseconds(Clock::Monotonic)
}

/// Nanoseconds since the epoch (CLOCK_REALTIME): what result files and the kernel's time stamps count in.
#[must_use]
pub fn realtime_ns() -> u64 {
    nanoseconds(Clock::Realtime)
}

/// Date and time in UTC of nanoseconds since the epoch.
#[must_use]
pub fn rfc3339(unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).map(|time| time.to_string()).unwrap_or_default()
}

/// Nanoseconds that the calling thread has spent on a processor.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(Clock::Thread)
}

/// Beyond what two readings leave open, a change by less than this is not called a step, in nanoseconds.
const STEP_MIN_NS: u64 = 10_000;
/// How often a reading is tried for a narrow one.
const TRIES: u32 = 4;

/// How far CLOCK_REALTIME was ahead of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Nanoseconds.
    pub ns: i64,
    /// By how much it may be wrong, nanoseconds: half the time that the reading took.
    pub uncertainty_ns: u64,
}

impl Offset {
    /// Reads both clocks, the one between two looks at the other, and keeps the narrowest of a few tries.
    #[must_use]
    pub fn read() -> Self {
        let read = |_| Self::between(monotonic_ns(), realtime_ns(), monotonic_ns());
        (0..TRIES)
            .map(read)
            .min_by_key(|offset| offset.uncertainty_ns)
            .unwrap_or(Self { ns: 0, uncertainty_ns: u64::MAX })
    }

    /// The same moment on CLOCK_MONOTONIC.
    #[must_use]
    pub fn to_monotonic(self, realtime_ns: u64) -> u64 {
        u64::try_from(realtime_ns as i64 - self.ns).unwrap_or(0)
    }

    fn between(before_ns: u64, realtime_ns: u64, after_ns: u64) -> Self {
        let half = after_ns.saturating_sub(before_ns) / 2;
        Self { ns: realtime_ns as i64 - (before_ns + half) as i64, uncertainty_ns: half }
    }
}

/// Watches for steps of CLOCK_REALTIME. What disciplines the clock by frequency moves CLOCK_MONOTONIC alike, so the offset
/// between the two only changes when somebody sets the time.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepWatch {
    last: Option<Offset>,
    largest_ns: u64,
}

impl StepWatch {
    /// Takes the next reading.
    pub fn note(&mut self, offset: Offset) {
        if let Some(last) = self.last {
            let moved = offset.ns.abs_diff(last.ns);
            let doubt = offset.uncertainty_ns.saturating_add(last.uncertainty_ns).saturating_add(STEP_MIN_NS);
            if moved > doubt {
                self.largest_ns = self.largest_ns.max(moved);
            }
        }
        self.last = Some(offset);
    }

    /// The largest step so far in nanoseconds; 0 without any.
    #[must_use]
    pub fn largest_ns(&self) -> u64 {
        self.largest_ns
    }
}

/// How far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC, in nanoseconds: grows only while the host is suspended.
#[must_use]
pub fn suspended_ns() -> u64 {
    let monotonic = monotonic_ns();
    nanoseconds(Clock::Boottime).saturating_sub(monotonic)
}

/// An absolute time for `clock_nanosleep`.
#[must_use]
pub fn timespec(ns: u64) -> Timespec {
    let seconds = i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: (ns % 1_000_000_000) as _ }
}

fn nanoseconds(clock: Clock) -> u64 {
    let time = read(clock);
    let ns = time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos());
    #[cfg(test)]
    let ns = tests::as_set(clock, ns);
    ns
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// How far a test has set CLOCK_REALTIME, and CLOCK_BOOTTIME, for its own thread, in nanoseconds.
        static SET_NS: Cell<[u64; 2]> = const { Cell::new([0, 0]) };
    }

    /// Sets both clocks, as this thread reads them, so far ahead.
    pub fn set(realtime_ns: u64, boottime_ns: u64) {
        SET_NS.set([realtime_ns, boottime_ns]);
    }

    pub fn as_set(clock: Clock, ns: u64) -> u64 {
        let [realtime_ns, boottime_ns] = SET_NS.get();
        match clock {
            Clock::Realtime => ns + realtime_ns,
            Clock::Boottime => ns + boottime_ns,
            Clock::Monotonic | Clock::Thread => ns,
        }
    }

    /// What the watch says of readings at which the clock is so many nanoseconds ahead, each taken within 200 ns.
    fn watched(offsets: &[i64]) -> u64 {
        let mut watch = StepWatch::default();
        for &ns in offsets {
            watch.note(Offset { ns, uncertainty_ns: 100 });
        }
        watch.largest_ns()
    }

    #[test]
    fn only_a_clock_that_is_set_has_stepped() {
        assert_eq!(watched(&[]), 0);
        assert_eq!(watched(&[5_000_000, 5_000_150, 4_999_900]), 0);
        assert_eq!(watched(&[5_000_000, 3_000_000, 3_000_000]), 2_000_000);
        assert_eq!(watched(&[0, 20_000, 3_000_000, 0]), 3_000_000);
    }

    #[test]
    fn a_reading_that_took_long_is_believed_less() {
        let mut watch = StepWatch::default();
        watch.note(Offset::between(1_000, 51_000, 1_200));
        watch.note(Offset::between(2_000_000, 2_650_000, 3_000_000));
        assert_eq!(watch.largest_ns(), 0);
    }

    #[test]
    fn the_clocks_of_this_host_do_not_step_between_two_looks() {
        let (first, second) = (Offset::read(), Offset::read());
        assert!(first.to_monotonic(realtime_ns()).abs_diff(monotonic_ns()) < 1_000_000_000);
        assert!(first.uncertainty_ns < 1_000_000_000 && first.ns > 0);
        let mut watch = StepWatch::default();
        watch.note(first);
        watch.note(second);
        assert_eq!(watch.largest_ns(), 0);
    }
}
