//! A STUN and TURN relay on the dataplane engine.
//!
//! [`server`] is the protocol without a socket, [`app`] puts it on the engine, [`config`], [`login`] and [`cli`] start it.

pub mod app;
pub mod cli;
pub mod config;
pub mod limits;
pub mod login;
mod overload;
pub mod own_addresses;
mod report;
pub mod server;
mod time_of_day;
