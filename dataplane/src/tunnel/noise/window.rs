//! Which counters of a session have been seen: each is taken once, and late ones as long as they can be told apart
//! (RFC 6479, as wide as the kernel's).

/// A counter may be this much lower than the highest seen.
pub(super) const LATE_MAX: u64 = (WORDS as u64 - 1) * WORD_BITS;

const WORD_BITS: u64 = u64::BITS as u64;
/// One more than [`LATE_MAX`] needs, so that a word is cleared as a whole before its first counter is noted.
const WORDS: usize = 128;

/// The counters seen, without those that are too old to be taken.
pub(super) struct Window {
    /// The highest counter seen plus one.
    next: u64,
    /// A bit for each counter, by its number modulo the size.
    seen: [u64; WORDS],
}

impl Window {
    /// Nothing has been seen.
    pub fn new() -> Self {
        Self { next: 0, seen: [0; WORDS] }
    }

    /// Something that changes with it, for tests.
    #[cfg(test)]
    pub fn digest(&self) -> (u64, u64) {
        let fold = |sum: u64, word: &u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (self.next, self.seen.iter().fold(0, fold))
    }

    /// Whether a message with this counter may be looked at.
    pub fn admits(&self, counter: u64) -> bool {
        let Some(late) = self.next.checked_sub(counter).filter(|late| *late > 0) else {
            return true;
        };
        late <= LATE_MAX + 1 && self.seen[place(word(counter))] & bit(counter) == 0
    }

    /// Notes the counter of an authentic message, which [`Window::admits`] has let in. It is below `u64::MAX`.
    pub fn note(&mut self, counter: u64) {
        debug_assert!(self.admits(counter));
        if counter >= self.next {
            // The word of the highest counter so far holds what stays; those behind it are of a round ago.
            let first = self.next.div_ceil(WORD_BITS);
            let last = word(counter);
            for number in first.max((last + 1).saturating_sub(WORDS as u64))..=last {
                self.seen[place(number)] = 0;
            }
            self.next = counter + 1;
        }
        self.seen[place(word(counter))] |= bit(counter);
    }
}

fn word(counter: u64) -> u64 {
    counter / WORD_BITS
}

fn place(word: u64) -> usize {
    (word % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn take(window: &mut Window, counter: u64) -> bool {
        let admitted = window.admits(counter);
        if admitted {
            window.note(counter);
        }
        admitted
    }

    #[test]
    fn what_is_as_late_as_can_be_is_taken_at_every_place_of_a_word() {
        for newest in LATE_MAX..LATE_MAX + 2 * WORD_BITS {
            for (late, taken) in [(LATE_MAX, true), (LATE_MAX + 1, false)] {
                let Some(counter) = newest.checked_sub(late) else { continue };
                let mut window = Window::new();
                assert!(take(&mut window, newest));
                assert_eq!(take(&mut window, counter), taken, "{counter} behind {newest}");
                assert!(!take(&mut window, counter) && !take(&mut window, newest));
            }
        }
    }

    proptest! {
        /// Beside a set of all counters seen, with jumps of every size.
        #[test]
        fn it_is_a_set_that_forgets(
            steps in prop::collection::vec((0..14_u32, any::<u64>(), any::<bool>()), 1..400),
        ) {
            let (mut window, mut seen, mut newest) = (Window::new(), BTreeSet::new(), None::<u64>);
            for (size, random, back) in steps {
                let distance = random % (1 << size);
                let counter = match newest {
                    None => distance,
                    Some(newest) if back => newest.saturating_sub(distance),
                    Some(newest) => newest + distance,
                };
                let fresh = newest.is_none_or(|newest| counter + LATE_MAX >= newest) && !seen.contains(&counter);
                prop_assert_eq!(take(&mut window, counter), fresh, "{} at {:?}", counter, newest);
                seen.insert(counter);
                newest = newest.max(Some(counter));
            }
        }
    }
}
