//! Each thing that can spoil a run, done to a real one: the run says so, and why. And the known answer of a stall, on either
//! side.

use std::io::{Seek, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tools::run::clock::monotonic_ns;
use tools::run::verdict::{Check, Validity};
use tools::run::{Arrivals, Kind, Pace, RunResult, RunSpec, run};

use super::bad_reflector::{BadReflector, Log, Plan};
use super::user_namespace;
use super::user_namespace::left_out::left_out;

const MS: u64 = 1_000_000;
/// How often a machine that leaves a test alone is waited for.
const TRIES: u32 = 10;
/// How late a thread that sleeps may wake on a core that others leave alone.
const QUIET_NS: u64 = MS;

/// Tests that keep a processor busy, or need one that is not.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work`, again while others took the machine meanwhile, and answers what it found when they took least, with the tolerance for
/// that. What it finds has no part in the choice: that is made by threads, one on each core, that sleep for a millisecond at a time
/// and see how late they wake.
fn left_alone<T>(mut work: impl FnMut() -> T) -> (T, u64) {
    let mut best: Option<(T, u64)> = None;
    for _ in 0..TRIES {
        let (found, late_ns) = watched(&mut work);
        if best.as_ref().is_none_or(|(_, least_ns)| late_ns < *least_ns) {
            best = Some((found, late_ns));
        }
        if late_ns < QUIET_NS {
            break;
        }
    }
    let (found, late_ns) = best.unwrap();
    let more_ns = if late_ns < QUIET_NS { 0 } else { 3 * late_ns };
    println!("sleepers woke {late_ns} ns late at most; so much more is tolerated: {more_ns} ns");
    (found, 2 * MS + more_ns)
}

/// What `work` answers, and how late a sleeper woke meanwhile at most, on any core.
fn watched<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let ours = sched_getaffinity(None).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sleepers: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|&core| ours.is_set(core))
            .map(|core| {
                let done = &done;
                scope.spawn(move || {
                    let mut only_one = CpuSet::new();
                    only_one.set(core);
                    sched_setaffinity(None, &only_one).unwrap();
                    let mut latest_ns = 0;
                    while !done.load(Ordering::Relaxed) {
                        let due_ns = monotonic_ns() + MS;
                        std::thread::sleep(Duration::from_nanos(MS));
                        latest_ns = latest_ns.max(monotonic_ns() - due_ns);
                    }
                    latest_ns
                })
            })
            .collect();
        let found = work();
        done.store(true, Ordering::Relaxed);
        (found, sleepers.into_iter().map(|sleeper| sleeper.join().unwrap()).max().unwrap())
    })
}

/// Starts a run in a process of its own, so that it can be stopped.
#[expect(clippy::disallowed_methods, reason = "the test runs the program")]
fn start(reflector: &BadReflector, more: &[&str]) -> Child {
    let target = reflector.address.to_string();
    let common =
        ["--arrivals", "periodic", "--size", "120", "--warmup", "50ms", "--drain", "300ms", "--json"];
    Command::new(env!("CARGO_BIN_EXE_towpath-lab"))
        .args(["run", "udp", &target])
        .args(common)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child) -> (Option<i32>, RunResult) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// Sleeps until measured sending has begun, and some more.
fn until_began(reflector: &BadReflector, child: &mut Child, more: Duration) {
    loop {
        let began_ns = reflector.began_ns.load(Ordering::Relaxed);
        let due_ns = began_ns + more.as_nanos() as u64;
        if began_ns > 0 && monotonic_ns() >= due_ns {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "the run has ended");
        std::thread::sleep(Duration::from_micros(500));
    }
}

#[test]
fn a_modest_run_on_loopback_ends_valid() {
    let _alone = alone();
    let reflector = BadReflector::start(Plan::default());
    let spec = RunSpec {
        rate_pps: 500.0,
        size: 120,
        duration: Duration::from_millis(400),
        warmup: Duration::from_millis(50),
        drain: Duration::from_millis(300),
        pace: Pace::Sleep,
        ..RunSpec::new(Kind::Udp, reflector.address)
    };
    let valid = |spec: &RunSpec| {
        let result = run(spec, |_| {}).unwrap();
        let (verdict, ledger) = (&result.verdict, &result.ledger);
        if verdict.validity == Validity::Valid {
            assert!(ledger.balances() && ledger.sent == ledger.intended && ledger.sent > 100, "{ledger:?}");
            return true;
        }
        // On a busy machine the sender may be late, or the hypervisor take the processor. Nothing else is an excuse.
        let machine = |reason: &String| reason.contains("lateness") || reason.contains("hypervisor took");
        assert!(verdict.reasons.iter().all(machine), "{verdict:?}");
        // Nor is it one that is not true: half of the datagrams, or the latest, were later than allowed, or the steal is there.
        let latency = &result.latency;
        let late = |lateness: &tools::run::Distribution| {
            let half = lateness.quantile("p50").unwrap().value_ns.unwrap();
            half > MS / 10 || lateness.max_ns.unwrap() > MS
        };
        let is_late = late(&latency.lateness) || latency.receiving.as_ref().is_some_and(late);
        let is_stolen = verdict.notes.iter().any(|note| note.contains("hypervisor took"));
        assert!(is_late || is_stolen, "{verdict:?} {latency:?}");
        println!("not VALID, and the machine is why: {:?}", verdict.reasons);
        false
    };
    if !(0..6).any(|_| valid(&spec)) {
        println!("the machine is too busy for the usual tolerance; a wide one leaves it no excuse");
        let wide = RunSpec { lateness_limit: Duration::from_secs(60), steal_limit: 1.0, ..spec };
        assert!(valid(&wide));
    }
    reflector.finish();
}

#[test]
fn a_far_end_that_stalls_for_a_tenth_of_the_time_gives_the_known_quantiles() {
    let _alone = alone();
    let stall_each_second = Some(Duration::from_millis(100));
    let stalled = || {
        let reflector = BadReflector::start(Plan { stall_each_second, ..Plan::default() });
        let spec = RunSpec {
            size: 120,
            arrivals: Arrivals::Periodic,
            duration: Duration::from_secs(3),
            warmup: Duration::from_millis(50),
            drain: Duration::from_millis(300),
            pace: Pace::Sleep,
            ..RunSpec::new(Kind::Udp, reflector.address)
        };
        let result = run(&spec, |_| {}).unwrap();
        (result, reflector.finish())
    };
    // A far end that was kept from its core for so long that its socket overflowed did more than stall as it was told.
    let got_all = |(result, log): &(RunResult, Log)| log.seen == result.ledger.sent;
    let ((result, _), tolerance_ns) = left_alone(|| {
        let found = (0..TRIES).map(|_| stalled()).find(got_all);
        found.expect("the far end missed something of each run")
    });
    assert_eq!((result.ledger.received, result.ledger.lost), (3_000, 0));
    // One datagram in ten is due while the far end does nothing and waits for the rest of that time, 0 to 100 ms alike: 1 in 100
    // waits more than 90 ms, 1 in 20 more than 50. Here the service has it too: it is the far end that stalled.
    let histograms = result.histograms.unwrap();
    for (name, histogram) in [("response", &histograms.response), ("service", &histograms.service)] {
        for (share, answer) in [(0.5, 0), (0.95, 50 * MS), (0.99, 90 * MS)] {
            let value = histogram.value_at_quantile(share);
            assert!(
                value.abs_diff(answer) <= tolerance_ns,
                "{name} at {share}: {value} ns instead of {answer}"
            );
        }
    }
}

#[test]
fn a_generator_that_is_stopped_blames_itself_and_not_the_service() {
    let _alone = alone();
    let ((result, stopped), tolerance_ns) = left_alone(stopped_generator);
    let length = stopped.iter().sum::<u64>() / stopped.len() as u64;
    println!("stopped for {stopped:?} ns");
    let near = |name: &str, value: u64, answer: u64| {
        assert!(value.abs_diff(answer) <= tolerance_ns, "{name}: {value} ns instead of {answer}");
    };
    let p99 =
        |distribution: &tools::run::Distribution| distribution.quantile("p99").unwrap().value_ns.unwrap();
    // As with a far end that stalls: of a thousand datagrams a second ten wait longer than all but 10 ms of the stop, fifty longer
    // than all but 50. It lasted 100 ms, or what the machine made of that.
    let latency = &result.latency;
    near("p99 of the response", p99(&latency.response), length - 10 * MS);
    near("p99 of the lateness", p99(&latency.lateness), length - 10 * MS);
    let p95 = result.curve.iter().min_by(|one, other| {
        let distance = |point: &tools::run::CurvePoint| (point.quantile - 0.95).abs();
        distance(one).total_cmp(&distance(other))
    });
    near("p95 of the response", p95.unwrap().value_ns, length - 50 * MS);
    // The service has nothing of it.
    near("p99 of the service", p99(&latency.service), 0);
}

/// Stops a generator for 100 ms in each of two seconds; how long it was stopped for.
fn stopped_generator() -> (RunResult, [u64; 2]) {
    let reflector = BadReflector::start(Plan::default());
    let mut child = start(&reflector, &["--rate", "1kpps", "--duration", "2s", "--pace", "sleep"]);
    let stopped = [0, 1].map(|second| {
        until_began(&reflector, &mut child, Duration::from_millis(400 + 1_000 * second));
        let pid = Pid::from_child(&child);
        let from = monotonic_ns();
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        kill_process(pid, Signal::CONT).unwrap();
        monotonic_ns() - from
    });
    let (code, result) = finish(child);
    reflector.finish();
    assert_eq!((code, result.verdict.validity), (Some(4), Validity::GeneratorLimited));
    assert!(result.verdict.reasons[0].contains("lateness"), "{:?}", result.verdict);
    (result, stopped)
}

#[test]
fn a_generator_without_a_processor_says_that_it_was_late() {
    let _alone = alone();
    let late = |reasons: &[String]| reasons.iter().any(|reason| reason.contains("of the sender's lateness"));
    let (code, result) = without_a_processor("1ms");
    assert_eq!(code, Some(4), "{:?}", result.verdict);
    assert!(late(&result.verdict.reasons), "{:?}", result.verdict);
    // The same without the check.
    assert!(!late(&without_a_processor("60s").1.verdict.reasons));
}

fn without_a_processor(limit: &str) -> (Option<i32>, RunResult) {
    let reflector = BadReflector::start(Plan::default());
    let ours = sched_getaffinity(None).unwrap();
    let one = (0..CpuSet::MAX_CPU).find(|&cpu| ours.is_set(cpu)).unwrap();
    let mut only_one = CpuSet::new();
    only_one.set(one);
    let done = AtomicBool::new(false);
    let finished = std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                sched_setaffinity(None, &only_one).unwrap();
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // All of it on the processor that the others keep busy.
        let child = scope.spawn(|| {
            sched_setaffinity(None, &only_one).unwrap();
            let load = ["--rate", "5kpps", "--duration", "1s", "--pace", "spin", "--lateness-limit", limit];
            start(&reflector, &load)
        });
        let finished = finish(child.join().unwrap());
        done.store(true, Ordering::Relaxed);
        finished
    });
    reflector.finish();
    finished
}

#[test]
fn a_receive_buffer_that_is_too_small_voids_the_run() {
    let asked = |receive_buffer: usize, reflector: &BadReflector| RunSpec {
        rate_pps: 5_000.0,
        burst: 250,
        size: 1_000,
        receive_buffer,
        duration: Duration::from_millis(500),
        warmup: Duration::ZERO,
        drain: Duration::from_millis(300),
        pace: Pace::Sleep,
        ..RunSpec::new(Kind::Udp, reflector.address)
    };
    let reflector = BadReflector::start(Plan::default());
    let drops = |spec: &RunSpec| {
        let result = run(spec, |_| {}).unwrap();
        let named = result.verdict.reasons.iter().any(|reason| reason.contains("own sockets dropped"));
        assert!(!named || result.verdict.validity == Validity::Invalid, "{:?}", result.verdict);
        let own = result.account.causes.iter().find(|loss| loss.cause == "own-rx").unwrap();
        (named, own.skbs.is_some())
    };
    // Which of the two reads faster is up to the machine, so that a few tries may be needed.
    let small = asked(2_048, &reflector);
    let found = |spec: &RunSpec| (0..5).map(|_| drops(spec)).find(|(_, dropped)| *dropped);
    assert!(found(&small).expect("nothing was dropped").0);
    let blind = RunSpec { blind: Some(Check::OwnDrops), ..small };
    assert!(!found(&blind).expect("nothing was dropped").0, "another check has seen it");
    reflector.finish();
}

#[test]
fn what_the_own_buffer_drops_one_by_one_excuses_nothing_that_was_lost_on_the_way() {
    // The far end keeps one datagram in five, the receive buffer as many as fit: each skb that is dropped there is one datagram.
    for _ in 0..5 {
        let reflector = BadReflector::start(Plan { drop: 200, ..Plan::default() });
        let spec = RunSpec {
            rate_pps: 5_000.0,
            burst: 250,
            size: 1_000,
            receive_buffer: 2_048,
            duration: Duration::from_millis(500),
            warmup: Duration::ZERO,
            drain: Duration::from_millis(300),
            pace: Pace::Sleep,
            ..RunSpec::new(Kind::Udp, reflector.address)
        };
        let result = run(&spec, |_| {}).unwrap();
        let log = reflector.finish();
        let (account, kept) = (&result.account, log.seen - log.returned);
        let own = account.causes.iter().find(|loss| loss.cause == "own-rx").unwrap();
        println!("{}; the far end kept {kept} of {}", account.line(), log.seen);
        let Some(skbs) = own.skbs else { continue };
        assert!(kept > 0 && account.balances(), "{}", account.line());
        assert_eq!(own.datagrams, skbs, "{}", account.line());
        assert_eq!(account.lost_by("path"), result.ledger.lost - skbs, "{}", account.line());
        assert!(account.lost_by("path") >= kept, "{}", account.line());
        return;
    }
    panic!("nothing was dropped");
}

#[test]
fn a_queue_before_the_device_shows_between_the_send_and_the_device() {
    if !user_namespace::inside("validity::a_queue_before_the_device_shows_between_the_send_and_the_device") {
        return;
    }
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    // 125 kB/s, of which 10 kB may be at once, and a queue that never fills.
    handle.add_tbf(loopback, 125_000, 10_000, 1_000_000).unwrap();
    let reflector = BadReflector::start(Plan::default());
    let spec = RunSpec {
        // There and back 200 kB/s and some headers: after half a second some 30 kB wait, which are 0.25 s.
        rate_pps: 100.0,
        size: 1_000,
        tx_stamps: 1,
        arrivals: Arrivals::Periodic,
        duration: Duration::from_millis(500),
        warmup: Duration::ZERO,
        drain: Duration::from_secs(2),
        pace: Pace::Sleep,
        ..RunSpec::new(Kind::Udp, reflector.address)
    };
    let result = run(&spec, |_| {}).unwrap();
    reflector.finish();
    let to_device = result.latency.to_device.unwrap();
    assert_eq!((to_device.count, to_device.lost), (result.ledger.sent, 0), "{to_device:?}");
    // The first are let through at once; the last have the whole queue before them.
    assert!(to_device.min_ns.unwrap() < 20_000_000, "{to_device:?}");
    assert!((100_000_000..1_000_000_000).contains(&to_device.max_ns.unwrap()), "{to_device:?}");
    // The send call itself did not wait for that.
    assert!(result.latency.lateness.quantile("p50").unwrap().value_ns.unwrap() < 50_000_000);
}

#[test]
fn processor_time_that_the_hypervisor_takes_voids_the_run() {
    if !user_namespace::inside("validity::processor_time_that_the_hypervisor_takes_voids_the_run") {
        return;
    }
    // /proc/stat of a host with many cores, whose hypervisor takes a tenth of the time of one from measured sending on.
    let mut stat = tempfile::NamedTempFile::new().unwrap();
    let path = stat.path().to_owned();
    let usable = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|&core| usable.is_set(core)).unwrap();
    let mut write = |passed: u64, stolen: u64| {
        let all = 1_000 * passed;
        let mut text = format!("cpu  {all:>9} 0 0 0 0 0 0 {stolen:>9} 0 0\n");
        for core in 0..=CpuSet::MAX_CPU.min(first + 99) {
            let stolen = if core == first { stolen } else { 0 };
            text.push_str(&format!(
                "cpu{core} {:>9} 0 0 0 0 0 0 {stolen:>9} 0 0\n",
                passed + passed / 9 - stolen
            ));
        }
        stat.rewind().and_then(|()| stat.write_all(text.as_bytes())).unwrap();
    };
    write(9_000, 1_000);
    rustix::mount::mount_bind(&path, "/proc/stat").unwrap();
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    let mut stolen_from = |limit: &str| {
        let reflector = BadReflector::start(Plan::default());
        let mut child =
            start(&reflector, &["--rate", "500pps", "--duration", "300ms", "--steal-limit", limit]);
        until_began(&reflector, &mut child, Duration::ZERO);
        write(18_000, 2_000);
        let (code, result) = finish(child);
        write(9_000, 1_000);
        reflector.finish();
        let took = "the hypervisor took 10.0 % of a core's time";
        let said = |sentences: &[String]| sentences.iter().any(|sentence| sentence.starts_with(took));
        (code, result.verdict.validity, said(&result.verdict.reasons), said(&result.verdict.notes))
    };
    assert_eq!(stolen_from("5%"), (Some(4), Validity::Invalid, true, true));
    let (_, validity, is_reason, is_note) = stolen_from("20%");
    assert!(validity != Validity::Invalid && !is_reason && is_note);
}

#[test]
fn sends_that_the_kernel_refuses_limit_the_run() {
    if !user_namespace::inside("validity::sends_that_the_kernel_refuses_limit_the_run") {
        return;
    }
    // 1 Mbit/s, and a queue that holds more than the socket may have in it: it is the socket that has no room.
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    handle.add_tbf(loopback, 125_000, 10_000, 1_000_000).unwrap();
    let reflector = BadReflector::start(Plan::default());
    let spec = RunSpec {
        rate_pps: 1_000.0,
        size: 1_000,
        send_buffer: 4_096,
        duration: Duration::from_millis(500),
        warmup: Duration::ZERO,
        drain: Duration::from_millis(300),
        pace: Pace::Sleep,
        ..RunSpec::new(Kind::Udp, reflector.address)
    };
    let reasons = |blind| {
        let result = run(&RunSpec { blind, ..spec.clone() }, |_| {}).unwrap();
        assert!(result.ledger.refused > result.ledger.intended / 4, "{:?}", result.ledger);
        assert!(blind.is_some() || result.verdict.validity != Validity::Valid);
        result.verdict.reasons.join("; ")
    };
    let seen = reasons(None);
    assert!(seen.contains("refused by the kernel with") && seen.contains("unavailable"), "{seen}");
    // The same without the check.
    assert!(!reasons(Some(Check::Offered)).contains("refused"));
}

#[test]
fn a_receiver_without_a_processor_says_that_it_was_late() {
    let _alone = alone();
    let Some((code, result)) = without_a_receiver("1ms") else { return };
    println!("{:?}\n{:?}", result.verdict, result.latency.receiving);
    assert_eq!(code, Some(4), "{:?}", result.verdict);
    let named = |reason: &String| reason.contains("of the receiver's lateness");
    assert!(result.verdict.reasons.iter().any(named), "{:?}", result.verdict);
    // Where the sender was on time, it is this alone that limits the run.
    let others = result.verdict.reasons.iter().filter(|reason| !named(reason)).count();
    assert!(others > 0 || result.verdict.validity == Validity::GeneratorLimited);
    // The same without the check.
    let (_, unseen) = without_a_receiver("60s").unwrap();
    assert!(!unseen.verdict.reasons.iter().any(named), "{:?}", unseen.verdict);
}

/// Keeps the receiver of a run from its core, and leaves the sender its own.
fn without_a_receiver(limit: &str) -> Option<(Option<i32>, RunResult)> {
    let ours = sched_getaffinity(None).unwrap();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&cpu| ours.is_set(cpu));
    let (_, Some(one)) = (cores.next().unwrap(), cores.next()) else {
        left_out("a receiver without a processor: a second core for the sender");
        return None;
    };
    let mut only_one = CpuSet::new();
    only_one.set(one);
    let reflector = BadReflector::start(Plan::default());
    let load = ["--rate", "500pps", "--duration", "1500ms", "--pace", "sleep", "--lateness-limit", limit];
    let mut child = start(&reflector, &load);
    until_began(&reflector, &mut child, Duration::from_millis(50));
    let tasks = format!("/proc/{}/task", child.id());
    let receiver = std::fs::read_dir(&tasks)
        .unwrap()
        .map(|task| task.unwrap())
        .find(|task| std::fs::read_to_string(task.path().join("comm")).unwrap().trim() == "lab-receiver")
        .unwrap();
    let receiver = Pid::from_raw(receiver.file_name().to_str().unwrap().parse().unwrap()).unwrap();
    let done = AtomicBool::new(false);
    let finished = std::thread::scope(|scope| {
        // A thread that shares its core with so many waits for some milliseconds whenever it has slept.
        for _ in 0..16 {
            scope.spawn(|| {
                sched_setaffinity(None, &only_one).unwrap();
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        sched_setaffinity(Some(receiver), &only_one).unwrap();
        let finished = finish(child);
        done.store(true, Ordering::Relaxed);
        finished
    });
    reflector.finish();
    Some(finished)
}
