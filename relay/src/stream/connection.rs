//! One client on a stream: its transport, the message it has begun, and what it has not taken yet.

use std::io;
use std::time::Instant;

use dataplane::drops::{Cause, Drops};
use dataplane::stream::framing::Framer;
use dataplane::stream::queue::{OutputQueue, Overflow};
use dataplane::stream::transport::{TURN_BYTES, Transport};

use super::ends::End;
use crate::server::{ClientSocket, REALM_LEN_MAX};

/// Bytes queued in one batch after which they are written before its end: superpackets become few large writes, and the
/// queue stays for what the socket does not take.
const WRITE_BYTES: usize = 64 * 1024;

/// The same for a client without an allocation, who gets nothing but answers.
const STRANGER_WRITE_BYTES: usize = 4 * 1024;
/// Bytes read in one turn from a client without an allocation: its socket has to take the answers to them before it is read
/// on.
const STRANGER_TURN_BYTES: usize = 512;
/// Most bytes of answers that wait for a client without an allocation. Over TCP there is room for those that come of one
/// turn; one that puts more questions into a record of TLS than that, and does not read, is closed.
const STRANGER_QUEUE_BYTES: usize = 16 * 1024;

/// The longest answer to the shortest question is a challenge: README, security.
const CHALLENGE_BYTES_MAX: usize = 72 + REALM_LEN_MAX.next_multiple_of(4);
const _: () = assert!(
    STRANGER_WRITE_BYTES + (STRANGER_TURN_BYTES / 20 + 1) * CHALLENGE_BYTES_MAX <= STRANGER_QUEUE_BYTES
);

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub client: ClientSocket,
    pub transport: Transport,
    pub framer: Framer,
    queue: OutputQueue,
    /// The socket takes nothing more before it becomes writable.
    pub is_blocked: bool,
    /// To be woken has been asked for.
    pub is_waking: bool,
    /// It is in the list of those with something to write.
    pub is_listed: bool,
    /// It is not read, because it does not read either.
    pub is_paused: bool,
    /// The client had an allocation when it was last looked.
    pub is_known: bool,
    /// When that was, or the connection came.
    pub known_at: Instant,
    /// When it last said something of use.
    pub active: Instant,
    /// When it is looked at next.
    pub deadline: Instant,
    pub end: Option<End>,
    /// Messages that were to be written, and that were.
    pub traffic: Traffic,
}

/// Messages on their way to clients: `offered = sent + dropped + queued`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages for clients.
    pub offered: u64,
    /// Messages that their sockets, or TLS in front of them, took to the last byte.
    pub sent: u64,
    /// Writes that carried them.
    pub writes: u64,
}

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            offered: self.offered + other.offered,
            sent: self.sent + other.sent,
            writes: self.writes + other.writes,
        }
    }
}

impl Connection {
    pub fn new(client: ClientSocket, transport: Transport, now: Instant) -> Self {
        Self {
            client,
            transport,
            framer: Framer::default(),
            queue: OutputQueue::new(0),
            is_blocked: false,
            is_waking: false,
            is_listed: false,
            is_paused: false,
            is_known: false,
            known_at: now,
            active: now,
            deadline: now,
            end: None,
            traffic: Traffic::default(),
        }
    }

    /// Has room for so many bytes in its queue from now on.
    pub fn set_queue_bytes(&mut self, bytes_max: usize) {
        self.queue.set_bytes_max(bytes_max);
    }

    /// Notes whether the client has an allocation.
    pub fn note_known(&mut self, is_known: bool, now: Instant) {
        self.is_known = is_known;
        if is_known {
            self.known_at = now;
        }
    }

    /// Queues an answer.
    ///
    /// # Errors
    /// When the client takes no answers.
    pub fn push_control(&mut self, message: &[u8], drops: &mut Drops) -> Result<(), End> {
        self.traffic.offered += 1;
        let written = self.write_early(message.len());
        let is_too_much = !self.is_known && self.queue.control_len() + message.len() > STRANGER_QUEUE_BYTES;
        let pushed = if is_too_much { Err(Overflow) } else { self.queue.push_control(message) };
        // An answer that does not fit is lost with the connection.
        let (dropped, result) = pushed.map_or((1, Err(End::Unread)), |dropped| (dropped, Ok(())));
        drops.add(Cause::EgressQueueFull, dropped);
        written.and(result)
    }

    /// Queues data.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn push_data(&mut self, header: &[u8], payload: &[u8], drops: &mut Drops) -> Result<(), End> {
        self.traffic.offered += 1;
        let written = self.write_early(header.len() + payload.len());
        drops.add(Cause::EgressQueueFull, self.queue.push_data(header, payload));
        written
    }

    fn write_early(&mut self, len: usize) -> Result<(), End> {
        let most = if self.is_known { WRITE_BYTES } else { STRANGER_WRITE_BYTES };
        if self.queue.len() + len > most { self.write() } else { Ok(()) }
    }

    /// Writes what goes without waiting.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn write(&mut self) -> Result<(), End> {
        while !self.is_blocked && self.wants_write() {
            match self.transport.write(&mut self.queue) {
                Ok(finished) => {
                    self.traffic.writes += 1;
                    self.traffic.sent += finished;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_blocked = true,
                Err(_) => return Err(End::ByClient),
            }
        }
        Ok(())
    }

    /// Whether something is there to be written.
    pub fn wants_write(&self) -> bool {
        !self.queue.is_empty() || self.transport.wants_write()
    }

    /// Whether so many answers wait that no more questions should be read: there has to be room for those that come of one
    /// turn. Of a client without an allocation none may wait.
    pub fn is_crowded(&self, queue_bytes: usize) -> bool {
        if self.is_known { self.queue.control_len() > queue_bytes / 4 } else { self.is_blocked }
    }

    /// Bytes to read in one turn. Of a handshake nothing is answered, and its messages are long.
    pub fn turn_bytes(&self) -> usize {
        if self.is_known || self.transport.is_handshaking() { TURN_BYTES } else { STRANGER_TURN_BYTES }
    }

    /// Messages that wait to be written.
    pub fn queued(&self) -> u64 {
        self.queue.messages()
    }

    /// Gives memory back that is not in use, or too much by now.
    pub fn shrink(&mut self, drops: &mut Drops) {
        self.framer.shrink();
        drops.add(Cause::EgressQueueFull, self.queue.shrink());
    }

    /// Memory that the queue and a begun message hold, in bytes.
    pub fn memory(&self) -> usize {
        self.queue.capacity() + self.framer.capacity()
    }
}
