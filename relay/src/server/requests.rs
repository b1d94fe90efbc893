//! Requests: who may ask, what is checked in which order, and what is answered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::stun::{AttributeType, BadAttribute, ErrorCode, Message, Method};

use super::allocate::is_towpath;
use super::allocation::{BindError, Listed, Reach};
use super::answers::{
    ALLOCATION_MISMATCH, BAD_REQUEST, PEER_FAMILY_MISMATCH, Refusal, STALE_NONCE, TRY_ALTERNATE,
    UNAUTHORIZED, UNKNOWN_ATTRIBUTE, WRONG_CREDENTIALS,
};
use super::auth::{AnswerKey, Held, Identity, Unauthentic, UserId, authenticate};
use super::pair::Pair;
use super::reply::Envelope;
use super::rules::{Rule, Why};
use super::traffic::Account;
use super::{AllocationId, ChannelNumbers, ClientSocket, FromClient, PeerSocket, Server};

/// Lifetime of an allocation in seconds when none is asked for, and the shortest (RFC 8656 section 7.2).
pub const LIFETIME_DEFAULT_S: u32 = 600;
/// The longest lifetime in seconds.
pub const LIFETIME_MAX_S: u32 = 3600;
/// Most XOR-PEER-ADDRESS attributes of one CreatePermission.
pub const PEERS_PER_REQUEST_MAX: usize = 16;
/// How long an Allocate that is sent again gets the same answer again: longer than any retransmission (RFC 8489
/// section 6.2.1 gives up after 39.5 s).
pub(super) const RETRANSMISSION_TIME: Duration = Duration::from_secs(40);
/// The comprehension-required attributes this server understands. DONT-FRAGMENT is asked of an Allocate only to learn that
/// it is: every relay socket can do it, for each Send indication that has it.
pub(super) const KNOWN: &[AttributeType] = &[
    AttributeType::MAPPED_ADDRESS,
    AttributeType::USERNAME,
    AttributeType::MESSAGE_INTEGRITY,
    AttributeType::MESSAGE_INTEGRITY_SHA256,
    AttributeType::USERHASH,
    AttributeType::PASSWORD_ALGORITHM,
    AttributeType::ERROR_CODE,
    AttributeType::UNKNOWN_ATTRIBUTES,
    AttributeType::CHANNEL_NUMBER,
    AttributeType::LIFETIME,
    AttributeType::XOR_PEER_ADDRESS,
    AttributeType::DATA,
    AttributeType::REALM,
    AttributeType::NONCE,
    AttributeType::XOR_RELAYED_ADDRESS,
    AttributeType::REQUESTED_ADDRESS_FAMILY,
    AttributeType::EVEN_PORT,
    AttributeType::REQUESTED_TRANSPORT,
    AttributeType::DONT_FRAGMENT,
    AttributeType::XOR_MAPPED_ADDRESS,
    AttributeType::RESERVATION_TOKEN,
];

/// How a request succeeds.
pub(super) enum Success {
    /// With an empty answer.
    Empty,
    /// With a lifetime in seconds.
    Lifetime(u32),
    /// With the answer of an allocation made earlier.
    Again(Pair),
    /// Later, when this socket is open.
    Open(AllocationId, SocketAddr),
    /// Later: its socket is being opened.
    Patience,
}

impl Server {
    pub(super) fn handle_request(
        &mut self,
        client: &ClientSocket,
        message: &Message<'_>,
        now: Instant,
    ) -> FromClient {
        let envelope = Envelope::of(message);
        self.figures.count_request(message.method());
        match message.method() {
            Method::Binding => return self.answer_binding(envelope, client, message),
            Method::Allocate | Method::Refresh | Method::CreatePermission | Method::ChannelBind => {}
            // Neither needs a user to be wrong: Send and Data are indications only, the others do not exist here.
            Method::Send | Method::Data | Method::Other(_) => {
                return self.answer_error(envelope, None, BAD_REQUEST.into());
            }
        }
        let (user, answer) = match self.authenticate(client, message, now) {
            Ok(authentic) => authentic,
            Err(reason) => {
                self.figures.count_unauthentic(reason, message.has_integrity());
                return match reason {
                    Unauthentic::Incomplete => self.answer_error(envelope, None, BAD_REQUEST.into()),
                    Unauthentic::WeakerOffer => {
                        let why = Why::quota(Rule::WeakerOffer);
                        self.count_unproven(why, message.username(), client.address, now);
                        self.answer_error(envelope, None, why.into())
                    }
                    Unauthentic::Unauthorized => self.answer_challenge(envelope, client, UNAUTHORIZED),
                    Unauthentic::StaleNonce => self.answer_challenge(envelope, client, STALE_NONCE),
                };
            }
        };
        let unknown = message.unknown_required(KNOWN);
        let outcome = match message.method() {
            _ if !unknown.is_empty() => Err(Refusal { unknown, ..UNKNOWN_ATTRIBUTE.into() }),
            Method::Allocate => self.allocate(client, user, &answer, message, now),
            Method::Refresh => self.refresh(client, user, message, now),
            Method::CreatePermission => self.create_permission(client, user, message, now),
            _ => self.channel_bind(client, user, message, now),
        };
        if let Err(Refusal { why: Some(why), .. }) = &outcome {
            self.count_refusal(*why, user, client.address, now);
        }
        // Not before: whoever has no allocation may be forgotten with this.
        self.users.leave(user);
        match outcome {
            Ok(Success::Open(allocation, address)) => FromClient::OpenRelay { allocation, address },
            Ok(Success::Patience) => FromClient::Consumed,
            Ok(Success::Again(pair)) => {
                self.answer_allocated(pair);
                FromClient::Reply
            }
            Ok(Success::Empty) => self.answer_success(envelope, &answer.schedule(), None),
            Ok(Success::Lifetime(seconds)) => {
                self.answer_success(envelope, &answer.schedule(), Some(seconds))
            }
            Err(refusal) if refusal.code == TRY_ALTERNATE => {
                self.answer_alternate(envelope, client, &answer.schedule())
            }
            Err(refusal) => self.answer_error(envelope, Some(&answer.schedule()), refusal),
        }
    }

    /// Who sent a request, and what its answer is protected with. Whoever is done with it calls [`super::auth::Users::leave`].
    fn authenticate(
        &mut self,
        client: &ClientSocket,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<(UserId, AnswerKey), Unauthentic> {
        self.nonces.advance(&mut self.random, now);
        let pair = self.find(client, now);
        let allocation = pair.and_then(|pair| self.table.get(pair.first));
        let held = allocation.and_then(|allocation| match self.users.get(allocation.user).identity() {
            Identity::Shared(id) => Some(Held { id, answer: &allocation.answer }),
            Identity::Static(_) => None,
        });
        let wall = self.wall_clock.at(now);
        let authentic = authenticate(&self.credentials, &self.nonces, client.address, held, message, wall)?;
        let user = self.users.enter_with(authentic.identity, |user| Account::of(self.commons.account(user)));
        // With a newer name of the same user, the allocation goes on as long as that one would.
        if matches!(authentic.identity, Identity::Shared(_)) {
            for id in pair.into_iter().flat_map(Pair::iter) {
                if let Some(allocation) = self.table.get_mut(id).filter(|allocation| allocation.user == user)
                {
                    allocation.answer = authentic.answer.clone();
                }
            }
        }
        Ok((user, authentic.answer))
    }

    /// RFC 8656 section 8.2.
    fn refresh(
        &mut self,
        client: &ClientSocket,
        user: UserId,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let pair = self.owned(client, user, now)?;
        if is_towpath(message) && self.is_redirected(client) && lifetime(message)? != 0 {
            return Err(Why::quota(Rule::Redirected).into());
        }
        // Of a dual allocation both, unless one family is named.
        let named = match message.requested_address_family()? {
            Some(family) => pair.filter(|id| self.has_family(id, family)).ok_or(PEER_FAMILY_MISMATCH)?,
            None => pair,
        };
        let seconds = lifetime(message)?;
        for id in named.iter() {
            if seconds == 0 {
                self.close(id);
            } else {
                self.forget_expired(id, now);
                self.table.set_deadline(id, now + Duration::from_secs(seconds.into()));
                self.show(id);
            }
        }
        Ok(Success::Lifetime(seconds))
    }

    /// RFC 8656 section 9.2: all peers or none.
    fn create_permission(
        &mut self,
        client: &ClientSocket,
        user: UserId,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let pair = self.owned(client, user, now)?;
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let mut wanted = [(pair.first, nobody, Reach::all(nobody)); PEERS_PER_REQUEST_MAX];
        let mut count = 0;
        for peer in message.xor_peer_addresses() {
            let peer = peer?;
            let place = wanted.get_mut(count).ok_or(BAD_REQUEST)?;
            count += 1;
            let id = self.check_peer(pair, peer, false, now)?;
            *place = (id, peer, self.reach_of_permission(id, peer, now));
        }
        let wanted = &wanted[..count];
        if wanted.is_empty() {
            return Err(BAD_REQUEST.into());
        }
        let taken = wanted.iter().find(|&&(id, peer, reach)| self.is_in_conflict(id, peer, reach, now));
        if let Some(&(_, peer, _)) = taken {
            return Err(Why::about(Rule::PeerTaken, peer).into());
        }
        pair.iter().for_each(|id| self.forget_expired(id, now));
        let mut new_in_all = 0;
        for allocation in pair.iter().filter_map(|id| Some((id, self.table.get(id)?))) {
            // Each allocation has the peers of its own family.
            let own = wanted.iter().filter(|&&(of, ..)| of == allocation.0).map(|&(_, _, reach)| reach);
            let new = allocation.1.new_permissions(own, now);
            if !allocation.1.has_room_for(new, &self.limits, now) {
                return Err(Why::quota(Rule::Permissions).into());
            }
            new_in_all += new;
        }
        self.may_list(user, Listed { permissions: new_in_all as u32, channels: 0 })?;
        self.take_new_peers(user, client.address.ip(), new_in_all, now)?;
        for &(id, _, reach) in wanted {
            let allocation = self.table.get_mut(id).ok_or(ALLOCATION_MISMATCH)?;
            let forgotten = allocation.permit(reach, now);
            self.claim(id, reach, forgotten);
            self.permitting.push(id);
        }
        for id in pair.iter() {
            self.count_listed(id);
            self.show(id);
        }
        Ok(Success::Empty)
    }

    /// RFC 8656 section 12.2.
    fn channel_bind(
        &mut self,
        client: &ClientSocket,
        user: UserId,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let pair = self.owned(client, user, now)?;
        let (Some(number), Some(peer)) = (message.channel_number()?, message.xor_peer_address()?) else {
            return Err(BAD_REQUEST.into());
        };
        let is_allowed = number.is_assigned() || self.channel_numbers == ChannelNumbers::Rfc5766;
        if peer.port() == 0 || !is_allowed {
            return Err(BAD_REQUEST.into());
        }
        let id = self.check_peer(pair, peer, true, now)?;
        if self.is_bound_beside(pair, id, number, now) {
            return Err(BAD_REQUEST.into());
        }
        let reach = self.reach_of_channel(id, peer, now);
        if self.is_in_conflict(id, peer, reach, now) {
            return Err(Why::about(Rule::PeerTaken, peer).into());
        }
        let peer = PeerSocket(peer);
        self.forget_expired(id, now);
        let allocation = self.table.get(id).ok_or(ALLOCATION_MISMATCH)?;
        let is_known = allocation.has_channel(peer, now);
        let permissions = allocation.new_permissions(std::iter::once(reach), now) as u32;
        self.may_list(user, Listed { permissions, channels: u32::from(!is_known) })?;
        self.take_new_peers(user, client.address.ip(), usize::from(!is_known), now)?;
        let allocation = self.table.get_mut(id).ok_or(ALLOCATION_MISMATCH)?;
        match allocation.bind_channel(number, peer, reach, &self.limits, now) {
            Ok(forgotten) => {
                self.claim(id, reach, forgotten);
                self.permitting.push(id);
                self.count_listed(id);
                self.show(id);
                Ok(Success::Empty)
            }
            Err(BindError::Conflict) => Err(BAD_REQUEST.into()),
            Err(BindError::Full(rule)) => Err(Why::quota(rule).into()),
        }
    }

    /// The live allocations of a client, for the user who made them.
    fn owned(&self, client: &ClientSocket, user: UserId, now: Instant) -> Result<Pair, ErrorCode> {
        let pair = self.find(client, now).ok_or(ALLOCATION_MISMATCH)?;
        let is_theirs = |id| self.table.get(id).is_some_and(|allocation| allocation.user == user);
        if pair.iter().all(is_theirs) { Ok(pair) } else { Err(WRONG_CREDENTIALS) }
    }
}

/// What LIFETIME comes to: nothing is the default, zero stays zero.
pub(super) fn lifetime(message: &Message<'_>) -> Result<u32, BadAttribute> {
    Ok(match message.lifetime()? {
        None => LIFETIME_DEFAULT_S,
        Some(0) => 0,
        Some(seconds) => seconds.clamp(LIFETIME_DEFAULT_S, LIFETIME_MAX_S),
    })
}
