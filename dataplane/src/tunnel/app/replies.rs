//! Answers to strangers. Who sends a handshake message under load has proved nothing, not even that he is where he says; whatever
//! he brings about must not hold up those who have.
//!
//! A datagram to a neighbour that does not answer stays in the kernel for three seconds and in the send buffer of its socket all
//! that time; with a hundred such neighbours, whose addresses anybody can claim, the buffer is full and stays so. So these answers
//! leave by a socket beside the one for peers, on the same port and with a buffer of its own, and at once or never: those who are
//! not answered ask again. When the buffer is full they are made to last: for a time each address gets one in a second, which
//! leaves room for others.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::App;
use crate::tunnel::bucket::{Bucket, Rate};
use crate::tunnel::{Path, Transmit, marking};

/// Answers in all: what one processor can do in half of its time.
const ALL: Rate = Rate { per_second: 100_000, burst: 10_000 };
/// Answers to one address while the buffer is short.
const ONE: Rate = Rate { per_second: 1, burst: 1 };
/// How long a buffer that was full counts as short: longer than the kernel waits for a neighbour (man arp: three probes, a second
/// apart).
const SHORT: Duration = Duration::from_secs(4);
/// Addresses are spread over this many buckets by a keyed hash.
const BUCKETS: usize = 4_096;

/// How many answers there may be.
#[derive(Default)]
pub(super) struct Replies {
    all: Option<Bucket>,
    /// Made when the buffer is full for the first time.
    each: Box<[Bucket]>,
    hasher: RandomState,
    /// Until when the buffer counts as short.
    short: Option<Instant>,
}

impl Replies {
    /// Whether an answer to this address may be tried.
    fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        if !self.all.get_or_insert_with(|| Bucket::full(&ALL, now)).take(&ALL, now) {
            return false;
        }
        if self.short.is_none_or(|until| until <= now) {
            return true;
        }
        let mut hasher = self.hasher.build_hasher();
        match address {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits()),
            IpAddr::V6(address) => hasher.write_u128(address.to_bits()),
        }
        let bucket = hasher.finish() as usize % BUCKETS;
        self.each.get_mut(bucket).is_none_or(|bucket| bucket.take(&ONE, now))
    }

    /// The buffer is full.
    fn note_full(&mut self, now: Instant) {
        if self.each.is_empty() {
            self.each = vec![Bucket::full(&ONE, now); BUCKETS].into();
        }
        self.short = Some(now + SHORT);
    }
}

impl App {
    /// Answers a stranger, or does not; `false` when there is no socket of its own for that.
    pub(super) fn reply_aside(&mut self, message: &Transmit, now: Instant) -> bool {
        let Path::Direct { to, from } = message.path else {
            return false;
        };
        let Some(socket) = self.sockets.aside(to) else {
            return false;
        };
        if self.replies.admit(to.ip(), now) {
            let bytes = message.bytes();
            let sent = socket.send_segments(to, from, marking::of_control(bytes), bytes, bytes.len());
            // Whatever else is wrong with an address that a stranger has claimed is nothing to us.
            if sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                self.replies.note_full(now);
            }
        }
        true
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    /// How many of a flood of a second, from as many addresses, are answered.
    fn answered(replies: &mut Replies, per_second: u32, addresses: u32, start: Instant) -> u32 {
        let admitted = |number: &u32| {
            let address = IpAddr::V4((0x0a00_0000 + number % addresses).into());
            replies.admit(address, start + Duration::from_secs(1) * *number / per_second)
        };
        (0..per_second).filter(admitted).count() as u32
    }

    #[test]
    fn all_are_answered_until_the_buffer_is_full_and_then_each_once_a_second() {
        let start = Instant::now();
        let mut replies = Replies::default();
        assert_eq!(answered(&mut replies, 50_000, 120, start), 50_000);
        replies.note_full(start);
        // Few share a bucket, and a bucket's second may begin anywhere in this one.
        let few = answered(&mut replies, 50_000, 120, start + Duration::from_secs(1));
        assert!((110..=240).contains(&few), "{few}");
        assert_eq!(answered(&mut replies, 50_000, 120, start + SHORT), 50_000);
    }

    #[test]
    fn there_is_a_bound_whatever_happens() {
        let start = Instant::now();
        let all = answered(&mut Replies::default(), 1_000_000, 1_000_000, start);
        assert!((109_000..=110_000).contains(&all), "{all}");
    }
}
