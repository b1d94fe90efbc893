//! Which allocations a relayed address leads to: one, or several where ports are shared.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::RandomState;

use super::AllocationId;
use super::allocation::Reach;
use super::sharing::SharedPort;

/// What is at a relayed address.
#[derive(Debug)]
enum Place {
    /// One allocation with a socket of its own.
    Own(AllocationId),
    /// Allocations with one socket together. Boxed: few relays have any.
    Shared(Box<SharedPort>),
}

/// The allocations by the local address of their sockets, from the moment the address is chosen until the socket is closed.
#[derive(Debug)]
pub(super) struct Directory {
    places: HashMap<SocketAddr, Place, RandomState>,
    is_shared: bool,
}

impl Directory {
    /// Nobody is anywhere.
    #[must_use]
    pub fn new(is_shared: bool) -> Self {
        Self { places: HashMap::default(), is_shared }
    }

    /// Whether several allocations may have one address.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// An allocation is given an address.
    pub fn insert(&mut self, relayed: SocketAddr, id: AllocationId) {
        if !self.is_shared {
            let previous = self.places.insert(relayed, Place::Own(id));
            debug_assert!(previous.is_none(), "{relayed} is another's");
            return;
        }
        let place = self.places.entry(relayed).or_insert_with(|| Place::Shared(Box::default()));
        if let Place::Shared(port) = place {
            port.add(id);
        }
    }

    /// An allocation, which reached this, gives its address up. The answer is whether nobody is left there.
    pub fn remove(
        &mut self,
        relayed: SocketAddr,
        id: AllocationId,
        reaches: impl Iterator<Item = Reach>,
    ) -> bool {
        if let Some(port) = self.shared_mut(relayed) {
            reaches.for_each(|reach| port.release(reach, id));
            port.remove(id);
            if !port.tenants().is_empty() {
                return false;
            }
        }
        self.places.remove(&relayed);
        true
    }

    /// Everybody at an address.
    #[must_use]
    pub fn tenants(&self, relayed: SocketAddr) -> &[AllocationId] {
        match self.places.get(&relayed) {
            Some(Place::Own(id)) => std::slice::from_ref(id),
            Some(Place::Shared(port)) => port.tenants(),
            None => &[],
        }
    }

    /// The one at an address that datagrams of a peer may be for; it still has to permit them.
    #[must_use]
    pub fn recipient(&self, relayed: SocketAddr, peer: SocketAddr) -> Option<AllocationId> {
        match self.places.get(&relayed)? {
            Place::Own(id) => Some(*id),
            Place::Shared(port) => port.recipient(peer),
        }
    }

    /// A port that may have several tenants.
    #[must_use]
    pub fn shared(&self, relayed: SocketAddr) -> Option<&SharedPort> {
        match self.places.get(&relayed)? {
            Place::Own(_) => None,
            Place::Shared(port) => Some(port),
        }
    }

    /// The same, to change.
    pub fn shared_mut(&mut self, relayed: SocketAddr) -> Option<&mut SharedPort> {
        match self.places.get_mut(&relayed)? {
            Place::Own(_) => None,
            Place::Shared(port) => Some(port),
        }
    }

    /// Every such port of an address.
    pub fn shared_ports(&self, address: IpAddr) -> impl Iterator<Item = (SocketAddr, &SharedPort)> {
        self.places.iter().filter_map(move |(&relayed, place)| match place {
            Place::Shared(port) if relayed.ip() == address => Some((relayed, &**port)),
            Place::Shared(_) | Place::Own(_) => None,
        })
    }
}
