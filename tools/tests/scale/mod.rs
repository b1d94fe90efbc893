//! What the generator itself costs: memory at ten thousand flows, allocations for each datagram, and how much it can send.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tools::reflect::Reflector;
use tools::run::{Kind, Pace, RunSpec, SendBy, run};

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

#[test]
fn ten_thousand_flows_fit_into_64_mebibytes() {
    if getrlimit(Resource::Nofile).maximum.is_some_and(|maximum| maximum < FLOWS + 100) {
        left_out("10,000 flows: `ulimit -Hn 20000` as root");
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
    let arguments =
        ["--flows", "10000", "--rate", "20kpps", "--duration", "1s", "--drain", "300ms", "--json"];
    let files = tempfile::tempdir().unwrap();
    let json = files.path().join("json");
    let mut lab = program(env!("CARGO_BIN_EXE_towpath-lab"))
        .args(["run", "udp", target])
        .args(arguments)
        .stdout(std::fs::File::create(&json).unwrap())
        .spawn()
        .unwrap();
    // The peak only grows, so that the last look before the end has it, but for what printing takes at the end.
    let mut peak_kib = 0;
    while lab.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.id())).unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak_kib = field.and_then(|field| field.split_whitespace().next()?.parse().ok()).unwrap_or(peak_kib);
        std::thread::sleep(Duration::from_millis(2));
    }
    reflector.kill().unwrap();
    reflector.wait().unwrap();
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    println!("peak {peak_kib} KiB, {}", result["ledger"]);
    assert_eq!(result["ledger_by_flow"].as_array().unwrap().len() as u64, FLOWS);
    assert!(result["ledger"]["received"].as_u64().unwrap() > 5_000, "{}", result["ledger"]);
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

/// The generator's own ceiling: what it offers from one core to a socket that takes everything and gives nothing back.
#[test]
#[ignore = "needs a release build and an idle machine: cargo test --release -p tools --test known_answer -- --ignored --nocapture ceiling"]
fn ceiling() {
    let sink = super::sink::Sink::start();
    for (name, rate_pps, gather, minimum_pps) in
        [("superpackets of 32", 1_200_000.0, 32, 1_000_000.0), ("one by one", 160_000.0, 1, 150_000.0)]
    {
        for send in [SendBy::Sendmmsg, SendBy::Uring] {
            for turn in 0..3 {
                let spec = RunSpec {
                    rate_pps,
                    gather,
                    send,
                    flows: 8,
                    duration: Duration::from_secs(3),
                    drain: Duration::from_millis(100),
                    ..RunSpec::new(Kind::Udp, sink.address())
                };
                let result = run(&spec, |_| {}).unwrap();
                let lateness = &result.latency.lateness;
                let late = |name: &str| lateness.quantile(name).unwrap().value_ns.unwrap();
                println!(
                    "{name}, {send:?}, turn {turn}: {:.0} of {rate_pps:.0} datagrams/s offered at {:.0} ns of its core each, {} refused, {} not tried; lateness p50 {} ns, p99.9 {} ns",
                    result.offered_pps,
                    result.sender_cpu_ns_per_packet,
                    result.ledger.refused,
                    result.ledger.unsent,
                    late("p50"),
                    late("p99.9")
                );
                assert!(result.offered_pps >= minimum_pps, "{}", result.offered_pps);
            }
        }
    }
    sink.stop();
}
