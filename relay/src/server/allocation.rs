//! One allocation: its permissions and channels, and when each of them ends.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::drops::Cause;
use dataplane::stun::{ChannelNumber, TransactionId};

use super::auth::{AnswerKey, UserId};
use super::face::Sent;
use super::icmp::IcmpBudget;
use super::limits::Limits;
use super::pair::AddressError;
use super::ports::{Token, Want};
use super::rules::Rule;
use super::traffic::Flow;
use super::{ClientSocket, PeerSocket};

/// RFC 8656 section 9.
pub const PERMISSION_TIME: Duration = Duration::from_secs(300);
/// RFC 8656 section 12.
pub const CHANNEL_TIME: Duration = Duration::from_secs(600);
/// How long an expired channel number and its peer may not be bound to others (RFC 8656 section 12).
pub const CHANNEL_QUIET_TIME: Duration = Duration::from_secs(300);
/// Most permissions of one allocation.
pub const PERMISSIONS_MAX: usize = 64;
/// Most channels of one allocation, quiet ones included.
pub const CHANNELS_MAX: usize = 64;

/// Where an allocation is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its socket is being opened; this many ports were busy so far.
    Opening { attempts: u8 },
    /// It relays.
    Live,
    /// Its socket is being closed.
    Closing,
}

/// Which port an allocation was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortChoice {
    /// Any that is free and suits.
    Free(Want),
    /// The one that was reserved for this token.
    Reserved(Token),
}

/// Which peers a permission opens: every port of an address (RFC 8656 section 9), or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub address: IpAddr,
    pub port: Option<NonZeroU16>,
}

impl Reach {
    /// Every port of the peer's address.
    #[must_use]
    pub fn all(peer: SocketAddr) -> Self {
        Self { address: peer.ip(), port: None }
    }

    /// The peer alone; port 0 is nobody, so that it stands for all.
    #[must_use]
    pub fn only(peer: SocketAddr) -> Self {
        Self { address: peer.ip(), port: NonZeroU16::new(peer.port()) }
    }

    fn includes(self, peer: PeerSocket) -> bool {
        self.address == peer.0.ip() && self.port.is_none_or(|port| port.get() == peer.0.port())
    }
}

#[derive(Clone, Copy, Debug)]
struct Permission {
    reach: Reach,
    expires: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    number: ChannelNumber,
    peer: PeerSocket,
    expires: Instant,
    /// Copy of the expiry of the peer's permission, so that the data path looks in one place.
    permitted_until: Instant,
}

/// How many permissions and channels are listed, those included that have expired and are not forgotten yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub permissions: u32,
    pub channels: u32,
}

/// One allocation. The lists are short and bounded, so that a scan is both constant and fast.
#[derive(Debug)]
pub(super) struct Allocation {
    pub client: ClientSocket,
    pub user: UserId,
    /// What the answer to its Allocate is protected with.
    pub answer: AnswerKey,
    /// The local address of its socket.
    pub relayed: SocketAddr,
    pub port: PortChoice,
    pub state: State,
    pub created: Instant,
    pub expires: Instant,
    /// The Allocate request, and what its answer has to repeat when it is sent again.
    pub transaction: TransactionId,
    pub lifetime_s: u32,
    pub reservation: Option<Token>,
    pub with_fingerprint: bool,
    pub refused: Option<AddressError>,
    /// Its client understands a hint that the relay drains.
    pub is_towpath: bool,
    pub icmp: IcmpBudget,
    pub flow: Flow,
    /// What other workers have sent to the client, once they may.
    pub sent: Option<Arc<Sent>>,
    /// As many of its permissions and channels are counted for its user and in all.
    pub counted: Listed,
    peers: Peers,
}

/// Which peers an allocation's client may exchange data with, and how: by a channel, or by indications.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

impl Peers {
    /// See [`Allocation::peer_channel`].
    pub fn channel_of(&self, peer: PeerSocket, now: Instant) -> Result<Option<ChannelNumber>, Cause> {
        match self.channels.iter().find(|channel| channel.peer == peer) {
            Some(channel) if now >= channel.permitted_until => Err(Cause::NoPermission),
            Some(channel) if now < channel.expires => Ok(Some(channel.number)),
            Some(_) | None if self.has_permission(peer, now) => Ok(None),
            Some(_) | None => Err(Cause::NoPermission),
        }
    }

    /// Every address that is or was permitted.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.permissions.iter().map(|permission| permission.reach.address)
    }

    fn has_permission(&self, peer: PeerSocket, now: Instant) -> bool {
        self.permissions.iter().any(|permission| permission.reach.includes(peer) && now < permission.expires)
    }
}

/// Why a channel cannot be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BindError {
    /// The number or the peer belongs to another binding.
    Conflict,
    /// There are too many channels or permissions.
    Full(Rule),
}

impl Allocation {
    #[must_use]
    pub fn new(
        client: ClientSocket,
        user: UserId,
        answer: AnswerKey,
        relayed: SocketAddr,
        port: PortChoice,
        transaction: TransactionId,
        now: Instant,
    ) -> Self {
        Self {
            client,
            user,
            answer,
            relayed,
            port,
            state: State::Opening { attempts: 0 },
            created: now,
            expires: now,
            transaction,
            lifetime_s: 0,
            reservation: None,
            with_fingerprint: false,
            refused: None,
            is_towpath: false,
            icmp: IcmpBudget::default(),
            flow: Flow::default(),
            sent: None,
            counted: Listed::default(),
            peers: Peers::default(),
        }
    }

    /// Its peers, to be judged by somebody else.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Whether it relays now. A timer that fires late does not prolong it.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.state == State::Live && now < self.expires
    }

    /// Whether it was live and its time is over.
    #[must_use]
    pub fn has_expired(&self, now: Instant) -> bool {
        self.state == State::Live && now >= self.expires
    }

    /// The peer of a channel.
    ///
    /// # Errors
    /// The cause to count.
    pub fn channel_peer(&self, number: ChannelNumber, now: Instant) -> Result<PeerSocket, Cause> {
        let channel = self
            .peers
            .channels
            .iter()
            .find(|channel| channel.number == number && now < channel.expires)
            .ok_or(Cause::NoChannel)?;
        if now < channel.permitted_until { Ok(channel.peer) } else { Err(Cause::NoPermission) }
    }

    /// Whether a channel number is bound, or may not be bound to others yet.
    #[must_use]
    pub fn holds_number(&self, number: ChannelNumber, now: Instant) -> bool {
        self.peers
            .channels
            .iter()
            .any(|channel| channel.number == number && now < channel.expires + CHANNEL_QUIET_TIME)
    }

    /// How a peer's datagrams reach the client: by a channel, or as a Data indication.
    ///
    /// # Errors
    /// The cause to count.
    pub fn peer_channel(&self, peer: PeerSocket, now: Instant) -> Result<Option<ChannelNumber>, Cause> {
        self.peers.channel_of(peer, now)
    }

    /// Whether datagrams to and from a peer are let through.
    #[must_use]
    pub fn has_permission(&self, peer: PeerSocket, now: Instant) -> bool {
        self.peers.has_permission(peer, now)
    }

    /// How many permissions and channels are in force.
    #[must_use]
    pub fn held(&self, now: Instant) -> (u64, u64) {
        let permissions = self.peers.permissions.iter().filter(|permission| now < permission.expires).count();
        let channels = self.peers.channels.iter().filter(|channel| now < channel.expires).count();
        (permissions as u64, channels as u64)
    }

    /// How many permissions and channels are listed.
    #[must_use]
    pub fn listed(&self) -> Listed {
        let Peers { permissions, channels } = &self.peers;
        Listed { permissions: permissions.len() as u32, channels: channels.len() as u32 }
    }

    /// Forgets what has expired. The answer is what the permissions opened.
    pub fn forget_expired(&mut self, now: Instant) -> Vec<Reach> {
        let mut gone = Vec::new();
        self.peers.permissions.retain(|permission| {
            let stays = now < permission.expires;
            if !stays {
                gone.push(permission.reach);
            }
            stays
        });
        self.peers.channels.retain(|channel| now < channel.expires + CHANNEL_QUIET_TIME);
        gone
    }

    /// Whether there is a permission for just this.
    #[must_use]
    pub fn holds(&self, reach: Reach, now: Instant) -> bool {
        self.peers.permissions.iter().any(|permission| permission.reach == reach && now < permission.expires)
    }

    /// What all permissions open or did open.
    pub fn reaches(&self) -> impl Iterator<Item = Reach> {
        self.peers.permissions.iter().map(|permission| permission.reach)
    }

    /// How many of `wanted` have no permission yet. Duplicates may be counted twice.
    #[must_use]
    pub fn new_permissions(&self, wanted: impl Iterator<Item = Reach>, now: Instant) -> usize {
        wanted.filter(|&reach| !self.holds(reach, now)).count()
    }

    /// Whether a peer has a channel.
    #[must_use]
    pub fn has_channel(&self, peer: PeerSocket, now: Instant) -> bool {
        self.peers.channels.iter().any(|channel| channel.peer == peer && now < channel.expires)
    }

    /// Ends the permissions and channels of all others. The answer is what the permissions opened that are gone.
    pub fn retain_peers(
        &mut self,
        reach: impl Fn(Reach) -> bool,
        socket: impl Fn(PeerSocket) -> bool,
    ) -> Vec<Reach> {
        let mut gone = Vec::new();
        self.peers.permissions.retain(|permission| {
            let stays = reach(permission.reach);
            if !stays {
                gone.push(permission.reach);
            }
            stays
        });
        // The whole binding goes: a permission that is made later must not revive it.
        self.peers.channels.retain(|channel| socket(channel.peer));
        gone
    }

    /// Whether so many new permissions fit.
    #[must_use]
    pub fn has_room_for(&self, new: usize, limits: &Limits, now: Instant) -> bool {
        let live = self.peers.permissions.iter().filter(|permission| now < permission.expires).count();
        live + new <= limits.permissions_max.min(PERMISSIONS_MAX)
    }

    /// Installs or refreshes a permission; the caller has asked [`Allocation::has_room_for`]. The answer is an expired one
    /// that was forgotten for it.
    pub fn permit(&mut self, reach: Reach, now: Instant) -> Option<Reach> {
        let new = Permission { reach, expires: now + PERMISSION_TIME };
        let known = self.peers.permissions.iter().position(|permission| permission.reach == reach);
        let outdated = || self.peers.permissions.iter().position(|permission| permission.expires <= now);
        let mut forgotten = None;
        match known.or_else(outdated) {
            Some(index) => {
                let old = std::mem::replace(&mut self.peers.permissions[index], new);
                forgotten = Some(old.reach).filter(|&old| old != reach);
            }
            None => push_tight(&mut self.peers.permissions, new),
        }
        debug_assert!(self.peers.permissions.len() <= PERMISSIONS_MAX, "room was not asked for");
        for channel in self.peers.channels.iter_mut().filter(|channel| reach.includes(channel.peer)) {
            channel.permitted_until = new.expires;
        }
        forgotten
    }

    /// Binds a channel or refreshes its binding, and permits what `reach` opens, the peer included (RFC 8656 section 12.2).
    /// The answer is that of [`Allocation::permit`].
    ///
    /// # Errors
    /// What is in the way; no binding was changed.
    pub fn bind_channel(
        &mut self,
        number: ChannelNumber,
        peer: PeerSocket,
        reach: Reach,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<Reach>, BindError> {
        // Once forgotten, an old binding can neither be in the way nor be found instead of the new one.
        self.peers.channels.retain(|channel| now < channel.expires + CHANNEL_QUIET_TIME);
        let known =
            self.peers.channels.iter().position(|channel| channel.number == number || channel.peer == peer);
        if known.is_some_and(|index| {
            let channel = &self.peers.channels[index];
            channel.number != number || channel.peer != peer
        }) {
            return Err(BindError::Conflict);
        }
        if known.is_none() && self.peers.channels.len() >= limits.channels_max.min(CHANNELS_MAX) {
            return Err(BindError::Full(Rule::Channels));
        }
        if !self.has_room_for(self.new_permissions(std::iter::once(reach), now), limits, now) {
            return Err(BindError::Full(Rule::Permissions));
        }
        let expires = now + CHANNEL_TIME;
        match known {
            Some(index) => self.peers.channels[index].expires = expires,
            None => {
                push_tight(&mut self.peers.channels, Channel { number, peer, expires, permitted_until: now });
            }
        }
        Ok(self.permit(reach, now))
    }
}

/// Pushes without the spare room of doubling from four: most allocations have one permission and one channel.
fn push_tight<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len().max(1));
    }
    list.push(item);
}
