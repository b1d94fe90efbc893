//! The relay on the engine: sockets around the server, and the two paths that data takes.
//!
//! ```text
//!  client ── listener ──► strip 4 bytes ──► relay socket ── peer
//!  client ◄── listener ── add 4 bytes  ◄── relay socket ◄── peer
//! ```
//! Payload goes straight from the receive buffer into the memory it leaves from: one copy. A superpacket costs one
//! look-up of its sender, and one of its channel as long as the number stays the same. Data for another client of this
//! relay takes neither relay socket ([`Way`]).

mod way;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dataplane::driver::{Application, Next};
use dataplane::drops::{Cause, Drops};
use dataplane::egress::{Class, Egress, Port, Target};
use dataplane::engine::IngressKind;
use dataplane::ingress::{Ingress, Meta, Received, Source, Token};
use dataplane::stun::channel_data::{ChannelData, ChannelNumber};
use dataplane::sys::udp::{UdpOptions, UdpSocket};

pub use self::way::Hairpinned;
use self::way::{Delivery, Way};
use crate::report::Report;
use crate::server::{
    AllocationId, ClientSocket, Command, FromClient, Listener, OpenFailure, Opened, PeerSocket, Server,
};

/// Socket buffers asked for on a relay socket with one allocation, in bytes. There may be thousands of them.
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
    /// Peers of all allocations at this address send to it.
    Shared(SocketAddr),
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
    hairpinned: Hairpinned,
    report: Report,
    trouble_logged: Option<Instant>,
}

/// What stays the same along a client's superpacket.
#[derive(Default)]
struct ClientCache {
    /// The client's allocation and its port, once looked up.
    relay: Option<Result<(AllocationId, Port), Cause>>,
    /// Where the last channel number leads.
    channel: Option<(ChannelNumber, Result<Way, Cause>)>,
}

impl Relay {
    /// A relay on sockets that are bound already (so that their ports are known and refused as peers).
    #[must_use]
    pub fn new(server: Server, listeners: Vec<UdpSocket>, gro: bool) -> Self {
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
            hairpinned: Hairpinned::default(),
            report: Report::default(),
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
                cache = ClientCache::default();
                self.handle_message(client, segment, egress, now)
            };
            if let Err(cause) = forwarded {
                self.drops.count(cause);
            }
        }
    }

    fn forward_channel_data<E: Egress>(
        &mut self,
        client: &ClientSocket,
        segment: &[u8],
        cache: &mut ClientCache,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        let data = ChannelData::parse(segment).ok_or(Cause::MalformedOuter)?;
        let (allocation, port) = (*cache.relay.get_or_insert_with(|| self.relay_of(client, now)))?;
        if cache.channel.as_ref().is_some_and(|&(number, _)| number != data.number) {
            cache.channel = None;
        }
        let (_, way) = cache.channel.get_or_insert_with(|| {
            let peer = self.server.channel_peer(allocation, data.number, now);
            (data.number, peer.and_then(|peer| self.way(allocation, port, peer, now)))
        });
        let way = way.as_ref().map_err(|&cause| cause)?;
        self.forward(way, data.payload, egress)
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
                let way = self.way(allocation, port, peer, now)?;
                self.forward(&way, payload, egress)?;
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
        let delivery = match Delivery::of(self.server.handle_peer(allocation, peer, now), peer) {
            Ok(delivery) => delivery,
            Err(cause) => {
                let lost = Received::segments(bytes, segment_size).count();
                return self.drops.add(cause, lost as u64);
            }
        };
        for segment in Received::segments(bytes, segment_size) {
            if let Err(cause) = self.deliver(&delivery, segment, egress) {
                self.drops.count(cause);
            }
        }
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
        if let Some(shared) = self.socket_at(address) {
            self.put_relay(allocation, shared);
            return Ok(());
        }
        let is_shared = self.server.shares_ports();
        let mut options = UdpOptions { gro: self.gro, packet_info: false, ..UdpOptions::default() };
        if !is_shared {
            options.receive_buffer = RELAY_SOCKET_BUFFER;
            options.send_buffer = RELAY_SOCKET_BUFFER;
        }
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
        self.put_relay(allocation, (socket, port));
        self.set_role(port, if is_shared { Role::Shared(address) } else { Role::Relay(allocation) });
        Ok(())
    }

    /// The socket that allocations at an address have already.
    fn socket_at(&self, address: SocketAddr) -> Option<(UdpSocket, Port)> {
        self.server.tenants(address).iter().find_map(|id| self.relays.get(id.0 as usize)?.clone())
    }

    fn put_relay(&mut self, allocation: AllocationId, relay: (UdpSocket, Port)) {
        let index = allocation.0 as usize;
        if self.relays.len() <= index {
            self.relays.resize_with(index + 1, || None);
        }
        self.relays[index] = Some(relay);
    }

    fn close_socket<I: Ingress, E: Egress>(
        &mut self,
        allocation: AllocationId,
        ingress: &mut I,
        egress: &mut E,
    ) {
        let Some((socket, port)) = self.relays.get_mut(allocation.0 as usize).and_then(Option::take) else {
            return;
        };
        if self.socket_at(socket.local_addr()).is_some() {
            // Others have it still.
            return;
        }
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

impl Application for Relay {
    // On one bulk socket epoll is some 5 % cheaper, and with many sockets the difference is within the noise.
    fn default_ingress(&self) -> IngressKind {
        IngressKind::Epoll
    }

    fn start<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        _now: Instant,
    ) -> io::Result<()> {
        for index in 0..self.listeners.len() {
            let port = register(&self.listeners[index].socket, ingress, egress)?;
            self.listeners[index].port = port;
            self.set_role(port, Role::Listener(Listener(index as u16)));
        }
        let listen: Vec<String> =
            self.listeners.iter().map(|listener| listener.socket.local_addr().to_string()).collect();
        tracing::info!(listen = listen.join(" "), "ready");
        Ok(())
    }

    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, now: Instant) {
        let Meta::Udp { from, to, segment_size } = received.meta else { return };
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
            Role::Shared(address) => match self.server.recipient(address, PeerSocket(from)) {
                Some(allocation) => {
                    self.handle_peer(allocation, from, received.bytes, segment_size, egress, now);
                }
                None => {
                    let lost = Received::segments(received.bytes, segment_size).count();
                    self.drops.add(Cause::NoPermission, lost as u64);
                }
            },
            Role::Vacant => {
                let lost = Received::segments(received.bytes, segment_size).count();
                self.drops.add(Cause::NoAllocation, lost as u64);
            }
        }
    }

    fn handle_timeout<E: Egress>(&mut self, _egress: &mut E, now: Instant) {
        self.server.handle_timeout(now);
        self.report.handle_timeout(&self.drops, &self.server, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let server = self.server.poll_timeout();
        let report = self.report.poll_timeout();
        server.into_iter().chain(report).min()
    }

    fn maintain<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) -> Next {
        while let Some(Command::Close(allocation)) = self.server.poll_command() {
            self.close_socket(allocation, ingress, egress);
            self.server.handle_relay_closed(allocation);
        }
        while let Some((allocation, address)) = self.opening.pop() {
            self.open(allocation, address, ingress, egress, now);
        }
        Next::Continue
    }

    // A UDP socket cannot be slowed down: what is not read is lost in the kernel instead of here.
    fn slow_down<I: Ingress>(&mut self, _ingress: &mut I, _reading: bool) {}

    // Clients notice by themselves that a relay is gone; TURN has no way to tell them.
    fn stop<E: Egress>(&mut self, _egress: &mut E, _now: Instant) {
        self.report.finish(&self.drops, &self.server);
        self.hairpinned.log();
    }

    fn drops(&self) -> Drops {
        self.drops.clone()
    }
}
