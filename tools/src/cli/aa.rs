//! `towpath-lab aa`: a target beside itself, for the noise of this host.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::ab::{metrics, target};
use super::page::Page;
use super::run::{self, Load};
use super::{EXIT_INTERRUPTED, EXIT_INVALID};
use crate::ab::{Noise, Plan, collect, measure, noise};
use crate::judge::{Group, Metric, notes};
use crate::progress;
use crate::report::{Cell, Report, Section, Table};
use crate::run::environment::Environment;
use crate::run::{Kind, Problem};

/// Name of the file with what was found.
const AA_JSON: &str = "aa.json";
/// Most runs a side: beyond it, going through all splits of all comparisons takes minutes.
const PER_SIDE_MAX: usize = 7;

/// Options of `towpath-lab aa`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The way the load takes
    #[arg(value_enum)]
    kind: Kind,
    /// ADDRESS:PORT, or ADDRESS:PORT=COMMAND, as for `ab`
    target: String,
    /// Runs to make
    #[arg(long, default_value_t = 20, value_name = "N")]
    runs: u32,
    /// Runs a side of the comparisons that are made of them
    #[arg(long, default_value_t = 5, value_name = "N")]
    per_side: usize,
    #[command(flatten)]
    load: Load,
    /// What is looked at, separated by commas [default: p50,p99, and cpu/pkt where a process is observed]
    #[arg(long, value_delimiter = ',', value_name = "METRIC")]
    metrics: Vec<Metric>,
    /// Directory for the runs and for aa.json, which `gate --noise` reads
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Found {
    /// When (RFC 3339, UTC).
    pub(super) started: String,
    /// On what host.
    pub(super) environment: Environment,
    /// How many runs it rests on.
    pub(super) runs: usize,
    /// What is missing of those that were asked for, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shortfall: Option<String>,
    /// One for each metric that has values.
    pub(super) metrics: Vec<Noise>,
    /// What a reader has to know.
    pub(super) notes: Vec<String>,
}

/// Makes the runs and analyses them.
pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    if !(2..=PER_SIDE_MAX).contains(&args.per_side) {
        return Err(Problem::Usage(format!("--per-side {}: use 2 to {PER_SIDE_MAX}", args.per_side)).into());
    }
    if (args.runs as usize) < 2 * args.per_side {
        return Err(Problem::Usage(format!(
            "--runs {}: use {} or more, twice --per-side",
            args.runs,
            2 * args.per_side
        ))
        .into());
    }
    let target = target(&args.target)?;
    let base = run::spec(args.kind, target.address, args.load)?;
    base.check()?;
    let mut metrics = metrics(&args.metrics, target.command.is_some() || !base.dut_pids.is_empty());
    // Its logarithm is none where nothing is lost; what is lost is in the notes.
    metrics.retain(|metric| metric.by_ratio());
    let page = args.out.as_ref().map(|out| Page::claim(&out.join(AA_JSON))).transpose()?;
    let stop = super::stop_flag()?;
    let plan = Plan {
        sides: vec!["A".to_owned()],
        blocks: args.runs,
        seed: base.seed,
        whole_blocks: true,
        out: args.out.clone(),
    };
    let bar = progress::bar(u64::from(args.runs));
    let collected = collect(&plan, &stop, &bar, |turn| {
        measure(&target, &turn.spec(&base, "A", &stop), &stop, turn.progress)
    });
    bar.finish_and_clear();
    let mut collected = collected?;
    if let Some(failure) = collected.take_fruitless() {
        return Err(failure);
    }
    let group = &collected.groups[0];
    let mut found = found(group, &metrics, args.per_side, base.seed);
    found.shortfall = collected.shortfall(plan.runs());
    // What was measured is printed even where it cannot be written.
    let text = format!("{}\n", serde_json::to_string_pretty(&found)?);
    let written = page.map_or(Ok(()), |page| page.write(&text));
    if args.json {
        super::print(&text)?;
    } else {
        super::print(&report(&found, &metrics).to_text())?;
    }
    written?;
    if let Some(failure) = collected.failure.take() {
        return Err(failure);
    }
    Ok(ExitCode::from(match (collected.interrupted, group.doubts().is_empty()) {
        (true, _) => EXIT_INTERRUPTED,
        (false, true) => 0,
        (false, false) => EXIT_INVALID,
    }))
}

fn found(group: &Group, metrics: &[Metric], per_side: usize, seed: u64) -> Found {
    let mut notes = notes(&[group]);
    let mut noises = Vec::new();
    for metric in metrics {
        let side = group.side(*metric);
        match noise(metric.name(), &side.values, per_side, seed) {
            Some(noise) => noises.push(noise),
            None => notes.push(match side.missing {
                Some(why) => format!("{}: {why}", metric.name()),
                None => format!("{}: {} runs are too few", metric.name(), side.values.len()),
            }),
        }
    }
    Found {
        started: group.runs.first().map(|run| run.started.clone()).unwrap_or_default(),
        environment: Environment::read(),
        runs: group.runs.len(),
        shortfall: None,
        metrics: noises,
        notes,
    }
}

fn report(found: &Found, metrics: &[Metric]) -> Report {
    let header =
        ["metric", "median", "run to run", "false alarms", "beyond +5 %", "not interleaved", "found 9 in 10"];
    let percent = |share: f64| Cell::from(format!("{:.1} %", 100.0 * share));
    let row = |noise: &Noise| {
        let metric = metrics.iter().find(|metric| metric.name() == noise.metric);
        vec![
            Cell::from(noise.metric.clone()),
            Cell::from(metric.map_or("–".to_owned(), |metric| metric.text(noise.median))),
            Cell::from(format!("±{:.1} %", 100.0 * noise.deviation)),
            percent(noise.alarms),
            percent(noise.alarms_at_margin),
            percent(noise.alarms_in_sequence),
            Cell::from(noise.detectable.map_or("–".to_owned(), |effect| format!("+{:.1} %", 100.0 * effect))),
        ]
    };
    let table =
        Table { header: header.map(str::to_owned).into(), rows: found.metrics.iter().map(row).collect() };
    let mut notes: Vec<String> =
        found.metrics.first().map(|noise| explained(noise, found.runs)).into_iter().collect();
    notes.extend(found.notes.iter().cloned());
    let section = Section { table, notes, ..Section::default() };
    Report {
        title: "towpath-lab aa: the noise of this host".to_owned(),
        notes: found.shortfall.iter().cloned().collect(),
        sections: vec![section],
    }
}

/// What the columns say.
fn explained(Noise { per_side, deals, .. }: &Noise, runs: usize) -> String {
    format!(
        "{runs} runs of one target, compared with each other as if they were two: {per_side} runs a side, {deals} ways of dealing \
         neighbours out. false alarms: the share in which the second side came out worse at 5 %, where 5 % is what is promised; beyond \
         +5 %: the same for the gate's rule with that margin. not interleaved: of sides measured one after the other. found 9 in 10: \
         the smallest slow-down that nine in ten of these comparisons would show. The comparisons share runs: more --runs, better \
         figures."
    )
}
