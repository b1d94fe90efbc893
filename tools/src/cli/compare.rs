//! `towpath-lab compare`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::EXIT_INVALID;
use super::judging::{self, Allowed};
use crate::compare::Comparison;
use crate::judge::{COLUMNS, Group, Metric, circumstances, difference_table, differences, notes};
use crate::report::{Curve, Report, Section};
use crate::run::CurvePoint;
use crate::statistics::quantile_shift;

/// Options of `towpath-lab compare`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directories written by `run --out`, or their run.json; ratios are to the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Runs of a second side, to be compared with the others as two samples; `--` stands for it
    #[arg(long = "with", num_args = 1.., value_name = "B")]
    others: Vec<PathBuf>,
    /// Also write a page with table and percentile plot; it needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    allowed: Allowed,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Compares and prints.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.others.is_empty() {
        return sides(args);
    }
    let Allowed { allow_different, allow_invalid } = args.allowed;
    let comparison = Comparison::read(&args.runs, allow_different, allow_invalid)?;
    let obstacle = args.allowed.obstacle(&comparison.doubts(), &comparison.different());
    let mut report = comparison.report();
    report.sections[0].notes.extend(obstacle.as_ref().map(|why| format!("not to be compared: {why}")));
    write_page(args, &report)?;
    if args.json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&comparison.rows())?))?;
    } else {
        super::print(&report.to_text())?;
    }
    Ok(exit(args.json, obstacle))
}

fn write_page(args: &Args, report: &Report) -> anyhow::Result<()> {
    let Some(path) = &args.html else { return Ok(()) };
    std::fs::write(path, report.to_html()).with_context(|| format!("cannot write {}", path.display()))
}

/// Success, unless something keeps the runs from being compared; JSON without a place for it has it on standard error.
fn exit(json: bool, obstacle: Option<String>) -> ExitCode {
    let Some(obstacle) = obstacle else { return ExitCode::SUCCESS };
    if json {
        super::tell(&format!("not to be compared: {obstacle}"));
    }
    ExitCode::from(EXIT_INVALID)
}

/// What is compared of two sides where they have it.
const METRICS: [Metric; 6] = [
    Metric::Quantile("p50"),
    Metric::Quantile("p90"),
    Metric::Quantile("p99"),
    Metric::Loss,
    Metric::Rate,
    Metric::Cpu,
];

/// The percentile curve of each run.
fn curves_of(group: &Group) -> Vec<&[CurvePoint]> {
    group.runs.iter().map(|run| run.curve.as_slice()).collect()
}

/// The quantile beyond which datagrams of the run that lost most were lost; `None` where nothing was.
fn lost_from(group: &Group) -> Option<f64> {
    let share = group.runs.iter().map(|run| run.ledger.loss_fraction()).fold(0.0, f64::max);
    (share > 0.0).then_some(1.0 - share)
}

/// Compares two sides of several runs each.
fn sides(args: &Args) -> anyhow::Result<ExitCode> {
    let (a, b) = (Group::read("A", &args.runs)?, Group::read("B", &args.others)?);
    a.check_apart(&b)?;
    // Where one run has a value, that another has none has to be said.
    let metrics: Vec<Metric> =
        METRICS.into_iter().filter(|metric| a.has(*metric) || b.has(*metric)).collect();
    let doubts = [a.doubts(), b.doubts()].concat();
    let different = circumstances::different(a.runs.iter().chain(&b.runs).map(|run| &run.spec));
    let obstacle = args.allowed.obstacle(&doubts, &different);
    let found = if obstacle.is_none() { differences(&a, &[&b], &metrics, 1) } else { Vec::new() };
    let curves = |group: &Group| -> Vec<Curve> {
        let curve = |(index, run)| Curve::of(format!("{} {}", group.name, index + 1), run);
        group.runs.iter().enumerate().map(curve).collect()
    };
    let mut lines = vec![format!(
        "Each run is one sample: {} of A, {} of B. p: exact permutation test, two-sided, corrected by Holm over the table; from and \
         to: 95 % of each comparison alone. {COLUMNS}",
        a.runs.len(),
        b.runs.len()
    )];
    lines.extend(found.iter().filter_map(judging::open));
    lines.extend(judging::drifts(found.iter().map(|difference| &difference.drift)));
    lines.extend(notes(&[&a, &b]));
    lines.extend(obstacle.as_ref().map(|why| format!("not to be compared: {why}")));
    let section = Section {
        table: difference_table("A", &found),
        notes: lines.clone(),
        curves: curves(&a).into_iter().chain(curves(&b)).collect(),
        ..Section::default()
    };
    let report =
        Report { title: "towpath-lab compare".to_owned(), notes: Vec::new(), sections: vec![section] };
    write_page(args, &report)?;
    if args.json {
        let ratios = || quantile_shift::ratios(&curves_of(&a), &curves_of(&b), 0.025);
        let shift = if obstacle.is_none() { ratios() } else { Vec::new() };
        // Beyond it there is no ratio.
        let lost_from = [&a, &b].map(lost_from);
        let json = serde_json::json!({
            "differences": found, "quantile_ratios": shift, "lost_from": lost_from, "notes": lines,
        });
        super::print(&format!("{}\n", serde_json::to_string_pretty(&json)?))?;
    } else {
        super::print(&report.to_text())?;
    }
    Ok(exit(args.json, obstacle))
}
