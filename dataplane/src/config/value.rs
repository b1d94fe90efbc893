//! The values of a configuration file, one function for each kind. Errors say what would be right.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs as _};

use ipnet::IpNet;

use crate::netlink::Handle;

/// Addresses of one name that are of use.
const ADDRESSES_MAX: usize = 16;

/// A host as it is written: an address, or a name that is looked up at start and when nobody answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// An IPv6 address, and the interface or its number that it is reached by (RFC 4007 section 11): what `fe80::1` means
    /// depends on that.
    Scoped(Ipv6Addr, String),
    /// A name.
    Name(String),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The UDP port.
    pub port: u16,
}

impl Endpoint {
    /// Whether it may have another address later than now.
    #[must_use]
    pub fn may_move(&self) -> bool {
        matches!(self.host, Host::Name(_) | Host::Scoped(..))
    }

    /// The address; looks a name up, which can take seconds, and takes the first answer.
    ///
    /// # Errors
    /// When the name has no address or nobody can be asked.
    pub fn resolve(&self) -> io::Result<SocketAddr> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        self.addresses()?.first().copied().ok_or_else(none)
    }

    /// The first sixteen addresses; looks a name up, which can take seconds.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.host {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, self.port)]),
            Host::Scoped(address, interface) => {
                let index = match interface.parse() {
                    Ok(number) => number,
                    Err(_) => Handle::open()?.link_index(interface)?,
                };
                Ok(vec![SocketAddrV6::new(*address, self.port, 0, index).into()])
            }
            Host::Name(name) => {
                Ok((name.as_str(), self.port).to_socket_addrs()?.take(ADDRESSES_MAX).collect())
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => write!(formatter, "{}", SocketAddr::new(*address, self.port)),
            Host::Scoped(address, interface) => write!(formatter, "[{address}%{interface}]:{}", self.port),
            Host::Name(name) => write!(formatter, "{name}:{}", self.port),
        }
    }
}

/// `HOST:PORT` or `[IPV6]:PORT`; the port may be missing when there is a default.
pub(super) fn endpoint(text: &str, default_port: Option<u16>) -> Result<Endpoint, String> {
    const WANTED: &str = "write HOST:PORT, and an IPv6 address in brackets, for example 192.0.2.1:51820, \
                          vpn.example:51820 or [2001:db8::1]:51820";
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("{} has no port; {WANTED}", shown(text)));
    }
    let bad = || format!("{} is not an endpoint; {WANTED}", shown(text));
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(bad)?) };
            let host = match address.split_once('%') {
                None => Host::Address(IpAddr::V6(address.parse().map_err(|_| bad())?)),
                Some((address, interface)) if is_interface(interface) => {
                    Host::Scoped(address.parse().map_err(|_| bad())?, interface.to_owned())
                }
                Some(_) => return Err(bad()),
            };
            (host, port)
        }
        None => {
            let (host, port) = text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            (host.parse().map_or_else(|_| Host::Name(host.to_owned()), Host::Address), port)
        }
    };
    if let Host::Name(name) = &host
        && !is_host_name(name)
    {
        return Err(bad());
    }
    let port = match port {
        Some(port) => port.parse().map_err(|_| bad())?,
        None => default_port.ok_or_else(bad)?,
    };
    let endpoint = Endpoint { host, port };
    match endpoint.host {
        Host::Address(address) => super::check_endpoint(SocketAddr::new(address, port))?,
        Host::Scoped(address, _) => super::check_endpoint(SocketAddr::new(address.into(), port))?,
        Host::Name(_) if port == 0 => return Err(format!("{} has port 0; {WANTED}", shown(text))),
        Host::Name(_) => {}
    }
    Ok(endpoint)
}

/// Whether a text can be the name or number of an interface.
fn is_interface(text: &str) -> bool {
    /// IFNAMSIZ without the terminating zero.
    const NAME_MAX: usize = 15;
    (1..=NAME_MAX).contains(&text.len())
        && !text.contains(|letter: char| letter == '/' || letter.is_whitespace())
}

/// Whether a text is a host name or domain (RFC 1123 section 2.1), or would be but for underscores.
pub(super) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label)
}

/// How a relay is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A TCP connection.
    Tcp,
    /// A TLS connection.
    Tls,
}

/// `turn:HOST[:PORT][?transport=udp|tcp]` or `turns:HOST[:PORT][?transport=tcp]` (RFC 7065).
pub(super) fn relay(text: &str) -> Result<(Endpoint, Transport), String> {
    /// RFC 8656 section 4.
    const TURN_PORT: u16 = 3_478;
    const TURNS_PORT: u16 = 5_349;
    let wrong = || {
        format!(
            "{} is not a relay; write turn:HOST:PORT, turn:HOST:PORT?transport=tcp or turns:HOST:PORT",
            shown(text)
        )
    };
    let (scheme, rest) = text.split_once(':').ok_or_else(wrong)?;
    if let ("turn" | "turns", Some(rest)) = (scheme, rest.strip_prefix("//")) {
        return Err(format!("the URI of a relay has no //; write {}", shown(&format!("{scheme}:{rest}"))));
    }
    let (host_and_port, transport) = match rest.split_once('?') {
        None => (rest, None),
        Some((host_and_port, query)) => {
            (host_and_port, Some(query.strip_prefix("transport=").ok_or_else(wrong)?))
        }
    };
    let (transport, port) = match (scheme, transport) {
        ("turn", None | Some("udp")) => (Transport::Udp, TURN_PORT),
        ("turn", Some("tcp")) => (Transport::Tcp, TURN_PORT),
        ("turns", None | Some("tcp")) => (Transport::Tls, TURNS_PORT),
        ("turns", Some("udp")) => {
            return Err("DTLS is not supported; write turns:HOST:PORT for TLS".to_owned());
        }
        _ => return Err(wrong()),
    };
    Ok((endpoint(host_and_port, Some(port))?, transport))
}

/// Prefixes between commas; an address alone is one host.
pub(super) fn prefixes(text: &str) -> Result<Vec<IpNet>, String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(prefix).collect()
}

fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
        format!("{} is not an address range; write for example 10.0.0.0/24 or fd00::/64", shown(text))
    })
}

/// A number of a range, and what it stands for.
pub(super) fn number(text: &str, range: std::ops::RangeInclusive<u16>, what: &str) -> Result<u16, String> {
    let wanted =
        || format!("{} is not {what}; write a number from {} to {}", shown(text), range.start(), range.end());
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(wanted)
}

/// `on` or `off`.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{} is neither on nor off; write one of the two", shown(text))),
    }
}

/// A value in an error message. What could be a key that slipped into the wrong place is not shown.
pub(super) fn shown(text: &str) -> String {
    const KEY_LEN_ROUGHLY: usize = 32;
    if text.len() >= KEY_LEN_ROUGHLY && !text.contains(['.', ':', ',']) {
        return "the value (not shown: it may be a key)".to_owned();
    }
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_of_a_relay_has_no_slashes() {
        for (text, instead) in [
            ("turn://relay.example:3478", "write \"turn:relay.example:3478\""),
            ("turns://relay.example", "write \"turns:relay.example\""),
        ] {
            let error = relay(text).expect_err(text);
            assert!(error.ends_with(instead), "{error}");
        }
    }
}
