//! The only folder with unsafe code.
pub mod tun;
