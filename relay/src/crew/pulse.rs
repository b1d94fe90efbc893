//! Whether a worker turns: it answers each time it is asked, and says which orders it has carried out.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is known of one worker.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    asked: AtomicU64,
    answered: AtomicU64,
    obeyed: AtomicU64,
}

impl Pulse {
    /// One asks.
    pub fn ask(&self) {
        self.asked.fetch_add(1, Ordering::AcqRel);
    }

    /// The worker answers all that was asked.
    pub fn answer(&self) {
        self.answered.store(self.asked.load(Ordering::Acquire), Ordering::Release);
    }

    /// Whether it has answered.
    pub fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire) == self.asked.load(Ordering::Acquire)
    }

    /// The worker has carried out the orders up to this change.
    pub fn obey(&self, number: u64) {
        self.obeyed.store(number, Ordering::Release);
    }

    /// Up to which.
    pub fn obeyed(&self) -> u64 {
        self.obeyed.load(Ordering::Acquire)
    }
}
