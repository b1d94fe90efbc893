//! What comparing a target with itself shows: false alarms, and the smallest effect that would be found on this host.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::statistics::Splits;
use crate::statistics::sample::{deviation, median};

/// Most ways of dealing the runs of a window out to two sides that are looked at.
const DEALS_MAX: usize = 64;
/// The share of the deals in which an effect has to be found.
const FOUND: f64 = 0.9;

/// What one metric of a target does when nothing is changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// The metric.
    pub metric: String,
    /// Median over all runs, in the metric's unit.
    pub median: f64,
    /// Deviation from run to run, as a share of the value.
    pub deviation: f64,
    /// Runs a side in the comparisons below.
    pub per_side: usize,
    /// Comparisons of interleaved runs.
    pub deals: usize,
    /// The share of them in which B was found worse than A at 5 %, though they are the same.
    pub alarms: f64,
    /// The same against the margin of the gate's usual rule, +5 %.
    pub alarms_at_margin: f64,
    /// The share of comparisons of runs one after the other (A A … B B) in which the second side was found worse or better.
    pub alarms_in_sequence: f64,
    /// The smallest slow-down, as a share, that nine in ten comparisons would find; absent with too few runs a side.
    pub detectable: Option<f64>,
}

/// Level of each comparison.
const ALPHA: f64 = 0.05;
/// The margin of the gate's usual rule.
const MARGIN: f64 = 0.05;

/// Analyses `values`, one of each run in the order of time, by comparing runs of every window of `2 × per_side` runs.
/// `None` with fewer runs, or values that have no logarithm.
#[must_use]
pub fn noise(metric: &str, values: &[f64], per_side: usize, seed: u64) -> Option<Noise> {
    let window = 2 * per_side;
    if per_side == 0
        || values.len() < window
        || values.iter().any(|&value| !value.is_finite() || value <= 0.0)
    {
        return None;
    }
    let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    // How much worse B is for sure, in each comparison.
    let (mut lows, mut in_sequence, mut windows) = (Vec::new(), 0, 0);
    for runs in logs.windows(window) {
        for deal in deals(per_side, &mut random) {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for (pair, swapped) in runs.chunks(2).zip(deal) {
                let (first, second) = if swapped { (pair[1], pair[0]) } else { (pair[0], pair[1]) };
                a.push(first);
                b.push(second);
            }
            lows.push(Splits::new(&a, &b, seed)?.interval(ALPHA).0);
        }
        let (low, high) = Splits::new(&runs[..per_side], &runs[per_side..], seed)?.interval(ALPHA / 2.0);
        in_sequence += usize::from(low > 0.0 || high < 0.0);
        windows += 1;
    }
    lows.sort_by(f64::total_cmp);
    let above = |limit: f64| lows.iter().filter(|&&low| low > limit).count() as f64 / lows.len() as f64;
    // All but a tenth of the comparisons lie at or above this.
    let weakest = lows[((1.0 - FOUND) * lows.len() as f64) as usize];
    Some(Noise {
        metric: metric.to_owned(),
        median: median(values)?,
        deviation: deviation(&logs),
        per_side,
        deals: lows.len(),
        alarms: above(0.0),
        alarms_at_margin: above(MARGIN.ln_1p()),
        alarms_in_sequence: in_sequence as f64 / f64::from(windows),
        detectable: weakest.is_finite().then(|| (-weakest).exp() - 1.0),
    })
}

/// Ways to deal pairs of neighbours out to two sides: for each pair, whether the second is A's. All of them where they
/// are few, else some at random.
fn deals(pairs: usize, random: &mut Xoshiro256PlusPlus) -> Vec<Vec<bool>> {
    let bits = |number: u64| (0..pairs).map(|pair| number >> pair & 1 == 1).collect();
    if 1 << pairs.min(20) <= DEALS_MAX {
        return (0..1 << pairs).map(bits).collect();
    }
    (0..DEALS_MAX).map(|_| bits(random.next_u64())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(random: &mut Xoshiro256PlusPlus) -> f64 {
        (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[test]
    fn a_steady_host_raises_few_alarms_and_its_smallest_effect_is_found() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        let values: Vec<f64> =
            (0..40).map(|_| 1_000.0 * (0.03 * (uniform(&mut random) - 0.5)).exp()).collect();
        let noise = noise("p99", &values, 5, 1).unwrap();
        assert!(noise.alarms <= 0.1 && noise.alarms_at_margin == 0.0, "{noise:?}");
        assert!(noise.deviation > 0.005 && noise.deviation < 0.012, "{noise:?}");
        let effect = noise.detectable.unwrap();
        assert!(effect > 0.005 && effect < 0.04, "{noise:?}");
    }

    #[test]
    fn a_host_that_drifts_raises_alarms_only_where_runs_are_not_interleaved() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        let values: Vec<f64> = (0..30)
            .map(|run| 1_000.0 * (0.01 * f64::from(run) + 0.01 * uniform(&mut random)).exp())
            .collect();
        let noise = noise("p99", &values, 5, 1).unwrap();
        assert_eq!(noise.alarms_in_sequence, 1.0, "{noise:?}");
        assert!(noise.alarms <= 0.05, "{noise:?}");
    }

    #[test]
    fn too_few_runs_say_nothing() {
        assert_eq!(noise("p99", &[1.0; 9], 5, 1), None);
        assert_eq!(noise("loss", &[0.0; 20], 5, 1), None);
        let two = noise("p99", &[1.0, 2.0, 3.0, 4.0], 2, 1).unwrap();
        assert_eq!((two.detectable, two.alarms), (None, 0.0));
    }
}
