//! Runs of several sides in interleaved random blocks, so that what else the machine does weighs on all of them alike.

pub mod designs;
mod noise;
mod order;
mod server;
mod target;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use indicatif::ProgressBar;

use crate::format::bundle;
use crate::format::series::{SERIES_JSON, Series, Side};
use crate::judge::Group;
use crate::progress;
use crate::run::verdict::Validity;
use crate::run::{Problem, RunResult, RunSpec};

pub use noise::{Noise, noise};
pub use order::order;
pub use server::dispatch;
pub use target::{Target, measure};

/// Told about ten times a second which share of a run has passed.
pub type Progress<'a> = &'a (dyn Fn(f64) + Sync);

/// How often a run that cannot be believed is repeated before it is kept as it is; a block so often for each of its sides.
const REPEATS_MAX: u32 = 3;

/// What is run, how often, and where it goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of the sides; the first is the baseline.
    pub sides: Vec<String>,
    /// Runs of each side.
    pub blocks: u32,
    /// Decides the order.
    pub seed: u64,
    /// Whether a run that cannot be believed is repeated with its whole block. What is believed depends on the run itself (a faster side
    /// has to be met by a more punctual generator), so that sides of which each was repeated for itself were not picked alike, and
    /// can no longer be dealt out anew by a permutation test. Without it each is: loads that differ are no such sides.
    pub whole_blocks: bool,
    /// Directory in which each side has one, with a numbered one for each run; `series.json` in it says what became of them.
    pub out: Option<PathBuf>,
}

impl Plan {
    /// All of its runs, repeated ones counted once.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.sides.len() as u64 * u64::from(self.blocks)
    }
}

/// The runs that were made.
#[derive(Debug)]
pub struct Collected {
    /// One for each side, in the order of the plan.
    pub groups: Vec<Group>,
    /// Whether SIGINT or SIGTERM came before the last.
    pub interrupted: bool,
    /// What kept a run from being made or written, and with it all that were to follow.
    pub failure: Option<anyhow::Error>,
}

impl Collected {
    /// Why not all runs were made; `None` when all were.
    fn cut(&self) -> Option<String> {
        match &self.failure {
            Some(failure) => Some(format!("a run could not be made ({failure:#})")),
            None => self.interrupted.then(|| "interrupted".to_owned()),
        }
    }

    /// What is missing of the `planned` runs, and why, in a sentence; `None` when all were made.
    #[must_use]
    pub fn shortfall(&self, planned: u64) -> Option<String> {
        let why = self.cut()?;
        let made: usize = self.groups.iter().map(|group| group.runs.len()).sum();
        Some(format!("{why}: what follows rests on {made} of {planned} runs, those that were complete"))
    }

    /// What is written beside the runs.
    fn series(&self, plan: &Plan, cut: Option<String>) -> Series {
        let side = |group: &Group| Side {
            name: group.name.clone(),
            made: group.runs.len(),
            repeated: group.repeated,
        };
        let sides = self.groups.iter().map(side).collect();
        Series { planned: plan.blocks, sides, whole_blocks: plan.whole_blocks, cut }
    }

    /// Why there is nothing to show: what kept the first run from being made.
    pub fn take_fruitless(&mut self) -> Option<anyhow::Error> {
        let fruitless = self.groups.iter().all(|group| group.runs.is_empty());
        self.failure.take_if(|_| fruitless)
    }
}

/// Where a run is written until it is complete; hidden, so that nobody takes it for one that died.
const UNFINISHED: &str = ".unfinished";

/// What is asked of `measure` in [`collect`].
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// Index of the side.
    pub side: usize,
    /// The block, from 0.
    pub block: u32,
    /// Where its interval log goes.
    pub log: Option<&'a Path>,
    /// Told how far it is.
    pub progress: Progress<'a>,
}

impl Turn<'_> {
    /// `base` with a seed for the block, which all sides have in common, a label, a log and what ends it.
    #[must_use]
    pub fn spec(&self, base: &RunSpec, label: &str, stop: &Arc<AtomicBool>) -> RunSpec {
        RunSpec {
            seed: base.seed.wrapping_add(u64::from(self.block)),
            label: label.to_owned(),
            stop: Some(Arc::clone(stop)),
            log: self.log.map(Path::to_owned),
            ..base.clone()
        }
    }
}

/// Makes all runs of `plan`; `measure` makes one.
/// When `stop` is set, or a run cannot be made or written, what is complete is kept.
///
/// # Errors
/// When a directory of the sides exists already, or cannot be made.
pub fn collect(
    plan: &Plan,
    stop: &AtomicBool,
    bar: &ProgressBar,
    mut measure: impl FnMut(Turn<'_>) -> anyhow::Result<RunResult>,
) -> anyhow::Result<Collected> {
    let Some(out) = &plan.out else { return take_turns(plan, stop, bar, None, &mut measure) };
    let unfinished = out.join(UNFINISHED);
    make_directories(out, &plan.sides, &unfinished)?;
    let mut collected = take_turns(plan, stop, bar, Some(&unfinished), &mut measure)?;
    // What is left in it is no run, and nobody looks there.
    let _ = fs::remove_dir_all(&unfinished);
    let written = collected.series(plan, collected.cut()).write(out);
    collected.failure = collected.failure.or(written.err());
    Ok(collected)
}

/// Why runs are missing while they are being made, and of a command that was killed.
const UNENDED: &str = "it did not come to its end";

fn take_turns(
    plan: &Plan,
    stop: &AtomicBool,
    bar: &ProgressBar,
    unfinished: Option<&Path>,
    measure: &mut dyn FnMut(Turn<'_>) -> anyhow::Result<RunResult>,
) -> anyhow::Result<Collected> {
    let log = unfinished.map(|dir| dir.join(bundle::LATENCY_HLOG));
    let group =
        |name: &String| Group { name: name.clone(), repeated_alone: !plan.whole_blocks, ..Group::default() };
    let groups = plan.sides.iter().map(group).collect();
    let mut collected = Collected { groups, interrupted: false, failure: None };
    let note = |collected: &Collected| -> anyhow::Result<()> {
        let Some(out) = &plan.out else { return Ok(()) };
        collected.series(plan, Some(UNENDED.to_owned())).write(out)
    };
    note(&collected)?;
    let begin = bar.position() / progress::STEPS;
    let mut done = 0;
    for (block, sides) in (0_u32..).zip(order(plan.sides.len(), plan.blocks, plan.seed)) {
        let repeats_max = if plan.whole_blocks { REPEATS_MAX * sides.len() as u32 } else { REPEATS_MAX };
        let (mut at, mut attempt) = (0, 0);
        while let Some(&side) = sides.get(at) {
            bar.set_message(format!("{} {}/{}", plan.sides[side], block + 1, plan.blocks));
            let progress = |share| progress::step(bar, begin + done, share);
            let made = measure(Turn { side, block, log: log.as_deref(), progress: &progress });
            let stopped = stop.load(Ordering::Relaxed);
            let run = match made {
                // The signal came when it was over.
                Ok(run) if stopped && !run.interrupted && run.verdict.validity == Validity::Valid => run,
                // What the signal cut short is no sample of anything.
                _ if stopped => {
                    collected.interrupted = true;
                    return Ok(collected);
                }
                Ok(run) => run,
                Err(error) => {
                    collected.failure = Some(error);
                    return Ok(collected);
                }
            };
            if run.verdict.validity != Validity::Valid && attempt < repeats_max {
                attempt += 1;
                collected.groups[side].repeated += 1;
                if plan.whole_blocks && at > 0 {
                    collected.failure = take_back(&mut collected.groups, plan, block, &sides[..at])
                        .and_then(|()| note(&collected))
                        .err();
                    if collected.failure.is_some() {
                        return Ok(collected);
                    }
                    done -= at as u64;
                    at = 0;
                }
                continue;
            }
            if let Some((out, unfinished)) = plan.out.as_ref().zip(unfinished) {
                collected.failure = keep(&run, unfinished, &directory(out, plan, side, block)).err();
            }
            collected.groups[side].runs.push(run);
            if collected.failure.is_none() {
                collected.failure = note(&collected).err();
            }
            at += 1;
            done += 1;
            if !plan.whole_blocks {
                attempt = 0;
            }
            progress::step(bar, begin + done, 0.0);
            if collected.failure.is_some() {
                return Ok(collected);
            }
            if done < plan.runs() && stop.load(Ordering::Relaxed) {
                collected.interrupted = true;
                return Ok(collected);
            }
        }
    }
    Ok(collected)
}

/// The directory of a run.
fn directory(out: &Path, plan: &Plan, side: usize, block: u32) -> PathBuf {
    out.join(&plan.sides[side]).join(format!("{:02}", block + 1))
}

/// Takes the runs of a block that is begun anew away, those of `sides`.
fn take_back(groups: &mut [Group], plan: &Plan, block: u32, sides: &[usize]) -> anyhow::Result<()> {
    for &side in sides {
        groups[side].runs.pop();
        let Some(out) = &plan.out else { continue };
        let dir = directory(out, plan, side, block);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot take {} away", dir.display()))?;
    }
    Ok(())
}

/// Writes a run and moves it to its place.
fn keep(run: &RunResult, unfinished: &Path, dir: &Path) -> anyhow::Result<()> {
    bundle::write(run, unfinished)?;
    fs::rename(unfinished, dir).with_context(|| format!("cannot move a run to {}", dir.display()))?;
    make_directory(unfinished)
}

fn make_directory(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))
}

/// Refuses an `out` that has runs of these sides from another time, which must not get among those of this one.
///
/// # Errors
/// [`Problem::Usage`] with the directory that is there.
pub fn check_is_new(out: &Path, sides: &[String]) -> anyhow::Result<()> {
    match sides
        .iter()
        .map(String::as_str)
        .chain([SERIES_JSON])
        .map(|name| out.join(name))
        .find(|path| path.exists())
    {
        None => Ok(()),
        Some(path) => {
            let message = format!("{} exists already; choose a new directory with --out", path.display());
            Err(Problem::Usage(message).into())
        }
    }
}

fn make_directories(out: &Path, sides: &[String], unfinished: &Path) -> anyhow::Result<()> {
    check_is_new(out, sides)?;
    sides.iter().try_for_each(|side| make_directory(&out.join(side)))?;
    make_directory(unfinished)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::run::{Kind, Pace, run};
    use crate::search::calibrate::with_reflector;

    /// What a short run over loopback found, as valid as can be.
    pub fn run_of_a_moment() -> RunResult {
        let millis = Duration::from_millis;
        let spec = RunSpec {
            duration: millis(100),
            warmup: Duration::ZERO,
            drain: millis(50),
            pace: Pace::Sleep,
            ..RunSpec::new(Kind::Udp, ([127, 0, 0, 1], 1).into())
        };
        let mut made = with_reflector(&spec, |spec| run(spec, |_| {})).unwrap();
        made.verdict.validity = Validity::Valid;
        made.verdict.reasons.clear();
        made.interrupted = false;
        made
    }

    fn plan(out: Option<PathBuf>) -> Plan {
        let sides = vec!["A".to_owned(), "B".to_owned()];
        Plan { sides, blocks: 3, seed: 1, whole_blocks: true, out }
    }

    #[test]
    fn a_run_that_is_not_valid_is_repeated_with_its_whole_block_so_that_no_side_is_picked_more() {
        let (good, never) = (run_of_a_moment(), AtomicBool::new(false));
        let dir = tempfile::tempdir().unwrap();
        let mut number = 0;
        // Every other run of A cannot be believed, as those of a faster side; B's all can.
        let mut made_of = [0, 0];
        let mut bad_ones = |turn: Turn<'_>| {
            number += 1;
            made_of[turn.side] += 1;
            let mut run =
                RunResult { run_id: format!("{number:016x}"), started_unix_ns: number, ..good.clone() };
            if turn.side == 0 && made_of[0] % 2 == 1 {
                run.verdict.validity = Validity::GeneratorLimited;
            }
            Ok(run)
        };
        let out = dir.path().join("whole");
        let whole = plan(Some(out.clone()));
        let collected = collect(&whole, &never, &ProgressBar::hidden(), &mut bad_ones).unwrap();
        // Of each block the runs are of one go, one directly behind the other.
        for block in 0..3 {
            let [a, b] = [0, 1].map(|side: usize| collected.groups[side].runs[block].started_unix_ns);
            assert_eq!(a.abs_diff(b), 1, "{a} and {b}");
        }
        assert_eq!([collected.groups[0].repeated, collected.groups[1].repeated], [3, 0]);
        for (side, group) in ["A", "B"].into_iter().zip(&collected.groups) {
            let read = Group::read(side, &[out.join(side)]).unwrap();
            let ids = |group: &Group| group.runs.iter().map(|run| run.run_id.clone()).collect::<Vec<_>>();
            assert_eq!(
                (ids(&read), read.doubts().len()),
                (ids(group), 0),
                "what was taken back is not there"
            );
            let said = crate::judge::notes(&[&read, &read]).join("; ");
            assert!(!said.contains("each for itself"), "{said}");
        }

        let alone = Plan { whole_blocks: false, ..plan(None) };
        let collected = collect(&alone, &never, &ProgressBar::hidden(), &mut bad_ones).unwrap();
        let said = crate::judge::notes(&[&collected.groups[0], &collected.groups[1]]).join("; ");
        assert!(said.contains("not VALID: 3 of A, 0 of B, each for itself"), "{said}");
    }

    #[test]
    fn a_block_that_is_never_valid_is_kept_as_it_is_in_the_end() {
        let (mut bad, never) = (run_of_a_moment(), AtomicBool::new(false));
        bad.verdict.validity = Validity::Invalid;
        let mut made = 0;
        let collected = collect(&plan(None), &never, &ProgressBar::hidden(), |_| {
            made += 1;
            Ok(bad.clone())
        });
        let groups = collected.unwrap().groups;
        assert_eq!([groups[0].runs.len(), groups[1].runs.len()], [3, 3]);
        // The first run of each block is made again three times for each of the two sides.
        assert_eq!((made, groups[0].repeated + groups[1].repeated), (3 * (6 + 2), 3 * 6));
        assert!(!groups[0].doubts().is_empty());
    }

    #[test]
    fn runs_before_one_that_cannot_be_made_or_written_are_kept() {
        let (run, never) = (run_of_a_moment(), AtomicBool::new(false));
        let collect = |plan: &Plan, measure: &mut dyn FnMut() -> anyhow::Result<RunResult>| {
            collect(plan, &never, &ProgressBar::hidden(), |_| measure()).unwrap()
        };
        let made =
            |collected: &Collected| -> usize { collected.groups.iter().map(|group| group.runs.len()).sum() };

        let mut left = 4;
        let mut four = || {
            left -= 1;
            if left < 0 { anyhow::bail!("the server is gone") } else { Ok(run.clone()) }
        };
        let mut collected = collect(&plan(None), &mut four);
        assert_eq!(made(&collected), 4);
        let shortfall = collected.shortfall(plan(None).runs()).unwrap();
        assert!(shortfall.contains("the server is gone") && shortfall.contains("4 of 6 runs"), "{shortfall}");
        assert!(collected.take_fruitless().is_none());

        let mut none = collect(&plan(None), &mut || anyhow::bail!("no server"));
        assert_eq!(none.take_fruitless().unwrap().to_string(), "no server");
        let whole = collect(&plan(None), &mut || Ok(run.clone()));
        assert_eq!((made(&whole), whole.shortfall(6)), (6, None));

        // A file is where the directory of the second block should be.
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut in_the_way = || {
            for side in ["A", "B"] {
                fs::write(out.join(side).join("02"), "")?;
            }
            Ok(run.clone())
        };
        let unwritten = collect(&plan(Some(out.clone())), &mut in_the_way);
        assert_eq!(made(&unwritten), 3, "the one that was not written is known all the same");
        let failure = format!("{:#}", unwritten.failure.unwrap());
        assert!(failure.contains("cannot move a run to") && failure.contains("02"), "{failure}");
        let mut there: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, ["A", "B", "series.json"], "nothing unfinished is left");
    }

    #[test]
    fn what_was_cut_or_repeated_is_read_with_the_runs() {
        let (good, stop) = (run_of_a_moment(), AtomicBool::new(false));
        let mut bad = good.clone();
        bad.verdict.validity = Validity::GeneratorLimited;
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let read = |side: &str| Group::read(side, &[out.join(side)]).unwrap();
        let mut number = 0;
        let collected = collect(&plan(Some(out.clone())), &stop, &ProgressBar::hidden(), |turn| {
            if number == 2 {
                // Whoever is killed now leaves word of it.
                let side = ["A", "B"].into_iter().find(|side| out.join(side).join("01").exists()).unwrap();
                assert!(read(side).doubts().iter().any(|doubt| doubt.contains("did not come to its end")));
            }
            number += 1;
            let (started_unix_ns, run_id) = (number, format!("{number:016x}"));
            // The very first is made again; the signal comes when the fifth is over.
            stop.store(number == 5, Ordering::Relaxed);
            let run = if number == 1 { bad.clone() } else { good.clone() };
            assert!(turn.log.is_some());
            Ok(RunResult { started_unix_ns, run_id, ..run })
        });
        let collected = collected.unwrap();
        assert!(collected.interrupted && number == 5, "{number}");
        let made: Vec<usize> = collected.groups.iter().map(|group| group.runs.len()).collect();
        assert_eq!(made, [2, 2], "what was over when the signal came is kept");
        let groups = [read("A"), read("B")];
        for group in &groups {
            let doubts = group.doubts().join("; ");
            assert!(doubts.contains("was cut short (interrupted): 2 of 3 runs are there"), "{doubts}");
        }
        let repeated: Vec<u32> = groups.iter().map(|group| group.repeated).collect();
        assert_eq!((repeated[0] + repeated[1], repeated[0] * repeated[1]), (1, 0));
        let said = crate::judge::notes(&[&groups[0], &groups[1]]).join("; ");
        let by_side = format!("not VALID: {} of A, {} of B", repeated[0], repeated[1]);
        assert!(said.contains(&by_side), "{said}");

        stop.store(false, Ordering::Relaxed);
        let whole = dir.path().join("whole");
        collect(&plan(Some(whole.clone())), &stop, &ProgressBar::hidden(), |_| {
            number += 1;
            Ok(RunResult { run_id: format!("{number:016x}"), ..good.clone() })
        })
        .unwrap();
        assert_eq!(Group::read("A", &[whole.join("A")]).unwrap().doubts(), [""; 0]);
    }
}
