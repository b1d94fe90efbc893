//! How many allocations and new peers a user and a source address may have.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::answers::Refusal;
use super::auth::UserId;
use super::commons::Most;
use super::ports::{Keeper, Ports, RESERVATIONS_SHARE_MAX};
use super::rules::{Refused, Rule, Why};
use super::shared_account::UserName;
use super::{ClientSocket, Server};

/// How many seconds' worth of new peers may come at once: a client with many candidates asks for all of them together.
const NEW_PEERS_BURST: Duration = Duration::from_secs(5);

/// Whom a source address stands for: one host, and with IPv6 a network of /64, of which every host has 2^64 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
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

impl Server {
    /// Counts an allocation, unless the user, the source or all together have as many as they may.
    pub(super) fn hold(&mut self, user: UserId, source: IpAddr) -> Result<(), Refusal> {
        let most = Most {
            of_user: self.allocations_per_user_max,
            of_source: self.limits.allocations_per_source_max,
            in_all: self.allocations_max,
        };
        let held = self.commons.hold(self.users.get(user).identity(), source, most);
        held.map_err(|rule| Refusal::from(Why::quota(rule)))?;
        self.users.add_allocation(user);
        Ok(())
    }

    /// Counts an allocation no more. The user's entry may go with it.
    pub(super) fn let_go(&mut self, user: UserId, source: IpAddr) {
        self.commons.let_go(self.users.get(user).identity(), source);
        self.users.remove_allocation(user);
    }

    /// For whom another port can be kept by EVEN-PORT, by a user who holds the allocation that it comes with. Until its token
    /// is shown or it expires, the port counts beside the allocations of user and source: or whoever allocates and leaves again
    /// would keep any number.
    pub(super) fn may_reserve(
        &self,
        ports: &Ports,
        client: &ClientSocket,
        user: UserId,
    ) -> Result<Keeper, Rule> {
        let user = UserName::from(self.users.get(user).identity());
        let keeper = Keeper { user, source: client.address.ip().into() };
        let (of_user, of_source) = ports.kept_for(&keeper);
        let (held_of_user, held_of_source) = self.commons.held_by(&keeper.user, keeper.source);
        if held_of_user as usize + of_user >= self.allocations_per_user_max as usize {
            return Err(Rule::UserAllocations);
        }
        if held_of_source as usize + of_source >= self.limits.allocations_per_source_max as usize {
            return Err(Rule::SourceAllocations);
        }
        if of_user.max(of_source) >= RESERVATIONS_SHARE_MAX || !ports.has_room_for_reservations() {
            return Err(Rule::Reservations);
        }
        Ok(keeper)
    }

    /// Lets a user meet so many new peers, all or none.
    pub(super) fn take_new_peers(&self, user: UserId, count: usize, now: Instant) -> Result<(), Refusal> {
        let Some(per_second) = self.limits.new_peers_per_s.filter(|_| count > 0) else { return Ok(()) };
        let account = self.users.get(user).account().shared();
        if account.take_new_peers(count as u64, per_second.into(), NEW_PEERS_BURST, now) {
            return Ok(());
        }
        Err(Why::quota(Rule::NewPeers).into())
    }

    /// Counts what a rule refused, and tells of it unless that was told lately.
    pub(super) fn count_refusal(&mut self, why: Why, user: UserId, client: SocketAddr, now: Instant) {
        let identity = self.users.get(user).identity();
        if self.rules.count(&why, Some(identity), client.ip(), now) {
            self.rules.tell(Refused::new(why, identity.name(), client));
        }
    }

    /// The same where nobody has proven who it is: `name` is what the request says, if it says anything.
    pub(super) fn count_unproven(&mut self, why: Why, name: Option<&[u8]>, client: SocketAddr, now: Instant) {
        // Not told apart by names: anyone can make them up.
        if self.rules.count(&why, None, client.ip(), now) {
            self.rules.tell(Refused::new(why, name.unwrap_or_default(), client));
        }
    }

    /// Requests and indications refused so far, by rule.
    pub fn refusals_by_rule(&self) -> impl Iterator<Item = (Rule, u64)> + '_ {
        self.rules.iter()
    }

    /// The next refusal to log. Each is told once a minute at most, and no more than ten a second of one rule, or one where
    /// no user is proven.
    pub fn poll_refused(&mut self) -> Option<Refused> {
        self.rules.poll()
    }

    /// Source addresses (IPv6: networks of /64) that hold allocations: all that is kept of sources.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.commons.sources()
    }
}
