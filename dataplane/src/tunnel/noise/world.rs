//! What the protocol needs from the world: the time of day for time stamps, how long the machine has slept, what work has cost, and
//! random numbers.
//! Tests put others in their place.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::sys::clock::{self, Clock};
use crate::tunnel::key::KEY_LEN;
use crate::wire::wireguard::SessionIndex;

/// Seconds of TAI64 at the epoch of Unix, as the kernel and wireguard-go count them: a host that goes from one implementation
/// to another is not taken for older.
const TAI64_EPOCH: u64 = (1 << 62) + 10;
/// Time stamps are cut to this many nanoseconds, as the kernel's are, so that they tell less of the machine's clock.
const GRANULE: u32 = 1 << 24;
const SECOND: u32 = 1_000_000_000;

/// A time stamp of an initiation, TAI64N: seconds and nanoseconds, so that later ones compare as greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp([u8; 12]);

impl Stamp {
    pub(super) fn new(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    fn of(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    /// The next greater one.
    fn next(self) -> Self {
        let [seconds @ .., n3, n2, n1, n0] = self.0;
        let (seconds, nanos) = (u64::from_be_bytes(seconds), u32::from_be_bytes([n3, n2, n1, n0]));
        if nanos + 1 < SECOND { Self::of(seconds, nanos + 1) } else { Self::of(seconds + 1, 0) }
    }
}

/// Clocks and random numbers, and the last time stamp made of them.
pub struct World {
    /// Time of day, since 1970.
    pub(in crate::tunnel) wall: fn() -> Duration,
    /// How long the machine has slept since it was started.
    pub(in crate::tunnel) slept: fn() -> Duration,
    /// How long the processor has worked for us.
    pub(in crate::tunnel) worked: fn() -> Duration,
    last: Stamp,
}

impl World {
    /// The system's.
    #[must_use]
    pub fn system() -> Self {
        Self { wall: wall_clock, slept: time_asleep, worked: time_worked, last: Stamp([0; 12]) }
    }

    /// A time stamp later than all before it: peers refuse others. When the time of day goes back, they go on from where they were.
    pub(super) fn stamp(&mut self) -> Stamp {
        let wall = (self.wall)();
        let candidate = Stamp::of(TAI64_EPOCH + wall.as_secs(), wall.subsec_nanos() & !(GRANULE - 1));
        self.last = candidate.max(self.last.next());
        self.last
    }

    /// How long the machine has slept.
    pub(in crate::tunnel) fn slept(&self) -> Duration {
        (self.slept)()
    }

    /// How long the processor has worked for us: the difference of two is what was done in between.
    pub(in crate::tunnel) fn worked(&self) -> Duration {
        (self.worked)()
    }

    /// A session index: random, so that it tells nothing about whose it is.
    #[must_use]
    pub fn index(&self) -> SessionIndex {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).expect("the kernel has random numbers");
        SessionIndex(u32::from_ne_bytes(bytes))
    }

    /// A secret that nobody has had. It comes from the kernel each time: a generator in our memory could tell it again to
    /// who reads that memory later.
    pub(super) fn secret(&self) -> Zeroizing<[u8; KEY_LEN]> {
        let mut secret = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(secret.as_mut_slice()).expect("the kernel has random numbers");
        secret
    }
}

fn wall_clock() -> Duration {
    clock::read(Clock::Realtime)
}

fn time_asleep() -> Duration {
    // In this order, so that time that passes in between does not make it negative.
    let awake = clock::read(Clock::Monotonic);
    clock::read(Clock::Boottime).saturating_sub(awake)
}

fn time_worked() -> Duration {
    clock::read(Clock::Thread)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local!(static WALL: Cell<Duration> = const { Cell::new(Duration::ZERO) });

    #[test]
    fn time_stamps_follow_the_time_of_day_and_never_go_back() {
        let mut world = World { wall: || WALL.get(), ..World::system() };
        let at = |seconds, nanos| WALL.set(Duration::new(seconds, nanos));
        at(1_000, 999_999_999);
        // 999,999,999 is 59 times 2^24 and a rest.
        assert_eq!(world.stamp(), Stamp::of(TAI64_EPOCH + 1_000, 59 << 24));
        assert_eq!(world.stamp(), Stamp::of(TAI64_EPOCH + 1_000, (59 << 24) + 1), "the same time is later");
        at(1_001, 0);
        assert_eq!(world.stamp(), Stamp::of(TAI64_EPOCH + 1_001, 0));
        // Ten years ahead, back again, and before 1970.
        let mut last = world.stamp();
        for (seconds, ahead) in [(316_000_000, true), (1_002, false), (0, false), (316_000_001, true)] {
            at(seconds, 0);
            for _ in 0..3 {
                let stamp = world.stamp();
                assert!(stamp > last, "{seconds}");
                last = stamp;
            }
            assert_eq!(last == Stamp::of(TAI64_EPOCH + seconds, 2), ahead);
        }
        assert_eq!(Stamp::of(7, SECOND - 1).next(), Stamp::of(8, 0));
    }

    #[test]
    fn secrets_are_new_each_time() {
        let (one, other) = (World::system().secret(), World::system().secret());
        assert!(*one != *other && *one != [0; KEY_LEN]);
    }
}
