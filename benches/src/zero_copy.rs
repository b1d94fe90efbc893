//! What zero-copy sends (IORING_OP_SENDMSG_ZC) cost beside copying ones, on the engine's own ring and slots.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::egress::{Port, Target};
use dataplane::sys::ring::{self, ReapHalf, SubmitHalf};
use dataplane::sys::slab::{Slab, Slot};
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};

use crate::process::now;

/// Bytes in a datagram.
const DATAGRAM: usize = 1252;
/// Datagrams in an operation.
const SEGMENTS: [usize; 3] = [1, 10, 50];
/// Datagrams in a submit of single ones; of superpackets one leaves at a time. Twice this fits into the receive buffer
/// that an ordinary user gets, 208 KiB with the kernel's own accounting.
const BATCH: usize = 16;
/// How long notifications may be outstanding: a neighbour that does not answer holds them for 3 s.
const PATIENCE: Duration = Duration::from_secs(5);

/// One kind of operation, both ways.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Datagrams in an operation.
    pub segments: usize,
    /// CPU nanoseconds per datagram of each turn, copying.
    pub copying: Vec<f64>,
    /// The same, zero-copy.
    pub zero_copy: Vec<f64>,
    /// Share of the zero-copy operations that the kernel copied after all, as it says itself.
    pub copied: f64,
}

/// Where the datagrams go.
pub enum Sink {
    /// To a socket here that is emptied after each submit, at the same thread's cost.
    Here(UdpSocket, ReceiveBatch),
    /// Somewhere else; nobody looks whether they arrive.
    There(SocketAddr),
}

impl Sink {
    /// A socket on loopback.
    ///
    /// # Errors
    /// What bind(2) answers.
    pub fn here() -> anyhow::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self::Here(UdpSocket::bind(any, &UdpOptions::default())?, ReceiveBatch::new(BATCH, RECEIVE_LEN)))
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Here(socket, _) => socket.local_addr(),
            Self::There(address) => *address,
        }
    }

    /// Takes what has arrived; the answer is how many bytes that were.
    fn empty(&mut self) -> anyhow::Result<usize> {
        let Self::Here(socket, batch) = self else { return Ok(0) };
        let mut bytes = 0;
        loop {
            let taken = socket.receive_batch(batch)?;
            bytes += batch.iter_mut().map(|arrival| arrival.bytes.len()).sum::<usize>();
            if taken < BATCH {
                return Ok(bytes);
            }
        }
    }
}

/// Sends to `sink` in turns of `duration`, copying and not, `runs` times for each kind of operation.
///
/// # Errors
/// When there is no ring, a send fails, or a notification does not come.
pub fn compare(sink: &mut Sink, runs: usize, duration: Duration) -> anyhow::Result<Vec<Compared>> {
    let unspecified = match sink.address() {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    };
    let source = UdpSocket::bind(unspecified, &UdpOptions::default())?;
    let (slab, mut slots) = Slab::new(BATCH)?;
    let slab = Arc::new(slab);
    let (mut submit, mut reap) = ring::new(slab.clone(), BATCH).context(NO_RING)?;
    for slot in &mut slots {
        slab.bytes(slot).fill(0x5a);
    }
    SEGMENTS
        .iter()
        .map(|&segments| {
            let (mut copying, mut zero_copy) = (Vec::new(), Vec::new());
            let (mut copied, mut operations) = (reap.copied(), 0);
            for _ in 0..runs {
                for (without_copy, turns) in [(false, &mut copying), (true, &mut zero_copy)] {
                    let turn = Turn { segments, without_copy, duration };
                    let (cost, sent) = turn.run(&source, sink, &mut slots, &mut submit, &mut reap)?;
                    turns.push(cost);
                    operations += if without_copy { sent } else { 0 };
                }
            }
            copied = reap.copied() - copied;
            Ok(Compared { segments, copying, zero_copy, copied: copied as f64 / operations as f64 })
        })
        .collect()
}

/// What is said where there is no ring.
const NO_RING: &str = "io_uring is not available (sysctl kernel.io_uring_disabled=0)";

struct Turn {
    segments: usize,
    without_copy: bool,
    duration: Duration,
}

impl Turn {
    /// CPU nanoseconds of this thread for each datagram, and the operations that it took.
    fn run(
        &self,
        source: &UdpSocket,
        sink: &mut Sink,
        slots: &mut Vec<Slot>,
        submit: &mut SubmitHalf,
        reap: &mut ReapHalf,
    ) -> anyhow::Result<(f64, u64)> {
        let target =
            Target { port: Port(0), to: sink.address(), from: None, traffic_class: 0, dont_fragment: false };
        let (fd, len) = (source.fd().as_fd(), DATAGRAM * self.segments);
        let until = now() + self.duration;
        let operations = if self.segments == 1 { BATCH } else { 1 };
        let before = cpu_nanoseconds()?;
        let mut sent = 0;
        while now() < until {
            for slot in slots.drain(BATCH - operations..) {
                match self.without_copy {
                    true => submit.push_send_zero_copy(slot, fd, &target, len, DATAGRAM),
                    false => submit.push_send(slot, fd, &target, len, DATAGRAM, false),
                }
            }
            submit.submit()?;
            let arrived = sink.empty()?;
            if matches!(sink, Sink::Here(..)) && arrived != len * operations {
                bail!("{arrived} of {} bytes arrived", len * operations);
            }
            self.take_back(slots, reap)?;
            sent += operations as u64;
        }
        let datagrams = (sent as usize * self.segments) as f64;
        Ok(((cpu_nanoseconds()? - before) / datagrams, sent))
    }

    fn take_back(&self, slots: &mut Vec<Slot>, reap: &mut ReapHalf) -> anyhow::Result<()> {
        let deadline = now() + PATIENCE;
        let mut failed = None;
        loop {
            reap.reap(|slot, result| {
                failed = failed.or((result < 0).then_some(result));
                slots.push(slot);
            });
            if slots.len() == BATCH {
                break;
            }
            if now() > deadline {
                bail!("{} slots have not come back", BATCH - slots.len());
            }
            reap.wait(Duration::from_millis(100))?;
        }
        match failed {
            Some(error) => Err(std::io::Error::from_raw_os_error(-error))
                .with_context(|| format!("{} datagrams of {DATAGRAM} B in one operation", self.segments)),
            None => Ok(()),
        }
    }
}

/// CPU time of the calling thread, as the scheduler counts it: proc(5), exact to a tick.
pub(crate) fn cpu_nanoseconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split_whitespace().next().context("/proc/thread-self/schedstat is empty")?;
    Ok(first.parse()?)
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ratios: Vec<f64> = self
            .zero_copy
            .iter()
            .zip(&self.copying)
            .map(|(zero_copy, copying)| zero_copy / copying)
            .collect();
        let (mut copying, mut zero_copy) = (self.copying.clone(), self.zero_copy.clone());
        for values in [&mut ratios, &mut copying, &mut zero_copy] {
            values.sort_by(f64::total_cmp);
        }
        let middle = self.copying.len() / 2;
        let (least, most) = (ratios.first().unwrap_or(&f64::NAN), ratios.last().unwrap_or(&f64::NAN));
        write!(
            f,
            "{:>10} {:>14.0} {:>14.0} {:>8.2} {:>15} {:>9.1} %",
            self.segments,
            copying[middle],
            zero_copy[middle],
            ratios[middle],
            format!("{least:.2} to {most:.2}"),
            self.copied * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_arrive_and_give_their_slots_back() {
        let mut sink = Sink::here().expect("a socket");
        match compare(&mut sink, 1, Duration::from_millis(20)) {
            Ok(compared) => {
                assert_eq!(compared.len(), SEGMENTS.len());
                for it in compared {
                    assert!(it.copying[0] > 0.0 && it.zero_copy[0] > 0.0, "{it}");
                    assert!(it.copied > 0.99, "on loopback the kernel copies what the receiver gets: {it}");
                }
            }
            Err(error) => {
                let no_ring =
                    error.to_string() == NO_RING && std::env::var_os("TOWPATH_REQUIRE_ALL").is_none();
                assert!(no_ring, "{error:#}");
                // Not by a macro, whose output the test runner hides.
                let message = format!("left out: {error:#}\n");
                let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
            }
        }
    }
}
