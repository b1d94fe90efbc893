//! How far datagrams were overtaken: the reordering metrics of RFC 4737, of each flow, in bounded memory.
//!
//! | metric | here |
//! |---|---|
//! | Type-P-Reordered (section 3.3) | its number is below the highest that arrived before it |
//! | extent (section 4.2) | how many datagrams of the flow arrived since the first one with a higher number |
//! | n-reordering (section 5) | the n that arrived right before it all have higher numbers; 3 is what TCP takes for a loss |
//!
//! Duplicates take no part: only the first copy of a datagram has a place in the order.

use serde::{Deserialize, Serialize};

/// Arrivals that are remembered by number: degrees of n-reordering up to this are told apart.
pub const DEGREES: usize = 8;
/// Jumps ahead that are remembered. A datagram from before them all has an extent of at least the oldest one's.
const JUMPS: usize = 8;

/// Reordering of one flow, or of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reordering {
    /// Datagrams that were overtaken.
    pub reordered: u64,
    /// By degree, from 1: how many were overtaken by at least so many datagrams that arrived right before them.
    pub by_degree: [u64; DEGREES],
    /// Largest extent.
    pub extent_max: u64,
    /// Sum of all extents; divided by `reordered` it is their mean.
    pub extent_sum: u64,
}

impl Reordering {
    /// Datagrams that were 3-reordered: three duplicate acknowledgements, on which TCP sends again.
    #[must_use]
    pub fn three(&self) -> u64 {
        self.by_degree[2]
    }

    /// Mean extent; 0 when nothing was overtaken.
    #[must_use]
    pub fn extent_mean(&self) -> f64 {
        if self.reordered == 0 { 0.0 } else { self.extent_sum as f64 / self.reordered as f64 }
    }

    /// Adds the figures of another flow to these.
    pub fn add(&mut self, other: &Self) {
        self.reordered += other.reordered;
        for (sum, more) in self.by_degree.iter_mut().zip(other.by_degree) {
            *sum += more;
        }
        self.extent_max = self.extent_max.max(other.extent_max);
        self.extent_sum += other.extent_sum;
    }
}

/// An arrival that left numbers out.
#[derive(Clone, Copy, Debug, Default)]
struct Jump {
    /// One above the highest number before it.
    expected: u64,
    /// How many had arrived before it.
    place: u64,
}

/// The order in which one flow's datagrams arrive.
#[derive(Clone, Debug, Default)]
pub struct Order {
    next_expected: u64,
    /// Datagrams so far.
    arrived: u64,
    /// The last of them, the newest at `arrived - 1` modulo the length.
    recent: [u64; DEGREES],
    /// The last jumps, the newest at `jumped - 1` modulo the length.
    jumps: [Jump; JUMPS],
    jumped: u64,
    found: Reordering,
}

impl Order {
    /// Notes the first copy of a datagram.
    pub fn arrive(&mut self, number: u64) {
        if number < self.next_expected {
            self.overtaken(number);
        } else {
            if number > self.next_expected {
                let jump = Jump { expected: self.next_expected, place: self.arrived };
                self.jumps[self.jumped as usize % JUMPS] = jump;
                self.jumped += 1;
            }
            self.next_expected = number + 1;
        }
        self.recent[self.arrived as usize % DEGREES] = number;
        self.arrived += 1;
    }

    /// One above the highest number that arrived.
    #[must_use]
    pub fn next_expected(&self) -> u64 {
        self.next_expected
    }

    /// What was found so far.
    #[must_use]
    pub fn found(&self) -> Reordering {
        self.found
    }

    fn overtaken(&mut self, number: u64) {
        self.found.reordered += 1;
        let known = self.arrived.min(DEGREES as u64);
        let later = |back: &u64| self.recent[(self.arrived - back) as usize % DEGREES] > number;
        let degree = (1..=known).take_while(later).count();
        for count in &mut self.found.by_degree[..degree] {
            *count += 1;
        }
        let extent = self.arrived - self.first_after(number);
        self.found.extent_max = self.found.extent_max.max(extent);
        self.found.extent_sum += extent;
    }

    /// The place of the first arrival with a higher number: the jump that left this one out. Jumps are in order of number
    /// too, so it is the last one that expected no more than this number.
    fn first_after(&self, number: u64) -> u64 {
        let kept = self.jumped.min(JUMPS as u64);
        let newest_first = (1..=kept).map(|back| self.jumps[(self.jumped - back) as usize % JUMPS]);
        let mut oldest = self.arrived;
        for jump in newest_first {
            oldest = jump.place;
            if jump.expected <= number {
                break;
            }
        }
        oldest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(numbers: &[u64]) -> Reordering {
        let mut order = Order::default();
        for &number in numbers {
            order.arrive(number);
        }
        order.found()
    }

    #[test]
    fn a_late_datagram_counts_what_overtook_it() {
        // Number 3 comes after 4, 5 and 6, and those are right before it.
        let found = order(&[0, 1, 2, 4, 5, 6, 3, 7]);
        assert_eq!((found.reordered, found.extent_max, found.three()), (1, 3, 1));
        assert_eq!(found.by_degree, [1, 1, 1, 0, 0, 0, 0, 0]);
        // Of two late ones in order the second has the first right before it: the extent grows, the degree does not.
        let found = order(&[0, 3, 4, 1, 2, 5]);
        assert_eq!((found.reordered, found.extent_max, found.extent_sum), (2, 3, 5));
        assert_eq!(found.by_degree[..2], [1, 1]);
        assert_eq!(found.extent_mean(), 2.5);
    }

    #[test]
    fn losses_alone_are_no_reordering() {
        assert_eq!(order(&[0, 5, 9, 10, 40]), Reordering::default());
        assert_eq!(Reordering::default().extent_mean(), 0.0);
    }

    /// The definitions of the RFC as they stand, over all arrivals.
    fn naive(numbers: &[u64]) -> Reordering {
        let mut found = Reordering::default();
        for (place, number) in numbers.iter().enumerate() {
            let before = &numbers[..place];
            let Some(first) = before.iter().position(|other| other > number) else { continue };
            found.reordered += 1;
            let extent = (place - first) as u64;
            found.extent_max = found.extent_max.max(extent);
            found.extent_sum += extent;
            for degree in 1..=DEGREES.min(place) {
                let all = before[place - degree..].iter().all(|other| other > number);
                found.by_degree[degree - 1] += u64::from(all);
            }
        }
        found
    }

    proptest! {
        #[test]
        fn near_disorder_equals_the_definitions(keys in prop::collection::vec(0_u64..12, 1..60)) {
            // Each number is held back by up to 12 places; some are lost.
            let mut numbers: Vec<u64> = (0..keys.len() as u64).filter(|number| number % 7 != 3).collect();
            numbers.sort_by_key(|&number| number + keys[number as usize]);
            let (found, expected) = (order(&numbers), naive(&numbers));
            prop_assert_eq!((found.reordered, found.by_degree), (expected.reordered, expected.by_degree));
            prop_assert!(found.extent_sum <= expected.extent_sum);
        }

        #[test]
        fn extents_are_exact_while_the_jumps_are_remembered(held in prop::collection::vec(1_u64..6, 1..40)) {
            // Now and then one is held back behind some others, never two at a time.
            let mut numbers: Vec<u64> = Vec::new();
            for (block, &back) in held.iter().enumerate() {
                let start = block as u64 * 10;
                let mut one: Vec<u64> = (start..start + 10).collect();
                let late = one.remove(2);
                one.insert(2 + back as usize, late);
                numbers.extend(one);
            }
            prop_assert_eq!(order(&numbers), naive(&numbers));
        }
    }
}
