//! The relays: which one is in use, what it wants to say, and what becomes of the peers behind it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::App;
use super::control::wall_clock;
use super::stream::{Carrier, RelayStream};
use crate::config::{Credentials, Login};
use crate::drops::Cause;
use crate::egress::{Class, Egress, Target};
use crate::stun::AddressFamily;
use crate::tunnel::key::PublicKey;
use crate::tunnel::paths::Policy;
use crate::tunnel::{Path, PeerIndex};
use crate::turn::{Client, ClientConfig, Event, Input};

/// How often the files with passwords are looked at: who renews them does so that long before the old ones expire.
const CREDENTIALS_INTERVAL: Duration = Duration::from_secs(30);
/// How many times all relays may be silent in a row before each of them is waited for as long as the RFC says.
const URGENT_ROUNDS: usize = 16;

/// A relay that can be used.
#[derive(Clone, Debug)]
pub struct RelayChoice {
    /// Its address.
    pub server: SocketAddr,
    /// How it is spoken to.
    pub carrier: Carrier,
    /// Where user name and password come from, ...
    pub login: Login,
    /// ... and what they are now.
    pub credentials: Credentials,
}

/// What the configuration says about relays, with names looked up.
#[derive(Clone, Debug)]
pub struct RelayPlan {
    /// In the order in which they are tried; one at least.
    pub choices: Vec<RelayChoice>,
    /// Which peer is reached over them at which address.
    pub peers: Vec<(PeerIndex, SocketAddr)>,
    /// By which ways each peer may be reached; one that is removed and made again is known by its key.
    pub policies: Vec<(PeerIndex, PublicKey, Policy)>,
    /// The family of the relayed address.
    pub family: Option<AddressFamily>,
    /// For the TURN client; random.
    pub seed: u64,
}

/// The relay in use, and those in reserve.
pub struct Relay {
    plan: RelayPlan,
    /// Which one is in use, or where the next stands when that was named by another one.
    current: usize,
    client: Client,
    /// The address of the relay in use.
    pub(super) server: SocketAddr,
    /// The connection to it, where there is one.
    pub(super) stream: Option<RelayStream>,
    /// One that is no longer used, and still has to be closed.
    pub(super) former: Option<RelayStream>,
    /// Our address there, and the one from which it sees us, while there is an allocation.
    pub(super) relayed: Option<SocketAddr>,
    pub(super) mapped: Option<SocketAddr>,
    /// How many were found unusable since one was usable.
    failures: usize,
    /// When the files are looked at.
    look_at: Instant,
}

impl Relay {
    /// Asks the first relay for an allocation.
    ///
    /// # Panics
    /// When there is no relay in the plan.
    #[must_use]
    pub fn new(plan: RelayPlan, now: Instant) -> Self {
        let choice = plan.choices.first().expect("a plan has a relay").clone();
        let mut relay = Self {
            client: connect(&plan, &choice, choice.server, now),
            plan,
            stream: None,
            former: None,
            relayed: None,
            mapped: None,
            current: 0,
            server: choice.server,
            failures: 0,
            look_at: now + CREDENTIALS_INTERVAL,
        };
        relay.want_peers(now);
        relay
    }

    /// By which ways each peer may be reached, and whether it waits for a channel.
    pub(super) fn policies(&self) -> impl Iterator<Item = (PeerIndex, Policy, bool)> {
        let has_address = |index| self.plan.peers.iter().any(|(peer, _)| *peer == index);
        self.plan.policies.iter().map(move |&(index, _, policy)| (index, policy, has_address(index)))
    }

    /// By which ways the peer with this key may be reached, as the configuration has it.
    pub(super) fn policy_of(&self, key: &PublicKey) -> Policy {
        let of_key = self.plan.policies.iter().find(|(_, known, _)| known == key);
        of_key.map(|&(_, _, policy)| policy).unwrap_or_default()
    }

    /// Whether all peers that can be called have to wait for the relay.
    pub(super) fn is_needed(&self) -> bool {
        self.policies().all(|(_, policy, has_address)| policy == Policy::Relay || !has_address)
    }

    /// Whether no peer's address is known yet.
    pub(super) fn has_no_peers(&self) -> bool {
        self.plan.peers.is_empty()
    }

    /// The way to a peer: the number of its channel. Without one, it is asked for.
    pub(super) fn channel(&mut self, peer: SocketAddr, now: Instant) -> Option<crate::stun::ChannelNumber> {
        let number = self.client.channel(peer);
        match number {
            Some(_) => self.client.sent(now),
            // An authentic packet came from a new address: it gets a channel of its own.
            None => {
                self.client.bind_channel(peer, now);
            }
        }
        number
    }

    /// Where a peer is reached over the relay from now on; whether there is a channel already.
    pub(super) fn set_peer(&mut self, index: PeerIndex, address: SocketAddr, now: Instant) -> bool {
        self.forget_peer(index);
        self.plan.peers.push((index, address));
        self.client.bind_channel(address, now);
        self.client.channel(address).is_some()
    }

    /// Where a peer is reached over the relay.
    pub(super) fn peer(&self, index: PeerIndex) -> Option<SocketAddr> {
        self.plan.peers.iter().find(|(peer, _)| *peer == index).map(|(_, address)| *address)
    }

    /// The peer is no longer there.
    pub(super) fn forget_peer(&mut self, index: PeerIndex) {
        self.plan.peers.retain(|(peer, _)| *peer != index);
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
    fn leave_stream(&mut self) {
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
    fn renew_credentials(&mut self, now: Instant) -> bool {
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
                tracing::warn!("the credentials for relay {} stay as they are: {problem}", choice.server);
                return false;
            }
        };
        if read.username == known.username && read.password.expose() == known.password.expose() {
            return false;
        }
        tracing::info!(username = read.username, "new credentials for relay {}", choice.server);
        choice.credentials = read.clone();
        self.client.set_credentials(read.username, Zeroizing::new(read.password.expose().to_owned()), now);
        true
    }

    /// The relay in use is of no use; goes over to `alternate`, or to the next. `false` when there is no other. What the
    /// former has to be told is left in `last_words`.
    fn go_on(&mut self, alternate: Option<SocketAddr>, last_words: &mut Vec<Vec<u8>>, now: Instant) -> bool {
        let usable =
            |server: &SocketAddr| *server != self.server && server.is_ipv4() == self.server.is_ipv4();
        let alternate = alternate.filter(usable);
        let next = (self.current + 1) % self.plan.choices.len();
        if alternate.is_none()
            && self.plan.choices.len() == 1
            && self.plan.choices[next].server == self.server
        {
            return false;
        }
        self.client.close(now);
        last_words.extend(std::iter::from_fn(|| self.client.poll_transmit()));
        self.leave_stream();
        (self.relayed, self.mapped) = (None, None);
        self.failures += 1;
        if alternate.is_none() {
            self.current = next;
        }
        let choice = &self.plan.choices[self.current];
        self.server = alternate.unwrap_or(choice.server);
        self.client = connect(&self.plan, choice, self.server, now);
        if self.failures < URGENT_ROUNDS * self.plan.choices.len() {
            self.client.hurry(now);
        }
        self.want_peers(now);
        // Its file may have changed while another relay was in use.
        self.look_at = now;
        tracing::info!("going over to relay {}", self.server);
        true
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

fn connect(plan: &RelayPlan, choice: &RelayChoice, server: SocketAddr, now: Instant) -> Client {
    let credentials = &choice.credentials;
    let config = ClientConfig {
        server,
        username: credentials.username.clone(),
        password: Zeroizing::new(credentials.password.expose().to_owned()),
        family: plan.family,
        seed: plan.seed,
    };
    let mut client = Client::new(config, now);
    if choice.carrier.is_stream() {
        client.over_stream(now);
    }
    if plan.choices.len() > 1 {
        // There is another one that could be used meanwhile.
        client.hurry(now);
    }
    client
}

impl App {
    /// Prepares the peers for having a relay beside the direct way.
    pub(super) fn open_relay(&mut self, now: Instant) {
        let Some(relay) = &self.relay else {
            return;
        };
        tracing::info!("asking the relay {} for an address", relay.server);
        for (index, policy, has_address) in relay.policies() {
            self.tunnel.choose_paths(index, policy, has_address, now);
        }
    }

    pub(super) fn handle_relay<E: Egress>(&mut self, datagram: &[u8], ecn: u8, egress: &mut E, now: Instant) {
        let Some(relay) = &mut self.relay else {
            return;
        };
        match relay.handle_input(datagram, now) {
            Input::Consumed => {}
            Input::Ignored(cause) => self.tunnel.count_drop(cause),
            Input::Data { peer, payload } => {
                if let Some(inner) = datagram.get(payload) {
                    self.open(inner, Path::Relayed { peer }, ecn, egress, now);
                }
            }
        }
    }

    /// Acts on what happened at the relay, and sends what is to be said to it.
    pub(super) fn serve_relay<E: Egress>(&mut self, egress: &mut E, now: Instant) {
        while let Some(event) = self.relay.as_mut().and_then(|relay| relay.client.poll_event()) {
            self.handle_relay_event(event, egress, now);
        }
        let Some(server) = self.relay.as_ref().map(|relay| relay.server) else {
            return;
        };
        if let Some(relay) = self.relay.as_mut().filter(|relay| relay.is_stream()) {
            // What is to be said before there is a connection waits in the client.
            let Relay { client, stream, .. } = relay;
            if let Some(stream) = stream {
                while let Some(bytes) = client.poll_transmit() {
                    let dropped = stream.push_control(&bytes);
                    self.tunnel.count_lost(Cause::EgressQueueFull, dropped);
                }
            }
            return;
        }
        while let Some(bytes) = self.relay.as_mut().and_then(|relay| relay.client.poll_transmit()) {
            self.send_to_relay(server, &bytes, egress);
        }
    }

    fn send_to_relay<E: Egress>(&self, server: SocketAddr, bytes: &[u8], egress: &mut E) {
        let Some(port) = self.ports.of(server) else {
            return;
        };
        let target = Target { port, to: server, from: None, traffic_class: 0, dont_fragment: false };
        egress.append(&target, bytes.len(), Class::Control, |slot| {
            slot.copy_from_slice(bytes);
            true
        });
    }

    fn handle_relay_event<E: Egress>(&mut self, event: Event, egress: &mut E, now: Instant) {
        match event {
            Event::Allocated { relayed, mapped } => {
                if let Some(relay) = &mut self.relay {
                    // Over a connection it is another socket's.
                    let mapped = mapped.filter(|_| !relay.is_stream());
                    (relay.relayed, relay.mapped) = (Some(relayed), mapped);
                }
                let mapped = mapped.map_or_else(String::new, |address| address.to_string());
                tracing::info!(%relayed, %mapped, "relay allocated: the other side's Endpoint is {relayed}");
                if let Some(relay) = &mut self.relay {
                    relay.failures = 0;
                    if relay.has_no_peers() {
                        self.report_ready();
                    }
                }
            }
            Event::ChannelBound { peer, .. } => {
                self.set_relayed_paths(peer, Some(Path::Relayed { peer }), now);
                tracing::debug!(%peer, "channel bound");
                self.report_ready();
            }
            Event::ChannelLost { peer } => {
                self.set_relayed_paths(peer, None, now);
                tracing::debug!(%peer, "channel lost");
            }
            Event::Unauthorized => {
                if let Some(relay) = &mut self.relay {
                    relay.renew_credentials(now);
                }
            }
            Event::Unusable { alternate } => self.leave_relay(alternate, egress, now),
            Event::Failed { reason } => tracing::warn!("{reason}"),
        }
    }

    fn leave_relay<E: Egress>(&mut self, alternate: Option<SocketAddr>, egress: &mut E, now: Instant) {
        let Some(relay) = &mut self.relay else {
            return;
        };
        let (former, over_stream) = (relay.server, relay.is_stream());
        // A connection that a request was not answered over may be stuck.
        relay.leave_stream();
        let mut last_words = Vec::new();
        if relay.go_on(alternate, &mut last_words, now) {
            // The end of a connection says as much.
            for bytes in last_words.into_iter().filter(|_| !over_stream) {
                self.send_to_relay(former, &bytes, egress);
            }
            let relayed: Vec<_> = self.relay.iter().flat_map(|relay| relay.plan.peers.clone()).collect();
            for (index, _) in relayed {
                self.tunnel.set_relayed(index, None, now);
            }
        }
    }

    /// Sets whether the peers at `address` can be reached over its channel.
    fn set_relayed_paths(&mut self, address: SocketAddr, path: Option<Path>, now: Instant) {
        let Some(relay) = &self.relay else {
            return;
        };
        for &(index, _) in relay.plan.peers.iter().filter(|(_, peer)| *peer == address) {
            self.tunnel.set_relayed(index, path, now);
        }
    }
}
