//! Two relayed addresses for one client (RFC 8656 section 7): how they are asked for, told apart, and end.

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::stun::{AddressFamily, AttributeType, Method, TransactionId, Writer};

use super::super::*;
use super::fixture::*;

const V4_PEER: &str = "192.0.2.9:7";
const V6_PEER: &str = "[2001:db8::9]:7";

fn both(writer: &mut Writer<'_>) {
    writer.requested_transport(17).attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
}

/// The relayed addresses of an answer, in its order.
fn relayed(reply: &Reply) -> Vec<SocketAddr> {
    let message = reply.message();
    let transaction = message.transaction();
    let values = message.attributes().filter(|it| it.kind == AttributeType::XOR_RELAYED_ADDRESS);
    values
        .map(|attribute| {
            let bytes = write(Class::Success, Method::Allocate, transaction, |writer| {
                writer.attribute(AttributeType::XOR_RELAYED_ADDRESS, attribute.value);
            });
            Message::parse(&bytes).unwrap().xor_relayed_address().unwrap().unwrap()
        })
        .collect()
}

fn refused(reply: &Reply) -> Option<[u8; 4]> {
    reply.message().first(AttributeType::ADDRESS_ERROR_CODE).map(|value| value.try_into().unwrap())
}

/// A client with two addresses.
fn dual() -> (Fixture, User, Pair) {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let reply = fixture.ask(&alice, Method::Allocate, both);
    assert_eq!((reply.code(), refused(&reply)), (None, None));
    let pair = fixture.pair(&alice);
    (fixture, alice, pair)
}

fn refresh(fixture: &mut Fixture, user: &User, family: Option<AddressFamily>, seconds: u32) -> Reply {
    fixture.ask(user, Method::Refresh, |writer| {
        writer.lifetime(seconds);
        if let Some(family) = family {
            writer.requested_address_family(family);
        }
    })
}

/// Which allocation a Send indication or ChannelData leaves through.
fn way(fixture: &mut Fixture, user: &User, datagram: &[u8]) -> Result<AllocationId, Cause> {
    match fixture.handle(&user.client, datagram) {
        FromClient::Forward { allocation, .. } => Ok(allocation),
        FromClient::Drop(cause) => Err(cause),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_answer_has_both_addresses_and_one_lifetime() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let reply = fixture.ask(&alice, Method::Allocate, |writer| {
        both(writer);
        writer.lifetime(1200);
    });
    let addresses = relayed(&reply);
    let ips: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    assert_eq!((ips, reply.lifetime()), (vec![LOCAL.to_owned(), "2600::4".to_owned()], Some(1200)));
    let pair = fixture.pair(&alice);
    assert_eq!(pair.iter().count(), 2);
    assert_eq!(fixture.server.allocations(), 2);
    assert_eq!(fixture.server.poll_timeout(), Some(fixture.now + Duration::from_secs(1200)));
}

#[test]
fn an_external_address_of_each_family_is_shown() {
    let mut settings = settings();
    settings.external = vec![
        ExternalAddress { public: "2600::8".parse().unwrap(), local: None },
        ExternalAddress { public: "8.8.8.8".parse().unwrap(), local: None },
    ];
    let reply = Fixture::with(settings).ask(&User::alice(), Method::Allocate, both);
    let ips: Vec<String> = relayed(&reply).iter().map(|address| address.ip().to_string()).collect();
    assert_eq!(ips, ["8.8.8.8", "2600::8"]);
}

#[test]
fn an_allocate_sent_again_gets_the_same_two_addresses() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let asked = request(&alice, Method::Allocate, TransactionId([0xaa; 12]), &nonce, both);
    let FromClient::OpenRelay { allocation, .. } = fixture.handle(&alice.client, &asked) else {
        panic!("no open")
    };
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Consumed);
    let also = fixture.server.handle_relay_opened(allocation, Ok(()), fixture.now);
    let Opened::Also { allocation: second, address } = also else { panic!("{also:?}") };
    assert!(address.is_ipv6());
    // Half of it is there, and half an answer would be another one than the whole.
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Consumed);
    fixture.open_all(&alice, second);
    let first = fixture.server.reply().to_vec();
    assert_eq!(relayed(&Reply(first.clone())).len(), 2);
    fixture.wait(39);
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    assert_eq!(fixture.server.reply(), first);
    let other = fixture.ask(&alice, Method::Allocate, both);
    assert_eq!(other.code(), Some(437));
    assert_eq!(fixture.server.allocations(), 2);
}

#[test]
fn a_family_without_an_address_is_440_beside_the_other() {
    for (local, lacking, expected) in
        [("198.41.0.4", AddressFamily::V6, [2, 0, 4, 40]), ("2600::4", AddressFamily::V4, [1, 0, 4, 40])]
    {
        let mut settings = settings();
        settings.relay_addresses = vec![local.parse().unwrap()];
        let mut fixture = Fixture::with(settings);
        let mut alice = User::alice();
        alice.client.local = None;
        let reply = fixture.ask(&alice, Method::Allocate, both);
        assert_eq!((reply.code(), refused(&reply)), (None, Some(expected)), "without {lacking:?}");
        assert_eq!(relayed(&reply)[0].ip().to_string(), local);
        assert_eq!((relayed(&reply).len(), fixture.server.allocations()), (1, 1));
    }
    let mut settings = settings();
    settings.relay_addresses = Vec::new();
    let mut alice = User::alice();
    alice.client.local = None;
    assert_eq!(Fixture::with(settings).ask(&alice, Method::Allocate, both).code(), Some(440));
}

#[test]
fn a_family_nobody_has_assigned_is_440_beside_the_other() {
    let reply = Fixture::new().ask(&User::alice(), Method::Allocate, |writer| {
        writer.requested_transport(17).attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[9, 0, 0, 0]);
    });
    assert_eq!((reply.code(), refused(&reply)), (None, Some([9, 0, 4, 40])));
}

#[test]
fn a_family_without_a_socket_is_508_beside_the_other_and_both_without_are_508() {
    for failing in [&[0][..], &[1], &[0, 1]] {
        let mut fixture = Fixture::new();
        let alice = User::alice();
        let nonce = fixture.nonce(&alice);
        let asked = request(&alice, Method::Allocate, TransactionId([1; 12]), &nonce, both);
        let FromClient::OpenRelay { allocation, .. } = fixture.handle(&alice.client, &asked) else {
            panic!("no open")
        };
        let result = |index| if failing.contains(&index) { Err(OpenFailure::Other) } else { Ok(()) };
        let also = fixture.server.handle_relay_opened(allocation, result(0), fixture.now);
        let Opened::Also { allocation: second, .. } = also else { panic!("{also:?}") };
        let opened = fixture.server.handle_relay_opened(second, result(1), fixture.now);
        assert_eq!(opened, Opened::Reply { client: alice.client });
        let reply = Reply(fixture.server.reply().to_vec());
        let left = 2 - failing.len();
        assert_eq!((relayed(&reply).len(), fixture.server.allocations()), (left, left));
        match failing {
            [0] => assert_eq!((reply.code(), refused(&reply)), (None, Some([1, 0, 5, 8]))),
            [1] => assert_eq!((reply.code(), refused(&reply)), (None, Some([2, 0, 5, 8]))),
            _ => assert_eq!((reply.code(), refused(&reply)), (Some(508), None)),
        }
        if left == 1 {
            assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
            assert_eq!(fixture.server.reply(), reply.0, "sent again, the same");
        }
    }
}

#[test]
fn a_port_that_others_hold_is_replaced_in_its_family() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let asked = request(&alice, Method::Allocate, TransactionId([1; 12]), &nonce, both);
    let FromClient::OpenRelay { allocation, .. } = fixture.handle(&alice.client, &asked) else {
        panic!("no open")
    };
    let Opened::Also { allocation: second, address } =
        fixture.server.handle_relay_opened(allocation, Ok(()), fixture.now)
    else {
        panic!("no second")
    };
    let taken = fixture.server.handle_relay_opened(second, Err(OpenFailure::PortTaken), fixture.now);
    let Opened::Retry(other) = taken else { panic!("{taken:?}") };
    assert!(other.ip() == address.ip() && other.port() != address.port());
    fixture.open_all(&alice, second);
    assert_eq!(relayed(&Reply(fixture.server.reply().to_vec()))[1], other);
}

#[test]
fn quotas_count_each_address_and_one_is_better_than_none() {
    for (per_user, total, expected) in
        [(1, 100, Some([2, 0, 5, 8])), (100, 1, Some([2, 0, 5, 8])), (2, 2, None)]
    {
        let mut settings = settings();
        (settings.allocations_per_user_max, settings.allocations_max) = (per_user, total);
        let mut fixture = Fixture::with(settings);
        let reply = fixture.ask(&User::alice(), Method::Allocate, both);
        assert_eq!((reply.code(), refused(&reply)), (None, expected), "{per_user} of {total}");
    }
    let mut settings = settings();
    settings.allocations_per_user_max = 0;
    assert_eq!(Fixture::with(settings).ask(&User::alice(), Method::Allocate, both).code(), Some(486));
}

#[test]
fn even_ports_are_even_in_both_families() {
    let reply = Fixture::new().ask(&User::alice(), Method::Allocate, |writer| {
        both(writer);
        writer.even_port(false);
    });
    assert!(relayed(&reply).iter().all(|address| address.port().is_multiple_of(2)));
    assert_eq!(relayed(&reply).len(), 2);
}

#[test]
fn the_family_of_the_peer_chooses_the_address() {
    let (mut fixture, alice, pair) = dual();
    let (v4, v6) = (pair.first, pair.second.unwrap());
    assert_eq!(way(&mut fixture, &alice, &send(V4_PEER, b"x")), Err(Cause::NoPermission));
    assert_eq!(fixture.permit(&alice, &[V6_PEER, V4_PEER]), None, "of both families in one request");
    assert_eq!(way(&mut fixture, &alice, &send(V4_PEER, b"x")), Ok(v4));
    assert_eq!(way(&mut fixture, &alice, &send(V6_PEER, b"x")), Ok(v6));
    let indication = FromPeer::Indication { client: alice.client };
    let from =
        |fixture: &Fixture, id, peer| fixture.server.handle_peer(id, PeerSocket(address(peer)), fixture.now);
    assert_eq!(from(&fixture, v4, V4_PEER), indication);
    assert_eq!(from(&fixture, v6, V6_PEER), indication);
    assert_eq!(from(&fixture, v4, V6_PEER), FromPeer::Drop(Cause::NoPermission));

    assert_eq!(fixture.bind(&alice, 0x4000, V4_PEER), None);
    assert_eq!(fixture.bind(&alice, 0x4001, V6_PEER), None);
    assert_eq!(way(&mut fixture, &alice, &channel_data(0x4000, b"x")), Ok(v4));
    assert_eq!(way(&mut fixture, &alice, &channel_data(0x4001, b"x")), Ok(v6));
    assert_eq!(way(&mut fixture, &alice, &channel_data(0x4002, b"x")), Err(Cause::NoChannel));
    let number = ChannelNumber::new(0x4001).unwrap();
    assert_eq!(from(&fixture, v6, V6_PEER), FromPeer::Channel { client: alice.client, number });
}

#[test]
fn a_channel_number_is_bound_once_on_a_5_tuple() {
    let (mut fixture, alice, _) = dual();
    assert_eq!(refresh(&mut fixture, &alice, None, 3600).code(), None);
    assert_eq!(fixture.bind(&alice, 0x4000, V4_PEER), None);
    assert_eq!(fixture.bind(&alice, 0x4000, V6_PEER), Some(400));
    assert_eq!(fixture.bind(&alice, 0x4001, V6_PEER), None);
    assert_eq!(fixture.bind(&alice, 0x4001, V4_PEER), Some(400));
    assert_eq!(fixture.bind(&alice, 0x4000, V4_PEER), None, "a known one is refreshed");
    fixture.wait(899);
    assert_eq!(fixture.bind(&alice, 0x4000, V6_PEER), Some(400), "quiet for five minutes");
    fixture.wait(1);
    assert_eq!(fixture.bind(&alice, 0x4000, V6_PEER), None);
}

#[test]
fn permissions_of_both_families_are_all_or_nothing() {
    let (mut fixture, alice, _) = dual();
    assert_eq!(fixture.permit(&alice, &[V4_PEER, "[fe80::1]:1"]), Some(403));
    assert_eq!(way(&mut fixture, &alice, &send(V4_PEER, b"x")), Err(Cause::NoPermission));
    for last in 0..64 {
        assert_eq!(fixture.permit(&alice, &[&format!("[2001:db8::1:{last:x}]:1")]), None);
    }
    assert_eq!(fixture.permit(&alice, &[V4_PEER, V6_PEER]), Some(508), "one of the two is full");
    assert_eq!(way(&mut fixture, &alice, &send(V4_PEER, b"x")), Err(Cause::NoPermission));
    assert_eq!(fixture.permit(&alice, &[V4_PEER]), None);
}

#[test]
fn a_refresh_that_names_a_family_touches_no_other() {
    let (mut fixture, alice, pair) = dual();
    let (v4, v6) = (pair.first, pair.second.unwrap());
    let other = AddressFamily::Other(9);
    assert_eq!(refresh(&mut fixture, &alice, Some(other), 700).code(), Some(443));
    assert_eq!(refresh(&mut fixture, &alice, Some(AddressFamily::V6), 1800).lifetime(), Some(1800));
    fixture.wait(600);
    assert_eq!(fixture.pair(&alice), Pair::one(v6), "even if the timer is late");
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.poll_command(), Some(Command::Close(v4)));
    assert_eq!(fixture.permit(&alice, &[V4_PEER]), Some(443));
    assert_eq!(fixture.bind(&alice, 0x4000, V4_PEER), Some(443));
    assert_eq!(refresh(&mut fixture, &alice, Some(AddressFamily::V4), 600).code(), Some(443));
    assert_eq!(refresh(&mut fixture, &alice, None, 600).code(), None);
    fixture.wait(599);
    assert_eq!(fixture.permit(&alice, &[V6_PEER]), None);
    fixture.wait(1);
    assert_eq!(fixture.permit(&alice, &[V6_PEER]), Some(437));
}

#[test]
fn a_refresh_of_zero_deletes_the_family_it_names_or_both() {
    for (family, left) in [(AddressFamily::V4, 1), (AddressFamily::V6, 0)] {
        let (mut fixture, alice, pair) = dual();
        let ids: Vec<AllocationId> = pair.iter().collect();
        assert_eq!(refresh(&mut fixture, &alice, Some(family), 0).lifetime(), Some(0));
        assert_eq!(fixture.pair(&alice), Pair::one(ids[left]));
        assert_eq!(fixture.server.poll_command(), Some(Command::Close(ids[1 - left])));
        fixture.server.handle_relay_closed(ids[1 - left]);
        // The 5-tuple is still taken, and so it stays with one family.
        assert_eq!(fixture.ask(&alice, Method::Allocate, both).code(), Some(437));
        assert_eq!(refresh(&mut fixture, &alice, None, 0).lifetime(), Some(0));
        assert_eq!(fixture.server.poll_command(), Some(Command::Close(ids[left])));
        fixture.server.handle_relay_closed(ids[left]);
        assert_eq!((fixture.server.allocations(), fixture.server.poll_timeout()), (0, None));
        assert_eq!(fixture.ask(&alice, Method::Allocate, both).code(), None);
    }
    let (mut fixture, alice, pair) = dual();
    assert_eq!(refresh(&mut fixture, &alice, None, 0).lifetime(), Some(0));
    let closed: Vec<Command> = std::iter::from_fn(|| fixture.server.poll_command()).collect();
    assert_eq!(closed, pair.iter().map(Command::Close).collect::<Vec<_>>());
    assert_eq!(refresh(&mut fixture, &alice, None, 0).code(), Some(437));
}

#[test]
fn nobody_else_reaches_either_of_them() {
    let (mut fixture, alice, pair) = dual();
    let intruder = User { client: alice.client, ..User::bob() };
    for family in [None, Some(AddressFamily::V4), Some(AddressFamily::V6)] {
        assert_eq!(refresh(&mut fixture, &intruder, family, 0).code(), Some(441));
    }
    assert_eq!(fixture.permit(&intruder, &[V6_PEER]), Some(441));
    assert_eq!(fixture.bind(&intruder, 0x4000, V6_PEER), Some(441));
    assert_eq!(fixture.pair(&alice), pair);
}

#[test]
fn churn_of_dual_allocations_returns_every_port() {
    let mut settings = settings();
    settings.relay_ports = 50_000..=50_001;
    settings.allocations_max = 2;
    let mut fixture = Fixture::with(settings);
    let alice = User::alice();
    for round in 0..200 {
        let reply = fixture.ask(&alice, Method::Allocate, both);
        assert_eq!((reply.code(), relayed(&reply).len()), (None, 2), "round {round}");
        let family = [None, Some(AddressFamily::V4), Some(AddressFamily::V6)][round % 3];
        refresh(&mut fixture, &alice, family, 0);
        if family.is_some() {
            refresh(&mut fixture, &alice, None, 0);
        }
        while let Some(Command::Close(id)) = fixture.server.poll_command() {
            fixture.server.handle_relay_closed(id);
        }
        fixture.transactions = 0;
    }
    assert_eq!((fixture.server.allocations(), fixture.server.poll_timeout()), (0, None));
}

#[test]
fn a_client_of_one_family_relays_in_the_other() {
    let mut fixture = Fixture::new();
    let over_v6 = User { client: client("[2600::1:1]:1000"), ..User::alice() };
    assert!(fixture.allocate(&over_v6).is_ipv4());
    let over_v4 = User::bob();
    let reply = fixture.ask(&over_v4, Method::Allocate, |writer| {
        writer.requested_transport(17).requested_address_family(AddressFamily::V6);
    });
    let [relayed] = relayed(&reply)[..] else { panic!("one address") };
    assert!(relayed.is_ipv6());
    assert_eq!(reply.message().xor_mapped_address(), Ok(Some(over_v4.client.address)));
    assert_ne!(over_v4.client.address.ip(), Ipv4Addr::LOCALHOST);
    for (user, peer) in [(&over_v6, V4_PEER), (&over_v4, V6_PEER)] {
        assert_eq!(fixture.bind(user, 0x4000, peer), None);
        let id = fixture.id(user);
        assert_eq!(way(&mut fixture, user, &channel_data(0x4000, b"x")), Ok(id));
        let back = fixture.server.handle_peer(id, PeerSocket(address(peer)), fixture.now);
        assert!(matches!(back, FromPeer::Channel { client, .. } if client == user.client));
    }
}

#[test]
fn a_reserved_port_of_ipv6_is_had_by_its_token_alone() {
    let mut settings = settings();
    settings.relay_addresses = vec!["2600::4".parse().unwrap()];
    let mut fixture = Fixture::with(settings);
    let mut alice = User::alice();
    alice.client.local = None;
    let reply = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17).requested_address_family(AddressFamily::V6).even_port(true);
    });
    let token = reply.message().reservation_token().unwrap().unwrap();
    let first = relayed(&reply)[0];
    let mut second = alice.at("192.0.2.1:1001");
    second.client.local = None;
    let reply = fixture.ask(&second, Method::Allocate, |writer| {
        writer.requested_transport(17).reservation_token(token);
    });
    assert_eq!(relayed(&reply), [SocketAddr::new(first.ip(), first.port() + 1)]);
}
