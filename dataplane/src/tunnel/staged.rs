//! Packets that wait for a handshake: bounded in number, bytes and age; the oldest goes first when there is no room.
//!
//! No peer gets more than a share of what the others leave free, so that some is always left: who sends to many that do not answer
//! cannot keep others from waiting for theirs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::drops::{Cause, Drops};

/// Packets that may wait for one peer.
pub const PACKETS_MAX: usize = 128;
/// Bytes that may wait for one peer.
pub const BYTES_MAX: usize = 256 << 10;
/// Bytes that may wait for all peers together.
pub const ALL_BYTES_MAX: usize = 16 << 20;
/// One peer may have this part of what is free, at most: all of [`BYTES_MAX`] while nothing else waits.
const SHARE: usize = ALL_BYTES_MAX / BYTES_MAX;
/// How long a packet waits: three initiations' time. A TCP sender has long repeated it by then.
pub const AGE_MAX: Duration = Duration::from_secs(15);

/// Packets that wait for one peer's handshake, oldest first.
#[derive(Debug, Default)]
pub struct Staged {
    packets: VecDeque<(Instant, Box<[u8]>)>,
    bytes: usize,
}

impl Staged {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// When the oldest packet has waited too long.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.packets.front().map(|(since, _)| *since + AGE_MAX)
    }

    /// Adds a packet. `all_bytes` is the sum over all peers. What had to go for it is counted in `drops`.
    pub fn push(&mut self, packet: &[u8], all_bytes: &mut usize, drops: &mut Drops, now: Instant) {
        let fits = |staged: &Self, all: usize| {
            let share = ALL_BYTES_MAX.saturating_sub(all - staged.bytes) / SHARE;
            staged.packets.len() < PACKETS_MAX && staged.bytes + packet.len() <= BYTES_MAX.min(share)
        };
        while !fits(self, *all_bytes) {
            drops.count(Cause::StagedFull);
            if self.pop(all_bytes).is_none() {
                return;
            }
        }
        self.bytes += packet.len();
        *all_bytes += packet.len();
        self.packets.push_back((now, packet.into()));
    }

    /// Takes the oldest packet.
    pub fn pop(&mut self, all_bytes: &mut usize) -> Option<Box<[u8]>> {
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        *all_bytes -= packet.len();
        if self.packets.is_empty() {
            // A peer for which nothing waits keeps no memory for it.
            self.packets = VecDeque::new();
        }
        Some(packet)
    }

    /// Drops packets that have waited too long.
    pub fn expire(&mut self, all_bytes: &mut usize, drops: &mut Drops, now: Instant) {
        while self.next_expiry().is_some_and(|expiry| expiry <= now) {
            let _ = self.pop(all_bytes); // there is one, or it would not expire
            drops.count(Cause::StagedExpired);
        }
    }

    /// Drops everything.
    pub fn clear(&mut self, all_bytes: &mut usize, cause: Cause, drops: &mut Drops) {
        while self.pop(all_bytes).is_some() {
            drops.count(cause);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_number_or_bytes_are_used_up() {
        let (mut staged, mut bytes, mut drops) = (Staged::default(), 0, Drops::default());
        let now = Instant::now();
        for number in 0..PACKETS_MAX as u8 + 2 {
            staged.push(&[number; 10], &mut bytes, &mut drops, now);
        }
        assert_eq!(drops.get(Cause::StagedFull), 2);
        assert_eq!(bytes, PACKETS_MAX * 10);
        assert_eq!(staged.pop(&mut bytes).as_deref(), Some([2; 10].as_slice()));

        for _ in 0..5 {
            staged.push(&vec![0; 65_000], &mut bytes, &mut drops, now);
        }
        assert!(bytes <= BYTES_MAX, "{bytes}");
        assert_eq!(drops.total(), 2 + 127 + 1, "all small ones and one large one");
    }

    #[test]
    fn all_peers_together_are_bounded_and_leave_room_for_another() {
        let (mut bytes, mut drops) = (0, Drops::default());
        let now = Instant::now();
        let mut peers: Vec<Staged> = (0..1_000).map(|_| Staged::default()).collect();
        // Somebody has much to say to many that are not there.
        for _ in 0..200 {
            for peer in &mut peers {
                peer.push(&[0; 1_400], &mut bytes, &mut drops, now);
            }
        }
        assert!(bytes <= ALL_BYTES_MAX * 19 / 20, "{bytes}");
        let (mut other, before) = (Staged::default(), drops.total());
        for _ in 0..8 {
            other.push(&[1; 1_400], &mut bytes, &mut drops, now);
        }
        assert_eq!((other.bytes, drops.total()), (8 * 1_400, before));
        for peer in peers.iter_mut().chain([&mut other]) {
            peer.clear(&mut bytes, Cause::Shutdown, &mut drops);
        }
        assert_eq!((bytes, drops.total()), (0, 200_008));
    }

    #[test]
    fn packets_grow_old() {
        let (mut staged, mut bytes, mut drops) = (Staged::default(), 0, Drops::default());
        let start = Instant::now();
        staged.push(b"old", &mut bytes, &mut drops, start);
        staged.push(b"young", &mut bytes, &mut drops, start + Duration::from_secs(1));
        staged.expire(&mut bytes, &mut drops, start + AGE_MAX);
        assert_eq!(drops.get(Cause::StagedExpired), 1);
        assert_eq!(staged.pop(&mut bytes).as_deref(), Some(b"young".as_slice()));
    }
}
