//! The kind `tcp`: messages on connections to a server that sends everything back, at times that do not wait for it. What a
//! connection has no room for waits here, and the response counts that wait.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::clock::monotonic_ns;
use super::path::{allow_descriptors, local_address};
use super::payload::{self, Header, Parsed, Phase};
use super::problem::Problem;
use super::receiver::{Receiver, Shared, When};
use super::schedule::Burst;
use super::sender::{Outlet, Tally};
use super::spec::RunSpec;
use crate::epoll::Watch;

/// Most connections.
pub const FLOWS_MAX: u32 = 10_000;
/// How long connecting, and the first answer, may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of one connection that may wait here; above it a message is refused.
const WAITING_MAX: usize = 1 << 20;
/// Why: the far end, or the way there, is what keeps a connection from having room.
const NOT_TAKEN: &str = "a connection has not taken what waited for it, 1 MiB";
/// How often a connection that had no room is tried again, in nanoseconds.
const RETRY_NS: u64 = 500_000;
/// Bytes read at once.
const READ: usize = 64 << 10;
/// Longest wait without looking at the end of the run, in nanoseconds.
const WAIT_NS: u64 = 5_000_000;

/// Connects every flow and sees the first message come back.
///
/// # Errors
/// [`Problem::Setup`], naming what does not answer.
pub fn connect(spec: &RunSpec, run_id: u64) -> Result<Vec<TcpStream>, Problem> {
    allow_descriptors(u64::from(spec.flows))?;
    let streams: Vec<TcpStream> = (0..spec.flows).map(|_| connect_one(spec)).collect::<Result<_, _>>()?;
    let failed = |error: io::Error| {
        Problem::Setup(format!(
            "{} takes connections but sends nothing back ({error}); start `towpath-lab reflect --tcp {}` there",
            spec.target, spec.target
        ))
    };
    probe(&streams[0], spec.size, run_id).map_err(failed)?;
    for stream in &streams {
        stream.set_nonblocking(true).map_err(failed)?;
    }
    Ok(streams)
}

fn connect_one(spec: &RunSpec) -> Result<TcpStream, Problem> {
    let connect = || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(spec.target), Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SockAddr::from(local_address(spec)))?;
        socket.connect_timeout(&SockAddr::from(spec.target), PATIENCE)?;
        // A message is a request: it must not wait for the acknowledgement of the one before.
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    };
    connect().map_err(|error| {
        Problem::Setup(format!(
            "no TCP connection to {}: {error}; start `towpath-lab reflect --tcp {}` there, or check route and firewall",
            spec.target, spec.target
        ))
    })
}

/// Sends a message and waits until it is back.
fn probe(mut stream: &TcpStream, size: usize, run_id: u64) -> io::Result<()> {
    let mut message = vec![0; size];
    write_message(&mut message, Phase::Probe, run_id, (0, 0), monotonic_ns());
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&message)?;
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    match payload::parse(&answer) {
        Parsed::Good(header) if header.run_id == run_id => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it answers something else")),
    }
}

fn write_message(message: &mut [u8], phase: Phase, run_id: u64, (flow, seq): (u32, u64), intended_ns: u64) {
    let actual_ns = monotonic_ns();
    let header = Header { phase, returned: false, run_id, flow, seq, intended_ns, actual_ns, turned_ns: 0 };
    payload::write(message, &header);
}

/// Writes messages.
pub struct Streams<'a> {
    streams: &'a [TcpStream],
    run_id: u64,
    message: Vec<u8>,
    /// By flow: bytes that its connection had no room for.
    queues: Vec<VecDeque<u8>>,
    /// Flows whose queue is not empty.
    waiting: Vec<u32>,
}

impl<'a> Streams<'a> {
    /// An outlet over connections, by flow.
    #[must_use]
    pub fn new(spec: &RunSpec, streams: &'a [TcpStream], run_id: u64) -> Self {
        let message = (0..spec.size).map(|index| (index as u8).wrapping_mul(167) ^ 0x5a).collect();
        let queues = streams.iter().map(|_| VecDeque::new()).collect();
        Self { streams, run_id, message, queues, waiting: Vec::with_capacity(streams.len()) }
    }

    /// Writes a message, or as much of it as the connection takes; the rest waits.
    fn write(&mut self, flow: u32, len: usize) -> io::Result<()> {
        let message = &self.message[..len];
        let queue = &mut self.queues[flow as usize];
        if !queue.is_empty() {
            if queue.len() + len > WAITING_MAX {
                return Err(io::Error::new(io::ErrorKind::TimedOut, NOT_TAKEN));
            }
            queue.extend(message);
            return Ok(());
        }
        let written = match (&self.streams[flow as usize]).write(message) {
            Ok(written) => written,
            Err(error) if is_busy(&error) => 0,
            Err(error) => return Err(error),
        };
        if written < len {
            queue.extend(&message[written..]);
            self.waiting.push(flow);
        }
        Ok(())
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Writes what waits; `false` when there is more to write.
fn drain(mut stream: &TcpStream, queue: &mut VecDeque<u8>) -> bool {
    while !queue.is_empty() {
        let (front, _) = queue.as_slices();
        match stream.write(front) {
            Ok(written) => drop(queue.drain(..written)),
            Err(error) if is_busy(&error) => return false,
            // The connection is gone; what waited for it was sent as far as this end could, and is lost.
            Err(_) => queue.clear(),
        }
    }
    true
}

impl Outlet for Streams<'_> {
    fn push(
        &mut self,
        phase: Phase,
        burst: &Burst<'_>,
        number: u64,
        start_ns: u64,
        tally: &mut Tally,
    ) -> io::Result<()> {
        let leave_ns = start_ns + burst.leave_ns();
        for (number, datagram) in (number..).zip(burst.datagrams) {
            let lateness_ns = monotonic_ns().saturating_sub(leave_ns);
            let message = &mut self.message[..datagram.size];
            write_message(message, phase, self.run_id, (burst.flow, number), start_ns + datagram.due_ns);
            let outcome = self.write(burst.flow, datagram.size);
            tally.book(burst.flow, 1, datagram.size as u64, lateness_ns, outcome);
        }
        Ok(())
    }

    fn flush(&mut self, _tally: &mut Tally) -> io::Result<()> {
        let Self { streams, queues, waiting, .. } = self;
        waiting.retain(|&flow| !drain(&streams[flow as usize], &mut queues[flow as usize]));
        Ok(())
    }

    fn patience_ns(&self) -> u64 {
        if self.waiting.is_empty() { u64::MAX } else { RETRY_NS }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Receives until the drain is over.
///
/// # Errors
/// What epoll(7) answers.
pub fn receive(
    streams: &[TcpStream],
    receiver: &mut Receiver,
    drain_ns: u64,
    shared: &Shared,
) -> io::Result<()> {
    let mut watch = Watch::new(streams)?;
    let mut pieces: Vec<Pieces> = streams.iter().map(|_| Pieces::default()).collect();
    let mut chunk = vec![0; READ];
    while let Some(late_after_ns) = receiver.goes_on(drain_ns, shared) {
        // A stream has no stamps. But what the wait found had come before the wait should have been over, and before it was.
        let over_ns = monotonic_ns() + WAIT_NS;
        watch.wait(WAIT_NS)?;
        let come_ns = monotonic_ns().min(over_ns);
        for index in watch.ready() {
            match (&streams[index]).read(&mut chunk) {
                Err(error) if is_busy(&error) => {}
                // Closed or reset: what is missing shows in the ledger.
                Ok(0) | Err(_) => watch.remove(&streams[index])?,
                Ok(len) => {
                    let arrived_ns = monotonic_ns();
                    let late = arrived_ns > late_after_ns;
                    let (start_ns, ended_ns) = (shared.start(), shared.ended());
                    let when = When { arrived_ns, kernel_ns: Some(come_ns), late, start_ns, ended_ns };
                    let mut each = |message: &[u8]| receiver.handle(message, when);
                    pieces[index].take(&chunk[..len], &mut each);
                }
            }
        }
        receiver.show();
    }
    Ok(())
}

/// Puts messages together out of what a connection brings.
#[derive(Debug, Default)]
struct Pieces {
    /// The start of a message.
    start: Vec<u8>,
    /// Where the next message begins can no longer be told.
    lost_track: bool,
}

impl Pieces {
    /// Takes bytes and hands over every whole message. What does not begin like a message is handed over once, and nothing
    /// that follows it is.
    fn take(&mut self, mut bytes: &[u8], each: &mut impl FnMut(&[u8])) {
        while !bytes.is_empty() && !self.lost_track {
            if self.start.is_empty()
                && let Some(len) = payload::claimed_len(bytes)
                && (payload::LEN..=bytes.len()).contains(&len)
            {
                // The usual case: a message in one piece.
                let (message, rest) = bytes.split_at(len);
                each(message);
                bytes = rest;
                continue;
            }
            let known = self.start.len() >= payload::LEN_KNOWN;
            let wanted = if known { payload::claimed_len(&self.start) } else { Some(payload::LEN_KNOWN) };
            let Some(wanted) = wanted.filter(|&wanted| !known || wanted >= payload::LEN) else {
                self.lost_track = true;
                each(&self.start);
                return;
            };
            let more = (wanted - self.start.len()).min(bytes.len());
            self.start.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if known && self.start.len() == wanted {
                each(&self.start);
                self.start.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(seq: u64, size: usize) -> Vec<u8> {
        let mut message = vec![0x77; size];
        write_message(&mut message, Phase::Measured, 5, (0, seq), 1);
        message
    }

    #[test]
    fn messages_are_whole_however_they_are_cut() {
        let all: Vec<u8> = [(0, 56), (1, 300), (2, 57)].map(|(seq, size)| message(seq, size)).concat();
        for cut in 1..=all.len() {
            let mut pieces = Pieces::default();
            let mut seen = Vec::new();
            for chunk in all.chunks(cut) {
                pieces.take(chunk, &mut |message| match payload::parse(message) {
                    Parsed::Good(header) => seen.push((header.seq, message.len())),
                    other => panic!("{other:?}"),
                });
            }
            assert_eq!(seen, [(0, 56), (1, 300), (2, 57)], "chunks of {cut}");
        }
    }

    #[test]
    fn a_stream_that_lost_track_is_no_more_than_one_bad_message() {
        for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0; 3_000], &message(0, 56)[..10]] {
            let mut bad = garbage.to_vec();
            // Ours by its first bytes, and shorter than its own header.
            if bad.len() == 10 {
                bad[6..8].copy_from_slice(&[0, 9]);
                bad.extend([0; 50]);
            }
            for cut in [1, 7, 64] {
                let mut pieces = Pieces::default();
                let mut seen = 0;
                for chunk in bad.chunks(cut) {
                    pieces.take(chunk, &mut |message| {
                        assert!(!matches!(payload::parse(message), Parsed::Good(_)));
                        seen += 1;
                    });
                }
                assert_eq!((seen, pieces.lost_track), (1, true));
                assert!(pieces.start.len() < 100);
            }
        }
    }
}
