//! The Hodges-Lehmann shift between two samples, which one stalled run cannot move far, with its exact interval.
//!
//! The shift is the median of all differences of a value of B and one of A. Its interval is that of the shifts which the
//! exact rank-sum test (Mann-Whitney) does not reject (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 4.3).

use serde::Serialize;

use super::sample::median;

/// Where B lies above A.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shift {
    /// The median of the differences.
    pub estimate: f64,
    /// Lower end of the interval; infinite where there are too few values for one.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Shift {
    /// The shift from `a` to `b`, each end of the interval at `alpha` on its own; `None` when a side is empty.
    #[must_use]
    pub fn new(a: &[f64], b: &[f64], alpha: f64) -> Option<Self> {
        let mut differences: Vec<f64> = b.iter().flat_map(|b| a.iter().map(move |a| b - a)).collect();
        differences.sort_by(f64::total_cmp);
        let estimate = median(&differences)?;
        let rejected = rejected(a.len(), b.len(), alpha);
        let (low, high) = match rejected {
            0 => (f64::NEG_INFINITY, f64::INFINITY),
            ranks => (differences[ranks - 1], differences[differences.len() - ranks]),
        };
        Some(Self { estimate, low, high })
    }
}

/// How many of the smallest differences lie outside the interval: one more than the largest U whose probability, with
/// all that are smaller, is at most `alpha`.
fn rejected(a: usize, b: usize, alpha: f64) -> usize {
    let counts = counts(a, b);
    let all: f64 = counts.iter().sum();
    let mut below = 0.0;
    for (u, count) in counts.iter().enumerate() {
        below += count;
        if below > alpha * all + 1e-9 {
            return u;
        }
    }
    0
}

/// In how many orders of `a` and `b` values U has each of its values 0 to a × b. As floats: exact up to 2^53, and close
/// enough beyond.
fn counts(a: usize, b: usize) -> Vec<f64> {
    // The largest value is one of A's, which then exceeds all of B, or one of B's: f(a, b) = f(a-1, b) shifted by b + f(a, b-1).
    let mut rows: Vec<Vec<f64>> = vec![vec![1.0]; b + 1];
    for a in 1..=a {
        let mut next: Vec<Vec<f64>> = vec![vec![1.0]];
        for b in 1..=b {
            let mut row = vec![0.0; a * b + 1];
            for (u, count) in rows[b].iter().enumerate() {
                row[u + b] += count;
            }
            for (u, count) in next[b - 1].iter().enumerate() {
                row[u] += count;
            }
            next.push(row);
        }
        rows = next;
    }
    rows.swap_remove(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_counted_as_in_the_tables() {
        assert_eq!(counts(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
        assert_eq!(counts(5, 5).iter().sum::<f64>(), 252.0);
        // Critical values of U at 5 % on two sides: 2 for 5 and 5, 23 for 10 and 10; none for 3 and 3.
        assert_eq!([rejected(5, 5, 0.025), rejected(10, 10, 0.025), rejected(3, 3, 0.025)], [3, 24, 0]);
    }

    #[test]
    fn one_value_far_out_moves_the_shift_little() {
        let a = [10.0, 11.0, 12.0, 13.0, 14.0];
        let b = [20.0, 21.0, 22.0, 23.0, 24.0];
        let calm = Shift::new(&a, &b, 0.05).unwrap();
        let stalled = Shift::new(&a, &[20.0, 21.0, 22.0, 23.0, 9_000.0], 0.05).unwrap();
        assert_eq!(calm.estimate, 10.0);
        assert!((stalled.estimate - calm.estimate).abs() <= 1.0 && stalled.low >= calm.low, "{stalled:?}");
        assert_eq!(Shift::new(&[1.0], &[2.0], 0.05).unwrap().low, f64::NEG_INFINITY);
        assert!(Shift::new(&[], &[2.0], 0.05).is_none());
    }
}
