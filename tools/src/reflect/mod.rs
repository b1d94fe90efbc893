//! The far end: sends every datagram back where it came from, superpackets whole. On request it harms them instead, by
//! a seeded plan and datagram by datagram, and keeps a log of what it did: the known answer for who counts on the other side.
//!
//! ```text
//!  socket ─► Queue (plan, books) ─► socket
//!                └─► Journal
//! ```

pub mod journal;
pub mod plan;
pub mod queue;

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane::ingress::{Meta, Received};
use dataplane::sys::udp::{UdpOptions, UdpSocket};
use rustix::thread::set_current_timer_slack;
use serde::Serialize;

use journal::{Journal, RunTotals};
use plan::Plan;
use queue::{Queue, Way};

use crate::run::Problem;
use crate::run::clock::monotonic_ns;
use crate::run::path::socket_drops;
use crate::run::receiver::Poller;

/// What a reflector did, in datagrams unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Received from the kernel.
    pub received: u64,
    /// Receive operations' worth of them: a superpacket counts once.
    pub superpackets: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Sent back.
    pub reflected: u64,
    /// Not sent back because the kernel refused; there is no queue.
    pub refused: u64,
    /// Dropped by the kernel before they could be received, in skbs (superpackets).
    pub kernel_drops_skbs: u64,
}

/// Sockets that reflect.
pub struct Reflector {
    sockets: Vec<UdpSocket>,
}

impl Reflector {
    /// Binds every address.
    ///
    /// # Errors
    /// [`Problem::Setup`], naming the address and what to do.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, Problem> {
        let bind = |&address: &SocketAddr| {
            // Packet info: on a wildcard address the answer must leave from the address that was asked.
            UdpSocket::bind(address, &UdpOptions::default()).map_err(|error| {
                Problem::Setup(format!("{error}; choose a free port on an address of this host"))
            })
        };
        Ok(Self { sockets: addresses.iter().map(bind).collect::<Result<_, _>>()? })
    }

    /// The bound addresses, with the ports the kernel chose where 0 was asked for.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(UdpSocket::local_addr).collect()
    }

    /// Reflects until `stop` is set or `duration` is over.
    ///
    /// # Errors
    /// What epoll(7) answers.
    pub fn run(&self, duration: Option<Duration>, stop: &AtomicBool) -> std::io::Result<Counts> {
        let end_ns = duration.map(|duration| monotonic_ns().saturating_add(duration.as_nanos() as u64));
        let mut counts = Counts::default();
        let mut poller = Poller::new(&self.sockets)?;
        while !stop.load(Ordering::Relaxed) && end_ns.is_none_or(|end_ns| monotonic_ns() < end_ns) {
            poller.receive_superpackets(&self.sockets, |index, arrival, segment_size, _| {
                let Some(Meta::Udp { from, to, .. }) = arrival.meta else { return };
                let datagrams = arrival.bytes.len().div_ceil(segment_size.max(1)).max(1) as u64;
                counts.received += datagrams;
                counts.superpackets += 1;
                counts.bytes += arrival.bytes.len() as u64;
                let reflected =
                    reflect(&self.sockets[index], from, to, arrival.bytes, segment_size, datagrams);
                counts.reflected += reflected;
                counts.refused += datagrams - reflected;
            })?;
        }
        counts.kernel_drops_skbs = socket_drops(&self.sockets);
        Ok(counts)
    }

    /// As [`Reflector::run`], by a plan; what is done is written to `journal`, if there is one. Also answers what became of
    /// the datagrams of up to 16 runs, of which those that are still kept at the end are given up.
    ///
    /// # Errors
    /// What epoll(7) or the journal's writer answers.
    pub fn run_by_plan<W: Write>(
        &self,
        plan: Plan,
        mut journal: Option<Journal<W>>,
        duration: Option<Duration>,
        stop: &AtomicBool,
    ) -> std::io::Result<(Counts, Vec<RunTotals>)> {
        // A sleeper may else wake 50 µs late; where the kernel does not allow for less, what is kept leaves so much later.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let start_ns = monotonic_ns();
        let end_ns = duration.map(|duration| start_ns.saturating_add(duration.as_nanos() as u64));
        let mut counts = Counts::default();
        let mut poller = Poller::new(&self.sockets)?;
        let mut queue = Queue::new(plan, start_ns);
        while !stop.load(Ordering::Relaxed) && end_ns.is_none_or(|end_ns| monotonic_ns() < end_ns) {
            self.send_due(&mut queue, &mut counts);
            write_entries(&mut queue, journal.as_mut())?;
            let wait_ns =
                queue.poll_timeout().map_or(u64::MAX, |due_ns| due_ns.saturating_sub(monotonic_ns()));
            poller.receive_superpackets_within(
                wait_ns,
                &self.sockets,
                |socket, arrival, segment_size, now| {
                    let Some(Meta::Udp { from, to, .. }) = arrival.meta else { return };
                    counts.superpackets += 1;
                    counts.bytes += arrival.bytes.len() as u64;
                    for datagram in Received::segments(arrival.bytes, segment_size) {
                        counts.received += 1;
                        queue.handle(datagram, Way { socket, to: from, from: to }, now);
                    }
                },
            )?;
        }
        let totals = queue.finish();
        write_entries(&mut queue, journal.as_mut())?;
        if let Some(journal) = journal {
            journal.finish(&totals)?;
        }
        counts.kernel_drops_skbs = socket_drops(&self.sockets);
        Ok((counts, totals))
    }

    /// Sends what is due, so much at a time that the sockets are looked at in between.
    fn send_due(&self, queue: &mut Queue, counts: &mut Counts) {
        for _ in 0..DUE_AT_A_TIME {
            let now = monotonic_ns();
            let Some(kept) = queue.poll_due(now) else { return };
            let (datagram, way) = queue.datagram(kept);
            let sent = self.sockets[way.socket].send_segments(way.to, way.from, 0, datagram, datagram.len());
            if sent.is_ok() {
                counts.reflected += 1;
            } else {
                counts.refused += 1;
            }
            queue.handle_sent(kept, sent.is_ok(), now);
        }
    }
}

/// Datagrams sent between two looks at the sockets.
const DUE_AT_A_TIME: usize = 256;

/// Empties the queue's log, into the journal if there is one.
fn write_entries<W: Write>(queue: &mut Queue, mut journal: Option<&mut Journal<W>>) -> std::io::Result<()> {
    while let Some(entry) = queue.poll_entry() {
        if let Some(journal) = &mut journal {
            journal.entry(&entry)?;
        }
    }
    while let Some(totals) = queue.poll_closed() {
        if let Some(journal) = &mut journal {
            journal.closed(&totals)?;
        }
    }
    Ok(())
}

/// Sends a superpacket back and returns how many of its datagrams the kernel took. Where the way back cannot carry it as
/// one (a smaller MTU), its datagrams go one by one.
fn reflect(
    socket: &UdpSocket,
    to: SocketAddr,
    from: Option<IpAddr>,
    bytes: &[u8],
    segment_size: usize,
    datagrams: u64,
) -> u64 {
    match socket.send_segments(to, from, 0, bytes, segment_size) {
        Ok(()) => datagrams,
        Err(error) if datagrams == 1 || error.kind() == ErrorKind::WouldBlock => 0,
        Err(_) => {
            let single =
                |datagram: &[u8]| socket.send_segments(to, from, 0, datagram, datagram.len()).is_ok();
            bytes.chunks(segment_size.max(1)).filter(|datagram| single(datagram)).count() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_named() {
        let first = Reflector::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let Err(error) = Reflector::bind(&first.local_addrs()) else { panic!("bound twice") };
        assert!(error.to_string().contains(&first.local_addrs()[0].to_string()), "{error}");
    }
}
