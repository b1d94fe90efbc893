//! Buffers for many datagrams and superpackets that arrive in one system call, and what the kernel says about each.

use std::io;

use super::address::{ADDRESS_LEN, RawAddress};
use super::message::{self, RECEIVE_CONTROL};
use crate::ingress::Meta;

/// Buffers for one `recvmmsg`.
pub struct ReceiveBatch {
    headers: Box<[libc::mmsghdr]>,
    /// Held for the kernel to write to through `headers`.
    vectors: Box<[libc::iovec]>,
    names: Box<[RawAddress]>,
    controls: Box<[[u64; RECEIVE_CONTROL / 8]]>,
    buffers: Box<[Box<[u8]>]>,
    received: usize,
}

// SAFETY: the raw pointers in `headers` and `vectors` point into boxes that this value owns and that do not move.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    /// Room for `messages` superpackets of up to `bytes` each; memory is touched only as far as it is used.
    #[must_use]
    pub fn new(messages: usize, bytes: usize) -> Self {
        let messages = messages.max(1);
        let mut batch = Self {
            headers: (0..messages)
                .map(|_| libc::mmsghdr { msg_hdr: message::empty_message(), msg_len: 0 })
                .collect(),
            vectors: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; messages].into(),
            names: vec![RawAddress::default(); messages].into(),
            controls: vec![[0; RECEIVE_CONTROL / 8]; messages].into(),
            buffers: (0..messages).map(|_| vec![0; bytes].into_boxed_slice()).collect(),
            received: 0,
        };
        for index in 0..messages {
            batch.vectors[index] =
                libc::iovec { iov_base: batch.buffers[index].as_mut_ptr().cast(), iov_len: bytes };
            let header = &mut batch.headers[index].msg_hdr;
            header.msg_name = batch.names[index].as_mut_ptr();
            header.msg_iov = &raw mut batch.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = batch.controls[index].as_mut_ptr().cast();
            header.msg_namelen = ADDRESS_LEN as u32;
            header.msg_controllen = RECEIVE_CONTROL;
        }
        batch
    }

    /// How many superpackets fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    pub(super) fn receive(&mut self, fd: i32, messages: usize) -> io::Result<usize> {
        // The kernel has shortened the lengths of those it used last.
        for header in self.headers.iter_mut().take(self.received) {
            header.msg_hdr.msg_namelen = ADDRESS_LEN as u32;
            header.msg_hdr.msg_controllen = RECEIVE_CONTROL;
        }
        self.received = 0;
        let messages = messages.clamp(1, self.headers.len()) as u32;
        // SAFETY: every header points at a name, a vector, a buffer and a control area that this value owns, boxed, so
        // that they stay where they are; their lengths were set in `new` and above.
        let count = unsafe {
            libc::recvmmsg(fd, self.headers.as_mut_ptr(), messages, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        }
        self.received = count as usize;
        Ok(self.received)
    }

    /// The superpackets of the last receive, in order of arrival. A truncated one, or one of no IP family, has no meta.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Arrival<'_>> {
        let parts =
            self.headers.iter().zip(self.names.iter()).zip(self.controls.iter()).zip(self.buffers.iter_mut());
        parts.take(self.received).map(|(((header, name), control), buffer)| {
            let len = (header.msg_len as usize).min(buffer.len());
            let control_len = header.msg_hdr.msg_controllen.min(RECEIVE_CONTROL);
            let (info, truncated) =
                (control_info(control, control_len), header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0);
            let meta = name.decode().filter(|_| !truncated).map(|from| Meta::Udp {
                from,
                to: info.to,
                segment_size: info.segment_size.filter(|&size| size > 0).unwrap_or(len).min(len),
                ecn: info.ecn,
            });
            Arrival { meta, dropped: info.dropped, stamp_ns: info.stamp_ns, bytes: &mut buffer[..len] }
        })
    }
}

/// Parses the control words of a received message.
fn control_info(control: &[u64; RECEIVE_CONTROL / 8], len: usize) -> message::ReceiveInfo {
    message::parse_control(&message::control_bytes(control, len)[..len])
}

/// One received superpacket.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Always `Meta::Udp`; `None` when it was truncated or has no IP source.
    pub meta: Option<Meta>,
    /// The socket's drop count in skbs, when the kernel said so.
    pub dropped: Option<u32>,
    /// When it reached the kernel, in nanoseconds of CLOCK_REALTIME, where [`super::udp::UdpOptions::timestamps`] was asked for.
    pub stamp_ns: Option<u64>,
    /// Its bytes.
    pub bytes: &'a mut [u8],
}
