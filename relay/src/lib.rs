//! A STUN and TURN relay on the dataplane engine.

pub mod app;
pub mod cli;
pub mod config;
pub mod server;
