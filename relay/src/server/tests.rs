//! The server as a black box: datagrams in, exact answers out, time virtual.

mod abuse;
mod data;
mod figures;
mod fixture;
mod life;
mod requests;
