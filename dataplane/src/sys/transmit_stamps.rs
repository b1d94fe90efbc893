//! Time stamps of datagrams that leave (SO_TIMESTAMPING of socket(7), TX_SOFTWARE): the kernel takes one when the driver of the
//! device is handed the packet, after queues and before the wire, and puts it into the socket's error queue.
//!
//! Only those are stamped that ask for it ([`super::udp::UdpSocket::send_stamped`]). The kernel reports each under the
//! number that it was sent with, or, before Linux 6.13, counts them by socket from 0.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::udp::{UdpOptions, UdpSocket};
use super::{message, socket};

/// Room for SCM_TIMESTAMPING (64) and a `struct sock_extended_err` with the address of whom it is from (64), with slack.
const CONTROL: usize = 192;
/// SCM_TSTAMP_SND of linux/errqueue.h: the stamp is of the hand-over to the driver.
const HANDED_OVER: u32 = 0;
const ORIGIN: u8 = libc::SO_EE_ORIGIN_TIMESTAMPING;

/// A datagram or superpacket that was stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The number it was sent with; without one, that among those of its socket that asked for a stamp, from 0, which wraps at 2^32.
    pub number: u32,
    /// When the driver had it: nanoseconds of CLOCK_REALTIME.
    pub taken_ns: u64,
}

/// Has the kernel report stamps of what arrives, if it is asked for, and of messages that leave and ask for one: numbered, and
/// without the bytes of the message.
pub(super) fn report(fd: BorrowedFd<'_>, arrivals: bool, departures: bool) -> io::Result<()> {
    let mut flags = libc::SOF_TIMESTAMPING_SOFTWARE;
    if arrivals {
        flags |= libc::SOF_TIMESTAMPING_RX_SOFTWARE;
    }
    if departures {
        flags |= libc::SOF_TIMESTAMPING_OPT_ID | libc::SOF_TIMESTAMPING_OPT_TSONLY;
    }
    socket::set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, flags as i32)
}

/// Whether a send can bring the number of its stamp (since Linux 6.13). Sends a datagram to itself.
#[must_use]
pub fn takes_numbers() -> bool {
    let options = UdpOptions { packet_info: false, transmit_stamps: true, ..UdpOptions::default() };
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Control messages are looked at before the route is, which there need not be.
    UdpSocket::bind(any, &options).is_ok_and(|socket| {
        let own = socket.local_addr();
        socket.send_stamped(own, &[0], 1, Some(0)).err().and_then(|error| error.raw_os_error())
            != Some(libc::EINVAL)
    })
}

/// Takes up to `count` messages from the error queue and hands over those that are stamps; the answer is how many there were.
pub(super) fn take(fd: BorrowedFd<'_>, count: usize, mut each: impl FnMut(Stamp)) -> usize {
    for taken in 0..count {
        match next(fd) {
            Some(Some(stamp)) => each(stamp),
            Some(None) => {}
            None => return taken,
        }
    }
    count
}

/// The first message of the queue: `None` when there is none, `Some(None)` when it is no stamp.
fn next(fd: BorrowedFd<'_>) -> Option<Option<Stamp>> {
    let mut control = [0_u64; CONTROL / 8];
    let mut header = message::empty_message();
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    // SAFETY: `header` points at `control`, which lives in this frame until the call returns, with its length.
    let received =
        unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if received < 0 {
        return None;
    }
    let mut bytes = [0_u8; CONTROL];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(&control) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Some(parse(&bytes[..header.msg_controllen.min(CONTROL)]))
}

/// Puts the time together with the number, which is `ee_data` of `struct sock_extended_err`: errno (4 bytes), then origin, type,
/// code and padding (a byte each), info and data (4 bytes each).
fn parse(mut control: &[u8]) -> Option<Stamp> {
    let (mut taken_ns, mut number) = (None, None);
    while let Some((level, kind, data, rest)) = message::next_control(control) {
        control = rest;
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING) => taken_ns = message::software_stamp(data),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                let &[_, _, _, _, ORIGIN, _, _, _, i, n, f, o, a, b, c, d, ..] = data else { continue };
                if u32::from_ne_bytes([i, n, f, o]) == HANDED_OVER {
                    number = Some(u32::from_ne_bytes([a, b, c, d]));
                }
            }
            _ => {}
        }
    }
    Some(Stamp { number: number?, taken_ns: taken_ns? })
}

#[cfg(test)]
mod tests {
    use super::super::clock;
    use super::*;

    #[test]
    fn only_those_that_ask_are_stamped_and_they_are_numbered() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let any = any.parse().expect("address");
            let options = UdpOptions { packet_info: false, transmit_stamps: true, ..UdpOptions::default() };
            let sender = UdpSocket::bind(any, &options).expect("loopback socket");
            let receiver = UdpSocket::bind(any, &UdpOptions::default()).expect("loopback socket");
            let mut stamps = Vec::new();
            for _ in 0..5 {
                sender.send_segments(receiver.local_addr(), None, 0, &[1; 300], 300).expect("sent");
                sender.send_stamped(receiver.local_addr(), &[2; 300], 100, None).expect("sent");
            }
            // On loopback the device takes a packet within the call.
            assert_eq!(sender.take_stamps(3, |stamp| stamps.push(stamp)), 3);
            assert_eq!(sender.take_stamps(9, |stamp| stamps.push(stamp)), 2);
            assert_eq!(stamps.iter().map(|stamp| stamp.number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
            assert!(stamps.is_sorted_by_key(|stamp| stamp.taken_ns));
            let now = clock::read(clock::Clock::Realtime).as_nanos() as u64;
            assert!(now.abs_diff(stamps[0].taken_ns) < 60_000_000_000, "{now} {stamps:?}");
        }
    }

    #[test]
    fn a_stamp_has_the_number_that_its_send_brought_whatever_was_refused_before() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let any: SocketAddr = any.parse().expect("address");
            let options = UdpOptions { packet_info: false, transmit_stamps: true, ..UdpOptions::default() };
            let sender = UdpSocket::bind(any, &options).expect("loopback socket");
            let receiver = UdpSocket::bind(any, &UdpOptions::default()).expect("loopback socket");
            let to = receiver.local_addr();
            let first = sender.send_stamped(to, &[1; 300], 100, Some(7));
            if !takes_numbers() {
                // Linux before 6.13: nothing leaves under a number that would not come back.
                assert_eq!(first.expect_err("refused").raw_os_error(), Some(libc::EINVAL));
                continue;
            }
            first.expect("sent");
            // More segments than a superpacket may have.
            sender.send_stamped(to, &[1; 3_000], 1, Some(8)).expect_err("refused");
            sender.send_stamped(to, &[1; 300], 300, Some(900)).expect("sent");
            let mut numbers = Vec::new();
            sender.take_stamps(9, |stamp| numbers.push(stamp.number));
            assert_eq!(numbers, [7, 900]);
        }
    }

    #[test]
    fn what_is_no_stamp_of_the_hand_over_or_too_short_is_nothing() {
        let control = |origin: u8, info: u32, len: usize| {
            let mut bytes = (16_usize + 48).to_ne_bytes().to_vec();
            bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
            bytes.extend(libc::SCM_TIMESTAMPING.to_ne_bytes());
            bytes.extend(7_i64.to_ne_bytes());
            bytes.extend([0; 40]);
            bytes.extend((16 + len).to_ne_bytes());
            bytes.extend(libc::IPPROTO_IP.to_ne_bytes());
            bytes.extend(libc::IP_RECVERR.to_ne_bytes());
            bytes.extend([42, 0, 0, 0, origin, 0, 0, 0]);
            bytes.extend(info.to_ne_bytes());
            bytes.extend(9_u32.to_ne_bytes());
            bytes
        };
        assert_eq!(parse(&control(ORIGIN, 0, 16)), Some(Stamp { number: 9, taken_ns: 7_000_000_000 }));
        assert_eq!(parse(&control(libc::SO_EE_ORIGIN_ICMP, 0, 16)), None);
        assert_eq!(parse(&control(ORIGIN, 1, 16)), None, "a stamp of the queue before the device");
        assert_eq!(parse(&control(ORIGIN, 0, 12)), None);
        assert_eq!(parse(&control(ORIGIN, 0, 16)[..64]), None, "a time without a number");
        assert_eq!(parse(&[]), None);
    }
}
