//! The values of single flags and settings: how they are written, and what is wrong with one that makes no sense.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

use super::TlsAlternate;
use crate::login::Login;
use crate::server::{ExternalAddress, REALM_LEN_MAX};

/// A realm (RFC 8489 section 14.9).
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Realm(pub String);

impl FromStr for Realm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > REALM_LEN_MAX {
            return Err(format!("a realm has 1 to {REALM_LEN_MAX} bytes, for example example.org"));
        }
        if text.chars().any(|letter| letter.is_control() || letter == '"') {
            return Err("a realm has no quotes or control characters, for example example.org".into());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Which channel numbers clients may bind (`--channel-numbers`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelRange {
    /// 0x4000 to 0x4FFF only
    Rfc8656,
    /// 0x4000 to 0x7FFF, which older clients use
    Rfc5766,
}

/// Whether data between clients of this relay takes the short way (`--hairpin`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hairpin {
    /// From client to client inside the relay
    On,
    /// Over both relay sockets, and only where --allow-peer says so
    Off,
}

/// Whether several allocations may have one relayed port (`--port-sharing`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortSharing {
    /// Where there are fewer ports than allocations may be
    Auto,
    /// Never: allocations beyond the number of ports get 508
    Off,
}

/// How long something is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Validity(pub Duration);

impl FromStr for Validity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(validity) if validity >= Duration::from_secs(1) => Ok(Self(validity)),
            Ok(_) | Err(_) => Err(format!("{text:?} is no time above a second: write it like 24h or 90min")),
        }
    }
}

/// A range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange {
    pub(super) low: u16,
    pub(super) high: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = format!("{text:?} is no port range: write LOW-HIGH, for example 49152-65535");
        let (low, high) = text.split_once('-').ok_or_else(|| hint.clone())?;
        let (Ok(low), Ok(high)) = (low.trim().parse(), high.trim().parse()) else {
            return Err(hint);
        };
        if low == 0 || low > high {
            return Err(format!("the lower port is at least 1 and not above the higher; {hint}"));
        }
        Ok(Self { low, high })
    }
}

/// A range of peers: a network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PeerRange(pub IpNet);

impl FromStr for PeerRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let single = || text.parse().ok().map(|address: IpAddr| IpNet::from(address));
        let net = text.parse().ok().or_else(single);
        net.map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no peer range: write a network or an address, for example 10.1.0.0/16 or ::1"
            )
        })
    }
}

/// An address as it is called outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct External(pub ExternalAddress);

impl FromStr for External {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = format!("{text:?} is not PUBLIC or PUBLIC/LOCAL, for example 198.51.100.1/10.0.0.1");
        let (public, local) =
            text.split_once('/').map_or((text, None), |(public, local)| (public, Some(local)));
        let public: IpAddr = public.parse().map_err(|_| hint.clone())?;
        let local: Option<IpAddr> = local.map(str::parse).transpose().map_err(|_| hint.clone())?;
        if local.is_some_and(|local| local.is_ipv4() != public.is_ipv4()) {
            return Err(format!("both addresses are of the same family; {hint}"));
        }
        Ok(Self(ExternalAddress { public, local }))
    }
}

/// Reads these types from TOML strings by their `FromStr`, so that flags and file accept the same.
macro_rules! from_toml_string {
    ($($kind:ty),*) => {$(
        impl TryFrom<String> for $kind {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )*};
}

from_toml_string!(Realm, Login, Validity, PortRange, PeerRange, External, TlsAlternate);
