//! The judgement: one rule for each thing that spoils a measurement.

use super::{Finding, Severity, Snapshot};
use crate::units;

/// What the lab's and the data plane's sockets ask for, in bytes.
const BUFFER: u64 = 8 << 20;
/// The smallest kernel that has all that the default designs use.
const KERNEL: (u32, u32) = (6, 1);
/// The smallest kernel on which UDP sockets take superpackets.
const KERNEL_SUPERPACKETS: (u32, u32) = (5, 0);
/// The kernel's own default.
const BACKLOG: u64 = 1_000;
/// Longest wake-up from an idle processor that does not show beside a socket's own latency, in microseconds.
const IDLE_EXIT_US: u64 = 50;
/// Disciplines that delay, drop or limit by design.
const SHAPERS: [&str; 8] = ["tbf", "netem", "htb", "hfsc", "cbq", "cake", "red", "etf"];

/// Everything that was found, worst first.
#[must_use]
pub fn examine(snapshot: &Snapshot) -> Vec<Finding> {
    let rules = [
        steal,
        busy,
        cores,
        quota,
        wake_late,
        timer_slack,
        kernel,
        io_uring,
        receive_buffer,
        send_buffer,
        backlog,
        qdisc,
        governor,
        idle_states,
        clock_source,
        swap,
        memory,
        open_files,
        virtual_machine,
        threads,
    ];
    let mut findings: Vec<Finding> = rules.iter().flat_map(|rule| rule(snapshot)).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn spoils(name: &'static str, seen: String, why: &'static str, fix: impl Into<String>) -> Finding {
    Finding { name, severity: Severity::Spoils, seen, why, fix: fix.into() }
}

fn limits(name: &'static str, seen: String, why: &'static str, fix: impl Into<String>) -> Finding {
    Finding { severity: Severity::Limits, ..spoils(name, seen, why, fix) }
}

fn note(name: &'static str, seen: String, why: &'static str, fix: impl Into<String>) -> Finding {
    Finding { severity: Severity::Note, ..spoils(name, seen, why, fix) }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn steal(snapshot: &Snapshot) -> Option<Finding> {
    let steal = snapshot.steal.filter(|steal| *steal > 0.01)?;
    Some(spoils(
        "steal",
        format!("the hypervisor took {} of processor time", percent(steal)),
        "every datagram waits while the processor is away; runs become GENERATOR-LIMITED or their tails those of the host",
        "use a host with processors of its own (dedicated cores, no burstable type), or measure when its neighbours rest",
    ))
}

fn busy(snapshot: &Snapshot) -> Option<Finding> {
    let busy = snapshot.busy.filter(|busy| *busy > 0.2)?;
    Some(spoils(
        "busy",
        format!("{} of processor time was in use", percent(busy)),
        "what else runs takes turns with sender and receiver, and shows in the tail as if the path were slow",
        "end what runs: top -b -n 1 -o %CPU | head -n 15",
    ))
}

fn cores(snapshot: &Snapshot) -> Option<Finding> {
    let cores = snapshot.cores;
    match cores {
        0..=1 => Some(spoils(
            "cores",
            format!("{cores} processor"),
            "sender, receiver and what is measured take turns on it",
            "give it two or more: taskset -c 0-3 towpath-lab …, or a host with more",
        )),
        2..=3 => Some(limits(
            "cores",
            format!("{cores} processors"),
            "sender, receiver and what is measured share them; a busy spin (--pace spin) takes one away",
            "use --pace sleep and rates far below the limit, or a host with four processors or more",
        )),
        _ => None,
    }
}

fn quota(snapshot: &Snapshot) -> Option<Finding> {
    let quota = snapshot.cpu_quota.filter(|quota| *quota < snapshot.cores as f64)?;
    Some(spoils(
        "quota",
        format!("the control group may use {quota:.2} of {} processors", snapshot.cores),
        "above it every thread is stopped for the rest of a period, usually 100 ms",
        "take the limit off: run the container without --cpus, or echo max > /sys/fs/cgroup/…/cpu.max",
    ))
}

fn wake_late(snapshot: &Snapshot) -> Option<Finding> {
    let (p50, p99) = snapshot.wake_late_ns?;
    let seen =
        format!("a sleeper woke {} late (p50), {} (p99)", units::nanoseconds(p50), units::nanoseconds(p99));
    let why = "send times are missed by as much; above --lateness-limit (1 ms) a run is GENERATOR-LIMITED";
    match p99 {
        1_000_000.. => Some(spoils(
            "wake-up",
            seen,
            why,
            "free a processor, or run with priority: chrt -f 50 towpath-lab run …",
        )),
        200_000.. => Some(limits(
            "wake-up",
            seen,
            why,
            "leave --pace at hybrid, or run with priority: chrt -f 50 towpath-lab run …",
        )),
        _ => None,
    }
}

fn timer_slack(snapshot: &Snapshot) -> Option<Finding> {
    let trouble = snapshot.timer_slack_trouble.as_ref()?;
    let slack = snapshot.timer_slack_ns.map_or("unknown".to_owned(), units::nanoseconds);
    Some(limits(
        "timer slack",
        format!("it stays {slack}: {trouble}"),
        "every sleep of the sender ends that much late",
        "use --pace spin, or allow prctl(PR_SET_TIMERSLACK) in the sandbox",
    ))
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(snapshot: &Snapshot) -> Option<Finding> {
    let version = version(&snapshot.kernel).filter(|version| *version < KERNEL)?;
    let seen = format!("Linux {}", snapshot.kernel);
    let fix = "boot Linux 6.1 or later; the README's table of kernels says what each version brings";
    if version < KERNEL_SUPERPACKETS {
        return Some(spoils(
            "kernel",
            seen,
            "UDP sockets have no superpackets: designs differ by nothing but system calls",
            fix,
        ));
    }
    Some(limits(
        "kernel",
        seen,
        "the default designs fall back to others, and comparisons compare those",
        fix,
    ))
}

fn io_uring(snapshot: &Snapshot) -> Option<Finding> {
    let seen = match (snapshot.io_uring_disabled, &snapshot.io_uring_trouble) {
        (Some(disabled @ 1..), _) => format!("kernel.io_uring_disabled = {disabled}"),
        (_, Some(trouble)) => format!("a ring does not work: {trouble}"),
        _ => return None,
    };
    Some(limits(
        "io_uring",
        seen,
        "--io auto takes suspend, and --io uring refuses",
        "sysctl -w kernel.io_uring_disabled=0; in a container also a seccomp profile that allows io_uring",
    ))
}

fn receive_buffer(snapshot: &Snapshot) -> Option<Finding> {
    buffer(
        snapshot,
        "rmem_max",
        snapshot.rmem_max,
        "a burst that finds the receive buffer full is lost in the generator itself, and the run is INVALID",
    )
}

fn send_buffer(snapshot: &Snapshot) -> Option<Finding> {
    buffer(
        snapshot,
        "wmem_max",
        snapshot.wmem_max,
        "a send that finds the buffer full is refused, and the run is GENERATOR-LIMITED",
    )
}

/// A limit of socket buffers that holds for this process.
fn buffer(snapshot: &Snapshot, name: &'static str, limit: Option<u64>, why: &'static str) -> Option<Finding> {
    let limit = limit.filter(|limit| *limit < BUFFER)?;
    let seen = format!("net.core.{name} = {limit}");
    let fix = format!("sysctl -w net.core.{name}={BUFFER}");
    if snapshot.net_admin == Some(true) {
        let why = "it does not bind this process, which has CAP_NET_ADMIN; it binds servers that do not";
        return Some(note(name, seen, why, fix));
    }
    Some(spoils(name, seen, why, fix))
}

fn backlog(snapshot: &Snapshot) -> Option<Finding> {
    let backlog = snapshot.backlog.filter(|backlog| *backlog < BACKLOG)?;
    Some(spoils(
        "backlog",
        format!("net.core.netdev_max_backlog = {backlog}"),
        "loopback and veth drop what is above it in one go, silently for the sender",
        format!("sysctl -w net.core.netdev_max_backlog={BACKLOG}"),
    ))
}

fn qdisc(snapshot: &Snapshot) -> Option<Finding> {
    let shapers = snapshot.qdiscs.iter().flatten().filter(|qdisc| SHAPERS.contains(&qdisc.kind.as_str()));
    let shapers: Vec<_> = shapers.collect();
    let first = shapers.first()?;
    let seen: Vec<String> =
        shapers.iter().map(|qdisc| format!("{} on {}", qdisc.kind, qdisc.interface)).collect();
    Some(spoils(
        "qdisc",
        seen.join(", "),
        "it delays or drops what goes through that interface; sends succeed all the same",
        format!("tc qdisc del dev {} root", first.interface),
    ))
}

fn governor(snapshot: &Snapshot) -> Option<Finding> {
    let others: Vec<&str> =
        snapshot.governors.iter().map(String::as_str).filter(|name| *name != "performance").collect();
    if others.is_empty() {
        return None;
    }
    Some(limits(
        "governor",
        format!("frequency governor {}", others.join(", ")),
        "at low rates the processor runs slowly, so that latency falls when load rises",
        "cpupower frequency-set -g performance",
    ))
}

fn idle_states(snapshot: &Snapshot) -> Option<Finding> {
    let exit = snapshot.idle_exit_us.filter(|exit| *exit > IDLE_EXIT_US)?;
    Some(limits(
        "idle states",
        format!("a processor takes up to {exit} µs to wake"),
        "at low rates each datagram may wait for that",
        format!("cpupower idle-set -D {IDLE_EXIT_US}"),
    ))
}

fn clock_source(snapshot: &Snapshot) -> Option<Finding> {
    let source = snapshot.clock_source.as_deref()?;
    // Read without a system call, all three.
    if matches!(source, "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter") {
        return None;
    }
    let has_tsc = snapshot.clock_sources.iter().any(|name| name == "tsc");
    let fix = if has_tsc {
        "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
    } else {
        "boot with clocksource=tsc tsc=reliable, if the processor's counter is steady"
    };
    Some(limits(
        "clock source",
        source.to_owned(),
        "each reading of the clock is a system call or a slow device",
        fix,
    ))
}

fn swap(snapshot: &Snapshot) -> Option<Finding> {
    let used = snapshot.swap_used_kib.filter(|used| *used > 0)?;
    Some(limits(
        "swap",
        format!("{used} KiB are swapped out"),
        "a page that comes back from disk takes milliseconds",
        "swapoff -a",
    ))
}

fn memory(snapshot: &Snapshot) -> Option<Finding> {
    let available = snapshot.memory_available_kib.filter(|available| *available < 256 << 10)?;
    Some(spoils(
        "memory",
        format!("{} MiB are available", available >> 10),
        "the kernel reclaims memory while packets wait, or drops them",
        "end what takes it: ps -eo rss,comm --sort -rss | head",
    ))
}

fn open_files(snapshot: &Snapshot) -> Option<Finding> {
    let files = snapshot.open_files.filter(|files| *files < 65_536)?;
    Some(note(
        "open files",
        format!("at most {files}"),
        "each flow of run is a socket",
        "ulimit -Hn 65536 && ulimit -n 65536, as root",
    ))
}

fn virtual_machine(snapshot: &Snapshot) -> Option<Finding> {
    snapshot.virtual_machine.filter(|is_virtual| *is_virtual)?;
    Some(note(
        "virtual machine",
        "a hypervisor runs this host".to_owned(),
        "timers, wake-ups and interrupts go through it, and its other guests are not to be seen from here",
        "say so beside every figure, and repeat runs: towpath-lab report takes as many as there are",
    ))
}

fn threads(snapshot: &Snapshot) -> Option<Finding> {
    snapshot.smt.filter(|active| *active)?;
    Some(note(
        "threads",
        "two processors may be one core's threads".to_owned(),
        "sender and server on one core slow each other down",
        "echo off > /sys/devices/system/cpu/smt/control, or keep them apart with taskset (lscpu -e)",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Qdisc;
    use super::*;

    /// A host on which nothing is to be found.
    fn fine() -> Snapshot {
        Snapshot {
            kernel: "6.18.44-amd64".to_owned(),
            cores: 8,
            smt: Some(false),
            net_admin: Some(false),
            rmem_max: Some(BUFFER),
            wmem_max: Some(BUFFER),
            backlog: Some(1_000),
            io_uring_disabled: Some(0),
            io_uring_trouble: None,
            governors: vec!["performance".to_owned()],
            idle_exit_us: Some(2),
            clock_source: Some("tsc".to_owned()),
            clock_sources: vec!["tsc".to_owned(), "hpet".to_owned()],
            virtual_machine: Some(false),
            steal: Some(0.0),
            busy: Some(0.01),
            cpu_quota: None,
            swap_used_kib: Some(0),
            memory_available_kib: Some(8 << 20),
            timer_slack_ns: Some(50_000),
            timer_slack_trouble: None,
            wake_late_ns: Some((16_000, 40_000)),
            open_files: Some(1 << 20),
            qdiscs: Some(vec![Qdisc { interface: "lo".to_owned(), kind: "noqueue".to_owned() }]),
        }
    }

    #[test]
    fn a_fine_host_has_no_findings_and_an_unknown_one_is_not_accused() {
        assert_eq!(examine(&fine()), []);
        let unknown = Snapshot { cores: 8, kernel: "strange".to_owned(), ..Snapshot::default() };
        assert_eq!(examine(&unknown), []);
    }

    #[test]
    fn each_fault_alone_is_found_by_name_with_its_fix() {
        use Severity::{Limits, Note, Spoils};
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let shaped = vec![
            Qdisc { interface: "lo".to_owned(), kind: "noqueue".to_owned() },
            Qdisc { interface: "eth0".to_owned(), kind: "tbf".to_owned() },
        ];
        let cases = [
            (Snapshot { steal: Some(0.05), ..fine() }, "steal", Spoils, "dedicated"),
            (Snapshot { busy: Some(0.9), ..fine() }, "busy", Spoils, "top -b"),
            (Snapshot { cores: 1, ..fine() }, "cores", Spoils, "taskset"),
            (Snapshot { cores: 2, ..fine() }, "cores", Limits, "--pace sleep"),
            (Snapshot { cpu_quota: Some(1.5), ..fine() }, "quota", Spoils, "cpu.max"),
            (Snapshot { wake_late_ns: Some((20_000, 5_000_000)), ..fine() }, "wake-up", Spoils, "chrt -f 50"),
            (Snapshot { wake_late_ns: Some((20_000, 300_000)), ..fine() }, "wake-up", Limits, "hybrid"),
            (
                Snapshot { timer_slack_trouble: Some("EPERM".to_owned()), ..fine() },
                "timer slack",
                Limits,
                "--pace spin",
            ),
            (Snapshot { kernel: "5.15.0-1".to_owned(), ..fine() }, "kernel", Limits, "6.1"),
            (Snapshot { kernel: "4.9.1".to_owned(), ..fine() }, "kernel", Spoils, "6.1"),
            (
                Snapshot { io_uring_disabled: Some(2), ..fine() },
                "io_uring",
                Limits,
                "kernel.io_uring_disabled=0",
            ),
            (Snapshot { io_uring_trouble: Some("no".to_owned()), ..fine() }, "io_uring", Limits, "seccomp"),
            (Snapshot { rmem_max: Some(212_992), ..fine() }, "rmem_max", Spoils, "net.core.rmem_max=8388608"),
            (Snapshot { wmem_max: Some(212_992), ..fine() }, "wmem_max", Spoils, "net.core.wmem_max=8388608"),
            (
                Snapshot { rmem_max: Some(212_992), net_admin: Some(true), ..fine() },
                "rmem_max",
                Note,
                "net.core.rmem_max=8388608",
            ),
            (Snapshot { backlog: Some(100), ..fine() }, "backlog", Spoils, "netdev_max_backlog=1000"),
            (Snapshot { qdiscs: Some(shaped), ..fine() }, "qdisc", Spoils, "tc qdisc del dev eth0 root"),
            (
                Snapshot { governors: words(&["performance", "powersave"]), ..fine() },
                "governor",
                Limits,
                "cpupower",
            ),
            (Snapshot { idle_exit_us: Some(200), ..fine() }, "idle states", Limits, "idle-set -D 50"),
            (
                Snapshot { clock_source: Some("hpet".to_owned()), ..fine() },
                "clock source",
                Limits,
                "echo tsc",
            ),
            (
                Snapshot { clock_source: Some("xen".to_owned()), clock_sources: words(&["xen"]), ..fine() },
                "clock source",
                Limits,
                "clocksource=tsc",
            ),
            (Snapshot { swap_used_kib: Some(4_096), ..fine() }, "swap", Limits, "swapoff -a"),
            (Snapshot { memory_available_kib: Some(100 << 10), ..fine() }, "memory", Spoils, "ps -eo rss"),
            (Snapshot { open_files: Some(1_024), ..fine() }, "open files", Note, "ulimit"),
            (Snapshot { virtual_machine: Some(true), ..fine() }, "virtual machine", Note, "repeat"),
            (Snapshot { smt: Some(true), ..fine() }, "threads", Note, "smt/control"),
        ];
        for (snapshot, name, severity, fix) in cases {
            let findings = examine(&snapshot);
            let [finding] = findings.as_slice() else { panic!("{name}: {findings:?}") };
            assert_eq!((finding.name, finding.severity), (name, severity), "{finding:?}");
            assert!(finding.fix.contains(fix), "{finding:?}");
            assert!(!finding.seen.is_empty() && !finding.why.is_empty());
        }
    }

    #[test]
    fn the_worst_comes_first() {
        let bad =
            Snapshot { virtual_machine: Some(true), swap_used_kib: Some(1), steal: Some(0.5), ..fine() };
        let names: Vec<&str> = examine(&bad).iter().map(|finding| finding.name).collect();
        assert_eq!(names, ["steal", "swap", "virtual machine"]);
        let text = super::super::report(&examine(&bad)).to_text();
        assert!(text.starts_with("1 thing here spoils") && text.contains("swapoff -a"), "{text}");
    }
}
