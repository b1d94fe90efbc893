//! Percentile distributions as text (`.hgrm`), laid out as Java's `outputPercentileDistribution`, which plotters read.

use std::io::{self, Write};

use hdrhistogram::Histogram;

/// Steps per halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// Writes the distribution with every value divided by `unit` (1000 for microseconds).
///
/// # Errors
/// What `out` answers.
pub fn write<W: Write>(out: &mut W, histogram: &Histogram<u64>, unit: f64) -> io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / unit;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:>12.3} {quantile:>14.12} {count:>10}")?;
        if quantile < 1.0 {
            write!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let max = if histogram.is_empty() { 0.0 } else { histogram.max() as f64 / unit };
    let (mean, deviation) = (histogram.mean() / unit, histogram.stdev() / unit);
    writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
    writeln!(out, "#[Max     = {max:>12.3}, Total count    = {:>12}]", histogram.len())?;
    let sub_buckets = sub_buckets(histogram.sigfig());
    writeln!(out, "#[Buckets = {:>12}, SubBuckets     = {sub_buckets:>12}]", histogram.buckets())
}

/// Sub-buckets of a histogram with `digits` significant digits: the power of two at or above 2 × 10^digits.
fn sub_buckets(digits: u8) -> u64 {
    (2 * 10_u64.pow(u32::from(digits))).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::distribution::histogram;

    fn text(histogram: &Histogram<u64>) -> String {
        let mut out = Vec::new();
        write(&mut out, histogram, 1_000.0).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_layout_is_java_s_and_the_counts_rise_to_the_total() {
        let mut histogram = histogram();
        for value in 1..=10_000_u64 {
            histogram.record(value * 1_000).unwrap();
        }
        let text = text(&histogram);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        let rows: Vec<Vec<f64>> = lines[2..lines.len() - 3]
            .iter()
            .map(|line| line.split_whitespace().map(|field| field.parse().unwrap()).collect())
            .collect();
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][2] <= pair[1][2]));
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        assert_eq!((first.len(), last.len()), (4, 3));
        assert_eq!((last[1], last[2]), (1.0, 10_000.0));
        let median = rows.iter().find(|row| row[1] >= 0.5).unwrap();
        assert!((median[0] / 5_000.0 - 1.0).abs() < 0.001, "{median:?}");
        assert!(lines[lines.len() - 1].ends_with("SubBuckets     =         2048]"), "{text}");
        assert!(lines[lines.len() - 2].starts_with("#[Max     =    1000"), "{text}");
    }

    #[test]
    fn an_empty_histogram_has_a_header_and_a_footer() {
        assert!(text(&histogram()).contains("Total count    =            0]"));
    }
}
