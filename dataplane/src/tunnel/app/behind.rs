//! What the relay says and what is said to it, and what becomes of the peers behind it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

use super::App;
use super::relays::{Relay, RelayPlan};
use super::stream::RelayStream;
use crate::crypto::aead::Body;
use crate::drops::Cause;
use crate::egress::{Class, Egress, Target};
use crate::tunnel::paths::Policy;
use crate::tunnel::{Path, PeerIndex, RelayServer, Tunnel, setup};
use crate::turn::{Event, Input};

impl App {
    /// Prepares the peers for having a relay beside the direct way.
    pub(super) fn open_relay(&mut self, now: Instant) {
        let Some(relay) = &mut self.relay else {
            return;
        };
        tracing::info!("asking the relay {} for an address", relay.server);
        self.needs_relay = choose_paths(&mut self.tunnel, &relay.plan, now);
        self.note_relay_server();
    }

    /// Asks the relay that waits for the interface to go up, for the peers that there are by now. Where no name of one has an
    /// address yet, it waits on: peers that may be reached over it only are not reached meanwhile.
    pub(super) fn begin_relay(&mut self, now: Instant) {
        let Some(mut plan) = self.waiting_relay.take() else {
            return;
        };
        let known: HashMap<PeerIndex, SocketAddr> = plan.peers.drain(..).collect();
        let mut last = None;
        while let Some(index) = self.tunnel.next_peer(last) {
            last = Some(index);
            if let Some(view) = self.tunnel.view(index)
                && let Some(address) =
                    view.path.map(|path| path.remote()).or_else(|| known.get(&index).copied())
                && plan.policy_of(&view.public_key) != Policy::Direct
            {
                plan.peers.push((index, address));
            }
        }
        if !plan.has_address() {
            self.needs_relay = choose_paths(&mut self.tunnel, &plan, now);
            self.waiting_relay = Some(plan);
            return;
        }
        let mut warnings = Vec::new();
        plan.family = setup::relay_family(&plan.peers, &mut warnings);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.relay = Some(Relay::new(plan, now));
        self.outside.note_stop(now);
        self.open_relay(now);
        self.refit_superpackets();
    }

    pub(super) fn handle_relay<E: Egress>(
        &mut self,
        (datagram, body): (&[u8], Body),
        ecn: u8,
        egress: &mut E,
        now: Instant,
    ) {
        let Some(relay) = &mut self.relay else {
            return;
        };
        match relay.handle_input(datagram, now) {
            Input::Consumed => {}
            Input::Ignored(cause) => self.tunnel.count_drop(cause),
            Input::Data { peer, payload } => {
                if let Some(inner) = datagram.get(payload) {
                    self.open((inner, body), Path::Relayed { peer }, ecn, egress, now);
                    self.note_heard(peer, now);
                }
            }
        }
    }

    /// Only what turned out to be authentic says that the relay is there, and where a peer is.
    fn note_heard(&mut self, from: SocketAddr, now: Instant) {
        if let Some(heard) = self.tunnel.take_heard()
            && let Some(relay) = &mut self.relay
        {
            relay.client.heard_data(now);
            if heard.moved {
                relay.follow_peer(heard.peer, from, now);
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
                    relay.note_address(relayed);
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
                if let Some(relay) = &mut self.relay {
                    relay.release_left(now);
                }
                self.report_ready();
            }
            Event::ChannelLost { peer } => {
                self.set_relayed_paths(peer, None, now);
                tracing::debug!(%peer, "channel lost");
            }
            Event::Deallocated => {
                if let Some(relay) = &mut self.relay {
                    (relay.relayed, relay.mapped) = (None, None);
                }
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
        let stays = relay.stays(now);
        // A connection that a request was not answered over may be stuck.
        if !stays || relay.relayed.is_none() {
            relay.leave_stream();
        }
        if stays {
            return;
        }
        if alternate.is_none() && relay.relayed.is_none() {
            relay.in_use_by_name().into_iter().for_each(|index| self.outside.names.doubt_relay(index));
        }
        let mut last_words = Vec::new();
        if relay.go_on(alternate, &mut last_words, now) {
            self.went_over(former, over_stream, last_words, egress, now);
        }
    }

    /// The name of a relay leads to another address: goes over there where it is the one that is asked in vain.
    pub(super) fn move_relay<E: Egress>(
        &mut self,
        index: usize,
        address: SocketAddr,
        egress: &mut E,
        now: Instant,
    ) {
        let Some(relay) = &mut self.relay else {
            self.found_relay(index, address, now);
            return;
        };
        let (former, over_stream) = (relay.server, relay.is_stream());
        let mut last_words = Vec::new();
        if relay.move_to(index, address, &mut last_words, now) {
            self.went_over(former, over_stream, last_words, egress, now);
        }
    }

    /// The name of a relay that waits has an address.
    fn found_relay(&mut self, index: usize, address: SocketAddr, now: Instant) {
        if let Some(choice) = self.waiting_relay.as_mut().and_then(|plan| plan.choices.get_mut(index)) {
            choice.server = Some(address);
        }
        if self.tunnel.is_running() {
            self.begin_relay(now);
        }
    }

    /// Another relay is asked now: says its last words to the former, and no peer is behind one any more.
    fn went_over<E: Egress>(
        &mut self,
        former: SocketAddr,
        over_stream: bool,
        last_words: Vec<Vec<u8>>,
        egress: &mut E,
        now: Instant,
    ) {
        self.note_relay_server();
        self.outside.note_stop(now);
        // The end of a connection says as much.
        for bytes in last_words.into_iter().filter(|_| !over_stream) {
            self.send_to_relay(former, &bytes, egress);
        }
        let relayed: Vec<_> = self.relay.iter().flat_map(|relay| relay.plan.peers.clone()).collect();
        for (index, _) in relayed {
            self.tunnel.set_relayed(index, None, now);
        }
    }

    /// What is sent to the relay must not come back through the device.
    pub(super) fn note_relay_server(&mut self) {
        if let Some(relay) = &self.relay {
            let stream_port = relay.is_stream().then(|| relay.stream.as_ref().map_or(0, RelayStream::port));
            self.tunnel.set_relay_server(RelayServer { address: relay.server, stream_port });
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

/// Prepares the peers for having a relay beside the direct way, those that are not prepared yet. Whether all that can be called have
/// to wait for it.
fn choose_paths(tunnel: &mut Tunnel, plan: &RelayPlan, now: Instant) -> bool {
    let addressed: HashSet<PeerIndex> = plan.peers.iter().map(|(index, _)| *index).collect();
    let (mut last, mut needed) = (None, true);
    while let Some(index) = tunnel.next_peer(last) {
        last = Some(index);
        let policy = tunnel.view(index).map(|view| plan.policy_of(&view.public_key)).unwrap_or_default();
        let has_address = addressed.contains(&index);
        needed &= policy == Policy::Relay || !has_address;
        if tunnel.paths(index).is_none() {
            tunnel.choose_paths(index, policy, has_address, now);
        }
    }
    needed
}
