//! T43 to T51: channels, ChannelData, and what peers send.

use std::net::{Ipv4Addr, SocketAddr};

use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId};

use super::Row;
use super::attacker::{Attacker, bare, channel_data, claimed, message, send};
use super::bench::Bench;
use super::harness::{UdpSocket, code, receive, socket_on};

pub const ROWS: &[Row] = &[
    (43, 257, "400", t43),
    (44, 153, "400", t44),
    (45, 465, "forwarded by its length, or dropped", t45),
    (46, 732, "silence, and nothing leaves", t46),
    (47, 300, "dropped when the allocation has gone", t47),
    (48, 303, "dropped without a permission; an indication for another port", t48),
    (49, 83, "whole or not at all", t49),
    (50, 243, "forwarded as it is", t50),
    (51, 193, "dropped; DONT-FRAGMENT is honoured", t51),
];

/// What a peer gets next is this.
fn arrives(bench: &mut Bench, peer: &UdpSocket, payload: &[u8]) {
    bench.forwarded += 1;
    assert_eq!(receive(peer).0, payload);
}

/// Nothing has come to a peer: what is sent now is next.
fn nothing_arrived(bench: &mut Bench, attacker: &Attacker, peer: &UdpSocket) {
    attacker.socket.send(&channel_data(0x4001, b"next")).unwrap();
    arrives(bench, peer, b"next");
}

fn t43(bench: &mut Bench) {
    let (mut attacker, peer, _) = bench.bound();
    let edges = [0, 1, 0x3fff, 0x5000, 0x5001, 0x7fff, 0x8000, 0xffff];
    let between = (0..=u16::MAX).step_by(257).filter(|number| !(0x4000..0x5000).contains(number));
    for number in edges.into_iter().chain(between) {
        assert_eq!(attacker.bind(number, "127.0.0.2:5000".parse().unwrap()), Some(400), "{number:#x}");
    }
    for len in [0, 1, 2, 3, 5, 8] {
        let reply = attacker.ask(Method::ChannelBind, |writer| {
            writer.attribute(AttributeType::CHANNEL_NUMBER, &[0x40; 8][..len]);
            writer.xor_peer_address(peer.local_addr().unwrap());
        });
        assert_eq!(code(&reply), Some(400), "{len} bytes");
    }
    attacker.leave();
}

/// Until fifteen minutes are over: `server::tests::catalogue`.
fn t44(bench: &mut Bench) {
    let (mut attacker, peer, _) = bench.bound();
    let peer_address = peer.local_addr().unwrap();
    for number in 0..50 {
        assert_eq!(attacker.bind(0x4001, SocketAddr::new(peer_address.ip(), 5000 + number)), Some(400));
        assert_eq!(attacker.bind(0x4002 + number, peer_address), Some(400));
        assert_eq!(attacker.bind(0x4001, peer_address), None, "as it was it may be refreshed");
    }
    nothing_arrived(bench, &attacker, &peer);
    attacker.leave();
}

fn t45(bench: &mut Bench) {
    let (mut attacker, peer, _) = bench.bound();
    for payload in 0..=16_usize {
        let bytes: Vec<u8> = (1..=payload as u8).collect();
        for len in (0..=20).chain([255, 256, 4096, 0x7fff, 0xfffe, 0xffff]) {
            attacker.send(&claimed(0x4001, len, &bytes));
            // What is dropped leaves nothing between this payload and the next one that is not.
            if let Some(claimed) = bytes.get(..len.into()) {
                arrives(bench, &peer, claimed);
            }
        }
    }
    for short in 1..4 {
        attacker.silent(&channel_data(0x4001, b"")[..short]);
    }
    nothing_arrived(bench, &attacker, &peer);
    attacker.leave();
}

fn t46(bench: &mut Bench) {
    let (mut attacker, peer, _) = bench.bound();
    for number in (0x4000..0x8000_u16).step_by(31).filter(|&number| number != 0x4001) {
        attacker.silent(&channel_data(number, b"nobody bound it"));
    }
    for number in 0..200 {
        let mut stranger = bench.stranger_at(Ipv4Addr::new(127, 0, 0, 1 + number % 5).into());
        stranger.silent(&channel_data(0x4001, b"another 5-tuple"));
    }
    nothing_arrived(bench, &attacker, &peer);
    attacker.leave();
}

/// When permission and channel have run out, to the second: `server::tests::catalogue`. Here they go with the allocation.
fn t47(bench: &mut Bench) {
    for _ in 0..20 {
        let (mut attacker, peer, relayed) = bench.bound();
        nothing_arrived(bench, &attacker, &peer);
        assert_eq!(code(&attacker.refresh(0)), None);
        for _ in 0..5 {
            attacker.silent(&channel_data(0x4001, b"late"));
            attacker.silent(&send(peer.local_addr().unwrap(), b"late"));
        }
        // The socket may be gone or about to go; nothing comes to the client either way.
        peer.send_to(b"late", relayed).unwrap();
        bench.count(1);
        attacker.probe();
        attacker.leave();
    }
}

/// A Data indication from this peer.
fn indicated(attacker: &Attacker, peer: &UdpSocket, payload: &[u8]) {
    let (datagram, _) = receive(&attacker.socket);
    let message = Message::parse(&datagram).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
    assert_eq!(message.xor_peer_address(), Ok(Some(peer.local_addr().unwrap())));
    assert_eq!(message.data(), Some(payload));
}

fn t48(bench: &mut Bench) {
    let (attacker, peer, relayed) = bench.bound();
    for number in 0..100_u8 {
        let stranger = socket_on(Ipv4Addr::new(127, 0, 0, 3 + number % 20).into());
        stranger.send_to(b"no permission", relayed).unwrap();
        let beside = socket_on(peer.local_addr().unwrap().ip());
        beside.send_to(&[number], relayed).unwrap();
        indicated(&attacker, &beside, &[number]);
        peer.send_to(&[number], relayed).unwrap();
        assert_eq!(receive(&attacker.socket).0, channel_data(0x4001, &[number]));
        bench.count(3);
    }
    attacker.leave();
}

/// What is reassembled from fragments, which loopback never makes: `families.rs`.
fn t49(bench: &mut Bench) {
    let (attacker, peer, relayed) = bench.bound();
    let sizes = (0..64).chain([511, 1199, 1200, 1472, 1500, 2048, 4096, 9000, 16_000, 40_000]);
    for len in sizes.chain([65_000, 65_471, 65_503, 65_504, 65_506, 65_507]) {
        let payload: Vec<u8> = (0..len).map(|index| index as u8).collect();
        peer.send_to(&payload, relayed).unwrap();
        peer.send_to(b"marker", relayed).unwrap();
        bench.count(1);
        let marker = channel_data(0x4001, b"marker");
        let (next, _) = receive(&attacker.socket);
        if next == marker {
            // The header has to fit, and what a receive buffer does not hold is not forwarded in part.
            assert!(len > 1500, "{len} bytes of a peer are lost");
        } else {
            assert!(next == channel_data(0x4001, &payload), "{len} bytes of a peer became {}", next.len());
            assert_eq!(receive(&attacker.socket).0, marker);
        }
    }
    nothing_arrived(bench, &attacker, &peer);
    attacker.leave();
}

fn t50(bench: &mut Bench) {
    let (mut attacker, peer, relayed) = bench.bound();
    let peer_address = peer.local_addr().unwrap();
    let deletion = attacker.signed(Method::Refresh, |writer| {
        writer.lifetime(0);
    });
    let looks = [
        bare(Method::Binding),
        bare(Method::Allocate),
        deletion,
        channel_data(0x4001, b"inside"),
        send(peer_address, b"inside"),
        message(Class::Success, Method::Binding, TransactionId([9; 12]), |_| {}),
        vec![0; 20],
        vec![0x16, 0xfe, 0xfd],
    ];
    for payload in looks.iter().cycle().take(80) {
        peer.send_to(payload, relayed).unwrap();
        bench.count(1);
        assert_eq!(receive(&attacker.socket).0, channel_data(0x4001, payload));
        for datagram in [channel_data(0x4001, payload), send(peer_address, payload)] {
            attacker.send(&datagram);
            arrives(bench, &peer, payload);
        }
    }
    attacker.leave();
}

fn t51(bench: &mut Bench) {
    let (mut attacker, peer, _) = bench.bound();
    let peer_address = peer.local_addr().unwrap();
    let id = TransactionId([0x51; 12]);
    let indication = |fill: &dyn Fn(&mut dataplane::stun::Writer<'_>)| {
        message(Class::Indication, Method::Send, id, |writer| fill(writer))
    };
    let dropped = [
        indication(&|_| {}),
        indication(&|writer| {
            writer.xor_peer_address(peer_address);
        }),
        indication(&|writer| {
            writer.xor_peer_address(peer_address).dont_fragment();
        }),
        indication(&|writer| {
            writer.data(b"x").dont_fragment();
        }),
        indication(&|writer| {
            writer.attribute(AttributeType::XOR_PEER_ADDRESS, &[0, 1, 2]).data(b"x");
        }),
        send("127.1.0.9:5000".parse().unwrap(), b"x"),
        send("10.0.0.1:5000".parse().unwrap(), b"x"),
        send("[2606::1]:5000".parse().unwrap(), b"x"),
        send(bench.address(), b"x"),
    ];
    for datagram in dropped.iter().cycle().take(90) {
        attacker.silent(datagram);
    }
    for len in 0..100 {
        let payload = vec![b'd'; len];
        attacker.send(&indication(&|writer| {
            writer.xor_peer_address(peer_address).data(&payload).dont_fragment();
        }));
        arrives(bench, &peer, &payload);
    }
    attacker.leave();
}
