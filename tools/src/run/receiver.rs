//! Receives what comes back: books every datagram and measures its latency.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dataplane::ingress::Meta;
use dataplane::sys::transmit_stamps::Stamp;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};
use hdrhistogram::Histogram;

use super::clock::{Offset, monotonic_ns};
use super::distribution::histogram;
use super::intervals::Intervals;
use super::ledger::{Arrival, Arrivals};
use super::live::Recorder;
use super::payload::{self, Header, Parsed, Phase};
use super::sender::Timing;
use super::spec::RunSpec;
use super::transmit::Came;
use crate::epoll::Watch;

/// Superpackets taken from a socket in one system call.
const BATCH: usize = 32;
/// Messages taken from the error queue of a socket at a time.
const STAMPS_AT_ONCE: usize = 64;
/// Longest wait without looking at the clock and the end of the run.
const WAIT_NS: u64 = 5_000_000;
/// Shortest and longest time after the drain in which a datagram is still booked, as late; half the drain in between.
const LINGER_NS: (u64, u64) = (100_000_000, 1_000_000_000);
/// Silence after which a run without losses ends before its drain does.
const QUIET_NS: u64 = 100_000_000;

/// What the threads of a run tell each other.
///
/// ```text
///  sender        warm-up ─► is_warm ─────────── waits ───────────► measured sending
///  main thread                 └─► reads what was so far ─► start_ns ─┘
/// ```
#[derive(Debug, Default)]
pub struct Shared {
    /// Whether the warm-up has been sent.
    pub is_warm: AtomicBool,
    /// When measured sending begins (0 until that is known): what was dropped and used until then has been read by then.
    pub start_ns: AtomicU64,
    /// When the last datagram left (0 until then).
    pub sender_done_ns: AtomicU64,
    /// Measured datagrams that were sent; valid once `sender_done_ns` is set.
    pub sent: AtomicU64,
    /// Set when the main receiver has ended, for the peer thread.
    pub finished: AtomicBool,
}

impl Shared {
    /// When measured sending begins, once that is known.
    #[must_use]
    pub fn start(&self) -> Option<u64> {
        let start_ns = self.start_ns.load(Ordering::Acquire);
        (start_ns > 0).then_some(start_ns)
    }

    /// When the last datagram left, once it has.
    #[must_use]
    pub fn ended(&self) -> Option<u64> {
        let ended_ns = self.sender_done_ns.load(Ordering::Acquire);
        (ended_ns > 0).then_some(ended_ns)
    }
}

/// When something arrived (CLOCK_MONOTONIC, nanoseconds).
#[derive(Clone, Copy, Debug)]
pub(super) struct When {
    /// Here.
    pub arrived_ns: u64,
    /// In the kernel, where it says so; of a stream, when it had come at the latest.
    pub kernel_ns: Option<u64>,
    /// Whether the drain was over.
    pub late: bool,
    /// When measured sending began, or will; `None` while that is not known.
    pub start_ns: Option<u64>,
    /// When the last datagram left; `None` until then.
    pub ended_ns: Option<u64>,
}

impl When {
    /// How late it was read, in nanoseconds; `None` where the kernel does not say when it came.
    pub fn lateness_ns(&self) -> Option<u64> {
        Some(self.arrived_ns.saturating_sub(self.kernel_ns?).max(1))
    }

    /// Whether a harmed datagram may be one of those that count: it cannot say so itself.
    pub fn harmed_may_count(&self, datagram: &[u8]) -> bool {
        let begun = self.start_ns.is_some_and(|start_ns| self.arrived_ns >= start_ns);
        begun && !payload::claims_warmup(datagram)
    }
}

/// Takes the payloads out of what arrives on a socket: nothing to do for plain UDP, the TURN client for a relay.
pub trait Framing {
    /// The payload in `datagram`, if it carries one. `socket` is the index of the socket it arrived on.
    fn payload<'a>(&'a mut self, socket: usize, datagram: &'a [u8]) -> Option<&'a [u8]>;

    /// Called at least every 5 ms: timers and control messages.
    fn tick(&mut self);
}

/// Payloads as they are.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Framing for Plain {
    fn payload<'a>(&'a mut self, _socket: usize, datagram: &'a [u8]) -> Option<&'a [u8]> {
        Some(datagram)
    }

    fn tick(&mut self) {}
}

/// Books and measures what comes back.
#[derive(Debug)]
pub struct Receiver {
    /// Every flow's arrivals.
    pub arrivals: Arrivals,
    /// Arrival less intended send time.
    pub response: Histogram<u64>,
    /// Arrival less actual send time.
    pub service: Histogram<u64>,
    /// Arrival less the in-process peer's send time.
    pub down: Histogram<u64>,
    /// Arrival in this host's kernel less actual send time; empty without its time stamps.
    pub kernel: Histogram<u64>,
    /// Arrival less arrival in this host's kernel: the receiver's own lateness.
    pub lateness: Histogram<u64>,
    /// Arrival less the time of the last send, of what came after that.
    pub tail: Histogram<u64>,
    /// Stamps of what the device has taken.
    pub(super) came: Came,
    /// Response by time of arrival, where there is a log for it.
    pub intervals: Option<Intervals>,
    /// Datagrams that arrived before they were sent.
    pub clock_backwards: u64,
    /// Arrivals with this run's id that the schedule does not have.
    pub unknown: u64,
    /// Bytes of payload that arrived in time, each datagram counted once.
    pub bytes: u64,
    /// Datagrams of the largest superpacket that arrived.
    pub segments_max: usize,
    /// Datagrams that came back after one which the peer had sent later.
    pub down_reordered: u64,
    run_id: u64,
    start_ns: u64,
    last_arrival_ns: u64,
    live: Option<Recorder>,
    /// Latest return stamp of each flow.
    turned_ns: Vec<u64>,
}

impl Receiver {
    /// A receiver for a schedule with `intended_by_flow` datagrams; allocates all it will need.
    #[must_use]
    pub fn new(spec: &RunSpec, run_id: u64, timing: Timing, intended_by_flow: &[u64]) -> Self {
        Self {
            arrivals: Arrivals::new(intended_by_flow),
            response: histogram(),
            service: histogram(),
            down: histogram(),
            kernel: histogram(),
            lateness: histogram(),
            tail: histogram(),
            came: Came::new(spec),
            intervals: None,
            clock_backwards: 0,
            unknown: 0,
            bytes: 0,
            segments_max: 0,
            down_reordered: 0,
            turned_ns: vec![0; intended_by_flow.len()],
            run_id,
            start_ns: timing.start_ns,
            last_arrival_ns: 0,
            live: spec.live.as_ref().and_then(|live| Recorder::new(live, timing.start_ns)),
        }
    }

    /// Receives until the drain is over: the set time after the last send, or earlier when every datagram has arrived
    /// and 100 ms were silent. What comes soon after the drain is booked as late.
    ///
    /// # Errors
    /// What epoll(7) answers.
    pub fn run<F: Framing>(
        &mut self,
        sockets: &[UdpSocket],
        framing: &mut F,
        drain_ns: u64,
        shared: &Shared,
    ) -> std::io::Result<()> {
        let mut poller = Poller::new(sockets)?;
        let offset = Offset::read();
        while let Some(late_after_ns) = self.goes_on(drain_ns, shared) {
            poller.receive_superpackets(sockets, |socket, arrival, segment_size, arrived_ns| {
                let kernel_ns = arrival.stamp_ns.map(|stamp| offset.to_monotonic(stamp));
                let late = arrived_ns > late_after_ns;
                let (start_ns, ended_ns) = (shared.start(), shared.ended());
                let when = When { arrived_ns, kernel_ns, late, start_ns, ended_ns };
                let segments = arrival.bytes.chunks(segment_size.max(1));
                self.segments_max = self.segments_max.max(segments.len());
                for datagram in segments {
                    let Some(payload) = framing.payload(socket, datagram) else { continue };
                    self.handle(payload, when);
                }
            })?;
            if self.came.is_waiting() {
                poller.take_stamps(sockets, |socket, stamp| self.came.take(socket, stamp, offset));
            }
            framing.tick();
            self.show();
        }
        Ok(())
    }

    /// Lets whoever looks at the run see what came so far.
    pub(super) fn show(&mut self) {
        let Some(live) = &mut self.live else { return };
        let now = monotonic_ns();
        if live.is_due(now) {
            live.exchange(self.arrivals.overtaken(), now);
        }
    }

    /// Until when arrivals are in time, or `None` when there is nothing more to wait for.
    pub(super) fn goes_on(&self, drain_ns: u64, shared: &Shared) -> Option<u64> {
        let done = shared.sender_done_ns.load(Ordering::Acquire);
        if done == 0 {
            return Some(u64::MAX);
        }
        let now = monotonic_ns();
        let linger_ns = (drain_ns / 2).clamp(LINGER_NS.0, LINGER_NS.1);
        let all = self.arrivals.unique() == shared.sent.load(Ordering::Relaxed);
        let quiet = now.saturating_sub(done.max(self.last_arrival_ns)) > QUIET_NS;
        let over = now > done + drain_ns + linger_ns || (all && quiet);
        (!over).then_some(done + drain_ns)
    }

    /// Books what arrived.
    pub(super) fn handle(&mut self, datagram: &[u8], when: When) {
        match payload::parse(datagram) {
            Parsed::Good(header) if header.run_id == self.run_id && header.phase == Phase::Measured => {
                self.begin(when);
                self.last_arrival_ns = when.arrived_ns;
                self.book(&header, datagram.len(), when);
            }
            Parsed::Corrupt if when.harmed_may_count(datagram) => self.arrivals.corrupt(),
            Parsed::Corrupt | Parsed::Good(_) | Parsed::Foreign => {}
        }
    }

    /// Measured sending may have begun later than planned.
    fn begin(&mut self, when: When) {
        if let Some(start_ns) = when.start_ns.filter(|&start_ns| start_ns != self.start_ns) {
            self.start_ns = start_ns;
            if let Some(live) = &mut self.live {
                live.begin(start_ns);
            }
        }
    }

    fn book(&mut self, header: &Header, size: usize, when: When) {
        match self.arrivals.arrive(header.flow, header.seq, when.late) {
            Arrival::First => {
                self.bytes += size as u64;
                self.order(header);
                self.measure(header, when);
            }
            Arrival::Late => self.order(header),
            Arrival::Unknown => self.unknown += 1,
            Arrival::Duplicate => {}
        }
    }

    /// The peer's stamps rise with each datagram it returns, so a lower one after a higher one was overtaken.
    fn order(&mut self, header: &Header) {
        let latest = &mut self.turned_ns[header.flow as usize];
        if header.turned_ns < *latest {
            self.down_reordered += 1;
        }
        *latest = header.turned_ns.max(*latest);
    }

    fn measure(&mut self, header: &Header, when: When) {
        let now = when.arrived_ns;
        if now < header.actual_ns || now < header.turned_ns {
            self.clock_backwards += 1;
        }
        let response = now.saturating_sub(header.intended_ns).max(1);
        self.response.saturating_record(response);
        let service = now.saturating_sub(header.actual_ns).max(1);
        self.service.saturating_record(service);
        if let Some(kernel_ns) = when.kernel_ns {
            self.kernel.saturating_record(kernel_ns.saturating_sub(header.actual_ns).max(1));
        }
        if let Some(lateness_ns) = when.lateness_ns() {
            self.lateness.saturating_record(lateness_ns);
        }
        if let Some(ended_ns) = when.ended_ns {
            self.tail.saturating_record(now.saturating_sub(ended_ns).max(1));
        }
        if let Some(live) = &mut self.live {
            live.record(response, service);
        }
        if header.returned {
            self.down.saturating_record(now.saturating_sub(header.turned_ns).max(1));
        }
        if let Some(intervals) = &mut self.intervals {
            intervals.record(now.saturating_sub(self.start_ns), response);
        }
    }
}

/// Waits for any of many sockets and takes one batch from each that is ready.
pub struct Poller {
    watch: Watch,
    batch: ReceiveBatch,
}

impl Poller {
    /// Watches `sockets`; the index in this slice names them later.
    ///
    /// # Errors
    /// What epoll_create1(2) and epoll_ctl(2) answer.
    pub fn new(sockets: &[UdpSocket]) -> std::io::Result<Self> {
        let watch = Watch::new(sockets.iter().map(UdpSocket::fd))?;
        Ok(Self { watch, batch: ReceiveBatch::new(BATCH, RECEIVE_LEN) })
    }

    /// Waits up to 5 ms, then hands over each datagram (superpackets split) with the index of its socket and its time
    /// of arrival: when its batch was taken from the kernel.
    ///
    /// # Errors
    /// What epoll_wait(2) answers, other than EINTR.
    pub fn receive(
        &mut self,
        sockets: &[UdpSocket],
        mut datagram: impl FnMut(usize, &[u8], u64),
    ) -> std::io::Result<()> {
        self.receive_superpackets(sockets, |socket, arrival, segment_size, now| {
            for segment in arrival.bytes.chunks(segment_size.max(1)) {
                datagram(socket, segment, now);
            }
        })
    }

    /// The same with superpackets whole: index of the socket, the arrival, its segment size, its time.
    ///
    /// # Errors
    /// As [`Poller::receive`].
    pub fn receive_superpackets(
        &mut self,
        sockets: &[UdpSocket],
        superpacket: impl FnMut(usize, dataplane::sys::udp::Arrival<'_>, usize, u64),
    ) -> std::io::Result<()> {
        self.receive_superpackets_within(WAIT_NS, sockets, superpacket)
    }

    /// Takes stamps of what the device has taken off the error queues of those sockets that the last wait found ready, some of
    /// each: what is left makes them ready again.
    pub fn take_stamps(&self, sockets: &[UdpSocket], mut each: impl FnMut(usize, Stamp)) {
        for index in self.watch.with_errors() {
            sockets[index].take_stamps(STAMPS_AT_ONCE, |stamp| each(index, stamp));
        }
    }

    /// The same with a wait of up to `wait_ns`, and of 5 ms at most.
    ///
    /// # Errors
    /// As [`Poller::receive`].
    pub fn receive_superpackets_within(
        &mut self,
        wait_ns: u64,
        sockets: &[UdpSocket],
        mut superpacket: impl FnMut(usize, dataplane::sys::udp::Arrival<'_>, usize, u64),
    ) -> std::io::Result<()> {
        self.watch.wait(wait_ns.min(WAIT_NS))?;
        for index in self.watch.ready() {
            // An error here is an ICMP message about an earlier send; what was lost shows in the ledger.
            if sockets[index].receive_batch(&mut self.batch).is_err() {
                continue;
            }
            let now = monotonic_ns();
            for arrival in self.batch.iter_mut() {
                let Some(Meta::Udp { segment_size, .. }) = arrival.meta else { continue };
                superpacket(index, arrival, segment_size, now);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::peer::Books;
    use crate::run::{Kind, RunSpec};

    /// A datagram with a bit of its filling changed.
    fn harmed(phase: Phase) -> Vec<u8> {
        let mut datagram = vec![0; 100];
        let header = Header {
            phase,
            returned: false,
            run_id: 5,
            flow: 0,
            seq: 0,
            intended_ns: 1,
            actual_ns: 1,
            turned_ns: 0,
        };
        payload::write(&mut datagram, &header);
        datagram[80] ^= 4;
        datagram
    }

    #[test]
    fn what_the_warm_up_had_harmed_does_not_count() {
        let timing = Timing { warmup_ns: 0, warmup_end_ns: 500, start_ns: 500, end_ns: 1_500 };
        let spec = RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap());
        let mut receiver = Receiver::new(&spec, 5, timing, &[10]);
        let mut books = Books::new(5, &[10]);
        let mut arrive = |phase, arrived_ns, start_ns| {
            let when = When { arrived_ns, kernel_ns: None, late: false, start_ns, ended_ns: None };
            receiver.handle(&harmed(phase), when);
            books.handle(&mut harmed(phase), when);
            let count = |arrivals: &Arrivals| arrivals.close(&[]).1.corrupt;
            (count(&receiver.arrivals), count(&books.arrivals))
        };
        assert_eq!(arrive(Phase::Measured, 400, None), (0, 0), "before the start is known");
        assert_eq!(arrive(Phase::Measured, 999, Some(1_000)), (0, 0), "before the start");
        assert_eq!(arrive(Phase::Warmup, 1_200, Some(1_000)), (0, 0), "a straggler");
        assert_eq!(arrive(Phase::Measured, 1_000, Some(1_000)), (1, 1));
    }
}
