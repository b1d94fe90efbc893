//! The lab: generates load, records latency histograms and exact ledgers, and compares them.

pub mod report;
pub mod run;
