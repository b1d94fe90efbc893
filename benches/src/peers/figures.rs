//! What a turn came to, and what a side's turns come to together.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::latency::Latencies;

/// What one number of a turn says. Its unit depends on the work ([`super::rows::Column`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// CPU or memory for a unit of work.
    Cost,
    /// The part of it that A's end of a tunnel has, from where the load comes.
    CostSending,
    /// The part of B's end.
    CostReceiving,
    /// Work in a unit of time.
    Rate,
    /// System calls for a unit of work.
    SystemCalls,
    /// Half of the latencies are at most this.
    P50,
    /// 99 % of the latencies are at most this.
    P99,
    /// 99.9 % of the latencies are at most this.
    P999,
    /// The longest latency.
    Longest,
    /// Largest resident memory of one process, in MiB.
    Resident,
}

impl Figure {
    /// In a verdict.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cost => "cost",
            Self::CostSending => "cost at A",
            Self::CostReceiving => "cost at B",
            Self::Rate => "rate",
            Self::SystemCalls => "system calls",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Longest => "max",
            Self::Resident => "resident MiB",
        }
    }

    /// Whether more of it is better.
    #[must_use]
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Rate)
    }
}

/// A quantile is a figure when at least this many latencies lie beyond it.
const BEYOND_MIN: f64 = 10.0;

/// The figures of latencies. A quantile that a handful of datagrams would decide is left out.
#[must_use]
pub fn times(latencies: &Latencies) -> Vec<(Figure, f64)> {
    let shares = [(Figure::P50, 0.5), (Figure::P99, 0.99), (Figure::P999, 0.999), (Figure::Longest, 1.0)];
    // Rounded, because 1 - 0.99 is a little less than a hundredth.
    let beyond = |share: f64| (latencies.arrived() as f64 * (1.0 - share)).round();
    shares
        .into_iter()
        .filter(|&(figure, share)| figure == Figure::Longest || beyond(share) >= BEYOND_MIN)
        .map(|(figure, share)| (figure, latencies.microseconds(share)))
        .collect()
}

/// The figures of one turn.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Those that the work has.
    pub figures: Vec<(Figure, f64)>,
    /// Share of the load's datagrams that did not arrive; of a TCP stream, segments sent again by segments sent.
    pub lost: f64,
    /// Largest resident memory of one of its processes in KiB.
    pub resident_kib: u64,
    /// What its processes say they did.
    pub ledger: Option<Ledger>,
}

impl Sample {
    /// One of its figures.
    #[must_use]
    pub fn figure(&self, figure: Figure) -> Option<f64> {
        match figure {
            Figure::Resident => Some(self.resident_kib as f64 / 1024.0),
            _ => self.figures.iter().find(|entry| entry.0 == figure).map(|entry| entry.1),
        }
    }
}

/// The ledgers of Towpath's processes, added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Packets handed to the egress, that did not leave and have no cause: zero.
    pub unexplained: i64,
    /// Packets that left.
    pub sent: u64,
    /// Operations that carried them.
    pub operations: u64,
    /// Packets lost, by cause.
    pub drops: BTreeMap<String, u64>,
}

impl Ledger {
    /// The ledger in a log of JSON lines; a program that has none is not ours.
    #[must_use]
    pub fn read(log: &[String]) -> Option<Self> {
        let mut lines = log.iter().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.find(|line| line["message"] == "ledger")?;
        let figures = &line["figures"];
        let mut ledger = Self {
            unexplained: figures["unexplained"].as_i64()?,
            sent: figures["sent"].as_u64()?,
            operations: figures["operations"].as_u64()?,
            drops: BTreeMap::new(),
        };
        for causes in ["egress_drops", "application_drops"] {
            for (cause, packets) in figures[causes].as_object()? {
                *ledger.drops.entry(cause.clone()).or_default() += packets.as_u64().unwrap_or(0);
            }
        }
        let kernel = figures["ingress"]["kernel_drops_skbs"].as_u64().unwrap_or(0);
        ledger.drops.insert("kernel_rcvbuf_skbs".to_owned(), kernel);
        ledger.drops.retain(|_, packets| *packets > 0);
        Some(ledger)
    }

    /// Adds another process or another turn.
    pub fn add(&mut self, other: &Self) {
        self.unexplained += other.unexplained;
        self.sent += other.sent;
        self.operations += other.operations;
        for (cause, packets) in &other.drops {
            *self.drops.entry(cause.clone()).or_default() += packets;
        }
    }

    /// In one line.
    #[must_use]
    pub fn line(&self) -> String {
        let segments = self.sent as f64 / self.operations.max(1) as f64;
        let mut text = format!("{segments:.1} segments/operation; unexplained {}", self.unexplained);
        for (cause, packets) in &self.drops {
            text.push_str(&format!("; {cause} {packets}"));
        }
        text
    }
}

/// How a side fared.
#[derive(Clone, Debug)]
pub enum Side {
    /// Its turns.
    Measured(Vec<Sample>),
    /// The program is not here; the remedy.
    Missing(String),
    /// What went wrong.
    Failed(String),
}

impl Side {
    /// Its turns, if it has any.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        match self {
            Self::Measured(samples) => samples,
            Self::Missing(_) | Self::Failed(_) => &[],
        }
    }
}

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; the mean of the two in the middle of an even number.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    #[must_use]
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median, min, max })
    }
}

/// Of each turn to the turn of the other side in the same round.
pub fn ratios<'a>(
    samples: &'a [Sample],
    base: &'a [Sample],
    figure: Figure,
) -> impl Iterator<Item = f64> + 'a {
    samples
        .iter()
        .zip(base)
        .filter_map(move |(sample, base)| Some(sample.figure(figure)? / base.figure(figure)?))
}

/// The most that was resident in one process in any turn, in MiB.
#[must_use]
pub fn resident_mib(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.resident_kib).max().unwrap_or(0) as f64 / 1024.0
}

/// The ledgers of all turns, added up.
#[must_use]
pub fn ledger(samples: &[Sample]) -> Option<Ledger> {
    let mut sum: Option<Ledger> = None;
    for ledger in samples.iter().filter_map(|sample| sample.ledger.as_ref()) {
        sum.get_or_insert_default().add(ledger);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_the_ends() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn the_ledger_is_the_last_line_that_is_one() {
        let figures = serde_json::json!({
            "unexplained": 0, "sent": 80, "operations": 2, "egress_drops": { "busy": 1 },
            "application_drops": { "busy": 2 }, "ingress": { "kernel_drops_skbs": 0 },
        });
        let line = serde_json::json!({ "message": "ledger", "figures": figures }).to_string();
        let ledger = Ledger::read(&["not JSON".to_owned(), line, "{}".to_owned()]).unwrap();
        assert_eq!(ledger.drops, BTreeMap::from([("busy".to_owned(), 3)]));
        assert_eq!(ledger.line(), "40.0 segments/operation; unexplained 0; busy 3");
        assert_eq!(Ledger::read(&["turnserver: ready".to_owned()]), None);
    }
}
