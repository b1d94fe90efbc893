//! From lines to a [`Config`]: sections, keys, and what must not be missing or given twice.

use std::collections::HashMap;
use std::path::Path;

use ipnet::IpNet;

use super::host::Reading;
use super::relay::{self, Relays};
use super::value::{self, Endpoint, shown};
use super::{Config, ConfigError, DEFAULT_MTU, MTU_MAX, MTU_MIN_IPV4, MTU_MIN_IPV6};
use super::{PeerSection, read};
use crate::tunnel::key::{KEY_LEN, PublicKey, SecretKey};
use crate::tunnel::marking::{Dscp, Marking};
use crate::tunnel::noise;
use crate::tunnel::paths::Policy;

/// Reads the text of `file`; files it names are looked for beside it.
pub(super) fn parse(file: &Path, text: &str, warnings: &mut Vec<String>) -> Result<Config, ConfigError> {
    let mut sections = Sections::default();
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let at = |problem| ConfigError { file: file.into(), line: Some(line), problem };
        sections.line(raw, line).map_err(at)?;
    }
    finish(file, sections, warnings)
}

/// From what the lines say to what they come to, in whichever format they were.
pub(super) fn finish(
    file: &Path,
    sections: Sections,
    warnings: &mut Vec<String>,
) -> Result<Config, ConfigError> {
    let at = |line: Option<usize>| move |problem: String| ConfigError { file: file.into(), line, problem };
    let mut interface = sections
        .interface
        .ok_or_else(|| {
            "there is no [Interface] section; begin with [Interface] and PrivateKeyFile = wg0.key".to_owned()
        })
        .map_err(at(None))?;
    let directory = file.parent().unwrap_or(Path::new(""));
    let private_key =
        interface.private_key(directory, warnings).map_err(|(line, text)| at(Some(line))(text))?;
    let relays = std::mem::take(&mut interface.relays);
    let relays = relays.finish(directory, warnings).map_err(|(line, text)| at(Some(line))(text))?;
    let mut peers = Vec::with_capacity(sections.peers.len());
    for peer in sections.peers {
        let line = peer.line;
        peers.push(peer.finish(!relays.is_empty()).map_err(at(Some(line)))?);
    }
    let marking = interface.marking();
    let mut config = Config {
        private_key,
        addresses: interface.addresses,
        listen_port: interface.listen_port.map_or(0, |(port, _)| port),
        mtu: DEFAULT_MTU,
        mtu_auto: false,
        marking,
        host: interface.host.finish(),
        relays,
        peers,
    };
    check_peers(&config, warnings).map_err(|(line, text)| at(Some(line))(text))?;
    match interface.mtu {
        Some((mtu, _)) if mtu.eq_ignore_ascii_case("auto") => config.mtu_auto = true,
        Some((mtu, line)) => config.mtu = check_mtu(&mtu, config.has_ipv6()).map_err(at(Some(line)))?,
        None => {}
    }
    if config.addresses.is_empty() {
        warnings.push(
            "there is no Address: the interface gets none, and local programs cannot use it".to_owned(),
        );
    }
    Ok(config)
}

/// A value and the line it stands on.
type At<T> = Option<(T, usize)>;
/// A line and what is wrong there.
type LineError = (usize, String);

#[derive(Default)]
pub(super) struct Sections {
    pub(super) interface: Option<Interface>,
    pub(super) peers: Vec<Peer>,
    current: Current,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Current {
    #[default]
    None,
    Interface,
    Peer,
}

#[derive(Default)]
pub(super) struct Interface {
    line: usize,
    private_key: At<SecretKey>,
    private_key_file: At<String>,
    addresses: Vec<IpNet>,
    listen_port: At<u16>,
    mtu: At<String>,
    ecn: At<bool>,
    dscp: At<Dscp>,
    host: Reading,
    pub(super) relays: Relays,
}

#[derive(Default)]
pub(super) struct Peer {
    line: usize,
    pub(super) public_key: At<PublicKey>,
    preshared_key: At<SecretKey>,
    allowed_ips: Vec<IpNet>,
    endpoint: At<Endpoint>,
    persistent_keepalive: At<u16>,
    pub(super) path: At<Policy>,
}

impl Sections {
    fn line(&mut self, raw: &str, line: usize) -> Result<(), String> {
        let (text, ours) = match towpath_comment(raw) {
            Some(text) => (text, true),
            None => (raw.split('#').next().unwrap_or_default().trim(), false),
        };
        if text.is_empty() {
            return Ok(());
        }
        if let Some(heading) = text.strip_prefix('[').filter(|_| !ours) {
            return self.heading(heading, line);
        }
        // The line itself is not shown: it may be a key without its name.
        let (key, value) =
            text.split_once('=').ok_or("this line is neither a [Section] nor KEY = VALUE nor a comment")?;
        let (key, value) = (key.trim(), value.trim());
        match (self.current, ours) {
            (Current::None, _) => {
                Err("this line stands before the first section; begin with [Interface]".to_owned())
            }
            (Current::Interface, false) => {
                self.interface.as_mut().map_or(Ok(()), |interface| interface.set(key, value, line))
            }
            (Current::Interface, true) => {
                self.interface.as_mut().map_or(Ok(()), |interface| interface.set_ours(key, value, line))
            }
            (Current::Peer, false) => self.peers.last_mut().map_or(Ok(()), |peer| peer.set(key, value, line)),
            (Current::Peer, true) => {
                self.peers.last_mut().map_or(Ok(()), |peer| peer.set_ours(key, value, line))
            }
        }
    }

    fn heading(&mut self, heading: &str, line: usize) -> Result<(), String> {
        match heading.trim_end_matches(']').trim().to_ascii_lowercase().as_str() {
            "interface" if heading.ends_with(']') => {
                if let Some(first) = &self.interface {
                    return Err(format!(
                        "[Interface] was given on line {} already; merge the two",
                        first.line
                    ));
                }
                self.interface = Some(Interface::on(line));
                self.current = Current::Interface;
                Ok(())
            }
            "peer" if heading.ends_with(']') => {
                self.peers.push(Peer::on(line));
                self.current = Current::Peer;
                Ok(())
            }
            _ => Err("there is no such section; write [Interface] or [Peer]".to_owned()),
        }
    }
}

/// The part of a comment that is meant for us.
pub(super) fn towpath_comment(raw: &str) -> Option<&str> {
    const MARK: &str = "towpath:";
    let comment = raw.trim().strip_prefix('#')?.trim_start();
    let (mark, rest) = comment.split_at_checked(MARK.len())?;
    mark.eq_ignore_ascii_case(MARK).then(|| rest.trim())
}

/// Stores a value that may be given once.
fn once<T>(slot: &mut At<T>, key: &str, value: T, line: usize) -> Result<(), String> {
    if let Some((_, first)) = slot {
        return Err(format!("{key} was given on line {first} already; remove one of the two"));
    }
    *slot = Some((value, line));
    Ok(())
}

fn secret_key(value: &str) -> Result<SecretKey, String> {
    value.parse().map_err(|error: crate::tunnel::key::NotAKey| error.to_string())
}

/// What is wrong with a path over a relay that is not there.
pub(super) const NO_RELAY: &str =
    "Path is relay, and there is no relay; write #towpath: Relay = turn:HOST into [Interface]";

/// Keys that are comments in wg-quick's format, as they are written for [`Interface::set_ours`] in lower case.
pub(super) const OURS: [&str; 7] =
    ["relay", "relayusername", "relaypasswordfile", "relaysecretfile", "relaycertificate", "ecn", "dscp"];

impl Interface {
    /// One that begins on this line.
    pub(super) fn on(line: usize) -> Self {
        Self { line, ..Self::default() }
    }

    pub(super) fn set(&mut self, key: &str, value: &str, line: usize) -> Result<(), String> {
        if let Some(set) = self.host.set(key, value, line) {
            return set;
        }
        match key.to_ascii_lowercase().as_str() {
            "privatekey" => once(&mut self.private_key, "PrivateKey", secret_key(value)?, line),
            "privatekeyfile" => once(&mut self.private_key_file, "PrivateKeyFile", value.to_owned(), line),
            "address" => self.add_addresses(value),
            "listenport" => {
                let port = value::number(value, 0..=u16::MAX, "a port")?;
                once(&mut self.listen_port, "ListenPort", port, line)
            }
            "mtu" => once(&mut self.mtu, "MTU", value.to_owned(), line),
            "publickey" | "presharedkey" | "allowedips" | "endpoint" | "persistentkeepalive" => {
                Err(format!("{key} belongs into a [Peer] section; write [Peer] above it"))
            }
            ours if OURS.contains(&ours) => {
                Err(format!("write it as a comment, so that `wg` can read the file too: #towpath: {key} = …"))
            }
            _ => Err(format!(
                "{} is unknown in [Interface]; known are PrivateKey, PrivateKeyFile, Address, ListenPort, MTU, DNS, \
                 Table, FwMark, PreUp, PostUp, PreDown, PostDown and SaveConfig",
                shown(key)
            )),
        }
    }

    pub(super) fn set_ours(&mut self, key: &str, value: &str, line: usize) -> Result<(), String> {
        if let Some(outcome) = self.relays.set(key, value, line) {
            return outcome;
        }
        match key.to_ascii_lowercase().as_str() {
            "path" => Err("Path belongs into a [Peer] section; write it below [Peer]".to_owned()),
            "ecn" => once(&mut self.ecn, "ECN", value::switch(value)?, line),
            "dscp" => {
                let dscp =
                    value.parse().map_err(|wanted| format!("{} is not a DSCP; {wanted}", shown(value)))?;
                once(&mut self.dscp, "DSCP", dscp, line)
            }
            _ => Err(format!(
                "{} is unknown after #towpath:; known are Relay, RelayUsername, RelayPasswordFile, RelaySecretFile, \
                 RelayCertificate, ECN and DSCP",
                shown(key)
            )),
        }
    }

    pub(super) fn marking(&self) -> Marking {
        let Marking { ecn, dscp } = Marking::default();
        Marking {
            ecn: self.ecn.map_or(ecn, |(given, _)| given),
            dscp: self.dscp.map_or(dscp, |(given, _)| given),
        }
    }

    fn add_addresses(&mut self, value: &str) -> Result<(), String> {
        for address in value::prefixes(value)? {
            let ip = address.addr();
            if ip.is_unspecified() || ip.is_multicast() {
                return Err(format!("{ip} cannot be the address of an interface; give a unicast address"));
            }
            if self.addresses.iter().any(|other| other.addr() == ip) {
                return Err(format!("{ip} was given already; remove one of the two"));
            }
            self.addresses.push(address);
        }
        Ok(())
    }

    fn private_key(&self, directory: &Path, warnings: &mut Vec<String>) -> Result<SecretKey, LineError> {
        match (&self.private_key, &self.private_key_file) {
            (Some((key, _)), None) => Ok(key.clone()),
            (None, Some((file, line))) => {
                let text = read_secret(directory, file, warnings).map_err(|problem| (*line, problem))?;
                secret_key(&text).map_err(|problem| (*line, format!("{file}: {problem}")))
            }
            (Some(_), Some((_, line))) => {
                Err((*line, "there is a PrivateKey as well; keep one of the two".to_owned()))
            }
            // As wg-quick(8) shows it: `PostUp = wg set %i private-key <(pass …)`.
            (None, None) if self.host.has_post_up() => Ok(SecretKey::new([0; KEY_LEN])),
            (None, None) => Err((
                self.line,
                "PrivateKey is missing; run `towpath genkey > wg0.key` and write PrivateKeyFile = wg0.key, or set it in \
                 PostUp by `wg set %i private-key FILE`"
                    .to_owned(),
            )),
        }
    }
}

/// The first line of a file that holds a key or password.
fn read_secret(
    directory: &Path,
    file: &str,
    warnings: &mut Vec<String>,
) -> Result<zeroize::Zeroizing<String>, String> {
    if file.is_empty() {
        return Err("the name of a file is missing behind the equals sign".to_owned());
    }
    let path = directory.join(file);
    let (text, world_readable) = read(&path).map_err(|problem| format!("{} {problem}", path.display()))?;
    if world_readable {
        warnings.push(format!("{0} can be read by everyone; run: chmod 600 {0}", path.display()));
    }
    Ok(zeroize::Zeroizing::new(text.lines().next().unwrap_or_default().trim().to_owned()))
}

impl Peer {
    /// One that begins on this line.
    pub(super) fn on(line: usize) -> Self {
        Self { line, ..Self::default() }
    }

    pub(super) fn set(&mut self, key: &str, value: &str, line: usize) -> Result<(), String> {
        match key.to_ascii_lowercase().as_str() {
            "publickey" => {
                let public: PublicKey =
                    value.parse().map_err(|error: crate::tunnel::key::NotAKey| error.to_string())?;
                if public.is_low_order() {
                    return Err("this public key belongs to nobody (a point of small order); ask the peer for its own"
                        .to_owned());
                }
                once(&mut self.public_key, "PublicKey", public, line)
            }
            "presharedkey" => once(&mut self.preshared_key, "PresharedKey", secret_key(value)?, line),
            "allowedips" => {
                self.allowed_ips.extend(value::prefixes(value)?.iter().map(IpNet::trunc));
                Ok(())
            }
            "endpoint" => once(&mut self.endpoint, "Endpoint", value::endpoint(value, None)?, line),
            "persistentkeepalive" => {
                let seconds = match value {
                    "off" => 0,
                    number => value::number(number, 0..=u16::MAX, "off or a number of seconds")?,
                };
                once(&mut self.persistent_keepalive, "PersistentKeepalive", seconds, line)
            }
            "privatekey" | "privatekeyfile" | "address" | "listenport" | "mtu" | "dns" | "table"
            | "fwmark" | "preup" | "postup" | "predown" | "postdown" | "saveconfig" => {
                Err(format!("{key} belongs into the [Interface] section; move it there"))
            }
            _ => Err(format!(
                "{} is unknown in [Peer]; known are PublicKey, PresharedKey, AllowedIPs, Endpoint and \
                 PersistentKeepalive",
                shown(key)
            )),
        }
    }

    pub(super) fn set_ours(&mut self, key: &str, value: &str, line: usize) -> Result<(), String> {
        match key.to_ascii_lowercase().as_str() {
            "path" => once(&mut self.path, "Path", relay::policy(value)?, line),
            key if key.starts_with("relay") => {
                Err("relays belong into the [Interface] section; move the line there".to_owned())
            }
            _ => Err(format!("{} is unknown after #towpath: in [Peer]; known is Path", shown(key))),
        }
    }

    fn finish(self, relayed: bool) -> Result<PeerSection, String> {
        let (public_key, _) = self
            .public_key
            .ok_or("this peer has no PublicKey; add the one that `towpath pubkey` prints there")?;
        let path = self.path.map(|(path, _)| path).unwrap_or_default();
        if path == Policy::Relay && !relayed {
            return Err(NO_RELAY.to_owned());
        }
        Ok(PeerSection {
            line: self.line,
            public_key,
            preshared_key: self.preshared_key.map(|(key, _)| key),
            allowed_ips: self.allowed_ips,
            endpoint: self.endpoint,
            path,
            persistent_keepalive: self.persistent_keepalive.map_or(0, |(seconds, _)| seconds),
        })
    }
}

fn check_peers(config: &Config, warnings: &mut Vec<String>) -> Result<(), LineError> {
    let own = noise::public_key(&config.private_key);
    let mut keys = HashMap::new();
    let mut prefixes = HashMap::new();
    for peer in &config.peers {
        if peer.public_key == own && !config.private_key.is_zero() {
            return Err((peer.line, "this peer's PublicKey is our own; give the other side's".to_owned()));
        }
        if let Some(first) = keys.insert(peer.public_key, peer.line) {
            return Err((
                peer.line,
                format!("the peer of line {first} has the same PublicKey; merge the two"),
            ));
        }
        for net in &peer.allowed_ips {
            if let Some(first) = prefixes.insert(*net, peer.line)
                && first != peer.line
            {
                let line = peer.line;
                warnings.push(format!(
                    "{net} is in AllowedIPs of the peers of lines {first} and {line}; the latter gets it"
                ));
            }
        }
        if peer.allowed_ips.is_empty() {
            warnings.push(format!("the peer of line {} has no AllowedIPs: nothing passes", peer.line));
        }
    }
    Ok(())
}

fn check_mtu(text: &str, ipv6: bool) -> Result<u16, String> {
    let (min, what) =
        if ipv6 { (MTU_MIN_IPV6, "an MTU for a tunnel that carries IPv6") } else { (MTU_MIN_IPV4, "an MTU") };
    value::number(text, min..=MTU_MAX, what).map_err(|error| format!("{error}, or auto"))
}
