//! Long-term credentials (RFC 8489 section 9.2): who sent a request, and with which key it is answered. Nothing is kept for
//! a source that has not authenticated.

mod credentials;
mod nonce;
mod shared_secret;
mod users;

use std::net::SocketAddr;
use std::time::Duration;

use dataplane::stun::{Integrity, Key, LongTermKey, Message, PasswordAlgorithm};

pub use self::credentials::{Credentials, StaticKeys};
pub use self::nonce::{NONCE_LEN, NONCE_PERIOD, Nonces, Offer};
pub use self::shared_secret::{SECRETS_MAX, Secrets, TimedName, VALIDITY_MAX_DEFAULT};
pub use self::users::{Identity, RESTING_MAX, User, UserId, Users};

use self::credentials::Username;
use self::shared_secret::SecretMark;

/// Longest USERNAME in bytes (RFC 8489 section 14.3: fewer than 509).
pub const NAME_LEN_MAX: usize = 508;

/// Why a request is not authentic (RFC 8489 section 9.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthentic {
    /// 400: an integrity attribute without REALM, NONCE, or one of USERNAME and USERHASH.
    Incomplete,
    /// 400: PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS do not go with what the challenge offered: someone on the way may
    /// have made the offer weaker.
    WeakerOffer,
    /// 401: no integrity attribute that counts, an unknown user, a name too long to be one, a wrong password, a name whose
    /// time is over; a client cannot tell which of these.
    Unauthorized,
    /// 438: the nonce was never issued, not to this client, or too long ago.
    StaleNonce,
}

/// What the answer to a request is protected with.
#[derive(Clone, Debug)]
pub struct AnswerKey {
    key: LongTermKey,
    integrity: Integrity,
    /// Which secret made it; none made a static user's.
    secret: Option<SecretMark>,
}

impl AnswerKey {
    /// With the key schedule, which is computed here each time.
    #[must_use]
    pub fn schedule(&self) -> Key {
        self.key.for_integrity(self.integrity)
    }
}

/// An authentic request.
#[derive(Debug)]
pub struct Authentic<'a> {
    /// Who sent it.
    pub identity: Identity<'a>,
    /// What its answer is protected with.
    pub answer: AnswerKey,
}

/// The live allocation on the 5-tuple of a request, when a user from a shared secret made it.
///
/// Its user goes on after the name has expired: a name limits when an allocation may be made, and a call must not end because
/// it is long. Without the secret that made its key it does not: one that has leaked is taken out to be rid of who has it.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Whose it is.
    pub id: &'a [u8],
    /// The key of the request that made it.
    pub answer: &'a AnswerKey,
}

/// Checks a request, in an order that keeps a source without a valid nonce cheap. `wall` is the time since 1970, UTC,
/// where it is known.
///
/// # Errors
/// What to answer.
pub fn authenticate<'a>(
    credentials: &'a Credentials,
    nonces: &Nonces,
    client: SocketAddr,
    held: Option<Held<'_>>,
    message: &Message<'a>,
    wall: Option<Duration>,
) -> Result<Authentic<'a>, Unauthentic> {
    if !message.has_integrity() && !message.has_integrity_sha256() {
        return Err(Unauthentic::Unauthorized);
    }
    let username = match (message.username(), message.userhash()) {
        (Some(name), None) => Username::Plain(name),
        (None, Some(hash)) => Username::Hashed(hash),
        (None, None) | (Some(_), Some(_)) => return Err(Unauthentic::Incomplete),
    };
    let (Some(realm), Some(nonce)) = (message.realm(), message.nonce()) else {
        return Err(Unauthentic::Incomplete);
    };
    let offer = credentials.offer();
    if !nonces.is_valid(client, offer, nonce) {
        return Err(Unauthentic::StaleNonce);
    }
    // RFC 8489 section 14.3: nobody is called that, and nothing below has to deal with it.
    if matches!(username, Username::Plain(name) if name.len() > NAME_LEN_MAX) {
        return Err(Unauthentic::Unauthorized);
    }
    let negotiated = negotiated(offer, message)?;
    let request = Request {
        username,
        algorithm: negotiated.unwrap_or(PasswordAlgorithm::Md5),
        integrity: judged_by(message, negotiated.is_some())?,
        message,
    };
    let Proof { identity, key, secret } = request
        .identify(credentials, held, wall)
        .filter(|_| realm == credentials.realm().as_bytes())
        .ok_or(Unauthentic::Unauthorized)?;
    // RFC 8489 section 9.2.4, at its end: a client that chose no algorithm is answered as one before RFC 8489, unless it
    // has shown that it knows the newer attribute only.
    let integrity =
        if negotiated.is_none() && message.has_integrity() { Integrity::Sha1 } else { request.integrity };
    Ok(Authentic { identity, answer: AnswerKey { key, integrity, secret } })
}

/// The password algorithm that a client chose from the offer that came with its nonce; `None` when it chose none, as one
/// before RFC 8489. The nonce is ours, so the offer is the one that is in it.
fn negotiated(offer: Offer, message: &Message<'_>) -> Result<Option<PasswordAlgorithm>, Unauthentic> {
    let chosen = message.password_algorithm().map_err(|_| Unauthentic::WeakerOffer)?;
    let (echoed, chosen) = match (message.password_algorithms(), chosen) {
        (None, None) => return Ok(None),
        (Some(echoed), Some(chosen)) => (echoed, chosen),
        (Some(_), None) | (None, Some(_)) => return Err(Unauthentic::WeakerOffer),
    };
    let offered = offer.algorithms();
    let is_offered = offered.as_chunks::<4>().0.contains(&chosen.entry());
    if echoed == offered && is_offered { Ok(Some(chosen)) } else { Err(Unauthentic::WeakerOffer) }
}

/// Which integrity attribute decides. Whoever was offered algorithms and took one has to use the newer attribute (RFC 8489
/// section 9.2.5): the older one alone may be what someone on the way left of both, and counts as none.
fn judged_by(message: &Message<'_>, has_negotiated: bool) -> Result<Integrity, Unauthentic> {
    match (message.has_integrity_sha256(), has_negotiated) {
        (true, _) => Ok(Integrity::Sha256),
        (false, false) => Ok(Integrity::Sha1),
        (false, true) => Err(Unauthentic::Unauthorized),
    }
}

/// What of a request decides which keys it may be right with.
struct Request<'a, 'm> {
    username: Username<'a>,
    algorithm: PasswordAlgorithm,
    integrity: Integrity,
    message: &'m Message<'a>,
}

/// Who sent a request, and the key that it is right with.
struct Proof<'a> {
    identity: Identity<'a>,
    key: LongTermKey,
    secret: Option<SecretMark>,
}

impl<'a> Request<'a, '_> {
    fn is_right_with(&self, key: &LongTermKey) -> bool {
        self.message.verify_integrity(&key.for_integrity(self.integrity))
    }

    /// Who sent it. How long this takes tells the form of a name, and how many secrets there are, but not which names exist.
    fn identify(
        &self,
        credentials: &'a Credentials,
        held: Option<Held<'_>>,
        wall: Option<Duration>,
    ) -> Option<Proof<'a>> {
        let found = credentials.find(self.username, self.algorithm);
        if found.is_none()
            && !credentials.secrets().is_empty()
            && let Username::Plain(name) = self.username
            && let Some(timed) = TimedName::parse(name)
        {
            return self.identify_timed(credentials, held, name, timed, wall);
        }
        let key = found.map_or_else(|| credentials.nobody(self.algorithm), |(_, key)| key);
        let is_right = self.is_right_with(key);
        let (name, key) = found.filter(|_| is_right)?;
        Some(Proof { identity: Identity::Static(name), key: key.clone(), secret: None })
    }

    fn identify_timed(
        &self,
        credentials: &Credentials,
        held: Option<Held<'_>>,
        name: &[u8],
        timed: TimedName<'a>,
        wall: Option<Duration>,
    ) -> Option<Proof<'a>> {
        let secrets = credentials.secrets();
        let held = held
            .filter(|held| held.id == timed.id && held.answer.key.algorithm() == self.algorithm)
            .and_then(|held| Some((held.answer.key.clone(), held.answer.secret?)))
            .filter(|&(_, secret)| secrets.has(secret));
        let is_in_time = wall.is_some_and(|wall| secrets.is_in_time(timed, wall));
        let fresh = is_in_time
            .then(|| secrets.marked_keys(self.algorithm, name, credentials.realm().as_bytes()))
            .into_iter()
            .flatten();
        let (key, secret) = held.into_iter().chain(fresh).find(|(key, _)| self.is_right_with(key))?;
        Some(Proof { identity: Identity::Shared(timed.id), key, secret: Some(secret) })
    }
}
