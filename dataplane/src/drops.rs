//! Why a packet was lost: one closed list, so that `offered = delivered + Σ causes` can be checked to the last packet.

/// Declares the enum, its names and its list in one place, so that none can be forgotten.
macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a packet was not delivered. Units are packets (segments), never superpackets.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Cause { $($(#[$doc])* $variant,)* }

        impl Cause {
            /// Every cause, in the order in which reports print them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in logs, metrics and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

causes! {
    /// The kernel's receive buffer was full (SO_RXQ_OVFL; counted by the kernel in skbs, which are superpackets under GRO).
    KernelReceiveBuffer => "kernel_rcvbuf_skbs",
    /// Longer than the receive buffer (MSG_TRUNC).
    Truncated => "truncated",
    /// Not a message of the protocol spoken on this socket.
    MalformedOuter => "malformed_outer",
    /// A WireGuard message for a session index nobody has.
    UnknownIndex => "unknown_index",
    /// A WireGuard counter seen before or too old.
    Replay => "replay",
    /// Authentication of a WireGuard message failed.
    BadTag => "bad_tag",
    /// No WireGuard session, or one that has expired.
    NoSession => "no_session",
    /// A handshake or request above its source's rate, or a socket with too many ICMP errors to tell its client of all.
    RateLimited => "rate_limited",
    /// A request or indication whose MESSAGE-INTEGRITY, nonce or user was wrong.
    Unauthenticated => "unauthenticated",
    /// A TURN peer that the relay's policy refuses.
    PolicyPeer => "policy_peer",
    /// Above the rate of a TURN allocation or its user.
    PolicyRate => "policy_rate",
    /// Above the fair share of a TURN allocation while the relay had more to do than it can.
    FairShare => "fair_share",
    /// A request without credentials that is not answered: its prefix would get more than came from it.
    Reflection => "reflection",
    /// No TURN allocation on this 5-tuple.
    NoAllocation => "no_allocation",
    /// No TURN permission for this peer.
    NoPermission => "no_permission",
    /// No TURN channel of this number.
    NoChannel => "no_channel",
    /// No peer's AllowedIPs hold the destination.
    NoRoute => "no_route",
    /// A datagram of our own that the host routes back into the tunnel.
    RoutingLoop => "routing_loop",
    /// The peer has no known endpoint yet.
    NoEndpoint => "no_endpoint",
    /// The inner source address is not in the peer's AllowedIPs.
    AllowedIps => "allowed_ips",
    /// Not an IP packet, or one whose lengths lie.
    MalformedInner => "malformed_inner",
    /// Marked as congested outside although the packet inside is of a sender that does not see marks (RFC 6040).
    Ecn => "ecn",
    /// Waited for a handshake in a full queue.
    StagedFull => "staged_full",
    /// Waited for a handshake that never completed.
    StagedExpired => "staged_expired",
    /// Above the MTU of the way it had to go.
    Mtu => "mtu",
    /// The socket or device was busy and the design drops (`--io drop`).
    Busy => "busy",
    /// Waited longer than the socket's waiting queue keeps packets.
    EgressExpired => "egress_expired",
    /// The waiting queue of the socket, or of a client on a stream, was full of newer packets.
    EgressQueueFull => "egress_queue_full",
    /// Data for a client of another worker, which was so far behind that no more could wait for it.
    WorkerBehind => "worker_behind",
    /// The kernel answered ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EHOSTDOWN or ENETDOWN.
    EgressUnreachable => "egress_unreachable",
    /// The kernel answered EPERM or EACCES: a local firewall or policy.
    EgressDenied => "egress_denied",
    /// The kernel answered EMSGSIZE to a single datagram.
    EgressTooBig => "egress_too_big",
    /// The kernel answered ENOBUFS or ENOMEM.
    EgressNoMemory => "egress_no_memory",
    /// The kernel refused the operation in another way (EINVAL, EAFNOSUPPORT, a short write…).
    EgressInvalid => "egress_invalid",
    /// The socket or connection was closed while packets for it were still queued.
    EgressClosed => "egress_closed",
    /// The TUN device was down (EIO).
    TunDown => "tun_down",
    /// Still queued when the shutdown deadline passed.
    Shutdown => "shutdown",
}

/// One counter for each [`Cause`], in packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops([u64; Cause::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; Cause::ALL.len()])
    }
}

impl Drops {
    /// Counts one packet.
    pub fn count(&mut self, cause: Cause) {
        self.add(cause, 1);
    }

    /// Counts `packets` packets.
    pub fn add(&mut self, cause: Cause, packets: u64) {
        self.0[cause as usize] += packets;
    }

    /// The count of one cause.
    #[must_use]
    pub fn get(&self, cause: Cause) -> u64 {
        self.0[cause as usize]
    }

    /// The sum over all causes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds another set of counters to this one.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// The causes that have lost anything, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Cause, u64)> + '_ {
        Cause::ALL.iter().map(|&cause| (cause, self.get(cause))).filter(|&(_, packets)| packets > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_own_counter_and_name() {
        let mut drops = Drops::default();
        for (index, &cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(cause as usize, index);
            drops.add(cause, index as u64 + 1);
        }
        let names: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        assert_eq!(drops.total(), drops.iter().map(|(_, packets)| packets).sum::<u64>());
    }
}
