//! Servers of several workers with their commons: ports, quotas and reservations are one, and what a worker makes of another's
//! allocation is what its owner would.

use std::num::NonZeroU64;
use std::time::Duration;

use dataplane::stun::{Method, TransactionId};
use proptest::prelude::*;

use super::super::figures::{Carrier, Census, Direction, Volume};
use super::super::limits::{Limits, Rate};
use super::super::*;
use super::fixture::*;

/// Servers that differ in nothing but their seeds.
fn crew(settings: &Settings, workers: u16) -> Vec<Fixture> {
    let commons = Commons::new(settings.relay_ports.clone(), workers);
    let now = origin();
    let of_worker = |number| {
        let seed = [number as u8; 32];
        let server = Server::of_worker(settings.clone(), &seed, WorkerId(number), commons.clone());
        Fixture { server, now, transactions: 0 }
    };
    (0..workers).map(of_worker).collect()
}

fn allocate_code(fixture: &mut Fixture, user: &User) -> Option<u16> {
    fixture
        .ask(user, Method::Allocate, |writer| {
            writer.requested_transport(17);
        })
        .code()
}

fn close_all(fixture: &mut Fixture) {
    while let Some(Command::Close(id)) = fixture.server.poll_command() {
        fixture.server.handle_relay_closed(id);
    }
}

#[test]
fn a_user_has_so_many_allocations_on_all_workers_together_and_all_users_have_so_many() {
    let mut crew = crew(&Settings { allocations_per_user_max: 3, allocations_max: 5, ..settings() }, 2);
    let client = |user: User, number: usize| user.at(&format!("192.0.2.1:{}", 1000 + number));
    let codes: Vec<_> = (0..4).map(|n| allocate_code(&mut crew[n % 2], &client(User::alice(), n))).collect();
    assert_eq!(codes, [None, None, None, Some(486)]);
    let codes: Vec<_> = (4..7).map(|n| allocate_code(&mut crew[n % 2], &client(User::bob(), n))).collect();
    assert_eq!(codes, [None, None, Some(508)]);
    assert_eq!((crew[0].server.allocations_of_all(), crew[1].server.allocations_of_all()), (5, 5));
    assert_eq!(crew[0].refresh(&client(User::alice(), 0), Some(0)).code(), None);
    assert_eq!(allocate_code(&mut crew[1], &client(User::alice(), 7)), Some(508), "the socket is open still");
    close_all(&mut crew[0]);
    assert_eq!(allocate_code(&mut crew[1], &client(User::alice(), 7)), None);
}

#[test]
fn a_token_is_redeemed_on_another_worker_and_ports_come_back() {
    let mut crew = crew(&Settings { relay_ports: 50_000..=50_001, ..settings() }, 2);
    let reply = crew[0].ask(&User::alice(), Method::Allocate, |writer| {
        writer.requested_transport(17).even_port(true);
    });
    let token = reply.message().reservation_token().unwrap().expect("a token");
    assert_eq!(allocate_code(&mut crew[1], &User::bob()), Some(508), "both ports are spoken for");
    let reply = crew[1].ask(&User::bob(), Method::Allocate, |writer| {
        writer.requested_transport(17).reservation_token(token);
    });
    assert_eq!(reply.message().xor_relayed_address().unwrap().unwrap().port(), 50_001);
    assert_eq!(crew[1].refresh(&User::bob(), Some(0)).code(), None);
    close_all(&mut crew[1]);
    assert_eq!(crew[0].allocate(&User::bob()).port(), 50_001);
}

#[test]
fn a_users_rate_is_one_for_all_workers() {
    let user_rate = Rate { packets_per_s: NonZeroU64::new(1000), ..Rate::default() };
    let limits = Limits { user_rate, ..settings().limits };
    let mut crew = crew(&Settings { limits, ..settings() }, 2);
    let clients = [User::alice(), User::alice().at("192.0.2.1:1001"), User::bob()];
    let workers = [0, 1, 1];
    for (worker, user) in workers.into_iter().zip(&clients) {
        crew[worker].allocate(user);
    }
    let passed = |crew: &mut [Fixture], number: usize| {
        let fixture = &mut crew[workers[number]];
        let (id, now) = (fixture.id(&clients[number]), fixture.now);
        let load = Volume { packets: 1, bytes: 100 };
        (0..400).filter(|_| fixture.server.admit(id, Direction::ToPeer, load, now).is_ok()).count()
    };
    // A quarter of a second's worth at once, for the user and not for each worker.
    assert_eq!((passed(&mut crew, 0), passed(&mut crew, 1)), (250, 0));
    assert_eq!(passed(&mut crew, 2), 250, "another user");
    crew.iter_mut().for_each(|fixture| fixture.now += Duration::from_millis(100));
    assert_eq!((passed(&mut crew, 1), passed(&mut crew, 0)), (100, 0));
}

#[test]
fn strangers_of_one_network_have_one_budget_on_all_workers() {
    let mut crew = crew(&settings(), 3);
    let limits = Limits { unpaid_replies_per_s: 10, ..settings().limits };
    for fixture in &mut crew {
        fixture.server.reconfigure(Settings { limits: limits.clone(), ..settings() });
    }
    let mut answered = 0;
    for number in 0..90 {
        let from = client(&format!("192.0.2.{}:{}", number + 1, 5000 + number));
        let binding = bare(Method::Binding, TransactionId([7; 12]));
        answered += usize::from(crew[number % 3].handle(&from, &binding) == FromClient::Reply);
    }
    // Every three requests of 20 bytes pay for an answer of 32 and some more, and ten need not be paid for.
    let paid = (answered - 10) * 32;
    assert!(answered > 10 && paid <= 90 * 20 && paid > 90 * 20 - 2 * 32, "{answered}");
}

#[test]
fn a_refusal_is_told_once_by_whichever_worker() {
    let mut crew = crew(&Settings { allocations_per_user_max: 1, ..settings() }, 2);
    let client = |number: usize| User::alice().at(&format!("192.0.2.1:{}", 1000 + number));
    let codes: Vec<_> = (0..6).map(|n| allocate_code(&mut crew[n % 2], &client(n))).collect();
    assert_eq!(codes[0], None);
    assert!(codes[1..].iter().all(|&code| code == Some(486)));
    let told = |fixture: &mut Fixture| std::iter::from_fn(|| fixture.server.poll_refused()).count();
    assert_eq!(crew.iter_mut().map(told).sum::<usize>(), 1);
    let refused = |fixture: &Fixture| fixture.server.refusals_by_rule().map(|(_, count)| count).sum::<u64>();
    assert_eq!(crew.iter().map(refused).sum::<u64>(), 5);
}

#[test]
fn no_two_workers_draw_the_same_numbers() {
    let mut crew = crew(&settings(), 2);
    let nonces: Vec<_> = crew.iter_mut().map(|fixture| fixture.nonce(&User::alice())).collect();
    assert_ne!(nonces[0], nonces[1]);
}

/// What becomes of data that Alice, whose worker is the first, sends to Bob, whose worker is the second; and what Bob's worker
/// would say.
fn judge(
    crew: &[Fixture],
    alice_at: SocketAddr,
    bob_at: SocketAddr,
) -> (Result<Route, Cause>, Result<FromPeer, Cause>) {
    let alice = crew[0].id(&User::alice());
    let route = crew[0].server.route(alice, PeerSocket(bob_at), crew[0].now);
    let posted = crew[1].server.handle_posted(bob_at, PeerSocket(alice_at), crew[1].now);
    (route, posted.map(|(_, to)| to))
}

#[test]
fn another_workers_client_is_reached_as_its_permissions_and_channels_are() {
    let mut crew = crew(&settings(), 2);
    let (alice, bob) = (User::alice(), User::bob());
    let (alice_at, bob_at) = (crew[0].allocate(&alice), crew[1].allocate(&bob));
    // Nobody is permitted yet, so there is no face: the owner will say so.
    let worker = Route::Worker { worker: WorkerId(1), relayed: bob_at, seen_as: PeerSocket(alice_at) };
    assert_eq!(judge(&crew, alice_at, bob_at), (Ok(worker), Err(Cause::NoPermission)));
    // Own addresses are refused but for allocations, also those of others.
    assert_eq!(crew[0].permit(&alice, &[&bob_at.to_string()]), None);
    assert_eq!(crew[0].permit(&alice, &[&format!("{LOCAL}:1")]), Some(403));
    assert_eq!(crew[1].permit(&bob, &[&alice_at.to_string()]), None);
    let seen_as = PeerSocket(alice_at);
    let foreign = |to| Ok(Route::Foreign { worker: WorkerId(1), relayed: bob_at, to, seen_as });
    let to = FromPeer::Indication { client: bob.client };
    assert_eq!(judge(&crew, alice_at, bob_at), (foreign(to), Ok(to)));
    assert_eq!(crew[1].bind(&bob, 0x4001, &alice_at.to_string()), None);
    let number = ChannelNumber::new(0x4001).unwrap();
    let to = FromPeer::Channel { client: bob.client, number };
    assert_eq!(judge(&crew, alice_at, bob_at), (foreign(to), Ok(to)));
    // What comes to Alice's socket from there did not come the short way.
    let refused = crew[0].server.handle_peer(crew[0].id(&alice), PeerSocket(bob_at), crew[0].now);
    assert_eq!(refused, FromPeer::Drop(Cause::NoAllocation));
    // It is Bob's user who has got it.
    crew[0].server.count_foreign(bob_at, Carrier::Channel, Volume { packets: 2, bytes: 30 });
    let got = |crew: &[Fixture]| {
        let mut census = Census::default();
        while !crew[1].server.census(&mut census, crew[1].now) {}
        census.users.iter().map(|user| (user.name.to_string(), user.relayed[1].bytes)).collect::<Vec<_>>()
    };
    assert_eq!(got(&crew), [("bob".to_owned(), 30)]);
    assert_eq!(crew[0].server.figures().relayed(Direction::ToClient, Carrier::Channel).packets, 2);
    assert_eq!(crew[1].refresh(&bob, Some(0)).code(), None);
    assert_eq!(judge(&crew, alice_at, bob_at).0, Err(Cause::PolicyPeer), "nobody is there any more");
    close_all(&mut crew[1]);
    assert_eq!(got(&crew), [("bob".to_owned(), 30)], "and it stays so when the allocation is gone");
}

#[test]
fn a_shared_port_is_one_workers_and_its_allocations_are_told_apart_from_another() {
    let mut crew = crew(&Settings { relay_ports: 50_000..=50_003, port_sharing: true, ..settings() }, 2);
    let client =
        |worker: usize, number: usize| User::alice().at(&format!("192.0.2.{}:{}", 7 + worker, 1000 + number));
    let mut at = [Vec::new(), Vec::new()];
    for number in 0..5 {
        for worker in 0..2 {
            at[worker].push(crew[worker].allocate(&client(worker, number)));
        }
    }
    let ports =
        |worker: usize| at[worker].iter().map(|at| at.port()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!((ports(0).len(), ports(1).len()), (2, 2));
    assert!(ports(0).is_disjoint(&ports(1)));
    // The first of one worker and the last of the other permit each other; who shares a port with either has no part in it.
    let (from, to) = (at[0][0], at[1][4]);
    assert_eq!(crew[0].permit(&client(0, 0), &[&to.to_string()]), None);
    assert_eq!(crew[1].permit(&client(1, 4), &[&from.to_string()]), None);
    let sender = crew[0].id(&client(0, 0));
    let route = crew[0].server.route(sender, PeerSocket(to), crew[0].now);
    assert_eq!(route, Ok(Route::Worker { worker: WorkerId(1), relayed: to, seen_as: PeerSocket(from) }));
    let posted = |crew: &[Fixture]| crew[1].server.handle_posted(to, PeerSocket(from), crew[1].now);
    let receiver = FromPeer::Indication { client: client(1, 4).client };
    assert_eq!(posted(&crew).map(|(_, to)| to), Ok(receiver));
    // Another one on that port goes, and the port is still known to be there.
    let other = (0..4).find(|&number| at[1][number] == to).expect("somebody shares it");
    assert_eq!(crew[1].refresh(&client(1, other), Some(0)).code(), None);
    close_all(&mut crew[1]);
    assert_eq!(crew[0].server.route(sender, PeerSocket(to), crew[0].now), route);
    assert_eq!(posted(&crew).map(|(_, to)| to), Ok(receiver));
}

proptest! {
    /// At any time, whatever Bob has asked for: what Alice's worker does by his face is what Bob's would do.
    #[test]
    fn a_face_says_what_its_owner_says(steps in proptest::collection::vec((0_u8..6, 0_u64..400), 1..30)) {
        let mut crew = crew(&settings(), 2);
        let (alice, bob) = (User::alice(), User::bob());
        let (alice_at, bob_at) = (crew[0].allocate(&alice), crew[1].allocate(&bob));
        for (step, seconds) in steps {
            let peer = alice_at.to_string();
            let _ = match step {
                0 => crew[1].permit(&bob, &[&peer]),
                1 => crew[1].bind(&bob, 0x4000, &peer),
                2 => crew[1].bind(&bob, 0x4001, &peer),
                3 => crew[1].permit(&bob, &["192.0.2.77:1"]),
                4 => crew[1].refresh(&bob, Some(600)).code(),
                _ => None,
            };
            // Alice refreshes whatever she has.
            prop_assert_eq!(crew[0].refresh(&alice, None).code(), None);
            for fixture in &mut crew {
                fixture.now += Duration::from_secs(seconds);
            }
            if crew[1].server.find(&bob.client, crew[1].now).is_none() || crew[0].server.find(&alice.client, crew[0].now).is_none() {
                break;
            }
            let (route, posted) = judge(&crew, alice_at, bob_at);
            match route {
                Ok(Route::Foreign { to, .. }) => prop_assert_eq!(posted, Ok(to)),
                // There is no face: the owner is asked.
                Ok(Route::Worker { .. }) => {}
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(cause) => prop_assert_eq!(posted, Err(cause)),
            }
        }
    }
}
