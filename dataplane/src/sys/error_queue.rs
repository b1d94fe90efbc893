//! The error queue of a UDP socket (ip(7): IP_RECVERR, ipv6(7): IPV6_RECVERR): what ICMP says about datagrams it sent.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::{ADDRESS_LEN, RawAddress};
use super::message::{self, RECEIVE_CONTROL};
use super::socket;

/// An ICMP or ICMPv6 error about a datagram that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Where the datagram went; its family says whether this is ICMP or ICMPv6.
    pub about: SocketAddr,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The next-hop MTU in bytes that came with "fragmentation needed" and "packet too big"; of others the kernel's
    /// `ee_info`, mostly zero.
    pub info: u32,
}

/// Has ICMP errors about datagrams of this socket queued, or no longer. Off, it also empties the queue.
///
/// While it is on, an error fails one later send of the socket, whatever its destination (ip(7)): send that one again.
///
/// # Errors
/// What setsockopt(2) answers.
pub(super) fn set_errors(fd: BorrowedFd<'_>, is_ipv4: bool, on: bool) -> io::Result<()> {
    let (level, name) = match is_ipv4 {
        true => (libc::IPPROTO_IP, libc::IP_RECVERR),
        false => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    socket::set_option(fd, level, name, i32::from(on))
}

/// Takes up to `count` errors from the queue of a socket, and hands over those that ICMP or ICMPv6 reported; the answer is
/// how many there were of any origin. When it is less than `count`, no error is pending any more that could fail a send.
pub fn drain(fd: BorrowedFd<'_>, count: usize, mut each: impl FnMut(IcmpError)) -> usize {
    for taken in 0..count {
        match take(fd) {
            Some(Some(error)) => each(error),
            Some(None) => {}
            None => {
                // One that a receive has put back is in no queue, and would keep the socket ready for ever.
                let _ = rustix::net::sockopt::socket_error(fd);
                return taken;
            }
        }
    }
    count
}

/// The first error of the queue: `None` when there is none, `Some(None)` when it is not ICMP's.
fn take(fd: BorrowedFd<'_>) -> Option<Option<IcmpError>> {
    let mut about = RawAddress::default();
    let mut control = [0u64; RECEIVE_CONTROL / 8];
    // The payload is not asked for: it is the start of what the client sent itself.
    let mut header = message::empty_message();
    header.msg_name = about.as_mut_ptr();
    header.msg_namelen = ADDRESS_LEN as u32;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = RECEIVE_CONTROL;
    // SAFETY: `header` points at `about` and `control`, which live in this frame until the call returns, with their lengths.
    let received =
        unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if received < 0 {
        return None;
    }
    let len = header.msg_controllen.min(RECEIVE_CONTROL);
    let bytes = message::control_bytes(&control, len);
    Some(about.decode().and_then(|about| parse(about, &bytes[..len])))
}

/// Reads `struct sock_extended_err` (errno, then origin, type and code, a byte each, padding, info) out of control messages.
fn parse(about: SocketAddr, mut control: &[u8]) -> Option<IcmpError> {
    while let Some((level, kind, data, rest)) = message::next_control(control) {
        control = rest;
        let origin = match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_RECVERR) => libc::SO_EE_ORIGIN_ICMP,
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => libc::SO_EE_ORIGIN_ICMP6,
            _ => continue,
        };
        let &[_, _, _, _, from, kind, code, _, a, b, c, d, ..] = data else { continue };
        if from == origin {
            return Some(IcmpError { about, kind, code, info: u32::from_ne_bytes([a, b, c, d]) });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::udp::{UdpOptions, UdpSocket};
    use super::*;

    fn closed(loopback: &str) -> SocketAddr {
        // Bound and let go: nobody has it for the moment of a test.
        let any = SocketAddr::new(loopback.parse().expect("address"), 0);
        UdpSocket::bind(any, &UdpOptions::default()).expect("loopback socket").local_addr()
    }

    #[test]
    fn a_closed_port_is_reported_once_and_the_next_send_is_free_of_it() {
        for (loopback, kind, code) in [("127.0.0.1", 3, 3), ("::1", 1, 4)] {
            let any = SocketAddr::new(loopback.parse().expect("address"), 0);
            let options = UdpOptions { errors: true, ..UdpOptions::default() };
            let Ok(sender) = UdpSocket::bind(any, &options) else { continue };
            let receiver = UdpSocket::bind(any, &UdpOptions::default()).expect("loopback socket");
            let about = closed(loopback);
            sender.send_segments(about, None, 0, b"x", 1).expect("sent");
            let mut seen = Vec::new();
            assert_eq!(drain(sender.fd().as_fd(), 9, |error| seen.push(error)), 1);
            assert_eq!(seen, vec![IcmpError { about, kind, code, info: 0 }]);
            sender.send_segments(receiver.local_addr(), None, 0, b"x", 1).expect("nothing is pending");
            assert_eq!(drain(sender.fd().as_fd(), 9, |_| panic!("twice")), 0);
        }
    }

    #[test]
    fn a_socket_that_is_deaf_forgets_what_was_queued_and_hears_nothing_new() {
        let any = "127.0.0.1:0".parse().expect("address");
        let options = UdpOptions { errors: true, ..UdpOptions::default() };
        let sender = UdpSocket::bind(any, &options).expect("loopback socket");
        let about = closed("127.0.0.1");
        sender.send_segments(about, None, 0, b"x", 1).expect("sent");
        sender.set_errors(false).expect("deaf");
        // Takes the error that is pending on its own, without a queue behind it.
        assert_eq!(drain(sender.fd().as_fd(), 9, |_| panic!("heard")), 0);
        for _ in 0..3 {
            sender.send_segments(about, None, 0, b"x", 1).expect("nobody listens, nobody minds");
        }
        sender.set_errors(true).expect("hears again");
        sender.send_segments(about, None, 0, b"x", 1).expect("sent");
        assert_eq!(drain(sender.fd().as_fd(), 9, |error| assert_eq!(error.about, about)), 1);
    }

    #[test]
    fn what_is_not_from_icmp_or_too_short_is_nothing() {
        let about: SocketAddr = "192.0.2.1:9".parse().expect("address");
        let control = |origin: u8, data: usize| {
            let mut bytes = (16 + data).to_ne_bytes().to_vec();
            bytes.extend(libc::IPPROTO_IP.to_ne_bytes());
            bytes.extend(libc::IP_RECVERR.to_ne_bytes());
            bytes.extend([111, 0, 0, 0, origin, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes
        };
        assert!(parse(about, &control(libc::SO_EE_ORIGIN_ICMP, 16)).is_some());
        assert_eq!(parse(about, &control(libc::SO_EE_ORIGIN_LOCAL, 16)), None);
        assert_eq!(parse(about, &control(libc::SO_EE_ORIGIN_ICMP, 8)), None);
        assert_eq!(parse(about, &[]), None);
    }
}
