//! Durations in fixed memory: 64 buckets for each power of two, so that every value is known within 0.8 %.
//!
//! ```text
//!  ns      0 … 63      64 … 127     128 … 255       …      2^35 … 2^36−1
//!  width   1           1            2                      2^29
//! ```

use std::time::Duration;

/// Buckets of a power of two, as a power of two.
const SUB_BITS: u32 = 6;
const VALUE_BITS: u32 = 36;
/// The largest duration, ns; longer ones count as this one.
pub const VALUE_MAX_NS: u64 = (1 << VALUE_BITS) - 1;
/// How many buckets there are.
pub const BUCKETS: usize = ((VALUE_BITS - SUB_BITS + 1) as usize) << SUB_BITS;

/// Counts by bucket: 15.5 KiB. Recording touches one of them.
#[derive(Clone, Debug)]
pub struct Histogram(Box<[u64; BUCKETS]>);

impl Default for Histogram {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl Histogram {
    /// Counts a duration `times` times.
    pub fn record(&mut self, duration: Duration, times: u64) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(VALUE_MAX_NS);
        self.0[bucket(ns)] += times;
    }

    /// The buckets that hold anything, with their counts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let numbered = (0_u16..).zip(self.0.iter().copied());
        numbered.filter(|&(_, count)| count > 0)
    }
}

/// The bucket of a duration in ns.
fn bucket(ns: u64) -> usize {
    let ns = ns.min(VALUE_MAX_NS);
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(SUB_BITS + 1);
    // The leading bit of a shifted value adds the bucket's own power of two.
    ((shift as usize) << SUB_BITS) + (ns >> shift) as usize
}

/// The durations of a bucket in ns: the smallest, and how many there are.
fn bounds(bucket: usize) -> (u64, u64) {
    let shift = (bucket >> SUB_BITS).saturating_sub(1);
    let leading = (bucket - (shift << SUB_BITS)) as u64;
    (leading << shift, 1 << shift)
}

/// Counts by bucket as they are sent, and what can be told from them: bucket and count, in order, none of them zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts(Vec<(u16, u64)>);

impl From<&Histogram> for Counts {
    fn from(histogram: &Histogram) -> Self {
        Self(histogram.iter().collect())
    }
}

impl Counts {
    /// How much has been counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|&(_, count)| count).sum()
    }

    /// What was counted since `earlier`, of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut before = earlier.0.iter().copied().peekable();
        let grown = self.0.iter().filter_map(|&(bucket, count)| {
            while before.next_if(|&(other, _)| other < bucket).is_some() {}
            let old = before.next_if(|&(other, _)| other == bucket).map_or(0, |(_, count)| count);
            Some((bucket, count.saturating_sub(old))).filter(|&(_, count)| count > 0)
        });
        Self(grown.collect())
    }

    /// The duration, in ns, that `quantile` (0 to 1) of what was counted does not exceed; `None` when nothing was.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        let wanted = ((self.total() as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.0.iter().find(|&&(_, count)| {
            seen += count;
            seen >= wanted
        });
        found.or(self.0.last()).map(|&(bucket, _)| middle(bucket))
    }

    /// The same as an HdrHistogram of three digits, in ns.
    #[must_use]
    pub fn to_hdr(&self) -> hdrhistogram::Histogram<u64> {
        let mut histogram =
            hdrhistogram::Histogram::new_with_bounds(1, VALUE_MAX_NS, 3).expect("the bounds are good");
        for &(bucket, count) in &self.0 {
            histogram.saturating_record_n(middle(bucket), count);
        }
        histogram
    }
}

/// The middle of a bucket in ns; of one that is too far up, which a newer program may send, the largest.
fn middle(bucket: u16) -> u64 {
    let (low, width) = bounds(usize::from(bucket).min(BUCKETS - 1));
    low + width / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[(u64, u64)]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|&(ns, times)| histogram.record(Duration::from_nanos(ns), times));
        histogram
    }

    #[test]
    fn the_ends_are_inside() {
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        let (low, width) = bounds(BUCKETS - 1);
        assert_eq!(low + width - 1, VALUE_MAX_NS);
        assert_eq!(Counts::from(&of(&[(0, 1), (u64::MAX, 2)])).total(), 3);
        assert!(size_of::<[u64; BUCKETS]>() < 16 << 10);
    }

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket_which_is_narrow(ns in 0..=VALUE_MAX_NS, shift in 0_u32..36) {
            let ns = ns >> shift;
            let (low, width) = bounds(bucket(ns));
            prop_assert!((low..low + width).contains(&ns));
            prop_assert!(width == 1 || width as f64 / low as f64 <= 1.0 / 64.0);
        }

        #[test]
        fn quantiles_are_those_of_a_sorted_list(values in prop::collection::vec(0_u64..1 << 30, 1..200), quantile in 0.0..=1.0_f64) {
            let all: Vec<_> = values.iter().map(|&ns| (ns, 1)).collect();
            let counts = Counts::from(&of(&all));
            let mut sorted: Vec<u64> = values;
            sorted.sort_unstable();
            let place = ((sorted.len() as f64 * quantile).ceil() as usize).max(1) - 1;
            let (expected, found) = (sorted[place], counts.quantile_ns(quantile).unwrap());
            prop_assert!(found.abs_diff(expected) as f64 <= expected as f64 * 0.008, "{found} for {expected}");
            let hdr = counts.to_hdr().value_at_quantile(quantile);
            prop_assert!(hdr.abs_diff(expected) as f64 <= expected as f64 * 0.009 + 1.0, "{hdr} for {expected}");
        }

        #[test]
        fn an_interval_is_what_was_recorded_in_it(first in prop::collection::vec(0_u64..1 << 20, 0..50), second in prop::collection::vec(0_u64..1 << 20, 0..50)) {
            let list = |values: &[u64]| values.iter().map(|&ns| (ns, 3)).collect::<Vec<_>>();
            let (before, both) = (of(&list(&first)), of(&list(&[&first[..], &second[..]].concat())));
            let interval = Counts::from(&both).since(&Counts::from(&before));
            prop_assert_eq!(interval, Counts::from(&of(&list(&second))));
        }
    }

    #[test]
    fn nothing_has_no_quantile_and_sent_counts_need_not_be_ours() {
        assert_eq!(Counts::default().quantile_ns(0.5), None);
        assert!(Counts::default().to_hdr().is_empty());
        let strange: Counts = serde_json::from_str("[[65535,1]]").unwrap();
        assert!(strange.quantile_ns(1.0).is_some_and(|ns| ns <= VALUE_MAX_NS));
    }
}
