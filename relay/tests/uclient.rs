//! Debian's TURN client through this relay: an independent reading of the same RFC.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

mod harness;
#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};

use harness::stream::TestCertificate;
use harness::{PASSWORD, RelayProcess, USER, program};
use left_out::left_out;

/// turnutils_peer, which sends everything back; killed when it is dropped.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        // It has no other way to end, and nothing depends on how it does.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the programs are there; says so when they are not.
fn installed() -> bool {
    let found = |name| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(name).exists())
    };
    if found("turnutils_uclient") && found("turnutils_peer") {
        return true;
    }
    let text = "turnutils_uclient and turnutils_peer are not installed: apt-get install coturn";
    left_out(text);
    false
}

fn echo(address: IpAddr) -> (Echo, String) {
    let port = UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port().to_string();
    let child = program("turnutils_peer")
        .args(["-p", &port, "-L", &address.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let echo = Echo(child);
    // It is ready when it answers.
    let probe = UdpSocket::bind((address, 0)).unwrap();
    probe.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let answered = (0..200).any(|_| {
        let sent = probe.send_to(b"ready?", format_socket(address, &port));
        sent.is_ok() && probe.recv(&mut [0; 16]).is_ok()
    });
    assert!(answered, "turnutils_peer does not answer");
    (echo, port)
}

fn format_socket(address: IpAddr, port: &str) -> std::net::SocketAddr {
    (address, port.parse().unwrap()).into()
}

/// The client gives a message up as lost after a fixed time, so that several clients at once on a busy machine lose some.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs the client with these flags; every message has to come back.
fn nothing_is_lost(address: IpAddr, io: &str, flags: &[&str]) {
    nothing_is_lost_between(address, address, io, flags);
}

/// The same with a peer of another address than the relay is asked at.
fn nothing_is_lost_between(address: IpAddr, peer: IpAddr, io: &str, flags: &[&str]) {
    nothing_is_lost_of(&["-u", USER, "-w", PASSWORD], (address, peer), &["--io", io], flags);
}

/// The same for the user of these flags, on a relay with further flags.
fn nothing_is_lost_of(
    user: &[&str],
    (address, peer): (IpAddr, IpAddr),
    more_relay_flags: &[&str],
    flags: &[&str],
) {
    if !installed() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let listen = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let folder = tempfile::tempdir().unwrap();
    let files = TestCertificate::new().write(folder.path());
    let mut relay_flags = vec!["--listen", listen, "--listen-tcp", listen, "--listen-tls", listen];
    relay_flags.extend(files.iter().map(String::as_str));
    relay_flags.extend(["--relay-address", "127.0.0.1", "::1", "--allow-peer", "127.0.0.0/8", "::1"]);
    relay_flags.extend(more_relay_flags);
    run_client(address, peer, RelayProcess::start(&relay_flags), &[user, flags].concat());
}

/// The same at this relay; the rest of its log.
fn run_client(address: IpAddr, peer: IpAddr, relay: RelayProcess, flags: &[&str]) -> String {
    let is_given = |flag| flags.contains(&flag);
    let server = match (is_given("-t"), is_given("-S")) {
        (true, true) => relay.tls[0],
        (true, false) => relay.tcp[0],
        (false, _) => relay.listen[0],
    };
    let (_echo, echo_port) = echo(peer);
    let mut client = program("turnutils_uclient")
        .args(["-p", &server.port().to_string()])
        .args(["-n", "50", "-m", "2", "-l", "121", "-z", "2"])
        .args(["-e", &peer.to_string(), "-r", &echo_port])
        .args(flags)
        .arg(address.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = harness::output(&mut client);
    let _ = client.wait();
    let (status, log) = relay.stop();
    assert!(text.contains("Total lost packets 0 (0.000000%), total send dropped 0 "), "{text}\n{log}");
    assert!(status.success(), "{log}");
    log
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

#[test]
fn channels() {
    nothing_is_lost(V4, "auto", &["-c", "-X"]);
}

#[test]
fn indications() {
    nothing_is_lost(V4, "auto", &["-c", "-s", "-X"]);
}

#[test]
fn even_ports_with_reservation() {
    nothing_is_lost(V4, "suspend", &["-X"]);
}

#[test]
fn a_user_from_a_shared_secret() {
    let secrets = harness::private_file("# until the end of the month\nsouth\n# since\nnorth\n");
    let path = secrets.path().to_str().unwrap();
    for secret in ["north", "south"] {
        nothing_is_lost_of(&["-u", "someone", "-W", secret], (V4, V4), &["--secret-file", path], &["-c"]);
    }
    nothing_is_lost_of(&["-u", USER, "-w", PASSWORD], (V4, V4), &["--secret-file", path], &["-c"]);
}

#[test]
fn a_user_whose_password_is_not_known() {
    // turnadmin -k -u bob -r example.org -p hidden
    let users = harness::private_file("bob:0x0d60e873bc7d29982a338b2c923efa9f\n");
    let path = users.path().to_str().unwrap();
    nothing_is_lost_of(&["-u", "bob", "-w", "hidden"], (V4, V4), &["--user-file", path], &["-c"]);
}

#[test]
fn client_to_client() {
    nothing_is_lost(V4, "threaded", &["-y", "-X"]);
}

/// Whether this machine has IPv6; says so when it has not.
fn has_ipv6() -> bool {
    let has = UdpSocket::bind((V6, 0)).is_ok();
    if !has {
        left_out("the address ::1: `sysctl net.ipv6.conf.lo.disable_ipv6=0`");
    }
    has
}

#[test]
fn dual_allocations() {
    if has_ipv6() {
        for (relay, peer) in [(V4, V4), (V4, V6), (V6, V4), (V6, V6)] {
            nothing_is_lost_between(relay, peer, "auto", &["-Z"]);
        }
        nothing_is_lost_between(V4, V6, "suspend", &["-Z", "-s"]);
    }
}

#[test]
fn from_one_family_to_the_other() {
    if has_ipv6() {
        nothing_is_lost_between(V4, V6, "auto", &["-c", "-x"]);
        nothing_is_lost_between(V6, V4, "suspend", &["-c", "-X"]);
    }
}

#[test]
fn without_fragments() {
    nothing_is_lost(V4, "auto", &["-c", "-g"]);
    nothing_is_lost(V4, "suspend", &["-c", "-s", "-g"]);
    if has_ipv6() {
        nothing_is_lost(V6, "uring", &["-c", "-s", "-x", "-g"]);
    }
}

/// Without exceptions for peers; every datagram stays inside the relay.
#[test]
fn client_to_client_inside_the_relay() {
    if !installed() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for flags in [&["-y", "-c", "-X"][..], &["-y", "-c", "-s", "-X"], &["-t", "-y", "-c", "-X"]] {
        let relay = RelayProcess::start(&["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0"]);
        let user = ["-u", USER, "-w", PASSWORD];
        let log = run_client(V4, V4, relay, &[&user, flags].concat());
        let (_, rest) = log.split_once("hairpin packets=").expect("the relay says so");
        let packets: u32 = rest.split(' ').next().and_then(|packets| packets.parse().ok()).unwrap();
        // 50 messages of each of 2 clients, which is 4 allocations.
        assert!(packets >= 100, "{log}");
    }
}

#[test]
fn channels_over_ipv6() {
    if has_ipv6() {
        nothing_is_lost(V6, "auto", &["-c", "-x"]);
    }
}

#[test]
fn indications_over_ipv6() {
    if has_ipv6() {
        nothing_is_lost(V6, "suspend", &["-c", "-s", "-x"]);
    }
}

#[test]
fn channels_over_tcp() {
    nothing_is_lost(V4, "auto", &["-t", "-c", "-X"]);
}

#[test]
fn indications_over_tcp() {
    nothing_is_lost(V4, "suspend", &["-t", "-c", "-s", "-X"]);
}

#[test]
fn channels_over_tls() {
    nothing_is_lost(V4, "auto", &["-t", "-S", "-c", "-X"]);
}

#[test]
fn indications_over_tls() {
    nothing_is_lost(V4, "threaded", &["-t", "-S", "-c", "-s", "-X"]);
}

#[test]
fn client_to_client_over_tcp_and_tls() {
    nothing_is_lost(V4, "auto", &["-t", "-y", "-X"]);
    nothing_is_lost(V4, "auto", &["-t", "-S", "-y", "-X"]);
}

#[test]
fn channels_over_tcp_and_tls_over_ipv6() {
    if has_ipv6() {
        nothing_is_lost(V6, "auto", &["-t", "-c", "-x"]);
        nothing_is_lost(V6, "auto", &["-t", "-S", "-c", "-x"]);
    }
}

#[test]
fn dual_allocations_over_tcp_and_tls() {
    if has_ipv6() {
        nothing_is_lost_between(V4, V6, "auto", &["-t", "-Z"]);
        nothing_is_lost_between(V4, V4, "suspend", &["-t", "-S", "-Z"]);
    }
}
