//! When each connection is looked at next.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long a TLS handshake may take.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a connection without an allocation may have nothing of use to say, and how often those with one are looked at.
pub const IDLE_TIME: Duration = Duration::from_secs(30);
/// How long a connection may be without an allocation, whatever it says.
pub const STRANGER_TIME: Duration = Duration::from_secs(300);

/// The deadlines of all connections.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    set: BTreeSet<(Instant, u32)>,
    next: Option<Instant>,
}

impl Deadlines {
    /// The next one; O(1).
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    pub fn insert(&mut self, deadline: Instant, index: u32) {
        self.set.insert((deadline, index));
        self.next = self.set.first().map(|&(at, _)| at);
    }

    pub fn remove(&mut self, deadline: Instant, index: u32) {
        self.set.remove(&(deadline, index));
        self.next = self.set.first().map(|&(at, _)| at);
    }

    /// Takes out a connection whose deadline has passed.
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let &(deadline, index) = self.set.first().filter(|&&(at, _)| at <= now)?;
        self.remove(deadline, index);
        Some(index)
    }
}
