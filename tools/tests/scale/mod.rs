//! What the generator itself costs: memory at ten thousand flows, allocations for each datagram, and how much it can send.

use std::process::{Command, Stdio};
use std::time::Duration;

use dataplane::sys::udp::{UdpOptions, UdpSocket};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tools::reflect::Reflector;
use tools::run::clock::{monotonic_ns, thread_cpu_ns};
use tools::run::verdict::Validity;
use tools::run::{Kind, Pace, RunResult, RunSpec, SendBy, run};

use super::user_namespace::left_out::left_out;

/// Counts what this program allocates.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Set for the process that counts, which runs nothing beside.
const COUNTS: &str = "TOWPATH_TEST_COUNTS_ALLOCATIONS";
const FLOWS: u64 = 10_000;
const MEMORY_MAX_KIB: u64 = 64 << 10;

#[expect(clippy::disallowed_methods, reason = "the test runs programs")]
fn program(path: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(path)
}

/// What a run of the program found, and its peak of memory in KiB. The calling thread, which looks at it meanwhile, runs on
/// another core than the program does, where it says so: each look takes the core for a tenth of a millisecond.
fn run_lab(target: &str, arguments: &[&str], cores: Option<(usize, usize)>) -> (RunResult, u64) {
    let files = tempfile::tempdir().unwrap();
    let json = files.path().join("json");
    if let Some((programs, _)) = cores {
        assert!(on_core(programs));
    }
    let mut lab = program(env!("CARGO_BIN_EXE_towpath-lab"))
        .args(["run", "udp", target, "--json"])
        .args(arguments)
        .stdout(std::fs::File::create(&json).unwrap())
        .spawn()
        .unwrap();
    if let Some((_, ours)) = cores {
        assert!(on_core(ours));
    }
    // The peak only grows, so that the last look before the end has it, but for what printing takes at the end.
    let mut peak_kib = 0;
    while lab.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.id())).unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak_kib = field.and_then(|field| field.split_whitespace().next()?.parse().ok()).unwrap_or(peak_kib);
        std::thread::sleep(Duration::from_millis(2));
    }
    (serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap(), peak_kib)
}

/// Whether a process may have [`FLOWS`] sockets.
fn has_descriptors() -> bool {
    let enough = getrlimit(Resource::Nofile).maximum.is_none_or(|maximum| maximum >= FLOWS + 100);
    if !enough {
        left_out("10,000 flows: `ulimit -Hn 20000` as root");
    }
    enough
}

#[test]
fn ten_thousand_flows_fit_into_64_mebibytes() {
    if !has_descriptors() {
        return;
    }
    let mut reflector = program(env!("CARGO_BIN_EXE_towpath-lab"))
        .args(["reflect", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(reflector.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    let target = line.trim().strip_prefix("reflecting on ").unwrap();
    let arguments = ["--flows", "10000", "--rate", "20kpps", "--duration", "1s", "--drain", "300ms"];
    let (result, peak_kib) = run_lab(target, &arguments, None);
    reflector.kill().unwrap();
    reflector.wait().unwrap();
    println!("peak {peak_kib} KiB, {:?}", result.ledger);
    assert_eq!(result.ledger_by_flow.len() as u64, FLOWS);
    assert!(result.ledger.received > 5_000, "{:?}", result.ledger);
    assert!((1..=MEMORY_MAX_KIB).contains(&peak_kib), "{peak_kib} KiB");
}

#[test]
fn no_datagram_costs_an_allocation() {
    if std::env::var_os(COUNTS).is_none() {
        let status = program(std::env::current_exe().unwrap())
            .args(["--exact", "scale::no_datagram_costs_an_allocation", "--nocapture"])
            .env(COUNTS, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let reflector = Reflector::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let target = reflector.local_addrs()[0];
    std::thread::spawn(move || reflector.run(None, &std::sync::atomic::AtomicBool::new(false)));
    for send in [SendBy::Sendmmsg, SendBy::Uring] {
        for gather in [1, 8] {
            let allocations = |rate_pps: f64| {
                let region = Region::new(ALLOCATOR);
                let spec = RunSpec {
                    rate_pps,
                    send,
                    gather,
                    flows: 8,
                    pace: Pace::Sleep,
                    duration: Duration::from_millis(200),
                    warmup: Duration::from_millis(50),
                    drain: Duration::from_millis(100),
                    ..RunSpec::new(Kind::Udp, target)
                };
                let result = run(&spec, |_| {}).unwrap();
                let changes = region.change();
                (changes.allocations + changes.reallocations, result.ledger.sent)
            };
            // What is read of the machine now and then takes some; a datagram takes none.
            let (few, many) = (allocations(1_000.0), allocations(50_000.0));
            println!("{send:?} gather {gather}: {few:?} {many:?}");
            assert!(many.1 > few.1 + 1_000, "{few:?} {many:?}");
            assert!(many.0 < few.0 + 500, "{few:?} {many:?}");
        }
    }
}

/// Lets the calling thread, and the programs and threads that it starts, have one core only. `false` where there is no such
/// core.
fn on_core(core: usize) -> bool {
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).is_ok()
}

/// The core of the generator, and that of all else.
const GENERATORS: usize = 0;
const OTHERS: usize = 1;

/// Bytes of payload, as a run has them unless asked otherwise.
const SIZE: usize = 200;

/// Turns of each case.
const TURNS: usize = 5;

/// A load, and the least that one core has to offer of it.
struct Load {
    name: &'static str,
    gather: &'static str,
    rate: &'static str,
    minimum_pps: f64,
    /// What one core has time for with [`FLOWS`] flows, each of which is somewhere else in memory.
    rate_of_many: &'static str,
    /// More than any core offers, so that it never waits for a send time.
    too_much: &'static str,
}

static LOADS: [Load; 2] = [
    Load {
        name: "superpackets of 32",
        gather: "32",
        rate: "1050kpps",
        minimum_pps: 1_000_000.0,
        rate_of_many: "1050kpps",
        too_much: "8Mpps",
    },
    Load {
        name: "one by one",
        gather: "1",
        rate: "155kpps",
        minimum_pps: 150_000.0,
        rate_of_many: "100kpps",
        too_much: "1Mpps",
    },
];

/// Processor time of the kernel for one datagram of `load`, in nanoseconds: of a loop that does nothing but send, of one
/// length and from eight sockets by turns, for half a second.
fn kernel_alone_ns(load: &Load) -> f64 {
    assert!(on_core(OTHERS));
    let sink = super::sink::Sink::start();
    assert!(on_core(GENERATORS));
    let socket = || UdpSocket::bind("0.0.0.0:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    let sockets = [(); 8].map(|()| socket());
    let together: usize = load.gather.parse().unwrap();
    // No datagram of a run: the sink takes it and thinks no more of it.
    let bytes = vec![0; SIZE * together];
    let (end_ns, before_ns, mut sent) = (monotonic_ns() + 500_000_000, thread_cpu_ns(), 0);
    while monotonic_ns() < end_ns {
        for socket in &sockets {
            socket.send_segments(sink.address(), None, 0, &bytes, SIZE).unwrap();
            sent += together;
        }
    }
    let spent_ns = thread_cpu_ns() - before_ns;
    sink.stop();
    assert!(on_core(OTHERS));
    spent_ns as f64 / sent as f64
}

/// The generator's own ceiling. The whole generator, with all of its threads and what the kernel does for it up to the far
/// end's receive buffer, has one core; the far end, which takes everything and gives nothing back, has another.
///
/// Every turn has to be VALID. One that was spoiled by what else the machine did fails too: its reason says who had the core.
#[test]
#[ignore = "needs a release build and an idle machine: cargo test --release -p tools --test known_answer -- --ignored --nocapture ceiling"]
fn ceiling() {
    if !on_core(OTHERS) {
        left_out("the generator's ceiling: a second core for the far end");
        return;
    }
    if !has_descriptors() {
        return;
    }
    let cases = || {
        LOADS.iter().flat_map(|load| {
            [("8", "sendmmsg"), ("8", "uring"), ("10000", "sendmmsg"), ("10000", "uring")]
                .map(|(flows, send)| (load, flows, send))
        })
    };
    let mut valid = vec![0; cases().count()];
    for turn in 0..TURNS {
        for load in &LOADS {
            println!("{}, the kernel alone, turn {turn}: {:.0} ns each", load.name, kernel_alone_ns(load));
        }
        for ((load, flows, send), valid) in cases().zip(&mut valid) {
            let measure = |rate, duration| {
                let sink = super::sink::Sink::start();
                let address = sink.address().to_string();
                let common = ["--flows", flows, "--gather", load.gather, "--send", send];
                let times = ["--rate", rate, "--duration", duration, "--warmup", "200ms", "--drain", "50ms"];
                let cores = Some((GENERATORS, OTHERS));
                let found = run_lab(&address, &[&common[..], &times[..]].concat(), cores);
                (found, sink.stop())
            };
            let (rate, minimum_pps) = match flows {
                "8" => (load.rate, load.minimum_pps),
                _ => (load.rate_of_many, 0.0),
            };
            let ((result, peak_kib), arrived) = measure(rate, "2s");
            let ((unpaced, _), _) = measure(load.too_much, "500ms");
            let late = |name| result.latency.lateness.quantile(name).unwrap().value_ns.unwrap();
            let arrived_share = arrived as f64 / result.ledger.sent.max(1) as f64;
            println!(
                "{}, {flows} flows, {send}, turn {turn}: {:.1} kpps offered, {:.2} % arrived, lateness p50 {:.1} us, p99.9 {:.1} us, peak {:.1} MiB, {}; without pauses {:.1} kpps at {:.0} ns of the core each",
                load.name,
                result.offered_pps / 1e3,
                100.0 * arrived_share,
                late("p50") as f64 / 1e3,
                late("p99.9") as f64 / 1e3,
                peak_kib as f64 / 1024.0,
                result.verdict.line(),
                unpaced.offered_pps / 1e3,
                unpaced.sender_cpu_ns_per_packet
            );
            assert!((1..=MEMORY_MAX_KIB).contains(&peak_kib), "{peak_kib} KiB");
            // What finds no room at the far end costs less: nearly all has to have arrived.
            let full = result.offered_pps >= minimum_pps && arrived_share > 0.99;
            *valid += usize::from(full && result.verdict.validity == Validity::Valid);
        }
    }
    assert!(valid.iter().all(|&turns| turns == TURNS), "VALID turns of {TURNS} by case: {valid:?}");
}
