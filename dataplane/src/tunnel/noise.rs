//! The adapter over boringtun 0.7: the only file that names it. It makes up for what that crate leaves to its user.
//!
//! | boringtun | here |
//! |---|---|
//! | panics when a destination is too short | lengths are checked before every call |
//! | no limit on messages under one key | counters from 2^64 − 2^13 − 1 on are neither sealed nor opened |
//! | drops a session after 180 s only when its timers run | [`Noise::seal`] and [`Noise::open`] look at the age first |
//! | queues packets without a session by itself | never asked to seal without one |
//! | a responder's new session may be used before it is confirmed | refused until the peer's first data message |
//! | reads CLOCK_BOOTTIME itself | timers live in [`super::timers`] on the caller's clock; boringtun's own clock still dates its sessions, for which [`Noise::outlived`] looks at it |
//! | logs and gives up on its own schedule | its timers run only right before a handshake message, to date it |
//!
//! What cannot be made up for: its replay window holds 1,024 counters (the kernel's 8,128), it copies each packet once
//! on its way in and out, and it seals under a mutex.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use ring::hmac;

use super::key::{PublicKey, SecretKey};
use super::missing::Arrived;
use crate::drops::Cause;
use crate::wire::wireguard::{self, DATA_HEADER, DATA_OVERHEAD, SessionIndex};

/// A session older than this carries nothing (WireGuard paper, section 6.1).
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// A session carries no message from this counter on (section 6.1).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Length of the longest message that is not data, bytes.
pub const CONTROL_LEN: usize = wireguard::INITIATION;
/// Peers are told apart by the upper 24 bits of a session index.
pub const PEER_TAG_BITS: u32 = 24;

/// boringtun keeps this many sessions for a peer, found by index modulo this.
const SESSIONS: usize = 8;

/// The public key that belongs to a private one.
#[must_use]
pub fn public_key(private: &SecretKey) -> PublicKey {
    PublicKey(*x25519::PublicKey::from(&x25519::StaticSecret::from(*private.expose())).as_bytes())
}

/// Whether a Diffie-Hellman exchange with this key depends on the private key used.
#[must_use]
pub fn contributes(key: &PublicKey) -> bool {
    let probe = x25519::StaticSecret::from([0x42; 32]);
    probe.diffie_hellman(&x25519::PublicKey::from(key.0)).was_contributory()
}

/// The endpoint's own key pair, and the checks a handshake message must pass before it costs a Diffie-Hellman.
pub struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Checks mac1 only.
    relaxed: Arc<RateLimiter>,
    /// Checks mac1 and mac2, and answers a wrong mac2 with a cookie.
    strict: RateLimiter,
    /// Binds a cookie to address and port, of which boringtun knows only the address.
    cookie_key: hmac::Key,
}

/// What the cookie check says about a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieCheck {
    /// The sender has proved that it receives at its address.
    Proved,
    /// It has not; a cookie reply for it was written.
    Reply,
}

impl Identity {
    /// Takes the private key; `cookie_secret` is random.
    #[must_use]
    pub fn new(private: &SecretKey, cookie_secret: &[u8; 32]) -> Self {
        let private = x25519::StaticSecret::from(*private.expose());
        let public = x25519::PublicKey::from(&private);
        Self {
            relaxed: Arc::new(RateLimiter::new(&public, u64::MAX)),
            strict: RateLimiter::new(&public, 0),
            cookie_key: hmac::Key::new(hmac::HMAC_SHA256, cookie_secret),
            private,
            public,
        }
    }

    /// The own public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(*self.public.as_bytes())
    }

    /// Checks mac1 of a handshake message: that the sender knows our public key.
    #[must_use]
    pub fn check_mac1(&self, datagram: &[u8]) -> bool {
        // The buffer is for a cookie reply, which a limiter without a limit never writes.
        self.relaxed.verify_packet(None, datagram, &mut [0; wireguard::COOKIE_REPLY]).is_ok()
    }

    /// Checks mac2 of a handshake message whose mac1 is right, and writes a cookie reply when it is wrong.
    ///
    /// # Errors
    /// [`Cause::BadTag`] for a message [`Identity::check_mac1`] refuses.
    pub fn check_mac2(
        &self,
        datagram: &[u8],
        source: SocketAddr,
        reply: &mut [u8; wireguard::COOKIE_REPLY],
    ) -> Result<CookieCheck, Cause> {
        match self.strict.verify_packet(Some(self.cookie_subject(source)), datagram, reply) {
            Ok(_) => Ok(CookieCheck::Proved),
            Err(TunnResult::WriteToNetwork(_)) => Ok(CookieCheck::Reply),
            Err(_) => Err(Cause::BadTag),
        }
    }

    /// Who claims to have sent a handshake initiation. The claim is encrypted to us, not yet proved.
    #[must_use]
    pub fn claimed_sender(&self, datagram: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let claim = parse_handshake_anon(&self.private, &self.public, &initiation).ok()?;
        Some(PublicKey(claim.peer_static_public))
    }

    /// Address and port folded into what boringtun takes for an address.
    fn cookie_subject(&self, source: SocketAddr) -> IpAddr {
        let mut bytes = [0; 18];
        let address = match source.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        bytes[..16].copy_from_slice(&address.octets());
        bytes[16..].copy_from_slice(&source.port().to_be_bytes());
        let tag = hmac::sign(&self.cookie_key, &bytes);
        let mut folded = [0; 16];
        folded.copy_from_slice(&tag.as_ref()[..16]);
        IpAddr::from(folded)
    }
}

/// What this side knows of one of boringtun's sessions.
#[derive(Clone, Copy, Debug)]
struct Session {
    local: SessionIndex,
    remote: SessionIndex,
    born: Instant,
    /// Which date boringtun gave it; the higher, the newer.
    date: u64,
    initiator: bool,
    /// The peer has shown that it has the keys.
    confirmed: bool,
    /// Counter of the next message sent.
    next_counter: u64,
    arrived: Arrived,
}

impl Session {
    fn expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.born) >= REJECT_AFTER_TIME
    }
}

/// What sending under the current session would look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usable {
    /// Age of the session.
    pub age: Duration,
    /// Whether this side initiated the handshake.
    pub initiator: bool,
    /// Messages sent under it so far.
    pub sent: u64,
}

/// What a data message held. It was authenticated and its counter was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedData {
    /// What was inside.
    pub inner: Inner,
    /// This message confirmed a session the peer initiated: packets that waited for it can leave.
    pub confirmed: bool,
    /// Age of the session.
    pub age: Duration,
    /// Whether this side initiated the handshake.
    pub initiator: bool,
    /// How many more messages of the peer's are missing than before this one, or fewer.
    pub missing: i64,
}

/// The inside of a data message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Nothing: a keepalive.
    Keepalive,
    /// This many bytes at the start of the buffer look like an IP packet.
    Packet(usize),
    /// Something that is not an IP packet.
    Malformed,
}

/// The protocol with one peer.
pub struct Noise {
    tunn: Tunn,
    sessions: [Option<Session>; SESSIONS],
    /// Index of the session used for sending; boringtun follows the same rule.
    current: SessionIndex,
    /// How often boringtun's clock has been brought up to date; a new session gets the latest date.
    date: u64,
}

impl Noise {
    /// `tag` (below 2^24) becomes the upper 24 bits of every session index this side chooses.
    #[must_use]
    pub fn new(identity: &Identity, peer: PublicKey, preshared: Option<&SecretKey>, tag: u32) -> Self {
        let tunn = Tunn::new(
            identity.private.clone(),
            x25519::PublicKey::from(peer.0),
            preshared.map(|key| *key.expose()),
            None, // persistent keepalives are sent by `timers`
            tag,
            Some(Arc::clone(&identity.relaxed)),
        );
        Self { tunn, sessions: [None; SESSIONS], current: SessionIndex(0), date: 0 }
    }

    /// Writes a handshake initiation and returns its length; any earlier one that is unanswered stays valid once.
    pub fn initiate(&mut self, out: &mut [u8; CONTROL_LEN]) -> Option<usize> {
        if let Some(len) = self.date_next_session(out)
            && out[0] == 1
        {
            return Some(len);
        }
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Takes a handshake initiation that claims to come from this peer; writes the response and returns its length.
    ///
    /// # Errors
    /// [`Cause::Replay`] when it is older than the last one, [`Cause::BadTag`] when it is not the peer's.
    pub fn handle_initiation(
        &mut self,
        datagram: &[u8],
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        let ephemeral = datagram.get(8..40).ok_or(Cause::MalformedOuter)?;
        refuse_low_order(ephemeral)?;
        // What it may want to send itself is dropped: a handshake is under way now.
        let _ = self.date_next_session(out);
        let len = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToNetwork(response) => response.len(),
            TunnResult::Err(error) => return Err(cause_of(&error)),
            _ => return Err(Cause::MalformedOuter),
        };
        let response = out.get(..len).ok_or(Cause::MalformedOuter)?;
        let Some(wireguard::Message::Response { sender, receiver }) = wireguard::parse(response) else {
            return Err(Cause::MalformedOuter);
        };
        self.remember(sender, receiver, false, now);
        Ok(len)
    }

    /// Takes a handshake response; writes the keepalive that confirms the session and returns its length.
    ///
    /// # Errors
    /// [`Cause::UnknownIndex`] when nothing waits for it, [`Cause::BadTag`] when it is not the peer's.
    pub fn handle_response(
        &mut self,
        datagram: &[u8],
        out: &mut [u8; CONTROL_LEN],
        now: Instant,
    ) -> Result<usize, Cause> {
        let Some(wireguard::Message::Response { sender, receiver }) = wireguard::parse(datagram) else {
            return Err(Cause::MalformedOuter);
        };
        let ephemeral = datagram.get(12..44).ok_or(Cause::MalformedOuter)?;
        refuse_low_order(ephemeral)?;
        let len = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToNetwork(keepalive) => keepalive.len(),
            TunnResult::Err(error) => return Err(cause_of(&error)),
            _ => return Err(Cause::MalformedOuter),
        };
        self.remember(receiver, sender, true, now);
        self.current = receiver;
        Ok(len)
    }

    /// Takes a cookie reply: the next handshake message will carry the cookie.
    ///
    /// # Errors
    /// [`Cause::UnknownIndex`] or [`Cause::BadTag`] when it does not answer our last handshake message.
    pub fn handle_cookie_reply(&mut self, datagram: &[u8]) -> Result<(), Cause> {
        match self.tunn.decapsulate(None, datagram, &mut [0; CONTROL_LEN]) {
            TunnResult::Done => Ok(()),
            TunnResult::Err(error) => Err(cause_of(&error)),
            _ => Err(Cause::MalformedOuter),
        }
    }

    /// The session that [`Noise::seal`] would use, if it may be used.
    #[must_use]
    pub fn usable(&self, now: Instant) -> Option<Usable> {
        let session = self.session(self.current)?;
        if !session.confirmed || session.expired(now) || session.next_counter >= REJECT_AFTER_MESSAGES {
            return None;
        }
        let age = now.saturating_duration_since(session.born);
        Some(Usable { age, initiator: session.initiator, sent: session.next_counter })
    }

    /// Seals `packet` (padded; empty for a keepalive) into `out`, which must be exactly [`DATA_OVERHEAD`] longer.
    /// `false` when there is no usable session; then `out` holds nothing of use.
    #[must_use]
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> bool {
        if self.usable(now).is_none() || out.len() != packet.len() + DATA_OVERHEAD {
            return false;
        }
        let current = self.current;
        let sealed = match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) => wireguard::parse(message),
            _ => None,
        };
        let Some(session) = self.session_mut(current) else {
            return false;
        };
        match sealed {
            Some(wireguard::Message::Data { receiver, counter }) if receiver == session.remote => {
                session.next_counter = session.next_counter.max(counter) + 1;
                true
            }
            // boringtun's clock runs through suspend, ours does not: it may have dropped the session by itself.
            _ => {
                self.forget(current);
                false
            }
        }
    }

    /// Opens a data message into `out`. Nothing is changed unless it is authentic and its counter is new.
    ///
    /// # Errors
    /// [`Cause::UnknownIndex`], [`Cause::NoSession`] (expired or worn out), [`Cause::Replay`], [`Cause::BadTag`];
    /// [`Cause::Truncated`] when `out` is shorter than the message.
    pub fn open(&mut self, datagram: &[u8], out: &mut [u8], now: Instant) -> Result<OpenedData, Cause> {
        let Some(wireguard::Message::Data { receiver, counter }) = wireguard::parse(datagram) else {
            return Err(Cause::MalformedOuter);
        };
        let session = *self.session(receiver).ok_or(Cause::UnknownIndex)?;
        if session.expired(now) || counter >= REJECT_AFTER_MESSAGES {
            return Err(Cause::NoSession);
        }
        if out.len() < datagram.len() - DATA_HEADER {
            return Err(Cause::Truncated);
        }
        let inner = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Inner::Packet(packet.len())
            }
            TunnResult::Done => Inner::Keepalive,
            // The outer message was checked above, so this is about what was inside, after authentication.
            TunnResult::Err(WireGuardError::InvalidPacket) => Inner::Malformed,
            TunnResult::Err(error) => {
                if matches!(error, WireGuardError::NoCurrentSession) {
                    self.forget(receiver);
                }
                return Err(cause_of(&error));
            }
            TunnResult::WriteToNetwork(_) => return Err(Cause::MalformedOuter),
        };
        let confirmed = self.confirm(receiver);
        let age = now.saturating_duration_since(session.born);
        let missing = self.session_mut(receiver).map_or(0, |session| session.arrived.note(counter));
        Ok(OpenedData { inner, confirmed, age, initiator: session.initiator, missing })
    }

    /// Wipes every session key; what the peer sent last stays known, so that old initiations remain replays.
    pub fn forget_sessions(&mut self, identity: &Identity) {
        // Setting the same key again is the one way to make boringtun drop its sessions.
        self.tunn.set_static_private(
            identity.private.clone(),
            identity.public,
            Some(Arc::clone(&identity.relaxed)),
        );
        self.sessions = [None; SESSIONS];
    }

    /// Whether a session exists that is too old by boringtun's clock, which runs while the machine is suspended.
    #[must_use]
    pub fn outlived(&self) -> bool {
        self.session(self.current).is_some()
            && self.tunn.time_since_last_handshake().is_some_and(|age| age >= REJECT_AFTER_TIME)
    }

    /// Runs boringtun's timers, so that the next session it makes counts as newer than those it has. Returns the
    /// length of a message it wrote on that occasion.
    fn date_next_session(&mut self, out: &mut [u8; CONTROL_LEN]) -> Option<usize> {
        self.date += 1;
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Whether there is a session that has not expired, confirmed or not.
    #[must_use]
    pub fn has_session(&self, now: Instant) -> bool {
        self.sessions.iter().flatten().any(|session| !session.expired(now))
    }

    fn session(&self, index: SessionIndex) -> Option<&Session> {
        self.sessions[index.0 as usize % SESSIONS].as_ref().filter(|session| session.local == index)
    }

    fn session_mut(&mut self, index: SessionIndex) -> Option<&mut Session> {
        self.sessions[index.0 as usize % SESSIONS].as_mut().filter(|session| session.local == index)
    }

    fn remember(&mut self, local: SessionIndex, remote: SessionIndex, initiator: bool, now: Instant) {
        self.sessions[local.0 as usize % SESSIONS] = Some(Session {
            local,
            remote,
            born: now,
            date: self.date,
            initiator,
            confirmed: initiator,
            // An initiator has just sent the keepalive that confirms the session.
            next_counter: u64::from(initiator),
            arrived: Arrived::default(),
        });
    }

    fn forget(&mut self, index: SessionIndex) {
        if self.session(index).is_some() {
            self.sessions[index.0 as usize % SESSIONS] = None;
        }
    }

    /// Notes that the peer used a session, and sends on it from now on unless it is older than the current one: the
    /// rule boringtun follows. `true` when the peer had not used it before.
    fn confirm(&mut self, index: SessionIndex) -> bool {
        let current_date = self.session(self.current).map(|session| session.date);
        let Some(session) = self.session_mut(index) else {
            return false;
        };
        let new = !std::mem::replace(&mut session.confirmed, true);
        if current_date.is_none_or(|date| session.date >= date) {
            self.current = index;
        }
        new
    }

    /// Pretends that `sent` messages have left under the current session.
    #[cfg(test)]
    pub(super) fn set_sent(&mut self, sent: u64) {
        let current = self.current;
        self.session_mut(current).expect("a session").next_counter = sent;
    }
}

/// The kernel refuses such keys in handshakes too: the result of the exchange would be known to anyone.
fn refuse_low_order(ephemeral: &[u8]) -> Result<(), Cause> {
    let key = PublicKey(ephemeral.try_into().map_err(|_| Cause::MalformedOuter)?);
    if key.is_low_order() { Err(Cause::BadTag) } else { Ok(()) }
}

fn cause_of(error: &WireGuardError) -> Cause {
    match error {
        WireGuardError::InvalidMac | WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => {
            Cause::BadTag
        }
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp => Cause::Replay,
        WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => Cause::UnknownIndex,
        WireGuardError::NoCurrentSession | WireGuardError::ConnectionExpired => Cause::NoSession,
        WireGuardError::UnderLoad => Cause::RateLimited,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed => Cause::MalformedOuter,
    }
}
