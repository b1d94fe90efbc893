//! The counts of a histogram, without the counters that are zero: what is kept of logs with very many lines.

use hdrhistogram::Histogram;

/// Most counters a histogram may have: 5 digits from 1 ns to an hour need 3.4 million.
const COUNTERS_MAX: u64 = 1 << 22;

/// Counts that [`Counts::sum`] collects at least before it puts them in order.
const PILE: usize = 1 << 16;

/// Range and precision of a histogram: which values its counters stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    lowest: u64,
    highest: u64,
    digits: u8,
}

impl Layout {
    /// A layout that tells values from `lowest` to `highest` apart to so many significant digits.
    ///
    /// # Errors
    /// When no histogram can be of it: digits above 5, an empty range, or more than four million counters.
    pub fn new(lowest: u64, highest: u64, digits: u32) -> Result<Self, String> {
        let wrong = || format!("{digits} digits from {lowest} to {highest} are no range of a histogram");
        let digits = u8::try_from(digits).ok().filter(|digits| *digits <= 5).ok_or_else(wrong)?;
        // Zero is written by some for the smallest unit there is.
        let lowest = lowest.max(1);
        let fits = highest >= lowest.saturating_mul(2) && highest <= i64::MAX as u64;
        let layout = Self { lowest, highest, digits };
        // A unit so large that values no longer fit 63 bits.
        if !fits || layout.unit_magnitude() + layout.half_magnitude() + 1 > 61 {
            return Err(wrong());
        }
        match layout.counters() {
            0..=COUNTERS_MAX => Ok(layout),
            more => Err(format!("a histogram with {more} counters is larger than {COUNTERS_MAX}")),
        }
    }

    /// The layout that holds the values of both as finely as either.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn with(self, other: Self) -> Result<Self, String> {
        let digits = self.digits.max(other.digits);
        Self::new(self.lowest.min(other.lowest), self.highest.max(other.highest), u32::from(digits))
    }

    /// The layout for values that are `factor` times as large.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn times(self, factor: u64) -> Result<Self, String> {
        let highest = self.highest.saturating_mul(factor).min(i64::MAX as u64);
        Self::new(1, highest, u32::from(self.digits))
    }

    /// Counters of such a histogram.
    #[must_use]
    pub fn counters(self) -> u64 {
        let mut untrackable = (2 * u128::from(self.half())) << self.unit_magnitude();
        let mut buckets = 1;
        while untrackable <= u128::from(self.highest) {
            untrackable *= 2;
            buckets += 1;
        }
        (buckets + 1) * self.half()
    }

    /// The smallest value that the counter at `index` stands for.
    #[must_use]
    pub fn value(self, index: u64) -> u64 {
        let bucket = index >> self.half_magnitude();
        let within = index & (self.half() - 1);
        match bucket {
            0 => within << self.unit_magnitude(),
            _ => (within + self.half()) << (bucket - 1 + u64::from(self.unit_magnitude())),
        }
    }

    /// The counter that a value belongs to; the last one for larger values than there are counters for.
    #[must_use]
    pub fn index(self, value: u64) -> u64 {
        // Values that differ only in these bits are in the first two halves of counters.
        let first = (2 * self.half() - 1) << self.unit_magnitude();
        let bucket = (value | first).ilog2() - self.unit_magnitude() - self.half_magnitude();
        let within = value >> (bucket + self.unit_magnitude());
        let index = (u64::from(bucket + 1) << self.half_magnitude()) + within - self.half();
        index.min(self.counters() - 1)
    }

    /// The largest value that the counter of `value` stands for, as HdrHistogram says quantiles.
    #[must_use]
    pub fn highest_equivalent(self, value: u64) -> u64 {
        self.value(self.index(value) + 1) - 1
    }

    /// Lowest and highest value and significant digits, as encoded histograms have them.
    #[must_use]
    pub const fn bounds(self) -> (u64, u64, u8) {
        (self.lowest, self.highest, self.digits)
    }

    fn unit_magnitude(self) -> u32 {
        self.lowest.ilog2()
    }

    /// Half of the counters of one power of two.
    fn half(self) -> u64 {
        10_u64.pow(u32::from(self.digits)).next_power_of_two()
    }

    fn half_magnitude(self) -> u32 {
        self.half().ilog2()
    }
}

/// How often which value was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    layout: Layout,
    /// By rising value (the smallest its counter stands for); no count is zero.
    by_value: Vec<(u64, u64)>,
    total: u64,
}

impl Counts {
    /// None yet.
    #[must_use]
    pub const fn new(layout: Layout) -> Self {
        Self { layout, by_value: Vec::new(), total: 0 }
    }

    /// Those of a histogram.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let layout =
            Layout { lowest: histogram.low(), highest: histogram.high(), digits: histogram.sigfig() };
        let recorded = histogram.iter_recorded();
        let by_value = recorded
            .map(|step| (histogram.lowest_equivalent(step.value_iterated_to()), step.count_at_value()))
            .collect();
        Self { layout, by_value, total: histogram.len() }
    }

    /// Counts `count` of `value`, which must not be below those counted before.
    ///
    /// # Errors
    /// When it is, or when there are more than 2^63 then.
    pub fn push(&mut self, value: u64, count: u64) -> Result<(), String> {
        if count == 0 {
            return Ok(());
        }
        let total = self.total.checked_add(count).filter(|total| *total <= i64::MAX as u64);
        let total = total.ok_or("the counts are too large to be added")?;
        match self.by_value.last_mut() {
            Some((last, sum)) if *last == value => *sum += count,
            Some((last, _)) if *last > value => return Err(format!("{value} comes after {last}")),
            _ => self.by_value.push((value, count)),
        }
        self.total = total;
        Ok(())
    }

    /// All of `parts`, in time that grows with their counts and not with how many they are. `None` of none.
    ///
    /// # Errors
    /// When there are more than 2^63 then, or no histogram can hold them all.
    pub fn sum<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Result<Option<Self>, String> {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else { return Ok(None) };
        let mut sum = first.clone();
        let mut more = Vec::new();
        for part in parts {
            sum.layout = sum.layout.with(part.layout)?;
            more.extend_from_slice(&part.by_value);
            // Sorted in one go, but not before there is as much as there was: equal values do not pile up.
            if more.len() > sum.len().max(PILE) {
                sum.take_in(&mut more)?;
            }
        }
        sum.take_in(&mut more)?;
        Ok(Some(sum))
    }

    /// Adds counts in any order.
    fn take_in(&mut self, more: &mut Vec<(u64, u64)>) -> Result<(), String> {
        more.sort_unstable_by_key(|(value, _)| *value);
        let mut part = Self::new(self.layout);
        more.drain(..).try_for_each(|(value, count)| part.push(value, count))?;
        self.merge(&part)
    }

    /// Gives back memory that is not used.
    pub fn shrink(&mut self) {
        self.by_value.shrink_to_fit();
    }

    /// Adds all of another.
    ///
    /// # Errors
    /// When there are more than 2^63 then, or no histogram can hold both.
    pub fn merge(&mut self, other: &Self) -> Result<(), String> {
        let mut sum = Self::new(self.layout.with(other.layout)?);
        sum.by_value.reserve(self.len().max(other.len()));
        let (mut ours, mut theirs) = (self.by_value.iter().peekable(), other.by_value.iter().peekable());
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (Some((our, _)), Some((their, _))) if their < our => theirs.next(),
                (Some(_), _) => ours.next(),
                (None, _) => theirs.next(),
            };
            let Some(&(value, count)) = next else { break };
            sum.push(value, count)?;
        }
        *self = sum;
        Ok(())
    }

    /// The same with values `factor` times as large.
    ///
    /// # Errors
    /// When they no longer fit.
    pub fn times(&self, factor: u64) -> Result<Self, String> {
        if factor == 1 {
            return Ok(self.clone());
        }
        let too_large = || format!("values times {factor} are too large for a histogram");
        let mut counts = Self::new(self.layout.times(factor)?);
        for (value, count) in self.iter() {
            let value = value.checked_mul(factor).filter(|value| *value <= i64::MAX as u64);
            counts.push(value.ok_or_else(too_large)?, count)?;
        }
        Ok(counts)
    }

    /// The same with values divided by `divisor`, rounded down.
    ///
    /// # Errors
    /// Never in practice: smaller values fit where larger ones did.
    pub fn divided(&self, divisor: u64) -> Result<Self, String> {
        let highest = (self.layout.highest / divisor).max(2);
        let mut counts = Self::new(Layout::new(1, highest, u32::from(self.layout.digits))?);
        self.iter().try_for_each(|(value, count)| counts.push(value / divisor, count))?;
        Ok(counts)
    }

    /// Range and precision.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// How many were counted.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Smallest and largest value, each as HdrHistogram says it: the lower and the upper end of its counter. `None` of none.
    #[must_use]
    pub fn ends(&self) -> Option<(u64, u64)> {
        let (first, last) = (self.by_value.first()?.0, self.by_value.last()?.0);
        Some((self.layout.value(self.layout.index(first)), self.layout.highest_equivalent(last)))
    }

    /// The mean, each counted as the middle of its counter, as HdrHistogram does; 0 of none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let middle = |value: u64| {
            let index = self.layout.index(value);
            let (low, next) = (self.layout.value(index), self.layout.value(index + 1));
            low + (next - low) / 2
        };
        let sum: f64 = self.iter().map(|(value, count)| middle(value) as f64 * count as f64).sum();
        if self.total == 0 { 0.0 } else { sum / self.total as f64 }
    }

    /// The smallest value that so large a share of all counts does not exceed; `None` of none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let reaches = |(_, count): &(u64, u64)| {
            below += count;
            below >= rank
        };
        self.iter().find(reaches).map(|(value, _)| value)
    }

    /// Counters that are not zero.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_value.len()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_value.is_empty()
    }

    /// By rising value.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_value.iter().copied()
    }

    /// As a histogram of the same range and precision.
    ///
    /// # Panics
    /// Never: a [`Layout`] is one that histograms can have, and values outside it count at its ends.
    #[must_use]
    pub fn histogram(&self) -> Histogram<u64> {
        let Layout { lowest, highest, digits } = self.layout;
        let mut histogram =
            Histogram::new_with_bounds(lowest, highest, digits).expect("checked when the layout was made");
        for (value, count) in self.iter() {
            histogram.saturating_record_n(value, count);
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_that_no_histogram_can_have_are_refused() {
        for (lowest, highest, digits) in [
            (1, 1, 3),
            (1, 1_000, 6),
            (1, u64::MAX, 3),
            (1, i64::MAX as u64, 5),
            (1 << 60, i64::MAX as u64, 3),
            (u64::MAX, u64::MAX, 0),
        ] {
            assert!(Layout::new(lowest, highest, digits).is_err(), "{lowest} {highest} {digits}");
        }
        assert!(Layout::new(1, 3_600_000_000_000, 5).is_ok());
        assert!(Layout::new(0, 60_000_000_000, 3).is_ok(), "zero stands for one");
    }

    proptest! {
        #[test]
        fn counters_stand_for_what_the_crate_s_stand_for(
            lowest in 1_u64..5_000, factor in 2_u64..1 << 40, digits in 0_u32..=5, values in prop::collection::vec(any::<u64>(), 1..40),
        ) {
            let Ok(layout) = Layout::new(lowest, lowest * factor, digits) else { return Ok(()) };
            prop_assume!(layout.counters() < 1 << 18);
            let mut histogram = Histogram::<u64>::new_with_bounds(lowest, lowest * factor, digits as u8).unwrap();
            prop_assert_eq!(layout.counters(), histogram.distinct_values() as u64);
            for value in values {
                histogram.record(value % (lowest * factor)).unwrap();
            }
            let counts = Counts::of(&histogram);
            prop_assert_eq!(&counts.histogram(), &histogram);
            for (index, step) in histogram.iter_all().enumerate() {
                let value = histogram.lowest_equivalent(step.value_iterated_to());
                prop_assert_eq!(layout.value(index as u64), value, "counter {}", index);
                prop_assert_eq!(layout.index(value), index as u64);
                prop_assert_eq!(layout.highest_equivalent(value), histogram.highest_equivalent(value));
            }
            prop_assert_eq!(counts.ends(), Some((histogram.min(), histogram.max())));
            prop_assert!((counts.mean() - histogram.mean()).abs() <= 1e-9 * histogram.mean());
        }
    }

    #[test]
    fn a_sum_of_many_is_what_adding_them_one_by_one_gives() {
        let part = |index: u64| {
            let mut counts = Counts::new(Layout::new(1, 1_000_000 << (index % 3), 3).unwrap());
            (0..40).for_each(|step| counts.push(index % 97 + step * (index % 13 + 1), step + 1).unwrap());
            counts
        };
        let parts: Vec<Counts> = (0..4_000).map(part).collect();
        let mut one_by_one = parts[0].clone();
        parts[1..].iter().for_each(|part| one_by_one.merge(part).unwrap());
        assert_eq!(Counts::sum(&parts).unwrap(), Some(one_by_one));
        assert_eq!(Counts::sum([]), Ok(None));
        let mut full = Counts::new(Layout::new(1, 1_000, 3).unwrap());
        full.push(5, i64::MAX as u64).unwrap();
        assert!(Counts::sum([&full, &full]).is_err());
    }

    #[test]
    fn sums_hold_the_values_of_both_and_no_more_than_fit() {
        let mut nanoseconds = Counts::new(Layout::new(1, 1_000_000, 3).unwrap());
        nanoseconds.push(999_424, 2).unwrap();
        let mut seconds = Counts::new(Layout::new(1_000_000, 60_000_000_000, 2).unwrap());
        seconds.push(5_000_000_000, 3).unwrap();
        nanoseconds.merge(&seconds).unwrap();
        let histogram = nanoseconds.histogram();
        assert_eq!((histogram.len(), histogram.count_at(999_500)), (5, 2));
        assert_eq!((histogram.count_at(5_000_000_000), histogram.sigfig()), (3, 3));
        assert!(nanoseconds.push(u64::MAX, i64::MAX as u64).is_err());
        assert!(nanoseconds.push(1, 1).is_err());
        assert_eq!(nanoseconds.total(), 5);
        assert!(nanoseconds.times(u64::MAX).is_err());
        let quantiles = [0.0, 0.4, 0.41, 1.0].map(|share| nanoseconds.quantile(share));
        assert_eq!(quantiles, [Some(999_424), Some(999_424), Some(5_000_000_000), Some(5_000_000_000)]);
        assert_eq!(nanoseconds.times(1_000).unwrap().iter().next(), Some((999_424_000, 2)));
    }
}
