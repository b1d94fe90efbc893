//! Mutant: the second slot that is given back is lost.

#[path = "../../src/egress/uring/handover.rs"]
mod handover;

mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

    /// A queue that loses its second value and says that all is well.
    pub struct Queue<T> {
        inner: crate::queue::Queue<T>,
        pushed: AtomicIsize,
    }

    impl<T> Queue<T> {
        pub fn new(places: usize) -> Self {
            Self { inner: crate::queue::Queue::new(places), pushed: AtomicIsize::new(0) }
        }

        pub fn push(&self, value: T) -> Result<(), T> {
            if self.pushed.fetch_add(1, Ordering::AcqRel) == 1 { Ok(()) } else { self.inner.push(value) }
        }

        pub fn pop(&self) -> Option<T> {
            self.inner.pop()
        }
    }
}

pub use handover::Handover;
