//! Requests: who may ask, what is checked in which order, and what is answered.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::stun::{
    AddressFamily, AttributeType, BadAttribute, ErrorCode, Message, Method, TRANSPORT_UDP,
};

use super::allocation::{Allocation, BindError, PortChoice, State};
use super::answers::{
    ALLOCATION_MISMATCH, BAD_REQUEST, FAMILY_NOT_SUPPORTED, FORBIDDEN, INSUFFICIENT_CAPACITY,
    PEER_FAMILY_MISMATCH, QUOTA_REACHED, Refusal, STALE_NONCE, TRANSPORT_NOT_SUPPORTED, TRY_ALTERNATE,
    UNAUTHORIZED, UNKNOWN_ATTRIBUTE, WRONG_CREDENTIALS,
};
use super::auth::{Unauthentic, UserId, authenticate};
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
const RETRANSMISSION_TIME: Duration = Duration::from_secs(40);
/// Ports tried before an Allocate fails, when others outside this program hold them.
const OPEN_ATTEMPTS_MAX: u8 = 16;

/// The comprehension-required attributes this server understands. DONT-FRAGMENT is not among them: relay sockets let
/// the kernel fragment what is longer than the path takes (RFC 8656 section 15).
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
    AttributeType::XOR_MAPPED_ADDRESS,
    AttributeType::RESERVATION_TOKEN,
];

/// How a request succeeds.
enum Success {
    /// With an empty answer.
    Empty,
    /// With a lifetime in seconds.
    Lifetime(u32),
    /// With the answer of an allocation made earlier.
    Again(AllocationId),
    /// Later, when this socket is open.
    Open(AllocationId, SocketAddr),
    /// Later: its socket is being opened.
    Patience,
}

/// What an Allocate request asks for.
struct Wanted {
    address: IpAddr,
    port: PortChoice,
    lifetime_s: u32,
    second_family: bool,
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
            Ok(Success::Again(id)) => {
                self.answer_allocated(id);
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
        if let Some((id, _)) = self.existing(client).filter(|(_, allocation)| allocation.has_expired(now)) {
            self.close(id);
        }
        if let Some((id, allocation)) = self.existing(client) {
            let again = allocation.transaction == message.transaction()
                && allocation.user == user
                && now < allocation.created + RETRANSMISSION_TIME;
            return match allocation.state {
                State::Opening { .. } if again => Ok(Success::Patience),
                State::Live if again => Ok(Success::Again(id)),
                State::Opening { .. } | State::Live | State::Closing => Err(ALLOCATION_MISMATCH.into()),
            };
        }
        self.refuse_new(client)?;
        let wanted = self.wanted(client, message)?;
        if self.credentials.user(user).allocations >= self.allocations_per_user_max {
            return Err(QUOTA_REACHED.into());
        }
        if self.table.len() >= self.allocations_max as usize {
            return Err(INSUFFICIENT_CAPACITY.into());
        }
        let (relayed, reservation) =
            self.take_port(wanted.address, wanted.port, now).ok_or(INSUFFICIENT_CAPACITY)?;
        let mut allocation = Allocation::new(*client, user, relayed, wanted.port, message.transaction(), now);
        allocation.lifetime_s = wanted.lifetime_s;
        allocation.reservation = reservation;
        allocation.with_fingerprint = message.verify_fingerprint().is_some();
        allocation.second_family_refused = wanted.second_family;
        self.credentials.user_mut(user).allocations += 1;
        let id = self.table.insert(allocation);
        Ok(Success::Open(id, relayed))
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
        let family = family.unwrap_or(AddressFamily::V4);
        let port = match (token, even_port) {
            (Some(token), _) => PortChoice::Reserved(token),
            (None, None) => PortChoice::Free(Want::Any),
            (None, Some(false)) => PortChoice::Free(Want::Even),
            (None, Some(true)) => PortChoice::Free(Want::EvenAndNext),
        };
        Ok(Wanted {
            address: self.relay_address(client, family).ok_or(FAMILY_NOT_SUPPORTED)?,
            port,
            lifetime_s: lifetime(message)?.max(LIFETIME_DEFAULT_S),
            second_family: second_family.is_some(),
        })
    }

    /// The address to relay from, for a client and family.
    fn relay_address(&self, client: &ClientSocket, family: AddressFamily) -> Option<IpAddr> {
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
                self.answer_allocated(id);
                Opened::Reply { client }
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
        // The port behind a token cannot be replaced: the client asked for that one.
        let PortChoice::Free(_) = allocation.port else { return None };
        // Taken before the old one is given back, so that it cannot be the same.
        let (relayed, reservation) = self.take_port(old.ip(), allocation.port, now)?;
        self.give_back(old, old_token, now);
        let allocation = self.table.get_mut(id)?;
        allocation.relayed = relayed;
        allocation.reservation = reservation;
        Some(relayed)
    }

    /// Gives a port back that was never opened, and the one reserved with it.
    fn give_back(&mut self, relayed: SocketAddr, token: Option<Token>, now: Instant) {
        self.ports.release(relayed.ip(), relayed.port());
        if let Some((address, port)) = token.and_then(|token| self.ports.redeem(&token, now)) {
            self.ports.release(address, port);
        }
    }

    /// Answers 508 to the Allocate of an allocation that could not be opened and forgets it.
    fn give_up(&mut self, id: AllocationId, client: ClientSocket, now: Instant) -> Opened {
        self.table.detach(id);
        let Some(allocation) = self.table.free(id) else { return Opened::Gone };
        self.give_back(allocation.relayed, allocation.reservation, now);
        self.credentials.user_mut(allocation.user).allocations -= 1;
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
        let id = self.owned(client, user, now)?;
        let family = message.requested_address_family()?;
        let own = self.table.get(id).map(|allocation| AddressFamily::of(allocation.relayed.ip()));
        if family.is_some() && family != own {
            return Err(PEER_FAMILY_MISMATCH.into());
        }
        let seconds = lifetime(message)?;
        if seconds == 0 {
            self.close(id);
        } else {
            self.table.set_deadline(id, now + Duration::from_secs(seconds.into()));
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
        let id = self.owned(client, user, now)?;
        let mut peers = [IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED); PEERS_PER_REQUEST_MAX];
        let mut count = 0;
        for peer in message.xor_peer_addresses() {
            let peer = peer?;
            *peers.get_mut(count).ok_or(BAD_REQUEST)? = peer.ip();
            count += 1;
            self.check_peer(id, peer)?;
        }
        let peers = &peers[..count];
        let allocation = self.table.get_mut(id).ok_or(ALLOCATION_MISMATCH)?;
        if peers.is_empty() {
            return Err(BAD_REQUEST.into());
        }
        if !allocation.has_room_for(peers, now) {
            return Err(INSUFFICIENT_CAPACITY.into());
        }
        for &peer in peers {
            allocation.permit(peer, now);
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
        let id = self.owned(client, user, now)?;
        let (Some(number), Some(peer)) = (message.channel_number()?, message.xor_peer_address()?) else {
            return Err(BAD_REQUEST.into());
        };
        let is_allowed = number.is_assigned() || self.channel_numbers == ChannelNumbers::Rfc5766;
        if peer.port() == 0 || !is_allowed {
            return Err(BAD_REQUEST.into());
        }
        self.check_peer(id, peer)?;
        let allocation = self.table.get_mut(id).ok_or(ALLOCATION_MISMATCH)?;
        match allocation.bind_channel(number, PeerSocket(peer), now) {
            Ok(()) => Ok(Success::Empty),
            Err(BindError::Conflict) => Err(BAD_REQUEST.into()),
            Err(BindError::Full) => Err(INSUFFICIENT_CAPACITY.into()),
        }
    }

    /// The allocation of a client, whatever its state.
    fn existing(&self, client: &ClientSocket) -> Option<(AllocationId, &Allocation)> {
        let id = self.table.find(client)?;
        Some((id, self.table.get(id)?))
    }

    /// The live allocation of a client, for the user who made it.
    fn owned(&self, client: &ClientSocket, user: UserId, now: Instant) -> Result<AllocationId, ErrorCode> {
        let (id, allocation) = self
            .existing(client)
            .filter(|(_, allocation)| allocation.is_live(now))
            .ok_or(ALLOCATION_MISMATCH)?;
        if allocation.user == user { Ok(id) } else { Err(WRONG_CREDENTIALS) }
    }

    /// Whether an allocation may talk to a peer.
    fn check_peer(&self, id: AllocationId, peer: SocketAddr) -> Result<(), ErrorCode> {
        let relayed = self.table.get(id).ok_or(ALLOCATION_MISMATCH)?.relayed;
        if relayed.is_ipv4() != peer.is_ipv4() {
            return Err(PEER_FAMILY_MISMATCH);
        }
        if self.policy.permits(peer) { Ok(()) } else { Err(FORBIDDEN) }
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
