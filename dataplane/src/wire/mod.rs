//! Views over bytes: what a packet says about itself, checked before anyone believes it.

pub mod ip;
pub mod too_big;
pub mod traffic_class;
pub mod wireguard;
