//! The WireGuard endpoint without I/O: datagrams, packets and the time go in; sealed and opened packets, control
//! messages and the next deadline come out.
//!
//! Data answers by return value, straight into memory the caller owns. Control messages (handshakes, cookies,
//! keepalives) leave through [`Tunnel::poll_transmit`]; drain it after every input. Packets that had to wait for a
//! handshake leave through [`Tunnel::poll_staged`].
//!
//! The caller's clock decides everything but the time stamps of initiations, which are of the time of day, and that sessions grow
//! old while the machine sleeps: see [`noise::World`].

pub mod apart;
pub mod app;
pub mod key;
pub mod lookup;
pub mod marking;
pub mod noise;
pub mod paths;
pub mod peer;
pub mod peers;
pub mod routes;
pub mod setup;
pub mod ticket;

mod bucket;
mod change;
mod incoming;
mod limiter;
mod looped;
mod missing;
mod outgoing;
pub mod path_mtu;
mod sleep;
mod staged;
mod switch;
mod timers;
mod tls;
mod wheel;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

pub use self::change::PeerView;
pub use self::incoming::{Heard, Opened};
use self::key::{PublicKey, SecretKey};
use self::limiter::Limiter;
use self::looped::Outside;
pub use self::looped::RelayServer;
use self::noise::{CONTROL_LEN, Identity, World};
use self::outgoing::Silence;
use self::paths::PathFigures;
use self::peer::Passed;
pub use self::peer::{Handshake, Path, PeerConfig, PeerStats};
pub use self::peers::PeerIndex;
use self::peers::Peers;
use self::routes::AllowedIps;
use self::sleep::Sleep;
use self::timers::JITTER_MS;
use self::wheel::Wheel;
use crate::crypto::{Key, aead};
use crate::drops::{Cause, Drops};
use crate::packet::Packet;
use crate::wire::ip;
use crate::wire::wireguard::{self, DATA_OVERHEAD, PADDING, SessionIndex};

/// Control messages that may wait to be polled. An input makes two at most; what timers ask for stops at half.
const CONTROL_MAX: usize = 512;
/// Peers whose timers are served at once. Each may cost a handshake of some 0.1 ms, and packets must not wait long for it.
const PEERS_AT_ONCE: usize = 32;

/// What an endpoint is made of.
#[derive(Debug)]
pub struct TunnelConfig {
    /// Who we are; nobody yet when all of its bytes are zero.
    pub private_key: SecretKey,
    /// MTU of the TUN device, bytes; packets are not padded beyond it.
    pub mtu: usize,
    /// Who else there is.
    pub peers: Vec<PeerConfig>,
    /// Seeds indices, jitter and hash keys; random.
    pub seed: u64,
    /// Keys cookies; random.
    pub cookie_secret: [u8; 32],
}

/// A control message and where it goes.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// How it leaves.
    pub path: Path,
    bytes: [u8; CONTROL_LEN],
    len: usize,
}

impl Transmit {
    /// The message.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether it answers somebody who has proved nothing, not even that he is where he says.
    #[must_use]
    pub fn is_cookie_reply(&self) -> bool {
        matches!(wireguard::parse(self.bytes()), Some(wireguard::Message::CookieReply { .. }))
    }
}

/// A WireGuard endpoint.
pub struct Tunnel {
    identity: Identity,
    world: World,
    sleep: Sleep,
    /// The key that the identity is made of, or none.
    private_key: Option<SecretKey>,
    cookie_secret: [u8; 32],
    /// Packets can leave and arrive; else no timer runs and no handshake starts.
    running: bool,
    /// Changes with the private key and with every stop; sessions of an earlier one must end.
    epoch: u64,
    /// Peers from this place on may still have sessions of an earlier epoch.
    renewing: Option<usize>,
    mtu: usize,
    peers: Peers,
    by_key: std::collections::HashMap<PublicKey, PeerIndex, FixedState>,
    /// By the session indices that we chose. Those of sessions that are gone are taken out at the next handshake, or when all are.
    by_index: std::collections::HashMap<SessionIndex, PeerIndex, FixedState>,
    routes: AllowedIps,
    outside: Outside,
    limiter: Limiter,
    control: VecDeque<Transmit>,
    /// Who sent the datagram that was opened last, if it was authentic.
    heard: Option<Heard>,
    /// Peers whose staged packets can leave.
    unstaging: VecDeque<PeerIndex>,
    /// Peers that did not answer; taken out after every look at the timers.
    unanswered: Vec<PeerIndex>,
    silence: Silence,
    staged_bytes: usize,
    rng: Xoshiro256PlusPlus,
    /// When each peer's next timer runs out, by its place.
    wheel: Wheel,
    drops: Drops,
    /// Of peers that were removed: what has been counted once stays counted.
    departed: PeerStats,
    departed_paths: PathFigures,
    control_overflows: u64,
}

impl Tunnel {
    /// Makes the endpoint. Peers with a path and a persistent keepalive start a handshake at the first
    /// [`Tunnel::handle_timeout`]. Of two peers with one public key, or with one prefix, the later has it.
    #[must_use]
    pub fn new(config: &TunnelConfig, now: Instant) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(config.seed);
        let mut tunnel = Self {
            identity: Identity::new(&config.private_key, &config.cookie_secret),
            world: World::system(),
            sleep: Sleep::default(),
            private_key: Some(config.private_key.clone()).filter(|key| !key.is_zero()),
            cookie_secret: config.cookie_secret,
            running: true,
            epoch: 0,
            renewing: None,
            mtu: config.mtu,
            peers: Peers::with_capacity(config.peers.len()),
            by_key: std::collections::HashMap::with_hasher(FixedState::with_seed(rng.next_u64())),
            by_index: std::collections::HashMap::with_hasher(FixedState::with_seed(rng.next_u64())),
            routes: AllowedIps::new(rng.next_u64()),
            outside: Outside::new(rng.next_u64()),
            limiter: Limiter::new(rng.next_u64(), now),
            control: VecDeque::with_capacity(CONTROL_MAX),
            heard: None,
            unstaging: VecDeque::new(),
            unanswered: Vec::new(),
            silence: Silence::new(now),
            staged_bytes: 0,
            rng,
            wheel: Wheel::new(config.peers.len(), now),
            drops: Drops::default(),
            departed: PeerStats::default(),
            departed_paths: PathFigures::default(),
            control_overflows: 0,
        };
        for peer in &config.peers {
            tunnel.add_peer(peer, now);
        }
        tunnel
    }

    /// Our own public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.identity.public_key()
    }

    /// The peer that a packet for the network behind the tunnel goes to.
    ///
    /// # Errors
    /// [`Cause::MalformedInner`], [`Cause::NoRoute`] or [`Cause::RoutingLoop`]; not counted yet, see [`Tunnel::count_drop`].
    pub fn route(&self, packet: &[u8]) -> Result<PeerIndex, Cause> {
        let header = ip::parse(packet).ok_or(Cause::MalformedInner)?;
        let index = self.routes.find(header.destination).ok_or(Cause::NoRoute)?;
        if self.is_own(packet, &header) { Err(Cause::RoutingLoop) } else { Ok(index) }
    }

    /// Pads a packet as it has to be before [`Tunnel::seal`]: with zeros to a multiple of 16, not beyond the MTU.
    pub fn pad(&self, packet: &mut Packet) {
        let padded = self.padded_len(packet.len());
        // The tailroom of a packet is larger than any padding.
        let _ = packet.pad_to(PADDING);
        packet.truncate(padded);
    }

    /// How long a packet of `len` bytes becomes by [`Tunnel::pad`]. A full one of 1,420 bytes needs none.
    #[must_use]
    pub fn padded_len(&self, len: usize) -> usize {
        len.next_multiple_of(PADDING).min(self.mtu).max(len)
    }

    /// How long a padded packet becomes by [`Tunnel::seal`], bytes.
    #[must_use]
    pub fn sealed_len(padded: usize) -> usize {
        padded + DATA_OVERHEAD
    }

    /// Where packets for `peer` can be sent to at once; `None` when they have to be staged.
    pub fn ready(&mut self, peer: PeerIndex, now: Instant) -> Option<Path> {
        self.notice_sleep(now);
        let peer = self.peers.get(peer)?;
        peer.noise.usable(now)?;
        peer.path.filter(Path::is_usable)
    }

    /// Seals a padded packet for `peer` into `out`, which is exactly [`Tunnel::sealed_len`] long: the memory it
    /// leaves from. `false`, and nothing counted, when [`Tunnel::ready`] would have said no.
    #[must_use]
    pub fn seal(&mut self, index: PeerIndex, packet: &[u8], out: &mut [u8], now: Instant) -> bool {
        let Some(key) = self.write(index, packet, out, now) else { return false };
        aead::seal(&aead::cipher(key), out);
        true
    }

    /// As [`Tunnel::seal`], but for the sealing: that is to be done by [`aead::seal`], once, under the key returned, before the
    /// message leaves.
    #[must_use]
    pub fn write(&mut self, index: PeerIndex, packet: &[u8], out: &mut [u8], now: Instant) -> Option<&Key> {
        let peer = self.peers.get_mut(index)?;
        peer.noise.usable(now)?;
        if peer.is_news(Passed::DataSent, now) {
            if let Some(paths) = &mut peer.paths {
                paths.sent(now);
            }
            let jitter = self.jitter();
            let timers = &mut self.peers[index].timers;
            timers.data_sent(jitter, now);
            timers.anything_sent(now);
            self.renew_if_worn(index, now);
            self.arm(index, now);
        }
        let peer = &mut self.peers[index];
        let len = out.len();
        let key = peer.noise.write(packet, out, now)?;
        peer.stats.sent_packets += 1;
        peer.stats.sent_bytes += packet.len() as u64;
        peer.stats.sent_message_bytes += len as u64;
        Some(key)
    }

    /// Keeps a packet until a handshake is over, and starts one. What cannot be kept is counted.
    pub fn stage(&mut self, index: PeerIndex, packet: &[u8], now: Instant) {
        let Some(peer) = self.peers.get_mut(index) else {
            self.drops.count(Cause::NoRoute);
            return;
        };
        if !peer.path.as_ref().map_or(peer.awaits_path, Path::is_usable) {
            self.drops.count(Cause::NoEndpoint);
            return;
        }
        peer.staged.push(packet, &mut self.staged_bytes, &mut self.drops, now);
        self.start_handshake(index, now);
        self.arm(index, now);
    }

    /// The next packet that no longer has to wait, in order for each peer. Seal it for the peer returned.
    pub fn poll_staged(&mut self, out: &mut Packet, now: Instant) -> Option<PeerIndex> {
        while let Some(&index) = self.unstaging.front() {
            let Some(peer) = self.peers.get_mut(index) else {
                self.unstaging.pop_front();
                continue;
            };
            let usable = peer.noise.usable(now).is_some() && peer.path.as_ref().is_some_and(Path::is_usable);
            if usable
                && let Some(packet) = peer.staged.pop(&mut self.staged_bytes)
                && out.copy_from(&packet).is_some()
            {
                return Some(index);
            }
            peer.unstaging = false;
            self.unstaging.pop_front();
        }
        None
    }

    /// The next control message.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.control.pop_front()
    }

    /// A peer that left an initiation unanswered for its time: it may be elsewhere. Drain it after
    /// [`Tunnel::handle_timeout`].
    pub fn poll_unanswered(&mut self) -> Option<PeerIndex> {
        self.unanswered.pop()
    }

    /// When [`Tunnel::handle_timeout`] wants to be called; O(1).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.running { self.wheel.next() } else { None }
    }

    /// Does what is due, for some peers: poll for control messages, and it may be due again at once. Costs nothing when
    /// nothing is due, however many peers there are.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.notice_sleep(now);
        if !self.running {
            return;
        }
        for _ in 0..PEERS_AT_ONCE {
            if self.control.len() >= CONTROL_MAX / 2 {
                // The rest at the next call, when these have left.
                return;
            }
            let Some(place) = self.wheel.poll(now) else {
                return;
            };
            if let Some(index) = self.peers.at(place) {
                self.handle_peer_timeout(index, now);
                self.arm(index, now);
            }
        }
    }

    /// Figures of one peer, zeros when it is gone.
    #[must_use]
    pub fn stats(&self, peer: PeerIndex) -> PeerStats {
        self.peers.get(peer).map(|peer| peer.stats).unwrap_or_default()
    }

    /// How long ago a handshake was, sleep included.
    #[must_use]
    pub fn age_of(&self, handshake: &Handshake, now: Instant) -> Duration {
        let slept = (self.world.slept)().saturating_sub(handshake.slept);
        now.saturating_duration_since(handshake.at) + slept
    }

    /// One that is completed now.
    fn handshake(&self, now: Instant) -> Handshake {
        Handshake { at: now, slept: (self.world.slept)(), wall: (self.world.wall)() }
    }

    /// Counts a packet the caller could not hand over.
    pub fn count_drop(&mut self, cause: Cause) {
        self.drops.count(cause);
    }

    /// Counts packets the caller could not hand over.
    pub fn count_lost(&mut self, cause: Cause, packets: u64) {
        self.drops.add(cause, packets);
    }

    /// Packets lost in here by cause, those that still wait for a handshake not among them.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Control messages lost because nobody polled for them.
    #[must_use]
    pub fn control_overflows(&self) -> u64 {
        self.control_overflows
    }

    /// Drops what still waits for handshakes; for the end of the program.
    pub fn stop(&mut self) {
        for peer in self.peers.iter_mut() {
            peer.staged.clear(&mut self.staged_bytes, Cause::StagedExpired, &mut self.drops);
        }
    }

    /// Notes that staged packets of a peer can leave.
    fn unstage(&mut self, index: PeerIndex) {
        let peer = &mut self.peers[index];
        if !peer.unstaging && !peer.staged.is_empty() {
            peer.unstaging = true;
            self.unstaging.push_back(index);
        }
    }

    /// Makes sure that this peer's timers are looked at when the next of them runs out.
    fn arm(&mut self, index: PeerIndex, now: Instant) {
        if let Some(next) = self.peers[index].next_timeout() {
            self.wheel.set(index.place(), next, now);
        }
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_millis(u64::from(self.rng.next_u32() % (JITTER_MS + 1)))
    }
}
