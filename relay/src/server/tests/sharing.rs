//! Ports with several allocations: a peer's datagram goes to the one that permits that peer, or to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use dataplane::stun::Method;
use proptest::prelude::*;

use super::super::rules::{Rule, Why};
use super::super::*;
use super::fixture::*;

/// A server with few ports.
fn narrow(relay_ports: RangeInclusive<u16>) -> Fixture {
    Fixture::with(Settings { relay_ports, port_sharing: true, ..settings() })
}

/// The client of this number.
fn user(index: usize) -> User {
    User::alice().at(&format!("192.0.2.1:{}", 1000 + index))
}

fn close_all(fixture: &mut Fixture) {
    while let Some(Command::Close(id)) = fixture.server.poll_command() {
        fixture.server.handle_relay_closed(id);
    }
}

/// What becomes of a peer's datagram to a relayed address: the client it goes to, and by which channel.
fn arrives(fixture: &Fixture, relayed: SocketAddr, peer: &str) -> Result<(ClientSocket, Option<u16>), Cause> {
    let peer = PeerSocket(address(peer));
    let id = fixture.server.recipient(relayed, peer).ok_or(Cause::NoPermission)?;
    match fixture.server.handle_peer(id, peer, fixture.now) {
        FromPeer::Channel { client, number } => Ok((client, Some(number.get()))),
        FromPeer::Indication { client } => Ok((client, None)),
        FromPeer::Drop(cause) => Err(cause),
    }
}

fn allocate_code(fixture: &mut Fixture, user: &User, even: Option<bool>) -> Option<u16> {
    fixture
        .ask(user, Method::Allocate, |writer| {
            writer.requested_transport(17);
            if let Some(reserve) = even {
                writer.even_port(reserve);
            }
        })
        .code()
}

#[test]
fn each_has_a_port_of_its_own_while_one_is_free_and_then_they_are_spread() {
    let mut fixture = narrow(50_000..=50_003);
    let ports: Vec<u16> = (0..10).map(|index| fixture.allocate(&user(index)).port()).collect();
    let own: BTreeSet<u16> = ports[..4].iter().copied().collect();
    assert_eq!(own.len(), 4, "{ports:?}");
    let second: BTreeSet<u16> = ports[4..8].iter().copied().collect();
    assert_eq!(second.len(), 4, "{ports:?}");
    assert_ne!(ports[8], ports[9]);
    // Who leaves makes room.
    assert_eq!(fixture.refresh(&user(9), Some(0)).code(), None);
    close_all(&mut fixture);
    assert_ne!(fixture.allocate(&user(10)).port(), ports[8]);
}

#[test]
fn a_wide_range_and_sharing_switched_off_share_nothing() {
    let mut off = Fixture::with(Settings { relay_ports: 50_000..=50_000, ..settings() });
    assert!(!off.server.shares_ports());
    off.allocate(&user(0));
    assert_eq!(allocate_code(&mut off, &user(1), None), Some(508));
    let wide = Fixture::with(Settings { relay_ports: 50_000..=50_099, port_sharing: true, ..settings() });
    assert!(!wide.server.shares_ports(), "100 ports for at most 100 allocations");
}

#[test]
fn peers_tell_allocations_on_one_port_apart() {
    let mut fixture = narrow(50_000..=50_000);
    let (left, right) = (user(0), user(1));
    let relayed = fixture.allocate(&left);
    assert_eq!(fixture.allocate(&right), relayed);
    assert_eq!(fixture.permit(&left, &["192.0.2.8:1"]), None);
    assert_eq!(fixture.bind(&right, 0x4001, "192.0.2.9:7"), None);
    assert_eq!(arrives(&fixture, relayed, "192.0.2.8:99"), Ok((left.client, None)));
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:7"), Ok((right.client, Some(0x4001))));
    assert_eq!(arrives(&fixture, relayed, "192.0.2.7:1"), Err(Cause::NoPermission));
    let lost = FromClient::Drop(Cause::NoPermission);
    assert_eq!(fixture.handle(&left.client, &send("192.0.2.9:7", b"x")), lost, "that peer is another's");
}

#[test]
fn a_channel_opens_its_peer_only() {
    let mut fixture = narrow(50_000..=50_000);
    let (left, right) = (user(0), user(1));
    let relayed = fixture.allocate(&left);
    fixture.allocate(&right);
    assert_eq!(fixture.bind(&left, 0x4001, "192.0.2.9:7"), None);
    assert_eq!(fixture.bind(&right, 0x4001, "192.0.2.9:8"), None);
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:7"), Ok((left.client, Some(0x4001))));
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:8"), Ok((right.client, Some(0x4001))));
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:9"), Err(Cause::NoPermission));
    let lost = FromClient::Drop(Cause::NoPermission);
    assert_eq!(fixture.handle(&left.client, &send("192.0.2.9:8", b"x")), lost);
    assert!(matches!(fixture.handle(&left.client, &send("192.0.2.9:7", b"x")), FromClient::Forward { .. }));
}

#[test]
fn a_port_that_is_not_shared_opens_the_whole_address_for_a_channel() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:7"), None);
    assert!(matches!(fixture.handle(&alice.client, &send("192.0.2.9:8", b"x")), FromClient::Forward { .. }));
}

#[test]
fn what_another_has_is_refused_with_508_and_counted() {
    let mut fixture = narrow(50_000..=50_000);
    let (left, right) = (user(0), user(1));
    let relayed = fixture.allocate(&left);
    fixture.allocate(&right);
    assert_eq!(fixture.permit(&left, &["192.0.2.8:1"]), None);
    assert_eq!(fixture.bind(&left, 0x4001, "192.0.2.9:7"), None);
    assert_eq!(fixture.permit(&right, &["192.0.2.8:2"]), Some(508), "a whole address is another's");
    assert_eq!(fixture.bind(&right, 0x4001, "192.0.2.8:2"), Some(508), "and every part of it");
    assert_eq!(fixture.bind(&right, 0x4001, "192.0.2.9:7"), Some(508), "one peer is another's");
    assert_eq!(fixture.permit(&right, &["192.0.2.7:1", "192.0.2.9:8"]), Some(508), "and so the rest of it");
    assert_eq!(arrives(&fixture, relayed, "192.0.2.7:1"), Err(Cause::NoPermission), "all or nothing");
    let (count, last) = fixture.server.port_conflicts();
    assert_eq!((count, last), (4, Some((relayed, PeerSocket(address("192.0.2.9:8"))))));
    let told: Vec<_> = std::iter::from_fn(|| fixture.server.poll_refused()).map(|told| told.why).collect();
    // Each address once.
    let expected = ["192.0.2.8:2", "192.0.2.9:7"].map(|peer| Why::about(Rule::PeerTaken, address(peer)));
    assert_eq!(told, expected);
    let refused = fixture.server.refusals_by_rule().find(|&(rule, _)| rule == Rule::PeerTaken);
    assert_eq!(refused, Some((Rule::PeerTaken, 4)));
    assert_eq!(arrives(&fixture, relayed, "192.0.2.8:2"), Ok((left.client, None)));
    // Once more by the one who has it.
    assert_eq!(fixture.permit(&left, &["192.0.2.8:1", "192.0.2.9:1"]), None);
    assert_eq!(fixture.bind(&left, 0x4001, "192.0.2.9:7"), None);
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:8"), Ok((left.client, None)));
}

#[test]
fn after_a_conflict_the_next_allocation_is_placed_where_the_peer_is_free() {
    let mut fixture = narrow(50_000..=50_002);
    let all: Vec<SocketAddr> = (0..3).map(|index| fixture.allocate(&user(index))).collect();
    let popular = "192.0.2.9:7";
    assert_eq!(fixture.permit(&user(0), &[popular]), None);
    assert_eq!(fixture.permit(&user(1), &[popular]), None);
    // The port where it is free looks the worst otherwise.
    assert_eq!(fixture.permit(&user(2), &["192.0.2.7:1", "192.0.2.8:1"]), None);
    let newcomer = user(50);
    assert_ne!(fixture.allocate(&newcomer), all[2]);
    assert_eq!(fixture.permit(&newcomer, &[popular]), Some(508));
    assert_eq!(fixture.refresh(&newcomer, Some(0)).code(), None);
    close_all(&mut fixture);
    // From another port of the same host, as clients do.
    let again = user(51);
    assert_eq!(fixture.allocate(&again), all[2]);
    assert_eq!(fixture.permit(&again, &[popular]), None);
    // A minute later it has no say.
    fixture.wait(61);
    assert_ne!(fixture.allocate(&user(52)), all[2]);
}

#[test]
fn claims_end_with_their_permission_and_with_their_allocation() {
    let mut fixture = narrow(50_000..=50_000);
    let (left, right) = (user(0), user(1));
    let relayed = fixture.allocate(&left);
    fixture.allocate(&right);
    assert_eq!(fixture.permit(&left, &["192.0.2.9:1"]), None);
    fixture.wait(299);
    assert_eq!(fixture.permit(&right, &["192.0.2.9:1"]), Some(508));
    fixture.wait(1);
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:1"), Err(Cause::NoPermission));
    assert_eq!(fixture.permit(&right, &["192.0.2.9:1"]), None);
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:1"), Ok((right.client, None)));
    assert_eq!(fixture.permit(&left, &["192.0.2.9:1"]), Some(508), "too late to renew");
    // Free at once, even before the socket's share is given up.
    assert_eq!(fixture.refresh(&right, Some(0)).code(), None);
    assert_eq!(fixture.permit(&left, &["192.0.2.9:1"]), None);
    close_all(&mut fixture);
    assert_eq!(arrives(&fixture, relayed, "192.0.2.9:1"), Ok((left.client, None)));
}

#[test]
fn claims_are_no_more_than_the_permissions_that_are_listed() {
    let mut fixture = narrow(50_000..=50_000);
    let (left, right) = (user(0), user(1));
    let relayed = fixture.allocate(&left);
    fixture.allocate(&right);
    for round in 0..5 {
        for index in 0..PERMISSIONS_MAX {
            let peer = format!("192.0.2.{}:7", round * 40 + index % 64 + 1);
            fixture.transactions = 0;
            assert_eq!(fixture.permit(&left, &[&peer]), None, "{peer}");
        }
        assert!(fixture.server.directory.shared(relayed).unwrap().claimed() <= PERMISSIONS_MAX);
        assert_eq!(fixture.refresh(&left, Some(3600)).code(), None);
        fixture.wait(300);
    }
    assert_eq!(fixture.refresh(&left, Some(0)).code(), None);
    close_all(&mut fixture);
    assert_eq!(fixture.server.directory.shared(relayed).unwrap().claimed(), 0);
}

#[test]
fn even_ports_are_refused_once_none_is_free() {
    let mut fixture = narrow(50_000..=50_003);
    assert_eq!(allocate_code(&mut fixture, &user(0), Some(true)), None);
    assert_eq!(allocate_code(&mut fixture, &user(1), Some(false)), None);
    assert_eq!(allocate_code(&mut fixture, &user(2), Some(false)), Some(508));
    assert_eq!(allocate_code(&mut fixture, &user(3), Some(true)), Some(508));
    // One port is free and one reserved, which is never shared before it is taken.
    let ports: BTreeSet<u16> = (4..10).map(|index| fixture.allocate(&user(index)).port()).collect();
    assert_eq!(ports.len(), 3, "{ports:?}");
}

#[test]
fn a_port_that_another_program_has_is_passed_over() {
    let mut fixture = narrow(50_000..=50_001);
    let taken = 50_001;
    let mut tried = 0;
    for index in 0..6 {
        let user = user(index);
        let nonce = fixture.nonce(&user);
        let asked = request(&user, Method::Allocate, fixture.transaction(), &nonce, |writer| {
            writer.requested_transport(17);
        });
        let FromClient::OpenRelay { allocation, mut address } = fixture.handle(&user.client, &asked) else {
            panic!("no open: {:?}", Reply(fixture.server.reply().to_vec()).code())
        };
        while address.port() == taken {
            tried += 1;
            let opened =
                fixture.server.handle_relay_opened(allocation, Err(OpenFailure::PortTaken), fixture.now);
            let Opened::Retry(other) = opened else { panic!("{opened:?}") };
            address = other;
        }
        assert_eq!(
            fixture.server.handle_relay_opened(allocation, Ok(()), fixture.now),
            Opened::Reply { client: user.client }
        );
    }
    assert!(tried <= 1, "once in half a minute");
    assert_eq!(fixture.server.tenants(address(&format!("{LOCAL}:50000"))).len(), 6);
}

#[test]
fn pairs_of_clients_on_shared_ports_reach_each_other() {
    let mut fixture = narrow(50_000..=50_001);
    let users: Vec<User> = (0..4).map(user).collect();
    let relayed: Vec<SocketAddr> = users.iter().map(|user| fixture.allocate(user)).collect();
    let ids: Vec<AllocationId> =
        users.iter().map(|user| fixture.server.find(&user.client, fixture.now).unwrap().first).collect();
    // Whoever has the other port is the first one's partner: one pair across the ports, one on each.
    let across = (1..4).find(|&index| relayed[index] != relayed[0]).unwrap();
    let beside = (1..4).find(|&index| relayed[index] == relayed[0]).unwrap();
    let last = (1..4).find(|&index| index != across && index != beside).unwrap();
    let arrives = |fixture: &mut Fixture, from: usize, to: usize| {
        let sent = fixture.handle(&users[from].client, &send(&relayed[to].to_string(), b"x"));
        let FromClient::Forward { allocation, peer, .. } = sent else { panic!("{sent:?}") };
        fixture.server.route(allocation, peer, fixture.now)
    };
    for (one, other) in [(0, across), (across, 0)] {
        assert_eq!(fixture.permit(&users[one], &[&relayed[other].to_string()]), None);
    }
    let reached = |at: usize, from: usize| {
        let to = FromPeer::Indication { client: users[at].client };
        Ok(Route::Client { receiver: ids[at], to, seen_as: PeerSocket(relayed[from]) })
    };
    assert_eq!(arrives(&mut fixture, 0, across), reached(across, 0));
    // The same two ports again would mix the pairs up.
    assert_eq!(fixture.permit(&users[beside], &[&relayed[last].to_string()]), Some(508));
    assert_eq!(fixture.permit(&users[last], &[&relayed[beside].to_string()]), Some(508));
    // On one port with itself there is still room.
    assert_eq!(fixture.permit(&users[beside], &[&relayed[beside].to_string()]), None);
    assert_eq!(arrives(&mut fixture, beside, beside), reached(beside, beside));
    assert_eq!(arrives(&mut fixture, across, 0), reached(0, across));
}

/// Something a client does, or time that passes. Peers are numbers that stand for an address and a port.
#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Delete(usize),
    Permit(usize, usize),
    Bind(usize, usize),
    Wait(u64),
}

const CLIENTS: usize = 5;
/// Three addresses with two ports each.
const PEERS: usize = 6;

fn peer_of(number: usize) -> String {
    format!("192.0.2.{}:{}", 7 + number / 2, 700 + number % 2)
}

fn step() -> impl Strategy<Value = Step> {
    let (who, peer) = (|| 0..CLIENTS, || 0..PEERS);
    prop_oneof![
        3 => who().prop_map(Step::Allocate),
        1 => who().prop_map(Step::Delete),
        4 => (who(), peer()).prop_map(|(who, peer)| Step::Permit(who, peer)),
        4 => (who(), peer()).prop_map(|(who, peer)| Step::Bind(who, peer)),
        2 => prop_oneof![Just(1), Just(100), Just(299), Just(300), Just(600)].prop_map(Step::Wait),
    ]
}

/// One allocation as plainly as can be; seconds.
#[derive(Clone, Default)]
struct Model {
    relayed: Option<SocketAddr>,
    expires: u64,
    /// Whole addresses, by the number of their first peer.
    whole: BTreeMap<usize, u64>,
    single: BTreeMap<usize, u64>,
    channels: BTreeMap<usize, u64>,
}

impl Model {
    fn is_live(&self, now: u64) -> bool {
        self.relayed.is_some() && now < self.expires
    }

    fn permits(&self, peer: usize, now: u64) -> bool {
        let live = |map: &BTreeMap<usize, u64>, key| map.get(&key).is_some_and(|&until| now < until);
        self.is_live(now) && (live(&self.whole, peer / 2) || live(&self.single, peer))
    }
}

proptest! {
    /// Clients come, go and permit at random on one to three ports. No request is granted that overlaps with what another on
    /// the port has; every peer's datagram goes to the one who permits it, by channel if there is one, and else to nobody.
    #[test]
    fn deliveries_equal_the_model(ports in 0_u16..3, steps in proptest::collection::vec(step(), 1..80)) {
        let mut fixture = narrow(50_000..=50_000 + ports);
        let users: Vec<User> = (0..CLIENTS).map(user).collect();
        let mut models = vec![Model::default(); CLIENTS];
        let mut now = 0;
        for step in steps {
            fixture.transactions = fixture.transactions.wrapping_add(1) % 200;
            fixture.server.handle_timeout(fixture.now);
            close_all(&mut fixture);
            match step {
                Step::Wait(seconds) => {
                    fixture.wait(seconds);
                    now += seconds;
                }
                Step::Allocate(who) => {
                    if !models[who].is_live(now) {
                        let relayed = fixture.allocate(&users[who]);
                        models[who] = Model { relayed: Some(relayed), expires: now + 600, ..Model::default() };
                    }
                }
                Step::Delete(who) => {
                    let expected = if models[who].is_live(now) { None } else { Some(437) };
                    prop_assert_eq!(fixture.refresh(&users[who], Some(0)).code(), expected);
                    models[who] = Model::default();
                }
                Step::Permit(who, peer) | Step::Bind(who, peer) => {
                    let is_bind = matches!(step, Step::Bind(..));
                    let own = models[who].clone();
                    let others: Vec<&Model> = models.iter().enumerate()
                        .filter(|&(index, other)| index != who && other.relayed == own.relayed)
                        .map(|(_, other)| other).collect();
                    let has_whole = own.whole.get(&(peer / 2)).is_some_and(|&until| now < until);
                    let wants_whole = !is_bind || has_whole;
                    let wanted: Vec<usize> =
                        if wants_whole { vec![peer / 2 * 2, peer / 2 * 2 + 1] } else { vec![peer] };
                    let overlaps = others.iter().any(|other| wanted.iter().any(|&peer| other.permits(peer, now)));
                    let text = peer_of(peer);
                    let code = if is_bind {
                        fixture.bind(&users[who], 0x4000 + peer as u16, &text)
                    } else {
                        fixture.permit(&users[who], &[&text])
                    };
                    let expected = match (own.is_live(now), overlaps) {
                        (false, _) => Some(437),
                        (true, true) => Some(508),
                        (true, false) => None,
                    };
                    prop_assert_eq!(code, expected);
                    if code.is_none() {
                        let model = &mut models[who];
                        if wants_whole {
                            model.whole.insert(peer / 2, now + 300);
                            model.single.retain(|&single, _| single / 2 != peer / 2);
                        } else {
                            model.single.insert(peer, now + 300);
                        }
                        if is_bind {
                            model.channels.insert(peer, now + 600);
                        }
                    }
                }
            }
            for peer in 0..PEERS {
                for relayed in (0..=ports).map(|port| SocketAddr::new(LOCAL.parse().unwrap(), 50_000 + port)) {
                    let there = |index: &usize| {
                        models[*index].relayed == Some(relayed) && models[*index].permits(peer, now)
                    };
                    let permitting: Vec<usize> = (0..CLIENTS).filter(there).collect();
                    prop_assert!(permitting.len() <= 1, "{} are ambiguous", permitting.len());
                    let expected = permitting.first().map(|&index| {
                        let channel = models[index].channels.get(&peer).filter(|&&until| now < until);
                        (users[index].client, channel.map(|_| 0x4000 + peer as u16))
                    });
                    prop_assert_eq!(arrives(&fixture, relayed, &peer_of(peer)).ok(), expected);
                }
                // What a client may send to is what it may receive from.
                for (user, model) in users.iter().zip(&models) {
                    let sent = fixture.server.handle_client(&user.client, &send(&peer_of(peer), b"x"), fixture.now);
                    let forwarded = matches!(sent, FromClient::Forward { .. });
                    prop_assert_eq!(forwarded, model.permits(peer, now));
                }
            }
        }
    }
}
