//! Making allocations (RFC 8656 section 7.2): what is asked for, which port it gets, and what becomes of its socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::stun::{AddressFamily, AttributeType, Message, Method, TRANSPORT_UDP};

use super::allocation::{Allocation, PortChoice, State};
use super::answers::{BAD_REQUEST, INSUFFICIENT_CAPACITY, Refusal, TRANSPORT_NOT_SUPPORTED};
use super::auth::{AnswerKey, UserId};
use super::pair::{AddressError, Pair};
use super::ports::{Token, Want};
use super::reply::Envelope;
use super::requests::{LIFETIME_DEFAULT_S, Success, lifetime};
use super::rules::{Rule, Why};
use super::shared_account::UserName;
use super::{AllocationId, ClientSocket, OpenFailure, Opened, Server};

/// Ports tried before an Allocate fails, when others outside this program hold them.
const OPEN_ATTEMPTS_MAX: u8 = 16;

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

/// Whether a request is one of Towpath's client.
pub(super) fn is_towpath(message: &Message<'_>) -> bool {
    message.first(AttributeType::TOWPATH).is_some()
}

/// Which port the client had before, where it says so.
fn former_port(message: &Message<'_>) -> Option<u16> {
    let value: [u8; 4] = message.first(AttributeType::TOWPATH)?.try_into().ok()?;
    Some(u16::from_be_bytes([value[0], value[1]])).filter(|port| *port != 0)
}

impl Server {
    /// RFC 8656 section 7.2, its checks in its order.
    pub(super) fn allocate(
        &mut self,
        client: &ClientSocket,
        user: UserId,
        answer: &AnswerKey,
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
        let first = self.add(client, user, answer, message, &wanted, wanted.address, now);
        let second =
            wanted.second.map(|address| self.add(client, user, answer, message, &wanted, address, now));
        let (made, missing) = match (first, second, wanted.second) {
            (Ok(made), Some(Err(refusal)), Some(address)) => (made, Some((address, refusal))),
            (Ok(made), ..) => (made, None),
            (Err(refusal), Some(Ok(made)), _) => (made, Some((wanted.address, refusal))),
            (Err(refusal), ..) => return Err(refusal),
        };
        let (id, relayed) = made;
        if let Some((address, refusal)) = missing {
            if let Some(why) = refusal.why {
                self.count_refusal(why, user, client.address, now);
            }
            if let Some(allocation) = self.table.get_mut(id) {
                let family = AddressFamily::of(address);
                allocation.refused = Some(AddressError { family, code: INSUFFICIENT_CAPACITY });
            }
        }
        Ok(Success::Open(id, relayed))
    }

    /// Makes one allocation, of one family; its socket has to be opened.
    #[expect(clippy::too_many_arguments, reason = "who asks, for what, and when")]
    fn add(
        &mut self,
        client: &ClientSocket,
        user: UserId,
        answer: &AnswerKey,
        message: &Message<'_>,
        wanted: &Wanted,
        address: IpAddr,
        now: Instant,
    ) -> Result<(AllocationId, SocketAddr), Refusal> {
        self.hold(user, client.address.ip())?;
        let taken = self
            .take_port(address, wanted.port, (client, user), now)
            .or_else(|rule| self.take_part(address, wanted.port, (client, user), None, now).ok_or(rule));
        let (relayed, reservation) = match taken {
            Ok(taken) => taken,
            Err(rule) => {
                self.let_go(user, client.address.ip());
                self.commons.vacate();
                return Err(Why::quota(rule).into());
            }
        };
        let mut allocation =
            Allocation::new(*client, user, answer.clone(), relayed, wanted.port, message.transaction(), now);
        allocation.lifetime_s = wanted.lifetime_s;
        allocation.reservation = reservation;
        allocation.with_fingerprint = message.verify_fingerprint().is_some();
        allocation.refused = wanted.refused;
        allocation.is_towpath = is_towpath(message);
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
            (None, None) => PortChoice::Free(former_port(message).map_or(Want::Any, Want::Former)),
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

    /// Takes a port for an allocation that is counted already, and its successor where that is asked for.
    fn take_port(
        &mut self,
        address: IpAddr,
        port: PortChoice,
        (client, user): (&ClientSocket, UserId),
        now: Instant,
    ) -> Result<(SocketAddr, Option<Token>), Rule> {
        let mut ports = self.commons.ports();
        let want = match port {
            PortChoice::Reserved(token) => {
                let (address, port) = ports.redeem(&token, now).ok_or(Rule::RelayPorts)?;
                return Ok((SocketAddr::new(address, port), None));
            }
            PortChoice::Free(want) => want,
        };
        ports.expire_reservations(now);
        let keeper = match want {
            Want::Any | Want::Former(_) | Want::Even => None,
            Want::EvenAndNext => Some(self.may_reserve(&ports, client, user)?),
        };
        let name = UserName::from(self.users.get(user).identity());
        let again = match want {
            Want::Former(port) => {
                Some(port).filter(|port| ports.take_again(address, *port, self.lane, &name))
            }
            Want::Any | Want::Even | Want::EvenAndNext => None,
        };
        let port = again
            .or_else(|| ports.take(address, want, self.lane, &mut self.random))
            .ok_or(Rule::RelayPorts)?;
        ports.note_holder(address, port, &name);
        self.commons.places().use_address(address);
        let relayed = SocketAddr::new(address, port);
        let Some(keeper) = keeper else { return Ok((relayed, None)) };
        let Some(token) = ports.reserve(address, port + 1, keeper, &mut self.random, now) else {
            ports.release(address, port);
            return Err(Rule::RelayPorts);
        };
        Ok((relayed, Some(token)))
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
        if !matches!(port, PortChoice::Free(Want::Any | Want::Former(_))) {
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
                self.commons.places().set(allocation.relayed, Some(self.worker));
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
        self.give_back(old_token, now);
        // Taken before the old one is given back, so that it cannot be the same.
        let (relayed, reservation) = self
            .take_port(old.ip(), port, (&client, user), now)
            .ok()
            .or_else(|| self.take_part(old.ip(), port, (&client, user), Some(old), now))?;
        if self.directory.remove(old, id, std::iter::empty()) {
            if self.shares_ports() {
                // There are too few to come across it again and again.
                self.commons.ports().set_aside(old.ip(), old.port(), &mut self.random, now);
            } else {
                self.commons.ports().release(old.ip(), old.port());
            }
        }
        self.directory.insert(relayed, id);
        let allocation = self.table.get_mut(id)?;
        allocation.relayed = relayed;
        allocation.reservation = reservation;
        Some(relayed)
    }

    /// Gives the port back that was reserved with one that was never opened.
    fn give_back(&self, token: Option<Token>, now: Instant) {
        let Some(token) = token else { return };
        let mut ports = self.commons.ports();
        if let Some((address, port)) = ports.redeem(&token, now) {
            ports.release(address, port);
        }
    }

    /// Forgets an allocation that could not be opened. Its Allocate is answered 508, unless there is one of the other family.
    fn give_up(&mut self, id: AllocationId, client: ClientSocket, now: Instant) -> Opened {
        self.table.detach(id);
        let Some(allocation) = self.table.free(id) else { return Opened::Gone };
        self.commons.vacate();
        self.vacate(id, &allocation);
        self.give_back(allocation.reservation, now);
        let why = Why::quota(Rule::Sockets);
        // Told while the allocation still keeps its user's entry.
        self.count_refusal(why, allocation.user, client.address, now);
        self.let_go(allocation.user, client.address.ip());
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
        let _ = self.answer_error(envelope, Some(&allocation.answer.schedule()), why.into());
        Opened::Reply { client }
    }
}
