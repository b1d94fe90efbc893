//! Names of a configuration, looked up before there is a tunnel. One that has no address keeps no tunnel from coming up: a machine
//! may be started where there is no network yet. It is looked up again until it has one, beside the packets as a rule.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path as FilePath;
use std::time::{Duration, Instant};
use std::{fs, io};

use ipnet::IpNet;

use super::paths::Policy;
use crate::config::{self, Config, Endpoint, Host, PeerSection, RelayConfig, Table};

/// How soon a name without an address is looked up again, at first; each pause is twice as long as the one before, ...
pub(super) const AGAIN_MIN: Duration = Duration::from_secs(1);
/// ... up to this.
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(15);
/// How long look-ups of peers may fail, and those of relays, before the names that are left are looked up beside the tunnel.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a tunnel that would be in the way waits for the address of a relay, where a peer may be reached without one.
const PATIENCE_FOR_RELAYS: Duration = Duration::from_secs(30);
/// What the host asks, unless `DNS` of the tunnel says otherwise (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The addresses that were found.
#[derive(Debug, Default)]
pub struct Found {
    /// Of the relays, by their place.
    pub relays: Vec<Option<SocketAddr>>,
    /// Of the peers' endpoints, by their place.
    pub peers: Vec<Option<SocketAddr>>,
    /// Each name that has none, by the line it stands on, and a sentence about it.
    pub missing: Vec<(usize, String)>,
}

impl Found {
    /// Looks names up, which can take seconds.
    #[must_use]
    pub fn look_up(relays: &[RelayConfig], peers: &[PeerSection]) -> Self {
        Self::look_up_with(relays, peers, PATIENCE)
    }

    /// Peers and relays have so much patience each: a name server that is silent about one kind keeps none of the other away.
    fn look_up_with(relays: &[RelayConfig], peers: &[PeerSection], patience: Duration) -> Self {
        let mut looking = Looking { missing: Vec::new(), failing: Duration::ZERO, patience };
        let endpoints = peers.iter().map(|peer| peer.endpoint.as_ref());
        let peers = endpoints.map(|at| at.and_then(|(name, line)| looking.address(name, *line))).collect();
        looking.failing = Duration::ZERO;
        let relays = relays.iter().map(|relay| looking.address(&relay.server, relay.line)).collect();
        Self { relays, peers, missing: looking.missing }
    }

    /// As [`Found::look_up`] of all of a configuration, and once more with pauses for as long as the tunnel would be in the way of
    /// it: where name servers are asked through the tunnel, they cannot be asked before it leads anywhere. Of names that it has
    /// told of by then, the result does not tell once more.
    #[must_use]
    pub fn wait_for(file: &FilePath, config: &Config) -> Self {
        let (mut pause, mut told, mut patience) = (AGAIN_MIN, BTreeSet::new(), PATIENCE);
        let begun = now();
        loop {
            let mut found = Self::look_up_with(&config.relays, &config.peers, patience);
            let waited = now().saturating_duration_since(begun);
            found.missing.retain(|(line, _)| !told.contains(line));
            if !found.is_shut_in(config, &name_servers(config), waited < PATIENCE_FOR_RELAYS) {
                return found;
            }
            // Nobody else waits any more: each name has its turn.
            patience = Duration::MAX;
            let is_first = told.is_empty();
            for (line, sentence) in &found.missing {
                told.insert(*line);
                tracing::warn!("{}: {sentence}", file.display());
            }
            if is_first {
                tracing::warn!(
                    "there is no tunnel before that, because what asks for names would go into it"
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Whether name servers would be asked by way of a peer that cannot be reached before a name has an address, or `for_relays`,
    /// that perhaps cannot.
    fn is_shut_in(&self, config: &Config, name_servers: &[IpAddr], for_relays: bool) -> bool {
        let has_relay = self.relays.is_empty() || self.relays.iter().any(Option::is_some);
        let lacks = |(peer, address): (&PeerSection, &Option<SocketAddr>)| {
            let needs_relay = match peer.path {
                Policy::Relay => true,
                Policy::Auto => for_relays,
                Policy::Direct => false,
            };
            is_in_the_way(peer, name_servers)
                && peer.endpoint.is_some()
                && (address.is_none() || needs_relay && !has_relay)
        };
        config.host.table == Table::Auto && config.peers.iter().zip(&self.peers).any(lacks)
    }
}

/// Whether a peer gets every packet, or every other, or those for a name server.
fn is_in_the_way(peer: &PeerSection, name_servers: &[IpAddr]) -> bool {
    let covers =
        |net: &IpNet| net.prefix_len() <= 1 || name_servers.iter().any(|server| net.contains(server));
    peer.allowed_ips.iter().any(covers)
}

/// Whom the host asks for names while the tunnel is up.
fn name_servers(config: &Config) -> Vec<IpAddr> {
    let mut all = config.host.name_servers.clone();
    if all.is_empty() {
        let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        all.extend(listed(&text));
    }
    all
}

/// The name servers in the text of resolv.conf(5).
fn listed(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.parse().ok()
    })
}

struct Looking {
    missing: Vec<(usize, String)>,
    /// How long look-ups took that found nothing.
    failing: Duration,
    /// How long they may take.
    patience: Duration,
}

impl Looking {
    fn address(&mut self, endpoint: &Endpoint, line: usize) -> Option<SocketAddr> {
        let start = now();
        let found = match endpoint.host {
            // It takes no time.
            Host::Address(_) => endpoint.resolve(),
            _ if self.failing >= self.patience => Err(io::Error::other("others have taken too long")),
            Host::Name(_) | Host::Scoped(..) => endpoint.resolve(),
        };
        let checked = found
            .map_err(|error| error.to_string())
            .and_then(|address| config::check_endpoint(address).map(|()| address));
        match checked {
            Ok(address) => Some(address),
            Err(problem) => {
                self.failing += now().saturating_duration_since(start);
                let sentence = format!(
                    "line {line}: {endpoint} has no address ({problem}): it is looked up again until it has one; check \
                     the name and the name server, or write the address"
                );
                self.missing.push((line, sentence));
                None
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "set-up happens before the driver reads the clock")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::key::{KEY_LEN, PublicKey};

    fn config(peer: &str) -> Config {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("wg0.conf");
        let key = PublicKey([7; KEY_LEN]);
        let text = format!(
            "[Interface]\nPrivateKey = {key}\n#towpath: Relay = turn:relay.example\n#towpath: RelayUsername = u\n\
             #towpath: RelayPasswordFile = password\n[Peer]\nPublicKey = {key}\n{peer}\n"
        );
        fs::write(folder.path().join("password"), "p\n").expect("written");
        fs::write(&file, text).expect("written");
        Config::load(&file).expect("a configuration").0
    }

    fn found(relay: Option<&str>, peer: Option<&str>) -> Found {
        let address = |text: Option<&str>| text.map(|text| text.parse().expect("an address"));
        Found { relays: vec![address(relay)], peers: vec![address(peer)], missing: Vec::new() }
    }

    const AT: Option<&str> = Some("192.0.2.1:51820");

    #[test]
    fn a_tunnel_waits_where_name_servers_are_asked_through_a_peer_without_an_address() {
        let servers = ["10.53.0.53".parse().expect("an address")];
        let shut_in = |peer: &str, found: Found, for_relays| {
            let peer = format!("Endpoint = vpn.example:51820\n{peer}");
            found.is_shut_in(&config(&peer), &servers, for_relays)
        };
        for nets in ["0.0.0.0/0", "::/0", "0.0.0.0/1", "10.0.0.0/8", "10.53.0.53/32"] {
            let nets = format!("AllowedIPs = {nets}");
            assert!(shut_in(&nets, found(AT, None), false), "{nets}");
            assert!(!shut_in(&nets, found(AT, AT), true), "{nets}");
            // Whom only a relay reaches waits for it; whom one may reach, for a while.
            let auto = format!("#towpath: Path = auto\n{nets}");
            assert!(shut_in(&format!("#towpath: Path = relay\n{nets}"), found(None, AT), false), "{nets}");
            assert!(shut_in(&auto, found(None, AT), true) && !shut_in(&auto, found(None, AT), false));
            assert!(!shut_in(&format!("#towpath: Path = direct\n{nets}"), found(None, AT), true), "{nets}");
        }
        assert!(!shut_in("AllowedIPs = 10.54.0.0/16", found(None, None), true));
    }

    #[test]
    fn name_servers_of_the_host_are_those_of_resolv_conf() {
        let text = "# nameserver 1.1.1.1\nsearch example.org\nnameserver 10.53.0.53\n nameserver\tfd53::1 # ours\nnameserver x\n";
        let all: Vec<String> = listed(text).map(|address| address.to_string()).collect();
        assert_eq!(all, ["10.53.0.53", "fd53::1"]);
        // Those of the tunnel are asked in their place.
        let mut config = config("AllowedIPs = 10.0.0.0/8");
        config.host.name_servers = vec!["10.99.0.2".parse().expect("an address")];
        assert_eq!(name_servers(&config), config.host.name_servers);
    }
}
