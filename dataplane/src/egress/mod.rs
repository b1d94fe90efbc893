//! Egress: how packets leave. One interface, statically dispatched, and one module for each I/O design.

mod direct;
pub(crate) mod errno;
mod given_up;
mod ports;
pub mod probe;
mod runtime;
pub mod sim;
mod staging;
mod threaded;
pub mod uring;
mod waiting;

pub use self::staging::{BYTES_MAX, SEGMENTS_MAX};
pub use direct::{Direct, WhenBusy};
pub use errno::FORGIVEN_MAX;
pub use runtime::Runtime;
pub use threaded::Threaded;
pub use uring::Uring;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::crypto::{Boss, Key, aead};
use crate::drops::Drops;
use crate::stages::Stopwatch;

/// A socket or device that packets leave through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u32);

/// Where a datagram goes, and how. Datagrams with equal targets and sizes leave as one superpacket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The socket it leaves through.
    pub port: Port,
    /// The destination.
    pub to: SocketAddr,
    /// The source address to use (IP_PKTINFO), or the kernel's choice.
    pub from: Option<IpAddr>,
    /// The outer header's traffic class: six bits of DSCP (RFC 2474), two of ECN (RFC 3168).
    pub traffic_class: u8,
    /// Never fragmented: above the path MTU that the kernel knows it is dropped instead, as
    /// [`crate::drops::Cause::EgressTooBig`]. Such datagrams leave one by one; whether they carry DF over IPv4 is the
    /// socket's matter: [`crate::sys::udp::UdpSocket::send_whole`].
    pub dont_fragment: bool,
}

/// Which packets go first when there is not room for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// User data.
    Data,
    /// STUN, handshakes, keepalives: has reserved slots and goes ahead in the waiting queues.
    Control,
}

/// What became of the packets appended so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Everything is with the kernel or accounted for.
    Done,
    /// Something waits for a socket or device to become writable; slow sources down and call [`Egress::flush`] again
    /// on write-readiness, and after 1 ms at the latest.
    Waiting,
    /// Crypto threads are still sealing. After [`Egress::flush_sealed`] only: read on, and call it again at once.
    Sealing,
    /// The design suspends the loop (`--io suspend`): read nothing more and call [`Egress::flush`] again at once; it
    /// waits for write-readiness itself, at most 10 ms a call.
    Suspended,
}

/// Figures an egress keeps about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressStats {
    /// Packets (segments) appended.
    pub offered: u64,
    /// Packets (segments) the kernel took.
    pub sent: u64,
    /// Bytes the kernel took, virtio_net headers included.
    pub sent_bytes: u64,
    /// Operations (system calls or submission entries) that carried them.
    pub operations: u64,
    /// `io_uring_enter` calls, or system calls for the designs without a ring.
    pub enters: u64,
    /// Times a packet had to wait in a socket's waiting queue.
    pub waited: u64,
    /// Slots of the fixed ring; 0 for the designs without one.
    pub slots: u64,
    /// Slots the kernel has now, or whose completion nobody has reaped.
    pub slots_in_flight: u64,
    /// Times the ring was full and its queue was submitted and waited for.
    pub ring_full: u64,
    /// Times the completion thread was woken.
    pub completion_wakeups: u64,
    /// Superpackets refused with EMSGSIZE, EINVAL or EIO, whose packets were sent again one by one.
    pub gso_fallbacks: u64,
    /// Submits after which the kernel had more completions than the ring has room for.
    pub cq_overflows: u64,
    /// Packets in those.
    pub resent: u64,
    /// Lost packets by cause.
    pub drops: Drops,
}

impl EgressStats {
    /// Adds another egress' figures to these.
    pub fn merge(&mut self, other: &Self) {
        // Named one by one, so that a new figure cannot be forgotten here.
        let Self {
            offered,
            sent,
            sent_bytes,
            operations,
            enters,
            waited,
            slots,
            slots_in_flight,
            ring_full,
            completion_wakeups,
            gso_fallbacks,
            cq_overflows,
            resent,
            drops,
        } = other;
        self.offered += offered;
        self.sent += sent;
        self.sent_bytes += sent_bytes;
        self.operations += operations;
        self.enters += enters;
        self.waited += waited;
        self.slots += slots;
        self.slots_in_flight += slots_in_flight;
        self.ring_full += ring_full;
        self.completion_wakeups += completion_wakeups;
        self.gso_fallbacks += gso_fallbacks;
        self.cq_overflows += cq_overflows;
        self.resent += resent;
        self.drops.merge(drops);
    }
}

/// A data message at the end of a datagram that is written and has to be sealed.
#[derive(Clone, Copy)]
pub struct Unsealed<'k> {
    /// The key.
    pub key: &'k Key,
    /// Bytes of the datagram in front of the message.
    pub front: usize,
}

impl Unsealed<'_> {
    /// Seals it in its datagram.
    pub fn seal(&self, datagram: &mut [u8]) {
        aead::seal(&aead::cipher(self.key), &mut datagram[self.front..]);
    }
}

/// How packets leave.
///
/// `offered = sent + Σ drops + pending` holds at every return, where pending is what [`Egress::pending`] says.
pub trait Egress {
    /// Registers a UDP socket. The egress keeps the descriptor open until [`Egress::remove`] has drained it.
    ///
    /// # Errors
    /// When the design has no room for another port, or the kernel refuses.
    fn add_socket(&mut self, fd: Arc<OwnedFd>) -> io::Result<Port>;

    /// Registers a TUN device with virtio_net headers and the given offloads.
    ///
    /// # Errors
    /// As [`Egress::add_socket`].
    fn add_device(&mut self, fd: Arc<OwnedFd>, offloads: crate::sys::tun::Offloads) -> io::Result<Port>;

    /// Forgets a port. What still waits for it is dropped and counted as [`crate::drops::Cause::EgressClosed`].
    fn remove(&mut self, port: Port);

    /// Appends one datagram of exactly `len` bytes: `fill` writes it straight into the memory it leaves from.
    /// When `fill` answers `false` nothing is appended. `len` is at most 65,507.
    fn append(&mut self, target: &Target, len: usize, class: Class, fill: impl FnOnce(&mut [u8]) -> bool);

    /// As [`Egress::append`], of a datagram that `fill` may leave to be sealed under the key it returns; `None` appends nothing. It
    /// is sealed before it leaves, here and now unless the design has others do it.
    fn append_unsealed<'k>(
        &mut self,
        target: &Target,
        len: usize,
        class: Class,
        fill: impl FnOnce(&mut [u8]) -> Option<Unsealed<'k>>,
    ) {
        self.append(target, len, class, |bytes| match fill(bytes) {
            Some(unsealed) => {
                unsealed.seal(bytes);
                true
            }
            None => false,
        });
    }

    /// Appends one whole IP packet for a TUN device; neighbours of one flow leave as one TSO or USO superpacket.
    fn deliver(&mut self, device: Port, packet: &[u8]);

    /// Hands everything to the kernel: called when a batch of input is used up. Also retries what waits.
    ///
    /// # Errors
    /// Only what ends the program: a broken ring or descriptor.
    fn flush(&mut self, now: Instant) -> io::Result<Flush>;

    /// As [`Egress::flush`], when there may be more input at once: what crypto threads have not sealed yet may stay behind, a
    /// bounded amount.
    ///
    /// # Errors
    /// As [`Egress::flush`].
    fn flush_sealed(&mut self, now: Instant) -> io::Result<Flush> {
        self.flush(now)
    }

    /// Called when the loop is about to wait for input: time to do what nobody waits for.
    fn idle(&mut self) {}

    /// Packets appended whose fate is not known yet.
    fn pending(&self) -> u64;

    /// Ports whose packets wait for write-readiness now.
    fn waiting_ports(&self) -> impl Iterator<Item = Port>;

    /// Figures so far.
    fn stats(&self) -> EgressStats;

    /// Packets appended so far, as in [`Egress::stats`].
    fn offered(&self) -> u64 {
        self.stats().offered
    }

    /// The crypto threads that seal beside the loop, if there are any; they can open as well.
    fn boss(&self) -> Option<Boss> {
        None
    }

    /// What is started when a batch is timed; `None` where other threads than the loop's write.
    fn stopwatch(&mut self) -> Option<&mut Stopwatch> {
        None
    }

    /// Its name, as `--io` has it.
    fn design(&self) -> &'static str;

    /// Ends: submits what is filled, reaps, stops the design's threads, and counts what has not left as
    /// [`crate::drops::Cause::Shutdown`]. Flush until [`Egress::pending`] is zero before, for as long as there is time.
    fn close(&mut self) -> EgressStats;
}
