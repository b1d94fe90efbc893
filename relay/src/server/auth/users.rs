//! Who holds allocations: quotas count here, and allocations belong to entries of this table.
//!
//! A static user's entry is made when its password was right for the first time, and stays: there are no more of them than
//! configuration has names. A user from a shared secret is known by the id in its name, has an entry while it has
//! allocations, and costs nothing before and after: anyone who runs the web service can make up any number of ids.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// Index of a user. Once an entry is forgotten, it may be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserId(u32);

/// Who a request is from, once that is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity<'a> {
    /// A static user's name.
    Static(&'a [u8]),
    /// The id in a name from a shared secret.
    Shared(&'a [u8]),
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
}

impl User {
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
}

impl Users {
    /// The entry of a user who has just proven who it is; made when there is none. It stays until [`Users::leave`] at least,
    /// with which every request ends.
    pub fn enter(&mut self, identity: Identity<'_>) -> UserId {
        let (kind, name) = match identity {
            Identity::Static(name) => (Kind::Static, name),
            Identity::Shared(id) => (Kind::Shared, id),
        };
        if let Some(&id) = self.index(kind).get(name) {
            self.get_mut(id).is_asking = true;
            return id;
        }
        let user = Some(User { kind, name: name.into(), allocations: 0, is_asking: true });
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
        self.forget_idle(id);
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
        self.forget_idle(id);
    }

    /// Forgets a user from a shared secret who has no allocation.
    fn forget_idle(&mut self, id: UserId) {
        let user = self.get(id);
        if user.kind == Kind::Static || user.allocations > 0 || user.is_asking {
            return;
        }
        let Some(user) = self.slots[id.0 as usize].take() else { return };
        self.shared_users.remove(&user.name);
        self.free.push(id);
        self.shrink();
    }

    /// Everyone who has an entry.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.slots.iter().flatten()
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
}
