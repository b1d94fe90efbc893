//! The host on which a run was made, so that results of different hosts are not compared by mistake.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::thread;

use serde::{Deserialize, Serialize};

/// Settings that move network latency or loss.
const SYSCTLS: [&str; 8] = [
    "net.core.rmem_max",
    "net.core.rmem_default",
    "net.core.wmem_max",
    "net.core.wmem_default",
    "net.core.netdev_max_backlog",
    "net.core.default_qdisc",
    "net.ipv4.udp_mem",
    "kernel.io_uring_disabled",
];

/// A fingerprint of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub machine: String,
    /// First "model name" of /proc/cpuinfo.
    pub cpu_model: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Settings that could be read.
    pub sysctls: BTreeMap<String, String>,
    /// The current clock source of the kernel.
    pub clock_source: String,
}

impl Environment {
    /// Reads the fingerprint; what cannot be read is left empty.
    #[must_use]
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        let sysctls = SYSCTLS.iter().filter_map(|&name| {
            let value = line(&format!("/proc/sys/{}", name.replace('.', "/")))?;
            Some((name.to_owned(), value))
        });
        Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            cpu_model: cpu_model().unwrap_or_default(),
            cores: thread::available_parallelism().map_or(0, usize::from),
            sysctls: sysctls.collect(),
            clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .unwrap_or_default(),
        }
    }
}

/// Ticks of each processor so far, and how many of them the hypervisor took, by its number.
pub type StealTicks = BTreeMap<usize, (u64, u64)>;

/// Those of the processors that the calling thread may use (/proc/stat, proc_stat(5)); `None` where the kernel does not say.
#[must_use]
pub fn steal_ticks() -> Option<StealTicks> {
    let usable = rustix::thread::sched_getaffinity(None).ok()?;
    let ticks = parse_ticks(&fs::read_to_string("/proc/stat").ok()?);
    let ticks: StealTicks = ticks
        .into_iter()
        .filter(|(core, _)| *core < rustix::thread::CpuSet::MAX_CPU && usable.is_set(*core))
        .collect();
    (!ticks.is_empty()).then_some(ticks)
}

fn parse_ticks(stat: &str) -> StealTicks {
    let core = |line: &str| {
        let (core, fields) = line.strip_prefix("cpu")?.split_once(' ')?;
        let fields: Vec<u64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest times are part of user. The sum of all has no number.
        Some((core.parse().ok()?, (fields.iter().take(8).sum(), *fields.get(7)?)))
    };
    stat.lines().filter_map(core).collect()
}

/// The largest share, 0 to 1, that the hypervisor took of any one processor in between: among many that are idle, one that is taken
/// away hardly shows in the sum.
#[must_use]
pub fn steal_share(before: &StealTicks, after: &StealTicks) -> Option<f64> {
    let share = |(core, (all, stolen)): (&usize, &(u64, u64))| {
        let (all_before, stolen_before) = before.get(core)?;
        (all > all_before).then(|| stolen.saturating_sub(*stolen_before) as f64 / (all - all_before) as f64)
    };
    after.iter().filter_map(share).reduce(f64::max)
}

/// How long the calling thread was ready to run so far and something else had its core, in nanoseconds (the second field of
/// /proc/PID/task/TID/schedstat, of the kernel's Documentation/scheduler/sched-stats.rst).
#[must_use]
pub fn waited_for_core_ns() -> Option<u64> {
    // Three numbers. It is read while load is sent, where nothing is allocated.
    let mut text = [0; 64];
    let len = fs::File::open("/proc/thread-self/schedstat").ok()?.read(&mut text).ok()?;
    std::str::from_utf8(&text[..len]).ok()?.split_whitespace().nth(1)?.parse().ok()
}

fn cpu_model() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(model.split_once(':')?.1.trim().to_owned())
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_names_kernel_and_cores() {
        let environment = Environment::read();
        assert!(environment.kernel.starts_with(|first: char| first.is_ascii_digit()), "{environment:?}");
        assert!(environment.cores > 0);
        let ticks = steal_ticks().unwrap();
        assert!(ticks.len() >= environment.cores, "{ticks:?}");
        assert!(ticks.values().all(|(all, stolen)| all > stolen), "{ticks:?}");
    }

    #[test]
    fn the_core_that_was_stolen_most_counts() {
        let at = |stolen: u64| {
            parse_ticks(&format!(
                "cpu  900 0 0 0 0 0 0 {stolen} 5 5\ncpu0 300 0 0 0 0 0 0 0 5 5\ncpu1 {} 0 0 0 0 0 0 {stolen} 0 0\n\
                 cpu12 300 0 0 0 0 0 0 0 0 0\nintr 7\n",
                300 - stolen
            ))
        };
        let before = parse_ticks("cpu  0 0 0 0 0 0 0 0\ncpu0 200 0 0 0 0 0 0 0\ncpu1 200 0 0 0 0 0 0 0\n");
        assert_eq!(at(20).keys().copied().collect::<Vec<_>>(), [0, 1, 12]);
        assert_eq!(steal_share(&before, &at(20)), Some(0.2), "the new core was not there before");
        assert_eq!(steal_share(&before, &at(0)), Some(0.0));
        assert_eq!(steal_share(&before, &before), None, "no time has passed");
    }

    #[test]
    fn a_thread_that_shares_its_core_waits_for_it() {
        let core = rustix::thread::sched_getaffinity(None).unwrap();
        let first =
            (0..rustix::thread::CpuSet::MAX_CPU).find(|&core_number| core.is_set(core_number)).unwrap();
        let mut only = rustix::thread::CpuSet::new();
        only.set(first);
        // Two threads that never sleep, on one core: each has to wait for half of the time.
        let busy = move || {
            rustix::thread::sched_setaffinity(None, &only).unwrap();
            let (before, begin) = (waited_for_core_ns().unwrap(), super::super::clock::monotonic_ns());
            while super::super::clock::monotonic_ns() - begin < 200_000_000 {}
            waited_for_core_ns().unwrap() - before
        };
        let other = thread::spawn(busy);
        let waited = thread::spawn(busy).join().unwrap().max(other.join().unwrap());
        assert!((20_000_000..5_000_000_000).contains(&waited), "{waited}");
    }
}
