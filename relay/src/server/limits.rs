//! How much clients and users may take.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use super::{CHANNELS_MAX, PERMISSIONS_MAX};

/// New peers a second of one user when nothing is said.
const NEW_PEERS_DEFAULT: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// Answers a second to requests without credentials, for each prefix, when nothing is said.
const UNPAID_REPLIES_DEFAULT: u32 = 10;

/// A cap on data in one direction; nothing said is no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes of payload a second.
    pub bytes_per_s: Option<NonZeroU64>,
    /// Packets a second.
    pub packets_per_s: Option<NonZeroU64>,
}

impl Rate {
    /// Whether there is a cap at all.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.bytes_per_s.is_some() || self.packets_per_s.is_some()
    }
}

/// As flags and files have it; nothing for no cap.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bytes_per_s.map(|bytes| format!("{}bit", u128::from(bytes.get()) * 8));
        let packets = self.packets_per_s.map(|packets| format!("{packets}pps"));
        f.write_str(&[bits, packets].into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

/// Most permissions and channels; nothing said is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeersMax {
    /// Permissions. One that has expired counts until its allocation is refreshed, asks for another, or ends.
    pub permissions: Option<u32>,
    /// Channels, quiet ones included.
    pub channels: Option<u32>,
}

impl PeersMax {
    const fn is_set(&self) -> bool {
        self.permissions.is_some() || self.channels.is_some()
    }
}

/// Everything that is limited, beside the number of allocations of a user and in all.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most allocations of one source address (IPv6: of a /64); beyond it 486.
    pub allocations_per_source_max: u32,
    /// Most permissions of one allocation, at most [`PERMISSIONS_MAX`]; beyond it 508.
    pub permissions_max: usize,
    /// Most channels of one allocation, quiet ones included, at most [`CHANNELS_MAX`]; beyond it 508.
    pub channels_max: usize,
    /// New permissions and channels a second of one user, five seconds' worth at once; beyond it 508.
    pub new_peers_per_s: Option<NonZeroU32>,
    /// The same of one source address (IPv6: of a /64).
    pub new_peers_per_source_per_s: Option<NonZeroU32>,
    /// The same of all together.
    pub new_peers_total_per_s: Option<NonZeroU32>,
    /// Most permissions and channels of one user; beyond it 508.
    pub peers_per_user_max: PeersMax,
    /// Most permissions and channels of all users together; beyond it 508.
    pub peers_total_max: PeersMax,
    /// Data of one allocation, in each direction.
    pub allocation_rate: Rate,
    /// Data of all allocations of one user, in each direction.
    pub user_rate: Rate,
    /// Data of all allocations of one source address (IPv6: of a /64), in each direction.
    pub source_rate: Rate,
    /// Data of all allocations, in each direction.
    pub total_rate: Rate,
    /// Answers a second to requests without credentials, for each /24 (IPv6: /56), beyond as many bytes as came from
    /// there in the last ten seconds.
    pub unpaid_replies_per_s: u32,
    /// Requests without credentials are answered only when the answer is no longer than they are.
    pub strict_reflection: bool,
}

impl Limits {
    /// Whether any data has a rate.
    #[must_use]
    pub const fn has_rates(&self) -> bool {
        self.allocation_rate.is_set()
            || self.user_rate.is_set()
            || self.source_rate.is_set()
            || self.total_rate.is_set()
    }

    /// Whether permissions and channels are bounded beyond those of an allocation.
    #[must_use]
    pub const fn counts_peers(&self) -> bool {
        self.peers_per_user_max.is_set() || self.peers_total_max.is_set()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            allocations_per_source_max: u32::MAX,
            permissions_max: PERMISSIONS_MAX,
            channels_max: CHANNELS_MAX,
            new_peers_per_s: Some(NEW_PEERS_DEFAULT),
            new_peers_per_source_per_s: None,
            new_peers_total_per_s: None,
            peers_per_user_max: PeersMax::default(),
            peers_total_max: PeersMax::default(),
            allocation_rate: Rate::default(),
            user_rate: Rate::default(),
            source_rate: Rate::default(),
            total_rate: Rate::default(),
            unpaid_replies_per_s: UNPAID_REPLIES_DEFAULT,
            strict_reflection: false,
        }
    }
}
