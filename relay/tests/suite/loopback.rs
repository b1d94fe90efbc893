//! The relay as a process, over real sockets on loopback, on every I/O design and ingress.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics when it cannot go on and says where"
)]

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::harness;
use crate::harness::{Client, RelayProcess, code, program, receive, socket};
use dataplane::egress::{Port, Target};
use dataplane::stun::channel_data::{self, ChannelData, ChannelNumber};
use dataplane::stun::{Class, Message, Method, TransactionId, Writer};
use dataplane::sys::udp::{UdpOptions, UdpSocket as FastSocket};

/// Bind, allocate, send both ways by channel and by indication, delete; then stop. The longest payload has `longest`
/// bytes.
fn whole_story(flags: &[&str], longest: usize) {
    let relay = RelayProcess::on_loopback(flags);
    let mut client = Client::new(relay.listen[0]);
    let bare = binding();
    client.socket.send(&bare).unwrap();
    let (reply, _) = receive(&client.socket);
    assert_eq!(reply.len(), 32);
    let mapped = Message::parse(&reply).unwrap().xor_mapped_address();
    assert_eq!(mapped, Ok(Some(client.socket.local_addr().unwrap())));

    let relayed = client.allocate();
    assert_eq!(relayed.ip(), Ipv4Addr::LOCALHOST);
    let peer = socket();
    let peer_address = peer.local_addr().unwrap();
    let permit = |writer: &mut Writer<'_>| {
        writer.xor_peer_address(peer_address);
    };
    assert_eq!(code(&client.ask(Method::CreatePermission, permit)), None);

    client.socket.send(&send_indication(peer_address, b"hello")).unwrap();
    assert_eq!(receive(&peer), (b"hello".to_vec(), relayed));
    peer.send_to(b"world", relayed).unwrap();
    let (datagram, _) = receive(&client.socket);
    let message = Message::parse(&datagram).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
    assert_eq!(message.data(), Some(&b"world"[..]));
    assert_eq!(message.xor_peer_address(), Ok(Some(peer_address)));

    let number = ChannelNumber::MIN;
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(number).xor_peer_address(peer_address);
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
    for payload in [&b""[..], b"x", b"channel", &vec![9; longest]] {
        client.socket.send(&channel_message(number, payload)).unwrap();
        println!("to the peer: {} bytes", payload.len());
        assert_eq!(receive(&peer), (payload.to_vec(), relayed));
        peer.send_to(payload, relayed).unwrap();
        let (datagram, _) = receive(&client.socket);
        assert_eq!(datagram, channel_message(number, payload));
    }

    let delete = client.ask(Method::Refresh, |writer| {
        writer.lifetime(0);
    });
    assert_eq!(code(&delete), None);
    // The answer may come before the socket is closed.
    let free = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        UdpSocket::bind(relayed).is_ok()
    });
    assert!(free, "the relayed port is free again");
    assert_eq!(code(&client.ask(Method::Refresh, |_| {})), Some(437));
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains(" unexplained=0 "), "{log}");
}

fn binding() -> Vec<u8> {
    let mut buffer = [0; 20];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TransactionId([1; 12])).unwrap();
    assert_eq!(writer.finish(None, false), Some(20));
    buffer.to_vec()
}

fn send_indication(peer: std::net::SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut buffer = [0; 200];
    let mut writer =
        Writer::new(&mut buffer, Class::Indication, Method::Send, TransactionId([2; 12])).unwrap();
    writer.xor_peer_address(peer).data(payload);
    let len = writer.finish(None, false).unwrap();
    buffer[..len].to_vec()
}

fn channel_message(number: ChannelNumber, payload: &[u8]) -> Vec<u8> {
    let mut bytes = channel_data::header(number, payload.len()).unwrap().to_vec();
    bytes.extend(payload);
    bytes
}

#[test]
fn whole_story_on_uring() {
    whole_story(&["--io", "uring", "--ingress", "epoll"], 9000);
    whole_story(&["--io", "uring", "--ingress", "uring"], 9000);
    whole_story(&["--io", "uring", "--completions", "inline"], 9000);
    whole_story(&["--io", "uring", "--busy-poll", "500"], 9000);
}

#[test]
fn whole_story_on_threaded() {
    whole_story(&["--io", "threaded", "--ingress", "epoll"], 2000);
}

#[test]
fn whole_story_on_suspend() {
    whole_story(&["--io", "suspend", "--ingress", "epoll"], 9000);
    whole_story(&["--io", "suspend", "--gso", "off"], 9000);
}

#[test]
fn whole_story_on_drop() {
    whole_story(&["--io", "drop", "--ingress", "uring"], 9000);
}

#[test]
fn whole_story_on_runtime() {
    whole_story(&["--io", "runtime"], 9000);
}

#[test]
fn superpackets_keep_their_order_both_ways() {
    const COUNT: u16 = 48;
    const PAYLOAD: usize = 1000;
    let relay = RelayProcess::on_loopback(&["--io", "suspend"]);
    let mut client = Client::new(relay.listen[0]);
    let relayed = client.allocate();
    let options = UdpOptions { packet_info: false, ..UdpOptions::default() };
    let peer = FastSocket::bind((Ipv4Addr::LOCALHOST, 0).into(), &options).unwrap();
    let plain_peer = UdpSocket::from(peer.fd().try_clone().unwrap());
    plain_peer.set_nonblocking(false).unwrap();
    plain_peer.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    // Every datagram apart, so that each can be looked at: what the peer's kernel merges is its own business.
    let number = ChannelNumber::MIN;
    let bind = |writer: &mut Writer<'_>| {
        writer.channel_number(number).xor_peer_address(peer.local_addr());
    };
    assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);

    let payload = |sequence: u16| {
        let mut payload = vec![0xa5; PAYLOAD];
        payload[..2].copy_from_slice(&sequence.to_be_bytes());
        payload
    };
    let out: Vec<u8> = (0..COUNT).flat_map(|sequence| channel_message(number, &payload(sequence))).collect();
    let fast_client = Arc::new(client.socket.try_clone().unwrap().into());
    let target = |to| Target { port: Port(0), to, from: None, traffic_class: 0, dont_fragment: false };
    dataplane::sys::udp::send_message(&fast_client, &target(relay.listen[0]), &out, PAYLOAD + 4).unwrap();
    let mut arrived = Vec::new();
    while arrived.len() < usize::from(COUNT) * PAYLOAD {
        arrived.extend(receive(&plain_peer).0);
    }
    let expected: Vec<u8> = (0..COUNT).flat_map(payload).collect();
    assert!(arrived == expected, "the peer gets every payload, in order");

    dataplane::sys::udp::send_message(peer.fd(), &target(relayed), &expected, PAYLOAD).unwrap();
    for sequence in 0..COUNT {
        let (datagram, _) = receive(&client.socket);
        let data = ChannelData::parse(&datagram).unwrap();
        assert_eq!((data.number, data.payload), (number, &payload(sequence)[..]), "{sequence}");
    }
    let (status, log) = relay.stop();
    assert!(status.success(), "{log}");
}

/// Sockets come and go under the same numbers; what arrives late must not reach the next owner.
fn churn(flags: &[&str]) {
    let relay = RelayProcess::on_loopback(flags);
    let mut client = Client::new(relay.listen[0]);
    let number = ChannelNumber::MIN;
    let mut old: Option<std::net::SocketAddr> = None;
    for round in 0..40_u8 {
        let relayed = client.allocate();
        let peer = socket();
        let bind = |writer: &mut Writer<'_>| {
            writer.channel_number(number).xor_peer_address(peer.local_addr().unwrap());
        };
        assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
        if let Some(old) = old.filter(|&old| old != relayed) {
            peer.send_to(b"late", old).unwrap();
        }
        peer.send_to(&[round], relayed).unwrap();
        assert_eq!(receive(&client.socket).0, channel_message(number, &[round]));
        client.socket.send(&channel_message(number, &[round])).unwrap();
        assert_eq!(receive(&peer), (vec![round], relayed));
        let delete = |writer: &mut Writer<'_>| {
            writer.lifetime(0);
        };
        assert_eq!(code(&client.ask(Method::Refresh, delete)), None);
        old = Some(relayed);
    }
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
}

#[test]
fn sockets_that_come_and_go_are_not_mixed_up() {
    churn(&["--io", "uring", "--ingress", "uring"]);
    churn(&["--io", "suspend", "--ingress", "epoll"]);
    churn(&["--io", "threaded", "--ingress", "uring"]);
}

#[test]
fn two_clients_reach_each_other_through_two_allocations() {
    let relay = RelayProcess::on_loopback(&["--io", "suspend"]);
    let (mut left, mut right) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    let (left_relayed, right_relayed) = (left.allocate(), right.allocate());
    let number = ChannelNumber::MIN;
    for (client, other) in [(&mut left, right_relayed), (&mut right, left_relayed)] {
        let bind = |writer: &mut Writer<'_>| {
            writer.channel_number(number).xor_peer_address(other);
        };
        assert_eq!(code(&client.ask(Method::ChannelBind, bind)), None);
    }
    let there = channel_message(number, b"there");
    left.socket.send(&there).unwrap();
    assert_eq!(receive(&right.socket).0, there);
    let back = channel_message(number, b"and back");
    right.socket.send(&back).unwrap();
    assert_eq!(receive(&left.socket).0, back);
}

#[test]
fn loopback_and_the_relays_own_sockets_are_refused() {
    let strict = RelayProcess::start(&["--listen", "127.0.0.1:0", "--io", "suspend"]);
    let mut client = Client::new(strict.listen[0]);
    client.allocate();
    let permit = |peer: std::net::SocketAddr| {
        move |writer: &mut Writer<'_>| {
            writer.xor_peer_address(peer);
        }
    };
    assert_eq!(
        code(&client.ask(Method::CreatePermission, permit("127.0.0.1:9".parse().unwrap()))),
        Some(403)
    );
    let open = RelayProcess::on_loopback(&["--io", "suspend"]);
    let mut client = Client::new(open.listen[0]);
    client.allocate();
    assert_eq!(code(&client.ask(Method::CreatePermission, permit("127.0.0.1:9".parse().unwrap()))), None);
    assert_eq!(code(&client.ask(Method::CreatePermission, permit(open.listen[0]))), Some(403));
}

#[test]
fn a_wildcard_listener_answers_and_relays_from_the_address_it_was_asked_at() {
    let relay =
        RelayProcess::start(&["--listen", "0.0.0.0:0", "--allow-peer", "127.0.0.0/8", "--io", "suspend"]);
    let port = relay.listen[0].port();
    // The client's socket is connected, so an answer from another address would not arrive.
    let mut client = Client::new((Ipv4Addr::new(127, 0, 0, 5), port).into());
    assert_eq!(client.allocate().ip(), Ipv4Addr::new(127, 0, 0, 5));
    let own_socket = |writer: &mut Writer<'_>| {
        writer.xor_peer_address((Ipv4Addr::new(127, 0, 0, 99), port).into());
    };
    assert_eq!(code(&client.ask(Method::CreatePermission, own_socket)), Some(403));
}

#[test]
fn losses_are_logged_by_cause_and_not_by_packet() {
    let relay = RelayProcess::on_loopback(&["--io", "suspend"]);
    let client = socket();
    for _ in 0..500 {
        client.send_to(&[0x40, 0, 0, 0], relay.listen[0]).unwrap();
    }
    client.send_to(&binding(), relay.listen[0]).unwrap();
    receive(&client);
    let (status, log) = relay.stop();
    assert!(status.success());
    assert!(log.lines().filter(|line| line.contains("packets lost")).count() <= 2, "{log}");
    assert!(log.contains(".no_allocation=500 "), "{log}");
}

#[test]
fn what_was_refused_last_is_logged_before_the_end() {
    let relay = RelayProcess::on_loopback(&[]);
    let listen = relay.listen[0];
    Client::new(listen).allocate();
    // Long enough for a report; the next one would come ten seconds later.
    std::thread::sleep(Duration::from_millis(100));
    Client::new(listen).allocate();
    let (status, log) = relay.stop();
    assert!(status.success());
    let challenges = log.lines().filter_map(|line| line.split_once("code=438 requests="));
    let count = |rest: &str| rest.split(' ').next().and_then(|count| count.parse::<u32>().ok()).unwrap();
    assert_eq!(challenges.map(|(_, rest)| count(rest)).sum::<u32>(), 2, "{log}");
}

#[test]
fn bad_flags_end_with_code_2_and_say_what_is_wrong() {
    for (flags, hint) in [
        (&["--relay-ports", "9-8"][..], "LOW-HIGH"),
        (&["--admin", "here"], "ADDRESS:PORT"),
        (&["--user-file", "/nonexistent"], "/nonexistent"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let run = program(env!("CARGO_BIN_EXE_towpath-relay")).args(flags).output().unwrap();
        assert_eq!(run.status.code(), Some(2), "{flags:?}");
        let text = String::from_utf8(run.stderr).unwrap();
        assert!(text.contains(hint), "{text}");
    }
    let taken = socket();
    let address = taken.local_addr().unwrap().to_string();
    let run = program(env!("CARGO_BIN_EXE_towpath-relay")).args(["--listen", &address]).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(text.contains("another program has it, perhaps a relay that still drains"), "{text}");
    let help = program(env!("CARGO_BIN_EXE_towpath-relay")).arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
}
