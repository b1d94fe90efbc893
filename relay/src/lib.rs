//! A STUN and TURN relay on the dataplane engine.
//!
//! [`server`] is the protocol without a socket, [`app`] puts it on the engine, [`config`] and [`cli`] start it, and [`admin`] shows what it
//! does.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
mod report;
pub mod server;
