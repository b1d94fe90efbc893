//! The tunnel's configuration file: wg-quick's format, with the relay in comments that `wg` does not see, or the same as TOML.
//!
//! ```ini
//! [Interface]
//! PrivateKeyFile = wg0.key
//! Address = 10.0.0.1/24, fd00::1/64
//! #towpath: Relay = turn:relay.example:3478
//! #towpath: RelayUsername = alice
//! #towpath: RelayPasswordFile = wg0.relay-password
//!
//! [Peer]
//! PublicKey = …
//! AllowedIPs = 10.0.0.2/32
//! Endpoint = 192.0.2.1:51820
//! ```

mod document;
mod fixed;
mod host;
mod login;
mod ours;
mod parse;
mod relay;
mod value;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use zeroize::Zeroizing;

pub use self::fixed::Fixed;
pub use self::host::{Hooks, HostSection, Table};
pub use self::login::{Credentials, Login, LoginKind};
pub use self::ours::{Lines, NoLines};
pub use self::relay::RelayConfig;
pub use self::value::{Endpoint, Host, Transport};
use crate::tunnel::key::{KEY_LEN, PublicKey, SecretKey};
use crate::tunnel::marking::Marking;
use crate::tunnel::paths::Policy;

/// MTU when the file says nothing, bytes: what every IPv6 link carries (RFC 8200 section 5).
pub const DEFAULT_MTU: u16 = 1_280;
/// The largest MTU, bytes.
pub const MTU_MAX: u16 = 9_000;
/// The smallest MTU with IPv6 addresses, bytes.
pub const MTU_MIN_IPV6: u16 = 1_280;
/// The smallest MTU without, bytes.
pub const MTU_MIN_IPV4: u16 = 576;
/// No configuration or key file is longer than this, bytes: 65,536 peers fit several times.
const FILE_MAX: u64 = 64 << 20;

/// Where configurations are kept, and how the names of files end there.
const PLACES: [(&str, &str); 3] =
    [("/etc/towpath", ".conf"), ("/etc/towpath", ".toml"), ("/etc/wireguard", ".conf")];

/// What a configuration file says.
#[derive(Debug)]
pub struct Config {
    /// Our private key; zeros when a hook is to set it.
    pub private_key: SecretKey,
    /// Our addresses inside the tunnel.
    pub addresses: Vec<IpNet>,
    /// UDP port; zero lets the kernel choose.
    pub listen_port: u16,
    /// MTU of the interface, bytes, unless it is found out.
    pub mtu: u16,
    /// The MTU is that of the routes, less what stands around packets.
    pub mtu_auto: bool,
    /// DSCP and ECN outside.
    pub marking: Marking,
    /// What is to be done to the host.
    pub host: HostSection,
    /// The relays, in the order in which they are tried.
    pub relays: Vec<RelayConfig>,
    /// The peers, in the order of the file.
    pub peers: Vec<PeerSection>,
}

/// A password that does not show itself and is wiped when dropped.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// For tests; others read it from a file.
    #[cfg(test)]
    pub(crate) fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The password, for the protocol.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(…)")
    }
}

/// One `[Peer]` section.
#[derive(Debug)]
pub struct PeerSection {
    /// Line of its heading.
    pub line: usize,
    /// Who it is.
    pub public_key: PublicKey,
    /// A secret shared beforehand.
    pub preshared_key: Option<SecretKey>,
    /// Prefixes it may send from and that are sent to it.
    pub allowed_ips: Vec<IpNet>,
    /// Where it is reached, and on which line that stands.
    pub endpoint: Option<(Endpoint, usize)>,
    /// By which ways it may be reached.
    pub path: Policy,
    /// Seconds between keepalives; zero for none.
    pub persistent_keepalive: u16,
}

/// What is wrong with a configuration, where, and how to mend it. Never holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, if one line is to blame.
    pub line: Option<usize>,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        write!(formatter, ": {}", self.problem)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads a configuration and the files it names. The second result holds warnings: things that work, but should
    /// be looked at.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and remedy.
    pub fn load(file: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let mut warnings = Vec::new();
        let (text, world_readable) =
            read(file).map_err(|problem| ConfigError { file: file.into(), line: None, problem })?;
        let is_toml = file.extension().is_some_and(|end| end == "toml");
        let parse = if is_toml { document::parse } else { parse::parse };
        let config = parse(file, &text, &mut warnings)?;
        if !config.host.hooks.is_empty() && everyone_can_write(file) {
            let problem = format!(
                "everyone can write the commands that are run from it; run: chmod o-w {}",
                file.display()
            );
            return Err(ConfigError { file: file.into(), line: None, problem });
        }
        if world_readable && holds_secret(&text) {
            warnings
                .insert(0, format!("everyone can read the keys in it; run: chmod 600 {}", file.display()));
        }
        Ok((config, warnings))
    }

    /// Wipes the private key and the preshared keys, for when the tunnel has its own.
    pub fn forget_keys(&mut self) {
        self.private_key = SecretKey::new([0; KEY_LEN]);
        self.peers.iter_mut().for_each(|peer| peer.preshared_key = None);
    }

    /// Whether IPv6 is used inside the tunnel.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        let allowed = self.peers.iter().flat_map(|peer| &peer.allowed_ips);
        self.addresses.iter().chain(allowed).any(|net| matches!(net, IpNet::V6(_)))
    }
}

fn everyone_can_write(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.mode() & 0o002 != 0)
}

/// Whether a configuration has a key in it, not only the name of a file that has one.
fn holds_secret(text: &str) -> bool {
    let keys =
        text.lines().filter_map(|line| line.split_once('=')).map(|(key, _)| document::bare(key.trim()));
    keys.into_iter().any(|key| key == "privatekey" || key == "presharedkey")
}

/// The configuration that is meant: a file by its path, or by a name that ends as one; any other name is of one where
/// configurations are kept. The present directory is not looked into for that: somebody else may have put a file there, and
/// commands are run from it.
///
/// # Errors
/// When there is none of this name.
pub fn find(given: &Path) -> Result<PathBuf, ConfigError> {
    if !is_name(given) {
        return Ok(given.to_owned());
    }
    let kept = PLACES.map(|(folder, ending)| {
        let mut name = given.as_os_str().to_owned();
        name.push(ending);
        Path::new(folder).join(name)
    });
    if let Some(file) = kept.iter().find(|file| file.exists()) {
        return Ok(file.clone());
    }
    let [first, second, third] = kept.map(|file| file.display().to_string());
    let beside = ["", ".conf", ".toml"].map(|ending| format!("./{}{ending}", given.display()));
    let here = beside.iter().find(|file| Path::new(file).is_file());
    let here = here.map_or_else(String::new, |file| format!("; the one in this directory is {file}"));
    Err(ConfigError {
        file: given.into(),
        line: None,
        problem: format!(
            "there is none of this name: write {first}, {second} or {third}, or give the path of a file{here}"
        ),
    })
}

/// Whether this is a name without a path and without the ending of a configuration.
#[must_use]
pub fn is_name(given: &Path) -> bool {
    let has_ending = given.extension().is_some_and(|end| end == "conf" || end == "toml");
    !has_ending && given.file_name() == Some(given.as_os_str())
}

/// The interface that is meant: by its name, or by the configuration it was brought up with.
///
/// # Errors
/// When the kernel would not take the name.
pub fn interface_of(given: &Path) -> Result<String, ConfigError> {
    if !is_name(given) {
        return interface_name(given);
    }
    // The whole of it, with whatever dots are in it.
    let mut name = given.as_os_str().to_owned();
    name.push(".conf");
    interface_name(Path::new(&name))
}

/// The interface a configuration file is for: the name of the file without its ending.
///
/// # Errors
/// When the kernel would not take the name.
pub fn interface_name(file: &Path) -> Result<String, ConfigError> {
    /// IFNAMSIZ without the terminating zero.
    const NAME_MAX: usize = 15;
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let fits = !stem.is_empty() && stem.len() <= NAME_MAX && stem != "." && stem != "..";
    if fits && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_=+.-".contains(&byte)) {
        return Ok(stem.to_owned());
    }
    Err(ConfigError {
        file: file.into(),
        line: None,
        problem: format!(
            "the interface is named after the file, and {stem:?} is no interface name: rename the file to 1 to \
             {NAME_MAX} letters, digits or _=+.- and .conf, for example wg0.conf"
        ),
    })
}

/// Whether an endpoint may be sent to: not a group, not nobody, and with a port.
///
/// # Errors
/// What is wrong with it.
pub fn check_endpoint(address: SocketAddr) -> Result<(), String> {
    let ip = address.ip();
    let broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
    if address.port() == 0 {
        return Err(format!("{address} has port 0; give the peer's ListenPort"));
    }
    if ip.is_unspecified() || ip.is_multicast() || broadcast {
        return Err(format!("{ip} is not the address of one host; give the peer's unicast address"));
    }
    Ok(())
}

/// The content of a text file, and whether everyone can read it.
fn read(file: &Path) -> Result<(Zeroizing<String>, bool), String> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("cannot be read: {error}; write the path of an existing file")
        }
        _ => format!("cannot be read: {error}"),
    };
    let opened = File::open(file).map_err(cannot)?;
    let metadata = opened.metadata().map_err(cannot)?;
    let bytes = read_whole(opened, metadata.len()).map_err(cannot)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("is longer than {FILE_MAX} bytes; this is not a configuration or key file"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    // Only what lies on a disk has a meaningful mode; /dev/stdin and pipes do not.
    let world_readable = metadata.is_file() && metadata.mode() & 0o007 != 0;
    Ok((Zeroizing::new(text.to_owned()), world_readable))
}

/// The first [`FILE_MAX`] bytes of a file and one more, if there are so many. Memory that grows would leave copies of keys behind.
fn read_whole(mut file: File, expected: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    const AT_FIRST: u64 = 4 << 10;
    let mut capacity = (expected + 1).clamp(AT_FIRST, FILE_MAX + 1) as usize;
    let (mut bytes, mut len) = (Zeroizing::new(vec![0; capacity]), 0);
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if len == capacity {
            if len as u64 > FILE_MAX {
                break;
            }
            capacity = (2 * capacity).min(FILE_MAX as usize + 1);
            let mut larger = Zeroizing::new(vec![0; capacity]);
            larger[..len].copy_from_slice(&bytes);
            bytes = larger;
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}
