//! Logs and distributions for a person to read: figures by tag, how they are spread, and how they went over time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Cell, Report, Section, Table, Tone};
use crate::compare::quantile_cell;
use crate::format::fate::Fate;
use crate::format::log::Log;
use crate::format::output::whole;
use crate::run::Distribution;
use crate::units::{self, nanoseconds};

/// Quantiles of the tables.
const COLUMNS: [&str; 5] = ["p50", "p90", "p99", "p99.9", "p99.99"];
/// Characters of the longest bar.
const BAR: f64 = 40.0;
/// Marks of a sparkline, by rising value.
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Marks in a sparkline at most.
const SPARKS_MAX: usize = 60;

/// What a log holds, as text.
///
/// # Errors
/// When no histogram can hold all of a tag.
pub fn show(name: &str, log: &Log) -> anyhow::Result<String> {
    let mut table = Table { header: header("tag"), rows: Vec::new() };
    let mut notes = Vec::new();
    let mut spread = String::new();
    for tag in log.tags() {
        let histogram = whole(log, tag)?.histogram();
        let tag_name = tag.unwrap_or("untagged");
        let lost = log.lost(tag);
        table.rows.push(figures(tag_name, &Distribution::new(&histogram, lost.unwrap_or(0)), lost));
        notes.extend(
            over_time(log, tag).map(|line| format!("{tag_name}, p99 over time{}: {line}", of_what(lost))),
        );
        // Writing to a String cannot fail.
        let _ = write!(spread, "\n{tag_name}\n{}", bars(&histogram, lost.unwrap_or(0)));
    }
    notes.extend(log.notes.iter().cloned());
    let start =
        log.start_unix_s.and_then(|start| jiff::Timestamp::from_millisecond((start * 1e3) as i64).ok());
    let start = start.map_or(String::new(), |start| format!(", from {start}"));
    let title = format!("{name}: {}{start}", units::count(log.lines.len() as u64, "line"));
    let section = Section { table, notes, ..Section::default() };
    let notes = vec![fate(log.fate.as_ref())];
    Ok(Report { title, notes, sections: vec![section] }.to_text() + &spread)
}

/// What became of the run.
fn fate(fate: Option<&Fate>) -> String {
    fate.map_or_else(
        || "what was lost is not said: the figures are those of what arrived".to_owned(),
        |fate| format!("the run: {}", fate.sentence()),
    )
}

/// What figures of single lines are of, where something was lost nobody knows when.
fn of_what(lost: Option<u64>) -> &'static str {
    if lost.is_some_and(|lost| lost > 0) { " of what arrived" } else { "" }
}

fn header(first: &str) -> Vec<String> {
    [first, "count", "lost", "min"]
        .into_iter()
        .chain(COLUMNS)
        .chain(["max", "mean"])
        .map(str::to_owned)
        .collect()
}

fn figures(name: &str, distribution: &Distribution, lost: Option<u64>) -> Vec<Cell> {
    let time = |ns: Option<u64>| Cell::from(ns.map_or("–".to_owned(), nanoseconds));
    let lost = match lost {
        None => Cell::from("–"),
        Some(0) => Cell::from("0"),
        Some(lost) => Cell::new(lost.to_string(), Tone::Bad),
    };
    let mut cells =
        vec![Cell::from(name), Cell::from(distribution.count.to_string()), lost, time(distribution.min_ns)];
    cells.extend(COLUMNS.map(|column| quantile_cell(distribution, column)));
    let mean = distribution.min_ns.map(|_| distribution.mean_ns.round() as u64);
    cells.extend([time(distribution.max_ns), time(mean)]);
    cells
}

/// The p99 of each line, or of groups of lines where there are many; nothing of a single line.
fn over_time(log: &Log, tag: Option<&str>) -> Option<String> {
    let lines: Vec<_> = log.tagged(tag).filter(|line| !line.counts.is_empty()).collect();
    if lines.len() < 2 {
        return None;
    }
    let group = lines.len().div_ceil(SPARKS_MAX);
    let values: Vec<u64> = lines
        .chunks(group)
        .map(|lines| lines.iter().filter_map(|line| line.counts.quantile(0.99)).max().unwrap_or(0))
        .collect();
    let (low, high) = (*values.iter().min()?, *values.iter().max()?);
    let mark = |&value: &u64| {
        let share = (value.max(1) as f64 / low.max(1) as f64).ln()
            / (high.max(2) as f64 / low.max(1) as f64).ln().max(1e-9);
        SPARKS[((share * 8.0) as usize).min(7)]
    };
    let sparks: String = values.iter().map(mark).collect();
    Some(format!("{sparks}  {} to {}", nanoseconds(low), nanoseconds(high)))
}

/// A bar for each part of a decade, and one for what was lost.
fn bars(histogram: &Histogram<u64>, lost: u64) -> String {
    // 1, 2 and 5 of each decade begin a bar.
    let begin = |value: u64| {
        let decade = 10_u64.pow(value.max(1).ilog10());
        let step = match value.max(1) / decade {
            5.. => 5,
            2..5 => 2,
            _ => 1,
        };
        decade * step
    };
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for step in histogram.iter_recorded() {
        *counts.entry(begin(step.value_iterated_to())).or_default() += step.count_at_value();
    }
    let most = counts.values().copied().max().unwrap_or(1).max(lost) as f64;
    let total = (histogram.len() + lost).max(1) as f64;
    let starts = counts.into_iter().map(|(start, count)| (format!("{}…", nanoseconds(start)), count));
    let mut text = String::new();
    for (start, count) in starts.chain((lost > 0).then(|| ("lost".to_owned(), lost))) {
        // Whatever there is has at least a mark.
        let length = (count as f64 / most * BAR).ceil() as usize;
        let share = 100.0 * count as f64 / total;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{start:>9} {:<40} {count:>10}  {share:>6.2} %", "█".repeat(length));
    }
    text
}

/// Two logs side by side.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// What became of the runs.
    runs: [Option<Fate>; 2],
    tags: Vec<TagDifference>,
}

/// One tag of two logs.
#[derive(Debug, Serialize)]
struct TagDifference {
    tag: Option<String>,
    a: Option<Distribution>,
    b: Option<Distribution>,
}

impl Difference {
    /// Of every tag that one of them has.
    ///
    /// # Errors
    /// When no histogram can hold all of a tag.
    pub fn new(a: &Log, b: &Log) -> anyhow::Result<Self> {
        let mut tags = a.tags();
        let more: Vec<_> = b.tags().into_iter().filter(|tag| !tags.contains(tag)).collect();
        tags.extend(more);
        let figures = |log: &Log, tag: Option<&str>| -> anyhow::Result<Option<Distribution>> {
            let counts = log.whole(tag).map_err(anyhow::Error::msg)?;
            let lost = log.lost(tag).unwrap_or(0);
            Ok(counts.map(|counts| Distribution::new(&counts.histogram(), lost)))
        };
        let of = |tag: Option<&str>| -> anyhow::Result<TagDifference> {
            Ok(TagDifference { tag: tag.map(str::to_owned), a: figures(a, tag)?, b: figures(b, tag)? })
        };
        let runs = [a, b].map(|log| log.fate.clone());
        Ok(Self { runs, tags: tags.into_iter().map(of).collect::<anyhow::Result<_>>()? })
    }

    /// A table with the figures of both and their ratios.
    #[must_use]
    pub fn report(&self, a: &str, b: &str) -> Report {
        let section = |difference: &TagDifference| {
            let mut table = Table { header: header(""), rows: Vec::new() };
            let sides = [(a, &difference.a), (b, &difference.b)];
            for ((name, distribution), run) in sides.into_iter().zip(&self.runs) {
                let lost = run.as_ref().and_then(|run| run.lost(difference.tag.as_deref()));
                table.rows.extend(distribution.as_ref().map(|figured| figures(name, figured, lost)));
            }
            if let (Some(a), Some(b)) = (&difference.a, &difference.b) {
                table.rows.push(ratios(a, b));
            }
            let title = difference.tag.clone().unwrap_or_else(|| "untagged".to_owned());
            Section { title, table, ..Section::default() }
        };
        Report {
            title: "towpath-lab diff".to_owned(),
            notes: [a, b]
                .into_iter()
                .zip(&self.runs)
                .map(|(name, run)| format!("{name}: {}", fate(run.as_ref())))
                .chain([
                    "One log a side says nothing about chance; `towpath-lab report` takes repeated runs."
                        .to_owned(),
                ])
                .collect(),
            sections: self.tags.iter().map(section).collect(),
        }
    }
}

/// The second divided by the first.
fn ratios(a: &Distribution, b: &Distribution) -> Vec<Cell> {
    let times = |a: Option<f64>, b: Option<f64>| {
        let ratio = a.filter(|&a| a > 0.0).zip(b).map(|(a, b)| b / a);
        Cell::from(ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}×")))
    };
    let time = |ns: Option<u64>| ns.map(|ns| ns as f64);
    let quantile = |distribution: &Distribution, name: &str| time(distribution.quantile(name)?.value_ns);
    let mut cells = vec![
        Cell::from("second ÷ first"),
        times(Some(a.count as f64), Some(b.count as f64)),
        Cell::from(""),
        times(time(a.min_ns), time(b.min_ns)),
    ];
    cells.extend(COLUMNS.map(|column| times(quantile(a, column), quantile(b, column))));
    cells.extend([times(time(a.max_ns), time(b.max_ns)), times(Some(a.mean_ns), Some(b.mean_ns))]);
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::counts::{Counts, Layout};
    use crate::format::fate::tests::lossy;
    use crate::format::log::Line;

    fn log(times: &[(f64, u64, u64)]) -> Log {
        let line = |&(start_s, value, count): &(f64, u64, u64)| {
            let mut counts = Counts::new(Layout::new(1, 1_000_000_000, 3).unwrap());
            counts.push(value, count).unwrap();
            Line { tag: None, start_s, length_s: 1.0, counts }
        };
        Log {
            start_unix_s: Some(0.0),
            lines: times.iter().map(line).collect(),
            notes: vec!["a note".to_owned()],
            fate: None,
        }
    }

    #[test]
    fn a_log_is_shown_with_figures_bars_and_time() {
        let text = show("x.hlog", &log(&[(0.0, 1_500, 300), (1.0, 60_000, 100), (2.0, 1_500, 100)])).unwrap();
        for part in ["x.hlog: 3 lines, from 1970-01-01T00:00:00Z", "│ untagged ", "500", "a note"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("p99 over time: ▁█▁  1.50 µs to 60.0 µs"), "{text}");
        let bars: Vec<&str> = text.lines().filter(|line| line.contains('█') && line.contains('%')).collect();
        assert_eq!(bars.len(), 2, "{text}");
        assert!(bars[0].starts_with(" 1.00 µs… ████") && bars[0].ends_with("400   80.00 %"), "{}", bars[0]);
        assert!(bars[1].starts_with(" 50.0 µs… ██████████ "), "{}", bars[1]);
    }

    #[test]
    fn what_was_lost_is_later_than_all_that_is_counted() {
        let whole = log(&[(0.0, 1_000, 400), (1.0, 2_000, 300)]);
        let text = show("x", &whole).unwrap();
        assert!(text.contains("what was lost is not said") && !text.contains("lost  █"), "{text}");
        let lost = Fate { lost: [("untagged".to_owned(), 300)].into(), ..lossy() };
        let run = Log { fate: Some(lost), ..whole.clone() };
        let text = show("x", &run).unwrap();
        assert!(text.contains("the run: GENERATOR-LIMITED (interrupted), 3 of 10 lost"), "{text}");
        let row: Vec<&str> = text
            .lines()
            .find(|line| line.starts_with("│ untagged"))
            .unwrap()
            .split(['│', '┆'])
            .map(str::trim)
            .collect();
        // 30 % of a thousand: p50 arrived, p90 and p99 did not.
        assert_eq!(&row[2..8], ["700", "300", "1.00 µs", "2.00 µs", "lost", "lost"], "{text}");
        let bar = text.lines().last().unwrap();
        assert!(bar.trim_start().starts_with("lost ███") && bar.ends_with("300   30.00 %"), "{bar}");
        assert!(text.contains("p99 over time of what arrived: "), "{text}");
        let difference = Difference::new(&whole, &run).unwrap();
        let text = difference.report("a", "b").to_text();
        assert!(
            text.contains("a: what was lost is not said") && text.contains("b: the run: GENERATOR"),
            "{text}"
        );
        let json = serde_json::to_value(&difference).unwrap();
        assert_eq!(
            (&json["runs"][1]["ledger"]["lost"], &json["runs"][0]),
            (&2.into(), &serde_json::Value::Null)
        );
        assert_eq!(json["tags"][0]["b"]["lost"], 300);
    }

    #[test]
    fn two_logs_are_put_side_by_side() {
        let (a, b) = (log(&[(0.0, 1_000, 400)]), log(&[(0.0, 3_000, 200)]));
        let difference = Difference::new(&a, &b).unwrap();
        let text = difference.report("a", "b").to_text();
        let line = text.lines().find(|line| line.contains("second ÷ first")).unwrap();
        assert!(line.contains("0.50×") && line.contains("3.00×"), "{text}");
        let json = serde_json::to_value(&difference).unwrap();
        assert_eq!(json["tags"][0]["b"]["count"], 200);
    }
}
