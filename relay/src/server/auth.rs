//! Long-term credentials and nonces (RFC 8489 section 9.2). Nothing is kept for a source that has not authenticated:
//! a nonce is an HMAC over its address, under a key that rotates.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dataplane::stun::{Key, Message};
use foldhash::fast::RandomState;
use ring::hmac;
use subtle::ConstantTimeEq;

use super::figures::{Direction, Volume};
use super::random::Random;

/// Length of a nonce in characters: short, because every unauthenticated request is answered with one.
pub const NONCE_LEN: usize = 16;
/// How long one nonce key is handed out; it is accepted for as long again.
pub const NONCE_PERIOD: Duration = Duration::from_secs(30 * 60);

/// Index of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserId(u32);

/// One user.
#[derive(Debug)]
pub struct User {
    /// The key of MESSAGE-INTEGRITY.
    pub key: Key,
    /// Allocations held now.
    pub allocations: u32,
    /// The name.
    pub name: Arc<str>,
    /// Relayed payload by [`Direction`], since the start.
    pub relayed: [Volume; Direction::ALL.len()],
}

impl User {
    /// Someone who holds nothing yet.
    fn new(name: Arc<str>, key: Key) -> Self {
        Self { key, allocations: 0, name, relayed: Default::default() }
    }
}

/// Everyone who may allocate.
#[derive(Debug)]
pub struct Credentials {
    realm: String,
    by_name: HashMap<Box<[u8]>, UserId, RandomState>,
    users: Vec<User>,
    /// Who was removed and still has allocations.
    former: HashMap<Box<[u8]>, UserId, RandomState>,
    /// What unknown users are checked against, so that they take as long as known ones.
    nobody: Key,
}

impl Credentials {
    /// Nobody yet, in a realm.
    #[must_use]
    pub fn new(realm: &str) -> Self {
        Self {
            realm: realm.to_owned(),
            by_name: HashMap::default(),
            users: Vec::new(),
            former: HashMap::default(),
            nobody: Key::from_bytes(&[0; 16]),
        }
    }

    /// Adds a user, or replaces the key of one.
    pub fn add(&mut self, name: &str, password: &str) {
        let key = Key::long_term(name.as_bytes(), self.realm.as_bytes(), password.as_bytes());
        if let Some(&UserId(index)) = self.by_name.get(name.as_bytes()) {
            self.users[index as usize].key = key;
            return;
        }
        self.insert(name.as_bytes().into(), User::new(name.into(), key));
    }

    /// Takes over the users of `new`, whose keys were made for the same realm. Who is there already keeps index, allocations
    /// and what was counted, and gets the new key. Who is gone cannot authenticate any more; the index is used again once the
    /// last allocation has ended, and until then it is theirs again if they come back.
    pub fn replace(&mut self, new: Self) {
        debug_assert_eq!(self.realm, new.realm, "keys are made for a realm");
        let mut users: Vec<Option<User>> = new.users.into_iter().map(Some).collect();
        let mut by_name = HashMap::with_capacity_and_hasher(new.by_name.len(), RandomState::default());
        let mut stays = vec![false; self.users.len()];
        let mut added = Vec::new();
        for (name, UserId(index)) in new.by_name {
            let Some(user) = users[index as usize].take() else { continue };
            match self.by_name.get(&name).or_else(|| self.former.get(&name)) {
                Some(&UserId(known)) => {
                    self.users[known as usize].key = user.key;
                    stays[known as usize] = true;
                    by_name.insert(name, UserId(known));
                }
                None => added.push((name, user)),
            }
        }
        let before = std::mem::take(&mut self.by_name).into_iter().chain(std::mem::take(&mut self.former));
        let is_former = |index: u32| !stays[index as usize] && self.users[index as usize].allocations > 0;
        self.former = before.filter(|&(_, UserId(index))| is_former(index)).collect();
        self.by_name = by_name;
        let mut added = added.into_iter();
        for (index, user) in self.users.iter_mut().enumerate() {
            if stays[index] || user.allocations > 0 {
                continue;
            }
            // As a whole: what the one before has relayed is not this one's.
            *user = match added.next() {
                Some((name, user)) => {
                    self.by_name.insert(name, UserId(index as u32));
                    user
                }
                // Nobody's any more: the old key need not stay in memory.
                None => User::new("".into(), Key::from_bytes(&[0; 16])),
            };
        }
        for (name, user) in added {
            self.insert(name, user);
        }
    }

    fn insert(&mut self, name: Box<[u8]>, user: User) {
        let id = UserId(u32::try_from(self.users.len()).expect("fewer than 2^32 users"));
        self.users.push(user);
        self.by_name.insert(name, id);
    }

    /// Places for users: those who are there, and those who were and are not forgotten yet.
    #[cfg(test)]
    pub fn places(&self) -> usize {
        self.users.len()
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// A user.
    #[must_use]
    pub fn user(&self, UserId(index): UserId) -> &User {
        &self.users[index as usize]
    }

    /// Every user.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.iter()
    }

    /// A user, to change.
    pub fn user_mut(&mut self, UserId(index): UserId) -> &mut User {
        &mut self.users[index as usize]
    }
}

/// Why a request is not authentic (RFC 8489 section 9.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthentic {
    /// 400: MESSAGE-INTEGRITY without USERNAME, REALM or NONCE.
    Incomplete,
    /// 401: no MESSAGE-INTEGRITY, an unknown user or a wrong password; a client cannot tell which of the two.
    Unauthorized,
    /// 438: the nonce was never issued, not to this client, or too long ago.
    StaleNonce,
}

/// Checks a request in the order that keeps a source without a valid nonce cheap.
///
/// # Errors
/// What to answer.
pub fn authenticate(
    credentials: &Credentials,
    nonces: &Nonces,
    client: SocketAddr,
    message: &Message<'_>,
) -> Result<UserId, Unauthentic> {
    if !message.has_integrity() {
        return Err(Unauthentic::Unauthorized);
    }
    let (Some(name), Some(realm), Some(nonce)) = (message.username(), message.realm(), message.nonce())
    else {
        return Err(Unauthentic::Incomplete);
    };
    if !nonces.is_valid(client, nonce) {
        return Err(Unauthentic::StaleNonce);
    }
    let user = credentials.by_name.get(name).copied();
    let key = user.map_or(&credentials.nobody, |id| &credentials.user(id).key);
    let right = message.verify_integrity(key) && realm == credentials.realm.as_bytes();
    user.filter(|_| right).ok_or(Unauthentic::Unauthorized)
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
    pub fn issue(&self, client: SocketAddr) -> [u8; NONCE_LEN] {
        nonce(&self.current, client)
    }

    /// Whether a client was given this nonce lately. Compared in constant time.
    #[must_use]
    pub fn is_valid(&self, client: SocketAddr, value: &[u8]) -> bool {
        let current = nonce(&self.current, client).ct_eq(value);
        let previous = nonce(&self.previous, client).ct_eq(value);
        (current | previous).into()
    }
}

fn fresh(random: &mut Random) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &random.bytes::<32>())
}

/// 96 bits of HMAC-SHA256 over the client's address and port, in base64.
fn nonce(key: &hmac::Key, client: SocketAddr) -> [u8; NONCE_LEN] {
    let mut input = [0; 18];
    let ip = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    input[..16].copy_from_slice(&ip.octets());
    input[16..].copy_from_slice(&client.port().to_be_bytes());
    let tag = hmac::sign(key, &input);
    let mut out = [0; NONCE_LEN];
    let written = BASE64.encode_slice(&tag.as_ref()[..NONCE_LEN / 4 * 3], &mut out);
    debug_assert_eq!(written, Ok(NONCE_LEN));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_for_one_address_and_port_only() {
        let nonces = Nonces::new(&mut Random::from_seed(&[1; 32]));
        let client: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let nonce = nonces.issue(client);
        assert!(nonces.is_valid(client, &nonce));
        for other in ["192.0.2.1:1001", "192.0.2.2:1000", "[2001:db8::1]:1000"] {
            assert!(!nonces.is_valid(other.parse().unwrap(), &nonce), "{other}");
        }
        assert!(!nonces.is_valid(client, b"") && !nonces.is_valid(client, &nonce[..15]));
        assert!(nonce.iter().all(u8::is_ascii));
    }

    #[test]
    fn a_nonce_lives_for_one_to_two_periods() {
        let start = origin();
        let mut random = Random::from_seed(&[1; 32]);
        let mut nonces = Nonces::new(&mut random);
        nonces.advance(&mut random, start);
        let client: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let nonce = nonces.issue(client);
        nonces.advance(&mut random, start + NONCE_PERIOD - Duration::from_secs(1));
        assert_eq!(nonces.issue(client), nonce);
        nonces.advance(&mut random, start + NONCE_PERIOD);
        assert!(nonces.is_valid(client, &nonce) && nonces.issue(client) != nonce);
        nonces.advance(&mut random, start + 2 * NONCE_PERIOD);
        assert!(!nonces.is_valid(client, &nonce));
    }

    #[test]
    fn a_nonce_dies_during_a_long_silence() {
        let start = origin();
        let mut random = Random::from_seed(&[1; 32]);
        let mut nonces = Nonces::new(&mut random);
        nonces.advance(&mut random, start);
        let client: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let nonce = nonces.issue(client);
        nonces.advance(&mut random, start + 2 * NONCE_PERIOD);
        assert!(!nonces.is_valid(client, &nonce));
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }
}
