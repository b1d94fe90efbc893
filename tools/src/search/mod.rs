//! The highest rate that a device carries: a search over trials, each a short run at one rate.
//!
//! The terms are those of MLRsearch (draft-ietf-bmwg-mlrsearch): a *goal* says how many trials of what length make a load
//! a *lower* or an *upper* bound, and how far the two may lie apart in the end. The machine that chooses the next trial
//! has no clock and no socket: it is given results.

pub mod calibrate;
pub mod goal;
pub mod machine;
pub mod measure;
pub mod trials;

#[cfg(test)]
mod simulated;

pub use goal::{Criterion, Goal};
pub use machine::{Found, Next, NotKept, Search};
pub use trials::Trial;
