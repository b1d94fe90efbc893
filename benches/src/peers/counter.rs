//! Counts the system calls of a process, with `perf` where the kernel lets us and else with `strace`.
//!
//! A tracepoint can only be read with privileges in the first user namespace, so `perf` runs under a shell that is started
//! before we leave it. `strace` stops the process at every call: it counts right, but the process gets less done between
//! two looks at its sockets, and then makes fewer calls for each datagram than undisturbed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::programs::Programs;
use super::world::World;
use crate::process::{Process, Role};

/// Waits for a line, counts, and answers with perf's last line: `COUNT,,raw_syscalls:sys_enter,…`.
const SCRIPT: &str = "while read -r pid delay seconds; do sleep \"$delay\"; \
    \"$0\" stat -x , -e raw_syscalls:sys_enter -p \"$pid\" -- sleep \"$seconds\" 2>&1 | tail -n 1; done";
/// The load runs already when counting starts …
const LEAD: Duration = Duration::from_millis(300);
/// … and still when it ends: perf takes its time to start.
const TAIL: Duration = Duration::from_millis(700);
/// How long strace may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How system calls are counted here.
pub enum Counter {
    /// With perf, in the first user namespace.
    Perf(Perf),
    /// With strace, which is at this path.
    Strace(String),
    /// Not at all; the remedy.
    Missing(String),
}

/// A shell that waits for orders. It ends when its standard input does, which is with this process at the latest.
pub struct Perf {
    shell: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Counter {
    /// Call it before the process moves to a user namespace of its own; it starts no thread.
    #[must_use]
    pub fn new(programs: &Programs) -> Self {
        let perf = programs.path("perf").and_then(|perf| Perf::start(&perf));
        match (perf, programs.path("strace")) {
            (Ok(perf), _) => Self::Perf(perf),
            (Err(_), Ok(strace)) => Self::Strace(strace),
            (Err(perf), Err(strace)) => Self::Missing(format!("{perf:#}; or instead: {strace:#}")),
        }
    }

    /// What counts, for the table.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Perf(_) => "counted by perf stat -e raw_syscalls:sys_enter",
            Self::Strace(_) => "counted by strace -f -c, which slows both sides down",
            Self::Missing(_) => "not counted",
        }
    }

    /// Begins to count the calls of `pid` over `duration`. The load starts now and lasts for [`Counting::load`]; it is
    /// constant, so that its rate is that of the time that is counted.
    ///
    /// # Errors
    /// That nothing can be counted.
    pub fn start(&mut self, world: &World, pid: u32, duration: Duration) -> anyhow::Result<Counting<'_>> {
        match self {
            Self::Perf(perf) => {
                perf.order(pid, LEAD, duration)?;
                Ok(Counting { means: Means::Perf(perf), counted: duration, load: LEAD + duration + TAIL })
            }
            Self::Strace(strace) => {
                let pid = pid.to_string();
                let command = [strace.as_str(), "-f", "-c", "-p", &pid].map(str::to_owned);
                let mut process =
                    Process::start("strace", Role::Program, &command, Some(&world.topology.relay))?;
                process.wait_for("attached", PATIENCE)?;
                Ok(Counting { means: Means::Strace(process), counted: duration, load: duration })
            }
            Self::Missing(remedy) => bail!("{remedy}"),
        }
    }
}

/// Counting that has begun.
pub struct Counting<'a> {
    means: Means<'a>,
    counted: Duration,
    /// How long the load has to last.
    pub load: Duration,
}

enum Means<'a> {
    Perf(&'a mut Perf),
    Strace(Process),
}

impl Counting<'_> {
    /// Calls a second. Ask when the process has ended: strace then ends by itself, and says what it saw.
    ///
    /// # Errors
    /// When nothing was counted.
    pub fn finish(self) -> anyhow::Result<f64> {
        let calls = match self.means {
            Means::Perf(perf) => perf.answer()?,
            Means::Strace(process) => {
                let lines = process.finish(PATIENCE)?;
                lines.iter().find_map(|line| strace_total(line)).context("strace counted nothing")?
            }
        };
        Ok(calls as f64 / self.counted.as_secs_f64())
    }
}

impl Perf {
    fn start(perf: &str) -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the benchmark starts programs and has no ring open")]
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, perf]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().context("cannot start sh")?;
        let orders = shell.stdin.take().context("no stdin")?;
        let answers = BufReader::new(shell.stdout.take().context("no stdout")?);
        let mut this = Self { shell, orders, answers };
        // Whether it may count at all.
        this.order(std::process::id(), Duration::ZERO, Duration::from_millis(10))?;
        this.answer()?;
        Ok(this)
    }

    fn order(&mut self, pid: u32, delay: Duration, duration: Duration) -> anyhow::Result<()> {
        let (delay, seconds) = (delay.as_secs_f64(), duration.as_secs_f64());
        writeln!(self.orders, "{pid} {delay} {seconds}").context("the shell of perf is gone")
    }

    fn answer(&mut self) -> anyhow::Result<u64> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        perf_count(&line).with_context(|| format!("perf cannot count system calls here: {}", line.trim()))
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // Fails only when it has ended already, which is what is wanted.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// `109,,raw_syscalls:sys_enter,1283000,100.00,,`, or `<not counted>` in front when there was no call.
fn perf_count(line: &str) -> Option<u64> {
    let (count, rest) = line.split_once(',')?;
    let idle = (count == "<not counted>").then_some(0);
    rest.contains("sys_enter").then(|| idle.or_else(|| count.parse().ok()))?
}

/// `100.00    0.000000           0       109        14 total`
fn strace_total(line: &str) -> Option<u64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    (words.last() == Some(&"total")).then(|| words.get(3)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_are_understood() {
        assert_eq!(perf_count("109,,raw_syscalls:sys_enter,1283000,100.00,,\n"), Some(109));
        assert_eq!(perf_count("<not counted>,,raw_syscalls:sys_enter,0,100.00,,"), Some(0));
        assert_eq!(perf_count("<not supported>,,raw_syscalls:sys_enter,0,100.00,,"), None);
        assert_eq!(perf_count("No permission to enable raw_syscalls:sys_enter event."), None);
        assert_eq!(perf_count(""), None);
        let total = "100.00    0.000000           0       109        14 total";
        assert_eq!(strace_total(total), Some(109));
        assert_eq!(strace_total("  0.00    0.000000           0         1           rseq"), None);
    }
}
