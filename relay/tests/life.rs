//! The life of a relay process: reload at SIGHUP, drain at SIGTERM, what the service manager is told, and a restart after a
//! crash. Traffic is counted, so that what is lost shows.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics when it cannot go on and says where, and what it measured"
)]
#![allow(clippy::disallowed_methods, reason = "how long things take is part of what is tested")]

mod harness;
#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;
#[path = "life/memory.rs"]
mod memory;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use dataplane::stun::channel_data::{ChannelData, ChannelNumber};
use dataplane::stun::{AttributeType, Message, Method, Writer};
use harness::configured::{Configured, LOOPBACK};
use harness::steady::{Access, Flow, Outcome, half_of_capacity};
use harness::stream::TestCertificate;
use harness::{
    Client, PASSWORD, PATIENCE, RelayProcess, USER, code, free_ports, program, receive, socket, write_private,
};
use rustix::process::Signal;

const LIFETIME_0: fn(&mut Writer<'_>) = |writer| {
    writer.lifetime(0);
};
const UDP: fn(&mut Writer<'_>) = |writer| {
    writer.requested_transport(17);
};

#[test]
fn a_reload_changes_users_policy_and_limits_and_says_what_it_cannot_change() {
    let configured = Configured::start(LOOPBACK, &["--drain-timeout", "0"]);
    let mut old = configured.client();
    old.allocate();
    let peer = |writer: &mut Writer<'_>| {
        writer.xor_peer_address("127.0.0.1:9".parse().unwrap());
    };
    assert_eq!(code(&old.ask(Method::CreatePermission, peer)), None);

    write_private(&configured.path("users"), "bob:hidden\n");
    configured.rewrite("allocations-max = 2\nrelay-ports = \"50000-50100\"");
    configured.relay.signal(Signal::HUP);
    let warning = configured.relay.wait_for("takes a restart");
    assert!(warning.contains("setting=relay-ports"), "{warning}");
    let applied = configured.relay.wait_for("the configuration ");
    assert!(applied.contains("in force") && applied.contains("users=1"), "{applied}");

    assert_eq!(configured.relay.seen().matches("WARN").count(), 1, "{}", configured.relay.seen());

    assert_eq!(old.try_ask(Method::Refresh, |_| {}), Err(401), "a removed user cannot refresh");
    let mut bob = configured.client().with_user("bob", "hidden");
    bob.allocate();
    assert_eq!(code(&bob.ask(Method::CreatePermission, peer)), Some(403), "the exception is gone");
    let mut third = configured.client().with_user("bob", "hidden");
    assert_eq!(code(&third.ask(Method::Allocate, UDP)), Some(508), "two are the most now");
    let (status, log) = configured.relay.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn a_reload_says_which_settings_a_flag_keeps_from_having_an_effect() {
    let configured = Configured::start(LOOPBACK, &["--drain-timeout", "0"]);
    configured.rewrite(&format!("{LOOPBACK}\ndrain-timeout = 600"));
    configured.relay.signal(Signal::HUP);
    let warning = configured.relay.wait_for("the flag of that name wins");
    assert!(warning.contains("WARN") && warning.contains("setting=drain-timeout"), "{warning}");
    configured.relay.wait_for("in force");
}

#[test]
fn a_bad_file_changes_nothing_and_is_named_with_line_and_remedy() {
    let configured = Configured::start(LOOPBACK, &["--drain-timeout", "0"]);
    let mut client = configured.client();
    client.allocate();
    configured.rewrite("allow-peer = []\nrelay-ports = \"9\"");
    let refused = configured.reload();
    let place = format!("{}:5: ", configured.path("relay.toml").display());
    assert!(refused.contains("stays as it was") && refused.contains(&place), "{refused}");
    assert!(
        refused.contains("ERROR") && refused.contains("LOW-HIGH") && refused.contains("refused=1"),
        "{refused}"
    );

    configured.rewrite(LOOPBACK);
    write_private(&configured.path("users"), "bob:hidden\nnonsense\n");
    let refused = configured.reload();
    assert!(refused.contains("users:2: ") && refused.contains("NAME:PASSWORD"), "{refused}");
    assert!(refused.contains("refused=2"), "{refused}");
    fs::remove_file(configured.path("users")).unwrap();
    assert!(configured.reload().contains("refused=3"));

    let peer = |writer: &mut Writer<'_>| {
        writer.xor_peer_address("127.0.0.1:9".parse().unwrap());
    };
    assert_eq!(code(&client.ask(Method::CreatePermission, peer)), None);
    write_private(&configured.path("users"), &format!("{USER}:{PASSWORD}\n"));
    assert!(configured.reload().contains("in force"));
    assert_eq!(code(&client.ask(Method::CreatePermission, peer)), None);
}

#[test]
fn a_draining_relay_ends_when_the_last_allocation_does() {
    let relay = RelayProcess::on_loopback(&["--drain-timeout", "60", "--alternate-server", "192.0.2.7:3478"]);
    let (mut stays, mut late) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    let relayed = stays.allocate();
    relay.signal(Signal::TERM);
    relay.wait_for("draining");
    let reply = late.ask(Method::Allocate, UDP);
    assert_eq!(code(&reply), Some(300));
    let alternate = Message::parse(&reply).unwrap().address(AttributeType::ALTERNATE_SERVER);
    assert_eq!(alternate, Ok(Some("192.0.2.7:3478".parse().unwrap())));

    let peer = socket();
    let number = ChannelNumber::MIN;
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(number).xor_peer_address(peer.local_addr().unwrap());
    };
    assert_eq!(code(&stays.ask(Method::ChannelBind, bind)), None);
    assert_eq!(code(&stays.ask(Method::Refresh, |_| {})), None);
    peer.send_to(b"still here", relayed).unwrap();
    assert_eq!(ChannelData::parse(&receive(&stays.socket).0).unwrap().payload, b"still here");
    let start = Instant::now();
    assert_eq!(code(&stays.ask(Method::Refresh, LIFETIME_0)), None);
    let (status, log) = relay.wait();
    assert!(status.success() && log.contains("drained") && log.contains(" unexplained=0 "), "{log}");
    assert!(start.elapsed() < PATIENCE, "it does not wait for the time to be over");
}

#[test]
fn draining_ends_with_its_time_or_a_second_signal_and_ctrl_c_does_not_wait() {
    let relay = RelayProcess::on_loopback(&["--drain-timeout", "1"]);
    let mut client = Client::new(relay.listen[0]);
    client.allocate();
    let start = Instant::now();
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains("--drain-timeout"), "{log}");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());

    for second in [Signal::TERM, Signal::INT] {
        let relay = RelayProcess::on_loopback(&["--drain-timeout", "600"]);
        Client::new(relay.listen[0]).allocate();
        relay.signal(Signal::TERM);
        relay.wait_for("draining");
        relay.signal(second);
        let (status, log) = relay.wait();
        assert!(status.success() && log.contains("ledger"), "{log}");
    }
    let relay = RelayProcess::on_loopback(&["--drain-timeout", "600"]);
    Client::new(relay.listen[0]).allocate();
    relay.signal(Signal::INT);
    assert!(relay.wait().0.success());

    let idle = RelayProcess::on_loopback(&["--drain-timeout", "600"]);
    let (status, log) = idle.stop();
    assert!(status.success() && !log.contains("draining"), "nothing to wait for: {log}");
}

#[test]
fn a_configuration_can_be_checked_without_binding_anything() {
    let taken = socket();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    write_private(&users, "alice:hunter2\n");
    let check = |flags: &[&str]| {
        let command = &mut program(env!("CARGO_BIN_EXE_towpath-relay"));
        let output = command.args(["--check-config", "--listen", &address]).args(flags).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let users = users.to_str().unwrap();
    let file = directory.path().join("relay.toml");
    write_private(&file, "drain-timeout = 600\nrealm = \"file\"\n");
    let file = file.to_str().unwrap();
    let (status, printed, errors) = check(&["--config", file, "--drain-timeout", "25"]);
    assert!(status == Some(0) && printed.contains("drain-timeout = 25\n"), "{printed}");
    assert_eq!(errors, "towpath-relay: warning: --drain-timeout wins over drain-timeout in the file\n");
    let (status, printed, errors) = check(&["--user-file", users, "--realm", "checked"]);
    assert_eq!((status, errors.as_str()), (Some(0), ""));
    assert!(
        printed.contains(&format!("listen = [\"{address}\"]")) && printed.contains("realm = \"checked\"")
    );
    assert!(printed.contains("1 users: [\"alice\"]") && !printed.contains("hunter2"), "{printed}");

    write_private(users.as_ref(), "alice:hunter2\nbob\n");
    let (status, printed, errors) = check(&["--user-file", users]);
    assert_eq!((status, printed.as_str()), (Some(2), ""));
    assert!(errors.contains(&format!("{users}:2: ")) && errors.contains("NAME:PASSWORD"), "{errors}");
}

/// The relay with clients over all transports: three over UDP, one over TCP, one over TLS. Everybody has one address here, and
/// asks at once.
struct Busy {
    configured: Configured,
    accesses: Vec<Access>,
    /// Of each of them, in datagrams a second: together half of what this machine can do.
    rate: f64,
}

/// The load is measured out by what the machine can do: one at a time.
static MACHINE: Mutex<()> = Mutex::new(());

impl Busy {
    const CONFIG: &str = "allow-peer = [\"127.0.0.0/8\"]\nunpaid-replies = 1000";

    fn start(flags: &[&str]) -> Self {
        let certificate = Arc::new(TestCertificate::new());
        let directory = tempfile::tempdir().unwrap();
        let files = certificate.write(directory.path());
        let files = files.each_ref().map(String::as_str);
        let configured = Configured::start_in(directory, Self::CONFIG, &[flags, &files].concat(), |_| {});
        let relay = &configured.relay;
        let (udp, tcp, tls) = (relay.listen[0], relay.tcp[0], relay.tls[0]);
        let accesses: Vec<Access> = [
            Access::Udp(udp),
            Access::Udp(udp),
            Access::Udp(udp),
            Access::Tcp(tcp),
            Access::Tls(tls, certificate),
        ]
        .into();
        let rate = half_of_capacity(udp) / accesses.len() as f64;
        Self { configured, accesses, rate }
    }

    fn flows(&self, back: Option<&mpsc::Sender<Instant>>) -> Vec<Flow> {
        let flow = |access: &Access| {
            Flow::start_telling(access.clone(), self.rate, self.accesses.len(), back.cloned())
        };
        self.accesses.iter().map(flow).collect()
    }
}

/// Reloads and a drain under load, on one design: not one datagram is lost, and no client waits for long.
fn nothing_is_lost(flags: &[&str]) {
    /// A thread that has lost its core on a busy machine gets it back long before that, and so does every thread that a datagram
    /// passes. Who talks hears a gap of this length.
    const GAP_MAX: Duration = Duration::from_millis(500);
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let anywhere = ["--listen-tcp", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0", "--drain-timeout", "60"];
    let busy = Busy::start(&[flags, &anywhere].concat());
    let configured = &busy.configured;
    let flows = busy.flows(None);
    // Enough users that reading and applying take their time.
    let many: String = (0..2_000).map(|index| format!("user{index}:secret{index}\n")).collect();
    for round in 0..5 {
        write_private(&configured.path("users"), &format!("{many}{USER}:{PASSWORD}\nround{round}:x\n"));
        let applied = configured.reload();
        assert!(applied.contains("in force") && applied.contains("users=2002"), "{applied}");
        configured.rewrite("broken");
        assert!(configured.reload().contains("stays as it was"));
        configured.rewrite(Busy::CONFIG);
    }
    configured.relay.signal(Signal::TERM);
    configured.relay.wait_for("draining");
    std::thread::sleep(Duration::from_millis(200));
    let outcomes: Vec<Outcome> = flows.into_iter().map(Flow::finish).collect();
    let gap = outcomes.iter().map(|outcome| outcome.gap).max().unwrap();
    let fewest = outcomes.iter().map(|outcome| outcome.returned).min().unwrap();
    println!("{flags:?}: {:.0}/s, at least {fewest} datagrams of each, longest gap {gap:?}", busy.rate);
    assert!(gap <= GAP_MAX, "{outcomes:?}");
    assert!(fewest >= 100, "too little load: {outcomes:?}");
    let (status, log) = busy.configured.relay.wait();
    assert!(status.success() && log.contains("drained"), "{log}");
    assert!(log.contains(" unexplained=0 ") && !log.contains(" egress_drops."), "{log}");
    assert!(!log.contains("kernel_drops_skbs="), "{log}");
}

#[test]
fn reload_and_drain_under_load_lose_nothing_on_the_ring() {
    nothing_is_lost(&["--io", "uring", "--ingress", "uring", "--workers", "3"]);
    nothing_is_lost(&["--io", "uring", "--ingress", "epoll"]);
}

#[test]
fn reload_and_drain_under_load_lose_nothing_on_plain_calls() {
    nothing_is_lost(&["--io", "suspend", "--workers", "4"]);
    nothing_is_lost(&["--io", "suspend", "--workers", "1"]);
    nothing_is_lost(&["--io", "threaded"]);
}

/// Killed under load, and started again as the unit file has it (RestartSec=100ms, ExecStartPre with --check-config): from the
/// kill until a datagram comes all the way, for whichever client waits longest. Clients notice and allocate by themselves.
#[test]
fn after_a_crash_every_client_is_served_again_within_half_a_second_and_the_pause_of_the_service_manager() {
    const ROUNDS: usize = 5;
    const PAUSE: Duration = Duration::from_millis(100);
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let (first, last) = free_ports(3);
    let [udp, tcp, tls] = [first, first + 1, last].map(|port| format!("127.0.0.1:{port}"));
    let places = ["--listen", &udp, "--listen-tcp", &tcp, "--listen-tls", &tls];
    let mut busy =
        Busy::start(&[&["--io", "uring", "--ingress", "uring", "--workers", "2"], &places[..]].concat());
    let (sender, back) = mpsc::channel();
    let flows = busy.flows(Some(&sender));
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(200));
        let killed = Instant::now();
        busy.configured.relay.signal(Signal::KILL);
        busy.configured.restart_after_end(PAUSE);
        let back = || back.recv_timeout(PATIENCE).expect("every client comes back");
        times.extend(flows.iter().map(|_| back() - killed).max());
    }
    println!("{:.0}/s of each client; served again after {times:?}", busy.rate);
    assert!(times.iter().all(|&time| time <= PAUSE + Duration::from_millis(500)), "{times:?}");
    for flow in flows {
        assert!(flow.finish().returned > 0);
    }
}

#[test]
fn the_service_manager_is_told_about_start_reload_life_and_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let configured = Configured::start_with(LOOPBACK, &["--drain-timeout", "30"], |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    });
    let next = || {
        let mut buffer = [0; 500];
        let len = manager.recv(&mut buffer).expect("the relay says something");
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    let next_but_life = || std::iter::repeat_with(next).find(|message| message != "WATCHDOG=1").unwrap();
    assert!(next().starts_with("READY=1\n"));
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    // Every 100 ms, and the first at once.
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    configured.relay.signal(Signal::HUP);
    let reloading = next_but_life();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(next_but_life().starts_with("READY=1\n"));
    configured.client().allocate();
    configured.relay.signal(Signal::TERM);
    let stopping = next_but_life();
    assert!(stopping.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000\n"), "{stopping}");
    configured.relay.signal(Signal::TERM);
    assert!(configured.relay.wait().0.success());
}
