//! Clients over TCP and TLS (RFC 8656 section 3.1): connections around the same server that UDP has.
//!
//! ```text
//!  client ── connection ─► [TLS] ─► framer ─► server, relay socket ── peer
//!  client ◄─ connection ◄─ [TLS] ◄─ queue  ◄─ server, relay socket ── peer
//! ```
//! Sockets are read and written by plain non-blocking calls; the ingress says when. What a client does not take waits in
//! a queue of its own, bounded in bytes, and holds up nobody else. What is read goes to the peer's socket straight from
//! the buffer it was read into; memory grows only for a message that has begun and for what a client has not taken.
//!
//! [`Streams`] is one worker's connections. [`crate::app`] asks it for a [`Turn`] when a source is ready, and gives it what
//! is for clients.

mod admission;
mod connection;
mod deadlines;
mod ends;
mod figures;
mod listener;
pub mod tls;
mod turn;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::drops::{Cause, Drops};
use dataplane::ingress::{Ingress, Meta, Source, Token};
use dataplane::stream::transport::{PLAIN_BYTES, TURN_BYTES, Transport};
use foldhash::fast::RandomState;
use rustls::ServerConfig;
use slab::Slab;

use self::admission::Admission;
use self::connection::Connection;
use self::deadlines::Deadlines;
use self::listener::Accepted;
use crate::server::{ClientSocket, Listener};

pub use self::admission::{Limits, QUEUE_BYTES_MIN};
pub use self::connection::Traffic;
pub use self::deadlines::{HANDSHAKE_TIME, IDLE_TIME, STRANGER_TIME};
pub use self::ends::{End, Ends};
pub use self::figures::StreamFigures;
pub use self::listener::{Kind, StreamListener};
pub use self::turn::Turn;

/// Tokens of streams: above those of ports, below the driver's own. Listeners come first, then connections.
const TOKENS: u32 = 1 << 31;
const CONNECTION_TOKENS: u32 = TOKENS | 1 << 16;
/// Connections taken from a listener in one turn of the loop.
const ACCEPTS_PER_TURN: usize = 16;
/// Connections whose TLS handshake goes on in one turn of the loop: a signature takes up to a millisecond, and packets
/// wait meanwhile.
const HANDSHAKES_PER_TURN: u32 = 4;
/// How long listeners rest when the system has no room for another socket.
const REST_TIME: Duration = Duration::from_millis(200);
/// The longest message, in bytes, that a client without an allocation may send in pieces: longer ones would be data, which
/// it has no use for, and memory that anyone could fill.
const STRANGER_BYTES: usize = 4096;

/// All connections of one worker.
#[derive(Debug)]
pub struct Streams {
    listeners: Vec<StreamListener>,
    /// What the server calls the first of them.
    first: u16,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    admission: Admission,
    connections: Slab<Box<Connection>>,
    by_client: HashMap<ClientSocket, u32, RandomState>,
    deadlines: Deadlines,
    /// Listeners with connections to take.
    ready: Vec<usize>,
    /// Taken, and to be registered once what has ended is closed.
    accepted: Vec<(Listener, Kind, Accepted)>,
    /// Connections with something to write.
    listed: Vec<u32>,
    /// Connections to be closed, and since when there are any.
    ended: Vec<u32>,
    ended_since: Option<Instant>,
    /// Until then listeners rest.
    resting: Option<Instant>,
    handshakes: u32,
    plain: Box<[u8]>,
    wire: Box<[u8]>,
    ends: Ends,
    /// Of connections that are closed.
    traffic: Traffic,
    accepted_total: u64,
}

impl Streams {
    /// Connections for these listeners, TCP ones first. TLS ones refuse everybody for as long as there is no configuration.
    #[must_use]
    pub fn new(mut listeners: Vec<StreamListener>, tls: Option<Arc<ServerConfig>>, limits: Limits) -> Self {
        listeners.sort_by_key(|listener| listener.kind() == Kind::Tls);
        let has = |kind: Option<Kind>| {
            listeners.iter().any(|listener| kind.is_none_or(|kind| listener.kind() == kind))
        };
        let buffer =
            |is_used: bool, bytes: usize| vec![0; if is_used { bytes } else { 0 }].into_boxed_slice();
        Self {
            plain: buffer(has(None), PLAIN_BYTES),
            wire: buffer(has(Some(Kind::Tls)), TURN_BYTES),
            listeners,
            first: 0,
            tls,
            limits,
            admission: Admission::new(limits),
            connections: Slab::new(),
            by_client: HashMap::default(),
            deadlines: Deadlines::default(),
            ready: Vec::new(),
            accepted: Vec::new(),
            listed: Vec::new(),
            ended: Vec::new(),
            ended_since: None,
            resting: None,
            handshakes: 0,
            ends: Ends::default(),
            traffic: Traffic::default(),
            accepted_total: 0,
        }
    }

    /// The same, with bounds that hold for these connections and another worker's together, and one log.
    #[must_use]
    pub fn beside(self, other: &Self) -> Self {
        Self { admission: other.admission.clone(), ends: other.ends.of_another(), ..self }
    }

    /// Takes other limits and another certificate, for connections that come from now on; the bytes that may wait for a client stay.
    pub fn reconfigure(&mut self, limits: Limits, tls: Option<Arc<ServerConfig>>) {
        self.limits.queues_bytes = limits.queues_bytes;
        self.admission.reconfigure(limits);
        self.tls = tls.or(self.tls.take());
    }

    /// For a relay without listeners of this kind.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Vec::new(), None, Limits::default())
    }

    /// Registers the listeners, which the server calls `first` and so on.
    ///
    /// # Errors
    /// What the ingress answers.
    pub fn start<I: Ingress>(&mut self, first: u16, ingress: &mut I) -> io::Result<()> {
        self.first = first;
        for (index, listener) in self.listeners.iter().enumerate() {
            ingress.add_borrowed(listener.fd(), listener_token(index), Source::Ready)?;
        }
        Ok(())
    }

    /// Where listeners of a kind listen.
    pub fn listen(&self, kind: Kind) -> impl Iterator<Item = SocketAddr> + '_ {
        self.listeners.iter().filter(move |listener| listener.kind() == kind).map(StreamListener::local_addr)
    }

    /// Connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Connections taken so far.
    #[must_use]
    pub fn accepted_total(&self) -> u64 {
        self.accepted_total
    }

    /// Why connections ended, and why others were not taken.
    #[must_use]
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Whether a client came over a stream.
    #[must_use]
    pub fn serves(&self, client: &ClientSocket) -> bool {
        client.listener.0 >= self.first && !self.listeners.is_empty()
    }

    /// Takes what the ingress says of a source. The answer is what has been read of a connection, to be given back by
    /// [`Streams::finish`].
    pub fn handle(&mut self, token: Token, meta: Meta, now: Instant) -> Option<Turn> {
        let Some(index) = token.0.checked_sub(CONNECTION_TOKENS) else {
            let index = token.0.checked_sub(TOKENS)? as usize;
            if meta == Meta::Ready && !self.ready.contains(&index) {
                self.ready.push(index);
            }
            return None;
        };
        match meta {
            Meta::Ready => self.read(index, now),
            Meta::Writable => {
                let connection = self.connections.get_mut(index as usize)?;
                (connection.is_blocked, connection.is_waking) = (false, false);
                self.list(index);
                None
            }
            Meta::Udp { .. } | Meta::Icmp(_) | Meta::Tun => None,
        }
    }

    fn read(&mut self, index: u32, now: Instant) -> Option<Turn> {
        let connection =
            self.connections.get_mut(index as usize).filter(|connection| connection.end.is_none())?;
        if connection.transport.is_handshaking() {
            if self.handshakes >= HANDSHAKES_PER_TURN {
                // It stays ready.
                return None;
            }
            self.handshakes += 1;
        }
        let bytes_max = connection.turn_bytes();
        let read = connection.transport.read(&mut self.plain, &mut self.wire, bytes_max);
        let (client, is_over) = (connection.client, connection.transport.is_over());
        let has_output = connection.wants_write();
        match read {
            Ok(0) if is_over => self.end(index, End::ByClient, now),
            Ok(0) if has_output => self.list(index),
            Ok(0) => {}
            Ok(len) => {
                let framer = std::mem::take(&mut connection.framer);
                return Some(Turn::new(index, client, framer, std::mem::take(&mut self.plain), len));
            }
            Err(broken) => self.end(index, broken.into(), now),
        }
        None
    }

    /// Takes a turn back. `is_known` says whether the client has an allocation.
    pub fn finish(&mut self, turn: Turn, is_known: bool, now: Instant) {
        let index = turn.index();
        let (framer, plain, outcome) = turn.into_parts();
        self.plain = plain;
        let Some(connection) = self.connections.get_mut(index as usize) else { return };
        if outcome.is_useful {
            connection.active = now;
        }
        connection.note_known(is_known, now);
        let end = if outcome.is_malformed || framer.kept() > STRANGER_BYTES && !is_known {
            Some(End::Malformed)
        } else {
            connection.transport.is_over().then_some(End::ByClient)
        };
        connection.framer = framer;
        let has_output = connection.wants_write();
        if let Some(end) = end {
            self.end(index, end, now);
        } else if has_output {
            self.list(index);
        }
    }

    /// The connection of a client, unless it has ended.
    #[must_use]
    pub fn find(&self, client: &ClientSocket) -> Option<u32> {
        let &index = self.by_client.get(client)?;
        let connection = self.connections.get(index as usize)?;
        connection.end.is_none().then_some(index)
    }

    /// Queues an answer.
    pub fn send_answer(&mut self, index: u32, message: &[u8], drops: &mut Drops, now: Instant) {
        let queue_bytes = self.queue_bytes();
        let Some(connection) = self.connections.get_mut(index as usize) else { return };
        connection.set_queue_bytes(queue_bytes);
        let result = connection.push_control(message, drops);
        self.settle(index, result, now);
    }

    /// Queues a data message: header and payload one after the other, and the padding of a stream.
    pub fn send_data(&mut self, index: u32, header: &[u8], payload: &[u8], drops: &mut Drops, now: Instant) {
        let queue_bytes = self.queue_bytes();
        let Some(connection) = self.connections.get_mut(index as usize) else { return };
        connection.set_queue_bytes(queue_bytes);
        let result = connection.push_data(header, payload, drops);
        self.settle(index, result, now);
    }

    fn settle(&mut self, index: u32, result: Result<(), End>, now: Instant) {
        match result {
            Ok(()) => self.list(index),
            Err(end) => self.end(index, end, now),
        }
    }

    /// Puts a connection on the list of those with something to write.
    fn list(&mut self, index: u32) {
        let Some(connection) = self.connections.get_mut(index as usize) else { return };
        if !std::mem::replace(&mut connection.is_listed, true) {
            self.listed.push(index);
        }
    }

    /// Ends a connection: it is closed in [`Streams::close_next`], because a source cannot be removed while it is handled.
    fn end(&mut self, index: u32, end: End, now: Instant) {
        let Some(connection) = self.connections.get_mut(index as usize) else { return };
        if connection.end.is_none() {
            connection.end = Some(end);
            let deadline = connection.deadline;
            self.deadlines.remove(deadline, index);
            self.ended.push(index);
            self.ended_since.get_or_insert(now);
        }
    }

    /// Takes connections from listeners that have some, a bounded number.
    pub fn accept<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        self.handshakes = 0;
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            (0..self.listeners.len()).for_each(|index| ingress.set_reading(listener_token(index), true));
        }
        while let Some(index) = self.ready.pop() {
            for _ in 0..ACCEPTS_PER_TURN {
                match self.listeners[index].accept() {
                    Ok(Some(accepted)) => self.admit(index, accepted, now),
                    Ok(None) => break,
                    Err(error) => {
                        self.rest(&error, ingress, now);
                        break;
                    }
                }
            }
        }
    }

    fn admit(&mut self, index: usize, accepted: Accepted, now: Instant) {
        if let Err(end) = self.admission.admit(accepted.from.ip()) {
            return self.ends.count(end);
        }
        self.accepted_total += 1;
        let listener = Listener(self.first + index as u16);
        // The kernel gives an address away again as soon as it knows that a connection is gone, before we do.
        if let Some(old) = self.find(&client_of(listener, &accepted)) {
            self.end(old, End::ByClient, now);
        }
        self.accepted.push((listener, self.listeners[index].kind(), accepted));
    }

    /// Lets listeners rest, because the kernel has no room for another socket: they would be ready all the time.
    fn rest<I: Ingress>(&mut self, error: &io::Error, ingress: &mut I, now: Instant) {
        self.ends.count(End::RefusedSystem);
        if self.resting.is_none() {
            tracing::debug!(%error, "connections are not accepted for a moment");
        }
        self.resting = Some(now + REST_TIME);
        (0..self.listeners.len()).for_each(|index| ingress.set_reading(listener_token(index), false));
    }

    /// Registers connections that were accepted.
    pub fn register<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        while let Some((listener, kind, accepted)) = self.accepted.pop() {
            let client = client_of(listener, &accepted);
            let tls = self.tls.as_ref().filter(|_| kind == Kind::Tls);
            let transport = match (kind, tls) {
                (Kind::Tls, None) => None,
                (Kind::Tls, Some(config)) => Transport::server(accepted.fd, config).ok(),
                (Kind::Tcp, _) => Some(Transport::plain(accepted.fd)),
            };
            let entry = self.connections.vacant_entry();
            let index = entry.key() as u32;
            let transport = transport.filter(|transport| {
                let token = Token(CONNECTION_TOKENS + index);
                ingress.add_borrowed(transport.fd(), token, Source::Ready).is_ok()
            });
            let Some(transport) = transport else {
                self.admission.release(client.address.ip());
                self.ends.count(End::RefusedSystem);
                continue;
            };
            let time = if kind == Kind::Tls { HANDSHAKE_TIME } else { IDLE_TIME };
            let mut connection = Connection::new(client, transport, now);
            connection.deadline = now + time;
            self.deadlines.insert(connection.deadline, index);
            entry.insert(Box::new(connection));
            let previous = self.by_client.insert(client, index);
            debug_assert!(previous.is_none(), "the one before was closed");
        }
    }

    /// Closes one connection that has ended. The answer is its client, whose allocations end with it (RFC 8656
    /// section 3.1).
    pub fn close_next<I: Ingress>(&mut self, ingress: &mut I, drops: &mut Drops) -> Option<ClientSocket> {
        let Some(index) = self.ended.pop() else {
            self.ended_since = None;
            return None;
        };
        let mut connection = self.connections.remove(index as usize);
        ingress.remove(Token(CONNECTION_TOKENS + index));
        self.by_client.remove(&connection.client);
        self.admission.release(connection.client.address.ip());
        drops.add(Cause::EgressClosed, connection.queued());
        self.traffic = self.traffic + connection.traffic;
        if let Some(end) = connection.end {
            self.ends.count(end);
            if end != End::ByClient && end != End::Tls {
                connection.transport.say_goodbye();
            }
        }
        Some(connection.client)
    }

    /// Writes what the batch has come to, and sees to it that the rest is written when it can be.
    pub fn write<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        let queue_bytes = self.queue_bytes();
        while let Some(index) = self.listed.pop() {
            // It may have been closed, but nobody else has its number before `register`.
            let Some(connection) = self.connections.get_mut(index as usize) else { continue };
            connection.is_listed = false;
            if connection.end.is_some() {
                continue;
            }
            let token = Token(CONNECTION_TOKENS + index);
            let written = connection.write();
            if connection.is_blocked && !std::mem::replace(&mut connection.is_waking, true) {
                ingress.wake_when_writable(token);
            }
            let is_crowded = connection.is_crowded(queue_bytes);
            if is_crowded != connection.is_paused {
                connection.is_paused = is_crowded;
                ingress.set_reading(token, !is_crowded);
            }
            if let Err(end) = written {
                self.end(index, end, now);
            }
        }
    }

    /// Ends what has taken too long. `is_known` says whether a client has an allocation.
    pub fn handle_timeout(
        &mut self,
        is_known: impl Fn(&ClientSocket) -> bool,
        drops: &mut Drops,
        now: Instant,
    ) {
        let queue_bytes = self.queue_bytes();
        while let Some(index) = self.deadlines.pop_due(now) {
            let Some(connection) = self.connections.get_mut(index as usize) else { continue };
            connection.note_known(is_known(&connection.client), now);
            let until = (connection.active + IDLE_TIME).min(connection.known_at + STRANGER_TIME);
            if connection.transport.is_handshaking() {
                self.end(index, End::HandshakeTimeout, now);
            } else if connection.is_known || until > now {
                connection.set_queue_bytes(queue_bytes);
                connection.shrink(drops);
                connection.deadline = if until > now { until } else { now + IDLE_TIME };
                self.deadlines.insert(connection.deadline, index);
            } else {
                self.end(index, End::Idle, now);
            }
        }
        self.ends.handle_timeout(now);
    }

    /// When [`Streams::handle_timeout`] or the loop's maintenance is due; O(1).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.deadlines.next(), self.ended_since, self.resting, self.ends.poll_timeout()];
        due.into_iter().flatten().min()
    }

    /// The end: writes what goes without waiting, and counts the rest.
    pub fn stop(&mut self, drops: &mut Drops) {
        for (_, connection) in &mut self.connections {
            // What cannot be written is counted.
            let _ = connection.write();
            connection.transport.say_goodbye();
            drops.add(Cause::Shutdown, connection.queued());
            self.ends.count(End::Shutdown);
        }
        self.ends.finish();
    }
}

fn listener_token(index: usize) -> Token {
    Token(TOKENS + index as u32)
}

/// The 5-tuple of a connection.
fn client_of(listener: Listener, accepted: &Accepted) -> ClientSocket {
    ClientSocket { address: accepted.from, listener, local: Some(accepted.to.ip()) }
}
