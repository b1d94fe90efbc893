//! Rows, or parts of rows, that are about more than one relay's state machine: T13 and T14, and of T17, T22, T36, T40 and T58
//! what needs another relay, a log or a stream.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId, Writer};

use super::Row;
use super::attacker::{Attacker, HOME, bare, channel_data, message, send, transport};
use super::bench::Bench;
use super::harness::stream::{StreamClient, connect};
use super::harness::{REALM, RelayProcess, code, socket_on};
use super::left_out::left_out;
use super::peers::granted;

pub const ROWS: &[Row] = &[
    (13, 82, "dropped, and no loop", t13),
    (14, 2450, "no more bytes than came, but for ten answers a second; none longer in strict mode", t14),
    (17, 1, "438 for the nonce of a relay with other keys", t17),
    (22, 7, "one line of the log, with everything escaped", t22),
    (36, 11, "403 for its own sockets, whatever is allowed", t36),
    (40, 198, "20 new peers a second after 100; then 508", t40),
    (58, 152, "answered at every offset of a stream", t58),
];

const TRANSACTION: TransactionId = TransactionId([0x31; 12]);

/// An IPv4 packet with a UDP datagram, whatever its source.
fn datagram(source: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.0.octets());
    packet.extend(to.0.octets());
    packet.extend(source.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(((payload.len() + 8) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Inputs of T13 without forged sources.
pub const T13_UNFORGED: u64 = 2;

/// A socket for packets with any source, where there is the privilege.
pub fn forger() -> Option<socket2::Socket> {
    const IPPROTO_RAW: i32 = 255;
    socket2::Socket::new(socket2::Domain::IPV4, 3.into(), Some(IPPROTO_RAW.into())).ok()
}

/// The kernel may keep multicast and broadcast sources from a socket by itself, and replaces 0.0.0.0; that the server drops
/// them: `server::tests::abuse`.
fn t13(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    // Whoever says to be a multicast address in the message is not.
    for kind in [AttributeType::MAPPED_ADDRESS, AttributeType::XOR_MAPPED_ADDRESS] {
        let reply = attacker.exchange(&message(Class::Request, Method::Binding, TRANSACTION, |writer| {
            writer.address(kind, "224.0.0.1:1".parse().unwrap());
        }));
        let seen = Message::parse(&reply).unwrap().xor_mapped_address().unwrap().unwrap();
        assert_eq!(seen, attacker.socket.local_addr().unwrap());
    }
    let Some(raw) = forger() else { return left_out("spoofed sources of T13: run as root (CAP_NET_RAW)") };
    let SocketAddr::V4(to) = bench.address() else { unreachable!("it listens on IPv4") };
    let counted = |status: &serde_json::Value| {
        let dropped = status["drops"]["malformed_outer"].as_u64().unwrap_or_default();
        (dropped, status["requests"]["binding"].as_u64().unwrap())
    };
    let before = counted(&bench.status());
    let sources = [
        (Ipv4Addr::LOCALHOST, 0),
        (Ipv4Addr::LOCALHOST, to.port()),
        ("224.0.0.1".parse().unwrap(), 5000),
        (Ipv4Addr::BROADCAST, 5000),
    ];
    const EACH: u64 = 20;
    for source in sources {
        for _ in 0..EACH {
            let packet = datagram(source, (*to.ip(), to.port()), &bare(Method::Binding));
            // Some are refused on the way out.
            let _ = raw.send_to(&packet, &SocketAddr::V4(to).into());
            bench.count(1);
        }
    }
    attacker.probe();
    let after = counted(&bench.status());
    assert!(after.0 - before.0 >= 2 * EACH, "port 0, and its own address: {before:?} {after:?}");
    assert!(after.0 - before.0 <= sources.len() as u64 * EACH, "{before:?} {after:?}");
    assert!(after.1 - before.1 <= 1, "none is looked at, but for the probe: {before:?} {after:?}");
}

/// Sends so many bare Binding requests at once from one address; what came back, in answers and bytes.
fn flood(bench: &Bench, relay: &RelayProcess, from: Ipv4Addr, count: u64) -> (u64, u64) {
    let socket = socket_on(from.into());
    let (mut answers, mut bytes) = (0, 0);
    for _ in 0..count {
        socket.send_to(&bare(Method::Binding), relay.listen[0]).unwrap();
        bench.count(1);
        socket.set_nonblocking(true).unwrap();
        while let Ok(len) = socket.recv(&mut [0; 200]) {
            answers += 1;
            bytes += len as u64;
        }
        socket.set_nonblocking(false).unwrap();
    }
    // Whatever is still on its way.
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while let Ok(len) = socket.recv(&mut [0; 200]) {
        answers += 1;
        bytes += len as u64;
    }
    (answers, bytes)
}

fn t14(bench: &mut Bench) {
    const COUNT: u64 = 300;
    let relay = RelayProcess::on_loopback(&["--workers", "2"]);
    for net in 1..=4 {
        let start = Instant::now();
        // Two hosts of one /24 have one budget.
        let floods = [1, 2].map(|host| flood(bench, &relay, Ipv4Addr::new(127, 9, net, host), COUNT));
        let seconds = start.elapsed().as_secs() + 2;
        let (answers, bytes) = (floods[0].0 + floods[1].0, floods[0].1 + floods[1].1);
        assert!(answers >= 1, "one is always answered");
        assert!(bytes <= 2 * COUNT * 20 + seconds * 10 * 32, "{answers} answers, {bytes} bytes");
        assert!(answers < 2 * COUNT, "each was answered, which is more than came");
    }
    let strict = RelayProcess::on_loopback(&["--strict-reflection"]);
    assert_eq!(flood(bench, &strict, Ipv4Addr::new(127, 9, 9, 1), 50), (0, 0));
    Attacker::stranger(strict.listen[0], HOME, Default::default()).probe();
}

fn t17(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let restarted = RelayProcess::on_loopback(&[]);
    attacker.nonce = bench.attacker_of(&restarted).nonce;
    let asked = attacker.signed(Method::Allocate, transport);
    assert_eq!(attacker.code(&asked), Some(438));
}

/// A name that nobody has proven, in a request that says that algorithms were offered but not which.
fn weakened(attacker: &mut Attacker, name: &[u8]) -> Vec<u8> {
    let transaction = attacker.transaction();
    let mut buffer = vec![0; 2000];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::Allocate, transaction).unwrap();
    transport(&mut writer);
    writer.username(name).realm(REALM.as_bytes()).nonce(&attacker.nonce);
    writer.attribute(AttributeType::PASSWORD_ALGORITHM, &[0, 2, 0, 0]);
    let len = writer.finish(Some(&attacker.key()), false).unwrap();
    buffer.truncate(len);
    buffer
}

/// The only unproven names that are logged are those in requests with a weakened offer. Each has a relay of its own: how many
/// lines there are is another row.
fn t22(bench: &mut Bench) {
    /// Most characters of a line whose name is as long as one can be.
    const LINE_MAX: usize = 4_000;
    // Each as the line has it: escaped, and quoted as JSON has it where it could end a field.
    let names: [(&[u8], &str); 6] = [
        (b"", r#""""#),
        (b"%s%n{}\0\ninjected\r\ninjected", r"%s%n{}\0\ninjected\r\ninjected"),
        ("\u{1b}[2J\u{9b}31m\u{202e}ecila".as_bytes(), r"\u{1b}[2J\u{9b}31m\u{202e}ecila"),
        (b"\n2026 ERROR ' OR 1=1 --", r#""\\n2026 ERROR \\' OR 1=1 --""#),
        (b"x\" client=127.0.0.1:1", r#""x\\\" client=127.0.0.1:1""#),
        (b"\xff\xc3\x28", "\u{fffd}\u{fffd}("),
    ];
    let tell = |name: &[u8]| {
        let relay = RelayProcess::on_loopback(&[]);
        let mut attacker = bench.attacker_of(&relay);
        let asked = weakened(&mut attacker, name);
        assert_eq!(attacker.code(&asked), Some(400), "{name:?}");
        let line = relay.wait_for("rule=weaker_offer");
        let seen = relay.seen();
        let (status, rest) = relay.stop();
        assert!(status.success(), "{rest}");
        for line in seen.lines().chain(rest.lines()) {
            assert!(line.starts_with("20") && !line.contains(char::is_control), "{name:?}: {line:?}");
        }
        (line, attacker.socket.local_addr().unwrap())
    };
    for (name, shown) in names {
        let (line, client) = tell(name);
        let expected = format!(" refused code=400 rule=weaker_offer user={shown} client={client} reason=");
        assert!(line.contains(&expected), "{name:?}: {line}");
    }
    // As long as a name may be; of longer ones, and of how much the line has: `auth.rs`.
    let (line, client) = tell(&[1; 508]);
    assert!(
        line.contains(r" user=\u{1}\u{1}\u{1}") && line.contains(&format!(" client={client} ")),
        "{line}"
    );
    assert!(line.len() <= LINE_MAX, "{} bytes", line.len());
}

/// With loopback excepted as a whole.
fn t36(bench: &mut Bench) {
    let open = RelayProcess::on_loopback(&["--listen-tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let mut attacker = bench.attacker_of(&open);
    attacker.allocate();
    for address in [open.admin(), open.tcp[0], open.listen[0]] {
        assert_eq!(attacker.permit(address), Some(403), "{address}");
        assert_eq!(attacker.bind(0x4002, address), Some(403), "{address}");
        attacker.silent(&send(address, b"let me in"));
    }
    attacker.leave();
}

/// A relay as it is by default: three allocations have room for 192 peers, and a user has 100 at once.
fn t40(bench: &mut Bench) {
    let target = |number: usize| {
        SocketAddr::new(Ipv4Addr::new(127, 1, (number >> 8) as u8, number as u8).into(), 5000)
    };
    let relay = RelayProcess::on_loopback(&[]);
    let start = Instant::now();
    let mut count = 0;
    for round in 0..3 {
        let mut attacker = bench.attacker_of(&relay);
        attacker.allocate();
        count += granted(64, |number| attacker.permit(target(round * 64 + number)));
        attacker.leave();
    }
    let most = 100 + 20 * (start.elapsed().as_secs() as usize + 1);
    assert!((100..=most).contains(&count), "{count} new peers");
}

/// Over a stream messages lie where others leave room, in steps of four, and come in pieces of any length.
fn t58(bench: &mut Bench) {
    for offset in 0..8 {
        let mut client = StreamClient::new(connect(bench.relay.tcp[0]));
        client.allocate();
        for cut in 1..20 {
            let before = channel_data(0x4001, &vec![7; offset * 4]);
            let request = bare(Method::Binding);
            client.send(&[&before[..], &request[..cut]].concat());
            client.send(&request[cut..]);
            assert_eq!(code(&client.receive().unwrap()), None, "{offset} {cut}");
            bench.count(1);
        }
    }
}
