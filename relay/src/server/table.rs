//! All allocations: by index for peers, by 5-tuple for clients, by deadline for the timer.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use foldhash::fast::RandomState;

use super::allocation::Allocation;
use super::pair::Pair;
use super::{AllocationId, ClientSocket};

/// All allocations.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Boxed, so that growing moves pointers only and a free place costs eight bytes.
    slots: Vec<Option<Box<Allocation>>>,
    free: Vec<AllocationId>,
    by_client: HashMap<ClientSocket, Pair, RandomState>,
    deadlines: BTreeSet<(Instant, AllocationId)>,
    next_deadline: Option<Instant>,
}

impl Table {
    /// Allocations, closing ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// All indexes in use are below this.
    #[must_use]
    pub fn index_end(&self) -> usize {
        self.slots.len()
    }

    /// One allocation.
    #[must_use]
    pub fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    /// One allocation, to change.
    pub fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.slots.get_mut(id.0 as usize)?.as_deref_mut()
    }

    /// All allocations, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (AllocationId, &mut Allocation)> {
        let ids = (0..).map(AllocationId);
        ids.zip(&mut self.slots).filter_map(|(id, slot)| Some((id, slot.as_deref_mut()?)))
    }

    /// The allocations of a client: opening or live, never closing.
    #[must_use]
    pub fn find(&self, client: &ClientSocket) -> Option<Pair> {
        self.by_client.get(client).copied()
    }

    /// Adds an allocation that is opening and has no deadline yet, beside the one of the other family if there is one.
    pub fn insert(&mut self, allocation: Allocation) -> AllocationId {
        let client = allocation.client;
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = Some(Box::new(allocation));
                id
            }
            None => {
                let id = AllocationId(u32::try_from(self.slots.len()).expect("the cap is a u32"));
                self.slots.push(Some(Box::new(allocation)));
                id
            }
        };
        self.by_client
            .entry(client)
            .and_modify(|pair| {
                debug_assert!(pair.second.is_none(), "there are two families");
                pair.second = Some(id);
            })
            .or_insert(Pair::one(id));
        id
    }

    /// Gives an allocation a deadline, or a new one.
    pub fn set_deadline(&mut self, id: AllocationId, expires: Instant) {
        let Some(allocation) = self.slots.get_mut(id.0 as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        self.deadlines.remove(&(allocation.expires, id));
        allocation.expires = expires;
        self.deadlines.insert((expires, id));
        self.next_deadline = self.deadlines.first().map(|&(at, _)| at);
    }

    /// Takes an allocation from its client; it keeps its index until [`Table::free`].
    pub fn detach(&mut self, id: AllocationId) {
        let Some(allocation) = self.slots.get(id.0 as usize).and_then(Option::as_deref) else { return };
        self.deadlines.remove(&(allocation.expires, id));
        self.next_deadline = self.deadlines.first().map(|&(at, _)| at);
        let Entry::Occupied(mut entry) = self.by_client.entry(allocation.client) else { return };
        match entry.get().filter(|other| other != id) {
            Some(rest) => {
                debug_assert_ne!(*entry.get(), rest, "detached twice");
                entry.insert(rest);
            }
            None => {
                entry.remove();
            }
        }
    }

    /// Forgets a detached allocation; its index may be used again.
    pub fn free(&mut self, id: AllocationId) -> Option<Box<Allocation>> {
        let allocation = self.slots.get_mut(id.0 as usize)?.take()?;
        self.free.push(id);
        Some(allocation)
    }

    /// The next deadline; O(1).
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// An allocation whose deadline has passed.
    #[must_use]
    pub fn expired(&self, now: Instant) -> Option<AllocationId> {
        self.deadlines.first().filter(|&&(at, _)| at <= now).map(|&(_, id)| id)
    }
}
