//! The allocations of one client: one, or one of each address family (a dual allocation, RFC 8656 section 7).
//!
//! Both parts of a dual allocation are allocations like any other, with a socket, permissions, channels and an expiry of
//! their own. What makes them one is the 5-tuple: channel numbers are unique on it, and a request chooses by the family
//! it names or the family of its peer.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::stun::{AddressFamily, ChannelNumber, ErrorCode, Message};

use super::allocation::State;
use super::answers::{ALLOCATION_MISMATCH, FAMILY_NOT_SUPPORTED, PEER_FAMILY_MISMATCH, Refusal};
use super::auth::UserId;
use super::requests::{RETRANSMISSION_TIME, Success};
use super::{AllocationId, ClientSocket, Opened, PeerSocket, Server};

/// One or two allocations of the same client, in the order in which they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The only one, or the one that was there first.
    pub first: AllocationId,
    /// The one of the other family.
    pub second: Option<AllocationId>,
}

impl Pair {
    /// One allocation.
    #[must_use]
    pub fn one(first: AllocationId) -> Self {
        Self { first, second: None }
    }

    /// One or two.
    pub fn iter(self) -> impl Iterator<Item = AllocationId> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    /// Those that `keep` answers `true` to; nothing when it never does.
    #[must_use]
    pub fn filter(self, mut keep: impl FnMut(AllocationId) -> bool) -> Option<Self> {
        let second = self.second.filter(|&id| keep(id));
        if keep(self.first) { Some(Self { first: self.first, second }) } else { second.map(Self::one) }
    }
}

/// A family that was asked for and could not be had: ADDRESS-ERROR-CODE (RFC 8656 section 18.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressError {
    pub family: AddressFamily,
    pub code: ErrorCode,
}

impl AddressError {
    /// The value of the attribute: family, reserved bits, and the code as ERROR-CODE has it.
    #[must_use]
    pub fn value(self) -> [u8; 4] {
        [self.family.number(), 0, (self.code.0 / 100) as u8, (self.code.0 % 100) as u8]
    }
}

impl Server {
    /// Which of these allocations has a channel of this number, and where its ChannelData goes.
    ///
    /// # Errors
    /// The cause to count.
    pub fn channel(
        &self,
        pair: Pair,
        number: ChannelNumber,
        now: Instant,
    ) -> Result<(AllocationId, PeerSocket), Cause> {
        let first = self.channel_peer(pair.first, number, now).map(|peer| (pair.first, peer));
        match (first, pair.second) {
            (Err(Cause::NoChannel), Some(second)) => {
                self.channel_peer(second, number, now).map(|peer| (second, peer))
            }
            (first, _) => first,
        }
    }

    /// The addresses to relay from. Of two families one is enough for a success (RFC 8656 section 7.2, step 9).
    pub(super) fn addresses(
        &self,
        client: &ClientSocket,
        family: Option<AddressFamily>,
        second_family: Option<AddressFamily>,
    ) -> Result<(IpAddr, Option<IpAddr>, Option<AddressError>), ErrorCode> {
        let family = family.unwrap_or(AddressFamily::V4);
        let address = self.relay_address(client, family);
        let second = second_family.and_then(|family| self.relay_address(client, family));
        let lacks = |family| Some(AddressError { family, code: FAMILY_NOT_SUPPORTED });
        match (address, second, second_family) {
            (Some(address), None, Some(family)) => Ok((address, None, lacks(family))),
            (Some(address), second, _) => Ok((address, second, None)),
            (None, Some(second), _) => Ok((second, None, lacks(family))),
            (None, None, _) => Err(FAMILY_NOT_SUPPORTED),
        }
    }

    /// An Allocate on a 5-tuple that is in use: the one that made its allocations, sent again, or another one.
    pub(super) fn allocate_again(
        &self,
        pair: Pair,
        user: UserId,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let mut opening = false;
        for allocation in pair.iter().filter_map(|id| self.table.get(id)) {
            let again = allocation.transaction == message.transaction()
                && allocation.user == user
                && now < allocation.created + RETRANSMISSION_TIME;
            if !again {
                return Err(ALLOCATION_MISMATCH.into());
            }
            opening |= matches!(allocation.state, State::Opening { .. });
        }
        Ok(if opening { Success::Patience } else { Success::Again(pair) })
    }

    /// After one of a client's sockets is open, or cannot be: the other one's turn, or the answer. `None` when the client
    /// has no allocation.
    pub(super) fn open_next(&mut self, client: ClientSocket) -> Option<Opened> {
        let pair = self.table.find(&client)?;
        let opening = |id| {
            let allocation = self.table.get(id)?;
            let is_opening = matches!(allocation.state, State::Opening { .. });
            is_opening.then_some(Opened::Also { allocation: id, address: allocation.relayed })
        };
        if let Some(also) = pair.iter().find_map(opening) {
            return Some(also);
        }
        self.answer_allocated(pair);
        Some(Opened::Reply { client })
    }

    /// Which of these allocations has a relayed address of the family of `address`.
    pub(super) fn of_family(&self, pair: Pair, address: IpAddr) -> Option<AllocationId> {
        pair.iter().find(|&id| self.has_family(id, AddressFamily::of(address)))
    }

    /// Whether an allocation's relayed address is of this family.
    pub(super) fn has_family(&self, id: AllocationId, family: AddressFamily) -> bool {
        self.table.get(id).is_some_and(|allocation| AddressFamily::of(allocation.relayed.ip()) == family)
    }

    /// Whether a channel number is bound by another allocation of the pair than `id`, or was lately.
    pub(super) fn is_bound_beside(
        &self,
        pair: Pair,
        id: AllocationId,
        number: ChannelNumber,
        now: Instant,
    ) -> bool {
        pair.iter()
            .filter(|&other| other != id)
            .any(|other| self.table.get(other).is_some_and(|other| other.holds_number(number, now)))
    }

    /// Which of these allocations may talk to a peer; the port is judged with it where `with_port` says so (RFC 8656
    /// section 9: a permission is for an address).
    pub(super) fn check_peer(
        &self,
        pair: Pair,
        peer: SocketAddr,
        with_port: bool,
        now: Instant,
    ) -> Result<AllocationId, Refusal> {
        let id = self.of_family(pair, peer.ip()).ok_or(PEER_FAMILY_MISMATCH)?;
        if with_port {
            self.policy.judge_port(peer)?;
        }
        match self.policy.judge_permission(peer) {
            // The relayed address of another client is none of the services that the rule is there to protect.
            Err(why) if why.rule.is_about_place() && self.permits_hairpin(id, peer, now) => Ok(id),
            judged => Ok(judged.map(|()| id)?),
        }
    }
}
