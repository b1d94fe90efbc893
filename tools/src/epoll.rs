//! Waiting for descriptors by epoll(7), for loops that have something else to look at every few milliseconds.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// Events that one wait answers at most.
const EVENTS_MAX: usize = 256;
/// What epoll_wait(2) counts time in.
const MILLISECOND_NS: u64 = 1_000_000;

/// A set of descriptors that are watched, each under a number.
pub struct Watch {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Watch {
    /// Watches for input on each of `descriptors`; their places are their numbers.
    ///
    /// # Errors
    /// What epoll_create1(2) and epoll_ctl(2) answer.
    pub fn new(descriptors: impl IntoIterator<Item = impl AsFd>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = Self { epoll, events: Vec::with_capacity(EVENTS_MAX) };
        for (number, descriptor) in descriptors.into_iter().enumerate() {
            watch.add(descriptor, number)?;
        }
        Ok(watch)
    }

    /// Watches for input on one more.
    ///
    /// # Errors
    /// What epoll_ctl(2) answers.
    pub fn add(&self, descriptor: impl AsFd, number: usize) -> io::Result<()> {
        epoll::add(&self.epoll, descriptor, data(number), epoll::EventFlags::IN)?;
        Ok(())
    }

    /// Watches one that is watched for something else from now on.
    ///
    /// # Errors
    /// What epoll_ctl(2) answers.
    pub fn change(
        &self,
        descriptor: impl AsFd,
        number: usize,
        interest: epoll::EventFlags,
    ) -> io::Result<()> {
        epoll::modify(&self.epoll, descriptor, data(number), interest)?;
        Ok(())
    }

    /// Watches one no longer.
    ///
    /// # Errors
    /// What epoll_ctl(2) answers.
    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.epoll, descriptor)?;
        Ok(())
    }

    /// Waits up to `within_ns`, less than a second, until one of them is ready, or a signal comes; [`Watch::ready`] says which.
    ///
    /// # Errors
    /// What epoll_wait(2) and ppoll(2) answer, other than EINTR.
    pub fn wait(&mut self, within_ns: u64) -> io::Result<()> {
        let mut wait = Timespec { tv_sec: 0, tv_nsec: within_ns.min(999_999_999) as i64 };
        self.events.clear();
        // The kernel would round up to whole milliseconds. epoll_pwait2(2) does not, but is of Linux 5.11; ppoll(2) is older, and takes
        // the set as one descriptor.
        if !within_ns.is_multiple_of(MILLISECOND_NS) {
            match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&wait)) {
                Ok(0) | Err(Errno::INTR) => return Ok(()),
                Ok(_) => wait.tv_nsec = 0,
                Err(error) => return Err(error.into()),
            }
        }
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The numbers of those that the last wait found ready.
    pub fn ready(&self) -> impl Iterator<Item = usize> + '_ {
        self.events.iter().map(|event| event.data.u64() as usize)
    }

    /// The numbers of those of them that have an error, or something in the error queue.
    pub fn with_errors(&self) -> impl Iterator<Item = usize> + '_ {
        let has_error = |event: &&epoll::Event| {
            let flags = event.flags;
            flags.contains(epoll::EventFlags::ERR)
        };
        self.events.iter().filter(has_error).map(|event| event.data.u64() as usize)
    }
}

fn data(number: usize) -> epoll::EventData {
    epoll::EventData::new_u64(number as u64)
}
