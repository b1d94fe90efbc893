//! Memory that the kernel fills with what it receives: mapped once, owned buffer by buffer.
//!
//! A [`Buffer`] is the only key to its memory and cannot be copied, as with a slot of a [`super::slab::Slab`]. The ring makes one
//! when a completion names it, and provides it to the kernel again when it has come back.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Tells rings apart, so that a buffer of one cannot be used with another.
static NEXT_RING: AtomicU32 = AtomicU32::new(1);

/// An anonymous mapping.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory; whoever reaches into it says why nobody else does.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping just made.
        let _ = unsafe { libc::madvise(base, len, libc::MADV_DONTFORK) };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { base, len })
    }

    /// First byte.
    pub fn start(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`; its owner drops it after the kernel has let go of it.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Ownership of one buffer that the kernel has filled.
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer {
    index: u16,
    ring: u32,
    len: usize,
}

impl Buffer {
    /// Its number among the buffers of its ring.
    #[must_use]
    pub fn index(&self) -> usize {
        usize::from(self.index)
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The memory of all buffers of a ring.
pub struct Buffers {
    mapping: Mapping,
    count: u16,
    id: u32,
    /// Of one buffer.
    size: usize,
}

impl Buffers {
    pub(super) fn new(count: u16, size: usize) -> io::Result<Self> {
        let id = NEXT_RING.fetch_add(1, Ordering::Relaxed);
        Ok(Self { mapping: Mapping::new(usize::from(count) * size)?, count, id, size })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The filled part of a buffer.
    ///
    /// # Panics
    /// When the buffer is of another ring: a mistake in this program.
    #[must_use]
    pub fn bytes<'a>(&'a self, buffer: &'a mut Buffer) -> &'a mut [u8] {
        self.check(buffer);
        let start = self.start_of(buffer.index);
        // SAFETY: `taken` has made sure that the range is inside one buffer of the mapping; `buffer` is its only key and is
        // borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(start, buffer.len) }
    }

    /// Makes sure that a buffer is one of these.
    pub(super) fn check(&self, buffer: &Buffer) {
        assert_eq!(buffer.ring, self.id, "a buffer was used with another ring");
    }

    /// The key to a buffer that a completion has named, with so many bytes in it; `None` where there is no such buffer. The ring
    /// calls this once for each time that the kernel has let go of it.
    pub(super) fn taken(&self, index: u16, len: usize) -> Option<Buffer> {
        (index < self.count).then(|| Buffer { index, ring: self.id, len: len.min(self.size) })
    }

    /// First byte of buffer number `index`.
    pub(super) fn start_of(&self, index: u16) -> *mut u8 {
        assert!(index < self.count);
        // SAFETY: `index` is below the number of buffers that the mapping holds.
        unsafe { self.mapping.start().add(usize::from(index) * self.size) }
    }
}
