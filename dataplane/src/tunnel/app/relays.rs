//! The relays: which one is in use, and which peers are behind it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use zeroize::Zeroizing;

use super::control::wall_clock;
use super::stream::{Carrier, RelayStream};
use crate::config::{Credentials, Login};
use crate::stun::AddressFamily;
use crate::tunnel::PeerIndex;
use crate::tunnel::key::PublicKey;
use crate::tunnel::paths::Policy;
use crate::turn::{Client, ClientConfig, Input};

/// How often the files with passwords are looked at: who renews them does so that long before the old ones expire.
const CREDENTIALS_INTERVAL: Duration = Duration::from_secs(30);
/// How many times all relays may be silent in a row before each of them is waited for as long as the RFC says.
const URGENT_ROUNDS: usize = 16;

/// Channels that are kept while others are being bound.
const LEFT_MAX: usize = 8;

/// A relay that can be used.
#[derive(Clone, Debug)]
pub struct RelayChoice {
    /// Its address, once its name has one.
    pub server: Option<SocketAddr>,
    /// How it is spoken to.
    pub carrier: Carrier,
    /// Where user name and password come from, ...
    pub login: Login,
    /// ... and what they are now.
    pub credentials: Credentials,
}

/// What the configuration says about relays.
#[derive(Clone, Debug)]
pub struct RelayPlan {
    /// In the order in which they are tried; one at least.
    pub choices: Vec<RelayChoice>,
    /// Which peer is reached over them at which address.
    pub peers: Vec<(PeerIndex, SocketAddr)>,
    /// By which ways peers may be reached, those too that are still to be made, or are made again; of others, the usual one.
    pub policies: HashMap<PublicKey, Policy>,
    /// The family of the relayed address.
    pub family: Option<AddressFamily>,
    /// For the TURN client; random.
    pub seed: u64,
}

impl RelayPlan {
    /// By which ways the peer with this key may be reached.
    pub(super) fn policy_of(&self, key: &PublicKey) -> Policy {
        self.policies.get(key).copied().unwrap_or_default()
    }

    /// The first one with an address at or behind a place, around the end.
    fn addressed_from(&self, place: usize) -> Option<(usize, SocketAddr)> {
        let places = (place..self.choices.len()).chain(0..place);
        places.into_iter().find_map(|place| Some((place, self.choices.get(place)?.server?)))
    }

    /// Whether one can be asked.
    #[must_use]
    pub fn has_address(&self) -> bool {
        self.addressed_from(0).is_some()
    }
}

/// The relay in use, and those in reserve.
pub struct Relay {
    pub(super) plan: RelayPlan,
    /// Seeds clients: the transaction ids of one tell nothing about those of the next.
    seeds: Xoshiro256PlusPlus,
    /// The last address at each relay that was in use, the latest last.
    addresses: Vec<(SocketAddr, SocketAddr)>,
    /// Which one is in use, or where the next stands when that was named by another one.
    current: usize,
    pub(super) client: Client,
    /// The address of the relay in use.
    pub(super) server: SocketAddr,
    /// The connection to it, where there is one.
    pub(super) stream: Option<RelayStream>,
    /// One that is no longer used, and still has to be closed.
    pub(super) former: Option<RelayStream>,
    /// Our address there, and the one from which it sees us, while there is an allocation.
    pub(super) relayed: Option<SocketAddr>,
    pub(super) mapped: Option<SocketAddr>,
    /// Peers that know our address by a ticket, ...
    met: Vec<PeerIndex>,
    /// ... so that it is waited for since then.
    lost_at: Option<Instant>,
    /// Where peers were, whose new channels are being bound.
    left: Vec<SocketAddr>,
    /// How many were found unusable since one was usable.
    pub(super) failures: usize,
    /// When the files are looked at.
    look_at: Instant,
}

impl Relay {
    /// Asks the first relay that has an address for an allocation.
    ///
    /// # Panics
    /// When there is none in the plan: see [`RelayPlan::has_address`].
    #[must_use]
    pub fn new(plan: RelayPlan, now: Instant) -> Self {
        let (current, server) = plan.addressed_from(0).expect("a relay with an address");
        let mut seeds = Xoshiro256PlusPlus::seed_from_u64(plan.seed);
        let mut relay = Self {
            client: connect(&plan, &plan.choices[current], server, seeds.next_u64(), now),
            seeds,
            plan,
            stream: None,
            former: None,
            relayed: None,
            mapped: None,
            met: Vec::new(),
            lost_at: None,
            left: Vec::new(),
            addresses: Vec::new(),
            current,
            server,
            failures: 0,
            look_at: now + CREDENTIALS_INTERVAL,
        };
        if relay.plan.choices.len() > 1 {
            // There is another one that could be used meanwhile.
            relay.client.hurry(now);
        }
        relay.want_peers(now);
        relay
    }

    /// Whether no peer's address is known yet.
    pub(super) fn has_no_peers(&self) -> bool {
        self.plan.peers.is_empty()
    }

    /// The address of a peer was found. The first that is behind the relay decides which family the relayed address has to reach;
    /// who is reached directly only is not behind it.
    pub(super) fn choose_family(&mut self, key: &PublicKey, address: SocketAddr, now: Instant) {
        let decides = self.has_no_peers() && self.plan.policy_of(key) != Policy::Direct;
        if decides && self.plan.family.is_none() {
            let family = AddressFamily::of(address.ip());
            self.plan.family = Some(family);
            self.client.set_family(family, now);
        }
    }

    /// The way to a peer: the number of its channel, if it is bound.
    pub(super) fn channel(&mut self, peer: SocketAddr, now: Instant) -> Option<crate::stun::ChannelNumber> {
        let number = self.client.channel(peer)?;
        self.client.sent(now);
        Some(number)
    }

    /// Where a peer is reached over the relay from now on; whether there is a channel already.
    pub(super) fn set_peer(&mut self, index: PeerIndex, address: SocketAddr, now: Instant) -> bool {
        let former = self.peer(index);
        self.met.retain(|peer| *peer != index);
        self.plan.peers.retain(|(peer, _)| *peer != index);
        self.plan.peers.push((index, address));
        // Before the new one, which may need its place.
        former.into_iter().for_each(|former| self.release(former, now));
        self.client.bind_channel(address, now);
        self.client.channel(address).is_some()
    }

    /// An authentic message has come from there over the relay: there the peer is from now on, also after the next
    /// allocation. The channel of before is kept until the new one is bound, for what is under way.
    pub(super) fn follow_peer(&mut self, index: PeerIndex, address: SocketAddr, now: Instant) {
        let former = self.peer(index);
        if former == Some(address) {
            return;
        }
        if self.left.len() >= LEFT_MAX {
            self.release_left(now);
        }
        self.plan.peers.retain(|(peer, _)| *peer != index);
        self.plan.peers.push((index, address));
        self.left.extend(former);
        self.client.bind_channel(address, now);
        if self.client.channel(address).is_some() {
            self.release_left(now);
        }
    }

    /// A channel is bound: those that were kept until then are let go.
    pub(super) fn release_left(&mut self, now: Instant) {
        for address in std::mem::take(&mut self.left) {
            self.release(address, now);
        }
    }

    /// The peer knows our address by a ticket only.
    pub(super) fn note_met(&mut self, index: PeerIndex) {
        self.met.push(index);
    }

    /// Whether this relay is to be kept although another could be used: by that one no peer would find us. For a minute; then
    /// there may at least be new tickets.
    pub(super) fn stays(&mut self, now: Instant) -> bool {
        const PATIENCE: Duration = Duration::from_secs(60);
        let is_met = |(index, _): &(PeerIndex, SocketAddr)| self.met.contains(index);
        let all_met = !self.plan.peers.is_empty() && self.plan.peers.iter().all(is_met);
        if self.relayed.is_some() {
            return all_met;
        }
        let lost_at = *self.lost_at.get_or_insert(now);
        all_met && now.saturating_duration_since(lost_at) < PATIENCE
    }

    /// The relay in use has given us this address.
    pub(super) fn note_address(&mut self, relayed: SocketAddr) {
        self.lost_at = None;
        // More than there are choices, because relays name others.
        const ADDRESSES_MAX: usize = 16;
        self.addresses.retain(|(server, _)| *server != self.server);
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.remove(0);
        }
        self.addresses.push((self.server, relayed));
    }

    /// Lets a channel go that no peer has.
    fn release(&mut self, address: SocketAddr, now: Instant) {
        if !self.plan.peers.iter().any(|(_, other)| *other == address) {
            self.client.release_channel(address, now);
        }
    }

    /// Where a peer is reached over the relay.
    pub(super) fn peer(&self, index: PeerIndex) -> Option<SocketAddr> {
        self.plan.peers.iter().find(|(peer, _)| *peer == index).map(|(_, address)| *address)
    }

    /// The peer is no longer there.
    pub(super) fn forget_peer(&mut self, index: PeerIndex, now: Instant) {
        let former = self.peer(index);
        self.met.retain(|peer| *peer != index);
        self.plan.peers.retain(|(peer, _)| *peer != index);
        former.into_iter().for_each(|former| self.release(former, now));
    }

    /// When [`Relay::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.client.poll_timeout().map_or(Some(self.look_at), |at| Some(at.min(self.look_at)))
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.client.poll_timeout().is_some_and(|due| due <= now) {
            self.client.handle_timeout(now);
        }
        if self.look_at <= now {
            self.renew_credentials(now);
        }
    }

    /// Takes what came from the relay.
    pub(super) fn handle_input(&mut self, datagram: &[u8], now: Instant) -> Input {
        self.client.handle_input(datagram, now)
    }

    /// Deletes the allocation: the program is about to end.
    pub(super) fn close(&mut self, now: Instant) {
        self.client.close(now);
    }

    /// Whether it is reached over a connection.
    pub(super) fn is_stream(&self) -> bool {
        self.plan.choices[self.current].carrier.is_stream()
    }

    /// Whether there should be a connection, and is none.
    pub(super) fn wants_stream(&self) -> bool {
        self.stream.is_none() && self.is_stream() && self.client.has_transmit()
    }

    /// The connection is of no use any more, whatever the system thinks of it.
    pub(super) fn leave_stream(&mut self) {
        self.former = self.stream.take().or(self.former.take());
    }

    /// Connects.
    pub(super) fn connect(&mut self, firewall_mark: u32, now: Instant) {
        match RelayStream::connect(self.server, &self.plan.choices[self.current].carrier, firewall_mark) {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => {
                self.client.disconnected(&error.to_string(), now);
            }
        }
    }

    /// The connection has ended.
    pub(super) fn disconnected(&mut self, why: &str, now: Instant) {
        self.client.disconnected(why, now);
    }

    fn want_peers(&mut self, now: Instant) {
        for &(_, address) in &self.plan.peers {
            self.client.bind_channel(address, now);
        }
    }

    /// Reads name and password again; whether they are others.
    pub(super) fn renew_credentials(&mut self, now: Instant) -> bool {
        self.look_at = now + CREDENTIALS_INTERVAL;
        let wall = wall_clock();
        let Some(choice) = self.plan.choices.get_mut(self.current) else {
            return false;
        };
        let known = &choice.credentials;
        if !needs_reading(choice, wall) {
            return false;
        }
        let read = match choice.login.read(wall) {
            Ok(read) => read,
            Err(problem) => {
                tracing::warn!("the credentials for relay {} stay as they are: {problem}", self.server);
                return false;
            }
        };
        if read.username == known.username && read.password.expose() == known.password.expose() {
            return false;
        }
        tracing::info!(username = read.username, "new credentials for relay {}", self.server);
        choice.credentials = read.clone();
        self.client.set_credentials(read.username, Zeroizing::new(read.password.expose().to_owned()), now);
        true
    }

    /// The relay in use is of no use; goes over to `alternate`, or to the next. `false` when there is no other. What the
    /// former has to be told is left in `last_words`.
    pub(super) fn go_on(
        &mut self,
        alternate: Option<SocketAddr>,
        last_words: &mut Vec<Vec<u8>>,
        now: Instant,
    ) -> bool {
        let usable =
            |server: &SocketAddr| *server != self.server && server.is_ipv4() == self.server.is_ipv4();
        let alternate = alternate.filter(usable);
        let server = if let Some(server) = alternate {
            server
        } else {
            // The name of the only one need not have an address yet, when another relay named this one.
            let Some((next, server)) = self.plan.addressed_from((self.current + 1) % self.plan.choices.len())
            else {
                return false;
            };
            if next == self.current && server == self.server {
                return false;
            }
            self.current = next;
            server
        };
        self.turn_to(server, last_words, now);
        true
    }

    /// The relay in use, unless it was named by another one.
    pub(super) fn in_use_by_name(&self) -> Option<usize> {
        (self.server_of(self.current) == Some(self.server)).then_some(self.current)
    }

    /// The address of a relay, as far as is known.
    pub(super) fn server_of(&self, index: usize) -> Option<SocketAddr> {
        self.plan.choices.get(index).and_then(|choice| choice.server)
    }

    /// The name of a relay leads to `address`: goes over there at once where that relay is the one that is asked, and has given
    /// no address; whether it did. One that has is left where it is, and the former has to be told what is left in `last_words`.
    pub(super) fn move_to(
        &mut self,
        index: usize,
        address: SocketAddr,
        last_words: &mut Vec<Vec<u8>>,
        now: Instant,
    ) -> bool {
        let is_in_use = self.in_use_by_name() == Some(index);
        if is_in_use && self.relayed.is_some() {
            return false;
        }
        if let Some(choice) = self.plan.choices.get_mut(index) {
            choice.server = Some(address);
        }
        if is_in_use {
            self.turn_to(address, last_words, now);
        }
        is_in_use
    }

    /// Leaves the relay in use, and asks the one at `server`, by the current choice.
    fn turn_to(&mut self, server: SocketAddr, last_words: &mut Vec<Vec<u8>>, now: Instant) {
        self.client.close(now);
        last_words.extend(std::iter::from_fn(|| self.client.poll_transmit()));
        self.leave_stream();
        (self.relayed, self.mapped) = (None, None);
        self.left.clear();
        self.failures += 1;
        self.server = server;
        let choice = &self.plan.choices[self.current];
        self.client = connect(&self.plan, choice, self.server, self.seeds.next_u64(), now);
        if let Some((_, address)) = self.addresses.iter().find(|(server, _)| *server == self.server) {
            self.client.prefer(*address);
        }
        if self.failures < URGENT_ROUNDS * self.plan.choices.len() {
            self.client.hurry(now);
        }
        self.want_peers(now);
        // Its file may have changed while another relay was in use.
        self.look_at = now;
        // Once around is news.
        if self.failures <= self.plan.choices.len() {
            tracing::info!("going over to relay {}", self.server);
        } else {
            tracing::debug!("going over to relay {}", self.server);
        }
    }
}

/// A name that is made here needs no new one before half of its time is over; a file may change at any time.
fn needs_reading(choice: &RelayChoice, wall: Duration) -> bool {
    const HALF: Duration = Duration::from_secs(60 * 60);
    match choice.login.kind {
        crate::config::LoginKind::Password => true,
        crate::config::LoginKind::Secret => choice.credentials.until.is_none_or(|until| wall + HALF >= until),
    }
}

fn connect(plan: &RelayPlan, choice: &RelayChoice, server: SocketAddr, seed: u64, now: Instant) -> Client {
    let credentials = &choice.credentials;
    let config = ClientConfig {
        server,
        username: credentials.username.clone(),
        password: Zeroizing::new(credentials.password.expose().to_owned()),
        family: plan.family,
        seed,
    };
    let mut client = Client::new(config, now);
    if choice.carrier.is_stream() {
        client.over_stream(now);
    }
    client
}

#[cfg(test)]
mod tests;
