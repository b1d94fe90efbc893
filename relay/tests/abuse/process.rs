//! T52 to T57: load, the life of the process, its figures and its log.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::stun::{Message, Method};
use rustix::process::Signal;

use super::Row;
use super::attacker::{Attacker, bare, channel_data};
use super::bench::Bench;
use super::harness::configured::{Configured, LOOPBACK};
use super::harness::{PASSWORD, RelayProcess, USER, code, http, peer, receive, socket, write_private};

pub const ROWS: &[Row] = &[
    (52, 2003, "everything arrives, and the witnesses go on", t52),
    (53, 442, "the witnesses go on", t53),
    (54, 203, "508 while it drains; what is there goes on", t54),
    (55, 17, "the old configuration stays, and the figures tell", t55),
    (56, 69, "an HTTP error, and nothing is kept", t56),
    (57, 4502, "at most ten lines a second of each class", t57),
];

/// At the whole rate of a link, with the delay of others: `fairness.rs`; rates: `server::tests::quotas`.
fn t52(bench: &mut Bench) {
    /// Far less than a socket buffer holds: the kernel must not be the one that drops.
    const BURST: u32 = 40;
    let (attacker, peer, _) = bench.bound();
    for burst in 0..50_u32 {
        let number = |index: u32| (burst * BURST + index).to_be_bytes();
        for index in 0..BURST {
            attacker.send(&channel_data(0x4001, &[&number(index)[..], &[0; 1000]].concat()));
        }
        for index in 0..BURST {
            assert_eq!(receive(&peer).0[..4], number(index));
        }
        bench.forwarded += u64::from(BURST);
    }
    attacker.leave();
}

/// Peers that are not there: the kernel answers for them. Neighbours that are silent: `dataplane/tests/conformance_busy.rs`;
/// what else a kernel refuses: `conformance_errno.rs` beside it.
fn t53(bench: &mut Bench) {
    const SENT: u16 = 400;
    let start = Instant::now();
    let mut attacker = bench.allocated();
    let dead: Vec<SocketAddr> = (0..20).map(|_| peer().local_addr().unwrap()).collect();
    for (number, &peer) in (0x4001..).zip(&dead) {
        assert_eq!(attacker.bind(number, peer), None);
    }
    let mut told = 0;
    for round in 0..SENT {
        attacker.send(&channel_data(0x4001 + round % 20, b"is anybody there"));
        bench.forwarded += 1;
        if round % 20 == 19 {
            // Some of it comes back as ICMP.
            let asked = attacker.signed(Method::Refresh, |_| {});
            attacker.send(&asked);
            loop {
                let (datagram, _) = receive(&attacker.socket);
                let message = Message::parse(&datagram).unwrap();
                if message.method() == Method::Refresh {
                    break;
                }
                assert!(message.icmp().unwrap().is_some());
                told += 1;
            }
        }
    }
    // The last errors may still be on their way.
    std::thread::sleep(Duration::from_millis(50));
    attacker.socket.set_nonblocking(true).unwrap();
    while attacker.socket.recv(&mut [0; 200]).is_ok() {
        told += 1;
    }
    attacker.socket.set_nonblocking(false).unwrap();
    // Ten in each second of the allocation's life, of which more than these cannot have begun.
    let most = 10 * (start.elapsed().as_secs() + 1);
    assert!(u64::from(SENT) > most, "the machine was too slow to send more than {most}");
    assert!((1..=most).contains(&told), "{told} of {SENT}, at most {most}");
    assert_eq!(code(&attacker.refresh(0)), None);
}

/// SIGTERM in the middle of traffic, and ends of all kinds: `life.rs`.
fn t54(bench: &mut Bench) {
    let relay =
        RelayProcess::on_loopback(&["--drain-timeout", "60", "--unpaid-replies", "100000", "--workers", "4"]);
    let (mut stays, peer) = (bench.attacker_of(&relay), peer());
    stays.allocate();
    assert_eq!(stays.bind(0x4001, peer.local_addr().unwrap()), None);
    let mut late: Vec<Attacker> = (0..50).map(|_| bench.attacker_of(&relay)).collect();
    relay.signal(Signal::TERM);
    relay.wait_for("draining");
    for client in &mut late {
        assert_eq!(client.try_allocate(|_| {}), Some(508));
        stays.send(&channel_data(0x4001, b"still"));
        assert_eq!(receive(&peer).0, b"still");
        assert_eq!(code(&stays.refresh(600)), None);
        assert_eq!(stays.permit(peer.local_addr().unwrap()), None);
    }
    assert_eq!(code(&stays.refresh(0)), None);
    let (status, log) = relay.wait();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
}

fn t55(bench: &mut Bench) {
    let configured = Configured::start(LOOPBACK, &["--drain-timeout", "0", "--admin", "127.0.0.1:0"]);
    let relay = &configured.relay;
    let mut attacker = bench.attacker_of(relay);
    attacker.allocate();
    let bad = ["nonsense", "alice", ":x", "alice:0xzz", "alice:0x12", "alice:a\nalice:b\nbob", "\0\0\0"];
    for (refusals, text) in (1..).zip(bad) {
        write_private(&configured.path("users"), text);
        let line = configured.reload();
        bench.count(1);
        assert!(
            line.contains("stays as it was") && line.contains(&format!("refused={refusals}")),
            "{text:?}: {line}"
        );
        assert_eq!(code(&attacker.refresh(600)), None, "{text:?}");
        let told = http::settled(relay.admin(), |status| status["reloads"]["refused"] == refusals);
        assert_eq!(told["last_reload_refused"], true);
    }
    std::fs::remove_file(configured.path("users")).unwrap();
    assert!(configured.reload().contains("stays as it was"));
    assert_eq!(code(&attacker.refresh(600)), None);
    write_private(&configured.path("users"), &format!("{USER}:{PASSWORD}\n"));
    assert!(configured.reload().contains("in force"));
    attacker.leave();
}

/// Ten thousand connections, those that dribble and those that stall: `admin_abuse.rs`.
fn t56(bench: &mut Bench) {
    let admin = bench.relay.admin();
    let host = "HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "a".repeat(100_000));
    let paths =
        ["/../../etc/passwd", "/%2e%2e/etc/passwd", "/status.json/..", "file:///etc/passwd", "/.git/config"];
    for path in paths.into_iter().cycle().take(25) {
        let answer = http::exchange(admin, format!("GET {path} {host}").as_bytes());
        assert_eq!(answer.status, 404, "{path}");
        bench.count(1);
    }
    for (request, expected) in [
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\na", 405),
        ("GET / HTTP/1.1\r\nHost: attacker.example\r\n\r\n", 421),
        ("\x16\x03\x01 hello\r\n\r\n", 400),
        (&long, 431),
    ] {
        assert_eq!(http::exchange(admin, request.as_bytes()).status, expected);
        bench.count(1);
    }
    // More that say nothing than it keeps: honest ones are served all the same, and those are cut off.
    let mut silent: Vec<_> = (0..40).map(|_| http::connect(admin)).collect();
    for stream in &mut silent {
        // It may have been cut off already.
        let _ = stream.write_all(b"GET /status.json HTTP/1.1\r\nHost: ");
        bench.count(1);
    }
    assert_eq!(http::get(admin, "/healthz").status, 200);
    for mut stream in silent {
        let cut = stream.read_to_end(&mut Vec::new());
        assert!(
            !cut.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
            "it is never cut off"
        );
    }
}

/// By rule and by case: `server::tests::quotas`.
fn t57(bench: &mut Bench) {
    let relay = RelayProcess::on_loopback(&["--unpaid-replies", "100000"]);
    let before = Instant::now();
    let socket = socket();
    socket.connect(relay.listen[0]).unwrap();
    for number in 0..4000_u32 {
        let datagram = match number % 4 {
            0 => vec![0x80; 40],
            1 => channel_data(0x4001, b"nobody"),
            2 => bare(Method::Other(0x555)),
            _ => vec![0; 19],
        };
        socket.send(&datagram).unwrap();
        bench.count(1);
    }
    // Whatever users can make it refuse, too.
    let mut attacker = bench.attacker_of(&relay);
    attacker.allocate();
    for number in 0..500_u32 {
        let peer = SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0a00_0001 + number * 991).into(), 5000);
        assert_eq!(attacker.permit(peer), Some(403));
    }
    attacker.leave();
    let seconds = before.elapsed().as_secs() as usize + 2;
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
    let refusals = log.lines().filter(|line| line.contains("refused code=")).count();
    assert!((1..=10 * seconds).contains(&refusals), "{refusals} lines");
    assert!(log.lines().count() - refusals <= 30, "nothing is logged by packet:\n{log}");
}
