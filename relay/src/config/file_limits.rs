//! The settings of the file that limit what clients may reach and take.

use super::File;
use crate::limits::LimitArgs;

impl File {
    /// Takes them out.
    pub(super) fn limits(&mut self) -> LimitArgs {
        LimitArgs {
            deny_peers: std::mem::take(&mut self.deny_peer),
            deny_peer_ports: self.deny_peer_ports.take(),
            allocations_per_source_max: self.allocations_per_source_max,
            permissions_max: self.permissions_max,
            channels_max: self.channels_max,
            new_peers_per_user: self.new_peers_per_user,
            new_peers_per_source: self.new_peers_per_source,
            new_peers_total: self.new_peers_total,
            permissions_per_user_max: self.permissions_per_user_max,
            permissions_total_max: self.permissions_total_max,
            channels_per_user_max: self.channels_per_user_max,
            channels_total_max: self.channels_total_max,
            allocation_rate: self.allocation_rate,
            user_rate: self.user_rate,
            source_rate: self.source_rate,
            total_rate: self.total_rate,
            unpaid_replies: self.unpaid_replies,
            strict_reflection: self.strict_reflection,
        }
    }
}
