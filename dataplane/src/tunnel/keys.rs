//! What one peer's sessions need when its preshared key changes: the sessions of before, until there are new ones.
//!
//! boringtun cannot change a preshared key, so that a change makes a new state beside the one there is. Until a handshake
//! has been completed with the new key, packets pass under the old sessions, as in the kernel: both sides cannot change at
//! the same moment. The old state also knows the time stamp of the peer's last initiation, without which a recorded one
//! would be taken for new (and would move the peer to whoever sent it), and is asked first until the new state has one
//! of its own.
//!
//! A state is made when a handshake needs it, and let go when its sessions and handshakes are over ([`Keys::rest`]). Only the
//! peer's last initiation is kept then: shown to the next state, it makes all older ones replays again. Not kept is the time
//! stamp of our own last initiation. Where the wall clock has gone back while a state was at rest, the peer takes
//! our initiations for old until the clock has caught up, as it does with the kernel's.

use std::time::Instant;

use super::key::{PublicKey, SecretKey};
use super::noise::{CONTROL_LEN, Identity, Noise, OpenedData, PEER_TAG_BITS, Usable};
use crate::drops::Cause;
use crate::wire::wireguard::{INITIATION, SessionIndex};

/// The states of the protocol with one peer. A peer without sessions and handshakes has none: boringtun's is 11 KiB long.
pub(super) struct Keys {
    peer: PublicKey,
    preshared: Option<SecretKey>,
    current: State,
    /// Newest last; one of them at most for its sessions, and one for its time stamp.
    older: Vec<State>,
}

struct State {
    noise: Option<Box<Noise>>,
    /// The upper 24 bits of its session indices.
    tag: u32,
    /// The last initiation it has taken; it refuses older ones, and this one again.
    heard: Option<Box<[u8; INITIATION]>>,
}

impl State {
    fn new(tag: u32) -> Self {
        Self { noise: None, tag, heard: None }
    }

    /// The protocol's state, made if there is none: two Diffie-Hellman, and four more where initiations were taken before.
    fn noise(&mut self, identity: &Identity, peer: PublicKey, preshared: Option<&SecretKey>) -> &mut Noise {
        let Self { noise, tag, heard } = self;
        noise.get_or_insert_with(|| {
            let mut noise = Box::new(Noise::new(identity, peer, preshared, *tag));
            if let Some(initiation) = heard {
                noise.relearn(initiation);
            }
            noise
        })
    }

    /// As [`Keys::rest`].
    fn rest(&mut self, identity: &Identity, peer: PublicKey) {
        // To another private key than ours is now, a new state could not open it.
        let can_relearn = |initiation: &[u8; INITIATION]| identity.claimed_sender(initiation) == Some(peer);
        if self.heard.as_deref().is_none_or(can_relearn) {
            self.noise = None;
        } else if let Some(noise) = &mut self.noise {
            noise.forget_sessions(identity);
        }
    }

    fn has_session(&self, now: Instant) -> bool {
        self.noise.as_ref().is_some_and(|noise| noise.has_session(now))
    }

    fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> bool {
        self.noise.as_mut().is_some_and(|noise| noise.seal(packet, out, now))
    }

    fn usable(&self, now: Instant) -> Option<Usable> {
        self.noise.as_ref().and_then(|noise| noise.usable(now))
    }
}

impl Keys {
    /// `tag` (below 2^24) becomes the upper 24 bits of every session index this side chooses.
    pub fn new(peer: PublicKey, preshared: Option<SecretKey>, tag: u32) -> Self {
        Self { peer, preshared, current: State::new(tag), older: Vec::new() }
    }

    /// The preshared key.
    pub fn preshared(&self) -> Option<&SecretKey> {
        self.preshared.as_ref()
    }

    /// Handshakes use another preshared key from now on; they get `tag` where that is needed. The tag that is used and those
    /// that are no longer in use go to `tags`, with whether they are in use.
    pub fn set_preshared(
        &mut self,
        preshared: Option<SecretKey>,
        tag: u32,
        now: Instant,
        mut tags: impl FnMut(u32, bool),
    ) {
        self.preshared = preshared;
        if self.current.noise.is_some() {
            self.older.push(std::mem::replace(&mut self.current, State::new(tag)));
            tags(tag, true);
            self.prune(now, |freed| tags(freed, false));
        }
    }

    /// Lets go of states that nothing needs any more.
    pub fn prune(&mut self, now: Instant, mut freed: impl FnMut(u32)) {
        // Packets under way may arrive under an old session when the new one is there: only age ends it.
        let sessions = self.older.iter().rposition(|state| state.has_session(now));
        let stamps = self
            .older
            .iter()
            .rposition(|state| state.heard.is_some())
            .filter(|_| self.current.heard.is_none());
        let mut place = 0;
        self.older.retain(|state| {
            let needed = Some(place) == sessions || Some(place) == stamps;
            place += 1;
            if !needed {
                freed(state.tag);
            }
            needed
        });
    }

    /// The tags in use.
    pub fn tags(&self) -> impl Iterator<Item = u32> {
        std::iter::once(&self.current).chain(&self.older).map(|state| state.tag)
    }

    /// As [`Noise::usable`].
    pub fn usable(&self, now: Instant) -> Option<Usable> {
        let usable = self.current.usable(now);
        if usable.is_some() || self.older.is_empty() {
            return usable;
        }
        self.older.iter().rev().find_map(|state| state.usable(now))
    }

    /// As [`Noise::seal`].
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> bool {
        if self.current.seal(packet, out, now) {
            return true;
        }
        self.older.iter_mut().rev().any(|state| state.seal(packet, out, now))
    }

    /// As [`Noise::open`].
    pub fn open(
        &mut self,
        datagram: &[u8],
        receiver: SessionIndex,
        out: &mut [u8],
        now: Instant,
    ) -> Result<OpenedData, Cause> {
        self.noise_of(receiver)?.open(datagram, out, now)
    }

    /// As [`Noise::initiate`].
    pub fn initiate(&mut self, identity: &Identity, out: &mut [u8; CONTROL_LEN]) -> Option<usize> {
        self.noise(identity).initiate(out)
    }

    /// As [`Noise::handle_initiation`].
    pub fn handle_initiation(
        &mut self,
        identity: &Identity,
        datagram: &[u8],
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        let initiation: &[u8; INITIATION] = datagram.try_into().map_err(|_| Cause::MalformedOuter)?;
        let Self { peer, preshared, current, older } = self;
        if current.heard.is_none()
            && let Some(older) = older.iter_mut().rev().find(|state| state.heard.is_some())
        {
            // Its answer does not leave: it is asked for the time stamp.
            older.noise(identity, *peer, preshared.as_ref()).handle_initiation(datagram, out, now)?;
            older.heard = Some(Box::new(*initiation));
        }
        let was_at_rest = current.noise.is_none();
        let answered =
            current.noise(identity, *peer, preshared.as_ref()).handle_initiation(datagram, out, now);
        match answered {
            Ok(_) => current.heard = Some(Box::new(*initiation)),
            // Who only claims to be the peer leaves nothing behind.
            Err(_) if was_at_rest => current.noise = None,
            Err(_) => {}
        }
        answered
    }

    /// As [`Noise::handle_response`].
    pub fn handle_response(
        &mut self,
        datagram: &[u8],
        receiver: SessionIndex,
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        self.noise_of(receiver)?.handle_response(datagram, out, now)
    }

    /// As [`Noise::handle_cookie_reply`].
    pub fn handle_cookie_reply(&mut self, datagram: &[u8], receiver: SessionIndex) -> Result<(), Cause> {
        self.noise_of(receiver)?.handle_cookie_reply(datagram)
    }

    /// As [`Noise::forget_sessions`]; whether there was a state that could have some.
    pub fn forget_sessions(&mut self, identity: &Identity) -> bool {
        let mut any = false;
        for noise in self.noises() {
            noise.forget_sessions(identity);
            any = true;
        }
        any
    }

    /// Wipes the sessions that [`Noise::outlived`] speaks of.
    pub fn forget_outlived(&mut self, identity: &Identity) {
        for noise in self.noises() {
            if noise.outlived() {
                noise.forget_sessions(identity);
            }
        }
    }

    /// Lets go of the states, whose sessions and handshakes are over.
    pub fn rest(&mut self, identity: &Identity) {
        for state in std::iter::once(&mut self.current).chain(&mut self.older) {
            state.rest(identity, self.peer);
        }
    }

    fn noises(&mut self) -> impl Iterator<Item = &mut Noise> {
        std::iter::once(&mut self.current)
            .chain(&mut self.older)
            .filter_map(|state| state.noise.as_deref_mut())
    }

    /// The state for handshakes.
    fn noise(&mut self, identity: &Identity) -> &mut Noise {
        let Self { peer, preshared, current, .. } = self;
        current.noise(identity, *peer, preshared.as_ref())
    }

    /// The state that has chosen an index.
    fn noise_of(&mut self, receiver: SessionIndex) -> Result<&mut Noise, Cause> {
        let tag = receiver.0 >> (u32::BITS - PEER_TAG_BITS);
        let Self { current, older, .. } = self;
        let state =
            if current.tag == tag { Some(current) } else { older.iter_mut().find(|state| state.tag == tag) };
        state.and_then(|state| state.noise.as_deref_mut()).ok_or(Cause::UnknownIndex)
    }

    /// As [`Noise::set_sent`].
    #[cfg(test)]
    pub fn set_sent(&mut self, sent: u64) {
        self.current.noise.as_mut().expect("a session").set_sent(sent);
    }

    /// How many states there are, and could be.
    #[cfg(test)]
    pub fn states(&self) -> usize {
        std::iter::once(&self.current).chain(&self.older).filter(|state| state.noise.is_some()).count()
    }

    /// What tests compare before and after.
    #[cfg(test)]
    pub fn picture(&self) -> String {
        let states = std::iter::once(&self.current).chain(&self.older);
        states
            .map(|state| {
                let noise = state.noise.as_ref().map(|noise| noise.picture());
                format!("{} {noise:?} {:?}\n", state.tag, state.heard)
            })
            .collect()
    }
}
