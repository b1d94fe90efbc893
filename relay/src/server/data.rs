//! The data path: where ChannelData, Send indications and the datagrams of peers go. It looks up one hash table and one short
//! list, whatever the number of allocations, and neither allocates nor logs.

use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::stun::{ChannelData, ChannelNumber, Message, TransactionId};

use super::{AllocationId, ClientSocket, FromClient, FromPeer, Pair, PeerSocket, Server, requests};

impl Server {
    pub(super) fn handle_channel_data(
        &self,
        client: &ClientSocket,
        datagram: &[u8],
        now: Instant,
    ) -> Result<FromClient, Cause> {
        let data = ChannelData::parse(datagram).ok_or(Cause::MalformedOuter)?;
        let pair = self.find(client, now).ok_or(Cause::NoAllocation)?;
        let (allocation, peer) = self.channel(pair, data.number, now)?;
        let start = dataplane::stun::channel_data::HEADER_LEN;
        let payload = start..start + data.payload.len();
        Ok(FromClient::Forward { allocation, peer, payload, dont_fragment: false })
    }

    /// RFC 8656 section 11.2.
    pub(super) fn handle_send(
        &mut self,
        client: &ClientSocket,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<FromClient, Cause> {
        if !message.unknown_required(requests::KNOWN).is_empty() {
            return Err(Cause::MalformedOuter);
        }
        let (Ok(Some(peer)), Some(payload)) = (message.xor_peer_address(), message.data_range()) else {
            return Err(Cause::MalformedOuter);
        };
        let pair = self.find(client, now).ok_or(Cause::NoAllocation)?;
        if peer.port() == 0 {
            return Err(Cause::MalformedOuter);
        }
        // The address was judged when it was permitted; what remains is the port.
        if let Err(why) = self.policy.judge_port(peer) {
            if let Some(user) = self.table.get(pair.first).map(|allocation| allocation.user) {
                self.count_refusal(why, user, client.address, now);
            }
            return Err(Cause::PolicyPeer);
        }
        let id = self.of_family(pair, peer.ip()).ok_or(Cause::NoPermission)?;
        if !self.table.get(id).is_some_and(|allocation| allocation.has_permission(PeerSocket(peer), now)) {
            return Err(Cause::NoPermission);
        }
        let dont_fragment = message.dont_fragment();
        Ok(FromClient::Forward { allocation: id, peer: PeerSocket(peer), payload, dont_fragment })
    }

    /// The live allocations of a client.
    #[must_use]
    pub fn find(&self, client: &ClientSocket, now: Instant) -> Option<Pair> {
        let is_live = |id| self.table.get(id).is_some_and(|allocation| allocation.is_live(now));
        self.table.find(client)?.filter(is_live)
    }

    /// Where ChannelData of a number goes; of a client's two allocations, [`Server::channel`] knows which.
    ///
    /// # Errors
    /// The cause to count.
    pub fn channel_peer(
        &self,
        allocation: AllocationId,
        number: ChannelNumber,
        now: Instant,
    ) -> Result<PeerSocket, Cause> {
        self.table.get(allocation).ok_or(Cause::NoAllocation)?.channel_peer(number, now)
    }

    /// Where datagrams go that a peer sent to the socket of an allocation.
    #[must_use]
    pub fn handle_peer(&self, allocation: AllocationId, peer: PeerSocket, now: Instant) -> FromPeer {
        match self.refuse_from_socket(allocation, peer, now) {
            Some(cause) => FromPeer::Drop(cause),
            None => self.deliver(allocation, peer, now),
        }
    }

    /// Where datagrams of a peer go, whichever way they came.
    pub(super) fn deliver(&self, allocation: AllocationId, peer: PeerSocket, now: Instant) -> FromPeer {
        let Some(allocation) = self.table.get(allocation).filter(|allocation| allocation.is_live(now)) else {
            return FromPeer::Drop(Cause::NoAllocation);
        };
        let client = allocation.client;
        match allocation.peer_channel(peer, now) {
            Ok(Some(number)) => FromPeer::Channel { client, number },
            Ok(None) => FromPeer::Indication { client },
            Err(cause) => FromPeer::Drop(cause),
        }
    }

    /// What precedes a payload of `len` bytes in a Data indication; [`dataplane::stun::writer::padding`] zero bytes
    /// follow it. `None` when the payload is too long.
    pub fn data_indication(&mut self, peer: PeerSocket, len: usize) -> Option<&[u8]> {
        let transaction = TransactionId(self.random.bytes());
        self.replies.data_indication(transaction, peer.0, len)
    }
}
