//! Runs as a report needs them: read from directories or from logs of other tools, put into sides by their labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::shift;
use crate::format::bundle;
use crate::format::counts::Counts;
use crate::format::fate::Fate;
use crate::format::find::{self, Found};
use crate::format::input::{self, Unit};
use crate::format::log::Line;
use crate::format::series::SERIES_JSON;
use crate::run::distribution::curve;
use crate::run::{CurvePoint, Distribution, RunResult};

/// What makes runs one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// The label; without one, the path that they are in
    Label,
    /// The path on the command line that they are in, such as the directory of a sweep
    Path,
}

/// Levels of directories within a directory that are looked into: `ab` and `sweep` have one for each side.
const LEVELS: u32 = 2;

/// Most counts that are not zero in the logs of all runs together, 16 bytes each.
const ENTRIES_MAX: usize = 1 << 24;

/// One run.
#[derive(Debug)]
pub struct Run {
    /// Its directory or file.
    pub path: PathBuf,
    /// Its label, else the name of its directory or file.
    pub name: String,
    /// Index of its side.
    pub side: usize,
    /// When it started, in seconds since the epoch; 0 when that is not known.
    pub started_unix_s: f64,
    /// What `run` found; absent for logs of other tools.
    pub result: Option<RunResult>,
    /// Figures of the response.
    pub response: Distribution,
    /// Its curve.
    pub curve: Vec<CurvePoint>,
    /// The response by interval.
    pub lines: Vec<Line>,
}

impl Run {
    /// Datagrams per second that were asked for; `None` for logs of other tools.
    #[must_use]
    pub fn rate_pps(&self) -> Option<f64> {
        self.result.as_ref().map(|result| result.spec.rate_pps)
    }
}

/// Runs by side.
#[derive(Debug, Default)]
pub struct Runs {
    /// Names; the first is what the others are compared with.
    pub sides: Vec<String>,
    /// By time of start.
    pub runs: Vec<Run>,
    /// What was left out or guessed.
    pub notes: Vec<String>,
    /// Directories beside runs whose runs died; there is a note on each.
    pub dead: Vec<PathBuf>,
    /// How many runs have which name.
    names: BTreeMap<String, usize>,
    /// Counts that are not zero in all logs.
    entries: usize,
}

impl Runs {
    /// Reads directories of `run --out`, directories full of those, and files that `show` reads. Sides are in the order of
    /// `paths`, those in one directory in the order in which they were made.
    ///
    /// # Errors
    /// When one cannot be read; the message names it.
    pub fn read(paths: &[PathBuf], unit: Option<Unit>, by: By) -> anyhow::Result<Self> {
        let mut all = Self::default();
        // What a glob finds beside the sides of a series is no run.
        for path in paths.iter().filter(|path| path.file_name().is_none_or(|name| name != SERIES_JSON)) {
            let Found { runs: found, dead } = Found::at(path, LEVELS)?;
            all.notes.extend(dead.iter().map(|dead| find::epitaph(dead)));
            all.dead.extend(dead);
            // What holds none is named by the attempt to read it.
            let several = if found.is_empty() { vec![path.clone()] } else { found };
            bundle::check_number(all.runs.len() + several.len())?;
            let mut runs = Vec::with_capacity(several.len());
            for path in &several {
                let run = all.one(path, unit)?;
                all.entries += run.lines.iter().map(|line| line.counts.len()).sum::<usize>();
                anyhow::ensure!(
                    all.entries <= ENTRIES_MAX,
                    "the logs up to {} have more than {ENTRIES_MAX} counts together; report fewer runs at once",
                    path.display()
                );
                runs.push(run);
            }
            runs.sort_by(|a, b| a.started_unix_s.total_cmp(&b.started_unix_s));
            runs.into_iter().for_each(|run| all.add(run, &name(path), by));
        }
        all.runs.sort_by(|a, b| a.started_unix_s.total_cmp(&b.started_unix_s));
        Ok(all)
    }

    fn one(&mut self, path: &Path, unit: Option<Unit>) -> anyhow::Result<Run> {
        if path.is_dir() || path.file_name().is_some_and(|name| name == bundle::RUN_JSON) {
            self.of_directory(path)
        } else {
            self.of_file(path, unit)
        }
    }

    fn add(&mut self, mut run: Run, side_name: &str, by: By) {
        let label =
            run.result.as_ref().map(|result| result.spec.label.as_str()).filter(|label| !label.is_empty());
        let side = label.filter(|_| by == By::Label).unwrap_or(side_name).to_owned();
        run.side = self.sides.iter().position(|known| *known == side).unwrap_or(self.sides.len());
        if run.side == self.sides.len() {
            self.sides.push(side);
        }
        let count = self.names.entry(run.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            run.name = format!("{} ({count})", run.name);
        }
        self.runs.push(run);
    }

    fn of_directory(&mut self, path: &Path) -> anyhow::Result<Run> {
        let result = bundle::read(path)?;
        let directory = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let log = directory.join("latency.hlog");
        let lines = match input::read(&log, Some(Unit::Ns)) {
            Ok(log) => log.lines,
            Err(error) => {
                self.notes.push(format!("{}: no plot over time: {error:#}", path.display()));
                Vec::new()
            }
        };
        Ok(Run {
            path: path.to_owned(),
            name: if result.spec.label.is_empty() { name(path) } else { result.spec.label.clone() },
            side: 0,
            started_unix_s: result.started_unix_ns as f64 / 1e9,
            response: result.latency.response.clone(),
            curve: result.curve.clone(),
            lines,
            result: Some(result),
        })
    }

    fn of_file(&mut self, path: &Path, unit: Option<Unit>) -> anyhow::Result<Run> {
        let log = input::read(path, unit)?;
        // The response is what has no tag; of a log in which all have one, the first.
        let tag = log.tags()[0].map(str::to_owned);
        let whole = log.whole(tag.as_deref()).map_err(anyhow::Error::msg)?;
        let histogram = whole.with_context(|| format!("{} holds no histogram", path.display()))?.histogram();
        self.notes.extend(log.notes.iter().map(|note| format!("{}: {note}", path.display())));
        let shown = tag.as_ref().map_or(String::new(), |tag| format!("{tag} is shown; "));
        let fate =
            log.fate.as_ref().map_or_else(|| "a log does not say what was lost".to_owned(), Fate::sentence);
        self.notes.push(format!("{}: {shown}{fate}", path.display()));
        let lost = log.lost(tag.as_deref()).unwrap_or(0);
        Ok(Run {
            path: path.to_owned(),
            name: name(path),
            side: 0,
            started_unix_s: log.start_unix_s.unwrap_or(0.0),
            result: None,
            response: Distribution::new(&histogram, lost),
            curve: curve(&histogram, lost),
            lines: log.lines.into_iter().filter(|line| line.tag == tag).collect(),
        })
    }

    /// What [`shift::Shift`] needs of the runs of a side that `wanted` names.
    #[must_use]
    pub fn side<'a>(&'a self, side: usize, wanted: impl Fn(&Run) -> bool) -> shift::Side<'a> {
        let runs: Vec<&Run> = self.runs.iter().filter(|run| run.side == side && wanted(run)).collect();
        let counts =
            |run: &&'a Run| -> Vec<&'a Counts> { run.lines.iter().map(|line| &line.counts).collect() };
        shift::Side {
            curves: runs.iter().map(|run| run.curve.as_slice()).collect(),
            intervals: runs.iter().flat_map(counts).collect(),
            lost: runs.iter().map(|run| run.response.lost).sum(),
            lost_shares: runs
                .iter()
                .map(|run| run.response.lost as f64 / (run.response.count + run.response.lost).max(1) as f64)
                .collect(),
        }
    }
}

/// The name of a directory, or of a file without its ending; of a run.json that of its directory.
fn name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_run = path.file_name().is_some_and(|name| name == bundle::RUN_JSON);
    let named = if is_run { path.parent().unwrap_or(&path) } else { &path };
    let name = if named.is_dir() { named.file_name() } else { named.file_stem() };
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
