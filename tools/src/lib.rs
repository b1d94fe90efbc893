//! The lab: generates load, records latency histograms and exact ledgers, and compares them.

pub mod demo;
pub mod netns;
pub mod report;
pub mod run;
