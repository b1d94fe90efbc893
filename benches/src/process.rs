//! The processes of a measurement: this program again as tunnel or relay, or another program, inside a namespace.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tools::netns::Namespace;
use tools::reexec;

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `towpath`, from this program.
    Tunnel,
    /// `towpath-relay`, from this program.
    Relay,
    /// The program that the first argument names.
    Program,
}

const ROLES: [(Role, &str); 3] =
    [(Role::Tunnel, "__tunnel"), (Role::Relay, "__relay"), (Role::Program, "__program")];
/// How long a process may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the role that the command line names, if it names one; to be called first thing in `main`, before any thread.
#[must_use]
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    let (role, rest) = match reexec::settle(&ROLES, arguments)? {
        Ok(settled) => settled,
        Err(code) => return Some(code),
    };
    let named = |name: &str| std::iter::once(OsString::from(name)).chain(rest.iter().cloned());
    Some(match role {
        Role::Tunnel => dataplane::cli::main(named("towpath")),
        Role::Relay => relay::cli::main(named("towpath-relay")),
        Role::Program => {
            // The parent reads standard error; there is no log.
            let _ = writeln!(std::io::stderr(), "{:#}", become_program(rest));
            ExitCode::FAILURE
        }
    })
}

/// Keeps the process id, so that the program is measured and stopped by it. Answers only if it fails.
#[expect(clippy::disallowed_methods, reason = "this process exists to become another program")]
fn become_program(command_line: &[OsString]) -> anyhow::Error {
    let Some((program, arguments)) = command_line.split_first() else {
        return anyhow::anyhow!("no program");
    };
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("cannot start {}", program.display()))
}

/// A running process. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// Starts `role` with `arguments`, inside `namespace` if there is one. Call it from the main thread: the process dies
    /// with the thread that started it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &str,
        role: Role,
        arguments: &[String],
        namespace: Option<&Namespace>,
    ) -> anyhow::Result<Self> {
        let mut command = reexec::command(&ROLES, &role, namespace)?;
        command.args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let (sender, lines) = channel();
        let (stdout, stderr) = (child.stdout.take().context("no stdout")?, child.stderr.take());
        reexec::read_lines(stdout, sender.clone())?;
        reexec::read_lines(stderr.context("no stderr")?, sender)?;
        Ok(Self { name: name.to_owned(), child, lines, seen: Vec::new() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it prints a line that contains `text`, and answers the line.
    ///
    /// # Errors
    /// When it ends first, or takes longer than `patience`; with what it said last.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> anyhow::Result<String> {
        let deadline = now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(now())) {
                Ok(line) => {
                    self.seen.push(line);
                    if let Some(line) = self.seen.last().filter(|line| line.contains(text)) {
                        return Ok(line.clone());
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("{}", self.said("was not ready in time")),
                Err(RecvTimeoutError::Disconnected) => bail!("{}", self.said("ended")),
            }
        }
    }

    /// Waits until it ends by itself and answers what it printed.
    ///
    /// # Errors
    /// When it fails or takes longer than `patience`.
    pub fn finish(mut self, patience: Duration) -> anyhow::Result<Vec<String>> {
        if !self.wait(patience)? {
            bail!("{}", self.said("did not end in time"));
        }
        self.collect();
        if !self.child.wait()?.success() {
            bail!("{}", self.said("failed"));
        }
        Ok(std::mem::take(&mut self.seen))
    }

    /// Asks it to end, waits for it, and answers what it printed.
    ///
    /// # Errors
    /// When it has to be killed.
    pub fn stop(mut self) -> anyhow::Result<Vec<String>> {
        let pid = Pid::from_raw(self.pid().cast_signed()).context("a process id is positive")?;
        // It may have ended by itself; then there is nobody to ask.
        let _ = kill_process(pid, Signal::TERM);
        if !self.wait(STOP_PATIENCE)? {
            bail!("{}", self.said("did not end after SIGTERM"));
        }
        self.collect();
        Ok(std::mem::take(&mut self.seen))
    }

    fn wait(&mut self, patience: Duration) -> anyhow::Result<bool> {
        let deadline = now() + patience;
        while self.child.try_wait()?.is_none() {
            if now() > deadline {
                return Ok(false);
            }
            // Its pipes are emptied meanwhile, by the threads that read them.
            thread::sleep(Duration::from_millis(5));
        }
        Ok(true)
    }

    /// Takes the rest of its output; it has ended, so its pipes end too.
    fn collect(&mut self) {
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.seen.push(line);
        }
    }

    /// A sentence with the last lines it printed.
    fn said(&mut self, what: &str) -> String {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push(line);
        }
        let last = self.seen[self.seen.len().saturating_sub(5)..].join(" | ");
        format!("{} {what}: {}", self.name, if last.is_empty() { "it said nothing" } else { &last })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The time.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}
