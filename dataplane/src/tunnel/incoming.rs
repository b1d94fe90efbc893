//! What arrives from the network: cheap checks first, Diffie-Hellman last, and no effect of anything unauthenticated.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::Tunnel;
use super::apart::apart;
use super::limiter::Verdict;
use super::noise::{CONTROL_LEN, Outset};
use super::peer::{Passed, Path};
use super::peers::PeerIndex;
use super::timers::REKEY_ON_RECEIVE;
use crate::crypto::Key;
use crate::crypto::aead::Body;
use crate::drops::Cause;
use crate::packet::Packet;
use crate::wire::ip;
use crate::wire::wireguard::{self, COOKIE_REPLY, Message, SessionIndex};

/// Initiations of one peer closer together than this are dropped (the kernel's INITIATIONS_PER_SECOND is 50).
const INITIATION_SPACING: Duration = Duration::from_millis(20);

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A packet of this peer was written and may be delivered.
    Packet(PeerIndex),
    /// A handshake message, a cookie or a keepalive: there is nothing to deliver.
    Consumed,
    /// It was dropped and counted.
    Dropped(Cause),
}

/// Who sent an authentic message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The peer.
    pub peer: PeerIndex,
    /// It came by the relay, from where the peer had not been there.
    pub moved: bool,
}

impl Tunnel {
    /// Takes one datagram that arrived by `path`. A packet inside ends up in `out`, without padding. Poll for control
    /// messages and staged packets afterwards.
    pub fn open(&mut self, datagram: &[u8], path: Path, out: &mut Packet, now: Instant) -> Opened {
        self.open_body(datagram, Body::Sealed, path, out, now)
    }

    /// The key under which a data message may be opened ahead, before its turn comes; `None` where there is nothing to open or it
    /// would be refused. Whatever [`Tunnel::open_body`] checks, it checks again.
    #[must_use]
    pub fn receiving_key(&self, message: &[u8], now: Instant) -> Option<&Key> {
        let Some(Message::Data { receiver, counter }) = wireguard::parse(message) else { return None };
        let peer = self.peers.get(self.peer_of(receiver).ok()?)?;
        peer.noise.receiving((receiver, counter), now)
    }

    /// As [`Tunnel::open`], of a datagram that may have been opened ahead under [`Tunnel::receiving_key`].
    pub fn open_body(
        &mut self,
        datagram: &[u8],
        body: Body,
        path: Path,
        out: &mut Packet,
        now: Instant,
    ) -> Opened {
        self.heard = None;
        let outcome = match wireguard::parse(datagram) {
            None => Err(Cause::MalformedOuter),
            Some(Message::Data { receiver, counter }) => {
                self.open_data((datagram, body), (receiver, counter), path, out, now)
            }
            Some(Message::Initiation { .. }) => self.open_initiation(datagram, path, now),
            Some(Message::Response { receiver, .. }) => self.open_response(datagram, receiver, path, now),
            Some(Message::CookieReply { receiver }) => self.open_cookie_reply(datagram, receiver, now),
        };
        outcome.unwrap_or_else(|cause| {
            self.drops.count(cause);
            Opened::Dropped(cause)
        })
    }

    /// Who sent the datagram that was opened last, once, if it was authentic.
    pub fn take_heard(&mut self) -> Option<Heard> {
        self.heard.take()
    }

    fn open_data(
        &mut self,
        (datagram, body): (&[u8], Body),
        message: (SessionIndex, u64),
        path: Path,
        out: &mut Packet,
        now: Instant,
    ) -> Result<Opened, Cause> {
        self.notice_sleep(now);
        let index = self.peer_of(message.0)?;
        let peer = &mut self.peers[index];
        let opened = peer.noise.open_body((datagram, body), message, out.buffer(), now)?;
        peer.stats.received_message_bytes += datagram.len() as u64;
        peer.stats.missing_messages = peer.stats.missing_messages.saturating_add_signed(opened.missing);
        // From here on the message is authentic, whatever it holds.
        let news = self.authentic(index, path, now);
        if opened.confirmed {
            let handshake = self.handshake(now);
            let peer = &mut self.peers[index];
            peer.told_silent = false;
            peer.timers.handshake_complete();
            if peer.stats.last_handshake.replace(handshake).is_none() {
                tracing::info!(peer = %peer.public_key, "handshake complete");
            }
            self.unstage(index);
        }
        let peer = &mut self.peers[index];
        if opened.initiator && opened.age >= REKEY_ON_RECEIVE && !peer.timers.handshake_in_progress() {
            self.start_handshake(index, now);
        }
        out.set_len(opened.len);
        let header = ip::parse(out.as_slice());
        let starts = header.is_some() && self.peers[index].timers.data_received(now);
        if news || starts {
            self.arm(index, now);
        }
        match header {
            Some(header) => self.admit(index, header, out),
            None if opened.len == 0 => Ok(Opened::Consumed),
            None => Err(Cause::MalformedInner),
        }
    }

    /// Decides whether the packet in an authentic message may be delivered.
    fn admit(&mut self, index: PeerIndex, header: ip::Header, out: &mut Packet) -> Result<Opened, Cause> {
        out.truncate(header.total_len);
        if self.routes.find(header.source) != Some(index) || is_nobodys(header.source) {
            return Err(Cause::AllowedIps);
        }
        let stats = &mut self.peers[index].stats;
        stats.received_packets += 1;
        stats.received_bytes += header.total_len as u64;
        Ok(Opened::Packet(index))
    }

    fn open_initiation(&mut self, datagram: &[u8], path: Path, now: Instant) -> Result<Opened, Cause> {
        if !self.admit_handshake(datagram, path, false, now)? {
            return Ok(Opened::Consumed);
        }
        self.at_its_cost(|tunnel| tunnel.take_initiation(datagram, path, now))
    }

    fn take_initiation(&mut self, datagram: &[u8], path: Path, now: Instant) -> Result<Opened, Cause> {
        let claim = self.identity.claim(datagram).ok_or(Cause::BadTag)?;
        let index = *self.by_key.get(&claim.sender).ok_or(Cause::BadTag)?;
        self.renew(index);
        let peer = &mut self.peers[index];
        let last = peer.last_initiation_received;
        if last.is_some_and(|last| now.saturating_duration_since(last) < INITIATION_SPACING) {
            return Err(Cause::RateLimited);
        }
        let path_back = peer.answers_by(path).unwrap_or(path);
        let outset = Outset { index: self.new_index(index), path: path_back };
        let mut bytes = [0; CONTROL_LEN];
        let peer = &mut self.peers[index];
        let Self { identity, world, .. } = self;
        let len = apart(|| peer.noise.handle_initiation(identity, world, claim, outset, &mut bytes, now))?;
        self.note_index(index, outset.index);
        let peer = &mut self.peers[index];
        peer.last_initiation_received = Some(now);
        peer.stats.received_message_bytes += datagram.len() as u64;
        self.authentic(index, path, now);
        let peer = &mut self.peers[index];
        if let Some(paths) = &mut peer.paths {
            paths.called(path, now);
        }
        peer.timers.session_made(now);
        peer.timers.anything_sent(now);
        if let Some(path) = peer.answers_by(path) {
            self.transmit_to(index, path, bytes, len);
        }
        self.arm(index, now);
        Ok(Opened::Consumed)
    }

    fn open_response(
        &mut self,
        datagram: &[u8],
        receiver: SessionIndex,
        path: Path,
        now: Instant,
    ) -> Result<Opened, Cause> {
        let index = self.peer_of(receiver)?;
        let peer = &self.peers[index];
        let awaited = peer.noise.awaits(receiver) && peer.path.is_some_and(|way| way.leads_as(path));
        if !self.admit_handshake(datagram, path, awaited, now)? {
            return Ok(Opened::Consumed);
        }
        self.at_its_cost(|tunnel| tunnel.take_response(index, datagram, path, now))
    }

    fn take_response(
        &mut self,
        index: PeerIndex,
        datagram: &[u8],
        path: Path,
        now: Instant,
    ) -> Result<Opened, Cause> {
        let peer = &mut self.peers[index];
        let mut bytes = [0; CONTROL_LEN];
        let Self { identity, world, .. } = self;
        let len = apart(|| peer.noise.handle_response(identity, world, datagram, &mut bytes, now))?;
        peer.stats.received_message_bytes += datagram.len() as u64;
        self.authentic(index, path, now);
        let handshake = self.handshake(now);
        let peer = &mut self.peers[index];
        if let Some(paths) = &mut peer.paths {
            paths.answered(path, now);
        }
        peer.told_silent = false;
        peer.timers.session_made(now);
        peer.timers.handshake_complete();
        peer.timers.anything_sent(now);
        match peer.stats.last_handshake.replace(handshake) {
            None => tracing::info!(peer = %peer.public_key, "handshake complete"),
            Some(_) => tracing::debug!(peer = %peer.public_key, "handshake complete"),
        }
        // By the way that is in use: the peer follows it.
        if let Some(path) = self.peers[index].path {
            self.transmit_to(index, path, bytes, len);
        }
        self.unstage(index);
        self.arm(index, now);
        Ok(Opened::Consumed)
    }

    /// Takes a handshake message, and notes what that has cost: others may cost the less.
    fn at_its_cost(
        &mut self,
        take: impl FnOnce(&mut Self) -> Result<Opened, Cause>,
    ) -> Result<Opened, Cause> {
        let before = self.world.worked();
        let outcome = take(self);
        self.limiter.spend(self.world.worked().saturating_sub(before));
        outcome
    }

    /// A cookie reply proves nothing about where it came from: neither the path nor a timer follows it. But the initiation that it
    /// answers is repeated with the cookie, once.
    ///
    /// The paper has the recipient only keep the cookie, and repeat the initiation when its Rekey-Timeout has run out, 5 s after it
    /// was sent (section 6.6), so that nobody can have it send at will and the load is not added to. Here a timer's initiation has one repetition at most, whatever arrives, and only who has seen that initiation can
    /// ask for it; so it is 148 B in 5 s. The endpoint that asked for the cookie has nothing to fear from one message that has
    /// it: it holds each address to a rate. Waiting would have all who come while an endpoint is flooded wait for 5 s.
    fn open_cookie_reply(
        &mut self,
        datagram: &[u8],
        receiver: SessionIndex,
        now: Instant,
    ) -> Result<Opened, Cause> {
        let index = self.peer_of(receiver)?;
        let peer = &mut self.peers[index];
        let path = peer.noise.handle_cookie_reply(datagram, now)?;
        if peer.timers.may_repeat() {
            self.initiate_by(index, path, now);
        }
        Ok(Opened::Consumed)
    }

    /// Whether a handshake message may cost a Diffie-Hellman; `false` when a cookie reply was sent instead.
    /// `awaited` as in [`super::limiter::Limiter::check`].
    fn admit_handshake(
        &mut self,
        datagram: &[u8],
        path: Path,
        awaited: bool,
        now: Instant,
    ) -> Result<bool, Cause> {
        self.refuse_while_down()?;
        if self.private_key.is_none() {
            return Err(Cause::BadTag);
        }
        if !path.is_usable() {
            return Err(Cause::MalformedOuter);
        }
        let mut reply = [0; COOKIE_REPLY];
        match self.limiter.check(&self.identity, datagram, (path.remote(), awaited), &mut reply, now) {
            Verdict::Accept => Ok(true),
            Verdict::Drop(cause) => Err(cause),
            Verdict::Reply => {
                let mut bytes = [0; CONTROL_LEN];
                bytes[..COOKIE_REPLY].copy_from_slice(&reply);
                self.transmit(path, bytes, COOKIE_REPLY);
                Ok(false)
            }
        }
    }

    /// The peer answers from here now, and it is alive. The answer is whether a timer may have changed.
    fn authentic(&mut self, index: PeerIndex, path: Path, now: Instant) -> bool {
        let peer = &mut self.peers[index];
        let news = peer.is_news(Passed::Received, now);
        let mut moved = false;
        match &mut peer.paths {
            // Nothing can be sent to there.
            _ if !path.is_usable() => {}
            None if peer.path == Some(path) => {}
            None => {
                (peer.path, peer.awaits_path) = (Some(path), false);
                self.note_outside(index);
            }
            Some(paths) => {
                // All messages of a batch that come by the way in use tell the same.
                if news || peer.path != Some(path) {
                    let known = paths.relayed();
                    paths.heard(path, now);
                    moved = paths.relayed() != known;
                    self.follow_paths(index, now);
                }
            }
        }
        self.heard = Some(Heard { peer: index, moved });
        let peer = &mut self.peers[index];
        if news {
            peer.timers.anything_received(now);
        }
        news
    }

    /// The sockets stay open where a relay knows them, and sessions of before end one after the other.
    fn refuse_while_down(&self) -> Result<(), Cause> {
        if self.running { Ok(()) } else { Err(Cause::TunDown) }
    }

    fn peer_of(&self, receiver: SessionIndex) -> Result<PeerIndex, Cause> {
        self.refuse_while_down()?;
        self.by_index.get(&receiver).copied().ok_or(Cause::UnknownIndex)
    }
}

/// Whether no host can have sent from this address, whatever is routed to its peer: it stands for none, for the receiver itself, or
/// for several (RFC 1122, section 3.2.1.3; RFC 4291, sections 2.5.2, 2.5.3 and 2.7).
fn is_nobodys(source: IpAddr) -> bool {
    let of_v4 = |source: Ipv4Addr| match source.octets()[0] {
        0 | 127 => true,
        first => first >= 224 && (source.is_multicast() || source.is_broadcast()),
    };
    match source {
        IpAddr::V4(source) => of_v4(source),
        IpAddr::V6(source) => {
            let is_special = source.is_unspecified() || source.is_loopback() || source.is_multicast();
            is_special || source.to_ipv4_mapped().is_some_and(of_v4)
        }
    }
}
