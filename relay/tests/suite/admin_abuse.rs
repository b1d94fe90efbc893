//! Abuse of the admin port (row T56 of the abuse cases): it costs a bounded amount, stays answerable, and packets never
//! notice.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::http::{Answer, connect, exchange, get, read, status};
use crate::harness::{RelayProcess, receive, socket};
use crate::left_out::left_out;
use dataplane::stun::{Class, Method, TransactionId, Writer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections that the relay keeps at a time, and a few descriptors of slack.
const FDS_MAX: usize = 16 + 4;

fn relay() -> RelayProcess {
    // Hundreds of Binding requests come from one place, and nothing pays for their answers.
    let unpaid = ["--unpaid-replies", "100000"];
    RelayProcess::on_loopback(&[&["--admin", "127.0.0.1:0", "--io", "suspend"][..], &unpaid].concat())
}

#[expect(clippy::disallowed_methods, reason = "a test has its own clock")]
fn now() -> Instant {
    Instant::now()
}

/// How many descriptors the relay has; 0 for one that may not look: a process with secrets shows them to root only.
fn open_files(relay: &RelayProcess) -> usize {
    match std::fs::read_dir(format!("/proc/{}/fd", relay.id())) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            static SAID: Once = Once::new();
            SAID.call_once(|| left_out("counting the relay's descriptors: run as root"));
            0
        }
        files => files.unwrap().count(),
    }
}

/// Anonymous memory in KiB: what grows when something is kept.
fn memory_kib(relay: &RelayProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Room for many sockets in this process.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

/// The time a Binding takes there and back.
fn binding(relay: SocketAddr) -> Duration {
    let client = socket();
    client.connect(relay).unwrap();
    let mut buffer = [0; 20];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TransactionId([1; 12])).unwrap();
    writer.finish(None, false).unwrap();
    let start = now();
    client.send(&buffer).unwrap();
    receive(&client);
    now() - start
}

#[test]
fn what_is_no_request_for_what_there_is_gets_its_error() {
    let relay = relay();
    let admin = relay.admin();
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "a".repeat(100_000));
    for (request, expected) in [
        ("GET /../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /status.json/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET file:///etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\naaaaaaaa", 405),
        ("GET / HTTP/1.1\r\nHost: attacker.example\r\n\r\n", 421),
        ("\x16\x03\x01 hello\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (&long, 431),
    ] {
        let answer: Answer = exchange(admin, request.as_bytes());
        assert_eq!(answer.status, expected, "{}", &request[..request.len().min(80)]);
        assert!(answer.head.contains("Connection: close"), "{}", answer.head);
        assert!(!answer.body.contains("root:"), "{}", answer.body);
        // Nothing of what was sent comes back.
        assert!(!answer.body.contains("attacker"), "{}", answer.body);
    }
    assert_eq!(get(admin, "/healthz").status, 200);
}

#[test]
fn two_requests_at_once_get_one_answer() {
    let relay = relay();
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2);
    let answer = exchange(relay.admin(), &request);
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
}

#[test]
fn a_request_that_dribbles_in_is_cut_off_after_a_second() {
    let relay = relay();
    let mut stream = connect(relay.admin());
    let start = now();
    let cut = loop {
        // A byte of a header that never ends, thirty times a second.
        let sent = stream.write_all(b"G");
        stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
        let read = stream.read(&mut [0; 64]);
        let over =
            matches!(read, Ok(0)) || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        if sent.is_err() || over {
            break now() - start;
        }
        assert!(now() - start < harness::PATIENCE, "it is never cut off");
    };
    assert!(cut < Duration::from_millis(2500), "{cut:?}");
    // One that says nothing at all, too; and one that asks and never reads does not stay either.
    let mut silent = connect(relay.admin());
    let start = now();
    assert!(matches!(silent.read(&mut [0; 64]), Ok(0) | Err(_)));
    assert!(now() - start < Duration::from_millis(2500), "{:?}", now() - start);
}

#[test]
fn a_thousand_idle_connections_keep_nobody_out_and_cost_sixteen() {
    raise_open_files();
    let relay = relay();
    let admin = relay.admin();
    status(admin);
    let (files, memory) = (open_files(&relay), memory_kib(&relay));
    let mut idle = Vec::new();
    let mut slowest = Duration::ZERO;
    for round in 0..1000 {
        let stream = connect(admin);
        if round % 2 == 0 {
            // Half of them begin to ask.
            let _ = (&stream).write_all(b"GET /metrics HTTP/1.1\r\nHost: ");
        }
        idle.push(stream);
        if round % 50 == 49 {
            let start = now();
            assert_eq!(get(admin, "/healthz").status, 200);
            slowest = slowest.max(now() - start);
            assert!(open_files(&relay) <= files + FDS_MAX, "{} open files", open_files(&relay));
        }
    }
    assert!(slowest < Duration::from_secs(1), "an honest request took {slowest:?}");
    let grown = memory_kib(&relay).saturating_sub(memory);
    assert!(grown < 1024, "memory grew by {grown} KiB");
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let relay = relay();
    let admin = relay.admin();
    // The first questions cost buffers once.
    (0..50).for_each(|_| drop(get(admin, "/metrics")));
    let (files, memory) = (open_files(&relay), memory_kib(&relay));
    for round in 0..10_000 {
        let mut stream = TcpStream::connect(admin).unwrap();
        match round % 4 {
            // Gone before, in the middle of, and after the request.
            0 => {}
            1 => stream.write_all(b"GET /status.json HT").unwrap(),
            2 => stream.write_all(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap(),
            _ => {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
                assert_eq!(read(&mut stream).status, 200, "round {round}");
            }
        }
    }
    let settled = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        open_files(&relay) <= files
    });
    assert!(settled, "{} open files, {files} before", open_files(&relay));
    let grown = memory_kib(&relay).saturating_sub(memory);
    assert!(grown < 1024, "memory grew by {grown} KiB");
}

#[test]
fn clients_that_stall_do_not_hold_up_packets() {
    const ROUNDS: usize = 200;
    let relay = relay();
    let listen = relay.listen[0];
    let admin = relay.admin();
    let median = |mut times: Vec<Duration>| {
        times.sort();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let alone = median((0..ROUNDS).map(|_| binding(listen)).collect());
    // Twenty that stall at each point where one can, while packets are timed.
    let mut stalled: Vec<TcpStream> = Vec::new();
    let timed = (0..ROUNDS).map(|round| {
        if round % 4 == 0 {
            let mut stream = connect(admin);
            let part: &[u8] = match round % 12 {
                0 => b"",
                4 => b"GET /status.json HTTP/1.1\r\nHost: lo",
                _ => b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n",
            };
            stream.write_all(part).unwrap();
            stalled.push(stream);
        }
        binding(listen)
    });
    let beside = median(timed.collect());
    // A stall of the loop would be a second; the machine may be busy with other tests.
    let bound = (alone.1 * 20).max(Duration::from_millis(100));
    assert!(beside.1 < bound, "alone (median, p99) {alone:?}, beside stalled clients {beside:?}");
    assert_eq!(get(admin, "/readyz").status, 200);
}
