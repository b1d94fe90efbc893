//! Commands that make or judge several runs.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tools::format::bundle;

use super::{Reflector, lab, output, short_run};

/// Sets all quantiles of a distribution, and its longest.
fn every_figure(run: &mut Value, figures: &str, ns: u64) {
    let figures = &mut run["latency"][figures];
    figures["max_ns"] = ns.into();
    for quantile in figures["quantiles"].as_array_mut().unwrap() {
        quantile["value_ns"] = ns.into();
    }
}

/// Runs like that in `from`, with one p50 and p99 each, in a directory for each.
fn side(dir: &Path, from: &Value, p99_ns: &[u64]) -> String {
    for (index, &p99_ns) in p99_ns.iter().enumerate() {
        let mut run = from.clone();
        let quantiles = run["latency"]["response"]["quantiles"].as_array_mut().unwrap();
        for (quantile, ns) in quantiles.iter_mut().zip([p99_ns / 2, p99_ns * 3 / 4, p99_ns]) {
            quantile["value_ns"] = ns.into();
            quantile["grade"] = "solid".into();
        }
        // A sender and a receiver that were on time.
        for figures in ["lateness", "receiving"] {
            every_figure(&mut run, figures, 1);
        }
        run["verdict"] = json!({ "validity": "VALID", "reasons": [], "notes": [] });
        run["started_unix_ns"] = (index as u64).into();
        run["run_id"] = format!("{} {index}", dir.display()).into();
        run["interrupted"] = false.into();
        let dir = dir.join(index.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(bundle::RUN_JSON), run.to_string()).unwrap();
    }
    dir.to_str().unwrap().to_owned()
}

#[test]
fn the_gate_passes_fails_and_doubts_with_a_status_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let reflector = Reflector::start("127.0.0.1:0");
    short_run(&reflector.address, &dir.path().join("run"), &[]);
    let run: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("run/run.json")).unwrap()).unwrap();
    let made = |name: &str, p99_ns: &[u64]| side(&dir.path().join(name), &run, p99_ns);
    let a = made("a", &[50_000, 50_500, 49_500, 50_200, 49_800]);
    let same = made("same", &[50_100, 50_300, 49_700, 50_000, 49_900]);
    let worse = made("worse", &[58_000, 57_500, 59_000, 58_200, 57_900]);
    let wide = made("wide", &[50_000, 56_000, 48_000, 61_000, 51_000]);
    let gate = |b: &str, more: &[&str]| {
        let mut arguments = vec!["gate", &a, "--", b, "--fail", "p99>+5%", "--fail", "p50>+5%"];
        arguments.extend(more);
        output(&arguments)
    };

    let (code, text, stderr) = gate(&same, &[]);
    assert!(code == 0 && text.starts_with("PASS  5 runs of A, 5 of B"), "{code} {text} {stderr}");
    let (code, text, _) = gate(&worse, &[]);
    assert!(code == 1 && text.starts_with("FAIL"), "{code} {text}");
    let (code, text, _) = gate(&wide, &[]);
    assert!(
        code == 3 && text.starts_with("INCONCLUSIVE") && text.contains(" a side would decide"),
        "{code} {text}"
    );
    assert_eq!(gate(&wide, &["--inconclusive", "pass"]).0, 0);
    assert_eq!(gate(&wide, &["--inconclusive", "fail"]).0, 1);
    assert_eq!(gate(&worse, &["--min-effect", "1ms"]).0, 0);

    let (code, text, _) = gate(&worse, &["--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["verdict"], &json["rules"][0]["rule"]), (1, &json!("FAIL"), &json!("p99>+5%")));
    assert!(json["rules"][0]["estimate"].as_f64().unwrap() > 1.1, "{json}");

    let junit = dir.path().join("junit.xml");
    let (code, text, _) = gate(&wide, &["--md", "--junit", junit.to_str().unwrap()]);
    assert!(code == 3 && text.starts_with("# INCONCLUSIVE") && text.contains("| p99>+5% |"), "{code} {text}");
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("tests=\"2\" failures=\"0\" errors=\"0\" skipped=\"2\""), "{xml}");
    super::files::is_valid_junit(&junit);
    gate(&worse, &["--junit", junit.to_str().unwrap()]);
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(
        xml.contains("failures=\"2\"") && xml.contains("<failure message=\"A 50.0 µs, B 58.0 µs"),
        "{xml}"
    );
    super::files::is_valid_junit(&junit);

    let invalid = dir.path().join("worse/0").join(bundle::RUN_JSON);
    let text = fs::read_to_string(&invalid).unwrap().replace("\"VALID\"", "\"INVALID\"");
    fs::write(&invalid, text).unwrap();
    let (code, text, _) = gate(&worse, &[]);
    assert!(
        code == 4 && text.contains("run 1 of B is INVALID") && text.contains("--allow-invalid"),
        "{code} {text}"
    );
    assert!(text.starts_with("NO VERDICT") && !text.contains("FAIL"), "{text}");
    assert_eq!(gate(&worse, &["--allow-invalid"]).0, 1);
    let (code, text, _) = output(&["compare", &a, "--", &worse]);
    assert!(code == 4 && !text.contains("│ B") && text.contains("--allow-invalid"), "{code} {text}");
    let (_, text, _) = output(&["compare", &a, "--", &worse, "--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert!(json["differences"] == json!([]) && json["quantile_ratios"] == json!([]), "{json}");
    assert_eq!(output(&["compare", &a, "--", &worse, "--allow-invalid"]).0, 0);

    let second = dir.path().join("worse/3").join(bundle::RUN_JSON);
    fs::write(&second, fs::read_to_string(&second).unwrap().replace("\"VALID\"", "\"INVALID\"")).unwrap();
    assert!(gate(&worse, &[]).1.contains("(and 1 more of its 5 runs)"));

    let (code, _, stderr) = output(&["gate", &a, "--", &same, &same, "--fail", "p99>+5%"]);
    assert!(code == 2 && stderr.contains("is given twice"), "{code} {stderr}");
    let one_of_a = format!("{a}/2");
    for command in [&["gate", "--fail", "p99>+5%"][..], &["compare"]] {
        let (code, text, stderr) = output(&[command, &[&a, "--", &same, &one_of_a]].concat());
        assert!(
            code == 2 && text.is_empty() && stderr.contains("is on both sides, A and B"),
            "{code} {stderr}"
        );
    }
    let (code, _, stderr) = output(&["gate", &a, "--", &same]);
    assert!(code == 2 && stderr.contains("--fail 'p99>+5%'"), "{code} {stderr}");
    let (code, _, stderr) = output(&["gate", &a, "--", &same, "--fail", "p98>+5%"]);
    assert!(code == 2 && stderr.contains("p99.9"), "{code} {stderr}");
    let (code, _, stderr) = output(&["gate", &a, "--", "/nowhere", "--fail", "p99>+5%"]);
    assert!(code == 1 && stderr.contains("/nowhere"), "{code} {stderr}");

    let (code, text, _) = output(&["compare", &a, "--", &wide]);
    assert!(code == 0 && text.contains("open"), "{text}");
    let (code, text, _) = output(&["compare", &a, "--", &worse, "--json", "--allow-invalid"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    let p99 = json["differences"].as_array().unwrap().iter().find(|found| found["metric"] == "p99").unwrap();
    assert_eq!((code, &p99["found"]), (0, &json!("worse")), "{json}");
    assert_eq!(json["quantile_ratios"][0]["ratio"], 1.0);
}

/// Changes every run of a side.
fn alter(side: &str, which: impl Fn(usize) -> bool, change: impl Fn(&mut Value)) {
    for index in (0..5).filter(|index| which(*index)) {
        let path = Path::new(side).join(index.to_string()).join(bundle::RUN_JSON);
        let mut run: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut run);
        fs::write(&path, run.to_string()).unwrap();
    }
}

/// A side of five runs like those of a short real one, and the directory for more.
fn calm_side(dir: &Path) -> (Value, String) {
    let reflector = Reflector::start("127.0.0.1:0");
    short_run(&reflector.address, &dir.join("run"), &[]);
    let run: Value = serde_json::from_str(&fs::read_to_string(dir.join("run/run.json")).unwrap()).unwrap();
    let a = side(&dir.join("a"), &run, &[50_000, 50_500, 49_500, 50_200, 49_800]);
    (run, a)
}

#[test]
fn sides_with_different_loads_get_no_verdict_unless_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let (run, a) = calm_side(dir.path());
    let b = side(&dir.path().join("b"), &run, &[50_100, 50_300, 49_700, 50_000, 49_900]);
    let gate = |more: &[&str]| output(&[&["gate", &a, "--", &b, "--fail", "p99>+5%"], more].concat());
    // Who is measured may differ.
    alter(
        &b,
        |_| true,
        |run| {
            run["spec"]["seed"] = 99.into();
            run["spec"]["label"] = "new".into();
            run["spec"]["target"] = "127.0.0.1:77".into();
            run["spec"]["dut_pids"] = json!([7]);
        },
    );
    let (code, text, stderr) = gate(&[]);
    assert!(code == 0 && text.starts_with("PASS"), "{code} {text} {stderr}");

    // One run of a side is enough.
    alter(&b, |index| index == 3, |run| run["spec"]["gso"] = true.into());
    alter(&b, |_| true, |run| run["spec"]["mix"] = json!([{ "size": 64, "weight": 1 }]));
    let (code, text, _) = gate(&[]);
    assert!(code == 4 && text.starts_with("NO VERDICT") && !text.contains("PASS"), "{code} {text}");
    assert!(text.contains("not alike (mix, gso)") && text.contains("--allow-different"), "{text}");
    assert!(text.contains("not the same gso: false in A, true in B"), "{text}");
    let junit = dir.path().join("junit.xml");
    let (code, text, _) = gate(&["--json", "--inconclusive", "pass", "--junit", junit.to_str().unwrap()]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert!(code == 4 && json["verdict"].is_null(), "{json}");
    assert!(json["obstacle"].as_str().unwrap().contains("mix, gso"), "{json}");
    assert_eq!(json["rules"][0]["verdict"], "INCONCLUSIVE");
    assert!(fs::read_to_string(&junit).unwrap().contains("not alike (mix, gso)"));
    let (code, text, _) = gate(&["--allow-different"]);
    assert!(code == 0 && text.starts_with("PASS") && text.contains("not the same gso"), "{code} {text}");

    let (code, text, _) = output(&["compare", &a, "--", &b]);
    assert!(code == 4 && text.contains("not alike (mix, gso)") && !text.contains("│ B"), "{code} {text}");
    let (code, text, _) = output(&["compare", &a, "--", &b, "--allow-different"]);
    assert!(code == 0 && text.contains("│ B"), "{code} {text}");
}

#[test]
fn a_lab_that_was_as_late_as_the_device_shows_no_equality() {
    let dir = tempfile::tempdir().unwrap();
    let (run, a) = calm_side(dir.path());
    let b = side(&dir.path().join("b"), &run, &[50_100, 50_300, 49_700, 50_000, 49_900]);
    alter(
        &b,
        |index| index < 3,
        |run| {
            // Each alone is less than a quarter.
            for (figures, ns) in [("service", 40_000), ("lateness", 6_000), ("receiving", 5_000)] {
                every_figure(run, figures, ns);
            }
        },
    );
    let (code, text, _) = output(&["gate", &a, "--", &b, "--fail", "p99>+5%"]);
    assert!(code == 3 && text.contains("receiver is more than a quarter"), "{code} {text}");
    assert!(text.contains("3 of 5 runs of B"), "{text}");
    assert_eq!(output(&["gate", &a, "--", &b, "--fail", "pps<-2%"]).0, 0);
    let (code, text, _) = output(&["compare", &a, "--", &b]);
    assert!(code == 0 && text.contains("B p50: the lateness of the lab's own"), "{code} {text}");
    // A run of a version that did not know the receiver's is read without it.
    alter(&b, |_| true, |run| _ = run["latency"].as_object_mut().unwrap().remove("receiving"));
    assert_eq!(output(&["gate", &a, "--", &b, "--fail", "p99>+5%"]).0, 0);
}

#[test]
fn sides_that_did_not_take_turns_say_so_in_every_form_and_a_drift_is_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let (run, a) = calm_side(dir.path());
    let b = side(&dir.path().join("b"), &run, &[50_100, 50_300, 49_700, 50_000, 49_900]);
    let html = dir.path().join("page.html");
    let forms = || {
        let gate = |form: &[&str]| output(&[&["gate", &a, "--", &b, "--fail", "p99>+5%"], form].concat());
        let compare = |form: &[&str]| output(&[&["compare", &a, "--", &b], form].concat());
        let page = compare(&["--html", html.to_str().unwrap()]);
        let pages = [gate(&[]), gate(&["--json"]), gate(&["--md"]), compare(&["--json"]), page];
        let mut texts = pages.map(|(code, text, _)| (code, text)).to_vec();
        texts.push((0, fs::read_to_string(&html).unwrap()));
        texts
    };
    for (code, text) in forms() {
        assert!(code == 0 && !text.contains("towpath-lab ab"), "{text}");
        assert!(text.starts_with('{') || text.contains("Hodges-Lehmann shift"), "{text}");
    }
    // Nanoseconds are what JSON has of the times; B began an hour later.
    alter(
        &b,
        |_| true,
        |run| {
            run["started_unix_ns"] = (3_600_000_000_000 + run["started_unix_ns"].as_u64().unwrap()).into();
        },
    );
    for (code, text) in forms() {
        let said = text.matches("all runs of A were made before the first of B").count();
        assert!(code == 0 && said == 1 && text.contains("towpath-lab ab"), "{said} {text}");
    }

    // A machine that becomes slower, and one server.
    let slower = |name: &str, from: u64| {
        let p99: Vec<u64> = (from..from + 6).map(|run| 50_000 + 1_000 * run).collect();
        let side = side(&dir.path().join(name), &run, &p99);
        for index in 0..6 {
            let path = Path::new(&side).join(index.to_string()).join(bundle::RUN_JSON);
            let mut run: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            run["started_unix_ns"] = (1_000_000_000 * (from + index)).into();
            fs::write(&path, run.to_string()).unwrap();
        }
        side
    };
    let (before, after) = (slower("before", 0), slower("after", 6));
    let (code, text, _) = output(&["gate", &before, "--", &after, "--fail", "p99>+5%"]);
    assert!(code == 3 && text.contains("p99>+5%: p99 drifts by +10"), "{code} {text}");
    let (code, text, _) = output(&["compare", &before, "--", &after]);
    assert!(
        code == 0 && text.contains("B p99: p99 drifts by +10") && !text.contains("worse │"),
        "{code} {text}"
    );
}

#[test]
fn a_run_that_died_takes_no_rule_away() {
    let dir = tempfile::tempdir().unwrap();
    let (run, a) = calm_side(dir.path());
    let p99 = [50_100, 50_300, 49_700, 50_000, 49_900];
    let made = |name: &str| side(&dir.path().join(name), &run, &p99);
    let gate =
        |b: &str, rule: &str, more: &[&str]| output(&[&["gate", &a, "--", b, "--fail", rule], more].concat());

    // It wrote nothing.
    let unwritten = made("unwritten");
    fs::create_dir(Path::new(&unwritten).join("5")).unwrap();
    let (code, text, stderr) = gate(&unwritten, "p99>+5%", &["--inconclusive", "pass"]);
    assert!(
        code == 4 && text.starts_with("NO VERDICT") && text.contains("its run died"),
        "{code} {text} {stderr}"
    );
    assert_eq!(gate(&unwritten, "p99>+5%", &["--allow-invalid"]).0, 0);
    let (code, text, _) = output(&["compare", &a, "--", &unwritten]);
    assert!(code == 4 && text.contains("its run died"), "{code} {text}");
    let junit = dir.path().join("junit.xml");
    let (code, text, _) = output(&["report", &a, &unwritten, "--junit", junit.to_str().unwrap()]);
    assert!(code == 0 && text.contains("its run died"), "{code} {text}");
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("tests=\"11\" failures=\"1\"") && xml.contains("its run died"), "{xml}");
    super::files::is_valid_junit(&junit);

    // Its server answered nothing any more.
    let silent = made("silent");
    alter(&silent, |_| true, |run| run["received_pps"] = 0.into());
    let (code, text, _) = gate(&silent, "pps<-2%", &[]);
    assert!(code == 1 && text.starts_with("FAIL"), "{code} {text}");

    // Its server ended, and what it took by then is not what it takes.
    let ended = made("ended");
    let cpu = |run: &mut Value, ended_early: bool| {
        run["dut"] =
            json!([{ "pid": 7, "name": "relay", "cpu_ns": 9, "threads": 1, "ended_early": ended_early }]);
        run["dut_cpu_ns_per_packet"] = 500.0.into();
    };
    alter(&a, |_| true, |run| cpu(run, false));
    alter(&ended, |_| true, |run| cpu(run, false));
    assert_eq!(gate(&ended, "cpu/pkt>+3%", &[]).0, 0);
    alter(&ended, |index| index == 2, |run| cpu(run, true));
    let (code, text, _) = gate(&ended, "cpu/pkt>+3%", &["--inconclusive", "pass"]);
    assert!(code == 4 && text.contains("run 3 of B outlived process 7 relay"), "{code} {text}");
    let (code, text, _) = gate(&ended, "cpu/pkt>+3%", &["--allow-invalid"]);
    assert!(code == 3 && text.contains("run 3 of B: process 7 relay ended before it"), "{code} {text}");
    let (code, text, _) = output(&["compare", &a, "--", &ended, "--allow-invalid"]);
    assert!(code == 0 && text.contains("cpu/pkt: run 3 of B: process 7 relay"), "{code} {text}");
}

/// Options of runs that are over in a moment.
pub const SHORT: [&str; 12] = [
    "--rate",
    "1kpps",
    "--duration",
    "200ms",
    "--warmup",
    "0s",
    "--drain",
    "50ms",
    "--interval",
    "100ms",
    "--lateness-limit",
    "1s",
];

/// A port that was free a moment ago.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn programs_take_turns_and_their_processor_time_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let reflector = |port: u16| {
        format!("127.0.0.1:{port}={} reflect 127.0.0.1:{port}", env!("CARGO_BIN_EXE_towpath-lab"))
    };
    let (first, second) = (reflector(free_port()), reflector(free_port()));
    let mut arguments =
        vec!["ab", "udp", &first, &second, "--blocks", "2", "--metrics", "p50,cpu/pkt", "--json"];
    // The machine may be busy.
    arguments.push("--allow-invalid");
    arguments.extend(SHORT);
    arguments.extend(["--out", out.to_str().unwrap()]);
    let (code, text, stderr) = output(&arguments);
    assert!(code == 0 || code == 4, "{code} {text} {stderr}");
    let json: Value = serde_json::from_str(&text).unwrap();
    let [p50, cpu] = json[0]["differences"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!(
        (&p50["side"], &cpu["metric"], &json[0]["runs"]),
        (&json!("B"), &json!("cpu/pkt"), &json!([2, 2]))
    );
    assert!(
        cpu["estimate"].as_f64().unwrap() > 0.0
            && p50["why"].as_str().unwrap().contains("a side is the least"),
        "{json}"
    );
    // A B B A or B A A B, whichever the seed says.
    let started = |side: &str, run: &str| bundle::read(&out.join(side).join(run)).unwrap().started_unix_ns;
    let a_first = started("A", "01") < started("B", "01");
    assert_eq!(a_first, started("A", "02") > started("B", "02"));

    let (code, _, stderr) = output(&arguments);
    assert!(code == 2 && stderr.contains("exists already"), "{code} {stderr}");
    let missing = format!("127.0.0.1:{}=/nowhere/at-all", free_port());
    let (code, _, stderr) =
        output(&["ab", "udp", &first, &missing, "--blocks", "1", "--duration", "100ms", "--drain", "50ms"]);
    assert!(
        code == 5 && stderr.contains("/nowhere/at-all") && stderr.contains("not found"),
        "{code} {stderr}"
    );
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test waits for a program")]
fn an_interrupt_keeps_the_runs_that_are_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Reflector::start("127.0.0.1:0"), Reflector::start("127.0.0.1:0"));
    let out = dir.path().join("out");
    let mut arguments =
        vec!["ab", "udp", &a.address, &b.address, "--blocks", "1000", "--out", out.to_str().unwrap()];
    arguments.extend(SHORT);
    let child = lab(&arguments).spawn().unwrap();
    let begin = Instant::now();
    while !(out.join("A/01/run.json").exists() && out.join("B/01/run.json").exists()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("interrupted") && text.contains("p50") && text.contains("no verdict: "), "{text}");
    assert!(!["better", "worse", "same"].iter().any(|found| text.contains(&format!(" {found} │"))), "{text}");
    bundle::read(&out.join("A/01")).unwrap();
    // Whoever judges these runs later is told, though each of them is whole.
    let [a, b] = ["A", "B"].map(|side| out.join(side).to_str().unwrap().to_owned());
    let (code, text, stderr) = super::output(&["gate", &a, "--", &b, "--fail", "p99>+5%"]);
    assert!(code == 4 && text.starts_with("NO VERDICT"), "{code} {text} {stderr}");
    assert!(text.contains("was cut short (interrupted): ") && text.contains(" of 1000 runs"), "{text}");
}

#[test]
fn a_target_beside_itself_shows_the_noise_that_the_gate_then_tells() {
    let dir = tempfile::tempdir().unwrap();
    let reflector = Reflector::start("127.0.0.1:0");
    let out = dir.path().join("aa");
    let mut arguments = vec![
        "aa",
        "udp",
        &reflector.address,
        "--runs",
        "7",
        "--per-side",
        "3",
        "--out",
        out.to_str().unwrap(),
    ];
    arguments.extend(SHORT);
    let (code, text, stderr) = output(&arguments);
    assert!(code == 0 || code == 4, "{code} {text} {stderr}");
    assert!(text.contains("found 9 in 10") && text.contains("3 runs a side, 16 ways"), "{text}");
    let (first, second, noise) = (out.join("A/01"), out.join("A/02"), out.join("aa.json"));
    let [first, second, noise] = [&first, &second, &noise].map(|path| path.to_str().unwrap());
    let arguments = ["gate", first, "--", second, "--fail", "p50>+5%", "--noise", noise, "--allow-invalid"];
    let (_, text, stderr) = output(&arguments);
    assert!(text.contains("noise of this host") && text.contains("3 runs a side find"), "{text} {stderr}");
    assert_eq!(output(&["aa", "udp", &reflector.address, "--runs", "5", "--per-side", "3"]).0, 2);
}

#[test]
fn a_search_has_bounds_and_says_what_no_loss_means() {
    let reflector = Reflector::start("127.0.0.1:0");
    let search = |more: &[&str]| {
        let mut arguments = vec![
            "search",
            "udp",
            &reflector.address,
            "--goal",
            "slo:p50<10s/exceed:50%/100ms:100ms",
            "--max",
            "2kpps",
        ];
        arguments.extend([
            "--width",
            "30%",
            "--warmup",
            "0s",
            "--drain",
            "50ms",
            "--interval",
            "100ms",
            "--lateness-limit",
            "1s",
        ]);
        arguments.extend(more);
        output(&arguments)
    };
    let (code, text, stderr) = search(&[]);
    assert!(code == 0 || code == 4, "{code} {text} {stderr}");
    if code == 0 {
        assert!(text.contains("2.00 kpps") && text.contains("at least that"), "{text}");
        assert!(text.contains("loss < 3/"), "{text}");
        assert!(text.contains("ended: the highest rate of the search, 2.00 kpps, holds for slo"), "{text}");
    } else {
        assert!(text.contains("ended: the generator was the limit"), "{text}");
    }
    let (code, text, stderr) = search(&["--budget", "0s", "--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["found"][0]["lower"]), (3, &Value::Null), "{json} {stderr}");
    assert!(json["ended"].as_str().unwrap().contains("--budget"), "{json}");
    assert!(json["found"][0]["note"].as_str().unwrap().contains("undecided"), "{json}");
    let (code, _, stderr) = search(&["--from", "3kpps"]);
    assert!(code == 2 && stderr.contains("nothing to search"), "{code} {stderr}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test waits for a program")]
fn an_interrupted_search_says_what_it_knows() {
    let reflector = Reflector::start("127.0.0.1:0");
    let arguments = [
        "search",
        "udp",
        &reflector.address,
        "--max",
        "2kpps",
        "--goal",
        "ndr/exceed:50%/1s:600s",
        "--width",
        "30%",
    ];
    let child = lab(&arguments).spawn().unwrap();
    // The thread that takes signals is there before anything is measured.
    let threads = format!("/proc/{}/task", child.id());
    let is_there = || {
        let mut names =
            fs::read_dir(&threads).into_iter().flatten().flatten().map(|task| task.path().join("comm"));
        names.any(|name| fs::read_to_string(name).is_ok_and(|name| name.trim() == "lab-signals"))
    };
    let begin = Instant::now();
    while !is_there() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no thread for signals");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(130) && text.contains("undecided"), "{:?} {text}", output.status);
    assert!(text.contains("ended: interrupted"), "{text}");
}

#[test]
fn a_sweep_has_a_row_for_each_load_and_a_calibration_one_for_each_figure() {
    let dir = tempfile::tempdir().unwrap();
    let reflector = Reflector::start("127.0.0.1:0");
    let page = dir.path().join("sweep.html");
    let mut arguments =
        vec!["sweep", "udp", &reflector.address, "--of", "8kpps", "--points", "0,50,110", "--blocks", "1"];
    arguments.extend(&SHORT[2..]);
    arguments.extend(["--html", page.to_str().unwrap()]);
    let (code, text, stderr) = output(&arguments);
    assert!(code == 0 || code == 4, "{code} {text} {stderr}");
    for row in ["│ 0 % ", "│ 50 % ", "│ 110 % ", "8.80 kpps", "█"] {
        assert!(text.contains(row), "{row}: {text}");
    }
    assert!(fs::read_to_string(page).unwrap().contains("<polyline"));

    // A search that came to no end does not say what 100 % is.
    let (code, text, stderr) =
        output(&["sweep", "udp", &reflector.address, "--max", "8kpps", "--budget", "0s", "--blocks", "1"]);
    assert!(
        code == 3
            && text.contains("ended: the time of --budget was up")
            && stderr.contains("100 % is undecided"),
        "{code} {text} {stderr}"
    );

    let mut arguments = vec!["calibrate", "--budget", "0s"];
    arguments.extend(SHORT);
    let (code, text, stderr) = output(&arguments);
    assert!(
        (code == 3 || code == 4) && text.contains("lateness of the sender") && text.contains("undecided"),
        "{code} {text} {stderr}"
    );
}

#[test]
fn our_own_designs_are_compared_in_a_network_of_their_own() {
    let mut arguments = vec!["ab", "--io", "suspend,drop", "--blocks", "1", "--json", "--flows", "2"];
    arguments.push("--allow-invalid");
    arguments.extend(SHORT);
    let (code, text, stderr) = output(&arguments);
    assert!(code == 0 || code == 4, "{code} {text} {stderr}");
    let json: Value = serde_json::from_str(&text).unwrap();
    let tables = json.as_array().unwrap();
    let left_out = tables[0]["notes"]
        .as_array()
        .unwrap()
        .iter()
        .any(|note| note.as_str().unwrap().contains("left out: tunnel"));
    assert_eq!(tables.len(), if left_out { 1 } else { 2 }, "{json}");
    if left_out {
        super::left_out("designs through a tunnel: user namespaces and /dev/net/tun, see README");
    }
    for table in tables {
        let cpu = table["differences"]
            .as_array()
            .unwrap()
            .iter()
            .find(|found| found["metric"] == "cpu/pkt")
            .unwrap();
        assert!(cpu["estimate"].as_f64().unwrap() > 0.0 && cpu["side"] == "drop", "{table}");
        assert_eq!(table["runs"], json!([1, 1]));
    }
    if !left_out {
        // From the address towards the relay nobody is reached through the tunnel: its half fails, the other is kept.
        let mut arguments =
            vec!["ab", "--io", "suspend,drop", "--blocks", "1", "--json", "--bind", "10.71.2.1"];
        arguments.extend(SHORT);
        let (code, text, stderr) = output(&arguments);
        assert!(code == 5 && stderr.contains("through the tunnel: "), "{code} {text} {stderr}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json.as_array().unwrap().len(), &json[0]["title"]), (1, &json!("relay")), "{text}");
        assert_eq!(json[0]["runs"], json!([1, 1]));
    }
    let (code, _, stderr) = output(&["ab", "--io", "uring"]);
    assert!(code == 2 && stderr.contains("uring,suspend"), "{code} {stderr}");
    let (code, _, stderr) = output(&["ab", "udp", "127.0.0.1:9"]);
    assert!(code == 2 && stderr.contains("two targets"), "{code} {stderr}");
}
