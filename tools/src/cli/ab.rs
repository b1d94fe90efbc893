//! `towpath-lab ab`: several targets, or our own I/O designs, in interleaved blocks.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use dataplane::engine::Io;
use serde::Serialize;

use super::judging::{self, Judging};
use super::run::{self, Load};
use super::{EXIT_INTERRUPTED, EXIT_INVALID};
use crate::ab::designs::{Designs, Through};
use crate::ab::{Collected, Plan, Target, check_is_new, collect, measure};
use crate::demo;
use crate::judge::{
    COLUMNS, Difference, Group, Judgement, Metric, difference_table, differences, notes, verdict_table,
};
use crate::progress;
use crate::report::{Report, Section};
use crate::run::{Kind, Problem};

/// Options of `towpath-lab ab`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The way the load takes; not with --io
    #[arg(value_enum, required_unless_present = "io", conflicts_with = "io")]
    kind: Option<Kind>,
    /// Two or more: ADDRESS:PORT, or ADDRESS:PORT=COMMAND, a program that serves there and is started for each run. The
    /// first is the baseline
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Compare these I/O designs of our own instead, separated by commas; the first is the baseline
    #[arg(long, value_enum, value_delimiter = ',', value_name = "DESIGN")]
    io: Vec<Io>,
    /// With --io: through what
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT", default_values_t = [Through::Relay, Through::Tunnel])]
    through: Vec<Through>,
    /// Runs of each side
    #[arg(long, default_value_t = 6, value_name = "N")]
    blocks: u32,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    judging: Judging,
    /// What is compared, separated by commas [default: p50,p99,loss, and cpu/pkt where a process is observed]
    #[arg(long, value_delimiter = ',', value_name = "METRIC")]
    metrics: Vec<Metric>,
    /// Directory for the runs: one directory for each side, in it one for each run
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// One table of sides.
#[derive(Debug, Serialize)]
struct Compared {
    /// `relay` or `tunnel` with --io, else the kind of load.
    title: String,
    /// Names of the sides with what they are.
    sides: Vec<(String, String)>,
    /// Runs of each side that are complete.
    runs: Vec<usize>,
    /// Runs of each side that were repeated, each with its whole block, because they could not be believed.
    repeated: Vec<u32>,
    /// What is missing of the runs that were asked for, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    shortfall: Option<String>,
    differences: Vec<Difference>,
    /// By the rules of --fail, of each side but the first.
    judgements: Vec<(String, Vec<Judgement>)>,
    notes: Vec<String>,
    #[serde(skip)]
    doubts: bool,
}

/// Runs all sides and says what differs.
pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    if args.blocks == 0 {
        return Err(
            Problem::Usage("--blocks must be at least 1, and 4 or more to show anything".to_owned()).into()
        );
    }
    let json = args.json;
    let Found { interrupted, compared, failure } =
        if args.io.is_empty() { of_targets(args)? } else { of_designs(args)? };
    let judgements: Vec<&Judgement> =
        compared.iter().flat_map(|compared| &compared.judgements).flat_map(|(_, judged)| judged).collect();
    let verdict = judgements.iter().map(|judged| judged.verdict).max();
    // Nothing of a table without runs is worth a look.
    if failure.is_some() && compared.iter().all(|compared| compared.runs.contains(&0)) {
        return Err(failure.unwrap_or_else(|| anyhow::anyhow!("no run was made")));
    }
    if json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&compared)?))?;
    } else {
        super::print(&report(&compared, failure.is_some()).to_text())?;
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    Ok(if interrupted {
        ExitCode::from(EXIT_INTERRUPTED)
    } else if compared.iter().any(|compared| compared.doubts) {
        ExitCode::from(EXIT_INVALID)
    } else {
        judging::exit(verdict)
    })
}

/// What was measured, and how that ended.
struct Found {
    interrupted: bool,
    compared: Vec<Compared>,
    /// What kept a run from being made.
    failure: Option<anyhow::Error>,
}

fn of_targets(args: Args) -> anyhow::Result<Found> {
    let targets = args.targets.iter().map(|text| target(text)).collect::<Result<Vec<_>, _>>()?;
    let Some(kind) = args.kind.filter(|_| targets.len() >= 2) else {
        return Err(Problem::Usage(format!(
            "ab compares two targets or more, for example `towpath-lab ab udp 127.0.0.1:9000 127.0.0.1:9001`; {} given",
            args.targets.len()
        ))
        .into());
    };
    let base = run::spec(kind, targets[0].address, args.load)?;
    base.check()?;
    let observed = !base.dut_pids.is_empty() || targets.iter().all(|target| target.command.is_some());
    let metrics = metrics(&args.metrics, observed);
    let stop = super::stop_flag()?;
    let names: Vec<String> = (0..targets.len()).map(letter).collect();
    let seed = base.seed;
    let plan = Plan { sides: names.clone(), blocks: args.blocks, seed, whole_blocks: true, out: args.out };
    let bar = progress::bar(targets.len() as u64 * u64::from(args.blocks));
    let collected = collect(&plan, &stop, &bar, |turn| {
        measure(&targets[turn.side], &turn.spec(&base, &names[turn.side], &stop), &stop, turn.progress)
    });
    bar.finish_and_clear();
    let mut collected = collected?;
    let sides = names.into_iter().zip(args.targets).collect();
    let planned = plan.runs();
    let compared = compare((kind.name(), sides), &collected, planned, &metrics, &args.judging, seed);
    let failure = collected.failure.take();
    Ok(Found { interrupted: collected.interrupted, compared: vec![compared], failure })
}

fn of_designs(args: Args) -> anyhow::Result<Found> {
    if args.io.len() < 2 {
        return Err(Problem::Usage(
            "--io compares two designs or more, for example --io uring,suspend".to_owned(),
        )
        .into());
    }
    let metrics = metrics(&args.metrics, true);
    // Target and kind are those of the network that is made below.
    let base = run::spec(Kind::Tunnel, ([127, 0, 0, 1], 1).into(), args.load)?;
    base.check()?;
    let designs = Designs::new(&args.io)?;
    let stop = Arc::clone(designs.stop());
    let names: Vec<String> = args.io.iter().map(|io| demo::name(*io).to_owned()).collect();
    let (mut compared, mut interrupted, mut left_out) = (Vec::new(), false, Vec::new());
    let mut failure = None;
    left_out.extend(
        designs
            .loopback()
            .map(|why| format!("the relay runs on loopback, without a network of its own: {why}")),
    );
    let possible = |through: &Through| match designs.obstacle(*through) {
        None => true,
        Some(why) => {
            left_out.push(format!("left out: {} ({why})", through.name()));
            false
        }
    };
    let through: Vec<Through> = args.through.into_iter().filter(possible).collect();
    let bar = progress::bar((through.len() * names.len()) as u64 * u64::from(args.blocks));
    // What is found only behind the first table would cost that.
    for out in args.out.iter().flat_map(|out| through.iter().map(|through| out.join(through.name()))) {
        check_is_new(&out, &names)?;
    }
    for through in through {
        let plan = Plan {
            sides: names.clone(),
            blocks: args.blocks,
            seed: base.seed,
            whole_blocks: true,
            out: args.out.as_ref().map(|out| out.join(through.name())),
        };
        let collected = collect(&plan, &stop, &bar, |turn| {
            let label = format!("{} {}", through.name(), names[turn.side]);
            designs.measure(args.io[turn.side], through, &turn.spec(&base, &label, &stop), turn.progress)
        });
        let mut collected = match collected {
            Ok(collected) => collected,
            Err(error) => {
                failure = Some(error.context(format!("through the {}", through.name())));
                break;
            }
        };
        interrupted = collected.interrupted;
        let sides = names.iter().map(|name| (name.clone(), format!("--io {name}"))).collect();
        let (of, planned) = ((through.name(), sides), plan.runs());
        let mut table = compare(of, &collected, planned, &metrics, &args.judging, base.seed);
        failure =
            collected.failure.take().map(|error| error.context(format!("through the {}", through.name())));
        table.notes.append(&mut left_out);
        // Of sides that were not all measured once there is nothing to compare.
        if failure.is_none() || !table.runs.contains(&0) {
            compared.push(table);
        }
        if interrupted || failure.is_some() {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(Found { interrupted, compared, failure })
}

/// What `collected` says of the sides, by their title, names and what they are.
fn compare(
    (title, sides): (&str, Vec<(String, String)>),
    collected: &Collected,
    planned: u64,
    metrics: &[Metric],
    judging: &Judging,
    seed: u64,
) -> Compared {
    let groups: Vec<&Group> = collected.groups.iter().collect();
    let (baseline, others) = (groups[0], &groups[1..]);
    let shortfall = collected.shortfall(planned);
    // As of runs that died: those that were made may be the better ones.
    let doubts = !judging.allow_invalid
        && (shortfall.is_some() || groups.iter().any(|group| !group.doubts().is_empty()));
    let mut judgements: Vec<(String, Vec<Judgement>)> = Vec::new();
    let mut notes = notes(&groups);
    if !judging.fail.is_empty() {
        let names = others.iter().map(|other| other.name.clone());
        judgements.extend(names.zip(judging.judge_all(baseline, others, seed)));
    }
    let mut differences = differences(baseline, others, metrics, seed);
    if doubts {
        // Nobody may read a PASS, or better and worse, out of figures that cannot be believed.
        judgements.iter_mut().flat_map(|(_, judged)| judged).for_each(Judgement::take_back);
        differences.iter_mut().for_each(Difference::take_back);
        notes.push(format!("no verdict: {}", judging::INVALID));
    }
    Compared {
        title: title.to_owned(),
        sides,
        shortfall,
        runs: groups.iter().map(|group| group.runs.len()).collect(),
        repeated: groups.iter().map(|group| group.repeated).collect(),
        differences,
        judgements,
        notes,
        doubts,
    }
}

fn report(compared: &[Compared], failed: bool) -> Report {
    let mut report = Report { title: "towpath-lab ab".to_owned(), ..Report::default() };
    if failed && compared.iter().all(|compared| compared.shortfall.is_none()) {
        report.notes.push("a run could not be made: what follows rests on those before it".to_owned());
    }
    for compared in compared {
        report
            .notes
            .extend(compared.shortfall.iter().map(|shortfall| format!("{}: {shortfall}", compared.title)));
        let mut sides = compared.sides.iter();
        let baseline = sides.next().map_or("", |side| &side.0);
        let runs: Vec<String> = compared.runs.iter().map(usize::to_string).collect();
        let mut notes = vec![format!(
            "Each run is one sample; runs of each side: {}; in interleaved random blocks. p: exact permutation test, two-sided, corrected by \
             Holm over the table; from and to: 95 % of each comparison alone. better and worse: p ≤ 0.05; same: within 5 % \
             (loss: 0.01 %) for sure; open: neither. {COLUMNS}",
            runs.join(", ")
        )];
        notes.extend(compared.differences.iter().filter_map(judging::open));
        notes.extend(judging::drifts(compared.differences.iter().map(|difference| &difference.drift)));
        notes.extend(compared.notes.iter().cloned());
        report.sections.push(Section {
            title: format!(
                "{}: {}",
                compared.title,
                compared
                    .sides
                    .iter()
                    .map(|(name, what)| format!("{name} = {what}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            notes,
            table: difference_table(baseline, &compared.differences),
            ..Section::default()
        });
        for (side, judged) in &compared.judgements {
            report.sections.push(Section {
                title: format!("{}: {side} by the rules", compared.title),
                table: verdict_table(judged),
                notes: [
                    judging::reasons(judged),
                    judging::drifts(judged.iter().map(|judged| &judged.drift)),
                    vec![COLUMNS.to_owned()],
                ]
                .concat(),
                ..Section::default()
            });
        }
    }
    report
}

/// The metrics that are compared.
pub(super) fn metrics(asked: &[Metric], observed: bool) -> Vec<Metric> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    let mut metrics = vec![Metric::Quantile("p50"), Metric::Quantile("p99"), Metric::Loss];
    if observed {
        metrics.push(Metric::Cpu);
    }
    metrics
}

/// Reads `ADDRESS:PORT` or `ADDRESS:PORT=COMMAND`.
pub(super) fn target(text: &str) -> Result<Target, Problem> {
    let (address, command) =
        text.split_once('=').map_or((text, None), |(address, command)| (address, Some(command)));
    Ok(Target { address: run::resolve(address)?, command: command.map(str::to_owned) })
}

/// A, B, C and so on.
fn letter(index: usize) -> String {
    char::from_u32('A' as u32 + index as u32 % 26).map_or_else(|| index.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::ab::tests::run_of_a_moment;
    use crate::judge::Verdict;
    use crate::run::RunResult;
    use crate::run::verdict::Validity;

    #[derive(Parser)]
    struct Rules {
        #[command(flatten)]
        judging: Judging,
    }

    fn judging(arguments: &[&str]) -> Judging {
        Rules::parse_from([&["ab", "--fail", "p99>+5%"], arguments].concat()).judging
    }

    /// Two sides of five runs that are alike, all but one of them valid.
    fn collected(run: &RunResult, odd_one: Validity) -> Collected {
        let side = |name: &str, odd_one: Validity| {
            let with = |(number, p99_ns): (u64, u64)| {
                let mut run = run.clone();
                for quantile in &mut run.latency.response.quantiles {
                    (quantile.value_ns, quantile.grade) = (Some(p99_ns), crate::run::Grade::Solid);
                }
                // A sender and a receiver that were on time.
                for late in std::iter::once(&mut run.latency.lateness).chain(&mut run.latency.receiving) {
                    late.max_ns = Some(1);
                    late.quantiles.iter_mut().for_each(|quantile| quantile.value_ns = Some(1));
                }
                if number == 2 {
                    run.verdict.validity = odd_one;
                }
                run
            };
            let values = [50_000, 50_500, 49_500, 50_200, 49_800];
            Group { name: name.to_owned(), runs: (0..).zip(values).map(with).collect(), ..Group::default() }
        };
        let groups = vec![side("A", Validity::Valid), side("B", odd_one)];
        Collected { groups, interrupted: false, failure: None }
    }

    fn compared(collected: &Collected, judging: &Judging) -> Compared {
        let sides = ["A", "B"].map(|name| (name.to_owned(), String::new())).into();
        compare(("udp", sides), collected, 10, &[Metric::Quantile("p99")], judging, 1)
    }

    #[test]
    fn a_pass_is_taken_back_when_a_run_cannot_be_believed() {
        let run = run_of_a_moment();
        let verdict = |compared: &Compared| compared.judgements[0].1[0].verdict;
        let calm = compared(&collected(&run, Validity::Valid), &judging(&[]));
        assert!(!calm.doubts && verdict(&calm) == Verdict::Pass, "{calm:?}");
        assert!(report(&[calm], false).to_text().contains("PASS"));

        for odd_one in [Validity::Invalid, Validity::GeneratorLimited] {
            let taken_back = compared(&collected(&run, odd_one), &judging(&[]));
            assert!(taken_back.doubts && verdict(&taken_back) == Verdict::Inconclusive, "{taken_back:?}");
            let json = serde_json::to_string(&taken_back).unwrap();
            let text = report(&[taken_back], false).to_text();
            for said in [text, json] {
                assert!(!said.contains("PASS") && said.contains("no verdict: runs are not VALID"), "{said}");
            }
            let allowed = compared(&collected(&run, odd_one), &judging(&["--allow-invalid"]));
            assert!(!allowed.doubts && verdict(&allowed) == Verdict::Pass, "{allowed:?}");
        }
    }

    #[test]
    fn what_is_missing_stands_above_the_table_and_in_the_json() {
        let mut short = collected(&run_of_a_moment(), Validity::Valid);
        short.groups[1].runs.pop();
        short.failure = Some(anyhow::anyhow!("the server is gone"));
        let compared = compared(&short, &judging(&[]));
        let json = serde_json::to_value(&compared).unwrap();
        assert!(json["shortfall"].as_str().unwrap().contains("9 of 10 runs"), "{json}");
        let text = report(&[compared], true).to_text();
        assert!(text.contains("no verdict") && !text.contains("PASS"), "{text}");
        let said = "udp: a run could not be made (the server is gone): what follows rests on 9 of 10 runs";
        assert!(text.find(said).unwrap() < text.find("p99").unwrap(), "{text}");
    }
}
