//! Two clients of one relay over real sockets: what one sends reaches the other inside the relay, or not at all.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness;
use crate::harness::{Client, RelayProcess, code, free_ports, receive};
use dataplane::egress::{Port, Target};
use dataplane::stun::channel_data::{self, ChannelData, ChannelNumber};
use dataplane::stun::{Class, Message, Method, TransactionId, Writer};

const NUMBER: ChannelNumber = ChannelNumber::MIN;

/// A relay that makes no exceptions: loopback is refused, but for the allocations on it.
fn strict(flags: &[&str]) -> RelayProcess {
    RelayProcess::start(&[&["--listen", "127.0.0.1:0"], flags].concat())
}

fn permit(client: &mut Client, peer: SocketAddr) -> Option<u16> {
    let reply = client.ask(Method::CreatePermission, |writer| {
        writer.xor_peer_address(peer);
    });
    code(&reply)
}

fn bind(client: &mut Client, peer: SocketAddr) -> Option<u16> {
    let reply = client.ask(Method::ChannelBind, |writer| {
        writer.channel_number(NUMBER).xor_peer_address(peer);
    });
    code(&reply)
}

fn channel_message(payload: &[u8]) -> Vec<u8> {
    [&channel_data::header(NUMBER, payload.len()).unwrap()[..], payload].concat()
}

fn send_indication(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; payload.len() + 100];
    let mut writer =
        Writer::new(&mut buffer, Class::Indication, Method::Send, TransactionId([2; 12])).unwrap();
    writer.xor_peer_address(peer).data(payload);
    let len = writer.finish(None, false).unwrap();
    buffer.truncate(len);
    buffer
}

/// The peer and payload of the Data indication that comes next.
fn receive_indication(socket: &UdpSocket) -> (SocketAddr, Vec<u8>) {
    let (datagram, _) = receive(socket);
    let message = Message::parse(&datagram).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
    (message.xor_peer_address().unwrap().unwrap(), message.data().unwrap().to_vec())
}

fn receive_channel_data(socket: &UdpSocket) -> Vec<u8> {
    let (datagram, _) = receive(socket);
    let data = ChannelData::parse(&datagram).unwrap();
    assert_eq!(data.number, NUMBER);
    data.payload.to_vec()
}

/// Packets and bytes of the line that the relay ends with.
fn hairpinned(log: &str) -> Option<(u64, u64)> {
    let (_, rest) = log.split_once("hairpin packets=")?;
    let (packets, rest) = rest.split_once(" bytes=")?;
    Some((packets.parse().unwrap(), rest.split_whitespace().next()?.parse().unwrap()))
}

/// By channel and by indication, each way, with `flags`.
fn both_ways(flags: &[&str]) {
    let relay = strict(flags);
    let (mut left, mut right) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    let (left_at, right_at) = (left.allocate(), right.allocate());
    assert_eq!((permit(&mut left, right_at), permit(&mut right, left_at)), (None, None));
    left.socket.send(&send_indication(right_at, b"hello")).unwrap();
    assert_eq!(receive_indication(&right.socket), (left_at, b"hello".to_vec()));
    assert_eq!(bind(&mut right, left_at), None);
    left.socket.send(&send_indication(right_at, b"to a channel")).unwrap();
    assert_eq!(receive_channel_data(&right.socket), b"to a channel");
    right.socket.send(&channel_message(b"from a channel")).unwrap();
    assert_eq!(receive_indication(&left.socket), (right_at, b"from a channel".to_vec()));
    assert_eq!(bind(&mut left, right_at), None);
    for len in [0, 1, 1200, 2000] {
        let payload = vec![7; len];
        left.socket.send(&channel_message(&payload)).unwrap();
        assert_eq!(receive_channel_data(&right.socket), payload);
        right.socket.send(&channel_message(&payload)).unwrap();
        assert_eq!(receive_channel_data(&left.socket), payload);
    }
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
    let bytes = 5 + 12 + 14 + 2 * (1 + 1200 + 2000);
    assert_eq!(hairpinned(&log), Some((11, bytes)), "{log}");
}

#[test]
fn both_ways_by_channel_and_by_indication() {
    both_ways(&["--io", "suspend"]);
    both_ways(&["--io", "uring", "--ingress", "uring"]);
    both_ways(&["--io", "threaded"]);
    both_ways(&["--io", "runtime"]);
}

#[test]
fn a_permission_that_is_missing_on_either_side_stops_data() {
    // One worker, so that an answer to one client says that what it sent before has been judged: another worker judges when it
    // gets to it.
    let relay = strict(&["--io", "suspend", "--workers", "1"]);
    let (mut left, mut right) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    let (left_at, right_at) = (left.allocate(), right.allocate());
    left.socket.send(&send_indication(right_at, b"nobody permits")).unwrap();
    assert_eq!(permit(&mut left, right_at), None);
    left.socket.send(&send_indication(right_at, b"only the sender permits")).unwrap();
    // An answer to the sender says that the relay is through with what the sender sent before.
    assert_eq!(permit(&mut left, right_at), None);
    assert_eq!(permit(&mut right, left_at), None);
    left.socket.send(&send_indication(right_at, b"both permit")).unwrap();
    assert_eq!(receive_indication(&right.socket), (left_at, b"both permit".to_vec()));
    let (_, log) = relay.stop();
    assert!(log.contains(".no_permission=2 "), "{log}");
    assert_eq!(hairpinned(&log), Some((1, 11)), "{log}");
}

#[test]
fn own_addresses_without_an_allocation_stay_refused() {
    let relay = strict(&["--io", "suspend"]);
    let service = harness::socket();
    service.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let service_at = service.local_addr().unwrap();
    let (mut left, mut right) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    let (left_at, right_at) = (left.allocate(), right.allocate());
    assert_eq!((permit(&mut left, right_at), permit(&mut right, left_at)), (None, None));
    assert_eq!(permit(&mut left, service_at), Some(403));
    assert_eq!(permit(&mut left, relay.listen[0]), Some(403));
    // The permission is for the address; neither way does it lead to other programs there.
    left.socket.send(&send_indication(service_at, b"out")).unwrap();
    service.send_to(b"in", left_at).unwrap();
    assert_eq!(service.recv(&mut [0; 10]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    right.socket.send(&send_indication(left_at, b"from the other client")).unwrap();
    assert_eq!(receive_indication(&left.socket).1, b"from the other client");
    let (_, log) = relay.stop();
    assert!(log.contains(".policy_peer=2 "), "{log}");
}

#[test]
fn without_hairpin_own_addresses_are_refused() {
    let relay = strict(&["--io", "suspend", "--hairpin", "off"]);
    let (mut left, mut right) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    left.allocate();
    let right_at = right.allocate();
    assert_eq!(permit(&mut left, right_at), Some(403));
}

#[test]
fn superpackets_stay_whole_and_in_order() {
    const COUNT: u16 = 48;
    const PAYLOAD: usize = 1000;
    let relay = strict(&["--io", "suspend"]);
    let (mut left, mut right) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    let (left_at, right_at) = (left.allocate(), right.allocate());
    assert_eq!((bind(&mut left, right_at), bind(&mut right, left_at)), (None, None));
    let payload = |sequence: u16| [&sequence.to_be_bytes()[..], &[0xa5; PAYLOAD - 2]].concat();
    let out: Vec<u8> = (0..COUNT).flat_map(|sequence| channel_message(&payload(sequence))).collect();
    let fast: Arc<std::os::fd::OwnedFd> = Arc::new(left.socket.try_clone().unwrap().into());
    let target =
        Target { port: Port(0), to: relay.listen[0], from: None, traffic_class: 0, dont_fragment: false };
    dataplane::sys::udp::send_message(&fast, &target, &out, PAYLOAD + 4).unwrap();
    for sequence in 0..COUNT {
        assert_eq!(receive_channel_data(&right.socket), payload(sequence), "{sequence}");
    }
    let (_, log) = relay.stop();
    assert_eq!(hairpinned(&log), Some((48, 48_000)), "{log}");
    let figures = log.split_once(" operations=").unwrap().1;
    let operations: u32 = figures.split(' ').next().unwrap().parse().unwrap();
    // Six answers or so, and the 48 datagrams as one or two superpackets.
    assert!(operations <= 16, "{log}");
}

/// The other side comes and goes while one side sends: what arrives is in order, and never at a client that is gone.
#[test]
fn an_allocation_may_come_and_go_while_data_flows() {
    let (low, high) = free_ports(2);
    let range = format!("{low}-{high}");
    let relay = RelayProcess::on_loopback(&["--relay-ports", &range]);
    let mut left = Client::new(relay.listen[0]);
    let left_at = left.allocate();
    let right_at: SocketAddr = (left_at.ip(), if left_at.port() == low { high } else { low }).into();
    // The address is excepted, so that it may be a peer before anybody is there.
    assert_eq!(bind(&mut left, right_at), None);
    let (stop, sender) = (AtomicBool::new(false), left.socket.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for sequence in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                sender.send(&channel_message(&sequence.to_be_bytes())).unwrap();
                if sequence % 8 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        });
        let mut newest = None;
        for _ in 0..30 {
            let mut right = Client::new(relay.listen[0]);
            assert_eq!(right.allocate(), right_at);
            assert_eq!(bind(&mut right, left_at), None);
            for _ in 0..20 {
                let payload = receive_channel_data(&right.socket);
                let sequence = u64::from_be_bytes(payload.try_into().unwrap());
                assert!(newest.is_none_or(|newest| newest < sequence), "{newest:?} {sequence}");
                newest = Some(sequence);
            }
            // The answer would come behind data. The port is free before the next client gets it.
            right.tell(Method::Refresh, |writer| {
                writer.lifetime(0);
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
    assert!(hairpinned(&log).unwrap().0 >= 600, "{log}");
}
