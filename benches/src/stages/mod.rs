//! The stages of a packet's way, each set up to be run again and again: by the micro-benchmarks, which take its time, and
//! by [`crate::instructions`], which counts its instructions.
//!
//! Nothing here asks the kernel for anything after it is set up, and nothing depends on the clock or on chance but the
//! keys of sessions, the hashes of the relay's table, and [`turn`], which reads the clock as the loop does.

pub mod offload;
pub mod relayed;
pub mod routes;
pub mod taker;
pub mod tunnel;
pub mod turn;

use std::time::Instant;

/// Segments in the superpackets of the benchmarks: what 64 KiB hold at the default MTU of Ethernet, less a tunnel.
pub const SEGMENTS: usize = 45;

/// An instant to count virtual time from.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the origin of virtual time, read once before anything is measured"
)]
pub fn origin() -> Instant {
    Instant::now()
}
