//! CPU time of the processes under test, by scheduler accounting: exact to the nanosecond, where `times` has 10 ms ticks.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use super::problem::Problem;

/// CPU time that one process used during the measured part of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DutCpu {
    /// Process id.
    pub pid: u32,
    /// Its name (/proc/PID/comm).
    pub name: String,
    /// Nanoseconds on a processor, over all its threads.
    pub cpu_ns: u64,
    /// Threads at the end.
    pub threads: usize,
    /// Whether it had ended before the run did; its figure is then a lower bound.
    pub ended_early: bool,
}

/// CPU time so far of each thread of each observed process.
#[derive(Debug)]
pub struct Snapshot(Vec<(u32, String, BTreeMap<u32, u64>)>);

impl Snapshot {
    /// Reads /proc/PID/task/*/schedstat (first field: ns on a processor) of every process.
    ///
    /// # Errors
    /// [`Problem::Setup`] when a process does not exist or may not be read.
    pub fn take(pids: &[u32]) -> Result<Self, Problem> {
        let read = |&pid: &u32| {
            let threads = threads(pid).ok_or_else(|| {
                Problem::Setup(format!(
                    "no scheduler statistics for --dut-pid {pid}: no such process, or /proc is hidden from this user; check with `ps -p {pid}`"
                ))
            })?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Ok((pid, name.trim().to_owned(), threads))
        };
        Ok(Self(pids.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// What each process has used since. Threads that ended in between are counted up to the snapshot only.
    #[must_use]
    pub fn until_now(self) -> Vec<DutCpu> {
        let difference = |(pid, name, before): (u32, String, BTreeMap<u32, u64>)| {
            let after = threads(pid);
            let ended_early = after.is_none();
            let after = after.unwrap_or_default();
            let cpu_ns =
                after.iter().map(|(tid, ns)| ns.saturating_sub(before.get(tid).copied().unwrap_or(0))).sum();
            DutCpu { pid, name, cpu_ns, threads: after.len(), ended_early }
        };
        self.0.into_iter().map(difference).collect()
    }
}

/// Nanoseconds on a processor by thread; `None` when there is no such process.
fn threads(pid: u32) -> Option<BTreeMap<u32, u64>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread may end between the listing and the reading.
        let Ok(schedstat) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
        if let Some(ns) = schedstat.split_whitespace().next().and_then(|field| field.parse().ok()) {
            threads.insert(tid, ns);
        }
    }
    (!threads.is_empty()).then_some(threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::clock::monotonic_ns;

    #[test]
    fn a_spinning_process_is_charged_for_its_spinning() {
        let snapshot = Snapshot::take(&[std::process::id()]).unwrap();
        let start = monotonic_ns();
        while monotonic_ns() - start < 30_000_000 {}
        let used = &snapshot.until_now()[0];
        // The core may have been taken away meanwhile, so the lower bound is loose.
        assert!(used.cpu_ns > 3_000_000, "{used:?}");
        assert!(!used.ended_early && used.threads > 0);
    }

    #[test]
    fn a_missing_process_is_named() {
        let error = Snapshot::take(&[u32::MAX - 1]).unwrap_err();
        assert!(error.to_string().contains("4294967294"), "{error}");
    }
}
