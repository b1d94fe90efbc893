//! The processes of a measurement: this program again as tunnel or relay, or another program, inside a namespace.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tools::netns::{self, Namespace};

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
/// In place of a namespace's path.
const STAY: &str = "-";
/// How long a process may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the role that the command line names, if it names one; to be called first thing in `main`, before any thread.
///
/// ```text
///  benches __tunnel NAMESPACE|- PARENT up FILE …
/// ```
#[must_use]
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    let name = arguments.get(1)?.to_str()?;
    let (role, _) = *ROLES.iter().find(|entry| entry.1 == name)?;
    let (Some(namespace), Some(parent)) = (arguments.get(2), arguments.get(3)) else {
        return Some(ExitCode::from(2));
    };
    let rest = arguments[4..].iter().cloned();
    let named = |name: &str| std::iter::once(OsString::from(name)).chain(rest.clone());
    let error = match (settle(namespace, parent), role) {
        (Err(error), _) => error,
        (Ok(()), Role::Tunnel) => return Some(dataplane::cli::main(named("towpath"))),
        (Ok(()), Role::Relay) => return Some(relay::cli::main(named("towpath-relay"))),
        (Ok(()), Role::Program) => become_program(&arguments[4..]),
    };
    // The parent reads standard error; there is no log yet.
    let _ = writeln!(std::io::stderr(), "{error:#}");
    Some(ExitCode::FAILURE)
}

/// Enters the namespace and makes sure that this process does not outlive the one that measures.
fn settle(namespace: &OsStr, parent: &OsStr) -> anyhow::Result<()> {
    let namespace = namespace.to_str().context("a namespace's path is ASCII")?;
    if namespace != STAY {
        netns::enter(namespace).with_context(|| format!("cannot enter the namespace {namespace}"))?;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    // It may have ended before that took effect.
    let expected = parent.to_str().and_then(|parent| parent.parse().ok());
    let actual = getppid().map(|parent| parent.as_raw_nonzero().get());
    anyhow::ensure!(expected == actual, "the benchmark that started this process is gone");
    Ok(())
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
        let entry = ROLES.iter().find(|entry| entry.0 == role).map_or("", |entry| entry.1);
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        #[expect(clippy::disallowed_methods, reason = "the benchmark starts programs and has no ring open")]
        let mut command = Command::new(program);
        command.arg(entry).arg(namespace.map_or_else(|| STAY.to_owned(), Namespace::path_for_child));
        command.arg(getpid().as_raw_nonzero().to_string()).args(arguments);
        // A group of its own: Ctrl-C reaches only the benchmark, which ends the others.
        command.process_group(0).env("RUST_LOG", "info");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let (sender, lines) = channel();
        let (stdout, stderr) = (child.stdout.take().context("no stdout")?, child.stderr.take());
        read_lines(stdout, sender.clone())?;
        read_lines(stderr.context("no stderr")?, sender)?;
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

/// Reads lines on a thread, which ends with the pipe.
fn read_lines(stream: impl Read + Send + 'static, sender: Sender<String>) -> anyhow::Result<()> {
    thread::Builder::new().name("bench-log".to_owned()).spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// The time.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}
