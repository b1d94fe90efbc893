//! The TURN server (RFC 8656) without a socket: datagrams and `now` go in, what to do comes out.
//!
//! The data path ([`Server::find`], [`Server::channel`], [`Server::handle_peer`]) looks up one hash table and one
//! short list, whatever the number of allocations, and neither allocates nor logs. Requests may allocate, but only for
//! users who proved their password.

mod allocate;
mod allocation;
mod answers;
pub mod auth;
mod clock;
mod commons;
mod data;
mod directory;
mod drain;
mod face;
mod fair_share;
pub mod figures;
mod hairpin;
pub mod icmp;
pub mod limits;
mod pace;
mod pair;
pub mod policy;
pub mod port_set;
pub mod ports;
mod quotas;
pub mod random;
mod reconfigure;
mod reflection;
mod reply;
mod requests;
pub mod rules;
mod shared_account;
mod sharing;
mod table;
pub mod traffic;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::stun::{ChannelData, ChannelNumber, Class, Message, Method};

use self::allocation::State;
use self::auth::{Credentials, Nonces, Users};
use self::clock::WallClock;
use self::directory::Directory;
use self::fair_share::FairShare;
use self::figures::Figures;
use self::limits::Limits;
use self::policy::PeerPolicy;
use self::ports::Lane;
use self::random::Random;
use self::reflection::Reflection;
use self::reply::{Refusals, Replies};
use self::rules::Rules;
use self::sharing::Conflicts;
pub use self::sharing::comes_to_share;
use self::table::Table;

pub use self::allocation::{
    CHANNEL_QUIET_TIME, CHANNEL_TIME, CHANNELS_MAX, PERMISSION_TIME, PERMISSIONS_MAX,
};
pub use self::commons::{Commons, WORKERS_MAX, WorkerId};
pub use self::drain::Alternates;
pub use self::hairpin::Route;
pub use self::icmp::{FromIcmp, ICMP_PER_SECOND_MAX, ICMP_SILENCE_TIME};
pub use self::pair::Pair;
pub use self::reply::REALM_LEN_MAX;
pub use self::requests::{LIFETIME_DEFAULT_S, LIFETIME_MAX_S, PEERS_PER_REQUEST_MAX};

/// Index of a socket that clients send to, over UDP, TCP or TLS: it stands for the transport in a 5-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener(pub u16);

/// A client as the relay sees it: this is the 5-tuple of RFC 8656 section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientSocket {
    /// Where it sends from.
    pub address: SocketAddr,
    /// Which of the relay's sockets it sends to.
    pub listener: Listener,
    /// Which of the relay's addresses it sends to, when the kernel said so. Answers leave from there.
    pub local: Option<IpAddr>,
}

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerSocket(pub SocketAddr);

/// Index of an allocation. It is not used again before [`Server::handle_relay_closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId(pub u32);

/// How an address of this machine is called outside, behind a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalAddress {
    /// What clients and peers see.
    pub public: IpAddr,
    /// What it stands for; every address of the same family when it is not given.
    pub local: Option<IpAddr>,
}

/// Which channel numbers clients may bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelNumbers {
    /// 0x4000 to 0x4FFF.
    Rfc8656,
    /// 0x4000 to 0x7FFF.
    Rfc5766,
}

/// What the server is told at its start, and again by [`Server::reconfigure`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Realm and users. The realm is at most [`REALM_LEN_MAX`] bytes long.
    pub credentials: Credentials,
    /// Which peers may be reached.
    pub policy: PeerPolicy,
    /// Where relayed ports are taken from; not empty.
    pub relay_ports: RangeInclusive<u16>,
    /// Addresses for allocations, the first of each family counts. For a family without one, the address the client
    /// sent to is taken.
    pub relay_addresses: Vec<IpAddr>,
    /// Addresses that are called something else outside.
    pub external: Vec<ExternalAddress>,
    /// Which channel numbers clients may bind.
    pub channel_numbers: ChannelNumbers,
    /// Most allocations in all; beyond it 508.
    pub allocations_max: u32,
    /// Most allocations of one user; beyond it 486.
    pub allocations_per_user_max: u32,
    /// Everything else that is limited.
    pub limits: Limits,
    /// Whether clients of this relay reach each other's relayed addresses without the kernel.
    pub hairpin: bool,
    /// Whether allocations may have a relayed port together where there are fewer ports than `allocations_max`.
    pub port_sharing: bool,
}

impl Settings {
    /// Whether several allocations may come to have one port.
    #[must_use]
    pub fn shares_ports(&self) -> bool {
        comes_to_share(self.port_sharing, &self.relay_ports, self.allocations_max)
    }
}

/// What to do with a datagram from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient {
    /// Send this part of the datagram to the peer, the way that [`Server::route`] says.
    Forward {
        /// Whose socket.
        allocation: AllocationId,
        /// Where to.
        peer: PeerSocket,
        /// Which part.
        payload: Range<usize>,
        /// It must not be fragmented: dropped rather, where it does not fit.
        dont_fragment: bool,
    },
    /// Send [`Server::reply`] back to the client.
    Reply,
    /// Open a socket on this address, then call [`Server::handle_relay_opened`].
    OpenRelay {
        /// For whom.
        allocation: AllocationId,
        /// Where.
        address: SocketAddr,
    },
    /// Nothing: it needs no answer.
    Consumed,
    /// Nothing: it is lost, for this cause.
    Drop(Cause),
}

/// What to do with datagrams from one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromPeer {
    /// Send them to the client as ChannelData.
    Channel {
        /// Where to.
        client: ClientSocket,
        /// What to put into the header.
        number: ChannelNumber,
    },
    /// Send them to the client behind [`Server::data_indication`], padded with zero bytes.
    Indication {
        /// Where to.
        client: ClientSocket,
    },
    /// Nothing: they are lost, for this cause.
    Drop(Cause),
}

/// Why a relay socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFailure {
    /// Someone outside this program has the port (EADDRINUSE): another one may do.
    PortTaken,
    /// Anything else; another port would not help.
    Other,
}

/// What to do after an attempt to open a relay socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Send [`Server::reply`] to the client: the allocation is made, or it failed and its index is free again.
    Reply {
        /// Where to.
        client: ClientSocket,
    },
    /// The client has asked for an allocation of the other family as well: open its socket likewise.
    Also {
        /// For whom.
        allocation: AllocationId,
        /// Where.
        address: SocketAddr,
    },
    /// Try this address.
    Retry(SocketAddr),
    /// Nothing: there is no such allocation any more. Close the socket.
    Gone,
}

/// What the server wants done that answers no datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Close the socket of an allocation, then call [`Server::handle_relay_closed`].
    Close(AllocationId),
    /// Write a [`Server::hint`] and send it to this client, as [`Server::reply`].
    Hint(ClientSocket),
}

/// The TURN server.
#[derive(Debug)]
pub struct Server {
    credentials: Credentials,
    users: Users,
    wall_clock: WallClock,
    policy: PeerPolicy,
    relay_addresses: Vec<IpAddr>,
    external: Vec<ExternalAddress>,
    channel_numbers: ChannelNumbers,
    allocations_max: u32,
    allocations_per_user_max: u32,
    limits: Limits,
    rules: Rules,
    reflection: Arc<Reflection>,
    /// Copy of [`Limits::has_rates`], asked for with every packet.
    has_rates: bool,
    fair_share: FairShare,
    /// All data together was near its rate since the last interval.
    is_near_total: bool,
    hairpin: bool,
    nonces: Nonces,
    worker: WorkerId,
    /// The ports that this worker may open: where several allocations have one, it has to be one worker's.
    lane: Lane,
    commons: Arc<Commons>,
    random: Random,
    table: Table,
    directory: Directory,
    conflicts: Conflicts,
    replies: Replies,
    refusals: Refusals,
    figures: Figures,
    commands: VecDeque<Command>,
    /// Allocations that got permissions by the last datagram.
    permitting: Vec<AllocationId>,
    /// Listeners from here on are connections: their clients have proven where they are.
    connections_from: Option<Listener>,
    /// From here on they are under TLS.
    tls_from: Option<Listener>,
    /// Set when nobody may allocate any more.
    draining: Option<Alternates>,
    /// When clients are told again that it drains.
    hint_at: Option<Instant>,
}

impl Server {
    /// A server without allocations. `seed` must be unpredictable.
    ///
    /// # Panics
    /// When the realm is longer than [`REALM_LEN_MAX`] or the port range is empty: check configuration before.
    #[must_use]
    pub fn new(settings: Settings, seed: &[u8; 32]) -> Self {
        let commons = Commons::new(settings.relay_ports.clone(), 1);
        Self::of_worker(settings, seed, WorkerId(0), commons)
    }

    /// The server of one worker of several, who have `commons` and settings in common. Its `seed` is its own: nobody who is
    /// told a nonce or token by one worker learns anything about another's.
    ///
    /// # Panics
    /// As [`Server::new`].
    #[must_use]
    pub fn of_worker(settings: Settings, seed: &[u8; 32], worker: WorkerId, commons: Arc<Commons>) -> Self {
        assert!(settings.credentials.realm().len() <= REALM_LEN_MAX, "the realm is too long");
        assert!(!settings.relay_ports.is_empty(), "there are no relay ports");
        let is_shared = settings.shares_ports();
        let mut random = Random::from_seed(seed);
        Self {
            reflection: commons
                .reflection(|| Reflection::new(&settings.limits, u64::from_be_bytes(random.bytes()))),
            nonces: Nonces::new(&mut random),
            worker,
            lane: if is_shared { Lane { number: worker.0, of: commons.workers() } } else { Lane::ALL },
            rules: Rules::new(commons.told().clone()),
            commons,
            credentials: settings.credentials,
            users: Users::default(),
            wall_clock: WallClock::default(),
            policy: settings.policy,
            relay_addresses: settings.relay_addresses,
            external: settings.external,
            channel_numbers: settings.channel_numbers,
            allocations_max: settings.allocations_max,
            allocations_per_user_max: settings.allocations_per_user_max,
            has_rates: settings.limits.has_rates(),
            limits: settings.limits,
            fair_share: FairShare::new(),
            is_near_total: false,
            hairpin: settings.hairpin,
            random,
            table: Table::default(),
            directory: Directory::new(is_shared),
            conflicts: Conflicts::default(),
            replies: Replies::new(),
            refusals: Refusals::default(),
            figures: Figures::default(),
            commands: VecDeque::new(),
            permitting: Vec::with_capacity(PEERS_PER_REQUEST_MAX),
            connections_from: None,
            tls_from: None,
            draining: None,
            hint_at: None,
        }
    }

    /// Listeners from `tcp` on are for TCP, those from `tls` on for TLS: whoever sends on a connection has proven its address.
    pub fn set_connections_from(&mut self, tcp: Listener, tls: Listener) {
        self.connections_from = Some(tcp);
        self.tls_from = Some(tls);
    }

    fn is_tls(&self, client: &ClientSocket) -> bool {
        self.tls_from.is_some_and(|first| client.listener.0 >= first.0)
    }

    fn is_proven(&self, client: &ClientSocket) -> bool {
        self.connections_from.is_some_and(|first| client.listener.0 >= first.0)
    }

    /// Takes one datagram from a client.
    pub fn handle_client(&mut self, client: &ClientSocket, datagram: &[u8], now: Instant) -> FromClient {
        self.permitting.clear();
        if ChannelData::is_channel_data(datagram) {
            return self.handle_channel_data(client, datagram, now).unwrap_or_else(FromClient::Drop);
        }
        let Ok(message) = Message::parse(datagram) else {
            return FromClient::Drop(Cause::MalformedOuter);
        };
        if message.verify_fingerprint() == Some(false) || !is_answerable(client.address) {
            return FromClient::Drop(Cause::MalformedOuter);
        }
        match (message.class(), message.method()) {
            (Class::Request, _) if self.is_proven(client) => self.handle_request(client, &message, now),
            // Forged: the answer would come back here, or go to another socket of this relay.
            (Class::Request, _) if self.policy.is_own_source(client.address) => {
                FromClient::Drop(Cause::MalformedOuter)
            }
            (Class::Request, _) => {
                let answer = self.handle_request(client, &message, now);
                self.within_budget(client, datagram.len(), answer, now)
            }
            (Class::Indication, Method::Send) => {
                self.handle_send(client, &message, now).unwrap_or_else(FromClient::Drop)
            }
            // A client's keepalive (RFC 8489 section 2).
            (Class::Indication, Method::Binding) => FromClient::Consumed,
            // Answering a response would let two servers answer each other for ever.
            (Class::Indication | Class::Success | Class::Error, _) => FromClient::Drop(Cause::MalformedOuter),
        }
    }

    /// The answer to send after [`FromClient::Reply`] or [`Opened::Reply`].
    #[must_use]
    pub fn reply(&self) -> &[u8] {
        self.replies.bytes()
    }

    /// An allocation that got permissions by the last [`Server::handle_client`]: its socket has to hear from now on. The same one
    /// may come several times.
    pub fn poll_permitting(&mut self) -> Option<AllocationId> {
        self.permitting.pop()
    }

    /// Deletes allocations that have run out, and forgets users who have rested for long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(id) = self.table.expired(now) {
            self.close(id);
        }
        self.users.handle_timeout(now);
        if self.hint_at.is_some_and(|at| at <= now) {
            self.hint_all(now);
        }
    }

    /// When [`Server::handle_timeout`] wants to be called; cheap, so that it can be asked after every batch.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.table.next_deadline(), self.users.poll_timeout(), self.hint_at].into_iter().flatten().min()
    }

    /// The next thing to do that answers no datagram.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Allocations, those included whose socket is still being opened or closed.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.table.len()
    }

    /// Allocations of all workers.
    #[must_use]
    pub fn allocations_of_all(&self) -> usize {
        self.commons.allocations()
    }

    /// Requests answered with an error so far, by error code; codes that were not used are left out.
    pub fn refusals(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.all_refusals().filter(|&(_, count)| count > 0)
    }

    /// As [`Server::refusals`], with every code there is.
    pub fn all_refusals(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.refusals.iter()
    }

    /// The socket of a deleted allocation is closed: its index and port are free again.
    pub fn handle_relay_closed(&mut self, id: AllocationId) {
        if let Some(allocation) = self.table.free(id) {
            debug_assert_eq!(allocation.state, State::Closing);
            self.commons.vacate();
            self.vacate(id, &allocation);
        }
    }

    /// An allocation's address is free again, unless others have it too.
    fn vacate(&mut self, id: AllocationId, allocation: &allocation::Allocation) {
        let relayed = allocation.relayed;
        if self.directory.remove(relayed, id, allocation.reaches()) {
            self.commons.ports().release(relayed.ip(), relayed.port());
        }
    }

    /// The connection of a client on a stream has ended, and its allocations with it (RFC 8656 section 3.1).
    pub fn handle_disconnected(&mut self, client: &ClientSocket) {
        for id in self.table.find(client).into_iter().flat_map(Pair::iter) {
            self.close(id);
        }
    }

    /// Takes a live allocation from its client and asks for its socket to be closed.
    fn close(&mut self, id: AllocationId) {
        self.table.detach(id);
        self.hide(id);
        if let Some(allocation) = self.table.get_mut(id) {
            allocation.state = State::Closing;
            let (user, client) = (allocation.user, allocation.client);
            self.count_listed(id);
            self.let_go(user, client.address.ip());
            self.commands.push_back(Command::Close(id));
        }
    }
}

/// Whether an answer to this address could reach one honest host: not port 0, multicast or broadcast.
fn is_answerable(client: SocketAddr) -> bool {
    let ip = client.ip();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    client.port() != 0 && !ip.is_multicast() && !ip.is_unspecified() && !is_broadcast
}

#[cfg(test)]
mod tests;
