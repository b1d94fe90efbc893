//! Both address families and what ICMP says, over real sockets: dual allocations, clients of one family with peers of the
//! other, closed ports, datagrams that must not be fragmented.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::harness::{Client, RelayProcess, code, receive, socket, socket_on};
use crate::left_out::left_out;
use crate::{harness, user_namespace};
use dataplane::stun::channel_data;
use dataplane::stun::{
    AddressFamily, AttributeType, ChannelNumber, Class, Icmp, Message, Method, TransactionId, Writer,
};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// One choice of each design, and both ways in.
const WAYS: [&[&str]; 6] = [
    &["--io", "uring", "--ingress", "epoll"],
    &["--io", "uring", "--ingress", "uring"],
    &["--io", "suspend", "--ingress", "uring"],
    &["--io", "drop", "--ingress", "epoll"],
    &["--io", "threaded", "--ingress", "uring"],
    &["--io", "runtime", "--ingress", "epoll"],
];

/// Whether this machine has both families; says so when it has not.
fn has_both_families() -> bool {
    let both = UdpSocket::bind((V6, 0)).is_ok();
    if !both {
        left_out("the address ::1: `sysctl net.ipv6.conf.lo.disable_ipv6=0`");
    }
    both
}

/// A relay on loopback of both families.
fn relay(flags: &[&str]) -> RelayProcess {
    let own = ["--listen", "127.0.0.1:0", "[::1]:0", "--relay-address", "127.0.0.1", "::1"];
    let allow = ["--allow-peer", "127.0.0.0/8", "::1"];
    RelayProcess::start(&[&own[..], &allow, flags].concat())
}

/// Ends a relay that has lost nothing on its way out.
fn stop(relay: RelayProcess) -> String {
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
    assert!(!log.contains(" egress_drops."), "{log}");
    log
}

fn indication(peer: SocketAddr, payload: &[u8], dont_fragment: bool) -> Vec<u8> {
    let mut buffer = vec![0; payload.len() + 100];
    let mut writer =
        Writer::new(&mut buffer, Class::Indication, Method::Send, TransactionId([2; 12])).unwrap();
    writer.xor_peer_address(peer).data(payload);
    if dont_fragment {
        writer.dont_fragment();
    }
    let len = writer.finish(None, false).unwrap();
    buffer.truncate(len);
    buffer
}

fn channel_message(number: ChannelNumber, payload: &[u8]) -> Vec<u8> {
    let mut bytes = channel_data::header(number, payload.len()).unwrap().to_vec();
    bytes.extend(payload);
    bytes
}

fn number(offset: u16) -> ChannelNumber {
    ChannelNumber::new(0x4000 + offset).unwrap()
}

/// Allocates an address of one family, or of both.
fn allocate(client: &mut Client, family: Option<AddressFamily>) -> Vec<SocketAddr> {
    let reply = client.ask(Method::Allocate, |writer| {
        writer.requested_transport(17);
        match family {
            Some(family) => writer.requested_address_family(family),
            None => writer.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
        };
    });
    assert_eq!(code(&reply), None);
    let message = Message::parse(&reply).unwrap();
    assert_eq!(message.first(AttributeType::ADDRESS_ERROR_CODE), None);
    assert_eq!(message.xor_mapped_address(), Ok(Some(client.socket.local_addr().unwrap())));
    // The second one by what is left when the first is taken away.
    let mut rest = reply.clone();
    let mut addresses = vec![message.xor_relayed_address().unwrap().unwrap()];
    if family.is_none() {
        rest.drain(20..20 + 4 + if addresses[0].is_ipv4() { 8 } else { 20 });
        let length = (rest.len() - 20) as u16;
        rest[2..4].copy_from_slice(&length.to_be_bytes());
        // FINGERPRINT is not looked at here.
        addresses.push(Message::parse(&rest).unwrap().xor_relayed_address().unwrap().unwrap());
    }
    addresses
}

fn permit(client: &mut Client, peers: &[SocketAddr]) -> Option<u16> {
    code(&client.ask(Method::CreatePermission, |writer| {
        for &peer in peers {
            writer.xor_peer_address(peer);
        }
    }))
}

fn bind(client: &mut Client, number: ChannelNumber, peer: SocketAddr) -> Option<u16> {
    code(&client.ask(Method::ChannelBind, |writer| {
        writer.channel_number(number).xor_peer_address(peer);
    }))
}

fn delete(client: &mut Client, family: AddressFamily) -> Option<u16> {
    code(&client.ask(Method::Refresh, |writer| {
        writer.lifetime(0).requested_address_family(family);
    }))
}

/// Datagrams both ways by channel.
fn talk(client: &Client, number: ChannelNumber, peer: &UdpSocket, relayed: SocketAddr) {
    for payload in [&b""[..], b"x", &[7; 1200]] {
        let message = channel_message(number, payload);
        client.socket.send(&message).unwrap();
        assert_eq!(receive(peer), (payload.to_vec(), relayed));
        peer.send_to(payload, relayed).unwrap();
        assert_eq!(receive(&client.socket).0, message);
    }
}

/// Whether a port is free again; the answer to the client may come before the socket is closed.
fn becomes_free(relayed: SocketAddr) -> bool {
    (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        UdpSocket::bind(relayed).is_ok()
    })
}

#[test]
fn one_client_talks_to_peers_of_both_families() {
    if !has_both_families() {
        return;
    }
    for way in WAYS {
        let relay = relay(way);
        for listen in relay.listen.clone() {
            let mut client = Client::new(listen);
            let relayed = allocate(&mut client, None);
            assert_eq!([relayed[0].ip(), relayed[1].ip()], [V4, V6]);
            let peers = [V4, V6].map(socket_on);
            let addresses = peers.each_ref().map(|peer| peer.local_addr().unwrap());
            assert_eq!(permit(&mut client, &addresses), None);
            for (peer, &relayed) in peers.iter().zip(&relayed) {
                client.socket.send(&indication(peer.local_addr().unwrap(), b"hello", false)).unwrap();
                assert_eq!(receive(peer), (b"hello".to_vec(), relayed));
                peer.send_to(b"world", relayed).unwrap();
                let (datagram, _) = receive(&client.socket);
                let message = Message::parse(&datagram).unwrap();
                assert_eq!(message.data(), Some(&b"world"[..]));
                assert_eq!(message.xor_peer_address(), Ok(Some(peer.local_addr().unwrap())));
            }
            assert_eq!(bind(&mut client, number(0), addresses[0]), None);
            assert_eq!(bind(&mut client, number(0), addresses[1]), Some(400));
            assert_eq!(bind(&mut client, number(1), addresses[1]), None);
            talk(&client, number(0), &peers[0], relayed[0]);
            talk(&client, number(1), &peers[1], relayed[1]);

            assert_eq!(delete(&mut client, AddressFamily::V4), None);
            assert!(becomes_free(relayed[0]), "{way:?}");
            assert_eq!(permit(&mut client, &addresses[..1]), Some(443));
            talk(&client, number(1), &peers[1], relayed[1]);
            assert_eq!(delete(&mut client, AddressFamily::V4), Some(443));
            assert_eq!(delete(&mut client, AddressFamily::V6), None);
            assert!(becomes_free(relayed[1]), "{way:?}");
            assert_eq!(delete(&mut client, AddressFamily::V6), Some(437));
        }
        stop(relay);
    }
}

#[test]
fn a_client_of_one_family_talks_to_peers_of_the_other() {
    if !has_both_families() {
        return;
    }
    let relay = relay(&[]);
    for (listen, family, ip) in
        [(relay.listen[0], AddressFamily::V6, V6), (relay.listen[1], AddressFamily::V4, V4)]
    {
        let mut client = Client::new(listen);
        let relayed = allocate(&mut client, Some(family))[0];
        assert_eq!(relayed.ip(), ip);
        assert_ne!(listen.is_ipv4(), relayed.is_ipv4());
        let peer = socket_on(ip);
        assert_eq!(bind(&mut client, number(0), peer.local_addr().unwrap()), None);
        talk(&client, number(0), &peer, relayed);
    }
    stop(relay);
}

#[test]
fn a_family_that_the_relay_has_no_address_of_is_named_in_the_answer() {
    let relay = RelayProcess::on_loopback(&[]);
    let mut client = Client::new(relay.listen[0]);
    let reply = client.ask(Method::Allocate, |writer| {
        writer.requested_transport(17).attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    let message = Message::parse(&reply).unwrap();
    assert_eq!(message.first(AttributeType::ADDRESS_ERROR_CODE), Some(&[2, 0, 4, 40][..]));
    assert_eq!(message.xor_relayed_address().unwrap().unwrap().ip(), V4);
}

/// An address where nobody listens.
fn closed(ip: IpAddr) -> SocketAddr {
    socket_on(ip).local_addr().unwrap()
}

/// What a Data indication says of a peer, if it is one with ICMP and no DATA.
fn heard(datagram: &[u8]) -> Option<(SocketAddr, Icmp)> {
    let message = Message::parse(datagram).ok()?;
    assert_eq!((message.class(), message.method(), message.data()), (Class::Indication, Method::Data, None));
    Some((message.xor_peer_address().unwrap()?, message.icmp().unwrap()?))
}

#[test]
fn a_closed_port_is_reported_with_icmp_and_healthy_peers_lose_nothing() {
    const ROUNDS: u32 = 400;
    if !has_both_families() {
        return;
    }
    for way in WAYS {
        let relay = relay(way);
        for (ip, kind, error_code) in [(V4, 3, 3), (V6, 1, 4)] {
            let mut client = Client::new(relay.listen[0]);
            allocate(&mut client, None);
            let (healthy, dead) = (socket_on(ip), closed(ip));
            assert_eq!(bind(&mut client, number(0), healthy.local_addr().unwrap()), None);
            assert_eq!(bind(&mut client, number(1), dead), None);
            let mut reports = 0;
            for round in 0..ROUNDS {
                let payload = round.to_be_bytes();
                // Before, between and behind: each of the healthy ones has an error to meet.
                for number in [number(0), number(1), number(0), number(1), number(1), number(0)] {
                    client.socket.send(&channel_message(number, &payload)).unwrap();
                }
                for _ in 0..3 {
                    assert_eq!(receive(&healthy).0, payload, "{way:?}");
                }
            }
            client.socket.set_nonblocking(true).unwrap();
            let mut buffer = [0; 200];
            while let Ok(len) = client.socket.recv(&mut buffer) {
                let expected = (dead, Icmp { kind, code: error_code, error_data: 0 });
                assert_eq!(heard(&buffer[..len]), Some(expected), "{way:?}");
                reports += 1;
            }
            assert!((1..ROUNDS).contains(&reports), "{reports} reports, {way:?}");
        }
        stop(relay);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test has its own clock")]
fn a_storm_of_icmp_is_reported_ten_times_a_second_and_heard_of_again_later() {
    for way in WAYS {
        let relay = RelayProcess::on_loopback(way);
        let mut client = Client::new(relay.listen[0]);
        client.allocate();
        let dead = closed(V4);
        assert_eq!(permit(&mut client, &[dead]), None);
        let start = std::time::Instant::now();
        for _ in 0..200 {
            for _ in 0..25 {
                client.socket.send(&indication(dead, b"anybody?", false)).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // An answer comes behind everything that was reported before.
        let reply = client.ask_beside(Method::CreatePermission, |writer| {
            writer.xor_peer_address(dead);
        });
        let seconds = start.elapsed().as_secs() as usize + 1;
        assert!((1..=10 * seconds + 10).contains(&reply.len()), "{} in {seconds} s, {way:?}", reply.len());
        std::thread::sleep(Duration::from_millis(2100));
        client.socket.send(&indication(dead, b"anybody?", false)).unwrap();
        let (datagram, _) = receive(&client.socket);
        assert_eq!(heard(&datagram), Some((dead, Icmp { kind: 3, code: 3, error_data: 0 })), "{way:?}");
        let log = stop(relay);
        assert!(log.contains(".rate_limited="), "{log}");
    }
}

#[test]
fn a_peer_without_permission_is_not_reported() {
    let relay = RelayProcess::on_loopback(&[]);
    let mut client = Client::new(relay.listen[0]);
    let relayed = client.allocate();
    let dead = closed(V4);
    assert_eq!(permit(&mut client, &["127.0.0.2:1".parse().unwrap()]), None);
    client.socket.send(&indication(dead, b"x", false)).unwrap();
    // What comes first is not about the closed port: nothing was sent there, and nothing came back.
    let peer = socket_on("127.0.0.2".parse().unwrap());
    peer.send_to(b"hello", relayed).unwrap();
    let (datagram, _) = receive(&client.socket);
    assert_eq!(Message::parse(&datagram).unwrap().data(), Some(&b"hello"[..]));
    stop(relay);
}

/// Gives the loopback interface of this namespace the MTU of an Ethernet.
fn narrow_loopback() {
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    handle.set_mtu(loopback, 1_500).unwrap();
}

/// Sees every datagram to a port with its IPv4 header.
struct Witness(socket2::Socket);

impl Witness {
    fn new() -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::UDP))
                .unwrap();
        socket.set_read_timeout(Some(harness::PATIENCE)).unwrap();
        Self(socket)
    }

    /// Length of the payload and DF of the next datagram to a port.
    fn next(&self, port: u16) -> (usize, bool) {
        use std::io::Read as _;
        let mut bytes = vec![0; 70_000];
        loop {
            let len = (&self.0).read(&mut bytes).unwrap();
            if bytes[22..24] == port.to_be_bytes() {
                return (len - 28, bytes[6] & 0x40 != 0);
            }
        }
    }
}

#[test]
fn dont_fragment_sets_df_and_drops_what_does_not_fit_and_nothing_else_has_it() {
    if !user_namespace::inside(
        "families::dont_fragment_sets_df_and_drops_what_does_not_fit_and_nothing_else_has_it",
    ) {
        return;
    }
    narrow_loopback();
    for way in WAYS {
        let relay = RelayProcess::on_loopback(way);
        let mut client = Client::new(relay.listen[0]);
        let asked = client.ask(Method::Allocate, |writer| {
            writer.requested_transport(17).dont_fragment();
        });
        assert_eq!(code(&asked), None);
        let peer = socket();
        let address = peer.local_addr().unwrap();
        assert_eq!(bind(&mut client, number(0), address), None);
        let relayed = Message::parse(&asked).unwrap().xor_relayed_address().unwrap().unwrap();
        let witness = Witness::new();
        let sends = |message: &[u8], expected: Option<(usize, bool)>| {
            client.socket.send(message).unwrap();
            if let Some((len, df)) = expected {
                // What is fragmented has been put together again.
                assert_eq!(receive(&peer).0.len(), len, "{way:?}");
                assert_eq!(witness.next(address.port()), (len, df), "{way:?}");
            }
        };
        for (len, dont_fragment) in [
            (100, false),
            (101, true),
            (2000, true),
            (2001, false),
            (1472, true),
            (1473, true),
            (0, true),
            (102, false),
        ] {
            // An empty one always fits.
            let arrives = !dont_fragment || len <= 1472;
            let message = indication(address, &vec![1; len], dont_fragment);
            sends(&message, arrives.then_some((len, dont_fragment)));
        }
        sends(&channel_message(number(0), &[2; 1472]), Some((1472, false)));
        // Superpackets of what is above the MTU are fragmented one by one.
        for _ in 0..20 {
            client.socket.send(&channel_message(number(0), &[3; 2000])).unwrap();
        }
        for _ in 0..20 {
            assert_eq!(receive(&peer).0.len(), 2000);
            assert_eq!(witness.next(address.port()), (2000, false), "{way:?}");
        }
        // And on the way to the client.
        for len in [1, 1468, 2000] {
            peer.send_to(&vec![4; len], relayed).unwrap();
            assert_eq!(receive(&client.socket).0.len(), 4 + len);
            let port = client.socket.local_addr().unwrap().port();
            let (seen, df) =
                std::iter::repeat_with(|| witness.next(port)).find(|&(seen, _)| seen == 4 + len).unwrap();
            assert_eq!((seen, df), (4 + len, false), "{way:?}");
        }
        let log = stop(relay);
        assert!(log.contains(".egress_too_big=2 "), "{log}");
    }
}

#[test]
fn t49_what_does_not_fit_into_a_message_is_counted_and_never_cut() {
    let relay = RelayProcess::on_loopback(&[]);
    let mut client = Client::new(relay.listen[0]);
    let relayed = client.allocate();
    let peer = socket();
    assert_eq!(permit(&mut client, &[peer.local_addr().unwrap()]), None);
    // A Data indication adds 36 bytes over IPv4, and padding to a multiple of four.
    for (len, fits) in [(65_507, false), (65_469, false), (65_468, true), (0, true)] {
        peer.send_to(&vec![3; len], relayed).unwrap();
        if fits {
            let (datagram, _) = receive(&client.socket);
            assert_eq!(Message::parse(&datagram).unwrap().data().map(<[u8]>::len), Some(len));
        }
    }
    assert_eq!(bind(&mut client, number(0), peer.local_addr().unwrap()), None);
    for (len, fits) in [(65_507, false), (65_504, false), (65_503, true), (0, true)] {
        peer.send_to(&vec![3; len], relayed).unwrap();
        if fits {
            let (datagram, _) = receive(&client.socket);
            assert_eq!(datagram, channel_message(number(0), &vec![3; len]));
        }
    }
    let log = stop(relay);
    assert!(log.contains(".mtu=4 "), "{log}");
}

#[test]
fn t50_payload_that_looks_like_stun_or_channel_data_is_opaque_both_ways() {
    let relay = RelayProcess::on_loopback(&[]);
    let mut client = Client::new(relay.listen[0]);
    let relayed = client.allocate();
    let peer = socket();
    let address = peer.local_addr().unwrap();
    assert_eq!(bind(&mut client, number(0), address), None);
    let mut request = [0; 20];
    let writer = Writer::new(&mut request, Class::Request, Method::Binding, TransactionId([1; 12])).unwrap();
    assert_eq!(writer.finish(None, false), Some(20));
    let looks = [
        request.to_vec(),
        indication(address, b"inside", false),
        channel_message(number(0), b"inside"),
        channel_message(number(9), b"inside"),
        vec![0; 20],
        vec![0xff; 4],
    ];
    for payload in looks {
        client.socket.send(&channel_message(number(0), &payload)).unwrap();
        assert_eq!(receive(&peer), (payload.clone(), relayed));
        peer.send_to(&payload, relayed).unwrap();
        assert_eq!(receive(&client.socket).0, channel_message(number(0), &payload));
    }
    stop(relay);
}

#[test]
fn t38_clients_bound_to_each_other_cause_one_datagram_for_each_they_send() {
    let relay = RelayProcess::on_loopback(&[]);
    let mut clients = [Client::new(relay.listen[0]), Client::new(relay.listen[0])];
    let relayed = clients.each_mut().map(Client::allocate);
    for (client, peer) in clients.iter_mut().zip([relayed[1], relayed[0]]) {
        assert_eq!(bind(client, number(0), peer), None);
    }
    for round in 0..200_u32 {
        let message = channel_message(number(0), &round.to_be_bytes());
        clients[round as usize % 2].socket.send(&message).unwrap();
        assert_eq!(receive(&clients[1 - round as usize % 2].socket).0, message);
    }
    for client in &clients {
        client.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(client.socket.recv(&mut [0; 100]).is_err(), "nothing goes round by itself");
    }
    stop(relay);
}
