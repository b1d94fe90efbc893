//! Names of a configuration, looked up before there is a tunnel. One that has no address keeps no tunnel from coming up: a machine
//! may be started where there is no network yet. It is looked up again until it has one, beside the packets as a rule.

use std::io;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use super::paths::Policy;
use crate::config::{self, Config, Endpoint, Host, PeerSection, RelayConfig, Table};

/// How soon a name without an address is looked up again, at first; each pause is twice as long as the one before, ...
pub(super) const AGAIN_MIN: Duration = Duration::from_secs(1);
/// ... up to this.
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(15);
/// How long look-ups may fail before the names that are left are looked up beside the tunnel.
const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses that were found.
#[derive(Debug, Default)]
pub struct Found {
    /// Of the relays, by their place.
    pub relays: Vec<Option<SocketAddr>>,
    /// Of the peers' endpoints, by their place.
    pub peers: Vec<Option<SocketAddr>>,
    /// A sentence about each name that has none.
    pub missing: Vec<String>,
}

impl Found {
    /// Looks names up, which can take seconds.
    #[must_use]
    pub fn look_up(relays: &[RelayConfig], peers: &[PeerSection]) -> Self {
        let mut looking = Looking { missing: Vec::new(), failing: Duration::ZERO };
        let relays = relays.iter().map(|relay| looking.address(&relay.server, relay.line)).collect();
        let endpoints = peers.iter().map(|peer| peer.endpoint.as_ref());
        let peers = endpoints.map(|at| at.and_then(|(name, line)| looking.address(name, *line))).collect();
        Self { relays, peers, missing: looking.missing }
    }

    /// As [`Found::look_up`] of all of a configuration, and once more with pauses for as long as the tunnel would be in the way of
    /// it: with a default route, and without the address of the peer it leads to, name servers could not be asked any more.
    #[must_use]
    pub fn wait_for(file: &FilePath, config: &Config) -> Self {
        let (mut pause, mut told) = (AGAIN_MIN, false);
        loop {
            let found = Self::look_up(&config.relays, &config.peers);
            if !found.is_shut_in(config) {
                return found;
            }
            if !std::mem::replace(&mut told, true) {
                for missing in &found.missing {
                    tracing::warn!("{}: {missing}", file.display());
                }
                tracing::warn!(
                    "there is no tunnel before that, because what asks for names would go into it"
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Whether everything would be routed to a peer that cannot be reached before a name has an address.
    fn is_shut_in(&self, config: &Config) -> bool {
        let has_relay = self.relays.is_empty() || self.relays.iter().any(Option::is_some);
        let lacks = |(peer, address): (&PeerSection, &Option<SocketAddr>)| {
            let over_relay = peer.path == Policy::Relay && !has_relay;
            takes_everything(peer) && peer.endpoint.is_some() && (address.is_none() || over_relay)
        };
        config.host.table == Table::Auto && config.peers.iter().zip(&self.peers).any(lacks)
    }
}

/// Whether a peer gets every packet, or every other.
fn takes_everything(peer: &PeerSection) -> bool {
    peer.allowed_ips.iter().any(|net| net.prefix_len() <= 1)
}

struct Looking {
    missing: Vec<String>,
    /// How long look-ups took that found nothing.
    failing: Duration,
}

impl Looking {
    fn address(&mut self, endpoint: &Endpoint, line: usize) -> Option<SocketAddr> {
        let start = now();
        let found = match endpoint.host {
            // It takes no time.
            Host::Address(_) => endpoint.resolve(),
            _ if self.failing >= PATIENCE => Err(io::Error::other("others have taken too long")),
            Host::Name(_) | Host::Scoped(..) => endpoint.resolve(),
        };
        let checked = found
            .map_err(|error| error.to_string())
            .and_then(|address| config::check_endpoint(address).map(|()| address));
        match checked {
            Ok(address) => Some(address),
            Err(problem) => {
                self.failing += now().saturating_duration_since(start);
                self.missing.push(format!(
                    "line {line}: {endpoint} has no address ({problem}): it is looked up again until it has one; check \
                     the name and the name server, or write the address"
                ));
                None
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "set-up happens before the driver reads the clock")]
fn now() -> Instant {
    Instant::now()
}
