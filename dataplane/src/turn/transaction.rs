//! Requests in flight and when to send them again (RFC 8489 section 6.2.1).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::stun::{AddressFamily, ChannelNumber, Method, TransactionId};

/// Wait before the first retransmission; doubles each time.
pub(super) const RTO: Duration = Duration::from_millis(500);
/// How often a request is sent (Rc).
pub(super) const SENDS_MAX: u32 = 7;
/// Wait after the last one (Rm × RTO).
pub(super) const LAST_WAIT: Duration = Duration::from_secs(8);

/// The same for a request whose answer others wait for: there are few of them, and they must not add up to a long outage. After
/// half a second of silence (`watch`) a relay that is gone is given up in 0.9 s, so that within 2 s the next one carries
/// traffic. RFC 8489 leaves it to configuration.
pub(super) const URGENT_RTO: Duration = Duration::from_millis(300);
pub(super) const URGENT_SENDS_MAX: u32 = 3;

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `port` is the one of the allocation before, 0 when there was none.
    Allocate {
        family: Option<AddressFamily>,
        port: u16,
    },
    Refresh,
    Delete,
    CreatePermission {
        peer: IpAddr,
    },
    ChannelBind {
        number: ChannelNumber,
        peer: SocketAddr,
    },
}

impl Request {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Allocate { .. } => Method::Allocate,
            Self::Refresh | Self::Delete => Method::Refresh,
            Self::CreatePermission { .. } => Method::CreatePermission,
            Self::ChannelBind { .. } => Method::ChannelBind,
        }
    }
}

/// A request that waits for its response.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) id: TransactionId,
    pub(super) request: Request,
    /// The message, kept because a retransmission is byte for byte the same.
    pub(super) bytes: Vec<u8>,
    /// Whether it carries MESSAGE-INTEGRITY, and so whether a success must.
    pub(super) signed: bool,
    /// How many nonces in a row the server called stale.
    pub(super) stale_nonces: u8,
    /// When to look at it again.
    pub(super) deadline: Instant,
    sends: u32,
    urgent: bool,
    /// It goes over a connection, which repeats by itself.
    reliable: bool,
}

/// How long a connection is given (Ti, RFC 8489 section 6.2.2), and when others wait for the answer.
const RELIABLE_WAIT: Duration = Duration::from_millis(39_500);
const URGENT_WAIT: Duration = URGENT_RTO.saturating_mul(URGENT_SENDS_MAX);

/// What a passed deadline asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Retransmit,
    GiveUp,
}

impl Transaction {
    /// A request that is sent now for the first time.
    pub(super) fn new(
        id: TransactionId,
        request: Request,
        bytes: Vec<u8>,
        signed: bool,
        stale_nonces: u8,
        urgent: bool,
        now: Instant,
    ) -> Self {
        let rto = if urgent { URGENT_RTO } else { RTO };
        let deadline = now + rto;
        Self { id, request, bytes, signed, stale_nonces, deadline, sends: 1, urgent, reliable: false }
    }

    /// It was sent over a connection, and is not sent again.
    pub(super) fn over_stream(mut self, now: Instant) -> Self {
        self.reliable = true;
        self.deadline = now + if self.urgent { URGENT_WAIT } else { RELIABLE_WAIT };
        self
    }

    /// From now on its answer is waited for.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.urgent = true;
        let wait = if self.reliable { URGENT_WAIT } else { URGENT_RTO };
        self.deadline = self.deadline.min(now + wait);
    }

    /// Called when the deadline has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Due {
        if self.reliable || self.sends >= if self.urgent { URGENT_SENDS_MAX } else { SENDS_MAX } {
            return Due::GiveUp;
        }
        self.sends += 1;
        if self.urgent {
            self.deadline = now + URGENT_RTO;
            return Due::Retransmit;
        }
        let wait = if self.sends == SENDS_MAX { LAST_WAIT } else { RTO * (1 << (self.sends - 1)) };
        self.deadline = now + wait;
        Due::Retransmit
    }
}
