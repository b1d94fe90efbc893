//! What the hand-over is built from. The loom model substitutes its own module of the same shape, and so compiles the
//! production source of `handover.rs`.

pub use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

/// A bounded queue between two threads.
pub use crossbeam_queue::ArrayQueue as Queue;
