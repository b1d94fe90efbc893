//! Hairpin: data for a peer that is another allocation of this relay goes straight to that allocation's client.
//!
//! ```text
//!  client A ──► allocation A ─ ─ may A send to B's relayed address?
//!                                may B receive from A's relayed address?
//!  client B ◄── allocation B ◄─ ─ ┘
//! ```
//! Everything is judged as if the kernel had carried the datagram from socket to socket. What leaves goes to a client, never
//! to an allocation, so that nothing can go round in circles: one datagram from a client makes one to a client at most.
//!
//! While hairpin is on, nothing between two live allocations goes through their sockets. That keeps the order of a flow when
//! an allocation comes: what was sent to its address before is not let in behind what was sent after.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use dataplane::drops::Cause;

use super::{AllocationId, FromPeer, PeerSocket, Server, WorkerId};

/// Where a client's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the peer, through the socket of the sender's allocation.
    Socket,
    /// To another client of this relay, or to the same one.
    Client {
        /// Whose allocation it reaches.
        receiver: AllocationId,
        /// How: never [`FromPeer::Drop`].
        to: FromPeer,
        /// The sender's relayed address as the receiver knows it.
        seen_as: PeerSocket,
    },
    /// To a client of another worker, whose allocation shows its face: straight from here, if the client can be reached from
    /// here, and then [`Server::count_foreign`] counts it; else as [`Route::Worker`].
    Foreign {
        /// Who serves it.
        worker: WorkerId,
        /// The local address of the receiver's allocation.
        relayed: SocketAddr,
        /// How: never [`FromPeer::Drop`].
        to: FromPeer,
        /// The sender's relayed address as the receiver knows it.
        seen_as: PeerSocket,
    },
    /// To a client of another worker, who has its allocation and will judge by [`Server::handle_posted`].
    Worker {
        /// Who that is.
        worker: WorkerId,
        /// The local address of the receiver's allocation.
        relayed: SocketAddr,
        /// The sender's relayed address as the receiver knows it.
        seen_as: PeerSocket,
    },
}

/// The place of live allocations, as a peer of another.
struct Neighbour {
    /// Its local address.
    relayed: SocketAddr,
    /// The sender's address as it is seen from there.
    seen_as: PeerSocket,
    /// Who has them.
    inhabitant: Inhabitant,
}

/// Whose allocations are at an address.
#[derive(Clone, Copy)]
enum Inhabitant {
    /// This worker's.
    Own,
    /// Another's.
    Of(WorkerId),
}

impl Server {
    /// Where data of an allocation's client goes that may go to this peer. Ask once for each run of datagrams.
    ///
    /// # Errors
    /// The cause to count: what a socket of the receiver would have dropped, or [`Cause::PolicyPeer`] when the peer is an
    /// address of this relay that is refused and no allocation is there any more.
    pub fn route(&self, sender: AllocationId, peer: PeerSocket, now: Instant) -> Result<Route, Cause> {
        if !self.hairpin || !self.is_relay_address(peer.0.ip()) {
            return Ok(Route::Socket);
        }
        match self.neighbour(sender, peer.0, now) {
            Some(Neighbour { relayed, seen_as, inhabitant: Inhabitant::Of(worker) }) => {
                match self.commons.places().seen(relayed, |face| face.judge(seen_as, now)) {
                    None => Ok(Route::Worker { worker, relayed, seen_as }),
                    Some(FromPeer::Drop(cause)) => Err(cause),
                    Some(to @ (FromPeer::Channel { .. } | FromPeer::Indication { .. })) => {
                        Ok(Route::Foreign { worker, relayed, to, seen_as })
                    }
                }
            }
            Some(Neighbour { relayed, seen_as, inhabitant: Inhabitant::Own }) => {
                // Of those who share a port, nobody permits this sender.
                let id = self.directory.recipient(relayed, seen_as.0).ok_or(Cause::NoPermission)?;
                match self.deliver(id, seen_as, now) {
                    FromPeer::Drop(cause) => Err(cause),
                    to @ (FromPeer::Channel { .. } | FromPeer::Indication { .. }) => {
                        Ok(Route::Client { receiver: id, to, seen_as })
                    }
                }
            }
            None if self.policy.permits(peer.0) => Ok(Route::Socket),
            None => Err(Cause::PolicyPeer),
        }
    }

    /// Where data goes that another worker has sent here by [`Route::Worker`]: the allocation that has it, and how its client
    /// gets it.
    ///
    /// # Errors
    /// The cause to count.
    pub fn handle_posted(
        &self,
        relayed: SocketAddr,
        seen_as: PeerSocket,
        now: Instant,
    ) -> Result<(AllocationId, FromPeer), Cause> {
        let tenants = self.directory.tenants(relayed);
        if tenants.is_empty() {
            return Err(Cause::NoAllocation);
        }
        let id = self.directory.recipient(relayed, seen_as.0).ok_or(Cause::NoPermission)?;
        match self.deliver(id, seen_as, now) {
            FromPeer::Drop(cause) => Err(cause),
            to @ (FromPeer::Channel { .. } | FromPeer::Indication { .. }) => Ok((id, to)),
        }
    }

    /// Whether a peer is the relayed address of a live allocation and may be one for that reason alone.
    pub(super) fn permits_hairpin(&self, sender: AllocationId, peer: SocketAddr, now: Instant) -> bool {
        self.hairpin && !self.policy.is_own_socket(peer) && self.neighbour(sender, peer, now).is_some()
    }

    /// Why datagrams that came to an allocation's socket from an address of this relay are not let in, if so.
    pub(super) fn refuse_from_socket(
        &self,
        receiver: AllocationId,
        peer: PeerSocket,
        now: Instant,
    ) -> Option<Cause> {
        if !self.hairpin || !self.is_relay_address(peer.0.ip()) {
            return None;
        }
        if self.neighbour(receiver, peer.0, now).is_some() {
            // Sent before the receiver's allocation existed: everything later has come by the short way.
            return Some(Cause::NoAllocation);
        }
        // Permitted for the sake of allocations only; this is another program on this machine.
        self.policy.judge_address(peer.0.ip()).is_err().then_some(Cause::PolicyPeer)
    }

    /// Where an allocation reaches others under an address.
    fn neighbour(&self, sender: AllocationId, peer: SocketAddr, now: Instant) -> Option<Neighbour> {
        let own = self.table.get(sender)?.relayed;
        let is_live = |&id: &AllocationId| self.table.get(id).is_some_and(|tenant| tenant.is_live(now));
        let inhabitant = |relayed: SocketAddr| {
            if self.directory.tenants(relayed).iter().any(is_live) {
                return Some(Inhabitant::Own);
            }
            self.commons.places().elsewhere(relayed, self.worker).map(Inhabitant::Of)
        };
        if let Some(inhabitant) = inhabitant(peer) {
            return Some(Neighbour { relayed: peer, seen_as: PeerSocket(own), inhabitant });
        }
        // A NAT that is asked for its own outer address shows the sender's outer address too (RFC 4787 section 6).
        let outer = self.external.iter().filter(|external| external.public == peer.ip());
        let inner = outer.map(|external| external.local.unwrap_or(own.ip()));
        let mut inner = inner.map(|local| SocketAddr::new(local, peer.port()));
        let (relayed, inhabitant) = inner.find_map(|relayed| Some((relayed, inhabitant(relayed)?)))?;
        Some(Neighbour { relayed, seen_as: PeerSocket(self.public(own)), inhabitant })
    }

    /// Whether allocations are made on an address, or on one that is called so outside.
    pub(super) fn is_relay_address(&self, address: IpAddr) -> bool {
        self.commons.places().is_used(address)
            || self.external.iter().any(|external| external.public == address)
    }

    /// How a relayed address is called outside.
    pub(super) fn public(&self, relayed: SocketAddr) -> SocketAddr {
        let name = self
            .external
            .iter()
            .filter(|external| external.public.is_ipv4() == relayed.is_ipv4())
            .find(|external| external.local.is_none_or(|local| local == relayed.ip()));
        SocketAddr::new(name.map_or(relayed.ip(), |external| external.public), relayed.port())
    }
}
