//! A result file of any kind as a log: a run's directory, `.hlog`, `.hgrm`, a bare histogram, or the JSON of other generators.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;

use super::bounded::{self, Bounded};
use super::bundle::{self, DETAIL_HLOG, LATENCY_HGRM, LATENCY_HLOG, RUN_JSON};
use super::fate::Fate;
use super::log::{Line, Log};
use super::{foreign, hgrm_reader};

/// Most bytes of the JSON of other generators: a million round trips of irtt.
const JSON_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of a percentile distribution, and of what a program prints around it.
const DISTRIBUTION_BYTES_MAX: u64 = 64 << 20;

/// What one step of a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unit {
    /// Nanoseconds
    Ns,
    /// Microseconds
    Us,
    /// Milliseconds
    Ms,
    /// Seconds
    S,
}

impl Unit {
    /// Nanoseconds in it.
    #[must_use]
    pub const fn nanoseconds(self) -> u64 {
        match self {
            Self::Ns => 1,
            Self::Us => 1_000,
            Self::Ms => 1_000_000,
            Self::S => 1_000_000_000,
        }
    }
}

/// Reads a file into nanoseconds. `unit` is that of its values where the file does not say it: nanoseconds in a log,
/// microseconds in a `.hgrm`, unless it is given.
///
/// # Errors
/// When it cannot be read or is nothing that is known; the message names the file.
pub fn read(path: &Path, unit: Option<Unit>) -> anyhow::Result<Log> {
    let path = if path.is_dir() { path.join(DETAIL_HLOG) } else { path.to_owned() };
    let name = || path.display().to_string();
    let file = File::open(&path).with_context(|| {
        format!("cannot read {}; give a directory of `run --out`, a .hlog or a .hgrm", name())
    })?;
    let mut input = BufReader::with_capacity(64 << 10, file);
    let start = input.fill_buf().with_context(|| format!("cannot read {}", name()))?;
    let start = String::from_utf8_lossy(start).into_owned();
    let log = if start.trim_start().starts_with('{') {
        foreign::read(Bounded::new(input, JSON_BYTES_MAX))
    } else if is_log(&start) {
        let log = Log::read(input);
        log.and_then(|log| scaled(log, unit.unwrap_or(Unit::Ns).nanoseconds()))
    } else {
        let text = bounded::text(input, DISTRIBUTION_BYTES_MAX);
        let text = text.with_context(|| format!("{} is not text of a distribution", name()))?;
        distribution(&text, unit.unwrap_or(Unit::Us))
    };
    let mut log = log.map_err(|error| anyhow::anyhow!("{}: {error}", name()))?;
    anyhow::ensure!(!log.lines.is_empty(), "{} holds no histogram", name());
    if log.fate.is_none() {
        add_fate(&mut log, &path);
    }
    Ok(log)
}

/// What became of the run whose directory a log is in, for one that was written before logs said it.
fn add_fate(log: &mut Log, path: &Path) {
    let is_ours = path
        .file_name()
        .is_some_and(|name| [LATENCY_HLOG, DETAIL_HLOG, LATENCY_HGRM].iter().any(|ours| name == *ours));
    let run = path.with_file_name(RUN_JSON);
    if !is_ours || !run.exists() {
        return;
    }
    match bundle::read(&run) {
        Ok(result) => log.fate = Some(Fate::of(&result)),
        Err(error) => log.notes.push(format!("what was lost is not known: {error:#}")),
    }
}

/// Whether a file that begins like this is an interval log or a bare histogram: no distribution has the word, and every
/// encoded histogram begins so or, in the older encodings, stands behind three numbers.
fn is_log(start: &str) -> bool {
    let start = start.trim_start_matches('\u{feff}').trim_start();
    let is_distribution =
        start.lines().any(|line| line.contains("Percentile") && line.contains("TotalCount"));
    !is_distribution && (start.starts_with(['#', '"']) || start.starts_with("Tag=") || has_histogram(start))
}

fn has_histogram(text: &str) -> bool {
    text.lines().take(10).any(|line| line.contains("HIST"))
}

fn scaled(mut log: Log, factor: u64) -> Result<Log, String> {
    if factor != 1 {
        for line in &mut log.lines {
            line.counts = line.counts.times(factor)?;
        }
    }
    Ok(log)
}

fn distribution(text: &str, unit: Unit) -> Result<Log, String> {
    // In thousandths of the unit, and of nanoseconds there are none.
    let thousandths = hgrm_reader::read(text)?;
    let counts = if unit == Unit::Ns {
        thousandths.divided(hgrm_reader::PARTS as u64)?
    } else {
        thousandths.times(unit.nanoseconds() / 1_000)?
    };
    let notes = vec!["values are those of the rows of the distribution, counts are exact".to_owned()];
    Ok(Log {
        start_unix_s: None,
        lines: vec![Line { tag: None, start_s: 0.0, length_s: 0.0, counts }],
        notes,
        fate: Fate::read(text.lines()),
    })
}
