//! What is compared: one value of each run.

use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::run::distribution::HIGHEST_NS;
use crate::run::{Grade, RunResult};
use crate::units;

/// One value of each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// A quantile of the response latency over what was sent, by name.
    Quantile(&'static str),
    /// The largest response latency.
    Max,
    /// Share of the sent datagrams that did not come back in time.
    Loss,
    /// CPU time of the observed processes per datagram delivered one way.
    Cpu,
    /// Datagrams that came back per second.
    Rate,
}

const NAMES: [(&str, Metric); 10] = [
    ("p50", Metric::Quantile("p50")),
    ("p90", Metric::Quantile("p90")),
    ("p99", Metric::Quantile("p99")),
    ("p99.9", Metric::Quantile("p99.9")),
    ("p99.99", Metric::Quantile("p99.99")),
    ("p99.999", Metric::Quantile("p99.999")),
    ("max", Metric::Max),
    ("loss", Metric::Loss),
    ("cpu/pkt", Metric::Cpu),
    ("pps", Metric::Rate),
];

impl Metric {
    /// As written in rules and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|entry| entry.1 == self).map_or("", |entry| entry.0)
    }

    /// Its value in a run: nanoseconds, a share, or datagrams a second.
    ///
    /// # Errors
    /// Why the run has none, with what would give it one.
    pub fn value(self, run: &RunResult) -> Result<f64, String> {
        match self {
            Self::Quantile(name) => {
                let quantile = run.latency.response.quantile(name);
                let known = quantile.filter(|quantile| quantile.grade != Grade::Omitted);
                let known = known.ok_or_else(|| {
                    format!("fewer than 10 datagrams of a run lie beyond its {name}: longer runs, or a higher rate")
                })?;
                // What never came is later than anything that a histogram holds.
                Ok(known.value_ns.unwrap_or(HIGHEST_NS).max(1) as f64)
            }
            Self::Max => {
                let max = if run.latency.response.lost > 0 {
                    Some(HIGHEST_NS)
                } else {
                    run.latency.response.max_ns
                };
                max.map(|ns| ns.max(1) as f64).ok_or_else(|| "nothing came back".to_owned())
            }
            Self::Loss => Ok(run.ledger.loss_fraction()),
            Self::Cpu => cpu(run),
            Self::Rate if run.ledger.tried() == 0 => Err("nothing was sent".to_owned()),
            // Of a device that died, less than one datagram: the ratio to it has to exist.
            Self::Rate => Ok(run.received_pps.max(1.0 / run.measured_s)),
        }
    }

    /// Whether a larger value is better.
    #[must_use]
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::Rate)
    }

    /// Whether two sides are compared by their ratio rather than by their difference.
    #[must_use]
    pub const fn by_ratio(self) -> bool {
        !matches!(self, Self::Loss)
    }

    /// Whether a latency stands for datagrams that were lost; the mean of one that does and one that does not, does.
    #[must_use]
    pub fn is_lost(latency_ns: f64) -> bool {
        latency_ns >= HIGHEST_NS as f64 * 0.499
    }

    /// A value with its unit.
    #[must_use]
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Quantile(_) | Self::Max if Self::is_lost(value) => "lost".to_owned(),
            Self::Quantile(_) | Self::Max | Self::Cpu => units::nanoseconds(value as u64),
            Self::Loss => units::share(value),
            Self::Rate => units::rate(value),
        }
    }
}

fn cpu(run: &RunResult) -> Result<f64, String> {
    if run.dut.is_empty() {
        return Err("no process was observed: run with --dut-pid".to_owned());
    }
    if let Some(ended) = run.dut.iter().find(|process| process.ended_early) {
        return Err(format!("process {} {} ended before it", ended.pid, ended.name));
    }
    run.dut_cpu_ns_per_packet
        .filter(|&ns| ns > 0.0)
        .ok_or_else(|| "no datagram was carried, or no processor time was seen".to_owned())
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = if text == "cpu" { "cpu/pkt" } else { text };
        NAMES.iter().find(|entry| entry.0 == text).map(|entry| entry.1).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|entry| entry.0).collect();
            format!("{text:?} is nothing that is compared; known are {}", names.join(", "))
        })
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_that_is_read_back() {
        for (name, metric) in NAMES {
            assert_eq!((metric.name(), name.parse()), (name, Ok(metric)));
        }
        assert_eq!("cpu".parse(), Ok(Metric::Cpu));
        assert!("p98".parse::<Metric>().unwrap_err().contains("p99.9, "));
    }
}
