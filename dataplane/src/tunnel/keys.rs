//! What one peer's sessions need when its preshared key changes: the sessions of before, until there are new ones.
//!
//! boringtun cannot change a preshared key, so that a change makes a new state beside the one there is. Until a handshake
//! has been completed with the new key, packets pass under the old sessions, as in the kernel: both sides cannot change at
//! the same moment. The old state also knows the time stamp of the peer's last initiation, without which a recorded one
//! would be taken for new (and would move the peer to whoever sent it), and is asked first until the new state has one
//! of its own.

use std::time::Instant;

use super::key::{PublicKey, SecretKey};
use super::noise::{CONTROL_LEN, Identity, Noise, OpenedData, Usable};
use crate::drops::Cause;
use crate::wire::wireguard::SessionIndex;

/// The states of the protocol with one peer.
pub(super) struct Keys {
    current: State,
    /// Newest last; one of them at most for its sessions, and one for its time stamp.
    older: Vec<State>,
}

struct State {
    noise: Noise,
    /// The upper 24 bits of its session indices.
    tag: u32,
    /// It has taken an initiation, and refuses older ones.
    heard: bool,
}

impl State {
    fn new(identity: &Identity, peer: PublicKey, preshared: Option<&SecretKey>, tag: u32) -> Self {
        Self { noise: Noise::new(identity, peer, preshared, tag), tag, heard: false }
    }
}

impl Keys {
    /// As [`Noise::new`].
    pub fn new(identity: &Identity, peer: PublicKey, preshared: Option<&SecretKey>, tag: u32) -> Self {
        Self { current: State::new(identity, peer, preshared, tag), older: Vec::new() }
    }

    /// Handshakes use another preshared key from now on, and `tag`. Tags that are no longer in use go to `freed`.
    pub fn set_preshared(
        &mut self,
        identity: &Identity,
        peer: PublicKey,
        preshared: Option<&SecretKey>,
        tag: u32,
        now: Instant,
        freed: impl FnMut(u32),
    ) {
        let new = State::new(identity, peer, preshared, tag);
        self.older.push(std::mem::replace(&mut self.current, new));
        self.prune(now, freed);
    }

    /// Lets go of states that nothing needs any more.
    pub fn prune(&mut self, now: Instant, mut freed: impl FnMut(u32)) {
        // Packets under way may arrive under an old session when the new one is there: only age ends it.
        let sessions = self.older.iter().rposition(|state| state.noise.has_session(now));
        let stamps = self.older.iter().rposition(|state| state.heard).filter(|_| !self.current.heard);
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
        let usable = self.current.noise.usable(now);
        if usable.is_some() || self.older.is_empty() {
            return usable;
        }
        self.older.iter().rev().find_map(|state| state.noise.usable(now))
    }

    /// As [`Noise::seal`].
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> bool {
        if self.current.noise.seal(packet, out, now) {
            return true;
        }
        self.older.iter_mut().rev().any(|state| state.noise.seal(packet, out, now))
    }

    /// As [`Noise::open`].
    pub fn open(
        &mut self,
        datagram: &[u8],
        receiver: SessionIndex,
        out: &mut [u8],
        now: Instant,
    ) -> Result<OpenedData, Cause> {
        self.state_of(receiver).noise.open(datagram, out, now)
    }

    /// As [`Noise::initiate`].
    pub fn initiate(&mut self, out: &mut [u8; CONTROL_LEN]) -> Option<usize> {
        self.current.noise.initiate(out)
    }

    /// As [`Noise::handle_initiation`].
    pub fn handle_initiation(
        &mut self,
        datagram: &[u8],
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        if !self.current.heard
            && let Some(older) = self.older.iter_mut().rev().find(|state| state.heard)
        {
            // Its answer does not leave: it is asked for the time stamp.
            older.noise.handle_initiation(datagram, out, now)?;
        }
        let len = self.current.noise.handle_initiation(datagram, out, now)?;
        self.current.heard = true;
        Ok(len)
    }

    /// As [`Noise::handle_response`].
    pub fn handle_response(
        &mut self,
        datagram: &[u8],
        receiver: SessionIndex,
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        self.state_of(receiver).noise.handle_response(datagram, out, now)
    }

    /// As [`Noise::handle_cookie_reply`].
    pub fn handle_cookie_reply(&mut self, datagram: &[u8], receiver: SessionIndex) -> Result<(), Cause> {
        self.state_of(receiver).noise.handle_cookie_reply(datagram)
    }

    /// As [`Noise::forget_sessions`].
    pub fn forget_sessions(&mut self, identity: &Identity) {
        self.current.noise.forget_sessions(identity);
        for state in &mut self.older {
            state.noise.forget_sessions(identity);
        }
    }

    /// Wipes the sessions that [`Noise::outlived`] speaks of.
    pub fn forget_outlived(&mut self, identity: &Identity) {
        for state in std::iter::once(&mut self.current).chain(&mut self.older) {
            if state.noise.outlived() {
                state.noise.forget_sessions(identity);
            }
        }
    }

    /// The state that has chosen an index.
    fn state_of(&mut self, receiver: SessionIndex) -> &mut State {
        let tag = receiver.0 >> (u32::BITS - super::noise::PEER_TAG_BITS);
        if self.current.tag == tag {
            return &mut self.current;
        }
        self.older.iter_mut().find(|state| state.tag == tag).unwrap_or(&mut self.current)
    }

    /// As [`Noise::set_sent`].
    #[cfg(test)]
    pub fn set_sent(&mut self, sent: u64) {
        self.current.noise.set_sent(sent);
    }

    /// How many states there are.
    #[cfg(test)]
    pub fn states(&self) -> usize {
        1 + self.older.len()
    }
}
