//! The ways that a load can take.

use std::net::SocketAddr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The way the load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Plain UDP to a reflector and back
    Udp,
    /// ChannelData through a TURN relay to a peer in this process, and back
    TurnChannel,
    /// Send and Data indications through a TURN relay to a peer in this process, and back
    TurnSend,
    /// UDP through an existing tunnel interface to a reflector and back; TARGET is an inner address
    Tunnel,
    /// This process is a WireGuard peer and sends to the server TARGET, which delivers to a socket of this process: one way
    WgRx,
    /// A socket of this process sends through the server TARGET to this process, which is a WireGuard peer: one way
    WgTx,
    /// Messages on TCP connections to an echo server and back
    Tcp,
}

impl Kind {
    /// The name used on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::TurnChannel => "turn-channel",
            Self::TurnSend => "turn-send",
            Self::Tunnel => "tunnel",
            Self::WgRx => "wg-rx",
            Self::WgTx => "wg-tx",
            Self::Tcp => "tcp",
        }
    }

    /// Whether the load goes through a TURN relay, with the far end in this process.
    #[must_use]
    pub const fn is_turn(self) -> bool {
        matches!(self, Self::TurnChannel | Self::TurnSend)
    }

    /// Whether this process is one end of a WireGuard tunnel itself.
    #[must_use]
    pub const fn is_wireguard(self) -> bool {
        matches!(self, Self::WgRx | Self::WgTx)
    }

    /// Whether the load passes through a tunnel, whose packets are shorter than those outside.
    #[must_use]
    pub const fn inside_tunnel(self) -> bool {
        matches!(self, Self::Tunnel) || self.is_wireguard()
    }

    /// Whether what arrives at the far end is the end of it, and nothing comes back.
    #[must_use]
    pub const fn is_one_way(self) -> bool {
        self.is_wireguard()
    }

    /// Bytes of TURN framing around a payload, at most.
    #[must_use]
    pub const fn framing(self, target: SocketAddr) -> usize {
        match (self, target) {
            (Self::TurnChannel, _) => 4,
            // Header, XOR-PEER-ADDRESS, header of DATA, padding (RFC 8656 section 11.1).
            (Self::TurnSend, SocketAddr::V4(_)) => 20 + 12 + 4 + 3,
            (Self::TurnSend, SocketAddr::V6(_)) => 20 + 24 + 4 + 3,
            _ => 0,
        }
    }
}
