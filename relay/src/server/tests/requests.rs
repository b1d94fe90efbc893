//! Every request: what succeeds, and every error code at its place.

use dataplane::stun::{AddressFamily, AttributeType, Class, Message, Method, TransactionId};

use super::super::*;
use super::fixture::*;

#[test]
fn binding_is_answered_in_32_bytes() {
    let mut fixture = Fixture::new();
    let asked = bare(Method::Binding, TransactionId([1; 12]));
    assert_eq!(fixture.handle(&client("192.0.2.1:1000"), &asked), FromClient::Reply);
    let mut expected = vec![1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42];
    expected.extend([1; 12]);
    // XOR-MAPPED-ADDRESS: port 1000 and 192.0.2.1, each XORed with the cookie.
    expected.extend([0, 0x20, 0, 8, 0, 1, 0x03 ^ 0x21, 0xe8 ^ 0x12, 192 ^ 0x21, 0x12, 2 ^ 0xa4, 1 ^ 0x42]);
    assert_eq!(fixture.server.reply(), expected);
    assert_eq!(fixture.handle(&client("[2001:db8::1]:1000"), &asked), FromClient::Reply);
    assert_eq!(fixture.server.reply().len(), 44);
}

#[test]
fn fingerprint_is_answered_when_asked_for_and_dropped_when_wrong() {
    let mut fixture = Fixture::new();
    let mut buffer = [0; 28];
    let writer =
        dataplane::stun::Writer::new(&mut buffer, Class::Request, Method::Binding, TransactionId([1; 12]))
            .unwrap();
    assert_eq!(writer.finish(None, true), Some(28));
    let alice = User::alice();
    assert_eq!(fixture.handle(&alice.client, &buffer), FromClient::Reply);
    assert_eq!(Message::parse(fixture.server.reply()).unwrap().verify_fingerprint(), Some(true));
    buffer[27] ^= 1;
    assert_eq!(fixture.handle(&alice.client, &buffer), FromClient::Drop(Cause::MalformedOuter));
}

#[test]
fn the_first_answer_is_a_challenge_of_76_bytes_with_a_short_realm() {
    let mut settings = settings();
    settings.credentials = Credentials::new("abcd");
    let mut fixture = Fixture::with(settings);
    let asked = bare(Method::Allocate, TransactionId([1; 12]));
    assert_eq!(fixture.handle(&User::alice().client, &asked), FromClient::Reply);
    let message = Message::parse(fixture.server.reply()).unwrap();
    assert_eq!(message.error_code().unwrap().unwrap().0, 401);
    assert_eq!((message.realm(), message.nonce().map(<[u8]>::len)), (Some(&b"abcd"[..]), Some(24)));
    assert_eq!(message.password_algorithms(), Some(&[0, 2, 0, 0, 0, 1, 0, 0][..]));
    assert!(!message.has_integrity() && !message.has_integrity_sha256());
    // Header, ERROR-CODE without a phrase, REALM, NONCE, PASSWORD-ALGORITHMS: 2.7 times the 28 bytes of a bare Allocate,
    // where RFC 5389 alone took 56.
    assert_eq!(fixture.server.reply().len(), 20 + 8 + 8 + 28 + 12);
    assert_eq!(fixture.server.allocations(), 0);
}

#[test]
fn what_is_not_authentic_is_told_so_without_a_hint_which_part_is_wrong() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let mut code = |user: &User, realm: &[u8], nonce: &[u8]| {
        let mut buffer = [0; 1000];
        let mut writer = dataplane::stun::Writer::new(
            &mut buffer,
            Class::Request,
            Method::Allocate,
            TransactionId([1; 12]),
        )
        .unwrap();
        writer.requested_transport(17).username(user.name.as_bytes()).realm(realm).nonce(nonce);
        let len = writer.finish(Some(&user.key()), false).unwrap();
        assert_eq!(fixture.handle(&user.client, &buffer[..len]), FromClient::Reply);
        let reply = Reply(fixture.server.reply().to_vec());
        assert_eq!(reply.message().nonce().map(<[u8]>::len), Some(24), "with a fresh nonce");
        assert!(!reply.message().has_integrity());
        (reply.code(), reply.0.len())
    };
    let wrong_password = User { password: "guess", ..alice.clone() };
    let unknown_user = User { name: "mallory", ..alice.clone() };
    let (refused, stale) = ((Some(401), 84), (Some(438), 84));
    assert_eq!(code(&wrong_password, REALM.as_bytes(), &nonce), refused);
    assert_eq!(code(&unknown_user, REALM.as_bytes(), &nonce), refused);
    assert_eq!(code(&alice, b"elsewhere", &nonce), refused);
    assert_eq!(code(&alice, REALM.as_bytes(), b"never issued"), stale);
    assert_eq!(code(&alice, REALM.as_bytes(), b""), stale);
    assert_eq!(code(&alice.at("192.0.2.1:1001"), REALM.as_bytes(), &nonce), stale);
    assert_eq!(fixture.server.allocations(), 0);
}

#[test]
fn every_flipped_bit_of_the_integrity_is_noticed() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let good = request(&alice, Method::Refresh, TransactionId([1; 12]), &nonce, |_| {});
    for bit in 0..160 {
        let mut bad = good.clone();
        let index = bad.len() - 20 + bit / 8;
        bad[index] ^= 1 << (bit % 8);
        assert_eq!(fixture.handle(&alice.client, &bad), FromClient::Reply);
        assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(401), "bit {bit}");
    }
    assert_eq!(fixture.handle(&alice.client, &good), FromClient::Reply);
    assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(437));
}

#[test]
fn integrity_without_username_realm_or_nonce_is_400() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    for missing in 0..3 {
        let mut buffer = [0; 1000];
        let mut writer = dataplane::stun::Writer::new(
            &mut buffer,
            Class::Request,
            Method::Refresh,
            TransactionId([1; 12]),
        )
        .unwrap();
        let parts = [
            (AttributeType::USERNAME, &b"alice"[..]),
            (AttributeType::REALM, REALM.as_bytes()),
            (AttributeType::NONCE, &nonce),
        ];
        for (index, (kind, value)) in parts.into_iter().enumerate() {
            if index != missing {
                writer.attribute(kind, value);
            }
        }
        let len = writer.finish(Some(&alice.key()), false).unwrap();
        assert_eq!(fixture.handle(&alice.client, &buffer[..len]), FromClient::Reply);
        assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(400), "without {missing}");
    }
}

#[test]
fn a_nonce_runs_out_and_the_fresh_one_works() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let asked = request(&alice, Method::Refresh, TransactionId([1; 12]), &nonce, |_| {});
    fixture.wait(3600);
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    let reply = Reply(fixture.server.reply().to_vec());
    assert_eq!(reply.code(), Some(438));
    let fresh = reply.message().nonce().unwrap().to_vec();
    let asked = request(&alice, Method::Refresh, TransactionId([1; 12]), &fresh, |_| {});
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(437));
}

#[test]
fn unknown_required_attributes_are_listed_after_authentication() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    for method in [Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
        let reply = fixture.ask(&alice, method, |writer| {
            writer.attribute(AttributeType(0x7001), b"x").attribute(AttributeType(0x7002), b"");
        });
        assert_eq!(reply.code(), Some(420));
        let listed: Vec<u16> = reply.message().unknown_attributes().map(|kind| kind.0).collect();
        assert_eq!(listed, [0x7001, 0x7002]);
    }
    let asked = write(Class::Request, Method::Binding, TransactionId([1; 12]), |writer| {
        writer.attribute(AttributeType(0x0024), &[0; 4]);
    });
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(420));
    let optional = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17).attribute(AttributeType(0xf001), b"x");
    });
    assert_eq!(optional.code(), None);
}

#[test]
fn an_allocation_is_made_and_described() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let reply = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17).lifetime(1800);
    });
    let message = reply.message();
    assert_eq!((message.class(), message.lifetime()), (Class::Success, Ok(Some(1800))));
    let relayed = message.xor_relayed_address().unwrap().unwrap();
    assert!(relayed.ip().to_string() == LOCAL && (50_000..=50_999).contains(&relayed.port()));
    assert_eq!(message.xor_mapped_address(), Ok(Some(alice.client.address)));
    assert_eq!(message.reservation_token(), Ok(None));
    assert_eq!(fixture.server.allocations(), 1);
}

#[test]
fn allocate_refuses_what_it_cannot_do() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    type Fill = fn(&mut dataplane::stun::Writer<'_>);
    let transport: Fill = |writer| {
        writer.requested_transport(17);
    };
    let cases: [(Option<u16>, Fill); 15] = [
        (Some(400), |_| {}),
        (Some(442), |writer| {
            writer.requested_transport(99);
        }),
        (Some(442), |writer| {
            writer.requested_transport(6);
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::REQUESTED_TRANSPORT, &[17]);
        }),
        (Some(440), |writer| {
            writer.requested_address_family(AddressFamily::Other(3));
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[1]);
        }),
        (Some(400), |writer| {
            writer.even_port(false).reservation_token([1; 8]);
        }),
        (Some(400), |writer| {
            writer.requested_address_family(AddressFamily::V4).reservation_token([1; 8]);
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[1, 0, 0, 0]);
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
            writer.requested_address_family(AddressFamily::V6);
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]).even_port(true);
        }),
        (Some(508), |writer| {
            writer.reservation_token([1; 8]);
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::RESERVATION_TOKEN, &[1; 4]);
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::LIFETIME, &[1; 3]);
        }),
        (Some(400), |writer| {
            writer.attribute(AttributeType::EVEN_PORT, &[0, 0]);
        }),
    ];
    for (index, (expected, fill)) in cases.into_iter().enumerate() {
        let reply = fixture.ask(&alice, Method::Allocate, |writer| {
            fill(writer);
            // The first four cases are about the transport itself; the first value of two counts.
            if index >= 4 {
                transport(writer);
            }
        });
        assert_eq!(reply.code(), expected, "case {index}");
    }
    assert_eq!(fixture.server.allocations(), 0);
    fixture.allocate(&alice);
}

#[test]
fn families_are_chosen_and_compared() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let reply = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17).requested_address_family(AddressFamily::V6);
    });
    assert_eq!(reply.message().xor_relayed_address().unwrap().unwrap().ip().to_string(), "2600::4");
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), Some(443));
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:1"), Some(443));
    assert_eq!(fixture.permit(&alice, &["[2001:db8::9]:1"]), None);
    let refresh = |family| {
        move |writer: &mut dataplane::stun::Writer<'_>| {
            writer.requested_address_family(family);
        }
    };
    assert_eq!(fixture.ask(&alice, Method::Refresh, refresh(AddressFamily::V4)).code(), Some(443));
    assert_eq!(fixture.ask(&alice, Method::Refresh, refresh(AddressFamily::V6)).code(), None);

    let mut settings = settings();
    settings.relay_addresses = Vec::new();
    let mut fixture = Fixture::with(settings);
    let reply = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17).requested_address_family(AddressFamily::V6);
    });
    assert_eq!(reply.code(), Some(440));
    assert_eq!(fixture.allocate(&alice).ip().to_string(), LOCAL);
}

#[test]
fn lifetimes_are_clamped() {
    for (asked, granted) in [
        (None, 600),
        (Some(0), 600),
        (Some(1), 600),
        (Some(601), 601),
        (Some(3601), 3600),
        (Some(u32::MAX), 3600),
    ] {
        let mut fixture = Fixture::new();
        let alice = User::alice();
        let reply = fixture.ask(&alice, Method::Allocate, |writer| {
            writer.requested_transport(17);
            if let Some(seconds) = asked {
                writer.lifetime(seconds);
            }
        });
        assert_eq!(reply.lifetime(), Some(granted), "{asked:?}");
        let refreshed = fixture.refresh(&alice, asked).lifetime();
        assert_eq!(refreshed, if asked == Some(0) { Some(0) } else { Some(granted) }, "{asked:?}");
    }
}

#[test]
fn an_allocate_sent_again_gets_the_same_bytes_and_another_one_437() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let transaction = TransactionId([0xaa; 12]);
    let nonce = fixture.nonce(&alice);
    let asked = request(&alice, Method::Allocate, transaction, &nonce, |writer| {
        writer.requested_transport(17).even_port(true);
    });
    let FromClient::OpenRelay { allocation, .. } = fixture.handle(&alice.client, &asked) else {
        panic!("no open")
    };
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Consumed, "the answer is on its way");
    fixture.server.handle_relay_opened(allocation, Ok(()), fixture.now);
    let first = fixture.server.reply().to_vec();
    fixture.wait(39);
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    assert_eq!(fixture.server.reply(), first);
    fixture.wait(1);
    assert_eq!(fixture.handle(&alice.client, &asked), FromClient::Reply);
    assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(437));
    let other = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    assert_eq!(other.code(), Some(437));
    assert_eq!(fixture.server.allocations(), 1);
}

#[test]
fn the_reserved_port_goes_to_whoever_shows_the_token() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let reply = fixture.ask(&alice, Method::Allocate, |writer| {
        writer.requested_transport(17).even_port(true);
    });
    let first = reply.message().xor_relayed_address().unwrap().unwrap();
    let token = reply.message().reservation_token().unwrap().unwrap();
    assert_eq!(first.port() % 2, 0);
    let second = alice.at("192.0.2.1:1001");
    let reply = fixture.ask(&second, Method::Allocate, |writer| {
        writer.requested_transport(17).reservation_token(token);
    });
    assert_eq!(reply.message().xor_relayed_address().unwrap().unwrap().port(), first.port() + 1);
    assert_eq!(reply.message().reservation_token(), Ok(None));
    let third = alice.at("192.0.2.1:1002");
    let reply = fixture.ask(&third, Method::Allocate, |writer| {
        writer.requested_transport(17).reservation_token(token);
    });
    assert_eq!(reply.code(), Some(508), "a token is good once");
}

#[test]
fn quotas_hold_and_come_back() {
    let mut settings = settings();
    settings.allocations_per_user_max = 2;
    settings.allocations_max = 3;
    let mut fixture = Fixture::with(settings);
    let (alice, bob) = (User::alice(), User::bob());
    let code = |fixture: &mut Fixture, user: &User| {
        fixture
            .ask(user, Method::Allocate, |writer| {
                writer.requested_transport(17);
            })
            .code()
    };
    assert_eq!(code(&mut fixture, &alice.at("192.0.2.1:1")), None);
    assert_eq!(code(&mut fixture, &alice.at("192.0.2.1:2")), None);
    assert_eq!(code(&mut fixture, &alice.at("192.0.2.1:3")), Some(486));
    assert_eq!(code(&mut fixture, &bob.at("192.0.2.1:4")), None);
    assert_eq!(code(&mut fixture, &bob.at("192.0.2.1:5")), Some(508));
    assert_eq!(fixture.refresh(&alice.at("192.0.2.1:1"), Some(0)).code(), None);
    let Some(Command::Close(id)) = fixture.server.poll_command() else { panic!("nothing to close") };
    // The user's quota is free at once, the place only when the socket is closed.
    assert_eq!(code(&mut fixture, &alice.at("192.0.2.1:3")), Some(508));
    fixture.server.handle_relay_closed(id);
    assert_eq!(code(&mut fixture, &alice.at("192.0.2.1:3")), None);
}

#[test]
fn a_port_that_others_hold_is_replaced_and_ports_do_not_leak() {
    for (even, ports) in
        [(None, 50_000..=50_003), (Some(false), 50_000..=50_003), (Some(true), 50_000..=50_003)]
    {
        let mut settings = settings();
        settings.relay_ports = ports;
        let mut fixture = Fixture::with(settings);
        let alice = User::alice();
        for round in 0..20 {
            let nonce = fixture.nonce(&alice);
            let asked = request(&alice, Method::Allocate, TransactionId([round; 12]), &nonce, |writer| {
                writer.requested_transport(17);
                if let Some(reserve) = even {
                    writer.even_port(reserve);
                }
            });
            let FromClient::OpenRelay { allocation, address } = fixture.handle(&alice.client, &asked) else {
                panic!("{even:?} round {round}: {:?}", Reply(fixture.server.reply().to_vec()).code())
            };
            let taken =
                fixture.server.handle_relay_opened(allocation, Err(OpenFailure::PortTaken), fixture.now);
            let Opened::Retry(other) = taken else { panic!("{taken:?}") };
            assert_ne!(other, address);
            assert!(even.is_none() || other.port().is_multiple_of(2));
            let failed = fixture.server.handle_relay_opened(allocation, Err(OpenFailure::Other), fixture.now);
            assert_eq!(failed, Opened::Reply { client: alice.client });
            assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(508));
            assert_eq!(fixture.server.allocations(), 0);
            let late = fixture.server.handle_relay_opened(allocation, Ok(()), fixture.now);
            assert_eq!(late, Opened::Gone);
        }
    }
}

#[test]
fn ports_taken_again_and_again_end_in_508() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let asked = request(&alice, Method::Allocate, TransactionId([1; 12]), &nonce, |writer| {
        writer.requested_transport(17);
    });
    let FromClient::OpenRelay { allocation, .. } = fixture.handle(&alice.client, &asked) else {
        panic!("no open")
    };
    let mut attempts = 1;
    while let Opened::Retry(_) =
        fixture.server.handle_relay_opened(allocation, Err(OpenFailure::PortTaken), fixture.now)
    {
        attempts += 1;
    }
    assert_eq!(attempts, 16);
    assert_eq!(Reply(fixture.server.reply().to_vec()).code(), Some(508));
}

#[test]
fn a_refresh_of_zero_deletes() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    assert_eq!(fixture.refresh(&alice, None).code(), Some(437));
    let relayed = fixture.allocate(&alice);
    let id = fixture.id(&alice);
    assert_eq!(fixture.refresh(&alice, Some(0)).lifetime(), Some(0));
    assert_eq!(fixture.server.poll_command(), Some(Command::Close(id)));
    assert_eq!(fixture.server.poll_command(), None);
    assert_eq!(fixture.refresh(&alice, Some(0)).code(), Some(437));
    // The index is not used again while the socket is open, so nothing can be mixed up.
    let again = fixture.allocate(&alice);
    assert_ne!(fixture.id(&alice), id);
    assert_ne!(again, relayed);
    fixture.server.handle_relay_closed(id);
    assert_eq!(fixture.server.allocations(), 1);
}

#[test]
fn another_users_credentials_do_not_reach_an_allocation() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let intruder = User { client: alice.client, ..User::bob() };
    assert_eq!(fixture.refresh(&intruder, Some(0)).code(), Some(441));
    assert_eq!(fixture.permit(&intruder, &["192.0.2.9:1"]), Some(441));
    assert_eq!(fixture.bind(&intruder, 0x4000, "192.0.2.9:1"), Some(441));
    let allocate = fixture.ask(&intruder, Method::Allocate, |writer| {
        writer.requested_transport(17);
    });
    assert_eq!(allocate.code(), Some(437));
    assert_eq!(fixture.pair(&alice).second, None);
}

#[test]
fn permissions_are_all_or_nothing() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), Some(437));
    fixture.allocate(&alice);
    assert_eq!(fixture.permit(&alice, &[]), Some(400));
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1", "10.0.0.1:1"]), Some(403));
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1", "[2001:db8::1]:1"]), Some(443));
    let many: Vec<String> = (1..=17).map(|last| format!("192.0.2.{last}:1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(fixture.permit(&alice, &many), Some(400));
    for bad in [&[0, 1, 0, 0, 0][..], &[0, 9, 0, 0, 1, 2, 3, 4]] {
        let reply = fixture.ask(&alice, Method::CreatePermission, |writer| {
            writer.xor_peer_address(address("192.0.2.9:1")).attribute(AttributeType::XOR_PEER_ADDRESS, bad);
        });
        assert_eq!(reply.code(), Some(400));
    }
    let indication = send("192.0.2.9:1", b"x");
    assert_eq!(fixture.handle(&alice.client, &indication), FromClient::Drop(Cause::NoPermission));
    assert_eq!(fixture.permit(&alice, &many[..16]), None);
    assert!(matches!(fixture.handle(&alice.client, &indication), FromClient::Forward { .. }));
}

#[test]
fn permissions_and_channels_are_capped_at_64() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    for last in 0..64 {
        assert_eq!(fixture.permit(&alice, &[&format!("192.0.2.{last}:1")]), None, "{last}");
    }
    assert_eq!(fixture.permit(&alice, &["192.0.2.64:1"]), Some(508));
    assert_eq!(fixture.permit(&alice, &["192.0.2.63:1"]), None, "a known one is refreshed");
    // New peers and answers to strangers have rates of their own.
    fixture.wait(11);
    for port in 0..64 {
        assert_eq!(fixture.bind(&alice, 0x4000 + port, &format!("192.0.2.1:{}", port + 1)), None, "{port}");
    }
    assert_eq!(fixture.bind(&alice, 0x4100, "192.0.2.1:1000"), Some(508));
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.1:1"), None, "a known one is refreshed");
    fixture.wait(300);
    assert_eq!(fixture.permit(&alice, &["192.0.2.64:1"]), None, "expired ones make room");
}

#[test]
fn channels_are_bound_by_the_rules() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:1"), Some(437));
    fixture.allocate(&alice);
    for number in [0, 0x3fff, 0x5000, 0x7fff, 0xffff] {
        assert_eq!(fixture.bind(&alice, number, "192.0.2.9:1"), Some(400), "{number:#x}");
    }
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:0"), Some(400));
    assert_eq!(fixture.bind(&alice, 0x4000, "10.0.0.1:1"), Some(403));
    assert_eq!(fixture.bind(&alice, 0x4000, "198.41.0.4:3478"), Some(403));
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:1"), None);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:1"), None);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:2"), Some(400));
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:1"), Some(400));
    assert_eq!(fixture.bind(&alice, 0x4fff, "192.0.2.9:2"), None);
    let missing = fixture.ask(&alice, Method::ChannelBind, |writer| {
        writer.xor_peer_address(address("192.0.2.9:1"));
    });
    assert_eq!(missing.code(), Some(400));
    let missing = fixture.ask(&alice, Method::ChannelBind, |writer| {
        writer.attribute(AttributeType::CHANNEL_NUMBER, &[0x40, 0, 0, 0]);
    });
    assert_eq!(missing.code(), Some(400));
}

#[test]
fn clients_of_rfc_5766_may_bind_its_channels() {
    let mut settings = settings();
    settings.channel_numbers = ChannelNumbers::Rfc5766;
    let mut fixture = Fixture::with(settings);
    let alice = User::alice();
    fixture.allocate(&alice);
    for (number, expected) in
        [(0x3fff, Some(400)), (0x4000, None), (0x5000, None), (0x7fff, None), (0x8000, Some(400))]
    {
        let peer = format!("192.0.2.9:{}", number / 2);
        assert_eq!(fixture.bind(&alice, number, &peer), expected, "{number:#x}");
    }
    let out = channel_data(0x7fff, b"x");
    assert!(matches!(fixture.handle(&alice.client, &out), FromClient::Forward { .. }));
}

#[test]
fn a_channel_is_quiet_for_five_minutes_after_it_expired() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    fixture.refresh(&alice, Some(3600));
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:1"), None);
    fixture.wait(899);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:2"), Some(400));
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:1"), Some(400));
    fixture.wait(1);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:2"), None);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:1"), None);
    fixture.wait(700);
    assert_eq!(fixture.bind(&alice, 0x4001, "192.0.2.9:1"), None, "the same binding is revived at any time");
}

#[test]
fn external_addresses_are_shown_instead_of_local_ones() {
    let mut settings = settings();
    settings.external = vec![
        ExternalAddress { public: "8.8.4.4".parse().unwrap(), local: Some("10.9.9.9".parse().unwrap()) },
        ExternalAddress { public: "2600::8".parse().unwrap(), local: None },
        ExternalAddress { public: "8.8.8.8".parse().unwrap(), local: Some(LOCAL.parse().unwrap()) },
    ];
    let mut fixture = Fixture::with(settings);
    assert_eq!(fixture.allocate(&User::alice()).ip().to_string(), "8.8.8.8");
    let reply = fixture.ask(&User::bob(), Method::Allocate, |writer| {
        writer.requested_transport(17).requested_address_family(AddressFamily::V6);
    });
    assert_eq!(reply.message().xor_relayed_address().unwrap().unwrap().ip().to_string(), "2600::8");
}

#[test]
fn an_allocation_ends_on_time_and_the_timer_says_when() {
    let mut fixture = Fixture::new();
    let (alice, bob) = (User::alice(), User::bob());
    assert_eq!(fixture.server.poll_timeout(), None);
    fixture.allocate(&alice);
    let id = fixture.id(&alice);
    fixture.wait(10);
    fixture.allocate(&bob);
    let first = fixture.now + std::time::Duration::from_secs(590);
    assert_eq!(fixture.server.poll_timeout(), Some(first));
    fixture.wait(20);
    assert_eq!(fixture.refresh(&alice, None).lifetime(), Some(600));
    assert_eq!(fixture.server.poll_timeout(), Some(first + std::time::Duration::from_secs(10)));
    assert_eq!(fixture.refresh(&bob, Some(0)).code(), None);
    assert!(matches!(fixture.server.poll_command(), Some(Command::Close(_))));
    let end = first + std::time::Duration::from_secs(30);
    assert_eq!(fixture.server.poll_timeout(), Some(end));
    fixture.now = end - std::time::Duration::from_millis(1);
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.poll_command(), None);
    fixture.now = end;
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.poll_command(), Some(Command::Close(id)));
    assert_eq!(fixture.server.poll_timeout(), None);
}

#[test]
fn an_expired_allocation_is_in_nobodys_way_when_the_timer_is_late() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let id = fixture.id(&alice);
    fixture.wait(600);
    assert_eq!(fixture.refresh(&alice, None).code(), Some(437));
    fixture.allocate(&alice);
    assert_ne!(fixture.id(&alice), id);
    assert_eq!(fixture.server.poll_command(), Some(Command::Close(id)));
}
