//! Filling slots: packets are appended where a neighbour to the same destination waits, else a fresh slot is opened.
//!
//! Slots leave in the order in which they were opened, and a flow has at most one open slot, so the order of every flow
//! is kept.

mod filling;
mod sealing;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

pub use self::filling::{Content, Filled};
use self::filling::{Filling, Memory};
use super::{Class, Port, Target, Unsealed};
use crate::crypto::Boss;
use crate::offload::candidate::{Flow, Kind as Mergeable, inspect};
use crate::offload::coalesce::Superpacket;
use crate::sys::slab::{Slab, Slot};
use crate::sys::tun::Offloads;

/// Segments in one UDP superpacket: UDP_MAX_SEGMENTS before Linux 6.11.
pub const SEGMENTS_MAX: usize = 64;
/// Payload of one UDP superpacket: what a UDP length field holds over IPv4.
pub const BYTES_MAX: usize = 65_507;
/// Destinations whose slot may stay open while a batch is worked on. A power of two.
const OPEN_SOCKET_SLOTS: usize = 64;
/// Inner flows whose slot may stay open while a batch is worked on.
const OPEN_DEVICE_SLOTS: usize = 8;
/// Destinations remembered for having refused superpackets.
const REFUSED_MAX: usize = 8;
/// Slots that only control packets may take.
pub const RESERVED_SLOTS: usize = 4;

/// Where a datagram can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind its neighbours in filled slot number so and so.
    Open(usize),
    /// Into a fresh slot.
    Fresh,
    /// No slot is free: make room first.
    Full,
}

/// The slots of one egress that are free or being filled.
pub struct Staging {
    slab: Arc<Slab>,
    free_sockets: Vec<Slot>,
    free_devices: Vec<Slot>,
    /// Slots from here on belong to devices.
    devices_from: usize,
    filled: Vec<Filling>,
    /// Closed slots in the order in which they leave. They can once they are sealed.
    leaving: VecDeque<Filling>,
    /// Who seals beside the loop.
    boss: Option<Boss>,
    /// By number: slots that the crypto threads are through with.
    back: Box<[Option<Slot>]>,
    /// Ports that have a closed slot which cannot leave yet, while closed slots are looked through.
    held_up: Vec<Port>,
    /// The last filled slot that is full and here. It is handed over when there is another.
    full: Option<usize>,
    /// Index into `filled`, plus one, by hash of port and destination.
    open_sockets: [u16; OPEN_SOCKET_SLOTS],
    /// Index into `filled` of the open slot that took the last datagram: neighbours mostly have one destination.
    last: Option<usize>,
    /// Indices into `filled` of device slots that may still take a packet.
    open_devices: Vec<usize>,
    gso: bool,
    /// Destinations whose path refused a superpacket, with its segment size.
    refused: Vec<(SocketAddr, usize)>,
    /// Sockets through which no superpackets leave any more.
    without_gso: Vec<Port>,
}

impl Staging {
    /// Takes all slots of a slab; those from `devices_from` on are for devices.
    pub fn new(slab: Arc<Slab>, slots: Vec<Slot>, devices_from: usize, gso: bool) -> Self {
        let count = slots.len();
        let mut staging = Self {
            slab,
            free_sockets: Vec::with_capacity(count),
            free_devices: Vec::with_capacity(count),
            devices_from,
            filled: Vec::with_capacity(count),
            leaving: VecDeque::with_capacity(count),
            boss: None,
            back: (0..count).map(|_| None).collect(),
            held_up: Vec::with_capacity(4),
            full: None,
            open_sockets: [0; OPEN_SOCKET_SLOTS],
            last: None,
            open_devices: Vec::with_capacity(OPEN_DEVICE_SLOTS),
            gso,
            refused: Vec::with_capacity(REFUSED_MAX),
            without_gso: Vec::new(),
        };
        // The last one released is the first one taken: it is the one still in the cache.
        slots.into_iter().rev().for_each(|slot| staging.release(slot));
        staging
    }

    /// The slots' memory.
    pub fn slab(&self) -> &Slab {
        &self.slab
    }

    /// Free slots, of both kinds.
    pub fn free_count(&self) -> usize {
        self.free_sockets.len() + self.free_devices.len()
    }

    /// Has crypto threads seal what [`Staging::append_unsealed`] leaves to be sealed.
    pub fn set_boss(&mut self, boss: Boss) {
        self.boss = Some(boss);
    }

    /// Who does so.
    pub fn boss(&self) -> Option<&Boss> {
        self.boss.as_ref()
    }

    /// Slots being filled or sealed.
    pub fn filled_count(&self) -> usize {
        self.filled.len() + self.leaving.len()
    }

    /// Takes a slot back.
    pub fn release(&mut self, slot: Slot) {
        match slot.index() < self.devices_from {
            true => self.free_sockets.push(slot),
            false => self.free_devices.push(slot),
        }
    }

    /// A free slot for datagrams that are kept elsewhere.
    pub fn take_socket_slot(&mut self) -> Option<Slot> {
        self.free_sockets.pop()
    }

    /// A free slot for a device packet that is kept elsewhere.
    pub fn take_device_slot(&mut self) -> Option<Slot> {
        self.free_devices.pop()
    }

    /// Whether a device packet would find a slot.
    pub fn has_device_slot(&self) -> bool {
        !self.free_devices.is_empty()
    }

    /// The path to a destination refused a superpacket of `size` byte segments: only smaller ones are put together for it
    /// until [`Staging::forget_refusals`].
    pub fn note_refusal(&mut self, to: SocketAddr, size: usize) {
        if let Some((_, limit)) = self.refused.iter_mut().find(|(other, _)| *other == to) {
            *limit = size.min(*limit);
            return;
        }
        if self.refused.len() == REFUSED_MAX {
            self.refused.remove(0);
        }
        self.refused.push((to, size));
    }

    /// Lifts every limit of [`Staging::note_refusal`]: paths change.
    pub fn forget_refusals(&mut self) {
        self.refused.clear();
    }

    /// No superpackets leave through a socket any more, which took the datagrams of one that it had refused. Of many sockets,
    /// none makes any more: looking through them must not cost more than superpackets save. `false` when that is so already.
    pub fn give_up_gso(&mut self, port: Port) -> bool {
        if !self.gso || self.without_gso.contains(&port) {
            return false;
        }
        self.without_gso.push(port);
        self.gso = self.without_gso.len() <= REFUSED_MAX;
        true
    }

    /// A socket is gone: the next of its number is another.
    pub fn forget_port(&mut self, port: Port) {
        self.without_gso.retain(|other| *other != port);
    }

    fn may_join(&self, target: &Target, len: usize) -> bool {
        !self.without_gso.contains(&target.port)
            && self.refused.iter().all(|&(to, limit)| to != target.to || len < limit)
    }

    /// Where a datagram of `len` bytes can go.
    pub fn place(&self, target: &Target, len: usize, wanted: Class) -> Place {
        if let Some(index) = self.open_slot(target)
            && let Filling {
                memory: Memory::Here(_),
                content: Content::Datagrams { segment_size, segments, class, .. },
                len: used,
                ..
            } = &self.filled[index]
        {
            // An empty datagram is none of the segments that the kernel cuts, so it would be lost among them.
            let fits =
                (1..=*segment_size).contains(&len) && *segments < SEGMENTS_MAX && used + len <= BYTES_MAX;
            // A shorter datagram before would have closed the slot: all so far are of the same size.
            if fits && *class == wanted && used == &(segment_size * segments) {
                return Place::Open(index);
            }
        }
        let reserved = if wanted == Class::Control { 0 } else { RESERVED_SLOTS.min(self.devices_from / 4) };
        if self.free_sockets.len() > reserved { Place::Fresh } else { Place::Full }
    }

    /// The filled slot that is open for this very target.
    fn open_slot(&self, target: &Target) -> Option<usize> {
        let same = |index: &usize| self.target_of(*index) == Some(target);
        self.last.filter(same).or_else(|| self.way(target).and_then(|way| self.open_in(way)).filter(same))
    }

    /// Where the datagrams of a filled slot go.
    fn target_of(&self, index: usize) -> Option<&Target> {
        match &self.filled.get(index)?.content {
            Content::Datagrams { target, .. } => Some(target),
            Content::Device { .. } => None,
        }
    }

    /// The filled slot that is open in one entry of the table.
    fn open_in(&self, way: usize) -> Option<usize> {
        usize::from(self.open_sockets[way]).checked_sub(1)
    }

    /// The entry of the table that holds the destination of this target: one of its two.
    fn way(&self, target: &Target) -> Option<usize> {
        let first = bucket(target);
        let same = |other: &Target| (other.port, other.to) == (target.port, target.to);
        [first, first ^ 1]
            .into_iter()
            .find(|&way| self.open_in(way).and_then(|index| self.target_of(index)).is_some_and(same))
    }

    /// Makes slot number `index` the open one of its destination; `None` leaves the destination without one. Its own entry
    /// is the one replaced, so that it never has two open slots, also when they differ in what else a target says: packets
    /// of one flow can, as when some of them are marked as congested, and none must overtake another.
    fn set_open(&mut self, target: &Target, index: Option<usize>) {
        let first = bucket(target);
        let vacant = [first, first ^ 1].into_iter().find(|&way| self.open_sockets[way] == 0);
        match (self.way(target).or(vacant), index) {
            (Some(way), index) => self.open_sockets[way] = index.map_or(0, |index| index as u16 + 1),
            (None, Some(index)) => self.open_sockets[first] = index as u16 + 1,
            (None, None) => {}
        }
    }

    /// Appends a datagram of `len` bytes at a place that [`Staging::place`] has just named. `false` when `fill` refused,
    /// or the place is [`Place::Full`].
    pub fn append(
        &mut self,
        place: Place,
        target: &Target,
        len: usize,
        class: Class,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        self.append_unsealed(place, target, len, class, |bytes| fill(bytes).then_some(None))
    }

    /// As [`Staging::append`], of a datagram that may have to be sealed before it leaves, which is seen to.
    pub fn append_unsealed<'k>(
        &mut self,
        place: Place,
        target: &Target,
        len: usize,
        class: Class,
        fill: impl FnOnce(&mut [u8]) -> Option<Option<Unsealed<'k>>>,
    ) -> bool {
        let (index, unsealed) = match place {
            Place::Full => return false,
            Place::Open(index) => {
                let filling = &mut self.filled[index];
                let Some(bytes) = filling.bytes(&self.slab, filling.len, len) else { return false };
                let Some(unsealed) = fill(bytes) else { return false };
                filling.len += len;
                if let Content::Datagrams { segments, .. } = &mut filling.content {
                    *segments += 1;
                }
                self.last = Some(index);
                (index, unsealed)
            }
            Place::Fresh => {
                let Some(mut slot) = self.free_sockets.pop() else { return false };
                let Some(unsealed) = fill(&mut self.slab.bytes(&mut slot)[..len]) else {
                    self.free_sockets.push(slot);
                    return false;
                };
                // An empty datagram has no segment size, so it stays alone. So does one that must not be fragmented: the
                // kernel leaves DF out where the superpacket as a whole is above the MTU.
                let open = self.gso && len > 0 && !target.dont_fragment && self.may_join(target, len);
                self.last = open.then_some(self.filled.len());
                self.set_open(target, self.last);
                let content = Content::Datagrams { target: *target, segment_size: len, segments: 1, class };
                self.filled.push(Filling { memory: Memory::Here(slot), len, content, unsealed: None });
                (self.filled.len() - 1, unsealed)
            }
        };
        if let Some(unsealed) = unsealed {
            self.note_unsealed(index, len, unsealed);
        }
        true
    }

    /// Appends an IP packet for a device; `false` when no slot is free.
    pub fn deliver(&mut self, port: Port, packet: &[u8], offloads: Offloads) -> bool {
        if offloads.bare {
            return self.deliver_bare(port, packet);
        }
        let candidate = inspect(packet, offloads);
        if candidate.kind() != Mergeable::Alone && self.join(port, packet, &candidate) {
            return true;
        }
        let Some(mut slot) = self.free_devices.pop() else { return false };
        if let Some(flow) = candidate.flow() {
            self.close_conflicting(port, flow);
        }
        let superpacket = Superpacket::start(self.slab.bytes(&mut slot), packet, &candidate);
        if superpacket.is_open() {
            if self.open_devices.len() == OPEN_DEVICE_SLOTS {
                self.open_devices.remove(0);
            }
            self.open_devices.push(self.filled.len());
        }
        let content = Content::Device { port, segments: 1, superpacket: Some(superpacket) };
        self.filled.push(Filling { memory: Memory::Here(slot), len: 0, content, unsealed: None });
        true
    }

    /// Appends a packet for a device that takes it as it is.
    fn deliver_bare(&mut self, port: Port, packet: &[u8]) -> bool {
        let Some(mut slot) = self.free_devices.pop() else { return false };
        self.slab.bytes(&mut slot)[..packet.len()].copy_from_slice(packet);
        let content = Content::Device { port, segments: 1, superpacket: None };
        self.filled.push(Filling { memory: Memory::Here(slot), len: packet.len(), content, unsealed: None });
        true
    }

    /// Merges a packet into an open superpacket of its flow.
    fn join(
        &mut self,
        device: Port,
        packet: &[u8],
        candidate: &crate::offload::candidate::Candidate,
    ) -> bool {
        // The newest first: neighbours are mostly of the same flow.
        for position in (0..self.open_devices.len()).rev() {
            let filled = &mut self.filled[self.open_devices[position]];
            if let Content::Device { port, superpacket: Some(superpacket), .. } = &mut filled.content
                && *port == device
                && superpacket.flow() == candidate.flow()
                && let Memory::Here(slot) = &mut filled.memory
                && superpacket.try_append(self.slab.bytes(slot), packet, candidate)
            {
                if !superpacket.is_open() {
                    self.open_devices.remove(position);
                }
                return true;
            }
        }
        false
    }

    /// Closes open superpackets that a later packet of `flow` must not overtake.
    fn close_conflicting(&mut self, device: Port, flow: Flow) {
        let filled = &self.filled;
        self.open_devices.retain(|&index| match &filled[index].content {
            Content::Device { port, superpacket: Some(superpacket), .. } => {
                *port != device || !superpacket.flow().is_some_and(|other| other.conflicts(flow))
            }
            _ => false,
        });
    }
}

/// A cheap, unkeyed hash: a collision only costs a superpacket.
fn bucket(target: &Target) -> usize {
    let address = match target.to.ip() {
        std::net::IpAddr::V4(v4) => u64::from(v4.to_bits()),
        std::net::IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64 ^ v6.to_bits() as u64,
    };
    let key = address ^ u64::from(target.to.port()) << 32 ^ u64::from(target.port.0) << 48;
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - OPEN_SOCKET_SLOTS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::crypto::Key;

    fn staging(count: usize, gso: bool) -> Staging {
        let (slab, slots) = Slab::new(count).expect("mapped");
        Staging::new(Arc::new(slab), slots, count, gso)
    }

    fn target(port: u16) -> Target {
        Target {
            port: Port(0),
            to: ([192, 0, 2, 1], port).into(),
            from: None,
            traffic_class: 0,
            dont_fragment: false,
        }
    }

    fn put(staging: &mut Staging, target: &Target, bytes: &[u8]) -> bool {
        let place = staging.place(target, bytes.len(), Class::Data);
        staging.append(place, target, bytes.len(), Class::Data, |slot| {
            slot.copy_from_slice(bytes);
            true
        })
    }

    fn sealed(staging: &mut Staging) -> Vec<(u16, usize, usize, Vec<u8>)> {
        let mut out = Vec::new();
        staging.close();
        staging.take_sealed(0, &mut out).expect("sealed");
        out.into_iter()
            .map(|mut filled| {
                let bytes = staging.slab.bytes(&mut filled.slot)[..filled.len].to_vec();
                let Content::Datagrams { target, segment_size, segments, .. } = filled.content else {
                    panic!("device")
                };
                staging.release(filled.slot);
                (target.to.port(), segment_size, segments, bytes)
            })
            .collect()
    }

    #[test]
    fn equal_neighbours_share_a_slot_and_a_shorter_one_closes_it() {
        let mut staging = staging(8, true);
        for bytes in [&b"aaaa"[..], b"bbbb", b"cc", b"dd"] {
            assert!(put(&mut staging, &target(1), bytes));
        }
        let slots = sealed(&mut staging);
        assert_eq!(slots, vec![(1, 4, 3, b"aaaabbbbcc".to_vec()), (1, 2, 1, b"dd".to_vec())]);
    }

    #[test]
    fn what_must_not_be_fragmented_goes_alone_and_is_not_overtaken() {
        let mut staging = staging(8, true);
        let whole = Target { dont_fragment: true, ..target(1) };
        for (target, bytes) in
            [(target(1), b"a"), (target(1), b"b"), (whole, b"c"), (whole, b"d"), (target(1), b"e")]
        {
            assert!(put(&mut staging, &target, bytes));
        }
        let slots: Vec<(usize, Vec<u8>)> =
            sealed(&mut staging).into_iter().map(|slot| (slot.2, slot.3)).collect();
        let expected = [(2, b"ab".to_vec()), (1, b"c".to_vec()), (1, b"d".to_vec()), (1, b"e".to_vec())];
        assert_eq!(slots, expected);
    }

    #[test]
    fn datagrams_of_another_traffic_class_are_not_put_together_and_not_overtaken() {
        let mut staging = staging(8, true);
        let marked = Target { traffic_class: 3, ..target(1) };
        for (target, bytes) in
            [(target(1), b"a"), (target(1), b"b"), (marked, b"c"), (marked, b"d"), (target(1), b"e")]
        {
            assert!(put(&mut staging, &target, bytes));
        }
        let slots: Vec<(usize, Vec<u8>)> =
            sealed(&mut staging).into_iter().map(|slot| (slot.2, slot.3)).collect();
        assert_eq!(slots, [(2, b"ab".to_vec()), (2, b"cd".to_vec()), (1, b"e".to_vec())]);
    }

    #[test]
    fn a_flow_keeps_its_order_between_other_flows() {
        let mut staging = staging(8, true);
        for (port, bytes) in [(1, &b"a1"[..]), (2, b"b1"), (1, b"a2"), (2, b"b2!"), (1, b"a3")] {
            assert!(put(&mut staging, &target(port), bytes));
        }
        let slots = sealed(&mut staging);
        let of = |port| {
            slots.iter().filter(|slot| slot.0 == port).flat_map(|slot| slot.3.clone()).collect::<Vec<u8>>()
        };
        assert_eq!(of(1), b"a1a2a3");
        assert_eq!(of(2), b"b1b2!");
        assert_eq!(slots.len(), 3);
    }

    #[test]
    fn two_destinations_that_share_a_bucket_both_keep_their_slot() {
        let mut staging = staging(8, true);
        let other = (2..1000).find(|&port| bucket(&target(port)) == bucket(&target(1))).expect("a collision");
        for _ in 0..10 {
            assert!(put(&mut staging, &target(1), b"a"));
            assert!(put(&mut staging, &target(other), b"b"));
        }
        let slots = sealed(&mut staging);
        assert_eq!(slots.iter().map(|slot| (slot.0, slot.2)).collect::<Vec<_>>(), vec![(1, 10), (other, 10)]);
    }

    #[test]
    fn a_path_that_refused_superpackets_costs_other_destinations_nothing() {
        let mut staging = staging(8, true);
        staging.note_refusal(target(1).to, 4);
        for port in [1, 2, 1, 2] {
            assert!(put(&mut staging, &target(port), b"four"));
        }
        let count =
            |slots: &[(u16, usize, usize, Vec<u8>)], port| slots.iter().filter(|slot| slot.0 == port).count();
        let slots = sealed(&mut staging);
        assert_eq!((count(&slots, 1), count(&slots, 2)), (2, 1));
        staging.forget_refusals();
        (0..2).for_each(|_| assert!(put(&mut staging, &target(1), b"four")));
        assert_eq!(count(&sealed(&mut staging), 1), 1);
    }

    #[test]
    fn a_slot_takes_64_segments_and_no_more_bytes_than_udp_does() {
        let mut staging = staging(8, true);
        (0..65).for_each(|_| assert!(put(&mut staging, &target(1), b"x")));
        assert_eq!(sealed(&mut staging).iter().map(|slot| slot.2).collect::<Vec<_>>(), vec![64, 1]);
        (0..3).for_each(|_| assert!(put(&mut staging, &target(1), &[0; 30_000])));
        assert_eq!(sealed(&mut staging).iter().map(|slot| slot.2).collect::<Vec<_>>(), vec![2, 1]);
    }

    #[test]
    fn without_gso_every_datagram_has_its_slot() {
        let mut staging = staging(8, false);
        (0..3).for_each(|_| assert!(put(&mut staging, &target(1), b"x")));
        assert_eq!(sealed(&mut staging).len(), 3);
    }

    #[test]
    fn the_last_slots_are_for_control_packets() {
        let mut staging = staging(16, false);
        let mut data = 0;
        while put(&mut staging, &target(1), b"x") {
            data += 1;
        }
        assert_eq!(data, 16 - RESERVED_SLOTS);
        assert_eq!(staging.place(&target(1), 1, Class::Data), Place::Full);
        assert_eq!(staging.place(&target(1), 1, Class::Control), Place::Fresh);
        assert_eq!(staging.free_count() + staging.filled_count(), 16);
    }

    #[test]
    fn a_refusing_closure_appends_nothing() {
        let mut staging = staging(8, true);
        assert!(put(&mut staging, &target(1), b"aa"));
        for _ in 0..2 {
            let place = staging.place(&target(1), 2, Class::Data);
            assert!(!staging.append(place, &target(1), 2, Class::Data, |_| false));
        }
        assert_eq!(sealed(&mut staging), vec![(1, 2, 1, b"aa".to_vec())]);
        assert_eq!(staging.free_count(), 8);
    }

    #[test]
    fn an_empty_datagram_stays_alone() {
        let mut staging = staging(8, true);
        (0..2).for_each(|_| assert!(put(&mut staging, &target(1), b"")));
        assert_eq!(sealed(&mut staging).len(), 2);
        // Also behind others, where it would be a segment that the kernel never sends.
        for bytes in [&b"aa"[..], b"bb", b"", b"cc"] {
            assert!(put(&mut staging, &target(1), bytes));
        }
        let segments: Vec<_> = sealed(&mut staging).into_iter().map(|slot| (slot.1, slot.2)).collect();
        assert_eq!(segments, vec![(2, 2), (0, 1), (2, 1)]);
    }

    fn key() -> Key {
        Key::new(Zeroizing::new([9; 32]))
    }

    fn other() -> Key {
        Key::new(Zeroizing::new([8; 32]))
    }

    /// Length of a message, bytes, and how many fill a slot, with room for a short one behind them.
    const MESSAGE: usize = 1_400;
    const FULL: u64 = 46;

    /// Puts a message of `len` bytes with this counter, unsealed, behind `front` bytes.
    fn put_unsealed(
        staging: &mut Staging,
        target: &Target,
        key: &Key,
        counter: u64,
        front: usize,
        len: usize,
    ) {
        let place = staging.place(target, front + len, Class::Data);
        assert!(staging.append_unsealed(place, target, front + len, Class::Data, |bytes| {
            bytes.copy_from_slice(&message(counter, front, len));
            Some(Some(Unsealed { key, front }))
        }));
    }

    fn message(counter: u64, front: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![counter as u8; front + len];
        bytes[front + 8..front + 16].copy_from_slice(&counter.to_le_bytes());
        bytes
    }

    /// The same, sealed.
    fn sealed_message(key: &Key, counter: u64, front: usize, len: usize) -> Vec<u8> {
        let mut bytes = message(counter, front, len);
        Unsealed { key, front }.seal(&mut bytes);
        bytes
    }

    /// As many messages as fit into five slots, and a few, by way of one destination, in each of the ways in which they are sealed.
    fn sealed_in_order(threads: Option<usize>) {
        let mut staging = staging(16, true);
        if let Some(threads) = threads {
            staging.set_boss(Boss::start(threads, 16, 1).expect("threads"));
        }
        let (mut expected, mut counter) = (Vec::new(), 0);
        let (key, other) = (key(), other());
        for round in 0..50 {
            for index in 0..330 {
                // A shorter one closes its slot, and finds no room in one that is with a crypto thread.
                let len = if index % (FULL + 1) == FULL { 100 } else { MESSAGE };
                let (used, front) = match round % 3 {
                    0 => (&key, 0),
                    1 => (&other, 4),
                    // From one to the next another key, and what is not to be sealed at all.
                    _ if index % 7 == 0 => {
                        let bytes = message(counter, 0, len);
                        assert!(put(&mut staging, &target(1), &bytes));
                        expected.extend(bytes);
                        counter += 1;
                        continue;
                    }
                    _ if index % 2 == 0 => (&key, 0),
                    _ => (&other, 0),
                };
                put_unsealed(&mut staging, &target(1), used, counter, front, len);
                expected.extend(sealed_message(used, counter, front, len));
                counter += 1;
            }
            staging.close();
            let mut out = Vec::new();
            let mut found = Vec::new();
            while staging.take_sealed(0, &mut out).expect("sealed") {
                for mut filled in out.drain(..) {
                    found.extend_from_slice(&staging.slab.bytes(&mut filled.slot)[..filled.len]);
                    staging.release(filled.slot);
                }
            }
            assert!(found == expected, "round {round}");
            expected.clear();
            assert_eq!((staging.free_count(), staging.filled_count()), (16, 0));
        }
        let stats = staging.boss().map(Boss::stats).unwrap_or_default();
        assert_eq!(stats.handed_over > 0, threads.is_some(), "{stats:?}");
    }

    #[test]
    fn what_the_loop_seals_is_what_was_appended() {
        sealed_in_order(None);
    }

    #[test]
    fn what_crypto_threads_seal_leaves_in_the_order_in_which_it_came() {
        sealed_in_order(Some(2));
    }

    #[test]
    fn with_crypto_threads_that_get_no_core_the_loop_seals() {
        sealed_in_order(Some(0));
    }

    #[test]
    fn one_superpacket_alone_is_not_handed_over() {
        let mut staging = staging(8, true);
        staging.set_boss(Boss::start(0, 8, 1).expect("no threads"));
        let key = key();
        (0..FULL).for_each(|counter| put_unsealed(&mut staging, &target(1), &key, counter, 0, MESSAGE));
        staging.close();
        let mut out = Vec::new();
        assert!(staging.take_sealed(0, &mut out).expect("sealed"));
        assert_eq!((out.len(), staging.boss().map(|boss| boss.stats().handed_over)), (1, Some(0)));
    }

    #[test]
    fn what_is_not_sealed_may_stay_behind_but_not_more_of_it() {
        let mut staging = staging(16, true);
        staging.set_boss(Boss::start(0, 16, 1).expect("no threads"));
        let key = key();
        (0..5 * FULL).for_each(|counter| put_unsealed(&mut staging, &target(1), &key, counter, 0, MESSAGE));
        staging.close();
        let mut out = Vec::new();
        assert!(!staging.take_sealed(5, &mut out).expect("behind"), "nobody has sealed anything");
        assert_eq!(staging.filled_count(), 5);
        while staging.take_sealed(2, &mut out).expect("sealed") {}
        assert_eq!((out.len(), staging.filled_count()), (3, 2));
        while staging.take_sealed(0, &mut out).expect("sealed") {}
        let bytes: Vec<u8> = out
            .iter_mut()
            .flat_map(|filled| staging.slab.bytes(&mut filled.slot)[..filled.len].to_vec())
            .collect();
        let expected: Vec<u8> =
            (0..5 * FULL).flat_map(|counter| sealed_message(&key, counter, 0, MESSAGE)).collect();
        assert!(bytes == expected);
    }

    #[test]
    fn what_is_not_sealed_holds_up_its_own_port_only() {
        let mut staging = staging(16, true);
        staging.set_boss(Boss::start(0, 16, 1).expect("no threads"));
        let (key, socket) = (key(), target(1));
        let other = Target { port: Port(77), ..target(2) };
        assert_ne!(socket.port, other.port);
        (0..2 * FULL).for_each(|counter| put_unsealed(&mut staging, &socket, &key, counter, 0, MESSAGE));
        assert!(put(&mut staging, &target(2), b"behind"));
        assert!(put(&mut staging, &other, b"not behind"));
        staging.close();
        let mut out = Vec::new();
        assert!(staging.take_sealed(4, &mut out).expect("sealed"));
        assert_eq!(out.iter().map(Filled::port).collect::<Vec<_>>(), [other.port]);
        out.clear();
        while staging.take_sealed(0, &mut out).expect("sealed") {}
        let first = |filled: &mut Filled| staging.slab.bytes(&mut filled.slot)[8];
        assert_eq!(out.iter_mut().map(first).collect::<Vec<_>>()[..2], [0, FULL as u8]);
        assert!(out.len() == 3 && out.iter().is_sorted_by_key(|filled| filled.order));
    }
}
