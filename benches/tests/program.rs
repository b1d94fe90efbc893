//! The benchmark as a program: that it runs, names its rows and says what it could not measure. No figure is judged here.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::process::{Command, Output};

fn benches(arguments: &[&str]) -> Output {
    #[expect(clippy::disallowed_methods, reason = "a test starts programs and has no ring open")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_benches"));
    // Without PATH there is nobody to compare with; /usr/sbin is looked at all the same, so coturn may not be asked for.
    command.args(arguments).env("PATH", "/nonexistent").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_list_names_a_row_for_every_target() {
    let output = benches(&["peers", "--list"]);
    let list = text(&output.stdout);
    for row in
        ["ring-bulk", "ring-sparse", "relay-bulk", "relay-single", "tunnel", "relay-memory", "io-tunnel"]
    {
        assert!(list.lines().any(|line| line.starts_with(&format!("{row} "))), "{row}: {list}");
    }
}

#[test]
fn a_row_that_does_not_exist_is_named_with_the_remedy() {
    let output = benches(&["peers", "no-such-row"]);
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("no-such-row") && error.contains("--list"), "{error}");
}

#[test]
fn the_ring_is_compared_with_the_kernel() {
    let output = benches(&["ring", "--runs", "1", "--seconds", "0.2"]);
    if text(&output.stderr).contains("io_uring is") {
        println!("left out: {}", text(&output.stderr));
        return;
    }
    let table = text(&output.stdout);
    let ratio = |case: &str| -> f64 {
        let line = table.lines().find(|line| line.starts_with(case)).unwrap_or_else(|| panic!("{table}"));
        // The ratio stands before its spread ("1.10 to 1.10"), the limit and the share that arrived.
        line.split_whitespace().rev().nth(5).unwrap().parse().unwrap()
    };
    for case in ["bulk", "sparse"] {
        assert!((0.01..100.0).contains(&ratio(case)), "{table}");
    }
}

#[test]
fn what_is_not_installed_is_left_out_with_the_remedy() {
    let output = benches(&["peers", "tunnel", "--runs", "1", "--seconds", "0.2", "--json"]);
    let error = text(&output.stderr);
    if error.contains("forbidden") {
        println!("left out: {error}");
        return;
    }
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let reason = result["rows"][0]["sides"][0]["not_measured"].as_str().unwrap();
    assert!(reason.contains("apt-get install wireguard-go"), "{reason}");
    assert!(result["rows"][0]["verdicts"][0].as_str().unwrap().ends_with("not measured"), "{result}");
}
