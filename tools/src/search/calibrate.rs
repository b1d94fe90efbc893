//! What the generator itself can do, without a device: its ceiling and its noise.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use serde::Serialize;

use super::machine::{Found, Search};
use super::measure::{End, Unoffered, carry_out, start_over};
use crate::progress;
use crate::reflect::Reflector;
use crate::run::distribution::HIGHEST_NS;
use crate::run::{Kind, RunResult, RunSpec, run};
use crate::statistics::sample::{deviation, median};

/// The lowest rate of the search for the ceiling.
const RATE_MIN: f64 = 1_000.0;
/// And the highest.
const RATE_MAX: f64 = 4e6;
/// How closely the ceiling is wanted.
const WIDTH: f64 = 0.05;
/// Trials of a second, of which none may be bad; three decide.
const GOAL: &str = "ndr/exceed:0%/1s:3s";
/// Runs for the noise.
const RUNS: u32 = 5;

/// What the generator can do.
#[derive(Debug, Serialize)]
pub struct Calibration {
    /// The highest rate at which runs were VALID and lost nothing, with what is known around it.
    pub ceiling: Found,
    /// How the search for it ended.
    #[serde(skip)]
    pub end: Option<End>,
    /// What kept a run from being made, and with it all that were to follow.
    #[serde(skip)]
    pub failure: Option<anyhow::Error>,
    /// Median of the sender's lateness p99.9 over some runs at the rate of the spec, in nanoseconds.
    pub lateness_p999_ns: Option<f64>,
    /// Median over these runs of the response's p50 and p99, in nanoseconds.
    pub response_ns: [Option<f64>; 2],
    /// Deviation of the two from run to run, as a share.
    pub deviation: [f64; 2],
}

/// Runs `work` with a spec that leads to a reflector of our own on loopback.
///
/// # Errors
/// Those of `work`; when no reflector can be started.
pub fn with_reflector<T>(
    base: &RunSpec,
    work: impl FnOnce(&RunSpec) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let reflector = Reflector::bind(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))])?;
    let target = reflector.local_addrs()[0];
    let done = AtomicBool::new(false);
    let spec = RunSpec { kind: Kind::Udp, target, dut_pids: Vec::new(), bind: None, ..base.clone() };
    thread::scope(|scope| {
        // Owns the far end's socket; ends when `done` is set.
        let far_end = thread::Builder::new()
            .name("lab-far-end".to_owned())
            .spawn_scoped(scope, || reflector.run(None, &done))
            .context("cannot start the reflector")?;
        let outcome = work(&spec);
        done.store(true, Ordering::Relaxed);
        far_end.join().map_err(|_| anyhow::anyhow!("the reflector failed"))?.context("reflecting")?;
        outcome
    })
}

/// Finds the highest rate that the generator offers on time and gets back whole from the reflector at `spec.target`; how that ended
/// is beside it, so that what is known is not lost with it.
///
/// # Errors
/// Those of the first [`run`].
pub fn ceiling(
    spec: &RunSpec,
    budget: Duration,
    stop: &Arc<AtomicBool>,
    bar: &ProgressBar,
) -> anyhow::Result<(Found, anyhow::Result<End>)> {
    let mut search = search_for_ceiling()?;
    let ended = carry_out(&mut search, spec, budget, Unoffered::IsBad, stop, bar);
    match ended {
        Err(failure) if search.trials().next().is_none() => Err(failure),
        ended => Ok((search.found().remove(0), ended)),
    }
}

fn search_for_ceiling() -> anyhow::Result<Search> {
    let goal = GOAL.parse().map_err(anyhow::Error::msg)?;
    Ok(Search::new(vec![goal], RATE_MIN, RATE_MAX, WIDTH))
}

/// Measures noise at the rate of `spec`, then the ceiling.
///
/// # Errors
/// Those of the first [`run`]; what a later one keeps from being found is marked.
pub fn calibrate(
    spec: &RunSpec,
    budget: Duration,
    stop: &Arc<AtomicBool>,
    bar: &ProgressBar,
) -> anyhow::Result<Calibration> {
    let mut runs: Vec<RunResult> = Vec::new();
    let mut failure = None;
    bar.set_length(u64::from(RUNS) * progress::STEPS);
    for number in 0..RUNS {
        bar.set_message(format!("noise {}/{RUNS}", number + 1));
        let seed = spec.seed.wrapping_add(u64::from(number));
        let one = RunSpec { seed, stop: Some(Arc::clone(stop)), ..spec.clone() };
        let made = run(&one, |share| progress::step(bar, u64::from(number), share));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match made {
            Ok(made) => runs.push(made),
            Err(error) if runs.is_empty() => return Err(error),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let of = |value: &dyn Fn(&RunResult) -> Option<u64>| -> Vec<f64> {
        runs.iter().filter_map(value).map(|ns| ns as f64).collect()
    };
    // What was lost took as long as can be: without it the rest would look better than all.
    let quantile = |name: &'static str| {
        of(&|run| Some(run.latency.response.quantile(name)?.value_ns.unwrap_or(HIGHEST_NS).max(1)))
    };
    let (middle, tail) = (quantile("p50"), quantile("p99"));
    let logs = |values: &[f64]| deviation(&values.iter().map(|value| value.ln()).collect::<Vec<_>>());
    let lateness = of(&|run| run.latency.lateness.quantile("p99.9")?.value_ns);
    start_over(bar);
    let mut search = search_for_ceiling()?;
    let mut end = None;
    if failure.is_none() {
        match carry_out(&mut search, spec, budget, Unoffered::IsBad, stop, bar) {
            Ok(ended) => end = Some(ended),
            Err(error) => failure = Some(error),
        }
    }
    Ok(Calibration {
        ceiling: search.found().remove(0),
        end,
        failure,
        lateness_p999_ns: median(&lateness),
        response_ns: [median(&middle), median(&tail)],
        deviation: [logs(&middle), logs(&tail)],
    })
}
