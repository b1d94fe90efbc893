//! Where peers are reached. Of those that can be reached by two ways, what [`Paths`] decides is done here.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::noise::CONTROL_LEN;
use super::paths::{Action, PathFigures, Paths, Policy};
use super::{Path, PeerIndex, Tunnel};
use crate::wire::wireguard::DATA_OVERHEAD;

impl Tunnel {
    /// Where `peer` is reached now.
    #[must_use]
    pub fn path(&self, peer: PeerIndex) -> Option<Path> {
        self.peers.get(peer)?.path
    }

    /// Sets where `peer` is reached, and starts a handshake if anything waits for that. `None` says that the way is
    /// being made anew: packets wait for it.
    pub fn set_path(&mut self, index: PeerIndex, path: Option<Path>, now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else {
            return;
        };
        let was_unreachable = peer.path.is_none();
        peer.path = path;
        peer.awaits_path = path.is_none();
        self.outside.note(index, peer);
        if path.is_some() && was_unreachable {
            peer.timers.persistent_now(now);
            if !peer.staged.is_empty() {
                self.start_handshake(index, now);
            }
        }
        self.arm(index, now);
    }

    /// From now on there is a relay by which the peer can be reached, besides the path it has so far. `awaits` says that the
    /// way over the relay is being made: packets wait for it where no other may be used.
    pub fn choose_paths(&mut self, index: PeerIndex, policy: Policy, awaits: bool, now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else {
            return;
        };
        let direct = peer.path.filter(|path| matches!(path, Path::Direct { .. }));
        peer.paths = Some(Box::new(Paths::new(policy, direct)));
        peer.path = None;
        peer.awaits_path = awaits;
        self.follow_paths(index, now);
    }

    /// What may be used to reach a peer, where there is a choice.
    #[must_use]
    pub fn paths(&self, index: PeerIndex) -> Option<&Paths> {
        self.peers.get(index)?.paths.as_deref()
    }

    /// Counters of the switches between the ways to a peer; zeros where there is no choice.
    #[must_use]
    pub fn path_figures(&self, index: PeerIndex) -> PathFigures {
        self.paths(index).map(Paths::figures).unwrap_or_default()
    }

    /// Sets where a peer is reached directly; it is tried there first.
    pub fn set_direct(&mut self, index: PeerIndex, to: SocketAddr, now: Instant) {
        let path = Path::Direct { to, from: None };
        match self.peers.get_mut(index).map(|peer| &mut peer.paths) {
            None => {}
            Some(None) => self.set_path(index, Some(path), now),
            Some(Some(paths)) => {
                paths.set_direct(Some(path));
                self.follow_paths(index, now);
            }
        }
    }

    /// Whether what is for this address is routed into the tunnel.
    #[must_use]
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.routes.find(address).is_some()
    }

    /// A peer that chooses between ways says where it may be reached directly, and until when. Addresses that are routed into
    /// the tunnel are left out, unless the `marked` datagrams that leave our sockets are routed otherwise: they would reach
    /// the peer, by the tunnel itself.
    pub fn set_candidates(
        &mut self,
        index: PeerIndex,
        addresses: impl Iterator<Item = SocketAddr>,
        until: Instant,
        marked: bool,
        now: Instant,
    ) {
        let addresses: Vec<SocketAddr> =
            addresses.filter(|address| marked || !self.is_inside(address.ip())).collect();
        if let Some(paths) = self.peers.get_mut(index).and_then(|peer| peer.paths.as_mut()) {
            paths.set_candidates(addresses.into_iter(), until, now);
            self.follow_paths(index, now);
        }
    }

    /// The relay has a channel to the peer, or has none any more.
    pub fn set_relayed(&mut self, index: PeerIndex, path: Option<Path>, now: Instant) {
        if let Some(paths) = self.peers.get_mut(index).and_then(|peer| peer.paths.as_mut()) {
            paths.set_relayed(path, now);
            self.follow_paths(index, now);
        }
    }

    /// Goes over to the way that is in use now.
    pub(super) fn follow_paths(&mut self, index: PeerIndex, now: Instant) {
        let peer = &mut self.peers[index];
        let Some(paths) = &peer.paths else {
            return;
        };
        let active = paths.active();
        let previous = std::mem::replace(&mut peer.path, active);
        self.outside.note(index, peer);
        match (previous, active) {
            (Some(_), None) => peer.awaits_path = true,
            (None, Some(_)) => {
                peer.awaits_path = false;
                peer.timers.persistent_now(now);
                if peer.noise.usable(now).is_some() {
                    self.unstage(index);
                } else if !peer.staged.is_empty() {
                    self.start_handshake(index, now);
                }
            }
            _ => {}
        }
        if let (Some(from), Some(to)) = (previous, active)
            && std::mem::discriminant(&from) != std::mem::discriminant(&to)
        {
            let peer = self.peers[index].public_key;
            tracing::info!(%peer, from = %from, to = %to, "another path is used");
        }
        self.arm(index, now);
    }

    /// Does what is due to find out which way works.
    pub(super) fn poll_paths(&mut self, index: PeerIndex, now: Instant) {
        while let Some(action) = self.peers[index].paths.as_mut().and_then(|paths| paths.poll(now)) {
            match action {
                Action::Probe(path) => {
                    if self.running && self.private_key.is_some() {
                        self.initiate_by(index, path, now);
                    }
                }
                Action::Announce(path) => {
                    self.follow_paths(index, now);
                    self.announce(index, path, now);
                }
            }
        }
        self.follow_paths(index, now);
    }

    /// Lets the peer follow us.
    fn announce(&mut self, index: PeerIndex, path: Path, now: Instant) {
        let peer = &mut self.peers[index];
        let mut bytes = [0; CONTROL_LEN];
        let has_session = peer.noise.seal(&[], &mut bytes[..DATA_OVERHEAD], now);
        let wanted = has_session || !peer.staged.is_empty() || peer.timers.handshake_in_progress();
        if has_session {
            peer.timers.anything_sent(now);
            self.transmit_to(index, path, bytes, DATA_OVERHEAD);
        }
        if wanted && matches!(path, Path::Relayed { .. }) {
            self.initiate(index, now);
        }
    }
}
