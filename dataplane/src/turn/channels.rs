//! Channel numbers and the peers behind them (RFC 8656 section 12).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foldhash::quality::FixedState;

use crate::stun::{ChannelNumber, ErrorCode};

/// A binding lasts 10 minutes (RFC 8656 section 12); it is renewed after 8 to 9.
const REFRESH_AFTER: Duration = Duration::from_secs(8 * 60);
/// How long a refused one waits.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// ... unless somebody waits for it: then so many are asked for again, each of which was refused this long ago.
const RETRY_WANTED: usize = 16;
pub(super) const RETRY_WANTED_AFTER: Duration = Duration::from_secs(5);
/// A number that was bound to one peer goes to another only after its binding (10 minutes) has expired and 5 more have
/// passed (RFC 8656 section 12).
const NUMBER_RESTS: Duration = Duration::from_secs(15 * 60);

struct Channel {
    peer: SocketAddr,
    /// The server has confirmed it.
    bound: bool,
    /// The server has refused it the last time, with this code.
    refused: Option<ErrorCode>,
    /// When to bind it (again); `None` while a request is in flight.
    due: Option<Instant>,
    /// Set when nobody wants it any more: the number rests until then.
    rests_until: Option<Instant>,
}

/// All channels of an allocation. A peer keeps its number when the allocation has to be made anew.
pub(super) struct Channels {
    /// Index 0 is number 0x4000.
    table: Vec<Channel>,
    by_peer: HashMap<SocketAddr, ChannelNumber, FixedState>,
}

impl Channels {
    pub(super) fn new(seed: u64) -> Self {
        Self { table: Vec::new(), by_peer: HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    /// The number for a peer, which need not be bound yet; `None` when all 4,096 are taken.
    pub(super) fn want(&mut self, peer: SocketAddr, now: Instant) -> Option<ChannelNumber> {
        if let Some(&number) = self.by_peer.get(&peer) {
            return Some(number);
        }
        let fresh = Channel { peer, bound: false, refused: None, due: Some(now), rests_until: None };
        // To the server a peer has one number for as long as the binding lasts, and any other is a mistake of ours.
        let own = |channel: &Channel| channel.rests_until.is_some() && channel.peer == peer;
        let free = |channel: &Channel| channel.rests_until.is_some_and(|until| until <= now);
        let rested = self.table.iter().position(own).or_else(|| self.table.iter().position(free));
        let index = rested.unwrap_or(self.table.len());
        let number = u16::try_from(index)
            .ok()
            .and_then(|index| ChannelNumber::new(index.checked_add(ChannelNumber::MIN.get())?))
            .filter(|number| number.is_assigned())?;
        if let Some(index) = rested {
            self.table[index] = fresh;
        } else {
            self.table.push(fresh);
        }
        self.by_peer.insert(peer, number);
        Some(number)
    }

    /// Gives a peer's number up. Answers whether the peer had one.
    pub(super) fn release(&mut self, peer: SocketAddr, now: Instant) -> bool {
        let Some(number) = self.by_peer.remove(&peer) else { return false };
        if let Some(channel) = self.get_mut(number) {
            channel.bound = false;
            channel.due = None;
            channel.rests_until = Some(now + NUMBER_RESTS);
        }
        true
    }

    /// Whether another channel leads to the same address.
    pub(super) fn has_address(&self, address: std::net::IpAddr) -> bool {
        self.table.iter().any(|channel| channel.rests_until.is_none() && channel.peer.ip() == address)
    }

    /// The number to send to a peer with, when the server has confirmed it. O(1).
    pub(super) fn bound(&self, peer: SocketAddr) -> Option<ChannelNumber> {
        let number = *self.by_peer.get(&peer)?;
        self.get(number).filter(|channel| channel.bound).map(|_| number)
    }

    /// With which code the server has refused the channel to a peer the last time; `None` where it has not. O(1).
    pub(super) fn refusal(&self, peer: SocketAddr) -> Option<ErrorCode> {
        self.get(*self.by_peer.get(&peer)?)?.refused
    }

    /// The peer behind a number. Also while the server's confirmation is on its way: data may overtake it. O(1).
    pub(super) fn peer(&self, number: ChannelNumber) -> Option<SocketAddr> {
        let channel = self.get(number)?;
        (channel.bound || channel.due.is_none() && channel.rests_until.is_none()).then_some(channel.peer)
    }

    /// A binding is confirmed; answers whether it is new. `jitter` spreads the renewals, at most a minute.
    pub(super) fn confirm(&mut self, number: ChannelNumber, jitter: Duration, now: Instant) -> bool {
        let Some(channel) = self.get_mut(number).filter(|channel| channel.rests_until.is_none()) else {
            return false;
        };
        channel.due = Some(now + REFRESH_AFTER + jitter);
        channel.refused = None;
        !std::mem::replace(&mut channel.bound, true)
    }

    /// A binding is refused.
    pub(super) fn refuse(&mut self, number: ChannelNumber, code: ErrorCode, now: Instant) {
        if let Some(channel) = self.get_mut(number).filter(|channel| channel.rests_until.is_none()) {
            channel.due = Some(now + RETRY_AFTER);
            channel.bound = false;
            channel.refused = Some(code);
        }
    }

    /// Somebody waits for a way over the server, which may let through by now what it has refused: some of those are due at
    /// once, the longest ago first. Answers whether there was one.
    pub(super) fn retry_refused(&mut self, now: Instant) -> bool {
        let latest = now + RETRY_AFTER - RETRY_WANTED_AFTER;
        let mut found = false;
        for _ in 0..RETRY_WANTED {
            let refused = self.table.iter_mut().filter(|channel| {
                channel.refused.is_some() && channel.due.is_some_and(|due| due > now && due <= latest)
            });
            let Some(first) = refused.min_by_key(|channel| channel.due) else { break };
            first.due = Some(now);
            found = true;
        }
        found
    }

    /// The allocation is gone: yields the peers that were bound, and wants all of them again.
    pub(super) fn reset(&mut self, now: Instant) -> impl Iterator<Item = SocketAddr> {
        self.table.iter_mut().filter(|channel| channel.rests_until.is_none()).filter_map(move |channel| {
            channel.due = Some(now);
            std::mem::replace(&mut channel.bound, false).then_some(channel.peer)
        })
    }

    /// The next channel to bind, marked as in flight.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(ChannelNumber, SocketAddr)> {
        let index = self.table.iter().position(|channel| channel.due.is_some_and(|due| due <= now))?;
        let channel = &mut self.table[index];
        channel.due = None;
        let number = *self.by_peer.get(&channel.peer)?;
        Some((number, channel.peer))
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.table.iter().filter_map(|channel| channel.due).min()
    }

    fn get(&self, number: ChannelNumber) -> Option<&Channel> {
        self.table.get(usize::from(number.get() - ChannelNumber::MIN.get()))
    }

    fn get_mut(&mut self, number: ChannelNumber) -> Option<&mut Channel> {
        self.table.get_mut(usize::from(number.get() - ChannelNumber::MIN.get()))
    }
}
