//! The report over repeated runs: a table of all runs, the sides beside each other, and every plot.

use super::plots::{self, Dot, LOAD_QUANTILES, Level, Load};
use super::runs::{Run, Runs};
use super::shift::Shift;
use super::{Cell, Curve, Plot, Report, Section, Table, Tone};
use crate::compare::{loss_cell, quantile_cell};
use crate::run::Grade;
use crate::run::ledger::loss_statement;
use crate::run::verdict::Validity;
use crate::units;

/// Quantiles of the tables.
const COLUMNS: [&str; 4] = ["p50", "p90", "p99", "p99.9"];
/// Quantiles of the table of sides, with their names.
const SHIFTS: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];
/// Heat maps of one load at most: the first runs of each side.
const HEAT_MAPS_MAX: usize = 8;
/// Fixes what is drawn at random.
const SEED: u64 = 1;

/// Everything about the runs.
#[must_use]
pub fn report(runs: &Runs) -> Report {
    let mut notes = vec![
        "Response latency: from the intended send time, over all sent datagrams, so that a lost one is later than any other. \
         Figures in parentheses or grey have 10 to 99 samples beyond them, – has fewer."
            .to_owned(),
    ];
    notes.extend(runs.notes.iter().cloned());
    let mut sections = vec![all(runs)];
    sections.extend(by_load(runs));
    sections.extend(rates(runs).iter().map(|&rate| at_rate(runs, rate)));
    Report { title: "towpath-lab report".to_owned(), notes, sections }
}

/// The loads there are, rising; `None` for logs that do not say theirs.
fn rates(runs: &Runs) -> Vec<Option<f64>> {
    let mut rates: Vec<Option<f64>> = runs.runs.iter().map(Run::rate_pps).collect();
    rates.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    rates.dedup();
    rates
}

/// The table of all runs.
fn all(runs: &Runs) -> Section {
    let ends = ["max", "loss", "CPU/packet", "verdict"];
    let header =
        ["run", "side", "offered"].into_iter().chain(COLUMNS).chain(ends).map(str::to_owned).collect();
    let rows = runs.runs.iter().map(|run| row(run, &runs.sides[run.side])).collect();
    let mut notes = Vec::new();
    for run in &runs.runs {
        let Some(result) = &run.result else { continue };
        notes.push(format!("{}: {}", run.name, loss_statement(&result.ledger)));
        if result.verdict.validity != Validity::Valid {
            notes.push(format!("{} is {}", run.name, result.verdict.line()));
        }
        if result.interrupted {
            notes.push(format!("{} was interrupted after {:.1} s", run.name, result.measured_s));
        }
    }
    Section { title: "Runs".to_owned(), notes, table: Table { header, rows }, ..Section::default() }
}

fn row(run: &Run, side: &str) -> Vec<Cell> {
    let nothing = || Cell::from("–");
    let mut cells = vec![Cell::from(run.name.clone()), Cell::from(side)];
    cells
        .push(run.result.as_ref().map_or_else(nothing, |result| Cell::from(units::rate(result.offered_pps))));
    cells.extend(COLUMNS.map(|column| quantile_cell(&run.response, column)));
    cells.push(run.response.max_ns.map_or_else(nothing, |ns| Cell::from(units::nanoseconds(ns))));
    let Some(result) = &run.result else {
        cells.extend([nothing(), nothing(), nothing()]);
        return cells;
    };
    cells.push(loss_cell(result));
    let cpu = result.dut_cpu_ns_per_packet;
    cells.push(cpu.map_or_else(nothing, |ns| Cell::from(units::nanoseconds(ns as u64))));
    let tone = if result.verdict.validity == Validity::Valid { Tone::Good } else { Tone::Bad };
    cells.push(Cell::new(result.verdict.validity.name(), tone));
    cells
}

/// The load-latency curve, when a side has runs at more than one rate.
fn by_load(runs: &Runs) -> Option<Section> {
    let sides: Vec<(String, Vec<Load>)> = (0..runs.sides.len())
        .map(|side| (runs.sides[side].clone(), loads(runs, side)))
        .filter(|(_, loads)| loads.len() > 1)
        .collect();
    if sides.is_empty() {
        return None;
    }
    let header = ["side", "load"].into_iter().chain(LOAD_QUANTILES).map(str::to_owned).collect();
    let mut table = Table { header, rows: Vec::new() };
    let mut notes = vec!["Each figure is the median of the runs at that load.".to_owned()];
    for (name, loads) in &sides {
        table.rows.extend(loads.iter().map(|load| {
            let values = load.levels.map(|level| match level {
                Level::Lost => Cell::new(level.text(), Tone::Bad),
                Level::Ns(_) | Level::Unknown => Cell::from(level.text()),
            });
            [Cell::from(name.clone()), Cell::from(units::rate(load.rate_pps))]
                .into_iter()
                .chain(values)
                .collect()
        }));
        notes.push(match plots::knee(loads) {
            Some((rate, Level::Lost)) => {
                format!("{name}: the knee is at {}, the first load whose p99 is lost", units::rate(rate))
            }
            Some((rate, _)) => {
                format!(
                    "{name}: the knee is at {}, the first load with a p99 above twice that of the lowest",
                    units::rate(rate)
                )
            }
            None => format!("{name}: no knee up to the highest load"),
        });
    }
    let plots = vec![plots::loads("Latency by load", &sides)];
    Some(Section { title: "Latency by load".to_owned(), notes, table, plots, ..Section::default() })
}

fn loads(runs: &Runs, side: usize) -> Vec<Load> {
    let at = |rate_pps: f64| {
        let there: Vec<&Run> =
            runs.runs.iter().filter(|run| run.side == side && run.rate_pps() == Some(rate_pps)).collect();
        (!there.is_empty())
            .then(|| Load { rate_pps, levels: LOAD_QUANTILES.map(|name| median(&there, name)) })
    };
    rates(runs).into_iter().flatten().filter_map(at).collect()
}

/// The median of a quantile over runs, of two in the middle the later; unknown where half of them have too few samples for it.
fn median(runs: &[&Run], name: &str) -> Level {
    let value = |run: &&Run| {
        let quantile = run.response.quantile(name).filter(|quantile| quantile.grade != Grade::Omitted)?;
        Some(quantile.value_ns.unwrap_or(u64::MAX))
    };
    let mut values: Vec<u64> = runs.iter().filter_map(value).collect();
    values.sort_unstable();
    if 2 * values.len() <= runs.len() {
        return Level::Unknown;
    }
    match values[values.len() / 2] {
        u64::MAX => Level::Lost,
        ns => Level::Ns(ns),
    }
}

/// All plots of the runs at one load.
fn at_rate(runs: &Runs, rate: Option<f64>) -> Section {
    let here: Vec<&Run> = runs.runs.iter().filter(|run| run.rate_pps() == rate).collect();
    let curves = here.iter().map(|run| Curve {
        name: run.name.clone(),
        side: Some((run.side, runs.sides[run.side].clone())),
        points: run.curve.clone(),
        lost_fraction: run.response.lost as f64 / ((run.response.count + run.response.lost).max(1)) as f64,
    });
    let shifts = shifts(runs, rate);
    let mut notes = Vec::new();
    let mut all = Vec::new();
    if !shifts.is_empty() {
        if shifts.iter().any(|(_, shift)| shift.of_intervals) {
            notes.push(
                "The band of the shift is dashed where a side has fewer than four runs: it shows how steady the intervals within \
                 the runs were, and says nothing about how runs differ. Descriptive only."
                    .to_owned(),
            );
        }
        notes.extend(lost_notes(&shifts));
        all.push(plots::shift(&format!("Shift by quantile, against {}", runs.sides[0]), &shifts));
    }
    all.push(dots_of(runs, &here));
    notes.extend(not_compared(runs, &here).filter(|_| shifts.is_empty()));
    let (maps, left_out) = heat_maps(runs, &here);
    all.extend(maps);
    if left_out > 0 {
        notes.push(format!("{left_out} more runs have no heat map here, for the size of the page."));
    }
    let title = rate.map_or("Logs without a load".to_owned(), |rate| format!("At {}", units::rate(rate)));
    Section { title, notes, table: sides_table(&shifts), curves: curves.collect(), plots: all }
}

/// Why there is no table of sides at a load; nothing where there is one side in all.
fn not_compared(runs: &Runs, here: &[&Run]) -> Option<String> {
    let first = runs.sides.first().filter(|_| runs.sides.len() > 1)?;
    let mut sides: Vec<usize> = here.iter().map(|run| run.side).collect();
    sides.sort_unstable();
    sides.dedup();
    Some(match sides.as_slice() {
        [only] => format!(
            "Only {} has runs at this load: there is nothing to compare them with.",
            runs.sides[*only]
        ),
        [0, ..] => "Too little arrived for a comparison.".to_owned(),
        _ => format!("{first}, with which the other sides are compared, has no runs at this load."),
    })
}

/// Every other side against the first, where both have runs at that load.
fn shifts(runs: &Runs, rate: Option<f64>) -> Vec<(String, Shift)> {
    let side = |side| runs.side(side, |run| run.rate_pps() == rate);
    let first = side(0);
    if first.curves.is_empty() {
        return Vec::new();
    }
    let other = |index: usize| {
        let other = side(index);
        if other.curves.is_empty() {
            return None;
        }
        let shift = Shift::new(&first, &other, SEED);
        let something = !shift.points.is_empty() || shift.lost_from.iter().any(Option::is_some);
        something.then(|| (format!("{} ÷ {}", runs.sides[index], runs.sides[0]), shift))
    };
    (1..runs.sides.len()).filter_map(other).collect()
}

/// Ratios with their bands; nothing without two sides.
fn sides_table(shifts: &[(String, Shift)]) -> Table {
    if shifts.is_empty() {
        return Table::default();
    }
    let header = ["sides"].into_iter().chain(SHIFTS.map(|(name, _)| name)).map(str::to_owned).collect();
    let cell = |shift: &Shift, quantile: f64| {
        if let Some(cell) = lost_cell(shift, quantile) {
            return cell;
        }
        let point = shift
            .points
            .iter()
            .min_by(|a, b| (a.quantile - quantile).abs().total_cmp(&(b.quantile - quantile).abs()));
        // A curve that ends before it has no value there.
        let Some(point) = point.filter(|point| (point.quantile - quantile).abs() < (1.0 - quantile) / 5.0)
        else {
            return Cell::from("–");
        };
        let mark = match (point.low > 1.0, point.high < 1.0) {
            (true, _) => "▲",
            (_, true) => "▼",
            _ => "~",
        };
        let tone = if shift.of_intervals { Tone::Weak } else { Tone::Plain };
        Cell::new(format!("{:.2}× [{:.2}, {:.2}] {mark}", point.ratio, point.low, point.high), tone)
    };
    let row = |(name, shift): &(String, Shift)| {
        let cells = SHIFTS.map(|(_, quantile)| cell(shift, quantile));
        [Cell::from(name.clone())].into_iter().chain(cells).collect()
    };
    Table { header, rows: shifts.iter().map(row).collect() }
}

/// What stands where a side has no latency at a quantile.
fn lost_cell(shift: &Shift, quantile: f64) -> Option<Cell> {
    let [first, second] = shift.lost_from.map(|from| from.is_some_and(|from| quantile > from));
    match (first, second) {
        (false, false) => None,
        (false, true) => Some(Cell::new("lost ▲", Tone::Bad)),
        (true, false) => Some(Cell::new("lost in the first ▼", Tone::Bad)),
        (true, true) => Some(Cell::new("lost in both", Tone::Bad)),
    }
}

/// From where on there is no ratio because datagrams were lost: a sentence on each side of each pair.
fn lost_notes(shifts: &[(String, Shift)]) -> Vec<String> {
    let note = |(name, shift): &(String, Shift)| {
        let of = |which: &str, from: Option<f64>| {
            let from = 100.0 * from?;
            Some(format!(
                "{name}: beyond p{from:.4} there is no ratio, because datagrams of the {which} side were lost: these are later than all others"
            ))
        };
        [of("first", shift.lost_from[0]), of("second", shift.lost_from[1])]
    };
    shifts.iter().flat_map(note).flatten().collect()
}

fn dots_of(runs: &Runs, here: &[&Run]) -> Plot {
    let dot = |run: &&Run| {
        let value_ns = run.response.quantile("p99").and_then(|quantile| quantile.value_ns);
        Dot { name: run.name.clone(), side: run.side, value_ns }
    };
    let dots: Vec<Dot> = here.iter().map(dot).collect();
    plots::dots("p99 of each run", &runs.sides, &dots)
}

/// Maps of the first runs of each side on one scale, and how many runs have none.
fn heat_maps(runs: &Runs, here: &[&Run]) -> (Vec<Plot>, usize) {
    let with_time: Vec<&&Run> =
        here.iter().filter(|run| run.lines.iter().any(|line| line.length_s > 0.0)).collect();
    let each = (HEAT_MAPS_MAX / runs.sides.len().max(1)).max(1);
    let mut shown: Vec<&Run> = Vec::new();
    for side in 0..runs.sides.len() {
        shown.extend(with_time.iter().filter(|run| run.side == side).take(each).map(|run| **run));
    }
    let values: Vec<u64> =
        shown.iter().flat_map(|run| &run.lines).flat_map(|line| ends(&line.counts)).flatten().collect();
    let map = |run: &&Run| {
        let lines: Vec<_> = run.lines.iter().collect();
        plots::heat_map(&format!("{} over time, response", run.name), &lines, &values)
    };
    (shown.iter().map(map).collect(), with_time.len() - shown.len())
}

fn ends(counts: &crate::format::counts::Counts) -> [Option<u64>; 2] {
    [counts.iter().next(), counts.iter().last()].map(|end| end.map(|(value, _)| value))
}
