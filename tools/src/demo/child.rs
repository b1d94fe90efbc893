//! Processes of the demo: this program again, as tunnel or relay, in a namespace, with its JSON log read line by line.

use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Interrupt;
use super::role::Role;
use crate::netns::Namespace;
use crate::reexec;
use crate::run::Problem;
use crate::run::clock::monotonic_ns;

/// How often a wait looks at what it waits for.
const TICK: Duration = Duration::from_millis(5);
/// Lines kept of a log, from the end: enough to say what went wrong.
const LINES_MAX: usize = 200;

/// A running tunnel or relay. Dropping it kills it.
pub struct Child {
    /// What it is called in messages.
    pub name: String,
    process: std::process::Child,
    lines: Receiver<String>,
    /// What it has logged so far.
    log: Vec<Value>,
}

impl Child {
    /// Starts this program as `role` with `arguments`, inside `namespace` if there is one.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(
        name: &str,
        role: Role,
        arguments: &[String],
        namespace: Option<&Namespace>,
    ) -> anyhow::Result<Self> {
        let mut command = Role::command(role, namespace)?;
        let mut process = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stderr = process.stderr.take().context("the log of a child process is missing")?;
        let (sender, lines) = channel();
        reexec::read_lines(stderr, sender)?;
        Ok(Self { name: name.to_owned(), process, lines, log: Vec::new() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it logs `ready`.
    ///
    /// # Errors
    /// When it ends first, with what it said last; or when it takes longer than `patience`.
    pub fn wait_ready(&mut self, patience: Duration, interrupt: &Interrupt) -> anyhow::Result<()> {
        let deadline = monotonic_ns() + patience.as_nanos() as u64;
        while !self.log.iter().any(|line| line["message"] == "ready") {
            interrupt.check()?;
            match self.lines.recv_timeout(TICK) {
                Ok(line) => self.keep(&line),
                Err(RecvTimeoutError::Timeout) if monotonic_ns() < deadline => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failure(&format!("was not ready after {patience:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure("did not start")),
            }
        }
        Ok(())
    }

    /// Asks it to end, waits for it, and answers its ledger if it logged one.
    ///
    /// # Errors
    /// When it has to be killed after `patience`, or ends with a failure.
    pub fn stop(mut self, patience: Duration) -> anyhow::Result<Option<Value>> {
        // It may have ended by itself; then the status below says how.
        let _ = kill_process(self.system_pid()?, Signal::TERM);
        let status = self.wait(patience)?;
        // The log ends when the process does; what it wrote last is still in the pipe.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.keep(&line);
        }
        let Some(status) = status else {
            return Err(self.failure(&format!("did not end within {patience:?} after SIGTERM")));
        };
        if !status.success() {
            return Err(self.failure(&format!("ended with {status}")));
        }
        Ok(self.log.iter().rev().find(|line| line["message"] == "ledger").cloned())
    }

    fn wait(&mut self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = monotonic_ns() + patience.as_nanos() as u64;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(Some(status));
            }
            if monotonic_ns() > deadline {
                return Ok(None);
            }
            thread::sleep(TICK);
        }
    }

    fn keep(&mut self, line: &str) {
        if self.log.len() == LINES_MAX {
            self.log.remove(0);
        }
        // A panic message is not JSON, and the line most worth keeping.
        self.log.push(serde_json::from_str(line).unwrap_or_else(|_| Value::String(line.to_owned())));
    }

    /// What happened to it, and the last error it logged, or else its last line.
    fn failure(&mut self, what: &str) -> anyhow::Error {
        while let Ok(line) = self.lines.try_recv() {
            self.keep(&line);
        }
        let worst = self.log.iter().rev().find(|line| line["severity"] == "ERROR");
        let name = &self.name;
        let text = match worst.or(self.log.last()) {
            Some(Value::String(text)) => format!("{name} {what}: {text}"),
            Some(line) => format!("{name} {what}: {}", sentence(line)),
            None => format!("{name} {what} and said nothing"),
        };
        Problem::Setup(text).into()
    }

    fn system_pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(self.pid().cast_signed()).context("a process id is positive")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails only when it has ended already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A log line as a person reads it: the message and its fields.
fn sentence(line: &Value) -> String {
    let mut text = line["message"].as_str().unwrap_or_default().to_owned();
    for (name, value) in line.as_object().into_iter().flatten() {
        if !["time", "severity", "message", "target"].contains(&name.as_str()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!(" {name}={value}"));
        }
    }
    text
}

/// Runs this program as `role` to its end and answers what it printed.
///
/// # Errors
/// When it cannot be started or fails; the message is what it printed on standard error.
pub fn output_of(role: Role, arguments: &[&str], input: Option<&str>) -> anyhow::Result<String> {
    let mut process = Role::command(role, None)?
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start this program again")?;
    if let (Some(mut stdin), Some(input)) = (process.stdin.take(), input) {
        std::io::Write::write_all(&mut stdin, input.as_bytes())?;
    }
    let output = process.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
