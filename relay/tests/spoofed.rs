//! Requests from more addresses than anyone has: the memory of the process stays as it was.
//!
//! `TOWPATH_TEST_SOURCES=10000000` asks for the whole campaign, of which a tenth goes over the wire. Alone in their file and
//! one after the other, because memory is counted by process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it measured, and panics when it cannot go on"
)]

mod harness;
#[path = "../../dataplane/tests/support/user_namespace.rs"]
mod user_namespace;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::drops::Cause;
use dataplane::netlink::Handle;
use dataplane::offload::checksum;
use dataplane::stun::{Class, Key, Method, TransactionId, Writer};
use dataplane::sys::tun::{Tun, TunOptions};
use harness::{Client, RelayProcess, code};
use relay::server::auth::Credentials;
use relay::server::limits::Limits;
use relay::server::policy::PeerPolicy;
use relay::server::{ChannelNumbers, ClientSocket, FromClient, Listener, Server, Settings};
use user_namespace::left_out::left_out;

/// Sources where nothing else is said: some seconds.
const SOURCES: u64 = 1_000_000;
/// How much the process may grow, in bytes.
const GROWTH_MAX: u64 = 1 << 20;
/// The relay on the wire.
const RELAY_V4: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
const RELAY_V6: Ipv6Addr = Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 4);
const RELAY_PORT: u16 = 3478;

static MEMORY: Mutex<()> = Mutex::new(());

fn sources() -> u64 {
    std::env::var("TOWPATH_TEST_SOURCES").map_or(SOURCES, |text| text.parse().unwrap())
}

/// From all over both address spaces, no address twice.
fn source(number: u64) -> SocketAddr {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if number.is_multiple_of(4) {
        SocketAddr::new(Ipv6Addr::from_bits(0x2600 << 112 | u128::from(spread) << 40).into(), 1024)
    } else {
        // Odd multipliers permute 32 bits; 1.0.0.0 and above are hosts.
        let bits = (number as u32).wrapping_mul(0x9e37_79b1) % 0xdf00_0000 + 0x0100_0000;
        SocketAddr::new(Ipv4Addr::from_bits(bits).into(), 1024)
    }
}

fn server() -> Server {
    let mut credentials = Credentials::new("example.org");
    credentials.add("alice", "secret");
    let settings = Settings {
        credentials,
        policy: PeerPolicy::default(),
        relay_ports: 50_000..=50_999,
        relay_addresses: vec!["198.41.0.4".parse().unwrap()],
        external: Vec::new(),
        channel_numbers: ChannelNumbers::Rfc8656,
        allocations_max: 100,
        allocations_per_user_max: 10,
        hairpin: true,
        port_sharing: false,
        limits: Limits::default(),
    };
    Server::new(settings, &[9; 32])
}

/// A Binding, a bare Allocate, and an Allocate with credentials that are wrong.
fn requests() -> [Vec<u8>; 3] {
    let write = |method, fill: &dyn Fn(&mut Writer<'_>), key: Option<&Key>| {
        let mut buffer = [0; 300];
        let mut writer = Writer::new(&mut buffer, Class::Request, method, TransactionId([5; 12])).unwrap();
        fill(&mut writer);
        let len = writer.finish(key, false).unwrap();
        buffer[..len].to_vec()
    };
    let key = Key::long_term(b"alice", b"example.org", b"guessed");
    let transport = |writer: &mut Writer<'_>| {
        writer.requested_transport(17);
    };
    let forged = |writer: &mut Writer<'_>| {
        transport(writer);
        writer.username(b"alice").realm(b"example.org").nonce(b"0123456789abcdef");
    };
    [
        write(Method::Binding, &|_| {}, None),
        write(Method::Allocate, &transport, None),
        write(Method::Allocate, &forged, Some(&key)),
    ]
}

/// Resident memory of a process, in bytes.
fn resident(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

/// T14, T15, T16 and R6.
#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
fn spoofed_sources_leave_no_memory_behind() {
    let _alone = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let sources = sources();
    let mut server = server();
    let requests = requests();
    let start = Instant::now();
    let (mut came, mut went, mut answers) = (0_u64, 0_u64, 0_u64);
    let mut seconds = 0_u64;
    let before = resident(std::process::id());
    for number in 0..sources {
        // A million a second.
        let now = start + Duration::from_micros(number);
        seconds = number / 1_000_000 + 1;
        let client = ClientSocket { address: source(number), listener: Listener(0), local: None };
        let request = &requests[(number % 3) as usize];
        came += request.len() as u64;
        match server.handle_client(&client, request, now) {
            FromClient::Reply => {
                answers += 1;
                went += server.reply().len() as u64;
            }
            FromClient::Drop(cause) => assert_eq!(cause, Cause::Reflection),
            other => panic!("{other:?} for a stranger"),
        }
    }
    let grown = resident(std::process::id()).saturating_sub(before);
    println!(
        "{sources} sources in {:.1} s: {came} bytes came, {went} went in {answers} answers; grown by {grown} bytes",
        start.elapsed().as_secs_f64()
    );
    assert_eq!((server.allocations(), server.sources(), server.poll_timeout()), (0, 0, None));
    assert!(grown <= GROWTH_MAX, "{grown} bytes");
    // What came pays, and 20,000 answers a second in all are free: at most challenges, of 84 bytes with this realm.
    assert!(answers > 0 && went <= came + seconds * 20_000 * 84, "{went} of {came}");
}

/// A packet as it comes out of a device: behind an empty virtio_net header, IP and UDP with their checksums.
fn packet(from: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut ip = match from {
        SocketAddr::V4(from) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
            ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
            ip.extend(from.ip().octets());
            ip.extend(RELAY_V4.octets());
            let checksum = checksum::finish(checksum::sum(&ip));
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            ip
        }
        SocketAddr::V6(from) => {
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
            ip[4..6].copy_from_slice(&len.to_be_bytes());
            ip.extend(from.ip().octets());
            ip.extend(RELAY_V6.octets());
            ip
        }
    };
    let addresses = if from.is_ipv4() { &ip[12..] } else { &ip[8..] };
    let pseudo = checksum::pseudo_header(addresses, 17) + u64::from(len);
    let mut udp = [from.port(), RELAY_PORT, len, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let checksum = checksum::finish_udp(pseudo + checksum::sum(&udp));
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    ip.extend(udp);
    [vec![0; 10], ip].concat()
}

/// Whether this is an answer of the relay's, on its way out through the device.
fn is_answer(bytes: &[u8]) -> bool {
    let (protocol, udp) = if bytes[10] >> 4 == 4 { (bytes[19], 30) } else { (bytes[16], 50) };
    protocol == 17 && bytes[udp..udp + 2] == RELAY_PORT.to_be_bytes()
}

/// R6 on the wire: the same requests come out of a device from the same made-up addresses, and a relay process answers them.
#[test]
fn spoofed_sources_on_the_wire_leave_no_memory_behind_in_the_relay() {
    let _alone = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    if !user_namespace::inside("spoofed_sources_on_the_wire_leave_no_memory_behind_in_the_relay") {
        return;
    }
    let tun = match Tun::open("outside", TunOptions::PLAIN) {
        Ok(tun) => tun,
        Err(error) => return left_out(&format!("spoofed sources on the wire: {error}")),
    };
    let mut handle = Handle::open().unwrap();
    let (loopback, outside) = (handle.link_index("lo").unwrap(), handle.link_index("outside").unwrap());
    handle.set_up(loopback).unwrap();
    handle.add_address(outside, format!("{RELAY_V4}/24").parse().unwrap()).unwrap();
    handle.add_address(outside, format!("{RELAY_V6}/64").parse().unwrap()).unwrap();
    handle.set_up(outside).unwrap();
    // Everybody is out there.
    handle.add_route(outside, "0.0.0.0/0".parse().unwrap()).unwrap();
    handle.add_route(outside, "::/0".parse().unwrap()).unwrap();
    let listen = [format!("{RELAY_V4}:{RELAY_PORT}"), format!("[{RELAY_V6}]:{RELAY_PORT}")];
    // One worker, so that an answer says that everything before it is dealt with.
    let flags =
        ["--workers", "1", "--relay-address", &RELAY_V4.to_string(), "--listen", &listen[0], &listen[1]];
    let relay = RelayProcess::start(&flags);
    let mut clients = [0, 1].map(|family| Client::new(relay.listen[family]));
    clients.iter_mut().for_each(|client| assert!(client.allocate().port() > 0));

    let (sources, requests) = (sources() / 10, requests());
    let (mut sent, mut answers, mut before) = (0_u64, 0_u64, 0);
    for number in 1..=sources {
        let source = source(number);
        // The kernel lets no loopback address in.
        if !source.ip().is_loopback() {
            let packet = packet(source, &requests[(number % 3) as usize]);
            assert_eq!(rustix::io::write(tun.fd(), &packet), Ok(packet.len()));
            sent += 1;
        }
        // Far less than a receive buffer holds. Clients know that everything sent so far is answered when they are.
        if number.is_multiple_of(100) || number == sources {
            for client in &mut clients {
                assert_eq!(code(&client.ask(Method::Refresh, |_| {})), None);
            }
            let mut buffer = [0; 2000];
            while rustix::io::read(tun.fd(), &mut buffer).is_ok() {
                answers += u64::from(is_answer(&buffer));
            }
        }
        // By then every page that serving takes has been touched.
        if number == sources / 10 {
            before = resident(relay.id());
        }
    }
    let grown = resident(relay.id()).saturating_sub(before);
    println!("{sent} sources on the wire, {answers} answers; the relay has grown by {grown} bytes");
    assert!(grown <= GROWTH_MAX, "{grown} bytes");
    // Not one for each: 20,000 a second in all are free, and few of their networks share a place in the relay's table.
    assert!(answers >= 1_000, "{answers} answers");
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
    assert!(!log.contains("kernel_drops_skbs="), "{log}");
    let (_, packets) = log.split_once(" ingress.packets=").unwrap();
    let packets: u64 = packets.split(' ').next().unwrap().parse().unwrap();
    assert!(packets > sent, "{packets} of {sent} came: {log}");
}
