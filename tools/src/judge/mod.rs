//! Whether one side of runs is worse than another: PASS, FAIL or INCONCLUSIVE by rules such as `p99>+5%`, or what differs
//! where no rule is given.
//!
//! ```text
//!  runs of A ─┐ one value a run        exact permutation      against the rule's limit,
//!             ├─► and metric ─────────► of the logarithms ───► Holm over all rules ─────► verdict
//!  runs of B ─┘
//! ```

pub mod circumstances;
mod differences;
mod group;
mod metric;
mod moments;
mod rule;
mod table;
mod verdict;

#[cfg(test)]
mod simulated;

pub use differences::{Difference, Found, differences};
pub use group::{Group, Side};
pub use metric::Metric;
pub use rule::Rule;
pub use table::{COLUMNS, difference_table, notes, verdict_table};
pub use verdict::{Judgement, Verdict, judge};
