//! How much later the second side is than the first at each quantile, with a band that says how sure that is.
//!
//! With four runs a side or more the runs are the sample ([`quantile_shift`]). With fewer, nothing is known of how runs differ,
//! and the band is that of the intervals of each run, drawn anew at random (a block bootstrap): it says how steady the runs were,
//! and no more.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde::Serialize;

use crate::format::counts::Counts;
use crate::run::CurvePoint;
use crate::statistics::quantile_shift;

/// Runs a side from which on runs are the sample: fewer cannot differ at 5 % in any order.
const RUNS_MIN: usize = 4;
/// Times that the intervals are drawn.
const DRAWS: usize = 200;
/// Blocks that the intervals of a side are put into at most.
const BLOCKS_MAX: usize = 60;
/// Leading bits of a value that are kept, as a histogram of three digits keeps them.
const VALUE_BITS: u32 = 11;
/// Chance that the band misses, on either side of it.
const TAIL: f64 = 0.025;

/// What one side is made of.
#[derive(Clone, Debug)]
pub struct Side<'a> {
    /// The percentile curve of each run.
    pub curves: Vec<&'a [CurvePoint]>,
    /// What was counted in each interval of all runs, in order.
    pub intervals: Vec<&'a Counts>,
    /// Datagrams that never arrived, of all runs.
    pub lost: u64,
    /// The share of the datagrams that never arrived, of each run.
    pub lost_shares: Vec<f64>,
}

/// The second by the first at one quantile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Share of the sent datagrams, 0 to below 1.
    pub quantile: f64,
    /// The second divided by the first.
    pub ratio: f64,
    /// Lower end of the band.
    pub low: f64,
    /// Upper end of the band.
    pub high: f64,
}

/// The second side by the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shift {
    /// By rising quantile, as far as both sides reach.
    pub points: Vec<Point>,
    /// The quantile beyond which datagrams of the first, and of the second side were lost, so that there is no ratio: where the band
    /// is of the runs, in the run that lost most.
    pub lost_from: [Option<f64>; 2],
    /// Whether the band is of intervals, for want of runs: it then says nothing about chance from run to run.
    pub of_intervals: bool,
}

impl Shift {
    /// Compares two sides; `seed` fixes what is drawn.
    #[must_use]
    pub fn new(a: &Side<'_>, b: &Side<'_>, seed: u64) -> Self {
        let of_intervals = a.curves.len().min(b.curves.len()) < RUNS_MIN;
        let points = if of_intervals { by_intervals(a, b, seed) } else { by_runs(a, b) };
        let lost_from = [a, b].map(|side| side.lost_from(of_intervals));
        Self { points, lost_from, of_intervals }
    }
}

impl Side<'_> {
    fn lost_from(&self, of_intervals: bool) -> Option<f64> {
        let share = if of_intervals {
            let received: u64 = self.intervals.iter().map(|counts| counts.total()).sum();
            self.lost as f64 / (received + self.lost).max(1) as f64
        } else {
            self.lost_shares.iter().copied().fold(0.0, f64::max)
        };
        (share > 0.0).then_some(1.0 - share)
    }
}

/// Each run as one value at each quantile.
fn by_runs(a: &Side<'_>, b: &Side<'_>) -> Vec<Point> {
    let ratios = quantile_shift::ratios(&a.curves, &b.curves, TAIL).into_iter();
    ratios.map(|at| Point { quantile: at.quantile, ratio: at.ratio, low: at.low, high: at.high }).collect()
}

/// Intervals drawn anew from all runs of a side.
fn by_intervals(a: &Side<'_>, b: &Side<'_>, seed: u64) -> Vec<Point> {
    let (a, b) = (Blocks::new(a), Blocks::new(b));
    let quantiles = quantiles(a.sent.min(b.sent));
    let ones = |blocks: &Blocks| vec![1; blocks.counts.len()];
    let (first, second) = (a.values(&ones(&a), &quantiles), b.values(&ones(&b), &quantiles));
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut drawn: Vec<Vec<f64>> = vec![Vec::with_capacity(DRAWS); quantiles.len()];
    for _ in 0..DRAWS {
        let (a, b) = (a.values(&a.draw(&mut random), &quantiles), b.values(&b.draw(&mut random), &quantiles));
        for (ratios, (a, b)) in drawn.iter_mut().zip(a.iter().zip(&b)) {
            ratios.extend(a.zip(*b).map(|(a, b)| ratio(a, b)));
        }
    }
    let mut points = Vec::with_capacity(quantiles.len());
    for (index, &quantile) in quantiles.iter().enumerate() {
        // One side ends here: the rest of its datagrams were lost.
        let (Some(a), Some(b)) = (first[index], second[index]) else { break };
        let ratio = ratio(a, b);
        let drawn = &mut drawn[index];
        drawn.sort_by(f64::total_cmp);
        let end = |share: f64| drawn.get((share * drawn.len() as f64) as usize).copied().unwrap_or(ratio);
        points.push(Point { quantile, ratio, low: end(TAIL).min(ratio), high: end(1.0 - TAIL).max(ratio) });
    }
    points
}

fn ratio(a: u64, b: u64) -> f64 {
    b.max(1) as f64 / a.max(1) as f64
}

/// Quantiles of a curve of so many datagrams, ten at least beyond the last.
fn quantiles(sent: u64) -> Vec<f64> {
    let quantile = |step: i32| 1.0 - 10_f64.powf(-f64::from(step) / 20.0);
    (0..).map(quantile).take_while(|quantile| (1.0 - quantile) * sent as f64 >= 10.0).collect()
}

/// A value with three significant digits, as our own histograms have them: finer ones would be drawn for minutes.
fn coarse(value: u64) -> u64 {
    let dropped = (value.max(1).ilog2() + 1).saturating_sub(VALUE_BITS);
    value >> dropped << dropped
}

/// The intervals of a side in groups of neighbours.
struct Blocks {
    /// All values that were counted, rising.
    values: Vec<u64>,
    /// For each block, indices into `values` with counts.
    counts: Vec<Vec<(usize, u64)>>,
    lost: u64,
    sent: u64,
}

impl Blocks {
    fn new(side: &Side<'_>) -> Self {
        let mut values: Vec<u64> =
            side.intervals.iter().flat_map(|counts| counts.iter()).map(|(value, _)| coarse(value)).collect();
        values.sort_unstable();
        values.dedup();
        let group = side.intervals.len().div_ceil(BLOCKS_MAX).max(1);
        let counts: Vec<Vec<(usize, u64)>> = side
            .intervals
            .chunks(group)
            .map(|block| {
                let mut all: Vec<(usize, u64)> = block
                    .iter()
                    .flat_map(|counts| counts.iter())
                    .map(|(value, count)| (values.partition_point(|other| *other < coarse(value)), count))
                    .collect();
                all.sort_unstable_by_key(|(index, _)| *index);
                // Once for each value: it is gone through for each draw.
                all.dedup_by(|(index, count), (last, sum)| {
                    let same = index == last;
                    *sum += if same { *count } else { 0 };
                    same
                });
                all
            })
            .collect();
        let received: u64 = side.intervals.iter().map(|counts| counts.total()).sum();
        Self { values, counts, lost: side.lost, sent: received + side.lost }
    }

    /// How often each block is taken when as many as there are are drawn.
    fn draw(&self, random: &mut Xoshiro256PlusPlus) -> Vec<u64> {
        let mut weights = vec![0; self.counts.len()];
        for _ in 0..self.counts.len() {
            let index = random.next_u64() % self.counts.len() as u64;
            weights[index as usize] += 1;
        }
        weights
    }

    /// The values at rising quantiles with so many of each block; `None` where the datagrams were lost.
    fn values(&self, weights: &[u64], quantiles: &[f64]) -> Vec<Option<u64>> {
        let mut counts = vec![0; self.values.len()];
        for (weight, block) in weights.iter().zip(&self.counts).filter(|(weight, _)| **weight > 0) {
            block.iter().for_each(|&(index, count)| counts[index] += weight * count);
        }
        let received: u64 = counts.iter().sum();
        // As large a share is lost as of all.
        let lost = if self.sent > self.lost {
            self.lost as f64 * received as f64 / (self.sent - self.lost) as f64
        } else {
            0.0
        };
        let sent = received as f64 + lost;
        let (mut index, mut below) = (0, 0);
        let value = |quantile: &f64| {
            let rank = (quantile * sent).ceil().max(1.0) as u64;
            if rank > received {
                return None;
            }
            while below + counts[index] < rank {
                below += counts[index];
                index += 1;
            }
            Some(self.values[index])
        };
        quantiles.iter().map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::counts::Layout;
    use crate::run::distribution::{curve, histogram};

    /// Intervals of a noisy exponential of this mean.
    fn intervals(mean: f64, count: usize, seed: u64) -> Vec<Counts> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut uniform = move || ((random.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        let interval = |_| {
            let mut histogram = histogram();
            let wander = 0.95 + 0.1 * uniform();
            for _ in 0..1_000 {
                histogram.record((mean * wander * -uniform().ln()) as u64 + 1_000).unwrap();
            }
            Counts::of(&histogram)
        };
        (0..count).map(interval).collect()
    }

    fn whole(intervals: &[Counts]) -> Vec<CurvePoint> {
        let mut all = intervals[0].clone();
        intervals[1..].iter().for_each(|counts| all.merge(counts).unwrap());
        curve(&all.histogram(), 0)
    }

    #[test]
    fn four_runs_a_side_are_the_sample() {
        let runs = |mean: f64, seeds: std::ops::Range<u64>| -> Vec<Vec<CurvePoint>> {
            seeds.map(|seed| whole(&intervals(mean, 4, seed))).collect()
        };
        let (a, b) = (runs(1e6, 1..5), runs(1.5e6, 11..15));
        let side = |curves: &'static [Vec<CurvePoint>]| Side {
            curves: curves.iter().map(Vec::as_slice).collect(),
            intervals: Vec::new(),
            lost: 0,
            lost_shares: vec![0.0; curves.len()],
        };
        let (a, b): (&'static [Vec<CurvePoint>], &'static [Vec<CurvePoint>]) = (a.leak(), b.leak());
        let shift = Shift::new(&side(a), &side(b), 7);
        let median = shift.points.iter().find(|point| point.quantile > 0.5).unwrap();
        assert!(!shift.of_intervals && median.low > 1.0 && median.high < 2.0, "{median:?}");
        assert_eq!(shift.lost_from, [None, None]);
        let lossy = Side { lost_shares: vec![0.0, 0.02, 0.01, 0.0], ..side(b) };
        assert_eq!(Shift::new(&side(a), &lossy, 7).lost_from, [None, Some(0.98)], "the run that lost most");
        let fewer = Shift::new(&side(&a[..3]), &side(b), 7);
        assert!(fewer.of_intervals && fewer.points.is_empty(), "without intervals nothing is to be said");
    }

    #[test]
    fn one_run_a_side_gives_a_band_of_intervals_around_the_true_ratio() {
        let (a, b) = (intervals(1e6, 20, 1), intervals(1.5e6, 20, 2));
        let (a_curve, b_curve) = (whole(&a), whole(&b));
        let side = |intervals: &'static [Counts], curve: &'static [CurvePoint], lost| Side {
            curves: vec![curve],
            intervals: intervals.iter().collect(),
            lost,
            lost_shares: vec![lost as f64 / (20_000 + lost) as f64],
        };
        let (a, b): (&'static [Counts], &'static [Counts]) = (a.leak(), b.leak());
        let (a_curve, b_curve) = (a_curve.leak(), b_curve.leak());
        let shift = Shift::new(&side(a, a_curve, 0), &side(b, b_curve, 0), 7);
        assert!(shift.of_intervals && shift.points.len() > 40, "{shift:?}");
        for point in shift.points.iter().filter(|point| point.quantile > 0.3 && point.quantile < 0.99) {
            assert!(point.low <= point.ratio && point.ratio <= point.high, "{point:?}");
            assert!(point.low < 1.53 && point.high > 1.45 && point.low > 1.2, "{point:?}");
        }
        assert_eq!(shift, Shift::new(&side(a, a_curve, 0), &side(b, b_curve, 0), 7), "the seed fixes it");
        // A tenth of the second is lost: its curve ends there.
        let lossy = Shift::new(&side(a, a_curve, 0), &side(b, b_curve, 2_222), 7);
        let last = lossy.points.last().unwrap().quantile;
        assert!(last > 0.85 && last <= 0.9, "{last}");
        assert!(
            lossy.lost_from[0].is_none() && (lossy.lost_from[1].unwrap() - 0.9).abs() < 1e-4,
            "{lossy:?}"
        );
    }

    #[test]
    fn finer_values_are_put_together_and_ours_stay_what_they_are() {
        let mut ours = histogram();
        (0..60_u32).for_each(|step| ours.record(1_u64 << (step / 2)).unwrap());
        (1..5_000).for_each(|step| ours.record(step * 7_919).unwrap());
        assert!(Counts::of(&ours).iter().all(|(value, _)| coarse(value) == value));
        let mut fine = Counts::new(Layout::new(1, 60_000_000_000, 5).unwrap());
        (0..500_000).for_each(|step| fine.push(1_000_000 + step, 1).unwrap());
        let side =
            Side { curves: Vec::new(), intervals: vec![&fine, &fine], lost: 0, lost_shares: Vec::new() };
        let blocks = Blocks::new(&side);
        assert!(blocks.values.len() < 1_200 && blocks.counts[0].len() == blocks.values.len());
        assert_eq!(blocks.counts[1].iter().map(|(_, count)| count).sum::<u64>(), 500_000);
    }
}
