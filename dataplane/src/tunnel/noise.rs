//! The WireGuard protocol with one peer (<https://www.wireguard.com/papers/wireguard.pdf>): handshakes, sessions and what limits
//! them. [`super::timers`] decides when something is sent.
//!
//! | file | what is in it |
//! |---|---|
//! | `handshake` | the messages of the handshake, and the keys that come of it |
//! | `cookies` | mac1 and mac2, and the cookies of an endpoint under load |
//! | `identity` | our own keys, and who a message claims to be from |
//! | `session` | sealing and opening under two keys |
//! | `sessions` | which of several sessions is used |
//! | `window` | which counters have been seen |
//! | `world` | clocks and random numbers |

mod cookies;
mod handshake;
mod identity;
#[cfg(test)]
mod picture;
mod session;
mod sessions;
#[cfg(test)]
mod tests;
mod window;
mod world;

use std::time::{Duration, Instant};

use self::cookies::Jar;
pub use self::handshake::Claim;
use self::handshake::{Pending, SessionKeys};
pub use self::identity::{CookieCheck, Identity, contributes, public_key};
use self::session::{Origin, Session};
use self::sessions::Sessions;
pub use self::world::{Stamp, World};
use super::key::{PublicKey, SecretKey};
use super::peer::Path;
use crate::crypto::aead::Body;
use crate::crypto::{Key, Secret};
use crate::drops::Cause;
use crate::wire::wireguard::{self, DATA_OVERHEAD, INITIATION, Message, RESPONSE, SessionIndex};

/// A session older than this carries nothing (WireGuard paper, section 6.1).
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// A session carries no message from this counter on (section 6.1).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Length of the longest message that is not data, bytes.
pub const CONTROL_LEN: usize = INITIATION;

/// Initiations that may wait for their responses: a later one leaves by another way than an earlier, and either may be answered.
const PENDING_MAX: usize = 2;

/// What a handshake message of ours is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outset {
    /// The index by which we know the session that comes of it: nothing else has it, see [`World::index`].
    pub index: SessionIndex,
    /// How it leaves: a cookie is good for one way, because each has another address of ours.
    pub path: Path,
}

/// What sending under the current session would look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usable {
    /// Age of the session.
    pub age: Duration,
    /// Whether this side initiated the handshake.
    pub initiator: bool,
    /// Messages sent under it so far.
    pub sent: u64,
}

/// What a data message held. It was authenticated and its counter was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedData {
    /// How long what was inside is, padding included; 0 for a keepalive.
    pub len: usize,
    /// This message confirmed a session the peer initiated: packets that waited for it can leave.
    pub confirmed: bool,
    /// Age of the session.
    pub age: Duration,
    /// Whether this side initiated the handshake.
    pub initiator: bool,
    /// How many more messages of the peer's are missing than before this one, or fewer.
    pub missing: i64,
}

/// The protocol with one peer.
pub struct Noise {
    peer: PublicKey,
    preshared: Option<SecretKey>,
    /// Time stamp of the last initiation taken: older ones are replays, also when all else is forgotten.
    heard: Option<Stamp>,
    /// A peer without sessions and handshakes has none.
    state: Option<Box<State>>,
}

/// What there is while there are sessions or handshakes.
struct State {
    /// What our static key and the peer's have in common.
    static_secret: Secret,
    sessions: Sessions,
    /// Initiations not answered yet, the last one first.
    pending: [Option<Box<Pending>>; PENDING_MAX],
    jar: Jar,
}

impl State {
    fn new(static_secret: Secret) -> Self {
        Self {
            static_secret,
            sessions: Sessions::default(),
            pending: [const { None }; PENDING_MAX],
            jar: Jar::default(),
        }
    }
}

impl Noise {
    /// With nobody else, and nothing yet with this one.
    #[must_use]
    pub fn new(peer: PublicKey, preshared: Option<SecretKey>) -> Self {
        Self { peer, preshared, heard: None, state: None }
    }

    /// The preshared key.
    #[must_use]
    pub fn preshared(&self) -> Option<&SecretKey> {
        self.preshared.as_ref()
    }

    /// Handshakes end with another preshared key from now on. Sessions that there are go on: both sides cannot change at the
    /// same moment.
    pub fn set_preshared(&mut self, preshared: Option<SecretKey>) {
        self.preshared = preshared;
    }

    /// Whether a session or a handshake under way has this index of ours.
    #[must_use]
    pub fn has_index(&self, index: SessionIndex) -> bool {
        self.awaits(index) || self.state.as_ref().is_some_and(|state| state.sessions.has(index))
    }

    /// Whether an initiation with this index waits for its response.
    #[must_use]
    pub fn awaits(&self, index: SessionIndex) -> bool {
        let pending = self.state.iter().flat_map(|state| state.pending.iter().flatten());
        pending.into_iter().any(|pending| pending.local == index)
    }

    /// Writes a handshake initiation and returns its length; the one before stays valid, if it is unanswered. `None` when the
    /// peer's key is of small order.
    pub fn initiate(
        &mut self,
        identity: &Identity,
        world: &mut World,
        outset: Outset,
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Option<usize> {
        let static_secret = self.static_secret(identity)?;
        let state = self.state.get_or_insert_with(|| Box::new(State::new(static_secret)));
        let pending = handshake::initiate(
            &identity.keys,
            &self.peer,
            &state.static_secret,
            *world.secret(),
            outset.index,
            &world.stamp(),
            out,
        )?;
        state.pending.rotate_right(1);
        state.pending[0] = Some(Box::new(pending));
        state.jar.complete(&self.peer, outset, out, now);
        Some(INITIATION)
    }

    /// Takes a handshake initiation that claims to come from this peer; writes the response and returns its length. Who only
    /// claims to be the peer leaves nothing behind.
    ///
    /// # Errors
    /// [`Cause::Replay`] when it is not later than the last one, [`Cause::BadTag`] when it is not the peer's.
    pub fn handle_initiation(
        &mut self,
        identity: &Identity,
        world: &World,
        claim: Claim,
        outset: Outset,
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        if claim.sender != self.peer {
            return Err(Cause::BadTag);
        }
        let static_secret = self.static_secret(identity).ok_or(Cause::BadTag)?;
        let proved = claim.prove(&static_secret).ok_or(Cause::BadTag)?;
        let (stamp, remote) = (proved.stamp, proved.remote);
        if self.heard.is_some_and(|heard| stamp <= heard) {
            return Err(Cause::Replay);
        }
        let response = out.first_chunk_mut::<RESPONSE>().ok_or(Cause::MalformedOuter)?;
        let state = self.state.get_or_insert_with(|| Box::new(State::new(static_secret)));
        let local = outset.index;
        let keys =
            proved.respond(self.preshared.as_ref(), *world.secret(), local, response).ok_or(Cause::BadTag)?;
        self.heard = Some(stamp);
        state.jar.complete(&self.peer, outset, response, now);
        let origin = Origin { local, remote, initiator: false, born: now, slept: world.slept() };
        state.sessions.add(Session::new(origin, keys), now);
        Ok(RESPONSE)
    }

    /// Takes a handshake response; writes the keepalive that confirms the session and returns its length.
    ///
    /// # Errors
    /// [`Cause::UnknownIndex`] when nothing waits for it, [`Cause::BadTag`] when it is not the peer's.
    pub fn handle_response(
        &mut self,
        identity: &Identity,
        world: &World,
        datagram: &[u8],
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        let Some(Message::Response { sender: remote, receiver: local }) = wireguard::parse(datagram) else {
            return Err(Cause::MalformedOuter);
        };
        let state = self.state.as_mut().ok_or(Cause::UnknownIndex)?;
        let (place, pending) = state
            .pending
            .iter()
            .enumerate()
            .find_map(|(place, pending)| {
                Some((place, pending.as_ref().filter(|pending| pending.local == local)?))
            })
            .ok_or(Cause::UnknownIndex)?;
        let keys: SessionKeys =
            pending.finish(&identity.keys, self.preshared.as_ref(), datagram).ok_or(Cause::BadTag)?;
        // It and those before it are over. A later one is not: the peer goes on with the last that it has answered.
        state.pending[place..].fill_with(|| None);
        state.jar.forget(local);
        let origin = Origin { local, remote, initiator: true, born: now, slept: world.slept() };
        let mut session = Session::new(origin, keys);
        session.seal(&[], &mut out[..DATA_OVERHEAD]);
        state.sessions.add(session, now);
        Ok(DATA_OVERHEAD)
    }

    /// Takes a cookie reply: the next handshake messages by the way that the one took which it answers will carry the cookie. That
    /// way is returned.
    ///
    /// # Errors
    /// [`Cause::UnknownIndex`] or [`Cause::BadTag`] when it does not answer the last handshake message by some way.
    pub fn handle_cookie_reply(&mut self, datagram: &[u8], now: Instant) -> Result<Path, Cause> {
        let Some(Message::CookieReply { receiver }) = wireguard::parse(datagram) else {
            return Err(Cause::MalformedOuter);
        };
        let reply = datagram.try_into().map_err(|_| Cause::MalformedOuter)?;
        let state = self.state.as_mut().ok_or(Cause::UnknownIndex)?;
        state.jar.take(&self.peer, receiver, reply, now)
    }

    /// The session that [`Noise::seal`] would use, if it may be used.
    #[must_use]
    pub fn usable(&self, now: Instant) -> Option<Usable> {
        let session = self.state.as_ref()?.sessions.current().filter(|session| session.usable(now))?;
        Some(Usable { age: session.age(now), initiator: session.origin.initiator, sent: session.sent })
    }

    /// Seals `packet` (padded; empty for a keepalive) into `out`, which must be exactly [`DATA_OVERHEAD`] longer.
    /// `false`, and `out` as it was, when there is no usable session.
    #[must_use]
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> bool {
        let Some(session) = self.sending(packet, out, now) else { return false };
        session.seal(packet, out);
        true
    }

    /// As [`Noise::seal`], but for the sealing: that is to be done by [`crate::crypto::aead::seal`], once, under the key returned.
    #[must_use]
    pub fn write(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Option<&Key> {
        let session = self.sending(packet, out, now)?;
        session.write(packet, out);
        Some(session.sending())
    }

    /// The session under which `packet` can be sealed into `out`.
    fn sending(&mut self, packet: &[u8], out: &[u8], now: Instant) -> Option<&mut Session> {
        let session = self.state.as_mut()?.sessions.current_mut()?;
        (session.usable(now) && out.len() == packet.len() + DATA_OVERHEAD).then_some(session)
    }

    /// The key under which a data message, which says to be for `receiver` and to have this counter, may be opened ahead.
    #[must_use]
    pub fn receiving(&self, (receiver, counter): (SessionIndex, u64), now: Instant) -> Option<&Key> {
        self.state.as_ref()?.sessions.get(receiver)?.receiving(counter, now)
    }

    /// Opens a data message, which says to be for `receiver` and to have this counter, into `out`. Nothing is changed unless it is
    /// authentic and its counter is new.
    ///
    /// # Errors
    /// [`Cause::UnknownIndex`], [`Cause::NoSession`] (expired or worn out), [`Cause::Replay`], [`Cause::BadTag`];
    /// [`Cause::Truncated`] when `out` is shorter than the message.
    pub fn open(
        &mut self,
        datagram: &[u8],
        message: (SessionIndex, u64),
        out: &mut [u8],
        now: Instant,
    ) -> Result<OpenedData, Cause> {
        self.open_body((datagram, Body::Sealed), message, out, now)
    }

    /// As [`Noise::open`], of a message that may have been opened ahead under [`Noise::receiving`].
    ///
    /// # Errors
    /// The same.
    pub fn open_body(
        &mut self,
        (datagram, body): (&[u8], Body),
        (receiver, counter): (SessionIndex, u64),
        out: &mut [u8],
        now: Instant,
    ) -> Result<OpenedData, Cause> {
        let state = self.state.as_mut().ok_or(Cause::UnknownIndex)?;
        let sessions = &mut state.sessions;
        let session = sessions.get_mut(receiver).ok_or(Cause::UnknownIndex)?;
        let (len, missing) = session.open(counter, (datagram, body), out, now)?;
        let (age, initiator) = (session.age(now), session.origin.initiator);
        let confirmed = sessions.confirm(receiver);
        if confirmed {
            state.jar.forget(receiver);
        }
        Ok(OpenedData { len, confirmed, age, initiator, missing })
    }

    /// Whether data messages that we seal are for this index of the peer's.
    #[must_use]
    pub fn seals_for(&self, receiver: SessionIndex) -> bool {
        self.state.as_ref().is_some_and(|state| state.sessions.any(|origin| origin.remote == receiver))
    }

    /// Wipes every session key; handshakes under way go on.
    pub fn forget_sessions(&mut self) {
        if let Some(state) = &mut self.state {
            state.sessions.clear();
        }
    }

    /// Wipes sessions that have outlived their time while the machine slept.
    pub fn forget_outlived(&mut self, world: &World, now: Instant) {
        if let Some(state) = &mut self.state {
            state.sessions.forget_outlived(now, world.slept());
        }
    }

    /// Lets go of everything but the keys and what the peer sent last, so that old initiations remain replays. Whether there
    /// was anything.
    pub fn rest(&mut self) -> bool {
        self.state.take().is_some()
    }

    /// What our static key and the peer's have in common: a Diffie-Hellman, unless it is kept.
    fn static_secret(&self, identity: &Identity) -> Option<Secret> {
        match &self.state {
            Some(state) => Some(state.static_secret.clone()),
            None => handshake::static_secret(&identity.keys, &self.peer),
        }
    }
}
