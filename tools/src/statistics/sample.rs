//! Figures of one sample of numbers.

/// The middle value, or the mean of the two in the middle; `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The arithmetic mean; 0 of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The standard deviation with n-1 in the denominator; 0 of fewer than two values.
#[must_use]
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// The standard deviation within two samples, whose means may differ: weighted by degrees of freedom.
#[must_use]
pub fn pooled_deviation(a: &[f64], b: &[f64]) -> f64 {
    let degrees = (a.len() + b.len()).saturating_sub(2);
    if degrees == 0 {
        return 0.0;
    }
    let squares = |values: &[f64]| deviation(values).powi(2) * values.len().saturating_sub(1) as f64;
    ((squares(a) + squares(b)) / degrees as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_deviations_of_small_samples() {
        assert_eq!(
            (median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])),
            (None, Some(2.0), Some(2.5))
        );
        assert_eq!((deviation(&[5.0]), deviation(&[1.0, 3.0])), (0.0, 2.0_f64.sqrt()));
        // Both within 1 of their means, which are far apart.
        let pooled = pooled_deviation(&[1.0, 3.0], &[101.0, 103.0]);
        assert!((pooled - 2.0_f64.sqrt()).abs() < 1e-12, "{pooled}");
    }
}
