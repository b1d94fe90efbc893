//! Mutant: the submitter never finds the completion thread asleep, so nobody wakes it.

#[path = "../../src/egress/uring/handover.rs"]
mod handover;

mod sync {
    pub use crate::queue::Queue;
    pub use loom::sync::atomic::{AtomicIsize, Ordering};

    /// A flag whose old value is always said to have been `false`.
    pub struct AtomicBool(loom::sync::atomic::AtomicBool);

    impl AtomicBool {
        pub fn new(value: bool) -> Self {
            Self(loom::sync::atomic::AtomicBool::new(value))
        }

        pub fn load(&self, ordering: Ordering) -> bool {
            self.0.load(ordering)
        }

        pub fn store(&self, value: bool, ordering: Ordering) {
            self.0.store(value, ordering);
        }

        pub fn swap(&self, value: bool, ordering: Ordering) -> bool {
            self.0.swap(value, ordering);
            false
        }
    }
}

pub use handover::Handover;
