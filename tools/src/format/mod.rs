//! Result files: the HdrHistogram formats that other tools read and write, the directory that holds one run, and tables of
//! commas.

pub mod bounded;
pub mod bundle;
pub mod combine;
pub mod counts;
pub mod csv;
pub mod encoding;
pub mod fate;
pub mod find;
pub mod foreign;
pub mod hgrm;
pub mod hgrm_reader;
pub mod input;
pub mod log;
pub mod output;
pub mod series;
