//! Memory and threads of the processes under test, looked at while the load runs.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::Serialize;

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(20);

/// The most that was seen of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Largest resident memory in KiB (VmHWM).
    pub resident_kib: u64,
    /// Kernel worker threads of its io_uring seen at least once: operations that could not be done at once.
    pub uring_workers: usize,
    /// Threads at most, the kernel's workers left out.
    pub threads: usize,
}

/// Looks at the processes until `done` is set.
#[must_use]
pub fn watch(pids: &[u32], done: &AtomicBool) -> Vec<Usage> {
    let mut seen: Vec<(Usage, BTreeSet<u32>)> = vec![Default::default(); pids.len()];
    loop {
        let last = done.load(Ordering::Acquire);
        for (&pid, (usage, workers)) in pids.iter().zip(&mut seen) {
            look(pid, usage, workers);
        }
        if last {
            break;
        }
        thread::sleep(EVERY);
    }
    seen.into_iter().map(|(usage, workers)| Usage { uring_workers: workers.len(), ..usage }).collect()
}

fn look(pid: u32, usage: &mut Usage, workers: &mut BTreeSet<u32>) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    usage.resident_kib = usage.resident_kib.max(high_water_kib(&status));
    let mut threads = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("iou-wrk") {
            workers.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        } else {
            threads += 1;
        }
    }
    usage.threads = usage.threads.max(threads);
}

/// `VmHWM:    12345 kB` of /proc/PID/status.
fn high_water_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_threads_and_no_workers() {
        let usage = watch(&[std::process::id()], &AtomicBool::new(true));
        assert!(usage[0].resident_kib > 500 && usage[0].threads >= 1, "{usage:?}");
        assert_eq!(usage[0].uring_workers, 0);
    }

    #[test]
    fn a_process_that_is_gone_uses_nothing() {
        assert_eq!(watch(&[u32::MAX - 1], &AtomicBool::new(true)), [Usage::default()]);
    }
}
