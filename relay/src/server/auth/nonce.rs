//! Nonces (RFC 8489 section 9.2). None is remembered: each is an HMAC over the client's address, under a key that rotates.
//!
//! ```text
//!  o b M a t J o s 2 | security features, 4 characters | 66 bits of HMAC, 11 characters
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dataplane::stun::PasswordAlgorithm;
use ring::hmac;
use subtle::ConstantTimeEq;

use super::super::random::Random;

/// What a nonce of RFC 8489 starts with: the "nonce cookie" without its features.
const COOKIE: &[u8; 9] = b"obMatJos2";
/// The security features in base64: 24 bits.
const FEATURES_LEN: usize = 4;
/// The HMAC in base64. 66 bits are out of reach of guessing, as each guess is a datagram, and keep two of 2^20 clients
/// from having the same nonce; more would only make every challenge longer.
const TAG_LEN: usize = 11;
/// Length of a nonce in characters: short, because every unauthenticated request is answered with one.
pub const NONCE_LEN: usize = COOKIE.len() + FEATURES_LEN + TAG_LEN;
/// How long one nonce key is handed out; it is accepted for as long again.
pub const NONCE_PERIOD: Duration = Duration::from_secs(30 * 60);

/// What a challenge offers to clients of RFC 8489: how passwords may become keys, and whether names may be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Every user has an MD5 key.
    pub md5: bool,
    /// Every user has an SHA-256 key.
    pub sha256: bool,
    /// Every user can be found by USERHASH.
    pub username_anonymity: bool,
}

impl Offer {
    /// The value of PASSWORD-ALGORITHMS, the preferred one first; empty when there is nothing to choose from.
    #[must_use]
    pub const fn algorithms(self) -> &'static [u8] {
        const MD5: [u8; 4] = PasswordAlgorithm::Md5.entry();
        const SHA256: [u8; 4] = PasswordAlgorithm::Sha256.entry();
        const BOTH: [u8; 8] = {
            let ([a, b, c, d], [e, f, g, h]) = (SHA256, MD5);
            [a, b, c, d, e, f, g, h]
        };
        match (self.sha256, self.md5) {
            (true, true) => &BOTH,
            (true, false) => &SHA256,
            (false, true) => &MD5,
            (false, false) => &[],
        }
    }

    /// The 24 bits of RFC 8489 section 18.1, bit 0 being the highest of the first byte.
    const fn features(self) -> [u8; 3] {
        let password_algorithms = (self.md5 || self.sha256) as u8;
        [password_algorithms << 7 | (self.username_anonymity as u8) << 6, 0, 0]
    }

    /// Two offers never share a nonce, so that what is judged is what the client was offered.
    const fn tag(self) -> u8 {
        self.md5 as u8 | (self.sha256 as u8) << 1 | (self.username_anonymity as u8) << 2
    }
}

/// Makes and checks nonces without remembering any.
#[derive(Debug)]
pub struct Nonces {
    current: hmac::Key,
    previous: hmac::Key,
    /// Unset until the first look at the time.
    rotates_at: Option<Instant>,
}

impl Nonces {
    /// Two fresh keys.
    pub fn new(random: &mut Random) -> Self {
        Self { current: fresh(random), previous: fresh(random), rotates_at: None }
    }

    /// Rotates the keys when it is time.
    pub fn advance(&mut self, random: &mut Random, now: Instant) {
        let rotates_at = *self.rotates_at.get_or_insert(now + NONCE_PERIOD);
        if now < rotates_at {
            return;
        }
        let current = std::mem::replace(&mut self.current, fresh(random));
        // After a pause of two periods the current key is as outdated as the previous one.
        let recent = now < rotates_at + NONCE_PERIOD;
        self.previous = if recent { current } else { fresh(random) };
        self.rotates_at = Some(now + NONCE_PERIOD);
    }

    /// The nonce to hand to a client.
    #[must_use]
    pub fn issue(&self, client: SocketAddr, offer: Offer) -> [u8; NONCE_LEN] {
        nonce(&self.current, client, offer)
    }

    /// Whether a client was given this nonce lately, together with this offer. Compared in constant time; how long it takes
    /// tells of which period a nonce is, which whoever has one knows.
    #[must_use]
    pub fn is_valid(&self, client: SocketAddr, offer: Offer, value: &[u8]) -> bool {
        let is_of = |key| bool::from(nonce(key, client, offer).ct_eq(value));
        is_of(&self.current) || is_of(&self.previous)
    }
}

fn fresh(random: &mut Random) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &random.bytes::<32>())
}

fn nonce(key: &hmac::Key, client: SocketAddr, offer: Offer) -> [u8; NONCE_LEN] {
    let mut input = [0; 19];
    let ip = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    input[..16].copy_from_slice(&ip.octets());
    input[16..18].copy_from_slice(&client.port().to_be_bytes());
    input[18] = offer.tag();
    let tag = hmac::sign(key, &input);
    let mut out = [0; NONCE_LEN];
    let (cookie, rest) = out.split_at_mut(COOKIE.len());
    let (features, end) = rest.split_at_mut(FEATURES_LEN);
    cookie.copy_from_slice(COOKIE);
    let written = BASE64.encode_slice(offer.features(), features);
    debug_assert_eq!(written, Ok(FEATURES_LEN));
    // Nine bytes are twelve characters, of which eleven are used.
    let mut text = [0; TAG_LEN + 1];
    let written = BASE64.encode_slice(&tag.as_ref()[..9], &mut text);
    debug_assert_eq!(written, Ok(TAG_LEN + 1));
    end.copy_from_slice(&text[..TAG_LEN]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: Offer = Offer { md5: true, sha256: true, username_anonymity: true };

    #[test]
    fn a_nonce_is_for_one_address_port_and_offer_only() {
        let nonces = Nonces::new(&mut Random::from_seed(&[1; 32]));
        let client: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let nonce = nonces.issue(client, OFFER);
        assert!(nonces.is_valid(client, OFFER, &nonce));
        for other in ["192.0.2.1:1001", "192.0.2.2:1000", "[2001:db8::1]:1000"] {
            assert!(!nonces.is_valid(other.parse().unwrap(), OFFER, &nonce), "{other}");
        }
        for offer in [
            Offer { md5: false, ..OFFER },
            Offer { sha256: false, ..OFFER },
            Offer { username_anonymity: false, ..OFFER },
        ] {
            assert!(!nonces.is_valid(client, offer, &nonce), "{offer:?}");
        }
        assert!(!nonces.is_valid(client, OFFER, b"") && !nonces.is_valid(client, OFFER, &nonce[..23]));
        assert!(!nonces.is_valid(client, OFFER, &[&nonce[..], b"x"].concat()));
        assert!(nonce.iter().all(u8::is_ascii));
    }

    #[test]
    fn the_nonce_cookie_names_the_features() {
        let nonces = Nonces::new(&mut Random::from_seed(&[1; 32]));
        let client: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        // Bit 0, password algorithms, is the highest of 24 bits; bit 1 is username anonymity.
        for (offer, cookie, algorithms) in [
            (OFFER, "obMatJos2wAAA", &[0, 2, 0, 0, 0, 1, 0, 0][..]),
            (Offer { username_anonymity: false, ..OFFER }, "obMatJos2gAAA", &[0, 2, 0, 0, 0, 1, 0, 0]),
            (Offer { md5: false, ..OFFER }, "obMatJos2wAAA", &[0, 2, 0, 0]),
            (Offer { sha256: false, ..OFFER }, "obMatJos2wAAA", &[0, 1, 0, 0]),
            (Offer { md5: false, sha256: false, ..OFFER }, "obMatJos2QAAA", &[]),
        ] {
            assert_eq!(&nonces.issue(client, offer)[..13], cookie.as_bytes(), "{offer:?}");
            assert_eq!(offer.algorithms(), algorithms, "{offer:?}");
        }
    }

    #[test]
    fn a_nonce_lives_for_one_to_two_periods() {
        let start = origin();
        let mut random = Random::from_seed(&[1; 32]);
        let mut nonces = Nonces::new(&mut random);
        nonces.advance(&mut random, start);
        let client: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let nonce = nonces.issue(client, OFFER);
        nonces.advance(&mut random, start + NONCE_PERIOD - Duration::from_secs(1));
        assert_eq!(nonces.issue(client, OFFER), nonce);
        nonces.advance(&mut random, start + NONCE_PERIOD);
        assert!(nonces.is_valid(client, OFFER, &nonce) && nonces.issue(client, OFFER) != nonce);
        nonces.advance(&mut random, start + 2 * NONCE_PERIOD);
        assert!(!nonces.is_valid(client, OFFER, &nonce));
    }

    #[test]
    fn a_nonce_dies_during_a_long_silence() {
        let start = origin();
        let mut random = Random::from_seed(&[1; 32]);
        let mut nonces = Nonces::new(&mut random);
        nonces.advance(&mut random, start);
        let client: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let nonce = nonces.issue(client, OFFER);
        nonces.advance(&mut random, start + 2 * NONCE_PERIOD);
        assert!(!nonces.is_valid(client, OFFER, &nonce));
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }
}
