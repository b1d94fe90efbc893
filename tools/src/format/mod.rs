//! Result files: the HdrHistogram formats that other tools read, and the directory that holds one run.

pub mod bundle;
pub mod hgrm;
