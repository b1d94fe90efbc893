//! What the servers of several workers have in common: relayed ports, how many allocations there are, and who has which
//! relayed address.
//!
//! ```text
//!  worker 0 ── server ──┐                 ┌── ports and reservations  (a lock, for requests)
//!  worker 1 ── server ──┼──► commons ─────┼── quotas                  (a lock, for requests)
//!  worker 2 ── server ──┘                 └── address ► worker        (read for packets, without a lock)
//! ```
//! Everything else belongs to one worker: a client's packets all come to the same one, because its 5-tuple decides which.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::fast::RandomState;

use super::auth::Identity;
use super::face::Face;
use super::ports::Ports;
use super::quotas::Source;
use super::reflection::Reflection;
use super::rules::{Memory, Rule};
use super::shared_account::{SharedAccount, SharedAccounts, SourceAccounts, UserName};

/// The number of a worker, from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

/// Most workers: numbers of workers and one more fit into 16 bits.
pub const WORKERS_MAX: u16 = 256;

/// See the module.
#[derive(Debug)]
pub struct Commons {
    workers: u16,
    ports: Mutex<Ports>,
    held: Mutex<Held>,
    accounts: SharedAccounts,
    sources: SourceAccounts,
    /// Of all users together.
    all: SharedAccount,
    /// Made by the first server, by its settings.
    reflection: OnceLock<Arc<Reflection>>,
    /// Which refusals the operator was told of.
    told: Arc<Mutex<Memory>>,
    /// Copy of the sum in `held`.
    allocations: AtomicUsize,
    places: Places,
}

/// Who holds allocations.
#[derive(Debug, Default)]
struct Held {
    /// Those included that have no user any more and whose socket is not closed yet.
    total: usize,
    /// Users without allocations have no entry, and neither have sources.
    by_user: HashMap<UserName, u32, RandomState>,
    by_source: HashMap<Source, u32, RandomState>,
}

/// Most allocations there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub of_user: u32,
    pub of_source: u32,
    pub in_all: u32,
}

impl Commons {
    /// For so many workers; all ports of `relay_ports` are free.
    ///
    /// # Panics
    /// When there is no worker, or more than [`WORKERS_MAX`].
    #[must_use]
    pub fn new(relay_ports: RangeInclusive<u16>, workers: u16) -> Arc<Self> {
        assert!((1..=WORKERS_MAX).contains(&workers), "configuration has bounds");
        Arc::new(Self {
            workers,
            places: Places::new(relay_ports.clone(), workers > 1),
            ports: Mutex::new(Ports::new(relay_ports)),
            held: Mutex::default(),
            accounts: SharedAccounts::default(),
            sources: SourceAccounts::default(),
            all: SharedAccount::default(),
            reflection: OnceLock::new(),
            told: Arc::default(),
            allocations: AtomicUsize::new(0),
        })
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// The ports, for one request.
    pub(super) fn ports(&self) -> MutexGuard<'_, Ports> {
        // What a panic has interrupted is a bit too many at worst.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts another allocation of a user from a source, unless that were one too many.
    ///
    /// # Errors
    /// Which limit it would exceed.
    pub(super) fn hold(&self, user: Identity<'_>, source: IpAddr, most: Most) -> Result<(), Rule> {
        let (user, source) = (UserName::from(user), Source::from(source));
        let mut held = self.held();
        if held.by_user.get(&user).is_some_and(|&count| count >= most.of_user) || most.of_user == 0 {
            return Err(Rule::UserAllocations);
        }
        if held.by_source.get(&source).is_some_and(|&count| count >= most.of_source) || most.of_source == 0 {
            return Err(Rule::SourceAllocations);
        }
        if held.total >= most.in_all as usize {
            return Err(Rule::TotalAllocations);
        }
        *held.by_user.entry(user).or_default() += 1;
        *held.by_source.entry(source).or_default() += 1;
        held.total += 1;
        self.allocations.store(held.total, Ordering::Release);
        Ok(())
    }

    /// Counts one less of the user and the source; its place is taken until [`Commons::vacate`].
    pub(super) fn let_go(&self, user: Identity<'_>, source: IpAddr) {
        let mut held = self.held();
        count_down(&mut held.by_user, &UserName::from(user));
        count_down(&mut held.by_source, &source.into());
    }

    /// Allocations that a user holds, and those from a source.
    pub(super) fn held_by(&self, user: &UserName, source: Source) -> (u32, u32) {
        let held = self.held();
        let count = |count: Option<&u32>| count.copied().unwrap_or_default();
        (count(held.by_user.get(user)), count(held.by_source.get(&source)))
    }

    /// Counts one less in all: its socket is closed.
    pub(super) fn vacate(&self) {
        let mut held = self.held();
        held.total -= 1;
        self.allocations.store(held.total, Ordering::Release);
    }

    /// Sources that hold allocations: all that is kept of sources.
    pub(super) fn sources(&self) -> usize {
        self.held().by_source.len()
    }

    /// What a user may do, over all workers.
    pub(super) fn account(&self, user: Identity<'_>) -> Arc<SharedAccount> {
        self.accounts.of(user)
    }

    /// What a source may do, over all workers.
    pub(super) fn source_account(&self, source: IpAddr, now: Instant) -> Arc<SharedAccount> {
        self.sources.of(source.into(), now)
    }

    /// What all users together may do.
    pub(super) fn account_of_all(&self) -> &SharedAccount {
        &self.all
    }

    /// Which refusals the operator was told of.
    pub(super) fn told(&self) -> &Arc<Mutex<Memory>> {
        &self.told
    }

    /// What strangers may be answered; `make` where nobody has asked before.
    pub(super) fn reflection(&self, make: impl FnOnce() -> Reflection) -> Arc<Reflection> {
        self.reflection.get_or_init(|| Arc::new(make())).clone()
    }

    /// Allocations of all workers, those included whose socket is still being opened or closed.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.allocations.load(Ordering::Acquire)
    }

    /// Everything that an allocation holds here, to be compared.
    #[cfg(test)]
    pub(super) fn holdings(&self) -> String {
        format!("{:?} {:?} {:?}", self.ports(), self.held(), self.places)
    }

    /// Who has which address.
    pub(super) fn places(&self) -> &Places {
        &self.places
    }
}

/// Which worker has which relayed address.
#[derive(Debug)]
pub(super) struct Places {
    /// By address; one is added when the first allocation is made on it, and none is removed.
    tables: ArcSwap<HashMap<IpAddr, Arc<Table>, RandomState>>,
    range: RangeInclusive<u16>,
    has_several_workers: bool,
}

/// By port, from the lowest of the range. Empty where there is one worker only.
type Table = Box<[Place]>;

/// What is known of a port.
#[derive(Debug, Default)]
struct Place {
    /// The number of the worker and one, or zero.
    worker: AtomicU16,
    face: ArcSwapOption<Face>,
}

impl Places {
    fn new(range: RangeInclusive<u16>, has_several_workers: bool) -> Self {
        Self { tables: ArcSwap::default(), range, has_several_workers }
    }

    /// Whether there is anybody else.
    #[must_use]
    pub fn has_several_workers(&self) -> bool {
        self.has_several_workers
    }

    /// Allocations are made on an address.
    pub fn use_address(&self, address: IpAddr) {
        if self.is_used(address) {
            return;
        }
        let ports = if self.has_several_workers { self.range.len() } else { 0 };
        let table: Arc<Table> = Arc::new((0..ports).map(|_| Place::default()).collect());
        self.tables.rcu(|tables| {
            let mut tables = HashMap::clone(tables);
            // Another worker may have come first.
            tables.entry(address).or_insert_with(|| table.clone());
            tables
        });
    }

    /// Whether allocations are or were made on an address.
    #[must_use]
    pub fn is_used(&self, address: IpAddr) -> bool {
        self.tables.load().contains_key(&address)
    }

    /// An allocation of this worker can be reached at an address from now on, or (`None`) no more.
    pub fn set(&self, relayed: SocketAddr, worker: Option<WorkerId>) {
        let number = worker.map_or(0, |worker| worker.0 + 1);
        self.with(relayed, |place| place.worker.store(number, Ordering::Release));
    }

    /// Shows the face of the allocation at an address, or nothing any more.
    pub fn show(&self, relayed: SocketAddr, face: Option<Arc<Face>>) {
        self.with(relayed, |place| place.face.store(face));
    }

    /// Looks at the face of the allocation at an address, if it shows one.
    pub fn seen<T>(&self, relayed: SocketAddr, look: impl FnOnce(&Face) -> T) -> Option<T> {
        self.with(relayed, |place| place.face.load().as_deref().map(look))?
    }

    /// Whose allocation can be reached at an address, where that is not `own`.
    #[must_use]
    pub fn elsewhere(&self, relayed: SocketAddr, own: WorkerId) -> Option<WorkerId> {
        let number = self.with(relayed, |place| place.worker.load(Ordering::Acquire))?;
        Some(WorkerId(number.checked_sub(1)?)).filter(|&worker| worker != own)
    }

    fn with<T>(&self, relayed: SocketAddr, act: impl FnOnce(&Place) -> T) -> Option<T> {
        if !self.has_several_workers {
            return None;
        }
        let tables = self.tables.load();
        let table = tables.get(&relayed.ip())?;
        let index = relayed.port().checked_sub(*self.range.start())?;
        table.get(usize::from(index)).map(act)
    }
}

/// Counts one less, and forgets who has none.
fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, u32, RandomState>, key: &K) {
    let Some(count) = counts.get_mut(key) else {
        debug_assert!(false, "let go more often than held");
        return;
    };
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_one_for_all_workers_and_exact_under_contention() {
        let commons = Commons::new(1..=9, 4);
        let (alice, bob) = (Identity::Static(b"alice"), Identity::Static(b"bob"));
        // A name from a shared secret is not that of a user with a password.
        let other = Identity::Shared(b"alice");
        let source = |last: u8| IpAddr::from([192, 0, 2, last]);
        let most = Most { of_user: 100, of_source: 120, in_all: 150 };
        let of_worker = || (0..1000).filter(|_| commons.hold(alice, source(1), most).is_ok()).count();
        let made: usize = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(of_worker));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((made, commons.allocations()), (100, 100));
        assert_eq!(commons.hold(alice, source(2), most), Err(Rule::UserAllocations));
        assert_eq!((0..100).filter(|_| commons.hold(other, source(1), most).is_ok()).count(), 20);
        assert_eq!(commons.hold(other, source(1), most), Err(Rule::SourceAllocations));
        assert_eq!((0..100).filter(|_| commons.hold(bob, source(2), most).is_ok()).count(), 30);
        assert_eq!(commons.hold(bob, source(2), most), Err(Rule::TotalAllocations));
        (0..100).for_each(|_| commons.let_go(alice, source(1)));
        (0..20).for_each(|_| commons.let_go(other, source(1)));
        (0..30).for_each(|_| commons.let_go(bob, source(2)));
        assert_eq!(
            commons.hold(alice, source(1), most),
            Err(Rule::TotalAllocations),
            "the sockets are open still"
        );
        (0..150).for_each(|_| commons.vacate());
        assert_eq!((commons.allocations(), commons.sources()), (0, 0));
        assert!(commons.held().by_user.is_empty(), "nothing is kept of those who hold nothing");
    }

    #[test]
    fn an_address_leads_to_its_worker_for_all_others() {
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let places = Places::new(1..=65_535, true);
        assert!(!places.is_used(v4));
        places.use_address(v4);
        places.use_address(v6);
        assert!(places.is_used(v4) && places.is_used(v6));
        for port in [1, 65_535] {
            let relayed = SocketAddr::new(v6, port);
            assert_eq!(places.elsewhere(relayed, WorkerId(0)), None);
            places.set(relayed, Some(WorkerId(0)));
            assert_eq!(places.elsewhere(relayed, WorkerId(0)), None);
            assert_eq!(places.elsewhere(relayed, WorkerId(3)), Some(WorkerId(0)));
            assert_eq!(places.elsewhere(SocketAddr::new(v4, port), WorkerId(3)), None);
            // Another allocation on that address changes nothing.
            places.use_address(v6);
            places.set(relayed, Some(WorkerId(WORKERS_MAX - 1)));
            assert_eq!(places.elsewhere(relayed, WorkerId(3)), Some(WorkerId(WORKERS_MAX - 1)));
            places.set(relayed, None);
            assert_eq!(places.elsewhere(relayed, WorkerId(3)), None);
        }
    }
}
