//! T24 to T31: making, keeping and taking allocations.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dataplane::stun::{AddressFamily, AttributeType, Message, Method, Writer};

use super::Row;
use super::attacker::{Attacker, transport};
use super::bench::Bench;
use super::configuration::{ALICE, BOB, CAROL, IN_ALL, OF_SOURCE, OF_USER, WITNESSES};
use super::harness::{code, receive};

pub const ROWS: &[Row] = &[
    (24, 152, "437", t24),
    (25, 358, "486 by user, 486 by source, 508 in all; everything comes back", t25),
    (26, 601, "an even port each time, and no neighbour is lost", t26),
    (27, 98, "508 for what is not reserved, 400 for what does not go together", t27),
    (28, 256, "442", t28),
    (29, 125, "400 and 440 by the table", t29),
    (30, 109, "clamped to 600 to 3600 s; 0 deletes on Refresh alone", t30),
    (31, 403, "437 and 441", t31),
];

fn additional(writer: &mut Writer<'_>, family: u8) {
    writer.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[family, 0, 0, 0]);
}

fn t24(bench: &mut Bench) {
    let mut attacker = bench.allocated();
    for round in 0..50_u8 {
        assert_eq!(attacker.try_allocate(|_| {}), Some(437));
        assert_eq!(attacker.try_allocate(|writer| additional(writer, 2)), Some(437));
        let code = attacker.try_allocate(|writer| {
            match round % 4 {
                0 => writer.even_port(true),
                1 => writer.reservation_token([round; 8]),
                2 => writer.lifetime(0),
                _ => writer.requested_address_family(AddressFamily::V6),
            };
        });
        assert_eq!(code, Some(437), "round {round}");
    }
    attacker.leave();
}

fn t25(bench: &mut Bench) {
    let mut clients = Vec::new();
    let mut ask = |bench: &Bench, user: (&str, &str), from: u8, expected: Option<u16>| {
        let from = IpAddr::from(Ipv4Addr::new(127, 0, 0, from));
        let mut client = bench.attacker_at(from).with_user(user.0, user.1);
        assert_eq!(client.try_allocate(|_| {}), expected, "{user:?} from {from}, client {}", clients.len());
        if expected.is_none() {
            clients.push(client);
        }
    };
    (0..OF_USER).for_each(|_| ask(bench, ALICE, 1, None));
    (0..50).for_each(|_| ask(bench, ALICE, 1, Some(486)));
    // Neither does another address make another user.
    (0..10).for_each(|host| ask(bench, ALICE, 10 + host, Some(486)));
    // The witnesses are at this source, too.
    let of_source = OF_SOURCE - OF_USER - WITNESSES;
    (0..of_source).for_each(|_| ask(bench, BOB, 1, None));
    (0..50).for_each(|_| ask(bench, BOB, 1, Some(486)));
    (0..OF_USER - of_source).for_each(|_| ask(bench, BOB, 5, None));
    let rest = IN_ALL - WITNESSES - 2 * OF_USER;
    (0..rest).for_each(|_| ask(bench, CAROL, 6, None));
    (0..50).for_each(|_| ask(bench, CAROL, 6, Some(508)));
    // One goes, and one can come.
    clients.pop().unwrap().leave();
    let mut last = bench.attacker_at("127.0.0.7".parse().unwrap()).with_user(CAROL.0, CAROL.1);
    last.allocate();
    last.leave();
    clients.into_iter().for_each(Attacker::leave);
}

/// Twenty thousand times on a range of four ports: `server::tests::catalogue`.
fn t26(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    for round in 0..300 {
        let reply = attacker.ask(Method::Allocate, |writer| {
            writer.requested_transport(17).even_port(false);
        });
        assert_eq!(code(&reply), None, "round {round}");
        let relayed = Message::parse(&reply).unwrap().xor_relayed_address().unwrap().unwrap();
        assert!(relayed.port().is_multiple_of(2));
        assert_eq!(code(&attacker.refresh(0)), None);
    }
    attacker.leave();
}

/// That it ends after 30 seconds: `server::tests::catalogue`.
fn t27(bench: &mut Bench) {
    let mut owner = bench.attacker();
    let reply = owner.ask(Method::Allocate, |writer| {
        writer.requested_transport(17).even_port(true);
    });
    let message = Message::parse(&reply).unwrap();
    let token = message.reservation_token().unwrap().unwrap();
    let relayed: SocketAddr = message.xor_relayed_address().unwrap().unwrap();
    let mut attacker = bench.attacker().with_user(BOB.0, BOB.1);
    for bit in 0..64 {
        let mut guess = token;
        guess[bit / 8] ^= 1 << (bit % 8);
        let code = attacker.try_allocate(|writer| {
            writer.reservation_token(guess);
        });
        assert_eq!(code, Some(508), "bit {bit}");
    }
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
        let code = attacker.try_allocate(|writer| {
            writer.reservation_token(token);
            fill(writer);
        });
        assert_eq!(code, Some(400));
    }
    for len in [0, 4, 7, 9, 16] {
        let code = attacker.try_allocate(|writer| {
            writer.attribute(AttributeType::RESERVATION_TOKEN, &[7; 16][..len]);
        });
        assert_eq!(code, Some(400), "{len} bytes");
    }
    let with = |attacker: &mut Attacker| {
        attacker.ask(Method::Allocate, |writer| {
            writer.requested_transport(17).reservation_token(token);
        })
    };
    // None of that used it up; using it does.
    let reply = with(&mut attacker);
    let next = Message::parse(&reply).unwrap().xor_relayed_address().unwrap().unwrap();
    assert_eq!(next.port(), relayed.port() + 1);
    for _ in 0..20 {
        let mut late = bench.attacker();
        assert_eq!(code(&with(&mut late)), Some(508));
    }
    attacker.leave();
    owner.leave();
}

fn t28(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    for protocol in (0..=255).filter(|&protocol| protocol != 17) {
        let reply = attacker.ask(Method::Allocate, |writer| {
            writer.requested_transport(protocol);
        });
        assert_eq!(code(&reply), Some(442), "{protocol}");
    }
    assert_eq!(code(&attacker.ask(Method::Allocate, |_| {})), Some(400), "none at all");
}

fn t29(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let families = [None, Some(1), Some(2), Some(3)];
    for requested in families {
        for extra in families {
            for even_port in [None, Some(false), Some(true)] {
                for token in [None, Some([7; 8])] {
                    let case = (requested, extra, even_port, token);
                    let expected = match case {
                        (None, None, None, Some(_)) => Some(508),
                        (.., Some(_)) | (Some(_), Some(_), ..) | (_, Some(1), ..) => Some(400),
                        (_, Some(_), Some(true), _) => Some(400),
                        (Some(3), ..) => Some(440),
                        // RFC 8656 section 7.2 knows no other than IPv6 for it.
                        (..) => None,
                    };
                    let code = attacker.try_allocate(|writer| {
                        if let Some(family) = requested {
                            writer.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
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
                    assert_eq!(code, expected, "{case:?}");
                    if code.is_none() {
                        assert_eq!(self::code(&attacker.refresh(0)), None);
                    }
                }
            }
        }
    }
    for kind in [
        AttributeType::REQUESTED_ADDRESS_FAMILY,
        AttributeType::ADDITIONAL_ADDRESS_FAMILY,
        AttributeType::EVEN_PORT,
    ] {
        for len in [0, 2, 3, 5, 8] {
            let code = attacker.try_allocate(|writer| {
                writer.attribute(kind, &[2; 8][..len]);
            });
            assert_eq!(code, Some(400), "{kind:?} of {len} bytes");
        }
    }
    attacker.leave();
}

fn t30(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let asked = [0, 1, 599, 600, 601, 3599, 3600, 3601].into_iter();
    for seconds in asked.chain((5..32).map(|power| 1_u32 << power)).chain([u32::MAX]) {
        let reply = attacker.ask(Method::Allocate, |writer| {
            transport(writer);
            writer.lifetime(seconds);
        });
        let granted = Ok(Some(seconds.clamp(600, 3600)));
        assert_eq!(Message::parse(&reply).unwrap().lifetime(), granted, "{seconds}");
        let reply = attacker.refresh(seconds);
        let expected = if seconds == 0 { Ok(Some(0)) } else { granted };
        assert_eq!(Message::parse(&reply).unwrap().lifetime(), expected, "{seconds}");
        let gone = if seconds == 0 { Some(437) } else { None };
        assert_eq!(code(&attacker.refresh(0)), gone, "{seconds}");
    }
    attacker.leave();
}

fn t31(bench: &mut Bench) {
    let (mut owner, peer_socket, relayed) = bench.bound();
    let peer_address = peer_socket.local_addr().unwrap();
    for number in 0..50 {
        let mut other = bench.attacker_at(Ipv4Addr::new(127, 0, 0, 1 + number % 5).into());
        for seconds in [0, 600] {
            assert_eq!(code(&other.refresh(seconds)), Some(437));
        }
        assert_eq!(other.permit(peer_address), Some(437));
        assert_eq!(other.bind(0x4001, peer_address), Some(437));
    }
    let name = std::mem::replace(&mut owner.name, BOB.0.to_owned());
    let password = std::mem::replace(&mut owner.password, BOB.1.to_owned());
    for number in 0..50 {
        for seconds in [0, 600] {
            assert_eq!(code(&owner.refresh(seconds)), Some(441));
        }
        assert_eq!(owner.permit(peer_address), Some(441));
        assert_eq!(owner.bind(0x4002 + number, peer_address), Some(441));
    }
    (owner.name, owner.password) = (name, password);
    peer_socket.send_to(b"still", relayed).unwrap();
    let (datagram, _) = receive(&owner.socket);
    assert_eq!(datagram, super::attacker::channel_data(0x4001, b"still"));
    owner.leave();
}
