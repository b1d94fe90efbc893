//! Deadlines of many peers: one for each, set, moved and found in O(1) however many there are.
//!
//! A hierarchical timing wheel (G. Varghese and T. Lauck, "Hashed and hierarchical timing wheels", 1987, scheme 7). A slot of
//! level 0 is one tick wide, one of each further level 64 times as wide as those below it. A deadline stands in the lowest level whose slots
//! ahead reach that far, and falls to a lower one when its slot's turn comes: at most [`LEVELS`] moves for each. A bit for each slot tells
//! where there is anything, so that no empty slot is looked at.
//!
//! ```text
//!  level 0 |.|.|2|.| … 64 × 50 ms        2 = two peers' deadlines
//!  level 1 |.|.|.|1| … 64 × 3.2 s
//!  level 2 |.|9|.|.| … 64 × 3.4 min      … level 5: 64 × 1.7 years
//!  due      peers whose deadline has passed, first come first served
//! ```

use std::time::{Duration, Instant};

/// Width of a slot of level 0: how late a deadline may be found.
pub const TICK: Duration = Duration::from_millis(50);

const TICK_NANOS: u64 = TICK.as_nanos() as u64;
const LEVELS: usize = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// The list of deadlines that have passed.
const DUE: u16 = (LEVELS * SLOTS) as u16;
/// In no list.
const NONE: u16 = DUE + 1;
/// No ticks beyond this one, 109 years from the start, are told apart.
const TICK_MAX: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;
/// The end of a list.
const END: u32 = u32::MAX;

/// One deadline for each of many numbers.
#[derive(Debug)]
pub struct Wheel {
    origin: Instant,
    /// The tick up to which deadlines have been found.
    tick: u64,
    entries: Vec<Entry>,
    /// First of each slot's ring of entries, and of those that are due.
    heads: [u32; DUE as usize + 1],
    /// Which slots of each level hold anything.
    occupied: [u64; LEVELS],
    /// Entries put into a list: the work done.
    #[cfg(test)]
    pub moves: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: Instant,
    list: u16,
    next: u32,
    previous: u32,
}

/// A slot that holds something, and the tick when its turn comes.
struct Turn {
    tick: u64,
    level: usize,
    slot: usize,
}

impl Wheel {
    /// Without deadlines; `capacity` numbers need no more memory later.
    #[must_use]
    pub fn new(capacity: usize, now: Instant) -> Self {
        Self {
            origin: now,
            tick: 0,
            entries: Vec::with_capacity(capacity),
            heads: [END; DUE as usize + 1],
            occupied: [0; LEVELS],
            #[cfg(test)]
            moves: 0,
        }
    }

    /// Makes sure that `number` is due at `deadline` at the latest. A later deadline than the one there is changes nothing:
    /// whoever is due looks what is to be done and sets the next, which is cheaper than moving it with every packet.
    pub fn set(&mut self, number: usize, deadline: Instant, now: Instant) {
        if number >= self.entries.len() {
            let free = Entry { deadline: now, list: NONE, next: END, previous: END };
            self.entries.resize(number + 1, free);
        }
        let entry = &mut self.entries[number];
        if entry.list != NONE && entry.deadline <= deadline {
            return;
        }
        let was_set = entry.list != NONE;
        entry.deadline = deadline;
        if was_set {
            self.unlink(number);
        }
        if deadline <= now { self.link(number, DUE) } else { self.place(number) }
    }

    /// Takes away the deadline of `number`.
    pub fn clear(&mut self, number: usize) {
        if self.entries.get(number).is_some_and(|entry| entry.list != NONE) {
            self.unlink(number);
        }
    }

    /// When there is something to do: for [`Wheel::poll`], or a slot to be divided.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let due = self.heads[DUE as usize];
        if due != END {
            return Some(self.entries[due as usize].deadline);
        }
        // TICK_MAX of them overflow neither.
        self.turn().map(|turn| self.origin + Duration::from_nanos(turn.tick * TICK_NANOS))
    }

    /// The next number whose deadline has passed; it has none any more. First come, first served.
    pub fn poll(&mut self, now: Instant) -> Option<usize> {
        self.advance(now);
        let first = self.heads[DUE as usize];
        if first == END {
            return None;
        }
        self.unlink(first as usize);
        Some(first as usize)
    }

    /// Takes the turns that have come up to `now`.
    fn advance(&mut self, now: Instant) {
        let now_tick = (self.nanos(now) / TICK_NANOS).min(TICK_MAX);
        while let Some(turn) = self.turn().filter(|turn| turn.tick <= now_tick) {
            self.tick = turn.tick;
            let list = (turn.level * SLOTS + turn.slot) as u16;
            loop {
                let first = self.heads[usize::from(list)];
                if first == END {
                    break;
                }
                self.unlink(first as usize);
                if self.tick_of(first as usize) <= self.tick {
                    self.link(first as usize, DUE);
                } else {
                    self.place(first as usize);
                }
            }
        }
        self.tick = self.tick.max(now_tick);
    }

    /// The slot whose turn is next. What lies on a lower level comes before all that lies higher.
    fn turn(&self) -> Option<Turn> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = SLOT_BITS * level as u32;
        // The slots of a level share all higher bits with the tick: others would stand on a higher level.
        let above = self.tick >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
        Some(Turn { tick: above | (slot as u64) << shift, level, slot })
    }

    /// The first tick at which a deadline has passed.
    fn tick_of(&self, number: usize) -> u64 {
        self.nanos(self.entries[number].deadline).div_ceil(TICK_NANOS).min(TICK_MAX)
    }

    /// Nanoseconds since the start, as many as there are in 584 years.
    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_nanos().try_into().unwrap_or(u64::MAX)
    }

    /// Puts an entry where its deadline belongs.
    fn place(&mut self, number: usize) {
        // The turn of this tick is over: a deadline within it waits for the next.
        let tick = self.tick_of(number).max((self.tick + 1).min(TICK_MAX));
        let differs = (tick ^ self.tick) | 1;
        let level = differs.ilog2() / SLOT_BITS;
        let slot = (tick >> (SLOT_BITS * level)) as usize % SLOTS;
        self.link(number, (level as usize * SLOTS + slot) as u16);
    }

    /// Puts an entry at the end of a list.
    fn link(&mut self, number: usize, list: u16) {
        #[cfg(test)]
        {
            self.moves += 1;
        }
        let number = number as u32;
        let first = self.heads[usize::from(list)];
        let (next, previous) =
            if first == END { (number, number) } else { (first, self.entries[first as usize].previous) };
        let entry = &mut self.entries[number as usize];
        (entry.list, entry.next, entry.previous) = (list, next, previous);
        if first == END {
            self.heads[usize::from(list)] = number;
            if list < DUE {
                self.occupied[usize::from(list) / SLOTS] |= 1 << (usize::from(list) % SLOTS);
            }
        } else {
            self.entries[previous as usize].next = number;
            self.entries[first as usize].previous = number;
        }
    }

    /// Takes an entry out of its list.
    fn unlink(&mut self, number: usize) {
        let Entry { list, next, previous, .. } = self.entries[number];
        self.entries[number].list = NONE;
        let head = &mut self.heads[usize::from(list)];
        if next as usize == number {
            *head = END;
            if list < DUE {
                self.occupied[usize::from(list) / SLOTS] &= !(1 << (usize::from(list) % SLOTS));
            }
            return;
        }
        if *head as usize == number {
            *head = next;
        }
        self.entries[previous as usize].next = next;
        self.entries[next as usize].previous = previous;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Everything due at `now`, in order.
    fn due(wheel: &mut Wheel, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| wheel.poll(now)).collect()
    }

    #[test]
    fn a_deadline_is_found_within_a_tick_and_only_once() {
        let start = Instant::now();
        for millis in [1, 49, 50, 51, 3_199, 3_200, 3_201, 204_799, 204_801, 540_000, 65_535_000] {
            let mut wheel = Wheel::new(1, start);
            let deadline = start + Duration::from_millis(millis);
            wheel.set(0, deadline, start);
            let mut now = start;
            let mut turns = 0;
            while wheel.poll(now).is_none() {
                now = wheel.next().expect("a turn");
                turns += 1;
            }
            assert!(now >= deadline && now < deadline + TICK, "{millis} ms: {:?}", now - start);
            assert!(turns <= LEVELS, "{turns}");
            assert_eq!((wheel.poll(now), wheel.next()), (None, None));
        }
    }

    #[test]
    fn what_is_due_already_is_found_at_once_and_in_order() {
        let start = Instant::now();
        let mut wheel = Wheel::new(3, start);
        let now = start + Duration::from_millis(17);
        wheel.set(2, now, now);
        wheel.set(0, start, now);
        wheel.set(1, now + TICK, now);
        assert!(wheel.next().is_some_and(|next| next <= now));
        assert_eq!(due(&mut wheel, now), [2, 0]);
        assert_eq!(due(&mut wheel, now + TICK * 2), [1]);
    }

    #[test]
    fn the_earlier_of_two_deadlines_counts_and_one_taken_away_does_not() {
        let start = Instant::now();
        let mut wheel = Wheel::new(0, start);
        wheel.set(7, start + TICK * 100, start);
        wheel.set(7, start + TICK * 10, start);
        wheel.set(7, start + TICK * 1_000, start);
        assert_eq!(due(&mut wheel, start + TICK * 9), Vec::<usize>::new());
        assert_eq!(due(&mut wheel, start + TICK * 10), [7]);
        wheel.set(7, start + TICK * 20, start + TICK * 10);
        wheel.clear(7);
        wheel.clear(8);
        assert_eq!(wheel.next(), None);
        assert_eq!(due(&mut wheel, start + TICK * 2_000), Vec::<usize>::new());
    }

    #[test]
    fn times_that_run_backwards_and_a_far_future_do_no_harm() {
        let start = Instant::now();
        let mut wheel = Wheel::new(2, start);
        let later = start + Duration::from_secs(1_000);
        assert_eq!(due(&mut wheel, later), Vec::<usize>::new());
        // Set by somebody whose clock is behind: found with the next tick, not never.
        wheel.set(0, start + TICK, start);
        assert_eq!(due(&mut wheel, later + TICK), [0]);
        wheel.set(1, start + Duration::from_secs(3_000 * 365 * 86_400), later);
        assert_eq!(due(&mut wheel, later + Duration::from_secs(50 * 365 * 86_400)), Vec::<usize>::new());
        assert!(wheel.next().is_some());
    }

    #[test]
    fn work_is_bounded_by_what_is_due() {
        let start = Instant::now();
        let mut wheel = Wheel::new(10_000, start);
        for number in 0..10_000 {
            wheel.set(number, start + Duration::from_secs(25) + TICK * (number as u32), start);
        }
        let placed = wheel.moves;
        assert_eq!(placed, 10_000);
        let mut found = 0;
        for second in 0..45 {
            found += due(&mut wheel, start + Duration::from_secs(second)).len();
        }
        assert_eq!(found, 381);
        // Each has fallen one level and become due; so have those in the same 3.2 s fallen.
        assert!(wheel.moves - placed <= 2 * 381 + SLOTS as u64, "{}", wheel.moves - placed);
        for second in 45..600 {
            found += due(&mut wheel, start + Duration::from_secs(second)).len();
        }
        assert_eq!(found, 10_000);
        assert!(wheel.moves <= 10_000 * LEVELS as u64, "{}", wheel.moves);
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(
            steps in prop::collection::vec((0..40_usize, 0..2_000_000_u64, 0..100_000_u64, any::<bool>()), 1..200),
        ) {
            let start = Instant::now();
            let mut wheel = Wheel::new(0, start);
            let mut model: BTreeMap<usize, Instant> = BTreeMap::new();
            let mut now = start;
            for (number, after, pass, clear) in steps {
                if clear {
                    wheel.clear(number);
                    model.remove(&number);
                } else {
                    let deadline = now + Duration::from_millis(after);
                    wheel.set(number, deadline, now);
                    let earliest = model.get(&number).map_or(deadline, |earlier| deadline.min(*earlier));
                    model.insert(number, earliest);
                }
                now += Duration::from_millis(pass);
                let mut found = due(&mut wheel, now);
                found.sort_unstable();
                // Within the last tick either may be right.
                for number in &found {
                    let deadline = model.remove(number);
                    prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                }
                for deadline in model.values() {
                    prop_assert!(*deadline + TICK > now, "missed by {:?}", now - *deadline);
                }
                prop_assert_eq!(wheel.next().is_some(), !model.is_empty());
                if let (Some(next), Some(first)) = (wheel.next(), model.values().min()) {
                    prop_assert!(next < *first + TICK);
                }
            }
        }
    }
}
