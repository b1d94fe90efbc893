//! Flags and the TOML file, merged and checked: every error names its place and its remedy.

mod alternates;
mod error;
mod file_limits;
mod listeners;
mod reading;
mod streams;
mod values;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use dataplane::engine::{EngineArgs, Switch};
use dataplane::log::LogFormat;
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;
use zeroize::Zeroizing;

pub use self::alternates::TlsAlternate;
pub(crate) use self::alternates::is_usable;
pub use self::error::ConfigError;
use self::reading::Places;
pub use self::streams::StreamConfig;
pub use self::values::{
    AdminUsers, ChannelRange, External, Hairpin, PeerRange, PortRange, PortSharing, Realm, Validity,
};
use crate::admin::{AdminChoice, StatusArgs};
use crate::import::ImportArgs;
use crate::limits::{LimitArgs, PeerPorts, RateLimit};
use crate::login::{Login, check_together, parse_secrets};
use crate::secrets::Secrets;
use crate::server::auth::VALIDITY_MAX_DEFAULT;
use crate::server::limits::Limits;
use crate::server::port_set::PortSet;
use crate::server::{Alternates, ChannelNumbers, ExternalAddress, WORKERS_MAX, comes_to_share};

/// Where clients are served when nothing is said: the port of RFC 8656 section 3.1 on every address.
const LISTEN_DEFAULT: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 3478),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 3478),
];
/// The dynamic ports of RFC 6335, as RFC 8656 section 7.2 recommends.
const RELAY_PORTS_DEFAULT: PortRange = PortRange { low: 49_152, high: 65_535 };
/// Short on purpose: every unauthenticated request is answered with it.
const REALM_DEFAULT: &str = "towpath";
/// Most allocations when nothing is said.
pub(crate) const ALLOCATIONS_MAX_DEFAULT: u32 = 10_000;
/// What adds up where flags and file have it both.
const ADDED_UP: [&str; 2] = ["user", "user-file"];
/// Time to drain in seconds: below the 30 that Kubernetes waits after SIGTERM before it kills.
const DRAIN_TIMEOUT_S: u32 = 25;

/// Parses an address to listen on.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write it as ADDRESS:PORT, for example 0.0.0.0:3478 or [::]:3478".to_owned())
}

/// A STUN and TURN relay (RFC 8489, RFC 8656) for clients over UDP, TCP and TLS.
#[derive(Debug, Parser)]
#[command(name = "towpath-relay", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Something else than to serve
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Where clients are served; port 0 takes any free one [default: 0.0.0.0:3478 [::]:3478]
    #[arg(long, value_name = "ADDR:PORT", num_args = 1.., value_parser = listen_address)]
    pub listen: Vec<SocketAddr>,
    /// Where clients are served over TCP
    #[arg(long, value_name = "ADDR:PORT", num_args = 1.., value_parser = listen_address)]
    pub listen_tcp: Vec<SocketAddr>,
    /// Where clients are served over TLS; needs --tls-certificate and --tls-key
    #[arg(long, value_name = "ADDR:PORT", num_args = 1.., value_parser = listen_address)]
    pub listen_tls: Vec<SocketAddr>,
    /// The certificate for TLS as PEM, its own first, then those that lead to its authority
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// The private key of the certificate as PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Most connections over TCP and TLS in all [default: 10000]
    #[arg(long, value_name = "N")]
    pub tcp_connections_max: Option<u32>,
    /// Most of them from one IPv4 address or IPv6 /64 [default: 256]
    #[arg(long, value_name = "N")]
    pub tcp_connections_per_address_max: Option<u32>,
    /// Most KiB that wait for one of them; beyond it the oldest data is dropped [default: 256]
    #[arg(long, value_name = "N")]
    pub tcp_queue_kib: Option<u32>,
    /// Most MiB that wait for all of them together, an equal part of it for each where there are many [default: 768]
    #[arg(long, value_name = "N")]
    pub tcp_queues_mib: Option<u32>,
    /// Realm of the credentials [default: towpath]
    #[arg(long)]
    pub realm: Option<Realm>,
    /// A user; visible in the process list, so better in --user-file
    #[arg(long = "user", value_name = "NAME:PASSWORD", num_args = 1..)]
    pub users: Vec<Login>,
    /// A file with one NAME:PASSWORD or NAME:0xKEY a line; # starts a comment. Also fd:N, or credential:NAME of systemd
    #[arg(long, value_name = "FILE")]
    pub user_file: Option<PathBuf>,
    /// A file with secrets for time-limited user names (EXPIRY:ID), one a line; # starts a comment
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// How far in the future such a name may expire [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub secret_validity_max: Option<Validity>,
    /// Peers to reach although they are not public, for example 10.1.0.0/16; never the relay's own sockets
    #[arg(long = "allow-peer", value_name = "CIDR", num_args = 1..)]
    pub allow_peers: Vec<PeerRange>,
    /// Ports for allocations [default: 49152-65535]
    #[arg(long, value_name = "LOW-HIGH")]
    pub relay_ports: Option<PortRange>,
    /// Whether several allocations may have one port where there are fewer ports than --allocations-max [default: auto]
    #[arg(long, value_enum)]
    pub port_sharing: Option<PortSharing>,
    /// Addresses for allocations, one of each family [default: the one the client sends to]
    #[arg(long = "relay-address", value_name = "ADDR", num_args = 1..)]
    pub relay_addresses: Vec<IpAddr>,
    /// How the address for allocations is called outside a NAT
    #[arg(long = "external-ip", value_name = "PUBLIC[/LOCAL]", num_args = 1..)]
    pub external_ips: Vec<External>,
    /// Which channel numbers clients may bind [default: rfc5766]
    #[arg(long, value_enum)]
    pub channel_numbers: Option<ChannelRange>,
    /// Most allocations in all [default: 10000]
    #[arg(long, value_name = "N")]
    pub allocations_max: Option<u32>,
    /// Most allocations of one user [default: 1000]
    #[arg(long, value_name = "N")]
    pub allocations_per_user_max: Option<u32>,
    /// What clients may reach and take
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Whether clients may reach each other's relayed addresses, and do so inside the relay [default: on]
    #[arg(long, value_enum)]
    pub hairpin: Option<Hairpin>,
    /// How long allocations may go on after SIGTERM; 0 ends at once [default: 25]
    #[arg(long, value_name = "SECONDS")]
    pub drain_timeout: Option<u32>,
    /// Where new clients over UDP and TCP are sent while the relay drains, one of each family [default: they get 508]
    #[arg(long = "alternate-server", value_name = "ADDR:PORT", num_args = 1.., value_parser = listen_address)]
    pub alternate_servers: Vec<SocketAddr>,
    /// Where new clients over TLS are sent, and the name in the certificate there where it is another [default: they get 508]
    #[arg(long = "alternate-server-tls", value_name = "ADDR:PORT[/NAME]", num_args = 1..)]
    pub alternate_servers_tls: Vec<TlsAlternate>,
    /// Loops that serve clients, each on a thread of its own [default: one for each core that the relay may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(WORKERS_MAX)))]
    pub workers: Option<u16>,
    /// Where metrics, probes and the status page are, or off [default: 127.0.0.1:9641]
    #[arg(long, value_name = "ADDR:PORT")]
    pub admin: Option<AdminChoice>,
    /// Whether user names are among what is shown there [default: on]
    #[arg(long, value_enum)]
    pub admin_users: Option<AdminUsers>,
    /// A TOML file with the same names as these flags; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read flags and files, print what would run, and end
    #[arg(long)]
    pub check_config: bool,
    /// Give up what is not needed to serve: privileges, system calls, files
    #[arg(long, value_enum, default_value = "on")]
    pub confine: Switch,
    /// How packets move
    #[command(flatten)]
    pub engine: EngineArgs,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Names of the flags that were given, where [`Args::from_words`] has read them.
    #[arg(skip)]
    pub given: BTreeSet<String>,
}

impl Args {
    /// Reads a command line, the program's name first, and remembers which flags were in it.
    ///
    /// # Errors
    /// As `try_parse_from`; help and version count as errors.
    pub fn from_words(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(words)?;
        let mut args = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        let own = Self::command();
        let given = own.get_arguments().filter(|argument| {
            matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
        });
        args.given = given.filter_map(|argument| argument.get_long()).map(str::to_owned).collect();
        Ok(args)
    }
}

/// What the program does besides serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show what a running relay does: allocations, rates, what is lost and why, users
    Status(StatusArgs),
    /// Turn a configuration of coturn into one of this relay, and say what has no equivalent
    Import(ImportArgs),
}

/// The TOML file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    listen: Vec<SocketAddr>,
    listen_tcp: Vec<SocketAddr>,
    listen_tls: Vec<SocketAddr>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tcp_connections_max: Option<u32>,
    tcp_connections_per_address_max: Option<u32>,
    tcp_queue_kib: Option<u32>,
    tcp_queues_mib: Option<u32>,
    realm: Option<Realm>,
    user: Vec<Login>,
    user_file: Option<PathBuf>,
    secret_file: Option<PathBuf>,
    secret_validity_max: Option<Validity>,
    allow_peer: Vec<PeerRange>,
    relay_ports: Option<PortRange>,
    port_sharing: Option<PortSharing>,
    relay_address: Option<Spanned<Vec<IpAddr>>>,
    external_ip: Vec<External>,
    channel_numbers: Option<ChannelRange>,
    allocations_max: Option<u32>,
    allocations_per_user_max: Option<u32>,
    deny_peer: Vec<PeerRange>,
    deny_peer_ports: Option<PeerPorts>,
    allocations_per_source_max: Option<u32>,
    permissions_max: Option<u32>,
    channels_max: Option<u32>,
    new_peers_per_user: Option<u32>,
    new_peers_per_source: Option<u32>,
    new_peers_total: Option<u32>,
    permissions_per_user_max: Option<u32>,
    permissions_total_max: Option<u32>,
    channels_per_user_max: Option<u32>,
    channels_total_max: Option<u32>,
    allocation_rate: Option<RateLimit>,
    user_rate: Option<RateLimit>,
    source_rate: Option<RateLimit>,
    total_rate: Option<RateLimit>,
    unpaid_replies: Option<u32>,
    strict_reflection: bool,
    hairpin: Option<Hairpin>,
    drain_timeout: Option<u32>,
    alternate_server: Option<Spanned<Vec<SocketAddr>>>,
    alternate_server_tls: Option<Spanned<Vec<TlsAlternate>>>,
    workers: Option<Spanned<u16>>,
    admin: Option<AdminChoice>,
    admin_users: Option<AdminUsers>,
    /// Where everything is that the file sets.
    #[serde(skip)]
    places: Places,
}

/// What was asked for, from flags and files.
#[derive(Debug)]
pub struct Config {
    /// Where clients are served.
    pub listen: Vec<SocketAddr>,
    /// Nobody asked for these listeners by name, so that one may be missing where there is no IPv6.
    pub listen_is_default: bool,
    /// Where clients are served over TCP and TLS, and within which bounds.
    pub streams: StreamConfig,
    /// The realm.
    pub realm: Realm,
    /// Users; a later one of the same name wins.
    pub users: Vec<Login>,
    /// Secrets for time-limited names; all are accepted.
    pub secrets: Vec<Zeroizing<String>>,
    /// How far in the future such a name may expire.
    pub secret_validity_max: Duration,
    /// Exceptions from the refused peers.
    pub allow_peers: Vec<IpNet>,
    /// Ports for allocations.
    pub relay_ports: RangeInclusive<u16>,
    /// Whether several allocations may have one of them.
    pub port_sharing: bool,
    /// Addresses for allocations.
    pub relay_addresses: Vec<IpAddr>,
    /// Addresses as they are called outside.
    pub external: Vec<ExternalAddress>,
    /// Which channel numbers clients may bind.
    pub channel_numbers: ChannelNumbers,
    /// Most allocations in all.
    pub allocations_max: u32,
    /// Most allocations of one user.
    pub allocations_per_user_max: u32,
    /// Peers that are refused whatever is allowed.
    pub deny_peers: Vec<IpNet>,
    /// Peer ports that are refused.
    pub deny_peer_ports: PortSet,
    /// Everything else that is limited.
    pub limits: Limits,
    /// Whether clients of this relay reach each other inside it.
    pub hairpin: bool,
    /// How long allocations may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Where new clients are sent meanwhile.
    pub alternates: Alternates,
    /// Every file that was read, as it was named.
    pub files: Vec<PathBuf>,
    /// How many loops serve clients; one for each core when nothing was said.
    pub workers: Option<u16>,
    /// Where metrics, probes and the status page are; the default when nothing was said.
    pub admin: Option<AdminChoice>,
    /// Whether user names are among what is shown there.
    pub admin_users: bool,
    /// Settings of the file that have no effect, because flags say otherwise.
    pub overridden: Vec<String>,
    /// Networks that were written as an address inside them, in sentences: perhaps that address alone was meant.
    pub host_bits: Vec<String>,
}

impl Config {
    /// Merges flags and files: single values of flags replace those of the file, lists of flags replace its lists,
    /// users of all sources count.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        Self::load_again(args, &mut Secrets::default())
    }

    /// As [`Config::load`], by someone who has read the same `secrets` before.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_again(args: &Args, secrets: &mut Secrets) -> Result<Self, ConfigError> {
        let mut file = args.config.as_deref().map(reading::read).transpose()?.unwrap_or_default();
        let limits = args.limits.clone().or(file.limits());
        args.engine.check().map_err(ConfigError::Usage)?;
        let streams = StreamConfig::merge(args, &file)?;
        let alternates = alternates::merge(args, &file)?;
        let mut users = file.user;
        for path in file.user_file.iter().chain(&args.user_file) {
            users.extend(read_user_file(path, secrets)?);
        }
        let user_files = file.user_file.iter().chain(&args.user_file);
        users.extend(args.users.iter().cloned());
        check_together(&users)?;
        let secret_file = args.secret_file.as_ref().or(file.secret_file.as_ref());
        let secret_files = user_files.chain(secret_file);
        let files = args.config.iter().chain(secret_files).cloned().chain(streams.files()).collect();
        let shared_secrets = secret_file.map_or(Ok(Vec::new()), |path| read_secret_file(path, secrets))?;
        let listen = first_of(args.listen.clone(), file.listen);
        let of_flags =
            |result: Result<(), String>| result.map_err(|text| ConfigError::Usage(format!("--{text}")));
        of_flags(check_relay_addresses(&args.relay_addresses))?;
        let file_addresses = file.relay_address.map(Spanned::into_inner).unwrap_or_default();
        let relay_addresses = first_of(args.relay_addresses.clone(), file_addresses).unwrap_or_default();
        let ports = args.relay_ports.or(file.relay_ports).unwrap_or(RELAY_PORTS_DEFAULT);
        let external = first_of(args.external_ips.clone(), file.external_ip).unwrap_or_default();
        let allow_peers = first_of(args.allow_peers.clone(), file.allow_peer).unwrap_or_default();
        let allocations_per_user_max =
            args.allocations_per_user_max.or(file.allocations_per_user_max).unwrap_or(1_000);
        let overridden = file.places.names().filter(|name| args.given.contains(*name));
        let overridden = overridden.filter(|name| !ADDED_UP.contains(name)).map(str::to_owned).collect();
        let admin = args.admin.or(file.admin);
        let of_admin = admin.and_then(AdminChoice::address).map(|address| ("admin", address));
        let named =
            |name, addresses: &[SocketAddr]| addresses.iter().map(move |&address| (name, address)).collect();
        let datagrams: Vec<_> = named("listen", listen.as_deref().unwrap_or_default());
        let tcp: Vec<_> = named("listen-tcp", &streams.tcp);
        let connections = [tcp, named("listen-tls", &streams.tls), of_admin.into_iter().collect()].concat();
        if let Some((name, text)) =
            listeners::conflict(&datagrams).or_else(|| listeners::conflict(&connections))
        {
            return Err(file.places.error(args, name, &text));
        }
        Ok(Self {
            overridden,
            listen_is_default: listen.is_none(),
            listen: listen.unwrap_or_else(|| LISTEN_DEFAULT.to_vec()),
            streams,
            realm: args.realm.clone().or(file.realm).unwrap_or_else(|| Realm(REALM_DEFAULT.to_owned())),
            users,
            secrets: shared_secrets,
            secret_validity_max: args
                .secret_validity_max
                .or(file.secret_validity_max)
                .map_or(VALIDITY_MAX_DEFAULT, |Validity(validity)| validity),
            host_bits: of_ranges(&allow_peers, "allow-peer")
                .chain(of_ranges(&limits.deny_peers, "deny-peer"))
                .collect(),
            allow_peers: allow_peers.into_iter().map(|PeerRange(net)| net.trunc()).collect(),
            relay_ports: ports.low..=ports.high,
            port_sharing: args.port_sharing.or(file.port_sharing) != Some(PortSharing::Off),
            relay_addresses,
            external: external.into_iter().map(|External(external)| external).collect(),
            channel_numbers: match args.channel_numbers.or(file.channel_numbers) {
                Some(ChannelRange::Rfc8656) => ChannelNumbers::Rfc8656,
                Some(ChannelRange::Rfc5766) | None => ChannelNumbers::Rfc5766,
            },
            allocations_max: args.allocations_max.or(file.allocations_max).unwrap_or(ALLOCATIONS_MAX_DEFAULT),
            allocations_per_user_max,
            deny_peer_ports: limits.deny_ports(),
            limits: limits.limits(allocations_per_user_max).map_err(ConfigError::Usage)?,
            deny_peers: limits.deny_peers.into_iter().map(|PeerRange(net)| net.trunc()).collect(),
            hairpin: args.hairpin.or(file.hairpin) != Some(Hairpin::Off),
            drain_timeout: Duration::from_secs(
                args.drain_timeout.or(file.drain_timeout).unwrap_or(DRAIN_TIMEOUT_S).into(),
            ),
            alternates,
            files,
            workers: args.workers.or(file.workers.map(Spanned::into_inner)),
            admin,
            admin_users: args.admin_users.or(file.admin_users) != Some(AdminUsers::Off),
        })
    }
}

impl Config {
    /// Whether several allocations may come to have one port.
    #[must_use]
    pub fn shares_ports(&self) -> bool {
        comes_to_share(self.port_sharing, &self.relay_ports, self.allocations_max)
    }
}

fn first_of<T>(flags: Vec<T>, file: Vec<T>) -> Option<Vec<T>> {
    [flags, file].into_iter().find(|list| !list.is_empty())
}

/// What is said of ranges that have bits beyond their prefix.
fn of_ranges(ranges: &[PeerRange], name: &'static str) -> impl Iterator<Item = String> {
    ranges.iter().filter(|PeerRange(net)| *net != net.trunc()).map(move |PeerRange(net)| {
        let (network, address) = (net.trunc(), net.addr());
        format!("{name} {net} is taken for the whole network {network}; write {network}, or {address} for this one alone")
    })
}

/// Relay sockets are bound to them.
fn check_relay_addresses(addresses: &[IpAddr]) -> Result<(), String> {
    if addresses.iter().any(|address| address.is_unspecified() || address.is_multicast()) {
        return Err("relay-address has to be an address of this machine, not a wildcard or a group".into());
    }
    one_of_each_family("relay-address", addresses.iter().map(IpAddr::is_ipv4))
}

fn one_of_each_family(name: &str, are_ipv4: impl Iterator<Item = bool>) -> Result<(), String> {
    let (v4, v6): (Vec<bool>, Vec<bool>) = are_ipv4.partition(|&is_ipv4| is_ipv4);
    if v4.len() > 1 || v6.len() > 1 {
        return Err(format!("{name} takes one address of each family"));
    }
    Ok(())
}

fn read_user_file(path: &Path, secrets: &mut Secrets) -> Result<Vec<Login>, ConfigError> {
    let text = secrets.read(path)?;
    let mut users = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        users.push(line.parse().map_err(|text| ConfigError::Line {
            path: path.to_owned(),
            line: index + 1,
            text,
        })?);
    }
    Ok(users)
}

fn read_secret_file(path: &Path, secrets: &mut Secrets) -> Result<Vec<Zeroizing<String>>, ConfigError> {
    parse_secrets(path, &secrets.read(path)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::login::Proof;

    fn load(flags: &[&str]) -> Result<Config, String> {
        let flags = std::iter::once("towpath-relay").chain(flags.iter().copied());
        let args = Args::from_words(flags.map(OsString::from)).map_err(|error| error.to_string())?;
        Config::load(&args).map_err(|error| error.to_string())
    }

    fn file(content: &str, mode: u32) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn password(user: &Login) -> &str {
        match &user.proof {
            Proof::Password(password) => password,
            Proof::Keys(_) => panic!("{user:?} has no password"),
        }
    }

    #[test]
    fn nothing_said_is_enough() {
        let config = load(&[]).unwrap();
        assert_eq!(config.listen, LISTEN_DEFAULT);
        assert_eq!((config.realm.0.as_str(), config.relay_ports), ("towpath", 49_152..=65_535));
        assert!(config.users.is_empty() && config.allow_peers.is_empty());
    }

    #[test]
    fn flags_win_over_the_file_and_users_add_up() {
        let users = file("# comment\n\nbob:b:b\n", 0o600);
        let config = file(
            &format!(
                "listen = [\"127.0.0.1:1\"]\nrealm = \"file\"\nuser = [\"alice:a\"]\nuser-file = {:?}\n\
                 allow-peer = [\"10.0.0.0/8\", \"::1\"]\nrelay-ports = \"1000-2000\"\nallocations-max = 5\n",
                users.path()
            ),
            0o600,
        );
        let path = config.path().to_str().unwrap();
        let merged =
            load(&["--config", path, "--realm", "flag", "--user", "carol:c", "--relay-ports", "3000-3001"]);
        let merged = merged.unwrap();
        assert_eq!((merged.realm.0.as_str(), merged.relay_ports), ("flag", 3000..=3001));
        assert_eq!(merged.listen, ["127.0.0.1:1".parse().unwrap()]);
        let users: Vec<_> = merged.users.iter().map(|user| (user.name.as_str(), password(user))).collect();
        assert_eq!(users, [("alice", "a"), ("bob", "b:b"), ("carol", "c")]);
        assert_eq!(merged.allow_peers, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        assert_eq!(merged.allocations_max, 5);
    }

    #[test]
    fn a_network_that_is_written_as_an_address_in_it_is_taken_whole_and_told() {
        let flags =
            ["--allow-peer", "10.1.2.3/16", "10.1.2.3", "10.2.0.0/16", "--deny-peer", "2001:db8::1/64"];
        let config = load(&flags).unwrap();
        assert_eq!(
            config.allow_peers,
            ["10.1.0.0/16", "10.1.2.3/32", "10.2.0.0/16"].map(|net| net.parse().unwrap())
        );
        assert_eq!(config.deny_peers, ["2001:db8::/64".parse().unwrap()]);
        assert_eq!(
            config.host_bits,
            [
                "allow-peer 10.1.2.3/16 is taken for the whole network 10.1.0.0/16; write 10.1.0.0/16, or 10.1.2.3 for this \
                 one alone",
                "deny-peer 2001:db8::1/64 is taken for the whole network 2001:db8::/64; write 2001:db8::/64, or 2001:db8::1 \
                 for this one alone",
            ]
        );
    }

    #[test]
    fn what_flags_take_the_effect_of_is_known_by_name() {
        let users = file("bob:b\n", 0o600);
        let text = format!(
            "drain-timeout = 600\nallow-peer = [\"10.0.0.0/8\"]\nuser-file = {:?}\npermissions-max = 9\nworkers = 2\n",
            users.path()
        );
        let config = file(&text, 0o600);
        let path = config.path().to_str().unwrap();
        let overridden = |flags: &[&str]| {
            let words = [&["towpath-relay", "--config", path], flags].concat();
            let args = Args::from_words(words.into_iter().map(OsString::from)).unwrap();
            Config::load(&args).unwrap().overridden
        };
        assert_eq!(overridden(&["--realm", "flag"]), [""; 0]);
        let flags = "--drain-timeout 600 --allow-peer ::1 --permissions-max 8 --user carol:c --admin off";
        let flags: Vec<&str> = [flags, "--user-file", users.path().to_str().unwrap()]
            .into_iter()
            .flat_map(|words| words.split(' '))
            .collect();
        assert_eq!(overridden(&flags), ["allow-peer", "drain-timeout", "permissions-max"]);
    }

    #[test]
    fn errors_in_files_name_file_line_and_remedy() {
        for (content, line, hint) in [
            ("realm = \"a\"\nrelay-ports = \"9\"\n", 2, "LOW-HIGH"),
            ("\n\nusers = []\n", 3, "there is no setting users; user is the one most like it"),
            ("Listen_TCP = []\n", 1, "listen-tcp is the one most like it"),
            ("colour = 1\n", 1, "there is no setting colour: towpath-relay --help"),
            ("realm = \"a\"\n\nrealm = \"b\"\n", 3, "this name was there before"),
            (
                "listen = \"0.0.0.0:3478\"\n",
                1,
                "listen has to be a list in brackets, and is a text; for example: listen = [\"0.0.0.0:3478\", \"[::]:3478\"]",
            ),
            (
                "\nallocations-max = \"10\"\n",
                2,
                "a number without quotes, and is a text; for example: allocations-max = 10000",
            ),
            ("strict-reflection = 1\n", 1, "true or false, and is a number"),
            ("\nlisten = [\n  \"127.0.0.1:1\",\n  \"127.0.0.1:1\",\n]\n", 2, "listen has 127.0.0.1:1 twice"),
            ("listen-tcp = [\"127.0.0.1:1\"]\nadmin = \"127.0.0.1:1\"\n", 2, "another port"),
            (
                "realm = \"a\"\nlisten-tls = [\"127.0.0.1:1\"]\n",
                2,
                "listen-tls needs a certificate: add tls-certificate",
            ),
            ("tcp-queue-kib = 1\n", 1, "128 to 16384"),
            ("\ntcp-queues-mib = 1\n", 2, "at least 645"),
            ("\nallow-peer = [\n  \"10.0.0.0/8\",\n  \"10.0.0.0/33\",\n]\n", 2, "\"10.0.0.0/33\" is no"),
            ("listen = [\"127.0.0.1\"]\n", 1, "socket address"),
            ("realm = \"\"\n", 1, "1 to 255 bytes"),
            ("external-ip = [\"8.8.8.8/::1\"]\n", 1, "same family"),
            ("user = [\"alice\"]\n", 1, "NAME:PASSWORD"),
            ("\nrelay-address = [\"::\"]\n", 2, "wildcard"),
            ("\n\nalternate-server = [\"192.0.2.7:1\", \"192.0.2.8:1\"]\n", 3, "one address of each family"),
            ("\nalternate-server-tls = [\"192.0.2.7:0\"]\n", 2, "address and port"),
            ("alternate-server-tls = [\"relay2.example:5349\"]\n", 1, "ADDR:PORT/NAME"),
            ("\nworkers = 0\n", 2, "at least 1"),
            ("workers = 70000\n", 1, ""),
            ("realm = \n", 1, ""),
        ] {
            let config = file(content, 0o600);
            let path = config.path().to_str().unwrap();
            let error = load(&["--config", path]).unwrap_err();
            assert!(error.starts_with(&format!("{path}:{line}: ")) && error.contains(hint), "{error}");
        }
        // Not even a password where none should be.
        let config = file("realm = \"a\"\nuser = \"alice:hunter2\"\n", 0o600);
        let error = load(&["--config", config.path().to_str().unwrap()]).unwrap_err();
        assert!(
            error.contains(":2: user has to be a list in brackets") && !error.contains("hunter2"),
            "{error}"
        );
        let users = file("alice:a\nbob\n", 0o600);
        let path = users.path().to_str().unwrap();
        let error = load(&["--user-file", path]).unwrap_err();
        assert_eq!(error, format!("{path}:2: a user is NAME:PASSWORD, for example alice:secret"));
    }

    #[test]
    fn passwords_that_others_can_read_are_refused() {
        let users = file("alice:a\n", 0o640);
        let path = users.path().to_str().unwrap();
        let error = load(&["--user-file", path]).unwrap_err();
        assert!(error.contains(&format!("chmod 600 {path}")), "{error}");
        let config = file("user = [\"alice:a\"]\n", 0o644);
        assert!(load(&["--config", config.path().to_str().unwrap()]).unwrap_err().contains("chmod 600"));
        let secrets = file("north\n", 0o644);
        let path = secrets.path().to_str().unwrap();
        assert!(load(&["--secret-file", path]).unwrap_err().contains(&format!("chmod 600 {path}")));
        let harmless = file("realm = \"a\"\n", 0o644);
        assert!(load(&["--config", harmless.path().to_str().unwrap()]).is_ok());
        assert!(
            load(&["--config", "/nonexistent/relay.toml"]).unwrap_err().contains("/nonexistent/relay.toml")
        );
    }

    #[test]
    fn secrets_come_from_the_flag_or_the_file() {
        let (north, south) = (file("north\n", 0o600), file("# old\nsouth\neast\n", 0o600));
        let config =
            file(&format!("secret-file = {:?}\nsecret-validity-max = \"1h\"\n", south.path()), 0o644);
        let config = config.path().to_str().unwrap();
        let secrets = |flags: &[&str]| {
            let config = load(flags).unwrap();
            let secrets = config.secrets.iter().map(|secret| secret.to_string()).collect::<Vec<_>>();
            (secrets, config.secret_validity_max.as_secs())
        };
        assert_eq!(secrets(&[]), (vec![], 86_400));
        assert_eq!(secrets(&["--config", config]), (vec!["south".into(), "east".into()], 3600));
        let path = north.path().to_str().unwrap();
        let merged = secrets(&["--config", config, "--secret-file", path, "--secret-validity-max", "2days"]);
        assert_eq!(merged, (vec!["north".into()], 172_800));
    }

    #[test]
    fn flags_that_make_no_sense_say_what_would() {
        for (flags, hint) in [
            (&["--relay-ports", "5-4"][..], "not above"),
            (&["--relay-ports", "0-4"], "at least 1"),
            (&["--user", "alice"], "NAME:PASSWORD"),
            (&["--user", ":x"], "empty"),
            (&["--external-ip", "host"], "PUBLIC/LOCAL"),
            (&["--admin", "9641"], "ADDRESS:PORT"),
            (&["--relay-address", "0.0.0.0"], "wildcard"),
            (&["--relay-address", "192.0.2.1", "192.0.2.2"], "one address of each family"),
            (&["--io", "suspend", "--completions", "inline"], "--io uring"),
            (&["--listen", "3478"], "--listen"),
            (&["--user", "alice:0x12"], "32 hexadecimal digits"),
            (&["--secret-file", "/nonexistent"], "/nonexistent"),
            (&["--secret-validity-max", "0s"], "24h"),
            (&["--secret-validity-max", "day"], "24h"),
            (&["--alternate-server", "0.0.0.0:3478"], "another relay's address"),
            (&["--alternate-server", "192.0.2.7:1", "192.0.2.8:1"], "one address of each family"),
            (&["--alternate-server-tls", "192.0.2.7:5349", "192.0.2.8:5349"], "one address of each family"),
            (&["--alternate-server-tls", "192.0.2.7:5349/*"], "ADDR:PORT/NAME"),
            (&["--user-file", "fd:x"], "fd:3"),
            (&["--workers", "0"], "1..=256"),
            (&["--listen", "127.0.0.1:1", "0.0.0.0:1"], "--listen has 0.0.0.0:1, which is every address"),
            (
                &["--listen-tcp", "127.0.0.1:1", "--admin", "127.0.0.1:1"],
                "--admin has 127.0.0.1:1, where listen-tcp",
            ),
        ] {
            let error = load(flags).unwrap_err();
            assert!(error.contains(hint), "{flags:?}: {error}");
        }
    }
}
