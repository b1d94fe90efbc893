//! The only folder with unsafe code: system calls and memory that Rust's types cannot describe.
//!
//! Invariants that every file here keeps, whatever safe code outside does:
//! - Slot memory is mapped once and unmapped only when nobody can reach it ([`slab`]).
//! - A slot is owned by exactly one of: a [`slab::Slot`] handle, the kernel (from push to its terminal completion).
//! - What the kernel reads or writes (message headers, addresses, control messages) lives beside the slot.
//! - A descriptor given to a ring is kept open by the ring's owner until its last completion.
#![allow(unsafe_code)]

pub mod address;
pub mod clock;
pub mod daemon;
pub mod error_queue;
pub mod message;
pub mod namespace;
pub mod receive_batch;
pub mod receive_buffers;
pub mod receive_ring;
pub mod ring;
pub mod signal;
pub mod slab;
pub mod socket;
pub mod spawn;
pub mod steering;
pub mod transmit_stamps;
pub mod tun;
pub mod udp;
pub mod wide;
