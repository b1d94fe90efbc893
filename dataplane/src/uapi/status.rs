//! What `towpath show` asks for beyond what `wg` does, and the answer: a line of JSON for the device, then one for each
//! peer, in the order of `get=1`.
//!
//! ```text
//!  status=1               {"interface":"wg0",…}
//!  allowed_ips=true       {"public_key":"…",…}
//!  (empty line)           errno=0
//!                         (empty line)
//! ```
//!
//! It goes over the socket of `wg`, so that whoever may see what `wg show` shows may see this, and nobody else: `wg` never sends
//! it, and other implementations close the connection. Secret keys are not among it.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Refusal;
use super::answer::Part;
use crate::stages::{Counts as Latencies, Stage};
use crate::status::{Counts, Egress, Ingress};

/// What is wanted besides the figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The prefixes of every peer, of which there can be many.
    pub allowed_ips: bool,
    /// What was counted of each stage.
    pub stages: bool,
}

impl Wanted {
    /// The request.
    #[must_use]
    pub fn request(self) -> String {
        let line = |wanted, line| if wanted { line } else { "" };
        let (ips, stages) =
            (line(self.allowed_ips, "allowed_ips=true\n"), line(self.stages, "stages=true\n"));
        format!("status=1\n{ips}{stages}\n")
    }

    /// Takes a line behind the first.
    pub(super) fn take(&mut self, line: &[u8]) -> Result<(), Refusal> {
        match line {
            b"allowed_ips=true" => self.allowed_ips = true,
            b"stages=true" => self.stages = true,
            _ => return Err(Refusal::Invalid),
        }
        Ok(())
    }
}

/// The device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Version of the program.
    pub version: String,
    /// Name of the interface.
    pub interface: String,
    /// Our public key, when there is a private one.
    pub public_key: Option<String>,
    /// UDP port; 0 when there is none yet.
    pub listen_port: u16,
    /// The mark of what is sent; 0 for none.
    pub fwmark: u32,
    /// MTU of the interface, bytes.
    pub mtu: u64,
    /// Packets can leave and arrive.
    pub up: bool,
    /// When this was told, in seconds since 1970.
    pub time_unix_s: f64,
    /// Since the start of the program; what rates are counted by.
    pub uptime_s: f64,
    /// How packets leave and come in, by the names of the flags.
    pub io: String,
    /// As `io`.
    pub ingress_design: String,
    /// The TURN relay, when there is one.
    pub relay: Option<SocketAddr>,
    /// Our address there, which the other side has as Endpoint; none until the relay has given one.
    #[serde(default)]
    pub relayed: Option<SocketAddr>,
    /// What was lost, for every cause.
    pub drops: Counts,
    /// How packets leave.
    pub egress: Egress,
    /// How they come in.
    pub ingress: Ingress,
    /// Time of packets by stage, when that was asked for: see [`crate::stages::Stage`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
}

/// What was counted of each stage, in ns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stages {
    /// See [`crate::stages::Stage::Read`].
    pub read: Latencies,
    /// See [`crate::stages::Stage::Crypto`].
    pub crypto: Latencies,
    /// See [`crate::stages::Stage::Ring`].
    pub ring: Latencies,
    /// See [`crate::stages::Stage::Kernel`].
    pub kernel: Latencies,
}

impl Stages {
    /// What was counted of one.
    #[must_use]
    pub fn of(&self, stage: Stage) -> &Latencies {
        match stage {
            Stage::Read => &self.read,
            Stage::Crypto => &self.crypto,
            Stage::Ring => &self.ring,
            Stage::Kernel => &self.kernel,
        }
    }
}

/// A peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Who it is.
    pub public_key: String,
    /// Whether there is a preshared key.
    pub preshared_key: bool,
    /// Where it is reached.
    pub endpoint: Option<SocketAddr>,
    /// By which way.
    pub path: Option<Way>,
    /// Whether anything authentic has come by that way; none where there is no way, or from an older version.
    #[serde(default)]
    pub path_answered: Option<bool>,
    /// The relay, when it is by that way.
    pub relay: Option<SocketAddr>,
    /// With which code of RFC 8656 the relay refuses a channel to the peer; none where it does not.
    #[serde(default)]
    pub relay_refusal: Option<u16>,
    /// What is routed to it, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Seconds since the last handshake.
    pub handshake_age_s: Option<f64>,
    /// Seconds between keepalives; 0 for none.
    pub persistent_keepalive_s: u16,
    /// Bytes of all messages from it, as `wg` counts them.
    pub received_bytes: u64,
    /// Bytes of all messages to it, likewise.
    pub sent_bytes: u64,
    /// Packets from it that were let in.
    pub received_packets: u64,
    /// Packets sealed for it.
    pub sent_packets: u64,
    /// Data messages that it sent and that did not arrive, or not yet.
    pub missing_messages: u64,
    /// How often it was reached by the other of two ways from then on.
    pub path_switches: u64,
    /// Messages that came by the way that was left within a second of that, and so perhaps out of order.
    pub path_overlapped: u64,
    /// Handshakes begun to find out whether a way works.
    pub path_probes: u64,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Straight.
    Direct,
    /// Over the relay.
    Relayed,
}

impl Way {
    /// The name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        }
    }
}

/// A line of the answer.
#[must_use]
pub fn line(content: &impl Serialize) -> Part {
    // Strings, finite numbers and lists only.
    let mut text = serde_json::to_string(content).expect("it is JSON");
    text.push('\n');
    Zeroizing::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_can_be_read_back_and_is_one_line() {
        let device = Device {
            interface: "wg0".into(),
            drops: [("no_route".to_owned(), 3)].into(),
            stages: Some(Stages::default()),
            ..Device::default()
        };
        let text = line(&device);
        assert!(text.ends_with('\n') && text.lines().count() == 1);
        assert_eq!(serde_json::from_str::<Device>(&text).unwrap(), device);
        let peer = Peer { path: Some(Way::Relayed), allowed_ips: Some(vec![]), ..Peer::default() };
        assert!(line(&peer).contains("\"path\":\"relayed\""));
        assert_eq!(serde_json::from_str::<Peer>(&line(&peer)).unwrap(), peer);
        let bare = line(&Peer::default());
        assert!(!bare.contains("allowed_ips"));
        assert_eq!(serde_json::from_str::<Peer>(&bare).unwrap(), Peer::default());
    }
}
