//! Mutant: every access of the hand-over is relaxed.

#[path = "../../src/egress/uring/handover.rs"]
mod handover;

mod sync {
    pub use crate::queue::Queue;
    pub use loom::sync::atomic::{AtomicBool, AtomicIsize};

    /// Spells the production orderings and means `Relaxed`.
    pub struct Ordering;

    #[expect(non_upper_case_globals, reason = "the names of the enum it stands for")]
    impl Ordering {
        pub const Acquire: loom::sync::atomic::Ordering = loom::sync::atomic::Ordering::Relaxed;
        pub const Release: loom::sync::atomic::Ordering = loom::sync::atomic::Ordering::Relaxed;
        pub const AcqRel: loom::sync::atomic::Ordering = loom::sync::atomic::Ordering::Relaxed;
    }
}

pub use handover::Handover;
