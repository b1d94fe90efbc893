//! The TURN client: keeps one allocation on one server alive, with its permissions and channels, for as long as it is
//! asked to. Sans-IO: after every call, drain [`Client::poll_transmit`] and [`Client::poll_event`] and ask
//! [`Client::poll_timeout`].

mod answers;
mod urgency;

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
use super::watch::Watch;
use crate::drops::Cause;
use crate::stun::{
    AddressFamily, ChannelData, ChannelNumber, Class, Message, Method, TransactionId, channel_data,
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
/// An allocation that lasted at least this long is made anew at once when the server no longer has it.
const LASTED: Duration = Duration::from_secs(2);
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
    /// The server relays for us, at the address of before where it is Towpath's and nobody has taken that, else at a new one.
    Allocated {
        /// Where peers send to.
        relayed: SocketAddr,
        /// Our address as the server sees it, when it said so.
        mapped: Option<SocketAddr>,
    },
    /// There is no allocation any more: the address leads nowhere.
    Deallocated,
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
    /// The server is silent, or takes nobody: another one should be tried, if there is one. This one is tried on.
    Unusable {
        /// The server that it names instead, in a message it has signed.
        alternate: Option<SocketAddr>,
    },
    /// The server refuses user name and password.
    Unauthorized,
    /// Something does not work; it is tried again with growing pauses. Said once until the reason changes.
    Failed {
        /// What and why, and how to mend it.
        reason: String,
    },
}

enum Allocation {
    Absent { retry_at: Instant },
    Requested,
    Established { since: Instant, refresh_at: Option<Instant>, expires_at: Instant },
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
    /// The port of the last one's address, 0 before there was any.
    port: u16,
    backoff: Duration,
    last_reason: Option<String>,
    channels: Channels,
    permissions: Permissions,
    transactions: Vec<Transaction>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    deadline: Option<Instant>,
    watch: Watch,
    /// Until then requests are urgent.
    urgent_until: Option<Instant>,
    /// When refused channels were last asked for because somebody waits.
    retried: Option<Instant>,
    /// When a hint was last followed.
    hinted: Option<Instant>,
    /// It was lost to silence, not to a refusal.
    away: bool,
    /// There is a connection to the server, or will be.
    reliable: bool,
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
            port: 0,
            backoff: BACKOFF_MIN,
            last_reason: None,
            channels: Channels::new(config.seed),
            permissions: Permissions::default(),
            transactions: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            deadline: None,
            watch: Watch::default(),
            urgent_until: None,
            retried: None,
            hinted: None,
            away: false,
            reliable: false,
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
            (Class::Indication, Method::Binding) => self.handle_hint(now),
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

    /// An allocation that there was on this server before: the next would best have its port, to which peers send.
    pub fn prefer(&mut self, former: SocketAddr) {
        self.port = former.port();
    }

    /// The server is reached over a connection (RFC 8656 section 3.1): nothing is sent twice. Say so before anything is sent.
    pub fn over_stream(&mut self, now: Instant) {
        self.reliable = true;
        for transaction in std::mem::take(&mut self.transactions) {
            self.transactions.push(transaction.over_stream(now));
        }
        self.deadline = self.next_deadline();
    }

    /// The connection to the server has ended, and with it the allocation. A new one is asked for at once when this one
    /// lasted, else after a pause.
    pub fn disconnected(&mut self, why: &str, now: Instant) {
        if matches!(self.allocation, Allocation::Closed) {
            return;
        }
        let lasted = self.lasted(now);
        self.lose(format!("the connection to relay {} ended: {why}", self.server), now);
        self.transmits.clear();
        self.away = true;
        self.events.push_back(Event::Unusable { alternate: None });
        if lasted {
            // A relay that is started again refuses for a moment only.
            (self.allocation, self.backoff) = (Allocation::Absent { retry_at: now }, BACKOFF_MIN / 2);
        }
        self.advance(now);
    }

    /// Another user name and password, from the next request on. An allocation that there is goes on where the server
    /// takes the new name for the same user, as it does with names that only expire later.
    pub fn set_credentials(&mut self, username: String, password: Zeroizing<String>, now: Instant) {
        if self.credentials.as_mut().is_some_and(|known| known.replace(username.clone(), password)) {
            self.username = username;
            if let Allocation::Absent { retry_at } = &mut self.allocation {
                (*retry_at, self.backoff) = (now, BACKOFF_MIN);
            }
            self.advance(now);
        }
    }

    /// Asks for a relayed address of this family from now on. One of the other family, as there may be where none was asked for, is
    /// given up.
    pub fn set_family(&mut self, family: AddressFamily, now: Instant) {
        let wants = |family| family == Some(AddressFamily::V6);
        let is_other = wants(self.family) != wants(Some(family));
        self.family = Some(family);
        if !is_other || matches!(self.allocation, Allocation::Closed) {
            return;
        }
        if let Allocation::Established { .. } = self.allocation {
            self.transmit_delete();
            self.events.push_back(Event::Deallocated);
        }
        for peer in self.channels.reset(now) {
            self.events.push_back(Event::ChannelLost { peer });
        }
        self.permissions.reset(now);
        self.transactions.clear();
        self.allocation = Allocation::Absent { retry_at: now };
        self.advance(now);
    }

    /// The channel to send to `peer` with, when it is bound. O(1).
    #[must_use]
    pub fn channel(&self, peer: SocketAddr) -> Option<ChannelNumber> {
        self.channels.bound(peer)
    }

    /// With which code (RFC 8656 section 19) the server has refused a channel to `peer` the last time; `None` where it has not. O(1).
    #[must_use]
    pub fn refusal(&self, peer: SocketAddr) -> Option<u16> {
        self.channels.refusal(peer).map(|code| code.0)
    }

    /// The next datagram for the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// Whether [`Client::poll_transmit`] has one.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        !self.transmits.is_empty()
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

    /// Does everything that is due at `now` and finds the next deadline.
    fn advance(&mut self, now: Instant) {
        self.retransmit(now);
        match self.allocation {
            Allocation::Absent { retry_at } if retry_at <= now => {
                self.allocation = Allocation::Requested;
                self.start(self.allocate(), 0, now);
            }
            Allocation::Established { expires_at, .. } if expires_at <= now => {
                let reason = format!("the allocation on relay {} expired: is it reachable?", self.server);
                self.lose(reason, now);
            }
            Allocation::Established { since, refresh_at: Some(refresh_at), expires_at }
                if refresh_at <= now =>
            {
                self.allocation = Allocation::Established { since, refresh_at: None, expires_at };
                self.start(Request::Refresh, 0, now);
            }
            Allocation::Established { .. } if self.watch.due().is_some_and(|due| due <= now) => {
                self.watch.ask();
                self.hurry(now);
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
            self.away = true;
            self.events.push_back(Event::Unusable { alternate: None });
            if self.is_urgent(now) {
                (self.allocation, self.backoff) = (Allocation::Absent { retry_at: now }, BACKOFF_MIN);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let own = match self.allocation {
            Allocation::Closed => return None,
            Allocation::Requested => None,
            Allocation::Absent { retry_at } => Some(retry_at),
            Allocation::Established { refresh_at, expires_at, .. } => {
                [Some(refresh_at.unwrap_or(expires_at)), self.watch.due()].into_iter().flatten().min()
            }
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
        let signed = credentials.can_sign();
        self.transmits.push_back(bytes.clone());
        let urgent = self.is_urgent(now);
        let transaction = Transaction::new(id, request, bytes, signed, stale_nonces, urgent, now);
        self.transactions.push(if self.reliable { transaction.over_stream(now) } else { transaction });
    }

    fn allocate(&self) -> Request {
        Request::Allocate { family: self.family, port: self.port }
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
