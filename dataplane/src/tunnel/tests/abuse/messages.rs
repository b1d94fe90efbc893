//! Messages that are none, or not for whoever gets them: W1, W2, W9 to W13 and W31.

use super::*;
use crate::tunnel::tests::forge::{self, Initiation, Session};
use crate::wire::wireguard::{self, COOKIE_REPLY, RESPONSE};

pub(super) const ROWS: &[Row] = &[
    (1, 51_552, "dropped before any cryptography", types_and_lengths),
    (2, 10_500, "dropped, no reply, nothing taken from the handshakes' rate", wrong_mac1),
    (9, 260, "dropped", responses),
    (10, 1_282, "no path follows it; one is answered by one initiation", cookie_replies),
    (11, 2_006, "dropped, no reply", indices),
    (12, 9_002, "dropped, no panic", lengths),
    (13, 640, "dropped, window and path unchanged", flipped_bits),
    (31, 12_000, "replays are told before decryption, and nobody else notices", garbage_from_a_peer),
];

/// Valid messages of each kind, of which `b` has taken none.
fn of_each_kind(bench: &mut Bench) -> [Vec<u8>; 4] {
    let mut response = vec![0x5a; RESPONSE];
    response[..4].copy_from_slice(&[2, 0, 0, 0]);
    let mut cookie = vec![0x5a; COOKIE_REPLY];
    cookie[..4].copy_from_slice(&[3, 0, 0, 0]);
    [Initiation::new(1, 2, (1 << 40, 0)).bytes, response, cookie, bench.pair.seal_at_a(b"data")]
}

fn types_and_lengths(bench: &mut Bench) {
    let left = bench.pair.b.limiter.left();
    for kind in 0..=255_u8 {
        for len in 0..=200 {
            let mut datagram = vec![0xa5; len];
            for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
                *byte = value;
            }
            let cause = match (kind, len) {
                (1, 148) => Cause::BadTag,
                (2, 92) | (3, 64) | (4, 32..) => Cause::UnknownIndex,
                _ => Cause::MalformedOuter,
            };
            bench.refused(&datagram, STRANGER, cause);
        }
    }
    for message in of_each_kind(bench) {
        for bit in 8..32 {
            let mut reserved = message.clone();
            reserved[bit / 8] ^= 1 << (bit % 8);
            bench.refused(&reserved, A_OUTSIDE, Cause::MalformedOuter);
        }
    }
    assert_eq!(bench.pair.b.limiter.left(), left);
}

fn wrong_mac1(bench: &mut Bench) {
    let left = bench.pair.b.limiter.left();
    let initiation = Initiation::new(1, 2, (1 << 40, 0)).bytes;
    // A response that b waits for.
    bench.pair.now += 6 * SECOND;
    let now = bench.pair.now;
    bench.pair.b.start_handshake(PEER, now);
    let own = bench.pair.b.poll_transmit().expect("an initiation");
    assert_eq!(open(&mut bench.pair.a, own.bytes(), B_OUTSIDE, now), Ok(None));
    let response = bench.pair.a.poll_transmit().expect("a response").bytes().to_vec();
    for message in [&initiation, &response] {
        let mac1_at = message.len() - 32;
        for bit in mac1_at * 8..(mac1_at + 16) * 8 {
            let mut wrong = message.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            bench.refused(&wrong, A_OUTSIDE, Cause::BadTag);
        }
    }
    for byte in 8..116 {
        let mut wrong = initiation.clone();
        wrong[byte] ^= 0x10;
        bench.refused(&wrong, A_OUTSIDE, Cause::BadTag);
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
    for number in 0..10_136 {
        let mut wrong = initiation.clone();
        wrong[116..124].copy_from_slice(&rng.next_u64().to_le_bytes());
        let from = format!("10.{}.{}.{}:7", number >> 16, number >> 8 & 255, number & 255);
        bench.refused(&wrong, &from, Cause::BadTag);
    }
    assert_eq!(bench.pair.b.limiter.left(), left);
    assert_eq!(open(&mut bench.pair.b, &response, A_OUTSIDE, now), Ok(None), "the right one is taken");
    bench.pair.settle();
}

fn responses(bench: &mut Bench) {
    let index = bench.pair.seal_at_a(b"")[4..8].to_vec();
    let mut response = vec![0x5a; RESPONSE];
    response[..4].copy_from_slice(&[2, 0, 0, 0]);
    for number in 0..100_u8 {
        response[8..12].fill(number);
        forge::set_mac1(&mut response, 2);
        bench.refused(&response, STRANGER, Cause::UnknownIndex);
    }
    // The index of a session, not of a handshake. Each of these costs a token, so that time has to pass.
    response[8..12].copy_from_slice(&index);
    forge::set_mac1(&mut response, 2);
    for _ in 0..10 {
        bench.pair.now += SECOND;
        bench.refused(&response, STRANGER, Cause::UnknownIndex);
    }
    // One that is waited for, but of somebody else; then the right one; then that again.
    bench.pair.now += 6 * SECOND;
    let now = bench.pair.now;
    bench.pair.b.start_handshake(PEER, now);
    let own = bench.pair.b.poll_transmit().expect("an initiation");
    assert_eq!(open(&mut bench.pair.a, own.bytes(), B_OUTSIDE, now), Ok(None));
    let right = bench.pair.a.poll_transmit().expect("a response").bytes().to_vec();
    // Bytes 4 to 7 are the sender's own index, which only mac1 covers.
    for byte in 8..60 {
        let mut wrong = right.clone();
        wrong[byte] ^= 1;
        forge::set_mac1(&mut wrong, 2);
        bench.pair.now += SECOND / 10;
        let cause = bench.refused_somehow(&wrong, STRANGER);
        assert!(matches!(cause, Cause::UnknownIndex | Cause::BadTag), "byte {byte}: {cause:?}");
    }
    assert_eq!(open(&mut bench.pair.b, &right, A_OUTSIDE, bench.pair.now), Ok(None));
    bench.pair.settle();
    for _ in 0..98 {
        bench.pair.now += SECOND / 10;
        bench.refused(&right, STRANGER, Cause::UnknownIndex);
    }
}

fn cookie_replies(bench: &mut Bench) {
    let mut cookie = vec![0x5a; COOKIE_REPLY];
    cookie[..4].copy_from_slice(&[3, 0, 0, 0]);
    for number in 0..=255 {
        cookie[4..8].fill(number);
        bench.refused(&cookie, STRANGER, Cause::UnknownIndex);
    }
    // One that b has asked for, by a handshake while a was busy.
    let stranger = Initiation::new(9, 1, (1, 0)).bytes;
    let now = bench.pair.now + 6 * SECOND;
    bench.pair.now = now;
    make_busy(&mut bench.pair.a, &stranger, now);
    bench.pair.b.start_handshake(PEER, now);
    let own = bench.pair.b.poll_transmit().expect("an initiation");
    assert_eq!(open(&mut bench.pair.a, own.bytes(), B_OUTSIDE, now), Ok(None));
    let reply = forge::cookie_reply(&mut bench.pair.a).expect("a cookie");
    for bit in 64..64 * 8 {
        let mut wrong = reply.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let cause = bench.refused_somehow(&wrong, STRANGER);
        assert!(matches!(cause, Cause::BadTag | Cause::UnknownIndex), "bit {bit}: {cause:?}");
    }
    // It says nothing about where it comes from. The initiation is repeated to where the peer is, and the reply is used up.
    assert_eq!(open(&mut bench.pair.b, &reply, STRANGER, now), Ok(None));
    let repeated = bench.pair.b.poll_transmit().expect("an initiation");
    assert!(
        repeated.path == path(A_OUTSIDE)
            && repeated.bytes()[132..] != [0; 16]
            && own.bytes()[132..] == [0; 16]
    );
    bench.inputs += 1;
    for _ in 0..576 {
        bench.refused(&reply, STRANGER, Cause::UnknownIndex);
    }
    // Nor does another one make it leave again before its time: this answers the repetition, to another port.
    assert_eq!(open(&mut bench.pair.a, repeated.bytes(), STRANGER, now), Ok(None));
    let reply = forge::cookie_reply(&mut bench.pair.a).expect("a cookie");
    assert_eq!(open(&mut bench.pair.b, &reply, STRANGER, now), Ok(None));
    assert!(bench.pair.b.poll_transmit().is_none());
    bench.inputs += 1;
    bench.pair.now += 6 * SECOND;
    bench.pair.settle();
}

fn indices(bench: &mut Bench) {
    // A third end, so that there is somebody whose index is wrong.
    let now = bench.pair.now;
    bench.pair.b.add_peer(&peer(3, &["10.0.0.3/32"], None), now);
    let third = Session::new(3, 2, &mut bench.pair.b, "192.0.2.3:3", now);
    let own = third.seal(0, &packet("10.0.0.3", B_INSIDE, b"mine"));
    assert_eq!(
        open(&mut bench.pair.b, &own, "192.0.2.3:3", now),
        Ok(Some(packet("10.0.0.3", B_INSIDE, b"mine")))
    );
    let sealed = bench.pair.seal_at_a(b"first's");
    for _ in 0..3 {
        let mut swapped = sealed.clone();
        swapped[4..8].copy_from_slice(&third.receiver);
        bench.refused(&swapped, A_OUTSIDE, Cause::BadTag);
        let mut swapped = third.seal(7, &packet("10.0.0.3", B_INSIDE, b"third's"));
        swapped[4..8].copy_from_slice(&sealed[4..8]);
        bench.refused(&swapped, "192.0.2.3:3", Cause::BadTag);
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
    for _ in 0..2_000 {
        let mut unknown = sealed.clone();
        unknown[4..8].copy_from_slice(&rng.next_u32().to_le_bytes());
        bench.refused(&unknown, STRANGER, Cause::UnknownIndex);
    }
    assert!(bench.pair.at_b(&sealed).is_some());
}

fn lengths(bench: &mut Bench) {
    let sealed = bench.pair.seal_at_a(b"");
    let mut of = |len: usize, cause| {
        let mut datagram = sealed[..16].to_vec();
        datagram.resize(len, 0xa5);
        bench.refused(&datagram, STRANGER, cause);
    };
    of(31, Cause::MalformedOuter);
    for len in 32..9_031 {
        of(len, Cause::BadTag);
    }
    of(65_507, Cause::BadTag);
    of(70_000, Cause::Truncated);
}

fn flipped_bits(bench: &mut Bench) {
    let sealed = bench.pair.seal_at_a(&[5; 28]);
    assert_eq!(sealed.len(), 80);
    for bit in 0..sealed.len() * 8 {
        let mut forged = sealed.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let cause = bench.refused_somehow(&forged, STRANGER);
        let expected: &[Cause] = match bit / 8 {
            0..4 => &[Cause::MalformedOuter],
            4..8 => &[Cause::UnknownIndex],
            // A flipped counter may be one seen before, or beyond the limit.
            8..16 => &[Cause::BadTag, Cause::Replay, Cause::NoSession],
            _ => &[Cause::BadTag],
        };
        assert!(expected.contains(&cause), "bit {bit}: {cause:?}");
    }
    assert!(bench.pair.at_b(&sealed).is_some(), "the window did not move");
}

fn garbage_from_a_peer(bench: &mut Bench) {
    let seen = bench.pair.seal_at_a(b"seen");
    assert!(bench.pair.at_b(&seen).is_some());
    let mut garbage = seen.clone();
    for number in 0..12_000_u64 {
        if number % 6 == 5 {
            // A counter that could be.
            garbage[8..16].copy_from_slice(&(1_000 + number).to_le_bytes());
            bench.refused(&garbage, A_OUTSIDE, Cause::BadTag);
        } else {
            bench.refused(&seen, A_OUTSIDE, Cause::Replay);
        }
        if number % 600 == 0 {
            let sealed = bench.pair.seal_at_a(b"between");
            assert!(bench.pair.at_b(&sealed).is_some());
        }
    }
    assert!(wireguard::parse(&garbage).is_some());
}
