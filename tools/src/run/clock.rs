//! The one clock of the lab: CLOCK_MONOTONIC in nanoseconds, the same for every process of the host.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds since the epoch (CLOCK_REALTIME); only for the headers of result files.
#[must_use]
pub fn realtime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// Date and time in UTC of nanoseconds since the epoch.
#[must_use]
pub fn rfc3339(unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).map(|time| time.to_string()).unwrap_or_default()
}

/// How far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC, in nanoseconds: grows only while the host is suspended.
#[must_use]
pub fn suspended_ns() -> u64 {
    let monotonic = monotonic_ns();
    nanoseconds(clock_gettime(ClockId::Boottime)).saturating_sub(monotonic)
}

/// An absolute time for `clock_nanosleep`.
#[must_use]
pub fn timespec(ns: u64) -> Timespec {
    let seconds = i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: (ns % 1_000_000_000) as _ }
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
