//! One session: two keys, the counters under each, and how long they may be used.

use std::time::{Duration, Instant};

use ring::aead::Aad;

use super::handshake::SessionKeys;
use super::window::Window;
use super::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};
use crate::crypto::Key;
use crate::crypto::aead::{self, Body, cipher, nonce};
use crate::drops::Cause;
use crate::tunnel::missing::Arrived;
use crate::wire::wireguard::{DATA_HEADER, DATA_OVERHEAD, SessionIndex, TAG};

/// How a session came about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// The index we chose.
    pub local: SessionIndex,
    /// The index the peer chose.
    pub remote: SessionIndex,
    /// Whether we initiated the handshake.
    pub initiator: bool,
    pub born: Instant,
    /// How long the machine had slept by then.
    pub slept: Duration,
}

/// A session.
pub(super) struct Session {
    pub origin: Origin,
    /// The peer has shown that it has the keys.
    pub confirmed: bool,
    /// Counter of the next message sent.
    pub sent: u64,
    pub(super) window: Window,
    arrived: Arrived,
    sending: Key,
    receiving: Key,
}

impl Session {
    /// Who responds waits for a message under it before it uses the session.
    pub fn new(origin: Origin, keys: SessionKeys) -> Self {
        let SessionKeys { sending, receiving } = keys;
        Self {
            origin,
            confirmed: origin.initiator,
            sent: 0,
            window: Window::new(),
            arrived: Arrived::default(),
            sending: Key::new(sending),
            receiving: Key::new(receiving),
        }
    }

    /// How old it is, but for the time that the machine has slept.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin.born)
    }

    /// Whether its time is over.
    pub fn expired(&self, now: Instant) -> bool {
        self.age(now) >= REJECT_AFTER_TIME
    }

    /// Whether its time is over only because the machine has slept, for `slept` altogether.
    pub fn outlived(&self, now: Instant, slept: Duration) -> bool {
        !self.expired(now) && self.age(now) + slept.saturating_sub(self.origin.slept) >= REJECT_AFTER_TIME
    }

    /// Whether a message may be sent under it.
    pub fn usable(&self, now: Instant) -> bool {
        self.confirmed && !self.expired(now) && self.sent < REJECT_AFTER_MESSAGES
    }

    /// Seals `packet` into `out`, which is [`DATA_OVERHEAD`] longer. The session must be usable.
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) {
        self.write(packet, out);
        aead::seal(&cipher(&self.sending), out);
    }

    /// Writes the message that [`aead::seal`] is to seal under [`Session::sending`], once; otherwise as [`Session::seal`].
    pub fn write(&mut self, packet: &[u8], out: &mut [u8]) {
        debug_assert!(self.sent < REJECT_AFTER_MESSAGES && out.len() == packet.len() + DATA_OVERHEAD);
        let (header, rest) = out.split_at_mut(DATA_HEADER);
        header[..4].copy_from_slice(&[4, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.origin.remote.0.to_le_bytes());
        header[8..].copy_from_slice(&self.sent.to_le_bytes());
        rest[..packet.len()].copy_from_slice(packet);
        self.sent += 1;
    }

    /// The key under which messages are sealed.
    pub fn sending(&self) -> &Key {
        &self.sending
    }

    /// The key under which a message with this counter may be opened ahead; `None` where [`Session::open`] would refuse it.
    pub fn receiving(&self, counter: u64, now: Instant) -> Option<&Key> {
        let admitted = !self.expired(now) && counter < REJECT_AFTER_MESSAGES && self.window.admits(counter);
        admitted.then_some(&self.receiving)
    }

    /// Opens a message with this counter into `out`, unless somebody has done so where it is: how long what was inside is, and how many more messages of the peer's are
    /// missing than before, or fewer. Nothing is changed unless it is authentic and its counter is new.
    ///
    /// # Errors
    /// [`Cause::NoSession`] (expired or worn out), [`Cause::Replay`], [`Cause::BadTag`]; [`Cause::Truncated`] when `out` is
    /// shorter than the message.
    pub fn open(
        &mut self,
        counter: u64,
        (datagram, body): (&[u8], Body),
        out: &mut [u8],
        now: Instant,
    ) -> Result<(usize, i64), Cause> {
        if self.expired(now) || counter >= REJECT_AFTER_MESSAGES {
            return Err(Cause::NoSession);
        }
        let sealed = datagram.get(DATA_HEADER..).ok_or(Cause::MalformedOuter)?;
        let out = out.get_mut(..sealed.len()).ok_or(Cause::Truncated)?;
        // Replays cost no decryption.
        if !self.window.admits(counter) {
            return Err(Cause::Replay);
        }
        out.copy_from_slice(sealed);
        let len = match body {
            Body::Opened => out.len().checked_sub(TAG).ok_or(Cause::MalformedOuter)?,
            Body::Forged => return Err(Cause::BadTag),
            Body::Sealed => {
                let cipher = cipher(&self.receiving);
                let opened = cipher.open_in_place(nonce(counter), Aad::empty(), out);
                opened.map_err(|_| Cause::BadTag)?.len()
            }
        };
        self.window.note(counter);
        Ok((len, self.arrived.note(counter)))
    }
}
