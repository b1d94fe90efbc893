//! Clients over TCP and TLS on the relay as a process: every I/O design, a thousand connections, bad files, shutdown.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use crate::harness;
use crate::harness::stream::{StreamClient, TestCertificate, bare, channel_message, connect, connect_tls};
use crate::harness::{RelayProcess, code, peer, program, write_private};
use dataplane::stun::channel_data::ChannelNumber;
use dataplane::stun::{AttributeType, Message, Method, Writer};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

const NUMBER: ChannelNumber = ChannelNumber::MIN;
const LISTEN: [&str; 4] = ["--listen-tcp", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"];

fn bind_to(peer: SocketAddr) -> impl Fn(&mut Writer<'_>) {
    move |writer| {
        writer.channel_number(NUMBER).xor_peer_address(peer);
    }
}

/// A relay for all transports.
fn relay(certificate: &TestCertificate, flags: &[&str]) -> RelayProcess {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate.write(folder.path());
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    RelayProcess::on_loopback(&[&LISTEN, files.as_slice(), flags].concat())
}

/// Allocates, binds a channel, and has `count` messages go there and back.
fn ping_pong<S: Read + Write>(stream: S, peer: &UdpSocket, count: u16) {
    let mut client = StreamClient::new(stream);
    let relayed = client.allocate();
    assert_eq!(code(&client.ask(Method::ChannelBind, bind_to(peer.local_addr().unwrap()))), None);
    for number in 0..count {
        let payload = [&number.to_be_bytes()[..], &vec![0x77; usize::from(number)]].concat();
        client.send(&channel_message(NUMBER, &payload));
        assert_eq!(harness::receive(peer), (payload.clone(), relayed));
        peer.send_to(&payload, relayed).unwrap();
        assert_eq!(client.receive().unwrap(), channel_message(NUMBER, &payload));
    }
}

fn both_transports(flags: &[&str]) {
    let certificate = TestCertificate::new();
    let relay = relay(&certificate, flags);
    let peer = peer();
    ping_pong(connect(relay.tcp[0]), &peer, 300);
    ping_pong(connect_tls(relay.tls[0], &certificate), &peer, 300);
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
    assert!(!log.contains(" application_drops."), "{log}");
}

#[test]
fn streams_work_on_every_design() {
    both_transports(&["--io", "uring", "--ingress", "uring"]);
    both_transports(&["--io", "uring", "--ingress", "epoll"]);
    both_transports(&["--io", "suspend"]);
    both_transports(&["--io", "threaded", "--ingress", "uring"]);
    both_transports(&["--io", "drop"]);
    both_transports(&["--io", "runtime"]);
}

#[test]
fn a_thousand_connections_are_served_at_once() {
    const COUNT: usize = 1000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let certificate = TestCertificate::new();
    let limits = ["--tcp-connections-per-address-max", "2000", "--new-peers-per-user", "0"];
    let relay = relay(&certificate, &limits);
    let peer = peer();
    let mut clients: Vec<_> = (0..COUNT).map(|_| StreamClient::new(connect(relay.tcp[0]))).collect();
    let mut secure: Vec<_> =
        (0..COUNT / 20).map(|_| StreamClient::new(connect_tls(relay.tls[0], &certificate))).collect();
    for client in &mut clients {
        client.send(&bare(Method::Binding));
    }
    for client in &mut clients {
        assert_eq!(client.receive().unwrap().len(), 32);
    }
    let relayed: Vec<SocketAddr> = clients.iter_mut().map(StreamClient::allocate).collect();
    for client in &mut clients {
        assert_eq!(code(&client.ask(Method::ChannelBind, bind_to(peer.local_addr().unwrap()))), None);
    }
    for (index, relayed) in relayed.iter().enumerate() {
        peer.send_to(&(index as u32).to_be_bytes(), relayed).unwrap();
    }
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.receive().unwrap()[4..], (index as u32).to_be_bytes());
    }
    for client in &mut secure {
        client.send(&bare(Method::Binding));
        assert_eq!(client.receive().unwrap().len(), 32);
    }
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains("connections=1050"), "{log}");
    assert!(!log.contains(" application_drops."), "{log}");
}

#[test]
fn what_was_accepted_before_the_end_is_delivered() {
    let certificate = TestCertificate::new();
    let relay = relay(&certificate, &[]);
    let peer = peer();
    let mut client = StreamClient::new(connect_tls(relay.tls[0], &certificate));
    let relayed = client.allocate();
    assert_eq!(code(&client.ask(Method::ChannelBind, bind_to(peer.local_addr().unwrap()))), None);
    for number in 0..100_u8 {
        peer.send_to(&[number], relayed).unwrap();
    }
    // Loopback delivers before send_to returns, so the relay has them all to take.
    std::thread::sleep(Duration::from_millis(50));
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
    for number in 0..100 {
        assert_eq!(client.receive().unwrap(), channel_message(NUMBER, &[number]));
    }
    // TLS is told that this was all.
    assert_eq!(client.stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn refusals_are_logged_by_reason_and_not_by_connection() {
    let relay = relay(&TestCertificate::new(), &[]);
    for _ in 0..200 {
        let mut stream = connect(relay.tcp[0]);
        stream.write_all(&[0xff; 100]).unwrap();
        // A reset as likely as an end.
        let _ = stream.read(&mut [0; 1]);
    }
    let (status, log) = relay.stop();
    assert!(status.success());
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("connections closed or refused")).collect();
    assert!((1..=2).contains(&lines.len()), "{log}");
    let count = |line: &&str| -> u32 { line.rsplit_once("connections=").unwrap().1.parse().unwrap() };
    assert_eq!(lines.iter().map(count).sum::<u32>(), 200, "{log}");
    assert!(log.contains("reason=malformed ") && log.contains(".malformed_outer=200 "), "{log}");
}

#[test]
fn bad_certificates_and_keys_end_with_code_2_and_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, other) = (TestCertificate::new(), TestCertificate::new());
    one.write(folder.path());
    write_private(folder.path().join("other.key").as_path(), &other.key_pem);
    write_private(folder.path().join("empty").as_path(), "");
    write_private(folder.path().join("cut.pem").as_path(), &one.pem[..one.pem.len() - 40]);
    let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    write_private(folder.path().join("garbled.pem").as_path(), garbled);
    let open = path("open.key");
    std::fs::write(&open, &one.key_pem).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let run = |certificate: &str, key: &str| {
        let run = program(env!("CARGO_BIN_EXE_towpath-relay"))
            .args(["--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"])
            .args(["--tls-certificate", certificate, "--tls-key", key])
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(2), "{certificate} {key}");
        String::from_utf8(run.stderr).unwrap()
    };
    for (certificate, key, hint) in [
        ("relay.pem", "other.key", "not the key of the certificate"),
        ("relay.pem", "nothing", "check the path"),
        ("nothing", "relay.key", "check the path"),
        ("empty", "relay.key", "BEGIN CERTIFICATE"),
        ("relay.pem", "empty", "BEGIN PRIVATE KEY"),
        ("relay.pem", "relay.pem", "BEGIN PRIVATE KEY"),
        ("relay.key", "relay.key", "BEGIN CERTIFICATE"),
        ("cut.pem", "relay.key", "PEM"),
        ("garbled.pem", "relay.key", "damaged"),
        ("relay.pem", "open.key", "chmod 600"),
    ] {
        let text = run(&path(certificate), &path(key));
        assert!(text.contains(hint) && text.contains(folder.path().to_str().unwrap()), "{text}");
    }
}

#[test]
fn an_expired_certificate_is_warned_about() {
    for (year, is_good) in [(2001, false), (4000, true)] {
        let log = whole_log(&TestCertificate::until(year));
        assert_eq!(log.contains("the certificate has expired at 2001-01-01"), !is_good, "{log}");
    }
}

/// What a relay with a certificate logs from its start to its end.
fn whole_log(certificate: &TestCertificate) -> String {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate.write(folder.path());
    let mut child = program(env!("CARGO_BIN_EXE_towpath-relay"))
        .args(["--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"])
        .args(files)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    while lines.read_line(&mut log).unwrap() > 0 {
        if log.lines().last().is_some_and(|line| line.contains("ready listen=")) {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        }
    }
    assert!(child.wait().unwrap().success(), "{log}");
    log
}

#[test]
fn a_taken_port_is_named_with_the_flag_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = program(env!("CARGO_BIN_EXE_towpath-relay"))
        .args(["--listen", "127.0.0.1:0", "--listen-tcp", &address])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(text.contains(&address) && text.contains("choose another --listen-tcp"), "{text}");
}

#[test]
fn a_relay_without_free_descriptors_rests_and_goes_on() {
    let mut command = program("sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_towpath-relay")]);
    let flags = ["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--io", "suspend"];
    let relay = RelayProcess::start_by(command, &flags);
    let mut answer = [0; 32];
    // Answered before the others come: of those, any may be left without a descriptor.
    let mut streams = vec![connect(relay.tcp[0])];
    streams[0].write_all(&bare(Method::Binding)).unwrap();
    streams[0].read_exact(&mut answer).unwrap();
    streams.extend((1..60).map(|_| connect(relay.tcp[0])));
    // Long enough to see whether it spins.
    std::thread::sleep(Duration::from_secs(1));
    streams[0].write_all(&bare(Method::Binding)).unwrap();
    streams[0].read_exact(&mut answer).unwrap();
    // The others go, and there is room for a new one.
    streams.truncate(1);
    std::thread::sleep(Duration::from_millis(500));
    let mut late = connect(relay.tcp[0]);
    late.write_all(&bare(Method::Binding)).unwrap();
    late.read_exact(&mut answer).unwrap();
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
    let calls = log.split_once(" ingress.system_calls=").unwrap().1.split_once(' ').unwrap().0;
    assert!(calls.parse::<u32>().unwrap() < 5_000, "{log}");
    assert!(log.contains("reason=refused_system "), "{log}");
}

/// What a client that asks for an allocation is answered: the code, where it is sent, and the name there.
fn sent_to<S: Read + Write>(stream: S) -> (Option<u16>, Option<SocketAddr>, Option<String>) {
    let reply = StreamClient::new(stream).ask(Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    let message = Message::parse(&reply).unwrap();
    let name = message.first(AttributeType::ALTERNATE_DOMAIN);
    (
        code(&reply),
        message.address(AttributeType::ALTERNATE_SERVER).unwrap(),
        name.map(|name| String::from_utf8(name.to_vec()).unwrap()),
    )
}

#[test]
fn a_draining_relay_sends_clients_on_over_the_transport_they_came_by() {
    let certificate = TestCertificate::new();
    let (plain, tls) = ("192.0.2.7:3478", "192.0.2.7:5349/relay2.example.org");
    let name = Some("relay2.example.org".to_owned());
    let address = |text: &str| Some(text.parse().unwrap());
    for (flags, over_tcp, over_tls) in [
        (
            &["--alternate-server", plain, "--alternate-server-tls", tls][..],
            (Some(300), address(plain), None),
            (Some(300), address("192.0.2.7:5349"), name),
        ),
        (&["--alternate-server", plain], (Some(300), address(plain), None), (Some(508), None, None)),
        (
            &["--alternate-server-tls", "192.0.2.7:5349"],
            (Some(508), None, None),
            (Some(300), address("192.0.2.7:5349"), None),
        ),
    ] {
        let relay = relay(&certificate, &[&["--drain-timeout", "60"], flags].concat());
        let mut stays = StreamClient::new(connect_tls(relay.tls[0], &certificate));
        stays.allocate();
        relay.signal(Signal::TERM);
        relay.wait_for("draining");
        assert_eq!(sent_to(connect(relay.tcp[0])), over_tcp, "{flags:?}");
        assert_eq!(sent_to(connect_tls(relay.tls[0], &certificate)), over_tls, "{flags:?}");
        // What is allocated goes on, and its end is that of the drain.
        assert_eq!(code(&stays.ask(Method::Refresh, |_| {})), None);
        let end = stays.ask(Method::Refresh, |writer| {
            writer.lifetime(0);
        });
        assert_eq!(code(&end), None);
        let (status, log) = relay.wait();
        assert!(status.success() && log.contains("drained"), "{log}");
    }
}
