//! Clients of RFC 8489 and users from shared secrets, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on")]

use std::net::UdpSocket;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness;
use crate::harness::configured::{Configured, LOOPBACK};
use crate::harness::{PASSWORD, REALM, RelayProcess, USER, private_file, receive, socket, write_private};
use base64::Engine as _;
use dataplane::stun::password::userhash;
use dataplane::stun::{
    Class, Integrity, LongTermKey, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

/// A request of its own 5-tuple, answered.
struct Asking<'a> {
    socket: &'a UdpSocket,
    method: Method,
    transaction: u8,
}

impl Asking<'_> {
    fn ask(&self, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut buffer = vec![0; 66_000];
        let transaction = TransactionId([self.transaction; 12]);
        let mut writer = Writer::new(&mut buffer, Class::Request, self.method, transaction).unwrap();
        if self.method == Method::Allocate {
            writer.requested_transport(17);
        }
        fill(&mut writer);
        let len = writer.finish(None, false).unwrap();
        self.socket.send(&buffer[..len]).unwrap();
        let (reply, _) = receive(self.socket);
        let message = Message::parse(&reply).unwrap();
        assert_eq!((message.transaction(), message.method()), (transaction, self.method));
        reply
    }
}

#[test]
fn a_client_of_rfc_8489_is_served_and_answered_with_sha_256() {
    let relay = RelayProcess::on_loopback(&["--io", "suspend"]);
    let client = socket();
    client.connect(relay.listen[0]).unwrap();
    let challenge = Asking { socket: &client, method: Method::Allocate, transaction: 1 }.ask(|_| {});
    let challenge = Message::parse(&challenge).unwrap();
    let (nonce, offered) = (challenge.nonce().unwrap(), challenge.password_algorithms().unwrap());
    assert!(nonce.starts_with(b"obMatJos2wAAA"), "password algorithms and anonymous names");
    let chosen = PasswordAlgorithm::from_entry(&offered[..4]).unwrap();
    assert_eq!(chosen, PasswordAlgorithm::Sha256);
    let key = LongTermKey::new(chosen, USER.as_bytes(), REALM.as_bytes(), PASSWORD.as_bytes())
        .for_integrity(Integrity::Sha256);
    for (transaction, method) in [(2, Method::Allocate), (3, Method::Refresh)] {
        let reply = Asking { socket: &client, method, transaction }.ask(|writer| {
            writer
                .userhash(&userhash(USER.as_bytes(), REALM.as_bytes()))
                .realm(REALM.as_bytes())
                .nonce(nonce);
            writer.password_algorithms(offered).password_algorithm(chosen).integrity(&key);
        });
        let message = Message::parse(&reply).unwrap();
        assert_eq!(message.class(), Class::Success, "{:?}", message.error_code());
        assert!(message.verify_integrity(&key) && !message.has_integrity());
    }
    // The same without the better algorithm, as someone on the way would have it.
    let weaker = PasswordAlgorithm::Md5;
    let key = LongTermKey::new(weaker, USER.as_bytes(), REALM.as_bytes(), PASSWORD.as_bytes())
        .for_integrity(Integrity::Sha256);
    let reply = Asking { socket: &client, method: Method::Refresh, transaction: 4 }.ask(|writer| {
        writer.username(b"alice\n\x1b[31mready").realm(REALM.as_bytes()).nonce(nonce);
        writer.password_algorithms(&weaker.entry()).password_algorithm(weaker).integrity(&key);
    });
    assert_eq!(harness::code(&reply), Some(400));
    let (status, log) = relay.stop();
    assert!(status.success());
    assert_eq!(refused(&log, "code=400 rule=weaker_offer", r"user=alice\n\u{1b}[31mready"), 1, "{log}");
    assert!(!log.contains(PASSWORD), "{log}");
}

/// T22 with T57: whatever a stranger calls itself, a line of the log stays a line.
#[test]
fn the_longest_names_of_strangers_make_short_lines() {
    let relay = RelayProcess::on_loopback(&["--io", "suspend"]);
    let client = socket();
    client.connect(relay.listen[0]).unwrap();
    let challenge = Asking { socket: &client, method: Method::Allocate, transaction: 1 }.ask(|_| {});
    let nonce = Message::parse(&challenge).unwrap().nonce().unwrap().to_vec();
    let weaker = PasswordAlgorithm::Md5;
    // The algorithm without the offer it is from; the key does not matter.
    let key = dataplane::stun::Key::long_term(b"", b"", b"");
    for (transaction, (len, expected)) in (2..).zip([(65_000, 401), (509, 401), (508, 400)]) {
        let reply = Asking { socket: &client, method: Method::Refresh, transaction }.ask(|writer| {
            writer.username(&vec![1; len]).realm(REALM.as_bytes()).nonce(&nonce);
            writer.password_algorithm(weaker).integrity(&key);
        });
        assert_eq!(harness::code(&reply), Some(expected), "{len}");
    }
    let (status, log) = relay.stop();
    assert!(status.success());
    let shown = r"\u{1}".repeat(64);
    assert_eq!(refused(&log, "code=400 rule=weaker_offer", &format!("user={shown}… ")), 1, "{log}");
    let longest = log.lines().filter(|line| line.contains("refused ")).map(str::len).max();
    assert!(longest.is_some_and(|bytes| bytes < 1000), "{longest:?}");
}

/// How many lines of the log tell of a refusal by this rule for this user.
fn refused(log: &str, rule: &str, user: &str) -> usize {
    let tells = |line: &&str| line.contains(&format!("refused {rule}")) && line.contains(user);
    log.lines().filter(tells).count()
}

/// The id is whatever a web service puts into names; here it would forge a line of the log.
#[test]
fn a_quota_of_a_shared_user_is_told_in_one_line_without_its_password() {
    let secrets = private_file("north\n");
    let path = secrets.path().to_str().unwrap();
    let flags = ["--io", "suspend", "--secret-file", path, "--allocations-per-user-max", "1"];
    let relay = RelayProcess::on_loopback(&flags);
    #[expect(clippy::disallowed_methods, reason = "the relay compares with the time of day")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut clients = Vec::new();
    let mut passwords = Vec::new();
    for (seconds, expected) in [(600, None), (601, Some(486)), (602, Some(486))] {
        let name = format!("{}:some\n\x1b[31mone", now + seconds);
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"north");
        let password =
            base64::engine::general_purpose::STANDARD.encode(ring::hmac::sign(&secret, name.as_bytes()));
        let client = socket();
        client.connect(relay.listen[0]).unwrap();
        let challenge = Asking { socket: &client, method: Method::Allocate, transaction: 1 }.ask(|_| {});
        let nonce = Message::parse(&challenge).unwrap().nonce().unwrap().to_vec();
        let key = dataplane::stun::Key::long_term(name.as_bytes(), REALM.as_bytes(), password.as_bytes());
        let reply = Asking { socket: &client, method: Method::Allocate, transaction: 2 }.ask(|writer| {
            writer.username(name.as_bytes()).realm(REALM.as_bytes()).nonce(&nonce).integrity(&key);
        });
        assert_eq!(harness::code(&reply), expected, "{name:?}");
        clients.push(client);
        passwords.push(password);
    }
    let (status, log) = relay.stop();
    assert!(status.success());
    // Once for both: neither another name nor another port makes another case.
    let told = refused(&log, "code=486 rule=user_allocations", r"user=some\n\u{1b}[31mone");
    assert_eq!(told, 1, "{log}");
    assert!(!log.contains("north") && !passwords.iter().any(|password| log.contains(&**password)), "{log}");
}

#[test]
fn names_from_a_shared_secret_are_good_for_their_time() {
    let secrets = private_file("north\n");
    let flags = ["--io", "suspend", "--secret-file", secrets.path().to_str().unwrap()];
    let relay = RelayProcess::on_loopback(&[&flags[..], &["--secret-validity-max", "1h"]].concat());
    #[expect(clippy::disallowed_methods, reason = "the relay compares with the time of day")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (name, secret, expected) in [
        (format!("{}:someone", now + 600), "north", None),
        (format!("{}:someone", now + 3600), "north", None),
        (format!("{}", now + 600), "north", None),
        (format!("{}:someone", now + 600), "south", Some(401)),
        (format!("{}:someone", now - 1), "north", Some(401)),
        (format!("{}:someone", now + 3700), "north", Some(401)),
        (format!("-{}:someone", now + 600), "north", Some(401)),
        ("99999999999999999999:someone".into(), "north", Some(401)),
    ] {
        let client = socket();
        client.connect(relay.listen[0]).unwrap();
        let challenge = Asking { socket: &client, method: Method::Allocate, transaction: 1 }.ask(|_| {});
        let challenge = Message::parse(&challenge).unwrap();
        assert!(challenge.nonce().unwrap().starts_with(b"obMatJos2gAAA"), "no hashed names with secrets");
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let password =
            base64::engine::general_purpose::STANDARD.encode(ring::hmac::sign(&secret, name.as_bytes()));
        let key = dataplane::stun::Key::long_term(name.as_bytes(), REALM.as_bytes(), password.as_bytes());
        let reply = Asking { socket: &client, method: Method::Allocate, transaction: 2 }.ask(|writer| {
            writer
                .username(name.as_bytes())
                .realm(REALM.as_bytes())
                .nonce(challenge.nonce().unwrap())
                .integrity(&key);
        });
        assert_eq!(harness::code(&reply), expected, "{name}");
        if expected.is_none() {
            assert!(Message::parse(&reply).unwrap().verify_integrity(&key));
        }
    }
    let (status, log) = relay.stop();
    assert!(status.success() && !log.contains("north"), "{log}");
}

/// What a secret that leaked is taken out for.
#[test]
fn a_secret_that_a_reload_takes_out_evicts_who_came_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let secrets = directory.path().join("secrets");
    write_private(&secrets, "leaked\nsafe\n");
    let configured =
        Configured::start_in(directory, &format!("{LOOPBACK}\nsecret-file = {secrets:?}"), &[], |_| {});
    #[expect(clippy::disallowed_methods, reason = "the relay compares with the time of day")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let [mut thief, mut user] = ["leaked", "safe"].map(|secret| {
        let name = format!("{}:{secret}", now + 600);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let tag = ring::hmac::sign(&key, name.as_bytes());
        let password = base64::engine::general_purpose::STANDARD.encode(tag);
        configured.client().with_user(&name, &password)
    });
    thief.allocate();
    user.allocate();
    write_private(&secrets, "safe\n");
    assert!(configured.reload().contains("in force"));
    assert_eq!(thief.try_ask(Method::Refresh, |_| {}), Err(401));
    assert_eq!(harness::code(&user.ask(Method::Refresh, |_| {})), None);
}
