//! The server as a black box: datagrams in, exact answers out, time virtual.

mod abuse;
mod auth;
mod catalogue;
mod data;
mod dual;
mod figures;
mod fixture;
mod hairpin;
mod icmp;
mod life;
mod peers;
mod quotas;
mod replay;
mod requests;
mod sharing;
mod strangers;
mod users;
mod workers;
