//! What is kept of a user over all workers: how far ahead of its rates it is, and how many permissions and channels it has.
//! Everything else of a user is one worker's. Sources, and all together, have the same where they have quotas.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::allocation::Listed;
use super::auth::Identity;
use super::figures::{Direction, Volume};
use super::limits::Rate;
use super::pace::time_of;
use super::quotas::Source;

/// A user's name, and whether it is a static one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct UserName {
    is_static: bool,
    name: Box<[u8]>,
}

impl From<Identity<'_>> for UserName {
    fn from(identity: Identity<'_>) -> Self {
        Self { is_static: matches!(identity, Identity::Static(_)), name: identity.name().into() }
    }
}

/// As [`super::pace::Pace`], for several workers at a time: nothing else follows from it, so that no order is needed.
#[derive(Debug, Default)]
struct SharedPace {
    /// Nanoseconds since the account's epoch, and one; zero while nothing was let through.
    through_at: AtomicU64,
}

impl SharedPace {
    fn is_ahead(&self, burst: Duration, now_ns: u64) -> bool {
        is_ahead(self.through_at.load(Ordering::Relaxed), burst, now_ns)
    }

    /// Lets an amount through that takes so long, unless it is `ahead` already; whether it did.
    fn take(&self, time: Duration, burst: Option<Duration>, now_ns: u64) -> bool {
        let later = |through_at: u64| {
            if burst.is_some_and(|burst| is_ahead(through_at, burst, now_ns)) {
                return None;
            }
            Some(through_at.max(now_ns + 1).saturating_add(nanoseconds(time)))
        };
        self.through_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).is_ok()
    }
}

fn is_ahead(through_at: u64, burst: Duration, now_ns: u64) -> bool {
    through_at > 0 && (through_at - 1).saturating_sub(now_ns) >= nanoseconds(burst)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How far ahead of its rates a user is.
#[derive(Debug, Default)]
pub(super) struct SharedAccount {
    /// Where time is counted from.
    epoch: OnceLock<Instant>,
    new_peers: SharedPace,
    /// By [`Direction`]: bytes and packets.
    data: [[SharedPace; 2]; Direction::ALL.len()],
    /// Bounds that nothing else follows from, so that no order is needed.
    permissions: AtomicU32,
    channels: AtomicU32,
}

impl SharedAccount {
    /// What another worker calls now may be a little earlier than the epoch.
    fn now_ns(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(*self.epoch.get_or_init(|| now)))
    }

    /// Whether no more data may be let through.
    pub fn is_ahead(&self, direction: Direction, burst: Duration, now: Instant) -> bool {
        let now = self.now_ns(now);
        // What has no rate is never charged, and so never ahead.
        self.data[direction as usize].iter().any(|pace| pace.is_ahead(burst, now))
    }

    /// Counts data that is let through.
    pub fn charge(&self, rate: &Rate, direction: Direction, load: Volume, now: Instant) {
        let now = self.now_ns(now);
        let [bytes, packets] = &self.data[direction as usize];
        if let Some(per_second) = rate.bytes_per_s {
            bytes.take(time_of(load.bytes, per_second), None, now);
        }
        if let Some(per_second) = rate.packets_per_s {
            packets.take(time_of(load.packets, per_second), None, now);
        }
    }

    /// Lets so many new peers be met, all or none.
    pub fn take_new_peers(&self, count: u64, per_second: NonZeroU64, burst: Duration, now: Instant) -> bool {
        self.new_peers.take(time_of(count, per_second), Some(burst), self.now_ns(now))
    }

    /// Whether no more new peers may be met.
    pub fn is_ahead_of_new_peers(&self, burst: Duration, now: Instant) -> bool {
        self.new_peers.is_ahead(burst, self.now_ns(now))
    }

    /// Permissions and channels that are counted here.
    pub fn listed(&self) -> Listed {
        Listed {
            permissions: self.permissions.load(Ordering::Relaxed),
            channels: self.channels.load(Ordering::Relaxed),
        }
    }

    /// Counts what an allocation lists now instead of what it listed before.
    pub fn count_listed(&self, before: Listed, now: Listed) {
        // Wraps back to what is meant.
        self.permissions.fetch_add(now.permissions.wrapping_sub(before.permissions), Ordering::Relaxed);
        self.channels.fetch_add(now.channels.wrapping_sub(before.channels), Ordering::Relaxed);
    }

    /// When everything the user was let do is within its rates; `None` when that was always so.
    pub fn settled_at(&self) -> Option<Instant> {
        let paces = self.data.as_flattened().iter().chain([&self.new_peers]);
        let through_at = paces.map(|pace| pace.through_at.load(Ordering::Relaxed)).max()?;
        let since_epoch = Duration::from_nanos(through_at.checked_sub(1)?);
        self.epoch.get().map(|&epoch| epoch + since_epoch)
    }
}

/// The accounts of all users of whom any worker has an entry.
#[derive(Debug, Default)]
pub(super) struct SharedAccounts(Mutex<HashMap<UserName, Weak<SharedAccount>, RandomState>>);

impl SharedAccounts {
    /// The account of a user, for a worker's entry of it.
    pub fn of(&self, user: Identity<'_>) -> Arc<SharedAccount> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() == accounts.capacity() {
            // As seldom as the table would grow.
            accounts.retain(|_, account| account.strong_count() > 0);
        }
        let place = accounts.entry(user.into()).or_default();
        place.upgrade().unwrap_or_else(|| {
            let account = Arc::default();
            *place = Arc::downgrade(&account);
            account
        })
    }
}

/// The accounts of sources. They stay for as long as an allocation has them, or they are ahead of their rates: nobody gets
/// around those by allocating anew. Only who has proven who it is has one.
#[derive(Debug, Default)]
pub(super) struct SourceAccounts(Mutex<HashMap<Source, Arc<SharedAccount>, RandomState>>);

impl SourceAccounts {
    /// The account of a source.
    pub fn of(&self, source: Source, now: Instant) -> Arc<SharedAccount> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() == accounts.capacity() {
            // As seldom as the table would grow.
            accounts.retain(|_, account| {
                Arc::strong_count(account) > 1 || account.settled_at().is_some_and(|at| at > now)
            });
        }
        accounts.entry(source).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_user_has_one_account_for_as_long_as_any_worker_has_an_entry_of_it() {
        let accounts = SharedAccounts::default();
        let (start, rate) = (origin(), NonZeroU64::new(10).unwrap());
        let alice = [(); 2].map(|()| accounts.of(Identity::Static(b"alice")));
        let take = |account: &SharedAccount, seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            (0..100).filter(|_| account.take_new_peers(1, rate, Duration::from_secs(5), now)).count()
        };
        assert_eq!(take(&alice[0], 0), 50);
        assert_eq!((take(&alice[1], 0), take(&alice[1], 1), take(&alice[0], 1)), (0, 10, 0));
        assert_eq!(take(&accounts.of(Identity::Shared(b"alice")), 1), 50, "another user");
        assert_eq!(alice[1].settled_at(), Some(start + Duration::from_secs(6)));
        drop(alice);
        assert_eq!(accounts.of(Identity::Static(b"alice")).settled_at(), None);
        for number in 0..10_000_u32 {
            drop(accounts.of(Identity::Shared(&number.to_be_bytes())));
        }
        assert!(accounts.0.lock().unwrap().capacity() < 100, "nothing is kept of who is gone");
    }

    #[test]
    fn workers_together_let_through_as_much_as_one() {
        let (account, start) = (SharedAccount::default(), origin());
        let rate = Rate { packets_per_s: NonZeroU64::new(1000), ..Rate::default() };
        let burst = Duration::from_millis(250);
        let load = Volume { packets: 1, bytes: 100 };
        let of_worker = || {
            let passes = |ms: u64| {
                let now = start + Duration::from_millis(ms);
                let passes = !account.is_ahead(Direction::ToPeer, burst, now);
                if passes {
                    account.charge(&rate, Direction::ToPeer, load, now);
                }
                passes
            };
            (0..4000).filter(|step| passes(step / 4)).count()
        };
        let passed: usize = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(of_worker));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // Each may let one through that another has just taken the room of.
        assert!((1249..=1253).contains(&passed), "{passed}");
        assert!(!account.is_ahead(Direction::ToClient, burst, start));
    }
}
