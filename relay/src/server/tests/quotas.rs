//! How much users and sources may take, and what the operator is told when it is too much.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use dataplane::stun::{Method, TransactionId};

use super::super::allocation::Listed;
use super::super::*;
use super::fixture::*;
use crate::server::auth::Identity;
use crate::server::figures::{Carrier, Direction, Volume};
use crate::server::limits::{PeersMax, Rate};
use crate::server::port_set::PortSet;
use crate::server::rules::Rule;

const ALICE: Identity<'_> = Identity::Static(b"alice");

fn try_allocate(fixture: &mut Fixture, user: &User) -> Option<u16> {
    let ask = fixture.ask(user, Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    ask.code()
}

fn count(fixture: &Fixture, rule: Rule) -> u64 {
    fixture.server.refusals_by_rule().find(|&(known, _)| known == rule).unwrap().1
}

/// T25: 486 by user, 486 by source, 508 in all; others go on, and everything comes back.
#[test]
fn allocations_are_limited_by_user_by_source_and_in_all() {
    let mut settings = settings();
    settings.allocations_per_user_max = 3;
    settings.limits.allocations_per_source_max = 2;
    settings.allocations_max = 5;
    let mut fixture = Fixture::with(settings);
    let (alice, bob) = (User::alice(), User::bob());
    assert_eq!(try_allocate(&mut fixture, &alice.at("192.0.2.1:1")), None);
    assert_eq!(try_allocate(&mut fixture, &bob.at("192.0.2.1:2")), None);
    assert_eq!(try_allocate(&mut fixture, &bob.at("192.0.2.1:3")), Some(486), "of this address");
    assert_eq!(try_allocate(&mut fixture, &alice.at("192.0.2.2:1")), None, "another address");
    assert_eq!(try_allocate(&mut fixture, &alice.at("[2001:db8::1]:1")), None);
    assert_eq!(try_allocate(&mut fixture, &alice.at("192.0.2.3:1")), Some(486), "of this user");
    assert_eq!(try_allocate(&mut fixture, &bob.at("[2001:db8::ffff:1]:1")), None, "the second of this /64");
    assert_eq!(try_allocate(&mut fixture, &bob.at("[2001:db8::2]:1")), Some(486), "the same /64");
    assert_eq!(try_allocate(&mut fixture, &bob.at("[2001:db8:0:1::1]:1")), Some(508), "in all");
    let rules = [Rule::UserAllocations, Rule::SourceAllocations, Rule::TotalAllocations];
    assert_eq!(rules.map(|rule| count(&fixture, rule)), [1, 2, 1]);
    assert_eq!(fixture.server.sources(), 3);

    fixture.wait(700);
    fixture.server.handle_timeout(fixture.now);
    while let Some(Command::Close(id)) = fixture.server.poll_command() {
        fixture.server.handle_relay_closed(id);
    }
    assert_eq!((fixture.server.allocations(), fixture.server.sources()), (0, 0));
    assert_eq!(try_allocate(&mut fixture, &bob.at("[2001:db8::2]:1")), None);
}

fn keep_port(fixture: &mut Fixture, user: &User) -> Result<[u8; 8], u16> {
    fixture.transactions = 0;
    let reply = fixture.ask(user, Method::Allocate, |writer| {
        writer.requested_transport(17).even_port(true);
    });
    match reply.code() {
        None => Ok(reply.message().reservation_token().unwrap().unwrap()),
        Some(code) => Err(code),
    }
}

fn leave(fixture: &mut Fixture, user: &User) {
    assert_eq!(fixture.refresh(user, Some(0)).code(), None);
    while let Some(Command::Close(id)) = fixture.server.poll_command() {
        fixture.server.handle_relay_closed(id);
    }
}

/// T26: a port that EVEN-PORT keeps counts as an allocation, so that allocating and leaving does not get around the quotas.
#[test]
fn ports_kept_by_even_port_count_beside_the_allocations_of_user_and_source() {
    let mut settings = settings();
    settings.allocations_per_user_max = 3;
    settings.limits.allocations_per_source_max = 4;
    let mut fixture = Fixture::with(settings);
    let (alice, bob) = (User::alice(), User::bob());
    let mut tokens = Vec::new();
    for round in 0..50 {
        match keep_port(&mut fixture, &alice) {
            Ok(token) => {
                tokens.push(token);
                leave(&mut fixture, &alice);
            }
            Err(code) => assert_eq!((code, round >= 2), (486, true), "round {round}"),
        }
    }
    assert_eq!(tokens.len(), 2, "with the allocation that asks it is three");
    assert_eq!((count(&fixture, Rule::UserAllocations), fixture.server.allocations()), (48, 0));
    // The same source has one more, whoever it calls itself.
    let beside = bob.at("192.0.2.1:7");
    keep_port(&mut fixture, &beside).unwrap();
    leave(&mut fixture, &beside);
    assert_eq!(keep_port(&mut fixture, &beside), Err(486));
    assert_eq!(count(&fixture, Rule::SourceAllocations), 1);
    keep_port(&mut fixture, &bob.at("192.0.2.9:7")).unwrap();
    // Shown tokens make room, and so does time.
    let second = alice.at("192.0.2.1:1001");
    let redeemed = fixture.ask(&second, Method::Allocate, |writer| {
        writer.requested_transport(17).reservation_token(tokens[0]);
    });
    assert_eq!(redeemed.code(), None);
    leave(&mut fixture, &second);
    keep_port(&mut fixture, &alice).unwrap();
    leave(&mut fixture, &alice);
    assert_eq!(keep_port(&mut fixture, &alice), Err(486));
    fixture.wait(30);
    keep_port(&mut fixture, &alice).unwrap();
}

/// However many allocations a user may have, there are reservations left for others.
#[test]
fn nobody_keeps_all_the_ports_that_even_port_can_keep() {
    let mut settings = settings();
    settings.allocations_per_user_max = 1000;
    settings.allocations_max = 10_000;
    let mut fixture = Fixture::with(settings);
    let kept = |fixture: &mut Fixture, user: &User| {
        (0..300)
            .map(|_| keep_port(fixture, user).inspect(|_| leave(fixture, user)))
            .take_while(|kept| kept != &Err(508))
            .filter(Result::is_ok)
            .count()
    };
    let alice = User::alice();
    assert_eq!(kept(&mut fixture, &alice), 128);
    assert_eq!(kept(&mut fixture, &alice.at("192.0.2.77:1")), 0, "the same user");
    assert_eq!(kept(&mut fixture, &User::bob().at("192.0.2.1:9")), 0, "the same source");
    assert_eq!(count(&fixture, Rule::Reservations), 3);
    assert_eq!(kept(&mut fixture, &User::bob()), 128, "somebody else");
}

#[test]
fn a_socket_that_cannot_be_opened_is_nobodys_allocation() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let asked = request(&alice, Method::Allocate, TransactionId([1; 12]), &nonce, |writer| {
        writer.requested_transport(17);
    });
    let FromClient::OpenRelay { allocation, .. } = fixture.handle(&alice.client, &asked) else {
        panic!("no allocation")
    };
    assert_eq!(fixture.server.sources(), 1);
    fixture.server.handle_relay_opened(allocation, Err(OpenFailure::Other), fixture.now);
    assert_eq!((fixture.server.allocations(), fixture.server.sources()), (0, 0));
    assert_eq!(count(&fixture, Rule::Sockets), 1);
}

/// T40: a scan of ten thousand peers gets 64 of them at first, and 20 a second if it makes room.
#[test]
fn a_port_scan_is_slow() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let (mut permitted, mut bound) = (0, 0);
    for number in 0..5_000_u32 {
        fixture.transactions = 0;
        let peer = format!("192.0.2.{}:{}", number % 256, 1000 + number);
        permitted += u32::from(fixture.permit(&alice, &[&peer]).is_none());
        bound += u32::from(fixture.bind(&alice, 0x4000 + (number % 4096) as u16, &peer).is_none());
        fixture.now += Duration::from_micros(100);
    }
    assert!(bound <= 64, "{bound}");
    // A bound peer is permitted, and then CreatePermission is a refresh.
    println!("permitted {permitted}, bound {bound}");
    let total = |fixture: &Fixture| {
        [Rule::Permissions, Rule::Channels, Rule::NewPeers].map(|rule| count(fixture, rule))
    };
    let refused = total(&fixture);
    assert!(refused.iter().sum::<u64>() > 8_000, "{refused:?}");

    // Allocations that are thrown away make room for others, but the user stays the same.
    let mut fixture = Fixture::new();
    let mut met = 0;
    for second in 0..10 {
        for number in 0..100 {
            fixture.transactions = 0;
            if fixture.server.find(&alice.client, fixture.now).is_none() {
                fixture.allocate(&alice);
            }
            met += u32::from(fixture.permit(&alice, &[&format!("192.0.2.{number}:{second}")]).is_none());
            assert_eq!(fixture.refresh(&alice, Some(0)).code(), None);
            while let Some(Command::Close(id)) = fixture.server.poll_command() {
                fixture.server.handle_relay_closed(id);
            }
        }
        fixture.wait(1);
    }
    // 100 at once, then 20 a second.
    assert!((270..=300).contains(&met), "{met}");
    // Someone else is not slowed down.
    let bob = User::bob();
    fixture.allocate(&bob);
    assert_eq!(fixture.permit(&bob, &["192.0.2.1:1"]), None);
}

/// T41: at most 16 peers in one request, all or none.
#[test]
fn a_request_with_too_many_peers_permits_none() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    for count in [17, 40] {
        let peers: Vec<String> = (0..count).map(|last| format!("192.0.2.{last}:1")).collect();
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        assert_eq!(fixture.permit(&alice, &peers), Some(400), "{count}");
    }
    let sent = fixture.handle(&alice.client, &send("192.0.2.0:1", b"x"));
    assert_eq!(sent, FromClient::Drop(Cause::NoPermission));
}

#[test]
fn permissions_and_channels_can_be_limited_further() {
    let mut settings = settings();
    settings.limits.permissions_max = 2;
    settings.limits.channels_max = 1;
    let mut fixture = Fixture::with(settings);
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.permit(&alice, &["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]), Some(508));
    assert_eq!(fixture.permit(&alice, &["192.0.2.1:1", "192.0.2.2:1"]), None);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.1:1"), None);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.1:2"), Some(508));
    assert_eq!([Rule::Permissions, Rule::Channels].map(|rule| count(&fixture, rule)), [1, 1]);
}

#[test]
fn permissions_and_channels_are_limited_by_user_and_in_all_and_come_back() {
    let mut settings = settings();
    settings.limits.peers_per_user_max = PeersMax { permissions: Some(3), channels: Some(2) };
    settings.limits.peers_total_max = PeersMax { permissions: Some(4), channels: Some(2) };
    let mut fixture = Fixture::with(settings);
    let (one, two, bob) = (User::alice(), User::alice().at("192.0.2.1:1001"), User::bob());
    for user in [&one, &two, &bob] {
        fixture.allocate(user);
    }
    assert_eq!(fixture.permit(&one, &["192.0.2.1:1", "192.0.2.2:1"]), None);
    assert_eq!(fixture.permit(&two, &["192.0.2.1:1", "192.0.2.2:1"]), Some(508), "all or none");
    assert_eq!(fixture.permit(&two, &["192.0.2.1:1"]), None);
    assert_eq!(fixture.bind(&one, 0x4000, "192.0.2.1:1"), None);
    assert_eq!(fixture.bind(&one, 0x4001, "192.0.2.2:1"), None);
    assert_eq!(fixture.bind(&two, 0x4000, "192.0.2.1:1"), Some(508), "two channels of one user");
    assert_eq!(fixture.permit(&bob, &["192.0.2.9:1"]), None);
    assert_eq!(fixture.permit(&bob, &["192.0.2.8:1"]), Some(508), "four in all");
    assert_eq!(fixture.bind(&bob, 0x4000, "192.0.2.9:1"), Some(508), "two channels in all");
    // What is there already is not new.
    assert_eq!(fixture.permit(&one, &["192.0.2.1:1", "192.0.2.2:1"]), None);
    assert_eq!(fixture.bind(&one, 0x4000, "192.0.2.1:1"), None);
    let rules = [Rule::UserPermissions, Rule::UserChannels, Rule::TotalPermissions, Rule::TotalChannels];
    assert_eq!(rules.map(|rule| count(&fixture, rule)), [1; 4]);
    // What ends makes room: an allocation, a permission, what a new policy forbids.
    leave(&mut fixture, &one);
    assert_eq!(fixture.permit(&two, &["192.0.2.2:1", "192.0.2.3:1"]), None);
    assert_eq!(fixture.bind(&two, 0x4000, "192.0.2.1:1"), None);
    assert_eq!(fixture.permit(&two, &["192.0.2.4:1"]), Some(508));
    fixture.wait(301);
    assert_eq!(fixture.permit(&two, &["192.0.2.4:1"]), None);
    assert_eq!(fixture.permit(&bob, &["192.0.2.6:1", "192.0.2.7:1", "192.0.2.8:1"]), None);
    assert_eq!(fixture.permit(&two, &["192.0.2.5:1"]), Some(508), "four in all");
    let mut policy = super::fixture::settings().policy;
    policy.deny = vec!["192.0.2.8/32".parse().unwrap()];
    fixture.server.set_policy(policy);
    assert_eq!(fixture.permit(&two, &["192.0.2.5:1"]), None);
    leave(&mut fixture, &two);
    leave(&mut fixture, &bob);
    assert_eq!(fixture.server.commons.account_of_all().listed(), Listed::default());
}

#[test]
fn new_peers_are_limited_by_source_and_in_all() {
    let mut settings = settings();
    settings.limits.new_peers_per_s = None;
    settings.limits.new_peers_per_source_per_s = NonZeroU32::new(4);
    settings.limits.new_peers_total_per_s = NonZeroU32::new(5);
    let mut fixture = Fixture::with(settings);
    let (alice, beside, elsewhere) = (User::alice(), User::bob().at("192.0.2.1:9"), User::bob());
    for user in [&alice, &beside, &elsewhere] {
        fixture.allocate(user);
    }
    let mut last = 0;
    let mut met = |fixture: &mut Fixture, user: &User| {
        (0..25)
            .filter(|_| {
                fixture.transactions = 9;
                last += 1;
                fixture.permit(user, &[&format!("192.0.2.{last}:1")]).is_none()
            })
            .count()
    };
    // Five seconds' worth at once.
    assert_eq!(met(&mut fixture, &alice), 20);
    assert_eq!(met(&mut fixture, &beside), 0, "the same source");
    leave(&mut fixture, &alice);
    leave(&mut fixture, &beside);
    fixture.allocate(&alice);
    assert_eq!(met(&mut fixture, &alice), 0, "allocating anew gets around nothing");
    assert_eq!(met(&mut fixture, &elsewhere), 5, "25 in all");
    assert_eq!([Rule::SourceNewPeers, Rule::TotalNewPeers].map(|rule| count(&fixture, rule)), [55, 20]);
    fixture.wait(1);
    assert_eq!((met(&mut fixture, &alice), met(&mut fixture, &elsewhere)), (4, 1));
}

/// Two users at one source have one rate; near the rate of all, those give way who take most.
#[test]
fn sources_have_a_rate_and_all_together_and_nobody_starves() {
    let packets = |packets| Rate { packets_per_s: NonZeroU64::new(packets), ..Rate::default() };
    let single = Volume { packets: 1, bytes: 1000 };
    let passed = |limits: Limits, loads: [u32; 3]| {
        let mut fixture = Fixture::with(Settings { limits, ..settings() });
        let users = [User::alice(), User::bob().at("192.0.2.1:9"), User::bob()];
        let ids = [0, 1, 2].map(|index| {
            fixture.allocate(&users[index]);
            fixture.id(&users[index])
        });
        let mut passed = [0_u32; 3];
        for step in 0..20_000_u32 {
            fixture.now += Duration::from_millis(1);
            if step % 10 == 9 {
                fixture.server.handle_interval(false, fixture.now);
            }
            for (index, load) in loads.into_iter().enumerate() {
                // So many a second, evenly.
                let packets = (step + 1) * load / 1000 - step * load / 1000;
                for _ in 0..packets {
                    let now = fixture.now;
                    let admitted = fixture.server.admit(ids[index], Direction::ToPeer, single, now).is_ok();
                    passed[index] += u32::from(admitted);
                }
            }
        }
        passed
    };
    let limits = Limits { source_rate: packets(100), ..Limits::default() };
    let [alice, beside, elsewhere] = passed(limits, [1000, 1000, 1000]);
    assert!((2000..=2040).contains(&(alice + beside)), "{alice} {beside}");
    assert!((2000..=2040).contains(&elsewhere), "a source of its own: {elsewhere}");
    let limits = Limits { total_rate: packets(1000), ..Limits::default() };
    let [heavy, light, lighter] = passed(limits, [5000, 200, 50]);
    assert!(heavy + light + lighter <= 20_000 + 260, "{heavy} {light} {lighter}");
    assert!(heavy >= 12_000, "the rest is not wasted: {heavy}");
    assert!(light >= 4000 * 95 / 100 && lighter >= 1000 * 95 / 100, "{light} {lighter}");
}

/// T52: an allocation and a user have a rate in each direction, in bytes and in packets.
#[test]
fn rates_hold_for_allocations_and_users_in_each_direction() {
    let per_second = |bytes, packets| Rate {
        bytes_per_s: NonZeroU64::new(bytes),
        packets_per_s: NonZeroU64::new(packets),
    };
    let relayed = |allocation: Rate, user: Rate, load: Volume| {
        let mut settings = settings();
        settings.limits.allocation_rate = allocation;
        settings.limits.user_rate = user;
        let mut fixture = Fixture::with(settings);
        let (one, two) = (User::alice(), User::alice().at("192.0.2.1:1001"));
        fixture.allocate(&one);
        fixture.allocate(&two);
        let ids = [fixture.id(&one), fixture.id(&two)];
        let mut passed = [0_u64; 4];
        // Ten seconds at ten times any of the rates.
        for _ in 0..10_000 {
            fixture.now += Duration::from_millis(1);
            for (way, passed) in passed.iter_mut().enumerate() {
                let direction = if way < 2 { Direction::ToPeer } else { Direction::ToClient };
                match fixture.server.admit(ids[way % 2], direction, load, fixture.now) {
                    Ok(()) => {
                        fixture.server.count_relayed(ids[way % 2], direction, Carrier::Channel, load);
                        *passed += load.bytes / 1000;
                    }
                    Err(cause) => assert_eq!(cause, Cause::PolicyRate),
                }
            }
        }
        let usage = fixture.server.users().find(|usage| usage.identity == ALICE).unwrap();
        let ways = usage.relayed;
        assert_eq!(ways.to_peers().bytes + ways.to_clients().bytes, passed.iter().sum::<u64>() * 1000);
        let packets = ways.to_peers().packets + ways.to_clients().packets + ways.shaped_packets;
        assert_eq!(packets, 40_000 * load.packets, "every packet is relayed or counted as shaped");
        passed
    };
    let none = Rate::default();
    let single = Volume { packets: 1, bytes: 1000 };
    // 100 packets a second and a quarter of a second's worth at once.
    for passed in relayed(per_second(100_000, 0), none, single) {
        assert!((1015..=1030).contains(&passed), "{passed}");
    }
    for passed in relayed(per_second(0, 50), none, single) {
        assert!((505..=520).contains(&passed), "{passed}");
    }
    let [one, two, back_one, back_two] = relayed(none, per_second(100_000, 0), single);
    assert!((1015..=1030).contains(&(one + two)) && (1015..=1030).contains(&(back_one + back_two)));
    // A superpacket passes as a whole and is paid for afterwards.
    for passed in relayed(per_second(100_000, 0), none, Volume { packets: 50, bytes: 50_000 }) {
        assert!((1000..=1100).contains(&passed), "{passed}");
    }
    assert_eq!(relayed(none, none, single), [10_000; 4]);
}

#[test]
fn what_ended_allocations_relayed_stays_with_their_user() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    for round in 1..=3_u64 {
        fixture.transactions = 10 * round as u8;
        fixture.allocate(&alice);
        let id = fixture.id(&alice);
        fixture.server.count_relayed(
            id,
            Direction::ToPeer,
            Carrier::Channel,
            Volume { packets: 2, bytes: 300 },
        );
        fixture.server.count_relayed(
            id,
            Direction::ToClient,
            Carrier::Channel,
            Volume { packets: 1, bytes: 50 },
        );
        let usage = fixture.server.users().find(|usage| usage.identity == ALICE).unwrap();
        assert_eq!((usage.allocations, usage.relayed.to_peers().bytes), (1, 300 * round));
        assert_eq!(fixture.refresh(&alice, Some(0)).code(), None);
        let usage = fixture.server.users().find(|usage| usage.identity == ALICE).unwrap();
        assert_eq!((usage.allocations, usage.relayed.to_clients().packets), (0, round), "while it is closed");
        let Some(Command::Close(id)) = fixture.server.poll_command() else { panic!("nothing to close") };
        fixture.server.handle_relay_closed(id);
    }
    let others = fixture.server.users().filter(|usage| usage.identity != ALICE).count();
    assert_eq!(others, 0, "who never came has no figures");
}

/// T57: however fast requests are refused, the log hears of ten a second of each rule, and of each case once a minute.
#[test]
fn refusals_are_told_once_and_never_faster_than_ten_a_second() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let told = |fixture: &mut Fixture| {
        let lines: Vec<_> = std::iter::from_fn(|| fixture.server.poll_refused()).collect();
        for line in &lines {
            assert_eq!((&*line.user, line.client), (&b"alice"[..], alice.client.address));
        }
        lines
    };
    for _ in 0..100 {
        fixture.transactions = 0;
        assert_eq!(fixture.permit(&alice, &["10.1.2.3:5000"]), Some(403));
    }
    let lines = told(&mut fixture);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (lines[0].why.rule, lines[0].why.range),
        (Rule::SpecialRange, Some("10.0.0.0/8".parse().unwrap()))
    );
    assert_eq!(lines[0].why.peer, Some(address("10.1.2.3:5000")));
    // Another address of the range is the same refusal, another range is another.
    assert_eq!(fixture.permit(&alice, &["10.200.0.1:1"]), Some(403));
    assert_eq!(told(&mut fixture), []);
    assert_eq!(fixture.permit(&alice, &["127.0.0.1:1"]), Some(403));
    assert_eq!(told(&mut fixture).len(), 1);
    fixture.wait(61);
    fixture.transactions = 0;
    assert_eq!(fixture.permit(&alice, &["10.1.2.3:5000"]), Some(403));
    assert_eq!(told(&mut fixture).len(), 1, "a minute later it is news again");

    // Every port is a case of its own.
    let mut policy = settings().policy;
    policy.deny_ports = PortSet::of(&[1..=u16::MAX]);
    fixture.server.set_policy(policy);
    let mut lines = 0;
    for second in 0..3_u16 {
        for port in 1..=2_000 {
            let port = second * 2_000 + port;
            let sent = fixture.handle(&alice.client, &send(&format!("192.0.2.9:{port}"), b"x"));
            assert_eq!(sent, FromClient::Drop(Cause::PolicyPeer));
            fixture.now += Duration::from_micros(500);
            lines += told(&mut fixture).len();
        }
    }
    assert_eq!(count(&fixture, Rule::PeerPort), 6_000);
    assert!((30..=40).contains(&lines), "{lines}");
}
