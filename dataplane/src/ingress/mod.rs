//! Ingress: how packets come in. Two implementations, one interface; a handler sees superpackets as the kernel gave them.

mod ahead;
mod epoll;
mod uring;

pub use epoll::Epoll;
pub use uring::UringIngress;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::crypto::aead::Bodies;
use crate::crypto::crew::Sealed;
use crate::egress::errno::tells_of_offload;
use crate::sys::error_queue::{self, IcmpError};
use crate::sys::udp::UdpSocket;

/// The caller's name for a source; comes back with everything received from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u32);

/// What a source is, and so how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A UDP socket with UDP_GRO, packet info and SO_RXQ_OVFL switched on (see [`crate::sys::udp::UdpSocket`]).
    Udp,
    /// The same, and with [`crate::sys::udp::UdpOptions::errors`]: what its error queue holds comes as [`Meta::Icmp`].
    UdpWithErrors,
    /// A TUN device whose packets start with a virtio_net header (see [`crate::sys::tun::Tun`]).
    Tun,
    /// A descriptor whose bytes the application reads and writes itself (a signalfd, a listener, a connection): only
    /// readiness is reported, again in every poll for as long as it lasts.
    Ready,
}

/// What was received, and where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// From a UDP socket.
    Udp {
        /// The sender.
        from: SocketAddr,
        /// The local address it was sent to, when the kernel said so (IP_PKTINFO).
        to: Option<IpAddr>,
        /// Segment size in bytes: the bytes are datagrams of this size one after another, the last may be shorter.
        /// Equal to the length for a single datagram; never zero unless the datagram is empty.
        segment_size: usize,
        /// The ECN bits of its header (RFC 3168), where [`crate::sys::udp::UdpOptions::ecn`] asks for them; else zero.
        ecn: u8,
    },
    /// An ICMP error about a datagram that left through a [`Source::UdpWithErrors`]; without bytes.
    Icmp(IcmpError),
    /// From a TUN device: a virtio_net header and one IP packet or superpacket.
    Tun,
    /// The source is readable, or it has failed, which reading it will tell.
    Ready,
    /// A [`Source::Ready`] can be written, after [`Ingress::wake_when_writable`]; or it has failed, which writing will tell.
    Writable,
}

/// One superpacket, valid until the handler returns.
#[derive(Debug)]
pub struct Received<'a> {
    /// Its source.
    pub token: Token,
    /// What it is.
    pub meta: Meta,
    /// Its bytes, writable so that headers can be changed in place.
    pub bytes: &'a mut [u8],
    /// Which of its datagrams were opened ahead, as [`Handler::foresee`] asked for.
    pub bodies: Bodies,
}

/// Takes what came in.
pub trait Handler {
    /// Takes one superpacket.
    fn handle(&mut self, received: Received<'_>);

    /// What can be opened in a UDP superpacket of datagrams of `segment_size` bytes, whose turn comes later.
    fn foresee(&mut self, _from: SocketAddr, _bytes: &[u8], _segment_size: usize) -> Option<Sealed> {
        None
    }
}

impl<F: FnMut(Received<'_>)> Handler for F {
    fn handle(&mut self, received: Received<'_>) {
        self(received);
    }
}

impl<'a> Received<'a> {
    /// As it came.
    pub fn new(token: Token, meta: Meta, bytes: &'a mut [u8]) -> Self {
        Self { token, meta, bytes, bodies: Bodies::default() }
    }

    /// The datagrams of a UDP superpacket in order. An empty datagram is yielded as an empty slice.
    pub fn segments(bytes: &'a mut [u8], segment_size: usize) -> Segments<'a> {
        Segments { once_empty: bytes.is_empty(), rest: bytes, segment_size: segment_size.max(1) }
    }
}

/// Iterator over the datagrams of a superpacket; see [`Received::segments`].
#[derive(Debug)]
pub struct Segments<'a> {
    rest: &'a mut [u8],
    segment_size: usize,
    once_empty: bool,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a mut [u8];

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return std::mem::take(&mut self.once_empty).then_some(&mut []);
        }
        let rest = std::mem::take(&mut self.rest);
        let (segment, rest) = rest.split_at_mut(self.segment_size.min(rest.len()));
        self.rest = rest;
        Some(segment)
    }
}

/// Bytes taken from a TUN device before what they became has been flushed: what a busy socket refuses of them has to
/// fit into its waiting queue, after which the device is not read.
pub const DEVICE_BYTES: usize = 64 * 1024;
/// The same where there are crypto threads: of one superpacket there is nothing to share.
pub const DEVICE_BYTES_AHEAD: usize = 4 * DEVICE_BYTES;

/// ICMP errors taken from one socket before the next has its turn.
const ERRORS: usize = 16;

/// Figures an ingress keeps about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressStats {
    /// Superpackets handed over.
    pub superpackets: u64,
    /// Datagrams or TUN reads in them.
    pub packets: u64,
    /// System calls made.
    pub system_calls: u64,
    /// Superpackets the kernel dropped because a socket's receive buffer was full (SO_RXQ_OVFL), in skbs.
    pub kernel_drops_skbs: u64,
    /// Superpackets longer than the buffer, dropped.
    pub truncated: u64,
    /// Receive errors that were survived, and entries of error queues.
    pub errors: u64,
    /// Times a multishot receive ended and was armed again.
    pub rearmed: u64,
    /// Waits after which the kernel had more completions than the ring has room for.
    pub cq_overflows: u64,
}

impl IngressStats {
    /// Adds another ingress' figures to these.
    pub fn merge(&mut self, other: &Self) {
        // Named one by one, so that a new figure cannot be forgotten here.
        let Self {
            superpackets,
            packets,
            system_calls,
            kernel_drops_skbs,
            truncated,
            errors,
            rearmed,
            cq_overflows,
        } = other;
        self.superpackets += superpackets;
        self.packets += packets;
        self.system_calls += system_calls;
        self.kernel_drops_skbs += kernel_drops_skbs;
        self.truncated += truncated;
        self.errors += errors;
        self.rearmed += rearmed;
        self.cq_overflows += cq_overflows;
    }
}

/// How packets come in.
pub trait Ingress {
    /// Starts reading `fd`, which must be non-blocking; it stays open until [`Ingress::remove`].
    ///
    /// # Errors
    /// What the kernel answers (ENOMEM…); nothing was registered then.
    fn add(&mut self, fd: Arc<OwnedFd>, token: Token, source: Source) -> io::Result<()>;

    /// The same of a descriptor that others own: it is duplicated.
    ///
    /// # Errors
    /// As [`Ingress::add`], and EMFILE.
    fn add_borrowed(&mut self, fd: BorrowedFd<'_>, token: Token, source: Source) -> io::Result<()> {
        self.add(Arc::new(fd.try_clone_to_owned()?), token, source)
    }

    /// Stops reading a source. Nothing of it is handed over afterwards.
    fn remove(&mut self, token: Token);

    /// Stops (`false`) or resumes (`true`) reading a source, to slow it down.
    fn set_reading(&mut self, token: Token, reading: bool);

    /// Asks to be woken, once, when a source can be written again. Of a [`Source::Ready`], [`Meta::Writable`] says so.
    fn wake_when_writable(&mut self, token: Token);

    /// Waits at most `timeout` for something to arrive. Returns early when a source asked about became writable.
    ///
    /// # Errors
    /// Only what ends the program: a broken descriptor or ring.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// Hands over what the last [`Ingress::wait`] found, a bounded amount, in order for each source.
    ///
    /// # Errors
    /// As [`Ingress::wait`].
    fn take(&mut self, handler: &mut impl Handler) -> io::Result<()>;

    /// Waits and hands over.
    ///
    /// # Errors
    /// As [`Ingress::wait`].
    fn poll(&mut self, timeout: Option<Duration>, handler: &mut impl Handler) -> io::Result<()> {
        self.wait(timeout)?;
        self.take(handler)
    }

    /// Whether the last [`Ingress::poll`] stopped at its own bound, so that the next will not have to wait.
    fn has_more(&self) -> bool;

    /// Ends: reads nothing more, and hands over what was read before it was asked for, a bounded amount. `true`: call it
    /// again when what became of that has been flushed.
    ///
    /// # Errors
    /// As [`Ingress::poll`].
    fn finish(&mut self, handler: &mut impl Handler) -> io::Result<bool>;

    /// Figures so far.
    fn stats(&self) -> IngressStats;

    /// Its name, as `--ingress` has it.
    fn design(&self) -> &'static str;
}

/// Hands over what is in the error queue of a socket, a bounded amount. `true`: there may be more.
fn read_errors(
    fd: BorrowedFd<'_>,
    token: Token,
    stats: &mut IngressStats,
    handler: &mut impl Handler,
) -> bool {
    let each = |error| handler.handle(Received::new(token, Meta::Icmp(error), &mut []));
    let taken = error_queue::drain(fd, ERRORS, each);
    stats.errors += taken as u64;
    stats.system_calls += taken as u64 + 1;
    taken == ERRORS
}

/// Gives up UDP GRO on a socket whose receive failed with an errno that may tell of it, once.
fn give_up_gro(fd: BorrowedFd<'_>, errno: i32, given_up: &mut bool) {
    if !tells_of_offload(errno) || std::mem::replace(given_up, true) {
        return;
    }
    let refusal = io::Error::from_raw_os_error(errno);
    match UdpSocket::stop_gro(fd) {
        Ok(()) => tracing::warn!(
            "UDP GRO (udp-gro) is given up on a socket: the kernel answers its receive with {refusal}"
        ),
        Err(error) => {
            tracing::warn!("a socket cannot be read: {refusal}; nor can its UDP GRO be given up: {error}");
        }
    }
}

/// The error that ends the program when its TUN device can no longer be read.
fn device_gone(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the TUN interface is gone: {error}; was it deleted?"))
}
