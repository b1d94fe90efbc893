//! A STUN and TURN relay on the dataplane engine.
//!
//! [`server`] is the protocol without a socket, [`stream`] carries it over TCP and TLS, [`app`] puts both on the engine,
//! [`config`], [`login`] and [`cli`] start it, [`life`] is what happens to it from then on, [`admin`] shows what it does,
//! and [`import`] reads the configuration of coturn.

pub mod admin;
mod advice;
pub mod app;
mod check;
pub mod cli;
pub mod config;
mod confine;
pub mod crew;
pub mod import;
pub mod life;
pub mod limits;
pub mod login;
mod overload;
pub mod own_addresses;
mod ready;
mod reload;
mod report;
pub mod secrets;
pub mod server;
pub mod stream;
mod time_of_day;
