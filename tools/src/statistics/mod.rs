//! Statistics over runs: pure functions of numbers, without clock, file or network.
//!
//! The sample is a run, not a datagram: datagrams of one run are not independent of one another, and tests that take them
//! to be so find differences between equal servers nine times in ten. Each run gives one value of a metric (its p99, say),
//! and two sides are compared by [`permutation`]: under the hypothesis that both are the same, every way of dealing the
//! runs out to the two sides is as likely as the one that was seen.

#[cfg(test)]
mod against_scipy;
pub mod binomial;
pub mod distribution;
pub mod holm;
pub mod permutation;
pub mod quantile_shift;
pub mod rank;
pub mod sample;
pub mod size;
pub mod trend;

pub use binomial::Proportion;
pub use permutation::Splits;
pub use rank::Shift;
