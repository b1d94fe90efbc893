//! Who holds allocations: quotas count here, and allocations belong to entries of this table.
//!
//! A static user's entry is made when its password was right for the first time, and stays for as long
//! as configuration has the name, or the user an allocation. A user from a shared secret is known by the id in its name, and has an entry while it has
//! allocations: anyone who runs the web service can make up any number of ids. After the last one the entry *rests* until
//! everything the user was let do is within its rates, so that nobody gets around a quota by allocating anew, and then it is
//! gone with its figures. Of more than [`RESTING_MAX`] that rest, those whose time is nearest go early.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use foldhash::fast::RandomState;

use super::super::traffic::Account;

/// Most entries without allocations that are kept for what their users are ahead of their rates: some four megabytes.
pub const RESTING_MAX: usize = 16_384;

/// Index of a user. Once an entry is forgotten, it may be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(u32);

/// Who a request is from, once that is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity<'a> {
    /// A static user's name.
    Static(&'a [u8]),
    /// The id in a name from a shared secret.
    Shared(&'a [u8]),
}

impl<'a> Identity<'a> {
    /// The name or id, as the client wrote it: escape it.
    #[must_use]
    pub fn name(self) -> &'a [u8] {
        match self {
            Self::Static(name) | Self::Shared(name) => name,
        }
    }
}

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Static,
    Shared,
}

/// One user.
#[derive(Debug)]
pub struct User {
    kind: Kind,
    name: Box<[u8]>,
    /// Allocations held now.
    pub allocations: u32,
    /// A request of this user is being dealt with, and may need the entry after its last allocation is gone.
    is_asking: bool,
    /// Configuration has a static user no more: the entry goes with the last allocation.
    is_removed: bool,
    /// Its place among those that rest.
    rests_until: Option<Instant>,
    account: Account,
}

impl User {
    /// Rates and figures.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> Identity<'_> {
        match self.kind {
            Kind::Static => Identity::Static(&self.name),
            Kind::Shared => Identity::Shared(&self.name),
        }
    }
}

/// Everyone who has an entry.
#[derive(Debug, Default)]
pub struct Users {
    slots: Vec<Option<User>>,
    free: Vec<UserId>,
    static_users: HashMap<Box<[u8]>, UserId, RandomState>,
    shared_users: HashMap<Box<[u8]>, UserId, RandomState>,
    /// By when they may go.
    resting: BTreeSet<(Instant, UserId)>,
}

impl Users {
    /// The entry of a user who has just proven who it is; made when there is none. It stays until [`Users::leave`] at least,
    /// with which every request ends.
    pub fn enter(&mut self, identity: Identity<'_>) -> UserId {
        self.enter_with(identity, |_| Account::default())
    }

    /// The same, with an account from elsewhere where an entry is made.
    pub fn enter_with(
        &mut self,
        identity: Identity<'_>,
        account: impl FnOnce(Identity<'_>) -> Account,
    ) -> UserId {
        let (kind, name) = match identity {
            Identity::Static(name) => (Kind::Static, name),
            Identity::Shared(id) => (Kind::Shared, id),
        };
        if let Some(&id) = self.index(kind).get(name) {
            let user = self.get_mut(id);
            user.is_asking = true;
            if let Some(until) = user.rests_until.take() {
                self.resting.remove(&(until, id));
            }
            return id;
        }
        let user = Some(User {
            kind,
            name: name.into(),
            allocations: 0,
            is_asking: true,
            is_removed: false,
            rests_until: None,
            account: account(identity),
        });
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = user;
                id
            }
            None => {
                self.slots.push(user);
                UserId(u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 users"))
            }
        };
        self.index(kind).insert(name.into(), id);
        id
    }

    /// The request of a user is dealt with.
    pub fn leave(&mut self, id: UserId) {
        self.get_mut(id).is_asking = false;
        self.rest_if_idle(id);
    }

    /// A user.
    ///
    /// # Panics
    /// When its entry is gone: whoever keeps an id keeps it for an allocation.
    #[must_use]
    pub fn get(&self, id: UserId) -> &User {
        self.slots[id.0 as usize].as_ref().expect("an allocation keeps its user's entry")
    }

    /// Counts one more allocation of a user.
    pub fn add_allocation(&mut self, id: UserId) {
        self.get_mut(id).allocations += 1;
    }

    /// Counts one allocation less; the entry may go with it.
    pub fn remove_allocation(&mut self, id: UserId) {
        self.get_mut(id).allocations -= 1;
        self.rest_if_idle(id);
    }

    /// Rates and figures of a user, to change.
    ///
    /// # Panics
    /// As [`Users::get`].
    pub fn account_mut(&mut self, id: UserId) -> &mut Account {
        &mut self.get_mut(id).account
    }

    /// Forgets those who have rested for long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.resting.first().filter(|&&(until, _)| until <= now) {
            self.resting.remove(&(until, id));
            self.forget(id);
        }
    }

    /// When [`Users::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.resting.first().map(|&(until, _)| until)
    }

    /// Lets a user from a shared secret rest who has no allocation, or forgets it at once when it never took anything that
    /// has a rate. A static user goes only when configuration has it no more.
    fn rest_if_idle(&mut self, id: UserId) {
        let user = self.get_mut(id);
        if user.allocations > 0 || user.is_asking {
            return;
        }
        if user.kind == Kind::Static {
            if user.is_removed {
                self.forget(id);
            }
            return;
        }
        let Some(until) = user.account.settled_at() else { return self.forget(id) };
        user.rests_until = Some(until);
        self.resting.insert((until, id));
        if self.resting.len() > RESTING_MAX
            && let Some((_, first)) = self.resting.pop_first()
        {
            self.forget(first);
        }
    }

    /// Forgets static users whose names are not to be kept, because configuration has them no more: at once, or with their
    /// last allocation. Who comes back before that is the same user.
    pub fn retain_static(&mut self, keeps: impl Fn(&[u8]) -> bool) {
        let judged: Vec<_> = self.static_users.iter().map(|(name, &id)| (id, !keeps(name))).collect();
        for (id, is_removed) in judged {
            self.get_mut(id).is_removed = is_removed;
            self.rest_if_idle(id);
        }
    }

    fn forget(&mut self, id: UserId) {
        let Some(user) = self.slots[id.0 as usize].take() else { return };
        self.index(user.kind).remove(&user.name);
        self.free.push(id);
        self.shrink();
    }

    /// Where a walk over the entries ends.
    #[must_use]
    pub fn index_end(&self) -> usize {
        self.slots.len()
    }

    /// The entries in a part of that walk.
    pub fn part(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = (UserId, &User)> {
        let first = range.start as u32;
        let slots = self.slots.get(range).into_iter().flatten();
        (first..).map(UserId).zip(slots).filter_map(|(id, user)| Some((id, user.as_ref()?)))
    }

    /// Everyone who has an entry, those included that rest.
    pub fn iter(&self) -> impl Iterator<Item = (UserId, &User)> {
        let ids = (0..).map(UserId);
        ids.zip(&self.slots).filter_map(|(id, user)| Some((id, user.as_ref()?)))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get_mut(&mut self, id: UserId) -> &mut User {
        self.slots[id.0 as usize].as_mut().expect("an allocation keeps its user's entry")
    }

    fn index(&mut self, kind: Kind) -> &mut HashMap<Box<[u8]>, UserId, RandomState> {
        match kind {
            Kind::Static => &mut self.static_users,
            Kind::Shared => &mut self.shared_users,
        }
    }

    /// Gives memory back after a crowd has left; halving keeps the cost of a departure constant on average.
    fn shrink(&mut self) {
        let live = self.shared_users.len();
        if self.shared_users.capacity() > 64 && live < self.shared_users.capacity() / 4 {
            self.shared_users.shrink_to(live * 2);
        }
        // Entries cannot move, but all of them can go.
        if self.is_empty() {
            self.slots = Vec::new();
            self.free = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_shared_user_has_an_entry_while_it_has_allocations_or_asks() {
        let mut users = Users::default();
        let alice = users.enter(Identity::Shared(b"alice"));
        users.leave(alice);
        assert!(users.is_empty());
        let alice = users.enter(Identity::Shared(b"alice"));
        users.add_allocation(alice);
        users.leave(alice);
        assert_eq!(users.enter(Identity::Shared(b"alice")), alice);
        users.add_allocation(alice);
        assert_eq!(users.get(alice).allocations, 2);
        users.remove_allocation(alice);
        users.remove_allocation(alice);
        assert_eq!((users.len(), users.get(alice).identity()), (1, Identity::Shared(b"alice")));
        users.leave(alice);
        assert!(users.is_empty());
    }

    #[test]
    fn a_static_user_stays_and_is_not_the_shared_one_of_the_same_name() {
        let mut users = Users::default();
        let (fixed, shared) =
            (users.enter(Identity::Static(b"alice")), users.enter(Identity::Shared(b"alice")));
        assert_ne!(fixed, shared);
        users.leave(fixed);
        users.leave(shared);
        assert_eq!((users.len(), users.enter(Identity::Static(b"alice"))), (1, fixed));
    }

    #[test]
    fn a_crowd_that_leaves_takes_its_memory_along() {
        let mut users = Users::default();
        let ids: Vec<UserId> = (0..10_000_u32)
            .map(|index| {
                let id = users.enter(Identity::Shared(&index.to_be_bytes()));
                users.add_allocation(id);
                users.leave(id);
                id
            })
            .collect();
        assert_eq!(users.len(), 10_000);
        for id in ids {
            users.remove_allocation(id);
        }
        assert_eq!((users.len(), users.slots.capacity(), users.free.capacity()), (0, 0, 0));
        assert!(users.shared_users.capacity() <= 128, "{}", users.shared_users.capacity());
    }

    /// Charges a user with something that takes so many seconds at its rate.
    fn charge(users: &Users, id: UserId, seconds: u64, now: Instant) {
        let account = users.get(id).account().shared();
        assert!(account.take_new_peers(seconds, NonZeroU64::MIN, Duration::from_secs(1), now));
    }

    #[test]
    fn a_shared_user_rests_until_it_is_within_its_rates() {
        let start = origin();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut users = Users::default();
        let alice = users.enter(Identity::Shared(b"alice"));
        users.add_allocation(alice);
        charge(&users, alice, 10, start);
        users.remove_allocation(alice);
        assert_eq!((users.len(), users.poll_timeout()), (1, None), "it still asks");
        users.leave(alice);
        assert_eq!(users.poll_timeout(), Some(after(10)));
        users.handle_timeout(after(9));
        // Who comes back in time finds what it left, and does not go before it rests again.
        assert_eq!(users.enter(Identity::Shared(b"alice")), alice);
        assert_eq!(users.account_mut(alice).settled_at(), Some(after(10)));
        assert_eq!(users.poll_timeout(), None);
        users.handle_timeout(after(11));
        assert_eq!(users.len(), 1);
        users.leave(alice);
        users.handle_timeout(after(11));
        assert_eq!((users.len(), users.poll_timeout()), (0, None));
    }

    #[test]
    fn a_static_user_does_not_rest() {
        let mut users = Users::default();
        let alice = users.enter(Identity::Static(b"alice"));
        users.add_allocation(alice);
        charge(&users, alice, 10, origin());
        users.remove_allocation(alice);
        users.leave(alice);
        assert_eq!((users.len(), users.poll_timeout()), (1, None));
    }

    #[test]
    fn so_many_rest_and_those_with_the_least_left_go_first() {
        let start = origin();
        let mut users = Users::default();
        let name = |number: usize| (number as u32).to_be_bytes();
        let last = RESTING_MAX + 99;
        for number in 0..=last {
            let id = users.enter(Identity::Shared(&name(number)));
            charge(&users, id, number as u64 + 1, start);
            users.leave(id);
        }
        assert_eq!((users.len(), users.resting.len()), (RESTING_MAX, RESTING_MAX));
        for (number, is_known) in [(0, false), (99, false), (100, true), (last, true)] {
            let id = users.enter(Identity::Shared(&name(number)));
            assert_eq!(users.account_mut(id).settled_at().is_some(), is_known, "{number}");
            users.leave(id);
        }
        users.handle_timeout(start + Duration::from_secs(last as u64 + 1));
        assert_eq!((users.len(), users.slots.capacity()), (0, 0));
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }
}
