//! The relay on the engine: sockets around the server, and the two paths that data takes.
//!
//! ```text
//!  client ── listener ──► strip 4 bytes ──► relay socket ── peer
//!  client ◄── listener ── add 4 bytes  ◄── relay socket ◄── peer
//! ```
//! Payload goes straight from the receive buffer into the memory it leaves from: one copy. A superpacket costs one
//! look-up of its sender, and one of its channel as long as the number stays the same.

pub mod duties;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dataplane::driver::{Application, Next};
use dataplane::drops::{Cause, Drops};
use dataplane::egress::{Class, Egress, Port, Target};
use dataplane::engine::IngressKind;
use dataplane::ingress::{Ingress, Meta, Received, Source, Token};
use dataplane::stun::channel_data::{self, ChannelData, ChannelNumber};
use dataplane::stun::writer::padding;
use dataplane::sys::signal::Signal;
use dataplane::sys::udp::{UdpOptions, UdpSocket};

use self::duties::Duties;
use crate::server::figures::{Carrier, Direction, Volume};
use crate::server::{
    AllocationId, ClientSocket, Command, FromClient, FromPeer, Listener, OpenFailure, Opened, PeerSocket,
    Server,
};

/// Longest UDP payload in bytes, over IPv4.
const PAYLOAD_MAX: usize = 65_507;
/// Socket buffers asked for on each relay socket, in bytes. There may be thousands of them.
const RELAY_SOCKET_BUFFER: usize = 1 << 20;
/// How often the same trouble with sockets is logged.
const TROUBLE_INTERVAL: Duration = Duration::from_secs(10);

/// What a port is there for.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// Nothing, any more.
    Vacant,
    /// Clients send to it.
    Listener(Listener),
    /// Peers of this allocation send to it.
    Relay(AllocationId),
}

/// A socket that clients send to.
#[derive(Debug)]
struct ListenerSocket {
    socket: UdpSocket,
    port: Port,
}

impl ListenerSocket {
    fn is_wildcard(&self) -> bool {
        self.socket.local_addr().ip().is_unspecified()
    }
}

/// The relay as an application of the engine.
#[derive(Debug)]
pub struct Relay {
    server: Server,
    listeners: Vec<ListenerSocket>,
    /// By port number, which is also the ingress token.
    roles: Vec<Role>,
    /// By allocation.
    relays: Vec<Option<(UdpSocket, Port)>>,
    opening: Vec<(AllocationId, SocketAddr)>,
    /// Superpackets wanted.
    gro: bool,
    drops: Drops,
    duties: Duties,
    trouble_logged: Option<Instant>,
}

/// What stays the same along a client's superpacket.
#[derive(Default)]
struct ClientCache {
    /// The client's allocation and its port, once looked up.
    relay: Option<Result<(AllocationId, Port), Cause>>,
    /// Where the last channel number leads.
    channel: Option<(ChannelNumber, Result<PeerSocket, Cause>)>,
    /// What was relayed so far.
    relayed: Volume,
}

impl Relay {
    /// A relay on sockets that are bound already (so that their ports are known and refused as peers).
    #[must_use]
    pub fn new(server: Server, listeners: Vec<UdpSocket>, gro: bool, duties: Duties) -> Self {
        Self {
            server,
            // The ports are given by `start`.
            listeners: listeners
                .into_iter()
                .map(|socket| ListenerSocket { socket, port: Port(u32::MAX) })
                .collect(),
            roles: Vec::new(),
            relays: Vec::new(),
            opening: Vec::new(),
            gro,
            drops: Drops::default(),
            duties,
            trouble_logged: None,
        }
    }

    fn set_role(&mut self, port: Port, role: Role) {
        let index = port.0 as usize;
        if self.roles.len() <= index {
            self.roles.resize(index + 1, Role::Vacant);
        }
        self.roles[index] = role;
    }

    /// A superpacket from a client.
    fn handle_client<E: Egress>(
        &mut self,
        client: &ClientSocket,
        bytes: &mut [u8],
        segment_size: usize,
        egress: &mut E,
        now: Instant,
    ) {
        let mut cache = ClientCache::default();
        for segment in Received::segments(bytes, segment_size) {
            let forwarded = if ChannelData::is_channel_data(segment) {
                self.forward_channel_data(client, segment, &mut cache, egress, now)
            } else {
                // A request may change what the cache knows.
                self.count_channel_data(&std::mem::take(&mut cache));
                self.handle_message(client, segment, egress, now)
            };
            if let Err(cause) = forwarded {
                self.drops.count(cause);
            }
        }
        self.count_channel_data(&cache);
    }

    fn count_channel_data(&mut self, cache: &ClientCache) {
        if let Some(Ok((allocation, _))) = cache.relay {
            self.server.count_relayed(allocation, Direction::ToPeer, Carrier::Channel, cache.relayed);
        }
    }

    fn forward_channel_data<E: Egress>(
        &self,
        client: &ClientSocket,
        segment: &[u8],
        cache: &mut ClientCache,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        let data = ChannelData::parse(segment).ok_or(Cause::MalformedOuter)?;
        let (allocation, port) = (*cache.relay.get_or_insert_with(|| self.relay_of(client, now)))?;
        let peer = match cache.channel {
            Some((number, peer)) if number == data.number => peer,
            Some(_) | None => {
                let peer = self.server.channel_peer(allocation, data.number, now);
                cache.channel = Some((data.number, peer));
                peer
            }
        }?;
        send_to_peer(port, peer, data.payload, egress);
        cache.relayed.count(data.payload.len());
        Ok(())
    }

    fn relay_of(&self, client: &ClientSocket, now: Instant) -> Result<(AllocationId, Port), Cause> {
        let allocation = self.server.find(client, now).ok_or(Cause::NoAllocation)?;
        Ok((allocation, self.relay_port(allocation).ok_or(Cause::NoAllocation)?))
    }

    fn relay_port(&self, allocation: AllocationId) -> Option<Port> {
        self.relays.get(allocation.0 as usize)?.as_ref().map(|&(_, port)| port)
    }

    /// A STUN message from a client.
    fn handle_message<E: Egress>(
        &mut self,
        client: &ClientSocket,
        segment: &[u8],
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        match self.server.handle_client(client, segment, now) {
            FromClient::Forward { allocation, peer, payload } => {
                let port = self.relay_port(allocation).ok_or(Cause::NoAllocation)?;
                let payload = segment.get(payload).ok_or(Cause::MalformedOuter)?;
                send_to_peer(port, peer, payload, egress);
                let volume = Volume { packets: 1, bytes: payload.len() as u64 };
                self.server.count_relayed(allocation, Direction::ToPeer, Carrier::Indication, volume);
            }
            FromClient::Reply => self.send_reply(client, egress),
            FromClient::OpenRelay { allocation, address } => self.opening.push((allocation, address)),
            FromClient::Consumed => {}
            FromClient::Drop(cause) => return Err(cause),
        }
        Ok(())
    }

    fn send_reply<E: Egress>(&self, client: &ClientSocket, egress: &mut E) {
        let reply = self.server.reply();
        egress.append(&self.target(client), reply.len(), Class::Control, |slot| {
            slot.copy_from_slice(reply);
            true
        });
    }

    /// The way to a client: from the socket and address it talks to.
    fn target(&self, client: &ClientSocket) -> Target {
        let listener = &self.listeners[usize::from(client.listener.0)];
        // A socket bound to one address needs no telling.
        let from = client.local.filter(|_| listener.is_wildcard());
        Target { port: listener.port, to: client.address, from, ecn: 0 }
    }

    /// A superpacket from a peer.
    fn handle_peer<E: Egress>(
        &mut self,
        allocation: AllocationId,
        from: SocketAddr,
        bytes: &mut [u8],
        segment_size: usize,
        egress: &mut E,
        now: Instant,
    ) {
        let peer = PeerSocket(from);
        let mut relayed = Volume::default();
        let carrier = match self.server.handle_peer(allocation, peer, now) {
            FromPeer::Channel { client, number } => {
                let target = self.target(&client);
                for segment in Received::segments(bytes, segment_size) {
                    if send_channel_data(&target, number, segment, egress) {
                        relayed.count(segment.len());
                    } else {
                        self.drops.count(Cause::Mtu);
                    }
                }
                Carrier::Channel
            }
            FromPeer::Indication { client } => {
                let target = self.target(&client);
                for segment in Received::segments(bytes, segment_size) {
                    if self.send_indication(&target, peer, segment, egress) {
                        relayed.count(segment.len());
                    } else {
                        self.drops.count(Cause::Mtu);
                    }
                }
                Carrier::Indication
            }
            FromPeer::Drop(cause) => {
                self.drops.add(cause, Received::segments(bytes, segment_size).count() as u64);
                return;
            }
        };
        self.server.count_relayed(allocation, Direction::ToClient, carrier, relayed);
    }

    /// Whether it was not too long.
    fn send_indication<E: Egress>(
        &mut self,
        target: &Target,
        peer: PeerSocket,
        payload: &[u8],
        egress: &mut E,
    ) -> bool {
        let Some(header) = self.server.data_indication(peer, payload.len()) else { return false };
        let data_end = header.len() + payload.len();
        let len = data_end + padding(payload.len());
        if len > PAYLOAD_MAX {
            return false;
        }
        egress.append(target, len, Class::Data, |slot| {
            slot[..header.len()].copy_from_slice(header);
            slot[header.len()..data_end].copy_from_slice(payload);
            slot[data_end..].fill(0);
            true
        });
        true
    }

    /// Opens the socket of an allocation, on another port when somebody has the first, and answers the client.
    fn open<I: Ingress, E: Egress>(
        &mut self,
        allocation: AllocationId,
        mut address: SocketAddr,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        loop {
            let result = self.open_socket(allocation, address, ingress, egress, now);
            match self.server.handle_relay_opened(allocation, result, now) {
                Opened::Reply { client } => return self.send_reply(&client, egress),
                Opened::Retry(other) => address = other,
                Opened::Gone => return self.close_socket(allocation, ingress, egress),
            }
        }
    }

    fn open_socket<I: Ingress, E: Egress>(
        &mut self,
        allocation: AllocationId,
        address: SocketAddr,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), OpenFailure> {
        let options = UdpOptions {
            gro: self.gro,
            receive_buffer: RELAY_SOCKET_BUFFER,
            send_buffer: RELAY_SOCKET_BUFFER,
            packet_info: false,
            ..UdpOptions::default()
        };
        let opened = UdpSocket::bind(address, &options).and_then(|socket| {
            let port = register(&socket, ingress, egress)?;
            Ok((socket, port))
        });
        let (socket, port) = opened.map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                return OpenFailure::PortTaken;
            }
            self.log_trouble(&error, now);
            OpenFailure::Other
        })?;
        let index = allocation.0 as usize;
        if self.relays.len() <= index {
            self.relays.resize_with(index + 1, || None);
        }
        self.relays[index] = Some((socket, port));
        self.set_role(port, Role::Relay(allocation));
        Ok(())
    }

    fn close_socket<I: Ingress, E: Egress>(
        &mut self,
        allocation: AllocationId,
        ingress: &mut I,
        egress: &mut E,
    ) {
        let Some((_socket, port)) = self.relays.get_mut(allocation.0 as usize).and_then(Option::take) else {
            return;
        };
        ingress.remove(Token(port.0));
        egress.remove(port);
        self.set_role(port, Role::Vacant);
    }

    fn log_trouble(&mut self, error: &io::Error, now: Instant) {
        if self.trouble_logged.is_none_or(|logged| now >= logged + TROUBLE_INTERVAL) {
            self.trouble_logged = Some(now);
            tracing::warn!(%error, "relay sockets cannot be opened, clients get 508; is the limit of open files (ulimit -n) high enough?");
        }
    }
}

/// Adds a socket to both sides of the engine, under the same number.
fn register<I: Ingress, E: Egress>(socket: &UdpSocket, ingress: &mut I, egress: &mut E) -> io::Result<Port> {
    let port = egress.add_socket(socket.fd().clone())?;
    if let Err(error) = ingress.add(socket.fd().as_fd(), Token(port.0), Source::Udp) {
        egress.remove(port);
        return Err(error);
    }
    Ok(port)
}

fn send_to_peer<E: Egress>(port: Port, peer: PeerSocket, payload: &[u8], egress: &mut E) {
    let target = Target { port, to: peer.0, from: None, ecn: 0 };
    egress.append(&target, payload.len(), Class::Data, |slot| {
        slot.copy_from_slice(payload);
        true
    });
}

/// Whether it was not too long.
fn send_channel_data<E: Egress>(
    target: &Target,
    number: ChannelNumber,
    payload: &[u8],
    egress: &mut E,
) -> bool {
    let len = channel_data::HEADER_LEN + payload.len();
    let Some(header) = channel_data::header(number, payload.len()).filter(|_| len <= PAYLOAD_MAX) else {
        return false;
    };
    egress.append(target, len, Class::Data, |slot| {
        slot[..channel_data::HEADER_LEN].copy_from_slice(&header);
        slot[channel_data::HEADER_LEN..].copy_from_slice(payload);
        true
    });
    true
}

impl Application for Relay {
    // On one bulk socket epoll is some 5 % cheaper, and with many sockets the difference is within the noise.
    fn default_ingress(&self) -> IngressKind {
        IngressKind::Epoll
    }

    fn start<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> io::Result<()> {
        for index in 0..self.listeners.len() {
            let port = register(&self.listeners[index].socket, ingress, egress)?;
            self.listeners[index].port = port;
            self.set_role(port, Role::Listener(Listener(index as u16)));
        }
        let listen: Vec<String> =
            self.listeners.iter().map(|listener| listener.socket.local_addr().to_string()).collect();
        self.duties.start(ingress, now)?;
        tracing::info!(listen = listen.join(" "), "ready");
        Ok(())
    }

    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, now: Instant) {
        let Meta::Udp { from, to, segment_size } = received.meta else {
            return self.duties.handle_ready(received.token);
        };
        match self.roles.get(received.token.0 as usize).copied().unwrap_or(Role::Vacant) {
            Role::Listener(listener) => {
                let own = self.listeners[usize::from(listener.0)].socket.local_addr().ip();
                let local: Option<IpAddr> = if own.is_unspecified() { to } else { Some(own) };
                let client = ClientSocket { address: from, listener, local };
                self.handle_client(&client, received.bytes, segment_size, egress, now);
            }
            Role::Relay(allocation) => {
                self.handle_peer(allocation, from, received.bytes, segment_size, egress, now);
            }
            Role::Vacant => {
                let lost = Received::segments(received.bytes, segment_size).count();
                self.drops.add(Cause::NoAllocation, lost as u64);
            }
        }
    }

    fn handle_timeout<E: Egress>(&mut self, _egress: &mut E, now: Instant) {
        self.server.handle_timeout(now);
        self.duties.handle_timeout(&self.drops, &self.server, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.server.poll_timeout().into_iter().chain(self.duties.poll_timeout()).min()
    }

    fn maintain<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) -> Next {
        while let Some(Command::Close(allocation)) = self.server.poll_command() {
            self.close_socket(allocation, ingress, egress);
            self.server.handle_relay_closed(allocation);
        }
        while let Some((allocation, address)) = self.opening.pop() {
            self.open(allocation, address, ingress, egress, now);
        }
        self.duties.maintain(&mut self.server, &self.drops, ingress, egress, now)
    }

    // A UDP socket cannot be slowed down: what is not read is lost in the kernel instead of here.
    fn slow_down<I: Ingress>(&mut self, _ingress: &mut I, _reading: bool) {}

    fn signals(&self) -> &'static [Signal] {
        &[Signal::Hangup]
    }

    fn handle_signal(&mut self, signal: Signal, now: Instant) -> Next {
        self.duties.handle_signal(signal, &mut self.server, now)
    }

    // Clients notice by themselves that a relay is gone; TURN has no way to tell them.
    fn stop<E: Egress>(&mut self, _egress: &mut E, _now: Instant) {
        self.duties.finish(&self.drops, &self.server);
    }

    fn drops(&self) -> Drops {
        self.drops.clone()
    }
}
