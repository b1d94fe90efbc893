//! Why a request was refused, for the operator: one closed list, a counter for each rule, and what is told of it.
//!
//! A refusal is told once: with its rule, its user and its peer, not again within a minute, and never more than
//! [`LINES_PER_S`] a second of one rule, for all workers together, or one a second where nobody has proven who it is.
//! Everything here is of fixed size.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::stun::ErrorCode;
use foldhash::fast::RandomState;
use ipnet::IpNet;

use super::auth::Identity;
use super::pace::Pace;
use super::quotas::Source;

/// Refusals told a second, of one rule; a second's worth may come at once.
const LINES_PER_S: NonZeroU64 = NonZeroU64::new(10).expect("not zero");
/// How long the same refusal is not told again.
const SILENCE: Duration = Duration::from_secs(60);
/// How many lines one costs whose user is not proven: anybody can cause those, with any name.
const UNPROVEN_COST: u64 = 10;
/// Refusals that are remembered as told: so many sets of places. More of one set than it has places are told more often,
/// within the rate.
const SETS: usize = 64;
const PLACES: usize = 4;
/// Bytes of a name that are kept for the log. Most names are shorter; nothing that a client sends makes a long line.
pub const NAME_SHOWN_MAX: usize = 64;
/// Refusals that wait to be told: more are only counted. The driver asks after every batch.
const WAITING_MAX: usize = 32;

/// Declares the enum with what belongs to each rule in one place.
macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident => $code:literal, $name:literal, $remedy:literal;)*) => {
        /// The rule that a request broke.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Rule { $($(#[$doc])* $variant,)* }

        impl Rule {
            /// Every rule, in the order in which reports show them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The error code that the client gets.
            #[must_use]
            pub const fn code(self) -> ErrorCode {
                match self { $(Self::$variant => ErrorCode($code),)* }
            }

            /// What an operator can do about it.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)* }
            }
        }
    };
}

rules! {
    /// The relay drains, and there is an alternate that the client can reach.
    Redirected => 300, "redirected", "the relay drains: new clients are sent to its --alternate-server";
    /// A client answers to other password algorithms than this relay offers (RFC 8489 section 9.2.4).
    WeakerOffer => 400, "weaker_offer", "the client says it was offered other password algorithms than it was: a fault of its own, or someone on the way weakens them; the name is not proven";
    /// The peer lies in a range that is not public.
    SpecialRange => 403, "special_range", "the range is not public; --allow-peer makes exceptions";
    /// The peer lies in a range of the operator's.
    DenyPeer => 403, "deny_peer", "--deny-peer refuses the range";
    /// The peer has an address of this machine.
    OwnAddress => 403, "own_address", "this machine has the address; --allow-peer makes exceptions";
    /// The peer is a socket that clients talk to.
    OwnSocket => 403, "own_socket", "this relay's own sockets are never peers";
    /// The peer has a port of the operator's.
    PeerPort => 403, "peer_port", "--deny-peer-ports refuses the port";
    /// The user has too many allocations.
    UserAllocations => 486, "user_allocations", "--allocations-per-user-max is reached";
    /// The source address has too many allocations.
    SourceAllocations => 486, "source_allocations", "--allocations-per-source-max is reached";
    /// There are too many allocations in all.
    TotalAllocations => 508, "total_allocations", "--allocations-max is reached";
    /// No relayed port is free that would do.
    RelayPorts => 508, "relay_ports", "no port is free, or not the one that was asked for; --relay-ports widens the range";
    /// Too many ports are kept back for holders of a reservation token.
    Reservations => 508, "reservations", "EVEN-PORT keeps 1,024 second ports at most, for 30 seconds each, and 128 for one user or source address";
    /// Another allocation on the same relayed port has the peer.
    PeerTaken => 508, "peer_taken", "another client on the same relayed port has the peer; a wider --relay-ports helps";
    /// The relay drains, and there is no alternate that the client can reach.
    Draining => 508, "draining", "the relay drains: --alternate-server sends new clients elsewhere";
    /// The socket could not be opened.
    Sockets => 508, "sockets", "the socket could not be opened; is the limit of open files (ulimit -n) high enough?";
    /// The allocation has too many permissions.
    Permissions => 508, "permissions", "--permissions-max is reached";
    /// The allocation has too many channels.
    Channels => 508, "channels", "--channels-max is reached";
    /// The user meets too many new peers a second.
    NewPeers => 508, "new_peers", "--new-peers-per-user a second are reached";
    /// The source address meets too many new peers a second.
    SourceNewPeers => 508, "source_new_peers", "--new-peers-per-source a second are reached";
    /// All together meet too many new peers a second.
    TotalNewPeers => 508, "total_new_peers", "--new-peers-total a second are reached";
    /// The user has too many permissions.
    UserPermissions => 508, "user_permissions", "--permissions-per-user-max is reached";
    /// There are too many permissions in all.
    TotalPermissions => 508, "total_permissions", "--permissions-total-max is reached";
    /// The user has too many channels.
    UserChannels => 508, "user_channels", "--channels-per-user-max is reached";
    /// There are too many channels in all.
    TotalChannels => 508, "total_channels", "--channels-total-max is reached";
}

impl Rule {
    /// Whether it refuses a peer for where it is, without anyone having named it.
    #[must_use]
    pub const fn is_about_place(self) -> bool {
        matches!(self, Self::SpecialRange | Self::OwnAddress)
    }
}

/// A rule and what exactly it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// The rule.
    pub rule: Rule,
    /// The peer, where it is about one.
    pub peer: Option<SocketAddr>,
    /// The range that the peer, or the IPv4 address inside it, lies in.
    pub range: Option<IpNet>,
}

impl Why {
    /// A refusal that names the rule alone.
    #[must_use]
    pub const fn quota(rule: Rule) -> Self {
        Self { rule, peer: None, range: None }
    }

    /// A refusal of a peer for something else than the range it lies in.
    #[must_use]
    pub const fn about(rule: Rule, peer: SocketAddr) -> Self {
        Self { rule, peer: Some(peer), range: None }
    }

    /// What tells two refusals of a rule apart: a scan of a range is one refusal.
    fn subject(&self) -> (Option<IpNet>, Option<IpAddr>, Option<u16>) {
        let peer = self.peer.filter(|_| self.range.is_none());
        let is_about_port = self.rule == Rule::PeerPort;
        (
            self.range,
            peer.filter(|_| !is_about_port).map(|peer| peer.ip()),
            peer.filter(|_| is_about_port).map(|peer| peer.port()),
        )
    }
}

/// A refusal as the operator is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Why,
    /// The user's name, or the id in it, as the client wrote it: escape it. Of a longer one [`NAME_SHOWN_MAX`] bytes and an
    /// ellipsis.
    pub user: Box<[u8]>,
    /// The client.
    pub client: SocketAddr,
}

impl Refused {
    /// What is told of a refusal.
    pub(super) fn new(why: Why, name: &[u8], client: SocketAddr) -> Self {
        let user = match name.get(..NAME_SHOWN_MAX) {
            Some(shown) if shown.len() < name.len() => [shown, "…".as_bytes()].concat().into(),
            Some(_) | None => name.into(),
        };
        Self { why, user, client }
    }
}

/// What was told, and how much.
#[derive(Debug, Default)]
pub(super) struct Memory {
    lines: [Pace; Rule::ALL.len()],
    told: Vec<[Option<(u64, Instant)>; PLACES]>,
    hasher: RandomState,
}

impl Memory {
    /// Whether a refusal is to be told, which then was. `user` is who it is proven to be for: by name, because an index may be
    /// another's within a minute.
    fn is_news(&mut self, why: &Why, user: Option<Identity<'_>>, client: IpAddr, now: Instant) -> bool {
        // Grows once, on the first refusal.
        self.told.resize(SETS, [None; PLACES]);
        let hash = self.hasher.hash_one((why.rule, user, Source::from(client), why.subject()));
        let set = &mut self.told[hash as usize % SETS];
        let known = set.iter().flatten().any(|&(told, at)| told == hash && now < at + SILENCE);
        let line = &mut self.lines[why.rule as usize];
        let cost = if user.is_some() { 1 } else { UNPROVEN_COST };
        let is_news = !known && line.take(cost, LINES_PER_S, Duration::from_secs(1), now);
        if is_news && let Some(oldest) = set.iter_mut().min_by_key(|place| place.map(|(_, at)| at)) {
            *oldest = Some((hash, now));
        }
        is_news
    }
}

/// Counters, and what waits to be told.
#[derive(Debug)]
pub(super) struct Rules {
    counts: [u64; Rule::ALL.len()],
    own: Memory,
    /// What was told by all workers, which has the last word: asked no more often than this one would tell something.
    of_all: Arc<Mutex<Memory>>,
    waiting: VecDeque<Refused>,
}

impl Rules {
    /// Nothing was refused yet by this worker.
    #[must_use]
    pub fn new(of_all: Arc<Mutex<Memory>>) -> Self {
        Self { counts: [0; Rule::ALL.len()], own: Memory::default(), of_all, waiting: VecDeque::new() }
    }

    /// Counts a refusal; whether it is to be told.
    #[must_use]
    pub fn count(&mut self, why: &Why, user: Option<Identity<'_>>, client: IpAddr, now: Instant) -> bool {
        self.counts[why.rule as usize] += 1;
        if self.waiting.len() >= WAITING_MAX || !self.own.is_news(why, user, client, now) {
            return false;
        }
        let mut of_all = self.of_all.lock().unwrap_or_else(PoisonError::into_inner);
        of_all.is_news(why, user, client, now)
    }

    /// Tells one that [`Rules::count`] wanted told.
    pub fn tell(&mut self, refused: Refused) {
        self.waiting.push_back(refused);
    }

    /// The next refusal to tell.
    pub fn poll(&mut self) -> Option<Refused> {
        self.waiting.pop_front()
    }

    /// Counts by rule, those included that never refused.
    pub fn iter(&self) -> impl Iterator<Item = (Rule, u64)> + '_ {
        Rule::ALL.iter().copied().zip(self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the hash falls, a few cases at a time never push one another out.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn as_many_cases_as_a_set_has_places_are_told_once_a_minute_each() {
        let (start, why) = (Instant::now(), Why::quota(Rule::Permissions));
        for _ in 0..300 {
            let mut memory = Memory::default();
            let mut told = 0;
            for second in 0..59_u64 {
                for case in 1..=PLACES as u32 {
                    let (client, now) =
                        (IpAddr::from(case.to_be_bytes()), start + Duration::from_secs(second));
                    told += usize::from(memory.is_news(&why, Some(Identity::Static(b"alice")), client, now));
                }
            }
            assert_eq!(told, PLACES);
        }
    }

    #[test]
    fn a_long_name_is_cut() {
        let client = SocketAddr::from(([192, 0, 2, 1], 7));
        let user = |name: &[u8]| Refused::new(Why::quota(Rule::WeakerOffer), name, client).user;
        assert_eq!(*user(&[b'x'; NAME_SHOWN_MAX]), [b'x'; NAME_SHOWN_MAX]);
        let cut = user(&[b'x'; 65_000]);
        assert_eq!(
            (&cut[..NAME_SHOWN_MAX], &cut[NAME_SHOWN_MAX..]),
            (&[b'x'; NAME_SHOWN_MAX][..], "…".as_bytes())
        );
    }

    #[test]
    fn every_rule_has_its_own_name_counter_and_remedy() {
        let names: std::collections::BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        assert_eq!(names.len(), Rule::ALL.len());
        for (index, &rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(rule as usize, index);
            assert!(!rule.remedy().is_empty() && [300, 400, 403, 486, 508].contains(&rule.code().0));
        }
        let reservations = Rule::Reservations.remedy();
        assert!(reservations.contains("1,024") && crate::server::ports::RESERVATIONS_MAX == 1024);
        assert!(reservations.contains("128") && crate::server::ports::RESERVATIONS_SHARE_MAX == 128);
    }
}
