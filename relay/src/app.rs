//! The relay on the engine: sockets around the server, and the two paths that data takes.
//!
//! ```text
//!  client ── listener ──► strip 4 bytes ──► relay socket ── peer
//!  client ◄── listener ── add 4 bytes  ◄── relay socket ◄── peer
//! ```
//! Payload goes straight from the receive buffer into the memory it leaves from: one copy. A superpacket costs one
//! look-up of its sender, and one of its channel as long as the number stays the same. Data for another client of this
//! relay takes neither relay socket ([`Way`]).

mod crew;
mod icmp;
mod lag;
mod policing;
mod sockets;
mod streams;
mod way;

pub mod duties;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Instant;

use dataplane::driver::{Application, Next};
use dataplane::drops::{Cause, Drops};
use dataplane::egress::{Egress, Port};
use dataplane::engine::IngressKind;
use dataplane::ingress::{Ingress, Meta, Received, Source};
use dataplane::stun::channel_data::{ChannelData, ChannelNumber};
use dataplane::sys::signal::Signal;
use dataplane::sys::udp::UdpSocket;

use self::duties::{Duties, Subjects};
use self::icmp::Silenced;
use self::lag::TimerLag;
use self::policing::ClientCache;
use self::sockets::register;
use self::way::Way;
use crate::crew::Member;
use crate::overload::Overload;
use crate::own_addresses::OwnAddresses;
use crate::ready::ReadySource;
use crate::server::figures::{Carrier, Direction, Volume};
use crate::server::{AllocationId, ClientSocket, Command, FromClient, Listener, Pair, PeerSocket, Server};
use crate::stream::Streams;
use crate::time_of_day::TimeOfDay;

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
    /// By port number: relay sockets that have not been equipped yet.
    deaf: Vec<bool>,
    /// Those that have, and that nothing is received from yet.
    equipped: Vec<Port>,
    silenced: Silenced,
    /// Clients over TCP and TLS.
    streams: Streams,
    /// The other workers, where there are any.
    member: Option<Member>,
    /// Superpackets wanted.
    gro: bool,
    /// Missing where the addresses of this machine cannot be read.
    own_addresses: Option<OwnAddresses>,
    overload: Overload,
    drops: Drops,
    /// What went from client to client without the kernel in between, and the part of it that came from another worker's.
    hairpinned: Volume,
    posted: Volume,
    duties: Duties,
    time_of_day: TimeOfDay,
    timer_lag: TimerLag,
    trouble_logged: Option<Instant>,
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
            deaf: Vec::new(),
            equipped: Vec::new(),
            silenced: Silenced::default(),
            streams: Streams::none(),
            member: None,
            gro,
            own_addresses: None,
            overload: Overload::default(),
            drops: Drops::default(),
            hairpinned: Volume::default(),
            posted: Volume::default(),
            duties,
            time_of_day: TimeOfDay::default(),
            timer_lag: TimerLag::default(),
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
        let load = Volume::superpacket(bytes.len(), segment_size);
        let mut cache = ClientCache::default();
        for segment in Received::segments(bytes, segment_size) {
            if let Err(cause) = self.handle_segment(client, segment, load, &mut cache, egress, now) {
                self.drops.count(cause);
            }
        }
        self.count_channel_data(&mut cache);
    }

    /// One datagram, or one message of a stream; `load` is what it came with.
    fn handle_segment<E: Egress>(
        &mut self,
        client: &ClientSocket,
        segment: &[u8],
        load: Volume,
        cache: &mut ClientCache,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        if ChannelData::is_channel_data(segment) {
            return self.forward_channel_data(client, segment, load, cache, egress, now);
        }
        self.forget(cache);
        self.handle_message(client, segment, load, cache, egress, now)
    }

    fn forward_channel_data<E: Egress>(
        &mut self,
        client: &ClientSocket,
        segment: &[u8],
        load: Volume,
        cache: &mut ClientCache,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        let data = ChannelData::parse(segment).ok_or(Cause::MalformedOuter)?;
        if cache.channel.as_ref().is_some_and(|&(number, _)| number != data.number) {
            cache.channel = None;
        }
        let (_, way) = cache.channel.get_or_insert_with(|| {
            let look_up = || self.server.find(client, now).ok_or(Cause::NoAllocation);
            let pair = *cache.allocations.get_or_insert_with(look_up);
            (data.number, pair.and_then(|pair| self.channel_way(pair, data.number, now)))
        });
        let (allocation, way) = (*way)?;
        self.admit(allocation, load, cache, now)?;
        self.forward(&way, data.payload, egress, now)?;
        cache.relayed.count(data.payload.len());
        Ok(())
    }

    /// The allocation and way of ChannelData of a number.
    fn channel_way(
        &self,
        pair: Pair,
        number: ChannelNumber,
        now: Instant,
    ) -> Result<(AllocationId, Way), Cause> {
        let (allocation, peer) = self.server.channel(pair, number, now)?;
        Ok((allocation, self.way(allocation, peer, false, now)?))
    }

    /// A STUN message from a client.
    fn handle_message<E: Egress>(
        &mut self,
        client: &ClientSocket,
        segment: &[u8],
        load: Volume,
        cache: &mut ClientCache,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        let answer = self.server.handle_client(client, segment, now);
        self.equip_permitted(now);
        match answer {
            FromClient::Forward { allocation, peer, payload, dont_fragment } => {
                let payload = segment.get(payload).ok_or(Cause::MalformedOuter)?;
                let way = self.way(allocation, peer, dont_fragment, now)?;
                self.admit(allocation, load, cache, now)?;
                self.forward(&way, payload, egress, now)?;
                let volume = Volume::of(payload.len());
                self.server.count_relayed(allocation, Direction::ToPeer, Carrier::Indication, volume);
            }
            FromClient::Reply => self.send_reply(client, egress, now),
            FromClient::OpenRelay { allocation, address } => self.opening.push((allocation, address)),
            FromClient::Consumed => {}
            FromClient::Drop(cause) => return Err(cause),
        }
        Ok(())
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
        let load = Volume::superpacket(bytes.len(), segment_size);
        let delivery = self.delivery(self.server.handle_peer(allocation, peer, now), peer);
        let admitted = delivery.and_then(|delivery| {
            self.server.admit(allocation, Direction::ToClient, load, now).map(|()| delivery)
        });
        let delivery = match admitted {
            Ok(delivery) => delivery,
            Err(cause) => return self.drops.add(cause, load.packets),
        };
        let mut relayed = Volume::default();
        for segment in Received::segments(bytes, segment_size) {
            match self.deliver(&delivery, segment, egress, now) {
                Ok(()) => relayed.count(segment.len()),
                Err(cause) => self.drops.count(cause),
            }
        }
        self.server.count_relayed(allocation, Direction::ToClient, delivery.carrier(), relayed);
    }
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
        self.time_of_day.start(&mut self.server, now);
        for index in 0..self.listeners.len() {
            let port = register(&self.listeners[index].socket, Source::Udp, ingress, egress)?;
            self.listeners[index].port = port;
            self.set_role(port, Role::Listener(Listener(index as u16)));
        }
        if let Some(own_addresses) = &self.own_addresses {
            ingress.add_borrowed(own_addresses.as_fd(), ReadySource::OwnAddresses.token(), Source::Ready)?;
        }
        self.start_streams(ingress)?;
        if let Some(member) = &self.member {
            member.start(ingress)?;
        }
        self.duties.start(ingress, now)?;
        // The first is the last to start.
        if self.is_first() {
            let listen: Vec<String> =
                self.listeners.iter().map(|listener| listener.socket.local_addr().to_string()).collect();
            tracing::info!(listen = listen.join(" "), "ready");
        }
        Ok(())
    }

    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, now: Instant) {
        let (from, to, segment_size) = match received.meta {
            Meta::Udp { from, to, segment_size, .. } => (from, to, segment_size),
            Meta::Icmp(error) => return self.handle_icmp(received.token, error, egress, now),
            Meta::Tun | Meta::Ready | Meta::Writable => {
                return match ReadySource::of(received.token) {
                    Some(ReadySource::Figures) => self.duties.handle_figures_wanted(),
                    Some(ReadySource::OwnAddresses) => self.note_address_change(),
                    Some(ReadySource::Crew) => self.handle_bell(egress, now),
                    None => self.handle_stream(received.token, received.meta, egress, now),
                };
            }
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

    fn handle_timeout<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        // Those that are set ahead: others may be as old as what they remember.
        let (server, streams) = (self.server.poll_timeout(), self.streams.poll_timeout());
        let due = [server, streams, self.time_of_day.poll_timeout()].into_iter().flatten().min();
        self.timer_lag.note(due, now);
        self.notice_busy_sockets(egress);
        self.time_of_day.handle_timeout(&mut self.server, now);
        self.server.handle_timeout(now);
        self.hear_again(now);
        self.streams.handle_timeout(|client| self.server.find(client, now).is_some(), &mut self.drops, now);
        self.duties.handle_timeout(&self.drops, &self.server, now);
        if let Some(member) = &self.member {
            member.handle_timeout();
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let server = self.server.poll_timeout();
        let addresses = self.own_addresses.as_ref().and_then(OwnAddresses::poll_timeout);
        let duties = self.duties.poll_timeout();
        let (streams, time_of_day) = (self.streams.poll_timeout(), self.time_of_day.poll_timeout());
        let timeouts = [server, addresses, duties, streams, time_of_day, self.silenced.next()];
        timeouts.into_iter().flatten().min()
    }

    fn maintain<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) -> Next {
        self.change_streams(ingress, now);
        // Before any of them is closed.
        self.hear_equipped(ingress, now);
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Close(allocation) => {
                    self.close_socket(allocation, ingress, egress);
                    self.server.handle_relay_closed(allocation);
                }
                Command::Hint(client) => {
                    self.server.hint();
                    self.send_reply(&client, egress, now);
                }
            }
        }
        while let Some((allocation, address)) = self.opening.pop() {
            self.open(allocation, address, ingress, egress, now);
        }
        self.maintain_policy(ingress, now);
        let subjects = Subjects {
            server: &self.server,
            streams: &self.streams,
            drops: &self.drops,
            hairpinned: self.hairpinned,
            timer_lag: self.timer_lag.worst(),
        };
        let next = self.duties.maintain(subjects, ingress, egress, now);
        self.maintain_crew(now);
        self.write_streams(ingress, now);
        next
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
    fn stop<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        self.stop_crew(egress, now);
        self.stop_streams();
        self.say_farewell();
    }

    fn drops(&self) -> Drops {
        self.drops.clone()
    }
}
