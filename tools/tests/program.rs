//! The program as a person meets it: exit codes, files, messages.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_reflector;
#[path = "program/browser.rs"]
mod browser;
#[path = "program/doctor.rs"]
mod doctor;
#[path = "program/files.rs"]
mod files;
#[path = "program/judging.rs"]
mod judging;
#[path = "program/live.rs"]
mod live;
#[path = "program/partial.rs"]
mod partial;
#[path = "program/readers.rs"]
mod readers;
#[path = "../../dataplane/tests/support/user_namespace.rs"]
mod user_namespace;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bad_reflector::{BadReflector, Plan};
use dataplane::hlog;
use rustix::process::{Pid, Signal, kill_process};
use tools::format::bundle;
use tools::reflect::journal::Did;
use tools::run::distribution::histogram;
use user_namespace::left_out::{self, left_out};

#[expect(clippy::disallowed_methods, reason = "the test runs the program")]
fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath-lab"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = lab(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A reflector in its own process; killed when dropped.
struct Reflector {
    child: Child,
    address: String,
    lines: BufReader<std::process::ChildStdout>,
}

impl Reflector {
    fn start(at: &str) -> Self {
        Self::start_with(at, &[])
    }

    fn start_with(at: &str, flags: &[&str]) -> Self {
        let mut child = lab(&[&["reflect", at], flags].concat()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("reflecting on ").unwrap().to_owned();
        Self { child, address, lines }
    }

    /// Ends it as a person would and returns what it printed.
    fn finish(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a short load into `dir`. On a busy machine the generator may find itself too slow, which is no fault here.
fn short_run(address: &str, dir: &Path, more: &[&str]) -> String {
    let dir = dir.to_str().unwrap();
    let mut arguments = vec![
        "run",
        "udp",
        address,
        "--rate",
        "2kpps",
        "--duration",
        "1s",
        "--warmup",
        "100ms",
        "--interval",
        "250ms",
    ];
    arguments.extend(["--drain", "400ms", "--pace", "sleep", "--out", dir]);
    arguments.extend(more);
    let (code, stdout, stderr) = output(&arguments);
    assert!(code == 0 || code == 4, "{code} {stdout} {stderr}");
    assert_eq!(code == 0, stdout.starts_with("VALID"), "{stdout}");
    stdout
}

#[test]
fn a_run_writes_files_that_agree_with_each_other_and_compare_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let reflector = Reflector::start("127.0.0.1:0");
    let pid = reflector.child.id().to_string();
    let stdout = short_run(&reflector.address, &a, &["--flows", "3", "--dut-pid", &pid]);
    assert!(stdout.contains("CPU per datagram") && stdout.contains("p99"), "{stdout}");
    short_run(&reflector.address, &b, &["--size", "1200", "--burst", "8", "--gso", "--label", "bursts <&>"]);
    let counts = reflector.finish();
    assert!(counts.starts_with("received ") && counts.contains("refused 0"), "{counts}");

    let result = bundle::read(&a).unwrap();
    let mut sum = histogram();
    for line in hlog::read(&fs::read_to_string(a.join("latency.hlog")).unwrap()).unwrap() {
        assert!(line.tag.is_none() && line.length_s >= 0.1);
        sum.add(&line.histogram).unwrap();
    }
    assert_eq!(sum.len(), result.ledger.received);
    let p50 = result.latency.response.quantile("p50").unwrap().value_ns.unwrap();
    assert!(sum.value_at_quantile(0.5).abs_diff(p50) * 500 <= p50, "{p50}");
    let detail = hlog::read(&fs::read_to_string(a.join("detail.hlog")).unwrap()).unwrap();
    let tags: Vec<_> = detail.iter().filter_map(|line| line.tag.as_deref()).collect();
    assert_eq!(tags, ["service", "lateness"]);
    let hgrm = fs::read_to_string(a.join("latency.hgrm")).unwrap();
    assert!(hgrm.contains(&format!("Total count    = {:>12}]", result.ledger.received)), "{hgrm}");
    assert!(result.dut_cpu_ns_per_packet.unwrap() > 100.0);

    let page = dir.path().join("page.html");
    let (a, b, page_path) = (a.to_str().unwrap(), b.to_str().unwrap(), page.to_str().unwrap());
    let (code, table, _) = output(&["compare", a, b, "--allow-invalid"]);
    assert!(code == 4 && table.contains("bursts <&>") && !table.contains('×'), "{code} {table}");
    for note in ["not the same size: 200 B in a, 1200 B in", "not the same gso", "not the same flows"] {
        assert!(table.contains(note), "{note}: {table}");
    }
    assert!(
        table.contains("not alike (burst, flows, gso, size)") && table.contains("--allow-different"),
        "{table}"
    );
    let allowed = ["--allow-invalid", "--allow-different"];
    let (code, table, stderr) = output(&[&["compare", a, b, "--html", page_path], &allowed[..]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(table.contains("÷ a") && table.contains("bursts <&>") && table.contains('×'), "{table}");
    assert!(table.contains("not the same size"), "{table}");
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("bursts &lt;&amp;&gt;") && html.contains("<polyline") && !html.contains("<script"));
    let (code, json, _) = output(&[&["compare", a, b, "--json"], &allowed[..]].concat());
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, rows.as_array().unwrap().len()), (0, 2));
    assert!(rows[1]["ratio"]["quantiles"][0][1].as_f64().unwrap() > 0.0, "{rows}");
    let (code, json, stderr) = output(&["compare", a, b, "--json", "--allow-invalid"]);
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(code == 4 && rows[1]["ratio"].is_null() && stderr.contains("not alike"), "{rows} {stderr}");
}

#[test]
fn comparing_shows_losses_doubts_and_files_of_other_versions() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    let reflector = Reflector::start("127.0.0.1:0");
    short_run(&reflector.address, &good, &["--flows", "2"]);
    let text = fs::read_to_string(good.join(bundle::RUN_JSON)).unwrap();
    let altered = |name: &str, alter: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        alter(&mut json);
        let path = dir.path().join(name);
        fs::write(&path, json.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad = altered("bad.json", &|json| {
        json["ledger"]["lost"] = 500.into();
        json["latency"]["response"]["quantiles"][1]["value_ns"] = serde_json::Value::Null;
        json["verdict"]["validity"] = "INVALID".into();
        json["interrupted"] = true.into();
        json["spec"]["label"] = "bad".into();
    });
    let arguments = ["compare", good.to_str().unwrap(), &bad];
    let (code, table, stderr) = output(&arguments);
    assert!(
        code == 4 && !table.contains('÷') && table.contains("--allow-invalid"),
        "{code} {table} {stderr}"
    );
    // The first divides the others, so it has to be believed as well.
    let (code, table, _) = output(&["compare", &bad, good.to_str().unwrap()]);
    assert!(code == 4 && !table.contains('÷'), "{code} {table}");
    let (_, json, _) = output(&[&arguments[..], &["--json"]].concat());
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(rows[1]["ratio"].is_null(), "{rows}");
    let (code, table, stderr) = output(&[&arguments[..], &["--allow-invalid"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let line = table.lines().find(|line| line.starts_with("│ bad ")).unwrap();
    assert!(line.contains(" lost ") && line.contains("(500)") && line.contains("INVALID"), "{table}");
    let ratios = table.lines().find(|line| line.contains("÷ good")).unwrap();
    assert_eq!(ratios.split('┆').nth(2).map(str::trim), Some("–"), "{table}");
    assert!(table.contains("bad was interrupted after"), "{table}");

    let later = altered("later.json", &|json| json["schema"] = 99.into());
    let other = altered("other.json", &|json| *json = serde_json::json!([1]));
    for (path, hint) in [(later, "schema 99"), (other, "not the result of a run")] {
        let (code, _, stderr) = output(&["compare", &path]);
        assert!(code == 1 && stderr.contains(hint), "{code} {stderr}");
    }
}

#[test]
fn a_replayed_run_sends_and_loses_what_the_first_one_did() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let log = dir.path().join("log.jsonl");
    let flags = ["--loss", "5%", "--duplicate", "2%", "--seed", "9", "--log", log.to_str().unwrap()];
    let reflector = Reflector::start_with("127.0.0.1:0", &flags);
    short_run(&reflector.address, &first, &["--flows", "5", "--seed", "3", "--label", "first"]);
    let (from, to) = (first.to_str().unwrap(), second.to_str().unwrap());
    let (code, stdout, stderr) = output(&["replay", from, "--out", to, "--label", "second"]);
    assert!(code == 0 || code == 4, "{code} {stdout} {stderr}");
    let printed = reflector.finish();
    let [first, second] = [&first, &second].map(|path| bundle::read(path).unwrap());
    assert_eq!((first.schedule.is_some(), &first.schedule), (true, &second.schedule));
    assert_ne!(first.run_id, second.run_id);
    assert_eq!((first.spec.seed, second.spec.label.as_str()), (3, "second"));
    assert!(first.ledger.lost > 20 && first.ledger.duplicate > 5, "{:?}", first.ledger);
    // A generator that could not send all of one has another ledger, and says so.
    if [&first, &second].iter().all(|run| run.ledger.sent == run.ledger.intended) {
        assert_eq!(first.ledger_by_flow, second.ledger_by_flow);
    }
    let (entries, totals) = tools::reflect::journal::read(&fs::read_to_string(&log).unwrap());
    assert_eq!(totals.len(), 2);
    for run in [&first, &second] {
        let of_run = |entry: &&tools::reflect::journal::Entry| entry.run.to_string() == run.run_id;
        let lost = entries.iter().filter(of_run).filter(|entry| entry.did == Did::Lost).count();
        assert_eq!(lost as u64, run.ledger.lost);
        assert!(printed.contains(&format!("run {}: seen {}", run.run_id, run.ledger.sent)), "{printed}");
    }

    let text = fs::read_to_string(Path::new(from).join(bundle::RUN_JSON)).unwrap();
    let other = text.replace(first.schedule.as_ref().unwrap(), "00000000");
    let path = dir.path().join("other.json");
    fs::write(&path, other).unwrap();
    let (code, _, stderr) = output(&["replay", path.to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("another schedule"), "{code} {stderr}");
}

#[test]
fn a_run_does_not_replace_another() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let reflector = Reflector::start("127.0.0.1:0");
    short_run(&reflector.address, &out, &[]);
    let first = fs::read(out.join(bundle::RUN_JSON)).unwrap();
    let path = out.to_str().unwrap();
    for again in [vec!["run", "udp", &reflector.address, "--out", path], vec!["replay", path, "--out", path]]
    {
        let (code, stdout, stderr) = output(&again);
        assert!(
            code == 2 && stdout.is_empty() && stderr.contains("choose a new directory"),
            "{code} {stderr}"
        );
    }
    assert_eq!(fs::read(out.join(bundle::RUN_JSON)).unwrap(), first);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 4);
}

#[test]
fn ipv6_works_too() {
    let reflector = Reflector::start("[::1]:0");
    let dir = tempfile::tempdir().unwrap();
    short_run(&reflector.address, dir.path(), &[]);
    let result = bundle::read(dir.path()).unwrap();
    assert!(result.ledger.balances() && result.ledger.received > 0, "{:?}", result.ledger);
    assert!(result.spec.target.is_ipv6());
}

#[test]
fn wrong_requests_end_with_2_and_name_the_fix() {
    for (arguments, hint) in [
        (vec!["run", "udp", "127.0.0.1:9", "--size", "10"], "--size 56"),
        (vec!["run", "udp", "127.0.0.1:9", "--rate", "fast"], "20kpps"),
        (vec!["run", "udp", "127.0.0.1"], "127.0.0.1:9000"),
        (vec!["run", "udp", "127.0.0.1:9", "--gso"], "--burst"),
        (vec!["run", "turn-channel", "127.0.0.1:9"], "--user"),
        (vec!["run", "turn-channel", "127.0.0.1:9", "--user", "me"], "NAME:PASSWORD"),
        (vec!["run", "udp", "127.0.0.1:9", "--interval", "50ms"], "100ms"),
        (vec!["reflect"], "ADDR:PORT"),
        (vec!["reflect", "127.0.0.1:0", "--loss", "2"], "1%"),
        (vec!["reflect", "127.0.0.1:0", "--loss", "60%", "--corrupt", "50%"], "110.0 %"),
        (vec!["run", "udp", "127.0.0.1:9", "--server-admin", "here"], "127.0.0.1:9641"),
        (vec!["lab", "up", "demo", "--name", "a/b"], "--name"),
        (vec!["frobnicate"], "Usage"),
    ] {
        let (code, _, stderr) = output(&arguments);
        assert_eq!(code, 2, "{arguments:?} {stderr}");
        assert!(stderr.contains(hint), "{arguments:?}: {stderr}");
    }
}

#[test]
fn missing_surroundings_end_with_5_and_missing_files_with_1() {
    let (code, _, stderr) = output(&["run", "udp", "127.0.0.1:9"]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("towpath-lab reflect 127.0.0.1:9"), "{stderr}");
    let (code, _, stderr) = output(&["reflect", "192.0.2.1:9"]);
    assert_eq!(code, 5, "{stderr}");
    let (code, _, stderr) = output(&["compare", "/nonexistent"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("/nonexistent") && stderr.contains("--out"), "{stderr}");
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    for (arguments, hint) in [
        (vec!["lab", "run", "nowhere.toml"], "or `demo`"),
        (vec!["lab", "up", "nowhere.toml"], "or `demo`"),
        (vec!["run", "udp", "127.0.0.1:9", "--arrivals", "trace:nowhere"], "trace:nowhere"),
        (vec!["replay", "nowhere"], "--out"),
        (vec!["report", "nowhere"], "nowhere"),
        (vec!["compare", empty], "--out"),
        (vec!["gate", empty, "--", empty, "--fail", "p99>+5%"], "holds no run"),
        (vec!["gate", empty, "--", empty, "--fail", "p99>+5%", "--noise", "nowhere"], "nowhere"),
    ] {
        let (code, _, stderr) = output(&arguments);
        assert!(
            code == 1 && (stderr.contains(hint) || stderr.contains("holds no run")),
            "{arguments:?}: {code} {stderr}"
        );
    }
    let reflector = Reflector::start("127.0.0.1:0");
    let (code, _, stderr) = output(&["run", "udp", &reflector.address, "--dut-pid", "4294967290"]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("--dut-pid 4294967290"), "{stderr}");
}

#[test]
fn an_interrupted_run_keeps_and_marks_what_it_has() {
    let reflector = BadReflector::start(Plan::default());
    let dir = tempfile::tempdir().unwrap();
    let (path, target) = (dir.path().to_str().unwrap(), reflector.address.to_string());
    let arguments = ["run", "udp", &target, "--duration", "60s", "--drain", "200ms", "--out", path];
    let mut child = lab(&arguments).spawn().unwrap();
    while reflector.began_ns.load(Ordering::Relaxed) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the run has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    reflector.finish();
    let result = bundle::read(dir.path()).unwrap();
    assert!(result.interrupted && result.ledger.balances());
    assert!(
        result.ledger.unsent > result.ledger.sent,
        "what was not sent any more is unsent: {:?}",
        result.ledger
    );
    assert!(result.ledger.received > 0 && result.ledger.sent < 10_000, "{:?}", result.ledger);
    assert!(result.measured_s < 20.0, "{}", result.measured_s);
}
