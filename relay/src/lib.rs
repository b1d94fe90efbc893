//! A STUN and TURN relay on the dataplane engine.
//!
//! [`server`] is the protocol without a socket, [`stream`] carries it over TCP and TLS, [`app`] puts both on the engine,
//! [`config`] and [`cli`] start it.

pub mod app;
pub mod cli;
pub mod config;
mod report;
pub mod server;
pub mod stream;
