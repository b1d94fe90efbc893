//! A rule of `--fail`: how much worse B may be, and how sure one has to be.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::metric::Metric;

/// How much worse B may be than A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Margin {
    /// A share of A's value.
    Share(f64),
    /// In the metric's own unit: nanoseconds, a share of the datagrams, datagrams a second.
    Absolute(f64),
}

/// One rule: `p99>+5%@95`, `p50>+20us`, `loss>+1e-5`, `cpu/pkt>+3%`, `pps<-2%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// What it is about.
    pub metric: Metric,
    /// How much worse B may be.
    pub margin: Margin,
    /// How sure one has to be, 0 to 1.
    pub confidence: f64,
}

/// Confidence where a rule names none.
const CONFIDENCE: f64 = 0.95;

impl Rule {
    /// Whether the two sides are compared by the difference of their values, not by their ratio.
    #[must_use]
    pub fn by_difference(&self) -> bool {
        matches!(self.margin, Margin::Absolute(_))
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!(
                "{text:?}: {what}; write a rule as METRIC>+MARGIN or METRIC>+MARGIN@CONFIDENCE, like p99>+5%, p99>+5%@95, p50>+20us, \
                 loss>+1e-5, cpu/pkt>+3% or pps<-2%"
            )
        };
        let (rule, confidence) = match text.split_once('@') {
            None => (text, CONFIDENCE),
            Some((rule, percent)) => {
                let percent: f64 =
                    percent.trim_end_matches('%').parse().map_err(|_| wrong("no confidence after @"))?;
                if !(50.0..100.0).contains(&percent) {
                    return Err(wrong("the confidence is a percentage from 50 to below 100"));
                }
                (rule, percent / 100.0)
            }
        };
        let at = rule.find(['>', '<']).ok_or_else(|| wrong("neither > nor < in it"))?;
        let metric: Metric = rule[..at].trim().parse().map_err(|error: String| wrong(&error))?;
        let (direction, sign) = if metric.more_is_better() { ("<", '-') } else { (">", '+') };
        let margin = rule[at + 1..].trim();
        if !rule[at..].starts_with(direction) || !margin.starts_with(sign) {
            return Err(wrong(&format!("{} is worse when it goes {direction} {sign}", metric.name())));
        }
        let margin = margin_of(metric, &margin[1..]).map_err(|error| wrong(&error))?;
        Ok(Self { metric, margin, confidence })
    }
}

/// Reads `5%`, `20us` or `1e-5`.
fn margin_of(metric: Metric, text: &str) -> Result<Margin, String> {
    let number = |text: &str| {
        let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
        number.ok_or_else(|| format!("{text:?} is no margin"))
    };
    if let Some(percent) = text.strip_suffix('%') {
        let share = number(percent)? / 100.0;
        if !metric.by_ratio() {
            // Of nothing lost, any share is nothing: a loss has to be compared as it is.
            return Ok(Margin::Absolute(share));
        }
        if metric.more_is_better() && share >= 1.0 {
            return Err("nothing is left below -100%".to_owned());
        }
        return Ok(Margin::Share(share));
    }
    match metric {
        Metric::Loss | Metric::Rate => Ok(Margin::Absolute(number(text)?)),
        Metric::Quantile(_) | Metric::Max | Metric::Cpu => {
            for (unit, ns) in [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)] {
                if let Some(value) = text.strip_suffix(unit) {
                    return Ok(Margin::Absolute(number(value)? * ns));
                }
            }
            Err(format!("{text:?} has neither % nor ns, us, ms or s"))
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signs = if self.metric.more_is_better() { "<-" } else { ">+" };
        write!(formatter, "{}{signs}{}", self.metric.name(), self.limit())?;
        if (self.confidence - CONFIDENCE).abs() < 1e-9 {
            Ok(())
        } else {
            write!(formatter, "@{}", 100.0 * self.confidence)
        }
    }
}

impl Rule {
    /// The margin as written, without its sign.
    #[must_use]
    pub fn limit(&self) -> String {
        match (self.margin, self.metric) {
            (Margin::Share(share), _) => format!("{}%", (share * 1e6).round() / 1e4),
            (Margin::Absolute(value), Metric::Loss | Metric::Rate) => {
                if value > 0.0 && value < 1e-3 {
                    format!("{value:e}")
                } else {
                    value.to_string()
                }
            }
            (Margin::Absolute(ns), _) => format!("{}us", ns / 1e3),
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for text in [
            "p99>+5%",
            "p99.9>+2.5%@99",
            "p50>+20us",
            "loss>+1e-5",
            "cpu/pkt>+3%",
            "pps<-2%",
            "max>+0%",
            "pps<-500",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        let rule: Rule = "p99>+1.5ms@90%".parse().unwrap();
        assert_eq!((rule.margin, rule.confidence), (Margin::Absolute(1.5e6), 0.9));
        let loss: Rule = "loss>+0.1%".parse().unwrap();
        assert_eq!(loss.margin, Margin::Absolute(0.001));
    }

    #[test]
    fn a_wrong_rule_is_answered_with_right_ones() {
        for text in [
            "",
            "p99",
            "p99>5%",
            "p99<-5%",
            "p98>+5%",
            "p99>+5",
            "p99>+x%",
            "pps>+2%",
            "pps<-100%",
            "p99>+5%@20",
            "p99>+-5%",
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(
                error.contains("METRIC>+MARGIN@CONFIDENCE") && error.contains("p99>+5%@95"),
                "{text}: {error}"
            );
        }
    }
}
