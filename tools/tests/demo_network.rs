//! The lab's network carries what the demo needs, and nothing it should not.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../../dataplane/tests/support/user_namespace.rs"]
mod user_namespace;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use tools::netns::{Address, Cable, Namespace, Topology};

/// Runs the calling test again inside a user namespace and answers `None`; inside, answers the network.
fn inside_namespace(test: &str) -> Option<Topology> {
    user_namespace::inside(test).then(|| Topology::new().unwrap())
}

fn bind(namespace: &Namespace, address: impl Into<IpAddr>) -> UdpSocket {
    let address = SocketAddr::new(address.into(), 0);
    let socket = namespace.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

/// Sends a datagram and answers who it came from.
fn passes(from: &UdpSocket, to: &UdpSocket) -> SocketAddr {
    from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 16];
    let (length, sender) = to.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
    sender
}

#[test]
fn clients_reach_each_other_and_the_relay() {
    let Some(topology) = inside_namespace("clients_reach_each_other_and_the_relay") else { return };
    let a = bind(&topology.a, Address::A_DIRECT);
    let b = bind(&topology.b, Address::B_DIRECT);
    assert_eq!(passes(&a, &b), a.local_addr().unwrap());
    assert_eq!(passes(&b, &a), b.local_addr().unwrap());

    // A on its side of the relay, B on the other: B sees and reaches the relay's one address.
    let a = bind(&topology.a, Address::A_AT_RELAY);
    let relay = bind(&topology.relay, Address::RELAY);
    let b = bind(&topology.b, Address::B_AT_RELAY);
    passes(&a, &relay);
    assert_eq!(passes(&relay, &b), relay.local_addr().unwrap());
    passes(&b, &relay);
    assert!(
        topology.a.run(|| UdpSocket::bind((Address::B_DIRECT, 0))).unwrap().is_err(),
        "an address belongs to one namespace"
    );
}

#[test]
fn the_bottleneck_holds_back_a_and_nobody_else_and_goes_away() {
    let Some(topology) = inside_namespace("the_bottleneck_holds_back_a_and_nobody_else_and_goes_away") else {
        return;
    };
    let a = bind(&topology.a, Address::A_DIRECT);
    let b = bind(&topology.b, Address::B_DIRECT);
    passes(&a, &b);
    // 12 datagrams of 1,000 bytes: 2 go at once, 4 wait, the rest is dropped.
    topology.add_bottleneck(Cable::Direct, 20_000, 2_200, 4_300).unwrap();
    let count = |from: &UdpSocket, to: &UdpSocket| {
        for _ in 0..12 {
            from.send_to(&[0; 1_000], to.local_addr().unwrap()).unwrap();
        }
        to.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 2_000];
        std::iter::from_fn(|| to.recv(&mut buffer).ok()).count()
    };
    let through = count(&a, &b);
    assert!((5..=7).contains(&through), "{through} came through");
    assert_eq!(count(&b, &a), 12);
    let dropped = topology.remove_bottleneck(Cable::Direct).unwrap() as usize;
    assert_eq!(through + dropped, 12);
    assert_eq!(count(&a, &b), 12);
}
