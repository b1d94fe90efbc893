//! What the server counts about itself, and what it holds. Counting is an addition where a thing happens. What is held is
//! counted by a census, a bounded number of allocations and users at a time, so that packets never wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use dataplane::stun::Method;
use foldhash::fast::RandomState;

use super::allocation::State;
use super::auth::{Identity, Unauthentic, UserId};
use super::{AllocationId, Server};

/// Allocations, or users, that a census looks at in one step: some tens of microseconds.
const STEP: usize = 256;

/// Which way payload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToPeer,
    /// From the peer.
    ToClient,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ToPeer, Self::ToClient];

    /// The name used in metrics and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ToPeer => "to_peer",
            Self::ToClient => "to_client",
        }
    }
}

/// What carries payload between client and relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// ChannelData.
    Channel,
    /// Send and Data indications.
    Indication,
}

impl Carrier {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Channel, Self::Indication];

    /// The name used in metrics and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Indication => "indication",
        }
    }
}

/// An amount of relayed payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Datagrams.
    pub packets: u64,
    /// Bytes of payload in them.
    pub bytes: u64,
}

impl Volume {
    /// One datagram of `len` bytes.
    #[must_use]
    pub const fn of(len: usize) -> Self {
        Self { packets: 1, bytes: len as u64 }
    }

    /// A superpacket of `len` bytes in segments of this size.
    #[must_use]
    pub fn superpacket(len: usize, segment_size: usize) -> Self {
        Self { packets: len.div_ceil(segment_size.max(1)).max(1) as u64, bytes: len as u64 }
    }

    /// Adds one datagram of `len` bytes.
    pub fn count(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }

    /// Adds another amount.
    pub fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What requests ask for, and their names in metrics and reports; the last is everything that no server answers.
const METHODS: [&str; 6] = ["binding", "allocate", "refresh", "create_permission", "channel_bind", "other"];
/// Why requests were not authentic, by the names in metrics and reports.
const FAILURES: [&str; 4] = ["credentials", "nonce", "incomplete", "weaker_offer"];

/// Everything counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    relayed: [[Volume; Carrier::ALL.len()]; Direction::ALL.len()],
    requests: [u64; METHODS.len()],
    failures: [u64; FAILURES.len()],
    allocations_made: u64,
}

impl Figures {
    /// Relayed payload.
    #[must_use]
    pub fn relayed(&self, direction: Direction, carrier: Carrier) -> Volume {
        self.relayed[direction as usize][carrier as usize]
    }

    /// Requests by method.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        METHODS.into_iter().zip(self.requests)
    }

    /// Requests that were not authentic, by reason: wrong user or password, a nonce too old or of another address, and
    /// attributes missing. A client's first request, which is to be challenged, is none of them.
    pub fn authentication_failures(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        FAILURES.into_iter().zip(self.failures)
    }

    /// Allocations made.
    #[must_use]
    pub fn allocations_made(&self) -> u64 {
        self.allocations_made
    }

    /// Adds what another server has counted.
    pub fn merge(&mut self, other: &Self) {
        // Named one by one, so that a new figure cannot be forgotten here.
        let Self { relayed, requests, failures, allocations_made } = other;
        for (mine, theirs) in self.relayed.as_flattened_mut().iter_mut().zip(relayed.as_flattened()) {
            mine.add(*theirs);
        }
        let counts = self.requests.iter_mut().chain(&mut self.failures);
        for (mine, theirs) in counts.zip(requests.iter().chain(failures)) {
            *mine += theirs;
        }
        self.allocations_made += allocations_made;
    }

    pub(super) fn count_relayed(&mut self, direction: Direction, carrier: Carrier, volume: Volume) {
        self.relayed[direction as usize][carrier as usize].add(volume);
    }

    pub(super) fn count_request(&mut self, method: Method) {
        let index = match method {
            Method::Binding => 0,
            Method::Allocate => 1,
            Method::Refresh => 2,
            Method::CreatePermission => 3,
            Method::ChannelBind => 4,
            Method::Send | Method::Data | Method::Other(_) => 5,
        };
        self.requests[index] += 1;
    }

    /// `has_integrity`: the request claimed to be somebody's.
    pub(super) fn count_unauthentic(&mut self, reason: Unauthentic, has_integrity: bool) {
        let index = match reason {
            Unauthentic::Unauthorized if !has_integrity => return,
            Unauthentic::Unauthorized => 0,
            Unauthentic::StaleNonce => 1,
            Unauthentic::Incomplete => 2,
            Unauthentic::WeakerOffer => 3,
        };
        self.failures[index] += 1;
    }

    pub(super) fn count_allocation(&mut self) {
        self.allocations_made += 1;
    }
}

/// How a user proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// By the password or key that the configuration has for the name.
    Static,
    /// By a time-limited name that a web service made with a shared secret.
    Shared,
}

impl Credentials {
    /// As tables and `/status.json` have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Shared => "secret",
        }
    }
}

impl From<Identity<'_>> for Credentials {
    fn from(identity: Identity<'_>) -> Self {
        match identity {
            Identity::Static(_) => Self::Static,
            Identity::Shared(_) => Self::Shared,
        }
    }
}

/// What one user holds and has sent.
#[derive(Clone, Debug)]
pub struct UserFigures {
    /// The name, of a static user, or the ID in the names from a shared secret.
    pub name: Arc<str>,
    /// Which of the two: one name may be both, and is two users then.
    pub credentials: Credentials,
    /// Allocations held.
    pub allocations: u32,
    /// Relayed payload by [`Direction`], since there is an entry.
    pub relayed: [Volume; Direction::ALL.len()],
    /// Packets dropped above a rate or a fair share.
    pub shaped_packets: u64,
}

impl UserFigures {
    /// What one user has with every worker.
    fn key(&self) -> (Arc<str>, Credentials) {
        (self.name.clone(), self.credentials)
    }
}

/// A count of what is held: begun by its default, taken by [`Server::census`].
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Permissions in all.
    pub permissions: u64,
    /// Channels in all.
    pub channels: u64,
    /// Permissions of the allocation that has most.
    pub permissions_most: u64,
    /// Channels of the allocation that has most.
    pub channels_most: u64,
    /// Users who hold allocations or have relayed anything.
    pub users: Vec<UserFigures>,
    /// What other workers have sent to clients of users with allocations here.
    sent_by_others: HashMap<UserId, Volume, RandomState>,
    next_allocation: usize,
    next_user: usize,
}

impl Census {
    /// Adds what another server holds. A user who holds something with both is one.
    pub fn merge(&mut self, other: Self) {
        let Self { permissions, channels, permissions_most, channels_most, users, .. } = other;
        self.permissions += permissions;
        self.channels += channels;
        self.permissions_most = self.permissions_most.max(permissions_most);
        self.channels_most = self.channels_most.max(channels_most);
        let known = self.users.iter().enumerate().map(|(index, user)| (user.key(), index));
        let known: HashMap<_, _, RandomState> = known.collect();
        for user in users {
            let Some(&index) = known.get(&user.key()) else {
                self.users.push(user);
                continue;
            };
            let mine = &mut self.users[index];
            mine.allocations += user.allocations;
            mine.shaped_packets += user.shaped_packets;
            for (mine, theirs) in mine.relayed.iter_mut().zip(user.relayed) {
                mine.add(theirs);
            }
        }
    }
}

impl Server {
    /// What was counted since the start.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Payload of an allocation was relayed. Called once for all datagrams that came at once.
    pub fn count_relayed(
        &mut self,
        id: AllocationId,
        direction: Direction,
        carrier: Carrier,
        volume: Volume,
    ) {
        self.figures.count_relayed(direction, carrier, volume);
        // One that is being closed keeps no entry of its user's any more.
        if let Some(allocation) = self.table.get(id).filter(|allocation| allocation.state != State::Closing) {
            self.users.account_mut(allocation.user).relayed.volumes[direction as usize].add(volume);
        }
    }

    /// Takes the next step of a census; `true` when that was the last. What comes and goes between two steps may be missed.
    pub fn census(&self, census: &mut Census, now: Instant) -> bool {
        let end = self.table.index_end();
        if census.next_allocation < end {
            for index in census.next_allocation..end.min(census.next_allocation + STEP) {
                let Some(allocation) = self.table.get(AllocationId(index as u32)) else { continue };
                let (permissions, channels) = allocation.held(now);
                census.permissions += permissions;
                census.channels += channels;
                census.permissions_most = census.permissions_most.max(permissions);
                census.channels_most = census.channels_most.max(channels);
                if let Some((user, sent)) = self.sent_by_others(AllocationId(index as u32)) {
                    census.sent_by_others.entry(user).or_default().add(sent);
                }
            }
            census.next_allocation += STEP;
            return false;
        }
        let end = self.users.index_end();
        let next = end.min(census.next_user + STEP);
        for (id, user) in self.users.part(census.next_user.min(next)..next) {
            let mut relayed = user.account().relayed;
            let others = census.sent_by_others.get(&id).copied().unwrap_or_default();
            relayed.volumes[Direction::ToClient as usize].add(others);
            let has_relayed =
                relayed.shaped_packets > 0 || relayed.volumes.iter().any(|volume| volume.packets > 0);
            if user.allocations > 0 || has_relayed {
                census.users.push(UserFigures {
                    name: String::from_utf8_lossy(user.identity().name()).into(),
                    credentials: user.identity().into(),
                    allocations: user.allocations,
                    relayed: relayed.volumes,
                    shaped_packets: relayed.shaped_packets,
                });
            }
        }
        census.next_user = next;
        next == end
    }

    /// Most allocations in all, and of one user.
    #[must_use]
    pub fn allocations_limits(&self) -> (u32, u32) {
        (self.allocations_max, self.allocations_per_user_max)
    }
}
