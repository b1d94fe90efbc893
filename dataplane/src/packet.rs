//! The stack packet: one IP packet or datagram in a fixed array, with room in front for headers and behind for tags.
//!
//! A driver makes one `Packet` before its loop and hands it down as `&mut Packet`; nothing clones it or puts it on the
//! heap.
//!
//! ```text
//!  0            start                    end                     CAPACITY
//!  |  headroom  |  the packet: as_slice() |  tailroom             |
//! ```

/// Bytes in front of a fresh packet: a virtio_net header (12), a ChannelData header (4), a WireGuard data header (16)
/// and an outer IPv6 and UDP header (48) fit together.
pub const HEADROOM: usize = 128;
/// Bytes behind the longest packet: 15 of WireGuard padding, 16 of Poly1305 tag, and slack to keep the end aligned.
pub const TAILROOM: usize = 128;
/// The longest packet: an IP total length is 16 bits wide.
pub const MAX_LEN: usize = 65_535;
/// Size of the array.
pub const CAPACITY: usize = HEADROOM + MAX_LEN + 1 + TAILROOM;

/// One IP packet or datagram in a fixed array.
pub struct Packet {
    start: usize,
    end: usize,
    bytes: [u8; CAPACITY],
}

impl Default for Packet {
    fn default() -> Self {
        Self::new()
    }
}

impl Packet {
    /// An empty packet whose content starts behind [`HEADROOM`].
    #[must_use]
    pub const fn new() -> Self {
        Self { start: HEADROOM, end: HEADROOM, bytes: [0; CAPACITY] }
    }

    /// Forgets the content; the bytes stay where they are.
    pub fn clear(&mut self) {
        self.start = HEADROOM;
        self.end = HEADROOM;
    }

    /// Content length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is no content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The content.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The content, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Everything behind [`HEADROOM`], for a callee that needs a destination of at least 65,535 bytes; follow with
    /// [`Packet::set_len`].
    pub fn buffer(&mut self) -> &mut [u8] {
        self.clear();
        &mut self.bytes[HEADROOM..]
    }

    /// Makes the first `len` bytes behind [`HEADROOM`] the content, as written through [`Packet::buffer`].
    ///
    /// # Panics
    /// When `len` is above [`MAX_LEN`] + [`TAILROOM`]: the caller's own length, never one from the network.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= MAX_LEN + TAILROOM, "packet length {len} is above the capacity");
        self.start = HEADROOM;
        self.end = HEADROOM + len;
    }

    /// Replaces the content; `None` (and nothing changed) when `content` is longer than [`MAX_LEN`].
    pub fn copy_from(&mut self, content: &[u8]) -> Option<()> {
        if content.len() > MAX_LEN {
            return None;
        }
        self.set_len(content.len());
        self.as_mut_slice().copy_from_slice(content);
        Some(())
    }

    /// Shortens the content to `len` bytes; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }

    /// Takes `len` bytes of headroom into the content and returns them; `None` when there are not that many.
    pub fn push_front(&mut self, len: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(len)?;
        Some(&mut self.bytes[self.start..self.start + len])
    }

    /// Gives the first `len` bytes of the content back to the headroom; `None` when the content is shorter.
    pub fn pull_front(&mut self, len: usize) -> Option<()> {
        if len > self.len() {
            return None;
        }
        self.start += len;
        Some(())
    }

    /// Appends zero bytes until the content length is a multiple of `unit`; `None` when the tailroom is too small.
    pub fn pad_to(&mut self, unit: usize) -> Option<()> {
        let end = self.start + self.len().next_multiple_of(unit);
        self.bytes.get_mut(self.end..end)?.fill(0);
        self.end = end;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_go_into_headroom_and_come_off_again() {
        let mut packet = Packet::new();
        packet.copy_from(b"payload").expect("fits");
        packet.push_front(4).expect("headroom").copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(packet.as_slice(), b"\x01\x02\x03\x04payload");
        packet.pull_front(4).expect("content");
        assert_eq!(packet.as_slice(), b"payload");
    }

    #[test]
    fn refuses_what_does_not_fit_and_stays_unharmed() {
        let mut packet = Packet::new();
        packet.copy_from(b"abc").expect("fits");
        assert!(packet.copy_from(&vec![0; MAX_LEN + 1]).is_none());
        assert!(packet.push_front(HEADROOM + 1).is_none());
        assert!(packet.pull_front(4).is_none());
        assert_eq!(packet.as_slice(), b"abc");
    }

    #[test]
    fn padding_is_zero_even_over_old_bytes() {
        let mut packet = Packet::new();
        packet.copy_from(&[0xff; 64]).expect("fits");
        packet.copy_from(&[7; 17]).expect("fits");
        packet.pad_to(16).expect("tailroom");
        assert_eq!(packet.len(), 32);
        assert_eq!(packet.as_slice()[17..], [0; 15]);
    }
}
