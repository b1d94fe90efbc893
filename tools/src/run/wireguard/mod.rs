//! The WireGuard kinds: this process is a peer of the server under test, and on the same host also the socket behind it, so
//! that one clock serves both ends.
//!
//! ```text
//!  wg-rx   payload ─► packet ─► seal ─► UDP ─► server: open ─► TUN ─► socket here
//!  wg-tx   socket here ─► TUN ─► server: seal ─► UDP ─► open ─► packet ─► payload
//! ```

mod packet;
mod peer;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path as File, PathBuf};
use std::time::Instant;

use dataplane::sys::udp::UdpSocket;
use dataplane::tunnel::key::{PublicKey, SecretKey};
use dataplane::wire::wireguard::{DATA_OVERHEAD, PADDING};
use serde::{Deserialize, Serialize};

use self::peer::{Heard, Peer};
use super::clock::monotonic_ns;
use super::frame::Wrap;
use super::kind::Kind;
use super::path::{Flow, Path, allow_descriptors, bind, local_address};
use super::payload::{self, Header};
use super::problem::Problem;
use super::receiver::Framing;
use super::spec::RunSpec;

/// Most flows: each has a port inside the tunnel, from [`FIRST_PORT`] on.
pub const FLOWS_MAX: u32 = 50_000;
/// Port inside the tunnel of flow 0.
const FIRST_PORT: u16 = 10_000;
/// Port inside the tunnel that what is sent to this process's peer is addressed to; nobody listens there but the peer.
const SINK_PORT: u16 = 9;
/// Packets up to this length are padded to it at most, as WireGuard does by the interface's MTU.
const MTU: usize = 1_420;
/// How often time for control messages is asked for, in nanoseconds.
const TICK_NS: u64 = 100_000_000;

/// Who this process is to the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireGuard {
    /// File with this peer's private key.
    pub key_file: PathBuf,
    /// File with the preshared key, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_file: Option<PathBuf>,
    /// The server's public key, in base64.
    pub server: String,
    /// This peer's address inside the tunnel, which the server allows it.
    pub inner: IpAddr,
}

impl WireGuard {
    fn private_key(&self) -> Result<SecretKey, Problem> {
        read_key(&self.key_file, "--wg-key")
    }

    fn preshared_key(&self) -> Result<Option<SecretKey>, Problem> {
        self.preshared_file.as_deref().map(|file| read_key(file, "--wg-psk")).transpose()
    }

    fn server_key(&self) -> Result<PublicKey, Problem> {
        self.server.parse().map_err(|error| Problem::Usage(format!("--wg-server: {error}")))
    }
}

fn read_key(file: &File, option: &str) -> Result<SecretKey, Problem> {
    let text = fs::read_to_string(file)
        .map_err(|error| Problem::File(format!("{option} {}: {error}", file.display())))?;
    text.trim().parse().map_err(|error| Problem::Usage(format!("{option} {}: {error}", file.display())))
}

/// Refuses a spec that lacks something.
///
/// # Errors
/// [`Problem::Usage`], naming the option.
pub(super) fn check(spec: &RunSpec) -> Result<(), Problem> {
    let usage = |message: String| Err(Problem::Usage(message));
    let name = spec.kind.name();
    let Some(wireguard) = &spec.wireguard else {
        return usage(format!(
            "{name} needs to be a peer of the server: --wg-key FILE --wg-server KEY --inner ADDRESS (allowed to that peer)"
        ));
    };
    let Some(far) = spec.peer else {
        return usage(format!(
            "{name} needs --peer ADDRESS, the server's address inside the tunnel, on this host"
        ));
    };
    if far.is_ipv4() != wireguard.inner.is_ipv4() {
        return usage(format!("--peer {far} and --inner {} are not of one family", wireguard.inner));
    }
    if spec.flows > FLOWS_MAX {
        return usage(format!("--flows {}: {name} has at most {FLOWS_MAX}", spec.flows));
    }
    wireguard.server_key().map(|_| ())
}

/// A session with the server, and the socket behind it.
pub(super) struct Connected {
    /// The peer's own socket, on which the session is.
    pub outer: UdpSocket,
    /// The sockets behind the server: one that receives, or one for each flow.
    pub inner: Vec<UdpSocket>,
    /// The session.
    pub peer: Peer,
}

/// Makes the handshake and binds the sockets.
///
/// # Errors
/// [`Problem::Setup`], naming what does not answer or is missing.
pub(super) fn connect(spec: &RunSpec) -> Result<Connected, Problem> {
    let Some((wireguard, far)) = spec.wireguard.as_ref().zip(spec.peer) else {
        return Err(Problem::Usage(format!("{} lacks its keys", spec.kind.name())));
    };
    let count = if spec.kind == Kind::WgTx { spec.flows } else { 1 };
    allow_descriptors(u64::from(count) + 1)?;
    let socket = |_| bind(spec, SocketAddr::new(far, 0));
    let inner = (0..count).map(socket).collect::<Result<Vec<_>, _>>().map_err(|problem| {
        Problem::Setup(format!("{problem} (--peer is the server's address inside the tunnel, on this host)"))
    })?;
    let outer = bind(spec, local_address(spec))?;
    let mut peer = Peer::new(
        outer.clone(),
        spec.target,
        &wireguard.private_key()?,
        wireguard.server_key()?,
        wireguard.preshared_key()?.as_ref(),
    );
    peer.connect(spec)?;
    Ok(Connected { outer, inner, peer })
}

/// Where the datagrams of `wg-rx` leave: all through the session's socket.
pub(super) fn sealed_path(spec: &RunSpec, outer: &UdpSocket) -> Path {
    let flow = |_| Flow { socket: 0, to: spec.target, prefix: Vec::new() };
    Path { sockets: vec![outer.clone()], flows: (0..spec.flows).map(flow).collect() }
}

/// Where the datagrams of `wg-tx` leave: each flow through its socket behind the server.
pub(super) fn plain_path(spec: &RunSpec, inner: &[UdpSocket]) -> Path {
    let own = spec.wireguard.as_ref().map_or(spec.target.ip(), |wireguard| wireguard.inner);
    let to = SocketAddr::new(own, SINK_PORT);
    let flow = |socket| Flow { socket, to, prefix: Vec::new() };
    Path { sockets: inner.to_vec(), flows: (0..inner.len()).map(flow).collect() }
}

/// Seals what leaves.
pub(super) struct Sealer {
    peer: Peer,
    from: IpAddr,
    to: SocketAddr,
    /// The packet that is being sealed; filled with something that does not compress.
    packet: Vec<u8>,
    now: Instant,
    next_tick_ns: u64,
}

impl Sealer {
    /// Seals packets from this peer's address inside the tunnel to `to`.
    pub(super) fn new(spec: &RunSpec, peer: Peer, to: SocketAddr) -> Self {
        // The spec is checked: there is one.
        let from = spec.wireguard.as_ref().map_or(to.ip(), |wireguard| wireguard.inner);
        let len = packet::headers(from.is_ipv4()) + spec.size + PADDING;
        let packet = (0..len).map(|index| (index as u8).wrapping_mul(167) ^ 0x5a).collect();
        Self { peer, from, to, packet, now: peer::now(), next_tick_ns: 0 }
    }

    /// What went wrong with the session since it stood.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.peer.trouble()
    }

    fn packet_len(&self, size: usize) -> usize {
        packet::headers(self.from.is_ipv4()) + size
    }
}

/// How long a packet becomes by padding: a multiple of 16, but not beyond the MTU.
fn padded(len: usize) -> usize {
    len.next_multiple_of(PADDING).min(MTU).max(len)
}

impl Wrap for Sealer {
    fn frame_len(&self, size: usize) -> usize {
        padded(self.packet_len(size)) + DATA_OVERHEAD
    }

    fn write(&mut self, frame: &mut [u8], _flow: &Flow, header: &Header, size: usize) {
        let len = self.packet_len(size);
        let packet = &mut self.packet[..padded(len)];
        let (inside, padding) = packet.split_at_mut(len);
        padding.fill(0);
        payload::write(&mut inside[len - size..], header);
        // The number of flows is checked: ports do not wrap.
        let from = SocketAddr::new(self.from, FIRST_PORT + header.flow as u16);
        packet::write_headers(inside, from, self.to);
        self.peer.seal(packet, frame, self.now);
    }

    fn begin(&mut self) {
        self.now = peer::now();
    }

    fn tick(&mut self) {
        let now_ns = monotonic_ns();
        if now_ns >= self.next_tick_ns {
            self.next_tick_ns = now_ns + TICK_NS;
            self.peer.hear(peer::now());
            self.peer.tick(peer::now());
        }
    }

    fn patience_ns(&self) -> u64 {
        TICK_NS
    }
}

/// Opens what arrives.
pub(super) struct Opener {
    peer: Peer,
    /// What was inside the last message.
    packet: Box<[u8]>,
    now: Instant,
}

impl Opener {
    /// Opens what the server sends.
    pub(super) fn new(peer: Peer) -> Self {
        Self { peer, packet: vec![0; dataplane::sys::udp::RECEIVE_LEN].into(), now: peer::now() }
    }

    /// What went wrong with the session since it stood.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.peer.trouble()
    }
}

impl Framing for Opener {
    fn payload<'a>(&'a mut self, _socket: usize, datagram: &'a [u8]) -> Option<&'a [u8]> {
        match self.peer.handle(datagram, &mut self.packet, self.now) {
            Heard::Packet(len) => packet::payload(&self.packet[..len]),
            Heard::Nothing => None,
        }
    }

    fn tick(&mut self) {
        self.now = peer::now();
        self.peer.tick(self.now);
    }
}
