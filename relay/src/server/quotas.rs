//! How many allocations and new peers a user and a source address may have.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::allocation::{Listed, State};
use super::answers::Refusal;
use super::auth::UserId;
use super::commons::Most;
use super::ports::{Keeper, Ports, RESERVATIONS_SHARE_MAX};
use super::rules::{Refused, Rule, Why};
use super::shared_account::{SharedAccount, UserName};
use super::{AllocationId, ClientSocket, Server};

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

    /// Lets a user at a source meet so many new peers, all or none.
    pub(super) fn take_new_peers(
        &self,
        user: UserId,
        source: IpAddr,
        count: usize,
        now: Instant,
    ) -> Result<(), Refusal> {
        let limits = &self.limits;
        if count == 0 {
            return Ok(());
        }
        let source = limits.new_peers_per_source_per_s.map(|_| self.commons.source_account(source, now));
        let paces = [
            (limits.new_peers_per_s, Some(self.users.get(user).account().shared()), Rule::NewPeers),
            (limits.new_peers_per_source_per_s, source.as_deref(), Rule::SourceNewPeers),
            (limits.new_peers_total_per_s, Some(self.commons.account_of_all()), Rule::TotalNewPeers),
        ];
        let mut set = paces.iter().filter_map(|&(rate, account, rule)| Some((rate?, account?, rule)));
        // Nobody is charged for what another rule refuses.
        if let Some((.., rule)) =
            set.clone().find(|(_, account, _)| account.is_ahead_of_new_peers(NEW_PEERS_BURST, now))
        {
            return Err(Why::quota(rule).into());
        }
        let refuses = |&(per_second, account, _): &(NonZeroU32, &SharedAccount, Rule)| {
            !account.take_new_peers(count as u64, per_second.into(), NEW_PEERS_BURST, now)
        };
        // Another worker may have been faster.
        set.find(refuses).map_or(Ok(()), |(.., rule)| Err(Why::quota(rule).into()))
    }

    /// Whether a user may list so many more permissions and channels. Several workers that ask at once may each let the last
    /// ones through.
    pub(super) fn may_list(&self, user: UserId, new: Listed) -> Result<(), Refusal> {
        if !self.limits.counts_peers() {
            return Ok(());
        }
        let (own, all) =
            (self.users.get(user).account().shared().listed(), self.commons.account_of_all().listed());
        let (of_user, in_all) = (&self.limits.peers_per_user_max, &self.limits.peers_total_max);
        let bounds = [
            (own.permissions, new.permissions, of_user.permissions, Rule::UserPermissions),
            (own.channels, new.channels, of_user.channels, Rule::UserChannels),
            (all.permissions, new.permissions, in_all.permissions, Rule::TotalPermissions),
            (all.channels, new.channels, in_all.channels, Rule::TotalChannels),
        ];
        let exceeds = |&(listed, new, most, _): &(u32, u32, Option<u32>, Rule)| {
            new > 0 && most.is_some_and(|most| listed.saturating_add(new) > most)
        };
        bounds.into_iter().find(exceeds).map_or(Ok(()), |(.., rule)| Err(Why::quota(rule).into()))
    }

    /// Counts what an allocation lists now, for its user and in all.
    pub(super) fn count_listed(&mut self, id: AllocationId) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        let is_closing = allocation.state == State::Closing;
        let listed = if is_closing { Listed::default() } else { allocation.listed() };
        let before = std::mem::replace(&mut allocation.counted, listed);
        // One that is closing has no entry of its user's any more the next time.
        if before != listed {
            let account = self.users.get(allocation.user).account().shared();
            account.count_listed(before, listed);
            self.commons.account_of_all().count_listed(before, listed);
        }
    }

    /// Forgets what has expired of an allocation, where there are quotas that count it.
    pub(super) fn forget_expired(&mut self, id: AllocationId, now: Instant) {
        if !self.limits.counts_peers() {
            return;
        }
        let Some(allocation) = self.table.get_mut(id) else { return };
        let (relayed, gone) = (allocation.relayed, allocation.forget_expired(now));
        for reach in gone {
            self.unclaim(id, relayed, reach);
        }
        self.count_listed(id);
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
