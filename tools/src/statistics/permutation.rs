//! The exact permutation test of a shift between two samples, and the interval that it does not reject.
//!
//! The statistic is the difference of the means. Were B only A shifted by some δ, then after taking δ off B every way of
//! dealing all values out to two sides of the same sizes would be equally likely. A split that swaps i values of B against
//! i of A has a difference at least as large as the one that was seen exactly when δ is at least the mean of the swapped
//! values of B less the mean of those of A. So each split has one threshold, the p-value at δ is a count of thresholds,
//! and the ends of the interval are two of them (Tritchler, JASA 79, 1984; Pagano and Tritchler, JASA 78, 1983).

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Most splits that are all gone through: 10 values against 10 have 184,756.
pub const EXACT_MAX: u64 = 200_000;
/// Splits drawn at random where there are more.
const DRAWN: u64 = 50_000;

/// The thresholds of all splits of two samples.
#[derive(Clone, Debug)]
pub struct Splits {
    /// Sorted; one for each split but the one that was seen.
    thresholds: Vec<f64>,
    exact: bool,
    difference: f64,
    /// Differences below this are rounding.
    tolerance: f64,
}

impl Splits {
    /// Goes through the splits of `a` and `b`; where there are more than [`EXACT_MAX`], draws some by `seed`. `None` when a
    /// side is empty or a value is not finite.
    #[must_use]
    pub fn new(a: &[f64], b: &[f64], seed: u64) -> Option<Self> {
        if a.is_empty() || b.is_empty() || a.iter().chain(b).any(|value| !value.is_finite()) {
            return None;
        }
        // A split is a set of bits of one number, whose end is one bit further.
        let is_number = a.len() + b.len() < u64::BITS as usize;
        let exact = is_number && count(a.len(), b.len()).is_some_and(|count| count <= EXACT_MAX);
        let mut thresholds = if exact { all(a, b) } else { drawn(a, b, seed) };
        thresholds.sort_by(f64::total_cmp);
        let largest = a.iter().chain(b).fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let difference = super::sample::mean(b) - super::sample::mean(a);
        Some(Self { thresholds, exact, difference, tolerance: 1e-12 * largest })
    }

    /// How many splits were looked at, with the one that was seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.thresholds.len() as u64 + 1
    }

    /// Whether these are all that there are.
    #[must_use]
    pub const fn exact(&self) -> bool {
        self.exact
    }

    /// Mean of B less mean of A.
    #[must_use]
    pub const fn difference(&self) -> f64 {
        self.difference
    }

    /// The p-value of "B is above A by more than `shift`": the share of splits with a difference as large.
    #[must_use]
    pub fn p_above(&self, shift: f64) -> f64 {
        let below = self.thresholds.partition_point(|&threshold| threshold <= shift + self.tolerance);
        (below as u64 + 1) as f64 / self.count() as f64
    }

    /// The p-value of "B is above A by less than `shift`", or below it.
    #[must_use]
    pub fn p_below(&self, shift: f64) -> f64 {
        let below = self.thresholds.partition_point(|&threshold| threshold < shift - self.tolerance);
        (self.thresholds.len() as u64 - below as u64 + 1) as f64 / self.count() as f64
    }

    /// The p-value of "B differs from A": twice the smaller one-sided one, at most 1.
    #[must_use]
    pub fn p_differs(&self) -> f64 {
        (2.0 * self.p_above(0.0).min(self.p_below(0.0))).min(1.0)
    }

    /// The shifts that neither side of the test rejects at `alpha`, each side on its own. Infinite where there are too few
    /// splits to reject anything.
    #[must_use]
    pub fn interval(&self, alpha: f64) -> (f64, f64) {
        let rejected = (alpha * self.count() as f64 + 1e-9).floor() as usize;
        if rejected == 0 || rejected > self.thresholds.len() {
            return (f64::NEG_INFINITY, f64::INFINITY);
        }
        (self.thresholds[rejected - 1], self.thresholds[self.thresholds.len() - rejected])
    }

    /// The smallest p-value that any data of these sizes can have on one side.
    #[must_use]
    pub fn p_least(&self) -> f64 {
        1.0 / self.count() as f64
    }
}

/// How many ways there are to choose which `a` of `a + b` values are A's; `None` when that does not fit.
#[must_use]
pub fn count(a: usize, b: usize) -> Option<u64> {
    let (small, all) = (a.min(b) as u64, (a + b) as u64);
    let mut ways = 1_u64;
    for step in 0..small {
        // The product of step + 1 neighbours is divisible by (step + 1)!.
        ways = ways.checked_mul(all - step)? / (step + 1);
    }
    Some(ways)
}

/// The threshold of every split but the seen one. A split is a set of bits, one for each value that belongs to A.
fn all(a: &[f64], b: &[f64]) -> Vec<f64> {
    let values = a.len() + b.len();
    let seen = (1_u64 << a.len()) - 1;
    let end = 1_u64 << values;
    let mut thresholds = Vec::new();
    let mut split = seen;
    while split < end {
        if split != seen {
            thresholds.push(threshold(a, b, |index| split >> index & 1 == 1));
        }
        // The next larger number with as many bits set.
        let lowest = split & split.wrapping_neg();
        let carried = split + lowest;
        split = (((carried ^ split) >> 2) / lowest) | carried;
    }
    thresholds
}

/// Thresholds of splits drawn at random.
fn drawn(a: &[f64], b: &[f64], seed: u64) -> Vec<f64> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..a.len() + b.len()).collect();
    let mut is_a = vec![false; order.len()];
    let draw = |_| {
        for at in 0..a.len() {
            let left = (order.len() - at) as u64;
            // The high half of the product is uniform below `left`, to within 2^-60 for sizes like these.
            let other = at + ((u128::from(random.next_u64()) * u128::from(left)) >> 64) as usize;
            order.swap(at, other);
        }
        is_a.fill(false);
        for &index in &order[..a.len()] {
            is_a[index] = true;
        }
        threshold(a, b, |index| is_a[index])
    };
    (1..DRAWN).map(draw).collect()
}

/// The mean of the values of B that the split gives to A less the mean of those that it takes from A; as far below
/// everything as can be when it swaps nothing.
fn threshold(a: &[f64], b: &[f64], is_a: impl Fn(usize) -> bool) -> f64 {
    let (mut from_b, mut from_a, mut swapped) = (0.0, 0.0, 0_u32);
    for (index, &value) in b.iter().enumerate() {
        if is_a(a.len() + index) {
            from_b += value;
            swapped += 1;
        }
    }
    for (index, &value) in a.iter().enumerate() {
        if !is_a(index) {
            from_a += value;
        }
    }
    if swapped == 0 { f64::NEG_INFINITY } else { (from_b - from_a) / f64::from(swapped) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_counted() {
        assert_eq!([count(5, 5), count(10, 10), count(1, 3), count(0, 4)], [252, 184_756, 4, 1].map(Some));
        assert_eq!(count(200, 200), None);
        let splits = Splits::new(&[1.0, 2.0], &[3.0, 4.0], 0).unwrap();
        assert_eq!((splits.count(), splits.exact()), (6, true));
    }

    #[test]
    fn more_values_than_a_number_has_bits_are_drawn() {
        let b: Vec<f64> = (0..67).map(f64::from).collect();
        let splits = Splits::new(&[100.0, 101.0, 102.0], &b, 1).unwrap();
        assert!(!splits.exact() && splits.p_below(0.0) < 0.001 && splits.p_above(0.0) == 1.0);
        assert!(Splits::new(&[1.0, 2.0], &b[..61], 1).unwrap().exact());
    }

    #[test]
    fn samples_apart_have_the_least_p_value_there_is() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0];
        let b = a.map(|value| value + 100.0);
        let splits = Splits::new(&a, &b, 0).unwrap();
        assert_eq!(splits.p_above(0.0), 1.0 / 252.0);
        assert_eq!(splits.p_below(0.0), 1.0);
        assert!((splits.p_differs() - 2.0 / 252.0).abs() < 1e-15);
        let (low, high) = splits.interval(0.05);
        assert!(low < 100.0 && 100.0 < high && low > 96.0 && high < 104.0, "{low} {high}");
    }

    #[test]
    fn the_interval_is_what_the_test_does_not_reject() {
        let a = [5.1, 4.8, 5.6, 5.0, 4.9, 5.3];
        let b = [5.9, 5.2, 6.4, 5.5];
        for splits in [Splits::new(&a, &b, 0), Splits::new(&b, &a, 0)].map(Option::unwrap) {
            for alpha in [0.01, 0.025, 0.05, 0.2] {
                let (low, high) = splits.interval(alpha);
                assert!(splits.p_above(low - 1e-6) <= alpha && splits.p_above(low + 1e-6) > alpha);
                assert!(splits.p_below(high + 1e-6) <= alpha && splits.p_below(high - 1e-6) > alpha);
            }
        }
    }

    #[test]
    fn too_few_values_reject_nothing() {
        let splits = Splits::new(&[1.0, 2.0], &[10.0, 11.0], 0).unwrap();
        assert_eq!(splits.interval(0.05), (f64::NEG_INFINITY, f64::INFINITY));
        assert!(Splits::new(&[], &[1.0], 0).is_none());
        assert!(Splits::new(&[1.0], &[f64::NAN], 0).is_none());
    }

    #[test]
    fn equal_values_differ_by_nothing() {
        let splits = Splits::new(&[0.1 + 0.2; 5], &[0.3; 5], 0).unwrap();
        assert_eq!((splits.p_above(0.0), splits.p_below(0.0)), (1.0, 1.0));
    }

    #[test]
    fn many_values_are_drawn_and_come_close_to_all() {
        let a: Vec<f64> = (0..10).map(|index| f64::from(index * 7 % 10)).collect();
        let b: Vec<f64> = a.iter().map(|value| value + 2.0).collect();
        let exact = Splits::new(&a, &b, 0).unwrap();
        let mut thresholds = drawn(&a, &b, 1);
        thresholds.sort_by(f64::total_cmp);
        let (difference, tolerance) = (exact.difference, exact.tolerance);
        let some = Splits { thresholds, exact: false, difference, tolerance };
        assert!((exact.p_above(0.0) - some.p_above(0.0)).abs() < 0.01);
        let (a, b) = (vec![1.0; 20], vec![2.0; 20]);
        let large = Splits::new(&a, &b, 1).unwrap();
        assert!(!large.exact() && large.p_above(0.0) < 0.001 && large.p_below(0.0) == 1.0);
    }
}
