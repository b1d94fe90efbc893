//! A trend over time: how steep it is, and whether chance explains it.

/// The median slope over all pairs of points (Theil 1950, Sen 1968), in units of the values by unit of time; `None` where no two points
/// lie apart in time.
#[must_use]
pub fn slope(times: &[f64], values: &[f64]) -> Option<f64> {
    let points: Vec<(f64, f64)> = times.iter().copied().zip(values.iter().copied()).collect();
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    for (index, (time, value)) in points.iter().enumerate() {
        let others = points[..index].iter().filter(|other| other.0 != *time);
        slopes.extend(others.map(|other| (value - other.1) / (time - other.0)));
    }
    super::sample::median(&slopes)
}

/// The chance of a trend as clear as this or clearer, up or down, where there is none: by Kendall's S (Mann 1945). Ties
/// make it larger than it is.
#[must_use]
pub fn p_trend(times: &[f64], values: &[f64]) -> f64 {
    let len = times.len().min(values.len());
    if len < 2 {
        return 1.0;
    }
    let order = |a: f64, b: f64| a.total_cmp(&b) as i64;
    let mut agreement = 0;
    for right in 1..len {
        agreement += (0..right)
            .map(|left| order(times[right], times[left]) * order(values[right], values[left]))
            .sum::<i64>();
    }
    let pairs = (len * (len - 1) / 2) as u64;
    let agreement = agreement.unsigned_abs();
    // Of all orders alike, the share with at most so many pairs the wrong way round.
    let few = ((pairs - agreement) / 2) as usize;
    (2.0 * inversions(len)[..=few].iter().sum::<f64>()).min(1.0)
}

/// The share of the orders of `len` things that have 0, 1, 2 … pairs the wrong way round.
fn inversions(len: usize) -> Vec<f64> {
    let mut shares = vec![1.0];
    for size in 2..=len {
        // The last thing is put in front of 0 to size - 1 others.
        let (last, mut window) = (shares.len() + size - 1, 0.0_f64);
        let share = |count: usize| shares.get(count).copied().unwrap_or(0.0);
        let mut next = Vec::with_capacity(last);
        for count in 0..last {
            window += share(count) - if count >= size { share(count - size) } else { 0.0 };
            next.push(window.max(0.0) / size as f64);
        }
        shares = next;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [f64; 6] = [0.0, 1.0, 2.0, 4.0, 5.0, 6.0];

    #[test]
    fn the_median_slope_is_not_moved_by_one_value() {
        let rising = TIMES.map(|time| 3.0 + 0.5 * time);
        assert_eq!(slope(&TIMES, &rising), Some(0.5));
        let mut one_off = rising;
        one_off[2] = 1_000.0;
        assert!((slope(&TIMES, &one_off).unwrap() - 0.5).abs() < 1e-9);
        assert_eq!((slope(&[1.0, 1.0], &[1.0, 2.0]), slope(&[], &[])), (None, None));
    }

    #[test]
    fn the_chance_of_a_trend_is_that_of_so_many_orders() {
        // Of the 720 orders of six things, one rises all the way and one falls; five have one pair the wrong way round.
        let rising = TIMES.map(|time| time);
        let falling = TIMES.map(|time| -time);
        assert!((p_trend(&TIMES, &rising) - 2.0 / 720.0).abs() < 1e-12);
        assert!((p_trend(&TIMES, &falling) - 2.0 / 720.0).abs() < 1e-12);
        assert!((p_trend(&TIMES, &[0.0, 1.0, 2.0, 3.0, 5.0, 4.0]) - 12.0 / 720.0).abs() < 1e-12);
        assert_eq!(p_trend(&TIMES, &[1.0; 6]), 1.0);
        assert_eq!(p_trend(&[1.0], &[1.0]), 1.0);
        // Counted in whole numbers: 1717 of the 3,628,800 orders of ten have at most five pairs the wrong way round.
        let times: Vec<f64> = (0..10).map(f64::from).collect();
        let swapped = p_trend(&times, &[1.0, 0.0, 3.0, 2.0, 5.0, 4.0, 7.0, 6.0, 9.0, 8.0]);
        assert!((swapped - 2.0 * 1_717.0 / 3_628_800.0).abs() < 1e-12, "{swapped}");
        // And of many values that rise below noise.
        let times: Vec<f64> = (0..51).map(f64::from).collect();
        let values: Vec<f64> = times.iter().map(|time| time + 40.0 * (time * 2.4).sin()).collect();
        let many = p_trend(&times, &values);
        assert!((many - 0.000_870_554_303_792_738_7).abs() < 1e-9, "{many}");
    }
}
