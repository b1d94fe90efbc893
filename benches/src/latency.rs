//! How late datagrams are: one way, or there and back, counted from the time at which each was to be sent, so that a
//! sender that was held up hides nothing.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dataplane::ingress::Meta;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::load::Flow;
use crate::process::now;

/// A mark, so that nothing else counts as ours, and when the datagram was to leave, in nanoseconds since the start.
///
/// ```text
///  0        8        16
/// ┌────────┬────────┬─────
/// │ mark   │ due_ns │ fill
/// └────────┴────────┴─────
/// ```
const STAMP_LEN: usize = 16;
const MARK: u64 = 0x746f_7770_6174_6831;
/// How long the last datagrams may take.
const LAST_PATIENCE: Duration = Duration::from_millis(300);
/// How often threads look whether it is over.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A flow whose datagrams are timed.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Datagrams a second, evenly.
    pub rate: u64,
    /// Bytes in a datagram, before the flow's header.
    pub size: usize,
    /// How long.
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// In nanoseconds.
    histogram: Histogram<u64>,
    /// Datagrams sent.
    pub sent: u64,
}

impl Latencies {
    /// The smallest latency that `share` of the datagrams that arrived did not exceed, in microseconds.
    #[must_use]
    pub fn microseconds(&self, share: f64) -> f64 {
        self.histogram.value_at_quantile(share) as f64 / 1e3
    }

    /// The share of the datagrams that did not arrive.
    #[must_use]
    pub fn lost(&self) -> f64 {
        1.0 - self.arrived() as f64 / self.sent.max(1) as f64
    }

    /// Datagrams that arrived.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.histogram.len()
    }
}

/// Sends `probe` over `flow` and times what arrives at `sink`. With `echo`, that socket is the far end and sends everything
/// back; `sink` is then the flow's own socket.
///
/// # Errors
/// When no thread can be had, or the size has no room for a stamp.
pub fn run(probe: Probe, flow: &Flow, echo: Option<&UdpSocket>, sink: &UdpSocket) -> io::Result<Latencies> {
    if probe.size < STAMP_LEN {
        return Err(io::Error::other("a timed datagram has at least 16 bytes"));
    }
    let (stop, start) = (AtomicBool::new(false), now());
    std::thread::scope(|scope| {
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        if let Some(echo) = echo {
            // Owns nothing; ends with `stop`.
            named("bench-echo").spawn_scoped(scope, || reflect(echo, &stop))?;
        }
        // Owns the histogram; ends with `stop`.
        let receiver = named("bench-times").spawn_scoped(scope, || receive(sink, start, &stop));
        let receiver = receiver.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        // On a thread of its own, since the timer slack of the calling one is not ours to change.
        let sender = named("bench-probe").spawn_scoped(scope, || send(probe, flow, start));
        let sent = sender.map(|sender| sender.join());
        std::thread::sleep(LAST_PATIENCE);
        stop.store(true, Ordering::Relaxed);
        let panicked = |_| io::Error::other("a thread of the measurement panicked");
        let (sent, histogram) = (sent?.map_err(panicked)?, receiver.join().map_err(panicked)?);
        Ok(Latencies { histogram, sent })
    })
}

fn send(probe: Probe, flow: &Flow, start: Instant) -> u64 {
    // Where it is refused, sleeps are 50 µs longer, for every side alike.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let mut bytes = [flow.header.as_slice(), &vec![0; probe.size]].concat();
    let count = (probe.rate as f64 * probe.duration.as_secs_f64()) as u64;
    let mut sent = 0;
    for index in 0..count {
        let due = Duration::from_secs_f64(index as f64 / probe.rate as f64);
        loop {
            let elapsed = start.elapsed();
            if elapsed >= due {
                break;
            }
            std::thread::sleep(due - elapsed);
        }
        stamp(&mut bytes[flow.header.len()..], due);
        let len = bytes.len();
        // What a full send buffer refuses never left; the share that arrived is of those that did.
        sent += u64::from(flow.socket.send_segments(flow.to, None, 0, &bytes, len).is_ok());
    }
    sent
}

fn stamp(payload: &mut [u8], due: Duration) {
    payload[..8].copy_from_slice(&MARK.to_be_bytes());
    payload[8..STAMP_LEN].copy_from_slice(&(due.as_nanos() as u64).to_be_bytes());
}

/// When the datagram was to be sent, if it is one of ours.
fn stamped(datagram: &[u8]) -> Option<Duration> {
    let rest = datagram.strip_prefix(&MARK.to_be_bytes())?;
    Some(Duration::from_nanos(u64::from_be_bytes(rest.get(..8)?.try_into().ok()?)))
}

/// Calls `each` with what arrives until it is over.
fn arrivals(socket: &UdpSocket, stop: &AtomicBool, mut each: impl FnMut(Meta, &[u8])) {
    let mut batch = ReceiveBatch::new(16, RECEIVE_LEN);
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::from_borrowed_fd(socket.fd().as_fd(), PollFlags::IN)];
        // EINTR only means an early look.
        let _ = poll(&mut fds, Some(&LOOK));
        while socket.receive_batch(&mut batch).is_ok_and(|count| count > 0) {
            for arrival in batch.iter_mut() {
                if let Some(meta) = arrival.meta {
                    each(meta, arrival.bytes);
                }
            }
        }
    }
}

fn receive(sink: &UdpSocket, start: Instant, stop: &AtomicBool) -> Histogram<u64> {
    // A minute in nanoseconds with three digits; the bounds are constant and in order.
    let mut histogram =
        Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds are in order");
    arrivals(sink, stop, |meta, bytes| {
        let Meta::Udp { segment_size, .. } = meta else { return };
        let arrived = start.elapsed();
        for due in bytes.chunks(segment_size.max(1)).filter_map(stamped) {
            histogram.saturating_record(arrived.saturating_sub(due).as_nanos() as u64);
        }
    });
    histogram
}

fn reflect(echo: &UdpSocket, stop: &AtomicBool) {
    arrivals(echo, stop, |meta, bytes| {
        let Meta::Udp { from, segment_size, .. } = meta else { return };
        // A full send buffer loses the answer, which is then missing at the sink.
        let _ = echo.send_segments(from, None, 0, bytes, segment_size);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::sys::udp::UdpOptions;

    fn socket() -> UdpSocket {
        let options = UdpOptions { packet_info: false, ..UdpOptions::default() };
        UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap()
    }

    fn probe() -> Probe {
        Probe { rate: 1_000, size: 64, duration: Duration::from_millis(100) }
    }

    #[test]
    fn every_datagram_is_timed_once_there_and_back() {
        let (near, far) = (socket(), socket());
        let flow = Flow { socket: near.clone(), to: far.local_addr(), header: Vec::new() };
        let latencies = run(probe(), &flow, Some(&far), &near).unwrap();
        assert_eq!((latencies.sent, latencies.arrived()), (100, 100));
        let (middle, longest) = (latencies.microseconds(0.5), latencies.microseconds(1.0));
        assert!(middle > 0.0 && middle <= longest && longest < 5e6, "{middle} {longest}");
    }

    #[test]
    fn what_arrives_without_a_stamp_does_not_count() {
        let (near, far) = (socket(), socket());
        let flow = Flow { socket: near, to: far.local_addr(), header: b"head".to_vec() };
        // The header stays in front, where the stamp would be: nobody has taken it away.
        let latencies = run(probe(), &flow, None, &far).unwrap();
        assert_eq!((latencies.sent, latencies.arrived()), (100, 0));
    }

    #[test]
    fn lateness_counts_from_the_time_at_which_it_was_due() {
        let (near, far) = (socket(), socket());
        let mut datagram = [0; 64];
        stamp(&mut datagram, Duration::from_millis(5));
        let start = now().checked_sub(Duration::from_millis(105)).unwrap();
        near.send_segments(far.local_addr(), None, 0, &datagram, 64).unwrap();
        let stop = AtomicBool::new(false);
        let histogram = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&far, start, &stop));
            std::thread::sleep(Duration::from_millis(80));
            stop.store(true, Ordering::Relaxed);
            receiver.join().unwrap()
        });
        assert_eq!(histogram.len(), 1);
        assert!((100_000_000..2_000_000_000).contains(&histogram.max()), "{}", histogram.max());
    }
}
