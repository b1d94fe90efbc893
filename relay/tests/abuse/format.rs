//! T1 to T13 and T58: what is no message, or no request.

use std::net::{Ipv4Addr, SocketAddr};

use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId};

use super::Row;
use super::attacker::{bare, channel_data, fix_length, message, send};
use super::bench::Bench;
use super::harness::code;
use super::harness::stream::{StreamClient, connect};
use super::left_out::left_out;

pub const ROWS: &[Row] = &[
    (1, "silence", t1),
    (2, "silence", t2),
    (3, "silence", t3),
    (4, "silence", t4),
    (5, "silence; padding is ignored", t5),
    (6, "64 attributes are read, more are silence", t6),
    (7, "420 and the types after authentication; silence for indications", t7),
    (8, "the first one counts", t8),
    (9, "ignored", t9),
    (10, "silence", t10),
    (11, "silence", t11),
    (12, "400 of 28 bytes", t12),
    (13, "dropped, and no loop", t13),
    (58, "answered at every offset", t58),
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

/// An IPv4 packet with a UDP datagram, whatever its source.
fn datagram(source: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.0.octets());
    packet.extend(to.0.octets());
    packet.extend(source.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(((payload.len() + 8) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// The kernel may keep multicast and broadcast sources from a socket by itself, and replaces 0.0.0.0; that the server drops
/// them: `server::tests::abuse`.
fn t13(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    // Whoever says to be a multicast address in the message is not.
    for kind in [AttributeType::MAPPED_ADDRESS, AttributeType::XOR_MAPPED_ADDRESS] {
        let reply = attacker.exchange(&message(Class::Request, Method::Binding, TRANSACTION, |writer| {
            writer.address(kind, "224.0.0.1:1".parse().unwrap());
        }));
        let seen = Message::parse(&reply).unwrap().xor_mapped_address().unwrap().unwrap();
        assert_eq!(seen, attacker.socket.local_addr().unwrap());
    }
    const IPPROTO_RAW: i32 = 255;
    let raw = socket2::Socket::new(socket2::Domain::IPV4, 3.into(), Some(IPPROTO_RAW.into()));
    let Ok(raw) = raw else { return left_out("spoofed sources of T13: run as root (CAP_NET_RAW)") };
    let SocketAddr::V4(to) = bench.address() else { unreachable!("it listens on IPv4") };
    let counted = |status: &serde_json::Value| {
        let dropped = status["drops"]["malformed_outer"].as_u64().unwrap_or_default();
        (dropped, status["requests"]["binding"].as_u64().unwrap())
    };
    let before = counted(&bench.status());
    let sources = [
        (Ipv4Addr::LOCALHOST, 0),
        (Ipv4Addr::LOCALHOST, to.port()),
        ("224.0.0.1".parse().unwrap(), 5000),
        (Ipv4Addr::BROADCAST, 5000),
    ];
    const EACH: u64 = 20;
    for source in sources {
        for _ in 0..EACH {
            let packet = datagram(source, (*to.ip(), to.port()), &bare(Method::Binding));
            // Some are refused on the way out.
            let _ = raw.send_to(&packet, &SocketAddr::V4(to).into());
            bench.count(1);
        }
    }
    attacker.probe();
    let after = counted(&bench.status());
    assert!(after.0 - before.0 >= 2 * EACH, "port 0, and its own address: {before:?} {after:?}");
    assert!(after.0 - before.0 <= sources.len() as u64 * EACH, "{before:?} {after:?}");
    assert!(after.1 - before.1 <= 1, "none is looked at, but for the probe: {before:?} {after:?}");
}

/// Over a stream messages lie where others leave room, in steps of four, and come in pieces of any length. Where they lie in
/// memory a sender over UDP cannot choose: the parser reads bytes only, and `unsafe` is forbidden there.
fn t58(bench: &mut Bench) {
    for offset in 0..8 {
        let mut client = StreamClient::new(connect(bench.relay.tcp[0]));
        client.allocate();
        for cut in 1..20 {
            let before = channel_data(0x4001, &vec![7; offset * 4]);
            let request = bare(Method::Binding);
            client.send(&[&before[..], &request[..cut]].concat());
            client.send(&request[cut..]);
            assert_eq!(code(&client.receive().unwrap()), None, "{offset} {cut}");
            bench.count(1);
        }
    }
    let (mut attacker, peer, _) = bench.bound();
    for offset in 0..64_usize {
        let payload: Vec<u8> = (0..offset as u8).chain(bare(Method::Binding)).collect();
        for datagram in [channel_data(0x4001, &payload), send(peer.local_addr().unwrap(), &payload)] {
            attacker.send(&datagram);
            bench.forwarded += 1;
            assert_eq!(super::harness::receive(&peer).0, payload);
        }
    }
    attacker.probe();
    attacker.leave();
}
