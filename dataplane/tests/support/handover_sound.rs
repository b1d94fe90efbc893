//! The hand-over as it is in production, over loom's types.

#[path = "../../src/egress/uring/handover.rs"]
mod handover;

mod sync {
    pub use crate::queue::Queue;
    pub use loom::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
}

pub use handover::Handover;
