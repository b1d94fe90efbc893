//! The ledger of a run against the log of the lab's own reflector, which harms datagrams by a plan: to the last datagram of
//! each flow, and to the millisecond. The log is the known answer: it is read as text and counted here, not by the lab.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tools::reflect::Reflector;
use tools::reflect::journal::Journal;
use tools::reflect::plan::Plan;
use tools::run::clock::monotonic_ns;
use tools::run::ledger::Ledger;
use tools::run::{Arrivals, Kind, Pace, RunSpec, run};

/// What the log says of one run.
#[derive(Debug, Default)]
struct Told {
    /// Flow and number of each datagram to which something was done, by what that was.
    done: BTreeMap<String, Vec<(u64, u64)>>,
    /// Its sums, by name.
    totals: BTreeMap<String, u64>,
}

impl Told {
    fn lines(&self, did: &str) -> &[(u64, u64)] {
        self.done.get(did).map_or(&[], Vec::as_slice)
    }

    fn count(&self, did: &str) -> u64 {
        self.lines(did).len() as u64
    }
}

/// Reads lines like those in the documentation of the log.
fn told(log: &str) -> BTreeMap<String, Told> {
    let mut runs: BTreeMap<String, Told> = BTreeMap::new();
    for line in log.lines().skip(1) {
        let line: Value = serde_json::from_str(line).unwrap();
        let run = runs.entry(line["run"].as_str().unwrap().to_owned()).or_default();
        if let Some(did) = line["did"].as_str() {
            let place = (line["flow"].as_u64().unwrap(), line["seq"].as_u64().unwrap());
            run.done.entry(did.to_owned()).or_default().push(place);
        } else {
            let totals = line["totals"].as_object().unwrap();
            run.totals = totals.iter().map(|(name, sum)| (name.clone(), sum.as_u64().unwrap())).collect();
        }
    }
    runs
}

/// Runs `load` against a reflector with this plan; answers also what its log says of each run.
fn against<T>(plan: &Plan, load: impl FnOnce(SocketAddr) -> T) -> (T, BTreeMap<String, Told>) {
    let reflector = Reflector::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let address = reflector.local_addrs()[0];
    let done = AtomicBool::new(false);
    let file = tempfile::NamedTempFile::new().unwrap();
    let out = std::io::BufWriter::new(file.reopen().unwrap());
    let journal = Journal::new(out, plan, "now").unwrap();
    let loaded = std::thread::scope(|scope| {
        let far_end = scope.spawn(|| reflector.run_by_plan(plan.clone(), Some(journal), None, &done));
        let loaded = load(address);
        done.store(true, Ordering::Relaxed);
        let (counts, _) = far_end.join().unwrap().unwrap();
        assert_eq!((counts.kernel_drops_skbs, counts.refused), (0, 0), "{counts:?}");
        loaded
    });
    (loaded, told(&std::fs::read_to_string(file.path()).unwrap()))
}

fn spec(target: SocketAddr, flows: u32) -> RunSpec {
    RunSpec {
        rate_pps: 10_000.0,
        size: 100,
        flows,
        duration: Duration::from_millis(400),
        warmup: Duration::from_millis(50),
        drain: Duration::from_millis(300),
        pace: Pace::Sleep,
        ..RunSpec::new(Kind::Udp, target)
    }
}

/// Every cause alone and all at once: each count of the ledger is that of the log, in all and by flow.
fn ledgers_equal_logs(flows: u32) {
    let share = |text: &str| text.parse().unwrap();
    let plans = [
        Plan { seed: 1, loss: share("5%"), ..Plan::default() },
        Plan { seed: 2, duplicate: share("5%"), ..Plan::default() },
        Plan { seed: 3, reorder: "10%:1".parse().unwrap(), ..Plan::default() },
        Plan { seed: 4, corrupt: share("5%"), ..Plan::default() },
        Plan {
            seed: 5,
            loss: share("4%"),
            duplicate: share("3%"),
            reorder: "5%:2".parse().unwrap(),
            corrupt: share("2%"),
            delay: vec!["1ms".parse().unwrap(), "3%:20ms".parse().unwrap()],
            stall: Some("30ms/200ms".parse().unwrap()),
        },
    ];
    for plan in plans {
        let (result, told) = against(&plan, |target| run(&spec(target, flows), |_| {}).unwrap());
        let (ledger, told) = (result.ledger, &told[&result.run_id]);
        println!("{plan:?}\n{ledger:?}\n{:?}", told.totals);
        for never in ["overflow", "refused", "discarded"] {
            assert_eq!((told.totals[never], told.count(never)), (0, 0), "{never}");
        }
        let [lost, duplicate, corrupt] = ["lost", "duplicate", "corrupt"].map(|did| told.count(did));
        assert!(ledger.balances());
        assert_eq!((ledger.sent, ledger.late), (told.totals["seen"], 0));
        assert_eq!(ledger.received, ledger.sent - lost - corrupt);
        assert_eq!(ledger.lost, lost + corrupt);
        assert_eq!((ledger.duplicate, ledger.corrupt), (duplicate, corrupt));
        assert_eq!(ledger.reordered, told.totals["reordered"]);
        let planned = |share: f64| if share > 0.0 { 1 } else { 0 };
        assert!(lost >= planned(plan.loss.0) && corrupt >= planned(plan.corrupt.0));
        assert!(duplicate >= planned(plan.duplicate.0) && ledger.reordered >= planned(plan.reorder.share.0));
        by_flow(&result.ledger_by_flow, told);
    }
}

/// Losses and copies of each flow, from the lines of the log.
fn by_flow(ledgers: &[Ledger], told: &Told) {
    let mut counts = vec![(0, 0); ledgers.len()];
    for (flow, _) in told.lines("lost").iter().chain(told.lines("corrupt")) {
        counts[*flow as usize].0 += 1;
    }
    for (flow, _) in told.lines("duplicate") {
        counts[*flow as usize].1 += 1;
    }
    let found: Vec<_> = ledgers.iter().map(|ledger| (ledger.lost, ledger.duplicate)).collect();
    assert_eq!(found, counts);
}

#[test]
fn the_ledger_of_one_flow_is_the_log_of_the_reflector() {
    ledgers_equal_logs(1);
}

#[test]
fn the_ledgers_of_a_thousand_flows_are_the_log_of_the_reflector() {
    ledgers_equal_logs(1_000);
}

#[test]
fn what_is_kept_beyond_the_drain_is_late() {
    // What is delayed comes 2.4 s after it was sent, and is late from 2.1 s after the beginning on.
    let plan = Plan { seed: 6, delay: vec!["10%:2400ms".parse().unwrap()], ..Plan::default() };
    let (duration, drain) = (Duration::from_millis(100), Duration::from_secs(2));
    let change = |target| RunSpec { duration, drain, rate_pps: 2_000.0, ..spec(target, 3) };
    let (result, told) = against(&plan, |target| run(&change(target), |_| {}).unwrap());
    let (ledger, delayed) = (result.ledger, told[&result.run_id].count("delayed"));
    assert!(delayed > 0 && ledger.balances(), "{ledger:?}");
    assert_eq!((ledger.late, ledger.lost), (delayed, 0), "{ledger:?}");
}

#[test]
fn two_runs_of_one_seed_lose_the_same_datagrams() {
    let plan = Plan { seed: 7, loss: "5%".parse().unwrap(), ..Plan::default() };
    let twice = |target| [(); 2].map(|()| run(&spec(target, 8), |_| {}).unwrap());
    let (results, told) = against(&plan, twice);
    assert_eq!(told.len(), 2);
    let lost = results.each_ref().map(|result| {
        let mut lost = told[&result.run_id].lines("lost").to_vec();
        lost.sort_unstable();
        lost
    });
    assert!(lost[0].len() > 100 && lost[0] == lost[1], "{} {}", lost[0].len(), lost[1].len());
    assert_eq!(results[0].ledger, results[1].ledger);
}

#[test]
fn a_stall_of_a_tenth_is_felt_as_long_as_it_lasts() {
    // In each second nothing comes back for 100 ms: a tenth of the datagrams waits 0 to 100 ms, evenly. So the twentieth that
    // waits longest waits 50 ms and more, and the hundredth 90 ms and more.
    let plan = Plan { stall: Some("100ms/1s".parse().unwrap()), ..Plan::default() };
    let stalled = |target| RunSpec {
        rate_pps: 2_000.0,
        arrivals: Arrivals::Periodic,
        duration: Duration::from_secs(2),
        pace: Pace::Hybrid,
        ..spec(target, 1)
    };
    let mut found = Vec::new();
    // What the machine itself stalls explains one figure that is too high, and never all of them.
    for _ in 0..10 {
        let (result, told) = against(&plan, |target| run(&stalled(target), |_| {}).unwrap());
        assert_eq!(result.ledger.lost, 0);
        let share = told[&result.run_id].count("stalled") as f64 / result.ledger.sent as f64;
        let of = |name: &str| result.latency.response.quantile(name).unwrap().value_ns.unwrap() as f64 / 1e6;
        // The distribution has no p95 by name; the curve has.
        let p95 = result.histograms.as_ref().unwrap().response.value_at_quantile(0.95) as f64 / 1e6;
        let figures = [of("p99"), p95, of("p50")];
        println!(
            "p99 {:.2} ms, p95 {:.2} ms, p50 {:.3} ms, {:.2} % stalled",
            figures[0],
            figures[1],
            figures[2],
            100.0 * share
        );
        let close = |found: f64, expected: f64| (found - expected).abs() <= 2.0;
        if close(figures[0], 90.0)
            && close(figures[1], 50.0)
            && figures[2] < 2.0
            && (share - 0.1).abs() < 0.005
        {
            return;
        }
        found.push(figures);
    }
    panic!("p99, p95 and p50 in ms: {found:?}");
}

#[test]
fn a_delay_below_a_millisecond_is_not_rounded_up_to_one() {
    const DELAY: Duration = Duration::from_micros(300);
    let delay_ns = DELAY.as_nanos() as u64;
    let plan = Plan { delay: vec!["300us".parse().unwrap()], ..Plan::default() };
    let reflector = Reflector::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(reflector.local_addrs()[0]).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let done = AtomicBool::new(false);
    // How long answers took, and a plain sleep of the same length: that is what the machine adds.
    let timed = |work: &mut dyn FnMut()| {
        let from_ns = monotonic_ns();
        work();
        monotonic_ns() - from_ns
    };
    let (mut answers, mut sleeps) = std::thread::scope(|scope| {
        let far_end = scope.spawn(|| reflector.run_by_plan::<Vec<u8>>(plan, None, None, &done));
        let mut answer = || {
            socket.send(&[7; 60]).unwrap();
            assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 60);
        };
        let pair = |_| (timed(&mut answer), timed(&mut || std::thread::sleep(DELAY)));
        let pairs: (Vec<u64>, Vec<u64>) = (0..400).map(pair).unzip();
        done.store(true, Ordering::Relaxed);
        far_end.join().unwrap().unwrap();
        pairs
    });
    answers.sort_unstable();
    sleeps.sort_unstable();
    let (answer, sleep) = (answers[200], sleeps[200]);
    println!("answered after {answer} ns, slept for {sleep} ns");
    assert!(answers[0] >= delay_ns, "{}", answers[0]);
    assert!(answer < sleep + 400_000, "answered after {answer} ns, slept for {sleep} ns");
}
