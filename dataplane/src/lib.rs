//! The io_uring packet engine, and the WireGuard tunnel endpoint built on it.

pub mod admin;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod driver;
pub mod drops;
pub mod egress;
pub mod engine;
pub mod halt;
pub mod hlog;
pub mod host;
pub mod ingress;
#[cfg(test)]
#[path = "../tests/support/left_out.rs"]
mod left_out;
pub mod log;
pub mod netlink;
pub mod notify;
pub mod offload;
pub mod packet;
pub mod show;
pub mod stages;
pub mod status;
pub mod stream;
pub mod stun;
pub mod sys;
pub mod tunnel;
pub mod turn;
pub mod uapi;
pub mod wire;
