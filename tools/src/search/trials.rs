//! Trials at one load, and what they make of it.

use serde::Serialize;

use super::goal::{Goal, Phase};
use crate::judge::Metric;

/// One trial.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// What was offered, in datagrams a second.
    pub rate: f64,
    /// For how many seconds.
    pub seconds: f64,
    /// Datagrams sent, with those that the kernel refused.
    pub sent: u64,
    /// Datagrams that did not come back in time, those in [`Self::queued`] among them.
    pub lost: u64,
    /// Datagrams that came back, but so long after the last send that they had waited in a queue that grew.
    pub queued: u64,
    /// The same as a share.
    pub loss: f64,
    /// p99.9 of the sender's lateness in nanoseconds, the longest where there were too few; absent where it is not known.
    pub late_ns: Option<u64>,
    /// Latency quantiles in nanoseconds, by name; what was lost is infinitely late, and absent.
    pub latency: Vec<(&'static str, Option<f64>)>,
}

impl Trial {
    /// A trial in which `lost` of `sent` were lost.
    #[must_use]
    pub fn new(rate: f64, seconds: f64, sent: u64, lost: u64) -> Self {
        let loss = if sent == 0 { 1.0 } else { lost as f64 / sent as f64 };
        Self { rate, seconds, sent, lost, queued: 0, loss, late_ns: None, latency: Vec::new() }
    }

    /// The latency by name; `None` when that part was lost or has too few samples.
    #[must_use]
    pub fn latency_ns(&self, metric: Metric) -> Option<f64> {
        self.latency.iter().find(|(name, _)| *name == metric.name())?.1
    }
}

/// What the trials at a load make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It holds, even if all trials that are missing were bad.
    Lower,
    /// It does not hold, even if all trials that are missing were good.
    Upper,
    /// Neither yet.
    Open,
}

/// Classifies a load by its trials. Those that are shorter than the phase's count for less: they cannot make a load hold,
/// and the bad ones among them count only so far as they exceed the share that good ones make up for.
#[must_use]
pub fn classify(trials: &[Trial], goal: &Goal, phase: &Phase) -> Bound {
    let seconds = |bad: bool, long: bool| -> f64 {
        let counts = |trial: &&Trial| {
            goal.criterion.is_bad(trial) == bad && (trial.seconds >= phase.trial_s - 1e-9) == long
        };
        trials.iter().filter(counts).map(|trial| trial.seconds).sum()
    };
    let made_up = seconds(false, false) * goal.exceed / (1.0 - goal.exceed);
    let bad = seconds(true, true) + (seconds(true, false) - made_up).max(0.0);
    let good = seconds(false, true);
    let whole = phase.sum_s.max(good + bad);
    let allowed = whole * goal.exceed + 1e-9;
    match (bad <= allowed, whole - good <= allowed) {
        (true, true) => Bound::Lower,
        (false, _) => Bound::Upper,
        (true, false) => Bound::Open,
    }
}

/// The share lost of the trial that stands for a load which holds: of the long ones, with what is missing taken as lost
/// altogether, the one below which all but the share of bad seconds lies.
#[must_use]
pub fn conditional_loss(trials: &[Trial], goal: &Goal, phase: &Phase) -> f64 {
    let mut long: Vec<&Trial> = trials.iter().filter(|trial| trial.seconds >= phase.trial_s - 1e-9).collect();
    long.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    let whole = long.iter().map(|trial| trial.seconds).sum::<f64>().max(phase.sum_s);
    let mut left = whole * (1.0 - goal.exceed);
    for trial in long {
        left -= trial.seconds;
        if left <= 1e-9 {
            return trial.loss;
        }
    }
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trials(losses: &[(f64, u64)]) -> Vec<Trial> {
        losses.iter().map(|&(seconds, lost)| Trial::new(1_000.0, seconds, 1_000, lost)).collect()
    }

    fn bound(goal: &str, losses: &[(f64, u64)]) -> Bound {
        let goal: Goal = goal.parse().unwrap();
        classify(&trials(losses), &goal, &goal.phases()[2])
    }

    #[test]
    fn a_load_is_decided_once_no_further_trial_could_change_it() {
        let (good, bad) = ((1.0, 0), (1.0, 1));
        assert_eq!(bound("ndr", &[good; 10]), Bound::Open);
        assert_eq!(bound("ndr", &[good; 11]), Bound::Lower);
        assert_eq!(bound("ndr", &[bad; 10]), Bound::Open);
        assert_eq!(bound("ndr", &[bad; 11]), Bound::Upper);
        assert_eq!(bound("ndr/exceed:0%", &[bad]), Bound::Upper);
        assert_eq!(bound("pdr:0.5%", &[bad; 11]), Bound::Lower, "one of a thousand is within half a percent");
    }

    #[test]
    fn short_trials_cannot_make_a_load_hold_and_only_their_excess_of_bad_ones_counts() {
        let goal = "ndr/exceed:50%/10s:20s";
        assert_eq!(bound(goal, &[(1.0, 0); 100]), Bound::Open);
        assert_eq!(bound(goal, &[(1.0, 1); 11]), Bound::Upper);
        let mut mixed = vec![(1.0, 1); 11];
        mixed.extend([(1.0, 0); 5]);
        assert_eq!(bound(goal, &mixed), Bound::Open, "five good ones make up for five of eleven bad ones");
        assert_eq!(bound(goal, &[(10.0, 0)]), Bound::Lower);
        assert_eq!(bound("rfc2544", &[(1.0, 1)]), Bound::Upper);
        assert_eq!(bound("rfc2544", &[(60.0, 0)]), Bound::Lower);
    }

    #[test]
    fn the_conditional_loss_is_that_of_the_worst_trial_that_is_allowed() {
        let goal: Goal = "pdr:0.5%".parse().unwrap();
        let mut losses = vec![(1.0, 0); 10];
        losses.push((1.0, 4));
        let loss = conditional_loss(&trials(&losses), &goal, &goal.phases()[2]);
        assert_eq!(loss, 0.004, "ten good seconds are not yet half of 21");
        assert_eq!(conditional_loss(&[], &goal, &goal.phases()[2]), 1.0);
    }

    #[test]
    fn latency_limits_take_what_is_lost_as_infinitely_late() {
        let slo: Goal = "slo:p99<500us".parse().unwrap();
        let mut trial = Trial::new(1_000.0, 1.0, 1_000, 0);
        assert!(slo.criterion.is_bad(&trial), "unknown");
        trial.latency = vec![("p50", Some(1e4)), ("p99", Some(4e5))];
        assert!(!slo.criterion.is_bad(&trial));
        trial.latency[1].1 = None;
        assert!(slo.criterion.is_bad(&trial));
    }
}
