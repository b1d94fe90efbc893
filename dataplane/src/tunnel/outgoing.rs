//! What leaves by itself: what timers ask for, keepalives, and handshakes that we begin.

use std::time::Instant;

use super::apart::apart;
use super::bucket::{Bucket, Rate};
use super::noise::{CONTROL_LEN, Outset};
use super::timers::{Due, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME};
use super::{CONTROL_MAX, Path, PeerIndex, Transmit, Tunnel};
use crate::drops::Cause;
use crate::wire::wireguard::DATA_OVERHEAD;

/// Lines about peers that do not answer.
const SILENCE: Rate = Rate { per_second: 1, burst: 10 };

/// What has been said about peers that do not answer.
pub(super) struct Silence {
    lines: Bucket,
    /// How many peers have had no line since the last line.
    left_out: u64,
}

impl Silence {
    pub fn new(now: Instant) -> Self {
        Self { lines: Bucket::full(&SILENCE, now), left_out: 0 }
    }
}

impl Tunnel {
    pub(super) fn handle_peer_timeout(&mut self, index: PeerIndex, now: Instant) {
        let peer = &mut self.peers[index];
        peer.staged.expire(&mut self.staged_bytes, &mut self.drops, now);
        peer.forget_noted();
        self.poll_paths(index, now);
        while let Some(due) = self.peers[index].timers.poll(now) {
            match due {
                Due::Initiate => {
                    self.peers[index].forget_source();
                    self.start_handshake(index, now);
                }
                Due::Retransmit => {
                    self.note_unanswered(index);
                    self.renew(index);
                    self.peers[index].forget_source();
                    self.initiate(index, now);
                }
                Due::Keepalive { persistent } => self.send_keepalive(index, persistent, now),
                Due::GiveUp => {
                    self.note_unanswered(index);
                    self.tell_of_silence(index, now);
                    let peer = &mut self.peers[index];
                    peer.staged.clear(&mut self.staged_bytes, Cause::StagedExpired, &mut self.drops);
                }
                Due::Erase => {
                    self.peers[index].rest();
                    self.forget_indices(index);
                }
            }
        }
    }

    /// Says that a peer does not answer: once until it has, and not of too many at a time.
    fn tell_of_silence(&mut self, index: PeerIndex, now: Instant) {
        let peer = &mut self.peers[index];
        let is_new = !std::mem::replace(&mut peer.told_silent, true);
        let to = peer.path.map(|path| path.remote().to_string()).unwrap_or_default();
        let (peer, told) = (&peer.public_key, &mut self.silence);
        if !is_new {
            tracing::debug!(%peer, %to, "still no answer from the peer");
        } else if told.lines.take(&SILENCE, now) {
            let others = std::mem::take(&mut told.left_out);
            let text = "no answer from the peer: check its key, Endpoint and firewall";
            match others {
                0 => tracing::warn!(%peer, %to, "{text}"),
                _ => tracing::warn!(%peer, %to, others, "{text}; nor from others, of which debug lines tell"),
            }
        } else {
            told.left_out += 1;
            tracing::debug!(%peer, %to, "no answer from the peer");
        }
    }

    fn note_unanswered(&mut self, index: PeerIndex) {
        // Nobody may be asking. A peer that is left out comes up again at its next attempt.
        if self.unanswered.len() < CONTROL_MAX {
            self.unanswered.push(index);
        }
    }

    fn send_keepalive(&mut self, index: PeerIndex, persistent: bool, now: Instant) {
        let peer = &mut self.peers[index];
        let Some(path) = peer.path.filter(Path::is_usable) else {
            return;
        };
        let mut bytes = [0; CONTROL_LEN];
        if peer.noise.seal(&[], &mut bytes[..DATA_OVERHEAD], now) {
            peer.timers.anything_sent(now);
            self.transmit_to(index, path, bytes, DATA_OVERHEAD);
            self.renew_if_worn(index, now);
        } else if persistent {
            self.start_handshake(index, now);
        }
    }

    /// Starts a handshake after something was sent under a session that is no longer fresh.
    pub(super) fn renew_if_worn(&mut self, index: PeerIndex, now: Instant) {
        let peer = &self.peers[index];
        let worn = peer.noise.usable(now).is_none_or(|session| {
            session.sent >= REKEY_AFTER_MESSAGES || (session.initiator && session.age >= REKEY_AFTER_TIME)
        });
        if worn && !peer.timers.handshake_in_progress() {
            self.start_handshake(index, now);
        }
    }

    /// Begins a new series of attempts, unless an initiation left less than 5 s ago.
    pub(super) fn start_handshake(&mut self, index: PeerIndex, now: Instant) {
        self.renew(index);
        let timers = &mut self.peers[index].timers;
        timers.restart_attempts();
        if timers.may_initiate(now) {
            self.initiate(index, now);
        }
    }

    pub(super) fn initiate(&mut self, index: PeerIndex, now: Instant) {
        let jitter = self.jitter();
        // With a key of small order anybody would know the session's.
        let can_start =
            self.running && self.private_key.is_some() && !self.peers[index].public_key.is_low_order();
        let Some(path) = self.peers[index].path.filter(|_| can_start) else {
            return;
        };
        if self.initiate_by(index, path, now) {
            self.peers[index].timers.initiation_sent(jitter, now);
        }
        self.arm(index, now);
    }

    /// Sends an initiation by `path`, and no repetition of it; `false` when there is none to be had, or it could not go there: as
    /// with the kernel, an address that is none of one host may be given.
    pub(super) fn initiate_by(&mut self, index: PeerIndex, path: Path, now: Instant) -> bool {
        if !path.is_usable() {
            return false;
        }
        let outset = Outset { index: self.new_index(index), path };
        let mut bytes = [0; CONTROL_LEN];
        let Self { identity, world, peers, .. } = self;
        let noise = &mut peers[index].noise;
        let Some(len) = apart(|| noise.initiate(identity, world, outset, &mut bytes, now)) else {
            return false;
        };
        self.note_index(index, outset.index);
        let peer = &mut self.peers[index];
        if let Some(paths) = &mut peer.paths {
            paths.initiated(path, now);
        }
        self.transmit_to(index, path, bytes, len);
        true
    }

    /// As [`Tunnel::transmit`], of a message that counts for a peer.
    pub(super) fn transmit_to(&mut self, index: PeerIndex, path: Path, bytes: [u8; CONTROL_LEN], len: usize) {
        self.peers[index].stats.sent_message_bytes += len as u64;
        self.transmit(path, bytes, len);
    }

    pub(super) fn transmit(&mut self, path: Path, bytes: [u8; CONTROL_LEN], len: usize) {
        if self.control.len() >= CONTROL_MAX {
            self.control_overflows += 1;
            return;
        }
        self.control.push_back(Transmit { path, bytes, len });
    }
}
