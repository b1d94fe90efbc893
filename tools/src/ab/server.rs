//! A program under test, for the time of one run.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::reexec;
use crate::run::clock::monotonic_ns;

/// How long it may take to end after SIGTERM before it is killed.
const STOP_PATIENCE_NS: u64 = 5_000_000_000;
/// How often it is looked at meanwhile.
const TICK: Duration = Duration::from_millis(5);

/// What a process of the comparison is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A program under test: this one until it has made sure that it dies with its parent.
    Serve,
}

const ROLES: [(Role, &str); 1] = [(Role::Serve, "__serve")];

/// A running program. Dropping it kills it.
pub(super) struct Server {
    process: Child,
    lines: Receiver<String>,
}

impl Server {
    /// Starts `command` by a shell, which it replaces. Call it from the main thread: it dies with the thread that started it.
    ///
    /// # Errors
    /// When no process can be started. A command that does not exist ends at once.
    pub(super) fn start(command: &str) -> anyhow::Result<Self> {
        let mut again = reexec::command(&ROLES, &Role::Serve, None)?;
        // Its log is the user's affair.
        match std::env::var_os("RUST_LOG") {
            Some(level) => again.env("RUST_LOG", level),
            None => again.env_remove("RUST_LOG"),
        };
        let mut process = again
            .arg(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{command}`"))?;
        let stderr = process.stderr.take().context("the standard error of a child process is missing")?;
        let (sender, lines) = channel();
        reexec::read_lines(stderr, sender)?;
        Ok(Self { process, lines })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// The last line on its standard error.
    pub(super) fn last_words(&self) -> Option<String> {
        // What a program that has just ended wrote may still be in the pipe.
        let first = self.lines.recv_timeout(Duration::from_millis(200)).ok()?;
        Some(self.lines.try_iter().last().unwrap_or(first))
    }

    /// Ends it: SIGTERM, and SIGKILL where that does not do.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed()).context("a process id is positive")?;
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = monotonic_ns() + STOP_PATIENCE_NS;
        while !self.has_ended()? && monotonic_ns() < deadline {
            thread::sleep(TICK);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only when it has ended already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Becomes the program under test, if the command line says so; to be called first thing in `main`, before any thread.
#[must_use]
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    let (Role::Serve, rest) = match reexec::settle(&ROLES, arguments)? {
        Ok(settled) => settled,
        Err(code) => return Some(code),
    };
    let mut line = OsString::from("exec ");
    line.push(rest.first()?);
    #[expect(clippy::disallowed_methods, reason = "this process becomes the program; it has no ring open")]
    let error = Command::new("sh").arg("-c").arg(line).exec();
    // The parent reads standard error.
    let _ = writeln!(std::io::stderr(), "cannot start sh: {error}");
    Some(ExitCode::FAILURE)
}
