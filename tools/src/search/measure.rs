//! Trials by real runs, and the search that makes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;

use super::machine::{Next, Search};
use super::trials::Trial;
use crate::run::clock::monotonic_ns;
use crate::run::verdict::{Validity, figure};
use crate::run::{Grade, RunResult, RunSpec, run};
use crate::units;

/// How often a trial that cannot be believed is repeated.
const REPEATS_MAX: u32 = 3;
/// Steps of the bar.
const STEPS: f64 = 1_000.0;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every goal is reached or out of reach.
    Over,
    /// The time was up.
    OutOfTime,
    /// SIGINT or SIGTERM.
    Interrupted,
}

/// What becomes of a trial that the generator could not offer as it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unoffered {
    /// The search stays below it: the device was not tested.
    Limits,
    /// It is a bad trial: the generator is what is tested.
    IsBad,
}

/// Runs `search` to its end with the load of `base`, for at most `budget`.
///
/// # Errors
/// Those of [`run`].
pub fn carry_out(
    search: &mut Search,
    base: &RunSpec,
    budget: Duration,
    unoffered: Unoffered,
    stop: &Arc<AtomicBool>,
    bar: &ProgressBar,
) -> anyhow::Result<End> {
    let begin = monotonic_ns();
    let budget_ns = budget.as_nanos() as u64;
    for number in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            return Ok(End::Interrupted);
        }
        let Next::Measure { rate, seconds } = search.next_trial() else { return Ok(End::Over) };
        let spent = (monotonic_ns() - begin) as f64 / budget_ns as f64;
        if spent >= 1.0 {
            return Ok(End::OutOfTime);
        }
        let share = search.share();
        let show = |_| {
            let spent = (monotonic_ns() - begin) as f64 / budget_ns as f64;
            bar.set_position((STEPS * share.max(spent).min(1.0)) as u64);
        };
        show(0.0);
        bar.set_message(format!("trial {number}: {} for {seconds:.0} s", units::rate(rate)));
        let spec = RunSpec {
            rate_pps: rate,
            duration: Duration::from_secs_f64(seconds),
            seed: base.seed.wrapping_add(number),
            stop: Some(Arc::clone(stop)),
            ..base.clone()
        };
        let Some(result) = believed(search, &spec, unoffered, stop, show)? else {
            return Ok(End::Interrupted);
        };
        let patience_ns = search.patience_ns(seconds);
        let of_run = |result: &RunResult| trial(result, rate, seconds, patience_ns);
        match (result.verdict.validity, unoffered) {
            (Validity::Valid, _) => search.record(of_run(&result)),
            (_, Unoffered::Limits) => search.limit(),
            (_, Unoffered::IsBad) => search.record(Trial { loss: 1.0, ..of_run(&result) }),
        }
    }
    Ok(End::Over)
}

/// Makes a run, again if it cannot be believed, and tells `search` of those that are thrown away; `None` when it was interrupted.
fn believed(
    search: &mut Search,
    spec: &RunSpec,
    unoffered: Unoffered,
    stop: &AtomicBool,
    progress: impl Fn(f64) + Send + Copy,
) -> anyhow::Result<Option<RunResult>> {
    let repeats = if unoffered == Unoffered::IsBad { 0 } else { REPEATS_MAX };
    for attempt in 0.. {
        let made = run(spec, progress);
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let result = made?;
        if result.verdict.validity != Validity::Valid && unoffered == Unoffered::Limits {
            search.discard(&result.verdict.line());
        }
        if result.verdict.validity == Validity::Valid || attempt == repeats {
            return Ok(Some(result));
        }
    }
    Ok(None)
}

/// A run as a trial. What came later after the last send than the fastest datagram needed and `patience_ns` more was held by a queue
/// that grew: the drain (RFC 2544 section 23 waits two seconds for residual frames) would let a device carry, for as long as a trial
/// lasts, what it only stores. It counts as lost.
#[must_use]
pub fn trial(result: &RunResult, rate: f64, seconds: f64, patience_ns: u64) -> Trial {
    let ledger = &result.ledger;
    let latency = ["p50", "p90", "p99", "p99.9", "p99.99", "p99.999"].map(|name| {
        let quantile =
            result.latency.response.quantile(name).filter(|quantile| quantile.grade != Grade::Omitted);
        (name, quantile.and_then(|quantile| quantile.value_ns).map(|ns| ns as f64))
    });
    let max = result.latency.response.max_ns.filter(|_| ledger.gone() == 0);
    let latency = latency.into_iter().chain([("max", max.map(|ns| ns as f64))]).collect();
    let queued = queued(result, patience_ns);
    let late_ns = figure(&result.latency.lateness, "p99.9");
    Trial { latency, queued, late_ns, ..Trial::new(rate, seconds, ledger.tried(), ledger.gone() + queued) }
}

/// Datagrams that came back in time, but too long after the last send.
fn queued(result: &RunResult, patience_ns: u64) -> u64 {
    let Some((histograms, fastest)) = result.histograms.as_ref().zip(result.latency.service.min_ns) else {
        return 0;
    };
    let tail = &histograms.tail;
    tail.len() - tail.count_between(0, fastest.saturating_add(patience_ns))
}

/// A bar for a search that may last `budget`; hidden where standard error is no terminal.
#[must_use]
pub fn bar() -> ProgressBar {
    let bar = crate::progress::bar(1);
    start_over(&bar);
    bar
}

/// Sets a bar that has shown something else to the beginning of a search.
pub fn start_over(bar: &ProgressBar) {
    bar.set_length(STEPS as u64);
    bar.reset();
}
