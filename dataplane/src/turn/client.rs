//! The TURN client: keeps one allocation on one server alive, with its permissions and channels, for as long as it is
//! asked to. Sans-IO: after every call, drain [`Client::poll_transmit`] and [`Client::poll_event`] and ask
//! [`Client::poll_timeout`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use zeroize::Zeroizing;

use super::channels::Channels;
use super::credentials::Credentials;
use super::failure;
use super::permissions::Permissions;
use super::transaction::{Due, Request, Transaction};
use crate::drops::Cause;
use crate::stun::{
    AddressFamily, ChannelData, ChannelNumber, Class, ErrorCode, Message, Method, TransactionId, channel_data,
};

/// Most requests in flight; more wait their turn, so that a thousand peers do not become one burst.
const IN_FLIGHT_MAX: usize = 64;
/// What an allocation lasts when the server does not say (RFC 8656 section 3.2).
const LIFETIME_DEFAULT: Duration = Duration::from_secs(600);
/// Never refreshed more often, whatever lifetime a server names.
const REFRESH_MIN: Duration = Duration::from_secs(5);
/// Wait before the first new attempt; doubles up to the longest.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How many nonces in a row may be stale before the server is taken to be broken.
const STALE_NONCES_MAX: u8 = 3;

/// What a client needs to know.
pub struct ClientConfig {
    /// The server. Only datagrams from this address may be given to [`Client::handle_input`].
    pub server: SocketAddr,
    /// The user's name.
    pub username: String,
    /// The user's password; wiped from memory when the client is dropped.
    pub password: Zeroizing<String>,
    /// The family of the relayed address; `None` leaves it to the server, which takes IPv4 (RFC 8656 section 7.2).
    pub family: Option<AddressFamily>,
    /// Where transaction ids come from: 64 random bits.
    pub seed: u64,
}

/// What a datagram from the server was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A peer's data.
    Data {
        /// The peer.
        peer: SocketAddr,
        /// Where in the datagram its data is.
        payload: Range<usize>,
    },
    /// A response, late and repeated ones included.
    Consumed,
    /// Nothing for us; count it.
    Ignored(Cause),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server relays for us, at a new address each time.
    Allocated {
        /// Where peers send to.
        relayed: SocketAddr,
        /// Our address as the server sees it, when it said so.
        mapped: Option<SocketAddr>,
    },
    /// Data to the peer can go as ChannelData from now on.
    ChannelBound {
        /// The peer.
        peer: SocketAddr,
        /// The number it has.
        number: ChannelNumber,
    },
    /// Data to the peer has to wait; the channel is bound again as soon as possible.
    ChannelLost {
        /// The peer.
        peer: SocketAddr,
    },
    /// Something does not work; it is tried again with growing pauses. Said once until the reason changes.
    Failed {
        /// What and why, and how to mend it.
        reason: String,
    },
}

enum Allocation {
    Absent { retry_at: Instant },
    Requested,
    Established { refresh_at: Option<Instant>, expires_at: Instant },
    Closed,
}

/// A TURN client; see the module.
pub struct Client {
    server: SocketAddr,
    username: String,
    family: Option<AddressFamily>,
    credentials: Option<Credentials>,
    rng: Xoshiro256PlusPlus,
    allocation: Allocation,
    backoff: Duration,
    last_reason: Option<String>,
    channels: Channels,
    permissions: Permissions,
    transactions: Vec<Transaction>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    deadline: Option<Instant>,
}

impl Client {
    /// A client that asks for an allocation at once.
    #[must_use]
    pub fn new(config: ClientConfig, now: Instant) -> Self {
        let mut client = Self {
            server: config.server,
            username: config.username.clone(),
            family: config.family,
            credentials: Credentials::new(config.username, config.password),
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            allocation: Allocation::Absent { retry_at: now },
            backoff: BACKOFF_MIN,
            last_reason: None,
            channels: Channels::new(config.seed),
            permissions: Permissions::default(),
            transactions: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            deadline: None,
        };
        if client.credentials.is_none() {
            client.allocation = Allocation::Closed;
            client.report(
                "RelayUsername is longer than the 508 bytes that STUN carries: shorten it".to_owned(),
            );
        }
        client.advance(now);
        client
    }

    /// Takes one datagram from the server.
    pub fn handle_input(&mut self, datagram: &[u8], now: Instant) -> Input {
        if ChannelData::is_channel_data(datagram) {
            let Some(data) = ChannelData::parse(datagram) else {
                return Input::Ignored(Cause::MalformedOuter);
            };
            let Some(peer) = self.channels.peer(data.number) else { return Input::Ignored(Cause::NoChannel) };
            let start = channel_data::HEADER_LEN;
            return Input::Data { peer, payload: start..start + data.payload.len() };
        }
        let Ok(message) = Message::parse(datagram) else { return Input::Ignored(Cause::MalformedOuter) };
        match (message.class(), message.method()) {
            (Class::Indication, Method::Data) => self.handle_data_indication(datagram, &message),
            (Class::Success | Class::Error, _) => self.handle_response(&message, now),
            _ => Input::Ignored(Cause::MalformedOuter),
        }
    }

    /// Wants a channel to `peer`, now and after every new allocation; a permission comes with it. Answers its number,
    /// which can be used once [`Client::channel`] knows it; `None` when all 4,096 are taken.
    pub fn bind_channel(&mut self, peer: SocketAddr, now: Instant) -> Option<ChannelNumber> {
        let number = self.channels.want(peer, now)?;
        self.advance(now);
        Some(number)
    }

    /// No longer wants the channel to `peer`.
    pub fn release_channel(&mut self, peer: SocketAddr, now: Instant) {
        if self.channels.release(peer, now) && !self.channels.has_address(peer.ip()) {
            self.permissions.release(peer.ip());
        }
        self.advance(now);
    }

    /// Wants a permission for all ports of `peer`, now and after every new allocation. `false` when there are too many.
    pub fn create_permission(&mut self, peer: IpAddr, now: Instant) -> bool {
        let wanted = self.permissions.want(peer, now);
        self.advance(now);
        wanted
    }

    /// The channel to send to `peer` with, when it is bound. O(1).
    #[must_use]
    pub fn channel(&self, peer: SocketAddr) -> Option<ChannelNumber> {
        self.channels.bound(peer)
    }

    /// The next datagram for the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Client::handle_timeout`] wants to be called. O(1).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Retransmits, renews and tries again what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
    }

    /// Deletes the allocation with one Refresh of lifetime zero, sent once: the program is about to end. Afterwards
    /// nothing happens any more.
    pub fn close(&mut self, now: Instant) {
        if let Allocation::Established { .. } = self.allocation {
            self.transmit_delete();
        }
        for peer in self.channels.reset(now) {
            self.events.push_back(Event::ChannelLost { peer });
        }
        self.permissions.reset(now);
        self.allocation = Allocation::Closed;
        self.transactions.clear();
        self.deadline = None;
    }

    /// A Data indication (RFC 8656 section 11.4); from a peer without permission it is not believed.
    fn handle_data_indication(&self, datagram: &[u8], message: &Message<'_>) -> Input {
        let (Ok(Some(peer)), Some(data)) = (message.xor_peer_address(), message.data()) else {
            return Input::Ignored(Cause::MalformedOuter);
        };
        if !self.permissions.holds(peer.ip()) {
            return Input::Ignored(Cause::NoPermission);
        }
        let start = data.as_ptr().addr() - datagram.as_ptr().addr();
        Input::Data { peer, payload: start..start + data.len() }
    }

    fn handle_response(&mut self, message: &Message<'_>, now: Instant) -> Input {
        let position = self.transactions.iter().position(|transaction| {
            transaction.id == message.transaction() && transaction.request.method() == message.method()
        });
        // The answer to a request that was answered already, or given up.
        let Some(position) = position else { return Input::Consumed };
        let success = message.class() == Class::Success;
        // A success must be signed when the request was; a refusal need not be, a signed one must be right
        // (RFC 8489 section 9.2.5).
        if (success && self.transactions[position].signed) || message.has_integrity() {
            let key = self.credentials.as_ref().and_then(Credentials::key);
            if !key.is_some_and(|key| message.verify_integrity(key)) {
                return Input::Ignored(Cause::Unauthenticated);
            }
        }
        let transaction = self.transactions.swap_remove(position);
        if success {
            self.handle_success(transaction.request, message, now);
        } else {
            // A refusal without a readable code is one all the same.
            let code = message.error_code().ok().flatten().unwrap_or(ErrorCode(500));
            self.handle_refusal(&transaction, code, message, now);
        }
        self.advance(now);
        Input::Consumed
    }

    fn handle_success(&mut self, request: Request, message: &Message<'_>, now: Instant) {
        match request {
            Request::Allocate { .. } => {
                let Ok(Some(relayed)) = message.xor_relayed_address() else {
                    self.lose(
                        format!("relay {} names no relayed address: use another relay", self.server),
                        now,
                    );
                    return;
                };
                self.establish(message, now);
                self.backoff = BACKOFF_MIN;
                self.last_reason = None;
                let mapped = message.xor_mapped_address().ok().flatten();
                self.events.push_back(Event::Allocated { relayed, mapped });
            }
            Request::Refresh => self.establish(message, now),
            Request::Delete => {}
            Request::CreatePermission { peer } => self.permissions.grant(peer, now),
            Request::ChannelBind { number, peer } => {
                let jitter = self.jitter(Duration::from_secs(60));
                if self.channels.confirm(number, jitter, now) {
                    self.events.push_back(Event::ChannelBound { peer, number });
                }
                if self.channels.bound(peer) == Some(number) {
                    self.permissions.grant(peer.ip(), now);
                }
            }
        }
    }

    /// The allocation is good for another lifetime; refreshed at half of it.
    fn establish(&mut self, message: &Message<'_>, now: Instant) {
        let lifetime = message.lifetime().ok().flatten();
        let lifetime = lifetime.map_or(LIFETIME_DEFAULT, |seconds| Duration::from_secs(seconds.into()));
        let lifetime = lifetime.max(2 * REFRESH_MIN);
        self.allocation =
            Allocation::Established { refresh_at: Some(now + lifetime / 2), expires_at: now + lifetime };
    }

    fn handle_refusal(
        &mut self,
        transaction: &Transaction,
        code: ErrorCode,
        message: &Message<'_>,
        now: Instant,
    ) {
        let request = transaction.request;
        let again = match code {
            failure::UNAUTHENTICATED if transaction.signed => {
                self.lose(failure::wrong_credentials(self.server, &self.username), now);
                return;
            }
            failure::UNAUTHENTICATED => Some(0),
            failure::STALE_NONCE if transaction.stale_nonces < STALE_NONCES_MAX => {
                Some(transaction.stale_nonces + 1)
            }
            _ => None,
        };
        let challenged = again.is_some()
            && self.credentials.as_mut().is_some_and(|credentials| credentials.take_challenge(message));
        if let (true, Some(stale_nonces)) = (challenged, again) {
            self.start(request, stale_nonces, now);
            return;
        }
        let reason = failure::reason(self.server, request, code);
        match request {
            _ if code == failure::ALLOCATION_MISMATCH => {
                if let Request::Allocate { .. } = request {
                    // Most likely our own, from before a restart; then this deletes it.
                    self.transmit_delete();
                }
                self.lose(reason, now);
            }
            Request::Allocate { .. } | Request::Refresh | Request::Delete => self.lose(reason, now),
            Request::CreatePermission { peer } => {
                self.permissions.refuse(peer, now);
                self.report(reason);
            }
            Request::ChannelBind { number, peer } => {
                if self.channels.refuse(number, now) {
                    self.events.push_back(Event::ChannelLost { peer });
                }
                self.report(reason);
            }
        }
    }

    /// Gives the allocation up and tries again after a pause.
    fn lose(&mut self, reason: String, now: Instant) {
        for peer in self.channels.reset(now) {
            self.events.push_back(Event::ChannelLost { peer });
        }
        self.permissions.reset(now);
        self.transactions.clear();
        if let Some(credentials) = &mut self.credentials {
            credentials.forget_challenge();
        }
        // Three quarters to five quarters: clients that lost the same relay do not return in step.
        let pause = self.backoff * 3 / 4 + self.jitter(self.backoff / 2);
        self.allocation = Allocation::Absent { retry_at: now + pause };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.report(reason);
    }

    fn report(&mut self, reason: String) {
        if self.last_reason.as_ref() != Some(&reason) {
            self.last_reason = Some(reason.clone());
            self.events.push_back(Event::Failed { reason });
        }
    }

    /// Does everything that is due at `now` and finds the next deadline.
    fn advance(&mut self, now: Instant) {
        self.retransmit(now);
        match self.allocation {
            Allocation::Absent { retry_at } if retry_at <= now => {
                self.allocation = Allocation::Requested;
                self.start(Request::Allocate { family: self.family }, 0, now);
            }
            Allocation::Established { expires_at, .. } if expires_at <= now => {
                let reason = format!("the allocation on relay {} expired: is it reachable?", self.server);
                self.lose(reason, now);
            }
            Allocation::Established { refresh_at: Some(refresh_at), expires_at } if refresh_at <= now => {
                self.allocation = Allocation::Established { refresh_at: None, expires_at };
                self.start(Request::Refresh, 0, now);
            }
            _ => {}
        }
        if let Allocation::Established { .. } = self.allocation {
            self.start_due(now);
        }
        self.deadline = self.next_deadline();
    }

    /// Binds channels and asks for permissions that are due, as many as may be in flight.
    fn start_due(&mut self, now: Instant) {
        while self.transactions.len() < IN_FLIGHT_MAX {
            if let Some((number, peer)) = self.channels.take_due(now) {
                self.start(Request::ChannelBind { number, peer }, 0, now);
            } else if let Some(peer) = self.permissions.take_due(now) {
                self.start(Request::CreatePermission { peer }, 0, now);
            } else {
                return;
            }
        }
    }

    fn retransmit(&mut self, now: Instant) {
        let mut unanswered = None;
        for transaction in self.transactions.iter_mut().filter(|transaction| transaction.deadline <= now) {
            match transaction.handle_timeout(now) {
                Due::Retransmit => self.transmits.push_back(transaction.bytes.clone()),
                Due::GiveUp => unanswered = Some(transaction.request),
            }
        }
        if let Some(request) = unanswered {
            self.lose(failure::no_answer(self.server, request), now);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let own = match self.allocation {
            Allocation::Closed => return None,
            Allocation::Requested => None,
            Allocation::Absent { retry_at } => Some(retry_at),
            Allocation::Established { refresh_at, expires_at } => Some(refresh_at.unwrap_or(expires_at)),
        };
        // What is due while too much is in flight is started by the response or the timeout of something that is.
        let room = self.transactions.len() < IN_FLIGHT_MAX;
        let established = matches!(self.allocation, Allocation::Established { .. });
        let renewals = (room && established).then(|| [self.channels.next_due(), self.permissions.next_due()]);
        let retransmissions = self.transactions.iter().map(|transaction| transaction.deadline).min();
        renewals.into_iter().flatten().chain([own, retransmissions]).flatten().min()
    }

    /// Sends a request for the first time.
    fn start(&mut self, request: Request, stale_nonces: u8, now: Instant) {
        let id = self.transaction_id();
        let Some(credentials) = &self.credentials else { return };
        let bytes = credentials.build(request, id);
        let signed = credentials.key().is_some();
        self.transmits.push_back(bytes.clone());
        self.transactions.push(Transaction::new(id, request, bytes, signed, stale_nonces, now));
    }

    /// Asks once to delete the allocation; nobody waits for the answer.
    fn transmit_delete(&mut self) {
        let id = self.transaction_id();
        if let Some(credentials) = &self.credentials {
            self.transmits.push_back(credentials.build(Request::Delete, id));
        }
    }

    fn transaction_id(&mut self) -> TransactionId {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        TransactionId(id)
    }

    /// A duration between zero and `below`.
    fn jitter(&mut self, below: Duration) -> Duration {
        below.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX))
    }
}
