//! Offloads that are given up while packets pass: one that the kernel refuses with EINVAL or EIO although it takes the same
//! packets one by one.

use std::io;

use super::Port;
use super::ports::Kind;
use super::staging::Staging;

/// Makes no more superpackets for a port, and says so, once.
pub fn give_up(staging: &mut Staging, port: Port, kind: &mut Kind, errno: i32) {
    let error = io::Error::from_raw_os_error(errno);
    let socket = *kind == Kind::Socket;
    if socket && staging.give_up_gso(port) {
        tracing::warn!(
            "UDP GSO (udp-gso) is given up on a socket: the kernel refuses superpackets ({error}) and takes their \
             datagrams one by one"
        );
    } else if !socket && kind.give_up_merging() {
        tracing::warn!(
            "superpackets towards the interface (tun-gro) are given up: the kernel refuses them ({error}) and takes their \
             packets one by one"
        );
    }
}
