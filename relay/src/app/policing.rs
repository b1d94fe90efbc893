//! Where data meets policy: what of a superpacket may be relayed and how much it was, and what makes the policy change.

use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::egress::{Egress, Port};
use dataplane::ingress::Ingress;
use dataplane::stun::channel_data::ChannelNumber;

use super::{Relay, Role};
use crate::own_addresses::OwnAddresses;
use crate::report::log_refused;
use crate::server::traffic::{Direction, Traffic};
use crate::server::{AllocationId, PeerSocket, Server};

/// What stays the same along a client's superpacket.
#[derive(Default)]
pub(super) struct ClientCache {
    /// The client's allocation and its port, once looked up.
    pub relay: Option<Result<(AllocationId, Port), Cause>>,
    /// Where the last channel number leads.
    pub channel: Option<(ChannelNumber, Result<PeerSocket, Cause>)>,
    /// Whether the allocation may have all of it relayed, once asked.
    verdict: Option<Result<(), Cause>>,
    /// What went to the allocation's peers and is not counted yet.
    pub relayed: Traffic,
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
        load: Traffic,
        cache: &mut ClientCache,
        now: Instant,
    ) -> Result<(), Cause> {
        let server = &mut self.server;
        *cache.verdict.get_or_insert_with(|| server.admit(allocation, Direction::ToPeer, load, now))
    }

    /// Counts what a client's superpacket has come to so far.
    pub(super) fn count_relayed(&mut self, cache: &mut ClientCache) {
        let relayed = std::mem::take(&mut cache.relayed);
        if let Some(Ok((allocation, _))) = cache.relay {
            self.server.count(allocation, Direction::ToPeer, relayed);
        }
    }

    /// A request may change what is known about a client: it is looked up anew after one.
    pub(super) fn forget(&mut self, cache: &mut ClientCache) {
        self.count_relayed(cache);
        (cache.relay, cache.channel) = (None, None);
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
            self.server.set_own_addresses(addresses);
        }
        if let Some(overloaded) = self.overload.poll(|| ingress.stats().kernel_drops_skbs, now) {
            self.server.handle_interval(overloaded, now);
        }
        log_refused(&mut self.server);
    }
}
