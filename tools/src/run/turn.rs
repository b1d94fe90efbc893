//! The TURN kinds: allocates on the relay, binds a channel or asks for a permission, and frames the load.

use std::net::{IpAddr, SocketAddr, UdpSocket as PlainSocket};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dataplane::stun::{
    AddressFamily, ChannelData, Class, ErrorCode, Message, Method, TransactionId, Writer, channel_data,
};
use dataplane::sys::udp::UdpSocket;
use dataplane::turn::{Client, ClientConfig, Event, Input};
use zeroize::Zeroizing;

use super::clock::monotonic_ns;
use super::frame::Prefix;
use super::kind::Kind;
use super::path::{Flow, Path, allow_descriptors, bind, local_address};
use super::problem::Problem;
use super::receiver::{Framing, Poller};
use super::spec::RunSpec;

/// Set-up is given up after this long without an answer that brings it forward.
const PATIENCE_NS: u64 = 10_000_000_000;
/// The answer to a request that the relay's policy forbids (RFC 8656 section 19).
const FORBIDDEN: ErrorCode = ErrorCode(403);
/// Longest header of a Send indication: message header, XOR-PEER-ADDRESS of IPv6, DATA's header.
const INDICATION_HEADER_MAX: usize = 20 + 24 + 4;

/// A relay that carries data for us.
pub(super) struct Relayed {
    /// Client sockets and headers.
    pub path: Path,
    /// How the headers are used.
    pub wrap: Prefix,
    /// Takes payloads out of what the relay sends, and keeps the allocations alive.
    pub framing: TurnFraming,
    /// The far end: one socket for each flow, by its index.
    pub peers: Vec<UdpSocket>,
}

/// The TURN clients of a run, one for each allocation; client `n` owns socket `n`.
pub(super) struct TurnFraming {
    clients: Vec<Client>,
    sockets: Vec<UdpSocket>,
    server: SocketAddr,
    /// Who this is to the relay.
    username: String,
    /// Where the far end is, as the relay reaches it.
    peer: IpAddr,
    /// The first thing the relay refused.
    trouble: Option<String>,
    /// Whether it has answered that its policy forbids a peer.
    forbids: bool,
    channels_bound: usize,
    allocated: Vec<bool>,
}

/// Allocates and binds everything the run needs.
///
/// # Errors
/// [`Problem::Setup`], naming what the relay refused and how to mend it.
pub(super) fn connect(spec: &RunSpec) -> Result<Relayed, Problem> {
    allow_descriptors(u64::from(spec.flows) + u64::from(spec.allocations))?;
    let peer_ip = peer_address(spec)?;
    let bind_all =
        |count: u32, address| (0..count).map(|_| bind(spec, address)).collect::<Result<Vec<_>, _>>();
    let sockets = bind_all(spec.allocations, local_address(spec))?;
    let peers = bind_all(spec.flows, SocketAddr::new(peer_ip, 0))?;
    let mut framing = TurnFraming::new(spec, &sockets, peer_ip);
    framing.set_up(spec, &peers)?;
    let mut flows = Vec::with_capacity(peers.len());
    for (index, peer) in peers.iter().enumerate() {
        let socket = index % sockets.len();
        let prefix = framing.prefix(spec, socket, peer.local_addr())?;
        flows.push(Flow { socket, to: spec.target, prefix });
    }
    let wrap = match spec.kind {
        Kind::TurnChannel => Prefix::Channel,
        _ => Prefix::Indication(flows[0].prefix.len()),
    };
    Ok(Relayed { path: Path { sockets, flows }, wrap, framing, peers })
}

/// Where the in-process peer listens: as told, else the address from which this host reaches the relay.
fn peer_address(spec: &RunSpec) -> Result<IpAddr, Problem> {
    if let Some(address) = spec.peer.or(spec.bind) {
        return Ok(address);
    }
    let route = || -> std::io::Result<IpAddr> {
        let probe = PlainSocket::bind(local_address(spec))?;
        // Sends nothing: connecting a UDP socket only chooses the route.
        probe.connect(spec.target)?;
        Ok(probe.local_addr()?.ip())
    };
    route().map_err(|error| {
        Problem::Setup(format!("no route to the relay {}: {error}; check `ip route`", spec.target))
    })
}

impl TurnFraming {
    fn new(spec: &RunSpec, sockets: &[UdpSocket], peer_ip: IpAddr) -> Self {
        let client = |_| {
            let config = ClientConfig {
                server: spec.target,
                username: spec.username.clone().unwrap_or_default(),
                password: Zeroizing::new(spec.password.clone().unwrap_or_default()),
                // RFC 8656 section 7.2: IPv4 is what a server takes when it is not asked.
                family: peer_ip.is_ipv6().then_some(AddressFamily::V6),
                seed: super::run_id(),
            };
            Client::new(config, now())
        };
        Self {
            clients: (0..sockets.len()).map(client).collect(),
            sockets: sockets.to_vec(),
            server: spec.target,
            username: spec.username.clone().unwrap_or_default(),
            peer: peer_ip,
            trouble: None,
            forbids: false,
            channels_bound: 0,
            allocated: vec![false; sockets.len()],
        }
    }

    /// Drives the clients until every allocation stands and every channel is bound.
    fn set_up(&mut self, spec: &RunSpec, peers: &[UdpSocket]) -> Result<(), Problem> {
        let sockets = self.sockets.clone();
        let channels = if spec.kind == Kind::TurnChannel { peers.len() } else { 0 };
        let mut poller = Poller::new(&sockets)
            .map_err(|error| Problem::Setup(format!("cannot wait for the relay {}: {error}", spec.target)))?;
        let mut wanted = false;
        let mut progress = (monotonic_ns(), 0);
        loop {
            self.tick();
            if let Some(trouble) = &self.trouble {
                return Err(Problem::Setup(trouble.clone()));
            }
            let allocated = self.allocated.iter().filter(|&&allocated| allocated).count();
            if allocated == self.clients.len() && !wanted {
                self.want(spec, peers);
                wanted = true;
                continue;
            }
            if wanted && self.channels_bound >= channels {
                return Ok(());
            }
            if spec.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Err(Problem::Interrupted);
            }
            let now = monotonic_ns();
            if allocated + self.channels_bound > progress.1 {
                progress = (now, allocated + self.channels_bound);
            }
            if now - progress.0 > PATIENCE_NS {
                return Err(Problem::Setup(format!(
                    "the relay {} has made {allocated} of {} allocations and {} of {channels} channels and answers no more; check address, port and firewall",
                    spec.target,
                    self.clients.len(),
                    self.channels_bound
                )));
            }
            poller
                .receive(&sockets, |socket, datagram, _| {
                    self.handle(socket, datagram);
                })
                .map_err(|error| Problem::Setup(format!("receiving from {}: {error}", spec.target)))?;
        }
    }

    /// Asks for a channel to each peer, or for a permission.
    fn want(&mut self, spec: &RunSpec, peers: &[UdpSocket]) {
        let allocations = self.clients.len();
        for (index, peer) in peers.iter().enumerate() {
            let client = &mut self.clients[index % allocations];
            let address = peer.local_addr();
            // Both say no only above limits that the spec was checked against.
            let _ = match spec.kind {
                Kind::TurnChannel => client.bind_channel(address, now()).is_some(),
                _ => client.create_permission(address.ip(), now()),
            };
        }
    }

    /// What precedes each payload to `peer`.
    fn prefix(&self, spec: &RunSpec, socket: usize, peer: SocketAddr) -> Result<Vec<u8>, Problem> {
        let header = match spec.kind {
            Kind::TurnChannel => self.clients[socket]
                .channel(peer)
                .and_then(|number| channel_data::header(number, spec.size))
                .map(Vec::from),
            _ => send_indication(peer, spec.size),
        };
        header
            .ok_or_else(|| Problem::Setup(format!("the relay {} dropped the channel to {peer}", self.server)))
    }

    /// Gives a datagram to its client; answers where in it a peer's data is.
    fn handle(&mut self, socket: usize, datagram: &[u8]) -> Option<Range<usize>> {
        // For what is said of it: what it means is the client's affair.
        self.forbids |= Message::parse(datagram).is_ok_and(|message| {
            message.class() == Class::Error
                && matches!(message.method(), Method::CreatePermission | Method::ChannelBind)
                && matches!(message.error_code(), Ok(Some(FORBIDDEN)))
        });
        match self.clients[socket].handle_input(datagram, now()) {
            Input::Data { payload, .. } => Some(payload),
            Input::Consumed | Input::Ignored(_) => None,
        }
    }

    /// The first thing the relay refused since the allocations stood, if any.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Deletes the allocations; the relay would keep them for ten minutes.
    pub(super) fn close(&mut self) {
        for client in &mut self.clients {
            client.close(now());
        }
        self.transmit();
    }

    fn transmit(&mut self) {
        for (client, socket) in self.clients.iter_mut().zip(&self.sockets) {
            while let Some(message) = client.poll_transmit() {
                // What is refused now is sent again when it is not answered.
                let _ = socket.send_segments(self.server, None, 0, &message, message.len());
            }
        }
    }
}

impl Framing for TurnFraming {
    fn payload<'a>(&'a mut self, socket: usize, datagram: &'a [u8]) -> Option<&'a [u8]> {
        // Data on channels needs no state: run, flow and sequence number are in the payload.
        if ChannelData::is_channel_data(datagram) {
            return Some(ChannelData::parse(datagram)?.payload);
        }
        datagram.get(self.handle(socket, datagram)?)
    }

    fn tick(&mut self) {
        let mut lost = None;
        for (index, client) in self.clients.iter_mut().enumerate() {
            if client.poll_timeout().is_some_and(|due| due <= now()) {
                client.handle_timeout(now());
            }
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Allocated { .. } => self.allocated[index] = true,
                    Event::ChannelBound { .. } => self.channels_bound += 1,
                    Event::Failed { .. } if self.forbids => {
                        let (server, peer) = (self.server, self.peer);
                        self.trouble.get_or_insert(format!(
                            "the relay {server} forbids the peer {peer} (403); allow it there (towpath-relay: --allow-peer {peer}), \
                             or choose with --peer an address of this host that it allows"
                        ));
                    }
                    Event::Failed { reason } => {
                        let options = "(here: --user NAME:PASSWORD, TARGET, --peer)";
                        self.trouble.get_or_insert(format!("{reason} {options}"));
                    }
                    // The reason that came with it knows the options of the tunnel.
                    Event::Unauthorized => {
                        self.trouble = Some(format!(
                            "the relay {} refuses user {:?} (401); check --user NAME:PASSWORD, and that the relay has this user",
                            self.server, self.username
                        ));
                    }
                    Event::ChannelLost { peer } => lost = Some(peer),
                    // A reason comes with each of them, and there is no other relay.
                    Event::Unusable { .. } | Event::Deallocated => {}
                }
            }
        }
        // Why comes behind it, where that is known.
        if let Some(peer) = lost {
            self.trouble.get_or_insert_with(|| format!("the relay lost the channel to {peer}"));
        }
        self.transmit();
    }
}

/// The header of a Send indication with `len` bytes of data for `peer` (RFC 8656 section 11.1). Its transaction id is
/// never matched against anything, so it stays the same.
fn send_indication(peer: SocketAddr, len: usize) -> Option<Vec<u8>> {
    let mut header = vec![0; INDICATION_HEADER_MAX];
    let id = TransactionId(*b"towpath-lab\0");
    let mut writer = Writer::new(&mut header, Class::Indication, Method::Send, id)?;
    writer.xor_peer_address(peer);
    let written = writer.finish_before_data(len)?;
    header.truncate(written);
    Some(header)
}

#[expect(clippy::disallowed_methods, reason = "the lab is a driver: the client's clock is read here")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use dataplane::stun::Message;

    use super::*;

    #[test]
    fn a_send_indication_parses_with_its_data_behind_the_header() {
        for peer in ["192.0.2.7:9", "[2001:db8::7]:9"] {
            let peer: SocketAddr = peer.parse().unwrap();
            let mut datagram = send_indication(peer, 61).unwrap();
            datagram.extend([7; 61]);
            datagram.extend([0; 3]);
            let message = Message::parse(&datagram).unwrap();
            assert_eq!((message.class(), message.method()), (Class::Indication, Method::Send));
            assert_eq!(message.xor_peer_address().unwrap(), Some(peer));
            assert_eq!(message.data(), Some(&[7; 61][..]));
        }
    }
}
