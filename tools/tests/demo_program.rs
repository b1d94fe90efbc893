//! `towpath-lab demo` as a person runs it: it succeeds or says what is missing, and it leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "demo_program/lab.rs"]
mod lab;
#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_towpath-lab");

#[expect(clippy::disallowed_methods, reason = "a test may start a program")]
fn program() -> Command {
    Command::new(PROGRAM)
}

/// The demo with its files in `directory`.
fn demo(directory: &Path) -> Command {
    let mut command = program();
    command
        .args(["demo", "--io", "suspend", "--json", "--html"])
        .arg(directory.join("page.html"))
        .env("TMPDIR", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Command lines of the tunnels and relays whose configuration is in `directory`.
fn children_of(directory: &Path) -> Vec<String> {
    processes_with(&format!("{}/towpath-demo-", directory.display()))
}

/// Command lines of the processes that have `needle` in them.
fn processes_with(needle: &str) -> Vec<String> {
    let command_line = |entry: std::fs::DirEntry| {
        let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(command_line);
    all.filter(|line| line.contains(needle)).collect()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1_500 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("waited 15 s for {what}");
}

/// The demo once it has started a tunnel or a relay.
fn running(directory: &Path) -> Child {
    let mut child = demo(directory).spawn().unwrap();
    wait_for("a tunnel or a relay", || {
        assert!(child.try_wait().unwrap().is_none(), "the demo ended before it had started anything");
        !children_of(directory).is_empty()
    });
    child
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
}

#[test]
fn one_design_is_shown_on_every_route_this_machine_allows() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
    assert!(output.status.success(), "{errors} {}", found["failures"]);
    for note in found["notes"].as_array().unwrap() {
        println!("{}", note.as_str().unwrap());
    }
    let cells = found["cells"].as_array().unwrap();
    assert!(!cells.is_empty());
    for cell in cells {
        let measured = &cell["outcome"]["measured"];
        assert!(measured["run"]["ledger"]["received"].as_u64().unwrap() > 0, "{}", cell["cell"]);
        assert!(measured["processes"][0]["figures"]["operations"].as_u64().unwrap() > 0, "{}", cell["cell"]);
    }
    let tunnelled = cells.iter().any(|cell| cell["cell"]["route"] == "direct");
    let relayed = cells.iter().any(|cell| cell["cell"]["route"] == "relayed");
    assert_eq!(tunnelled, relayed);
    let page = std::fs::read_to_string(directory.path().join("page.html")).unwrap();
    assert!(page.contains("</html>") && page.contains("<svg"));
    assert!(children_of(directory.path()).is_empty());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the page is left");
}

#[test]
fn ctrl_c_ends_everything_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = running(directory.path());
    signal(&child, Signal::INT);
    wait_for("the demo to end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(children_of(directory.path()).is_empty());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_killed_demo_takes_its_processes_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = running(directory.path());
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    wait_for("its processes to end", || children_of(directory.path()).is_empty());
}

#[test]
fn a_role_does_not_run_for_somebody_else() {
    let output = program().args(["__relay", "-", "1", "--help"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is gone"));
}
