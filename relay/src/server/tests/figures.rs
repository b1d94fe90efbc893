//! What the server counts, and the census of what it holds.

use super::super::figures::{Carrier, Census, Direction, Volume};
use super::super::*;
use super::fixture::*;

/// A whole census, and in how many steps it was taken.
fn census(fixture: &Fixture) -> (Census, usize) {
    let mut census = Census::default();
    let mut steps = 1;
    while !fixture.server.census(&mut census, fixture.now) {
        steps += 1;
        assert!(steps < 100, "it does not end");
    }
    (census, steps)
}

#[test]
fn a_census_counts_what_is_in_force_and_who_has_it() {
    let mut fixture = Fixture::new();
    let (alice, bob) = (User::alice(), User::bob());
    assert_eq!(census(&fixture).0.users.len(), 0, "nobody has done anything");
    fixture.allocate(&alice);
    fixture.allocate(&bob);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:1"), None);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:2"), None);
    assert_eq!(fixture.permit(&bob, &["192.0.2.7:1", "192.0.2.8:1", "192.0.2.9:1"]), None);
    let volume = Volume { packets: 2, bytes: 300 };
    let id = fixture.id(&alice);
    fixture.server.count_relayed(id, Direction::ToClient, Carrier::Channel, volume);

    let (now, _) = census(&fixture);
    assert_eq!((now.permissions, now.permissions_most, now.channels, now.channels_most), (4, 3, 2, 2));
    let of = |name: &str| now.users.iter().find(|user| &*user.name == name).unwrap();
    assert_eq!((of("alice").allocations, of("bob").allocations), (1, 1));
    assert_eq!(of("alice").relayed, [Volume::default(), volume]);
    let figures = fixture.server.figures();
    assert_eq!(figures.relayed(Direction::ToClient, Carrier::Channel), volume);
    assert_eq!(figures.relayed(Direction::ToPeer, Carrier::Channel), Volume::default());
    assert_eq!(figures.allocations_made(), 2);

    // Permissions end after five minutes, channels after ten.
    fixture.wait(301);
    let (later, _) = census(&fixture);
    assert_eq!((later.permissions, later.channels), (0, 2));
    // What alice has relayed stays hers when her allocation is gone; bob has nothing to show.
    fixture.wait(300);
    fixture.server.handle_timeout(fixture.now);
    let (end, _) = census(&fixture);
    assert_eq!((end.channels, end.users.len()), (0, 1));
    assert_eq!((&*end.users[0].name, end.users[0].allocations), ("alice", 0));
}

#[test]
fn a_census_of_many_is_taken_in_bounded_steps() {
    const MANY: usize = 600;
    let settings = Settings { allocations_max: 1000, allocations_per_user_max: 1000, ..settings() };
    let mut fixture = Fixture::with(settings);
    for index in 0..MANY {
        // Transactions count for each client apart.
        fixture.transactions = 0;
        fixture.allocate(&User::alice().at(&format!("192.0.2.1:{}", 1000 + index)));
    }
    let (census, steps) = census(&fixture);
    assert_eq!((census.users.len(), census.users[0].allocations), (1, MANY as u32));
    // Three for 600 allocations, and one for the users.
    assert_eq!(steps, 4);
}

#[test]
fn requests_are_counted_by_method_and_failures_by_reason() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let wrong = User { password: "wrong", ..alice.clone() };
    let nonce = fixture.nonce(&alice);
    for (user, nonce) in [(&wrong, &nonce[..]), (&alice, b"0123456789abcdef")] {
        let transaction = fixture.transaction();
        let datagram = request(user, Method::Refresh, transaction, nonce, |_| {});
        assert_eq!(fixture.handle(&alice.client, &datagram), FromClient::Reply);
    }
    let binding = bare(Method::Binding, dataplane::stun::TransactionId([1; 12]));
    fixture.handle(&alice.client, &binding);
    let figures = fixture.server.figures();
    let count = |name: &str| figures.requests().find(|&(other, _)| other == name).unwrap().1;
    // Two Refreshes without integrity got the nonces, and are no failures.
    assert_eq!((count("binding"), count("allocate"), count("refresh"), count("other")), (1, 1, 4, 0));
    let failures: Vec<_> = figures.authentication_failures().collect();
    assert_eq!(failures, [("credentials", 1), ("nonce", 1), ("incomplete", 0), ("weaker_offer", 0)]);
}
