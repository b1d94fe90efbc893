//! Message headers and control messages (cmsg(3), udp(7), ip(7), ipv6(7)) of datagrams that leave and arrive.
//!
//! Control messages are written and read as bytes: a `struct cmsghdr` is a native `usize` length and two native
//! `int`s, then the data, padded to 8.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::RawAddress;
use crate::egress::Target;

/// UDP_SEGMENT of udp(7): segment size of a superpacket that leaves.
pub(super) const UDP_SEGMENT: i32 = 103;
/// UDP_GRO of udp(7): segment size of a superpacket that arrives.
pub(super) const UDP_GRO: i32 = 104;

/// The ECN bits of a traffic class.
const ECN: u8 = 3;
/// Size of a `struct cmsghdr`.
const HEADER: usize = 16;
/// Of include/uapi/asm-generic/socket.h, since Linux 6.13: the number under which a stamp is reported.
const SCM_TS_OPT_ID: i32 = 81;
/// Room for IPV6_PKTINFO (40), UDP_SEGMENT (24) and a traffic class (24), with slack.
const SEND_CONTROL: usize = 96;
/// Room for packet info (40), UDP_GRO (24), SO_RXQ_OVFL (24) and a traffic class (24), with slack.
pub const RECEIVE_CONTROL: usize = 128;

/// Everything `sendmsg` reads besides the payload. Lives beside its slot, so that it outlives the operation.
#[repr(C)]
pub struct SendHeader {
    message: libc::msghdr,
    vector: libc::iovec,
    name: RawAddress,
    control: [u64; SEND_CONTROL / 8],
}

impl Default for SendHeader {
    fn default() -> Self {
        Self {
            message: empty_message(),
            vector: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            name: RawAddress::default(),
            control: [0; SEND_CONTROL / 8],
        }
    }
}

/// A `struct msghdr` that names nothing.
pub(super) const fn empty_message() -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: std::ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

impl SendHeader {
    /// Points the header at `len` payload bytes for `target`; a `segment_size` below `len` makes it a superpacket.
    /// The header must not move until the kernel has read it.
    pub(super) fn prepare(&mut self, target: &Target, payload: *mut u8, len: usize, segment_size: usize) {
        let mut control = ControlWriter { words: &mut self.control, len: 0 };
        match target.from {
            Some(IpAddr::V4(from)) => {
                let mut info = [0u8; 12];
                info[4..8].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(from)) => {
                let mut info = [0u8; 20];
                info[..16].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if target.traffic_class != 0 {
            let value = i32::from(target.traffic_class).to_ne_bytes();
            match target.to.is_ipv4() {
                true => control.push(libc::IPPROTO_IP, libc::IP_TOS, &value),
                false => control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &value),
            }
        }
        // IPv4 has no control message for DF. But a segment must fit the path MTU, or the kernel refuses with EMSGSIZE
        // (udp(7)): a superpacket of one is never fragmented here, and DF is what the socket's IP_MTU_DISCOVER says.
        if segment_size < len || target.dont_fragment && len > 0 {
            control.push(libc::IPPROTO_UDP, UDP_SEGMENT, &(segment_size as u16).to_ne_bytes());
        }
        let control_len = control.len;
        self.name.set(target.to);
        self.vector = libc::iovec { iov_base: payload.cast(), iov_len: len };
        self.message = libc::msghdr {
            msg_name: self.name.as_mut_ptr(),
            msg_namelen: self.name.len(),
            msg_iov: &raw mut self.vector,
            msg_iovlen: 1,
            msg_control: if control_len == 0 {
                std::ptr::null_mut()
            } else {
                self.control.as_mut_ptr().cast()
            },
            msg_controllen: control_len,
            msg_flags: 0,
        };
    }

    /// Has the kernel say when the device takes the message that was prepared (SOF_TIMESTAMPING_TX_SOFTWARE as a control message,
    /// of the kernel's Documentation/networking/timestamping.rst, 1.3.4), under `number` if there is one (SCM_TS_OPT_ID, likewise). There
    /// is room for it beside a segment size only.
    pub(super) fn ask_for_stamp(&mut self, number: Option<u32>) {
        let mut control = ControlWriter { words: &mut self.control, len: self.message.msg_controllen };
        control.push(
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPING,
            &libc::SOF_TIMESTAMPING_TX_SOFTWARE.to_ne_bytes(),
        );
        if let Some(number) = number {
            control.push(libc::SOL_SOCKET, SCM_TS_OPT_ID, &number.to_ne_bytes());
        }
        self.message.msg_controllen = control.len;
        self.message.msg_control = self.control.as_mut_ptr().cast();
    }

    /// What goes into an array for `sendmmsg`; points into this header.
    pub(super) fn copy_of_message(&self) -> libc::msghdr {
        self.message
    }

    /// What `sendmsg` takes.
    pub(super) fn message(&self) -> *const libc::msghdr {
        &raw const self.message
    }
}

/// Appends control messages to a zeroed, aligned buffer.
struct ControlWriter<'a> {
    words: &'a mut [u64; SEND_CONTROL / 8],
    len: usize,
}

impl ControlWriter<'_> {
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let mut block = [0u8; 40];
        block[..8].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        block[8..12].copy_from_slice(&level.to_ne_bytes());
        block[12..16].copy_from_slice(&kind.to_ne_bytes());
        block[HEADER..HEADER + data.len()].copy_from_slice(data);
        let space = (HEADER + data.len()).next_multiple_of(8);
        let (words, _) = block[..space].as_chunks::<8>();
        for word in words {
            self.words[self.len / 8] = u64::from_ne_bytes(*word);
            self.len += 8;
        }
    }
}

/// What the control messages of a received datagram say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveInfo {
    /// The local address it was sent to.
    pub to: Option<IpAddr>,
    /// Segment size of a superpacket, in bytes.
    pub segment_size: Option<usize>,
    /// How many skbs this socket has dropped so far because its receive buffer was full (SO_RXQ_OVFL; wraps at 2^32).
    pub dropped: Option<u32>,
    /// The two ECN bits of its header; zero where the socket does not ask for the traffic class. Datagrams of a superpacket
    /// have the same: the kernel puts no others together.
    pub ecn: u8,
    /// When it reached the kernel: nanoseconds of CLOCK_REALTIME (SO_TIMESTAMPING of socket(7), RX_SOFTWARE).
    pub stamp_ns: Option<u64>,
}

/// The first `len` bytes, and what shares a word with them, of control messages that the kernel wrote; then zeros.
pub(super) fn control_bytes(control: &[u64; RECEIVE_CONTROL / 8], len: usize) -> [u8; RECEIVE_CONTROL] {
    let mut bytes = [0u8; RECEIVE_CONTROL];
    let words = len.div_ceil(8).min(control.len());
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(&control[..words]) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Reads the control messages that the kernel wrote; stops at the first that does not fit.
#[must_use]
pub fn parse_control(mut bytes: &[u8]) -> ReceiveInfo {
    let mut info = ReceiveInfo::default();
    while let Some((level, kind, data, rest)) = next_control(bytes) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // struct in_pktinfo: interface index, ipi_spec_dst (the local address to answer from), ipi_addr.
                info.to = data
                    .get(4..8)
                    .and_then(|octets| <[u8; 4]>::try_from(octets).ok())
                    .map(|octets| Ipv4Addr::from(octets).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                info.to = data
                    .get(..16)
                    .and_then(|octets| <[u8; 16]>::try_from(octets).ok())
                    .map(|octets| Ipv6Addr::from(octets).into());
            }
            (libc::IPPROTO_UDP, UDP_GRO) => {
                info.segment_size = data
                    .get(..4)
                    .and_then(|size| size.try_into().ok())
                    .map(|size| i32::from_ne_bytes(size).max(0) as usize);
            }
            // A byte of IPv4 (ip(7)); an int of IPv6 (ipv6(7)), whose first byte is the one on little-endian machines only.
            (libc::IPPROTO_IP, libc::IP_TOS) => info.ecn = data.first().map_or(0, |class| class & ECN),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class =
                    data.get(..4).and_then(|class| class.try_into().ok()).map_or(0, i32::from_ne_bytes);
                info.ecn = class as u8 & ECN;
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING) => info.stamp_ns = software_stamp(data),
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                info.dropped = data.get(..4).and_then(|count| count.try_into().ok()).map(u32::from_ne_bytes);
            }
            _ => {}
        }
        bytes = rest;
    }
    info
}

/// The first of the three `struct timespec` of a `struct scm_timestamping` (linux/errqueue.h): software; zero when there is none.
pub(super) fn software_stamp(data: &[u8]) -> Option<u64> {
    let (seconds, rest) = data.split_first_chunk::<8>()?;
    let nanoseconds = rest.first_chunk::<8>()?;
    let seconds = u64::try_from(i64::from_ne_bytes(*seconds)).ok()?;
    let nanoseconds = u64::try_from(i64::from_ne_bytes(*nanoseconds)).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds).filter(|&stamp| stamp > 0)
}

/// Splits off the first control message: level, type, data, and what follows.
pub(super) fn next_control(bytes: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
    let level = i32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let kind = i32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?);
    let data = bytes.get(HEADER..len)?;
    Some((level, kind, data, bytes.get(len.next_multiple_of(8)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_read_as_the_kernel_writes_them() {
        let mut words = [0u64; SEND_CONTROL / 8];
        let mut writer = ControlWriter { words: &mut words, len: 0 };
        writer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 1]);
        writer.push(libc::IPPROTO_UDP, UDP_GRO, &1400i32.to_ne_bytes());
        writer.push(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7u32.to_ne_bytes());
        let len = writer.len;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let expected = ReceiveInfo {
            to: Some(IpAddr::from([192, 0, 2, 1])),
            segment_size: Some(1400),
            dropped: Some(7),
            ecn: 0,
            stamp_ns: None,
        };
        assert_eq!(parse_control(&bytes[..len]), expected);
    }

    #[test]
    fn the_kernel_s_time_stamp_is_read_and_a_bad_one_is_none() {
        let stamp = |seconds: i64, nanoseconds: i64| {
            let mut data = [0; 48];
            data[..8].copy_from_slice(&seconds.to_ne_bytes());
            data[8..16].copy_from_slice(&nanoseconds.to_ne_bytes());
            data
        };
        let good = stamp(1_700_000_000, 5);
        let cases: [(&[u8], Option<u64>); 5] = [
            (&good, Some(1_700_000_000_000_000_005)),
            (&good[..15], None),
            (&stamp(0, 0), None),
            (&stamp(-1, 0), None),
            (&stamp(i64::MAX, i64::MAX), None),
        ];
        for (data, expected) in cases {
            let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
            bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
            bytes.extend(libc::SCM_TIMESTAMPING.to_ne_bytes());
            bytes.extend(data);
            assert_eq!(parse_control(&bytes).stamp_ns, expected);
        }
    }

    #[test]
    fn the_ecn_bits_are_a_byte_of_ipv4_and_an_int_of_ipv6() {
        let (one, other) = ([0xb8 | 2], i32::from(0xb8_u8 | 3).to_ne_bytes());
        let cases = [
            (libc::IPPROTO_IP, libc::IP_TOS, &one[..], 2),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &other[..], 3),
            (libc::IPPROTO_IP, libc::IP_TOS, &[], 0),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &other[..1], 0),
        ];
        for (level, kind, data, ecn) in cases {
            let mut words = [0u64; SEND_CONTROL / 8];
            let mut writer = ControlWriter { words: &mut words, len: 0 };
            writer.push(level, kind, data);
            let len = writer.len;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            assert_eq!(parse_control(&bytes[..len]), ReceiveInfo { ecn, ..ReceiveInfo::default() });
        }
    }

    #[test]
    fn lying_lengths_end_the_reading() {
        let mut bytes = [0xffu8; 32];
        assert_eq!(parse_control(&bytes), ReceiveInfo::default());
        bytes[..8].copy_from_slice(&8usize.to_ne_bytes());
        assert_eq!(parse_control(&bytes), ReceiveInfo::default());
    }
}
