//! What a relay does in several ways at once, over real sockets: clients of different transports that reach each other inside
//! it, by either of two families, and ICMP errors on a port that several of them share.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::harness;
use crate::harness::stream::{StreamClient, TestCertificate, connect, connect_tls, send_indication};
use crate::harness::{Client, RelayProcess, code, free_ports, receive};
use crate::left_out::left_out;
use dataplane::stun::channel_data::{self, ChannelNumber};
use dataplane::stun::{AddressFamily, AttributeType, Class, Icmp, Message, Method, Writer};

const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// One choice of each kind of egress, and both ways in.
const WAYS: [&[&str]; 4] = [
    &["--io", "uring", "--ingress", "uring"],
    &["--io", "suspend", "--ingress", "epoll"],
    &["--io", "threaded", "--ingress", "uring"],
    &["--io", "runtime", "--ingress", "epoll"],
];

/// A client of any transport.
trait Talker {
    fn ask(&mut self, method: Method, fill: &dyn Fn(&mut Writer<'_>)) -> Vec<u8>;
    fn send(&mut self, message: &[u8]);
    fn receive(&mut self) -> Vec<u8>;
    /// ChannelData is padded.
    fn is_stream(&self) -> bool;
}

impl Talker for Client {
    fn ask(&mut self, method: Method, fill: &dyn Fn(&mut Writer<'_>)) -> Vec<u8> {
        Self::ask(self, method, fill)
    }

    fn send(&mut self, message: &[u8]) {
        self.socket.send(message).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        receive(&self.socket).0
    }

    fn is_stream(&self) -> bool {
        false
    }
}

impl<S: Read + Write> Talker for StreamClient<S> {
    fn ask(&mut self, method: Method, fill: &dyn Fn(&mut Writer<'_>)) -> Vec<u8> {
        Self::ask(self, method, fill)
    }

    fn send(&mut self, message: &[u8]) {
        Self::send(self, message);
    }

    fn receive(&mut self) -> Vec<u8> {
        Self::receive(self).expect("a message arrives")
    }

    fn is_stream(&self) -> bool {
        true
    }
}

fn number(offset: u16) -> ChannelNumber {
    ChannelNumber::new(0x4000 + offset).unwrap()
}

fn allocate(client: &mut dyn Talker) -> SocketAddr {
    let reply = client.ask(Method::Allocate, &|writer| {
        writer.requested_transport(17);
    });
    assert_eq!(code(&reply), None);
    Message::parse(&reply).unwrap().xor_relayed_address().unwrap().unwrap()
}

/// An address of each family.
fn allocate_both(client: &mut dyn Talker) -> [SocketAddr; 2] {
    let mut reply = client.ask(Method::Allocate, &|writer| {
        writer.requested_transport(17).attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    assert_eq!(code(&reply), None);
    let message = Message::parse(&reply).unwrap();
    assert_eq!(message.first(AttributeType::ADDRESS_ERROR_CODE), None);
    let first = message.xor_relayed_address().unwrap().unwrap();
    // The second one by what is left when the first is taken away.
    reply.drain(20..32);
    let length = (reply.len() - 20) as u16;
    reply[2..4].copy_from_slice(&length.to_be_bytes());
    [first, Message::parse(&reply).unwrap().xor_relayed_address().unwrap().unwrap()]
}

fn permit(client: &mut dyn Talker, peer: SocketAddr) -> Option<u16> {
    code(&client.ask(Method::CreatePermission, &|writer| {
        writer.xor_peer_address(peer);
    }))
}

fn bind(client: &mut dyn Talker, number: ChannelNumber, peer: SocketAddr) -> Option<u16> {
    code(&client.ask(Method::ChannelBind, &|writer| {
        writer.channel_number(number).xor_peer_address(peer);
    }))
}

/// ChannelData as this client sends and gets it.
fn channel_message(client: &dyn Talker, number: ChannelNumber, payload: &[u8]) -> Vec<u8> {
    let mut bytes = channel_data::header(number, payload.len()).unwrap().to_vec();
    bytes.extend(payload);
    if client.is_stream() {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The peer and payload of the Data indication that comes next.
fn receive_indication(client: &mut dyn Talker) -> (SocketAddr, Vec<u8>) {
    let bytes = client.receive();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
    (message.xor_peer_address().unwrap().unwrap(), message.data().unwrap().to_vec())
}

/// Sends by channel from one to the other, which has bound the same number.
fn by_channel(from: &mut dyn Talker, to: &mut dyn Talker, number: ChannelNumber, payload: &[u8]) {
    from.send(&channel_message(from, number, payload));
    assert!(to.receive() == channel_message(to, number, payload), "{} bytes", payload.len());
}

/// Whether a port is free again; the answer to the client may come before the socket is closed.
fn becomes_free(relayed: SocketAddr) -> bool {
    (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        UdpSocket::bind(relayed).is_ok()
    })
}

/// Packets of the line that the relay ends with.
fn hairpinned(log: &str) -> Option<u64> {
    let (_, rest) = log.split_once("hairpin packets=")?;
    rest.split(' ').next()?.parse().ok()
}

/// A relay for all transports that makes no exceptions: loopback is refused, but for the allocations on it.
fn strict(certificate: &TestCertificate, flags: &[&str]) -> RelayProcess {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate.write(folder.path());
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let listen = ["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"];
    RelayProcess::start(&[&listen[..], &files, flags].concat())
}

/// By indication and by channel, each way; the answer is how many messages that were.
fn meet(left: &mut dyn Talker, right: &mut dyn Talker) -> u64 {
    let (left_at, right_at) = (allocate(left), allocate(right));
    assert_eq!((permit(left, right_at), permit(right, left_at)), (None, None));
    // Five bytes: a stream would lose its step if they were not padded.
    left.send(&send_indication(right_at, b"hello"));
    assert_eq!(receive_indication(right), (left_at, b"hello".to_vec()));
    right.send(&send_indication(left_at, b"there"));
    assert_eq!(receive_indication(left), (right_at, b"there".to_vec()));
    assert_eq!(bind(right, number(0), left_at), None);
    left.send(&send_indication(right_at, b"to a channel"));
    assert_eq!(right.receive(), channel_message(right, number(0), b"to a channel"));
    right.send(&channel_message(right, number(0), b"from a channel"));
    assert_eq!(receive_indication(left), (right_at, b"from a channel".to_vec()));
    assert_eq!(bind(left, number(0), right_at), None);
    for len in [0, 1, 1200, 2003, 60_000] {
        let payload = vec![7; len];
        by_channel(left, right, number(0), &payload);
        by_channel(right, left, number(0), &payload);
    }
    4 + 10
}

#[test]
fn clients_over_udp_tcp_and_tls_reach_each_other_inside_the_relay() {
    let certificate = TestCertificate::new();
    for way in WAYS {
        let relay = strict(&certificate, way);
        let udp = || Client::new(relay.listen[0]);
        let tcp = || StreamClient::new(connect(relay.tcp[0]));
        let tls = || StreamClient::new(connect_tls(relay.tls[0], &certificate));
        let mut count = meet(&mut udp(), &mut tcp());
        count += meet(&mut udp(), &mut tls());
        count += meet(&mut tcp(), &mut tls());
        count += meet(&mut tcp(), &mut tcp());
        let (status, log) = relay.stop();
        assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
        assert!(!log.contains(" application_drops."), "{log}");
        assert_eq!(hairpinned(&log), Some(count), "{log}");
    }
}

#[test]
fn many_messages_of_a_stream_reach_a_client_over_udp_in_order_and_too_long_ones_do_not() {
    const COUNT: u16 = 200;
    let relay = strict(&TestCertificate::new(), &["--io", "suspend"]);
    let (mut left, mut right) = (StreamClient::new(connect(relay.tcp[0])), Client::new(relay.listen[0]));
    let (left_at, right_at) = (left.allocate(), right.allocate());
    assert_eq!((bind(&mut left, number(0), right_at), bind(&mut right, number(0), left_at)), (None, None));
    // More than a datagram takes, and more than a datagram takes with its header.
    for len in [65_535, 65_505] {
        left.send(&channel_message(&left, number(0), &vec![1; len]));
    }
    let payload = |index: u16| [&index.to_be_bytes()[..], &vec![3; usize::from(index)]].concat();
    let all: Vec<u8> =
        (0..COUNT).flat_map(|index| channel_message(&left, number(0), &payload(index))).collect();
    left.send(&all);
    for index in 0..COUNT {
        assert_eq!(right.receive(), channel_message(&right, number(0), &payload(index)));
    }
    let (_, log) = relay.stop();
    assert!(log.contains(".mtu=2 "), "{log}");
    assert_eq!(hairpinned(&log), Some(COUNT.into()), "{log}");
}

#[test]
fn two_clients_with_both_families_meet_in_either_and_part_one_by_one() {
    if UdpSocket::bind((V6, 0)).is_err() {
        return left_out("the address ::1: `sysctl net.ipv6.conf.lo.disable_ipv6=0`");
    }
    for way in WAYS {
        let relay =
            strict(&TestCertificate::new(), &[&["--relay-address", "127.0.0.1", "::1"], way].concat());
        let mut left = Client::new(relay.listen[0]);
        let mut right = StreamClient::new(connect(relay.tcp[0]));
        let (left_at, right_at) = (allocate_both(&mut left), allocate_both(&mut right));
        for family in [0, 1] {
            assert_eq!(left_at[family].is_ipv4(), family == 0);
            let number = number(family as u16);
            assert_eq!(bind(&mut left, number, right_at[family]), None);
            assert_eq!(bind(&mut right, number, left_at[family]), None);
        }
        for family in [1, 0, 1] {
            by_channel(&mut left, &mut right, number(family), b"hello");
            by_channel(&mut right, &mut left, number(family), b"there");
        }
        // Its IPv6 allocation leaves alone: it is no peer any more, and the rest goes on.
        let gone = Client::ask(&mut left, Method::Refresh, |writer| {
            writer.lifetime(0).requested_address_family(AddressFamily::V6);
        });
        assert_eq!(code(&gone), None);
        assert!(becomes_free(left_at[1]), "{way:?}");
        assert_eq!(permit(&mut right, left_at[1]), Some(403));
        right.send(&channel_message(&right, number(1), b"nobody"));
        by_channel(&mut right, &mut left, number(0), b"still here");
        by_channel(&mut left, &mut right, number(0), b"me too");
        // With its connection, both allocations of the other one end.
        drop(right);
        assert!(right_at.into_iter().all(becomes_free), "{way:?}");
        assert_eq!(permit(&mut left, right_at[0]), Some(403));
        let (status, log) = relay.stop();
        assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
        assert!(log.contains(".policy_peer=1 "), "{log}");
        assert_eq!(hairpinned(&log), Some(8), "{log}");
    }
}

/// An address where nobody listens.
fn closed(ip: Ipv4Addr) -> SocketAddr {
    UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// What the next message says of a peer, which is a Data indication with ICMP and no DATA.
fn receive_icmp(client: &mut dyn Talker) -> (SocketAddr, Icmp) {
    let bytes = client.receive();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method(), message.data()), (Class::Indication, Method::Data, None));
    (message.xor_peer_address().unwrap().unwrap(), message.icmp().unwrap().unwrap())
}

#[test]
fn icmp_on_a_shared_port_finds_its_allocation_whatever_the_transport() {
    const HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
    const UNREACHABLE: Icmp = Icmp { kind: 3, code: 3, error_data: 0 };
    for way in WAYS {
        let (port, _) = free_ports(1);
        let range = format!("{port}-{port}");
        let flags = ["--listen-tcp", "127.0.0.1:0", "--relay-ports", &range];
        let relay = RelayProcess::on_loopback(&[&flags, way].concat());
        let mut left = Client::new(relay.listen[0]);
        let mut right = StreamClient::new(connect(relay.tcp[0]));
        let relayed = allocate(&mut left);
        assert_eq!(allocate(&mut right), relayed);
        // Two ports of one host: only the ports tell whom an error is for.
        let healthy = UdpSocket::bind((HOST, 0)).unwrap();
        healthy.set_read_timeout(Some(harness::PATIENCE)).unwrap();
        let (dead_left, dead_right) = (closed(HOST), closed(HOST));
        assert_ne!(dead_left, dead_right);
        assert_eq!(bind(&mut left, number(0), dead_left), None);
        assert_eq!(bind(&mut right, number(0), dead_right), None);
        assert_eq!(bind(&mut right, number(1), healthy.local_addr().unwrap()), None);
        for _ in 0..3 {
            left.send(&channel_message(&left, number(0), b"anybody?"));
            assert_eq!(receive_icmp(&mut left), (dead_left, UNREACHABLE), "{way:?}");
            right.send(&channel_message(&right, number(0), b"anybody?"));
            assert_eq!(receive_icmp(&mut right), (dead_right, UNREACHABLE), "{way:?}");
        }
        // One of them brings silence over the socket, and leaves before it is over. Nothing of the other's is lost.
        for round in 0..50_u8 {
            for _ in 0..5 {
                left.send(&channel_message(&left, number(0), b"anybody?"));
            }
            right.send(&channel_message(&right, number(1), &[round]));
            assert_eq!(receive(&healthy), (vec![round], relayed), "{way:?}");
        }
        left.ask_beside(Method::Refresh, |writer| {
            writer.lifetime(0);
        });
        std::thread::sleep(Duration::from_millis(2100));
        right.send(&channel_message(&right, number(0), b"anybody?"));
        assert_eq!(receive_icmp(&mut right), (dead_right, UNREACHABLE), "{way:?}");
        let (status, log) = relay.stop();
        assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
        assert!(log.contains(".rate_limited="), "{log}");
    }
}
