//! Signals as a readable descriptor (signalfd(2)), so that they arrive between two batches and never inside one.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A signal that asks a program for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: end, in good order.
    Terminate,
    /// SIGINT, Ctrl-C: end.
    Interrupt,
    /// SIGHUP: read the configuration again; or end, because the terminal is gone.
    Hangup,
}

impl Signal {
    const fn number(self) -> i32 {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::Hangup => libc::SIGHUP,
        }
    }

    fn from_number(number: i32) -> Option<Self> {
        [Self::Terminate, Self::Interrupt, Self::Hangup].into_iter().find(|signal| signal.number() == number)
    }
}

/// Whether whoever started this process has it ignore a signal, as nohup(1) does with SIGHUP. Blocked, it would arrive all the
/// same.
///
/// # Errors
/// What sigaction(2) answers.
pub fn is_ignored(signal: Signal) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is set; the present action is written through a pointer to memory of the right type.
    let asked = unsafe { libc::sigaction(signal.number(), std::ptr::null(), action.as_mut_ptr()) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction has initialised it.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// SIGTERM and SIGINT of this process, and others where the program knows what to do with them. They are blocked in the
/// thread that makes this and in those it starts later.
#[derive(Debug)]
pub struct StopSignals {
    fd: OwnedFd,
}

impl StopSignals {
    /// Blocks the signals and opens the descriptor. Call it before other threads start.
    ///
    /// # Errors
    /// What sigprocmask(2) and signalfd(2) answer.
    pub fn new() -> io::Result<Self> {
        Self::with(&[])
    }

    /// As [`StopSignals::new`], for `others` too.
    ///
    /// # Errors
    /// As [`StopSignals::new`].
    pub fn with(others: &[Signal]) -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset writes the whole set through a pointer to memory of the right type.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset has initialised it.
        let mut set = unsafe { set.assume_init() };
        for signal in [Signal::Terminate, Signal::Interrupt].iter().chain(others) {
            // SAFETY: `set` is initialised and the signal number is valid.
            unsafe { libc::sigaddset(&raw mut set, signal.number()) };
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just returned this descriptor and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The descriptor to wait on.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The next pending signal, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Signal> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer lives in this frame and its length is given.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) };
        // The first member of struct signalfd_siginfo is the signal number.
        let number =
            (read == info.len() as isize).then(|| i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
        // The descriptor was opened for these signals only.
        number.and_then(Signal::from_number)
    }
}
