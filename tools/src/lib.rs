//! The lab: generates load, records latency histograms and exact ledgers, and compares them.

pub mod ab;
pub mod cli;
pub mod compare;
pub mod demo;
pub mod doctor;
pub mod echo;
pub mod epoll;
pub mod format;
pub mod judge;
pub mod lab;
pub mod live;
pub mod netns;
#[cfg(test)]
mod oracle;
pub mod progress;
pub mod reexec;
pub mod reflect;
pub mod report;
pub mod run;
pub mod search;
pub mod statistics;
pub mod units;
