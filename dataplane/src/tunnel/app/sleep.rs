//! An alarm by which the program is woken when the machine has slept, even if nothing comes and no timer is near: timers stand still
//! in sleep, and this one does not.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::App;
use super::wake::Wake;
use crate::ingress::{Ingress, Source};

/// A sleep as long as this is noticed as soon as it is over, a shorter one within this time.
const INTERVAL: Duration = Duration::from_secs(60);

/// Rings every [`INTERVAL`], sleep included (CLOCK_BOOTTIME of timerfd_create(2)).
pub(super) struct Alarm(OwnedFd);

impl Alarm {
    fn every(interval: Duration) -> io::Result<Self> {
        let alarm = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let tv_sec = interval.as_secs().try_into().map_err(io::Error::other)?;
        let interval = Timespec { tv_sec, tv_nsec: interval.subsec_nanos().into() };
        let times = Itimerspec { it_interval: interval, it_value: interval };
        timerfd_settime(&alarm, TimerfdTimerFlags::empty(), &times)?;
        Ok(Self(alarm))
    }

    /// How often it has rung since the last look.
    fn rung(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

impl App {
    /// Has the loop woken after sleep.
    pub(super) fn set_alarm<I: Ingress>(&mut self, ingress: &mut I) {
        let set = Alarm::every(INTERVAL).and_then(|alarm| {
            ingress.add_borrowed(alarm.0.as_fd(), Wake::Alarm.token(), Source::Ready)?;
            Ok(alarm)
        });
        match set {
            Ok(alarm) => self.alarm = Some(alarm),
            Err(error) => tracing::warn!("that the machine has slept is noticed late: {error}"),
        }
    }

    /// Looks whether the machine has slept.
    pub(super) fn note_alarm(&mut self, now: Instant) {
        if self.alarm.as_ref().is_some_and(|alarm| alarm.rung() > 0) {
            self.tunnel.notice_sleep(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn it_rings_again_and_again() {
        let alarm = Alarm::every(Duration::from_millis(1)).expect("an alarm");
        for _ in 0..3 {
            poll(&mut [PollFd::new(&alarm.0, PollFlags::IN)], None).expect("it rings");
            assert!(alarm.rung() > 0);
        }
    }
}
