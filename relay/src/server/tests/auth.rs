//! Authentication: rows T16 to T23 of the abuse catalogue by their numbers, and RFC 8489 section 9.2.4 line by line.

use std::time::Duration;

use dataplane::stun::password::userhash;
use dataplane::stun::{
    AttributeType, Class, Integrity, LongTermKey, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

use super::super::auth::{NONCE_PERIOD, StaticKeys};
use super::super::*;
use super::fixture::*;

/// The offer of a server whose users all have both keys.
pub(super) const BOTH: &[u8] = &[0, 2, 0, 0, 0, 1, 0, 0];
/// Some time of day, in seconds since 1970.
pub(super) const TODAY: u64 = 1_700_000_000;
const DAY: u64 = 24 * 60 * 60;

/// A request that can be wrong in every way.
#[derive(Clone)]
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) username: Option<&'a [u8]>,
    pub(super) userhash: Option<&'a [u8]>,
    pub(super) realm: Option<&'a [u8]>,
    pub(super) nonce: Option<&'a [u8]>,
    pub(super) algorithms: Option<&'a [u8]>,
    pub(super) algorithm: Option<&'a [u8]>,
    /// The integrity attributes, in this order.
    pub(super) keys: Vec<(Integrity, LongTermKey)>,
}

impl<'a> Asked<'a> {
    /// As a client before RFC 8489.
    pub(super) fn plain(user: &'a User, nonce: &'a [u8]) -> Self {
        Self {
            method: Method::Refresh,
            username: Some(user.name.as_bytes()),
            userhash: None,
            realm: Some(REALM.as_bytes()),
            nonce: Some(nonce),
            algorithms: None,
            algorithm: None,
            keys: vec![(Integrity::Sha1, key(user, PasswordAlgorithm::Md5))],
        }
    }

    /// As a client of RFC 8489 that took the first algorithm.
    pub(super) fn negotiated(user: &'a User, nonce: &'a [u8]) -> Self {
        Self {
            algorithms: Some(BOTH),
            algorithm: Some(&[0, 2, 0, 0]),
            keys: vec![(Integrity::Sha256, key(user, PasswordAlgorithm::Sha256))],
            ..Self::plain(user, nonce)
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut buffer = vec![0; 2000];
        let transaction = TransactionId([0x55; 12]);
        let mut writer = Writer::new(&mut buffer, Class::Request, self.method, transaction).unwrap();
        if self.method == Method::Allocate {
            writer.requested_transport(17);
        }
        for (kind, value) in [
            (AttributeType::USERNAME, self.username),
            (AttributeType::USERHASH, self.userhash),
            (AttributeType::REALM, self.realm),
            (AttributeType::NONCE, self.nonce),
            (AttributeType::PASSWORD_ALGORITHMS, self.algorithms),
            (AttributeType::PASSWORD_ALGORITHM, self.algorithm),
        ] {
            if let Some(value) = value {
                writer.attribute(kind, value);
            }
        }
        for (integrity, key) in &self.keys {
            writer.integrity(&key.for_integrity(*integrity));
        }
        let len = writer.finish(None, false).unwrap();
        buffer.truncate(len);
        buffer
    }
}

pub(super) fn key(user: &User, algorithm: PasswordAlgorithm) -> LongTermKey {
    LongTermKey::new(algorithm, user.name.as_bytes(), REALM.as_bytes(), user.password.as_bytes())
}

/// The reply to a datagram; a socket that is wanted is opened.
pub(super) fn answer(fixture: &mut Fixture, client: &ClientSocket, datagram: &[u8]) -> Reply {
    match fixture.handle(client, datagram) {
        FromClient::Reply => {}
        FromClient::OpenRelay { allocation, .. } => {
            let opened = fixture.server.handle_relay_opened(allocation, Ok(()), fixture.now);
            assert_eq!(opened, Opened::Reply { client: *client });
        }
        other => panic!("no answer: {other:?}"),
    }
    Reply(fixture.server.reply().to_vec())
}

/// What may change when a request is not authentic: nothing.
fn state(fixture: &Fixture) -> (usize, usize, Option<Instant>) {
    (fixture.server.allocations(), fixture.server.users.len(), fixture.server.poll_timeout())
}

/// Which integrity attributes an answer has, each verified with this key.
fn protection(reply: &Reply, key: &LongTermKey) -> Vec<Integrity> {
    let message = reply.message();
    let kinds = [Integrity::Sha1, Integrity::Sha256];
    assert_eq!(
        [message.has_integrity(), message.has_integrity_sha256()],
        kinds.map(|kind| message.verify_integrity(&key.for_integrity(kind)))
    );
    kinds.into_iter().filter(|&kind| message.verify_integrity(&key.for_integrity(kind))).collect()
}

pub(super) fn with_secrets() -> Fixture {
    let mut settings = settings();
    settings.credentials.add_secret(b"north");
    settings.credentials.add_secret(b"south");
    let mut fixture = Fixture::with(settings);
    fixture.server.set_wall_clock(Duration::from_secs(TODAY), fixture.now);
    fixture
}

/// The password of a time-limited name.
fn password(secret: &[u8], name: &str) -> String {
    use base64::Engine as _;
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    base64::engine::general_purpose::STANDARD.encode(ring::hmac::sign(&key, name.as_bytes()))
}

/// A user with a time-limited name.
pub(super) fn timed(name: &str, secret: &[u8], from: &str) -> User {
    let password = password(secret, name).leak();
    User { name: name.to_owned().leak(), password, client: client(from) }
}

#[test]
fn t16_garbage_integrity_from_a_fresh_source_is_stale_and_leaves_nothing() {
    let mut fixture = with_secrets();
    let before = state(&fixture);
    let names = ["alice", "nobody", "1700000600:x", "-1:x"];
    for (index, integrity) in [Integrity::Sha1, Integrity::Sha256].into_iter().cycle().take(2_000).enumerate()
    {
        let user = User { name: names[index % names.len()], ..User::alice() };
        let source = client(&format!("192.0.2.7:{}", 1_000 + index));
        let garbage = LongTermKey::from_bytes(&[index as u8; 16]).unwrap();
        let asked = Asked {
            method: Method::Allocate,
            keys: vec![(integrity, garbage)],
            ..Asked::plain(&user, b"obMatJos2wAAAAAAAAAAAAAA")
        };
        assert_eq!(answer(&mut fixture, &source, &asked.bytes()).code(), Some(438));
        assert_eq!(state(&fixture), before);
    }
}

#[test]
fn t17_a_nonce_that_is_not_the_clients_is_stale() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let before = state(&fixture);
    let nonce = fixture.nonce(&alice);
    let elsewhere = fixture.nonce(&alice.at("192.0.2.1:1001"));
    let other_host = fixture.nonce(&alice.at("192.0.2.3:1000"));
    let own = nonce.clone();
    let mut wrong: Vec<Vec<u8>> = vec![elsewhere, other_host, b"".to_vec(), b"never issued".to_vec()];
    wrong.extend((0..nonce.len()).map(|len| nonce[..len].to_vec()));
    wrong.push([&nonce[..], b"x"].concat());
    // The nonce of the other offer, as somebody on the way would make it to hide what is offered.
    wrong.push([b"obMatJos2AAAA", &nonce[13..]].concat());
    wrong.push(nonce[13..].to_vec());
    for bit in 0..nonce.len() * 8 {
        let mut flipped = nonce.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        wrong.push(flipped);
    }
    // Asked for once: each look at it is an answer that hardly anything pays for.
    let right = nonce;
    for nonce in &wrong {
        for asked in [Asked::plain(&alice, nonce), Asked::negotiated(&alice, nonce)] {
            let reply = answer(&mut fixture, &alice.client, &asked.bytes());
            assert_eq!(reply.code(), Some(438), "{nonce:?}");
            let message = reply.message();
            assert_eq!(message.nonce(), Some(&right[..]), "with the nonce that is right");
            assert_eq!(
                (message.realm(), message.password_algorithms()),
                (Some(REALM.as_bytes()), Some(BOTH))
            );
        }
    }
    assert_eq!(state(&fixture), before);
    // A nonce of the future: what this server hands out later is nothing to one that was restarted.
    let mut later = Fixture::new();
    later.nonce(&alice);
    later.wait(NONCE_PERIOD.as_secs());
    let nonce = later.nonce(&alice);
    assert_eq!(answer(&mut fixture, &alice.client, &Asked::plain(&alice, &nonce).bytes()).code(), Some(438));
    // One that was right.
    fixture.wait(2 * NONCE_PERIOD.as_secs());
    assert_eq!(answer(&mut fixture, &alice.client, &Asked::plain(&alice, &own).bytes()).code(), Some(438));
}

#[test]
fn t18_a_replayed_request_makes_no_second_allocation() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    for (round, asked) in
        [Asked::plain(&alice, &nonce), Asked::negotiated(&alice, &nonce)].into_iter().enumerate()
    {
        let allocate = Asked { method: Method::Allocate, ..asked.clone() }.bytes();
        let first = answer(&mut fixture, &alice.client, &allocate);
        assert_eq!(first.code(), None);
        let before = state(&fixture);
        assert_eq!(answer(&mut fixture, &alice.client, &allocate).0, first.0, "the same bytes again");
        assert_eq!(state(&fixture), before);
        fixture.wait(40);
        assert_eq!(answer(&mut fixture, &alice.client, &allocate).code(), Some(437));
        assert_eq!((fixture.server.allocations(), state(&fixture)), (round + 1, before));
        let delete = Fixture::refresh(&mut fixture, &alice, Some(0));
        assert_eq!(delete.code(), None);
        let gone = answer(&mut fixture, &alice.client, &asked.bytes());
        assert_eq!(gone.code(), Some(437), "a Refresh brings nothing back");
    }
}

#[test]
fn t19_a_request_replayed_from_another_5_tuple_is_stale() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    for asked in [Asked::plain(&alice, &nonce), Asked::negotiated(&alice, &nonce)] {
        let asked = Asked { method: Method::Allocate, ..asked }.bytes();
        let before = state(&fixture);
        for from in ["192.0.2.1:1001", "192.0.2.9:1000", "[2001:db8::1]:1000"] {
            let reply = answer(&mut fixture, &client(from), &asked);
            assert_eq!(
                (reply.code(), reply.message().xor_relayed_address()),
                (Some(438), Ok(None)),
                "{from}"
            );
        }
        assert_eq!(state(&fixture), before);
    }
}

#[test]
fn t20_every_flipped_bit_of_either_integrity_is_noticed() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    for (asked, bits) in [(Asked::plain(&alice, &nonce), 160), (Asked::negotiated(&alice, &nonce), 256)] {
        let good = Asked { method: Method::Allocate, ..asked }.bytes();
        let before = state(&fixture);
        for bit in 0..bits {
            let mut bad = good.clone();
            let index = bad.len() - bits / 8 + bit / 8;
            bad[index] ^= 1 << (bit % 8);
            assert_eq!(answer(&mut fixture, &alice.client, &bad).code(), Some(401), "bit {bit} of {bits}");
        }
        assert_eq!(state(&fixture), before);
    }
}

#[test]
fn t20_truncated_integrity_is_wrong() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let whole = Asked::negotiated(&alice, &nonce).bytes();
    let secret = ring::digest::digest(&ring::digest::SHA256, b"alice:example.org:secret");
    for len in (0..=32).step_by(4) {
        let mut message = whole[..whole.len() - 36].to_vec();
        let length = (message.len() + 4 + len - 20) as u16;
        message[2..4].copy_from_slice(&length.to_be_bytes());
        let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_ref()), &message);
        message.extend([0, 0x1c, 0, len as u8]);
        message.extend(&tag.as_ref()[..len]);
        let expected = if len == 32 { 437 } else { 401 };
        assert_eq!(answer(&mut fixture, &alice.client, &message).code(), Some(expected), "{len} bytes");
    }
}

#[test]
fn t21_whoever_negotiated_is_not_believed_with_the_older_attribute() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let before = state(&fixture);
    let asked = Asked { method: Method::Allocate, ..Asked::negotiated(&alice, &nonce) };
    for algorithm in [PasswordAlgorithm::Md5, PasswordAlgorithm::Sha256] {
        let entry = algorithm.entry();
        let weaker = Asked {
            algorithm: Some(&entry),
            keys: vec![(Integrity::Sha1, key(&alice, algorithm))],
            ..asked.clone()
        };
        assert_eq!(answer(&mut fixture, &alice.client, &weaker.bytes()).code(), Some(401), "{algorithm:?}");
        // Of both, the newer one decides.
        let wrong = LongTermKey::from_bytes(&[1; 16]).unwrap();
        let both = Asked {
            algorithm: Some(&entry),
            keys: vec![(Integrity::Sha1, key(&alice, algorithm)), (Integrity::Sha256, wrong)],
            ..asked.clone()
        };
        assert_eq!(answer(&mut fixture, &alice.client, &both.bytes()).code(), Some(401), "{algorithm:?}");
    }
    assert_eq!(state(&fixture), before);
}

#[test]
fn t21_an_offer_that_was_made_weaker_on_the_way_is_400() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let before = state(&fixture);
    let (md5, sha256) = (&[0, 1, 0, 0][..], &[0, 2, 0, 0][..]);
    let md5_key = || vec![(Integrity::Sha256, key(&alice, PasswordAlgorithm::Md5))];
    let sha256_key = || vec![(Integrity::Sha256, key(&alice, PasswordAlgorithm::Sha256))];
    for (algorithms, algorithm, keys) in [
        // SHA-256 taken out, the order turned round, an entry doubled, nothing left, parameters added.
        (Some(md5), Some(md5), md5_key()),
        (Some(sha256), Some(sha256), sha256_key()),
        (Some(&[0, 1, 0, 0, 0, 2, 0, 0][..]), Some(md5), md5_key()),
        (Some(&[0, 2, 0, 0, 0, 2, 0, 0]), Some(sha256), sha256_key()),
        (Some(&[0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0]), Some(sha256), sha256_key()),
        (Some(&[]), Some(md5), md5_key()),
        // One without the other.
        (None, Some(md5), md5_key()),
        (None, Some(sha256), sha256_key()),
        (Some(BOTH), None, md5_key()),
        // An algorithm that was not offered, or is none.
        (Some(BOTH), Some(&[0, 3, 0, 0]), sha256_key()),
        (Some(BOTH), Some(&[0, 0, 0, 0]), sha256_key()),
        (Some(BOTH), Some(&[0, 2]), sha256_key()),
        (Some(BOTH), Some(&[0, 2, 0, 4, 0, 0, 0, 0]), sha256_key()),
        (Some(BOTH), Some(BOTH), sha256_key()),
    ] {
        let asked =
            Asked { method: Method::Allocate, algorithms, algorithm, keys, ..Asked::plain(&alice, &nonce) };
        let reply = answer(&mut fixture, &alice.client, &asked.bytes());
        assert_eq!((reply.code(), reply.0.len()), (Some(400), 28), "{algorithms:?} {algorithm:?}");
    }
    assert_eq!(state(&fixture), before);
}

#[test]
fn t21_the_offer_is_what_every_user_can_do_and_the_nonce_says_so() {
    for (md5, sha256, algorithms) in
        [(true, true, BOTH), (true, false, &[0, 1, 0, 0][..]), (false, true, &[0, 2, 0, 0][..])]
    {
        let mut settings = settings();
        let bob = User::bob();
        let keys = StaticKeys {
            md5: md5.then(|| key(&bob, PasswordAlgorithm::Md5)),
            sha256: sha256.then(|| key(&bob, PasswordAlgorithm::Sha256)),
        };
        settings.credentials.add_keys("bob", keys);
        let mut fixture = Fixture::with(settings);
        let challenge = answer(&mut fixture, &bob.client, &bare(Method::Allocate, TransactionId([1; 12])));
        assert_eq!(challenge.message().password_algorithms(), Some(algorithms));
        let nonce = challenge.message().nonce().unwrap().to_vec();
        assert!(nonce.starts_with(b"obMatJos2wAAA"));
        let chosen = PasswordAlgorithm::from_entry(&algorithms[..4]).unwrap();
        for user in [User { client: bob.client, ..User::alice() }, bob.clone()] {
            let asked = Asked {
                algorithms: Some(algorithms),
                algorithm: Some(&algorithms[..4]),
                keys: vec![(Integrity::Sha256, key(&user, chosen))],
                ..Asked::plain(&user, &nonce)
            };
            let reply = answer(&mut fixture, &bob.client, &asked.bytes());
            assert_eq!(reply.code(), Some(437), "{}", user.name);
            assert_eq!(protection(&reply, &key(&user, chosen)), [Integrity::Sha256]);
        }
        // A client before RFC 8489 needs the MD5 key.
        let reply = answer(&mut fixture, &bob.client, &Asked::plain(&bob, &nonce).bytes());
        assert_eq!(reply.code(), Some(if md5 { 437 } else { 401 }));
    }
}

#[test]
fn t22_user_names_of_any_kind_are_401() {
    let mut fixture = with_secrets();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let before = state(&fixture);
    let long = [b'a'; 513];
    let digits = [b'1'; 763];
    for name in [
        &b""[..],
        &long,
        &digits,
        b"%s%n%x",
        b"alice\0",
        b"\0",
        b"\xff\xfe",
        b"alice\n",
        b"Alice",
        b"alice ",
        b"{}",
        b"$(x)",
    ] {
        for asked in [Asked::plain(&alice, &nonce), Asked::negotiated(&alice, &nonce)] {
            let asked = Asked { method: Method::Allocate, username: Some(name), ..asked };
            let reply = answer(&mut fixture, &alice.client, &asked.bytes());
            assert_eq!((reply.code(), reply.0.len()), (Some(401), 84), "{name:?}");
        }
    }
    for hash in [&b""[..], &[0; 31], &[0; 32], &[0; 33], b"alice"] {
        let asked = Asked { username: None, userhash: Some(hash), ..Asked::negotiated(&alice, &nonce) };
        assert_eq!(answer(&mut fixture, &alice.client, &asked.bytes()).code(), Some(401), "{hash:?}");
    }
    assert_eq!(state(&fixture), before);
}

#[test]
fn t23_names_whose_time_is_over_or_far_off_or_nonsense_are_401() {
    let mut fixture = with_secrets();
    let before = state(&fixture);
    let max = TODAY + DAY + 60;
    for (name, expected) in [
        (format!("{}:x", TODAY + 1), None),
        (format!("{max}:x"), None),
        (format!("{}:x", TODAY + 600), None),
        (format!("{}", TODAY + 600), None),
        (format!("{}:", TODAY + 600), None),
        (format!("00000{}:x", TODAY + 600), None),
        // Expired, by a second, by all.
        (format!("{TODAY}:x"), Some(401)),
        (format!("{}:x", TODAY - 1), Some(401)),
        ("0:x".into(), Some(401)),
        ("1:x".into(), Some(401)),
        // Too far off: by a second, as milliseconds, for ever.
        (format!("{}:x", max + 1), Some(401)),
        (format!("{}000:x", TODAY + 600), Some(401)),
        (format!("{}:x", u64::MAX), Some(401)),
        // More than 64 bits, also where what is left of them would be in time.
        ("18446744073709551616:x".into(), Some(401)),
        (format!("{}:x", u128::from(u64::MAX) + 1 + u128::from(TODAY + 600)), Some(401)),
        (format!("{}:x", "9".repeat(300)), Some(401)),
        // No number.
        (format!("-{}:x", TODAY + 600), Some(401)),
        (format!("+{}:x", TODAY + 600), Some(401)),
        ("-1:x".into(), Some(401)),
        (format!(" {}:x", TODAY + 600), Some(401)),
        (format!("{}.5:x", TODAY + 600), Some(401)),
        (format!("{:#x}:x", TODAY + 600), Some(401)),
        (":x".into(), Some(401)),
        ("x".into(), Some(401)),
        (format!("x:{}", TODAY + 600), Some(401)),
    ] {
        let user = timed(&name, b"north", "192.0.2.8:1");
        let nonce = fixture.nonce(&user);
        for asked in [Asked::plain(&user, &nonce), Asked::negotiated(&user, &nonce)] {
            let asked = Asked { method: Method::Allocate, ..asked };
            let reply = answer(&mut fixture, &user.client, &asked.bytes());
            assert_eq!(reply.code(), expected, "{name}");
            if expected.is_none() {
                let id = fixture.id(&user);
                fixture.server.close(id);
                assert_eq!(fixture.server.poll_command(), Some(Command::Close(id)));
                fixture.server.handle_relay_closed(id);
            } else {
                assert_eq!(reply.0.len(), 84, "the same shape as for any user: {name}");
            }
            assert_eq!(state(&fixture), before, "{name}");
        }
    }
}

#[test]
fn t23_the_longest_time_can_be_set_and_an_unknown_time_of_day_lets_nobody_in() {
    let mut settings = settings();
    settings.credentials.add_secret(b"north");
    settings.credentials.set_secret_validity_max(Duration::from_secs(3600));
    let mut fixture = Fixture::with(settings);
    let code = |fixture: &mut Fixture, seconds: u64| {
        let user = timed(&format!("{}:x", TODAY + seconds), b"north", "192.0.2.8:1");
        let nonce = fixture.nonce(&user);
        answer(fixture, &user.client, &Asked::plain(&user, &nonce).bytes()).code()
    };
    assert_eq!(code(&mut fixture, 600), Some(401), "nobody has told the time of day");
    fixture.server.set_wall_clock(Duration::from_secs(TODAY), fixture.now);
    assert_eq!(code(&mut fixture, 3660), Some(437));
    assert_eq!(code(&mut fixture, 3661), Some(401));
    // Time goes on between two tellings, and jumps with one.
    fixture.wait(600);
    assert_eq!((code(&mut fixture, 600), code(&mut fixture, 601)), (Some(401), Some(437)));
    fixture.server.set_wall_clock(Duration::from_secs(TODAY), fixture.now);
    assert_eq!(code(&mut fixture, 600), Some(437));
    fixture.server.set_wall_clock(Duration::from_secs(TODAY + DAY), fixture.now);
    assert_eq!(code(&mut fixture, 601), Some(401));
}

#[test]
fn any_of_the_secrets_is_good_and_no_other() {
    let mut fixture = with_secrets();
    let name = format!("{}:x", TODAY + 600);
    for (secret, expected) in
        [(&b"north"[..], Some(437)), (b"south", Some(437)), (b"west", Some(401)), (b"", Some(401))]
    {
        let user = timed(&name, secret, "192.0.2.8:1");
        let nonce = fixture.nonce(&user);
        for (asked, algorithm, integrity) in [
            (Asked::plain(&user, &nonce), PasswordAlgorithm::Md5, Integrity::Sha1),
            (Asked::negotiated(&user, &nonce), PasswordAlgorithm::Sha256, Integrity::Sha256),
        ] {
            let reply = answer(&mut fixture, &user.client, &asked.bytes());
            assert_eq!(reply.code(), expected, "{secret:?}");
            if expected == Some(437) {
                assert_eq!(protection(&reply, &key(&user, algorithm)), [integrity]);
            }
        }
    }
    // Static users are there besides, and cannot be found by the hash of a name: that bit is not set.
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    assert!(nonce.starts_with(b"obMatJos2gAAA"));
    assert_eq!(answer(&mut fixture, &alice.client, &Asked::plain(&alice, &nonce).bytes()).code(), Some(437));
}

#[test]
fn a_call_outlives_its_name_and_a_new_one_needs_a_new_name() {
    let mut fixture = with_secrets();
    let user = timed(&format!("{}:x", TODAY + 600), b"north", "192.0.2.8:1");
    fixture.allocate(&user);
    fixture.wait(599);
    assert_eq!(fixture.refresh(&user, None).code(), None);
    fixture.wait(1);
    assert_eq!(fixture.refresh(&user, None).code(), None, "the name has expired, the call goes on");
    assert_eq!(fixture.permit(&user, &["192.0.2.9:1"]), None);
    assert_eq!(fixture.bind(&user, 0x4000, "192.0.2.9:1"), None);
    for wrong in [
        timed(user.name, b"west", "192.0.2.8:1"),
        timed(&format!("{}:y", TODAY + 600), b"north", "192.0.2.8:1"),
    ] {
        let nonce = fixture.nonce(&wrong);
        let reply = answer(&mut fixture, &wrong.client, &Asked::plain(&wrong, &nonce).bytes());
        assert_eq!(reply.code(), Some(401), "only whoever has the allocation goes on");
    }
    let elsewhere = user.at("192.0.2.8:2");
    let nonce = fixture.nonce(&elsewhere);
    let again = Asked { method: Method::Allocate, ..Asked::plain(&elsewhere, &nonce) };
    assert_eq!(answer(&mut fixture, &elsewhere.client, &again.bytes()).code(), Some(401));
    // A newer name of the same user takes the allocation over, and outlives itself as well.
    let newer = timed(&format!("{}:x", TODAY + 1200), b"south", "192.0.2.8:1");
    assert_eq!(fixture.refresh(&newer, Some(3600)).code(), None);
    fixture.wait(700);
    assert_eq!(fixture.refresh(&newer, None).code(), None);
    assert_eq!(fixture.refresh(&newer, Some(0)).code(), None);
    let nonce = fixture.nonce(&newer);
    let late = answer(&mut fixture, &newer.client, &Asked::plain(&newer, &nonce).bytes());
    assert_eq!(late.code(), Some(401), "without an allocation the name is just old");
    // It met peers long ago, so that nothing holds its entry.
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.users.len(), 0);
}

#[test]
fn quotas_count_by_id_and_nothing_is_kept_after_the_last_allocation() {
    let mut settings = settings();
    settings.credentials.add_secret(b"north");
    settings.allocations_per_user_max = 2;
    let mut fixture = Fixture::with(settings);
    fixture.server.set_wall_clock(Duration::from_secs(TODAY), fixture.now);
    let name = |seconds: u64, id: &str| format!("{}:{id}", TODAY + seconds);
    let allocate = |fixture: &mut Fixture, user: &User| {
        fixture
            .ask(user, Method::Allocate, |writer| {
                writer.requested_transport(17);
            })
            .code()
    };
    let first = timed(&name(600, "x"), b"north", "192.0.2.8:1");
    let second = timed(&name(601, "x"), b"north", "192.0.2.8:2");
    let third = timed(&name(602, "x"), b"north", "192.0.2.8:3");
    assert_eq!(fixture.refresh(&first, None).code(), Some(437));
    assert_eq!(fixture.server.users.len(), 0, "a password alone costs nothing");
    assert_eq!((allocate(&mut fixture, &first), allocate(&mut fixture, &second)), (None, None));
    assert_eq!(allocate(&mut fixture, &third), Some(486), "three names, one user");
    let other = timed(&name(600, "y"), b"north", "192.0.2.8:4");
    assert_eq!(allocate(&mut fixture, &other), None);
    // A static user of that name is somebody else, and stays known.
    assert_eq!(allocate(&mut fixture, &User::alice()), None);
    let namesake = timed(&name(600, "alice"), b"north", "192.0.2.8:5");
    assert_eq!(allocate(&mut fixture, &namesake), None);
    assert_eq!(fixture.server.users.len(), 4);
    let stranger = other.at("192.0.2.8:1");
    assert_eq!(fixture.refresh(&stranger, None).code(), Some(441), "the allocation of another user");
    assert_eq!(fixture.refresh(&first, Some(0)).code(), None);
    assert_eq!(allocate(&mut fixture, &third), None, "one of two is free again");
    fixture.wait(600);
    fixture.server.handle_timeout(fixture.now);
    assert_eq!(fixture.server.users.len(), 1, "the static user's entry");
}

#[test]
fn a_socket_that_cannot_be_opened_leaves_no_user() {
    let mut fixture = with_secrets();
    let user = timed(&format!("{}:x", TODAY + 600), b"north", "192.0.2.8:1");
    let nonce = fixture.nonce(&user);
    for asked in [Asked::plain(&user, &nonce), Asked::negotiated(&user, &nonce)] {
        let (integrity, key) = asked.keys[0].clone();
        let allocate = Asked { method: Method::Allocate, ..asked }.bytes();
        let FromClient::OpenRelay { allocation, .. } = fixture.handle(&user.client, &allocate) else {
            panic!("no open")
        };
        assert_eq!(fixture.server.users.len(), 1);
        fixture.server.handle_relay_opened(allocation, Err(OpenFailure::Other), fixture.now);
        let reply = Reply(fixture.server.reply().to_vec());
        assert_eq!((reply.code(), protection(&reply, &key)), (Some(508), vec![integrity]));
        assert_eq!(state(&fixture), (0, 0, None));
    }
}

#[test]
fn an_allocation_that_ran_out_unnoticed_can_be_made_again_by_its_user() {
    let mut fixture = with_secrets();
    let user = timed(&format!("{}:x", TODAY + 3600), b"north", "192.0.2.8:1");
    fixture.allocate(&user);
    // The timer is late: the request itself ends the old allocation, which was its user's only one.
    fixture.wait(600);
    fixture.allocate(&user);
    assert_eq!(fixture.server.users.len(), 1);
}

#[test]
fn answers_are_protected_as_the_request_was_judged() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let (md5, sha256) = (key(&alice, PasswordAlgorithm::Md5), key(&alice, PasswordAlgorithm::Sha256));
    let plain = Asked::plain(&alice, &nonce);
    let negotiated = Asked::negotiated(&alice, &nonce);
    for (asked, key, expected) in [
        (plain.clone(), &md5, Integrity::Sha1),
        (negotiated.clone(), &sha256, Integrity::Sha256),
        // MD5, chosen by name, with the newer attribute.
        (
            Asked {
                algorithm: Some(&[0, 1, 0, 0]),
                keys: vec![(Integrity::Sha256, md5.clone())],
                ..negotiated.clone()
            },
            &md5,
            Integrity::Sha256,
        ),
        // Both attributes, with and without a choice.
        (
            Asked {
                keys: vec![(Integrity::Sha1, md5.clone()), (Integrity::Sha256, md5.clone())],
                ..plain.clone()
            },
            &md5,
            Integrity::Sha1,
        ),
        (
            Asked {
                keys: vec![(Integrity::Sha1, sha256.clone()), (Integrity::Sha256, sha256.clone())],
                ..negotiated.clone()
            },
            &sha256,
            Integrity::Sha256,
        ),
        // The newer attribute alone, without a choice: what it does not know it is not answered with.
        (Asked { keys: vec![(Integrity::Sha256, md5.clone())], ..plain.clone() }, &md5, Integrity::Sha256),
    ] {
        let refused = answer(&mut fixture, &alice.client, &asked.bytes());
        assert_eq!((refused.code(), protection(&refused, key)), (Some(437), vec![expected]));
        let allocated = Asked { method: Method::Allocate, ..asked.clone() };
        let made = answer(&mut fixture, &alice.client, &allocated.bytes());
        assert_eq!((made.code(), protection(&made, key)), (None, vec![expected]));
        let again = answer(&mut fixture, &alice.client, &allocated.bytes());
        assert_eq!(again.0, made.0);
        let refreshed = answer(&mut fixture, &alice.client, &asked.bytes());
        assert_eq!((refreshed.code(), protection(&refreshed, key)), (None, vec![expected]));
        fixture.wait(600);
    }
}

#[test]
fn a_user_is_found_by_the_hash_of_its_name() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    assert!(nonce.starts_with(b"obMatJos2wAAA"), "the nonce says that hashes are known");
    let (hash, bobs) = (userhash(b"alice", REALM.as_bytes()), userhash(b"bob", REALM.as_bytes()));
    let asked = |hash| Asked { username: None, userhash: Some(hash), ..Asked::negotiated(&alice, &nonce) };
    let allocate = Asked { method: Method::Allocate, ..asked(&hash) };
    assert_eq!(answer(&mut fixture, &alice.client, &allocate.bytes()).code(), None);
    assert_eq!(answer(&mut fixture, &alice.client, &asked(&hash).bytes()).code(), None);
    // The same user by its name, another by its hash.
    assert_eq!(answer(&mut fixture, &alice.client, &Asked::negotiated(&alice, &nonce).bytes()).code(), None);
    assert_eq!(answer(&mut fixture, &alice.client, &asked(&bobs).bytes()).code(), Some(401));
    let elsewhere = userhash(b"alice", b"elsewhere");
    assert_eq!(answer(&mut fixture, &alice.client, &asked(&elsewhere).bytes()).code(), Some(401));
    let both = Asked { userhash: Some(&hash), ..Asked::negotiated(&alice, &nonce) };
    assert_eq!(answer(&mut fixture, &alice.client, &both.bytes()).code(), Some(400), "a name and a hash");
}

#[test]
fn either_integrity_without_the_rest_is_400_and_none_is_401() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    for asked in [Asked::plain(&alice, &nonce), Asked::negotiated(&alice, &nonce)] {
        for incomplete in [
            Asked { username: None, ..asked.clone() },
            Asked { realm: None, ..asked.clone() },
            Asked { nonce: None, ..asked.clone() },
        ] {
            let reply = answer(&mut fixture, &alice.client, &incomplete.bytes());
            assert_eq!((reply.code(), reply.0.len()), (Some(400), 28));
        }
        let unsigned = Asked { keys: vec![], ..asked.clone() };
        assert_eq!(answer(&mut fixture, &alice.client, &unsigned.bytes()).code(), Some(401));
        let elsewhere = Asked { realm: Some(b"elsewhere"), ..asked };
        assert_eq!(answer(&mut fixture, &alice.client, &elsewhere.bytes()).code(), Some(401));
    }
}

#[test]
fn every_challenge_is_the_same_whatever_is_wrong() {
    let mut fixture = with_secrets();
    let alice = User::alice();
    let nonce = fixture.nonce(&alice);
    let (unknown, wrong) =
        (User { name: "mallory", ..alice.clone() }, User { password: "guess", ..alice.clone() });
    let expired = User { client: alice.client, ..timed("1:x", b"north", "192.0.2.8:1") };
    let forged = User { name: "1700000600:x", ..alice.clone() };
    let mut replies: Vec<Vec<u8>> = Vec::new();
    for user in [&unknown, &wrong, &expired, &forged] {
        for asked in [Asked::plain(user, &nonce), Asked::negotiated(user, &nonce)] {
            replies.push(answer(&mut fixture, &alice.client, &asked.bytes()).0);
        }
    }
    replies.dedup();
    assert_eq!(replies.len(), 1, "byte for byte");
    let message = Message::parse(&replies[0]).unwrap();
    assert_eq!(message.error_code().unwrap().unwrap().0, 401);
}
