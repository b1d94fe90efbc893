//! The shift function: how far B is from A at every quantile, with a band (Doksum, Annals of Statistics 2, 1974; Wilcox).

use serde::Serialize;

use super::rank::Shift;
use crate::run::CurvePoint;

/// B by A at one quantile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QuantileRatio {
    /// Share of the sent datagrams, 0 to below 1.
    pub quantile: f64,
    /// Hodges-Lehmann ratio of the runs' values at it.
    pub ratio: f64,
    /// Lower end of its exact interval; 0 where there are too few runs for one.
    pub low: f64,
    /// Upper end; infinite where there are too few runs.
    pub high: f64,
}

/// The ratio at each quantile that all curves reach, each end of the band at `alpha` on its own and at each quantile on
/// its own. Curves of one build have the same quantiles; what is not in all of them is left out.
#[must_use]
pub fn ratios(a: &[&[CurvePoint]], b: &[&[CurvePoint]], alpha: f64) -> Vec<QuantileRatio> {
    let Some(first) = a.first() else { return Vec::new() };
    let logs = |curves: &[&[CurvePoint]], step: usize, quantile: f64| -> Option<Vec<f64>> {
        let value = |curve: &&[CurvePoint]| {
            let point = curve.get(step).filter(|point| (point.quantile - quantile).abs() < 1e-12)?;
            Some((point.value_ns.max(1) as f64).ln())
        };
        curves.iter().map(value).collect()
    };
    let ratio = |(step, point): (usize, &CurvePoint)| {
        let (a, b) = (logs(a, step, point.quantile)?, logs(b, step, point.quantile)?);
        let shift = Shift::new(&a, &b, alpha)?;
        let [ratio, low, high] = [shift.estimate, shift.low, shift.high].map(f64::exp);
        Some(QuantileRatio { quantile: point.quantile, ratio, low, high })
    };
    first.iter().enumerate().filter_map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(scale: f64, points: u32) -> Vec<CurvePoint> {
        let point = |step| {
            let quantile = 1.0 - 10_f64.powf(-f64::from(step) / 40.0);
            // Twice as slow in the tail, where B is 1.5 times as slow again.
            let tail = if step > 40 { scale } else { 1.0 };
            CurvePoint { quantile, value_ns: (10_000.0 * tail * f64::from(step + 10)) as u64 }
        };
        (0..points).map(point).collect()
    }

    #[test]
    fn a_slower_tail_shows_in_the_tail_alone() {
        let noise = [0.99, 1.0, 1.01, 1.02, 0.98];
        let a: Vec<_> = noise.iter().map(|noise| curve(*noise, 90)).collect();
        let b: Vec<_> = noise.iter().map(|noise| curve(1.5 * noise, 80)).collect();
        let (a, b): (Vec<_>, Vec<_>) =
            (a.iter().map(Vec::as_slice).collect(), b.iter().map(Vec::as_slice).collect());
        let ratios = ratios(&a, &b, 0.025);
        assert_eq!(ratios.len(), 80, "as far as all curves reach");
        assert!(ratios[..41].iter().all(|at| at.ratio == 1.0), "{ratios:?}");
        assert!(ratios[41..].iter().all(|at| (at.ratio - 1.5).abs() < 0.01 && at.low > 1.4 && at.high < 1.6));
    }
}
