//! T1 to T12, T58 and T59: what is no message, no request, or nothing that this relay has.

use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId};

use super::Row;
use super::attacker::{HOME, bare, channel_data, fix_length, message, send, transport};
use super::bench::Bench;
use super::harness::{code, receive};

pub const ROWS: &[Row] = &[
    (1, 140, "silence", t1),
    (2, 85, "silence", t2),
    (3, 64, "silence", t3),
    (4, 35, "silence", t4),
    (5, 320, "silence; padding is ignored", t5),
    (6, 16, "64 attributes are read, more are silence", t6),
    (7, 204, "420 and the types after authentication; silence for indications", t7),
    (8, 58, "the first one counts", t8),
    (9, 103, "ignored", t9),
    (10, 42, "silence", t10),
    (11, 108, "silence", t11),
    (12, 352, "400 of 28 bytes", t12),
    (58, 131, "answered at every offset", t58),
    (59, 90, "420, 400 or 442", t59),
];

const TRANSACTION: TransactionId = TransactionId([0x31; 12]);

fn t1(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    for len in 0..20 {
        for byte in [0, 1, 0x16, 0x40, 0x80, 0xff] {
            attacker.silent(&vec![byte; len]);
        }
        attacker.silent(&bare(Method::Binding)[..len]);
    }
}

fn t2(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let whole = message(Class::Request, Method::Binding, TRANSACTION, |writer| {
        writer.attribute(AttributeType::SOFTWARE, b"12345678");
    });
    let right = whole.len() - 20;
    for len in (0..64).chain([255, 256, 4096, 0x7fff, 0xfffc, 0xffff]).filter(|&len| len != right) {
        let mut wrong = whole.clone();
        wrong[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        attacker.silent(&wrong);
    }
    for trailing in 1..=16 {
        attacker.silent(&[&whole[..], &vec![0; trailing]].concat());
    }
}

fn t3(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    for first in (0x40..=0xff_u8).step_by(3) {
        let mut wrong = bare(Method::Binding);
        wrong[0] = first;
        attacker.silent(&wrong);
    }
}

fn t4(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    for bit in 0..32 {
        let mut wrong = bare(Method::Binding);
        wrong[4 + bit / 8] ^= 1 << (bit % 8);
        attacker.silent(&wrong);
    }
    for cookie in [[0; 4], [0xff; 4], *b"RFC!"] {
        let mut wrong = bare(Method::Allocate);
        wrong[4..8].copy_from_slice(&cookie);
        attacker.silent(&wrong);
    }
}

fn t5(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let whole = message(Class::Request, Method::Binding, TRANSACTION, |writer| {
        writer.attribute(AttributeType::SOFTWARE, b"12345");
    });
    for len in (9..=64).chain([0x7fff, 0xfff0, 0xfffc, 0xfffd, 0xfffe, 0xffff]) {
        let mut wrong = whole.clone();
        wrong[22..24].copy_from_slice(&(len as u16).to_be_bytes());
        attacker.silent(&wrong);
    }
    // Half a header of an attribute, and padding that is missing.
    for cut in [whole.len() - 4, 20 + 4 + 4] {
        let mut wrong = whole[..cut].to_vec();
        wrong[2..4].copy_from_slice(&((cut - 20) as u16).to_be_bytes());
        attacker.silent(&wrong);
    }
    for padding in 0..=255 {
        let mut odd = whole.clone();
        let end = odd.len();
        odd[end - 3..].fill(padding);
        assert_eq!(attacker.code(&odd), None);
    }
}

fn t6(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    for count in [1, 63, 64, 65, 66, 100, 1000, 16_000] {
        let mut many = bare(Method::Binding);
        for _ in 0..count {
            many.extend([0x80, 0x22, 0, 0]);
        }
        fix_length(&mut many);
        if count <= 64 {
            assert_eq!(attacker.code(&many), None);
        } else {
            attacker.silent(&many);
        }
    }
    // As long as a datagram can be: one attribute, and not one that has to be understood.
    let mut long = bare(Method::Binding);
    long.extend([0x80, 0x22]);
    long.extend(65_000_u16.to_be_bytes());
    long.resize(20 + 4 + 65_000, b'x');
    fix_length(&mut long);
    for _ in 0..8 {
        assert_eq!(attacker.code(&long), None);
    }
}

fn t7(bench: &mut Bench) {
    let (mut attacker, peer, _) = bench.bound();
    let unknown: Vec<u16> = (0x0030..0x0050).chain([0x7000, 0x7ffe, 0x7fff, 2, 3, 4, 5, 7]).collect();
    for kind in unknown {
        for method in [Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
            let reply = attacker.ask(method, |writer| {
                writer.attribute(AttributeType(kind), b"what");
            });
            let message = Message::parse(&reply).unwrap();
            assert_eq!(code(&reply), Some(420), "{kind:#x}");
            assert!(message.unknown_attributes().any(|listed| listed.0 == kind), "{kind:#x}");
        }
        let peer = peer.local_addr().unwrap();
        attacker.silent(&message(Class::Indication, Method::Send, TRANSACTION, |writer| {
            writer.xor_peer_address(peer).data(b"x").attribute(AttributeType(kind), b"what");
        }));
    }
    // Without credentials nothing is told but how to have them.
    let stranger = message(Class::Request, Method::Allocate, TRANSACTION, |writer| {
        writer.attribute(AttributeType(0x7fff), b"what");
    });
    assert_eq!(attacker.code(&stranger), Some(401));
    attacker.leave();
}

fn t8(bench: &mut Bench) {
    let (mut attacker, _peer, _) = bench.bound();
    for second in (0..50).chain([3600, u32::MAX]) {
        let reply = attacker.ask(Method::Refresh, |writer| {
            writer.lifetime(1200).lifetime(second);
        });
        assert_eq!(Message::parse(&reply).unwrap().lifetime(), Ok(Some(1200)));
    }
    for second in ["127.0.0.2:9000", "127.1.0.1:9000", "10.0.0.1:9000"] {
        let reply = attacker.ask(Method::ChannelBind, |writer| {
            writer.attribute(AttributeType::CHANNEL_NUMBER, &[0x40, 2, 0, 0]);
            writer.xor_peer_address("127.0.0.2:5000".parse().unwrap());
            writer.xor_peer_address(second.parse().unwrap());
        });
        assert_eq!(code(&reply), None, "bound to the first, again and again");
    }
    attacker.leave();
}

fn t9(bench: &mut Bench) {
    let (mut attacker, _peer, _) = bench.bound();
    for seconds in 0..50_u32 {
        let mut late = attacker.signed(Method::Refresh, |_| {});
        late.extend([0, 0x0d, 0, 4]);
        late.extend(seconds.to_be_bytes());
        fix_length(&mut late);
        let reply = attacker.exchange(&late);
        assert_eq!(Message::parse(&reply).unwrap().lifetime(), Ok(Some(600)));
    }
    for port in 0..50 {
        let mut late = attacker.signed(Method::CreatePermission, |_| {});
        late.extend([0, 0x12, 0, 8, 0, 1, 0x21, port, 0x5e, 0x12, 0xa4, 0x43]);
        fix_length(&mut late);
        assert_eq!(attacker.code(&late), Some(400), "a peer that nobody signed is none");
    }
    attacker.leave();
}

fn t10(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let mut buffer = [0; 100];
    let writer =
        dataplane::stun::Writer::new(&mut buffer, Class::Request, Method::Binding, TRANSACTION).unwrap();
    let len = writer.finish(None, true).unwrap();
    let good = buffer[..len].to_vec();
    assert_eq!(attacker.code(&good), None);
    for bit in 0..32 {
        let mut wrong = good.clone();
        wrong[len - 4 + bit / 8] ^= 1 << (bit % 8);
        attacker.silent(&wrong);
    }
    for len in [0_usize, 1, 3, 5, 8, 20] {
        let mut wrong = bare(Method::Binding);
        wrong.extend([0x80, 0x28, 0, len as u8]);
        wrong.resize(24 + len.next_multiple_of(4), 0);
        fix_length(&mut wrong);
        attacker.silent(&wrong);
    }
    for behind in [[0x80, 0x22, 0, 0], [0x80, 0x28, 0, 0], [0, 0x0d, 0, 0]] {
        let mut wrong = [&good[..], &behind].concat();
        fix_length(&mut wrong);
        attacker.silent(&wrong);
    }
}

fn t11(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let methods = (0..16).map(Method::from_number).chain([Method::Other(0x555), Method::Other(0xfff)]);
    for method in methods {
        for class in [Class::Success, Class::Error, Class::Indication] {
            attacker.silent(&message(class, method, TRANSACTION, |_| {}));
            attacker.silent(&message(class, method, TRANSACTION, |writer| {
                writer.error_code(dataplane::stun::ErrorCode(401), "").nonce(b"x").realm(b"y");
            }));
        }
    }
}

/// That they count in the reflection budget: `server::tests::strangers`.
fn t12(bench: &mut Bench) {
    let attacker = bench.attacker();
    for number in (0x00a..0x0ff).chain((0x100..0x1000).step_by(37)).chain([0xfff]) {
        let reply = attacker.exchange(&bare(Method::from_number(number)));
        assert_eq!((code(&reply), reply.len()), (Some(400), 28), "{number:#x}");
    }
    for method in [Method::Send, Method::Data] {
        assert_eq!(attacker.code(&bare(method)), Some(400));
    }
}

/// Over a stream, where they come in pieces: `wire`. Where they lie in memory a sender over UDP cannot choose: the parser reads
/// bytes only, and `unsafe` is forbidden there.
fn t58(bench: &mut Bench) {
    let (mut attacker, peer, _) = bench.bound();
    for offset in 0..64_usize {
        let payload: Vec<u8> = (0..offset as u8).chain(bare(Method::Binding)).collect();
        for datagram in [channel_data(0x4001, &payload), send(peer.local_addr().unwrap(), &payload)] {
            attacker.send(&datagram);
            bench.forwarded += 1;
            assert_eq!(receive(&peer).0, payload);
        }
    }
    attacker.probe();
    attacker.leave();
}

fn t59(bench: &mut Bench) {
    let (mut attacker, _peer, _) = bench.bound();
    // ACCESS-TOKEN of RFC 7635, CONNECTION-ID of RFC 6062: both must be understood, and are not.
    for kind in [0x001b, 0x002a].map(AttributeType) {
        for method in [Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
            for len in [0, 1, 4, 8, 20, 255] {
                let reply = attacker.ask(method, |writer| {
                    writer.attribute(kind, &vec![7; len]);
                });
                assert_eq!(code(&reply), Some(420), "{kind:?}");
                let listed = Message::parse(&reply).unwrap().unknown_attributes().next();
                assert_eq!(listed, Some(kind));
            }
        }
    }
    // MOBILITY-TICKET and THIRD-PARTY-AUTHORIZATION may be ignored, and nothing comes of them.
    for kind in [0x8030, 0x802e].map(AttributeType) {
        for len in [0, 4, 20, 255] {
            let reply = attacker.ask(Method::Refresh, |writer| {
                writer.attribute(kind, &vec![7; len]).lifetime(600);
            });
            assert_eq!((code(&reply), Message::parse(&reply).unwrap().first(kind)), (None, None));
        }
    }
    for number in [0x00a, 0x00b, 0x00c] {
        let asked = attacker.signed(Method::from_number(number), transport);
        for _ in 0..10 {
            assert_eq!(attacker.code(&asked), Some(400), "Connect, ConnectionBind, ConnectionAttempt");
        }
    }
    let mut other = bench.attacker_at(HOME);
    let reply = other.ask(Method::Allocate, |writer| {
        writer.requested_transport(6);
    });
    assert_eq!(code(&reply), Some(442));
    attacker.leave();
}
