//! The face of an allocation: what other workers need to know of it to send its client data by themselves.
//!
//! ```text
//!  owner ── CreatePermission, ChannelBind, Refresh ──► face ──► any worker: may this peer's data go to the client, and how?
//!        ◄────────────── figures of its user ◄──────────────── what it has sent
//! ```
//! A face is never changed: another takes its place. Only an allocation that permits an address of this relay has one, so that
//! it costs nothing where clients talk to the world outside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::allocation::{Peers, State};
use super::auth::UserId;
use super::figures::{Carrier, Direction, Volume};
use super::{AllocationId, ClientSocket, FromPeer, PeerSocket, Server};
use dataplane::drops::Cause;

/// See the module.
#[derive(Debug)]
pub(super) struct Face {
    client: ClientSocket,
    expires: Instant,
    peers: Peers,
    sent: Arc<Sent>,
}

/// What others have sent to an allocation's client.
#[derive(Debug, Default)]
pub(super) struct Sent {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Sent {
    fn add(&self, volume: Volume) {
        // Nothing else follows from these.
        self.packets.fetch_add(volume.packets, Ordering::Relaxed);
        self.bytes.fetch_add(volume.bytes, Ordering::Relaxed);
    }

    /// So far.
    pub fn volume(&self) -> Volume {
        Volume { packets: self.packets.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

impl Face {
    /// What the owner would say to [`Server::handle_posted`].
    pub fn judge(&self, peer: PeerSocket, now: Instant) -> FromPeer {
        if now >= self.expires {
            return FromPeer::Drop(Cause::NoAllocation);
        }
        let client = self.client;
        match self.peers.channel_of(peer, now) {
            Ok(Some(number)) => FromPeer::Channel { client, number },
            Ok(None) => FromPeer::Indication { client },
            Err(cause) => FromPeer::Drop(cause),
        }
    }
}

impl Server {
    /// Shows other workers what an allocation's client has asked for. Where several allocations have one port, their worker has
    /// to say whose a datagram is; and where data has rates, whether it is too much.
    pub(super) fn show(&mut self, id: AllocationId) {
        if !self.commons.places().has_several_workers() || self.shares_ports() {
            return;
        }
        let Some(allocation) = self.table.get(id) else { return };
        let meets_others = allocation.peers().addresses().any(|address| self.is_relay_address(address));
        let Some(allocation) = self.table.get_mut(id) else { return };
        if !meets_others || self.has_rates {
            if allocation.sent.is_some() {
                // What it did permit is gone, or a rate has come.
                self.commons.places().show(allocation.relayed, None);
            }
            return;
        }
        let sent = allocation.sent.get_or_insert_default().clone();
        let (client, expires, peers) = (allocation.client, allocation.expires, allocation.peers().clone());
        let face = Face { client, expires, peers, sent };
        self.commons.places().show(allocation.relayed, Some(Arc::new(face)));
    }

    /// Shows what all allocations have come to, after the rules for them have changed.
    pub(super) fn show_all(&mut self) {
        for id in (0..self.table.index_end() as u32).map(AllocationId) {
            if self.table.get(id).is_some_and(|allocation| allocation.sent.is_some()) {
                self.show(id);
            }
        }
    }

    /// Other workers see nothing of an allocation any more. What they have sent is its user's.
    pub(super) fn hide(&mut self, id: AllocationId) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        let (relayed, user) = (allocation.relayed, allocation.user);
        let sent = allocation.sent.take();
        let is_live = |&other: &AllocationId| {
            other != id && self.table.get(other).is_some_and(|other| other.state == State::Live)
        };
        if !self.directory.tenants(relayed).iter().any(is_live) {
            self.commons.places().set(relayed, None);
        }
        if let Some(sent) = sent {
            self.commons.places().show(relayed, None);
            let relayed = &mut self.users.account_mut(user).relayed;
            relayed.volumes[Direction::ToClient as usize].add(sent.volume());
        }
    }

    /// What others have sent to an allocation's client, with its user, where there is any.
    pub(super) fn sent_by_others(&self, id: AllocationId) -> Option<(UserId, Volume)> {
        let allocation = self.table.get(id)?;
        Some((allocation.user, allocation.sent.as_ref()?.volume()))
    }

    /// Payload was sent to the client of another worker's allocation, by [`super::Route::Foreign`].
    pub fn count_foreign(&mut self, relayed: SocketAddr, carrier: Carrier, volume: Volume) {
        self.figures.count_relayed(Direction::ToClient, carrier, volume);
        self.commons.places().seen(relayed, |face| face.sent.add(volume));
    }
}
