//! What the tests of the engine share.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod designs;
pub mod flows;
pub mod here;
pub mod ledger;
