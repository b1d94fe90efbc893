//! A program that goes on in the background, and descriptors that it gets from whoever starts it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::{Pid, WaitOptions, chdir, setsid, waitpid};

/// Which of the two processes this is after [`split`].
#[derive(Debug)]
pub enum Side {
    /// The one that was started: it waits for the other and ends.
    Foreground(Waiting),
    /// The one that goes on.
    Background(Notice),
}

/// What the foreground waits for.
#[derive(Debug)]
pub struct Waiting {
    child: Pid,
    pipe: OwnedFd,
}

/// What the background says when it is ready, once.
#[derive(Debug)]
pub struct Notice {
    pipe: OwnedFd,
    keeps_errors: bool,
}

/// Goes on as two processes, the one in the background in a session of its own. Call it before any thread is started.
/// With `keeps_errors` the background keeps standard output and standard error.
///
/// # Errors
/// What pipe(2) and fork(2) answer; when there is another thread already.
pub fn split(keeps_errors: bool) -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("cannot go into the background: there are threads already"));
    }
    let (receive, send) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this is the only thread, as checked above, so that the child finds no lock held and no work half done.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(receive);
            setsid()?;
            Ok(Side::Background(Notice { pipe: send, keeps_errors }))
        }
        child => {
            let child = Pid::from_raw(child).ok_or_else(|| io::Error::other("fork without a child"))?;
            Ok(Side::Foreground(Waiting { child, pipe: receive }))
        }
    }
}

impl Waiting {
    /// Waits until the background is ready, or has ended without that; with which status the foreground has to end.
    #[must_use]
    pub fn wait(self) -> u8 {
        let told = loop {
            match rustix::io::read(&self.pipe, &mut [0; 1]) {
                Ok(len) => break len == 1,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break false,
            }
        };
        if told {
            return 0;
        }
        // It has said why, on standard error.
        let status = waitpid(Some(self.child), WaitOptions::empty()).ok().flatten();
        let code =
            status.and_then(|(_, status)| status.exit_status()).and_then(|code| u8::try_from(code).ok());
        code.filter(|code| *code != 0).unwrap_or(1)
    }
}

impl Notice {
    /// Lets the foreground end with success, and lets go of directory and terminal.
    ///
    /// # Errors
    /// When /dev/null cannot be opened.
    pub fn tell(self) -> io::Result<()> {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        if !self.keeps_errors {
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
        }
        chdir("/")?;
        // Whoever waited may have been killed; this side goes on.
        let _ = rustix::io::write(&self.pipe, &[1]);
        Ok(())
    }
}

/// A descriptor that this program was started with, by its number; the number itself stays open.
///
/// # Errors
/// EBADF when it is not open.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes integers here and touches no memory of ours.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl has just returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_threads_stays_as_it_is() {
        // The test itself runs on one.
        let error = split(false).expect_err("refused");
        assert!(error.to_string().contains("threads"), "{error}");
    }

    #[test]
    fn only_open_numbers_are_inherited() {
        assert!(inherited(0).is_ok());
        assert_eq!(inherited(1 << 20).expect_err("not open").raw_os_error(), Some(libc::EBADF));
    }
}
