//! The lab: generates load, records latency histograms and exact ledgers, and compares them.

pub mod cli;
pub mod compare;
pub mod demo;
pub mod echo;
pub mod format;
pub mod netns;
pub mod reexec;
pub mod reflect;
pub mod report;
pub mod run;
pub mod units;
