//! `towpath-lab sweep`: latency and loss over load.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;

use super::run::{self, Load};
use super::search::{self, Range};
use super::{EXIT_INTERRUPTED, EXIT_INVALID};
use crate::ab::{Plan, collect};
use crate::judge::{Group, Metric, notes};
use crate::progress;
use crate::report::plots::{self, LOAD_QUANTILES, Load as LoadPoint};
use crate::report::{Cell, Curve, Report, Section, Table};
use crate::run::{Kind, Problem, RunSpec, run as run_once};
use crate::search::Goal;
use crate::search::measure::End;
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
    let stop = super::stop_flag()?;
    let whole = match args.of {
        Some(rate) => rate.packets_per_second(base.mean_size()),
        None => {
            let goal: Goal = "pdr:0.5%".parse().map_err(anyhow::Error::msg)?;
            let outcome = search::outcome(&base, vec![goal], &args.range, &stop)?;
            let lower = outcome.found[0].lower;
            match (outcome.end, lower) {
                (Some(End::Interrupted), _) => return Err(Problem::Interrupted.into()),
                (_, Some(lower)) => lower,
                (_, None) => {
                    let why = outcome.found[0].note.clone().unwrap_or_default();
                    return Err(Problem::Setup(format!("no rate holds ({why}); give one with --of")).into());
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
    let plan = Plan { sides, blocks: args.blocks, seed: base.seed, out: args.out };
    let bar = progress::bar(rates.len() as u64 * u64::from(args.blocks));
    let collected = collect(&plan, &stop, &bar, |side, block, progress| {
        let seed = base.seed.wrapping_add(u64::from(block));
        let spec = RunSpec {
            rate_pps: rates[side],
            seed,
            label: plan.sides[side].clone(),
            stop: Some(Arc::clone(&stop)),
            ..base.clone()
        };
        run_once(&spec, progress)
    });
    bar.finish_and_clear();
    let collected = collected?.complete()?;
    let groups: Vec<&Group> = collected.groups.iter().collect();
    let points: Vec<Point> = args
        .points
        .iter()
        .zip(&rates)
        .zip(&groups)
        .map(|((&percent, &rate), group)| point(percent, rate, group))
        .collect();
    let report = report(&points, &groups, whole, &base);
    if let Some(path) = &args.html {
        std::fs::write(path, report.to_html()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        let json = serde_json::json!({ "of": whole, "points": points, "notes": notes(&groups) });
        super::print(&format!("{}\n", serde_json::to_string_pretty(&json)?))?;
    } else {
        super::print(&report.to_text())?;
    }
    Ok(ExitCode::from(match (collected.interrupted, groups.iter().all(|group| group.doubts().is_empty())) {
        (true, _) => EXIT_INTERRUPTED,
        (false, true) => 0,
        (false, false) => EXIT_INVALID,
    }))
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
        cells.push(Cell::from(tail.map_or(String::new(), |tail| stroke(tail, ends))));
        cells
    };
    let table = Table { header, rows: points.iter().zip(&tails).map(row).collect() };
    let mut lines = vec![format!(
        "Medians of the runs of each point; 100 % is {}. Response latency over what was sent, there and back; {} B, {} flows, bursts of {}.",
        units::rate(whole),
        base.size,
        base.flows,
        base.burst
    )];
    lines.extend(notes(groups).into_iter().filter(|note| !note.starts_with("not the same rate")));
    // The middle run by p99 stands for its point.
    let middle = |group: &&Group| {
        let mut runs: Vec<_> = group.runs.iter().collect();
        runs.sort_by_key(|run| run.latency.response.quantile("p99").and_then(|quantile| quantile.value_ns));
        Some(Curve::of(group.name.clone(), runs.get(runs.len() / 2)?))
    };
    let curves = groups.iter().filter_map(middle).collect();
    let load = |point: &Point| LoadPoint {
        rate_pps: point.rate,
        values_ns: LOAD_QUANTILES.map(|name| Some(value(point, Metric::Quantile(name))?.round() as u64)),
    };
    let mut loads: Vec<LoadPoint> = points.iter().map(load).collect();
    loads.sort_by(|a, b| a.rate_pps.total_cmp(&b.rate_pps));
    let plots = vec![plots::loads("Latency by load", &[(base.target.to_string(), loads)])];
    let section = Section { table, notes: lines, curves, plots, ..Section::default() };
    let title = format!("towpath-lab sweep  {} {}", base.kind.name(), base.target);
    Report { title, notes: Vec::new(), sections: vec![section] }
}

/// A stroke whose length is the logarithm of the value between the ends.
fn stroke(value: f64, (low, high): (f64, f64)) -> String {
    let share = if high > low { (value / low).ln() / (high / low).ln() } else { 0.0 };
    "█".repeat(1 + (share * WIDTH) as usize)
}
