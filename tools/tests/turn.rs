//! The TURN kinds through a relay in another process: this project's own, and coturn where it is installed, as an
//! independent judge.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use left_out::left_out;
use rustix::process::{Pid, Signal, kill_process};
use tools::run::account::Account;
use tools::run::{Kind, Pace, Problem, RunSpec, run};

const USER: &str = "walker";
const PASSWORD: &str = "horse";

/// A relay on loopback; killed when dropped.
struct Relay {
    child: Child,
    address: SocketAddr,
    _files: tempfile::TempDir,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address whose port was free a moment ago.
fn free_address(ip: &str) -> SocketAddr {
    UdpSocket::bind((ip.parse::<std::net::IpAddr>().unwrap(), 0)).unwrap().local_addr().unwrap()
}

/// Debian's coturn, or `None` when it is not installed.
#[expect(clippy::disallowed_methods, reason = "the test starts a relay")]
fn coturn(ip: &str) -> Option<Relay> {
    let address = free_address(ip);
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name).display().to_string();
    let spawned = Command::new("turnserver")
        .args([
            "-n",
            "--no-cli",
            "--no-tls",
            "--no-dtls",
            "--lt-cred-mech",
            "--realm=test",
            "--allow-loopback-peers",
        ])
        .args([&format!("--listening-ip={ip}"), &format!("--relay-ip={ip}")])
        .args([&format!("--listening-port={}", address.port()), &format!("--user={USER}:{PASSWORD}")])
        .args([&format!("--pidfile={}", file("pid")), &format!("--userdb={}", file("db"))])
        .args([&format!("--log-file={}", file("log")), "--simple-log"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match spawned {
        Ok(child) => Some(Relay { child, address, _files: files }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            left_out("coturn's turnserver: apt-get install coturn");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// This project's relay, which the lab holds under a hidden subcommand.
fn own(ip: &str, io: &str) -> Relay {
    own_with(ip, &["--io", io, "--admin", "off"])
}

/// The same with these flags.
fn own_with(ip: &str, flags: &[&str]) -> Relay {
    own_strict(ip, &[flags, &["--allow-peer", "127.0.0.0/8", "--allow-peer", "::1/128"]].concat())
}

/// The same, which allows no peers but those of the flags.
#[expect(clippy::disallowed_methods, reason = "the test starts a relay")]
fn own_strict(ip: &str, flags: &[&str]) -> Relay {
    let address = free_address(ip);
    let child = Command::new(env!("CARGO_BIN_EXE_towpath-lab"))
        .args(["__relay", "-", &std::process::id().to_string(), "--listen", &address.to_string()])
        .args(["--realm", "test", "--user", &format!("{USER}:{PASSWORD}")])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Relay { child, address, _files: tempfile::tempdir().unwrap() }
}

fn spec(relay: &Relay, kind: Kind) -> RunSpec {
    RunSpec {
        // Few enough that default socket buffers hold more than half of the run while the machine starves someone.
        rate_pps: 500.0,
        size: 203,
        flows: 6,
        allocations: 2,
        duration: Duration::from_millis(700),
        warmup: Duration::from_millis(50),
        drain: Duration::from_millis(500),
        pace: Pace::Sleep,
        username: Some(USER.to_owned()),
        password: Some(PASSWORD.to_owned()),
        ..RunSpec::new(kind, relay.address)
    }
}

/// Runs through the relay and checks every leg: nothing lost, nothing reordered, delays that add up.
fn carries(relay: &Relay, kind: Kind, change: impl Fn(RunSpec) -> RunSpec) {
    let result = run(&change(spec(relay, kind)), |_| {}).unwrap();
    let (up, down) = (result.ledger_up.unwrap(), result.ledger_down.unwrap());
    for ledger in [result.ledger, up, down] {
        assert!(ledger.balances() && ledger.sent > 200, "{ledger:?}");
        let harmed = (ledger.lost, ledger.late, ledger.duplicate, ledger.reordered, ledger.corrupt);
        assert_eq!(harmed, (0, 0, 0, 0, 0), "{ledger:?}");
    }
    assert_eq!(down.sent, up.received);
    let histograms = result.histograms.unwrap();
    let (there, back) = (histograms.up.unwrap(), histograms.down.unwrap());
    assert_eq!((there.len(), back.len()), (up.received, down.received));
    // Both ways take time, and together no longer than the whole: the peer's own work is the rest.
    assert!(there.min() > 1_000 && back.min() > 1_000);
    assert!(
        there.mean() + back.mean() <= histograms.response.mean() * 1.01,
        "{} {}",
        there.mean(),
        back.mean()
    );
}

/// Waits until the relay answers; then the credentials are refused and accepted as they should be.
fn wait_until_serving(relay: &Relay) {
    for _ in 0..40 {
        let attempt = RunSpec { duration: Duration::from_millis(20), ..spec(relay, Kind::TurnChannel) };
        // An allocation asked for before the relay listens is asked for again within a second, so this seldom loops.
        if run(&attempt, |_| {}).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the relay does not serve");
}

#[test]
fn the_own_relay_carries_channels_and_indications() {
    for (ip, io) in [("127.0.0.1", "auto"), ("127.0.0.1", "suspend"), ("::1", "auto")] {
        let relay = own(ip, io);
        wait_until_serving(&relay);
        carries(&relay, Kind::TurnChannel, |spec| spec);
        carries(&relay, Kind::TurnChannel, |spec| RunSpec { burst: 8, gso: true, flows: 100, ..spec });
        carries(&relay, Kind::TurnSend, |spec| spec);
    }
}

/// A relay that shows its figures, and the run that reads them.
fn with_figures(flags: &[&str]) -> (Relay, RunSpec) {
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let relay = own_with("127.0.0.1", &[&["--io", "suspend", "--admin", &admin], flags].concat());
    wait_until_serving(&relay);
    let spec = RunSpec { server_admins: vec![admin.parse().unwrap()], ..spec(&relay, Kind::TurnChannel) };
    (relay, spec)
}

/// The run's account: no datagram without a cause.
fn account(spec: &RunSpec) -> Account {
    account_with(spec, |_| {})
}

fn account_with(spec: &RunSpec, progress: impl Fn(f64)) -> Account {
    let result = run(spec, progress).unwrap();
    let account = result.account;
    assert!(account.balances() && account.asked && result.servers.len() == 1, "{account:?}");
    assert_eq!(account.unexplained, 0, "{}\n{:?}", account.line(), result.servers);
    account
}

#[test]
fn what_the_relay_drops_above_a_rate_is_in_the_account_by_name_and_exact() {
    let (_relay, spec) = with_figures(&["--allocation-rate", "100pps"]);
    // Two allocations of 100 a second each, for 500 a second there and 500 back; the warm-up is dropped too, and not counted.
    let account = account(&RunSpec { warmup: Duration::from_millis(300), ..spec });
    let dropped = account.lost_by("relay:policy_rate");
    assert!(dropped > 50 && account.received > 50, "{}", account.line());
    assert_eq!(account.lost_by("own-rx"), 0);
}

#[test]
fn what_overflows_the_relay_s_socket_is_in_the_account_too() {
    let (relay, spec) = with_figures(&[]);
    let signal = |signal| kill_process(Pid::from_child(&relay.child), signal).unwrap();
    // Each datagram takes 8 KiB and more of a buffer of 16 MiB at most (the kernel doubles what is asked for), and 4,000 of them
    // come while the relay sleeps.
    let spec = RunSpec {
        rate_pps: 6_000.0,
        size: 8_000,
        duration: Duration::from_millis(2_000),
        flows: 1,
        allocations: 1,
        ..spec
    };
    let asleep = std::sync::Once::new();
    let account = std::thread::scope(|scope| {
        account_with(&spec, |share| {
            // Less than a quarter of the time is warm-up and the silence in which the relay is asked. The kernel tells of what it
            // has dropped with the next datagram, so that the load goes on after that.
            if share > 0.3 {
                asleep.call_once(|| {
                    signal(Signal::STOP);
                    scope.spawn(|| {
                        std::thread::sleep(Duration::from_millis(600));
                        signal(Signal::CONT);
                    });
                });
            }
        })
    });
    let lost = account.causes.iter().find(|loss| loss.cause == "relay:kernel_rcvbuf_skbs").unwrap();
    // There, each is an skb of its own; the peer sends several back in one.
    let skbs = lost.skbs.unwrap();
    assert!((100..=lost.datagrams).contains(&skbs), "{}", account.line());
    // A superpacket of such datagrams holds eight of them.
    assert!(lost.datagrams <= 8 * skbs, "{}", account.line());
}

#[test]
fn a_server_without_figures_is_a_set_up_error_that_names_the_flag() {
    let (relay, spec) = with_figures(&[]);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = run(&RunSpec { server_admins: vec![nobody.parse().unwrap()], ..spec }, |_| {}).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Problem::Setup(_))), "{error}");
    assert!(error.to_string().contains("--server-admin"), "{error}");
    drop(relay);
}

#[test]
fn coturn_carries_channels_and_indications_over_ipv4_and_ipv6() {
    for ip in ["127.0.0.1", "::1"] {
        let Some(relay) = coturn(ip) else { return };
        wait_until_serving(&relay);
        carries(&relay, Kind::TurnChannel, |spec| spec);
        carries(&relay, Kind::TurnChannel, |spec| RunSpec { burst: 8, gso: true, flows: 100, ..spec });
        carries(&relay, Kind::TurnSend, |spec| spec);
    }
}

#[test]
fn a_wrong_password_is_a_set_up_error_that_names_the_option() {
    let Some(relay) = coturn("127.0.0.1") else { return };
    wait_until_serving(&relay);
    let wrong = RunSpec { password: Some("mule".to_owned()), ..spec(&relay, Kind::TurnChannel) };
    let error = run(&wrong, |_| {}).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Problem::Setup(_))), "{error}");
    assert!(error.to_string().contains("--user NAME:PASSWORD"), "{error}");
}

#[test]
fn what_the_relay_refuses_is_said_with_the_options_of_the_lab_and_of_the_relay() {
    // Loopback is no peer of anybody by default.
    let relay = own_strict("127.0.0.1", &["--io", "suspend", "--admin", "off"]);
    let refused = |kind, password: &str| {
        let spec = RunSpec { password: Some(password.to_owned()), ..spec(&relay, kind) };
        let error = run(&spec, |_| {}).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Problem::Setup(_))), "{error}");
        let text = error.to_string();
        assert!(!text.contains("RelayUsername") && !text.contains("RelayPasswordFile"), "{text}");
        text
    };
    for kind in [Kind::TurnChannel, Kind::TurnSend] {
        let text = refused(kind, PASSWORD);
        assert!(text.contains("forbids the peer 127.0.0.1 (403)"), "{text}");
        assert!(text.contains("--allow-peer 127.0.0.1") && text.contains("--peer an address"), "{text}");
    }
    let text = refused(Kind::TurnChannel, "mule");
    assert!(text.contains("refuses user \"walker\" (401); check --user NAME:PASSWORD"), "{text}");
}
