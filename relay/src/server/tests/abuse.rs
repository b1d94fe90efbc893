//! Hostile input: nothing is answered that should not be, nothing is kept, nothing panics.

use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId};
use proptest::prelude::*;

use super::super::*;
use super::fixture::*;

#[test]
fn what_is_no_request_is_never_answered() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let junk: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0; 19],
        vec![0x80; 40],
        vec![0xc0; 40],
        vec![0; 20],
        vec![0x16, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30],
        vec![0; 60_000],
    ];
    for datagram in &junk {
        assert_eq!(fixture.handle(&alice.client, datagram), FromClient::Drop(Cause::MalformedOuter));
    }
    for method in [Method::Binding, Method::Allocate, Method::Data, Method::Other(0x555)] {
        for class in [Class::Success, Class::Error, Class::Indication] {
            let datagram = write(class, method, TransactionId([1; 12]), |_| {});
            let expected = if (class, method) == (Class::Indication, Method::Binding) {
                FromClient::Consumed
            } else {
                FromClient::Drop(Cause::MalformedOuter)
            };
            assert_eq!(fixture.handle(&alice.client, &datagram), expected, "{class:?} {method:?}");
        }
    }
}

#[test]
fn sources_that_cannot_be_one_host_are_never_answered() {
    let mut fixture = Fixture::new();
    let asked = bare(Method::Binding, TransactionId([1; 12]));
    for from in ["192.0.2.1:0", "224.0.0.1:1", "255.255.255.255:1", "0.0.0.0:1", "[ff02::1]:1", "[::]:1"] {
        assert_eq!(fixture.handle(&client(from), &asked), FromClient::Drop(Cause::MalformedOuter), "{from}");
    }
}

#[test]
fn methods_nobody_has_are_refused_briefly() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    // Send and Data as requests, and the TCP methods of RFC 6062.
    for method in
        [Method::Send, Method::Data, Method::Other(0x00a), Method::Other(0x00b), Method::Other(0xfff)]
    {
        assert_eq!(fixture.handle(&alice.client, &bare(method, TransactionId([1; 12]))), FromClient::Reply);
        assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(400));
        assert_eq!(fixture.server.reply().len(), 28);
    }
}

#[test]
fn attributes_behind_the_integrity_change_nothing() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let nonce = fixture.nonce(&alice);
    let mut asked = request(&alice, Method::Refresh, TransactionId([1; 12]), &nonce, |_| {});
    asked.extend([0, 0x0d, 0, 4, 0, 0, 0, 0]);
    let length = (asked.len() - 20) as u16;
    asked[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    let reply = Reply(fixture.server.reply().to_vec());
    assert_eq!(reply.lifetime(), Some(600), "a LIFETIME of zero that nobody signed deletes nothing");
}

#[test]
fn usernames_of_any_kind_are_just_unknown() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    for name in [&b""[..], &[b'a'; 600], b"%s%n", b"alice\0", b"\xff\xfe", b"alice\n"] {
        let mut buffer = [0; 2000];
        let mut writer = dataplane::stun::Writer::new(
            &mut buffer,
            Class::Request,
            Method::Allocate,
            TransactionId([1; 12]),
        )
        .unwrap();
        writer.username(name).realm(REALM.as_bytes()).nonce(&nonce);
        let len = writer.finish(Some(&alice.key()), false).unwrap();
        assert_eq!(fixture.handle(&alice.client, &buffer[..len]), FromClient::Reply);
        assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(401), "{name:?}");
    }
}

#[test]
fn allocation_churn_returns_everything() {
    let mut settings = settings();
    settings.relay_ports = 50_000..=50_001;
    let mut fixture = Fixture::with(settings);
    let alice = User::alice();
    for _ in 0..200 {
        fixture.allocate(&alice);
        fixture.bind(&alice, 0x4000, "192.0.2.9:1");
        assert_eq!(fixture.refresh(&alice, Some(0)).code(), None);
        let Some(Command::Close(id)) = fixture.server.poll_command() else { panic!("nothing to close") };
        assert_eq!(id, AllocationId(0), "places are used again");
        fixture.server.handle_relay_closed(id);
        fixture.transactions = 0;
    }
    assert_eq!((fixture.server.allocations(), fixture.server.poll_timeout()), (0, None));
}

#[test]
fn refused_peers_are_refused_everywhere() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    for peer in [
        "127.0.0.1:5000",
        "0.0.0.0:5000",
        "10.0.0.1:5000",
        "169.254.169.254:80",
        "224.0.0.1:5000",
        "255.255.255.255:5000",
        "100.64.0.1:5000",
        "198.41.0.4:5000",
        "198.41.0.4:3478",
    ] {
        assert_eq!(fixture.permit(&alice, &[peer]), Some(403), "{peer}");
        assert_eq!(fixture.bind(&alice, 0x4000, peer), Some(403), "{peer}");
        let dropped = fixture.handle(&alice.client, &send(peer, b"x"));
        assert!(matches!(dropped, FromClient::Drop(Cause::NoPermission | Cause::PolicyPeer)), "{peer}");
    }
}

#[test]
fn an_allocation_is_small() {
    assert!(size_of::<allocation::Allocation>() <= 512, "{}", size_of::<allocation::Allocation>());
}

proptest! {
    #[test]
    fn mutated_messages_never_panic_and_are_answered_at_most_once(
        which in 0_usize..7,
        flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        cut in 0_usize..8,
    ) {
        let mut fixture = Fixture::new();
        let alice = User::alice();
        fixture.allocate(&alice);
        fixture.bind(&alice, 0x4001, "192.0.2.9:7");
        let nonce = fixture.nonce(&alice);
        let transaction = TransactionId([0x33; 12]);
        let peer = address("192.0.2.9:7");
        let mut datagram = match which {
            0 => bare(Method::Binding, transaction),
            1 => request(&alice, Method::Allocate, transaction, &nonce, |writer| { writer.requested_transport(17); }),
            2 => request(&alice, Method::Refresh, transaction, &nonce, |writer| { writer.lifetime(5); }),
            3 => request(&alice, Method::CreatePermission, transaction, &nonce, |writer| { writer.xor_peer_address(peer); }),
            4 => request(&alice, Method::ChannelBind, transaction, &nonce, |writer| {
                writer.xor_peer_address(peer).attribute(AttributeType::CHANNEL_NUMBER, &[0x40, 1, 0, 0]);
            }),
            5 => send("192.0.2.9:7", b"payload"),
            _ => channel_data(0x4001, b"payload"),
        };
        for (index, bits) in flips {
            let index = usize::from(index) % datagram.len();
            datagram[index] ^= bits;
        }
        datagram.truncate(datagram.len() - cut.min(datagram.len()));
        match fixture.handle(&alice.client, &datagram) {
            FromClient::Forward { payload, .. } => prop_assert!(payload.end <= datagram.len()),
            FromClient::Reply => {
                prop_assert!(Message::parse(fixture.server.reply()).is_ok());
                prop_assert!(fixture.server.reply().len() <= 128);
            }
            FromClient::OpenRelay { .. } | FromClient::Consumed | FromClient::Drop(_) => {}
        }
    }
}
