//! Slot memory of a fixed ring: mapped once, owned slot by slot, never freed while anything can reach it.
//!
//! A [`Slot`] is the only key to its memory and cannot be copied. Pushing an operation consumes the `Slot`; the ring
//! gives an equal one back with the terminal completion. So a slot that the kernel owns cannot be reached by safe code.

use std::cell::UnsafeCell;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::message::SendHeader;

/// Size of one slot in bytes: a full TUN superpacket with its header is 65,545 bytes. 66 KiB, not 64, also keeps
/// neighbouring slots off the same cache sets.
pub const SLOT_LEN: usize = 66 * 1024;

/// Tells slabs apart, so that a slot of one cannot be used with another.
static NEXT_SLAB: AtomicU32 = AtomicU32::new(1);

/// Ownership of one slot.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    index: u32,
    slab: u32,
}

impl Slot {
    /// Position in the slab, for accounting and tests.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index as usize
    }
}

/// The memory of all slots, and beside each slot what the kernel needs to send it.
pub struct Slab {
    base: NonNull<u8>,
    count: usize,
    id: u32,
    headers: Box<[UnsafeCell<SendHeader>]>,
    /// Odd while the kernel owns the slot; compared with the completion's user data.
    generations: Box<[AtomicU32]>,
}

// SAFETY: memory and headers are reached only through a `Slot`, of which there is one for each, or by the kernel.
unsafe impl Send for Slab {}
// SAFETY: as above; the generations are atomics.
unsafe impl Sync for Slab {}

impl Slab {
    /// Maps memory for `count` slots and hands out all of them. Pages are touched only when they are used.
    ///
    /// # Errors
    /// ENOMEM from mmap(2).
    pub fn new(count: usize) -> io::Result<(Self, Vec<Slot>)> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), count * SLOT_LEN, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping just made. A forked child must not share pages the kernel writes from.
        let _ = unsafe { libc::madvise(base, count * SLOT_LEN, libc::MADV_DONTFORK) };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let slab = Self {
            base,
            count,
            id: NEXT_SLAB.fetch_add(1, Ordering::Relaxed),
            headers: (0..count).map(|_| UnsafeCell::new(SendHeader::default())).collect(),
            generations: (0..count).map(|_| AtomicU32::new(0)).collect(),
        };
        let slots = (0..count as u32).map(|index| Slot { index, slab: slab.id }).collect();
        Ok((slab, slots))
    }

    /// How many slots there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The memory of a slot, [`SLOT_LEN`] bytes.
    #[must_use]
    pub fn bytes<'a>(&'a self, slot: &'a mut Slot) -> &'a mut [u8] {
        let start = self.address(slot);
        // SAFETY: the range is one slot of the mapping; `slot` is its only key and is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(start, SLOT_LEN) }
    }

    /// First byte of a slot.
    ///
    /// # Panics
    /// When the slot is of another slab: a mistake in this program.
    pub(super) fn address(&self, slot: &Slot) -> *mut u8 {
        assert_eq!(slot.slab, self.id, "a slot was used with another slab");
        self.start_of(slot.index as usize)
    }

    /// First byte of slot number `index`, for registering a range with the kernel.
    pub(super) fn start_of(&self, index: usize) -> *mut u8 {
        assert!(index < self.count);
        // SAFETY: `index` is below `count`, so the offset stays inside the mapping.
        unsafe { self.base.as_ptr().add(index * SLOT_LEN) }
    }

    /// The send header beside a slot.
    pub(super) fn header(&self, slot: &Slot) -> *mut SendHeader {
        assert_eq!(slot.slab, self.id, "a slot was used with another slab");
        self.headers[slot.index as usize].get()
    }

    /// Gives a slot to the kernel; the answer is the user data of its operation.
    pub(super) fn hand_over(&self, slot: Slot) -> u64 {
        let index = slot.index as usize;
        // Relaxed: the ring's own release and acquire order it, and only the owner of the slot gets here.
        let generation = self.generations[index].load(Ordering::Relaxed).wrapping_add(1);
        self.generations[index].store(generation, Ordering::Relaxed);
        debug_assert_eq!(generation & 1, 1, "a slot was handed over twice");
        u64::from(generation) << 32 | u64::from(slot.index)
    }

    /// Takes a slot back from the kernel, once for each hand-over; `None` for user data that is not in flight.
    pub(super) fn take_back(&self, user_data: u64) -> Option<Slot> {
        let (index, generation) = (user_data as u32, (user_data >> 32) as u32);
        let current = self.generations.get(index as usize)?;
        if generation & 1 == 0 {
            return None;
        }
        let next = generation.wrapping_add(1);
        current.compare_exchange(generation, next, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(Slot { index, slab: self.id })
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let in_flight = self.generations.iter().any(|generation| generation.load(Ordering::Relaxed) & 1 == 1);
        if in_flight {
            // The kernel may still read these pages: leaking them is the only safe answer.
            Box::leak(std::mem::take(&mut self.headers));
            return;
        }
        // SAFETY: this is the mapping made in `new`; no slot is in flight and no borrow can outlive `self`.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * SLOT_LEN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_keep_their_bytes() {
        let (slab, mut slots) = Slab::new(4).expect("mapped");
        for slot in &mut slots {
            let fill = slot.index() as u8 + 1;
            slab.bytes(slot).fill(fill);
        }
        for slot in &mut slots {
            let fill = slot.index() as u8 + 1;
            assert!(slab.bytes(slot).iter().all(|&byte| byte == fill));
        }
    }

    #[test]
    fn a_completion_gives_its_slot_back_exactly_once() {
        let (slab, mut slots) = Slab::new(2).expect("mapped");
        let user_data = slab.hand_over(slots.pop().expect("slot"));
        assert_eq!(slab.take_back(user_data ^ 1), None, "the other slot is not in flight");
        assert_eq!(slab.take_back(user_data.wrapping_add(2 << 32)), None, "another generation");
        assert_eq!(slab.take_back(user_data).map(|slot| slot.index()), Some(1));
        assert_eq!(slab.take_back(user_data), None, "a duplicate completion");
        assert_eq!(slab.take_back(99), None, "no such slot");
    }

    #[test]
    #[should_panic(expected = "another slab")]
    fn a_slot_opens_only_its_own_slab() {
        let (_first, mut slots) = Slab::new(1).expect("mapped");
        let (second, _) = Slab::new(1).expect("mapped");
        second.bytes(&mut slots[0])[0] = 1;
    }
}
