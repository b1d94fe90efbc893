//! ICMP errors about datagrams that were relayed (RFC 8656 section 11.5): who is told of them, and of how many.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::stun::{Icmp, TransactionId};

use super::{AllocationId, ClientSocket, PeerSocket, Server};

/// ICMP errors that are looked at for one allocation in one second. A dead peer may cause one with every datagram, and
/// anyone on the network can forge them.
pub const ICMP_PER_SECOND_MAX: u8 = 10;
/// How long an allocation's socket is not told of any errors after it had more than [`ICMP_PER_SECOND_MAX`]. A socket that
/// several share is deaf for all of them.
pub const ICMP_SILENCE_TIME: Duration = Duration::from_secs(1);

/// What to do with an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromIcmp {
    /// Send [`Server::icmp_indication`] to the client.
    Indication {
        /// Where to.
        client: ClientSocket,
    },
    /// Nothing: no client has a right to it, or a use for it.
    Ignore,
    /// It is one too many. Have the kernel report none for [`ICMP_SILENCE_TIME`]: each one costs a failed send, too.
    Silence,
}

/// How many errors an allocation has had in the current second of its life.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IcmpBudget {
    second: u32,
    used: u8,
}

impl IcmpBudget {
    /// Counts one; the answer is its number within the second, which stops at the highest.
    fn count(&mut self, age: Duration) -> u8 {
        let second = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        if second != self.second {
            *self = Self { second, used: 0 };
        }
        self.used = self.used.saturating_add(1);
        self.used
    }
}

impl Server {
    /// Whose an ICMP error is that came to the socket of a relayed address, about a datagram to `peer`: of those who share the
    /// port, the one that peer leads to. Errors that are nobody's, or forged, count against who came first: the socket has to
    /// fall silent after too many of them as well.
    #[must_use]
    pub fn icmp_recipient(&self, relayed: SocketAddr, peer: PeerSocket) -> Option<AllocationId> {
        let first = || self.tenants(relayed).first().copied();
        self.recipient(relayed, peer).or_else(first)
    }

    /// Takes an ICMP error about a datagram that an allocation's socket sent to `peer`. Its own source may be any router on
    /// the way, so what counts is the permission for the peer.
    pub fn handle_icmp(&mut self, id: AllocationId, peer: PeerSocket, icmp: Icmp, now: Instant) -> FromIcmp {
        let Some(allocation) = self.table.get_mut(id).filter(|allocation| allocation.is_live(now)) else {
            return FromIcmp::Ignore;
        };
        let number = allocation.icmp.count(now.saturating_duration_since(allocation.created));
        if number > ICMP_PER_SECOND_MAX {
            // Said once; what follows was on its way already.
            let first = number == ICMP_PER_SECOND_MAX + 1;
            return if first { FromIcmp::Silence } else { FromIcmp::Ignore };
        }
        if is_for_clients(peer.0, icmp.kind) && allocation.has_permission(peer, now) {
            FromIcmp::Indication { client: allocation.client }
        } else {
            FromIcmp::Ignore
        }
    }

    /// A Data indication with ICMP instead of DATA.
    pub fn icmp_indication(&mut self, peer: PeerSocket, icmp: Icmp) -> &[u8] {
        let transaction = TransactionId(self.random.bytes());
        self.replies.icmp_indication(transaction, peer.0, icmp)
    }
}

/// The types that RFC 8656 section 11.5 names: destination unreachable and time exceeded, and of ICMPv6 packet too big.
fn is_for_clients(peer: SocketAddr, kind: u8) -> bool {
    match peer {
        SocketAddr::V4(_) => matches!(kind, 3 | 11),
        SocketAddr::V6(_) => matches!(kind, 1..=3),
    }
}

/// The ICMP attribute of an error (RFC 8656 section 18.13). `info` is the next-hop MTU where the error has one.
#[must_use]
pub fn attribute(peer: PeerSocket, kind: u8, code: u8, info: u32) -> Icmp {
    let has_mtu = match peer.0 {
        // Fragmentation needed (RFC 1191), packet too big (RFC 4443 section 3.2).
        SocketAddr::V4(_) => (kind, code) == (3, 4),
        SocketAddr::V6(_) => kind == 2,
    };
    Icmp { kind, code: code.into(), error_data: if has_mtu { info } else { 0 } }
}
