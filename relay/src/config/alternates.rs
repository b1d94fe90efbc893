//! Where new clients are sent while the relay drains.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::DnsName;
use serde::Deserialize;

use super::{Args, ConfigError, File, first_of, one_of_each_family};
use crate::server::Alternates;

/// Another relay for clients over TLS, as ADDR:PORT or ADDR:PORT/NAME.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct TlsAlternate {
    /// Where it serves them.
    pub address: SocketAddr,
    /// What its certificate says, where that is another name than this relay's (ALTERNATE-DOMAIN, RFC 8489 section 14.16).
    pub name: Option<String>,
}

impl FromStr for TlsAlternate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = format!(
            "{text:?} is not ADDR:PORT or ADDR:PORT/NAME, for example 192.0.2.7:5349/relay2.example.org"
        );
        let (address, name) = text.split_once('/').map_or((text, None), |(at, name)| (at, Some(name)));
        let address = address.parse().map_err(|_| hint.clone())?;
        // The attribute takes a name as the DNS has it, in ASCII.
        if name.is_some_and(|name| DnsName::try_from(name).is_err()) {
            return Err(hint);
        }
        Ok(Self { address, name: name.map(str::to_owned) })
    }
}

impl fmt::Display for TlsAlternate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}/{name}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

/// Puts flags and file together.
pub(super) fn merge(args: &Args, file: &File) -> Result<Alternates, ConfigError> {
    let of_flags =
        |result: Result<(), String>| result.map_err(|text| ConfigError::Usage(format!("--{text}")));
    of_flags(check(&args.alternate_servers))?;
    of_flags(check_tls(&args.alternate_servers_tls))?;
    // Those of the file were checked where their lines are known.
    let in_file = file.alternate_server.as_ref().map(|list| list.get_ref().clone()).unwrap_or_default();
    let plain = first_of(args.alternate_servers.clone(), in_file).unwrap_or_default();
    let in_file = file.alternate_server_tls.as_ref().map(|list| list.get_ref().clone()).unwrap_or_default();
    let tls = first_of(args.alternate_servers_tls.clone(), in_file).unwrap_or_default();
    let name = tls.first().and_then(|first| first.name.as_deref()).map(Arc::from);
    let tls: Vec<SocketAddr> = tls.iter().map(|alternate| alternate.address).collect();
    Ok(Alternates::new(&plain).with_tls(&tls, name))
}

/// Whether clients can be sent there at all.
pub(crate) fn is_usable(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// Where clients over UDP and TCP are sent.
pub(super) fn check(alternates: &[SocketAddr]) -> Result<(), String> {
    if !alternates.iter().copied().all(is_usable) {
        return Err(
            "alternate-server has to be another relay's address and port, for example 192.0.2.7:3478".into(),
        );
    }
    one_of_each_family("alternate-server", alternates.iter().map(SocketAddr::is_ipv4))
}

/// Where clients over TLS are sent.
pub(super) fn check_tls(alternates: &[TlsAlternate]) -> Result<(), String> {
    if !alternates.iter().all(|alternate| is_usable(alternate.address)) {
        return Err(
            "alternate-server-tls has to be another relay's address and port, for example 192.0.2.7:5349"
                .into(),
        );
    }
    one_of_each_family(
        "alternate-server-tls",
        alternates.iter().map(|alternate| alternate.address.is_ipv4()),
    )?;
    // An answer has room for one name, and it stands for every address in it.
    if let [first, second] = alternates
        && first.name != second.name
    {
        return Err("alternate-server-tls is one relay: both addresses have the same name or none".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alternate_for_tls_may_have_a_name() {
        for text in ["192.0.2.7:5349", "192.0.2.7:5349/relay2.example.org", "[2001:db8::7]:443/r.example"] {
            let alternate: TlsAlternate = text.parse().unwrap();
            assert_eq!(alternate.to_string(), text);
        }
        for text in [
            "relay2.example.org:5349",
            "192.0.2.7",
            "192.0.2.7:5349/",
            "192.0.2.7:5349/*.example.org",
            "192.0.2.7:5349/käse.example",
            "192.0.2.7:5349/a/b",
            "192.0.2.7:5349/192.0.2.7",
        ] {
            let error = text.parse::<TlsAlternate>().unwrap_err();
            assert!(error.contains("ADDR:PORT/NAME"), "{text}: {error}");
        }
    }

    #[test]
    fn two_addresses_of_one_relay_have_one_name() {
        let check =
            |texts: &[&str]| check_tls(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>());
        let (v4, v6) = ("192.0.2.7:5349/r.example", "[2001:db8::7]:5349");
        assert_eq!(check(&[v4, "[2001:db8::7]:5349/r.example"]), Ok(()));
        assert_eq!(check(&["192.0.2.7:5349", v6]), Ok(()));
        for (texts, hint) in [
            (&[v4, v6][..], "the same name"),
            (&[v4, "[2001:db8::7]:5349/other.example"], "the same name"),
            (&[v4, v4], "one address of each family"),
            (&["192.0.2.7:0"], "address and port"),
            (&["[::]:5349"], "address and port"),
        ] {
            let error = check(texts).unwrap_err();
            assert!(error.starts_with("alternate-server-tls") && error.contains(hint), "{error}");
        }
    }
}
