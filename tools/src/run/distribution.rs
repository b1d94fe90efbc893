//! A latency histogram as figures: quantiles over what was *sent*, so that a lost datagram counts as infinitely late.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency a histogram holds: 60 s; longer ones are recorded as this.
pub const HIGHEST_NS: u64 = 60_000_000_000;
/// Significant digits of every histogram.
pub const DIGITS: u8 = 3;
/// Points of a percentile curve for every factor of ten in 1/(1-q).
const POINTS_PER_NINE: u32 = 40;

/// The quantiles of every table.
const QUANTILES: [(f64, &str); 6] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99"), (0.99999, "p99.999")];

/// An empty histogram of 1 ns to 60 s at three digits (216 KiB).
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_NS, DIGITS).expect("1 ns to 60 s at 3 digits are valid bounds")
}

/// How far a quantile can be trusted, by the number of samples at or above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// At least 100 samples at or above it.
    Solid,
    /// 10 to 99: shown in parentheses or grey.
    Weak,
    /// Fewer than 10: not shown.
    Omitted,
}

/// One quantile of a distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    /// `p99.9` and the like.
    pub name: String,
    /// Between 0 and 1.
    pub quantile: f64,
    /// Nanoseconds; absent when this part of the sent datagrams never arrived.
    pub value_ns: Option<u64>,
    /// Datagrams at or above it, lost ones included.
    pub beyond: u64,
    /// How far it can be trusted.
    pub grade: Grade,
}

/// A histogram as figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Datagrams measured.
    pub count: u64,
    /// Datagrams that were lost or refused, which lie beyond every measured one; in the response also those that a late sender never
    /// tried.
    pub lost: u64,
    /// Smallest value in nanoseconds; absent without samples.
    pub min_ns: Option<u64>,
    /// Largest value in nanoseconds; absent without samples.
    pub max_ns: Option<u64>,
    /// Mean in nanoseconds of those that arrived.
    pub mean_ns: f64,
    /// Standard deviation in nanoseconds of those that arrived.
    pub stdev_ns: f64,
    /// p50 to p99.999.
    pub quantiles: Vec<Quantile>,
}

impl Distribution {
    /// The figures of `histogram`, with `lost` more datagrams that never arrived.
    #[must_use]
    pub fn new(histogram: &Histogram<u64>, lost: u64) -> Self {
        let count = histogram.len();
        let quantiles = QUANTILES.iter().map(|&(quantile, name)| {
            let (value_ns, beyond) = quantile_of_sent(histogram, lost, quantile);
            let grade = match beyond {
                100.. => Grade::Solid,
                10.. => Grade::Weak,
                _ => Grade::Omitted,
            };
            Quantile { name: name.to_owned(), quantile, value_ns, beyond, grade }
        });
        Self {
            count,
            lost,
            min_ns: (count > 0).then(|| histogram.min()),
            max_ns: (count > 0).then(|| histogram.max()),
            mean_ns: histogram.mean(),
            stdev_ns: histogram.stdev(),
            quantiles: quantiles.collect(),
        }
    }

    /// The quantile called `name` (`p99.9`), whatever its grade.
    #[must_use]
    pub fn quantile(&self, name: &str) -> Option<&Quantile> {
        self.quantiles.iter().find(|quantile| quantile.name == name)
    }
}

/// One point of a percentile curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Share of the sent datagrams, 0 to below 1.
    pub quantile: f64,
    /// The latency within which that share arrived.
    pub value_ns: u64,
}

/// The percentile curve of what was sent: ends at the share that arrived, or where samples run out.
#[must_use]
pub fn curve(histogram: &Histogram<u64>, lost: u64) -> Vec<CurvePoint> {
    let sent = histogram.len() + lost;
    if histogram.is_empty() {
        return Vec::new();
    }
    let mut points = Vec::new();
    for step in 0.. {
        let quantile = 1.0 - 10_f64.powf(-f64::from(step) / f64::from(POINTS_PER_NINE));
        if (1.0 - quantile) * (sent as f64) < 1.0 {
            break;
        }
        let (Some(value_ns), _) = quantile_of_sent(histogram, lost, quantile) else { break };
        points.push(CurvePoint { quantile, value_ns });
    }
    points
}

/// The value at `quantile` of all sent datagrams (`None` when it falls among the lost) and how many lie at or above it.
fn quantile_of_sent(histogram: &Histogram<u64>, lost: u64, quantile: f64) -> (Option<u64>, u64) {
    let sent = histogram.len() + lost;
    // The small subtraction keeps 0.9 × 1000 from becoming rank 901 by rounding.
    let rank = ((quantile * sent as f64 - 1e-6).ceil() as u64).clamp(1, sent.max(1));
    let beyond = if sent == 0 { 0 } else { sent - rank + 1 };
    if rank > histogram.len() {
        return (None, beyond);
    }
    let value = histogram.value_at_quantile((rank as f64 - 0.5) / histogram.len() as f64);
    (Some(value.min(histogram.max())), beyond)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_to(count: u64) -> Histogram<u64> {
        let mut histogram = histogram();
        for value in 1..=count {
            histogram.record(value).unwrap();
        }
        histogram
    }

    #[test]
    fn quantiles_are_ranks_of_what_was_sent() {
        let distribution = Distribution::new(&one_to(1_000), 0);
        assert_eq!(distribution.quantile("p50").unwrap().value_ns, Some(500));
        assert_eq!(distribution.quantile("p90").unwrap().value_ns, Some(900));
        assert_eq!(distribution.quantile("p90").unwrap().beyond, 101);
        assert_eq!(distribution.quantile("p90").unwrap().grade, Grade::Solid);
        assert_eq!(distribution.quantile("p99").unwrap().grade, Grade::Weak);
        assert_eq!(distribution.quantile("p99.9").unwrap().grade, Grade::Omitted);
    }

    #[test]
    fn a_lost_datagram_is_later_than_all_others() {
        // 900 arrive, 100 do not: the median moves, p90 is the slowest that arrived, p99 is lost.
        let distribution = Distribution::new(&one_to(900), 100);
        assert_eq!(distribution.quantile("p50").unwrap().value_ns, Some(500));
        assert_eq!(distribution.quantile("p90").unwrap().value_ns, Some(900));
        assert_eq!(distribution.quantile("p99").unwrap().value_ns, None);
        let points = curve(&one_to(900), 100);
        let last = points.last().unwrap();
        assert!(last.quantile <= 0.9 && last.quantile > 0.88, "{last:?}");
    }

    #[test]
    fn nothing_received_has_no_values() {
        let distribution = Distribution::new(&histogram(), 10);
        assert_eq!((distribution.min_ns, distribution.max_ns), (None, None));
        assert!(distribution.quantiles.iter().all(|quantile| quantile.value_ns.is_none()));
        assert!(curve(&histogram(), 10).is_empty());
        assert!(
            Distribution::new(&histogram(), 0)
                .quantiles
                .iter()
                .all(|quantile| quantile.grade == Grade::Omitted)
        );
    }
}
