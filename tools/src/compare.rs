//! Several runs side by side: a table with ratios to the first, and their percentile curves in one plot.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::format::bundle;
use crate::judge::circumstances;
use crate::report::{Cell, Curve, Report, Section, Table, Tone};
use crate::run::ledger::loss_statement;
use crate::run::verdict::Validity;
use crate::run::{Distribution, Grade, RunResult};
use crate::units;

/// Quantiles of the table.
const COLUMNS: [&str; 4] = ["p50", "p90", "p99", "p99.9"];

/// The figures of one run as `--json` prints them.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Label of the run, or the name of its directory.
    pub name: String,
    /// Where it was read from.
    pub path: PathBuf,
    /// `VALID` and so on, with reasons.
    pub verdict: String,
    /// Nanoseconds by quantile; absent where datagrams were lost or samples are too few.
    pub quantiles_ns: Vec<(String, Option<u64>)>,
    /// Largest response in nanoseconds.
    pub max_ns: Option<u64>,
    /// Share of the sent datagrams that did not arrive in time.
    pub loss: f64,
    /// CPU time of the observed processes per datagram delivered one way.
    pub cpu_ns_per_packet: Option<f64>,
    /// Each of the figures divided by the first run's; absent for the first run, for one with another load, where one of the two
    /// cannot be believed, and where a figure of one of the two is.
    pub ratio: Option<Ratio>,
}

/// Figures of a run divided by those of the first.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// By quantile.
    pub quantiles: Vec<(String, Option<f64>)>,
    /// Of the largest response.
    pub max: Option<f64>,
    /// Of the CPU time per datagram.
    pub cpu: Option<f64>,
}

/// Runs that were read.
#[derive(Debug)]
pub struct Comparison {
    runs: Vec<(String, PathBuf, RunResult)>,
    /// Whether runs are divided by the first though they had another load.
    any_load: bool,
    /// Whether they are though one of the two is not valid, or was ended early.
    any_validity: bool,
}

impl Comparison {
    /// Reads each directory or `run.json`. A run with another load than the first is not divided by it, unless `any_load`; nor is one
    /// where either cannot be believed, unless `any_validity`.
    ///
    /// # Errors
    /// As [`bundle::read`].
    pub fn read(paths: &[PathBuf], any_load: bool, any_validity: bool) -> anyhow::Result<Self> {
        let read = |path: &PathBuf| {
            let result = bundle::read(path)?;
            Ok((name(&result, path), path.clone(), result))
        };
        let mut runs = paths.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
        tell_apart(&mut runs);
        Ok(Self { runs, any_load, any_validity })
    }

    /// The figures.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let row = |(index, (name, path, result)): (usize, &(String, PathBuf, RunResult))| Row {
            name: name.clone(),
            path: path.clone(),
            verdict: result.verdict.line(),
            quantiles_ns: COLUMNS
                .map(|column| (column.to_owned(), shown(&result.latency.response, column)))
                .into(),
            max_ns: result.latency.response.max_ns,
            loss: result.ledger.loss_fraction(),
            cpu_ns_per_packet: result.dut_cpu_ns_per_packet,
            ratio: (index > 0 && self.is_comparable(result)).then(|| ratio(result, &self.runs[0].2)),
        };
        self.runs.iter().enumerate().map(row).collect()
    }

    /// Whether a run may be divided by the first.
    fn is_comparable(&self, run: &RunResult) -> bool {
        let first = &self.runs[0].2;
        let is_believed = |run: &RunResult| run.verdict.validity == Validity::Valid && !run.interrupted;
        (self.any_load || circumstances::load(&first.spec, &run.spec).is_empty())
            && (self.any_validity || (is_believed(first) && is_believed(run)))
    }

    /// Table, plot and what keeps the runs from being compared.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut table = Table { header: header(), rows: Vec::new() };
        for (row, (_, _, result)) in self.rows().into_iter().zip(&self.runs) {
            table.rows.push(figures(&row, result));
            if let Some(ratio) = &row.ratio {
                table.rows.push(ratio_cells(ratio, &self.runs[0].0));
            }
        }
        let mut notes: Vec<String> = vec![
            "Response latency: from the intended send time, over all sent datagrams, so that a lost one is later than \
             any other. Figures in parentheses or grey have 10 to 99 samples beyond them, – has fewer. One run a side \
             says nothing about chance: repeat before concluding."
                .to_owned(),
        ];
        notes.extend(
            self.runs.iter().map(|(name, _, result)| format!("{name}: {}", loss_statement(&result.ledger))),
        );
        notes.extend(self.doubts());
        notes.extend(self.differences());
        let curves = self.runs.iter().map(|(name, _, result)| Curve::of(name.clone(), result)).collect();
        let section = Section {
            title: "Response latency, loss and cost".to_owned(),
            notes,
            table,
            curves,
            ..Section::default()
        };
        Report { title: "towpath-lab compare".to_owned(), notes: Vec::new(), sections: vec![section] }
    }

    /// One warning for each way in which a run was made otherwise than the first.
    fn differences(&self) -> Vec<String> {
        let (first_name, _, first) = &self.runs[0];
        let mut notes = Vec::new();
        for (name, _, run) in &self.runs {
            let mut differing = circumstances::load(&first.spec, &run.spec);
            differing.extend(circumstances::host(first, run));
            notes.extend(differing.iter().map(|differs| circumstances::sentence(differs, first_name, name)));
        }
        notes
    }

    /// What keeps runs from being believed: a sentence on each that is not valid, or was ended early.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let doubts = |(name, _, run): &(String, PathBuf, RunResult)| {
            let invalid = run.verdict.validity != Validity::Valid;
            let invalid = invalid.then(|| format!("{name} is {}", run.verdict.line()));
            let early =
                run.interrupted.then(|| format!("{name} was interrupted after {:.1} s", run.measured_s));
            [invalid, early]
        };
        self.runs.iter().flat_map(doubts).flatten().collect()
    }

    /// In what loads are another than that of the first.
    #[must_use]
    pub fn different(&self) -> Vec<String> {
        circumstances::different(self.runs.iter().map(|(_, _, run)| &run.spec))
    }
}

fn header() -> Vec<String> {
    let ends = ["max", "loss", "CPU/packet", "verdict"];
    std::iter::once("run").chain(COLUMNS).chain(ends).map(str::to_owned).collect()
}

fn figures(row: &Row, result: &RunResult) -> Vec<Cell> {
    let mut cells = vec![Cell::from(row.name.clone())];
    cells.extend(COLUMNS.map(|column| quantile_cell(&result.latency.response, column)));
    cells.push(row.max_ns.map_or(Cell::from("–"), |ns| Cell::from(units::nanoseconds(ns))));
    cells.push(loss_cell(result));
    cells.push(row.cpu_ns_per_packet.map_or(Cell::from("–"), |ns| Cell::from(units::nanoseconds(ns as u64))));
    let tone = if result.verdict.validity == Validity::Valid { Tone::Good } else { Tone::Bad };
    cells.push(Cell::new(result.verdict.validity.name(), tone));
    cells
}

/// A quantile of `distribution` as a cell: grey with few samples beyond it, absent with too few, `lost` beyond the loss.
#[must_use]
pub fn quantile_cell(distribution: &Distribution, name: &str) -> Cell {
    let Some(quantile) = distribution.quantile(name) else { return Cell::from("–") };
    match (quantile.grade, quantile.value_ns) {
        (Grade::Omitted, _) => Cell::new("–", Tone::Plain),
        (_, None) => Cell::new("lost", Tone::Bad),
        (Grade::Weak, Some(ns)) => Cell::new(units::nanoseconds(ns), Tone::Weak),
        (Grade::Solid, Some(ns)) => Cell::from(units::nanoseconds(ns)),
    }
}

/// The share lost as a cell.
#[must_use]
pub fn loss_cell(result: &RunResult) -> Cell {
    let gone = result.ledger.gone();
    match gone {
        0 => Cell::from("0"),
        _ => Cell::new(format!("{} ({gone})", units::share(result.ledger.loss_fraction())), Tone::Bad),
    }
}

fn ratio_cells(ratio: &Ratio, first: &str) -> Vec<Cell> {
    let times = |ratio: Option<f64>| Cell::from(ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}×")));
    let mut cells = vec![Cell::from(format!("  ÷ {first}"))];
    cells.extend(ratio.quantiles.iter().map(|(_, ratio)| times(*ratio)));
    cells.extend([times(ratio.max), Cell::from(""), times(ratio.cpu), Cell::from("")]);
    cells
}

fn ratio(run: &RunResult, first: &RunResult) -> Ratio {
    let divide = |a: Option<f64>, b: Option<f64>| Some(a? / b.filter(|&b| b > 0.0)?);
    let quantile = |result: &RunResult, name: &str| shown(&result.latency.response, name).map(|ns| ns as f64);
    let max = |result: &RunResult| result.latency.response.max_ns.map(|ns| ns as f64);
    let quantiles = COLUMNS.map(|name| (name.to_owned(), divide(quantile(run, name), quantile(first, name))));
    Ratio {
        quantiles: quantiles.into(),
        max: divide(max(run), max(first)),
        cpu: divide(run.dut_cpu_ns_per_packet, first.dut_cpu_ns_per_packet),
    }
}

/// The value of a quantile with enough samples beyond it.
fn shown(distribution: &Distribution, name: &str) -> Option<u64> {
    distribution.quantile(name).filter(|quantile| quantile.grade != Grade::Omitted)?.value_ns
}

/// The label, else the name of the directory.
fn name(result: &RunResult, path: &Path) -> String {
    if !result.spec.label.is_empty() {
        return result.spec.label.clone();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let directory = if path.is_dir() { Some(path.as_path()) } else { path.parent() };
    directory
        .and_then(Path::file_name)
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Numbers equal names.
fn tell_apart(runs: &mut [(String, PathBuf, RunResult)]) {
    for index in 1..runs.len() {
        let (before, rest) = runs.split_at_mut(index);
        let base = rest[0].0.clone();
        let mut number = 2;
        while before.iter().any(|(name, _, _)| *name == rest[0].0) {
            rest[0].0 = format!("{base} ({number})");
            number += 1;
        }
    }
}
