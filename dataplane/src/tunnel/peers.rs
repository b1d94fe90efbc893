//! The peers by number. A number is never given twice, so that one that is out of date finds nobody.

use std::ops::{Index, IndexMut};

use super::peer::Peer;

/// A peer's number: its place in a table in the lower half, how often that place was used before in the upper. The peers
/// that a [`super::Tunnel`] is made with are numbered from 0 in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerIndex(pub u64);

impl PeerIndex {
    fn new(place: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | place as u64)
    }

    /// Its place in the table.
    pub(super) fn place(self) -> usize {
        self.0 as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[derive(Default)]
struct Place {
    /// How many peers have had it before.
    generation: u32,
    /// In memory of its own, so that a peer that is removed leaves none behind and adding one moves no other.
    peer: Option<Box<Peer>>,
}

/// Peers by number.
#[derive(Default)]
pub(super) struct Peers {
    places: Vec<Place>,
    vacant: Vec<u32>,
    count: usize,
}

impl Peers {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { places: Vec::with_capacity(capacity), ..Self::default() }
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn insert(&mut self, peer: Peer) -> PeerIndex {
        let place = self.vacant.pop().map_or(self.places.len(), |place| place as usize);
        if place == self.places.len() {
            self.places.push(Place::default());
        }
        self.count += 1;
        let entry = &mut self.places[place];
        entry.peer = Some(Box::new(peer));
        PeerIndex::new(place, entry.generation)
    }

    pub fn remove(&mut self, index: PeerIndex) -> Option<Box<Peer>> {
        self.get(index)?;
        self.count -= 1;
        let entry = &mut self.places[index.place()];
        let peer = entry.peer.take();
        // A place whose numbers are used up stays empty for good.
        if let Some(next) = entry.generation.checked_add(1) {
            entry.generation = next;
            self.vacant.push(index.place() as u32);
        }
        peer
    }

    pub fn get(&self, index: PeerIndex) -> Option<&Peer> {
        let entry = self.places.get(index.place())?;
        entry.peer.as_deref().filter(|_| entry.generation == index.generation())
    }

    pub fn get_mut(&mut self, index: PeerIndex) -> Option<&mut Peer> {
        let entry = self.places.get_mut(index.place())?;
        entry.peer.as_deref_mut().filter(|_| entry.generation == index.generation())
    }

    /// Places in use or vacant; the bound of [`Peers::at`].
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The peer at a place.
    pub fn at(&self, place: usize) -> Option<PeerIndex> {
        let entry = self.places.get(place)?;
        entry.peer.as_ref().map(|_| PeerIndex::new(place, entry.generation))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.places.iter_mut().filter_map(|entry| entry.peer.as_deref_mut())
    }
}

/// For numbers from tables that forget a peer when it is removed.
impl Index<PeerIndex> for Peers {
    type Output = Peer;

    fn index(&self, index: PeerIndex) -> &Peer {
        self.get(index).expect("the tables know only peers that are there")
    }
}

impl IndexMut<PeerIndex> for Peers {
    fn index_mut(&mut self, index: PeerIndex) -> &mut Peer {
        self.get_mut(index).expect("the tables know only peers that are there")
    }
}
