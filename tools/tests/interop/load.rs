//! The kinds of load that go through a tunnel, against `towpath` and against Debian's `wireguard-go`: the lab as a peer of either,
//! and as their user.

use serde_json::Value;

use super::tunnel::{End, start_towpath_with, start_wireguard_go};
use super::world::{Process, World, try_sh};

const LAB: &str = env!("CARGO_BIN_EXE_towpath-lab");

/// Runs a load on a host. That the machine was busy is no fault here; anything else than a result is.
fn load(host: &str, arguments: &str) -> Value {
    let command = format!(
        "ip netns exec {host} {LAB} run {arguments} --warmup 50ms --duration 400ms --drain 500ms --json"
    );
    let output = try_sh(&command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 4)), "{command}\n{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What was sent, when all of it arrived in order.
fn unharmed(result: &Value) -> u64 {
    let count = |name: &str| result["ledger"][name].as_u64().unwrap();
    let harm = ["lost", "late", "duplicate", "reordered", "corrupt"].map(count);
    assert_eq!(harm, [0; 5], "{} {}", result["ledger"], result["verdict"]);
    assert_eq!(count("received"), count("sent"));
    assert!(result["latency"]["response"]["min_ns"].as_u64().unwrap() > 1_000);
    count("sent")
}

fn server(world: &World, own: bool, end: &End, other: &End, endpoint: Option<&str>) -> Process {
    match own {
        true => start_towpath_with(world, end, other, endpoint, "MTU = 1420", &[]),
        false => start_wireguard_go(world, end, other, endpoint, 1420),
    }
}

pub fn the_lab_is_a_peer_of_either_server(world: World) {
    for own in [true, false] {
        let (end, lab) = (End::new("a", 1), End::new("a", 9));
        let process = server(&world, own, &end, &lab, None);
        let key = world.file("lab.key", lab.private()).display().to_string();
        for (target, prefix) in [("10.1.0.2:51820", "10.77.0."), ("[fd01::2]:51820", "fd77::")] {
            let peer = format!(
                "{target} --wg-key {key} --wg-server {} --inner {prefix}9 --peer {prefix}1 --rate 1kpps --flows 7",
                end.public()
            );
            for kind in ["wg-rx --size 1000", "wg-tx --size 1000", "wg-rx --send uring", "wg-tx --send uring"]
            {
                let shape = if kind.ends_with("uring") { "--size imix --burst 16 --gso" } else { "" };
                let result = load("a", &format!("{kind} {peer} {shape}"));
                assert!(unharmed(&result) > 200, "{own} {kind}: {}", result["ledger"]);
            }
        }
        // Nobody's key: the server says nothing, and the lab says what to look at.
        let stranger = world.file("stranger.key", End::new("a", 8).private()).display().to_string();
        if own {
            let refused = try_sh(&format!(
                "ip netns exec a {LAB} run wg-rx 10.1.0.2:51820 --wg-key {stranger} --wg-server {} --inner 10.77.0.9 --peer 10.77.0.1",
                end.public()
            ));
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                refused.status.code() == Some(5) && said.contains("does not answer the handshake"),
                "{said}"
            );
        }
        process.stop();
    }
}

pub fn datagrams_and_connections_go_through_either_tunnel(world: World) {
    for own in [true, false] {
        let (a, b) = (End::new("a", 1), End::new("b", 2));
        let callee = server(&world, own, &b, &a, None);
        let caller = server(&world, own, &a, &b, Some("10.2.0.2:51820"));
        let reflector = world.start(
            "b",
            &[LAB, "reflect", "--tcp", "10.77.0.2:9000", "[fd77::2]:9000"],
            "[fd77::2]:9000",
        );
        for target in ["10.77.0.2:9000", "[fd77::2]:9000"] {
            let result = load("a", &format!("tunnel {target} --size imix --flows 5"));
            assert!(unharmed(&result) > 200, "{}", result["ledger"]);
            let result = load("a", &format!("tcp {target} --rate 20Mbit --size 5000 --flows 4"));
            assert!(unharmed(&result) > 100, "{}", result["ledger"]);
            let (offered, received) = (&result["offered_bps"], &result["received_bps"]);
            let rates = [offered, received].map(|rate| rate.as_f64().unwrap() / 2e7);
            assert!(rates.iter().all(|share| (0.7..1.3).contains(share)), "{rates:?}");
        }
        reflector.stop();
        caller.stop();
        callee.stop();
    }
}
