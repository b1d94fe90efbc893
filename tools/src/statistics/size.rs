//! How many runs a side it takes.

use super::distribution::student_quantile;
use super::permutation::count;

/// Most runs a side that are worth naming.
pub const RUNS_MAX: u32 = 1_000;
/// The chance with which that many runs decide, if things are as they seem.
const POWER: f64 = 0.8;

/// Runs a side after which a shift of `distance` from the limit is told from it in four cases of five, when runs of one
/// side deviate by `deviation`; each side of the test at `alpha`. `None` when more than [`RUNS_MAX`] would not do.
#[must_use]
pub fn runs_to_tell(distance: f64, deviation: f64, alpha: f64) -> Option<u32> {
    let least = runs_at_least(alpha);
    (least..=RUNS_MAX).find(|&runs| {
        let degrees = f64::from(2 * runs - 2);
        let errors = student_quantile(degrees, 1.0 - alpha) + student_quantile(degrees, POWER);
        errors * deviation * (2.0 / f64::from(runs)).sqrt() <= distance.abs()
    })
}

/// Runs a side below which no data can be significant at `alpha`.
#[must_use]
pub fn runs_at_least(alpha: f64) -> u32 {
    let enough = |&runs: &u32| {
        let splits = count(runs as usize, runs as usize);
        splits.is_none_or(|splits| 1.0 / splits as f64 <= alpha + 1e-12)
    };
    (2..30).find(enough).unwrap_or(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closer_limit_takes_more_runs() {
        let runs = [0.2, 0.1, 0.05].map(|distance| runs_to_tell(distance, 0.05, 0.05).unwrap());
        assert!(runs[0] < runs[1] && runs[1] < runs[2], "{runs:?}");
        // By tables of power: a shift of one deviation at 5 % on one side and 80 % power takes about 14.
        assert!((13..=14).contains(&runs[2]), "{runs:?}");
        assert_eq!(runs_to_tell(0.0, 0.05, 0.05), None);
    }

    #[test]
    fn the_least_is_what_the_splits_allow() {
        assert_eq!([runs_at_least(0.05), runs_at_least(0.025), runs_at_least(0.005)], [3, 4, 5]);
    }
}
