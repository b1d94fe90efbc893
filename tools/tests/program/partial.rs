//! Commands that make several runs, when one of them cannot be made.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bad_reflector::{BadReflector, Plan};
use super::judging::SHORT;
use super::left_out::left_out;
use super::{lab, output};

/// A process to be observed: when it is gone, no further run can be made.
struct Observed(Child);

impl Observed {
    #[expect(clippy::disallowed_methods, reason = "the test ends a process of its own")]
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the observed process once `reached` is; answers what the command then did: always status 5.
#[expect(clippy::disallowed_methods, reason = "a test waits for a program")]
fn cut_short(arguments: &[&str], reached: impl Fn() -> bool) -> (String, String) {
    let mut observed = Observed::start();
    let pid = observed.pid();
    let mut child = lab(&[arguments, &SHORT[2..], &["--steal-limit", "100%", "--dut-pid", &pid]].concat())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !reached() {
        assert!(child.try_wait().unwrap().is_none(), "{arguments:?} has ended");
        assert!(begin.elapsed() < Duration::from_secs(60), "{arguments:?} makes no runs");
        std::thread::sleep(Duration::from_millis(5));
    }
    observed.end();
    let output = child.wait_with_output().unwrap();
    let [text, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(5), "{text} {stderr}");
    assert!(stderr.contains(&format!("--dut-pid {pid}")), "{stderr}");
    (text, stderr)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn noise_that_was_measured_is_kept_when_a_run_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("aa");
    let reflector = BadReflector::start(Plan::default());
    let target = reflector.address.to_string();
    let aa =
        ["aa", "udp", &target, "--rate", "1kpps", "--runs", "500", "--per-side", "2", "--out", path(&out)];
    let (text, _) = cut_short(&aa, || out.join("A/04/run.json").exists());
    reflector.finish();
    assert!(
        text.contains("a run could not be made (no scheduler statistics for --dut-pid")
            && text.contains("of 500 runs"),
        "{text}"
    );
    assert!(text.contains("│ p50 ") && text.contains("2 runs a side"), "{text}");
    let found: Value = serde_json::from_str(&fs::read_to_string(out.join("aa.json")).unwrap()).unwrap();
    assert!(found["shortfall"].as_str().unwrap().contains("of 500 runs"), "{found}");
    assert!(found["runs"].as_u64().unwrap() >= 4 && found["metrics"][0]["metric"] == "p50", "{found}");
}

#[test]
fn loads_that_were_measured_are_kept_when_a_run_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let (out, page) = (dir.path().join("sweep"), dir.path().join("pages/sweep.html"));
    let reflector = BadReflector::start(Plan::default());
    let target = reflector.address.to_string();
    let sweep = ["sweep", "udp", &target, "--of", "2kpps", "--points", "50,100", "--blocks", "500"];
    let sweep = [&sweep[..], &["--out", path(&out), "--html", path(&page)]].concat();
    // The second is being made, or will not be.
    let made = |side: &str| out.join(side).join("01/run.json").exists();
    let (text, _) = cut_short(&sweep, || made("50%") || made("100%"));
    reflector.finish();
    assert!(text.contains("of 1000 runs") && text.contains("│ 50 % ") && text.contains("│ 100 % "), "{text}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("of 1000 runs") && page.contains("<polyline"), "{page}");
}

#[test]
fn trials_that_were_made_are_kept_when_one_cannot_be_made() {
    let reflector = BadReflector::start(Plan::default());
    let target = reflector.address.to_string();
    let goal = "slo:p50<10s/exceed:50%/100ms:600s";
    let search = ["search", "udp", &target, "--goal", goal, "--max", "2kpps", "--json"];
    // That trial comes to its end: what it needs to know of the process it knows.
    let (text, stderr) = cut_short(&search, || reflector.began_ns.load(Ordering::Relaxed) > 0);
    reflector.finish();
    let found: Value = serde_json::from_str(&text).unwrap();
    assert!(!found["trials"].as_array().unwrap().is_empty(), "{found}");
    assert_eq!(found["found"][0]["complete"], false);
    assert!(stderr.contains("the search broke off"), "{stderr}");
}

#[test]
fn trials_for_the_whole_of_a_sweep_are_kept_when_one_cannot_be_made() {
    let reflector = BadReflector::start(Plan::default());
    let target = reflector.address.to_string();
    let sweep = ["sweep", "udp", &target, "--max", "2kpps"];
    let (text, stderr) = cut_short(&sweep, || reflector.began_ns.load(Ordering::Relaxed) > 0);
    reflector.finish();
    assert!(text.contains("towpath-lab search") && text.contains("the search broke off"), "{text}");
    // The trial that was under way came to its end.
    let trials = text.split("Trials").nth(1).unwrap();
    assert!(trials.contains(" kpps ") || trials.contains(" pps "), "{text}");
    assert!(stderr.contains("while searching for 100 %"), "{stderr}");
}

#[test]
fn what_could_not_be_written_at_the_end_is_refused_at_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("file"), dir.path().join("out"));
    fs::write(&file, "").unwrap();
    let page = file.join("page.html");
    let (code, text, stderr) =
        output(&["sweep", "udp", "127.0.0.1:9", "--of", "2kpps", "--html", path(&page), "--out", path(&out)]);
    assert!(code == 1 && text.is_empty() && stderr.contains("file/page.html"), "{code} {text} {stderr}");
    assert!(!out.exists(), "nothing was begun");
    fs::create_dir_all(out.join("aa.json")).unwrap();
    let (code, text, stderr) = output(&["aa", "udp", "127.0.0.1:9", "--out", path(&out)]);
    assert!(code == 1 && text.is_empty() && stderr.contains("out/aa.json"), "{code} {text} {stderr}");
    assert!(!out.join("A").exists(), "nothing was begun");
}

#[test]
fn runs_of_another_time_in_a_later_part_are_found_before_the_first() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("tunnel/drop")).unwrap();
    let ab = ["ab", "--io", "suspend,drop", "--blocks", "1", "--out", path(dir.path())];
    let (code, text, stderr) = output(&[&ab[..], &SHORT[..]].concat());
    if text.contains("left out: tunnel") {
        return left_out("a tunnel's part of ab: its network cannot be made here");
    }
    assert!(
        code == 2 && stderr.contains("tunnel/drop exists already") && text.is_empty(),
        "{code} {text} {stderr}"
    );
    assert!(!dir.path().join("relay").exists(), "nothing was begun");
}
