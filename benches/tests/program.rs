//! The benchmark as a program: that it runs, names its rows and says what it could not measure. No figure is judged here.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;

use left_out::left_out;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

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
    for row in [
        "ring-bulk",
        "ring-sparse",
        "relay-bulk",
        "relay-train",
        "relay-single",
        "relay-hairpin",
        "relay-flows",
        "relay-calls",
        "relay-latency",
        "relay-memory",
        "tunnel",
        "tunnel-cut",
        "tunnel-streams",
        "tunnel-loss-free-64",
        "tunnel-loss-free-1200",
        "tunnel-small",
        "tunnel-idle",
        "tunnel-beside",
        "io-tunnel",
        "io-relay",
        "io-relay-light",
        "io-tunnel-idle",
    ] {
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

/// Two forwarders at a time would want the same thousand ports.
static FORWARDER: Mutex<()> = Mutex::new(());

#[test]
fn the_ring_is_compared_with_the_kernel() {
    let _alone = FORWARDER.lock().unwrap_or_else(PoisonError::into_inner);
    let output = benches(&["ring", "--runs", "1", "--seconds", "0.2"]);
    if text(&output.stderr).contains("io_uring is") {
        return left_out(&text(&output.stderr));
    }
    let table = text(&output.stdout);
    let ratio = |case: &str| -> f64 {
        let line = table.lines().find(|line| line.starts_with(case));
        let line = line.unwrap_or_else(|| panic!("{table}{}", text(&output.stderr)));
        // The ratio stands before its spread ("1.10 to 1.10"), the limit and the share that arrived.
        line.split_whitespace().rev().nth(5).unwrap().parse().unwrap()
    };
    for case in ["bulk", "sparse"] {
        // On a debug build that shares its cores with other tests; a broken clock or count is further off.
        assert!((0.1..20.0).contains(&ratio(case)), "{table}");
    }
}

#[test]
fn the_histograms_are_compared_with_none() {
    let _alone = FORWARDER.lock().unwrap_or_else(PoisonError::into_inner);
    let output = benches(&["stages", "--runs", "1", "--seconds", "0.2", "--engine", "--io suspend"]);
    let table = text(&output.stdout);
    let share = |case: &str| -> f64 {
        let line = table.lines().find(|line| line.starts_with(case)).unwrap_or_else(|| panic!("{table}"));
        line.split_whitespace().rev().nth(1).unwrap().parse().unwrap()
    };
    for case in ["bulk", "sparse"] {
        assert!((0.0001..20.0).contains(&share(case)), "{table}");
    }
}

/// What `peers ROW` says of its one row, with turns as short as can be; nothing where it may not run.
fn row(name: &str) -> Option<serde_json::Value> {
    let output = benches(&["peers", name, "--runs", "1", "--seconds", "0.2", "--json"]);
    let error = text(&output.stderr);
    if error.contains("forbidden") {
        left_out(&error);
        return None;
    }
    let mut result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    Some(result["rows"][0].take())
}

#[test]
fn what_is_not_installed_is_left_out_with_the_remedy() {
    let Some(row) = row("tunnel") else { return };
    let reason = row["sides"][0]["not_measured"].as_str().unwrap();
    assert!(reason.contains("apt-get install wireguard-go"), "{reason}");
    assert!(row["verdicts"][0].as_str().unwrap().ends_with("not measured"), "{row}");
}

#[test]
fn system_calls_need_a_program_that_counts_them() {
    let Some(row) = row("relay-calls") else { return };
    let reason = row["sides"][1]["not_measured"].as_str().unwrap();
    assert!(reason.contains("linux-perf") && reason.contains("strace"), "{reason}");
}

#[test]
fn a_round_trip_through_the_tunnel_is_timed() {
    let Some(row) = row("tunnel-idle") else { return };
    let reason = row["sides"][0]["not_measured"].as_str().unwrap();
    assert!(reason.contains("cargo install boringtun-cli"), "{reason}");
    if let Some(reason) = row["sides"][1]["not_measured"].as_str() {
        assert!(reason.contains("/dev/net/tun"), "{reason}");
        return left_out(reason);
    }
    let turn = &row["sides"][1]["turns"][0];
    let figure = |name: &str| turn["figures"][name].as_f64().unwrap();
    assert!(0.0 < figure("p50") && figure("p50") <= figure("max"), "{row}");
    // Of a hundred datagrams nobody can tell the one in a hundred.
    assert!(turn["figures"]["p99"].is_null(), "{row}");
    assert_eq!(
        (turn["lost"].as_f64(), turn["ledger"]["unexplained"].as_i64()),
        (Some(0.0), Some(0)),
        "{row}"
    );
}

#[test]
fn plain_kernel_calls_stand_in_for_a_relay() {
    let Some(row) = row("relay-bulk") else { return };
    assert_eq!(row["sides"][1]["name"], "kernel calls");
    for side in [1, 2] {
        let turn = &row["sides"][side]["turns"][0];
        assert!(turn["figures"]["cost"].as_f64().unwrap() > 0.0, "{row}");
        // 8,000 datagrams are due; on a busy machine the sender has less time.
        assert!(turn["figures"]["rate"].as_f64().unwrap() > 4.0, "{row}");
    }
}

#[test]
fn a_client_reaches_another_one_of_the_same_relay() {
    let Some(row) = row("relay-hairpin") else { return };
    let turn = &row["sides"][1]["turns"][0];
    // 4,000 datagrams are due; on a busy machine the sender has less time.
    assert!(turn["figures"]["cost"].as_f64().unwrap() > 0.0, "{row}");
    assert!(turn["figures"]["rate"].as_f64().unwrap() > 2.0, "{row}");
}

#[test]
fn quick_passes_where_there_is_nobody_to_compare_with() {
    let output = benches(&["peers", "--quick", "tunnel"]);
    if text(&output.stderr).contains("forbidden") {
        return left_out(&text(&output.stderr));
    }
    let table = text(&output.stdout);
    assert!(table.contains("Band: cost ratio to wireguard-go") && table.contains("not measured"), "{table}");
    assert!(table.contains("apt-get install"), "{table}");
    assert!(output.status.success(), "{table}");
}
