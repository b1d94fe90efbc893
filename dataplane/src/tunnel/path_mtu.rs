//! How long a packet for a peer may be, so that what carries it passes in one piece.
//!
//! Nobody tells a tunnel of the MTU on its way: the kernel does, who has heard ICMP about what left, when it is asked. So it is
//! asked once in a while, as long as long packets leave.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Path, PeerIndex, Tunnel};
use crate::stun::channel_data;
use crate::wire::ip::{IPV4_HEADER, IPV6_HEADER};
use crate::wire::wireguard::{DATA_OVERHEAD, PADDING};

/// How often the kernel is asked about one peer.
const INTERVAL: Duration = Duration::from_secs(1);
/// Shorter packets are not asked for: what carries them passes wherever IPv6 does, and nearly everywhere else.
const LONG: usize = 1_200;
const UDP_HEADER: usize = 8;

/// Bytes around a packet on the way to a destination, over a relay with its header.
#[must_use]
pub fn overhead(destination: IpAddr, relayed: bool) -> usize {
    let ip = if destination.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
    ip + UDP_HEADER + if relayed { channel_data::HEADER_LEN } else { 0 } + DATA_OVERHEAD
}

/// What is known of the way to one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PathMtu {
    /// Where the peer was when it was asked for.
    about: Option<IpAddr>,
    /// The longest packet, bytes; of none shorter than the device's when `None`.
    limit: Option<usize>,
    asked: Option<Instant>,
}

impl Tunnel {
    /// The longest packet for a peer that passes in one piece, bytes.
    #[must_use]
    pub fn packet_limit(&self, peer: PeerIndex) -> usize {
        let Some(peer) = self.peers.get(peer) else {
            return usize::MAX;
        };
        let about = peer.path.map(|path| path.remote().ip());
        peer.path_mtu.limit.filter(|_| peer.path_mtu.about == about).unwrap_or(usize::MAX)
    }

    /// Whether the kernel is to be asked for the MTU on the way to a peer, whom a packet of `len` bytes is for; once, and
    /// then [`Tunnel::note_path_mtu`] is waited for.
    pub fn wants_path_mtu(&mut self, index: PeerIndex, len: usize, now: Instant) -> bool {
        if len < LONG {
            return false;
        }
        let Some(peer) = self.peers.get_mut(index) else {
            return false;
        };
        let due = peer.path_mtu.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= INTERVAL);
        if due {
            peer.path_mtu.asked = Some(now);
        }
        due
    }

    /// Notes the MTU on the way to where a peer is, or to the relay it is behind; whether another packet is the longest now.
    pub fn note_path_mtu(&mut self, index: PeerIndex, destination: IpAddr, outer: usize) -> bool {
        let (mtu, before) = (self.mtu, self.packet_limit(index));
        let Some(peer) = self.peers.get_mut(index) else {
            return false;
        };
        let relayed = matches!(peer.path, Some(Path::Relayed { .. }));
        let fits = outer.saturating_sub(overhead(destination, relayed));
        // Packets are padded, though not beyond the device's MTU.
        let limit = (fits < mtu).then_some(fits - fits % PADDING);
        peer.path_mtu.about = peer.path.map(|path| path.remote().ip());
        peer.path_mtu.limit = limit;
        self.packet_limit(index) != before
    }
}
