//! The end of all loops of a process: when one ends, for whatever reason, the others do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Set once. Every loop waits on its descriptor and looks at it after each wait.
#[derive(Debug)]
pub struct Halt {
    is_set: AtomicBool,
    fd: OwnedFd,
}

impl Halt {
    /// Not set.
    ///
    /// # Errors
    /// What eventfd(2) answers.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { is_set: AtomicBool::new(false), fd })
    }

    /// Ends every loop.
    pub fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        // Nobody reads it, so that it wakes every loop; the counter cannot overflow by so few.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Sets it when what is returned is dropped: at the end of a loop, an error or a panic included.
    pub fn on_drop(&self) -> OnDrop<'_> {
        OnDrop(self)
    }
}

impl AsFd for Halt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// See [`Halt::on_drop`].
#[derive(Debug)]
pub struct OnDrop<'a>(&'a Halt);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}
