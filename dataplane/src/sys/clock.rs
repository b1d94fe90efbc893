//! Clocks of the kernel, of which the standard library shows one, by the C library: rustix reads them by way of the auxiliary
//! vector, which is not as it expects under valgrind 3.19 and ends the process there.

use std::io;
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
    /// How long the calling thread has had a processor.
    Thread,
}

/// What a clock shows; zero for a time before 1970.
#[must_use]
pub fn read(clock: Clock) -> Duration {
    let id = match clock {
        Clock::Realtime => libc::CLOCK_REALTIME,
        Clock::Monotonic => libc::CLOCK_MONOTONIC,
        Clock::Boottime => libc::CLOCK_BOOTTIME,
        Clock::Thread => libc::CLOCK_THREAD_CPUTIME_ID,
    };
    let shown = read_id(id);
    debug_assert!(shown.is_ok(), "every kernel with io_uring has these clocks");
    shown.unwrap_or_default()
}

/// Time that a process has spent on processors so far, in all its threads, those that have ended included (man
/// clock_getcpuclockid). Of a thread that runs, the kernel has counted it up to the last tick.
///
/// # Errors
/// When there is no such process.
pub fn of_process(pid: u32) -> io::Result<Duration> {
    // 0 would be the calling process.
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let mut id = 0;
    // SAFETY: the memory is this function's, and is written during the call only.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut id) };
    if error == 0 { read_id(id) } else { Err(io::Error::from_raw_os_error(error)) }
}

fn read_id(id: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the memory is this function's, and is written during the call only.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).ok();
    Ok(seconds.map_or(Duration::ZERO, |seconds| Duration::new(seconds, time.tv_nsec as u32)))
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
        assert!(before <= boot && before <= read(Clock::Monotonic) && before > Duration::ZERO);
        // A thread that is new has worked for less time than it takes to begin one and end it.
        let (start, worked) = (read(Clock::Monotonic), std::thread::spawn(|| read(Clock::Thread)).join());
        let lived = read(Clock::Monotonic).saturating_sub(start);
        assert!(worked.is_ok_and(|worked| worked > Duration::ZERO && worked < lived));
    }

    #[test]
    fn a_thread_that_ended_still_counts_for_its_process() {
        let own = std::process::id();
        let before = of_process(own).expect("this process");
        let busy = || {
            let begin = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let spent = || {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                (now.tv_sec - begin.tv_sec) * 1_000_000_000 + (now.tv_nsec - begin.tv_nsec)
            };
            while spent() < 30_000_000 {}
        };
        std::thread::spawn(busy).join().expect("the thread");
        let spent = of_process(own).expect("this process") - before;
        assert!(spent >= Duration::from_millis(30), "{spent:?}");
        for nobody in [0, i32::MAX as u32, u32::MAX] {
            assert!(of_process(nobody).is_err(), "{nobody}");
        }
    }
}
