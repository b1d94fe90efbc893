//! Clients of the same relay: the same rights on both sides as over two sockets, and nothing else behind own addresses.

use std::collections::HashMap;

use dataplane::stun::Method;
use proptest::prelude::*;

use super::super::*;
use super::fixture::*;

const PUBLIC: &str = "203.0.113.4";

/// Two clients with an allocation each, and where those are told to be.
struct Pair {
    fixture: Fixture,
    alice: User,
    bob: User,
    alice_at: String,
    bob_at: String,
}

impl Pair {
    fn new() -> Self {
        Self::with(settings())
    }

    /// Behind a NAT: the relayed addresses are those of its outer side.
    fn behind_nat() -> Self {
        let local = Some(LOCAL.parse().unwrap());
        Self::with(Settings {
            external: vec![ExternalAddress { public: PUBLIC.parse().unwrap(), local }],
            ..settings()
        })
    }

    fn with(settings: Settings) -> Self {
        let mut fixture = Fixture::with(settings);
        let (alice, bob) = (User::alice(), User::bob());
        let (alice_at, bob_at) = (fixture.allocate(&alice).to_string(), fixture.allocate(&bob).to_string());
        Self { fixture, alice, bob, alice_at, bob_at }
    }

    /// What becomes of data that Alice sends to a peer, by a Send indication.
    fn send(&mut self, peer: &str) -> Result<Route, Cause> {
        match self.fixture.handle(&self.alice.client, &send(peer, b"hello")) {
            FromClient::Forward { allocation, peer, .. } => {
                self.fixture.server.route(allocation, peer, self.fixture.now)
            }
            FromClient::Drop(cause) => Err(cause),
            other => panic!("{other:?}"),
        }
    }

    fn arrives_at_bob_from(&self, seen_as: &str) -> Result<Route, Cause> {
        let to = FromPeer::Indication { client: self.bob.client };
        let receiver = self.fixture.id(&self.bob);
        Ok(Route::Client { receiver, to, seen_as: PeerSocket(address(seen_as)) })
    }
}

#[test]
fn both_sides_have_to_permit_the_other() {
    let mut pair = Pair::new();
    let (alice, bob) = (pair.alice.clone(), pair.bob.clone());
    let (alice_at, bob_at) = (pair.alice_at.clone(), pair.bob_at.clone());
    assert_eq!(pair.send(&bob_at), Err(Cause::NoPermission));
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    assert_eq!(pair.send(&bob_at), Err(Cause::NoPermission), "Alice permits nobody");
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.send(&bob_at), pair.arrives_at_bob_from(&alice_at));

    let mut one_sided = Pair::new();
    assert_eq!(one_sided.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(one_sided.send(&bob_at), Err(Cause::NoPermission), "Bob permits nobody");
}

#[test]
fn each_side_gets_channel_data_where_it_has_a_channel() {
    let mut pair = Pair::new();
    let (alice, bob) = (pair.alice.clone(), pair.bob.clone());
    let (alice_at, bob_at) = (pair.alice_at.clone(), pair.bob_at.clone());
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.fixture.bind(&bob, 0x4005, &alice_at), None);
    let number = ChannelNumber::new(0x4005).unwrap();
    let seen_as = PeerSocket(address(&alice_at));
    let to = FromPeer::Channel { client: bob.client, number };
    let receiver = pair.fixture.id(&bob);
    assert_eq!(pair.send(&bob_at), Ok(Route::Client { receiver, to, seen_as }));
    // The way back is Bob's channel and Alice's permission.
    let forward = pair.fixture.handle(&bob.client, &channel_data(0x4005, b"back"));
    let FromClient::Forward { allocation, peer, .. } = forward else { panic!("{forward:?}") };
    let to = FromPeer::Indication { client: alice.client };
    let seen_as = PeerSocket(address(&bob_at));
    assert_eq!(
        pair.fixture.server.route(allocation, peer, pair.fixture.now),
        Ok(Route::Client { receiver: pair.fixture.id(&alice), to, seen_as })
    );
}

#[test]
fn rights_end_on_either_side_as_they_do_over_sockets() {
    let mut pair = Pair::new();
    let (alice, bob) = (pair.alice.clone(), pair.bob.clone());
    let (alice_at, bob_at) = (pair.alice_at.clone(), pair.bob_at.clone());
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    pair.fixture.wait(299);
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.send(&bob_at), pair.arrives_at_bob_from(&alice_at));
    pair.fixture.wait(1);
    assert_eq!(pair.send(&bob_at), Err(Cause::NoPermission), "Bob's has run out");
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    assert_eq!(pair.send(&bob_at), pair.arrives_at_bob_from(&alice_at));
    pair.fixture.wait(299);
    assert_eq!(pair.send(&bob_at), Err(Cause::NoPermission), "Alice's has run out");
}

#[test]
fn an_allocation_that_ends_leaves_nothing_behind_its_address() {
    let mut pair = Pair::new();
    let (alice, bob) = (pair.alice.clone(), pair.bob.clone());
    let (alice_at, bob_at) = (pair.alice_at.clone(), pair.bob_at.clone());
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    assert_eq!(pair.fixture.refresh(&bob, Some(0)).code(), None);
    assert_eq!(pair.send(&bob_at), Err(Cause::PolicyPeer), "the address alone is not permitted");
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), Some(403));
    assert_eq!(pair.fixture.bind(&alice, 0x4000, &bob_at), Some(403));
}

#[test]
fn an_allocation_that_has_run_out_is_gone_even_if_the_timer_is_late() {
    let mut pair = Pair::new();
    let (alice, bob) = (pair.alice.clone(), pair.bob.clone());
    let (alice_at, bob_at) = (pair.alice_at.clone(), pair.bob_at.clone());
    pair.fixture.wait(400);
    assert_eq!(pair.fixture.refresh(&alice, None).code(), None);
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    pair.fixture.wait(199);
    assert_eq!(pair.send(&bob_at), pair.arrives_at_bob_from(&alice_at));
    pair.fixture.wait(1);
    assert_eq!(pair.send(&bob_at), Err(Cause::PolicyPeer));
}

#[test]
fn own_addresses_are_peers_only_where_an_allocation_is() {
    let mut pair = Pair::new();
    let (alice, bob_at) = (pair.alice.clone(), pair.bob_at.clone());
    let port = address(&bob_at).port();
    let free = if port == 50_999 { port - 1 } else { port + 1 };
    for peer in [format!("{LOCAL}:3478"), format!("{LOCAL}:22"), format!("{LOCAL}:{free}")] {
        if peer == pair.alice_at {
            continue;
        }
        assert_eq!(pair.fixture.permit(&alice, &[&peer]), Some(403), "{peer}");
        assert_eq!(pair.fixture.bind(&alice, 0x4000, &peer), Some(403), "{peer}");
    }
    // A permission is for an address, but what else listens there is not behind it.
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.send(&format!("{LOCAL}:22")), Err(Cause::PolicyPeer));
    let id = pair.fixture.id(&alice);
    let local_service = PeerSocket(address(&format!("{LOCAL}:22")));
    assert_eq!(
        pair.fixture.server.handle_peer(id, local_service, pair.fixture.now),
        FromPeer::Drop(Cause::PolicyPeer)
    );
}

#[test]
fn without_hairpin_own_addresses_are_refused_and_excepted_ones_take_the_socket() {
    let mut pair = Pair::with(Settings { hairpin: false, ..settings() });
    let (alice, bob_at) = (pair.alice.clone(), pair.bob_at.clone());
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), Some(403));
    let mut open = settings();
    open.hairpin = false;
    open.policy.allow.push("198.41.0.0/24".parse().unwrap());
    let mut pair = Pair::with(open);
    let (alice, bob) = (pair.alice.clone(), pair.bob.clone());
    let (alice_at, bob_at) = (pair.alice_at.clone(), pair.bob_at.clone());
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    assert_eq!(pair.send(&bob_at), Ok(Route::Socket));
    let id = pair.fixture.id(&bob);
    let from_socket = pair.fixture.server.handle_peer(id, PeerSocket(address(&alice_at)), pair.fixture.now);
    assert_eq!(from_socket, FromPeer::Indication { client: bob.client });
}

#[test]
fn excepted_own_addresses_without_an_allocation_take_the_socket() {
    let mut open = settings();
    open.policy.allow.push("198.41.0.0/24".parse().unwrap());
    let mut pair = Pair::with(open);
    let service = format!("{LOCAL}:22");
    let alice = pair.alice.clone();
    assert_eq!(pair.fixture.permit(&alice, &[&service]), None);
    assert_eq!(pair.send(&service), Ok(Route::Socket));
    let id = pair.fixture.id(&alice);
    let answer = pair.fixture.server.handle_peer(id, PeerSocket(address(&service)), pair.fixture.now);
    assert_eq!(answer, FromPeer::Indication { client: alice.client });
}

#[test]
fn what_was_on_its_way_before_an_allocation_came_is_not_let_in_behind_what_came_later() {
    let mut open = settings();
    open.policy.allow.push("198.41.0.0/24".parse().unwrap());
    let mut pair = Pair::with(open);
    let (bob, alice_at) = (pair.bob.clone(), pair.alice_at.clone());
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    let id = pair.fixture.id(&bob);
    let late = pair.fixture.server.handle_peer(id, PeerSocket(address(&alice_at)), pair.fixture.now);
    assert_eq!(late, FromPeer::Drop(Cause::NoAllocation));
}

#[test]
fn behind_a_nat_each_side_is_seen_under_the_name_that_the_other_uses() {
    let mut pair = Pair::behind_nat();
    let (alice, bob) = (pair.alice.clone(), pair.bob.clone());
    let (alice_at, bob_at) = (pair.alice_at.clone(), pair.bob_at.clone());
    assert!(alice_at.starts_with(PUBLIC) && bob_at.starts_with(PUBLIC));
    assert_eq!(pair.fixture.permit(&alice, &[&bob_at]), None);
    assert_eq!(pair.fixture.permit(&bob, &[&alice_at]), None);
    assert_eq!(pair.send(&bob_at), pair.arrives_at_bob_from(&alice_at));
    // Inside the NAT they have other names, which the other side has to permit likewise.
    let inside = |outer: &str| outer.replace(PUBLIC, LOCAL);
    assert_eq!(pair.send(&inside(&bob_at)), Err(Cause::NoPermission));
    assert_eq!(pair.fixture.permit(&alice, &[&inside(&bob_at)]), None);
    assert_eq!(pair.send(&inside(&bob_at)), Err(Cause::NoPermission), "Bob expects the outer name");
    assert_eq!(pair.fixture.permit(&bob, &[&inside(&alice_at)]), None);
    assert_eq!(pair.send(&inside(&bob_at)), pair.arrives_at_bob_from(&inside(&alice_at)));
}

#[test]
fn a_client_may_reach_itself_once_a_datagram_and_no_more() {
    let mut pair = Pair::new();
    let (alice, alice_at) = (pair.alice.clone(), pair.alice_at.clone());
    assert_eq!(pair.fixture.bind(&alice, 0x4000, &alice_at), None);
    let to = FromPeer::Channel { client: alice.client, number: ChannelNumber::MIN };
    let seen_as = PeerSocket(address(&alice_at));
    let receiver = pair.fixture.id(&alice);
    assert_eq!(pair.send(&alice_at), Ok(Route::Client { receiver, to, seen_as }));
}

/// Something a client does, or time that passes.
#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Delete(usize),
    Permit(usize, usize),
    Bind(usize, usize),
    Wait(u64),
    Send(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0_usize..4;
    prop_oneof![
        2 => who().prop_map(Step::Allocate),
        1 => who().prop_map(Step::Delete),
        4 => (who(), who()).prop_map(|(from, to)| Step::Permit(from, to)),
        3 => (who(), who()).prop_map(|(from, to)| Step::Bind(from, to)),
        2 => prop_oneof![Just(1), Just(150), Just(299), Just(300)].prop_map(Step::Wait),
        8 => (who(), who()).prop_map(|(from, to)| Step::Send(from, to)),
    ]
}

/// What RFC 8656 says of one allocation, as plainly as can be; seconds.
#[derive(Default)]
struct Model {
    relayed: Option<SocketAddr>,
    expires: u64,
    /// By relay address, which all allocations share.
    permitted_until: u64,
    /// Channels by peer: until when.
    channels: HashMap<SocketAddr, u64>,
}

impl Model {
    fn is_live(&self, now: u64) -> bool {
        self.relayed.is_some() && now < self.expires
    }

    fn may_talk(&self, now: u64) -> bool {
        self.is_live(now) && now < self.permitted_until
    }
}

/// A channel number for each relayed address, so that bindings never conflict.
fn number_of(relayed: SocketAddr) -> u16 {
    ChannelNumber::MIN.get() + relayed.port() % 1000
}

proptest! {
    /// Four clients that come, go, permit and send at random: a datagram arrives exactly when the sender may send, the
    /// receiver may receive, and both are there; and as ChannelData exactly when the receiver has a channel.
    #[test]
    fn deliveries_equal_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let mut fixture = Fixture::new();
        let users: Vec<User> =
            (0..4).map(|index| User::alice().at(&format!("192.0.2.1:{}", 1000 + index))).collect();
        let mut models: Vec<Model> = (0..4).map(|_| Model::default()).collect();
        // Where each was last, dead or alive: what others go on sending to.
        let mut last: Vec<SocketAddr> = vec![address("198.41.0.4:1"); 4];
        let mut now = 0;
        for step in steps {
            fixture.transactions = fixture.transactions.wrapping_add(1) % 200;
            fixture.server.handle_timeout(fixture.now);
            while let Some(Command::Close(id)) = fixture.server.poll_command() {
                fixture.server.handle_relay_closed(id);
            }
            match step {
                Step::Wait(seconds) => {
                    fixture.wait(seconds);
                    now += seconds;
                }
                Step::Allocate(who) if !models[who].is_live(now) => {
                    let relayed = fixture.allocate(&users[who]);
                    models[who] = Model { relayed: Some(relayed), expires: now + 600, ..Model::default() };
                    last[who] = relayed;
                }
                Step::Allocate(who) => {
                    let again = fixture.ask(&users[who], Method::Allocate, |writer| { writer.requested_transport(17); });
                    prop_assert_eq!(again.code(), Some(437));
                }
                Step::Delete(who) => {
                    let expected = if models[who].is_live(now) { None } else { Some(437) };
                    prop_assert_eq!(fixture.refresh(&users[who], Some(0)).code(), expected);
                    models[who] = Model::default();
                }
                Step::Permit(from, to) | Step::Bind(from, to) => {
                    let there = models.iter().any(|model| model.is_live(now) && model.relayed == Some(last[to]));
                    let peer = last[to].to_string();
                    let is_bind = matches!(step, Step::Bind(..));
                    let code = if is_bind {
                        fixture.bind(&users[from], number_of(last[to]), &peer)
                    } else {
                        fixture.permit(&users[from], &[&peer])
                    };
                    let model = &mut models[from];
                    let expected = match (model.is_live(now), there) {
                        (false, _) => Some(437),
                        (true, false) => Some(403),
                        (true, true) => None,
                    };
                    prop_assert_eq!(code, expected);
                    if code.is_none() {
                        model.permitted_until = now + 300;
                        if is_bind {
                            model.channels.insert(last[to], now + 600);
                        }
                    }
                }
                Step::Send(from, to) => {
                    let got = match fixture.handle(&users[from].client, &send(&last[to].to_string(), b"x")) {
                        FromClient::Forward { allocation, peer, .. } => {
                            fixture.server.route(allocation, peer, fixture.now).ok()
                        }
                        FromClient::Drop(_) => None,
                        other => panic!("{other:?}"),
                    };
                    let receiver = models.iter().position(|model| model.is_live(now) && model.relayed == Some(last[to]));
                    let expected = receiver.filter(|&at| models[from].may_talk(now) && models[at].may_talk(now)).map(|at| {
                        let from = models[from].relayed.unwrap();
                        let client = users[at].client;
                        let has_channel = models[at].channels.get(&from).is_some_and(|&until| now < until);
                        let to = if has_channel {
                            let number = ChannelNumber::new(number_of(from)).unwrap();
                            FromPeer::Channel { client, number }
                        } else {
                            FromPeer::Indication { client }
                        };
                        Route::Client { receiver: fixture.id(&users[at]), to, seen_as: PeerSocket(from) }
                    });
                    prop_assert_eq!(got, expected);
                }
            }
        }
    }
}
