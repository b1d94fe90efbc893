//! Where data meets policy: what of a superpacket may be relayed and how much it was, and what makes the policy change.

use std::sync::Arc;
use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::egress::{Egress, Port};
use dataplane::ingress::Ingress;
use dataplane::stun::channel_data::ChannelNumber;

use super::way::Way;
use super::{Relay, Role};
use crate::own_addresses::OwnAddresses;
use crate::report::log_refused;
use crate::server::figures::{Carrier, Direction, Volume};
use crate::server::{AllocationId, Pair, Server};

/// Whose data ChannelData of a number is and where it goes, or why it is lost.
type KnownWay = Result<(AllocationId, Way), Cause>;

/// What stays the same along a client's superpacket.
#[derive(Default)]
pub(super) struct ClientCache {
    /// The client's allocations, once looked up.
    pub allocations: Option<Result<Pair, Cause>>,
    /// Where the last channel number leads.
    pub channel: Option<(ChannelNumber, KnownWay)>,
    /// Whether the allocation may have all of it relayed, once asked.
    verdict: Option<Result<(), Cause>>,
    /// What was relayed from channels and is not counted yet.
    pub relayed: Volume,
}

impl ClientCache {
    /// What follows is judged by itself: it did not come with what was judged before.
    pub(super) fn judge_anew(&mut self) {
        self.verdict = None;
    }
}

impl Relay {
    /// Refuses the addresses of this machine as peers, as they come and go.
    #[must_use]
    pub fn watching(self, own_addresses: Option<OwnAddresses>) -> Self {
        Self { own_addresses, ..self }
    }

    /// The server, to look at.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Whether a client's superpacket may be relayed: judged as a whole, with its first packet for a peer.
    pub(super) fn admit(
        &mut self,
        allocation: AllocationId,
        load: Volume,
        cache: &mut ClientCache,
        now: Instant,
    ) -> Result<(), Cause> {
        let server = &mut self.server;
        *cache.verdict.get_or_insert_with(|| server.admit(allocation, Direction::ToPeer, load, now))
    }

    /// Counts what a client's superpacket has come to so far.
    pub(super) fn count_channel_data(&mut self, cache: &mut ClientCache) {
        let relayed = std::mem::take(&mut cache.relayed);
        // Both allocations of a client are the same user's.
        if let (Some(Ok(pair)), 1..) = (&cache.allocations, relayed.packets) {
            self.server.count_relayed(pair.first, Direction::ToPeer, Carrier::Channel, relayed);
        }
    }

    /// A request may change what is known about a client: it is looked up anew after one.
    pub(super) fn forget(&mut self, cache: &mut ClientCache) {
        self.count_channel_data(cache);
        (cache.allocations, cache.channel) = (None, None);
    }

    /// The addresses of this machine have changed.
    pub(super) fn note_address_change(&mut self) {
        self.own_addresses.iter_mut().for_each(OwnAddresses::handle_ready);
    }

    /// A client cannot be served by a socket that is busy, whoever made it so.
    pub(super) fn notice_busy_sockets(&mut self, egress: &impl Egress) {
        let is_listener = |port: Port| matches!(self.roles.get(port.0 as usize), Some(Role::Listener(_)));
        if egress.waiting_ports().any(is_listener) {
            self.overload.client_socket_busy();
        }
    }

    /// What there is to do after a batch. O(1) when nothing is due.
    pub(super) fn maintain_policy(&mut self, ingress: &impl Ingress, now: Instant) {
        if let Some(addresses) = self.own_addresses.as_mut().and_then(|own| own.poll(now)) {
            match &self.member {
                Some(member) => {
                    member.crew().order(|orders| orders.machine = Some(Arc::new(addresses)));
                }
                None => self.server.set_machine_addresses(addresses),
            }
        }
        if let Some(overloaded) = self.overload.poll(|| ingress.stats().kernel_drops_skbs, now) {
            self.server.handle_interval(overloaded, now);
        }
        log_refused(&mut self.server);
    }
}
