//! The connection to a relay over TCP or TLS: non-blocking reads and writes, and a queue of its own for what the relay
//! does not take. What is too much for that is dropped, the oldest first, and counted.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig as TlsConfig;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};

use super::App;
use super::relays::Relay;
use super::wake::Wake;
use super::way::Way;
use crate::crypto::aead::Body;
use crate::drops::Cause;
use crate::egress::Egress;
use crate::ingress::{Ingress, Source};
use crate::stream::framing::Framer;
use crate::stream::queue::OutputQueue;
use crate::stream::transport::{Broken, PLAIN_BYTES, TURN_BYTES, Transport};
use crate::stun::{ChannelNumber, channel_data};
use crate::tunnel::{PeerIndex, Tunnel};

/// What may wait for the relay, bytes: as much as for a busy socket, and a message more.
const QUEUE_BYTES: usize = 256 * 1024 + 65_540;
/// Queued in one batch after which it is written before its end.
const WRITE_BYTES: usize = 64 * 1024;
/// The longest message that is sealed for a connection, bytes.
const SEALED_MAX: usize = 65_535;

/// How a relay is spoken to.
#[derive(Clone, Debug, Default)]
pub enum Carrier {
    /// Datagrams.
    #[default]
    Udp,
    /// A TCP connection.
    Tcp,
    /// A TLS connection to a server of this name.
    Tls(Arc<TlsConfig>, ServerName<'static>),
}

impl Carrier {
    /// Whether it is a connection.
    pub(super) fn is_stream(&self) -> bool {
        !matches!(self, Self::Udp)
    }
}

/// A connection, from its first SYN to its end.
pub(super) struct RelayStream {
    /// Our end's.
    port: u16,
    transport: Transport,
    framer: Framer,
    queue: OutputQueue,
    plain: Box<[u8]>,
    wire: Box<[u8]>,
    sealed: Box<[u8]>,
    /// The socket takes nothing before it becomes writable.
    is_blocked: bool,
    is_waking: bool,
    is_registered: bool,
    /// Why it is of no use any more.
    over: Option<String>,
}

/// What became of a message for the connection.
#[derive(Clone, Copy)]
pub(super) enum Pushed {
    /// So many packets were lost for this cause: older ones for which no room was left, or itself. Mostly none.
    Lost(Cause, u64),
    /// It was not sealed.
    Refused,
}

impl RelayStream {
    /// Begins to connect. `firewall_mark` is 0 for none.
    ///
    /// # Errors
    /// What the kernel answers at once.
    pub(super) fn connect(server: SocketAddr, carrier: &Carrier, firewall_mark: u32) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(server),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        if firewall_mark != 0 {
            socket.set_mark(firewall_mark)?;
        }
        // Packets inside do not wait for one another.
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&server.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        let transport = match carrier {
            Carrier::Udp | Carrier::Tcp => Transport::plain(socket.into()),
            Carrier::Tls(config, name) => {
                Transport::client(socket.into(), config, name.clone()).map_err(io::Error::other)?
            }
        };
        Ok(Self {
            port,
            transport,
            framer: Framer::default(),
            queue: OutputQueue::new(QUEUE_BYTES),
            plain: vec![0; PLAIN_BYTES].into_boxed_slice(),
            wire: vec![0; TURN_BYTES].into_boxed_slice(),
            sealed: vec![0; SEALED_MAX].into_boxed_slice(),
            is_blocked: true,
            is_waking: false,
            is_registered: false,
            over: None,
        })
    }

    /// The port that it is sent from.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Queues a request; how much data that dropped.
    pub(super) fn push_control(&mut self, message: &[u8]) -> u64 {
        self.queue.push_control(message).unwrap_or_else(|_| {
            // Requests alone fill the queue: the relay reads nothing.
            self.end(&"it takes no requests");
            0
        })
    }

    /// Queues a message of `len` bytes that `seal` writes, if it does.
    pub(super) fn push_data(
        &mut self,
        number: ChannelNumber,
        len: usize,
        seal: impl FnOnce(&mut [u8]) -> bool,
    ) -> Pushed {
        let (Some(header), Some(space)) = (channel_data::header(number, len), self.sealed.get_mut(..len))
        else {
            return Pushed::Lost(Cause::Mtu, 1);
        };
        if !seal(space) {
            return Pushed::Refused;
        }
        // The kernel may already have taken all but a little of it: then nothing has to be dropped.
        if self.queue.len() + len > WRITE_BYTES {
            self.write();
        }
        Pushed::Lost(Cause::EgressQueueFull, self.queue.push_data(&header, &self.sealed[..len]))
    }

    /// Writes what goes without waiting.
    fn write(&mut self) {
        while !self.is_blocked && self.over.is_none() && self.wants_write() {
            match self.transport.write(&mut self.queue) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_blocked = true,
                Err(error) => self.end(&error.kind()),
            }
        }
    }

    /// Waits for what comes, and for room where that is missing.
    fn wait<I: Ingress>(&mut self, ingress: &mut I) {
        if !self.is_registered {
            match ingress.add_borrowed(self.transport.fd(), Wake::Stream.token(), Source::Ready) {
                Ok(_) => self.is_registered = true,
                Err(error) => self.end(&error),
            }
        }
        if !self.is_waking && self.has_to_wait() {
            self.is_waking = true;
            ingress.wake_when_writable(Wake::Stream.token());
        }
    }

    /// It is of no use any more; the first reason counts.
    fn end(&mut self, why: &impl Display) {
        self.over.get_or_insert_with(|| why.to_string());
    }

    fn close<I: Ingress>(mut self, ingress: &mut I) {
        if self.is_registered {
            ingress.remove(Wake::Stream.token());
        }
        self.transport.say_goodbye();
    }

    /// Whether something waits for the socket to become writable, and not for what the server says.
    fn has_to_wait(&self) -> bool {
        self.is_blocked && self.wants_write()
    }

    fn wants_write(&self) -> bool {
        self.transport.wants_write() || (!self.queue.is_empty() && !self.transport.is_handshaking())
    }
}

impl App {
    /// Sends what is in the stack packet over the connection, or counts it; `false` when there is no session for it.
    pub(super) fn seal_into_stream(&mut self, peer: PeerIndex, way: &Way, now: Instant) -> bool {
        let Self { tunnel, packet, relay, .. } = self;
        let stream = relay.as_mut().and_then(|relay| relay.stream.as_mut());
        let pushed = match (stream, way.channel) {
            (Some(stream), Some(number)) => {
                let len = Tunnel::sealed_len(packet.len());
                stream.push_data(number, len, |space| tunnel.seal(peer, packet.as_slice(), space, now))
            }
            _ => Pushed::Lost(Cause::NoEndpoint, 1),
        };
        match pushed {
            Pushed::Lost(cause, packets) => tunnel.count_lost(cause, packets),
            Pushed::Refused => tunnel.count_drop(Cause::NoSession),
        }
        !matches!(pushed, Pushed::Refused)
    }

    /// Sends a control message over the connection. One that does not fit is repeated by its timer.
    pub(super) fn push_into_stream(&mut self, way: &Way, bytes: &[u8]) {
        let stream = self.relay.as_mut().and_then(|relay| relay.stream.as_mut());
        if let (Some(stream), Some(number)) = (stream, way.channel) {
            let pushed = stream.push_data(number, bytes.len(), |space| {
                space.copy_from_slice(bytes);
                true
            });
            if let Pushed::Lost(cause, packets) = pushed {
                self.tunnel.count_lost(cause, packets);
            }
        }
    }

    /// The connection can be read, or has failed.
    pub(super) fn read_stream<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        let Some(mut stream) = self.relay.as_mut().and_then(|relay| relay.stream.take()) else {
            return;
        };
        match stream.transport.read(&mut stream.plain, &mut stream.wire, TURN_BYTES) {
            Err(broken) => stream.end(&explained(&broken)),
            Ok(len) => {
                let mut used = 0;
                loop {
                    match stream.framer.next(&mut stream.plain[..len], &mut used) {
                        Ok(Some(message)) => self.handle_relay((message, Body::Sealed), 0, egress, now),
                        Ok(None) => break,
                        Err(unframed) => {
                            stream.end(&unframed);
                            break;
                        }
                    }
                }
                if stream.transport.is_over() {
                    stream.end(&Broken::Closed);
                }
                // TLS may be there now, and what waited for it can leave.
                stream.is_blocked &= stream.is_waking;
            }
        }
        if let Some(relay) = &mut self.relay {
            relay.stream = Some(stream);
        }
    }

    /// The connection can be written again.
    pub(super) fn unblock_stream(&mut self) {
        if let Some(stream) = self.relay.as_mut().and_then(|relay| relay.stream.as_mut()) {
            (stream.is_blocked, stream.is_waking) = (false, false);
        }
    }

    /// Marks what leaves by the connection from now on (SO_MARK); the kernel looks for its route again.
    pub(super) fn mark_stream(&self, mark: u32) -> io::Result<()> {
        match self.relay.as_ref().and_then(|relay| relay.stream.as_ref()) {
            Some(stream) => socket2::SockRef::from(&stream.transport.fd()).set_mark(mark),
            None => Ok(()),
        }
    }

    /// Connects where a connection is wanted, writes what waits, and ends what is over.
    pub(super) fn serve_stream<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        let is_concerned =
            |relay: &&mut Relay| relay.stream.is_some() || relay.former.is_some() || relay.wants_stream();
        let Some(relay) = self.relay.as_mut().filter(is_concerned) else {
            return;
        };
        if let Some(former) = relay.former.take() {
            former.close(ingress);
        }
        // Once more when it turns out to be over.
        for _ in 0..2 {
            if !self.serve_connection(ingress, egress, now) {
                return;
            }
        }
    }

    /// One round of [`App::serve_stream`]; whether the connection is over.
    fn serve_connection<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> bool {
        let Some(relay) = &mut self.relay else {
            return false;
        };
        if let Some(mut stream) = relay.stream.take_if(|stream| stream.over.is_some()) {
            let why = stream.over.take().unwrap_or_default();
            stream.close(ingress);
            relay.disconnected(&why, now);
            // Perhaps another relay is asked now.
            self.serve_relay(egress, now);
        }
        let firewall_mark = self.binding.firewall_mark;
        if let Some(relay) = self.relay.as_mut().filter(|relay| relay.wants_stream()) {
            relay.connect(firewall_mark, now);
            self.note_relay_server();
        }
        self.serve_relay(egress, now);
        let Some(stream) = self.relay.as_mut().and_then(|relay| relay.stream.as_mut()) else {
            return false;
        };
        stream.write();
        stream.wait(ingress);
        stream.over.is_some()
    }

    /// Writes the last words.
    pub(super) fn finish_stream(&mut self) {
        if let Some(stream) = self.relay.as_mut().and_then(|relay| relay.stream.as_mut()) {
            stream.write();
            stream.transport.say_goodbye();
        }
    }
}

/// With the remedy, where it is one of ours.
fn explained(broken: &Broken) -> String {
    match broken {
        Broken::Tls(rustls::Error::InvalidCertificate(_)) => {
            format!(
                "{broken}; name the certificate, or who signed it, with #towpath: RelayCertificate = FILE"
            )
        }
        _ => broken.to_string(),
    }
}
