//! Runs of several sides in interleaved random blocks, so that what else the machine does weighs on all of them alike.

pub mod designs;
mod noise;
mod order;
mod server;
mod target;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use indicatif::ProgressBar;

use crate::format::bundle;
use crate::judge::Group;
use crate::progress;
use crate::run::verdict::Validity;
use crate::run::{Problem, RunResult};

pub use noise::{Noise, noise};
pub use order::order;
pub use server::dispatch;
pub use target::{Target, measure};

/// Told about ten times a second which share of a run has passed.
pub type Progress<'a> = &'a (dyn Fn(f64) + Sync);

/// How often a run that cannot be believed is repeated before it is kept as it is.
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
    /// Directory in which each side has one, with a numbered one for each run.
    pub out: Option<PathBuf>,
}

/// The runs that were made.
#[derive(Debug)]
pub struct Collected {
    /// One for each side, in the order of the plan.
    pub groups: Vec<Group>,
    /// Whether SIGINT or SIGTERM came before the last.
    pub interrupted: bool,
    /// Runs that were repeated because they could not be believed.
    pub repeated: u32,
    /// What kept a run from being made, and with it all that were to follow.
    pub failure: Option<anyhow::Error>,
}

impl Collected {
    /// All of the runs.
    ///
    /// # Errors
    /// What kept one from being made.
    pub fn complete(mut self) -> anyhow::Result<Self> {
        self.failure.take().map_or(Ok(self), Err)
    }
}

/// Makes all runs of `plan`. `measure` makes one of a side; its block is the second argument, its progress the third.
/// When `stop` is set or a run cannot be made, what is complete is kept.
///
/// # Errors
/// Those of writing a run.
pub fn collect(
    plan: &Plan,
    stop: &AtomicBool,
    bar: &ProgressBar,
    mut measure: impl FnMut(usize, u32, Progress<'_>) -> anyhow::Result<RunResult>,
) -> anyhow::Result<Collected> {
    if let Some(out) = &plan.out {
        refuse_used(out, &plan.sides)?;
    }
    let group = |name: &String| Group { name: name.clone(), ..Group::default() };
    let groups = plan.sides.iter().map(group).collect();
    let mut collected = Collected { groups, interrupted: false, repeated: 0, failure: None };
    let begin = bar.position() / progress::STEPS;
    let mut done = 0;
    for (block, sides) in (0_u32..).zip(order(plan.sides.len(), plan.blocks, plan.seed)) {
        for side in sides {
            let mut attempt = 0;
            bar.set_message(format!("{} {}/{}", plan.sides[side], block + 1, plan.blocks));
            let run = loop {
                let made = measure(side, block, &|share| progress::step(bar, begin + done, share));
                if stop.load(Ordering::Relaxed) {
                    // What the signal cut short is no sample of anything.
                    collected.interrupted = true;
                    return Ok(collected);
                }
                let run = match made {
                    Ok(run) => run,
                    Err(error) => {
                        collected.failure = Some(error);
                        return Ok(collected);
                    }
                };
                if run.verdict.validity == Validity::Valid || attempt == REPEATS_MAX {
                    break run;
                }
                attempt += 1;
                collected.repeated += 1;
            };
            if let Some(out) = &plan.out {
                let dir = out.join(&plan.sides[side]).join(format!("{:02}", block + 1));
                bundle::write(&run, &dir)?;
            }
            collected.groups[side].runs.push(run);
            done += 1;
            progress::step(bar, begin + done, 0.0);
        }
    }
    Ok(collected)
}

/// Runs of another time must not get among those of this one.
fn refuse_used(out: &Path, sides: &[String]) -> anyhow::Result<()> {
    for side in sides {
        let dir = out.join(side);
        if dir.exists() {
            let message = format!("{} exists already; choose a new directory with --out", dir.display());
            return Err(Problem::Usage(message).into());
        }
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    Ok(())
}
