//! A relay with few ports over real sockets: several allocations on one socket, told apart by their peers.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

mod harness;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane::stun::channel_data::{self, ChannelData, ChannelNumber};
use dataplane::stun::{Method, Writer};
use harness::{Client, PATIENCE, RelayProcess, code, free_ports, receive, socket};

const NUMBER: ChannelNumber = ChannelNumber::MIN;

/// Held for the length of a test: a range stays free until the first client comes, and two tests would get the same one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A relay with this many ports.
fn relay_with(ports: u16, flags: &[&str]) -> RelayProcess {
    let (low, high) = free_ports(ports);
    let range = format!("{low}-{high}");
    RelayProcess::on_loopback(&[&["--relay-ports", &range], flags].concat())
}

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A peer with an address of its own.
fn peer(index: u8) -> UdpSocket {
    let peer = UdpSocket::bind((Ipv4Addr::new(127, 0, 1, index), 0)).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
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

fn delete(client: &mut Client) -> Option<u16> {
    let zero = |writer: &mut Writer<'_>| {
        writer.lifetime(0);
    };
    code(&client.ask(Method::Refresh, zero))
}

fn channel_message(payload: &[u8]) -> Vec<u8> {
    [&channel_data::header(NUMBER, payload.len()).unwrap()[..], payload].concat()
}

fn receive_channel_data(socket: &UdpSocket) -> Vec<u8> {
    let (datagram, _) = receive(socket);
    let data = ChannelData::parse(&datagram).expect("ChannelData");
    assert_eq!(data.number, NUMBER);
    data.payload.to_vec()
}

/// There and back between a client and the peer of its channel.
fn talk(client: &Client, peer: &UdpSocket, relayed: SocketAddr, text: &str) {
    client.socket.send(&channel_message(text.as_bytes())).unwrap();
    assert_eq!(receive(peer), (text.as_bytes().to_vec(), relayed));
    peer.send_to(text.as_bytes(), relayed).unwrap();
    assert_eq!(receive_channel_data(&client.socket), text.as_bytes());
}

#[test]
fn ten_clients_on_four_ports_reach_ten_peers() {
    let _alone = alone();
    for flags in [&["--io", "suspend"][..], &["--io", "uring", "--ingress", "uring"]] {
        let relay = relay_with(4, flags);
        let mut clients: Vec<Client> = (0..10).map(|_| Client::new(relay.listen[0])).collect();
        let relayed: Vec<SocketAddr> = clients.iter_mut().map(Client::allocate).collect();
        assert_eq!(relayed.iter().collect::<BTreeSet<_>>().len(), 4, "{relayed:?}");
        let peers: Vec<UdpSocket> = (1..=10).map(peer).collect();
        for (client, peer) in clients.iter_mut().zip(&peers) {
            assert_eq!(bind(client, peer.local_addr().unwrap()), None);
        }
        for round in 0..3 {
            for (index, client) in clients.iter().enumerate() {
                talk(client, &peers[index], relayed[index], &format!("{round} {index}"));
            }
        }
        // Half of them leave; the others on the same sockets do not notice.
        for client in clients.iter_mut().step_by(2) {
            assert_eq!(delete(client), None);
        }
        for index in (1..10).step_by(2) {
            talk(&clients[index], &peers[index], relayed[index], "still here");
        }
        for client in clients.iter_mut().skip(1).step_by(2) {
            assert_eq!(delete(client), None);
        }
        let is_free = || relayed.iter().all(|&relayed| UdpSocket::bind(relayed).is_ok());
        let free = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            is_free()
        });
        assert!(free, "the last one to leave closes the socket");
        let (status, log) = relay.stop();
        assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
        assert!(!log.contains("no_permission"), "{log}");
    }
}

#[test]
fn clients_of_one_peer_have_a_port_each_and_one_too_many_is_told_so() {
    let _alone = alone();
    let relay = relay_with(3, &["--io", "suspend"]);
    let (sfu, other) = (peer(1), peer(2));
    let at = sfu.local_addr().unwrap();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(relay.listen[0])).collect();
    let relayed: Vec<SocketAddr> = clients.iter_mut().map(Client::allocate).collect();
    for (client, &relayed) in clients.iter_mut().zip(&relayed) {
        assert_eq!(bind(client, at), None);
        talk(client, &sfu, relayed, "one of three");
    }
    let mut fourth = Client::new(relay.listen[0]);
    let shared = fourth.allocate();
    assert_eq!((permit(&mut fourth, at), bind(&mut fourth, at)), (Some(508), Some(508)));
    // Other peers are open to it.
    assert_eq!(bind(&mut fourth, other.local_addr().unwrap()), None);
    talk(&fourth, &other, shared, "another peer");
    for (client, &relayed) in clients.iter().zip(&relayed) {
        talk(client, &sfu, relayed, "undisturbed");
    }
    // As soon as one leaves, a new allocation is placed where it was.
    assert_eq!((delete(&mut clients[0]), delete(&mut fourth)), (None, None));
    let mut again = Client::new(relay.listen[0]);
    assert_eq!(again.allocate(), relayed[0]);
    assert_eq!(bind(&mut again, at), None);
    talk(&again, &sfu, relayed[0], "at last");
    let (_, log) = relay.stop();
    let line = log.lines().find(|line| line.contains("another client on the same relayed port")).expect(&log);
    assert!(line.contains(&at.to_string()) && line.contains("--relay-ports"), "{line}");
}

#[test]
fn a_listener_inside_the_range_is_passed_over() {
    let _alone = alone();
    let free = socket().local_addr().unwrap();
    let (listen, port) = (free.to_string(), free.port());
    let range = format!("{port}-{port}");
    let relay = RelayProcess::start(&["--listen", &listen, "--relay-ports", &range, "--io", "suspend"]);
    let mut client = Client::new(relay.listen[0]);
    let allocate = |writer: &mut Writer<'_>| {
        writer.requested_transport(17);
    };
    assert_eq!(code(&client.ask(Method::Allocate, allocate)), Some(508));

    let relay = relay_with(2, &["--io", "suspend"]);
    let mut first = Client::new(relay.listen[0]);
    let taken = first.allocate();
    drop(relay);
    // The same two ports, one of them the listener's.
    let other = if taken.port().is_multiple_of(2) { taken.port() + 1 } else { taken.port() - 1 };
    let range = format!("{}-{}", taken.port().min(other), taken.port().max(other));
    let listen = taken.to_string();
    let flags = ["--listen", &listen, "--relay-ports", &range, "--io", "suspend"];
    let relay = RelayProcess::start(&flags);
    let mut clients: Vec<Client> = (0..5).map(|_| Client::new(relay.listen[0])).collect();
    for client in &mut clients {
        assert_eq!(client.allocate().port(), other);
    }
}

/// One of two on a socket comes and goes while the other's data flows both ways.
#[test]
fn an_allocation_may_come_and_go_on_a_socket_in_use() {
    let _alone = alone();
    let relay = relay_with(1, &[]);
    let (steady_peer, brief_peer) = (peer(1), peer(2));
    let mut steady = Client::new(relay.listen[0]);
    let relayed = steady.allocate();
    assert_eq!(bind(&mut steady, steady_peer.local_addr().unwrap()), None);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let round = rounds.fetch_add(1, Ordering::Relaxed);
                talk(&steady, &steady_peer, relayed, &round.to_string());
            }
        });
        for round in 0..50 {
            let mut brief = Client::new(relay.listen[0]);
            assert_eq!(brief.allocate(), relayed);
            assert_eq!(permit(&mut brief, steady_peer.local_addr().unwrap()), Some(508));
            assert_eq!(bind(&mut brief, brief_peer.local_addr().unwrap()), None);
            talk(&brief, &brief_peer, relayed, &format!("brief {round}"));
            assert_eq!(delete(&mut brief), None);
            brief_peer.send_to(b"too late", relayed).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    // What came before on the same socket has been dealt with.
    talk(&steady, &steady_peer, relayed, "the end");
    assert!(rounds.load(Ordering::Relaxed) > 50);
    let (status, log) = relay.stop();
    assert!(status.success() && log.contains(" unexplained=0 "), "{log}");
    assert!(log.contains(".no_permission=50 "), "{log}");
}

#[test]
fn without_sharing_a_full_range_is_full() {
    let _alone = alone();
    let relay = relay_with(1, &["--io", "suspend", "--port-sharing", "off"]);
    Client::new(relay.listen[0]).allocate();
    let allocate = |writer: &mut Writer<'_>| {
        writer.requested_transport(17);
    };
    assert_eq!(code(&Client::new(relay.listen[0]).ask(Method::Allocate, allocate)), Some(508));
}

#[test]
fn two_clients_on_one_port_meet_inside_the_relay() {
    let _alone = alone();
    let relay = relay_with(1, &["--io", "suspend"]);
    let (mut left, mut right) = (Client::new(relay.listen[0]), Client::new(relay.listen[0]));
    let relayed = left.allocate();
    assert_eq!(right.allocate(), relayed);
    // Both have the same address, so that one of them can have the other as its peer, and that is itself.
    assert_eq!(bind(&mut left, relayed), None);
    assert_eq!(bind(&mut right, relayed), Some(508));
    left.socket.send(&channel_message(b"echo")).unwrap();
    assert_eq!(receive_channel_data(&left.socket), b"echo");
}
