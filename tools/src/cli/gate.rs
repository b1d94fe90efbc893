//! `towpath-lab gate`: whether runs of a change are worse than runs without it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use super::EXIT_INVALID;
use super::judging::{self, Allowed, Judging};
use crate::judge::{self, COLUMNS, Group, Judgement, Verdict, circumstances, verdict_table};
use crate::report::junit::{self, Case, Outcome};
use crate::report::{Cell, Report, Section};
use crate::run::Problem;
use crate::units;

/// Options of `towpath-lab gate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Runs to be compared with: directories of runs, or directories of such
    #[arg(required = true, value_name = "A")]
    a: Vec<PathBuf>,
    /// Runs that are judged; `--` stands for it
    #[arg(long = "with", required = true, num_args = 1.., value_name = "B")]
    b: Vec<PathBuf>,
    #[command(flatten)]
    judging: Judging,
    /// Judge all the same though the loads of the sides were not alike
    #[arg(long)]
    allow_different: bool,
    /// What an undecided rule counts as
    #[arg(long, value_enum, default_value = "inconclusive", value_name = "VERDICT")]
    inconclusive: Undecided,
    /// Print verdict and figures as JSON
    #[arg(long)]
    json: bool,
    /// Print Markdown instead of a table for a terminal
    #[arg(long, conflicts_with = "json")]
    md: bool,
    /// Also write JUnit XML: a test case for each rule, skipped while it is not decided
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// What an undecided rule counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Undecided {
    /// Exit status 3
    Inconclusive,
    /// Exit status 0
    Pass,
    /// Exit status 1
    Fail,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Output {
    /// The worst of the rules'; absent where runs cannot be believed, or compared.
    verdict: Option<Verdict>,
    /// Why there is none.
    obstacle: Option<String>,
    runs: [usize; 2],
    rules: Vec<Judgement>,
    notes: Vec<String>,
}

/// Judges and prints.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    if args.judging.fail.is_empty() {
        return Err(Problem::Usage("gate needs a rule, for example --fail 'p99>+5%'".to_owned()).into());
    }
    let (a, b) = (Group::read("A", &args.a)?, Group::read("B", &args.b)?);
    a.check_apart(&b)?;
    let mut judged = args.judging.judge(&a, &b, 1);
    let worst = judged.iter().map(|judged| judged.verdict).max();
    let doubts = [a.doubts(), b.doubts()].concat();
    let different = circumstances::different(a.runs.iter().chain(&b.runs).map(|run| &run.spec));
    let allowed =
        Allowed { allow_invalid: args.judging.allow_invalid, allow_different: args.allow_different };
    let obstacle = allowed.obstacle(&doubts, &different);
    let mut notes = judging::reasons(&judged);
    notes.extend(judging::drifts(judged.iter().map(|judged| &judged.drift)));
    notes.extend(judge::notes(&[&a, &b]));
    notes.extend(args.judging.noise()?);
    notes.extend(obstacle.as_ref().map(|why| format!("no verdict: {why}")));
    let verdict = worst.filter(|_| obstacle.is_none());
    if verdict.is_none() {
        // Nobody may read a PASS out of figures that cannot be compared.
        judged.iter_mut().for_each(Judgement::take_back);
    }
    let runs = [a.runs.len(), b.runs.len()];
    let output = Output { verdict, obstacle, runs, rules: judged, notes };
    if let Some(path) = &args.junit {
        let xml = junit::document("towpath-lab gate", &cases(&output));
        std::fs::write(path, xml).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&output)?))?;
    } else if args.md {
        super::print(&report(&output).to_markdown())?;
    } else {
        super::print(&report(&output).to_text())?;
    }
    Ok(match (verdict, args.inconclusive) {
        (None, _) => ExitCode::from(EXIT_INVALID),
        (Some(Verdict::Inconclusive), Undecided::Pass) => judging::exit(Some(Verdict::Pass)),
        (Some(Verdict::Inconclusive), Undecided::Fail) => judging::exit(Some(Verdict::Fail)),
        (verdict, _) => judging::exit(verdict),
    })
}

/// A case for each rule, by the figures of its row.
fn cases(output: &Output) -> Vec<Case> {
    let table = verdict_table(&output.rules);
    let case = |(judged, row): (&Judgement, &Vec<Cell>)| {
        let cells = table.header.iter().zip(row).skip(1).filter(|(_, cell)| !cell.text.is_empty());
        let figures: Vec<String> = cells.map(|(name, cell)| format!("{name} {}", cell.text)).collect();
        let figures = figures.join(", ");
        let outcome = match (output.verdict, judged.verdict) {
            (None, _) => {
                let why = output.obstacle.as_deref().unwrap_or("there is none");
                Outcome::Failed(format!("no verdict: {why}"))
            }
            (_, Verdict::Pass) => Outcome::Passed,
            (_, Verdict::Fail) => Outcome::Failed(figures.clone()),
            (_, Verdict::Inconclusive) => {
                Outcome::Skipped(judged.why.clone().unwrap_or_else(|| "INCONCLUSIVE".to_owned()))
            }
        };
        Case { name: judged.rule.to_string(), time_s: 0.0, outcome, output: figures }
    };
    output.rules.iter().zip(&table.rows).map(case).collect()
}

fn report(output: &Output) -> Report {
    let [a, b] = output.runs;
    let verdict = output.verdict.map_or("NO VERDICT", Verdict::name);
    let mut notes = vec![
        "Each run is one sample; exact permutation of their logarithms. at least, at most: each for sure at the rule's confidence. \
         p fail is corrected by Holm over all rules; for the whole to pass, every rule has to."
            .to_owned(),
        COLUMNS.to_owned(),
    ];
    notes.extend(output.notes.iter().cloned());
    let section = Section { table: verdict_table(&output.rules), notes, ..Section::default() };
    Report {
        title: format!("{verdict}  {} of A, {b} of B", units::count(a as u64, "run")),
        notes: Vec::new(),
        sections: vec![section],
    }
}
