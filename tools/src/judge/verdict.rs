//! The verdict of each rule, with the interval it rests on and how many runs would decide.

use serde::Serialize;

use super::group::Side;
use super::metric::Metric;
use super::moments::{Drift, UNSHARED};
use super::rule::{Margin, Rule};
use crate::statistics::permutation::count;
use crate::statistics::sample::{median, pooled_deviation};
use crate::statistics::size::{runs_at_least, runs_to_tell};
use crate::statistics::{Shift, Splits, holm};

/// What the runs say of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum Verdict {
    /// B is not worse than the rule allows.
    Pass,
    /// Neither can be said.
    Inconclusive,
    /// B is worse than the rule allows.
    Fail,
}

impl Verdict {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Fail => "FAIL",
        }
    }
}

/// One rule judged.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    /// The rule.
    pub rule: Rule,
    /// A's values.
    pub a: Side,
    /// B's values.
    pub b: Side,
    /// B as a multiple of A, or B less A: Hodges-Lehmann. Absent when a side has no values, as is all that follows.
    pub estimate: Option<f64>,
    /// At least that, at the rule's confidence; absent (infinite) with too few runs.
    pub low: Option<f64>,
    /// At most that, at the rule's confidence.
    pub high: Option<f64>,
    /// The limit in the same terms.
    pub limit: Option<f64>,
    /// Of "B is within the limit", adjusted by Holm over all rules: small when B is too bad.
    pub p_fail: Option<f64>,
    /// Of "B is beyond the limit", not adjusted: all rules have to pass for the whole to pass.
    pub p_pass: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
    /// Why it is not decided.
    pub why: Option<String>,
    /// Runs a side that would decide, if things are as they seem.
    pub runs_needed: Option<u32>,
    /// A drift of the values over time that is larger than their difference, where the sides took turns and share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<String>,
}

impl Judgement {
    /// Takes the verdict back, because the runs cannot be believed or compared; the figures stay.
    pub fn take_back(&mut self) {
        self.verdict = Verdict::Inconclusive;
    }
}

/// Values on a scale on which more is worse and a shift means the same everywhere.
struct Scale {
    /// -1 where more is better.
    sign: f64,
    logarithmic: bool,
}

impl Scale {
    fn on(&self, values: &[f64]) -> Vec<f64> {
        values.iter().map(|&value| self.sign * if self.logarithmic { value.ln() } else { value }).collect()
    }

    /// A shift on the scale as the ratio or difference of the values themselves.
    fn off(&self, shift: f64) -> f64 {
        if self.logarithmic { (self.sign * shift).exp() } else { self.sign * shift }
    }
}

/// What is known before Holm's correction.
struct Tested {
    p_fail: f64,
    judgement: Judgement,
    distance: f64,
    deviation: f64,
    drift: Option<Drift>,
}

/// Judges each rule on its two sides. `min_effect_ns` is a difference of latency that is never worth a FAIL; `seed` is for
/// more runs than can be permuted exactly.
#[must_use]
pub fn judge(rules: &[(Rule, Side, Side)], min_effect_ns: f64, seed: u64) -> Vec<Judgement> {
    let tested: Vec<Option<Tested>> =
        rules.iter().map(|(rule, a, b)| test(rule, a, b, min_effect_ns, seed)).collect();
    let p_values: Vec<f64> =
        tested.iter().map(|tested| tested.as_ref().map_or(1.0, |tested| tested.p_fail)).collect();
    let decided =
        |((tested, p_fail), (rule, a, b)): ((Option<Tested>, f64), &(Rule, Side, Side))| match tested {
            Some(tested) => decide(tested, p_fail, rules.len()),
            None => without_values(rule, a, b),
        };
    tested.into_iter().zip(holm::adjusted(&p_values)).zip(rules).map(decided).collect()
}

fn without_values(rule: &Rule, a: &Side, b: &Side) -> Judgement {
    let why = a.missing.as_ref().or(b.missing.as_ref()).cloned();
    Judgement {
        rule: *rule,
        a: a.clone(),
        b: b.clone(),
        estimate: None,
        low: None,
        high: None,
        limit: None,
        p_fail: None,
        p_pass: None,
        verdict: Verdict::Inconclusive,
        why: why.or_else(|| Some("a side has no runs".to_owned())),
        runs_needed: None,
        drift: None,
    }
}

fn test(rule: &Rule, a: &Side, b: &Side, min_effect_ns: f64, seed: u64) -> Option<Tested> {
    let sign = if rule.metric.more_is_better() { -1.0 } else { 1.0 };
    let scale = Scale { sign, logarithmic: !rule.by_difference() };
    let limit = limit(rule, sign, median(&a.values)?, min_effect_ns);
    let (on_a, on_b) = (scale.on(&a.values), scale.on(&b.values));
    let splits = Splits::new(&on_a, &on_b, seed)?;
    let alpha = 1.0 - rule.confidence;
    let (mut low, mut high) = splits.interval(alpha);
    let (mut p_fail, mut p_pass) = (splits.p_above(limit), splits.p_below(limit));
    if rule.metric == Metric::Loss {
        // Runs in which nothing was lost agree with each other, whatever their number says of rare losses.
        let (a, b) = (a.lost.interval(alpha), b.lost.interval(alpha));
        let counted = (b.0 - a.1, b.1 - a.0);
        (low, high) = (low.min(counted.0), high.max(counted.1));
        if counted.0 <= limit {
            p_fail = 1.0;
        }
        if counted.1 >= limit {
            p_pass = 1.0;
        }
    }
    let estimate = Shift::new(&on_a, &on_b, alpha)?.estimate;
    let deviation = pooled_deviation(&on_a, &on_b);
    let (end, other) = (scale.off(low), scale.off(high));
    let drift = Drift::of(a, b, scale.logarithmic);
    let shared = drift.as_ref().filter(|drift| drift.exceeds(estimate));
    let shared = shared.map(|drift| drift.text(rule.metric, scale.logarithmic));
    let judgement = Judgement {
        rule: *rule,
        a: a.clone(),
        b: b.clone(),
        estimate: Some(scale.off(estimate)),
        low: Some(end.min(other)),
        high: Some(end.max(other)),
        limit: Some(scale.off(limit)),
        p_fail: None,
        p_pass: Some(p_pass),
        verdict: Verdict::Inconclusive,
        why: None,
        runs_needed: None,
        drift: shared,
    };
    Some(Tested { p_fail, judgement, distance: estimate - limit, deviation, drift })
}

/// The shift on the scale beyond which the rule fails.
fn limit(rule: &Rule, sign: f64, median_a: f64, min_effect_ns: f64) -> f64 {
    let is_time = matches!(rule.metric, Metric::Quantile(_) | Metric::Max);
    let floor = if is_time { min_effect_ns } else { 0.0 };
    match rule.margin {
        Margin::Share(share) if sign < 0.0 => -(1.0 - share).ln(),
        Margin::Share(share) => share.max(floor / median_a).ln_1p(),
        Margin::Absolute(value) => value.max(floor),
    }
}

fn decide(tested: Tested, p_fail: f64, rules: usize) -> Judgement {
    let Tested { judgement, distance, deviation, drift, .. } = tested;
    let alpha = 1.0 - judgement.rule.confidence + 1e-12;
    let p_pass = judgement.p_pass.unwrap_or(1.0);
    let verdict = if p_fail <= alpha {
        Verdict::Fail
    } else if p_pass <= alpha {
        Verdict::Pass
    } else {
        Verdict::Inconclusive
    };
    // What both sides have in common makes them look alike, and never different.
    let hidden = judgement.a.hides(&judgement.b, judgement.rule.metric);
    if let (Verdict::Pass, Some(_)) = (verdict, &hidden) {
        let p_fail = Some(p_fail);
        return Judgement { p_fail, verdict: Verdict::Inconclusive, why: hidden, ..judgement };
    }
    if let Some(drift) = drift.filter(|drift| verdict != Verdict::Inconclusive && drift.explains(distance)) {
        let drift = drift.text(judgement.rule.metric, !judgement.rule.by_difference());
        let why = Some(format!("{drift}, {UNSHARED}"));
        let p_fail = Some(p_fail);
        return Judgement { p_fail, verdict: Verdict::Inconclusive, why, drift: None, ..judgement };
    }
    let (mut why, mut runs_needed) = (None, None);
    if verdict == Verdict::Inconclusive {
        // A verdict of FAIL has to hold beside those of all other rules.
        let alpha = if distance > 0.0 { alpha / rules as f64 } else { alpha };
        let (a, b) = (judgement.a.values.len(), judgement.b.values.len());
        let too_few = count(a, b).is_some_and(|splits| 1.0 / splits as f64 > alpha);
        let few_datagrams =
            (judgement.rule.metric == Metric::Loss).then(|| datagrams_needed(&judgement)).flatten();
        if let Some(needed) = few_datagrams {
            why = Some(needed);
        } else {
            runs_needed = if deviation > 0.0 { runs_to_tell(distance, deviation, alpha) } else { None };
            if too_few {
                let least = runs_at_least(alpha);
                runs_needed = Some(runs_needed.unwrap_or(least).max(least));
                why = Some(format!(
                    "{a} and {b} runs can show nothing, however they fall; {least} a side is the least"
                ));
            } else if runs_needed.is_none() {
                why = Some("too close to the limit for any number of runs".to_owned());
            }
        }
    }
    Judgement { p_fail: Some(p_fail), verdict, why, runs_needed, ..judgement }
}

/// How many datagrams without a loss would show that the loss is within the limit, where there are too few.
fn datagrams_needed(judgement: &Judgement) -> Option<String> {
    let Margin::Absolute(limit) = judgement.rule.margin else { return None };
    let lost = judgement.b.lost;
    if lost.some > 0 || limit <= 0.0 {
        return None;
    }
    let needed = (3.0 / limit).ceil();
    (needed > lost.all as f64).then(|| {
        format!(
            "0 of {} lost says only loss < {:.1e}; {needed:.0} datagrams would do",
            lost.all,
            3.0 / lost.all as f64
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Proportion;

    fn side(values: &[f64]) -> Side {
        Side { values: values.to_vec(), ..Side::default() }
    }

    fn one(rule: &str, a: &[f64], b: &[f64]) -> Judgement {
        judge(&[(rule.parse().unwrap(), side(a), side(b))], 0.0, 1).remove(0)
    }

    const CALM: [f64; 5] = [50_000.0, 50_100.0, 49_900.0, 50_200.0, 49_800.0];

    fn times(factor: f64) -> [f64; 5] {
        CALM.map(|value| value * factor)
    }

    #[test]
    fn equal_sides_pass_worse_ones_fail_and_those_at_the_limit_are_open() {
        assert_eq!(one("p99>+5%", &CALM, &CALM).verdict, Verdict::Pass);
        let worse = one("p99>+5%", &CALM, &times(1.1));
        assert_eq!(worse.verdict, Verdict::Fail);
        assert!((worse.estimate.unwrap() - 1.1).abs() < 1e-9 && worse.low.unwrap() > 1.09, "{worse:?}");
        assert!((worse.limit.unwrap() - 1.05).abs() < 1e-12);
        let open = one("p99>+5%", &CALM, &times(1.0505));
        assert_eq!(open.verdict, Verdict::Inconclusive);
        assert!(open.runs_needed.unwrap() > 50, "{open:?}");
        assert_eq!(one("p99>+5%", &CALM, &times(0.5)).verdict, Verdict::Pass);
    }

    #[test]
    fn what_is_lost_on_both_sides_is_never_found_to_be_alike() {
        let lost = [60e9; 5];
        let both = one("p99>+5%", &lost, &lost);
        assert_eq!(both.verdict, Verdict::Inconclusive);
        assert!(both.why.unwrap().contains("lost on both sides"));
        assert_eq!(one("p99>+5%", &CALM, &lost).verdict, Verdict::Fail);
        assert_eq!(one("p99>+5%", &lost, &CALM).verdict, Verdict::Pass);
    }

    #[test]
    fn a_rate_is_worse_when_it_falls() {
        assert_eq!(one("pps<-2%", &CALM, &times(0.9)).verdict, Verdict::Fail);
        let pass = one("pps<-2%", &CALM, &times(1.5));
        assert_eq!(pass.verdict, Verdict::Pass);
        assert!(
            (pass.estimate.unwrap() - 1.5).abs() < 1e-9 && (pass.limit.unwrap() - 0.98).abs() < 1e-12,
            "{pass:?}"
        );
        assert!(pass.low.unwrap() <= 1.5 && 1.5 <= pass.high.unwrap());
    }

    #[test]
    fn a_difference_too_small_to_matter_is_no_failure() {
        let (three, four) =
            ([3_000.0, 3_001.0, 3_002.0, 2_999.0, 2_998.0], [4_000.0, 4_001.0, 4_002.0, 3_999.0, 3_998.0]);
        assert_eq!(one("p50>+5%", &three, &four).verdict, Verdict::Fail);
        let rule = |rule: &str| (rule.parse().unwrap(), side(&three), side(&four));
        let judged = judge(&[rule("p50>+5%"), rule("p50>+500ns"), rule("cpu/pkt>+5%")], 2_000.0, 1);
        let verdicts: Vec<Verdict> = judged.iter().map(|judged| judged.verdict).collect();
        assert_eq!(verdicts, [Verdict::Pass, Verdict::Pass, Verdict::Fail]);
    }

    #[test]
    fn two_runs_a_side_can_show_nothing_and_say_so() {
        let judged = one("p99>+5%", &[1.0, 2.0], &[1_000.0, 2_000.0]);
        assert_eq!(judged.verdict, Verdict::Inconclusive);
        assert!(judged.why.unwrap().contains("3 a side") && judged.runs_needed.unwrap() >= 3);
        assert_eq!(judged.low, Some(0.0));
    }

    #[test]
    fn more_rules_ask_for_more_before_they_fail() {
        // 4 and 4 runs apart have p = 1/70, enough for three rules and not for four.
        let rule = || ("p99>+5%".parse().unwrap(), side(&CALM[..4]), side(&times(2.0)[..4]));
        let verdicts =
            |rules: usize| judge(&vec![rule(); rules], 0.0, 1).iter().map(|judged| judged.verdict).max();
        assert_eq!((verdicts(3), verdicts(4)), (Some(Verdict::Fail), Some(Verdict::Inconclusive)));
    }

    #[test]
    fn losses_are_judged_by_runs_and_by_counts() {
        let side = |values: &[f64], some, all| Side {
            values: values.to_vec(),
            lost: Proportion { some, all },
            ..Side::default()
        };
        let none = |all| side(&[0.0; 5], 0, all);
        let judged = |a: Side, b: Side| judge(&[("loss>+1e-5".parse().unwrap(), a, b)], 0.0, 1).remove(0);
        let few = judged(none(50_000), none(50_000));
        assert_eq!(few.verdict, Verdict::Inconclusive);
        assert!(few.why.as_ref().unwrap().contains("300000 datagrams"), "{few:?}");
        assert_eq!(judged(none(400_000), none(400_000)).verdict, Verdict::Pass);
        // As many lost in every run, far more than the limit.
        let many = side(&[1e-3, 1.1e-3, 0.9e-3, 1e-3, 1.05e-3], 505, 500_000);
        assert_eq!(judged(none(500_000), many).verdict, Verdict::Fail);
        // All of it in one run: the counts alone would be sure.
        let burst = side(&[5e-3, 0.0, 0.0, 0.0, 0.0], 500, 500_000);
        assert_eq!(judged(none(500_000), burst).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn what_the_sender_hides_does_not_pass_and_what_shows_all_the_same_fails() {
        let judged = |b: &[f64]| {
            let a = Side { own: Some("late".to_owned()), ..side(&CALM) };
            judge(&[("p99>+5%".parse().unwrap(), a, side(b))], 0.0, 1).remove(0)
        };
        let alike = judged(&CALM);
        assert_eq!((alike.verdict, alike.why.as_deref()), (Verdict::Inconclusive, Some("late")));
        assert_eq!(judged(&times(1.1)).verdict, Verdict::Fail);
    }

    /// Six runs a minute apart, from minute `first` on, each `drift` times the one before.
    fn drifting(first: i32, drift: f64, times: f64, every: i32) -> Side {
        let at = |run: i32| (first + every * run, 1.0 + 0.001 * f64::from(run * 5 % 3));
        let runs: Vec<(i32, f64)> = (0..6).map(at).collect();
        Side {
            name: format!("side of minute {first}"),
            values: runs
                .iter()
                .map(|(minute, noise)| 50_000.0 * times * noise * drift.powi(*minute))
                .collect(),
            starts_s: runs.iter().map(|(minute, _)| 60.0 * f64::from(*minute)).collect(),
            ..Side::default()
        }
    }

    #[test]
    fn a_drift_that_explains_the_difference_takes_the_verdict_and_one_that_is_shared_does_not() {
        let judged = |a: Side, b: Side| judge(&[("p99>+5%".parse().unwrap(), a, b)], 0.0, 1).remove(0);
        // One server, all of A before all of B, on a machine that becomes slower by 2 % a minute.
        let after = judged(drifting(0, 1.02, 1.0, 1), drifting(6, 1.02, 1.0, 1));
        assert!(after.estimate.unwrap() > 1.05 && after.low.unwrap() > 1.05, "{after:?}");
        assert_eq!(after.verdict, Verdict::Inconclusive);
        let why = after.why.unwrap();
        assert!(
            why.starts_with("p99 drifts by +10") && why.contains("of side of minute") && why.contains("ab`"),
            "{why}"
        );
        // A slower server on one that becomes faster.
        let hidden = judged(drifting(0, 0.98, 1.0, 1), drifting(6, 0.98, 1.1, 1));
        assert!(hidden.estimate.unwrap() < 1.0 && hidden.verdict == Verdict::Inconclusive, "{hidden:?}");
        // The same machine, in turns: what differs shows, and the drift is told.
        let worse = judged(drifting(0, 1.02, 1.0, 2), drifting(1, 1.02, 1.4, 2));
        assert_eq!((worse.verdict, worse.drift), (Verdict::Fail, None), "larger than the drift");
        let alike = judged(drifting(0, 1.004, 1.0, 2), drifting(1, 1.004, 1.0, 2));
        assert_eq!(alike.verdict, Verdict::Pass);
        assert!(alike.drift.unwrap().starts_with("p99 drifts by +4"));
        // A difference that no drift makes, and too few runs to see one.
        let far = judged(drifting(0, 1.02, 1.0, 1), drifting(6, 1.02, 1.5, 1));
        assert_eq!(far.verdict, Verdict::Fail);
        let few = |side: Side| Side {
            values: side.values[..5].to_vec(),
            starts_s: side.starts_s[..5].to_vec(),
            ..side
        };
        let few = judged(few(drifting(0, 1.02, 1.0, 1)), few(drifting(6, 1.02, 1.0, 1)));
        assert_eq!(few.verdict, Verdict::Fail);
    }

    #[test]
    fn a_side_without_values_is_named() {
        let missing = Side { missing: Some("no process was observed".to_owned()), ..Side::default() };
        let judged = judge(&[("cpu/pkt>+3%".parse().unwrap(), missing, side(&CALM))], 0.0, 1).remove(0);
        assert_eq!(
            (judged.verdict, judged.why.as_deref()),
            (Verdict::Inconclusive, Some("no process was observed"))
        );
    }
}
