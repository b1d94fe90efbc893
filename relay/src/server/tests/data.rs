//! Data both ways, and the second at which each right to it ends.

use dataplane::stun::writer::padding;
use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId};

use super::super::*;
use super::fixture::*;

fn peer(text: &str) -> PeerSocket {
    PeerSocket(address(text))
}

fn number(number: u16) -> ChannelNumber {
    ChannelNumber::new(number).unwrap()
}

#[test]
fn channel_data_goes_both_ways() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let allocation = fixture.id(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    for payload in [&b""[..], b"x", b"hello", &[7; 9000]] {
        let datagram = channel_data(0x4001, payload);
        let forward = FromClient::Forward {
            allocation,
            peer: peer("192.0.2.9:7"),
            payload: 4..4 + payload.len(),
            dont_fragment: false,
        };
        assert_eq!(fixture.handle(&alice.client, &datagram), forward);
        let mut padded = datagram.clone();
        padded.extend([0; 3]);
        assert_eq!(fixture.handle(&alice.client, &padded), forward, "only the length counts");
    }
    assert_eq!(
        fixture.server.handle_peer(allocation, peer("192.0.2.9:7"), fixture.now),
        FromPeer::Channel { client: alice.client, number: number(0x4001) }
    );
}

#[test]
fn indications_go_both_ways() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let allocation = fixture.id(&alice);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    let datagram = send("192.0.2.9:7", b"hello");
    let FromClient::Forward { peer: to, payload, .. } = fixture.handle(&alice.client, &datagram) else {
        panic!("not forwarded")
    };
    assert_eq!((to, &datagram[payload]), (peer("192.0.2.9:7"), &b"hello"[..]));
    let empty = send("192.0.2.9:7", b"");
    assert!(
        matches!(fixture.handle(&alice.client, &empty), FromClient::Forward { payload, .. } if payload.is_empty())
    );

    let from = peer("192.0.2.9:4444");
    assert_eq!(
        fixture.server.handle_peer(allocation, from, fixture.now),
        FromPeer::Indication { client: alice.client }
    );
    let mut bytes = fixture.server.data_indication(from, 5).unwrap().to_vec();
    assert_eq!(bytes.len(), 36);
    bytes.extend(b"world");
    bytes.extend(std::iter::repeat_n(0, padding(5)));
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
    assert_eq!((message.data(), message.xor_peer_address()), (Some(&b"world"[..]), Ok(Some(from.0))));
    assert!(fixture.server.data_indication(from, 65_536).is_none());
}

#[test]
fn the_first_peer_of_a_send_indication_counts() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1", "192.0.2.8:1"]), None);
    let datagram = write(Class::Indication, Method::Send, TransactionId([1; 12]), |writer| {
        writer.xor_peer_address(address("192.0.2.9:7")).xor_peer_address(address("192.0.2.8:7")).data(b"x");
    });
    let FromClient::Forward { peer: to, .. } = fixture.handle(&alice.client, &datagram) else {
        panic!("dropped")
    };
    assert_eq!(to, peer("192.0.2.9:7"));
}

#[test]
fn send_indications_that_are_wrong_are_dropped() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    let good = address("192.0.2.9:7");
    let indication = |fill: &dyn Fn(&mut dataplane::stun::Writer<'_>)| {
        write(Class::Indication, Method::Send, TransactionId([1; 12]), fill)
    };
    let cases = [
        (
            Cause::MalformedOuter,
            indication(&|writer| {
                writer.xor_peer_address(good);
            }),
        ),
        (
            Cause::MalformedOuter,
            indication(&|writer| {
                writer.data(b"x");
            }),
        ),
        (
            Cause::MalformedOuter,
            indication(&|writer| {
                writer.xor_peer_address(good).data(b"x").attribute(AttributeType(0x7001), b"");
            }),
        ),
        (Cause::MalformedOuter, send("192.0.2.9:0", b"x")),
        (Cause::NoPermission, send("192.0.2.8:7", b"x")),
        (Cause::NoPermission, send("[2001:db8::1]:7", b"x")),
        (Cause::PolicyPeer, send("198.41.0.4:3478", b"x")),
    ];
    for (cause, datagram) in cases {
        assert_eq!(fixture.handle(&alice.client, &datagram), FromClient::Drop(cause));
    }
    let stranger = client("192.0.2.1:1001");
    assert_eq!(fixture.handle(&stranger, &send("192.0.2.9:7", b"x")), FromClient::Drop(Cause::NoAllocation));
}

#[test]
fn channel_data_that_is_wrong_is_dropped() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    let mut short = channel_data(0x4001, b"hello");
    short.pop();
    for (cause, datagram) in [
        (Cause::MalformedOuter, short),
        (Cause::MalformedOuter, vec![0x40]),
        (Cause::MalformedOuter, vec![0x40, 1, 0xff, 0xff]),
        (Cause::NoChannel, channel_data(0x5000, b"x")),
        (Cause::NoChannel, channel_data(0x4002, b"x")),
    ] {
        assert_eq!(fixture.handle(&alice.client, &datagram), FromClient::Drop(cause));
    }
    let stranger = client("192.0.2.1:1001");
    let datagram = channel_data(0x4001, b"x");
    assert_eq!(fixture.handle(&stranger, &datagram), FromClient::Drop(Cause::NoAllocation));
    let other_listener = ClientSocket { listener: Listener(1), ..alice.client };
    assert_eq!(fixture.handle(&other_listener, &datagram), FromClient::Drop(Cause::NoAllocation));
}

#[test]
fn peers_need_a_permission_and_channels_an_exact_port() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let allocation = fixture.id(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    let from = |text| fixture.server.handle_peer(allocation, peer(text), fixture.now);
    assert_eq!(from("192.0.2.8:7"), FromPeer::Drop(Cause::NoPermission));
    assert_eq!(from("192.0.2.9:8"), FromPeer::Indication { client: alice.client });
    assert!(matches!(from("192.0.2.9:7"), FromPeer::Channel { .. }));
    let nobody = fixture.server.handle_peer(AllocationId(77), peer("192.0.2.9:7"), fixture.now);
    assert_eq!(nobody, FromPeer::Drop(Cause::NoAllocation));
}

#[test]
fn what_gives_a_permission_says_whose_socket_has_to_hear() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let allocation = fixture.id(&alice);
    assert_eq!(fixture.server.poll_permitting(), None, "nobody may send to it yet");
    assert_eq!(fixture.permit(&alice, &["10.0.0.1:7"]), Some(403));
    assert_eq!(fixture.server.poll_permitting(), None);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:7"]), None);
    assert_eq!(fixture.server.poll_permitting(), Some(allocation));
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.10:7"), None);
    assert_eq!(fixture.server.poll_permitting(), Some(allocation));
    assert_eq!(fixture.server.poll_permitting(), None);
}

#[test]
fn a_permission_ends_after_300_seconds_and_takes_its_channel_along() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let allocation = fixture.id(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    let out = channel_data(0x4001, b"x");
    let indication = send("192.0.2.9:7", b"x");
    fixture.wait(299);
    assert!(matches!(fixture.handle(&alice.client, &out), FromClient::Forward { .. }));
    assert!(matches!(fixture.handle(&alice.client, &indication), FromClient::Forward { .. }));
    fixture.wait(1);
    let lost = FromClient::Drop(Cause::NoPermission);
    assert_eq!(fixture.handle(&alice.client, &out), lost);
    assert_eq!(fixture.handle(&alice.client, &indication), lost);
    let back = |fixture: &Fixture| fixture.server.handle_peer(allocation, peer("192.0.2.9:7"), fixture.now);
    assert_eq!(back(&fixture), FromPeer::Drop(Cause::NoPermission));
    // CreatePermission alone revives the channel, which is bound for 600 s.
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    assert!(matches!(fixture.handle(&alice.client, &out), FromClient::Forward { .. }));
    assert!(matches!(back(&fixture), FromPeer::Channel { .. }));
}

#[test]
fn a_channel_ends_after_600_seconds_and_data_falls_back_to_indications() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    fixture.refresh(&alice, Some(3600));
    let allocation = fixture.id(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    fixture.wait(299);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    fixture.wait(299);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    fixture.wait(1);
    let out = channel_data(0x4001, b"x");
    assert!(matches!(fixture.handle(&alice.client, &out), FromClient::Forward { .. }));
    fixture.wait(1);
    assert_eq!(fixture.handle(&alice.client, &out), FromClient::Drop(Cause::NoChannel));
    assert_eq!(
        fixture.server.handle_peer(allocation, peer("192.0.2.9:7"), fixture.now),
        FromPeer::Indication { client: alice.client }
    );
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    assert!(matches!(fixture.handle(&alice.client, &out), FromClient::Forward { .. }));
}

#[test]
fn nothing_flows_after_the_allocation_ends_even_if_the_timer_is_late() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let allocation = fixture.id(&alice);
    fixture.wait(500);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    fixture.wait(99);
    let out = channel_data(0x4001, b"x");
    assert!(matches!(fixture.handle(&alice.client, &out), FromClient::Forward { .. }));
    fixture.wait(1);
    let back = |fixture: &Fixture| fixture.server.handle_peer(allocation, peer("192.0.2.9:7"), fixture.now);
    assert_eq!(fixture.handle(&alice.client, &out), FromClient::Drop(Cause::NoAllocation));
    assert_eq!(back(&fixture), FromPeer::Drop(Cause::NoAllocation));
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(back(&fixture), FromPeer::Drop(Cause::NoAllocation), "while the socket is being closed");
    fixture.server.handle_relay_closed(allocation);
    assert_eq!(back(&fixture), FromPeer::Drop(Cause::NoAllocation));
}

#[test]
fn data_right_after_a_refresh_of_zero_is_dropped() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    assert_eq!(fixture.refresh(&alice, Some(0)).code(), None);
    let lost = FromClient::Drop(Cause::NoAllocation);
    assert_eq!(fixture.handle(&alice.client, &channel_data(0x4001, b"x")), lost);
}
