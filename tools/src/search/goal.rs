//! What is searched for: when a trial is bad, and how many seconds of trials decide a load.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::trials::Trial;
use crate::judge::Metric;

/// When a trial is bad.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Criterion {
    /// More than this share of the sent datagrams was lost.
    Loss(f64),
    /// A quantile of the response latency is above this many nanoseconds; lost datagrams are later than any.
    Latency(Metric, f64),
}

impl Criterion {
    /// Whether the trial is bad.
    #[must_use]
    pub fn is_bad(&self, trial: &Trial) -> bool {
        match *self {
            Self::Loss(most) => trial.loss > most,
            Self::Latency(metric, limit_ns) => trial.latency_ns(metric).is_none_or(|ns| ns > limit_ns),
        }
    }
}

/// One goal of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// As it was asked for.
    pub name: String,
    /// When a trial is bad.
    pub criterion: Criterion,
    /// The share of the trial seconds that may be bad at a load that holds.
    pub exceed: f64,
    /// Length of the first, coarse trials, in seconds.
    pub initial_s: f64,
    /// Length of the trials that decide.
    pub final_s: f64,
    /// Seconds of them that decide a load.
    pub sum_s: f64,
}

impl Goal {
    fn new(name: &str, criterion: Criterion, exceed: f64, final_s: f64, sum_s: f64) -> Self {
        Self { name: name.to_owned(), criterion, exceed, initial_s: final_s.min(1.0), final_s, sum_s }
    }

    /// The steps towards the goal, coarse first: length of a trial, sum of lengths, and how many times as wide as asked the
    /// bounds may lie apart.
    #[must_use]
    pub fn phases(&self) -> [Phase; 3] {
        let middle_s = (self.initial_s * self.sum_s).sqrt();
        [
            Phase { trial_s: self.initial_s, sum_s: self.initial_s, coarser: 4 },
            Phase { trial_s: middle_s.min(self.final_s), sum_s: middle_s, coarser: 2 },
            Phase { trial_s: self.final_s, sum_s: self.sum_s, coarser: 1 },
        ]
    }
}

/// A step towards a goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// Seconds of one trial.
    pub trial_s: f64,
    /// Seconds of trials that decide a load.
    pub sum_s: f64,
    /// How many times as wide as asked the bounds may lie apart.
    pub coarser: usize,
}

impl FromStr for Goal {
    type Err = String;

    /// Reads `ndr`, `pdr:0.5%`, `rfc2544`, `tst009`, `slo:p99<500us`, `loss:1e-5`, with `/exceed:50%/1s:21s` (the share of bad
    /// seconds; length of a trial and sum of lengths) behind any.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: String| {
            format!(
                "goal {text:?}: {what}; write ndr, pdr:0.5%, rfc2544, tst009, slo:p99<500us or loss:1e-5, and for other lengths /exceed:50%/1s:21s behind it"
            )
        };
        let mut parts = text.split('/');
        let kind = parts.next().unwrap_or_default();
        // CSIT's default for its daily tests: trials of 1 s, 21 of them, half of which may be bad.
        let short = |criterion| Self::new(text, criterion, 0.5, 1.0, 21.0);
        let mut goal = match kind.split_once(':') {
            None if kind == "ndr" => short(Criterion::Loss(0.0)),
            // RFC 2544 section 26.1 with the length of section 24: one trial of 60 s without any loss.
            None if kind == "rfc2544" => Self::new(text, Criterion::Loss(0.0), 0.0, 60.0, 60.0),
            // ETSI GS NFV-TST 009: two such trials, one of which may be bad.
            None if kind == "tst009" => Self::new(text, Criterion::Loss(0.0), 0.5, 60.0, 120.0),
            Some(("pdr" | "loss", share)) => short(Criterion::Loss(share_of(share).map_err(wrong)?)),
            Some(("slo", limit)) => short(limit_of(limit).map_err(wrong)?),
            _ => return Err(wrong(format!("{kind:?} is no goal"))),
        };
        for part in parts {
            let (left, right) =
                part.split_once(':').ok_or_else(|| wrong(format!("{part:?} has no colon")))?;
            if left == "exceed" {
                goal.exceed = share_of(right).map_err(wrong)?;
            } else {
                let seconds =
                    |text| humantime::parse_duration(text).map(|length: Duration| length.as_secs_f64());
                let (one, sum) = seconds(left)
                    .and_then(|one| Ok((one, seconds(right)?)))
                    .map_err(|error| wrong(error.to_string()))?;
                if one < 0.1 || sum < one {
                    return Err(wrong(
                        "a trial lasts at least 100ms, and the sum at least one trial".to_owned(),
                    ));
                }
                goal = Self { initial_s: one.min(1.0), final_s: one, sum_s: sum, ..goal };
            }
        }
        Ok(goal)
    }
}

/// Reads `0.5%` or `1e-5`, from 0 to below 1.
fn share_of(text: &str) -> Result<f64, String> {
    let (digits, unit) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 100.0));
    let share = digits.trim().parse::<f64>().map_err(|_| format!("{text:?} is no share"))? / unit;
    if (0.0..1.0).contains(&share) { Ok(share) } else { Err(format!("{text:?} is not from 0 to below 100%")) }
}

/// Reads `p99<500us`.
fn limit_of(text: &str) -> Result<Criterion, String> {
    let (metric, limit) = text.split_once('<').ok_or_else(|| format!("{text:?} has no <"))?;
    let metric: Metric = metric.trim().parse()?;
    if !matches!(metric, Metric::Quantile(_) | Metric::Max) {
        return Err(format!("{} is no latency", metric.name()));
    }
    let limit = humantime::parse_duration(limit.trim()).map_err(|error| format!("{limit:?}: {error}"))?;
    Ok(Criterion::Latency(metric, limit.as_nanos() as f64))
}

impl fmt::Display for Goal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read() {
        let goal = |text: &str| text.parse::<Goal>().unwrap();
        assert_eq!(
            (goal("ndr").criterion, goal("ndr").sum_s, goal("ndr").exceed),
            (Criterion::Loss(0.0), 21.0, 0.5)
        );
        assert_eq!(goal("pdr:0.5%").criterion, Criterion::Loss(0.005));
        assert_eq!(goal("slo:p99<500us").criterion, Criterion::Latency(Metric::Quantile("p99"), 500_000.0));
        let strict = goal("rfc2544");
        assert_eq!((strict.initial_s, strict.final_s, strict.sum_s, strict.exceed), (1.0, 60.0, 60.0, 0.0));
        let own = goal("loss:1e-5/exceed:25%/500ms:5s");
        assert_eq!(
            (own.criterion, own.exceed, own.initial_s, own.final_s, own.sum_s),
            (Criterion::Loss(1e-5), 0.25, 0.5, 0.5, 5.0)
        );
    }

    #[test]
    fn a_wrong_goal_is_answered_with_right_ones() {
        for text in [
            "",
            "fast",
            "pdr",
            "pdr:x",
            "pdr:100%",
            "slo:p99",
            "slo:loss<1s",
            "slo:p99<5",
            "ndr/1s",
            "ndr/2s:1s",
            "ndr/exceed:-1",
        ] {
            let error = text.parse::<Goal>().unwrap_err();
            assert!(error.contains("rfc2544"), "{text}: {error}");
        }
    }

    #[test]
    fn phases_become_longer_and_narrower() {
        let phases = "ndr".parse::<Goal>().unwrap().phases();
        assert!(
            phases.windows(2).all(|pair| pair[0].sum_s < pair[1].sum_s && pair[0].coarser > pair[1].coarser)
        );
        assert_eq!((phases[0].sum_s, phases[2].trial_s, phases[2].sum_s), (1.0, 1.0, 21.0));
    }
}
