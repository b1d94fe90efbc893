//! Requests without credentials: what they are answered, and that nothing is kept of them.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::stun::{AttributeType, Class, Method, TransactionId};

use super::super::*;
use super::fixture::*;

/// A 401 or 438 with the realm of these tests: header, ERROR-CODE, REALM, NONCE and PASSWORD-ALGORITHMS.
const CHALLENGE_LEN: usize = 20 + 8 + 16 + 28 + 12;

/// The address of a stranger, many to a /24.
fn stranger(number: u32) -> ClientSocket {
    let source = SocketAddr::new(Ipv4Addr::from_bits(0x0800_0000 + number).into(), 9);
    ClientSocket { address: source, ..User::alice().client }
}

/// T14, T15, T16: every /24 is sent no more than came from it and ten answers a second; nothing is kept.
#[test]
fn a_flood_from_many_sources_is_answered_within_its_own_bytes_and_leaves_nothing_behind() {
    let mut fixture = Fixture::new();
    let binding = bare(Method::Binding, TransactionId([1; 12]));
    let asked = bare(Method::Allocate, TransactionId([1; 12]));
    let forged = request(&User::alice(), Method::Allocate, TransactionId([1; 12]), b"forged", |writer| {
        writer.requested_transport(17);
    });
    let mut ledger = HashMap::<u32, (usize, usize, u32)>::new();
    for number in 0..20_000_u32 {
        let from = stranger(number);
        for datagram in [&binding, &asked, &forged] {
            let (came, went, answers) = ledger.entry(number >> 8).or_default();
            *came += datagram.len();
            match fixture.handle(&from, datagram) {
                FromClient::Reply => {
                    assert!(fixture.server.reply().len() <= CHALLENGE_LEN);
                    *went += fixture.server.reply().len();
                    *answers += 1;
                }
                other => assert_eq!(other, FromClient::Drop(Cause::Reflection)),
            }
        }
    }
    for (prefix, (came, went, answers)) in ledger {
        assert!(went <= came + 10 * CHALLENGE_LEN, "{prefix:#x}: {went} bytes for {came}");
        assert!(answers > 10, "{prefix:#x}");
    }
    assert_eq!(fixture.server.allocations() + fixture.server.sources() + fixture.server.users.len(), 0);
    assert_eq!(fixture.server.poll_timeout(), None);
}

/// T12: methods that nobody has do not get around the budget.
#[test]
fn refusals_of_unknown_methods_count_too() {
    let mut fixture = Fixture::new();
    let odd = bare(Method::Other(0x555), TransactionId([1; 12]));
    let answers = (0..1000).filter(|_| fixture.handle(&stranger(1), &odd) == FromClient::Reply).count();
    // 20 bytes come, 28 go, and ten more a second.
    assert!((710..=730).contains(&answers), "{answers}");
}

/// T13: an answer to one of the relay's own sockets would come back to the relay.
#[test]
fn requests_in_the_name_of_the_relays_own_sockets_are_dropped() {
    let mut fixture = Fixture::new();
    let asked = [Method::Binding, Method::Allocate].map(|method| bare(method, TransactionId([1; 12])));
    for (from, is_own) in [
        (format!("{LOCAL}:3478"), true),
        ("127.0.0.1:3478".to_owned(), true),
        (format!("[::ffff:{LOCAL}]:3478"), true),
        (format!("{LOCAL}:3479"), false),
        // The number of a listener for TLS.
        (format!("{LOCAL}:5349"), false),
        ("192.0.2.1:3478".to_owned(), false),
    ] {
        for asked in &asked {
            let answer = fixture.handle(&client(&from), asked);
            let expected = if is_own { FromClient::Drop(Cause::MalformedOuter) } else { FromClient::Reply };
            assert_eq!(answer, expected, "{from}");
        }
    }
    // Whoever has a connection from there is there.
    fixture.server.set_connections_from(Listener(1), Listener(2));
    let connected = ClientSocket { listener: Listener(1), ..client(&format!("{LOCAL}:3478")) };
    assert_eq!(fixture.handle(&connected, &asked[0]), FromClient::Reply);
}

/// T11, T13: nothing but requests is answered, and only to one host.
#[test]
fn what_is_never_answered_earns_no_answers_either() {
    let mut fixture = Fixture::new();
    for class in [Class::Indication, Class::Success, Class::Error] {
        for method in [Method::Binding, Method::Allocate, Method::Send] {
            let long = write(class, method, TransactionId([1; 12]), |writer| {
                writer.data(&[0; 1000]);
            });
            assert_ne!(fixture.handle(&stranger(1), &long), FromClient::Reply);
        }
    }
    let asked = bare(Method::Binding, TransactionId([1; 12]));
    let answers = (0..100).filter(|_| fixture.handle(&stranger(1), &asked) == FromClient::Reply).count();
    // 20 bytes come, 32 go, and ten more a second: what else came pays for nothing.
    assert!((70..=73).contains(&answers), "{answers}");
}

#[test]
fn one_answer_that_is_longer_than_its_request_is_always_possible() {
    let mut fixture = Fixture::new();
    for number in 0..2000 {
        // One source in each /24.
        let asked = bare(Method::Allocate, TransactionId([1; 12]));
        assert_eq!(fixture.handle(&stranger(number << 8), &asked), FromClient::Reply, "{number}");
    }
}

#[test]
fn with_strict_reflection_only_long_requests_are_answered() {
    let mut settings = settings();
    settings.limits.strict_reflection = true;
    let mut fixture = Fixture::with(settings);
    let lost = FromClient::Drop(Cause::Reflection);
    assert_eq!(fixture.handle(&stranger(1), &bare(Method::Binding, TransactionId([1; 12]))), lost);
    assert_eq!(fixture.handle(&stranger(1), &bare(Method::Allocate, TransactionId([1; 12]))), lost);
    for method in [Method::Binding, Method::Allocate] {
        let padded = write(Class::Request, method, TransactionId([1; 12]), |writer| {
            writer.attribute(AttributeType::SOFTWARE, &[b'x'; 100]);
        });
        assert_eq!(fixture.handle(&stranger(1), &padded), FromClient::Reply);
        assert!(fixture.server.reply().len() <= padded.len());
    }
}

/// The sizes are those of challenges that offer password algorithms.
#[test]
fn with_strict_reflection_a_challenge_takes_a_request_of_its_length() {
    let mut settings = settings();
    settings.limits.strict_reflection = true;
    let mut fixture = Fixture::with(settings);
    for (len, is_answered) in [(CHALLENGE_LEN - 4, false), (CHALLENGE_LEN, true), (CHALLENGE_LEN + 4, true)] {
        let padded = write(Class::Request, Method::Allocate, TransactionId([1; 12]), |writer| {
            writer.attribute(AttributeType::SOFTWARE, &vec![b'x'; len - 24]);
        });
        assert_eq!(padded.len(), len);
        let answer = fixture.handle(&stranger(1), &padded);
        let expected = if is_answered { FromClient::Reply } else { FromClient::Drop(Cause::Reflection) };
        assert_eq!(answer, expected, "{len}");
    }
    assert_eq!(fixture.server.reply().len(), CHALLENGE_LEN);
    // What a client sends with its password is always long enough to be told that the nonce is stale.
    let alice = User::alice();
    let nonce = Message::parse(fixture.server.reply()).unwrap().nonce().unwrap().to_vec();
    let stale = request(&alice, Method::Refresh, TransactionId([2; 12]), &nonce, |_| {});
    assert_eq!(fixture.handle(&alice.client, &stale), FromClient::Reply);
    let reply = Reply(fixture.server.reply().to_vec());
    assert_eq!((reply.code(), reply.0.len()), (Some(438), CHALLENGE_LEN));
    assert!(reply.0.len() <= stale.len());
}

/// What the ledger charges is what is sent: challenges cost 84 bytes and not the 64 that they had before RFC 8489.
#[test]
fn challenges_are_paid_for_at_their_whole_length() {
    let mut settings = settings();
    settings.limits.unpaid_replies_per_s = 0;
    let mut fixture = Fixture::with(settings);
    let asked = bare(Method::Allocate, TransactionId([1; 12]));
    let answers = (0..840).filter(|_| fixture.handle(&stranger(1), &asked) == FromClient::Reply).count();
    assert_eq!(answers, 840 * asked.len() / CHALLENGE_LEN);
}

#[test]
fn authentic_requests_are_answered_however_many() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let nonce = fixture.nonce(&alice);
    for _ in 0..1000 {
        let asked = request(&alice, Method::Refresh, TransactionId([7; 12]), &nonce, |_| {});
        assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    }
    // And what they brought pays for their neighbours' first requests.
    let asked = bare(Method::Allocate, TransactionId([1; 12]));
    let neighbour = client("192.0.2.77:5");
    let answers = (0..1000).filter(|_| fixture.handle(&neighbour, &asked) == FromClient::Reply).count();
    assert_eq!(answers, 1000);
    fixture.now += Duration::from_secs(60);
    let answers = (0..1000).filter(|_| fixture.handle(&neighbour, &asked) == FromClient::Reply).count();
    assert!(answers < 400, "{answers}");
}
