//! What a relay says at its start about settings that would not do what was meant.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use crate::harness::{RelayProcess, program};

/// TEST-NET-3: no interface has it.
const ELSEWHERE: &str = "203.0.113.77";

#[test]
fn a_relay_address_that_no_interface_has_is_refused_with_its_remedy() {
    let output = program(env!("CARGO_BIN_EXE_towpath-relay"))
        .args(["--listen", "127.0.0.1:0", "--admin", "off", "--relay-address", ELSEWHERE])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(ELSEWHERE) && log.contains("--external-ip"), "{log}");
}

#[test]
fn an_external_address_for_an_address_that_is_not_here_is_warned_about() {
    let warning = "--external-ip is without effect";
    let of = |value: &str| RelayProcess::on_loopback(&["--external-ip", value]).before_ready().to_owned();
    assert!(of("198.41.0.4/203.0.113.77").contains(warning));
    assert!(!of("198.41.0.4/127.0.0.1").contains(warning));
    assert!(!of("198.41.0.4").contains(warning));
}

#[test]
fn clients_over_ipv6_alone_are_told_of_when_there_is_no_ipv4_to_relay_at() {
    let said = "get 440";
    let relay = RelayProcess::start(&["--listen", "[::1]:0"]);
    assert!(relay.before_ready().contains(said), "{}", relay.before_ready());
    let relay = RelayProcess::start(&["--listen", "[::1]:0", "--relay-address", "127.0.0.1", "::1"]);
    assert!(!relay.before_ready().contains(said), "{}", relay.before_ready());
}

#[test]
fn a_limit_of_open_files_below_the_limits_of_clients_is_warned_about() {
    let warning = "the limit of open files is below";
    let relay = RelayProcess::on_loopback(&["--allocations-max", "4000000000"]);
    assert!(relay.before_ready().contains(warning), "{}", relay.before_ready());
    let relay = RelayProcess::on_loopback(&["--allocations-max", "100"]);
    assert!(!relay.before_ready().contains(warning), "{}", relay.before_ready());
}
