//! One peer: its protocol state, its timers, where it is reached, and what waits for it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::key::{PublicKey, SecretKey};
use super::noise::Noise;
use super::path_mtu::PathMtu;
use super::paths::{PathFigures, Paths};
use super::staged::Staged;
use super::timers::Timers;
use crate::wire::wireguard::SessionIndex;

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Straight from one of our own sockets.
    Direct {
        /// The peer's address.
        to: SocketAddr,
        /// The local address it sends to, so that answers come from there; `None` leaves it to the kernel.
        from: Option<IpAddr>,
    },
    /// Over a channel of a TURN relay.
    Relayed {
        /// The peer's address as the relay sees it.
        peer: SocketAddr,
    },
}

impl Path {
    /// The peer's address.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        match *self {
            Self::Direct { to, .. } => to,
            Self::Relayed { peer } => peer,
        }
    }

    /// Whether it is the same way, whatever local address it begins at.
    #[must_use]
    pub fn leads_as(&self, other: Self) -> bool {
        self.remote() == other.remote() && std::mem::discriminant(self) == std::mem::discriminant(&other)
    }

    /// Whether anything can be sent there: not to port 0, and not to an address that is none of one host.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let remote = self.remote();
        let one_host = match remote.ip() {
            IpAddr::V4(address) => {
                !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
            }
            IpAddr::V6(address) => !(address.is_unspecified() || address.is_multicast()),
        };
        one_host && remote.port() != 0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct { to, .. } => write!(formatter, "{to}"),
            Self::Relayed { peer } => write!(formatter, "{peer} over the relay"),
        }
    }
}

/// What the configuration says about a peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Who it is.
    pub public_key: PublicKey,
    /// A secret shared beforehand.
    pub preshared_key: Option<SecretKey>,
    /// Addresses it may send from and that are sent to it.
    pub allowed_ips: Vec<IpNet>,
    /// Where it is reached, if that is known from the start.
    pub path: Option<Path>,
    /// A path will be set soon (a channel is being bound): packets wait for it instead of being dropped.
    pub awaits_path: bool,
    /// Seconds between keepalives that are sent whatever happens; `None` or zero for none.
    pub persistent_keepalive: Option<u16>,
}

/// Figures of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Packets sealed for it.
    pub sent_packets: u64,
    /// Bytes of those, with padding.
    pub sent_bytes: u64,
    /// Packets from it that were let in.
    pub received_packets: u64,
    /// Bytes of those.
    pub received_bytes: u64,
    /// Bytes of all messages sent to it, handshakes and keepalives included: what `wg show` tells.
    pub sent_message_bytes: u64,
    /// Bytes of all authentic messages from it, likewise.
    pub received_message_bytes: u64,
    /// Data messages that it has sent and that did not arrive: by their counters, in which nothing else leaves gaps. One that
    /// is only late counts until it comes.
    pub missing_messages: u64,
    /// The last handshake that was completed.
    pub last_handshake: Option<Handshake>,
}

/// When a handshake was completed. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handshake {
    /// By the clock that stands still while the machine sleeps.
    pub at: Instant,
    /// How long the machine had slept by then.
    pub slept: Duration,
    /// The time of day, since 1970. It is noted because it cannot be found out later: clocks are set.
    pub wall: Duration,
}

impl PeerStats {
    /// Adds another peer's. Of the handshakes, the later one counts.
    pub(super) fn add(&mut self, other: &Self) {
        // Named one by one, so that a new figure cannot be forgotten here.
        let Self {
            sent_packets,
            sent_bytes,
            received_packets,
            received_bytes,
            sent_message_bytes,
            received_message_bytes,
            missing_messages,
            last_handshake,
        } = other;
        self.sent_packets += sent_packets;
        self.sent_bytes += sent_bytes;
        self.received_packets += received_packets;
        self.received_bytes += received_bytes;
        self.sent_message_bytes += sent_message_bytes;
        self.received_message_bytes += received_message_bytes;
        self.missing_messages = self.missing_messages.saturating_add(*missing_messages);
        self.last_handshake = self.last_handshake.max(*last_handshake);
    }
}

/// One peer.
pub(super) struct Peer {
    pub(super) public_key: PublicKey,
    pub(super) noise: Noise,
    /// Session indices that lead to it, some of them of sessions that are gone: see [`super::Tunnel`].
    pub(super) indices: Vec<SessionIndex>,
    /// When its sessions are from: see [`super::Tunnel`].
    pub(super) epoch: u64,
    /// The prefixes that are routed to it, and to nobody else.
    pub(super) allowed_ips: BTreeSet<IpNet>,
    pub(super) timers: Timers,
    pub(super) path: Option<Path>,
    /// What decides `path`, where there is more than one way.
    pub(super) paths: Option<Box<Paths>>,
    pub(super) awaits_path: bool,
    /// Where it is, or may be, reached directly, as [`super::looped::Outside`] knows it.
    pub(super) outside: Box<[SocketAddr]>,
    pub(super) path_mtu: PathMtu,
    pub(super) staged: Staged,
    /// It is in the queue of peers whose staged packets can leave.
    pub(super) unstaging: bool,
    /// Its silence has been logged, and it has not answered since.
    pub(super) told_silent: bool,
    pub(super) last_initiation_received: Option<Instant>,
    pub(super) stats: PeerStats,
    /// What the timers were last told of, and when: a batch of packets has one `now`, and they need to hear of it once.
    noted: Option<(Passed, Instant)>,
}

/// What passed between the peer and us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// A data message that is not empty was sent.
    DataSent,
    /// An authentic message arrived.
    Received,
}

impl Peer {
    /// Without allowed IPs, which are given to it one by one.
    pub(super) fn new(config: &PeerConfig, noise: Noise, epoch: u64, now: Instant) -> Self {
        let mut timers = Timers::new(config.persistent_keepalive);
        if config.path.is_some() {
            timers.persistent_now(now);
        }
        Self {
            public_key: config.public_key,
            noise,
            indices: Vec::new(),
            epoch,
            allowed_ips: BTreeSet::new(),
            timers,
            path: config.path,
            paths: None,
            awaits_path: config.awaits_path,
            outside: Box::default(),
            path_mtu: PathMtu::default(),
            staged: Staged::default(),
            unstaging: false,
            told_silent: false,
            last_initiation_received: None,
            stats: PeerStats::default(),
            noted: None,
        }
    }

    /// Whether this is news to the timers. It is not when the same came to pass at the same `now` and nothing else since.
    pub(super) fn is_news(&mut self, passed: Passed, now: Instant) -> bool {
        self.noted.replace((passed, now)) != Some((passed, now))
    }

    /// Something that [`Passed`] has no name for changed a timer: whatever passes next is news.
    pub(super) fn forget_noted(&mut self) {
        self.noted = None;
    }

    /// When something has to be done for this peer.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let paths = self.paths.as_ref().and_then(|paths| paths.next_timeout());
        [self.timers.next(), self.staged.next_expiry(), paths].into_iter().flatten().min()
    }

    /// Counters of the switches between the ways to it; zeros where there is no choice.
    pub(super) fn path_figures(&self) -> PathFigures {
        self.paths.as_ref().map(|paths| paths.figures()).unwrap_or_default()
    }

    /// By which way an answer goes to what came by `path`.
    pub(super) fn answers_by(&self, path: Path) -> Option<Path> {
        match &self.paths {
            Some(paths) if !paths.allows(path) => self.path,
            _ => Some(path),
        }
    }

    /// Nothing comes back: the local address the peer once sent to may be gone, so the kernel chooses again.
    pub(super) fn forget_source(&mut self) {
        if let Some(Path::Direct { from, .. }) = &mut self.path {
            *from = None;
        }
        if let Some(paths) = &mut self.paths {
            paths.forget_source();
        }
    }

    /// Wipes all sessions and what is kept of handshakes. Whether there could be any.
    pub(super) fn end_sessions(&mut self) -> bool {
        self.timers.stop_handshake();
        self.noted = None;
        self.noise.rest()
    }

    /// All sessions have expired: wipes them, and lets go of what is kept for them unless a handshake is under way.
    pub(super) fn rest(&mut self) {
        if self.timers.handshake_in_progress() {
            self.noise.forget_sessions();
        } else {
            self.noise.rest();
        }
    }
}
