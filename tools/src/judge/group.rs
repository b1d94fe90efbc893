//! The runs of one side.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::metric::Metric;
use crate::compare;
use crate::format::bundle;
use crate::run::verdict::Validity;
use crate::run::{Problem, RunResult};
use crate::statistics::Proportion;

/// Runs of one side, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Group {
    /// What it is called in tables.
    pub name: String,
    /// The runs.
    pub runs: Vec<RunResult>,
}

/// One side's values of one metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// One for each run.
    pub values: Vec<f64>,
    /// Datagrams sent and not come back, over all runs.
    #[serde(skip)]
    pub lost: Proportion,
    /// Why a run has no value; then there is no verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl Group {
    /// Reads runs: each path is the directory of a run, its `run.json`, or a directory of such directories.
    ///
    /// # Errors
    /// As [`bundle::read`]; [`Problem::Usage`] when a directory holds no run.
    pub fn read(name: &str, paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut there = Vec::new();
        for path in paths {
            there.extend(runs_under(path)?);
            bundle::check_number(there.len())?;
        }
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
        Ok(Self { name: name.to_owned(), runs })
    }

    /// The values of `metric`.
    #[must_use]
    pub fn side(&self, metric: Metric) -> Side {
        let values: Result<Vec<f64>, String> = self.runs.iter().map(|run| metric.value(run)).collect();
        let gone = |run: &RunResult| run.ledger.lost + run.ledger.late;
        let lost = Proportion {
            some: self.runs.iter().map(gone).sum(),
            all: self.runs.iter().map(|run| run.ledger.sent).sum(),
        };
        match values {
            Ok(values) => Side { values, lost, missing: None },
            Err(missing) => Side { values: Vec::new(), lost, missing: Some(missing) },
        }
    }

    /// What keeps runs from being believed: a sentence on the first that is not valid, and on the first that was ended early,
    /// with how many there are.
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
        [first(&invalid, &|run| format!("is {}", run.verdict.line())), first(&|run| run.interrupted, &early)]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// The runs at `path`, by name.
fn runs_under(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() || path.join(bundle::RUN_JSON).exists() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut runs: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(bundle::RUN_JSON).exists())
        .collect();
    runs.sort();
    if runs.is_empty() {
        return Err(Problem::Usage(format!(
            "{} holds no run; give directories written by `towpath-lab run … --out DIR` or `towpath-lab ab … --out DIR`",
            path.display()
        ))
        .into());
    }
    Ok(runs)
}

/// How runs of several groups differ from the first of all in what they were asked to do and where: one sentence each.
pub(super) fn circumstances(groups: &[&Group]) -> Vec<String> {
    let Some((first, first_group)) = groups.iter().find_map(|group| Some((group.runs.first()?, group)))
    else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for group in groups {
        for run in &group.runs {
            for (what, a, b) in compare::differing(first, run) {
                let note = format!("not the same {what}: {a} in {}, {b} in {}", first_group.name, group.name);
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_runs_stands_for_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["2", "1", "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let error = runs_under(dir.path()).unwrap_err();
        assert!(
            error.downcast_ref::<Problem>().is_some() && error.to_string().contains("--out DIR"),
            "{error}"
        );
        for name in ["2", "1"] {
            fs::write(dir.path().join(name).join(bundle::RUN_JSON), "{}").unwrap();
        }
        let found = runs_under(dir.path()).unwrap();
        assert_eq!(found, ["1", "2"].map(|name| dir.path().join(name)));
        assert_eq!(runs_under(&found[0]).unwrap(), [found[0].clone()]);
        let missing = dir.path().join("none");
        assert_eq!(runs_under(&missing).unwrap(), [missing]);
    }
}
