//! The ledger and the latency of real runs over loopback, held against a reflector that knows what it did.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

mod bad_reflector;
#[path = "known_answer/gone.rs"]
mod gone;
#[path = "known_answer/reflector.rs"]
mod reflector;
mod scale;
mod sink;
#[path = "../../dataplane/tests/support/user_namespace.rs"]
mod user_namespace;
mod validity;

use std::time::Duration;

use bad_reflector::{BadReflector, Log, Plan};
use tools::run::sizes::Share;
use tools::run::verdict::Validity;
use tools::run::{Arrivals, Kind, Pace, RunResult, RunSpec, SendBy, run};

fn spec(reflector: &BadReflector) -> RunSpec {
    RunSpec {
        rate_pps: 3_000.0,
        size: 120,
        flows: 4,
        duration: Duration::from_millis(500),
        warmup: Duration::from_millis(50),
        drain: Duration::from_millis(600),
        pace: Pace::Sleep,
        ..RunSpec::new(Kind::Udp, reflector.address)
    }
}

/// Runs against a reflector with `plan` and checks the ledger against its log.
fn judged(plan: Plan, change: impl FnOnce(RunSpec) -> RunSpec) -> (RunResult, Log) {
    let reflector = BadReflector::start(plan);
    let result = run(&change(spec(&reflector)), |_| {}).unwrap();
    let log = reflector.finish();
    let ledger = &result.ledger;
    println!("{plan:?}\n{ledger:?}\n{log:?}");
    assert!(ledger.balances() && ledger.sent > 0);
    assert_eq!(ledger.received + ledger.late, log.returned);
    assert_eq!(ledger.late, log.late);
    assert_eq!(ledger.lost, ledger.sent - log.returned);
    assert_eq!(ledger.duplicate, log.duplicates);
    assert_eq!(ledger.corrupt, log.corrupted);
    assert_eq!(ledger.reordered, log.reordered);
    let found = result.reordering;
    assert_eq!((found.reordered, found.by_degree), (log.reordered, log.by_degree));
    // Of what was overtaken by more than is remembered, the extent is at least what is.
    if plan.late == 0 {
        assert_eq!((found.extent_max, found.extent_sum), (log.extent_max, log.extent_sum));
    } else {
        assert!(found.extent_max <= log.extent_max && found.extent_sum <= log.extent_sum, "{found:?}");
    }
    assert!(result.ledger_by_flow.iter().all(tools::run::ledger::Ledger::balances));
    let by_flow: u64 = result.ledger_by_flow.iter().map(|ledger| ledger.lost).sum();
    assert_eq!(by_flow, ledger.lost);
    assert_eq!(result.latency.response.count, ledger.received);
    (result, log)
}

#[test]
fn what_a_faithful_reflector_has_seen_comes_back() {
    let (result, log) = judged(Plan::default(), |spec| spec);
    // Its own receive buffer may overflow when the machine starves it; what it has seen is the measure.
    assert_eq!((result.ledger.received, log.returned), (log.seen, log.seen));
    assert_eq!(result.latency.response.lost, result.ledger.sent - log.seen);
    assert_eq!(
        result.latency.response.quantile("p99").unwrap().beyond,
        result.ledger.sent - (result.ledger.sent * 99).div_ceil(100) + 1
    );
}

#[test]
fn response_is_service_plus_the_sender_s_lateness() {
    // So few that all of them fit the reflector's buffer, however long the machine starves it.
    let (result, _) = judged(Plan::default(), |spec| RunSpec { rate_pps: 200.0, ..spec });
    assert_eq!(result.ledger.lost, 0);
    let latency = &result.latency;
    let parts = latency.service.mean_ns + latency.lateness.mean_ns;
    // Sleeping is late by microseconds at least; were it not counted, the response would be the service.
    assert!(latency.lateness.mean_ns > 500.0, "{}", latency.lateness.mean_ns);
    assert!((latency.response.mean_ns / parts - 1.0).abs() < 0.002, "{} {parts}", latency.response.mean_ns);
    assert!(latency.service.min_ns.unwrap() > 1_000);
}

#[test]
fn every_kind_of_harm_is_counted_to_the_last_datagram() {
    let harmed = |seed| {
        let plan = Plan { seed, drop: 50, duplicate: 40, overtake: 60, corrupt: 30, ..Plan::default() };
        let (_, log) = judged(plan, |spec| spec);
        assert!(log.duplicates > 0 && log.corrupted > 0 && log.reordered > 0 && log.returned < log.seen);
    };
    // Each has a reflector and sockets of its own, and mostly waits.
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            scope.spawn(move || harmed(seed));
        }
    });
}

#[test]
fn a_thousand_flows_and_strangers_do_not_confuse_the_ledger() {
    let plan = Plan { seed: 9, drop: 100, duplicate: 50, overtake: 100, strangers: true, ..Plan::default() };
    let (result, _) = judged(plan, |spec| RunSpec { flows: 1_000, ..spec });
    assert_eq!(result.ledger_by_flow.len(), 1_000);
}

#[test]
fn what_comes_after_the_drain_is_late_and_has_no_latency() {
    // Half a second after the drain, and as long before it is given up: time enough for a machine that is busy.
    let (drain, late_after) = (Duration::from_secs(2), Duration::from_millis(2_500));
    let plan = Plan { seed: 5, late: 50, late_after, ..Plan::default() };
    let (result, log) = judged(plan, |spec| RunSpec { drain, ..spec });
    assert!(log.late > 0);
    assert_eq!(result.ledger.lost, result.ledger.sent - log.returned);
    assert!(result.latency.response.max_ns.unwrap() < 2_400_000_000);
}

#[test]
fn superpackets_are_told_apart_into_datagrams() {
    let plan = Plan { seed: 7, drop: 80, duplicate: 80, ..Plan::default() };
    let (result, _) =
        judged(plan, |spec| RunSpec { burst: 16, gso: true, arrivals: Arrivals::Periodic, ..spec });
    assert_eq!(result.ledger.intended % 16, 0);
}

#[test]
fn both_ways_to_the_kernel_carry_mixes_and_gathered_superpackets() {
    let share = |size, weight| Share { size, weight };
    let mix = vec![share(56, 7), share(548, 4), share(1_400, 1)];
    for send in [SendBy::Sendmmsg, SendBy::Uring] {
        let quick = |spec| RunSpec {
            send,
            rate_pps: 6_000.0,
            duration: Duration::from_millis(400),
            drain: Duration::from_millis(150),
            ..spec
        };
        let mixed = |spec| RunSpec { mix: mix.clone(), size: 1_400, burst: 8, ..quick(spec) };
        let plan = Plan { seed: 11, drop: 80, duplicate: 80, ..Plan::default() };
        let (result, _) = judged(plan, mixed);
        // 2,400 draws: the standard error of the mean is some 3 %.
        let mean = result.offered_bps / 8.0 / result.offered_pps;
        assert!((mean / result.spec.mean_size() - 1.0).abs() < 0.2, "{mean}");
        assert_eq!(result.ledger.intended % 8, 0);
        judged(plan, |spec| RunSpec { gso: true, ..mixed(spec) });
        let (result, _) = judged(Plan::default(), |spec| RunSpec { gather: 8, flows: 1, ..quick(spec) });
        // At 6 kpps eight datagrams are due within some 1.2 ms, and wait 0.6 ms for the last in the mean.
        let latency = &result.latency;
        let waited = latency.response.mean_ns - latency.service.mean_ns - latency.lateness.mean_ns;
        assert!((300_000.0..1_200_000.0).contains(&waited), "{waited}");
    }
}

#[test]
fn the_kernel_sees_an_arrival_before_the_program_does() {
    let (result, _) = judged(Plan::default(), |spec| RunSpec { kernel_stamps: true, ..spec });
    let (kernel, service) = (result.latency.kernel.unwrap(), &result.latency.service);
    assert_eq!(kernel.count, service.count);
    assert!(
        kernel.mean_ns > 1_000.0 && kernel.mean_ns < service.mean_ns,
        "{} {}",
        kernel.mean_ns,
        service.mean_ns
    );
    assert!(result.histograms.unwrap().kernel.unwrap().len() == kernel.count);
}

#[test]
fn the_kernel_says_when_the_device_took_one_of_so_many_sends() {
    for (gather, flows) in [(1, 4), (8, 2)] {
        let stamped = |spec| RunSpec { tx_stamps: 4, kernel_stamps: true, gather, flows, ..spec };
        let (result, _) = judged(Plan::default(), stamped);
        let (to_device, kernel) = (result.latency.to_device.unwrap(), result.latency.kernel.unwrap());
        let sends = result.ledger.sent / u64::from(gather);
        // Some 750 and 94 are asked, give or take a tenth.
        let asked = to_device.count + to_device.lost;
        assert!((sends / 6..sends / 3).contains(&asked), "{asked} of {sends}");
        // Loopback takes a packet within the call, and the way back comes after it.
        assert_eq!(to_device.lost, 0, "{to_device:?}");
        let (there, back) = (to_device.mean_ns, kernel.mean_ns);
        assert!(there > 500.0 && there < back && to_device.min_ns < kernel.min_ns, "{there} {back}");
        assert_eq!(result.histograms.unwrap().to_device.unwrap().len(), asked);
    }
    let (result, _) = judged(Plan::default(), |spec| RunSpec { rate_pps: 300.0, ..spec });
    assert_eq!(result.latency.to_device, None);
}

#[test]
fn a_trace_sets_times_and_sizes_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    std::fs::write(&file, "0,60\n0.004,1000\n").unwrap();
    let trace = Some(tools::run::trace::Trace::new(file));
    let duration = Duration::from_secs(1);
    let (result, _) =
        judged(Plan::default(), |spec| RunSpec { duration, trace, arrivals: Arrivals::Trace, ..spec });
    // A round of two datagrams lasts 8 ms.
    assert_eq!((result.ledger.intended, result.spec.rate_pps), (250, 250.0));
    assert!((result.offered_bps / 8.0 / result.offered_pps - 530.0).abs() < 0.1, "{}", result.offered_bps);
}

#[test]
fn a_stall_is_felt_by_all_that_were_due_during_it() {
    // Of one second of traffic the reflector does nothing for 400 ms: those due then wait 0 to 400 ms, evenly.
    let duration = Duration::from_secs(1);
    let stall = Some((150, Duration::from_millis(400)));
    let plan = Plan { stall, ..Plan::default() };
    let (result, _) = judged(plan, |spec| RunSpec {
        duration,
        rate_pps: 500.0,
        flows: 1,
        arrivals: Arrivals::Periodic,
        ..spec
    });
    let response = |name: &str| result.latency.response.quantile(name).unwrap().value_ns.unwrap();
    // 40 % are hit, so p80 waits half of it and p90 three quarters. Only the machine's own stalls blur this.
    assert!(
        (150_000_000..300_000_000).contains(&response("p90").saturating_sub(80_000_000)),
        "{}",
        response("p90")
    );
    assert!(response("p50") < 100_000_000, "{}", response("p50"));
}

#[test]
fn a_rate_beyond_the_machine_is_not_called_valid() {
    let reflector = BadReflector::start(Plan::default());
    let asked = RunSpec { rate_pps: 2e7, duration: Duration::from_millis(200), ..spec(&reflector) };
    let result = run(&asked, |_| {}).unwrap();
    reflector.finish();
    assert!(result.ledger.balances() && result.ledger.unsent > 0);
    assert_eq!(result.ledger.intended, result.ledger_by_flow.iter().map(|flow| flow.intended).sum::<u64>());
    assert_ne!(result.verdict.validity, Validity::Valid);
    assert!(result.verdict.reasons.iter().any(|reason| reason.starts_with("only ")), "{:?}", result.verdict);
}

#[test]
fn a_target_without_a_reflector_is_a_set_up_error() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = run(&RunSpec::new(Kind::Udp, silent.local_addr().unwrap()), |_| {}).unwrap_err();
    assert!(error.to_string().contains("towpath-lab reflect"), "{error}");
    assert!(matches!(error.downcast_ref(), Some(tools::run::Problem::Setup(_))));
}
