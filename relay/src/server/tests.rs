//! The server as a black box: datagrams in, exact answers out, time virtual.

mod abuse;
mod catalogue;
mod data;
mod dual;
mod figures;
mod fixture;
mod hairpin;
mod icmp;
mod life;
mod requests;
mod sharing;
