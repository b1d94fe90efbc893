//! The highest rate that still holds: doubling until one does not, then bisection.

use std::time::Duration;

use crate::load::{Counted, Load};

/// The share of the datagrams that may be missing while a rate still holds.
pub const LOST_MAX: f64 = 0.001;
/// In datagrams a second.
const BOUNDS: Bounds = Bounds { low: 5_000, high: 640_000, precision: 1.05 };

/// Between which rates is searched, and how close.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Must hold.
    pub low: u64,
    /// Is not exceeded.
    pub high: u64,
    /// The answer is at most this factor below a rate that does not hold.
    pub precision: f64,
}

/// Asks `holds` at most twice for a rate: one that fails once may have met a hiccup of the machine, one that fails twice
/// is too high.
///
/// # Errors
/// Those of `holds`; and when not even the lowest rate holds.
pub fn highest(bounds: Bounds, mut holds: impl FnMut(u64) -> anyhow::Result<bool>) -> anyhow::Result<u64> {
    let mut tried = |rate| Ok::<_, anyhow::Error>(holds(rate)? || holds(rate)?);
    let Bounds { mut low, high, precision } = bounds;
    anyhow::ensure!(tried(low)?, "not even {low}/s arrive without loss");
    let mut failed = loop {
        if low >= high {
            return Ok(low);
        }
        let next = (low * 2).min(high);
        if !tried(next)? {
            break next;
        }
        low = next;
    };
    while failed as f64 > low as f64 * precision.max(1.001) && failed - low > 1 {
        let middle = ((low as f64 * failed as f64).sqrt() as u64).clamp(low + 1, failed - 1);
        if tried(middle)? {
            low = middle;
        } else {
            failed = middle;
        }
    }
    Ok(low)
}

/// What a search has found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The highest rate that held, in datagrams a second.
    pub rate: u64,
    /// The share that was missing all the same, in the worst trial of a rate that held.
    pub lost: f64,
}

/// The highest rate of single datagrams of `size` bytes that `carry` brings over with at most [`LOST_MAX`] missing; each
/// trial lasts `trial`.
///
/// # Errors
/// Those of `carry`; and when not even the lowest rate holds.
pub fn loss_free(
    size: usize,
    trial: Duration,
    mut carry: impl FnMut(Load) -> anyhow::Result<Counted>,
) -> anyhow::Result<Found> {
    let mut lost = 0.0f64;
    let rate = highest(BOUNDS, |rate| {
        let load = Load { rate, size, burst: 1, superpackets: false, duration: trial, patient: true };
        let counted = carry(load)?;
        let holds = counted.holds(load, LOST_MAX);
        if holds {
            lost = lost.max(1.0 - counted.share());
        }
        Ok(holds)
    })?;
    Ok(Found { rate, lost })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: Bounds = Bounds { low: 10_000, high: 1_000_000, precision: 1.05 };

    #[test]
    fn the_answer_is_close_below_the_limit_and_comes_in_few_trials() {
        for limit in [10_000, 10_001, 33_333, 79_999, 80_000, 640_001, 999_999] {
            let mut trials = 0;
            let found = highest(NARROW, |rate| {
                trials += 1;
                Ok(rate <= limit)
            })
            .unwrap();
            assert!(found <= limit && found as f64 * 1.05 >= limit as f64, "{found} for {limit}");
            assert!(trials <= 20, "{trials} trials for {limit}");
        }
    }

    #[test]
    fn the_bounds_are_kept() {
        assert_eq!(highest(NARROW, |_| Ok(true)).unwrap(), 1_000_000);
        assert!(highest(NARROW, |_| Ok(false)).unwrap_err().to_string().contains("10000/s"));
    }

    #[test]
    fn one_hiccup_decides_nothing() {
        let mut asked = Vec::new();
        let found = highest(NARROW, |rate| {
            asked.push(rate);
            // Each rate fails the first time.
            Ok(rate <= 100_000 && asked.iter().filter(|&&other| other == rate).count() > 1)
        });
        assert!(found.unwrap() >= 95_000, "{asked:?}");
    }

    #[test]
    fn a_search_ends_where_datagrams_get_lost() {
        let found = loss_free(64, Duration::from_secs(1), |load| {
            let arrived = load.rate.min(50_000) - 4;
            Ok(Counted { sent: load.rate, arrived, took: load.duration })
        });
        let found = found.unwrap();
        assert!((47_000..=50_100).contains(&found.rate), "{found:?}");
        assert!(found.lost >= 4.0 / 5_000.0 - 1e-9 && found.lost <= LOST_MAX, "{found:?}");
    }
}
