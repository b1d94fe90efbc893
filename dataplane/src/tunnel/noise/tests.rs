//! Beside other implementations in one process: boringtun's peers in both roles, and snow's handshake byte for byte.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use snow::Builder;

use super::handshake::KeyPair;
use super::*;
use crate::wire::wireguard::COOKIE_REPLY;

const SECOND: Duration = Duration::from_secs(1);
const OUR_SEED: u8 = 1;
const THEIR_SEED: u8 = 2;

fn secret(seed: u8) -> SecretKey {
    SecretKey::new([seed; 32]).clamped()
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answer(Vec<u8>),
    Packet(Vec<u8>),
    Nothing,
    Refused,
}

/// An IPv4 packet of 60 bytes.
fn packet(number: u8) -> Vec<u8> {
    let mut packet = vec![number; 60];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17]);
    packet
}

/// boringtun's end.
struct Theirs(Tunn);

impl Theirs {
    fn new(preshared: Option<u8>) -> Self {
        Self::limited(preshared, u64::MAX)
    }

    /// Which asks for cookies beyond `limit` handshakes.
    fn limited(preshared: Option<u8>, limit: u64) -> Self {
        let private = x25519::StaticSecret::from(*secret(THEIR_SEED).expose());
        let limiter = RateLimiter::new(&x25519::PublicKey::from(&private), limit);
        let peer = x25519::PublicKey::from(public_key(&secret(OUR_SEED)).0);
        let preshared = preshared.map(|seed| *secret(seed).expose());
        Self(Tunn::new(private, peer, preshared, None, 0x7f_5502, Some(Arc::new(limiter))))
    }

    fn initiate(&mut self) -> Vec<u8> {
        // A new session counts as newer when its clock was read in between.
        let _ = self.0.update_timers(&mut [0; CONTROL_LEN]);
        match self.0.format_handshake_initiation(&mut [0; CONTROL_LEN], true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn take(&mut self, datagram: &[u8]) -> Outcome {
        let _ = self.0.update_timers(&mut [0; CONTROL_LEN]);
        let from = "192.0.2.1".parse().expect("an address");
        match self.0.decapsulate(Some(from), datagram, &mut [0; 2_000]) {
            TunnResult::WriteToNetwork(message) => Outcome::Answer(message.to_vec()),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Outcome::Packet(packet.to_vec())
            }
            TunnResult::Done => Outcome::Nothing,
            TunnResult::Err(_) => Outcome::Refused,
        }
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        match self.0.encapsulate(packet, &mut [0; 2_000]) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }
}

/// By the only way that there is.
fn outset(world: &World) -> Outset {
    let to = SocketAddr::from(([192, 0, 2, 1], 1));
    Outset { index: world.index(), path: Path::Direct { to, from: None } }
}

/// Our end.
struct Ours {
    identity: Identity,
    world: World,
    noise: Noise,
    now: Instant,
}

impl Ours {
    fn new(preshared: Option<u8>) -> Self {
        Self {
            identity: Identity::new(&secret(OUR_SEED), &[9; 32]),
            world: World::system(),
            noise: Noise::new(public_key(&secret(THEIR_SEED)), preshared.map(secret)),
            now: Instant::now(),
        }
    }

    fn initiate(&mut self) -> Vec<u8> {
        let mut out = [0; CONTROL_LEN];
        let Self { identity, world, noise, now } = self;
        assert_eq!(noise.initiate(identity, world, outset(world), &mut out, *now), Some(INITIATION));
        out.to_vec()
    }

    fn try_take(&mut self, datagram: &[u8]) -> Result<Outcome, Cause> {
        let Self { identity, world, noise, now } = self;
        let mut out = [0; CONTROL_LEN];
        let len = match wireguard::parse(datagram).expect("a message") {
            Message::Data { receiver, counter } => {
                let mut out = [0; 2_000];
                let len = noise.open(datagram, (receiver, counter), &mut out, *now)?.len;
                return Ok(if len == 0 { Outcome::Nothing } else { Outcome::Packet(out[..len].to_vec()) });
            }
            Message::Initiation { .. } => {
                assert!(identity.check_mac1(datagram));
                let claim = identity.claim(datagram).ok_or(Cause::BadTag)?;
                noise.handle_initiation(identity, world, claim, outset(world), &mut out, *now)?
            }
            Message::Response { .. } => {
                assert!(identity.check_mac1(datagram));
                noise.handle_response(identity, world, datagram, &mut out, *now)?
            }
            Message::CookieReply { .. } => {
                noise.handle_cookie_reply(datagram, *now)?;
                return Ok(Outcome::Nothing);
            }
        };
        Ok(Outcome::Answer(out[..len].to_vec()))
    }

    fn take(&mut self, datagram: &[u8]) -> Outcome {
        self.try_take(datagram).unwrap_or(Outcome::Refused)
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; packet.len() + DATA_OVERHEAD];
        assert!(self.noise.seal(packet, &mut out, self.now), "a session");
        out
    }
}

/// The message that answers another.
fn answer(outcome: Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Answer(message) => message,
        other => panic!("{other:?}"),
    }
}

fn shake_hands(ours: &mut Ours, theirs: &mut Theirs, we_begin: bool) {
    if we_begin {
        let response = answer(theirs.take(&ours.initiate()));
        let keepalive = answer(ours.take(&response));
        assert_eq!(theirs.take(&keepalive), Outcome::Nothing);
    } else {
        let response = answer(ours.take(&theirs.initiate()));
        let keepalive = answer(theirs.take(&response));
        assert!(ours.noise.usable(ours.now).is_none_or(|session| session.sent > 0), "not confirmed");
        assert_eq!(ours.take(&keepalive), Outcome::Nothing);
    }
}

/// Packets both ways, out of order.
fn talk(ours: &mut Ours, theirs: &mut Theirs) {
    let there: Vec<_> = (0..100).map(|number| ours.seal(&packet(number))).collect();
    let back: Vec<_> = (0..100).map(|number| theirs.seal(&packet(number))).collect();
    for (number, (there, back)) in (0..100).zip(there.iter().zip(&back)).rev() {
        assert_eq!(theirs.take(there), Outcome::Packet(packet(number)));
        assert_eq!(ours.take(back), Outcome::Packet(packet(number)));
        assert_eq!(ours.try_take(back), Err(Cause::Replay));
    }
}

#[test]
fn boringtun_is_understood_in_both_roles_with_and_without_a_preshared_key() {
    for preshared in [None, Some(5)] {
        for we_begin in [true, false] {
            let (mut ours, mut theirs) = (Ours::new(preshared), Theirs::new(preshared));
            shake_hands(&mut ours, &mut theirs, we_begin);
            talk(&mut ours, &mut theirs);
        }
    }
}

#[test]
fn another_preshared_key_is_refused_in_both_roles() {
    for (own, other) in [(Some(5), Some(6)), (None, Some(5)), (Some(5), None)] {
        let (mut ours, mut theirs) = (Ours::new(own), Theirs::new(other));
        let response = answer(theirs.take(&ours.initiate()));
        assert_eq!(ours.try_take(&response), Err(Cause::BadTag));
        let response = answer(ours.take(&theirs.initiate()));
        assert_eq!(theirs.take(&response), Outcome::Refused);
        // With the right one from now on.
        ours.noise.set_preshared(other.map(secret));
        shake_hands(&mut ours, &mut theirs, true);
        talk(&mut ours, &mut theirs);
    }
}

#[test]
fn sessions_follow_one_another_and_packets_of_the_one_before_are_taken() {
    let (mut ours, mut theirs) = (Ours::new(None), Theirs::new(None));
    shake_hands(&mut ours, &mut theirs, true);
    let index = |message: &[u8]| message[4..8].to_vec();
    // Times of day are compared by granules of 17 ms, and boringtun counts sessions of one moment as one.
    for round in 0..8_u8 {
        let late = (ours.seal(&packet(1)), theirs.seal(&packet(2)));
        shake_hands(&mut ours, &mut theirs, round % 3 == 0);
        let fresh = (ours.seal(&packet(3)), theirs.seal(&packet(4)));
        assert!(index(&fresh.0) != index(&late.0) && index(&fresh.1) != index(&late.1), "round {round}");
        assert_eq!(theirs.take(&fresh.0), Outcome::Packet(packet(3)));
        assert_eq!(ours.take(&fresh.1), Outcome::Packet(packet(4)));
        assert_eq!(theirs.take(&late.0), Outcome::Packet(packet(1)));
        assert_eq!(ours.take(&late.1), Outcome::Packet(packet(2)));
        assert_eq!(index(&ours.seal(&packet(5))), index(&fresh.0), "the late one changes nothing");
        ours.now += 120 * SECOND;
        // Of ours, that is; theirs has its own clock.
    }
    talk(&mut ours, &mut theirs);
}

#[test]
fn boringtun_under_load_gets_its_cookie() {
    let (mut ours, mut theirs) = (Ours::new(None), Theirs::limited(None, 0));
    let cookie = answer(theirs.take(&ours.initiate()));
    assert_eq!(cookie.len(), COOKIE_REPLY);
    assert_eq!(ours.take(&cookie), Outcome::Nothing);
    let response = answer(theirs.take(&ours.initiate()));
    assert_eq!(response.len(), RESPONSE);
    assert!(matches!(ours.take(&response), Outcome::Answer(_)));
    // It is used for two minutes.
    let has_mac2 = |message: &[u8]| message[132..] != [0; 16];
    ours.now += 120 * SECOND - Duration::from_millis(1);
    assert!(has_mac2(&ours.initiate()));
    ours.now += Duration::from_millis(1);
    assert!(!has_mac2(&ours.initiate()));
}

#[test]
fn each_of_two_ways_has_a_cookie_of_its_own() {
    let mut ours = Ours::new(None);
    let theirs = Identity::new(&secret(THEIR_SEED), &[3; 32]);
    let [first, second]: [SocketAddr; 2] =
        ["192.0.2.1:7", "198.51.100.1:7"].map(|text| text.parse().expect("an address"));
    // The same address, directly and over a relay, by which we are seen elsewhere.
    let ways = [(Path::Direct { to: first, from: None }, first), (Path::Relayed { peer: first }, second)];
    let mut initiate = |path, now| {
        let Ours { identity, world, noise, .. } = &mut ours;
        let (mut out, outset) = ([0; CONTROL_LEN], Outset { index: world.index(), path });
        noise.initiate(identity, world, outset, &mut out, now).expect("a good key");
        out
    };
    let start = Instant::now();
    let mut replies = Vec::new();
    for (path, seen) in ways {
        let mut reply = [0; COOKIE_REPLY];
        let message = initiate(path, start);
        assert_eq!(theirs.check_mac2(&message, seen, 0, &mut reply), CookieCheck::Reply);
        replies.push(reply);
    }
    for ((path, _), reply) in ways.iter().zip(&replies) {
        assert_eq!(ours.noise.handle_cookie_reply(reply, start), Ok(*path));
        assert_eq!(ours.noise.handle_cookie_reply(reply, start), Err(Cause::UnknownIndex), "it is used up");
    }
    let mut initiate = |path| {
        let Ours { identity, world, noise, .. } = &mut ours;
        let (mut out, outset) = ([0; CONTROL_LEN], Outset { index: world.index(), path });
        noise.initiate(identity, world, outset, &mut out, start).expect("a good key");
        out
    };
    for _ in 0..3 {
        for (path, seen) in ways {
            let message = initiate(path);
            assert_eq!(theirs.check_mac2(&message, seen, 0, &mut [0; COOKIE_REPLY]), CookieCheck::Proved);
        }
    }
    // From another local address it is the same way, to another port another one.
    let same = initiate(Path::Direct { to: first, from: Some([10, 0, 0, 1].into()) });
    assert_eq!(theirs.check_mac2(&same, first, 0, &mut [0; COOKIE_REPLY]), CookieCheck::Proved);
    let third = initiate(Path::Direct { to: ([192, 0, 2, 1], 8).into(), from: None });
    assert_eq!(third[132..], [0; 16]);
}

#[test]
fn a_message_that_is_answered_waits_for_no_cookie() {
    let theirs_by_key = Identity::new(&secret(THEIR_SEED), &[3; 32]);
    let seen = "192.0.2.1:7".parse().expect("an address");
    for (we_begin, answered) in [(true, false), (true, true), (false, false), (false, true)] {
        let (mut ours, mut theirs) = (Ours::new(None), Theirs::new(None));
        let message = if we_begin { ours.initiate() } else { answer(ours.take(&theirs.initiate())) };
        let mut reply = [0; COOKIE_REPLY];
        assert_eq!(theirs_by_key.check_mac2(&message, seen, 0, &mut reply), CookieCheck::Reply);
        let follows = answer(theirs.take(&message));
        if answered {
            ours.take(&follows);
        }
        let taken = ours.noise.handle_cookie_reply(&reply, ours.now);
        let expected = if answered { Err(Cause::UnknownIndex) } else { Ok(outset(&ours.world).path) };
        assert_eq!(taken, expected, "begun by us: {we_begin}");
    }
}

#[test]
fn boringtun_proves_itself_with_our_cookie() {
    let (ours, mut theirs) = (Ours::new(None), Theirs::new(None));
    let [source, elsewhere]: [SocketAddr; 2] =
        ["192.0.2.1:7", "192.0.2.1:8"].map(|text| text.parse().expect("an address"));
    let mut reply = [0; COOKIE_REPLY];
    let first = theirs.initiate();
    assert_eq!(ours.identity.check_mac2(&first, source, 3, &mut reply), CookieCheck::Reply);
    assert_eq!(theirs.take(&reply), Outcome::Nothing);
    let proved = theirs.initiate();
    let mut unused = [0; COOKIE_REPLY];
    assert_eq!(ours.identity.check_mac2(&proved, source, 3, &mut unused), CookieCheck::Proved);
    assert_eq!(unused, [0; COOKIE_REPLY]);
    assert_eq!(ours.identity.check_mac2(&proved, elsewhere, 3, &mut unused), CookieCheck::Reply);
    assert_eq!(ours.identity.check_mac2(&proved, source, 4, &mut unused), CookieCheck::Reply);
}

#[test]
fn two_initiations_may_be_under_way_and_either_be_answered() {
    for first_answered_first in [true, false] {
        let (mut ours, mut theirs) = (Ours::new(None), Theirs::new(None));
        let mut initiations = [ours.initiate(), ours.initiate(), ours.initiate()];
        let responses: Vec<_> = initiations.iter_mut().map(|message| answer(theirs.take(message))).collect();
        assert_eq!(ours.try_take(&responses[0]), Err(Cause::UnknownIndex), "the first of three is given up");
        if first_answered_first {
            assert!(matches!(ours.take(&responses[1]), Outcome::Answer(_)));
        }
        let keepalive = answer(ours.take(&responses[2]));
        // The last answer is what the other end goes on with.
        assert_eq!(ours.try_take(&responses[1]), Err(Cause::UnknownIndex));
        assert_eq!(theirs.take(&keepalive), Outcome::Nothing);
        talk(&mut ours, &mut theirs);
    }
}

#[test]
fn initiations_that_are_not_followed_up_push_nothing_out_but_one_another() {
    let (mut ours, mut theirs) = (Ours::new(None), Theirs::new(None));
    shake_hands(&mut ours, &mut theirs, true);
    let of_first = theirs.seal(&packet(1));
    shake_hands(&mut ours, &mut theirs, true);
    let of_second = theirs.seal(&packet(2));
    let responses: Vec<_> = (0..20).map(|_| answer(ours.take(&theirs.initiate()))).collect();
    assert_eq!(ours.take(&of_first), Outcome::Packet(packet(1)));
    assert_eq!(ours.take(&of_second), Outcome::Packet(packet(2)));
    // Of the twenty, the last two.
    for response in &responses[18..] {
        let keepalive = answer(theirs.take(response));
        assert_eq!(ours.take(&keepalive), Outcome::Nothing);
    }
    talk(&mut ours, &mut theirs);
}

/// Keys and messages of a handshake in which nothing is random, by snow.
#[test]
fn every_byte_of_a_handshake_is_snows() {
    const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    let stamp = Stamp::new([0x40, 0, 0, 0, 0x65, 0, 0, 1, 0, 0x10, 0, 0]);
    let (here, there) =
        (KeyPair::new(*secret(OUR_SEED).expose()), KeyPair::new(*secret(THEIR_SEED).expose()));
    let (ephemeral_here, ephemeral_there) = ([0x51; 32], [0x52; 32]);
    for preshared in [None, Some(secret(5))] {
        let build = |private: &SecretKey, ephemeral: &[u8; 32]| {
            let psk = preshared.as_ref().map_or([0; 32], |key| *key.expose());
            let private = *private.expose();
            let builder = Builder::new(PATTERN.parse().expect("a pattern"))
                .local_private_key(&private)
                .and_then(|builder| builder.psk(2, &psk))
                .and_then(|builder| builder.prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com"))
                .map(|builder| builder.fixed_ephemeral_key_for_testing_only(ephemeral));
            match (private == *secret(OUR_SEED).expose(), builder.expect("a handshake")) {
                (true, builder) => {
                    builder.remote_public_key(&there.public.0).and_then(Builder::build_initiator)
                }
                (false, builder) => builder.build_responder(),
            }
            .expect("a handshake")
        };
        let mut snow_here = build(&secret(OUR_SEED), &ephemeral_here);
        let mut snow_there = build(&secret(THEIR_SEED), &ephemeral_there);

        let shared = handshake::static_secret(&here, &there.public).expect("a good key");
        let (local, remote) = (SessionIndex(0x0403_0201), SessionIndex(0x0807_0605));
        let mut initiation = [0; INITIATION];
        let pending = handshake::initiate(
            &here,
            &there.public,
            &shared,
            ephemeral_here,
            local,
            &stamp,
            &mut initiation,
        )
        .expect("a good key");
        let mut expected = [0; 108];
        assert_eq!(snow_here.write_message(stamp.as_bytes(), &mut expected).expect("fits"), 108);
        assert_eq!(initiation[..8], [1, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(initiation[8..116], expected);

        let claim = handshake::claim(&there, &initiation).expect("authentic");
        assert_eq!(claim.sender, here.public);
        let proved = claim.prove(&shared).expect("authentic");
        assert_eq!((proved.stamp, proved.remote), (stamp, local));
        let mut response = [0; RESPONSE];
        let keys_there =
            proved.respond(preshared.as_ref(), ephemeral_there, remote, &mut response).expect("a good key");
        let mut read = [0; 12];
        assert_eq!(snow_there.read_message(&expected, &mut read).expect("authentic"), 12);
        let mut expected = [0; 48];
        assert_eq!(snow_there.write_message(&[], &mut expected).expect("fits"), 48);
        assert_eq!(response[..12], [2, 0, 0, 0, 5, 6, 7, 8, 1, 2, 3, 4]);
        assert_eq!(response[12..60], expected);

        let keys_here = pending.finish(&here, preshared.as_ref(), &response).expect("authentic");
        assert_eq!((&keys_here.sending, &keys_here.receiving), (&keys_there.receiving, &keys_there.sending));
        snow_here.read_message(&expected, &mut []).expect("authentic");
        let snow_here = snow_here.into_stateless_transport_mode().expect("complete");
        let (born, slept) = (Instant::now(), Duration::ZERO);
        let mut session = Session::new(Origin { local, remote, initiator: true, born, slept }, keys_here);
        session.sent = 0x0102_0304_0506_0708;
        let mut sealed = [0; 60 + DATA_OVERHEAD];
        session.seal(&packet(7), &mut sealed);
        let mut expected = [0; 76];
        assert_eq!(
            snow_here.write_message(0x0102_0304_0506_0708, &packet(7), &mut expected).expect("fits"),
            76
        );
        assert_eq!(sealed[..16], [4, 0, 0, 0, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(sealed[16..], expected);
    }
}
