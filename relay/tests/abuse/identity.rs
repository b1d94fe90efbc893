//! T15 to T23: strangers, nonces and credentials.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane::stun::{
    AttributeType, Class, Integrity, Key, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

use super::Row;
use super::attacker::{Attacker, message, transport};
use super::bench::Bench;
use super::configuration::SECRET;
use super::harness::{REALM, code};

pub const ROWS: &[Row] = &[
    (15, 10000, "401, and at most 1 MiB for all", t15),
    (16, 300, "438 without state", t16),
    (17, 220, "438 with the nonce that is right", t17),
    (18, 123, "the same answer again; 437 for another Allocate", t18),
    (19, 202, "438", t19),
    (20, 418, "401 for each bit", t20),
    (21, 35, "400 or 401", t21),
    (22, 279, "401", t22),
    (23, 87, "401", t23),
];

/// Ten million: `spoofed.rs`. Here each has a socket, and there are no more than the kernel gives one machine in time.
fn t15(bench: &mut Bench) {
    const SOURCES: u32 = 10_000;
    let asked = message(Class::Request, Method::Allocate, TransactionId([0x15; 12]), transport);
    let before = bench.resident_kib();
    let mut nonces = BTreeSet::new();
    for number in 0..SOURCES {
        let from = Ipv4Addr::from_bits(0x7f10_0001 + number * 97);
        let stranger = bench.stranger_at(from.into());
        let reply = stranger.exchange(&asked);
        assert_eq!(code(&reply), Some(401));
        nonces.insert(Message::parse(&reply).unwrap().nonce().unwrap().to_vec());
    }
    assert_eq!(nonces.len(), SOURCES as usize, "each has a nonce of its own");
    let grown = bench.resident_kib().saturating_sub(before);
    assert!(grown <= 1024, "{grown} KiB for {SOURCES} sources");
}

fn t16(bench: &mut Bench) {
    for number in 0..300_u16 {
        let mut stranger =
            bench.stranger_at(Ipv4Addr::new(127, 20, (number >> 8) as u8, number as u8).into());
        stranger.nonce = b"obMatJos2wAAAAAAAAAAAAAA".to_vec();
        stranger.password = format!("guess {number}");
        let asked = stranger.signed(Method::Allocate, transport);
        assert_eq!(stranger.code(&asked), Some(438));
    }
}

/// One of the future, or of a relay that was restarted: `wire`.
fn t17(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let right = attacker.nonce.clone();
    let elsewhere = bench.attacker().nonce;
    let other_host = bench.attacker_at("127.0.0.7".parse().unwrap()).nonce;
    let mut wrong = vec![elsewhere, other_host, b"never issued".to_vec(), [&right[..], b"x"].concat()];
    wrong.extend((0..right.len()).map(|len| right[..len].to_vec()));
    wrong.extend((0..right.len() * 8).map(|bit| {
        let mut flipped = right.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    }));
    for nonce in wrong {
        attacker.nonce = nonce;
        let asked = attacker.signed(Method::Allocate, transport);
        let reply = attacker.exchange(&asked);
        assert_eq!(code(&reply), Some(438), "{:?}", attacker.nonce);
        assert_eq!(Message::parse(&reply).unwrap().nonce(), Some(&right[..]));
    }
}

/// That it is 437 after 40 seconds: `server::tests::auth`.
fn t18(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let asked = attacker.signed(Method::Allocate, transport);
    let first = attacker.exchange(&asked);
    assert_eq!(code(&first), None);
    for _ in 0..50 {
        assert_eq!(attacker.exchange(&asked), first, "the same bytes again");
        assert_eq!(attacker.try_allocate(|_| {}), Some(437));
    }
    let old = attacker.signed(Method::Refresh, |_| {});
    attacker.refresh(0);
    for _ in 0..20 {
        assert_eq!(attacker.code(&old), Some(437), "a Refresh brings nothing back");
    }
    attacker.leave();
}

fn t19(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let asked = attacker.signed(Method::Allocate, transport);
    for number in 0..200 {
        let other = bench.stranger_at(Ipv4Addr::new(127, 0, 0, 1 + number % 3).into());
        assert_eq!(other.code(&asked), Some(438));
    }
    assert_eq!(attacker.code(&asked), None, "where it belongs it is good");
    attacker.leave();
}

/// A request of RFC 8489, as negotiated or not quite.
fn negotiated(attacker: &mut Attacker, offer: Option<&[u8]>, chosen: Option<&[u8]>, keys: &[Key]) -> Vec<u8> {
    let transaction = attacker.transaction();
    let mut buffer = vec![0; 2000];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::Allocate, transaction).unwrap();
    writer.requested_transport(17).username(attacker.name.as_bytes()).realm(REALM.as_bytes());
    writer.nonce(&attacker.nonce);
    if let Some(offer) = offer {
        writer.attribute(AttributeType::PASSWORD_ALGORITHMS, offer);
    }
    if let Some(chosen) = chosen {
        writer.attribute(AttributeType::PASSWORD_ALGORITHM, chosen);
    }
    for key in keys {
        writer.integrity(key);
    }
    let len = writer.finish(None, false).unwrap();
    buffer.truncate(len);
    buffer
}

const BOTH: &[u8] = &[0, 2, 0, 0, 0, 1, 0, 0];
const MD5: &[u8] = &[0, 1, 0, 0];
const SHA256: &[u8] = &[0, 2, 0, 0];

/// That it takes no longer for some bits: comparison is that of `subtle`, and timing over a socket shows the socket.
fn t20(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let older = attacker.signed(Method::Allocate, transport);
    let key = attacker.newer_key(PasswordAlgorithm::Sha256).for_integrity(Integrity::Sha256);
    let newer = negotiated(&mut attacker, Some(BOTH), Some(SHA256), std::slice::from_ref(&key));
    for (good, bits) in [(&older, 160), (&newer, 256)] {
        for bit in 0..bits {
            let mut bad = good.clone();
            let index = bad.len() - bits / 8 + bit / 8;
            bad[index] ^= 1 << (bit % 8);
            assert_eq!(attacker.code(&bad), Some(401), "bit {bit} of {bits}");
        }
    }
    assert_eq!(attacker.code(&newer), None, "without a flipped bit it is good");
    attacker.leave();
}

fn t21(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let key =
        |attacker: &Attacker, algorithm, integrity| attacker.newer_key(algorithm).for_integrity(integrity);
    let weak = [Integrity::Sha1].map(|integrity| {
        [PasswordAlgorithm::Md5, PasswordAlgorithm::Sha256]
            .map(|algorithm| key(&attacker, algorithm, integrity))
    });
    for (chosen, key) in [MD5, SHA256].into_iter().zip(&weak[0]) {
        let asked = negotiated(&mut attacker, Some(BOTH), Some(chosen), std::slice::from_ref(key));
        assert_eq!(attacker.code(&asked), Some(401), "the older attribute after the newer offer");
    }
    let strong = key(&attacker, PasswordAlgorithm::Sha256, Integrity::Sha256);
    let offers: [Option<&[u8]>; 8] = [
        Some(MD5),
        Some(SHA256),
        Some(&[0, 1, 0, 0, 0, 2, 0, 0]),
        Some(&[0, 2, 0, 0, 0, 2, 0, 0]),
        Some(&[0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0]),
        Some(&[]),
        Some(&[0, 2]),
        None,
    ];
    let choices: [Option<&[u8]>; 4] = [Some(MD5), Some(SHA256), Some(&[0, 3, 0, 0]), Some(&[0, 2])];
    for offer in offers {
        for chosen in choices {
            let asked = negotiated(&mut attacker, offer, chosen, std::slice::from_ref(&strong));
            assert_eq!(attacker.code(&asked), Some(400), "{offer:?} {chosen:?}");
        }
    }
    let asked = negotiated(&mut attacker, Some(BOTH), None, std::slice::from_ref(&strong));
    assert_eq!(attacker.code(&asked), Some(400));
}

/// What the log has of such names: `wire`.
fn t22(bench: &mut Bench) {
    let mut attacker = bench.attacker();
    let mut names: Vec<Vec<u8>> = [
        "",
        "%s%n%x",
        "alice\0",
        "\0",
        "alice\n",
        "\ninjected ERROR",
        "\r\ninjected",
        "Alice",
        "alice ",
        " alice",
        "{}",
        "$(x)",
        "\u{1b}[2Jinjected",
        "alice:secret",
        "../alice",
        "*",
        "' OR 1=1 --",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.extend([b"\xff\xfe".to_vec(), b"\xc3\x28".to_vec(), vec![0xff; 513]]);
    names.extend([513, 514, 600, 763].map(|len| vec![b'a'; len]));
    names.extend((1..=255_u8).map(|byte| vec![b'a', byte]));
    for name in names {
        let transaction = attacker.transaction();
        let mut buffer = [0; 2000];
        let mut writer = Writer::new(&mut buffer, Class::Request, Method::Allocate, transaction).unwrap();
        writer.requested_transport(17).username(&name).realm(REALM.as_bytes()).nonce(&attacker.nonce);
        let len = writer.finish(Some(&attacker.key()), false).unwrap();
        assert_eq!(attacker.code(&buffer[..len]), Some(401), "{name:?}");
    }
}

/// The password of a time-limited name.
fn password(name: &str) -> String {
    use base64::Engine as _;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, SECRET.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(ring::hmac::sign(&key, name.as_bytes()))
}

fn t23(bench: &mut Bench) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    const DAY: u64 = 24 * 60 * 60;
    let mut names: Vec<String> =
        ["", "x", ":x", "-1:x", "+99:x", "0:x", "1e10:x", "0x7fffffff:x", " 9:x", "9 :x", "1.5:x"]
            .map(str::to_owned)
            .to_vec();
    names.extend([1, 2, 60, DAY, now].map(|ago| format!("{}:expired", now - ago)));
    names.extend([DAY + 3600, 2 * DAY, 365 * DAY].map(|ahead| format!("{}:late", now + ahead)));
    for power in 33..64 {
        names.push(format!("{}:x", 1_u64 << power));
        names.push(format!("-{}:x", 1_u64 << power));
    }
    names.extend([format!("{}:x", u64::MAX), format!("{}0:x", u64::MAX), "9".repeat(300), format!("-{now}")]);
    for name in names {
        let mut attacker = bench.attacker().with_user(&name, &password(&name));
        let asked = attacker.signed(Method::Allocate, transport);
        assert_eq!(attacker.code(&asked), Some(401), "{name}");
    }
    let name = format!("{}:good", now + 3600);
    let mut good = bench.attacker().with_user(&name, &password(&name));
    good.allocate();
    good.leave();
}
