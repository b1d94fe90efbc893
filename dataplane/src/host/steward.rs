//! The thread beside the loop: it waits for signals, and runs hooks while packets pass.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{Host, Step};
use crate::halt::Halt;
use crate::notify::Notifier;

/// Lets the steward know that packets can pass.
#[derive(Debug)]
pub struct Started(OwnedFd);

impl Started {
    /// Packets can pass.
    pub fn tell(&self) {
        // Once into a counter that is zero: it cannot be full.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// What the steward waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// The loop is ready for packets.
    Started,
    /// The loop has ended, for a reason of its own.
    Ended,
    /// A signal says that it has to.
    Signal,
}

impl Host {
    /// Runs the loop, `run`, until it ends by itself or a signal comes. `PostUp` is run once it has started, and at a signal
    /// everything above the interface is taken back before the loop is halted.
    ///
    /// # Errors
    /// Those of `run`, and a hook that failed: then the loop is halted too.
    pub fn serve(&mut self, run: impl FnOnce(&Halt, &Started) -> io::Result<()>) -> io::Result<()> {
        let halt = Halt::new()?;
        let started = Started(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        std::thread::scope(|scope| {
            // Owns nothing; has the host until the loop has ended, or ends the loop itself.
            let steward =
                std::thread::Builder::new().name("towpath-host".to_owned()).spawn_scoped(scope, || {
                    let _all_end = halt.on_drop();
                    self.stand_by(&halt, &started)
                })?;
            let outcome = {
                let _all_end = halt.on_drop();
                run(&halt, &started)
            };
            let stewards = steward.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome.and(stewards)
        })
    }

    fn stand_by(&mut self, halt: &Halt, started: &Started) -> io::Result<()> {
        let mut manager = Notifier::from_environment();
        if self.wait(halt, Some(started))? != News::Started {
            return Ok(());
        }
        let hooks = self.section.hooks.clone();
        if self.section.save_config {
            self.journal.note(Step::Save { file: self.file.clone() })?;
        }
        if !hooks.pre_down.is_empty() {
            self.journal.note(Step::PreDown { commands: self.named(&hooks.pre_down) })?;
        }
        let ran = self.run_hooks("PostUp", &self.named(&hooks.post_up));
        if ran.is_ok() {
            manager.ready("up", now());
            if self.wait(halt, None)? == News::Ended {
                return Ok(());
            }
        }
        manager.stopping("ending", Duration::ZERO);
        self.take_back_to_interface();
        match ran {
            // We are to end, and so we do.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                tracing::info!("{error}");
                Ok(())
            }
            ran => ran,
        }
    }

    /// Waits for news; that the loop has ended is told first.
    fn wait(&self, halt: &Halt, started: Option<&Started>) -> io::Result<News> {
        loop {
            if halt.is_set() {
                return Ok(News::Ended);
            }
            if self.signals.take().is_some() {
                return Ok(News::Signal);
            }
            if started.is_some_and(|started| rustix::io::read(&started.0, &mut [0; 8]).is_ok()) {
                return Ok(News::Started);
            }
            let (halt, signals) = (halt.as_fd(), self.signals.fd().as_fd());
            let third = started.map_or(signals, |started| started.0.as_fd());
            let mut fds = [halt, signals, third].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the service manager's time, of which the loop knows nothing")]
fn now() -> Instant {
    Instant::now()
}
