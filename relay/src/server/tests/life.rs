//! Reconfiguring under live allocations, and draining.

use dataplane::stun::{AttributeType, Method, TransactionId, Writer};

use super::super::figures::{Carrier, Census, Direction, Volume};
use super::super::rules::Rule;
use super::super::*;
use super::auth::{TODAY, timed, with_secrets};
use super::fixture::*;

fn credentials(users: &[(&str, &str)]) -> Credentials {
    let mut credentials = Credentials::new(REALM);
    for (name, password) in users {
        credentials.add(name, password);
    }
    credentials
}

fn allocate(fixture: &mut Fixture, user: &User) -> Reply {
    fixture.ask(user, Method::Allocate, |writer| {
        writer.requested_transport(17);
    })
}

/// The code of a request that is answered with a challenge again.
fn refused(fixture: &mut Fixture, user: &User, method: Method) -> u16 {
    let nonce = fixture.nonce(user);
    let transaction = fixture.transaction();
    let datagram = request(user, method, transaction, &nonce, |_| {});
    assert_eq!(fixture.handle(&user.client, &datagram), FromClient::Reply);
    Reply(fixture.server.reply().to_vec()).code().expect("an error")
}

#[test]
fn a_removed_user_keeps_relaying_until_the_lifetime_ends_and_gets_nothing_new() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:9"), None);
    let id = fixture.id(&alice);
    fixture.server.reconfigure(Settings { credentials: credentials(&[("bob", "hidden")]), ..settings() });
    for method in [Method::Refresh, Method::CreatePermission, Method::ChannelBind, Method::Allocate] {
        assert_eq!(refused(&mut fixture, &alice, method), 401, "{method:?}");
    }
    assert_eq!(refused(&mut fixture, &alice.at("192.0.2.1:1001"), Method::Allocate), 401);
    fixture.wait(299);
    assert!(matches!(
        fixture.handle(&alice.client, &channel_data(0x4000, b"x")),
        FromClient::Forward { allocation, .. } if allocation == id
    ));
    // The permission is not renewed either, so that five minutes are the end of data, ten that of the allocation.
    fixture.wait(1);
    assert_eq!(
        fixture.handle(&alice.client, &channel_data(0x4000, b"x")),
        FromClient::Drop(Cause::NoPermission)
    );
    fixture.wait(300);
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.poll_command(), Some(Command::Close(id)));
    fixture.server.handle_relay_closed(id);
    assert_eq!(fixture.server.allocations(), 0);
}

#[test]
fn a_secret_that_is_taken_out_takes_its_users_along_and_no_others() {
    let mut fixture = with_secrets();
    let user = |secret: &[u8], id: &str, from: &str| timed(&format!("{}:{id}", TODAY + 600), secret, from);
    let (leaked, good) = (user(b"north", "x", "192.0.2.8:1"), user(b"south", "y", "192.0.2.8:2"));
    for user in [&leaked, &good] {
        fixture.allocate(user);
        assert_eq!(fixture.bind(user, 0x4000, "192.0.2.9:9"), None);
    }
    let with = |secrets: &[&str]| {
        let mut settings = settings();
        secrets.iter().for_each(|secret| settings.credentials.add_secret(secret.as_bytes()));
        settings
    };
    // Nothing happens to anybody whose secret stays, in whatever place.
    fixture.server.reconfigure(with(&["south", "north"]));
    assert_eq!(fixture.refresh(&leaked, None).code(), None);
    fixture.server.reconfigure(with(&["east", "south"]));
    for method in [Method::Refresh, Method::CreatePermission, Method::ChannelBind, Method::Allocate] {
        assert_eq!(refused(&mut fixture, &leaked, method), 401, "{method:?}");
    }
    assert_eq!(fixture.refresh(&good, None).code(), None);
    // The same user, with a name by another secret, goes on with the allocation, and keeps it past that name.
    let renewed = User { client: leaked.client, ..user(b"east", "x", "192.0.2.8:1") };
    assert_eq!(fixture.refresh(&renewed, Some(3600)).code(), None);
    assert_eq!(refused(&mut fixture, &leaked, Method::Refresh), 401);
    fixture.wait(601);
    assert_eq!(fixture.refresh(&renewed, None).code(), None, "the name has expired, its secret is there");
    fixture.server.reconfigure(with(&["south"]));
    assert_eq!(refused(&mut fixture, &renewed, Method::Refresh), 401);
    fixture.server.reconfigure(settings());
    assert_eq!(refused(&mut fixture, &renewed, Method::Refresh), 401, "there is no secret at all");
}

#[test]
fn data_of_a_leaked_secret_ends_with_its_permissions() {
    let mut fixture = with_secrets();
    let leaked = timed(&format!("{}:x", TODAY + 600), b"north", "192.0.2.8:1");
    fixture.allocate(&leaked);
    assert_eq!(fixture.bind(&leaked, 0x4000, "192.0.2.9:9"), None);
    let mut without = settings();
    without.credentials.add_secret(b"south");
    fixture.server.reconfigure(without);
    fixture.wait(299);
    assert!(matches!(
        fixture.handle(&leaked.client, &channel_data(0x4000, b"x")),
        FromClient::Forward { .. }
    ));
    fixture.wait(1);
    assert_eq!(
        fixture.handle(&leaked.client, &channel_data(0x4000, b"x")),
        FromClient::Drop(Cause::NoPermission)
    );
    fixture.wait(300);
    fixture.server.handle_timeout(fixture.now);
    assert!(matches!(fixture.server.poll_command(), Some(Command::Close(_))));
}

#[test]
fn who_stays_goes_on_with_the_same_allocation_and_quota_under_a_new_password() {
    let mut settings_before = settings();
    settings_before.allocations_per_user_max = 1;
    let mut fixture = Fixture::with(settings_before);
    let alice = User::alice();
    fixture.allocate(&alice);
    // In another order and with somebody new: the index of a user is not their place in the file.
    let users = credentials(&[("carol", "c"), ("bob", "hidden"), ("alice", "changed")]);
    fixture.server.reconfigure(Settings { credentials: users, allocations_per_user_max: 1, ..settings() });
    assert_eq!(refused(&mut fixture, &alice, Method::Refresh), 401);
    let renewed = User { password: "changed", ..alice };
    assert_eq!(fixture.refresh(&renewed, None).code(), None);
    assert_eq!(allocate(&mut fixture, &renewed.at("192.0.2.1:1001")).code(), Some(486));
    let carol = User { name: "carol", password: "c", client: client("192.0.2.3:3000") };
    assert_eq!(allocate(&mut fixture, &carol).code(), None);
    assert_eq!(fixture.refresh(&renewed, Some(0)).code(), None);
    assert_eq!(allocate(&mut fixture, &renewed.at("192.0.2.1:1001")).code(), None);
}

#[test]
fn someone_new_never_gets_the_place_of_a_removed_user_whose_allocation_is_live() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let mallory = User { name: "mallory", password: "m", client: alice.client };
    for _ in 0..3 {
        fixture.server.reconfigure(Settings { credentials: credentials(&[("mallory", "m")]), ..settings() });
        // The same 5-tuple, and authentic, but somebody else's allocation (RFC 8656 section 5).
        assert_eq!(fixture.refresh(&mallory, None).code(), Some(441));
    }
    fixture.server.reconfigure(settings());
    assert_eq!(fixture.refresh(&alice, None).code(), None, "who comes back has the allocation again");
}

#[test]
fn what_a_user_relayed_stays_theirs_through_a_reload_and_goes_to_nobody_else() {
    let mut fixture = Fixture::new();
    let (alice, bob) = (User::alice(), User::bob());
    let volume = Volume { packets: 1, bytes: 100 };
    for user in [&alice, &bob] {
        fixture.allocate(user);
        let id = fixture.id(user);
        fixture.server.count_relayed(id, Direction::ToPeer, Carrier::Channel, volume);
        assert_eq!(fixture.refresh(user, Some(0)).code(), None);
    }
    let known = |fixture: &Fixture| {
        let mut census = Census::default();
        while !fixture.server.census(&mut census, fixture.now) {}
        let mut users: Vec<_> =
            census.users.iter().map(|user| (user.name.to_string(), user.relayed[0].bytes)).collect();
        users.sort();
        users
    };
    let relayed = |name: &str| (name.to_owned(), 100);
    assert_eq!(known(&fixture), [relayed("alice"), relayed("bob")]);
    // Carol gets the place of bob, and nothing else of his.
    let users = credentials(&[("carol", "c"), ("alice", "changed")]);
    fixture.server.reconfigure(Settings { credentials: users, ..settings() });
    assert_eq!(known(&fixture), [relayed("alice")]);
    let carol = User { name: "carol", password: "c", client: client("192.0.2.3:3000") };
    fixture.allocate(&carol);
    assert_eq!(known(&fixture), [relayed("alice"), ("carol".to_owned(), 0)]);
    assert_eq!(fixture.server.figures().relayed(Direction::ToPeer, Carrier::Channel).bytes, 200);
}

#[test]
fn users_who_come_and_go_do_not_pile_up() {
    let mut fixture = Fixture::new();
    for round in 0..100 {
        let name: &'static str = Box::leak(format!("user{round}").into());
        let users = credentials(&[(name, "x"), ("alice", "secret")]);
        fixture.server.reconfigure(Settings { credentials: users, ..settings() });
        let user = User { name, password: "x", client: client("192.0.2.3:3000") };
        fixture.transactions = 0;
        fixture.allocate(&user);
        assert_eq!(fixture.refresh(&user, Some(0)).code(), None);
        let Some(Command::Close(id)) = fixture.server.poll_command() else { panic!("nothing to close") };
        fixture.server.handle_relay_closed(id);
        assert!(fixture.server.users().count() <= 2, "{round}");
    }
}

#[test]
fn a_removed_user_is_forgotten_with_the_last_allocation_unless_they_come_back_before() {
    for (comes_back, known_after) in [(false, 0), (true, 1)] {
        let mut fixture = Fixture::new();
        let alice = User::alice();
        fixture.allocate(&alice);
        let id = fixture.id(&alice);
        let others = credentials(&[("bob", "hidden")]);
        fixture.server.reconfigure(Settings { credentials: others, ..settings() });
        assert_eq!(fixture.server.users().count(), 1, "an allocation keeps its user's entry");
        if comes_back {
            fixture.server.reconfigure(settings());
        }
        fixture.wait(600);
        fixture.server.handle_timeout(fixture.now);
        assert_eq!(fixture.server.poll_command(), Some(Command::Close(id)));
        fixture.server.handle_relay_closed(id);
        assert_eq!(fixture.server.users().count(), known_after, "comes back: {comes_back}");
    }
}

#[test]
fn a_new_policy_and_new_limits_hold_for_what_comes() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:9"]), None);
    let mut stricter = settings();
    stricter.policy.allow.clear();
    stricter.allocations_max = 1;
    stricter.external = vec![ExternalAddress { public: "198.41.0.99".parse().unwrap(), local: None }];
    fixture.server.reconfigure(stricter);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:9"]), Some(403), "not renewed");
    assert_eq!(
        fixture.handle(&alice.client, &send("192.0.2.9:9", b"x")),
        FromClient::Drop(Cause::NoPermission),
        "what was permitted ends with what permitted it"
    );
    assert_eq!(allocate(&mut fixture, &User::bob()).code(), Some(508));
    assert_eq!(fixture.refresh(&alice, Some(0)).code(), None);
    while let Some(Command::Close(id)) = fixture.server.poll_command() {
        fixture.server.handle_relay_closed(id);
    }
    assert_eq!(fixture.allocate(&User::bob()).ip().to_string(), "198.41.0.99");
}

#[test]
fn a_draining_relay_serves_what_it_has_and_refuses_what_is_new() {
    let mut fixture = Fixture::new();
    let (alice, bob) = (User::alice(), User::bob());
    let transaction = TransactionId([0x77; 12]);
    let ask = |fixture: &mut Fixture| {
        fixture.ask_again(&alice, Method::Allocate, transaction, |writer| {
            writer.requested_transport(17);
        })
    };
    assert_eq!(ask(&mut fixture).code(), None);
    fixture.server.drain(Alternates::default(), fixture.now);
    assert_eq!(ask(&mut fixture).code(), None, "the answer that was lost comes again");
    assert_eq!(fixture.refresh(&alice, None).code(), None);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:9"]), None);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:9"), None);
    assert!(matches!(fixture.handle(&alice.client, &channel_data(0x4000, b"x")), FromClient::Forward { .. }));
    assert_eq!(allocate(&mut fixture, &bob).code(), Some(508));
    let told = fixture.server.poll_refused().expect("it explains itself");
    assert_eq!((told.why.rule, &*told.user, told.client), (Rule::Draining, &b"bob"[..], bob.client.address));
    assert_eq!(refused(&mut fixture, &User { password: "wrong", ..bob.clone() }, Method::Allocate), 401);
    assert_eq!(fixture.server.allocations(), 1);
    let asked = bare(Method::Binding, TransactionId([1; 12]));
    assert_eq!(fixture.handle(&bob.client, &asked), FromClient::Reply);
}

#[test]
fn clients_are_sent_to_an_alternate_of_their_own_family_first() {
    let (v4, v6) = ("192.0.2.77:3478", "[2001:db8::77]:3479");
    let over_v6 = User::bob().at("[2001:db8::2]:2000");
    let alternates_of = |reply: &Reply| -> Vec<Vec<u8>> {
        let message = reply.message();
        let found = message.attributes().filter(|found| found.kind == AttributeType::ALTERNATE_SERVER);
        found.map(|found| found.value.to_vec()).collect()
    };
    // RFC 8489 section 14.15: as MAPPED-ADDRESS, so family, port and address as they are.
    let encoded_v4 = vec![0, 1, 0x0d, 0x96, 192, 0, 2, 77];
    let mut encoded_v6 = vec![0, 2, 0x0d, 0x97, 0x20, 0x01, 0x0d, 0xb8];
    encoded_v6.extend([0; 11]);
    encoded_v6.push(0x77);
    for (alternates, to_v4, to_v6) in [
        (vec![v4], vec![&encoded_v4], vec![]),
        (vec![v6], vec![], vec![&encoded_v6]),
        (vec![v6, v4], vec![&encoded_v4, &encoded_v6], vec![&encoded_v6, &encoded_v4]),
    ] {
        let alternates: Vec<SocketAddr> = alternates.into_iter().map(address).collect();
        let mut fixture = Fixture::new();
        fixture.server.drain(Alternates::new(&alternates), fixture.now);
        for (user, expected) in [(&User::alice(), to_v4), (&over_v6, to_v6)] {
            // `ask` has seen that the answer is authentic, without which a client ignores it.
            let reply = allocate(&mut fixture, user);
            assert_eq!(reply.code(), Some(if expected.is_empty() { 508 } else { 300 }));
            assert_eq!(alternates_of(&reply).iter().collect::<Vec<_>>(), expected);
            let rule = if expected.is_empty() { Rule::Draining } else { Rule::Redirected };
            assert_eq!(fixture.server.poll_refused().expect("it explains itself").why.rule, rule);
        }
        assert_eq!(fixture.server.refusals().filter(|&(code, _)| code == 300).count(), 1);
    }
}

#[test]
fn clients_over_tls_are_sent_to_a_place_of_their_own_with_its_name_or_nowhere() {
    let at = |listener| {
        let alice = User::alice();
        User { client: ClientSocket { listener: Listener(listener), ..alice.client }, ..alice }
    };
    let (over_udp, over_tcp, over_tls) = (at(0), at(1), at(2));
    let plain = [address("192.0.2.77:3478")];
    let tls = [address("192.0.2.78:5349"), address("[2001:db8::78]:5349")];
    let name = "relay2.example.org";
    for (alternates, expected) in [
        (Alternates::new(&plain), [Some("192.0.2.77:3478"), None]),
        (Alternates::default().with_tls(&tls, None), [None, Some("192.0.2.78:5349")]),
        (
            Alternates::new(&plain).with_tls(&tls, Some(name.into())),
            [Some("192.0.2.77:3478"), Some("192.0.2.78:5349")],
        ),
        (Alternates::new(&plain).with_tls(&tls[1..], Some(name.into())), [Some("192.0.2.77:3478"), None]),
    ] {
        let has_name = alternates.tls_name().is_some();
        let mut fixture = Fixture::new();
        fixture.server.set_connections_from(Listener(1), Listener(2));
        fixture.server.drain(alternates, fixture.now);
        for (user, expected) in [(&over_udp, expected[0]), (&over_tcp, expected[0]), (&over_tls, expected[1])]
        {
            let reply = allocate(&mut fixture, user);
            assert_eq!(reply.code(), Some(if expected.is_some() { 300 } else { 508 }), "{:?}", user.client);
            let message = reply.message();
            let sent_to = message.address(AttributeType::ALTERNATE_SERVER).unwrap();
            assert_eq!(sent_to, expected.map(address));
            // RFC 8489 section 14.16: the name alone, for who verifies a certificate.
            let named = message.attributes().find(|found| found.kind == AttributeType::ALTERNATE_DOMAIN);
            let is_named = has_name && user.client.listener == Listener(2) && expected.is_some();
            assert_eq!(named.map(|found| found.value), is_named.then_some(name.as_bytes()));
        }
    }
}

#[test]
fn the_longest_name_of_an_alternate_fits_into_an_answer() {
    let mut fixture = Fixture::new();
    let name = "n".repeat(253);
    let both = [address("192.0.2.78:5349"), address("[2001:db8::78]:5349")];
    fixture.server.set_connections_from(Listener(0), Listener(0));
    fixture.server.drain(Alternates::default().with_tls(&both, Some(name.as_str().into())), fixture.now);
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let mut buffer = [0; 1000];
    let transaction = TransactionId([1; 12]);
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::Allocate, transaction).unwrap();
    writer.requested_transport(17);
    writer.username(b"alice").realm(REALM.as_bytes()).nonce(&nonce);
    let len = writer.finish(Some(&alice.key()), true).unwrap();
    assert_eq!(fixture.handle(&alice.client, &buffer[..len]), FromClient::Reply);
    let reply = Reply(fixture.server.reply().to_vec());
    assert_eq!(reply.code(), Some(300));
    assert_eq!(reply.message().verify_fingerprint(), Some(true));
    let attributes = reply.message().attributes().filter(|found| found.value == name.as_bytes()).count();
    assert_eq!(attributes, 1);
}

fn as_towpath(fixture: &mut Fixture, user: &User, method: Method, port: u16, lifetime: Option<u32>) -> Reply {
    fixture.ask(user, method, |writer| {
        if method == Method::Allocate {
            writer.requested_transport(17);
        }
        let [high, low] = port.to_be_bytes();
        writer.attribute(AttributeType::TOWPATH, &[high, low, 0, 0]);
        if let Some(seconds) = lifetime {
            writer.lifetime(seconds);
        }
    })
}

#[test]
fn clients_that_understand_it_are_told_to_leave_a_draining_relay_and_served_until_they_do() {
    let elsewhere = [address("192.0.2.77:3478")];
    let mut fixture = Fixture::new();
    let (alice, bob) = (User::alice(), User::bob());
    assert_eq!(as_towpath(&mut fixture, &alice, Method::Allocate, 0, None).code(), None);
    fixture.allocate(&bob);
    assert_eq!(as_towpath(&mut fixture, &alice, Method::Refresh, 0, None).code(), None);
    fixture.server.drain(Alternates::new(&elsewhere), fixture.now);
    // It may be lost, so that it is said again.
    for _ in 0..3 {
        assert_eq!(fixture.server.poll_command(), Some(Command::Hint(alice.client)));
        assert_eq!(fixture.server.poll_command(), None, "bob would not understand it");
        fixture.server.hint();
        let hint = Message::parse(fixture.server.reply()).unwrap();
        assert_eq!((hint.class(), hint.method()), (Class::Indication, Method::Binding));
        fixture.wait(4);
        assert!(fixture.server.poll_timeout().is_some_and(|at| at <= fixture.now));
        fixture.server.handle_timeout(fixture.now);
    }
    let reply = as_towpath(&mut fixture, &alice, Method::Refresh, 0, None);
    assert_eq!(reply.code(), Some(300));
    assert_eq!(reply.message().address(AttributeType::ALTERNATE_SERVER).unwrap(), Some(elsewhere[0]));
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:9"), None, "the allocation goes on");
    assert_eq!(fixture.refresh(&bob, None).code(), None);
    // It leaves, and is told nothing more.
    assert_eq!(as_towpath(&mut fixture, &alice, Method::Refresh, 0, Some(0)).code(), None);
    while fixture.server.poll_command().is_some() {}
    fixture.wait(4);
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.poll_command(), None);
}

#[test]
fn without_another_relay_for_them_clients_stay_at_a_draining_one() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    assert_eq!(as_towpath(&mut fixture, &alice, Method::Allocate, 0, None).code(), None);
    fixture.server.drain(Alternates::new(&[address("[2001:db8::77]:3478")]), fixture.now);
    assert_eq!(fixture.server.poll_command(), None);
    assert_eq!(as_towpath(&mut fixture, &alice, Method::Refresh, 0, None).code(), None);
}

#[test]
fn a_client_gets_the_port_of_before_the_restart_again_and_nobody_elses() {
    let port_of = |reply: &Reply| reply.message().xor_relayed_address().unwrap().unwrap().port();
    for port in [50_123, 50_999] {
        // The relay knows nobody.
        let mut fixture = Fixture::new();
        let (alice, bob) = (User::alice(), User::bob());
        assert_eq!(port_of(&as_towpath(&mut fixture, &alice, Method::Allocate, port, None)), port);
        assert_ne!(port_of(&as_towpath(&mut fixture, &bob, Method::Allocate, port, None)), port, "taken");
        let id = fixture.id(&alice);
        assert_eq!(fixture.refresh(&alice, Some(0)).code(), None);
        fixture.server.handle_relay_closed(id);
        let carol = bob.at("192.0.2.2:2001");
        assert_ne!(port_of(&as_towpath(&mut fixture, &carol, Method::Allocate, port, None)), port, "alice's");
        // From elsewhere, as behind a NAT.
        let moved = alice.at("192.0.2.1:1001");
        assert_eq!(port_of(&as_towpath(&mut fixture, &moved, Method::Allocate, port, None)), port);
    }
}
