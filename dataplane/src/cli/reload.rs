//! `towpath reload`: sets a running tunnel to what its file says now, while packets pass.
//!
//! The peers, the private key and the port are taken over, over the socket of `wg`; whatever is as it was is not touched, so that
//! no session ends. New prefixes are routed. The rest of `[Interface]`, what a relay is for, and a default route are for the start
//! only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{Failure, ticket};
use crate::config::{self, Config, PeerSection, Table};
use crate::host;
use crate::netlink::Handle;
use crate::show::{self, AskError, Tunnel};
use crate::tunnel::key::{KEY_LEN, PublicKey, SecretKey};
use crate::tunnel::noise;
use crate::uapi::DIRECTORY;
use crate::uapi::status::{Peer, Wanted};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// The configuration of a running tunnel, or the name of one in /etc/towpath or /etc/wireguard
    #[arg(value_name = "NAME|FILE")]
    file: PathBuf,
}

pub(super) fn run(flags: &Flags) -> Result<(), Failure> {
    let file = host::find_running(&flags.file)?;
    let (config, warnings) = Config::load(&file)?;
    let name = config::interface_name(&file)?;
    let say = |text: &str| {
        // Nobody may be left to tell, and the tunnel is to be set all the same.
        let _ = writeln!(io::stderr(), "towpath: {text}");
    };
    for warning in warnings {
        say(&format!("{}: {warning}", file.display()));
    }
    ticket::is_here(&name)?;
    let tunnel = show::ask(Path::new(DIRECTORY), &name, Wanted { allowed_ips: true, stages: false })
        .map_err(|error| Failure::other(of_ask(&error, &name)))?;
    let (endpoints, missing) = resolved(&file, &config, &tunnel);
    for name in missing {
        say(&name);
    }
    let plan = Plan::new(&config, &tunnel, &endpoints);
    // Apart from the rest: with a relay the port stays as it is, and that is no reason to leave the peers as they are.
    for (request, what) in [(&plan.port, "ListenPort"), (&plan.changes, "the change")] {
        if request.is_empty() {
            continue;
        }
        let answer = ticket::ask(&name, &format!("set=1\n{}\n", **request))?;
        match ticket::number(&answer) {
            Some(0) => {}
            Some(libc::EOPNOTSUPP) => {
                say(&format!(
                    "{what} stays as it is over a relay; to change it: towpath down {name}, and up again"
                ));
            }
            Some(number) => {
                let error = io::Error::from_raw_os_error(number);
                return Err(Failure::other(format!("{name} refuses {what}: {error}")));
            }
            None => return Err(ticket::odd(&name)),
        }
    }
    for problem in route(&name, &config, &plan.new_prefixes) {
        say(&problem);
    }
    let others = host::brought_up_with(&name).map_or_else(Vec::new, |before| before.changed(&config));
    if !others.is_empty() {
        let others = others.join(", ");
        say(&format!(
            "{name}: the file has other values of {others} now: they take towpath down {name}, and up again"
        ));
    }
    say(&format!("{name}: {}", plan.summary()));
    Ok(())
}

fn of_ask(error: &AskError, name: &str) -> String {
    match error {
        AskError::Unknown { .. } => format!("{error}; bring it up with towpath up {name}"),
        _ => error.to_string(),
    }
}

/// The addresses of the file's endpoints, by place of the peer, and a sentence about each name that has none: that peer stays where
/// it is, and what else is said of it is taken over.
fn resolved(file: &Path, config: &Config, tunnel: &Tunnel) -> (Endpoints, Vec<String>) {
    let (mut found, mut missing) = (Endpoints::new(), Vec::new());
    for (place, peer) in config.peers.iter().enumerate() {
        let Some((endpoint, line)) = &peer.endpoint else {
            continue;
        };
        let key = peer.public_key.to_string();
        let is_reached =
            || tunnel.peers.iter().any(|present| present.public_key == key && present.endpoint.is_some());
        match endpoint.addresses() {
            Ok(addresses) => _ = found.insert(place, addresses),
            Err(error) => {
                let so = if is_reached() {
                    "the peer stays at the address it has"
                } else {
                    "the peer has no address; check the name, and reload again, or write the address"
                };
                missing.push(format!("{}:{line}: {endpoint}: {error}; {so}", file.display()));
            }
        }
    }
    (found, missing)
}

type Endpoints = BTreeMap<usize, Vec<SocketAddr>>;

/// What is to be done, as lines of requests.
struct Plan {
    port: Zeroizing<String>,
    changes: Zeroizing<String>,
    new_prefixes: Vec<IpNet>,
    added: usize,
    changed: usize,
    removed: usize,
    key: bool,
}

impl Plan {
    fn new(config: &Config, tunnel: &Tunnel, endpoints: &Endpoints) -> Self {
        let present: BTreeMap<&str, &Peer> =
            tunnel.peers.iter().map(|peer| (peer.public_key.as_str(), peer)).collect();
        let wanted: BTreeSet<String> = config.peers.iter().map(|peer| peer.public_key.to_string()).collect();
        let mut plan = Self {
            port: Zeroizing::new(String::new()),
            changes: Zeroizing::new(String::with_capacity(room(config, tunnel))),
            new_prefixes: Vec::new(),
            added: 0,
            changed: 0,
            removed: 0,
            key: false,
        };
        if config.listen_port != 0 && config.listen_port != tunnel.device.listen_port {
            let _ = writeln!(plan.port, "listen_port={}", config.listen_port);
        }
        let public = noise::public_key(&config.private_key).to_string();
        if !config.private_key.is_zero() && tunnel.device.public_key.as_ref() != Some(&public) {
            plan.key = true;
            push_key(&mut plan.changes, "private_key", config.private_key.expose());
        }
        for key in present.keys().filter(|key| !wanted.contains(**key)) {
            if let Ok(key) = key.parse::<PublicKey>() {
                push_key(&mut plan.changes, "public_key", &key.0);
                let _ = writeln!(plan.changes, "remove=true");
                plan.removed += 1;
            }
        }
        for (place, peer) in config.peers.iter().enumerate() {
            let addresses = endpoints.get(&place).map_or(&[][..], Vec::as_slice);
            plan.peer(peer, present.get(peer.public_key.to_string().as_str()).copied(), addresses);
        }
        plan
    }

    /// Adds what makes a peer that of the file; nothing where it is that already.
    fn peer(&mut self, peer: &PeerSection, present: Option<&Peer>, addresses: &[SocketAddr]) {
        let before = self.changes.len();
        push_key(&mut self.changes, "public_key", &peer.public_key.0);
        let heading = self.changes.len();
        // Whether it is another one is not told: it takes effect at the next handshake, and is no change by itself.
        let preshared = peer.preshared_key.as_ref();
        let is_other = present.is_none_or(|present| present.preshared_key != preshared.is_some());
        if is_other {
            push_key(&mut self.changes, "preshared_key", preshared.map_or(&[0; KEY_LEN], SecretKey::expose));
        }
        let keepalive = peer.persistent_keepalive;
        if present.map_or(0, |present| present.persistent_keepalive_s) != keepalive {
            let _ = writeln!(self.changes, "persistent_keepalive_interval={keepalive}");
        }
        let reached = present.and_then(|present| present.endpoint);
        if let Some(first) = addresses.first().filter(|_| reached.is_none_or(|at| !addresses.contains(&at))) {
            let _ = writeln!(self.changes, "endpoint={first}");
        }
        let has: BTreeSet<IpNet> =
            present.and_then(|present| present.allowed_ips.as_ref()).into_iter().flatten().copied().collect();
        let wants: BTreeSet<IpNet> = peer.allowed_ips.iter().map(IpNet::trunc).collect();
        for prefix in has.difference(&wants) {
            let _ = writeln!(self.changes, "allowed_ip=-{prefix}");
        }
        for prefix in wants.difference(&has) {
            let _ = writeln!(self.changes, "allowed_ip={prefix}");
            self.new_prefixes.push(*prefix);
        }
        if present.is_none() {
            self.added += 1;
        } else if self.changes.len() > heading {
            self.changed += 1;
        } else if let Some(preshared) = preshared {
            push_key(&mut self.changes, "preshared_key", preshared.expose());
        } else {
            self.changes.truncate(before);
        }
    }

    fn summary(&self) -> String {
        let key = if self.key { ", another private key" } else { "" };
        let port = if self.port.is_empty() { "" } else { ", another port" };
        let added = show::counted(self.added as u64, "peer");
        format!("{added} added, {} changed, {} removed{key}{port}", self.changed, self.removed)
    }
}

/// More than all changes come to, bytes: text that grows would leave copies of keys behind.
fn room(config: &Config, tunnel: &Tunnel) -> usize {
    const PEER: usize = 512;
    const PREFIX: usize = 64;
    let wanted: usize = config.peers.iter().map(|peer| PEER + PREFIX * peer.allowed_ips.len()).sum();
    let prefixes = |peer: &Peer| peer.allowed_ips.as_ref().map_or(0, Vec::len);
    let present: usize = tunnel.peers.iter().map(|peer| PEER + PREFIX * prefixes(peer)).sum();
    PEER + wanted + present
}

fn push_key(text: &mut String, name: &str, key: &[u8; KEY_LEN]) {
    text.push_str(name);
    text.push('=');
    for byte in key {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
}

/// Leads new prefixes into the interface, as `towpath up` does; what could not be done, in sentences.
fn route(name: &str, config: &Config, prefixes: &[IpNet]) -> Vec<String> {
    let table = config.host.table;
    let (defaults, narrow): (Vec<IpNet>, Vec<IpNet>) =
        prefixes.iter().partition(|net| net.prefix_len() == 0 && table == Table::Auto);
    let mut problems = Vec::new();
    for net in defaults {
        problems.push(format!("{net} takes rules too: towpath down {name}, and up again"));
    }
    if table == Table::Off || narrow.is_empty() {
        return problems;
    }
    let routed = || -> io::Result<()> {
        let mut handle = Handle::open()?;
        let index = handle.link_index(name)?;
        for net in narrow {
            match table {
                Table::Number(table) => handle.add_route_in(index, net, table)?,
                _ if host::is_connected(&config.addresses, &net) => {}
                _ => handle.add_route(index, net)?,
            }
        }
        Ok(())
    };
    problems.extend(routed().err().map(|error| error.to_string()));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::status::Device;

    const ONE: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const TWO: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
    const THREE: &str = "4PZMwZvhnlKXEFi7MjP3BoKN8FHdcS7wGFrfxBVLTwI=";

    fn plan(text: &str, tunnel: &Tunnel) -> Plan {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wg0.conf");
        std::fs::write(&file, text).unwrap();
        let (config, _) = Config::load(&file).unwrap();
        let (endpoints, _) = resolved(&file, &config, tunnel);
        Plan::new(&config, tunnel, &endpoints)
    }

    fn hex(key: &str) -> String {
        key.parse::<PublicKey>().unwrap().0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let key = SecretKey::new([7; KEY_LEN]).clamped();
        let peer = |key: &str, prefixes: &[&str]| Peer {
            public_key: key.to_owned(),
            endpoint: Some("192.0.2.2:7".parse().unwrap()),
            allowed_ips: Some(prefixes.iter().map(|net| net.parse().unwrap()).collect()),
            ..Peer::default()
        };
        let device = Device {
            public_key: Some(noise::public_key(&key).to_string()),
            listen_port: 9,
            ..Device::default()
        };
        let tunnel = Tunnel { device, peers: vec![peer(ONE, &["10.9.0.2/32"]), peer(TWO, &["10.9.0.3/32"])] };
        let interface = format!("[Interface]\nPrivateKey = {}\n", *key.to_base64());
        let section = |key: &str, rest: &str| format!("[Peer]\nPublicKey = {key}\n{rest}\n");

        let same = format!(
            "{interface}ListenPort = 9\n{}{}",
            section(ONE, "AllowedIPs = 10.9.0.2\nEndpoint = 192.0.2.2:7"),
            section(TWO, "AllowedIPs = 10.9.0.3")
        );
        let nothing = plan(&same, &tunnel);
        assert_eq!((nothing.port.as_str(), nothing.changes.as_str()), ("", ""));
        assert_eq!(nothing.summary(), "0 peers added, 0 changed, 0 removed");

        let other = format!(
            "{interface}ListenPort = 10\n{}{}",
            section(
                ONE,
                "AllowedIPs = 10.9.0.2, 10.8.0.0/16\nEndpoint = 192.0.2.9:7\nPersistentKeepalive = 25"
            ),
            section(THREE, &format!("AllowedIPs = 10.9.0.3\nPresharedKey = {ONE}"))
        );
        let plan = plan(&other, &tunnel);
        assert_eq!(*plan.port, "listen_port=10\n");
        let (one, two, three) = (hex(ONE), hex(TWO), hex(THREE));
        let expected = format!(
            "public_key={two}\nremove=true\n\
             public_key={one}\npersistent_keepalive_interval=25\nendpoint=192.0.2.9:7\nallowed_ip=10.8.0.0/16\n\
             public_key={three}\npreshared_key={one}\nallowed_ip=10.9.0.3/32\n"
        );
        assert_eq!(*plan.changes, expected);
        assert_eq!(plan.summary(), "1 peer added, 1 changed, 1 removed, another port");
        assert_eq!(plan.new_prefixes.len(), 2);
    }

    #[test]
    fn a_name_without_an_address_keeps_nothing_else_from_being_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wg0.conf");
        let key = SecretKey::new([7; KEY_LEN]).clamped();
        let text = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {ONE}\nEndpoint = nobody.invalid:7\nAllowedIPs = 10.9.0.2\n",
            *key.to_base64()
        );
        std::fs::write(&file, text).unwrap();
        let (config, _) = Config::load(&file).unwrap();
        let device = Device { public_key: Some(noise::public_key(&key).to_string()), ..Device::default() };
        let peer = Peer { public_key: ONE.to_owned(), ..Peer::default() };
        let reached = Peer { endpoint: Some("192.0.2.2:7".parse().unwrap()), ..peer.clone() };
        for (peers, so) in [
            (vec![reached], "stays at the address it has"),
            (vec![peer], "reload again, or write the address"),
            (vec![], "reload again, or write the address"),
        ] {
            let tunnel = Tunnel { device: device.clone(), peers };
            let (endpoints, missing) = resolved(&file, &config, &tunnel);
            assert!(endpoints.is_empty(), "it stays where it is");
            assert!(
                missing.len() == 1 && missing[0].contains("wg0.conf:5: nobody.invalid:7: "),
                "{missing:?}"
            );
            assert!(missing[0].ends_with(so), "{missing:?}");
            let plan = Plan::new(&config, &tunnel, &endpoints);
            assert!(plan.changes.contains("allowed_ip=10.9.0.2/32\n") && !plan.changes.contains("endpoint="));
        }
    }
}
