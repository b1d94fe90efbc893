//! Where authentication and policy meet: quotas of users from shared secrets, and refusals of whoever has proven nothing.

use std::num::NonZeroU64;
use std::time::Duration;

use dataplane::stun::{Method, PasswordAlgorithm};

use super::super::*;
use super::auth::{Asked, TODAY, answer, key, timed, with_secrets};
use super::fixture::*;
use crate::server::auth::Identity;
use crate::server::figures::{Carrier, Direction, Volume};
use crate::server::limits::Rate;
use crate::server::rules::{Refused, Rule};

/// A server with secrets and these changes to its settings.
fn with(change: impl FnOnce(&mut Settings)) -> Fixture {
    let mut settings = settings();
    settings.credentials.add_secret(b"north");
    change(&mut settings);
    let mut fixture = Fixture::with(settings);
    fixture.server.set_wall_clock(Duration::from_secs(TODAY), fixture.now);
    fixture
}

/// The user `x` with one of its many names, at one of its many ports.
fn someone(number: u64) -> User {
    let port = 1 + number % 60_000;
    timed(&format!("{}:x", TODAY + 3600 + number), b"north", &format!("192.0.2.8:{port}"))
}

fn try_allocate(fixture: &mut Fixture, user: &User) -> Option<u16> {
    fixture.transactions = 0;
    let ask = fixture.ask(user, Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    ask.code()
}

/// Ends the allocation of a user, to the last of its socket.
fn delete(fixture: &mut Fixture, user: &User) {
    assert_eq!(fixture.refresh(user, Some(0)).code(), None);
    while let Some(Command::Close(id)) = fixture.server.poll_command() {
        fixture.server.handle_relay_closed(id);
    }
}

fn told(fixture: &mut Fixture) -> Vec<Refused> {
    std::iter::from_fn(|| fixture.server.poll_refused()).collect()
}

fn count(fixture: &Fixture, rule: Rule) -> u64 {
    fixture.server.refusals_by_rule().find(|&(known, _)| known == rule).unwrap().1
}

/// T40 by a user who has any number of names, and no allocation in between.
#[test]
fn a_scan_is_no_faster_with_new_names_and_new_allocations() {
    let mut fixture = with_secrets();
    let mut met = 0;
    for number in 0..1000_u64 {
        let user = someone(number);
        assert_eq!(try_allocate(&mut fixture, &user), None);
        met += u32::from(fixture.permit(&user, &[&format!("192.0.2.{}:1", number % 250)]).is_none());
        delete(&mut fixture, &user);
        assert_eq!(fixture.server.users.len(), 1, "the entry rests");
        fixture.now += Duration::from_millis(10);
        fixture.server.handle_timeout(fixture.now);
    }
    // In ten seconds: 100 at once, then 20 a second.
    assert!((290..=301).contains(&met), "{met}");
    // Someone else with the same secret is not slowed down.
    let other = timed(&format!("{}:y", TODAY + 3600), b"north", "192.0.2.9:1");
    assert_eq!(try_allocate(&mut fixture, &other), None);
    assert_eq!(fixture.permit(&other, &["192.0.2.1:1"]), None);
    delete(&mut fixture, &other);
    // Both are gone as soon as they are within their rates again, and not before.
    let at = fixture.server.poll_timeout().unwrap();
    assert!(at <= fixture.now + Duration::from_millis(50), "the other has met one peer");
    fixture.wait(4);
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.users.len(), 1);
    fixture.wait(2);
    fixture.server.handle_timeout(fixture.now);
    assert_eq!((fixture.server.users.len(), fixture.server.poll_timeout()), (0, None));
}

/// T52 by a user who makes a new allocation whenever the rate of the old one is reached.
#[test]
fn a_rate_of_a_user_outlives_its_allocations() {
    let mut fixture = with(|settings| {
        settings.limits.user_rate = Rate { bytes_per_s: NonZeroU64::new(100_000), packets_per_s: None };
    });
    let load = Volume { packets: 1, bytes: 1000 };
    let mut bytes = 0;
    for number in 0..200 {
        let user = someone(number);
        assert_eq!(try_allocate(&mut fixture, &user), None);
        let id = fixture.id(&user);
        while fixture.server.admit(id, Direction::ToPeer, load, fixture.now).is_ok() {
            fixture.server.count_relayed(id, Direction::ToPeer, Carrier::Channel, load);
            bytes += load.bytes;
        }
        let usage: Vec<_> = fixture.server.users().collect();
        assert_eq!((usage.len(), usage[0].identity), (1, Identity::Shared(b"x")));
        assert_eq!((usage[0].allocations, usage[0].relayed.to_peers().bytes), (1, bytes));
        delete(&mut fixture, &user);
        let admitted = fixture.server.admit(id, Direction::ToPeer, load, fixture.now);
        assert_eq!(admitted, Err(Cause::NoAllocation), "there is none any more");
        fixture.now += Duration::from_millis(10);
        fixture.server.handle_timeout(fixture.now);
    }
    // Two seconds, and a quarter of one at once.
    assert!((220_000..=230_000).contains(&bytes), "{bytes}");
    fixture.wait(1);
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.users.len(), 0);
}

/// An allocation that is being closed has no user any more, whatever still comes for it.
#[test]
fn nothing_is_admitted_for_an_allocation_that_is_being_closed() {
    let mut fixture = with(|settings| {
        settings.limits.user_rate = Rate { bytes_per_s: NonZeroU64::new(100_000), packets_per_s: None };
    });
    let user = someone(0);
    assert_eq!(try_allocate(&mut fixture, &user), None);
    let id = fixture.id(&user);
    assert_eq!(fixture.refresh(&user, Some(0)).code(), None);
    assert_eq!(fixture.server.users.len(), 0);
    let load = Volume { packets: 1, bytes: 1000 };
    for direction in [Direction::ToPeer, Direction::ToClient] {
        assert_eq!(fixture.server.admit(id, direction, load, fixture.now), Err(Cause::NoAllocation));
        fixture.server.count_relayed(id, direction, Carrier::Channel, load);
    }
    assert_eq!(fixture.server.users().count(), 0);
}

/// Refused is also who holds nothing yet, and so has no entry but for this request.
#[test]
fn a_refusal_names_a_user_who_holds_nothing() {
    let mut fixture = with(|settings| settings.allocations_max = 1);
    assert_eq!(try_allocate(&mut fixture, &User::alice()), None);
    let user = someone(0);
    assert_eq!(try_allocate(&mut fixture, &user), Some(508));
    let lines = told(&mut fixture);
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (lines[0].why.rule, &*lines[0].user, lines[0].client),
        (Rule::TotalAllocations, &b"x"[..], user.client.address)
    );
    assert_eq!(fixture.server.users.len(), 1, "the static user's entry");

    let mut fixture = with_secrets();
    let nonce = fixture.nonce(&user);
    let asked = Asked { method: Method::Allocate, ..Asked::plain(&user, &nonce) }.bytes();
    let FromClient::OpenRelay { allocation, .. } = fixture.handle(&user.client, &asked) else {
        panic!("no open")
    };
    fixture.server.handle_relay_opened(allocation, Err(OpenFailure::Other), fixture.now);
    let lines = told(&mut fixture);
    assert_eq!((lines.len(), lines[0].why.rule, &*lines[0].user), (1, Rule::Sockets, &b"x"[..]));
    assert_eq!((fixture.server.users.len(), fixture.server.sources()), (0, 0));
}

/// T25 by id: neither another name nor another source makes another user.
#[test]
fn limits_of_users_and_sources_hold_together_for_shared_secrets() {
    let mut fixture = with(|settings| {
        settings.allocations_per_user_max = 2;
        settings.limits.allocations_per_source_max = 3;
    });
    let at =
        |id: &str, validity: u64, from: &str| timed(&format!("{}:{id}", TODAY + validity), b"north", from);
    assert_eq!(try_allocate(&mut fixture, &at("x", 600, "192.0.2.8:1")), None);
    assert_eq!(try_allocate(&mut fixture, &at("x", 601, "192.0.2.8:2")), None);
    assert_eq!(try_allocate(&mut fixture, &at("x", 602, "192.0.2.8:3")), Some(486), "of this user");
    assert_eq!(try_allocate(&mut fixture, &at("x", 602, "192.0.2.9:3")), Some(486), "from elsewhere too");
    assert_eq!(try_allocate(&mut fixture, &at("y", 600, "192.0.2.8:4")), None);
    assert_eq!(try_allocate(&mut fixture, &at("z", 600, "192.0.2.8:5")), Some(486), "of this source");
    assert_eq!([Rule::UserAllocations, Rule::SourceAllocations].map(|rule| count(&fixture, rule)), [2, 1]);
    let names: Vec<_> = told(&mut fixture).into_iter().map(|line| line.user).collect();
    assert_eq!(names, [&b"x"[..], b"x", b"z"].map(Box::<[u8]>::from));
    assert_eq!((fixture.server.users.len(), fixture.server.sources()), (2, 1));
}

/// Entries are used again; that must not keep the next user's refusals out of the log.
#[test]
fn whoever_gets_anothers_entry_is_told_of_by_its_own_name() {
    let mut fixture = with_secrets();
    for id in ["x", "y"] {
        let user = timed(&format!("{}:{id}", TODAY + 600), b"north", "192.0.2.8:1");
        assert_eq!(try_allocate(&mut fixture, &user), None);
        assert_eq!(fixture.permit(&user, &["10.1.2.3:5000"]), Some(403));
        let lines = told(&mut fixture);
        assert_eq!((lines.len(), &*lines[0].user), (1, id.as_bytes()));
        delete(&mut fixture, &user);
        assert_eq!(fixture.server.users.len(), 0, "a refused peer is not met");
    }
}

/// T21 with T57: a weakened offer is told with its rule, however many names it comes with.
#[test]
fn a_weakened_offer_explains_itself_once_a_minute() {
    let mut fixture = with_secrets();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let md5 = PasswordAlgorithm::Md5.entry();
    let names: Vec<Vec<u8>> = (0..200).map(|number| format!("alice\n{number}").into_bytes()).collect();
    for name in &names {
        let asked = Asked {
            username: Some(name),
            algorithms: Some(&md5),
            algorithm: Some(&md5),
            ..Asked::negotiated(&alice, &nonce)
        };
        let reply = answer(&mut fixture, &alice.client, &asked.bytes());
        assert_eq!((reply.code(), reply.0.len()), (Some(400), 28));
    }
    let lines = told(&mut fixture);
    assert_eq!((lines.len(), lines[0].why.rule, &*lines[0].user), (1, Rule::WeakerOffer, &names[0][..]));
    assert_eq!(count(&fixture, Rule::WeakerOffer), 200);
    assert_eq!((fixture.server.allocations(), fixture.server.users.len()), (0, 0));
    fixture.wait(61);
    let asked = Asked { algorithms: Some(&md5), algorithm: Some(&md5), ..Asked::negotiated(&alice, &nonce) };
    answer(&mut fixture, &alice.client, &asked.bytes());
    assert_eq!(told(&mut fixture).len(), 1, "a minute later it is news again");
    // From many clients: one a second, because nobody has proven a name.
    let mut lines = 0;
    for port in 1..=1000 {
        let elsewhere = alice.at(&format!("192.0.2.{}:7", port % 200));
        let nonce = fixture.nonce(&elsewhere);
        let asked =
            Asked { algorithms: Some(&md5), algorithm: Some(&md5), ..Asked::negotiated(&elsewhere, &nonce) };
        answer(&mut fixture, &elsewhere.client, &asked.bytes());
        fixture.now += Duration::from_millis(2);
        lines += told(&mut fixture).len();
    }
    assert!((2..=4).contains(&lines), "{lines}");
}

/// A quota refusal is answered with the integrity that the request negotiated.
#[test]
fn a_quota_refuses_in_the_clients_own_integrity() {
    let mut fixture = with(|settings| settings.limits.permissions_max = 1);
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.permit(&alice, &["192.0.2.1:1"]), None);
    assert_eq!(fixture.permit(&alice, &["192.0.2.2:1"]), Some(508), "asserts MESSAGE-INTEGRITY");
    let other = alice.at("192.0.2.1:1001");
    let mut settings = settings();
    settings.allocations_per_user_max = 0;
    let mut fixture = Fixture::with(settings);
    let nonce = fixture.nonce(&other);
    let asked = Asked { method: Method::Allocate, ..Asked::negotiated(&other, &nonce) };
    let integrity = asked.keys[0].0;
    let reply = answer(&mut fixture, &other.client, &asked.bytes());
    let key = key(&other, PasswordAlgorithm::Sha256);
    assert_eq!(reply.code(), Some(486));
    assert!(reply.message().verify_integrity(&key.for_integrity(integrity)));
    assert!(reply.message().has_integrity_sha256() && !reply.message().has_integrity());
    assert_eq!(count(&fixture, Rule::UserAllocations), 1);
}
