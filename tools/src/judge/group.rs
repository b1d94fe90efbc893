//! The runs of one side.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::metric::Metric;
use crate::format::bundle;
use crate::format::find::{Found, epitaph};
use crate::format::series::Member;
use crate::run::verdict::{Validity, is_own};
use crate::run::{Problem, RunResult};
use crate::statistics::Proportion;

/// Runs of one side, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Group {
    /// What it is called in tables.
    pub name: String,
    /// The runs.
    pub runs: Vec<RunResult>,
    /// What is known of those that died, or were not made because their series was cut: a sentence on each.
    pub dead: Vec<String>,
    /// How many were made again because they could not be believed.
    pub repeated: u32,
    /// Whether any of these was so for itself, not with its whole block.
    pub repeated_alone: bool,
}

/// One side's values of one metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// What the side is called.
    #[serde(skip)]
    pub name: String,
    /// One for each run.
    pub values: Vec<f64>,
    /// When each run started, in seconds after the epoch; empty where that is not known.
    #[serde(skip)]
    pub starts_s: Vec<f64>,
    /// Datagrams sent and not come back, over all runs.
    #[serde(skip)]
    pub lost: Proportion,
    /// Why a run has no value; then there is no verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Where the metric is the lab's own lateness in good part, which hides differences: then it shows no equality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<String>,
}

impl Side {
    /// Why this side and `other` need not be alike where their values of `metric` are: how late the datagrams were that never came is
    /// not known of either.
    #[must_use]
    pub fn hides(&self, other: &Self, metric: Metric) -> Option<String> {
        let latency = matches!(metric, Metric::Quantile(_) | Metric::Max);
        let has_lost = |side: &Self| side.values.iter().any(|&value| Metric::is_lost(value));
        (latency && has_lost(self) && has_lost(other))
            .then(|| format!("{} is lost on both sides: compare the loss", metric.name()))
            .or_else(|| self.own.clone())
            .or_else(|| other.own.clone())
    }
}

impl Group {
    /// Reads runs: each path is the directory of a run, its `run.json`, or a directory of such directories.
    ///
    /// # Errors
    /// As [`bundle::read`]; [`Problem::File`] when a directory holds no run, [`Problem::Usage`] when one is named twice.
    pub fn read(name: &str, paths: &[PathBuf]) -> anyhow::Result<Self> {
        let (mut there, mut dead) = (Vec::new(), Vec::new());
        let mut members: Vec<Member> = Vec::new();
        for path in paths {
            let found = runs_at(path)?;
            there.extend(found.runs);
            bundle::check_number(there.len())?;
            dead.extend(found.dead.iter().map(|path| epitaph(path)));
            members.extend(Member::of(path)?.filter(|member| !members.contains(member)));
        }
        dead.extend(members.iter().filter_map(Member::cut));
        let repeated = members.iter().map(Member::repeated).sum();
        let repeated_alone = members.iter().any(Member::repeated_alone);
        let mut runs = there.iter().map(|path| bundle::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
        runs.sort_by_key(|run: &RunResult| run.started_unix_ns);
        // Runs are the sample: one that counts twice makes the rest look surer than it is.
        if let Some(twice) = runs.windows(2).find(|pair| pair[0].run_id == pair[1].run_id) {
            return Err(Problem::Usage(format!(
                "run {} of {name} (started {}) is given twice; name each run once",
                twice[0].run_id, twice[0].started
            ))
            .into());
        }
        Ok(Self { name: name.to_owned(), runs, dead, repeated, repeated_alone })
    }

    /// Refuses a run on both sides: it is no second sample, and what it has in common with itself would make the sides look alike.
    ///
    /// # Errors
    /// [`Problem::Usage`] with the first of them.
    pub fn check_apart(&self, other: &Self) -> Result<(), Problem> {
        let here: HashSet<&str> = self.runs.iter().map(|run| run.run_id.as_str()).collect();
        let Some(both) = other.runs.iter().find(|run| here.contains(run.run_id.as_str())) else {
            return Ok(());
        };
        Err(Problem::Usage(format!(
            "run {} (started {}) is on both sides, {} and {}; give each side runs of its own. What a target shows beside itself, \
             `towpath-lab aa` measures",
            both.run_id, both.started, self.name, other.name
        )))
    }

    /// The values of `metric`.
    #[must_use]
    pub fn side(&self, metric: Metric) -> Side {
        let value = |(index, run): (usize, &RunResult)| {
            metric.value(run).map_err(|why| format!("run {} of {}: {why}", index + 1, self.name))
        };
        let values: Result<Vec<f64>, String> = self.runs.iter().enumerate().map(value).collect();
        let lost = Proportion {
            some: self.runs.iter().map(|run| run.ledger.gone()).sum(),
            all: self.runs.iter().map(|run| run.ledger.tried()).sum(),
        };
        let name = self.name.clone();
        let starts_s = self.runs.iter().map(|run| run.started_unix_ns as f64 / 1e9).collect();
        match values {
            Ok(values) => Side { name, values, starts_s, lost, missing: None, own: self.own(metric) },
            Err(missing) => Side { name, lost, missing: Some(missing), ..Side::default() },
        }
    }

    /// What to say of a latency that is the lab's own in half of the runs or more.
    fn own(&self, metric: Metric) -> Option<String> {
        if !matches!(metric, Metric::Quantile(_) | Metric::Max) {
            return None;
        }
        let is_own = |run: &&RunResult| is_own(run.latency.delays(), metric.name());
        let (own, all) = (self.runs.iter().filter(is_own).count(), self.runs.len());
        (2 * own >= all && own > 0).then(|| {
            format!(
                "the lateness of the lab's own sender and receiver is more than a quarter of what the service took in {own} of \
                 {all} runs of {}, which hides differences; free a core, try --pace spin, or send less",
                self.name
            )
        })
    }

    /// Whether any run has a value of `metric`: then one that has none is missed.
    #[must_use]
    pub fn has(&self, metric: Metric) -> bool {
        self.runs.iter().any(|run| metric.value(run).is_ok())
    }

    /// Why runs have no value of a metric that others have, for each of `metrics`.
    #[must_use]
    pub fn missed(&self, metrics: &[Metric]) -> Vec<String> {
        let missed = |metric: &&Metric| self.has(**metric);
        let say = |metric: &Metric| Some(format!("{}: {}", metric.name(), self.side(*metric).missing?));
        metrics.iter().filter(missed).filter_map(say).collect()
    }

    /// What keeps runs from being believed: a sentence on the first that is not valid, on the first that was ended early, on the
    /// first whose server was, with how many there are, and on each that died or was not made: those that are left may be the better
    /// ones.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let first = |is: &dyn Fn(&RunResult) -> bool, say: &dyn Fn(&RunResult) -> String| {
            let mut found = self.runs.iter().enumerate().filter(|(_, run)| is(run));
            let (index, run) = found.next()?;
            let more = match found.count() {
                0 => String::new(),
                more => format!(" (and {more} more of its {} runs)", self.runs.len()),
            };
            Some(format!("run {} of {} {}{more}", index + 1, self.name, say(run)))
        };
        let invalid = |run: &RunResult| run.verdict.validity != Validity::Valid;
        let early = |run: &RunResult| format!("was interrupted after {:.1} s", run.measured_s);
        let ended = |run: &RunResult| {
            let ended = run.dut.iter().find(|process| process.ended_early)?;
            Some(format!("outlived process {} {}", ended.pid, ended.name))
        };
        [
            first(&invalid, &|run| format!("is {}", run.verdict.line())),
            first(&|run| run.interrupted, &early),
            first(&|run| ended(run).is_some(), &|run| ended(run).unwrap_or_default()),
        ]
        .into_iter()
        .flatten()
        .chain(self.dead.iter().map(|dead| format!("{}: {dead}", self.name)))
        .collect()
    }
}

/// The runs at `path`, by name, and the directories beside them whose runs died.
fn runs_at(path: &Path) -> anyhow::Result<Found> {
    let found = Found::at(path, 0)?;
    if found.runs.is_empty() {
        return Err(Problem::File(format!(
            "{} holds no run; give directories written by `towpath-lab run … --out DIR` or `towpath-lab ab … --out DIR`",
            path.display()
        ))
        .into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_of_runs_stands_for_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["1", "2"] {
            fs::create_dir(at(name)).unwrap();
        }
        let error = runs_at(dir.path()).unwrap_err();
        assert!(
            error.downcast_ref::<Problem>().is_some() && error.to_string().contains("--out DIR"),
            "{error}"
        );
        for name in ["1", "2"] {
            fs::write(at(name).join(bundle::RUN_JSON), "{}").unwrap();
        }
        assert_eq!(runs_at(dir.path()).unwrap().runs, ["1", "2"].map(at));
    }
}
