//! What each errno means for a packet: one table, so that every design answers alike.

use crate::drops::Cause;

/// What to do with a packet or superpacket whose operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The socket is busy: keep it, in order, until the socket can be written.
    Busy,
    /// Nothing is wrong with it: an earlier one failed or a signal came. Send it again at once, in order.
    Again,
    /// Perhaps the error was another packet's (a pending ICMP error): send it again, [`FORGIVEN_MAX`] times at most,
    /// then drop it.
    Forgive(Cause),
    /// The superpacket was refused as such: send its packets one by one.
    Resegment,
    /// Lost.
    Drop(Cause),
    /// The descriptor is gone or wrong: the program must not go on.
    Fatal,
}

/// How often a packet is sent again because the error may have been another's. A socket has one pending error and a queue
/// of them: each that is read from the queue makes the next one pending (sock_dequeue_err_skb in the kernel), so that
/// one packet may meet several. One that is refused for its own sake costs as many system calls.
pub const FORGIVEN_MAX: u8 = 4;

/// The verdict on a UDP send of `segments` datagrams that failed with `errno`. What ICMP may have left pending on a
/// connected socket, or on one with [`crate::sys::udp::UdpOptions::errors`], gets more chances.
#[must_use]
pub fn judge_send(errno: i32, segments: usize) -> Verdict {
    match errno {
        libc::EAGAIN => Verdict::Busy,
        libc::ECANCELED | libc::EINTR => Verdict::Again,
        libc::EMSGSIZE | libc::EINVAL | libc::EIO if segments > 1 => Verdict::Resegment,
        libc::EMSGSIZE => Verdict::Forgive(Cause::EgressTooBig),
        libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN => {
            Verdict::Forgive(Cause::EgressUnreachable)
        }
        // What else ICMP leaves behind for the next send: no send fails with these for its own sake.
        libc::EPROTO | libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENONET => {
            Verdict::Forgive(Cause::EgressUnreachable)
        }
        libc::EACCES => Verdict::Forgive(Cause::EgressDenied),
        libc::EPERM => Verdict::Drop(Cause::EgressDenied),
        libc::ENOBUFS | libc::ENOMEM => Verdict::Drop(Cause::EgressNoMemory),
        libc::EBADF | libc::ENOTSOCK | libc::ENXIO => Verdict::Fatal,
        _ => Verdict::Drop(Cause::EgressInvalid),
    }
}

/// The verdict on a TUN write of `segments` packets that failed with `errno`. EIO: the interface is down, or the kernel does
/// not take the superpacket; EBADFD: it was deleted.
#[must_use]
pub fn judge_write(errno: i32, segments: usize) -> Verdict {
    match errno {
        libc::EAGAIN => Verdict::Busy,
        libc::ECANCELED | libc::EINTR => Verdict::Again,
        libc::EINVAL | libc::EIO if segments > 1 => Verdict::Resegment,
        libc::EIO => Verdict::Drop(Cause::TunDown),
        libc::ENOBUFS | libc::ENOMEM => Verdict::Drop(Cause::EgressNoMemory),
        libc::EPERM | libc::EACCES => Verdict::Drop(Cause::EgressDenied),
        libc::EBADFD | libc::EBADF | libc::ENXIO => Verdict::Fatal,
        _ => Verdict::Drop(Cause::EgressInvalid),
    }
}

/// Whether an errno may mean that an offload does not work here: when the superpacket that met it leaves packet by packet, it
/// is given up. EMSGSIZE is about the path and no reason.
#[must_use]
pub fn tells_of_offload(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superpacket_is_taken_apart_and_a_datagram_is_not() {
        assert_eq!(judge_send(libc::EMSGSIZE, 2), Verdict::Resegment);
        assert_eq!(judge_send(libc::EMSGSIZE, 1), Verdict::Forgive(Cause::EgressTooBig));
        assert_eq!(judge_send(libc::EINVAL, 1), Verdict::Drop(Cause::EgressInvalid));
        for errno in [libc::EINVAL, libc::EIO] {
            assert_eq!(
                (judge_send(errno, 2), judge_write(errno, 2)),
                (Verdict::Resegment, Verdict::Resegment)
            );
        }
        assert_eq!(judge_write(libc::EIO, 1), Verdict::Drop(Cause::TunDown));
    }

    /// The errnos that the kernel makes of ICMP and ICMPv6 errors (icmp(7): icmp_err_convert, icmpv6_err_convert).
    #[test]
    fn an_error_that_icmp_left_behind_is_forgiven() {
        let of_icmp = [
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
            libc::ENOPROTOOPT,
            libc::ECONNREFUSED,
            libc::EMSGSIZE,
            libc::EOPNOTSUPP,
            libc::EHOSTDOWN,
            libc::ENONET,
            libc::EPROTO,
            libc::EACCES,
        ];
        for errno in of_icmp {
            assert!(matches!(judge_send(errno, 1), Verdict::Forgive(_)), "errno {errno}");
            assert!(!matches!(judge_send(errno, 2), Verdict::Drop(_)), "errno {errno}");
        }
    }

    #[test]
    fn every_errno_has_a_verdict_and_only_wrong_descriptors_are_fatal() {
        for errno in 1..134 {
            for verdict in
                [judge_send(errno, 1), judge_send(errno, 9), judge_write(errno, 1), judge_write(errno, 9)]
            {
                let wrong = [libc::EBADF, libc::ENOTSOCK, libc::ENXIO, libc::EBADFD].contains(&errno);
                assert!(verdict != Verdict::Fatal || wrong, "errno {errno}");
            }
        }
        assert_eq!(judge_write(libc::EBADFD, 1), Verdict::Fatal);
    }
}
