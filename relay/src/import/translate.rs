//! What the options of a turnserver.conf come to in settings of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use super::conf::{Entry, entries};
use super::options::{Fate, Takes, look_up};
use super::ranges::{Range, denied_networks, networks};
use crate::admin::ADDRESS_DEFAULT;
use crate::config::{ALLOCATIONS_MAX_DEFAULT, External, PortRange, Realm, is_usable};
use crate::login::Login;
use crate::server::WORKERS_MAX;
use crate::server::auth::SECRETS_MAX;

/// Ports of coturn when nothing is said.
const PORT_DEFAULT: u16 = 3478;
const TLS_PORT_DEFAULT: u16 = 5349;
/// Both ends of its relay ports.
const RELAY_PORTS_DEFAULT: (u16, u16) = (49_152, 65_535);
/// Longest name of an unknown option that is shown: what is longer, or has other letters, may be a secret that lost its name.
const NAME_SHOWN_MAX: usize = 40;

/// Options that become settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called as coturn calls them")]
pub enum Setting {
    ListeningIp,
    ListeningPort,
    TlsListeningPort,
    AuxServer,
    NoUdp,
    NoTcp,
    NoTls,
    NoDtls,
    RelayIp,
    ExternalIp,
    MinPort,
    MaxPort,
    Realm,
    User,
    UseAuthSecret,
    StaticAuthSecret,
    StunOnly,
    AllowedPeer,
    DeniedPeer,
    AllowLoopback,
    UserQuota,
    TotalQuota,
    MaxBps,
    BpsCapacity,
    Certificate,
    Key,
    Prometheus,
    PrometheusPort,
    PrometheusAddress,
    RelayThreads,
    AlternateServer,
    TlsAlternateServer,
}

/// Something that does not come over, or not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line of the option, from one; none for what is about the file as a whole.
    pub line: Option<usize>,
    /// The option and why, or what to do. Never its value, which may be a secret.
    pub text: String,
}

/// A value that coturn would not take either.
#[derive(Debug, PartialEq, Eq)]
pub struct BadValue {
    /// The line, from one.
    pub line: usize,
    /// The option and what would be right.
    pub text: String,
}

/// What a file comes to.
#[derive(Default)]
pub struct Translation {
    /// Settings by name, with values as TOML.
    pub settings: BTreeMap<&'static str, String>,
    /// Lines of the user file.
    pub users: Vec<Zeroizing<String>>,
    /// Lines of the secret file.
    pub secrets: Vec<Zeroizing<String>>,
    /// What has no equivalent.
    pub missing: Vec<Note>,
    /// What is so without a setting.
    pub already: Vec<Note>,
    /// What differs although nothing was said about it.
    pub differences: Vec<Note>,
}

/// What was said, before it is put together: the last value of what can be said once, all of what can be said often.
#[derive(Default)]
struct Said {
    listening: Vec<IpAddr>,
    port: Option<u16>,
    tls_port: Option<u16>,
    aux: Vec<SocketAddr>,
    no_udp: bool,
    no_tcp: bool,
    no_tls: bool,
    no_dtls: bool,
    relay: Vec<IpAddr>,
    external: Vec<String>,
    /// With their lines.
    min_port: Option<(u16, usize)>,
    max_port: Option<(u16, usize)>,
    realm: Option<String>,
    has_keys: bool,
    wants_secrets: bool,
    stun_only: bool,
    allowed: Vec<Range>,
    denied: Vec<Range>,
    allow_loopback: bool,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    prometheus: bool,
    prometheus_port: Option<u16>,
    prometheus_address: Option<IpAddr>,
    alternates: Vec<SocketAddr>,
    tls_alternates: Vec<SocketAddr>,
}

/// Translates the text of a turnserver.conf. Relative paths in it are those of `folder`.
///
/// # Errors
/// The first value that makes no sense.
pub fn translate(text: &str, folder: &Path) -> Result<Translation, BadValue> {
    let mut out = Translation::default();
    let mut said = Said::default();
    for entry in entries(text) {
        let note = |text: &str| Note { line: Some(entry.line), text: format!("{}: {text}", entry.name) };
        let Some((takes, fate)) = look_up(entry.name) else {
            let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
            let is_shown = entry.name.len() <= NAME_SHOWN_MAX && entry.name.chars().all(is_plain);
            let name = if is_shown { entry.name } else { "what stands here" };
            let without_dashes = entry.name.trim_start_matches('-');
            let text = match look_up(without_dashes) {
                Some(_) => format!(
                    "{name}: coturn passes over a line that begins with dashes, and so it was left out; write {without_dashes} \
                     where it is wanted"
                ),
                None => format!("{name}: unknown; see whether towpath-relay --help has something like it"),
            };
            out.missing.push(Note { line: Some(entry.line), text });
            continue;
        };
        if takes == Takes::Flag && entry.is_off() {
            continue;
        }
        match fate {
            Fate::Already(reason) => out.already.push(note(reason)),
            Fate::AlreadyIf(value, reason) if entry.value == value => out.already.push(note(reason)),
            Fate::AlreadyIf(_, reason) | Fate::Missing(reason) => out.missing.push(note(reason)),
            Fate::Translated(setting) => take(setting, entry, folder, &mut said, &mut out)?,
        }
    }
    put_together(&said, &mut out)?;
    Ok(out)
}

fn value<T: FromStr>(entry: Entry<'_>, right: &str) -> Result<T, BadValue> {
    entry
        .value
        .parse()
        .map_err(|_| BadValue { line: entry.line, text: format!("{} takes {right}", entry.name) })
}

/// Notes one option that becomes a setting.
fn take(
    setting: Setting,
    entry: Entry<'_>,
    folder: &Path,
    said: &mut Said,
    out: &mut Translation,
) -> Result<(), BadValue> {
    let address = || value(entry, "an address, for example 192.0.2.1");
    let number = |right| value::<u32>(entry, right);
    let port = || value::<u16>(entry, "a port, for example 3478");
    let range = || value(entry, "an address or a range, for example 192.0.2.0-192.0.2.255");
    let mut missing = |text: &str| {
        out.missing.push(Note { line: Some(entry.line), text: format!("{}: {text}", entry.name) });
    };
    match setting {
        Setting::ListeningIp => said.listening.push(address()?),
        Setting::ListeningPort => said.port = Some(port()?),
        Setting::TlsListeningPort => said.tls_port = Some(port()?),
        Setting::AuxServer => said.aux.push(value(entry, "ADDRESS:PORT, for example 192.0.2.1:33478")?),
        Setting::NoUdp => {
            said.no_udp = true;
            missing("UDP cannot be switched off, so it is served on loopback only");
        }
        Setting::NoTcp => said.no_tcp = true,
        Setting::NoTls => said.no_tls = true,
        Setting::NoDtls => {
            said.no_dtls = true;
            let text = format!("{}: there is no DTLS", entry.name);
            out.already.push(Note { line: Some(entry.line), text });
        }
        Setting::RelayIp => {
            let address: IpAddr = address()?;
            if said.relay.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                missing(
                    "there is one address of each family for allocations, and the first was taken; run a relay for each more",
                );
            } else {
                said.relay.push(address);
            }
        }
        Setting::ExternalIp => {
            value::<External>(
                entry,
                "PUBLIC or PUBLIC/LOCAL, addresses and not names, for example 198.51.100.1/10.0.0.1",
            )?;
            said.external.push(entry.value.to_owned());
        }
        Setting::MinPort => said.min_port = Some((port()?, entry.line)),
        Setting::MaxPort => said.max_port = Some((port()?, entry.line)),
        Setting::Realm => {
            let wrong = |text| BadValue { line: entry.line, text };
            let _: Realm = entry.value.parse().map_err(wrong)?;
            said.realm = Some(entry.value.to_owned());
        }
        Setting::User => take_user(entry, said, out)?,
        Setting::UseAuthSecret => said.wants_secrets = true,
        Setting::StaticAuthSecret if entry.value.is_empty() || entry.value.starts_with('#') => {
            return Err(BadValue {
                line: entry.line,
                text: "static-auth-secret takes a secret that is not empty and does not begin with #"
                    .to_owned(),
            });
        }
        Setting::StaticAuthSecret if out.secrets.len() == SECRETS_MAX => {
            missing(&format!("at most {SECRETS_MAX} secrets are accepted at once"));
        }
        Setting::StaticAuthSecret => out.secrets.push(Zeroizing::new(entry.value.to_owned())),
        Setting::StunOnly => said.stun_only = true,
        Setting::AllowedPeer => said.allowed.push(range()?),
        Setting::DeniedPeer => said.denied.push(range()?),
        Setting::AllowLoopback => said.allow_loopback = true,
        Setting::UserQuota | Setting::TotalQuota => {
            let name =
                if setting == Setting::UserQuota { "allocations-per-user-max" } else { "allocations-max" };
            match number("a number, for example 100")? {
                0 => missing(&format!(
                    "0 is no limit to coturn; there is always one here, and `{name}` has its default"
                )),
                most => _ = out.settings.insert(name, most.to_string()),
            }
        }
        Setting::MaxBps | Setting::BpsCapacity => {
            let bytes: u64 = value(entry, "bytes a second, for example 64000")?;
            let name = if setting == Setting::MaxBps { "allocation-rate" } else { "total-rate" };
            // 0 is no limit.
            if bytes > 0 {
                out.settings.insert(name, format!("\"{}bit\"", u128::from(bytes) * 8));
            }
        }
        Setting::RelayThreads => {
            let threads: u16 = value(entry, "a number, for example 4")?;
            // 0 is one thread for everything to coturn.
            out.settings.insert("workers", threads.clamp(1, WORKERS_MAX).to_string());
        }
        Setting::Certificate => said.certificate = Some(folder.join(entry.value)),
        Setting::Key => said.key = Some(folder.join(entry.value)),
        Setting::Prometheus => said.prometheus = true,
        Setting::PrometheusPort => said.prometheus_port = Some(port()?),
        Setting::PrometheusAddress => said.prometheus_address = Some(address()?),
        Setting::AlternateServer => missing(take_alternate(entry.value, PORT_DEFAULT, &mut said.alternates)),
        Setting::TlsAlternateServer => {
            missing(take_alternate(entry.value, TLS_PORT_DEFAULT, &mut said.tls_alternates));
        }
    }
    Ok(())
}

/// Takes where clients are sent, and says how much less that is than it is to coturn.
fn take_alternate(value: &str, port_default: u16, alternates: &mut Vec<SocketAddr>) -> &'static str {
    let without_port = || {
        let address = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(value);
        Some(SocketAddr::new(address.parse().ok()?, port_default))
    };
    let address: Option<SocketAddr> = value.parse().ok().or_else(without_port);
    match address.filter(|&address| is_usable(address)) {
        None => "not taken: names are not looked up, so it has to be an address, for example 192.0.2.7:3478",
        Some(address) if alternates.iter().any(|other| other.is_ipv4() == address.is_ipv4()) => {
            "not taken: there is one alternate of each family, and the first was taken; balance by DNS SRV records"
        }
        Some(address) => {
            alternates.push(address);
            "taken, and clients are sent there only while the relay drains, not always: balance by DNS SRV records"
        }
    }
}

fn take_user(entry: Entry<'_>, said: &mut Said, out: &mut Translation) -> Result<(), BadValue> {
    let wrong = |text: String| BadValue { line: entry.line, text: format!("user: {text}") };
    // Neither error shows the text.
    let _: Login = entry.value.parse().map_err(wrong)?;
    if entry.value.starts_with('#') {
        return Err(wrong(
            "a name that begins with # would be a comment; give the user another name".to_owned(),
        ));
    }
    said.has_keys |= entry.value.split_once(':').is_some_and(|(_, proof)| proof.starts_with("0x"));
    out.users.push(Zeroizing::new(entry.value.to_owned()));
    Ok(())
}

/// Makes settings of all that was said.
fn put_together(said: &Said, out: &mut Translation) -> Result<(), BadValue> {
    listeners(said, out);
    if !said.relay.is_empty() {
        out.settings.insert("relay-address", list(&said.relay));
    }
    if !said.external.is_empty() {
        out.settings.insert("external-ip", list(&said.external));
    }
    if let Some(line) = said.min_port.into_iter().chain(said.max_port).map(|(_, line)| line).max() {
        let low = said.min_port.map_or(RELAY_PORTS_DEFAULT.0, |(port, _)| port);
        let high = said.max_port.map_or(RELAY_PORTS_DEFAULT.1, |(port, _)| port);
        let range = format!("{low}-{high}");
        let _: PortRange = range.parse().map_err(|text| BadValue { line, text })?;
        out.settings.insert("relay-ports", quoted(&range));
        let most = out.settings.get("allocations-max").and_then(|most| most.parse().ok());
        let ports = usize::from(high - low) + 1;
        if ports < most.unwrap_or(ALLOCATIONS_MAX_DEFAULT) as usize {
            out.differ(&format!(
                "there are {ports} ports, fewer than `allocations-max`: once none is free, several allocations have one port, \
                 which coturn refuses; such a channel opens one port of a peer, and who asks for a peer that another on the \
                 port has is answered 508. `port-sharing = \"off\"` refuses as coturn does"
            ));
        }
    }
    for (name, alternates) in
        [("alternate-server", &said.alternates), ("alternate-server-tls", &said.tls_alternates)]
    {
        if !alternates.is_empty() {
            out.settings.insert(name, list(alternates));
        }
    }
    peers(said, out);
    users(said, out);
    if said.prometheus || said.prometheus_port.is_some() || said.prometheus_address.is_some() {
        let address = said.prometheus_address.unwrap_or(ADDRESS_DEFAULT.ip());
        let port = said.prometheus_port.unwrap_or(ADDRESS_DEFAULT.port());
        out.settings.insert("admin", quoted(&SocketAddr::new(address, port).to_string()));
        if said.prometheus_address.is_none() {
            out.differ("metrics are on loopback, where coturn has them on every address, because the figures beside them have user names: set `admin` for a Prometheus on another machine");
        }
    }
    Ok(())
}

impl Translation {
    fn differ(&mut self, text: &str) {
        self.differences.push(Note { line: None, text: text.to_owned() });
    }
}

fn listeners(said: &Said, out: &mut Translation) {
    let (port, tls_port) = (said.port.unwrap_or(PORT_DEFAULT), said.tls_port.unwrap_or(TLS_PORT_DEFAULT));
    let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let addresses = if said.listening.is_empty() { &everywhere[..] } else { &said.listening };
    let at = |port| addresses.iter().map(move |&address| SocketAddr::new(address, port));
    let has_certificate = said.certificate.is_some() && said.key.is_some();
    let has_tls = has_certificate && !said.no_tls;
    let plain: BTreeSet<SocketAddr> = at(port).chain(said.aux.iter().copied()).collect();
    let tls: BTreeSet<SocketAddr> = at(tls_port).filter(|_| has_tls).collect();
    // A socket for DTLS takes UDP without it, too.
    let beside = at(tls_port).filter(|_| has_certificate && !said.no_dtls);
    let udp: BTreeSet<SocketAddr> = plain.iter().copied().chain(beside).collect();
    let tcp: BTreeSet<SocketAddr> = plain.difference(&tls).copied().filter(|_| !said.no_tcp).collect();
    if said.no_udp {
        let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        out.settings.insert("listen", list(&[loopback]));
    } else if !udp.iter().copied().eq(everywhere.map(|address| SocketAddr::new(address, PORT_DEFAULT))) {
        out.settings.insert("listen", list(&udp));
    }
    if !tcp.is_empty() {
        out.settings.insert("listen-tcp", list(&tcp));
    }
    if !tls.is_empty() {
        out.settings.insert("listen-tls", list(&tls));
    }
    match (&said.certificate, &said.key) {
        _ if said.no_tls => {}
        (Some(certificate), Some(key)) => {
            out.settings.insert("tls-certificate", quoted(&certificate.to_string_lossy()));
            out.settings.insert("tls-key", quoted(&key.to_string_lossy()));
            out.differ("the TLS key is refused when everyone can read it: chmod 640 it, for a group that the relay is in (SupplementaryGroups= of the systemd unit), or chmod 600");
        }
        (None, None) => out.differ("without cert and pkey there is no TLS; coturn looks for turn_server_cert.pem and turn_server_pkey.pem in several places"),
        (Some(_), None) => out.differ("cert without pkey: there is no TLS until `tls-key` is set, and `listen-tls`"),
        (None, Some(_)) => out.differ("pkey without cert: there is no TLS until `tls-certificate` is set, and `listen-tls`"),
    }
    what_is_not_recognized(said, has_tls, has_certificate, out);
    let named = ["listen", "listen-tcp", "listen-tls"].into_iter();
    let named: Vec<String> =
        named.filter(|name| out.settings.contains_key(name)).map(|name| format!("`{name}`")).collect();
    if said.listening.is_empty() && !named.is_empty() {
        out.differ(&format!(
            "an address of {} that the machine lacks is an error: take [::] out where there is no IPv6",
            named.join(" and ")
        ));
    }
}

/// Coturn tells plain clients from those under TLS by what they send, on each of its ports.
fn what_is_not_recognized(said: &Said, has_tls: bool, has_certificate: bool, out: &mut Translation) {
    if has_tls {
        out.differ("TLS is served at `listen-tls` only, which coturn does on the plain ports, too: clients that come there over TLS need the other port");
    }
    if has_tls && !said.no_tcp {
        out.differ("plain TCP is served at `listen-tcp` only, which coturn does on the TLS port, too: an address is for one of the two, and here for TLS");
    }
    if has_certificate && !said.no_dtls {
        out.differ(
            "DTLS is not served, which coturn does on its UDP ports: such clients come over TLS, or over UDP",
        );
    }
}

fn peers(said: &Said, out: &mut Translation) {
    let mut allowed = networks(&said.allowed);
    if said.allow_loopback {
        allowed.extend(networks(&["127.0.0.0/8", "::1"].map(|text| text.parse().expect("a range"))));
    }
    if !allowed.is_empty() {
        out.settings.insert("allow-peer", list(&allowed));
    }
    let denied = denied_networks(&said.denied, &said.allowed);
    if !denied.is_empty() {
        out.settings.insert("deny-peer", list(&denied));
    }
    out.differ("private, link-local and other special addresses are refused as peers, which coturn allows: name those that clients may reach in `allow-peer`");
    out.differ(
        "there is always a limit: allocations of one user, of one source and in all, and new peers of one user a second; where \
         many clients are one user, raise `allocations-per-user-max` and `new-peers-per-user`",
    );
    out.differ("peer ports below 1024 but for 443, and two more, are refused in ChannelBind and Send, which coturn allows: `deny-peer-ports = \"none\"` allows all");
}

fn users(said: &Said, out: &mut Translation) {
    match &said.realm {
        Some(realm) => _ = out.settings.insert("realm", quoted(realm)),
        None if said.has_keys => out.differ("there is no realm, and keys of users (0x…) are good in one realm only: set `realm` to the domain name of the host, which coturn takes"),
        None => out.differ("there is no realm: coturn takes the domain name of the host, this relay \"towpath\""),
    }
    if !out.secrets.is_empty() {
        out.differ(
            "time-limited names that expire in more than a day are refused, which coturn allows: set `secret-validity-max` to \
             the longest that the web service gives",
        );
    }
    if said.stun_only {
        out.users.clear();
        out.secrets.clear();
        out.differ(
            "stun-only: users and secrets are left out, because without any of them only STUN is served",
        );
    } else if said.wants_secrets && out.secrets.is_empty() {
        out.differ("use-auth-secret without static-auth-secret: write the secrets of the table turn_secret into `secret-file`, one a line");
    } else if out.users.is_empty() && out.secrets.is_empty() {
        out.differ("there are no users and no secrets, so that only STUN is served");
    }
}

/// A text in TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A list in TOML.
fn list<'a, T: Display + 'a>(values: impl IntoIterator<Item = &'a T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| quoted(&value.to_string())).collect();
    format!("[{}]", values.join(", "))
}
