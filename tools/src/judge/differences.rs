//! What differs between a baseline and one or more other sides, where no rule says how much may.

use serde::Serialize;

use super::group::{Group, Side};
use super::metric::Metric;
use super::moments::{Drift, UNSHARED};
use crate::statistics::permutation::count;
use crate::statistics::sample::pooled_deviation;
use crate::statistics::size::{runs_at_least, runs_to_tell};
use crate::statistics::{Shift, Splits, holm};

/// The chance of one or more false alarms in a table.
pub const ALPHA: f64 = 0.05;
/// Ratios this close to 1 are the same for all purposes.
const SAME: f64 = 0.05;
/// Differences of loss this small are the same for all purposes.
const SAME_LOSS: f64 = 1e-4;

/// What was found of one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// Significantly better than the baseline.
    Better,
    /// Significantly worse.
    Worse,
    /// Not significantly different, and within 5 % (loss: 0.01 %) of it for sure.
    Same,
    /// None of these.
    Open,
}

impl Found {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Open => "open",
        }
    }
}

/// One metric of one side beside the baseline's.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// The side.
    pub side: String,
    /// What is compared.
    pub metric: Metric,
    /// The baseline's values.
    pub a: Side,
    /// The side's.
    pub b: Side,
    /// B as a multiple of A, or B less A for the loss: Hodges-Lehmann; absent without values, as is what follows.
    pub estimate: Option<f64>,
    /// Lower end of the 95 % interval of this comparison alone.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Two-sided, by exact permutation.
    pub p: Option<f64>,
    /// The same after Holm's correction over the whole table.
    pub p_adjusted: Option<f64>,
    /// What follows.
    pub found: Found,
    /// Why nothing is found, where something keeps it from being found.
    pub why: Option<String>,
    /// Runs a side with which the estimate would be significant, if it is right.
    pub runs_needed: Option<u32>,
    /// A drift of the values over time that is larger than their difference, where the sides took turns and share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<String>,
}

impl Difference {
    /// Takes back what was found, because the runs cannot be believed; the values of each side stay.
    pub fn take_back(&mut self) {
        (self.estimate, self.low, self.high) = (None, None, None);
        (self.p, self.p_adjusted, self.runs_needed) = (None, None, None);
        (self.found, self.why, self.drift) = (Found::Open, None, None);
    }
}

/// Compares each of `others` with `baseline` on each metric.
#[must_use]
pub fn differences(baseline: &Group, others: &[&Group], metrics: &[Metric], seed: u64) -> Vec<Difference> {
    let mut found: Vec<Difference> = Vec::new();
    for other in others {
        found.extend(metrics.iter().map(|&metric| compare(baseline, other, metric, seed)));
    }
    let tests = found.iter().filter(|difference| difference.p.is_some()).count();
    let p_values: Vec<f64> = found.iter().filter_map(|difference| difference.p).collect();
    let mut adjusted = holm::adjusted(&p_values).into_iter();
    for difference in found.iter_mut().filter(|difference| difference.p.is_some()) {
        difference.p_adjusted = adjusted.next();
        settle(difference, tests);
    }
    found
}

fn compare(baseline: &Group, other: &Group, metric: Metric, seed: u64) -> Difference {
    let (a, b) = (baseline.side(metric), other.side(metric));
    let scaled = |side: &Side| -> Vec<f64> {
        side.values.iter().map(|&value| if metric.by_ratio() { value.ln() } else { value }).collect()
    };
    let (on_a, on_b) = (scaled(&a), scaled(&b));
    let tested = Splits::new(&on_a, &on_b, seed).zip(Shift::new(&on_a, &on_b, ALPHA / 2.0));
    let off = |shift: f64| if metric.by_ratio() { shift.exp() } else { shift };
    let why = a.missing.as_ref().or(b.missing.as_ref()).cloned();
    let interval = tested.as_ref().map(|(splits, _)| {
        let (mut low, mut high) = splits.interval(ALPHA / 2.0);
        if metric == Metric::Loss {
            let (a, b) = (a.lost.interval(ALPHA / 2.0), b.lost.interval(ALPHA / 2.0));
            (low, high) = (low.min(b.0 - a.1), high.max(b.1 - a.0));
        }
        (off(low), off(high))
    });
    Difference {
        side: other.name.clone(),
        metric,
        estimate: tested.as_ref().map(|(_, shift)| off(shift.estimate)),
        low: interval.map(|(low, _)| low),
        high: interval.map(|(_, high)| high),
        p: tested.as_ref().map(|(splits, _)| splits.p_differs()),
        a,
        b,
        p_adjusted: None,
        found: Found::Open,
        why,
        runs_needed: None,
        drift: None,
    }
}

/// Says what follows, once the correction for all `tests` is known.
fn settle(difference: &mut Difference, tests: usize) {
    let (Some(p), Some(estimate)) = (difference.p_adjusted, difference.estimate) else { return };
    let (low, high) = (difference.low.unwrap_or(f64::NEG_INFINITY), difference.high.unwrap_or(f64::INFINITY));
    let equal = if difference.metric.by_ratio() { 1.0 } else { 0.0 };
    let same = if difference.metric.by_ratio() {
        low >= 1.0 / (1.0 + SAME) && high <= 1.0 + SAME
    } else {
        low >= -SAME_LOSS && high <= SAME_LOSS
    };
    let metric = difference.metric;
    let shift = if metric.by_ratio() { estimate.ln() } else { estimate };
    let margin = if metric.by_ratio() { SAME.ln_1p() } else { SAME_LOSS };
    let is_different = p <= ALPHA + 1e-12;
    if let Some(drift) = Drift::of(&difference.a, &difference.b, metric.by_ratio()) {
        let text = drift.text(metric, metric.by_ratio());
        if (is_different && drift.explains(shift)) || (same && !is_different && drift.explains(margin)) {
            difference.why = Some(format!("{text}, {UNSHARED}"));
            return;
        }
        difference.drift = drift.exceeds(shift).then_some(text);
    }
    if is_different {
        let more = mean_shift_is_up(difference);
        difference.found =
            if more == difference.metric.more_is_better() { Found::Better } else { Found::Worse };
        return;
    }
    if same {
        difference.why = difference.a.hides(&difference.b, difference.metric);
        difference.found = if difference.why.is_none() { Found::Same } else { Found::Open };
        return;
    }
    let alpha = ALPHA / 2.0 / tests as f64;
    let (a, b) = (difference.a.values.len(), difference.b.values.len());
    if count(a, b).is_some_and(|splits| 1.0 / splits as f64 > alpha + 1e-12) {
        let least = runs_at_least(alpha);
        difference.why = Some(format!(
            "{a} and {b} runs can show nothing among {tests} comparisons; {least} a side is the least"
        ));
        difference.runs_needed = Some(least);
    } else if difference.metric.by_ratio() && (estimate - equal).abs() > f64::EPSILON {
        let logs = |side: &Side| -> Vec<f64> { side.values.iter().map(|value| value.ln()).collect() };
        let deviation = pooled_deviation(&logs(&difference.a), &logs(&difference.b));
        difference.runs_needed = runs_to_tell(estimate.ln(), deviation, alpha);
    }
}

/// On which side of equality the permutation test found B; the median difference may be on the other.
fn mean_shift_is_up(difference: &Difference) -> bool {
    let logarithm = difference.metric.by_ratio();
    let mean = |side: &Side| {
        let values: Vec<f64> =
            side.values.iter().map(|value| if logarithm { value.ln() } else { *value }).collect();
        crate::statistics::sample::mean(&values)
    };
    mean(&difference.b) > mean(&difference.a)
}
