//! Flags and settings that limit what clients may reach and take.

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::Args;
use serde::Deserialize;

use crate::config::PeerRange;
use crate::server::limits::{Limits, PeersMax, Rate};
use crate::server::port_set::PortSet;
use crate::server::{CHANNELS_MAX, PERMISSIONS_MAX};

/// The well-known ports but for HTTPS, where TURN and HTTP/3 live too, and two that are known for large answers to small
/// questions: SSDP and memcached. A relay is no way to scan services or to be sent their answers.
const DENY_PEER_PORTS_DEFAULT: &[RangeInclusive<u16>] = &[1..=442, 444..=1023, 1900..=1900, 11_211..=11_211];

/// The flags; each is also a setting of the file.
#[derive(Clone, Debug, Default, Args)]
pub struct LimitArgs {
    /// Peers to refuse, whatever --allow-peer says
    #[arg(long = "deny-peer", value_name = "CIDR", num_args = 1..)]
    pub deny_peers: Vec<PeerRange>,
    /// Peer ports to refuse in ChannelBind and Send, for example 1-442,444-1023; none for none
    /// [default: 1-442,444-1023,1900,11211]
    #[arg(long, value_name = "PORTS")]
    pub deny_peer_ports: Option<PeerPorts>,
    /// Most allocations of one source address or IPv6 /64 [default: as many as of one user]
    #[arg(long, value_name = "N")]
    pub allocations_per_source_max: Option<u32>,
    /// Most permissions of one allocation, 1 to 64 [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=PERMISSIONS_MAX as i64))]
    pub permissions_max: Option<u32>,
    /// Most channels of one allocation, 1 to 64 [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=CHANNELS_MAX as i64))]
    pub channels_max: Option<u32>,
    /// New permissions and channels a second of one user, five seconds' worth at once; 0 for any number [default: 20]
    #[arg(long, value_name = "N")]
    pub new_peers_per_user: Option<u32>,
    /// The same of one source address or IPv6 /64 [default: any number]
    #[arg(long, value_name = "N")]
    pub new_peers_per_source: Option<u32>,
    /// The same of all clients together [default: any number]
    #[arg(long, value_name = "N")]
    pub new_peers_total: Option<u32>,
    /// Most permissions of one user [default: any number]
    #[arg(long, value_name = "N")]
    pub permissions_per_user_max: Option<u32>,
    /// Most permissions in all [default: any number]
    #[arg(long, value_name = "N")]
    pub permissions_total_max: Option<u32>,
    /// Most channels of one user [default: any number]
    #[arg(long, value_name = "N")]
    pub channels_per_user_max: Option<u32>,
    /// Most channels in all [default: any number]
    #[arg(long, value_name = "N")]
    pub channels_total_max: Option<u32>,
    /// Most that one allocation relays each way, for example 10mbit or 10mbit,5kpps [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub allocation_rate: Option<RateLimit>,
    /// Most that all allocations of one user relay each way, for example 100mbit [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub user_rate: Option<RateLimit>,
    /// Most that all allocations of one source address or IPv6 /64 relay each way [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub source_rate: Option<RateLimit>,
    /// Most that all allocations together relay each way; those give way who take most [default: no limit]
    #[arg(long, value_name = "RATE")]
    pub total_rate: Option<RateLimit>,
    /// Answers a second to requests without credentials, to each /24 or IPv6 /56, beyond the bytes that came from there
    /// [default: 10]
    #[arg(long, value_name = "N")]
    pub unpaid_replies: Option<u32>,
    /// Answer requests without credentials only when the answer is no longer than the request
    #[arg(long)]
    pub strict_reflection: bool,
}

impl LimitArgs {
    /// Flags where they are given, else the file's settings.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            deny_peers: if self.deny_peers.is_empty() { file.deny_peers } else { self.deny_peers },
            deny_peer_ports: self.deny_peer_ports.or(file.deny_peer_ports),
            allocations_per_source_max: self.allocations_per_source_max.or(file.allocations_per_source_max),
            permissions_max: self.permissions_max.or(file.permissions_max),
            channels_max: self.channels_max.or(file.channels_max),
            new_peers_per_user: self.new_peers_per_user.or(file.new_peers_per_user),
            new_peers_per_source: self.new_peers_per_source.or(file.new_peers_per_source),
            new_peers_total: self.new_peers_total.or(file.new_peers_total),
            permissions_per_user_max: self.permissions_per_user_max.or(file.permissions_per_user_max),
            permissions_total_max: self.permissions_total_max.or(file.permissions_total_max),
            channels_per_user_max: self.channels_per_user_max.or(file.channels_per_user_max),
            channels_total_max: self.channels_total_max.or(file.channels_total_max),
            allocation_rate: self.allocation_rate.or(file.allocation_rate),
            user_rate: self.user_rate.or(file.user_rate),
            source_rate: self.source_rate.or(file.source_rate),
            total_rate: self.total_rate.or(file.total_rate),
            unpaid_replies: self.unpaid_replies.or(file.unpaid_replies),
            strict_reflection: self.strict_reflection || file.strict_reflection,
        }
    }

    /// The ports that are refused.
    #[must_use]
    pub fn deny_ports(&self) -> PortSet {
        let ports = self.deny_peer_ports.as_ref().map(|PeerPorts(ports)| ports.clone());
        ports.unwrap_or_else(|| PortSet::of(DENY_PEER_PORTS_DEFAULT))
    }

    /// What the server is told.
    ///
    /// # Errors
    /// Values out of range; the text names the flag.
    pub fn limits(&self, allocations_per_user_max: u32) -> Result<Limits, String> {
        let default = Limits::default();
        // The flags were checked already; the file was not.
        let within = |name: &str, value: Option<u32>, max: usize| match value {
            None => Ok(max),
            Some(value) if (1..=max).contains(&(value as usize)) => Ok(value as usize),
            Some(value) => Err(format!("{name} = {value}: write a number from 1 to {max}")),
        };
        let rate = |rate: Option<RateLimit>| rate.map_or_else(Rate::default, |RateLimit(rate)| rate);
        Ok(Limits {
            allocations_per_source_max: self.allocations_per_source_max.unwrap_or(allocations_per_user_max),
            permissions_max: within("permissions-max", self.permissions_max, PERMISSIONS_MAX)?,
            channels_max: within("channels-max", self.channels_max, CHANNELS_MAX)?,
            new_peers_per_s: self.new_peers_per_user.map_or(default.new_peers_per_s, NonZeroU32::new),
            new_peers_per_source_per_s: self.new_peers_per_source.and_then(NonZeroU32::new),
            new_peers_total_per_s: self.new_peers_total.and_then(NonZeroU32::new),
            peers_per_user_max: PeersMax {
                permissions: self.permissions_per_user_max,
                channels: self.channels_per_user_max,
            },
            peers_total_max: PeersMax {
                permissions: self.permissions_total_max,
                channels: self.channels_total_max,
            },
            allocation_rate: rate(self.allocation_rate),
            user_rate: rate(self.user_rate),
            source_rate: rate(self.source_rate),
            total_rate: rate(self.total_rate),
            unpaid_replies_per_s: self.unpaid_replies.unwrap_or(default.unpaid_replies_per_s),
            strict_reflection: self.strict_reflection,
        })
    }
}

/// Ports of peers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PeerPorts(pub PortSet);

impl FromStr for PeerPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || {
            format!(
                "{text:?} is no list of ports: write PORT or LOW-HIGH, with commas, for example 1-442,444-1023, or none"
            )
        };
        if text == "none" {
            return Ok(Self(PortSet::default()));
        }
        let range = |piece: &str| {
            let (low, high) = piece.split_once('-').unwrap_or((piece, piece));
            let (low, high): (u16, u16) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
            (low >= 1 && low <= high).then_some(low..=high)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(|ranges| Self(PortSet::of(&ranges))).ok_or_else(hint)
    }
}

/// A cap on data: bits a second, packets a second, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RateLimit(pub Rate);

impl FromStr for RateLimit {
    type Err = String;

    /// Reads `10mbit`, `2.5gbit`, `5kpps`, `10mbit,5kpps`. Prefixes are decimal, and bits are those of the payload.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no rate: write it like 10mbit, 2.5gbit, 5kpps or 10mbit,5kpps");
        let mut rate = Rate::default();
        for piece in text.split(',') {
            let piece = piece.trim().to_ascii_lowercase();
            let bits = piece.strip_suffix("bit");
            let number = bits.or(piece.strip_suffix("pps")).ok_or_else(wrong)?;
            let (digits, factor) = match number.as_bytes().last() {
                Some(b'k') => (&number[..number.len() - 1], 1e3),
                Some(b'm') => (&number[..number.len() - 1], 1e6),
                Some(b'g') => (&number[..number.len() - 1], 1e9),
                _ => (number, 1.0),
            };
            let value =
                digits.trim().parse::<f64>().ok().filter(|value| value.is_finite()).ok_or_else(wrong)?;
            let per_second = value * factor / if bits.is_some() { 8.0 } else { 1.0 };
            // Saturates above what any machine can do; below one a second nothing would ever pass.
            let per_second = NonZeroU64::new(per_second as u64).ok_or_else(wrong)?;
            let place = if bits.is_some() { &mut rate.bytes_per_s } else { &mut rate.packets_per_s };
            if place.replace(per_second).is_some() {
                return Err(wrong());
            }
        }
        Ok(Self(rate))
    }
}

impl TryFrom<String> for PeerPorts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for RateLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_units() {
        let rate = |bytes, packets| Rate {
            bytes_per_s: NonZeroU64::new(bytes),
            packets_per_s: NonZeroU64::new(packets),
        };
        for (text, expected) in [
            ("10mbit", rate(1_250_000, 0)),
            ("2.5Gbit", rate(312_500_000, 0)),
            ("64 kbit", rate(8_000, 0)),
            ("5kpps", rate(0, 5_000)),
            ("50pps", rate(0, 50)),
            ("10mbit,5kpps", rate(1_250_000, 5_000)),
            ("5kpps, 10mbit", rate(1_250_000, 5_000)),
        ] {
            assert_eq!(text.parse(), Ok(RateLimit(expected)), "{text}");
        }
        for text in
            ["", "10", "mbit", "-1mbit", "0bit", "7bit", "infbit", "1mbit,2mbit", "1mbit,", "10mbyte", "µpps"]
        {
            let error = text.parse::<RateLimit>().unwrap_err();
            assert!(error.contains("10mbit"), "{text}: {error}");
        }
    }

    #[test]
    fn ports_are_read_as_a_list() {
        let ports: PeerPorts = "53,100-200, 65535".parse().unwrap();
        for (port, expected) in
            [(52, false), (53, true), (99, false), (100, true), (200, true), (65_535, true)]
        {
            assert_eq!(ports.0.contains(port), expected, "{port}");
        }
        assert_eq!("none".parse(), Ok(PeerPorts(PortSet::default())));
        for text in ["", "0", "5-4", "70000", "53;54", "a"] {
            let error = text.parse::<PeerPorts>().unwrap_err();
            assert!(error.contains("1-442,444-1023"), "{text}: {error}");
        }
    }

    #[test]
    fn without_a_word_well_known_ports_are_refused_but_for_https() {
        let ports = LimitArgs::default().deny_ports();
        for (port, refused) in [
            (19, true),
            (53, true),
            (123, true),
            (161, true),
            (389, true),
            (1900, true),
            (11_211, true),
            (443, false),
            (1024, false),
            (3478, false),
            (51_820, false),
        ] {
            assert_eq!(ports.contains(port), refused, "{port}");
        }
    }

    #[test]
    fn a_source_may_have_as_many_allocations_as_a_user() {
        let args = LimitArgs::default();
        assert_eq!(args.limits(7).unwrap().allocations_per_source_max, 7);
        let more = LimitArgs { allocations_per_source_max: Some(9), new_peers_per_user: Some(0), ..args };
        let limits = more.limits(7).unwrap();
        assert_eq!((limits.allocations_per_source_max, limits.new_peers_per_s), (9, None));
        let wrong = LimitArgs { channels_max: Some(65), ..LimitArgs::default() };
        assert!(wrong.limits(7).unwrap_err().contains("1 to 64"));
    }
}
