//! The session with the server: a handshake, its renewal, keepalives. The policy of a full endpoint (routes, roaming, limits on
//! handshakes) is not needed towards one server that is asked for load.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dataplane::ingress::Meta;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};
use dataplane::tunnel::Path;
use dataplane::tunnel::key::{PublicKey, SecretKey};
use dataplane::tunnel::noise::{CONTROL_LEN, Identity, Noise, Outset, World};
use dataplane::wire::wireguard::{self, DATA_OVERHEAD, Message};

use super::super::problem::Problem;
use super::super::receiver::Poller;
use super::super::spec::RunSpec;

/// A handshake is tried again after this long (WireGuard paper section 6.1, Rekey-Timeout).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// The initiator renews a session of this age (Rekey-After-Time).
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Who only receives says so after this long (Keepalive-Timeout).
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often, and after how long, the first handshake is tried again: nobody is kept from being served by one peer's haste.
const ATTEMPTS: u32 = 4;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages heard in one go.
const BATCH: usize = 8;

/// What a datagram brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A packet of this many bytes, padding included, at the start of the buffer; of none when it was a keepalive.
    Packet(usize),
    /// A message between the two ends, or something that is not authentic.
    Nothing,
}

/// One end of a session.
pub(in crate::run) struct Peer {
    identity: Identity,
    /// Where the handshakes' secrets and time stamps come from.
    world: World,
    noise: Noise,
    server_key: PublicKey,
    server: SocketAddr,
    socket: UdpSocket,
    /// Taken while it is read.
    batch: Option<ReceiveBatch>,
    scratch: Box<[u8]>,
    initiated: Option<Instant>,
    /// There was a session.
    established: bool,
    said: Instant,
    trouble: Option<&'static str>,
}

impl Peer {
    pub(super) fn new(
        socket: UdpSocket,
        server: SocketAddr,
        private: &SecretKey,
        server_key: PublicKey,
        preshared: Option<&SecretKey>,
    ) -> Self {
        // No cookie is ever given out here, so that what binds them need not be secret.
        let identity = Identity::new(private, &[0; 32]);
        let noise = Noise::new(server_key, preshared.cloned());
        Self {
            identity,
            world: World::system(),
            noise,
            server_key,
            server,
            socket,
            batch: Some(ReceiveBatch::new(BATCH, RECEIVE_LEN)),
            scratch: vec![0; RECEIVE_LEN].into(),
            initiated: None,
            established: false,
            said: now(),
            trouble: None,
        }
    }

    /// Makes the first handshake.
    pub(super) fn connect(&mut self, spec: &RunSpec) -> Result<(), Problem> {
        let failed = |error: std::io::Error| {
            Problem::Setup(format!("cannot wait for the server {}: {error}", spec.target))
        };
        let sockets = [self.socket.clone()];
        let mut poller = Poller::new(&sockets).map_err(failed)?;
        let deadline = now() + ATTEMPT_TIMEOUT * ATTEMPTS;
        while self.noise.usable(now()).is_none() {
            if spec.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Err(Problem::Interrupted);
            }
            if now() > deadline {
                return Err(Problem::Setup(format!(
                    "the server {} does not answer the handshake; check that it has this peer ({}) with AllowedIPs for --inner, \
                     its public key (--wg-server), address and port",
                    self.server,
                    self.identity.public_key()
                )));
            }
            self.tick(now());
            let mut scratch = std::mem::take(&mut self.scratch);
            let heard = poller.receive(&sockets, |_, datagram, _| {
                self.handle(datagram, &mut scratch, now());
            });
            self.scratch = scratch;
            heard.map_err(failed)?;
        }
        self.established = true;
        Ok(())
    }

    /// Takes what has arrived on the socket where nobody else reads it; packets in it are not wanted.
    pub(super) fn hear(&mut self, now: Instant) {
        let Some(mut batch) = self.batch.take() else { return };
        let mut scratch = std::mem::take(&mut self.scratch);
        // An error is an ICMP message about an earlier send.
        if self.socket.receive_batch(&mut batch).is_ok() {
            for arrival in batch.iter_mut() {
                let Some(Meta::Udp { segment_size, .. }) = arrival.meta else { continue };
                for datagram in arrival.bytes.chunks(segment_size.max(1)) {
                    self.handle(datagram, &mut scratch, now);
                }
            }
        }
        (self.batch, self.scratch) = (Some(batch), scratch);
    }

    /// Takes a datagram; a packet in it is opened into `out`, which must be as long as the datagram.
    pub(super) fn handle(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> Heard {
        let mut answer = [0; CONTROL_LEN];
        let answered = match wireguard::parse(datagram) {
            Some(Message::Data { receiver, counter }) => {
                let opened = self.noise.open(datagram, (receiver, counter), out, now);
                return opened.map_or(Heard::Nothing, |opened| Heard::Packet(opened.len));
            }
            Some(Message::Response { .. }) if self.identity.check_mac1(datagram) => {
                self.noise.handle_response(&self.identity, &self.world, datagram, &mut answer, now)
            }
            Some(Message::Initiation { .. }) if self.identity.check_mac1(datagram) => {
                let claim = self.identity.claim(datagram).filter(|claim| claim.sender == self.server_key);
                let Some(claim) = claim else { return Heard::Nothing };
                let outset = self.outset();
                self.noise.handle_initiation(&self.identity, &self.world, claim, outset, &mut answer, now)
            }
            Some(Message::CookieReply { .. }) => {
                // The next initiation carries the cookie.
                if self.noise.handle_cookie_reply(datagram, now).is_ok() {
                    self.trouble = Some("the server is under load and asked for a cookie");
                }
                return Heard::Nothing;
            }
            _ => return Heard::Nothing,
        };
        if let Ok(len) = answered {
            self.say(&answer[..len], now);
        }
        Heard::Nothing
    }

    /// There is one way to the server.
    fn outset(&self) -> Outset {
        Outset { index: self.world.index(), path: Path::Direct { to: self.server, from: None } }
    }

    /// Renews the session when it is time, and sends a keepalive when nothing else was sent.
    pub(super) fn tick(&mut self, now: Instant) {
        let usable = self.noise.usable(now);
        let renew = usable.is_none_or(|session| session.initiator && session.age >= REKEY_AFTER_TIME);
        let timeout = if self.established { REKEY_TIMEOUT } else { ATTEMPT_TIMEOUT };
        let waited = self.initiated.is_none_or(|since| now - since >= timeout);
        if renew && waited {
            let mut initiation = [0; CONTROL_LEN];
            let outset = self.outset();
            let Self { identity, world, noise, .. } = self;
            if let Some(len) = noise.initiate(identity, world, outset, &mut initiation, now) {
                self.say(&initiation[..len], now);
            }
            self.initiated = Some(now);
        }
        if usable.is_some() && now - self.said >= KEEPALIVE_TIMEOUT {
            let mut keepalive = [0; DATA_OVERHEAD];
            self.seal(&[], &mut keepalive, now);
            self.say(&keepalive, now);
        }
    }

    /// Seals a packet into `out`, [`DATA_OVERHEAD`] bytes longer. Without a session `out` holds nothing that the server would
    /// take, which is then lost.
    pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) {
        if self.noise.seal(packet, out, now) {
            self.said = now;
        } else {
            self.trouble = Some("the session with the server ended and was not renewed");
        }
    }

    /// The last thing that went wrong.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.trouble
    }

    fn say(&mut self, message: &[u8], now: Instant) {
        self.said = now;
        // What is refused now is said again when it is not answered.
        let _ = self.socket.send_segments(self.server, None, 0, message, message.len());
    }
}

#[expect(clippy::disallowed_methods, reason = "the lab is a driver: the session's clock is read here")]
pub(super) fn now() -> Instant {
    Instant::now()
}
