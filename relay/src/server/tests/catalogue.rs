//! Rows of the catalogue of abuse, by their numbers: what a client or peer may try with an allocation, and what it must not
//! change. After each refusal the server is what it was before.

use std::collections::BTreeSet;

use dataplane::stun::{AddressFamily, AttributeType, Method, TransactionId, Writer};

use super::super::ports::Token;
use super::super::*;
use super::fixture::*;

const PEER: &str = "192.0.2.9:7";

/// Runs `attempt` and insists that it changes nothing.
fn unchanged<T>(fixture: &mut Fixture, attempt: impl FnOnce(&mut Fixture) -> T) -> T {
    let before = state(&fixture.server);
    let outcome = attempt(fixture);
    assert_eq!(state(&fixture.server), before);
    outcome
}

fn transport(writer: &mut Writer<'_>) {
    writer.requested_transport(17);
}

fn additional(writer: &mut Writer<'_>, family: u8) {
    writer.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[family, 0, 0, 0]);
}

/// A client with a channel to [`PEER`].
fn bound() -> (Fixture, User, AllocationId) {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    assert_eq!(fixture.bind(&alice, 0x4001, PEER), None);
    let id = fixture.id(&alice);
    (fixture, alice, id)
}

fn dropped(fixture: &mut Fixture, user: &User, datagram: &[u8]) -> Option<Cause> {
    match fixture.handle(&user.client, datagram) {
        FromClient::Drop(cause) => Some(cause),
        FromClient::Forward { payload, .. } => {
            assert!(payload.end <= datagram.len());
            None
        }
        other => panic!("{other:?}"),
    }
}

fn from_peer(fixture: &Fixture, id: AllocationId, peer: &str) -> FromPeer {
    fixture.server.handle_peer(id, PeerSocket(address(peer)), fixture.now)
}

#[test]
fn t24_a_second_allocate_on_a_5_tuple_is_437_whatever_it_asks_for() {
    let (mut fixture, alice, _) = bound();
    type Fill = fn(&mut Writer<'_>);
    let fills: [Fill; 6] = [
        |_| {},
        |writer| additional(writer, 2),
        |writer| {
            writer.requested_address_family(AddressFamily::V6);
        },
        |writer| {
            writer.even_port(true);
        },
        |writer| {
            writer.reservation_token([7; 8]);
        },
        |writer| {
            writer.lifetime(0);
        },
    ];
    for (index, fill) in fills.into_iter().enumerate() {
        let code = unchanged(&mut fixture, |fixture| {
            let ask = |writer: &mut Writer<'_>| {
                transport(writer);
                fill(writer);
            };
            fixture.ask(&alice, Method::Allocate, ask).code()
        });
        assert_eq!(code, Some(437), "case {index}");
    }
}

#[test]
fn t26_even_ports_without_reservation_never_leak_their_neighbours() {
    let mut settings = settings();
    settings.relay_ports = 50_000..=50_003;
    let mut fixture = Fixture::with(settings);
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let mut id = 0_u64;
    let mut ask = |method, fill: &dyn Fn(&mut Writer<'_>)| {
        id += 1;
        let mut transaction = [0; 12];
        transaction[..8].copy_from_slice(&id.to_be_bytes());
        request(&alice, method, TransactionId(transaction), &nonce, fill)
    };
    let mut seen = BTreeSet::new();
    for round in 0..20_000 {
        let allocate = ask(Method::Allocate, &|writer| {
            transport(writer);
            writer.even_port(false);
        });
        let FromClient::OpenRelay { allocation, address } = fixture.handle(&alice.client, &allocate) else {
            panic!("round {round}: no port")
        };
        seen.insert(address.port());
        fixture.open_all(&alice, allocation);
        let delete = ask(Method::Refresh, &|writer| {
            writer.lifetime(0);
        });
        assert_eq!(fixture.handle(&alice.client, &delete), FromClient::Reply);
        assert_eq!(fixture.server.poll_command(), Some(Command::Close(allocation)));
        fixture.server.handle_relay_closed(allocation);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [50_000, 50_002]);
    // All four can be had at once: the pool is full again.
    for port in 1..=4 {
        fixture.allocate(&alice.at(&format!("192.0.2.1:{port}")));
    }
}

#[test]
fn t27_a_reservation_token_is_not_guessed_not_used_twice_and_not_combined() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let reply = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17).even_port(true);
    });
    let token = reply.message().reservation_token().unwrap().unwrap();
    let bob = User::bob();
    let nonce = fixture.nonce(&bob);
    let with = |token: Token, fill: fn(&mut Writer<'_>)| {
        request(&bob, Method::Allocate, TransactionId([1; 12]), &nonce, |writer| {
            writer.requested_transport(17).reservation_token(token);
            fill(writer);
        })
    };
    let code = |fixture: &mut Fixture, datagram: &[u8]| {
        assert_eq!(fixture.handle(&bob.client, datagram), FromClient::Reply);
        Reply(fixture.server.reply().to_vec()).code()
    };
    let combined: [fn(&mut Writer<'_>); 5] = [
        |writer| {
            writer.even_port(false);
        },
        |writer| {
            writer.even_port(true);
        },
        |writer| {
            writer.requested_address_family(AddressFamily::V4);
        },
        |writer| {
            writer.requested_address_family(AddressFamily::V6);
        },
        |writer| additional(writer, 2),
    ];
    for fill in combined {
        assert_eq!(unchanged(&mut fixture, |fixture| code(fixture, &with(token, fill))), Some(400));
    }
    unchanged(&mut fixture, |fixture| {
        for bit in 0..64 {
            let mut guess = token;
            guess[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(code(fixture, &with(guess, |_| {})), Some(508), "bit {bit}");
        }
    });
    let asked = with(token, |_| {});
    let FromClient::OpenRelay { allocation, .. } = fixture.handle(&bob.client, &asked) else {
        panic!("the token is good")
    };
    fixture.open_all(&bob, allocation);
    let carol = bob.at("192.0.2.3:3000");
    let again = fixture.ask(&carol, Method::Allocate, |writer| {
        writer.requested_transport(17).reservation_token(token);
    });
    assert_eq!(again.code(), Some(508));

    let reply = fixture.ask(&alice.at("192.0.2.1:1001"), Method::Allocate, |writer| {
        writer.requested_transport(17).even_port(true);
    });
    let token = reply.message().reservation_token().unwrap().unwrap();
    fixture.wait(30);
    let late = fixture.ask(&carol, Method::Allocate, |writer| {
        writer.requested_transport(17).reservation_token(token);
    });
    assert_eq!(late.code(), Some(508));
}

#[test]
fn t28_every_transport_but_udp_is_442() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    unchanged(&mut fixture, |fixture| {
        for protocol in (0..=255).filter(|&protocol| protocol != 17) {
            let reply =
                fixture.ask_again(&alice, Method::Allocate, TransactionId([protocol; 12]), |writer| {
                    writer.requested_transport(protocol);
                });
            assert_eq!(reply.code(), Some(442), "{protocol}");
        }
    });
}

#[test]
fn t29_families_are_combined_by_the_table() {
    // RFC 8656 section 7.2: REQUESTED-ADDRESS-FAMILY, ADDITIONAL-ADDRESS-FAMILY, EVEN-PORT, RESERVATION-TOKEN.
    let families = [None, Some(1), Some(2), Some(3)];
    let even_ports = [None, Some(false), Some(true)];
    let mut tried = 0;
    for requested in families {
        for extra in families {
            for even_port in even_ports {
                for token in [None, Some([7; 8])] {
                    let expected = match (requested, extra, even_port, token) {
                        (Some(_), _, _, Some(_)) | (_, Some(_), _, Some(_)) | (_, _, Some(_), Some(_)) => {
                            Some(400)
                        }
                        (None, None, None, Some(_)) => Some(508),
                        (Some(_), Some(_), ..) | (_, Some(1), ..) | (_, Some(_), Some(true), _) => Some(400),
                        (Some(3), ..) => Some(440),
                        (..) => None,
                    };
                    let mut fixture = Fixture::new();
                    let before = state(&fixture.server);
                    let reply = fixture.ask(&User::alice(), Method::Allocate, |writer| {
                        transport(writer);
                        if let Some(family) = requested {
                            let value = [family, 0, 0, 0];
                            writer.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &value);
                        }
                        if let Some(family) = extra {
                            additional(writer, family);
                        }
                        if let Some(reserve) = even_port {
                            writer.even_port(reserve);
                        }
                        if let Some(token) = token {
                            writer.reservation_token(token);
                        }
                    });
                    let case = (requested, extra, even_port, token);
                    assert_eq!(reply.code(), expected, "{case:?}");
                    let made = match (expected, extra) {
                        (Some(_), _) => 0,
                        (None, Some(2)) => 2,
                        (None, _) => 1,
                    };
                    assert_eq!(fixture.server.allocations(), made, "{case:?}");
                    assert_eq!(state(&fixture.server) == before, expected.is_some(), "{case:?}");
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(tried, 96);
    for (kind, len) in [
        (AttributeType::REQUESTED_ADDRESS_FAMILY, [0, 1, 3, 5]),
        (AttributeType::ADDITIONAL_ADDRESS_FAMILY, [0, 1, 3, 5]),
        (AttributeType::RESERVATION_TOKEN, [0, 4, 7, 9]),
        (AttributeType::EVEN_PORT, [0, 2, 4, 8]),
    ] {
        for len in len {
            let mut fixture = Fixture::new();
            let reply = fixture.ask(&User::alice(), Method::Allocate, |writer| {
                transport(writer);
                writer.attribute(kind, &[2; 9][..len]);
            });
            assert_eq!(reply.code(), Some(400), "{kind:?} of {len} bytes");
        }
    }
}

#[test]
fn t30_lifetimes_are_clamped_and_zero_deletes_on_refresh_alone() {
    for (asked, granted) in [(0, 600), (1, 600), (599, 600), (600, 600), (3600, 3600), (3601, 3600)]
        .into_iter()
        .chain((12..32).map(|power| (1_u32 << power, 3600)))
        .chain([(u32::MAX, 3600)])
    {
        let mut fixture = Fixture::new();
        let alice = User::alice();
        let made = fixture.ask(&alice, Method::Allocate, |writer| {
            writer.requested_transport(17).lifetime(asked);
        });
        assert_eq!(made.lifetime(), Some(granted), "{asked}");
        let id = fixture.id(&alice);
        fixture.wait(u64::from(granted) - 1);
        assert_eq!(fixture.pair(&alice), Pair::one(id), "{asked}: it lives for as long as it was told");
        let refreshed = fixture.refresh(&alice, Some(asked));
        assert_eq!(refreshed.lifetime(), Some(if asked == 0 { 0 } else { granted }), "{asked}");
        assert_eq!(fixture.server.find(&alice.client, fixture.now).is_none(), asked == 0);
    }
}

#[test]
fn t31_nobody_changes_an_allocation_that_is_not_theirs() {
    let (mut fixture, alice, _) = bound();
    let elsewhere = [
        alice.at("192.0.2.1:1001"),
        alice.at("192.0.2.7:1000"),
        alice.at("[2001:db8::1]:1000"),
        User { client: ClientSocket { listener: Listener(1), ..alice.client }, ..alice.clone() },
        User { client: ClientSocket { local: None, ..alice.client }, ..alice },
    ];
    let strangers = elsewhere.map(|user| (user, 437));
    let others = [(User { client: alice.client, ..User::bob() }, 441)];
    for (user, expected) in strangers.into_iter().chain(others) {
        unchanged(&mut fixture, |fixture| {
            for seconds in [None, Some(0), Some(3600)] {
                assert_eq!(fixture.refresh(&user, seconds).code(), Some(expected), "{:?}", user.client);
            }
            assert_eq!(fixture.permit(&user, &[PEER]), Some(expected));
            assert_eq!(fixture.bind(&user, 0x4001, PEER), Some(expected));
            assert_eq!(fixture.bind(&user, 0x4002, "192.0.2.9:8"), Some(expected));
        });
    }
}

#[test]
fn t38_two_allocations_bound_to_each_other_do_not_loop() {
    let mut settings = settings();
    settings.policy.allow.push("198.41.0.4/32".parse().unwrap());
    let mut fixture = Fixture::with(settings);
    let users = [User::alice(), User::alice().at("192.0.2.1:1001")];
    let relayed = [fixture.allocate(&users[0]), fixture.allocate(&users[1])];
    for (index, user) in users.iter().enumerate() {
        assert_eq!(fixture.bind(user, 0x4000, &relayed[1 - index].to_string()), None);
    }
    let ids = [fixture.id(&users[0]), fixture.id(&users[1])];
    for round in 0..1000 {
        let from = round % 2;
        let to = 1 - from;
        let datagram = channel_data(0x4000, &[7; 100]);
        let forward = fixture.handle(&users[from].client, &datagram);
        let FromClient::Forward { allocation, peer, payload, .. } = forward else { panic!("{forward:?}") };
        assert_eq!((allocation, peer.0, payload.len()), (ids[from], relayed[to], 100));
        // It goes to the client of the other allocation, whose move it is: nothing goes on by itself.
        let out = fixture.server.route(allocation, peer, fixture.now);
        let receiver = ids[to];
        let to = FromPeer::Channel { client: users[to].client, number: ChannelNumber::MIN };
        assert_eq!(out, Ok(Route::Client { receiver, to, seen_as: PeerSocket(relayed[from]) }));
        assert_eq!(fixture.server.poll_command(), None);
    }
}

#[test]
fn t42_peers_of_a_family_without_an_address_are_443() {
    for (family, foreign) in [
        (AddressFamily::V4, ["[2001:db8::1]:1", "[::ffff:192.0.2.9]:1", "[64:ff9b::c000:209]:1", "[::1]:1"]),
        (AddressFamily::V6, ["192.0.2.9:1", "127.0.0.1:1", "0.0.0.0:1", "255.255.255.255:1"]),
    ] {
        let mut fixture = Fixture::new();
        let alice = User::alice();
        let reply = fixture.ask(&alice, Method::Allocate, |writer| {
            writer.requested_transport(17).requested_address_family(family);
        });
        assert_eq!(reply.code(), None);
        for peer in foreign {
            unchanged(&mut fixture, |fixture| {
                assert_eq!(fixture.permit(&alice, &[peer]), Some(443), "{peer}");
                assert_eq!(fixture.bind(&alice, 0x4000, peer), Some(443), "{peer}");
                assert!(dropped(fixture, &alice, &send(peer, b"x")).is_some(), "{peer}");
            });
        }
    }
}

#[test]
fn t43_channel_numbers_outside_0x4000_to_0x4fff_are_400() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let edges = [0, 1, 0x3fff, 0x5000, 0x5001, 0x7fff, 0x8000, 0xffff];
    let between = (0..=u16::MAX).step_by(257).filter(|number| !(0x4000..0x5000).contains(number));
    unchanged(&mut fixture, |fixture| {
        for number in edges.into_iter().chain(between) {
            fixture.transactions = 0;
            assert_eq!(fixture.bind(&alice, number, PEER), Some(400), "{number:#x}");
        }
    });
    assert_eq!(fixture.bind(&alice, 0x4000, PEER), None);
    assert_eq!(fixture.bind(&alice, 0x4fff, "192.0.2.9:8"), None);
}

#[test]
fn t44_a_binding_cannot_be_changed_for_fifteen_minutes() {
    let (mut fixture, alice, _) = bound();
    assert_eq!(fixture.refresh(&alice, Some(3600)).code(), None);
    for seconds in [0, 1, 598, 1, 299] {
        fixture.wait(seconds);
        unchanged(&mut fixture, |fixture| {
            assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:8"), Some(400));
            assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.8:7"), Some(400));
            assert_eq!(fixture.bind(&alice, 0x4002, PEER), Some(400));
        });
    }
    fixture.wait(1);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:8"), None);
    assert_eq!(fixture.bind(&alice, 0x4002, PEER), None);
}

#[test]
fn t45_channel_data_is_forwarded_by_its_length_or_not_at_all() {
    let (mut fixture, alice, _) = bound();
    unchanged(&mut fixture, |fixture| {
        for payload in 0..=16_usize {
            for claimed in (0..=20).chain([255, 256, 65_534, 65_535]) {
                let mut datagram = vec![0x40, 1];
                datagram.extend((claimed as u16).to_be_bytes());
                datagram.extend(vec![9; payload]);
                let expected = (claimed <= payload).then_some(4..4 + claimed);
                match fixture.handle(&alice.client, &datagram) {
                    FromClient::Forward { payload: range, .. } => {
                        assert_eq!(Some(range), expected, "{claimed} of {payload}");
                    }
                    dropped => {
                        assert_eq!(dropped, FromClient::Drop(Cause::MalformedOuter));
                        assert_eq!(expected, None, "{claimed} of {payload}");
                    }
                }
            }
        }
        for short in 0..4 {
            let datagram = &[0x40, 1, 0][..short.min(3)];
            assert_eq!(dropped(fixture, &alice, datagram), Some(Cause::MalformedOuter), "{short} bytes");
        }
    });
}

#[test]
fn t46_channel_data_without_a_binding_leaves_nothing_behind() {
    let (mut fixture, alice, _) = bound();
    unchanged(&mut fixture, |fixture| {
        for number in (0x4000..0x8000_u16).filter(|&number| number != 0x4001) {
            let datagram = channel_data(number, b"x");
            assert_eq!(dropped(fixture, &alice, &datagram), Some(Cause::NoChannel), "{number:#x}");
        }
        let datagram = channel_data(0x4001, b"x");
        for port in 1..1000 {
            let stranger = alice.at(&format!("192.0.2.1:{port}"));
            assert_eq!(dropped(fixture, &stranger, &datagram), Some(Cause::NoAllocation), "port {port}");
        }
        let spoofed =
            User { client: ClientSocket { listener: Listener(1), ..alice.client }, ..alice.clone() };
        assert_eq!(dropped(fixture, &spoofed, &datagram), Some(Cause::NoAllocation));
        assert_eq!(dropped(fixture, &alice, &datagram), None);
    });
}

#[test]
fn t47_rights_end_to_the_second_and_a_refresh_prolongs_them() {
    for refreshed in [false, true] {
        let (mut fixture, alice, id) = bound();
        assert_eq!(fixture.refresh(&alice, Some(3600)).code(), None);
        let (data, indication) = (channel_data(0x4001, b"x"), send(PEER, b"x"));
        fixture.wait(299);
        assert_eq!(dropped(&mut fixture, &alice, &data), None);
        assert_eq!(dropped(&mut fixture, &alice, &indication), None);
        if refreshed {
            assert_eq!(fixture.permit(&alice, &[PEER]), None);
        }
        fixture.wait(1);
        let expected = (!refreshed).then_some(Cause::NoPermission);
        assert_eq!(dropped(&mut fixture, &alice, &data), expected);
        assert_eq!(dropped(&mut fixture, &alice, &indication), expected);
        assert_eq!(matches!(from_peer(&fixture, id, PEER), FromPeer::Drop(_)), !refreshed);
    }
    for refreshed in [false, true] {
        let (mut fixture, alice, _) = bound();
        assert_eq!(fixture.refresh(&alice, Some(3600)).code(), None);
        fixture.wait(299);
        assert_eq!(fixture.permit(&alice, &[PEER]), None);
        fixture.wait(299);
        assert_eq!(fixture.permit(&alice, &[PEER]), None);
        if refreshed {
            assert_eq!(fixture.bind(&alice, 0x4001, PEER), None);
        }
        fixture.wait(1);
        let data = channel_data(0x4001, b"x");
        assert_eq!(dropped(&mut fixture, &alice, &data), None, "at 599 s");
        fixture.wait(1);
        assert_eq!(dropped(&mut fixture, &alice, &data), (!refreshed).then_some(Cause::NoChannel));
    }
}

#[test]
fn t48_a_peer_needs_a_permission_for_its_address_and_a_channel_its_port() {
    let (fixture, alice, id) = bound();
    let channel = FromPeer::Channel { client: alice.client, number: ChannelNumber::new(0x4001).unwrap() };
    assert_eq!(from_peer(&fixture, id, PEER), channel);
    for port in (1..=u16::MAX).filter(|&port| port != 7) {
        let peer = PeerSocket(SocketAddr::new(address(PEER).ip(), port));
        let expected = FromPeer::Indication { client: alice.client };
        assert_eq!(fixture.server.handle_peer(id, peer, fixture.now), expected, "port {port}");
    }
    for peer in ["192.0.2.8:7", "192.0.2.10:7", "[::ffff:192.0.2.9]:7", "[2001:db8::9]:7", "0.0.0.0:7"] {
        assert_eq!(from_peer(&fixture, id, peer), FromPeer::Drop(Cause::NoPermission), "{peer}");
    }
}

#[test]
fn t49_an_indication_never_promises_more_than_a_datagram_holds() {
    let mut fixture = Fixture::new();
    let peer = PeerSocket(address(PEER));
    for len in [0, 1, 3, 1200, 65_471, 65_507] {
        let header = fixture.server.data_indication(peer, len).unwrap().to_vec();
        let message_len = usize::from(u16::from_be_bytes([header[2], header[3]])) + 20;
        assert_eq!(message_len, header.len() + len.next_multiple_of(4), "{len}");
    }
    for len in [65_536, 70_000, usize::MAX / 2] {
        assert!(fixture.server.data_indication(peer, len).is_none(), "{len}");
    }
}

#[test]
fn t50_what_a_client_sends_is_opaque() {
    let (mut fixture, alice, _) = bound();
    let nonce = fixture.nonce(&alice);
    let looks = [
        bare(Method::Binding, TransactionId([1; 12])),
        request(&alice, Method::Refresh, TransactionId([2; 12]), &nonce, |writer| {
            writer.lifetime(0);
        }),
        channel_data(0x4001, b"inside"),
        send(PEER, b"inside"),
        vec![0; 20],
    ];
    for inner in looks {
        unchanged(&mut fixture, |fixture| {
            for datagram in [channel_data(0x4001, &inner), send(PEER, &inner)] {
                let forward = fixture.handle(&alice.client, &datagram);
                let FromClient::Forward { payload, .. } = forward else { panic!("{forward:?}") };
                assert_eq!(datagram[payload], inner);
            }
        });
    }
}

#[test]
fn t51_a_send_indication_is_whole_and_permitted_or_dropped_and_its_dont_fragment_is_kept() {
    let (mut fixture, alice, _) = bound();
    let indication =
        |fill: &dyn Fn(&mut Writer<'_>)| write(Class::Indication, Method::Send, TransactionId([1; 12]), fill);
    for wanted in [false, true] {
        let datagram = indication(&|writer| {
            writer.xor_peer_address(address(PEER)).data(b"x");
            if wanted {
                writer.dont_fragment();
            }
        });
        let forward = unchanged(&mut fixture, |fixture| fixture.handle(&alice.client, &datagram));
        let FromClient::Forward { dont_fragment, .. } = forward else { panic!("{forward:?}") };
        assert_eq!(dont_fragment, wanted);
    }
    // ChannelData has no way to ask for it.
    let forward = fixture.handle(&alice.client, &channel_data(0x4001, b"x"));
    assert!(matches!(forward, FromClient::Forward { dont_fragment: false, .. }));
    let cases = [
        (Cause::MalformedOuter, indication(&|_| {})),
        (
            Cause::MalformedOuter,
            indication(&|writer| {
                writer.xor_peer_address(address(PEER)).dont_fragment();
            }),
        ),
        (
            Cause::MalformedOuter,
            indication(&|writer| {
                writer.data(b"x").dont_fragment();
            }),
        ),
        (
            Cause::NoPermission,
            indication(&|writer| {
                writer.xor_peer_address(address("192.0.2.8:7")).data(b"x").dont_fragment();
            }),
        ),
        (
            Cause::NoPermission,
            indication(&|writer| {
                writer.xor_peer_address(address("[2001:db8::9]:7")).data(b"x").dont_fragment();
            }),
        ),
        (
            Cause::MalformedOuter,
            indication(&|writer| {
                writer.xor_peer_address(address(PEER)).data(b"x").attribute(AttributeType(0x7001), b"");
            }),
        ),
        (Cause::MalformedOuter, send("192.0.2.9:0", b"x")),
        (Cause::PolicyPeer, send("198.41.0.4:3478", b"x")),
    ];
    for (index, (cause, datagram)) in cases.into_iter().enumerate() {
        let dropped = unchanged(&mut fixture, |fixture| dropped(fixture, &alice, &datagram));
        assert_eq!(dropped, Some(cause), "case {index}");
    }
    let reply = fixture.ask(&User::bob(), Method::Allocate, |writer| {
        writer.requested_transport(17).dont_fragment();
    });
    assert_eq!(reply.code(), None, "a client may ask beforehand whether it can");
}
