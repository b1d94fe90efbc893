//! What an operator sees and what an operator does, together: figures of a relay that is confined, reloads, and drains.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::configured::{Configured, LOOPBACK};
use crate::harness::http::{connect, exchange, get, settled, status};
use crate::harness::load::Load;
use crate::harness::{Client, PASSWORD, PATIENCE, REALM, RelayProcess, USER, code, free_ports, program};
use crate::unwritable;
use dataplane::stun::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const SHOWN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// A line of the metrics.
fn has_metric(metrics: &str, line: &str) -> bool {
    metrics.lines().any(|other| other == format!("towpath_relay_{line}"))
}

/// The table of `towpath-relay status`.
fn table(relay: &RelayProcess) -> String {
    let mut command = program(env!("CARGO_BIN_EXE_towpath-relay"));
    let run = command.args(["status", "--admin", &relay.admin().to_string()]).output().unwrap();
    assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn a_drain_shows_in_the_probe_the_metrics_and_the_table_until_the_end() {
    let flags = ["--drain-timeout", "60", "--alternate-server", "192.0.2.7:3478"];
    let relay = RelayProcess::on_loopback(&[&SHOWN[..], &flags].concat());
    let admin = relay.admin();
    let load = Load::start(Client::new(relay.listen[0]));
    assert_eq!((get(admin, "/readyz").status, get(admin, "/healthz").status), (200, 200));
    let metrics = get(admin, "/metrics").body;
    assert!(has_metric(&metrics, "ready 1") && has_metric(&metrics, "draining 0"), "{metrics}");

    relay.signal(Signal::TERM);
    relay.wait_for("draining");
    settled(admin, |status| status["phase"] == "draining");
    let probe = get(admin, "/readyz");
    assert_eq!((probe.status, probe.body.as_str()), (503, "draining\n"), "nobody new is to be sent here");
    assert_eq!(get(admin, "/healthz").status, 200, "and nobody is to end what still serves");
    let mut late = Client::new(relay.listen[0]);
    let reply = late.ask(Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    assert_eq!(code(&reply), Some(300));
    let before = settled(admin, |status| status["refusals"]["300"] == 1);
    assert_eq!(before["allocations"]["live"], 1);
    let metrics = get(admin, "/metrics").body;
    for line in ["ready 0", "draining 1", "refused_requests_total{code=\"300\"} 1"] {
        assert!(has_metric(&metrics, line), "{line}: {metrics}");
    }
    assert!(table(&relay).contains("draining"));
    // What is allocated goes on, and is counted.
    let relayed =
        |status: &serde_json::Value| status["relayed"]["to_peer"]["channel"]["packets"].as_u64().unwrap();
    settled(admin, |status| relayed(status) > relayed(&before));
    let (mut client, _) = load.finish();
    let delete = client.ask(Method::Refresh, |writer| {
        writer.lifetime(0);
    });
    assert_eq!(code(&delete), None);
    let (end, log) = relay.wait();
    assert!(end.success() && log.contains("drained") && log.contains(" unexplained=0 "), "{log}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test has its own clock")]
fn a_log_that_cannot_be_written_is_lost_and_counted_and_the_relay_serves_on() {
    for output in [unwritable::full_disk, unwritable::pipe, unwritable::terminal] {
        let (listen, admin) = free_ports(2);
        let mut command = program(env!("CARGO_BIN_EXE_towpath-relay"));
        command.args(["--listen", &format!("127.0.0.1:{listen}"), "--admin", &format!("127.0.0.1:{admin}")]);
        command.args(["--user", &format!("{USER}:{PASSWORD}"), "--realm", REALM, "--drain-timeout", "0"]);
        command.env_remove("RUST_LOG").stderr(output());
        let mut child = command.spawn().unwrap();
        let admin = (Ipv4Addr::LOCALHOST, admin).into();
        let start = Instant::now();
        // Its port is there before it serves.
        while TcpStream::connect(admin).is_err() || get(admin, "/readyz").status != 200 {
            assert!(child.try_wait().unwrap().is_none() && start.elapsed() < PATIENCE, "it does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Client::new((Ipv4Addr::LOCALHOST, listen).into()).allocate();
        let lost = status(admin)["log_lines_lost"].as_u64().unwrap();
        assert!(lost >= 1, "{lost}");
        let metrics = get(admin, "/metrics").body;
        assert!(has_metric(&metrics, &format!("log_lines_lost_total {lost}")), "{metrics}");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let end = child.wait().unwrap();
        assert!(end.success(), "{end}");
    }
}

#[test]
fn reloads_are_counted_by_outcome_and_a_refused_one_is_seen_until_it_is_mended() {
    let configured = Configured::start(LOOPBACK, &[&SHOWN[..], &["--drain-timeout", "0"]].concat());
    let (relay, admin) = (&configured.relay, configured.relay.admin());
    let figures = status(admin);
    assert_eq!(
        (&figures["reloads"], &figures["last_reload_refused"]),
        (&json!({ "applied": 0, "refused": 0 }), &json!(false))
    );
    configured.rewrite("allocations-max = 7");
    assert!(configured.reload().contains("in force"));
    settled(admin, |status| status["reloads"]["applied"] == 1 && status["allocations"]["limit"] == 7);
    assert!(!table(relay).contains("older than its files"));

    configured.rewrite("broken");
    for refused in 1..=2 {
        assert!(configured.reload().contains("stays as it was"));
        settled(admin, |status| status["reloads"]["refused"] == refused);
    }
    let metrics = get(admin, "/metrics").body;
    for line in [
        "reloads_total{outcome=\"applied\"} 1",
        "reloads_total{outcome=\"refused\"} 2",
        "last_reload_refused 1",
        "allocations_limit 7",
        "ready 1",
    ] {
        assert!(has_metric(&metrics, line), "{line}: {metrics}");
    }
    let text = table(relay);
    assert!(text.contains("older than its files") && text.contains("refused"), "{text}");

    configured.rewrite(LOOPBACK);
    assert!(configured.reload().contains("in force"));
    let mended = settled(admin, |status| status["reloads"]["applied"] == 2);
    assert_eq!(
        (&mended["last_reload_refused"], &mended["allocations"]["limit"]),
        (&json!(false), &json!(10_000))
    );
}

#[test]
fn the_admin_address_stays_where_it_is_and_stays_refused_as_a_peer_after_a_reload() {
    let configured = Configured::start(
        "admin = \"127.0.0.1:0\"\nallow-peer = [\"127.0.0.0/8\"]",
        &["--drain-timeout", "0"],
    );
    let admin = configured.relay.admin();
    configured.rewrite("admin = \"off\"\nallow-peer = [\"127.0.0.0/8\"]");
    configured.relay.signal(Signal::HUP);
    let warning = configured.relay.wait_for("takes a restart");
    assert!(warning.contains("setting=admin"), "{warning}");
    configured.relay.wait_for("in force");
    assert_eq!(get(admin, "/readyz").status, 200);
    let mut client = configured.client();
    client.allocate();
    let permit = client.ask(Method::CreatePermission, |writer| {
        writer.xor_peer_address(admin);
    });
    assert_eq!(code(&permit), Some(403));
}

/// Figures are served by a confined relay while data goes through it and its configuration is read again.
fn figures_under_confinement(flags: &[&str]) {
    let flags = [flags, &SHOWN[..], &["--confine", "on", "--drain-timeout", "0"]].concat();
    let configured = Configured::start(LOOPBACK, &flags);
    let (relay, admin) = (&configured.relay, configured.relay.admin());
    let log = relay.before_ready();
    assert!(log.contains(" allowed\"") && !log.contains("not confined"), "{log}");
    let loads: Vec<Load> = (0..2).map(|_| Load::start(configured.client())).collect();
    // One that never finishes its request, and more than there is room for.
    let mut stalled = connect(admin);
    stalled.write_all(b"GET /metr").unwrap();
    let _idle: Vec<_> = (0..20).map(|_| connect(admin)).collect();
    for round in 1..=5 {
        assert!(configured.reload().contains("in force"));
        for target in ["/metrics", "/status.json", "/", "/healthz", "/readyz"] {
            let answer = get(admin, target);
            assert_eq!(answer.status, 200, "{target}: {answer:?}");
        }
        assert_eq!(exchange(admin, b"POST / HTTP/1.0\r\n\r\n").status, 405);
        settled(admin, |status| status["reloads"]["applied"] == round);
    }
    // Every thread: the loop, the ones of the engine, the one that reads, and the one that shows.
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", relay.id())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(
            (value("Seccomp:").as_str(), value("CapEff:").as_str()),
            ("2", "0".repeat(16).as_str()),
            "{status}"
        );
        names.push(value("Name:"));
    }
    assert!(names.iter().any(|name| name == "towpath-admin"), "{names:?}");
    for load in loads {
        let (_, datagrams) = load.finish();
        assert!(datagrams >= 10 * Load::WINDOW, "too little load: {datagrams}");
    }
    let figures = settled(admin, |status| status["allocations"]["live"] == 2);
    assert!(
        figures["relayed"]["to_client"]["channel"]["packets"].as_u64().unwrap() >= 20 * Load::WINDOW,
        "{figures}"
    );
}

#[test]
fn figures_are_served_under_confinement_while_data_is_relayed_on_every_design() {
    figures_under_confinement(&["--io", "uring", "--ingress", "uring"]);
    figures_under_confinement(&["--io", "uring", "--ingress", "epoll"]);
    figures_under_confinement(&["--io", "suspend"]);
    figures_under_confinement(&["--io", "threaded"]);
    figures_under_confinement(&["--io", "runtime"]);
}

#[test]
fn checking_a_configuration_and_asking_for_figures_stand_side_by_side() {
    let relay = RelayProcess::on_loopback(&SHOWN);
    let admin = relay.admin().to_string();
    let run = |arguments: &[&str]| {
        let output = program(env!("CARGO_BIN_EXE_towpath-relay")).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    // What the running relay has is only named, and nobody is asked.
    let (code, printed, errors) = run(&["--check-config", "--admin", &admin]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(printed.contains(&format!("\nadmin = \"{admin}\"\n")), "{printed}");
    let (code, printed, _) = run(&["status", "--json", "--admin", &admin]);
    assert_eq!(code, Some(0));
    assert!(printed.contains("\"phase\":\"serving\""), "{printed}");
    for both in [&["--check-config", "status"][..], &["status", "--check-config"]] {
        assert_eq!(run(both).0, Some(2), "{both:?}");
    }
    let (code, _, errors) = run(&["--check-config", "--admin", "9641"]);
    assert!(code == Some(2) && errors.contains("ADDRESS:PORT"), "{errors}");
}

#[test]
fn a_relay_that_ends_leaves_its_admin_address_at_once() {
    let relay = RelayProcess::on_loopback(&[&SHOWN[..], &["--drain-timeout", "600"]].concat());
    let admin = relay.admin();
    Client::new(relay.listen[0]).allocate();
    // A connection that has nothing to say does not hold it up.
    let _silent = connect(admin);
    status(admin);
    relay.signal(Signal::TERM);
    relay.wait_for("draining");
    relay.signal(Signal::TERM);
    let (end, log) = relay.wait();
    assert!(end.success() && log.contains("ledger"), "{log}");
    // The next one has the address: what is left of old connections does not keep it.
    let next = (0..50).find_map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        TcpListener::bind(admin).ok()
    });
    assert!(next.is_some());
}
