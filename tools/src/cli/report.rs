//! `towpath-lab report`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use crate::format::input::Unit;
use crate::format::{csv, find};
use crate::report::junit::{self, Case, Outcome};
use crate::report::runs::{By, Run, Runs};
use crate::report::summary;
use crate::run::verdict::Validity;

/// Options of `towpath-lab report`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directories of `run --out`, directories full of them, or what `show` reads; runs of one label are a side, the first side
    /// is what the others are compared with
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Also write a page with tables and all plots; it needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also write JUnit XML: a test case for each run, failed when the run cannot be believed
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// What makes runs one side
    #[arg(long, value_enum, default_value = "label")]
    by: By,
    /// The unit of the values, where it is not nanoseconds (microseconds in a .hgrm)
    #[arg(long, value_enum)]
    unit: Option<Unit>,
    /// Print Markdown instead of tables for a terminal
    #[arg(long, group = "output")]
    md: bool,
    /// Print a line of comma-separated values for each run
    #[arg(long, group = "output")]
    csv: bool,
    /// Print the figures of all runs as JSON
    #[arg(long, group = "output")]
    json: bool,
}

/// Reads, writes and prints.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let runs = Runs::read(&args.runs, args.unit, args.by)?;
    let report = summary::report(&runs);
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> String| -> anyhow::Result<()> {
        let Some(path) = path else { return Ok(()) };
        std::fs::write(path, text()).with_context(|| format!("cannot write {}", path.display()))
    };
    write(&args.html, &|| report.to_html())?;
    write(&args.junit, &|| junit::document("towpath-lab", &cases(&runs)))?;
    let text = match (args.md, args.csv, args.json) {
        (true, _, _) => report.to_markdown(),
        (_, true, _) => comma_separated(&runs)?,
        (_, _, true) => format!("{}\n", serde_json::to_string_pretty(&figures(&runs))?),
        _ => report.to_text(),
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn cases(runs: &Runs) -> Vec<Case> {
    let case = |run: &Run| {
        let outcome = match &run.result {
            None => Outcome::Skipped("a log has no verdict".to_owned()),
            Some(result) if result.verdict.validity != Validity::Valid => {
                Outcome::Failed(result.verdict.line())
            }
            Some(result) if result.interrupted => Outcome::Failed("it was interrupted".to_owned()),
            Some(_) => Outcome::Passed,
        };
        let quantile = |name: &str| {
            let value = run.response.quantile(name)?.value_ns?;
            Some(format!("{name} {}", crate::units::nanoseconds(value)))
        };
        let output =
            ["p50", "p90", "p99", "p99.9"].into_iter().filter_map(quantile).collect::<Vec<_>>().join(", ");
        let time_s = run.result.as_ref().map_or(0.0, |result| result.measured_s);
        Case { name: format!("{}/{}", runs.sides[run.side], run.name), time_s, outcome, output }
    };
    let dead = |path: &PathBuf| Case {
        name: path.display().to_string(),
        time_s: 0.0,
        outcome: Outcome::Failed(find::epitaph(path)),
        output: String::new(),
    };
    runs.runs.iter().map(case).chain(runs.dead.iter().map(dead)).collect()
}

const QUANTILES: [&str; 5] = ["p50", "p90", "p99", "p99.9", "p99.99"];

fn comma_separated(runs: &Runs) -> anyhow::Result<String> {
    let mut out = Vec::new();
    let head = ["run", "side", "path", "verdict", "rate_pps", "offered_pps", "received", "lost", "min_ns"];
    let quantiles = QUANTILES.iter().map(|name| format!("{name}_ns"));
    let ends = ["max_ns", "mean_ns", "cpu_ns_per_packet", "interrupted"].map(str::to_owned);
    csv::row(&mut out, head.map(str::to_owned).into_iter().chain(quantiles).chain(ends))?;
    for run in &runs.runs {
        let result = run.result.as_ref();
        let figure = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
        let time = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        let mut row = vec![
            run.name.clone(),
            runs.sides[run.side].clone(),
            run.path.display().to_string(),
            result.map_or_else(String::new, |result| result.verdict.validity.name().to_owned()),
            figure(run.rate_pps()),
            figure(result.map(|result| result.offered_pps)),
            run.response.count.to_string(),
            run.response.lost.to_string(),
            time(run.response.min_ns),
        ];
        row.extend(
            QUANTILES.map(|name| time(run.response.quantile(name).and_then(|quantile| quantile.value_ns))),
        );
        row.push(time(run.response.max_ns));
        row.push(figure((run.response.count > 0).then_some(run.response.mean_ns)));
        row.push(figure(result.and_then(|result| result.dut_cpu_ns_per_packet)));
        row.push(result.map_or_else(String::new, |result| result.interrupted.to_string()));
        csv::row(&mut out, row)?;
    }
    Ok(String::from_utf8(out)?)
}

fn figures(runs: &Runs) -> serde_json::Value {
    let run = |run: &Run| {
        let result = run.result.as_ref();
        json!({
            "name": run.name,
            "side": runs.sides[run.side],
            "path": run.path,
            "verdict": result.map(|result| &result.verdict),
            "interrupted": result.map(|result| result.interrupted),
            "rate_pps": run.rate_pps(),
            "offered_pps": result.map(|result| result.offered_pps),
            "response": run.response,
            "ledger": result.map(|result| &result.ledger),
            "cpu_ns_per_packet": result.and_then(|result| result.dut_cpu_ns_per_packet),
        })
    };
    json!({ "sides": runs.sides, "notes": runs.notes, "runs": runs.runs.iter().map(run).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_interrupted_is_called_so_in_every_form() {
        let dir = tempfile::tempdir().unwrap();
        let run = crate::run::RunResult { interrupted: true, ..crate::ab::tests::run_of_a_moment() };
        crate::format::bundle::write(&run, dir.path()).unwrap();
        let runs = Runs::read(&[dir.path().to_owned()], None, By::Label).unwrap();
        let text = comma_separated(&runs).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with(",interrupted") && lines[1].ends_with(",true"), "{text}");
        assert_eq!(figures(&runs)["runs"][0]["interrupted"], true);
    }
}
