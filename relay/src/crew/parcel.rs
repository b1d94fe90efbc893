//! Datagrams from one worker for a client of another: each in a parcel, of which there are so many for each receiver.
//!
//! ```text
//!  sender: takes an empty parcel ► packs ► full ──►  receiver: unpacks ► empty
//! ```
//! All parcels for a worker exist from the start, so that a worker that is behind holds up nobody: its parcels are all full
//! then, and what finds none is lost under a name of its own. A kernel with a full receive buffer would do the same.

use std::net::SocketAddr;

use crossbeam_queue::ArrayQueue;

/// Bytes in most parcels: a datagram that fits into an Ethernet frame, and some more.
const SMALL_BYTES: usize = 2048;
/// Of these for one worker: some milliseconds' worth, for which the system may not have it run. About as many datagrams fit
/// into the receive buffer of a listener.
const SMALL: usize = 2048;
/// Bytes in the others: the longest datagram.
const LARGE_BYTES: usize = 65_536;
/// Of these for one worker.
const LARGE: usize = 32;

/// The parcels for one worker.
#[derive(Debug)]
pub(super) struct Parcels {
    small: ArrayQueue<Parcel>,
    large: ArrayQueue<Parcel>,
    full: ArrayQueue<Parcel>,
}

impl Parcels {
    /// All of them, or none where nobody sends any.
    pub fn new(are_used: bool) -> Self {
        let queue = |count: usize| ArrayQueue::new(if are_used { count } else { 1 });
        let parcels = Self { small: queue(SMALL), large: queue(LARGE), full: queue(SMALL + LARGE) };
        if are_used {
            for (count, bytes) in [(SMALL, SMALL_BYTES), (LARGE, LARGE_BYTES)] {
                // Workers live as long as the process, and so does what they hand to each other. In one piece, so that pages
                // which nobody has used yet are none.
                let memory = Box::leak(vec![0; count * bytes].into_boxed_slice());
                memory.chunks_exact_mut(bytes).for_each(|bytes| parcels.give_back(Parcel::new(bytes)));
            }
        }
        parcels
    }

    /// An empty one with so much room.
    pub fn take_empty(&self, len: usize) -> Option<Parcel> {
        let fits = (len <= SMALL_BYTES).then(|| self.small.pop()).flatten();
        fits.or_else(|| if len <= LARGE_BYTES { self.large.pop() } else { None })
    }

    /// One is unpacked.
    pub fn give_back(&self, parcel: Parcel) {
        let queue = if parcel.bytes.len() == SMALL_BYTES { &self.small } else { &self.large };
        let kept = queue.push(parcel);
        debug_assert!(kept.is_ok(), "there is a place for every parcel");
    }

    /// The next that is full.
    pub fn take_full(&self) -> Option<Parcel> {
        self.full.pop()
    }

    /// One is packed.
    pub fn put_full(&self, parcel: Parcel) {
        let kept = self.full.push(parcel);
        debug_assert!(kept.is_ok(), "there is a place for every parcel");
    }
}

/// One datagram.
#[derive(Debug)]
pub struct Parcel {
    /// The relayed address it is for.
    pub relayed: SocketAddr,
    /// The address it comes from, as its receiver knows it.
    pub seen_as: SocketAddr,
    len: usize,
    bytes: &'static mut [u8],
}

impl Parcel {
    fn new(bytes: &'static mut [u8]) -> Self {
        let nobody = SocketAddr::from(([0; 4], 0));
        Self { relayed: nobody, seen_as: nobody, len: 0, bytes }
    }

    /// Takes a payload in, for which there is room.
    pub(super) fn pack(&mut self, relayed: SocketAddr, seen_as: SocketAddr, payload: &[u8]) {
        (self.relayed, self.seen_as, self.len) = (relayed, seen_as, payload.len());
        self.bytes[..payload.len()].copy_from_slice(payload);
    }

    /// What is in it.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
