//! Tests of splitting and coalescing, together because they are each other's inverse.

mod build;
mod coalescing;
mod round_trip;
mod splitting;
