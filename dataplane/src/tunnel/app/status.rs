//! What `towpath show` asks for, told a bounded part at a time between two batches of packets.

use std::collections::VecDeque;
use std::time::Instant;

use super::App;
use super::control::{PEERS_TOLD, wall_clock};
use crate::driver::Application as _;
use crate::egress::Egress;
use crate::ingress::Ingress;
use crate::stages::{Counts, Stage};
use crate::status;
use crate::tunnel::{Path, PeerIndex, PeerView};
use crate::uapi::Uapi;
use crate::uapi::answer::{self, Part};
use crate::uapi::server::ClientId;
use crate::uapi::status::{Device, Peer, Stages, Wanted, Way, line};

/// An answer that is being put together.
pub(super) struct Telling {
    client: ClientId,
    wanted: Wanted,
    started: Instant,
    last: Option<PeerIndex>,
    parts: VecDeque<Part>,
}

impl Telling {
    /// The program is up since `started`.
    pub fn new(client: ClientId, wanted: Wanted, started: Instant) -> Self {
        Self { client, wanted, started, last: None, parts: VecDeque::new() }
    }
}

impl App {
    /// Tells of the device, or of some peers; what is left to tell.
    pub(super) fn tell_status<I: Ingress, E: Egress>(
        &self,
        mut telling: Telling,
        uapi: &Uapi,
        ingress: &I,
        egress: &E,
        now: Instant,
    ) -> Option<Telling> {
        if telling.parts.is_empty() {
            telling.parts.push_back(line(&self.device_status(
                telling.started,
                telling.wanted.stages,
                ingress,
                egress,
                now,
            )));
            return Some(telling);
        }
        for _ in 0..PEERS_TOLD {
            telling.last = self.tunnel.next_peer(telling.last);
            let Some((index, view)) = telling.last.and_then(|index| Some((index, self.tunnel.view(index)?)))
            else {
                telling.parts.push_back(answer::end(None));
                uapi.answer(telling.client, telling.parts);
                return None;
            };
            telling.parts.push_back(line(&self.peer_status(index, &view, telling.wanted, now)));
        }
        Some(telling)
    }

    /// What there is to say about the device, of a program that is up since `started`; with what was counted of `stages` or
    /// without.
    pub(super) fn device_status<I: Ingress, E: Egress>(
        &self,
        started: Instant,
        stages: bool,
        ingress: &I,
        egress: &E,
        now: Instant,
    ) -> Device {
        let (sent, received) = (egress.stats(), ingress.stats());
        let uptime = now.saturating_duration_since(started);
        let of = |stage| Counts::from(self.figures.stages.of(stage));
        let counted = || Stages {
            read: of(Stage::Read),
            crypto: of(Stage::Crypto),
            ring: of(Stage::Ring),
            kernel: of(Stage::Kernel),
        };
        Device {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interface: self.tun.name().to_owned(),
            public_key: self.tunnel.private_key().map(|_| self.tunnel.public_key().to_string()),
            listen_port: self.listen_port(),
            fwmark: self.binding.firewall_mark,
            mtu: self.tunnel.mtu as u64,
            up: self.tunnel.is_running(),
            time_unix_s: wall_clock().as_secs_f64(),
            uptime_s: uptime.as_secs_f64(),
            io: egress.design().to_owned(),
            ingress_design: ingress.design().to_owned(),
            relay: self.relay.as_ref().map(|relay| relay.server),
            relayed: self.relay.as_ref().and_then(|relay| relay.relayed),
            drops: status::losses(&self.drops(), &sent, &received),
            egress: status::Egress::new(&sent, egress.pending()),
            ingress: received,
            stages: stages.then(counted),
        }
    }

    /// By which way a peer is reached whose messages leave by `path`: over the relay only while that has a channel to it, of which
    /// the path does not tell. What comes from a peer says where it is before there is one, and the relay may refuse it.
    pub(super) fn way_shown(&self, path: Option<Path>) -> Option<Way> {
        match path? {
            Path::Direct { .. } => Some(Way::Direct),
            Path::Relayed { peer } => self.relay.as_ref()?.client.channel(peer).map(|_| Way::Relayed),
        }
    }

    /// With which code the relay refuses a channel to where it is to look for a peer, if it does.
    fn refusal_shown(&self, index: PeerIndex) -> Option<u16> {
        let relay = self.relay.as_ref()?;
        relay.client.refusal(relay.peer(index)?)
    }

    fn peer_status(&self, index: PeerIndex, view: &PeerView<'_>, wanted: Wanted, now: Instant) -> Peer {
        let stats = &view.stats;
        let path = self.way_shown(view.path);
        let relay = self.relay.as_ref().filter(|_| path == Some(Way::Relayed)).map(|relay| relay.server);
        let handshake = stats.last_handshake.map(|handshake| self.tunnel.age_of(&handshake, now));
        Peer {
            public_key: view.public_key.to_string(),
            preshared_key: view.preshared_key.is_some(),
            endpoint: view.path.as_ref().map(Path::remote),
            path,
            path_answered: path.map(|_| view.is_heard),
            relay,
            relay_refusal: self.refusal_shown(index),
            allowed_ips: wanted.allowed_ips.then(|| view.allowed_ips.iter().copied().collect()),
            handshake_age_s: handshake.map(|age| age.as_secs_f64()),
            persistent_keepalive_s: view.persistent_keepalive,
            received_bytes: stats.received_message_bytes,
            sent_bytes: stats.sent_message_bytes,
            received_packets: stats.received_packets,
            sent_packets: stats.sent_packets,
            missing_messages: stats.missing_messages,
            path_switches: view.paths.switches,
            path_overlapped: view.paths.overlapped,
            path_probes: view.paths.probes,
        }
    }
}
