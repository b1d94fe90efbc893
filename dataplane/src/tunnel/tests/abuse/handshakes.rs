//! Handshakes in number, repeated, under load: W3 to W8 and W26.

use super::*;
use crate::tunnel::tests::forge::{self, Initiation};

pub(super) const ROWS: &[Row] = &[
    (3, 50_000, "cookies beyond a tenth of the time; who comes gets in at once", spoofed_flood),
    (4, 5_000, "20 a second after a burst of 5, for each of two reasons", flood_with_a_cookie),
    (5, 1_254, "another cookie is sent: it is bound to address and port", cookie_from_elsewhere),
    (6, 5, "the old cookie is dead", old_cookie),
    (7, 15, "dropped, path unchanged", repeated_initiation),
    (8, 100, "one each 20 ms is taken", many_initiations),
    (26, 37, "refused, and no handshake is sent", low_order),
];

/// An initiation that has mac1 right and is nobody's.
fn stranger() -> Vec<u8> {
    Initiation::new(9, 2, (1, 0)).bytes
}

fn spoofed_flood(bench: &mut Bench) {
    let noise = stranger();
    let (start, before) = (bench.pair.now, picture(&bench.pair.b));
    let mut costly = 0;
    for number in 0..50_000_u32 {
        bench.pair.now = start + Duration::from_micros(20) * number;
        let from = format!("10.{}.{}.{}:5", number >> 16, number >> 8 & 255, number & 255);
        costly += u32::from(bench.costs(&noise, &from));
    }
    // 20 ms were saved up.
    assert!((1_190..=1_201).contains(&costly), "{costly} looked at in one second");
    assert_eq!(picture(&bench.pair.b), before);
    // Who is there already notices nothing; who comes needs a cookie, and is in as soon as it has it.
    let inner = packet(A_INSIDE, B_INSIDE, b"hello");
    assert_eq!(bench.pair.exchange(), [inner]);
    // The second time it has a cookie; the third time that is of a period that is over, and another is got.
    for after in [113, 119, 125] {
        let now = start + after * SECOND;
        bench.pair.now = now;
        bench.make_busy(&noise);
        bench.pair.a.start_handshake(PEER, now);
        bench.pair.settle();
        assert!(!bench.pair.a.peers[PEER].timers.handshake_in_progress(), "after {after} s");
        let session = bench.pair.a.peers[PEER].noise.usable(now);
        assert!(session.is_some_and(|session| session.age.is_zero()), "after {after} s");
    }
}

/// A stranger's initiation with the cookie that `b` has given to `from` while it was busy.
fn with_cookie(bench: &mut Bench, from: &str) -> Vec<u8> {
    let now = bench.pair.now;
    let mut client = tunnel(9, vec![peer(2, &["10.0.0.2/32"], Some(B_OUTSIDE))], now);
    client.start_handshake(PEER, now);
    let first = client.poll_transmit().expect("an initiation");
    bench.make_busy(&stranger());
    assert_eq!(open(&mut bench.pair.b, first.bytes(), from, now), Ok(None));
    let reply = forge::cookie_reply(&mut bench.pair.b).expect("a cookie");
    assert_eq!(open(&mut client, &reply, B_OUTSIDE, now), Ok(None));
    let later = now + 6 * SECOND;
    client.start_handshake(PEER, later);
    client.poll_transmit().expect("an initiation").bytes().to_vec()
}

fn flood_with_a_cookie(bench: &mut Bench) {
    let proved = with_cookie(bench, STRANGER);
    let (start, before) = (bench.pair.now, picture(&bench.pair.b));
    let mut costly = 0;
    for number in 0..5_000 {
        bench.pair.now = start + Duration::from_micros(200) * number;
        costly += u32::from(bench.costs(&proved, STRANGER));
    }
    // What the address may send without a cookie comes on top.
    assert!((25..=51).contains(&costly), "{costly}");
    assert_eq!(picture(&bench.pair.b), before);
}

fn cookie_from_elsewhere(bench: &mut Bench) {
    let proved = with_cookie(bench, STRANGER);
    bench.make_busy(&stranger());
    for port in 10..1_010 {
        assert!(!bench.costs(&proved, &format!("203.0.113.9:{port}")), "port {port}");
    }
    for host in (0..=255).filter(|host| *host != 9 && *host != 200) {
        assert!(!bench.costs(&proved, &format!("203.0.113.{host}:9")), "host {host}");
    }
    assert!(bench.costs(&proved, STRANGER), "from where it was given to");
    bench.inputs -= 1;
}

fn old_cookie(bench: &mut Bench) {
    let start = bench.pair.now;
    let proved = with_cookie(bench, STRANGER);
    for (seconds, good) in [(119, true), (120, false), (240, false), (86_400 * 3_650, false), (60, true)] {
        bench.pair.now = start + seconds * SECOND;
        bench.make_busy(&stranger());
        // The address has its own rate without cookies, which is used up first.
        for _ in 0..5 {
            let _ = open(&mut bench.pair.b, &stranger(), STRANGER, bench.pair.now);
            while bench.pair.b.poll_transmit().is_some() {}
        }
        assert_eq!(bench.costs(&proved, STRANGER), good, "after {seconds} s");
    }
    bench.pair.now = start + 86_400 * 3_650 * SECOND;
}

fn repeated_initiation(bench: &mut Bench) {
    let third = bench.know_third();
    bench.pair.now += SECOND;
    let first = Initiation::new(3, 2, (1 << 40, 500));
    assert_eq!(open(&mut bench.pair.b, &first.bytes, THIRD.1, bench.pair.now), Ok(None));
    bench.pair.b.poll_transmit().expect("an answer");
    bench.refused(&first.bytes, STRANGER, Cause::RateLimited);
    for stamp in [(1 << 40, 500), (1 << 40, 499), (1 << 40, 0), ((1 << 40) - 1, 999_999_999), (0, 0), (1, 1)]
    {
        bench.pair.now += SECOND;
        bench.refused(&Initiation::new(3, 2, stamp).bytes, STRANGER, Cause::Replay);
        bench.pair.now += SECOND;
        bench.refused(&first.bytes, STRANGER, Cause::Replay);
    }
    // b gives up, the sessions end, and everything made for them is let go; what was heard is not.
    for _ in 0..400 {
        bench.pair.now += SECOND;
        bench.pair.b.handle_timeout(bench.pair.now);
        while bench.pair.b.poll_transmit().is_some() {}
    }
    assert!(!bench.pair.b.peers[third].noise.has_state());
    bench.refused(&first.bytes, STRANGER, Cause::Replay);
    bench.pair.now += SECOND;
    bench.refused(&Initiation::new(3, 2, (1 << 40, 499)).bytes, STRANGER, Cause::Replay);
    // A later one is believed.
    bench.pair.now += SECOND;
    let later = Initiation::new(3, 2, (1 << 40, 501));
    assert_eq!(open(&mut bench.pair.b, &later.bytes, THIRD.1, bench.pair.now), Ok(None));
    bench.pair.b.poll_transmit().expect("an answer");
}

fn many_initiations(bench: &mut Bench) {
    bench.know_third();
    bench.pair.now += SECOND;
    let mut taken = 0;
    for number in 0..100 {
        bench.pair.now += Duration::from_millis(1);
        let initiation = Initiation::new(3, 2, (1 << 40, number)).bytes;
        // From one address the limit is lower yet.
        let from = format!("198.51.100.{number}:1");
        let before = picture(&bench.pair.b);
        bench.inputs += 1;
        match open(&mut bench.pair.b, &initiation, &from, bench.pair.now) {
            Ok(None) => {
                assert_eq!(bench.pair.b.poll_transmit().map(|answer| answer.bytes().len()), Some(92));
                taken += 1;
            }
            refused => {
                assert_eq!(refused, Err(Cause::RateLimited));
                assert_eq!(picture(&bench.pair.b), before);
            }
        }
    }
    assert_eq!(taken, 5);
}

fn low_order(bench: &mut Bench) {
    let points: Vec<[u8; 32]> = low_order_points();
    for point in &points {
        bench.pair.now += SECOND;
        // As the ephemeral key of a handshake …
        let mut initiation = Initiation::new(1, 2, (1 << 40, 0)).bytes;
        initiation[8..40].copy_from_slice(point);
        forge::set_mac1(&mut initiation, 2);
        bench.refused(&initiation, STRANGER, Cause::BadTag);
        // … and as a peer's, for whoever can configure one.
        let now = bench.pair.now;
        let config =
            PeerConfig { public_key: PublicKey(*point), ..peer(5, &["10.6.0.0/16"], Some(STRANGER)) };
        let index = bench.pair.b.add_peer(&config, now);
        bench.pair.b.stage(index, &packet(B_INSIDE, "10.6.0.1", b"x"), now);
        assert!(bench.pair.b.poll_transmit().is_none(), "no handshake");
        assert!(bench.pair.b.remove_peer(index));
        bench.inputs += 1;
    }
    // In a file they are refused: tests/config_files.rs.
    assert_eq!(points.len(), 14);
    for byte in 0..9 {
        // What is no such point, and nobody's: tried, and refused as any other.
        bench.pair.now += SECOND;
        let mut initiation = Initiation::new(1, 2, (1 << 40, 0)).bytes;
        initiation[8 + byte] ^= 1;
        forge::set_mac1(&mut initiation, 2);
        bench.refused(&initiation, STRANGER, Cause::BadTag);
    }
}

/// The seven points of small order, with the ignored top bit as it should be and set.
fn low_order_points() -> Vec<[u8; 32]> {
    let texts = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let decode = |text: &str| -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).expect("hexadecimal"))
    };
    let with_top_bit = |mut point: [u8; 32]| {
        point[31] |= 0x80;
        point
    };
    texts.into_iter().map(decode).flat_map(|point| [point, with_top_bit(point)]).collect()
}
