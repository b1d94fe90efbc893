//! What an allocation relays: whether it may, and how much it was, for the allocation and its user.
//!
//! The driver asks once for each superpacket. What is counted belongs to one worker, plain additions; only how far a user is
//! ahead of a rate is common to all, and only where users have one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::drops::Cause;

use super::auth::Identity;
use super::fair_share::Share;
use super::figures::{Direction, Volume};
use super::limits::{Limits, Rate};
use super::pace::Pace;
use super::shared_account::SharedAccount;
use super::{AllocationId, Server};

/// How far ahead of its rate an allocation or user may be.
const RATE_BURST: Duration = Duration::from_millis(250);

/// What was relayed, and what was not because it was too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// By [`Direction`].
    pub volumes: [Volume; Direction::ALL.len()],
    /// Packets dropped above a rate or a fair share, both ways.
    pub shaped_packets: u64,
}

impl Relayed {
    /// From clients to peers.
    #[must_use]
    pub fn to_peers(&self) -> Volume {
        self.volumes[Direction::ToPeer as usize]
    }

    /// From peers to clients.
    #[must_use]
    pub fn to_clients(&self) -> Volume {
        self.volumes[Direction::ToClient as usize]
    }
}

/// How far an allocation or a user is ahead of a [`Rate`], by direction.
#[derive(Clone, Copy, Debug, Default)]
struct Paces([(Pace, Pace); 2]);

impl Paces {
    fn is_ahead(&self, direction: Direction, now: Instant) -> bool {
        let (bytes, packets) = &self.0[direction as usize];
        // What has no rate is never charged, and so never ahead.
        bytes.is_ahead(RATE_BURST, now) || packets.is_ahead(RATE_BURST, now)
    }

    fn charge(&mut self, rate: &Rate, direction: Direction, load: Volume, now: Instant) {
        let (bytes, packets) = &mut self.0[direction as usize];
        if let Some(per_second) = rate.bytes_per_s {
            bytes.charge(load.bytes, per_second, now);
        }
        if let Some(per_second) = rate.packets_per_s {
            packets.charge(load.packets, per_second, now);
        }
    }
}

/// The rates that data in one direction is under.
struct Rates<'a> {
    of: &'a Limits,
    direction: Direction,
    now: Instant,
}

impl Rates<'_> {
    fn are_exceeded(&self, flow: &Flow, user: &SharedAccount) -> bool {
        self.of.allocation_rate.is_set()
            && flow.paces.as_ref().is_some_and(|paces| paces.is_ahead(self.direction, self.now))
            || self.exceeds(&self.of.user_rate, Some(user))
            || self.exceeds(&self.of.source_rate, flow.source.as_deref())
    }

    fn is_total_exceeded(&self, all: &SharedAccount) -> bool {
        self.exceeds(&self.of.total_rate, Some(all))
    }

    fn exceeds(&self, rate: &Rate, account: Option<&SharedAccount>) -> bool {
        rate.is_set() && account.is_some_and(|account| account.is_ahead(self.direction, RATE_BURST, self.now))
    }
}

/// What is kept of an allocation's data.
#[derive(Debug, Default)]
pub(super) struct Flow {
    share: Share,
    /// Only where allocations have a rate.
    paces: Option<Box<Paces>>,
    /// Only where sources have a rate.
    source: Option<Arc<SharedAccount>>,
}

/// What is kept of a user besides the password.
#[derive(Debug, Default)]
pub struct Account {
    /// Since there is an entry.
    pub(super) relayed: Relayed,
    /// How far it is ahead of its rates, with every worker.
    shared: Arc<SharedAccount>,
}

impl Account {
    /// When everything the user was let do is within its rates: from then on, nothing is lost with this account but its
    /// figures. `None` when that was always so.
    pub(super) fn settled_at(&self) -> Option<Instant> {
        self.shared.settled_at()
    }

    /// An account of a user who has this one with every worker.
    pub(super) fn of(shared: Arc<SharedAccount>) -> Self {
        Self { relayed: Relayed::default(), shared }
    }

    pub(super) fn shared(&self) -> &SharedAccount {
        &self.shared
    }
}

/// A user's allocations and what they relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage<'a> {
    /// Who it is; names are not always UTF-8.
    pub identity: Identity<'a>,
    /// Allocations held now.
    pub allocations: u32,
    /// Since there is an entry, ended allocations included.
    pub relayed: Relayed,
}

impl Server {
    /// Whether a superpacket of one allocation may be relayed, as a whole. Charged when it may.
    ///
    /// # Errors
    /// The cause to count for each of its packets.
    pub fn admit(
        &mut self,
        id: AllocationId,
        direction: Direction,
        load: Volume,
        now: Instant,
    ) -> Result<(), Cause> {
        // One that is being closed keeps no entry of its user's any more.
        let live = self.table.get_mut(id).filter(|allocation| allocation.is_live(now));
        let allocation = live.ok_or(Cause::NoAllocation)?;
        let flow = &mut allocation.flow;
        let rates = Rates { of: &self.limits, direction, now };
        let capped =
            self.has_rates && rates.are_exceeded(flow, &self.users.get(allocation.user).account().shared);
        let refused = if capped {
            Some(Cause::PolicyRate)
        } else if !self.fair_share.admits(&mut flow.share, load) {
            Some(Cause::FairShare)
        } else if self.has_rates && rates.is_total_exceeded(self.commons.account_of_all()) {
            // After the share, which has to know who else wants something.
            self.is_near_total = true;
            Some(Cause::PolicyRate)
        } else {
            None
        };
        if let Some(cause) = refused {
            self.users.account_mut(allocation.user).relayed.shaped_packets += load.packets;
            return Err(cause);
        }
        if !self.has_rates {
            return Ok(());
        }
        // Made with the first packet, so that an allocation without a rate is no larger for it.
        let limits = &self.limits;
        if limits.allocation_rate.is_set() {
            flow.paces.get_or_insert_default().charge(&limits.allocation_rate, direction, load, now);
        }
        if limits.user_rate.is_set() {
            let account = self.users.get(allocation.user).account();
            account.shared.charge(&limits.user_rate, direction, load, now);
        }
        if limits.source_rate.is_set() {
            let source = allocation.client.address.ip();
            let account = flow.source.get_or_insert_with(|| self.commons.source_account(source, now));
            account.charge(&limits.source_rate, direction, load, now);
        }
        if limits.total_rate.is_set() {
            let all = self.commons.account_of_all();
            all.charge(&limits.total_rate, direction, load, now);
            // Those who take most give way before anybody is dropped for what all have taken.
            self.is_near_total |= all.is_ahead(direction, RATE_BURST / 2, now);
        }
        Ok(())
    }

    /// To be called every 10 ms under load: `overloaded` says whether anything was lost since the last call because
    /// there was no time for it, or because the clients' socket was busy.
    pub fn handle_interval(&mut self, overloaded: bool, now: Instant) {
        let is_near_total = std::mem::take(&mut self.is_near_total);
        self.fair_share.handle_interval(overloaded || is_near_total, now);
    }

    /// Everyone who has an entry ([`super::auth::Users`]), with what was relayed for them.
    pub fn users(&self) -> impl Iterator<Item = Usage<'_>> {
        self.users.iter().map(|(_, user)| Usage {
            identity: user.identity(),
            allocations: user.allocations,
            relayed: user.account().relayed,
        })
    }
}
