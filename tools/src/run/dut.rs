//! CPU time of the processes under test, by the scheduler's accounting: exact to the nanosecond, where `times` has ticks of 10 ms,
//! and with the time of threads that ended.

use std::fs;

use dataplane::sys::clock;
use serde::{Deserialize, Serialize};

use super::problem::Problem;

/// CPU time that one process used during the measured part of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DutCpu {
    /// Process id.
    pub pid: u32,
    /// Its name (/proc/PID/comm).
    pub name: String,
    /// Nanoseconds on a processor, over all its threads, those that ended meanwhile included.
    pub cpu_ns: u64,
    /// Threads at the end.
    pub threads: usize,
    /// Whether it had ended before the run did; its figure is then a lower bound.
    pub ended_early: bool,
}

/// CPU time so far of each observed process.
#[derive(Debug)]
pub struct Snapshot(Vec<Observed>);

#[derive(Debug)]
struct Observed {
    pid: u32,
    name: String,
    started: u64,
    cpu_ns: u64,
}

impl Snapshot {
    /// Reads the clock of every process.
    ///
    /// # Errors
    /// [`Problem::Setup`] when a process does not exist or may not be read.
    pub fn take(pids: &[u32]) -> Result<Self, Problem> {
        let read = |&pid: &u32| {
            let found = Stat::read(pid).filter(|stat| !stat.ended).zip(cpu_ns(pid));
            let (stat, cpu_ns) = found.ok_or_else(|| {
                Problem::Setup(format!(
                    "no scheduler statistics for --dut-pid {pid}: no such process, or /proc is hidden from this user; check with `ps -p {pid}`"
                ))
            })?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Ok(Observed { pid, name: name.trim().to_owned(), started: stat.started, cpu_ns })
        };
        Ok(Self(pids.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// What each process has used since then.
    #[must_use]
    pub fn until_now(&self) -> Vec<DutCpu> {
        let used = |observed: &Observed| {
            let Observed { pid, started, cpu_ns: before, .. } = *observed;
            // A number may have been given to another process meanwhile.
            let same = Stat::read(pid).filter(|stat| stat.started == started);
            let after = same.as_ref().and_then(|_| cpu_ns(pid));
            DutCpu {
                pid,
                name: observed.name.clone(),
                cpu_ns: after.unwrap_or(before).saturating_sub(before),
                threads: same.as_ref().map_or(0, |stat| stat.threads),
                ended_early: after.is_none() || same.is_none_or(|stat| stat.ended),
            }
        };
        self.0.iter().map(used).collect()
    }
}

fn cpu_ns(pid: u32) -> Option<u64> {
    clock::of_process(pid).ok().map(|time| time.as_nanos() as u64)
}

/// What /proc/PID/stat says (man proc_pid_stat).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Whether it waits for nothing but its parent.
    ended: bool,
    threads: usize,
    /// When it started, in ticks since the machine did: tells processes of one number apart.
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; field 3 follows it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            ended: matches!(field(3)?, "Z" | "X"),
            threads: field(20)?.parse().ok()?,
            started: field(22)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::clock::thread_cpu_ns;

    #[test]
    fn a_spinning_process_is_charged_for_its_spinning() {
        let snapshot = Snapshot::take(&[std::process::id()]).unwrap();
        let begin = thread_cpu_ns();
        while thread_cpu_ns() - begin < 30_000_000 {}
        let used = &snapshot.until_now()[0];
        assert!(used.cpu_ns >= 30_000_000, "{used:?}");
        assert!(!used.ended_early && used.threads > 0);
    }

    #[test]
    fn a_thread_that_ends_takes_its_time_not_away() {
        let snapshot = Snapshot::take(&[std::process::id()]).unwrap();
        let busy = || {
            let begin = thread_cpu_ns();
            while thread_cpu_ns() - begin < 30_000_000 {}
        };
        std::thread::spawn(busy).join().unwrap();
        let used = &snapshot.until_now()[0];
        assert!(used.cpu_ns >= 30_000_000, "{used:?}");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
    fn a_process_that_ended_is_called_so_whether_anybody_has_waited_for_it_or_not() {
        let start = || std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let (mut waited_for, mut forgotten) = (start(), start());
        let snapshot = Snapshot::take(&[waited_for.id(), forgotten.id()]).unwrap();
        waited_for.kill().unwrap();
        waited_for.wait().unwrap();
        forgotten.kill().unwrap();
        while !Stat::read(forgotten.id()).unwrap().ended {
            std::thread::yield_now();
        }
        assert!(Snapshot::take(&[forgotten.id()]).is_err());
        let found = snapshot.until_now();
        forgotten.wait().unwrap();
        assert!(found.iter().all(|process| process.ended_early), "{found:?}");
    }

    #[test]
    fn a_name_with_parentheses_is_no_field() {
        let fields = "S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 20 0 3 0 77 0";
        let stat = Stat { ended: false, threads: 3, started: 77 };
        assert_eq!(Stat::parse(&format!("12 (a) Z (b)) {fields}")), Some(stat));
        assert_eq!(Stat::parse("12 (cut) S 1 2"), None);
    }

    #[test]
    fn a_missing_process_is_named() {
        let error = Snapshot::take(&[u32::MAX - 1]).unwrap_err();
        assert!(error.to_string().contains("4294967294"), "{error}");
    }
}
