//! Which allocation a relayed address leads to.

use std::collections::HashMap;
use std::net::SocketAddr;

use foldhash::fast::RandomState;

use super::AllocationId;

/// The live allocations by the local address of their sockets.
#[derive(Debug, Default)]
pub(super) struct Directory {
    by_relayed: HashMap<SocketAddr, AllocationId, RandomState>,
}

impl Directory {
    /// An allocation has become live.
    pub fn insert(&mut self, relayed: SocketAddr, id: AllocationId) {
        let previous = self.by_relayed.insert(relayed, id);
        debug_assert!(previous.is_none(), "{relayed} has a socket of its own");
    }

    /// An allocation is no longer live.
    pub fn remove(&mut self, relayed: SocketAddr, id: AllocationId) {
        let removed = self.by_relayed.remove(&relayed);
        debug_assert_eq!(removed, Some(id), "{relayed} was another's");
    }

    /// The allocation at a relayed address.
    #[must_use]
    pub fn find(&self, relayed: SocketAddr) -> Option<AllocationId> {
        self.by_relayed.get(&relayed).copied()
    }
}
