//! Requests: who may ask, what is checked in which order, and what is answered.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::stun::{
    AddressFamily, AttributeType, BadAttribute, ErrorCode, Message, Method, TRANSPORT_UDP,
};

use super::allocation::{Allocation, BindError, PortChoice, Reach, State};
use super::answers::{
    ALLOCATION_MISMATCH, BAD_REQUEST, INSUFFICIENT_CAPACITY, PEER_FAMILY_MISMATCH, QUOTA_REACHED, Refusal,
    STALE_NONCE, TRANSPORT_NOT_SUPPORTED, TRY_ALTERNATE, UNAUTHORIZED, UNKNOWN_ATTRIBUTE, WRONG_CREDENTIALS,
};
use super::auth::{Unauthentic, UserId, authenticate};
use super::pair::{AddressError, Pair};
use super::ports::{Token, Want};
use super::reply::Envelope;
use super::{
    AllocationId, ChannelNumbers, ClientSocket, FromClient, OpenFailure, Opened, PeerSocket, Server,
};

/// Lifetime of an allocation in seconds when none is asked for, and the shortest (RFC 8656 section 7.2).
pub const LIFETIME_DEFAULT_S: u32 = 600;
/// The longest lifetime in seconds.
pub const LIFETIME_MAX_S: u32 = 3600;
/// Most XOR-PEER-ADDRESS attributes of one CreatePermission.
pub const PEERS_PER_REQUEST_MAX: usize = 16;
/// How long an Allocate that is sent again gets the same answer again: longer than any retransmission (RFC 8489
/// section 6.2.1 gives up after 39.5 s).
pub(super) const RETRANSMISSION_TIME: Duration = Duration::from_secs(40);
/// Ports tried before an Allocate fails, when others outside this program hold them.
const OPEN_ATTEMPTS_MAX: u8 = 16;

/// The comprehension-required attributes this server understands. DONT-FRAGMENT is asked of an Allocate only to learn that
/// it is: every relay socket can do it, for each Send indication that has it.
pub(super) const KNOWN: &[AttributeType] = &[
    AttributeType::MAPPED_ADDRESS,
    AttributeType::USERNAME,
    AttributeType::MESSAGE_INTEGRITY,
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

/// What an Allocate request asks for.
struct Wanted {
    address: IpAddr,
    /// The address of the other family, where that is wanted as well and there is one.
    second: Option<IpAddr>,
    /// The family of two that there is no address of.
    refused: Option<AddressError>,
    port: PortChoice,
    lifetime_s: u32,
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
        self.nonces.advance(&mut self.random, now);
        let authentic = authenticate(&self.credentials, &self.nonces, client.address, message);
        let user = match authentic {
            Ok(user) => user,
            Err(reason) => {
                self.figures.count_unauthentic(reason, message.has_integrity());
                return match reason {
                    Unauthentic::Incomplete => self.answer_error(envelope, None, BAD_REQUEST.into()),
                    Unauthentic::Unauthorized => self.answer_challenge(envelope, client, UNAUTHORIZED),
                    Unauthentic::StaleNonce => self.answer_challenge(envelope, client, STALE_NONCE),
                };
            }
        };
        let unknown = message.unknown_required(KNOWN);
        let outcome = match message.method() {
            _ if !unknown.is_empty() => Err(Refusal { code: UNKNOWN_ATTRIBUTE, unknown }),
            Method::Allocate => self.allocate(client, user, message, now),
            Method::Refresh => self.refresh(client, user, message, now),
            Method::CreatePermission => self.create_permission(client, user, message, now),
            _ => self.channel_bind(client, user, message, now),
        };
        match outcome {
            Ok(Success::Open(allocation, address)) => FromClient::OpenRelay { allocation, address },
            Ok(Success::Patience) => FromClient::Consumed,
            Ok(Success::Again(pair)) => {
                self.answer_allocated(pair);
                FromClient::Reply
            }
            Ok(Success::Empty) => self.answer_success(envelope, user, None),
            Ok(Success::Lifetime(seconds)) => self.answer_success(envelope, user, Some(seconds)),
            Err(refusal) if refusal.code == TRY_ALTERNATE => self.answer_alternate(envelope, client, user),
            Err(refusal) => self.answer_error(envelope, Some(user), refusal),
        }
    }

    /// RFC 8656 section 7.2, its checks in its order.
    fn allocate(
        &mut self,
        client: &ClientSocket,
        user: UserId,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        // One that has run out is in nobody's way, even if the timer is late.
        for id in self.table.find(client).into_iter().flat_map(Pair::iter) {
            if self.table.get(id).is_some_and(|allocation| allocation.has_expired(now)) {
                self.close(id);
            }
        }
        if let Some(pair) = self.table.find(client) {
            return self.allocate_again(pair, user, message, now);
        }
        self.refuse_new(client)?;
        let wanted = self.wanted(client, message)?;
        let first = self.add(client, user, message, &wanted, wanted.address, now);
        let second = wanted.second.map(|address| self.add(client, user, message, &wanted, address, now));
        let (made, missing) = match (first, second, wanted.second) {
            (Ok(made), Some(Err(_)), Some(address)) => (made, Some(address)),
            (Ok(made), ..) => (made, None),
            (Err(_), Some(Ok(made)), _) => (made, Some(wanted.address)),
            (Err(code), ..) => return Err(code.into()),
        };
        let (id, relayed) = made;
        if let (Some(address), Some(allocation)) = (missing, self.table.get_mut(id)) {
            let family = AddressFamily::of(address);
            allocation.refused = Some(AddressError { family, code: INSUFFICIENT_CAPACITY });
        }
        Ok(Success::Open(id, relayed))
    }

    /// Makes one allocation, of one family; its socket has to be opened.
    fn add(
        &mut self,
        client: &ClientSocket,
        user: UserId,
        message: &Message<'_>,
        wanted: &Wanted,
        address: IpAddr,
        now: Instant,
    ) -> Result<(AllocationId, SocketAddr), ErrorCode> {
        if self.credentials.user(user).allocations >= self.allocations_per_user_max {
            return Err(QUOTA_REACHED);
        }
        if self.table.len() >= self.allocations_max as usize {
            return Err(INSUFFICIENT_CAPACITY);
        }
        let (relayed, reservation) = self
            .take_port(address, wanted.port, now)
            .or_else(|| self.take_part(address, wanted.port, (client, user), None, now))
            .ok_or(INSUFFICIENT_CAPACITY)?;
        let mut allocation = Allocation::new(*client, user, relayed, wanted.port, message.transaction(), now);
        allocation.lifetime_s = wanted.lifetime_s;
        allocation.reservation = reservation;
        allocation.with_fingerprint = message.verify_fingerprint().is_some();
        allocation.refused = wanted.refused;
        self.credentials.user_mut(user).allocations += 1;
        let id = self.table.insert(allocation);
        self.directory.insert(relayed, id);
        Ok((id, relayed))
    }

    /// Reads an Allocate request.
    fn wanted(&self, client: &ClientSocket, message: &Message<'_>) -> Result<Wanted, Refusal> {
        match message.requested_transport()? {
            Some(TRANSPORT_UDP) => {}
            Some(_) => return Err(TRANSPORT_NOT_SUPPORTED.into()),
            None => return Err(BAD_REQUEST.into()),
        }
        let token = message.reservation_token()?;
        let even_port = message.even_port()?;
        let family = message.requested_address_family()?;
        let second_family = message.additional_address_family()?;
        // A reservation has an address and a port already; a second family comes on top of IPv4 and is IPv6.
        if token.is_some() && (even_port.is_some() || family.is_some() || second_family.is_some())
            || second_family.is_some() && (family.is_some() || even_port == Some(true))
            || second_family == Some(AddressFamily::V4)
        {
            return Err(BAD_REQUEST.into());
        }
        let (address, second, refused) = match token {
            // What was reserved has an address already.
            Some(_) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), None, None),
            None => self.addresses(client, family, second_family)?,
        };
        let port = match (token, even_port) {
            (Some(token), _) => PortChoice::Reserved(token),
            (None, None) => PortChoice::Free(Want::Any),
            (None, Some(false)) => PortChoice::Free(Want::Even),
            (None, Some(true)) => PortChoice::Free(Want::EvenAndNext),
        };
        let lifetime_s = lifetime(message)?.max(LIFETIME_DEFAULT_S);
        Ok(Wanted { address, second, refused, port, lifetime_s })
    }

    /// The address to relay from, for a client and family.
    pub(super) fn relay_address(&self, client: &ClientSocket, family: AddressFamily) -> Option<IpAddr> {
        let configured = self.relay_addresses.iter().copied();
        // A wildcard listener says nothing; the address the client sent to is one of this machine's.
        let spoken_to = client.local.filter(|local| !local.is_unspecified());
        configured.chain(spoken_to).find(|&address| AddressFamily::of(address) == family)
    }

    /// Takes a port, and its successor where that is asked for.
    fn take_port(
        &mut self,
        address: IpAddr,
        port: PortChoice,
        now: Instant,
    ) -> Option<(SocketAddr, Option<Token>)> {
        let want = match port {
            PortChoice::Reserved(token) => {
                let (address, port) = self.ports.redeem(&token, now)?;
                return Some((SocketAddr::new(address, port), None));
            }
            PortChoice::Free(want) => want,
        };
        self.ports.expire_reservations(now);
        let port = self.ports.take(address, want, &mut self.random)?;
        let relayed = SocketAddr::new(address, port);
        if want != Want::EvenAndNext {
            return Some((relayed, None));
        }
        let Some(token) = self.ports.reserve(address, port + 1, &mut self.random, now) else {
            self.ports.release(address, port);
            return None;
        };
        Some((relayed, Some(token)))
    }

    /// Takes a port that others have already, where any would do. EVEN-PORT is about a port of one's own.
    fn take_part(
        &self,
        address: IpAddr,
        port: PortChoice,
        (client, user): (&ClientSocket, UserId),
        except: Option<SocketAddr>,
        now: Instant,
    ) -> Option<(SocketAddr, Option<Token>)> {
        if port != PortChoice::Free(Want::Any) {
            return None;
        }
        Some((self.share_port(address, client, user, except, now)?, None))
    }

    /// The driver has tried to open a relay socket.
    pub fn handle_relay_opened(
        &mut self,
        id: AllocationId,
        result: Result<(), OpenFailure>,
        now: Instant,
    ) -> Opened {
        let Some(allocation) = self.table.get_mut(id) else { return Opened::Gone };
        let State::Opening { attempts } = allocation.state else { return Opened::Gone };
        let client = allocation.client;
        match result {
            Ok(()) => {
                allocation.state = State::Live;
                self.figures.count_allocation();
                let expires = now + Duration::from_secs(allocation.lifetime_s.into());
                self.table.set_deadline(id, expires);
                self.open_next(client).unwrap_or(Opened::Gone)
            }
            Err(OpenFailure::PortTaken) if attempts + 1 < OPEN_ATTEMPTS_MAX => {
                allocation.state = State::Opening { attempts: attempts + 1 };
                self.retry(id, now).map_or_else(|| self.give_up(id, client, now), Opened::Retry)
            }
            Err(OpenFailure::PortTaken | OpenFailure::Other) => self.give_up(id, client, now),
        }
    }

    /// Takes another port for an allocation whose port somebody else holds. `None` when there is none that would do.
    fn retry(&mut self, id: AllocationId, now: Instant) -> Option<SocketAddr> {
        let allocation = self.table.get(id)?;
        let (old, old_token) = (allocation.relayed, allocation.reservation);
        let (port, client, user) = (allocation.port, allocation.client, allocation.user);
        // The port behind a token cannot be replaced: the client asked for that one.
        let PortChoice::Free(_) = port else { return None };
        // Taken before the old one is given back, so that it cannot be the same.
        let (relayed, reservation) = self
            .take_port(old.ip(), port, now)
            .or_else(|| self.take_part(old.ip(), port, (&client, user), Some(old), now))?;
        if self.directory.remove(old, id, std::iter::empty()) {
            if self.shares_ports() {
                // There are too few to come across it again and again.
                self.ports.set_aside(old.ip(), old.port(), &mut self.random, now);
            } else {
                self.ports.release(old.ip(), old.port());
            }
        }
        self.give_back(old_token, now);
        self.directory.insert(relayed, id);
        let allocation = self.table.get_mut(id)?;
        allocation.relayed = relayed;
        allocation.reservation = reservation;
        Some(relayed)
    }

    /// Gives the port back that was reserved with one that was never opened.
    fn give_back(&mut self, token: Option<Token>, now: Instant) {
        if let Some((address, port)) = token.and_then(|token| self.ports.redeem(&token, now)) {
            self.ports.release(address, port);
        }
    }

    /// Forgets an allocation that could not be opened. Its Allocate is answered 508, unless there is one of the other family.
    fn give_up(&mut self, id: AllocationId, client: ClientSocket, now: Instant) -> Opened {
        self.table.detach(id);
        let Some(allocation) = self.table.free(id) else { return Opened::Gone };
        self.vacate(id, &allocation);
        self.give_back(allocation.reservation, now);
        self.credentials.user_mut(allocation.user).allocations -= 1;
        let family = AddressFamily::of(allocation.relayed.ip());
        for id in self.table.find(&client).into_iter().flat_map(Pair::iter) {
            if let Some(other) = self.table.get_mut(id) {
                other.refused = Some(AddressError { family, code: INSUFFICIENT_CAPACITY });
            }
        }
        if let Some(opened) = self.open_next(client) {
            return opened;
        }
        let envelope = Envelope {
            method: Method::Allocate,
            transaction: allocation.transaction,
            with_fingerprint: allocation.with_fingerprint,
        };
        let _ = self.answer_error(envelope, Some(allocation.user), INSUFFICIENT_CAPACITY.into());
        Opened::Reply { client }
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
                self.table.set_deadline(id, now + Duration::from_secs(seconds.into()));
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
            let id = self.check_peer(pair, peer, now)?;
            *place = (id, peer, self.reach_of_permission(id, peer, now));
        }
        let wanted = &wanted[..count];
        if wanted.is_empty() {
            return Err(BAD_REQUEST.into());
        }
        if wanted.iter().any(|&(id, peer, reach)| self.is_in_conflict(id, peer, reach, now)) {
            return Err(INSUFFICIENT_CAPACITY.into());
        }
        let has_room = |id| {
            // Each allocation has the peers of its own family.
            let own = wanted.iter().filter(|&&(of, ..)| of == id).map(|&(_, _, reach)| reach);
            self.table.get(id).is_some_and(|allocation| allocation.has_room_for(own, now))
        };
        if !pair.iter().all(has_room) {
            return Err(INSUFFICIENT_CAPACITY.into());
        }
        for &(id, _, reach) in wanted {
            let allocation = self.table.get_mut(id).ok_or(ALLOCATION_MISMATCH)?;
            let forgotten = allocation.permit(reach, now);
            self.claim(id, reach, forgotten);
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
        let id = self.check_peer(pair, peer, now)?;
        if self.is_bound_beside(pair, id, number, now) {
            return Err(BAD_REQUEST.into());
        }
        let reach = self.reach_of_channel(id, peer, now);
        if self.is_in_conflict(id, peer, reach, now) {
            return Err(INSUFFICIENT_CAPACITY.into());
        }
        let allocation = self.table.get_mut(id).ok_or(ALLOCATION_MISMATCH)?;
        match allocation.bind_channel(number, PeerSocket(peer), reach, now) {
            Ok(forgotten) => {
                self.claim(id, reach, forgotten);
                Ok(Success::Empty)
            }
            Err(BindError::Conflict) => Err(BAD_REQUEST.into()),
            Err(BindError::Full) => Err(INSUFFICIENT_CAPACITY.into()),
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
fn lifetime(message: &Message<'_>) -> Result<u32, BadAttribute> {
    Ok(match message.lifetime()? {
        None => LIFETIME_DEFAULT_S,
        Some(0) => 0,
        Some(seconds) => seconds.clamp(LIFETIME_DEFAULT_S, LIFETIME_MAX_S),
    })
}
