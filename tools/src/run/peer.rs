//! The far end of the TURN kinds, in this process so that one clock serves both ways: books what arrives and sends each
//! datagram back once.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use dataplane::sys::udp::UdpSocket;
use hdrhistogram::Histogram;

use super::clock::{Offset, monotonic_ns};
use super::distribution::histogram;
use super::ledger::{Arrival, Arrivals, Sent};
use super::payload::{self, Header, Parsed, Phase};
use super::receiver::{Poller, Shared, When};
use super::spec::GSO_SEGMENTS_MAX;

/// Books and returns what arrives.
pub(super) struct Peer<'a> {
    sockets: &'a [UdpSocket],
    poller: Poller,
    offset: Offset,
    books: Books,
}

/// What the peer finds.
pub(super) struct Books {
    /// Every flow's arrivals.
    pub arrivals: Arrivals,
    /// Arrival less intended send time.
    pub up: Histogram<u64>,
    /// Arrival less arrival in this host's kernel: the peer's own lateness.
    pub lateness: Histogram<u64>,
    /// What was sent back, by flow.
    pub sent: Vec<Sent>,
    /// Datagrams that arrived before they were sent.
    pub clock_backwards: u64,
    /// Arrivals with this run's id that the schedule does not have.
    pub unknown: u64,
    /// Datagrams of the largest superpacket that arrived, or was sent back.
    pub segments_max: usize,
    run_id: u64,
    /// Return stamps rise strictly, so that they also tell the order of sending.
    last_turned_ns: u64,
    /// Datagrams to return in one send, side by side, all of one length, with the flows of the measured ones.
    out: Vec<u8>,
    out_size: usize,
    out_flows: Vec<u32>,
}

impl<'a> Peer<'a> {
    /// A peer on `sockets` that keeps `books`.
    pub(super) fn new(sockets: &'a [UdpSocket], books: Books) -> io::Result<Self> {
        Ok(Self { sockets, poller: Poller::new(sockets)?, offset: Offset::read(), books })
    }

    /// Returns what arrives until the main receiver has finished.
    pub(super) fn run(mut self, drain_ns: u64, shared: &Shared) -> io::Result<Books> {
        while !shared.finished.load(Ordering::Acquire) {
            let done = shared.sender_done_ns.load(Ordering::Acquire);
            self.poll(if done == 0 { u64::MAX } else { done + drain_ns }, shared)?;
        }
        Ok(self.books)
    }

    /// Waits up to 5 ms and returns what arrives; after `late_after_ns` it is late.
    pub(super) fn poll(&mut self, late_after_ns: u64, shared: &Shared) -> io::Result<()> {
        let Self { sockets, poller, offset, books } = self;
        poller.receive_superpackets(sockets, |index, arrival, segment_size, now| {
            let Some(dataplane::ingress::Meta::Udp { from, .. }) = arrival.meta else { return };
            let late = now > late_after_ns;
            let (start_ns, ended_ns) = (shared.start(), shared.ended());
            let kernel_ns = arrival.stamp_ns.map(|stamp| offset.to_monotonic(stamp));
            let when = When { arrived_ns: now, kernel_ns, late, start_ns, ended_ns };
            let segments = arrival.bytes.chunks_mut(segment_size.max(1));
            books.segments_max = books.segments_max.max(segments.len());
            for datagram in segments {
                if !books.has_room(datagram.len()) {
                    books.give_back(&sockets[index], from);
                }
                books.handle(datagram, when);
            }
            books.give_back(&sockets[index], from);
        })
    }
}

/// Stands in [`Books::out_flows`] for a datagram that no ledger counts.
const UNCOUNTED: u32 = u32::MAX;

impl Books {
    /// Empty books for a schedule with `intended_by_flow` datagrams.
    pub(super) fn new(run_id: u64, intended_by_flow: &[u64]) -> Self {
        Self {
            arrivals: Arrivals::new(intended_by_flow),
            up: histogram(),
            lateness: histogram(),
            sent: vec![Sent::default(); intended_by_flow.len()],
            clock_backwards: 0,
            unknown: 0,
            segments_max: 0,
            run_id,
            last_turned_ns: 0,
            out: Vec::with_capacity(65_536),
            out_size: 0,
            out_flows: Vec::with_capacity(GSO_SEGMENTS_MAX as usize),
        }
    }

    /// Whether a datagram of `len` bytes can leave together with those that wait.
    fn has_room(&self, len: usize) -> bool {
        self.out.is_empty() || (len == self.out_size && self.out_flows.len() < GSO_SEGMENTS_MAX as usize)
    }

    pub(super) fn handle(&mut self, datagram: &mut [u8], when: When) {
        let now = when.arrived_ns;
        let header = match payload::parse(datagram) {
            Parsed::Good(header) if header.run_id == self.run_id && !header.returned => header,
            Parsed::Corrupt if when.harmed_may_count(datagram) => {
                self.arrivals.corrupt();
                return;
            }
            Parsed::Corrupt | Parsed::Good(_) | Parsed::Foreign => return,
        };
        let counted = header.phase == Phase::Measured;
        if counted {
            match self.arrivals.arrive(header.flow, header.seq, when.late) {
                Arrival::First => {
                    self.clock_backwards += u64::from(now < header.actual_ns);
                    self.up.saturating_record(now.saturating_sub(header.intended_ns).max(1));
                    if let Some(lateness_ns) = when.lateness_ns() {
                        self.lateness.saturating_record(lateness_ns);
                    }
                }
                Arrival::Late => {}
                Arrival::Duplicate => return,
                Arrival::Unknown => {
                    self.unknown += 1;
                    return;
                }
            }
        }
        self.last_turned_ns = monotonic_ns().max(self.last_turned_ns + 1);
        payload::write(datagram, &Header { returned: true, turned_ns: self.last_turned_ns, ..header });
        self.out.extend_from_slice(datagram);
        self.out_size = datagram.len();
        self.out_flows.push(if counted { header.flow } else { UNCOUNTED });
    }

    /// Sends what has gathered in one superpacket.
    fn give_back(&mut self, socket: &UdpSocket, to: SocketAddr) {
        if self.out.is_empty() {
            return;
        }
        self.segments_max = self.segments_max.max(self.out_flows.len());
        let accepted = socket.send_segments(to, None, 0, &self.out, self.out_size).is_ok();
        for &flow in self.out_flows.iter().filter(|&&flow| flow != UNCOUNTED) {
            let sent = &mut self.sent[flow as usize];
            if accepted {
                sent.sent += 1;
            } else {
                sent.refused += 1;
            }
        }
        self.out.clear();
        self.out_flows.clear();
    }
}
