//! Commands that make several runs, when one of them cannot be made.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bad_reflector::{BadReflector, Plan};
use super::judging::SHORT;
use super::lab;

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
    let (out, page) = (dir.path().join("sweep"), dir.path().join("sweep.html"));
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
