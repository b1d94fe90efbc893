//! `towpath-lab sweep`: latency and loss over load.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::page::Page;
use super::run::{self, Load};
use super::search::{self, Range};
use super::{EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_INVALID};
use crate::ab::{Plan, collect};
use crate::judge::{Group, Metric, notes};
use crate::progress;
use crate::report::plots::{self, LOAD_QUANTILES, Level, Load as LoadPoint};
use crate::report::{Cell, Curve, Report, Section, Table, Tone};
use crate::run::{Kind, Problem, RunResult, RunSpec, run as run_once};
use crate::search::measure::End;
use crate::search::{Found, Goal};
use crate::statistics::sample::median;
use crate::units::{self, Rate};

/// Rate of the probe that stands for no load.
const IDLE: f64 = 1_000.0;
/// What is shown of each point.
const METRICS: [Metric; 7] = [
    Metric::Rate,
    Metric::Loss,
    Metric::Quantile("p50"),
    Metric::Quantile("p90"),
    Metric::Quantile("p99"),
    Metric::Quantile("p99.9"),
    Metric::Cpu,
];
/// Width of the drawn curve in characters.
const WIDTH: f64 = 24.0;

/// Options of `towpath-lab sweep`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The way the load takes
    #[arg(value_enum)]
    kind: Kind,
    /// ADDRESS:PORT of the reflector, or of the relay for the TURN kinds
    target: String,
    /// The rate that is 100 % [default: searched for, with the goal pdr:0.5%]
    #[arg(long, value_name = "RATE")]
    of: Option<Rate>,
    /// Percentages of it, separated by commas; 0 is a probe of 1 kpps
    #[arg(long, value_delimiter = ',', value_name = "PERCENT", default_values_t = [0.0, 10.0, 50.0, 90.0, 100.0, 110.0])]
    points: Vec<f64>,
    /// Runs of each point, in random order
    #[arg(long, default_value_t = 5, value_name = "N")]
    blocks: u32,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    load: Load,
    /// Directory for the runs
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also write a page with the percentile curves and latency by load; it needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the points as JSON
    #[arg(long)]
    json: bool,
}

/// One point of the curve.
#[derive(Debug, Serialize)]
struct Point {
    /// Of the rate that is 100 %.
    percent: f64,
    /// Datagrams a second that were offered.
    rate: f64,
    /// Each metric that has values: its name, and the median, least and most of the runs.
    metrics: Vec<(Metric, [f64; 3])>,
}

/// Runs all points and prints.
pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    if args.points.is_empty()
        || args.points.iter().any(|point| !(0.0..=1_000.0).contains(point))
        || args.blocks == 0
    {
        return Err(Problem::Usage(
            "--points are percentages from 0 to 1000, and --blocks at least 1".to_owned(),
        )
        .into());
    }
    let base = run::spec(args.kind, run::resolve(&args.target)?, args.load)?;
    base.check()?;
    base.check_rate_is_free()?;
    let page = args.html.as_deref().map(Page::claim).transpose()?;
    let stop = super::stop_flag()?;
    let (whole, of) = match args.of {
        Some(rate) => (rate.packets_per_second(base.mean_size()), None),
        None => {
            let goal: Goal = "pdr:0.5%".parse().map_err(anyhow::Error::msg)?;
            let mut outcome = search::outcome(&base, vec![goal], &args.range, &stop)?;
            match whole(&outcome) {
                Whole::Rate(rate, of) => (rate, of),
                without => {
                    // What it found is all there is.
                    search::print(&outcome, &base, args.json)?;
                    return without_a_whole(without, outcome.failure.take());
                }
            }
        }
    };
    let rates: Vec<f64> = args
        .points
        .iter()
        .map(|&percent| if percent == 0.0 { IDLE.min(whole) } else { whole * percent / 100.0 })
        .collect();
    for &rate_pps in &rates {
        RunSpec { rate_pps, ..base.clone() }.check()?;
    }
    let sides = args.points.iter().map(|percent| format!("{percent}%")).collect();
    let plan = Plan { sides, blocks: args.blocks, seed: base.seed, whole_blocks: false, out: args.out };
    let bar = progress::bar(plan.runs());
    let collected = collect(&plan, &stop, &bar, |turn| {
        let spec = turn.spec(&base, &plan.sides[turn.side], &stop);
        run_once(&RunSpec { rate_pps: rates[turn.side], ..spec }, turn.progress)
    });
    bar.finish_and_clear();
    let mut collected = collected?;
    if let Some(failure) = collected.take_fruitless() {
        return Err(failure);
    }
    let shortfall = collected.shortfall(plan.runs());
    let groups: Vec<&Group> = collected.groups.iter().collect();
    let points: Vec<Point> = args
        .points
        .iter()
        .zip(&rates)
        .zip(&groups)
        .map(|((&percent, &rate), group)| point(percent, rate, group))
        .collect();
    let mut report = report(&points, &groups, whole, &base);
    report.notes.extend(shortfall.clone());
    report.sections[0].notes.extend(of.clone());
    // What was measured is printed even where it cannot be written.
    let written = page.map_or(Ok(()), |page| page.write(&report.to_html()));
    if args.json {
        let notes: Vec<String> = said(&groups).into_iter().chain(of).collect();
        let json =
            serde_json::json!({ "of": whole, "points": points, "notes": notes, "shortfall": shortfall });
        super::print(&format!("{}\n", serde_json::to_string_pretty(&json)?))?;
    } else {
        super::print(&report.to_text())?;
    }
    written?;
    let is_believed = groups.iter().all(|group| group.doubts().is_empty());
    if let Some(failure) = collected.failure.take() {
        return Err(failure);
    }
    Ok(ExitCode::from(match (collected.interrupted, is_believed) {
        (true, _) => EXIT_INTERRUPTED,
        (false, true) => 0,
        (false, false) => EXIT_INVALID,
    }))
}

/// What a search makes of 100 %.
#[derive(Debug, PartialEq)]
enum Whole {
    /// A rate, with what a reader has to know of it.
    Rate(f64, Option<String>),
    /// No rate holds; why.
    Nothing(String),
    /// It did not come to an end; what it knows.
    Undecided(String),
    /// It was interrupted.
    Interrupted,
    /// A trial could not be made.
    Failed,
}

/// How a sweep ends whose search has found no rate.
fn without_a_whole(whole: Whole, failure: Option<anyhow::Error>) -> anyhow::Result<ExitCode> {
    match (whole, failure) {
        (_, Some(failure)) => Err(failure.context("while searching for 100 %; give the rate with --of")),
        (Whole::Nothing(why), None) => Err(Problem::Setup(why).into()),
        (Whole::Undecided(why), None) => {
            super::tell(&why);
            Ok(ExitCode::from(EXIT_INCONCLUSIVE))
        }
        _ => Err(Problem::Interrupted.into()),
    }
}

fn whole(outcome: &search::Outcome) -> Whole {
    match (&outcome.failure, outcome.end, outcome.found.first()) {
        (Some(_), ..) => Whole::Failed,
        (None, Some(End::Interrupted), _) | (None, _, None) => Whole::Interrupted,
        (None, _, Some(found)) => whole_of(found),
    }
}

fn whole_of(found: &Found) -> Whole {
    let give = "give the rate with --of";
    if !found.complete {
        let bound = |rate: Option<f64>| rate.map_or("unknown".to_owned(), units::rate);
        let (lower, upper) = (bound(found.lower), bound(found.upper));
        return Whole::Undecided(format!(
            "100 % is undecided: a rate that holds is {lower}, one that does not is {upper}, and the time was up; raise --budget, or {give}"
        ));
    }
    let note = || found.note.clone().unwrap_or_default();
    match (found.lower, found.upper) {
        (None, _) => Whole::Nothing(format!("no rate holds ({}); {give}", note())),
        (Some(rate), Some(_)) => Whole::Rate(rate, None),
        (Some(rate), None) => Whole::Rate(
            rate,
            Some(format!("100 % is no limit of the device ({}); {give}, or raise --max", note())),
        ),
    }
}

fn point(percent: f64, rate: f64, group: &Group) -> Point {
    let metric = |metric: Metric| {
        let values = group.side(metric).values;
        let least = values.iter().copied().reduce(f64::min)?;
        let most = values.iter().copied().reduce(f64::max)?;
        Some((metric, [median(&values)?, least, most]))
    };
    Point { percent, rate, metrics: METRICS.into_iter().filter_map(metric).collect() }
}

/// What a reader has to know; that the rates differ is no surprise.
fn said(groups: &[&Group]) -> Vec<String> {
    let missed = groups.iter().flat_map(|group| group.missed(&METRICS));
    missed.chain(notes(groups).into_iter().filter(|note| !note.starts_with("not the same rate"))).collect()
}

fn report(points: &[Point], groups: &[&Group], whole: f64, base: &RunSpec) -> Report {
    let header: Vec<String> = ["load", "offered"]
        .into_iter()
        .chain(METRICS.map(|metric| if metric == Metric::Rate { "arrives" } else { metric.name() }))
        .chain(["p99, logarithmic"])
        .map(str::to_owned)
        .collect();
    let value = |point: &Point, metric: Metric| {
        point.metrics.iter().find(|entry| entry.0 == metric).map(|entry| entry.1[0])
    };
    let tails: Vec<Option<f64>> = points.iter().map(|point| value(point, Metric::Quantile("p99"))).collect();
    let ends = tails
        .iter()
        .flatten()
        .fold((f64::INFINITY, 0.0_f64), |(low, high), &tail| (low.min(tail), high.max(tail)));
    let row = |(point, tail): (&Point, &Option<f64>)| {
        let mut cells = vec![Cell::from(format!("{} %", point.percent)), Cell::from(units::rate(point.rate))];
        let cell = |metric: Metric| value(point, metric).map_or("–".to_owned(), |value| metric.text(value));
        cells.extend(METRICS.map(|metric| Cell::from(cell(metric))));
        cells.push(Cell::new(tail.map_or(String::new(), |tail| stroke(tail, ends)), Tone::Stroke));
        cells
    };
    let table = Table { header, rows: points.iter().zip(&tails).map(row).collect() };
    let mut lines = vec![format!(
        "Medians of the runs of each point; 100 % is {}. Response latency over what was sent, there and back; {} B, {}, bursts of {}.",
        units::rate(whole),
        base.size,
        units::count(base.flows, "flow"),
        base.burst
    )];
    lines.extend(said(groups));
    // The middle run by p99 stands for its point.
    let middle = |group: &&Group| {
        let mut runs: Vec<_> = group.runs.iter().collect();
        // What was lost is later than any other.
        let p99 =
            |run: &RunResult| run.latency.response.quantile("p99").and_then(|quantile| quantile.value_ns);
        runs.sort_by_key(|run| p99(run).unwrap_or(u64::MAX));
        Some(Curve::of(group.name.clone(), runs.get(runs.len() / 2)?))
    };
    let curves = groups.iter().filter_map(middle).collect();
    let load = |point: &Point| LoadPoint {
        rate_pps: point.rate,
        levels: LOAD_QUANTILES.map(|name| level(value(point, Metric::Quantile(name)))),
    };
    let mut loads: Vec<LoadPoint> = points.iter().map(load).collect();
    loads.sort_by(|a, b| a.rate_pps.total_cmp(&b.rate_pps));
    let plots = vec![plots::loads("Latency by load", &[(base.target.to_string(), loads)])];
    let section = Section { table, notes: lines, curves, plots, ..Section::default() };
    let title = format!("towpath-lab sweep  {} {}", base.kind.name(), base.target);
    Report { title, notes: Vec::new(), sections: vec![section] }
}

/// A median of runs, in which what was lost took as long as can be.
fn level(value: Option<f64>) -> Level {
    match value {
        None => Level::Unknown,
        Some(ns) if Metric::is_lost(ns) => Level::Lost,
        Some(ns) => Level::Ns(ns.round() as u64),
    }
}

/// A stroke whose length is the logarithm of the value between the ends.
fn stroke(value: f64, (low, high): (f64, f64)) -> String {
    let share = if high > low { (value / low).ln() / (high / low).ln() } else { 0.0 };
    "█".repeat(1 + (share * WIDTH) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(complete: bool, lower: Option<f64>, upper: Option<f64>) -> Found {
        let goal = "pdr:0.5%".parse().unwrap();
        let note = Some("as it is".to_owned());
        Found { goal, lower, upper, throughput: lower, complete, sent: 0, lost: 0, exceeded: 0.0, note }
    }

    #[test]
    fn a_bound_that_is_undecided_is_not_a_hundred_percent() {
        assert_eq!(whole_of(&found(true, Some(5e3), Some(6e3))), Whole::Rate(5e3, None));
        let Whole::Undecided(why) = whole_of(&found(false, Some(5e3), Some(6e3))) else { panic!("decided") };
        assert!(why.contains("5.00 kpps") && why.contains("6.00 kpps") && why.contains("--budget"), "{why}");
        let Whole::Nothing(why) = whole_of(&found(true, None, Some(1e3))) else { panic!("a rate") };
        assert!(why.contains("as it is") && why.contains("--of"), "{why}");
        let Whole::Rate(rate, Some(note)) = whole_of(&found(true, Some(5e3), None)) else {
            panic!("no note")
        };
        assert!(rate == 5e3 && note.contains("no limit of the device (as it is)"), "{note}");
    }

    #[test]
    fn a_median_that_was_lost_is_no_time() {
        let lost = crate::run::distribution::HIGHEST_NS as f64;
        assert_eq!(
            (level(None), level(Some(lost)), level(Some(5e3))),
            (Level::Unknown, Level::Lost, Level::Ns(5_000))
        );
        assert_eq!(
            level(Some(f64::midpoint(5e3, lost))),
            Level::Lost,
            "of one that was lost and one that was not"
        );
    }
}
