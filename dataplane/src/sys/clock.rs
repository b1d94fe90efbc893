//! Clocks of the kernel, of which the standard library shows one, by the C library: rustix reads them by way of the auxiliary
//! vector, which is not as it expects under valgrind 3.19 and ends the process there.

use std::time::Duration;

/// A clock (man clock_gettime).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The time of day, since 1970; it is set by people and programs.
    Realtime,
    /// Time awake, since the machine was started.
    Monotonic,
    /// The same and time asleep.
    Boottime,
    /// Time that the calling thread has spent on a processor.
    ThreadCpu,
}

/// What a clock shows; zero for a time before 1970.
#[must_use]
pub fn read(clock: Clock) -> Duration {
    let id = match clock {
        Clock::Realtime => libc::CLOCK_REALTIME,
        Clock::Monotonic => libc::CLOCK_MONOTONIC,
        Clock::Boottime => libc::CLOCK_BOOTTIME,
        Clock::ThreadCpu => libc::CLOCK_THREAD_CPUTIME_ID,
    };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the memory is this function's, and is written during the call only.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    debug_assert_eq!(result, 0, "every kernel with io_uring has these clocks");
    u64::try_from(time.tv_sec).map_or(Duration::ZERO, |seconds| Duration::new(seconds, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_other_programs() {
        let written = tempfile::tempfile().and_then(|file| file.metadata()?.modified()).expect("a new file");
        let since_1970 = written.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        assert!(read(Clock::Realtime).abs_diff(since_1970) < Duration::from_secs(60));
        let uptime = std::fs::read_to_string("/proc/uptime").expect("proc");
        let uptime: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
        assert!((read(Clock::Boottime).as_secs_f64() - uptime).abs() < 60.0);
        let (before, boot) = (read(Clock::Monotonic), read(Clock::Boottime));
        assert!(read(Clock::ThreadCpu) > Duration::ZERO && read(Clock::ThreadCpu) < before);
        assert!(before <= boot && before <= read(Clock::Monotonic) && before > Duration::ZERO);
    }
}
