//! Holm's correction: several tests at once, with the chance of any false alarm held.

/// The adjusted p-value of each test, in the order given: compared with alpha, the chance of one or more false alarms is
/// at most alpha, whatever the tests have to do with each other (Holm, Scandinavian Journal of Statistics 6, 1979).
#[must_use]
pub fn adjusted(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max((p_values.len() - rank) as f64 * p_values[index]).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_multiplied_by_how_many_are_left_and_none_falls_below_the_one_before() {
        // By hand: 4 × 0.01; 3 × 0.013 = 0.039 is less than that before; 2 × 0.04; 1 × 0.06.
        let found = adjusted(&[0.04, 0.01, 0.06, 0.013]);
        for (found, expected) in found.iter().zip([0.08, 0.04, 0.08, 0.04]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert!(adjusted(&[]).is_empty());
        assert_eq!(adjusted(&[0.9, 0.8]), [1.0, 1.0]);
    }
}
