//! What a host is like at a moment, as far as it matters to a measurement. What cannot be read is `None`.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use rustix::process::{Resource, getrlimit};
use rustix::thread::clock_nanosleep_absolute;
use rustix::time::ClockId;
use serde::Serialize;

use crate::run::clock::{monotonic_ns, timespec};

/// Sleeps of the wake-up measurement, a millisecond each.
const NAPS: u32 = 300;
const NAP_NS: u64 = 1_000_000;

/// The queueing discipline at the root of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Qdisc {
    /// Of the interface.
    pub interface: String,
    /// `noqueue`, `fq_codel`, `tbf`…
    pub kind: String,
}

/// What was seen of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// `uname -r`.
    pub kernel: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Whether two of them may be one core's threads.
    pub smt: Option<bool>,
    /// Whether this process may exceed the limits of socket buffers (CAP_NET_ADMIN).
    pub net_admin: Option<bool>,
    /// net.core.rmem_max, in bytes.
    pub rmem_max: Option<u64>,
    /// net.core.wmem_max, in bytes.
    pub wmem_max: Option<u64>,
    /// net.core.netdev_max_backlog, in packets.
    pub backlog: Option<u64>,
    /// kernel.io_uring_disabled.
    pub io_uring_disabled: Option<u64>,
    /// Why a ring could not carry a datagram, when it could not.
    pub io_uring_trouble: Option<String>,
    /// Frequency governors of the processors, without repetition.
    pub governors: Vec<String>,
    /// Longest time in which a processor leaves its deepest enabled idle state, in microseconds.
    pub idle_exit_us: Option<u64>,
    /// The clock source in use, and those there are.
    pub clock_source: Option<String>,
    /// Clock sources that could be used.
    pub clock_sources: Vec<String>,
    /// Whether a hypervisor runs this host.
    pub virtual_machine: Option<bool>,
    /// Share of processor time that the hypervisor took while it was looked at, 0 to 1.
    pub steal: Option<f64>,
    /// Share of processor time that was used while it was looked at, 0 to 1.
    pub busy: Option<f64>,
    /// Share of processor time that the control group of this process may use, 1 for one processor.
    pub cpu_quota: Option<f64>,
    /// Swap in use, in KiB.
    pub swap_used_kib: Option<u64>,
    /// Memory that programs could have, in KiB.
    pub memory_available_kib: Option<u64>,
    /// The timer slack of this thread, in nanoseconds.
    pub timer_slack_ns: Option<u64>,
    /// Whether a thread may lower its timer slack; the reason if not.
    pub timer_slack_trouble: Option<String>,
    /// How late a sleeping thread woke with the least timer slack: p50 and p99, in nanoseconds.
    pub wake_late_ns: Option<(u64, u64)>,
    /// Files this process may open.
    pub open_files: Option<u64>,
    /// Queueing disciplines of the interfaces that are there.
    pub qdiscs: Option<Vec<Qdisc>>,
}

impl Snapshot {
    /// Looks at this host; takes a third of a second, in which this thread mostly sleeps. Lowers the timer slack of the calling
    /// thread.
    #[must_use]
    pub fn take() -> Self {
        let timer_slack_ns = number("/proc/self/timerslack_ns");
        let slack = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let before = cpu_times();
        let wake_late_ns = wake_late();
        let (busy, steal) = before.zip(cpu_times()).map(|(before, after)| shares(before, after)).unzip();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limit = getrlimit(Resource::Nofile).maximum;
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            smt: number("/sys/devices/system/cpu/smt/active").map(|active: u64| active == 1),
            net_admin: capability(&status, 12),
            rmem_max: number("/proc/sys/net/core/rmem_max"),
            wmem_max: number("/proc/sys/net/core/wmem_max"),
            backlog: number("/proc/sys/net/core/netdev_max_backlog"),
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
            io_uring_trouble: ring_trouble(),
            governors: governors(),
            idle_exit_us: idle_exit_us(),
            clock_source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            clock_sources: words("/sys/devices/system/clocksource/clocksource0/available_clocksource"),
            virtual_machine: fs::read_to_string("/proc/cpuinfo").ok().map(|text| is_virtual(&text)),
            steal,
            busy,
            cpu_quota: cpu_quota(),
            swap_used_kib: field(&memory, "SwapTotal:")
                .zip(field(&memory, "SwapFree:"))
                .map(|(all, free)| all.saturating_sub(free)),
            memory_available_kib: field(&memory, "MemAvailable:"),
            timer_slack_ns,
            timer_slack_trouble: slack.err().map(|error| error.to_string()),
            wake_late_ns,
            open_files: Some(limit.unwrap_or(u64::MAX)),
            qdiscs: qdiscs(),
        }
    }
}

fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn words(path: &str) -> Vec<String> {
    text(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn number<T: FromStr>(path: &str) -> Option<T> {
    text(path)?.parse().ok()
}

/// A figure of /proc/meminfo, in KiB (proc_meminfo(5)).
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Whether a capability is among the effective ones in /proc/self/status (proc_pid_status(5), capabilities(7)).
fn capability(status: &str, number: u32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(mask.trim(), 16).ok()? & (1 << number) != 0)
}

fn is_virtual(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
}

#[expect(clippy::disallowed_methods, reason = "the lab looks at the machine it runs on")]
fn ring_trouble() -> Option<String> {
    dataplane::egress::probe::probe(None, std::time::Instant::now()).err()
}

fn processors() -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let is_one = |name: &str| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
    entries.filter(|entry| is_one(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

fn governors() -> Vec<String> {
    let governor = |path: &std::path::PathBuf| text(path.join("cpufreq/scaling_governor").to_str()?);
    let mut governors: Vec<String> = processors().iter().filter_map(governor).collect();
    governors.sort();
    governors.dedup();
    governors
}

fn idle_exit_us() -> Option<u64> {
    let states = fs::read_dir("/sys/devices/system/cpu/cpu0/cpuidle").ok()?.flatten();
    let latency = |path: &Path| -> Option<u64> {
        let of = |name: &str| number::<u64>(path.join(name).to_str()?);
        (of("disable") == Some(0)).then(|| of("latency")).flatten()
    };
    states.filter_map(|state| latency(&state.path())).max()
}

/// Time of all processors: all, idle, stolen (/proc/stat, proc_stat(5)).
fn cpu_times() -> Option<[u64; 3]> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest times are part of user.
    Some([fields.iter().take(8).sum(), fields.get(3)? + fields.get(4)?, *fields.get(7)?])
}

/// The shares that were busy and stolen between two looks.
fn shares(before: [u64; 3], after: [u64; 3]) -> (f64, f64) {
    let [all, idle, stolen] = [0, 1, 2].map(|index| after[index].saturating_sub(before[index]) as f64);
    if all == 0.0 {
        return (0.0, 0.0);
    }
    ((all - idle).max(0.0) / all, stolen / all)
}

/// p50 and p99 of how late a sleeper wakes.
fn wake_late() -> Option<(u64, u64)> {
    let mut late: Vec<u64> = (0..NAPS)
        .map(|_| {
            let due = monotonic_ns() + NAP_NS;
            while monotonic_ns() < due {
                // EINTR only means another look.
                let _ = clock_nanosleep_absolute(ClockId::Monotonic, &timespec(due));
            }
            monotonic_ns() - due
        })
        .collect();
    late.sort_unstable();
    Some((*late.get(late.len() / 2)?, *late.get(late.len() * 99 / 100)?))
}

/// The quota of the control group, in processors: cpu.max of version 2, cpu.cfs_quota_us of version 1 (cgroups(7)).
fn cpu_quota() -> Option<f64> {
    let groups = text("/proc/self/cgroup")?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        if controllers.is_empty() {
            let max =
                text(&format!("/sys/fs/cgroup{path}/cpu.max")).or_else(|| text("/sys/fs/cgroup/cpu.max"));
            if let Some(quota) = max.and_then(|max| quota_v2(&max)) {
                return Some(quota);
            }
        } else if controllers.split(',').any(|name| name == "cpu") {
            let of = |name: &str| number::<f64>(&format!("/sys/fs/cgroup/cpu{path}/{name}"));
            if let Some((quota, period)) = of("cpu.cfs_quota_us").zip(of("cpu.cfs_period_us")) {
                return (quota > 0.0).then_some(quota / period);
            }
        }
    }
    None
}

/// `50000 100000` is half a processor, `max 100000` all there are.
fn quota_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

fn qdiscs() -> Option<Vec<Qdisc>> {
    let mut handle = dataplane::netlink::Handle::open().ok()?;
    let kinds = handle.qdisc_kinds().ok()?;
    let names = interface_names();
    let named = |(index, kind)| {
        let name = names.iter().find(|(number, _)| *number == index)?.1.clone();
        Some(Qdisc { interface: name, kind })
    };
    Some(kinds.into_iter().filter_map(named).collect())
}

fn interface_names() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let named = |entry: fs::DirEntry| {
        let index = number(entry.path().join("ifindex").to_str()?)?;
        Some((index, entry.file_name().to_string_lossy().into_owned()))
    };
    entries.filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_prints_is_read() {
        let status = "Name:\tx\nCapEff:\t0000000000001000\n";
        assert_eq!((capability(status, 12), capability(status, 13)), (Some(true), Some(false)));
        assert_eq!(capability("", 12), None);
        assert_eq!(field("MemFree: 5 kB\nSwapTotal:     2048 kB\n", "SwapTotal:"), Some(2_048));
        assert!(
            is_virtual("model\nflags\t\t: fpu hypervisor avx\n")
                && !is_virtual("flags\t: fpu\nbugs\t: hypervisor\n")
        );
        assert_eq!((quota_v2("50000 100000"), quota_v2("max 100000")), (Some(0.5), None));
        assert_eq!(shares([100, 50, 0], [200, 110, 10]), (0.4, 0.1));
        assert_eq!(shares([5, 5, 5], [5, 5, 5]), (0.0, 0.0));
    }

    #[test]
    fn this_host_is_looked_at() {
        let snapshot = Snapshot::take();
        assert!(snapshot.kernel.starts_with(|first: char| first.is_ascii_digit()), "{snapshot:?}");
        assert!(
            snapshot.cores > 0 && snapshot.net_admin.is_some() && snapshot.busy.is_some(),
            "{snapshot:?}"
        );
        let (p50, p99) = snapshot.wake_late_ns.unwrap();
        assert!(p50 > 0 && p50 <= p99, "{snapshot:?}");
        let loopback = snapshot.qdiscs.unwrap().into_iter().find(|qdisc| qdisc.interface == "lo");
        assert!(loopback.is_none_or(|qdisc| !qdisc.kind.is_empty()));
    }
}
