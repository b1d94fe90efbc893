//! How many allocations and new peers a user and a source address may have.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::Server;
use super::answers::Refusal;
use super::auth::UserId;
use super::rules::{Refused, Rule, Why};

/// How many seconds' worth of new peers may come at once: a client with many candidates asks for all of them together.
const NEW_PEERS_BURST: Duration = Duration::from_secs(5);

/// Whom a source address stands for: one host, and with IPv6 a network of /64, of which every host has 2^64 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// Allocations by source. Only users with a password get here, and an entry goes with its last allocation.
#[derive(Debug, Default)]
pub(super) struct Sources(HashMap<Source, u32, RandomState>);

impl Sources {
    fn get(&self, source: IpAddr) -> u32 {
        self.0.get(&source.into()).copied().unwrap_or(0)
    }

    fn add(&mut self, source: IpAddr) {
        *self.0.entry(source.into()).or_default() += 1;
    }

    fn remove(&mut self, source: IpAddr) {
        let source = source.into();
        let Some(count) = self.0.get_mut(&source) else {
            debug_assert!(false, "{source:?} holds nothing");
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&source);
        }
    }

    /// Sources that hold allocations.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Server {
    /// Whether a user may have another allocation from this source.
    pub(super) fn check_allocations(&self, user: UserId, source: IpAddr) -> Result<(), Refusal> {
        let rule = if self.users.get(user).allocations >= self.allocations_per_user_max {
            Rule::UserAllocations
        } else if self.sources.get(source) >= self.limits.allocations_per_source_max {
            Rule::SourceAllocations
        } else if self.table.len() >= self.allocations_max as usize {
            Rule::TotalAllocations
        } else {
            return Ok(());
        };
        Err(Why::quota(rule).into())
    }

    /// Counts an allocation.
    pub(super) fn hold(&mut self, user: UserId, source: IpAddr) {
        self.users.add_allocation(user);
        self.sources.add(source);
    }

    /// Counts an allocation no more. The user's entry may go with it.
    pub(super) fn let_go(&mut self, user: UserId, source: IpAddr) {
        self.users.remove_allocation(user);
        self.sources.remove(source);
    }

    /// Lets a user meet so many new peers, all or none.
    pub(super) fn take_new_peers(&mut self, user: UserId, count: usize, now: Instant) -> Result<(), Refusal> {
        let Some(per_second) = self.limits.new_peers_per_s.filter(|_| count > 0) else { return Ok(()) };
        let pace = &mut self.users.account_mut(user).new_peers;
        if pace.take(count as u64, per_second.into(), NEW_PEERS_BURST, now) {
            return Ok(());
        }
        Err(Why::quota(Rule::NewPeers).into())
    }

    /// Counts what a rule refused, and tells of it unless that was told lately.
    pub(super) fn count_refusal(&mut self, why: Why, user: UserId, client: SocketAddr, now: Instant) {
        let identity = self.users.get(user).identity();
        if self.rules.count(&why, Some(identity), client.ip(), now) {
            self.rules.tell(Refused { why, user: identity.name().into(), client });
        }
    }

    /// The same where nobody has proven who it is: `name` is what the request says, if it says anything.
    pub(super) fn count_unproven(&mut self, why: Why, name: Option<&[u8]>, client: SocketAddr, now: Instant) {
        // Not told apart by names: anyone can make them up.
        if self.rules.count(&why, None, client.ip(), now) {
            self.rules.tell(Refused { why, user: name.unwrap_or_default().into(), client });
        }
    }

    /// Requests and indications refused so far, by rule.
    pub fn refusals_by_rule(&self) -> impl Iterator<Item = (Rule, u64)> + '_ {
        self.rules.iter()
    }

    /// The next refusal to log. Each is told once a minute at most, and no more than ten a second of one rule.
    pub fn poll_refused(&mut self) -> Option<Refused> {
        self.rules.poll()
    }

    /// Source addresses (IPv6: networks of /64) that hold allocations: all that is kept of sources.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources.len()
    }
}
