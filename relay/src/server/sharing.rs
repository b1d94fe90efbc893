//! Shared ports: where the range is too narrow for a port for each allocation, several have one, and peers tell them apart.
//!
//! ```text
//!  peer 1 ──┐                    ┌── permission for peer 1 ── allocation A
//!           ├──► relayed port ───┤
//!  peer 2 ──┘                    └── permission for peer 2 ── allocation B
//! ```
//! A permission on such a port is a claim as well: no two allocations on it hold claims that overlap, so that every peer leads
//! to one of them at most. Who asks for what another holds is answered 508, and remembered: the next allocation for the same
//! client is given a port where that peer is free. To make claims narrow, a channel opens its own peer only, and so does a
//! permission for another allocation of this relay; a permission for any other address opens all of that, as RFC 8656 has it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::allocation::Reach;
use super::auth::UserId;
use super::{AllocationId, ClientSocket, PeerSocket, Server};

/// How long a conflict has a say in where a client's next allocation goes.
const MEMORY_TIME: Duration = Duration::from_secs(60);
/// Most conflicts that are remembered; the oldest goes first.
const MEMORY_MAX: usize = 1024;

/// The claims on one address.
#[derive(Debug, Default)]
struct Claims {
    /// On all of it.
    whole: Option<AllocationId>,
    /// On single ports of it.
    single: HashMap<NonZeroU16, AllocationId, RandomState>,
}

/// A relayed port with any number of allocations.
///
/// Its claims are the permissions that these allocations list, expired ones included for as long as nobody else wants them.
#[derive(Debug, Default)]
pub(super) struct SharedPort {
    tenants: Vec<AllocationId>,
    claims: HashMap<IpAddr, Claims, RandomState>,
}

impl SharedPort {
    /// An allocation comes.
    pub fn add(&mut self, id: AllocationId) {
        debug_assert!(!self.tenants.contains(&id), "an allocation has one address");
        self.tenants.push(id);
    }

    /// An allocation goes; its claims are released.
    pub fn remove(&mut self, id: AllocationId) {
        self.tenants.retain(|&tenant| tenant != id);
    }

    /// Who is here.
    #[must_use]
    pub fn tenants(&self) -> &[AllocationId] {
        &self.tenants
    }

    /// Who may have datagrams of a peer.
    #[must_use]
    pub fn recipient(&self, peer: SocketAddr) -> Option<AllocationId> {
        let claims = self.claims.get(&peer.ip())?;
        let single = NonZeroU16::new(peer.port()).and_then(|port| claims.single.get(&port));
        single.copied().or(claims.whole)
    }

    /// Whether somebody else than `own` holds a claim that overlaps; `is_held` knows which claims have not expired.
    pub fn conflicts(
        &self,
        reach: Reach,
        own: Option<AllocationId>,
        is_held: impl Fn(AllocationId, Reach) -> bool,
    ) -> bool {
        let Some(claims) = self.claims.get(&reach.address) else { return false };
        let is_held = |id: AllocationId, port| Some(id) != own && is_held(id, Reach { port, ..reach });
        let on_whole = claims.whole.is_some_and(|id| is_held(id, None));
        let on_single = match reach.port {
            Some(port) => claims.single.get(&port).is_some_and(|&id| is_held(id, Some(port))),
            None => claims.single.iter().any(|(&port, &id)| is_held(id, Some(port))),
        };
        on_whole || on_single
    }

    /// Takes a claim that conflicts with none; expired ones of others give way.
    pub fn claim(&mut self, reach: Reach, id: AllocationId) {
        let claims = self.claims.entry(reach.address).or_default();
        match reach.port {
            Some(port) => {
                claims.whole = claims.whole.filter(|&holder| holder == id);
                claims.single.insert(port, id);
            }
            None => {
                // The holder's own are part of it, and end before it does.
                claims.single.clear();
                claims.whole = Some(id);
            }
        }
    }

    /// Gives a claim back, if it is still this allocation's.
    pub fn release(&mut self, reach: Reach, id: AllocationId) {
        let Some(claims) = self.claims.get_mut(&reach.address) else { return };
        match reach.port {
            Some(port) => claims.single.retain(|&claimed, &mut holder| (claimed, holder) != (port, id)),
            None => claims.whole = claims.whole.filter(|&holder| holder != id),
        }
        if claims.whole.is_none() && claims.single.is_empty() {
            self.claims.remove(&reach.address);
        }
    }

    /// Addresses that are claimed.
    #[must_use]
    pub fn claimed(&self) -> usize {
        self.claims.len()
    }
}

#[derive(Debug)]
struct Conflict {
    user: UserId,
    client: IpAddr,
    wanted: Reach,
    expires: Instant,
}

/// What was refused because another allocation on the same port had it.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    /// All live equally long, so the oldest expires first.
    recent: VecDeque<Conflict>,
    count: u64,
    last: Option<(SocketAddr, PeerSocket)>,
}

impl Conflicts {
    fn remember(&mut self, conflict: Conflict) {
        if self.recent.len() >= MEMORY_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(conflict);
    }

    /// What clients at an address asked for in vain.
    fn of(&self, user: UserId, client: IpAddr, now: Instant) -> impl Iterator<Item = Reach> {
        let own = move |conflict: &&Conflict| {
            conflict.user == user && conflict.client == client && now < conflict.expires
        };
        self.recent.iter().filter(own).map(|conflict| conflict.wanted)
    }
}

/// Whether several allocations may come to have one port, where that is allowed: there are fewer ports than allocations.
#[must_use]
pub fn comes_to_share(allowed: bool, relay_ports: &RangeInclusive<u16>, allocations_max: u32) -> bool {
    allowed && relay_ports.len() < allocations_max as usize
}

impl Server {
    /// Whether allocations may have one port together: where there are fewer ports than allocations.
    #[must_use]
    pub fn shares_ports(&self) -> bool {
        self.directory.is_shared()
    }

    /// Everybody at a relayed address; whoever is there has the same socket.
    #[must_use]
    pub fn tenants(&self, relayed: SocketAddr) -> &[AllocationId] {
        self.directory.tenants(relayed)
    }

    /// The allocation that datagrams of a peer to a relayed address are for; ask [`Server::handle_peer`] about it.
    #[must_use]
    pub fn recipient(&self, relayed: SocketAddr, peer: PeerSocket) -> Option<AllocationId> {
        self.directory.recipient(relayed, peer.0)
    }

    /// Requests refused because another allocation on the same port had the peer, and the last one's relayed address and peer.
    #[must_use]
    pub fn port_conflicts(&self) -> (u64, Option<(SocketAddr, PeerSocket)>) {
        (self.conflicts.count, self.conflicts.last)
    }

    /// The port for an allocation when none is free: one where the client's peers are free, with few others on it.
    pub(super) fn share_port(
        &self,
        address: IpAddr,
        client: &ClientSocket,
        user: UserId,
        except: Option<SocketAddr>,
        now: Instant,
    ) -> Option<SocketAddr> {
        if !self.shares_ports() {
            return None;
        }
        let avoided: Vec<Reach> = self.conflicts.of(user, client.address.ip(), now).collect();
        let rank = |port: &SharedPort| {
            let is_held = |id, reach| self.is_held(id, reach, now);
            let conflicts = avoided.iter().filter(|&&reach| port.conflicts(reach, None, is_held)).count();
            (conflicts, port.tenants().len(), port.claimed())
        };
        let ports = self.directory.shared_ports(address);
        let others = ports.filter(|&(relayed, _)| except != Some(relayed));
        others.min_by_key(|&(_, port)| rank(port)).map(|(relayed, _)| relayed)
    }

    /// What a permission for a peer opens: its address, or just itself.
    pub(super) fn reach_of_permission(&self, id: AllocationId, peer: SocketAddr, now: Instant) -> Reach {
        // Another allocation never sends from another port than its own.
        if self.shares_ports() && self.permits_hairpin(id, peer, now) {
            Reach::only(peer)
        } else {
            Reach::all(peer)
        }
    }

    /// What a channel to a peer opens.
    pub(super) fn reach_of_channel(&self, id: AllocationId, peer: SocketAddr, now: Instant) -> Reach {
        let has_whole = self.is_held(id, Reach::all(peer), now);
        if self.shares_ports() && !has_whole { Reach::only(peer) } else { Reach::all(peer) }
    }

    /// Whether another allocation on the same port stands in the way of what this one wants to reach; if so, it is remembered.
    pub(super) fn is_in_conflict(
        &mut self,
        id: AllocationId,
        peer: SocketAddr,
        wanted: Reach,
        now: Instant,
    ) -> bool {
        let Some(allocation) = self.table.get(id) else { return false };
        let (relayed, user, client) = (allocation.relayed, allocation.user, allocation.client.address.ip());
        let is_held = |id, reach| self.is_held(id, reach, now);
        let port = self.directory.shared(relayed);
        if !port.is_some_and(|port| port.conflicts(wanted, Some(id), is_held)) {
            return false;
        }
        self.conflicts.count += 1;
        self.conflicts.last = Some((relayed, PeerSocket(peer)));
        self.conflicts.remember(Conflict { user, client, wanted, expires: now + MEMORY_TIME });
        true
    }

    /// Enters into the claims of its port what an allocation reaches now, and what it has forgotten for that.
    pub(super) fn claim(&mut self, id: AllocationId, reach: Reach, forgotten: Option<Reach>) {
        if !self.shares_ports() {
            return;
        }
        let Some(relayed) = self.table.get(id).map(|allocation| allocation.relayed) else { return };
        let Some(port) = self.directory.shared_mut(relayed) else { return };
        if let Some(forgotten) = forgotten {
            port.release(forgotten, id);
        }
        port.claim(reach, id);
    }

    /// Gives back what an allocation at a relayed address reaches no more.
    pub(super) fn unclaim(&mut self, id: AllocationId, relayed: SocketAddr, reach: Reach) {
        if let Some(port) = self.directory.shared_mut(relayed) {
            port.release(reach, id);
        }
    }

    fn is_held(&self, id: AllocationId, reach: Reach, now: Instant) -> bool {
        self.table.get(id).is_some_and(|allocation| allocation.is_live(now) && allocation.holds(reach, now))
    }
}
