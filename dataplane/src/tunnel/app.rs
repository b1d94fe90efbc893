//! The tunnel endpoint on the engine: a TUN device on one side, UDP sockets or a TURN relay on the other.
//!
//! ```text
//!  TUN superpacket ─► split in place ─► route ─► [pad in the stack packet] ─► seal into the slot ─► UDP, or ChannelData to the relay
//!  UDP superpacket ─► [relay: take the payload out] ─► open into the stack packet ─► TUN
//! ```

mod behind;
mod control;
mod figures;
mod link;
mod names;
mod outside;
mod ports;
mod relays;
mod replies;
mod sleep;
mod status;
mod stream;
mod tickets;
mod wake;
mod way;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::control::Control;
pub use self::control::Management;
use self::figures::Figures;
use self::link::Link;
pub use self::names::Subject;
use self::outside::Outside;
pub use self::outside::{AutoMtu, Inquiries, auto_mtu};
use self::ports::Ports;
pub use self::ports::{Binding, Sockets};
pub use self::relays::{Relay, RelayChoice, RelayPlan};
use self::replies::Replies;
use self::sleep::Alarm;
pub use self::stream::Carrier;
pub use self::tickets::{NO_RELAY, NOT_THE_NEXT};
use self::wake::Wake;
use self::way::{Way, seal_and_append};
use super::key::{KEY_LEN, PublicKey};
use super::marking::{self, Marking};
use super::{Opened, Path, PeerIndex, Transmit, Tunnel};
use crate::crypto::aead::{Bodies, Body};
use crate::crypto::crew::Sealed;
use crate::driver::{Application, Next};
use crate::drops::{Cause, Drops};
use crate::egress::{Class, Egress};
use crate::engine::IngressKind;
use crate::ingress::{Ingress, Meta, Received, Token};
use crate::offload::split::Splitter;
use crate::packet::Packet;
use crate::stages::Stages;
use crate::stun::channel_data;
use crate::sys::daemon::Notice;
use crate::sys::tun::{Offloads, Tun};
use crate::uapi::Listener;
use crate::wire::{too_big, traffic_class};

/// Peers whose sessions are ended in one turn when the private key is replaced: some 0.1 ms each.
const RENEWED: usize = 4;

/// The running endpoint.
pub struct App {
    tunnel: Tunnel,
    tun: Tun,
    sockets: Sockets,
    replies: Replies,
    alarm: Option<Alarm>,
    relay: Option<Relay>,
    /// One that is asked when the interface is up, and the name of one of its servers has an address.
    waiting_relay: Option<RelayPlan>,
    ports: Ports,
    ready: bool,
    /// All peers that can be called have to wait for the relay.
    needs_relay: bool,
    /// The one packet through which goes what is produced here: opened, padded, no longer staged.
    packet: Packet,
    binding: Binding,
    marking: Marking,
    outside: Outside,
    drop_in: bool,
    crypto_threads: usize,
    /// What is used up at the start.
    listener: Option<Listener>,
    own: Option<UnixStream>,
    notice: Option<Notice>,
    control: Option<Control>,
    link: Option<Link>,
    /// The interface has changed.
    link_news: bool,
    /// That it is gone has been said.
    deleted: bool,
    /// When sockets are to be bound that could not be.
    bind_at: Option<Instant>,
    /// When the last turn ended.
    turned: Option<Instant>,
    /// Who signed the last ticket of a peer, and when.
    tickets: HashMap<PublicKey, ([u8; KEY_LEN], Duration)>,
    figures: Figures,
}

impl App {
    /// Puts the parts together; nothing is read or sent before [`Application::start`].
    #[must_use]
    pub fn new(
        tunnel: Tunnel,
        tun: Tun,
        sockets: Sockets,
        relay: Option<Relay>,
        management: Management,
    ) -> Self {
        let Management {
            binding,
            marking,
            inquiries,
            waiting_relay,
            listener,
            own,
            drop_in,
            notice,
            admin,
            crypto_threads,
        } = management;
        Self {
            tunnel,
            tun,
            sockets,
            replies: Replies::default(),
            alarm: None,
            relay,
            waiting_relay,
            ports: Ports::default(),
            ready: false,
            needs_relay: false,
            packet: Packet::new(),
            binding,
            marking,
            outside: Outside::new(inquiries),
            drop_in,
            crypto_threads,
            listener,
            own,
            notice,
            control: None,
            link: None,
            link_news: false,
            deleted: false,
            bind_at: None,
            turned: None,
            tickets: HashMap::new(),
            figures: Figures::new(admin),
        }
    }

    fn handle_tun<E: Egress>(&mut self, superpacket: &mut [u8], egress: &mut E, now: Instant) {
        let bare = self.tun.offloads().bare;
        let splitter = if bare { Splitter::bare(superpacket) } else { Splitter::new(superpacket) };
        let mut splitter = match splitter {
            Ok(splitter) => splitter,
            Err(cause) => return self.tunnel.count_drop(cause),
        };
        // All packets of a superpacket are of one flow, so that one look at routes and path is enough.
        let (mut decided, mut told) = (None, false);
        while let Some(packet) = splitter.next_packet() {
            match *decided.get_or_insert_with(|| self.decide(packet, now)) {
                Ok((peer, Some(way))) => match way.refuses(packet) {
                    Some(mtu) => {
                        // One answer is enough for all of them.
                        let silent = std::mem::replace(&mut told, true);
                        let message = if silent { None } else { too_big::message(packet, mtu) };
                        self.refuse(message, egress, now);
                    }
                    // The session is gone: what follows waits for the next.
                    None if !self.send_packet(peer, &way, packet, egress, now) => decided = None,
                    None => {}
                },
                Ok((peer, None)) => self.tunnel.stage(peer, packet, now),
                Err(cause) => self.tunnel.count_drop(cause),
            }
        }
    }

    /// To whom a packet goes and by which way; no way while it has to wait for a handshake.
    fn decide(&mut self, packet: &[u8], now: Instant) -> Result<(PeerIndex, Option<Way>), Cause> {
        let peer = self.tunnel.route(packet)?;
        if let Some(relay) = self.relay.as_mut()
            && self.tunnel.paths(peer).is_some_and(|paths| paths.misses_relay(now))
        {
            relay.client.wanted(now);
        }
        match self.tunnel.ready(peer, now) {
            Some(path) => {
                let way = self.way(path, now)?.carrying(packet, self.marking);
                Ok((peer, Some(self.measured(way, peer, packet, now))))
            }
            None => Ok((peer, None)),
        }
    }

    /// Sends a packet from where it is, unless it has to be padded: behind it stands the next one. As
    /// [`App::send_stack_packet`].
    fn send_packet<E: Egress>(
        &mut self,
        peer: PeerIndex,
        way: &Way,
        packet: &[u8],
        egress: &mut E,
        now: Instant,
    ) -> bool {
        if self.tunnel.padded_len(packet.len()) == packet.len() && !way.is_stream {
            return seal_and_append(&mut self.tunnel, peer, way, packet, egress, now);
        }
        if self.packet.copy_from(packet).is_none() {
            self.tunnel.count_drop(Cause::MalformedInner);
            return true;
        }
        self.send_stack_packet(peer, way, egress, now)
    }

    /// Sends what is in the stack packet, or counts it; `false` when there is no session for it.
    fn send_stack_packet<E: Egress>(
        &mut self,
        peer: PeerIndex,
        way: &Way,
        egress: &mut E,
        now: Instant,
    ) -> bool {
        self.tunnel.pad(&mut self.packet);
        if way.is_stream {
            return self.seal_into_stream(peer, way, now);
        }
        let Self { tunnel, packet, .. } = self;
        seal_and_append(tunnel, peer, way, packet.as_slice(), egress, now)
    }

    fn handle_udp<E: Egress>(
        &mut self,
        from: SocketAddr,
        path: Path,
        ecn: u8,
        (segments, bodies): (crate::ingress::Segments<'_>, Bodies),
        egress: &mut E,
        now: Instant,
    ) {
        let relayed = self.is_relay(from);
        for (index, datagram) in segments.enumerate() {
            let datagram = (&*datagram, bodies.of(index));
            match relayed {
                true => self.handle_relay(datagram, ecn, egress, now),
                false => self.open(datagram, path, ecn, egress, now),
            }
        }
    }

    /// Whether datagrams from here are the relay's.
    fn is_relay(&self, from: SocketAddr) -> bool {
        self.relay.as_ref().is_some_and(|relay| relay.server == from && !relay.is_stream())
    }

    /// Opens a datagram that came with these ECN bits, and delivers what is in it.
    fn open<E: Egress>(
        &mut self,
        (datagram, body): (&[u8], Body),
        path: Path,
        ecn: u8,
        egress: &mut E,
        now: Instant,
    ) {
        let Opened::Packet(_) = self.tunnel.open_body(datagram, body, path, &mut self.packet, now) else {
            return;
        };
        match traffic_class::decapsulate(self.packet.as_mut_slice(), ecn) {
            Ok(()) => self.deliver(egress),
            Err(cause) => self.tunnel.count_drop(cause),
        }
    }

    /// Hands what is in the stack packet to the device.
    fn deliver<E: Egress>(&self, egress: &mut E) {
        if let Some(device) = self.ports.device {
            egress.deliver(device, self.packet.as_slice());
        }
    }

    /// Sends what protocol state machines want to say, then what no longer has to wait.
    fn send_control<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        self.serve_relay(egress, now);
        while let Some(message) = self.tunnel.poll_transmit() {
            self.transmit(&message, egress, now);
        }
        while let Some(peer) = self.tunnel.poll_staged(&mut self.packet, now) {
            let path = self.tunnel.ready(peer, now).ok_or(Cause::NoSession);
            match path.and_then(|path| self.way(path, now)) {
                Ok(way) => {
                    let packet = self.packet.as_slice();
                    let way = way.carrying(packet, self.marking);
                    match too_big::mtu_to_tell(packet, self.tunnel.packet_limit(peer)) {
                        Some(mtu) => self.refuse(too_big::message(packet, mtu), egress, now),
                        None => _ = self.send_stack_packet(peer, &way, egress, now),
                    }
                }
                Err(cause) => self.tunnel.count_drop(cause),
            }
        }
        // Sending can ask the relay for a channel.
        self.serve_relay(egress, now);
    }

    fn transmit<E: Egress>(&mut self, message: &Transmit, egress: &mut E, now: Instant) {
        let bytes = message.bytes();
        if message.is_cookie_reply() && self.reply_aside(message, now) {
            return;
        }
        // A control message that cannot leave is repeated by its timer; only packets are counted.
        let Ok(mut way) = self.way(message.path, now) else {
            return;
        };
        if way.is_stream {
            return self.push_into_stream(&way, bytes);
        }
        way.target.traffic_class = marking::of_control(bytes);
        let Some(front) = way.front(bytes.len()) else {
            return;
        };
        egress.append(&way.target, front.len() + bytes.len(), Class::Control, |slot| {
            let (head, rest) = slot.split_at_mut(front.len());
            head.copy_from_slice(&front);
            rest.copy_from_slice(bytes);
            true
        });
    }

    fn report_ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            let name = self.tun.name();
            match self.tunnel.private_key() {
                Some(_) => tracing::info!(interface = name, public_key = %self.tunnel.public_key(), "ready"),
                // The public key of zeros would look like one to hand out.
                None => tracing::info!(interface = name, "ready, without a private key"),
            }
        }
    }
}

impl Application for App {
    /// Socket and device wake the loop by a completion, not by the kernel's synchronous wake-up, which puts it onto the core
    /// of whoever sent. Where both ends share a machine a stream is up to 11 % faster so, and costs the same.
    fn default_ingress(&self) -> IngressKind {
        IngressKind::Uring
    }

    fn device(&self) -> Option<(Arc<OwnedFd>, Offloads)> {
        Some((Arc::clone(self.tun.fd()), self.tun.offloads()))
    }

    fn crypto_threads(&self) -> usize {
        self.crypto_threads
    }

    /// The TUN device is not read while anything waits: a full queue drains at 10 Mbit/s in this time.
    fn waiting_time(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn start<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> io::Result<()> {
        self.open_relay(now);
        self.open_device(ingress, egress)?;
        let sockets = std::mem::replace(&mut self.sockets, Sockets::NONE);
        self.open_sockets(sockets, ingress, egress)?;
        let (listener, own) = (self.listener.take(), self.own.take());
        self.open_control(listener, own, ingress, now)?;
        self.figures.start(ingress, now)?;
        self.open_link(ingress, egress, now);
        self.open_outside(ingress, now);
        // What there is to look at is looked at in the first turn, which nothing else need bring about.
        self.turned = Some(now);
        self.set_alarm(ingress);
        if self.tunnel.is_running() {
            self.begin_relay(now);
        }
        // Whoever can be reached directly need not wait for the relay.
        if !self.needs_relay {
            self.report_ready();
        }
        self.tunnel.handle_timeout(now);
        self.send_control(egress, now);
        self.notice.take().map_or(Ok(()), Notice::tell)
    }

    fn foresee(&self, from: SocketAddr, bytes: &[u8], segment_size: usize, now: Instant) -> Option<Sealed> {
        let front = if self.is_relay(from) { channel_data::HEADER_LEN } else { 0 };
        let first = bytes.get(front..segment_size.min(bytes.len()))?;
        let key = self.tunnel.receiving_key(first, now)?.clone();
        Some(Sealed { key, segment_size, front })
    }

    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, now: Instant) {
        match received.meta {
            Meta::Tun => self.handle_tun(received.bytes, egress, now),
            Meta::Udp { from, to, segment_size, ecn } => {
                let path = Path::Direct { to: from, from: to };
                let segments = Received::segments(received.bytes, segment_size);
                self.handle_udp(from, path, ecn, (segments, received.bodies), egress, now);
            }
            Meta::Ready => match Wake::of(received.token) {
                Some(Wake::Control) => return self.note_control(now),
                Some(Wake::Figures) => return self.figures.handle_ready(now),
                Some(Wake::Link) => return self.link_news = true,
                Some(Wake::Stream) => self.read_stream(egress, now),
                Some(Wake::Names) => return self.outside.names.news = true,
                Some(Wake::Routes) => return self.outside.note_routes(now),
                Some(Wake::Addresses) => return self.outside.note_addresses(),
                Some(Wake::Alarm) => self.note_alarm(now),
                None => {}
            },
            Meta::Writable if received.token == Wake::Stream.token() => self.unblock_stream(),
            Meta::Icmp(_) | Meta::Writable => {}
        }
        self.send_control(egress, now);
    }

    fn handle_timeout<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        self.tunnel.handle_timeout(now);
        self.figures.look(now);
        if let Some(relay) = &mut self.relay {
            relay.handle_timeout(now);
        }
        self.send_control(egress, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let relay = self.relay.as_ref().and_then(Relay::poll_timeout);
        let at_once = self.turned.filter(|_| self.link_news || self.tunnel.is_renewing());
        let asked = self.figures.poll_timeout();
        let due =
            [self.tunnel.poll_timeout(), relay, self.control_timeout(), self.outside.timeout(), at_once];
        due.into_iter().chain([self.bind_at, asked]).flatten().min()
    }

    fn maintain<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) -> Next {
        self.turned = Some(now);
        if self.link_news && self.follow_link(ingress, egress, now) == Next::Stop {
            return Next::Stop;
        }
        if self.bind_at.is_some_and(|at| at <= now) {
            self.go_up(ingress, egress, now);
        }
        self.tunnel.renew_some(RENEWED);
        self.serve_stream(ingress, egress, now);
        self.look_outside(ingress, egress, now);
        self.serve_figures(ingress, egress, now);
        self.serve_control(ingress, egress, now)
    }

    fn handle_failure(&mut self, error: io::Error) -> io::Result<()> {
        let ends = self.tun.is_deleted() && self.device_deleted() == Next::Stop;
        if ends { Ok(()) } else { Err(error) }
    }

    fn slow_down<I: Ingress>(&mut self, ingress: &mut I, reading: bool) {
        if let Some(device) = self.ports.device {
            ingress.set_reading(Token(device.0), reading);
        }
    }

    fn stop<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        self.tunnel.stop();
        if let Some(relay) = &mut self.relay {
            relay.close(now);
        }
        self.serve_relay(egress, now);
        self.finish_stream();
    }

    fn drops(&self) -> Drops {
        self.tunnel.drops().clone()
    }

    fn stages(&mut self) -> Option<&mut Stages> {
        Some(&mut self.figures.stages)
    }
}
