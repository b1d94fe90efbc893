//! TURN as a client (RFC 8656 over UDP): bytes and `now` in, datagrams, events and deadlines out.
//!
//! ```text
//!  Absent ──Allocate──► Requested ──success──► Established ──Refresh at half life──┐
//!    ▲                     │ 401: again, signed     │  ▲───────────────────────────┘
//!    └──── backoff ◄── failure, no answer ──────────┘  channels and permissions live here
//! ```

mod channels;
pub mod client;
#[cfg(test)]
pub(crate) mod client_tests;
mod credentials;
mod failure;
mod permissions;
mod transaction;
mod watch;

pub use client::{Client, ClientConfig, Event, Input};
