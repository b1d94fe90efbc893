//! Requests from more addresses than anyone has: the memory of the process stays as it was.
//!
//! `TOWPATH_TEST_SOURCES=10000000` asks for the whole campaign. Alone in its file, because memory is counted by process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it measured, and panics when it cannot go on"
)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::drops::Cause;
use dataplane::stun::{Class, Key, Method, TransactionId, Writer};
use relay::server::auth::Credentials;
use relay::server::limits::Limits;
use relay::server::policy::PeerPolicy;
use relay::server::{ChannelNumbers, ClientSocket, FromClient, Listener, Server, Settings};

/// Sources where nothing else is said: some seconds.
const SOURCES: u64 = 1_000_000;
/// How much the process may grow, in bytes.
const GROWTH_MAX: u64 = 1 << 20;

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

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

/// T14, T15, T16 and R6.
#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
fn spoofed_sources_leave_no_memory_behind() {
    let sources: u64 = std::env::var("TOWPATH_TEST_SOURCES").map_or(SOURCES, |text| text.parse().unwrap());
    let mut server = server();
    let requests = requests();
    let start = Instant::now();
    let (mut came, mut went, mut answers) = (0_u64, 0_u64, 0_u64);
    let mut seconds = 0_u64;
    let before = resident();
    for number in 0..sources {
        // A million a second, from all over both address spaces, no address twice.
        let now = start + Duration::from_micros(number);
        seconds = number / 1_000_000 + 1;
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let address = if number % 4 == 0 {
            SocketAddr::new(Ipv6Addr::from_bits(0x2600 << 112 | u128::from(spread) << 40).into(), 1024)
        } else {
            // Odd multipliers permute 32 bits; 1.0.0.0 and above are hosts.
            let bits = (number as u32).wrapping_mul(0x9e37_79b1) % 0xdf00_0000 + 0x0100_0000;
            SocketAddr::new(Ipv4Addr::from_bits(bits).into(), 1024)
        };
        let client = ClientSocket { address, listener: Listener(0), local: None };
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
    let grown = resident().saturating_sub(before);
    println!(
        "{sources} sources in {:.1} s: {came} bytes came, {went} went in {answers} answers; grown by {grown} bytes",
        start.elapsed().as_secs_f64()
    );
    assert_eq!((server.allocations(), server.sources(), server.poll_timeout()), (0, 0, None));
    assert!(grown <= GROWTH_MAX, "{grown} bytes");
    // What came pays, and 20,000 answers a second in all are free: at most challenges, of 84 bytes with this realm.
    assert!(answers > 0 && went <= came + seconds * 20_000 * 84, "{went} of {came}");
}
