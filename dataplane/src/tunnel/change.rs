//! Changes of a running endpoint: peers come, go and change, the private key is replaced, the interface goes down and up.
//!
//! What costs a Diffie-Hellman for every peer is done in portions ([`Tunnel::renew_some`]), so that packets of others need
//! not wait for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;

use super::key::{KEY_LEN, PublicKey, SecretKey};
use super::noise::{Identity, Noise};
use super::paths::PathFigures;
use super::peer::Peer;
use super::{Path, PeerConfig, PeerIndex, PeerStats, Tunnel};
use crate::drops::Cause;
use crate::wire::wireguard::SessionIndex;

/// What there is to say about a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerView<'a> {
    /// Who it is.
    pub public_key: PublicKey,
    /// The secret shared beforehand.
    pub preshared_key: Option<&'a SecretKey>,
    /// Where it is reached.
    pub path: Option<Path>,
    /// Whether anything authentic has ever come by that path, or, where there is no choice between ways, from the peer at all.
    pub is_heard: bool,
    /// What is routed to it, in order.
    pub allowed_ips: &'a BTreeSet<IpNet>,
    /// Seconds; 0 for none.
    pub persistent_keepalive: u16,
    /// Its figures.
    pub stats: PeerStats,
    /// Those of the choice between ways to it; zeros where there is none.
    pub paths: PathFigures,
}

impl Tunnel {
    /// How many peers there are.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The peer with this key.
    #[must_use]
    pub fn peer(&self, key: &PublicKey) -> Option<PeerIndex> {
        self.by_key.get(key).copied()
    }

    /// The first peer behind `previous`, or of all: going on like this one meets every peer that was there all the time.
    #[must_use]
    pub fn next_peer(&self, previous: Option<PeerIndex>) -> Option<PeerIndex> {
        let start = previous.map_or(0, |index| index.place() + 1);
        (start..self.peers.places()).find_map(|place| self.peers.at(place))
    }

    /// What there is to say about a peer, if it is there.
    #[must_use]
    pub fn view(&self, index: PeerIndex) -> Option<PeerView<'_>> {
        let peer = self.peers.get(index)?;
        Some(PeerView {
            public_key: peer.public_key,
            preshared_key: peer.noise.preshared(),
            path: peer.path,
            is_heard: peer
                .paths
                .as_ref()
                .map_or(peer.stats.received_message_bytes > 0, |paths| paths.is_heard()),
            allowed_ips: &peer.allowed_ips,
            persistent_keepalive: peer.timers.persistent_keepalive(),
            stats: peer.stats,
            paths: peer.path_figures(),
        })
    }

    /// Adds a peer. One that has the key already is removed, and prefixes move to the new one.
    pub fn add_peer(&mut self, config: &PeerConfig, now: Instant) -> PeerIndex {
        if let Some(&index) = self.by_key.get(&config.public_key) {
            self.remove_peer(index);
        }
        let noise = Noise::new(config.public_key, config.preshared_key.clone());
        let index = self.peers.insert(Peer::new(config, noise, self.epoch, now));
        self.by_key.insert(config.public_key, index);
        for prefix in &config.allowed_ips {
            self.add_allowed_ip(index, *prefix);
        }
        self.note_outside(index);
        self.arm(index, now);
        index
    }

    /// Removes a peer with everything that is kept for it. What waited for its handshake is counted as
    /// [`Cause::StagedExpired`]. `false` when it is gone already.
    pub fn remove_peer(&mut self, index: PeerIndex) -> bool {
        let Some(mut peer) = self.peers.remove(index) else {
            return false;
        };
        self.departed.add(&peer.stats);
        self.departed_paths.add(&peer.path_figures());
        self.outside.forget(&peer.outside);
        self.wheel.clear(index.place());
        self.by_key.remove(&peer.public_key);
        for index in &peer.indices {
            self.by_index.remove(index);
        }
        for prefix in &peer.allowed_ips {
            self.routes.remove(*prefix, index);
        }
        peer.staged.clear(&mut self.staged_bytes, Cause::StagedExpired, &mut self.drops);
        true
    }

    /// Routes a prefix to a peer, and accepts it from there. It is taken from whoever had it. Host bits are ignored.
    pub fn add_allowed_ip(&mut self, index: PeerIndex, prefix: IpNet) {
        let prefix = prefix.trunc();
        let Some(peer) = self.peers.get_mut(index) else {
            return;
        };
        peer.allowed_ips.insert(prefix);
        if let Some(previous) = self.routes.insert(prefix, index).filter(|previous| *previous != index) {
            self.peers[previous].allowed_ips.remove(&prefix);
        }
    }

    /// Takes a prefix from a peer; nothing happens when it is not that peer's.
    pub fn remove_allowed_ip(&mut self, index: PeerIndex, prefix: IpNet) {
        let prefix = prefix.trunc();
        if let Some(peer) = self.peers.get_mut(index)
            && peer.allowed_ips.remove(&prefix)
        {
            self.routes.remove(prefix, index);
        }
    }

    /// Takes up to `max` prefixes from a peer; `true` when it has none left.
    pub fn remove_allowed_ips(&mut self, index: PeerIndex, max: usize) -> bool {
        let Some(peer) = self.peers.get_mut(index) else {
            return true;
        };
        for _ in 0..max {
            let Some(prefix) = peer.allowed_ips.pop_first() else {
                break;
            };
            self.routes.remove(prefix, index);
        }
        peer.allowed_ips.is_empty()
    }

    /// Changes the preshared key, for handshakes from now on; sessions that there are go on.
    pub fn set_preshared_key(&mut self, index: PeerIndex, preshared: Option<SecretKey>) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.noise.set_preshared(preshared);
        }
    }

    /// Changes the seconds between persistent keepalives, 0 for none. When there were none, the first leaves at once.
    pub fn set_persistent_keepalive(&mut self, index: PeerIndex, seconds: u16, now: Instant) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.timers.set_persistent(seconds, now);
            self.arm(index, now);
        }
    }

    /// Our private key.
    #[must_use]
    pub fn private_key(&self) -> Option<&SecretKey> {
        self.private_key.as_ref()
    }

    /// Replaces our private key, or takes it away. All sessions end: call [`Tunnel::renew_some`] until it is done. A peer
    /// that has our own public key now is removed.
    pub fn set_private_key(&mut self, private: Option<SecretKey>) {
        if self.private_key == private {
            return;
        }
        // Without a key there has to be some identity; no handshake is made or answered with this one.
        let key = private.clone().unwrap_or_else(|| SecretKey::new([0; KEY_LEN]));
        self.identity = Identity::new(&key, &self.cookie_secret);
        self.private_key = private;
        self.begin_epoch();
        if let Some(ourselves) = self.peer(&self.public_key()) {
            self.remove_peer(ourselves);
        }
    }

    /// Does up to `max` peers' share of what [`Tunnel::set_private_key`] and [`Tunnel::set_running`] ask for; `true` when
    /// everything is done.
    pub fn renew_some(&mut self, max: usize) -> bool {
        /// Places looked at; most may be empty or have nothing to end.
        const PLACES_MAX: usize = 1_024;
        let mut done = 0;
        for _ in 0..PLACES_MAX {
            let Some(place) = self.renewing.filter(|_| done < max) else {
                break;
            };
            if let Some(index) = self.peers.at(place) {
                done += usize::from(self.renew(index));
            }
            self.renewing = Some(place + 1).filter(|next| *next < self.peers.places());
        }
        self.renewing.is_none()
    }

    /// Whether [`Tunnel::renew_some`] has something to do.
    #[must_use]
    pub fn is_renewing(&self) -> bool {
        self.renewing.is_some()
    }

    /// Ends the sessions of a peer that are of an earlier epoch, at the latest before a handshake; whether that was any work.
    pub(super) fn renew(&mut self, index: PeerIndex) -> bool {
        let peer = &mut self.peers[index];
        if peer.epoch == self.epoch {
            return false;
        }
        peer.epoch = self.epoch;
        let ended = peer.end_sessions();
        self.forget_indices(index);
        ended
    }

    fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.renewing = (self.peers.len() > 0).then_some(0);
    }

    /// Lets the kernel choose where messages leave from for peers that had been answered from an address that `is_gone`; costs a
    /// look at every peer.
    pub fn forget_sources(&mut self, is_gone: impl Fn(IpAddr) -> bool) {
        for peer in self.peers.iter_mut() {
            let gone = match peer.path {
                Some(Path::Direct { from, .. }) => from.is_some_and(&is_gone),
                // Where the direct way would begin is not known here.
                Some(Path::Relayed { .. }) => true,
                None => false,
            };
            if gone {
                peer.forget_source();
            }
        }
    }

    /// Changes the MTU of the TUN device, bytes.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// Whether packets can leave and arrive.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Says that packets can leave and arrive, or no longer. Stopping ends all sessions, as the kernel does with an
    /// interface that goes down: call [`Tunnel::renew_some`] until it is done. Starting sends persistent keepalives, and begins
    /// the handshakes that packets wait for.
    pub fn set_running(&mut self, running: bool, now: Instant) {
        if std::mem::replace(&mut self.running, running) == running {
            return;
        }
        for place in 0..self.peers.places() {
            let Some(index) = self.peers.at(place) else {
                continue;
            };
            let peer = &mut self.peers[index];
            if !running {
                peer.timers.stop();
                peer.staged.clear(&mut self.staged_bytes, Cause::StagedExpired, &mut self.drops);
                self.wheel.clear(place);
                continue;
            }
            peer.timers.persistent_now(now);
            if !peer.staged.is_empty() {
                // What waits could not ask for a handshake so far.
                self.start_handshake(index, now);
            }
            self.arm(index, now);
        }
        if !running {
            self.control.clear();
            self.begin_epoch();
        }
    }

    /// A session index that leads to nobody, for the next handshake message to a peer.
    pub(super) fn new_index(&mut self, peer: PeerIndex) -> SessionIndex {
        self.forget_indices(peer);
        loop {
            let index = self.world.index();
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    /// From now on an index leads to a peer.
    pub(super) fn note_index(&mut self, peer: PeerIndex, index: SessionIndex) {
        self.by_index.insert(index, peer);
        self.peers[peer].indices.push(index);
    }

    /// Takes out the indices of a peer's sessions that are gone.
    pub(super) fn forget_indices(&mut self, index: PeerIndex) {
        let Peer { indices, noise, .. } = &mut self.peers[index];
        indices.retain(|index| {
            let stays = noise.has_index(*index);
            if !stays {
                self.by_index.remove(index);
            }
            stays
        });
    }
}
