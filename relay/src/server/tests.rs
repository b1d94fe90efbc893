//! The server as a black box: datagrams in, exact answers out, time virtual.

mod abuse;
mod auth;
mod data;
mod fixture;
mod peers;
mod quotas;
mod requests;
mod strangers;
mod users;
