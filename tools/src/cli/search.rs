//! `towpath-lab search` and `towpath-lab calibrate`: the highest rate of a device, and of the generator.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;

use super::run::{self, Load};
use super::{EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_INVALID};
use crate::judge::Metric;
use crate::report::{Cell, Report, Section, Table};
use crate::run::{Kind, Problem, RunSpec};
use crate::search::calibrate::{Calibration, calibrate, ceiling, with_reflector};
use crate::search::measure::{End, Unoffered, bar, carry_out};
use crate::search::{Found, Goal, NotKept, Search, Trial};
use crate::units::{self, Rate};

/// The share of the generator's own ceiling up to which a device is searched.
const CEILING_SHARE: f64 = 0.8;

/// The share of the gap between bursts by which these may be late so that the load counts as even.
const EVEN: f64 = 0.1;

/// Options of `towpath-lab search`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The way the load takes
    #[arg(value_enum)]
    kind: Kind,
    /// ADDRESS:PORT of the reflector, or of the relay for the TURN kinds
    target: String,
    /// What is searched for: ndr, pdr:0.5%, rfc2544, tst009, slo:p99<500us, loss:1e-5; with /exceed:50%/1s:21s for other lengths;
    /// may be repeated
    #[arg(long, default_value = "ndr", value_name = "GOAL")]
    goal: Vec<Goal>,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    load: Load,
    /// Print bounds and trials as JSON
    #[arg(long)]
    json: bool,
}

/// Where and how long is searched.
#[derive(Debug, clap::Args)]
pub(super) struct Range {
    /// Lowest rate of the search
    #[arg(long, default_value = "1kpps", value_name = "RATE")]
    from: Rate,
    /// Highest rate [default: 80 % of what the generator itself can do, which is measured first]
    #[arg(long, value_name = "RATE")]
    max: Option<Rate>,
    /// Search up to all that the generator can do, not 80 % of it
    #[arg(long)]
    force: bool,
    /// How far apart the bounds may be, as a share of the upper one
    #[arg(long, default_value = "0.5%", value_name = "SHARE", value_parser = width)]
    width: f64,
    /// Give up after this time, with what is known
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    budget: Duration,
}

/// Reads `0.5%` or `0.005`.
fn width(text: &str) -> Result<f64, String> {
    let (digits, unit) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 100.0));
    let share = digits.trim().parse::<f64>().map_or(f64::NAN, |number| number / unit);
    if (0.0001..=0.5).contains(&share) {
        Ok(share)
    } else {
        Err(format!("{text:?} is not from 0.01% to 50%"))
    }
}

/// What a search found, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    /// What the generator itself can do, in datagrams a second, where it was measured.
    pub(super) ceiling: Option<f64>,
    /// What was known of that when its measurement was broken off, and with it all that was to follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) calibration: Option<Found>,
    /// The range that was searched.
    pub(super) range: [f64; 2],
    /// One for each goal.
    pub(super) found: Vec<Found>,
    /// Every trial, by rising rate.
    pub(super) trials: Vec<Trial>,
    /// Trials that do not count, by rising rate.
    pub(super) not_kept: Vec<NotKept>,
    /// Whether the generator could not offer what the search asked for.
    pub(super) limited: bool,
    #[serde(skip)]
    pub(super) end: Option<End>,
    /// What kept a trial from being made, and with it all that were to follow.
    #[serde(skip)]
    pub(super) failure: Option<anyhow::Error>,
}

impl Outcome {
    /// Why it ended, in a line.
    fn why_ended(&self) -> String {
        let unbounded = self.found.iter().find(|found| found.upper.is_none() || found.lower.is_none());
        let limit = units::rate(self.range[1]);
        match (self.end, unbounded) {
            _ if self.failure.is_some() => "a trial could not be made".to_owned(),
            (Some(End::Interrupted), _) => "interrupted".to_owned(),
            (Some(End::OutOfTime), _) if self.limited => {
                "the generator could not offer what was asked for, and then the time of --budget was up; see `towpath-lab calibrate`"
                    .to_owned()
            }
            (Some(End::OutOfTime), _) => "the time of --budget was up; raise it to go on".to_owned(),
            _ if self.limited => "the generator was the limit: it could not offer what was asked for; see `towpath-lab calibrate`".to_owned(),
            (_, Some(Found { goal, lower: None, .. })) => {
                format!("not even the lowest rate, {}, holds for {goal}; lower --from", units::rate(self.range[0]))
            }
            (_, Some(Found { goal, .. })) => {
                format!("the highest rate of the search, {limit}, holds for {goal}; raise --max")
            }
            (_, None) => "found: both bounds of every goal".to_owned(),
        }
    }

    /// Of a search that its calibration did not get to.
    fn uncalibrated(known: Found, min: f64, ended: anyhow::Result<End>) -> Self {
        let (end, failure) = match ended {
            Ok(end) => (Some(end), None),
            Err(failure) => (None, Some(failure)),
        };
        Self {
            ceiling: None,
            range: [min, known.lower.unwrap_or(min)],
            calibration: Some(known),
            found: Vec::new(),
            trials: Vec::new(),
            not_kept: Vec::new(),
            limited: false,
            end,
            failure,
        }
    }
}

/// Calibrates where no highest rate is given, and searches.
///
/// # Errors
/// Those of runs, up to the first trial of the search; [`Problem::Usage`] when the range is empty.
pub(super) fn outcome(
    base: &RunSpec,
    goals: Vec<Goal>,
    range: &Range,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Outcome> {
    let (bar, min) = (bar(), range.from.packets_per_second(base.mean_size()));
    let mut generator = None;
    let max = match range.max {
        Some(max) => max.packets_per_second(base.mean_size()),
        None => {
            let (found, ended) = with_reflector(base, |spec| ceiling(spec, range.budget, stop, &bar))?;
            if !matches!(ended, Ok(End::Over | End::OutOfTime)) {
                bar.finish_and_clear();
                return Ok(Outcome::uncalibrated(found, min, ended));
            }
            let Some(ceiling) = found.lower else {
                return Err(Problem::Setup(
                    "the generator cannot keep even 1 kpps here; free a core, or give --max to search all the same".to_owned(),
                )
                .into());
            };
            generator = Some(ceiling);
            if range.force { ceiling } else { CEILING_SHARE * ceiling }
        }
    };
    if max <= min {
        return Err(Problem::Usage(format!(
            "nothing to search between {} and {}; lower --from or raise --max",
            units::rate(min),
            units::rate(max)
        ))
        .into());
    }
    RunSpec { rate_pps: max, ..base.clone() }.check()?;
    let mut search = Search::new(goals, min, max, range.width);
    let ended = carry_out(&mut search, base, range.budget, Unoffered::Limits, stop, &bar);
    bar.finish_and_clear();
    let (end, failure) = match ended {
        Ok(end) => (Some(end), None),
        // What the trials before it say still holds.
        Err(failure) if search.trials().next().is_some() => (None, Some(failure)),
        Err(failure) => return Err(failure),
    };
    Ok(Outcome {
        ceiling: generator,
        calibration: None,
        range: [min, max],
        found: search.found(),
        trials: search.trials().cloned().collect(),
        not_kept: search.not_kept().cloned().collect(),
        limited: search.limited(),
        end,
        failure,
    })
}

/// Searches and prints.
pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let target = run::resolve(&args.target)?;
    let base = run::spec(args.kind, target, args.load)?;
    base.check()?;
    base.check_rate_is_free()?;
    let stop = super::stop_flag()?;
    let mut outcome = outcome(&base, args.goal, &args.range, &stop)?;
    print(&outcome, &base, args.json)?;
    if let Some(failure) = outcome.failure.take() {
        return Err(failure.context("the search broke off; what the trials before say is printed"));
    }
    Ok(exit(&outcome))
}

/// Prints what was found, as tables or as JSON.
pub(super) fn print(outcome: &Outcome, base: &RunSpec, json: bool) -> anyhow::Result<()> {
    if json {
        let mut all = serde_json::to_value(outcome)?;
        all["ended"] = outcome.why_ended().into();
        all["notes"] = cautions(outcome, base).to_vec().into();
        super::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))
    } else {
        super::print(&report(outcome, base).to_text())
    }
}

fn exit(outcome: &Outcome) -> ExitCode {
    ExitCode::from(match outcome.end {
        Some(End::Interrupted) => EXIT_INTERRUPTED,
        _ if outcome.limited => EXIT_INVALID,
        _ if outcome.found.iter().any(|found| !found.complete) => EXIT_INCONCLUSIVE,
        _ => 0,
    })
}

/// What bounds rest on besides the device: what is known of the generator, and what was believed of it.
fn cautions(outcome: &Outcome, base: &RunSpec) -> [String; 2] {
    let known = |rate: Option<f64>| rate.map_or("unknown".to_owned(), units::rate);
    let generator = match (outcome.ceiling, &outcome.calibration) {
        (Some(ceiling), _) => {
            let safe = CEILING_SHARE * ceiling;
            let beyond = format!("; --force: what is found above 80 % of it, {}, may be its own limit", units::rate(safe));
            format!(
                "generator: {} by itself, to a reflector on loopback{}",
                units::rate(ceiling),
                if outcome.range[1] > safe * 1.000_001 { &beyond } else { "" }
            )
        }
        (None, Some(Found { lower, upper, .. })) => format!(
            "generator: its calibration was broken off; it keeps {}, and what it does not keep is {}",
            known(*lower),
            known(*upper)
        ),
        (None, None) => "generator: not calibrated, because --max was given: a bound may be its own limit; see `towpath-lab calibrate`"
            .to_owned(),
    };
    let late: Vec<(f64, u64)> =
        outcome.trials.iter().filter_map(|trial| Some((trial.rate, trial.late_ns?))).collect();
    let is_even =
        |(rate, late_ns): &&(f64, u64)| *late_ns as f64 <= EVEN * 1e9 * f64::from(base.burst) / rate;
    let seen = late.iter().map(|&(_, late_ns)| late_ns).max().map_or("no trial was kept".to_owned(), |latest| {
        format!(
            "p99.9 of its lateness was within a tenth of the gap between bursts in {} of {}, and {} at most",
            late.iter().filter(is_even).count(),
            units::count(late.len() as u64, "trial"),
            units::nanoseconds(latest)
        )
    });
    let believed = format!(
        "sender: {seen}; up to {} (or a quarter of the service's) of it a trial is kept, and up to {} of steal. Late sends leave in bunches, \
         of which more may be lost",
        units::nanoseconds(base.lateness_limit.as_nanos() as u64),
        units::share(base.steal_limit)
    );
    [generator, believed]
}

fn report(outcome: &Outcome, base: &RunSpec) -> Report {
    let header =
        ["goal", "holds", "does not hold", "apart", "arrives", "lost at the lower bound", "bad seconds"];
    let rate = |rate: Option<f64>| Cell::from(rate.map_or("–".to_owned(), units::rate));
    let row = |found: &Found| {
        let apart = found.lower.zip(found.upper).map(|(lower, upper)| units::share((upper - lower) / upper));
        vec![
            Cell::from(found.goal.name.clone()),
            rate(found.lower),
            rate(found.upper),
            Cell::from(apart.unwrap_or_else(|| "–".to_owned())),
            rate(found.throughput),
            Cell::from(lost(found)),
            Cell::from(if found.sent == 0 { "–".to_owned() } else { units::share(found.exceeded) }),
        ]
    };
    let mut notes: Vec<String> = outcome
        .found
        .iter()
        .filter_map(|found| Some(format!("{}: {}", found.goal, found.note.as_ref()?)))
        .collect();
    notes.extend(cautions(outcome, base));
    let bits =
        outcome.found.iter().filter_map(|found| found.lower).fold(0.0, f64::max) * 8.0 * base.mean_size();
    notes.push(format!(
        "{} between {} and {}, there and back: datagrams of {} B of UDP payload ({:.1} Mbit/s of it at the highest lower bound), \
         {}, bursts of {}{}; seed {}",
        units::count(outcome.trials.len() as u64, "trial"),
        units::rate(outcome.range[0]),
        units::rate(outcome.range[1]),
        base.size,
        bits / 1e6,
        units::count(base.flows, "flow"),
        base.burst,
        if base.gso { " in one superpacket" } else { "" },
        base.seed
    ));
    notes.extend(outcome.not_kept.iter().map(|not_kept| {
        let kept = if not_kept.trials == 1 { "was not kept" } else { "were not kept; the last one" };
        format!(
            "{} at {} {kept}: {}",
            units::count(not_kept.trials, "trial"),
            units::rate(not_kept.rate),
            not_kept.reason
        )
    }));
    let mut trials = Table {
        header: ["trial", "seconds", "sent", "lost", "of them queued", "p50", "p99"]
            .map(str::to_owned)
            .into(),
        rows: Vec::new(),
    };
    trials.rows.extend(outcome.trials.iter().map(trial));
    let table =
        Table { header: header.map(str::to_owned).into(), rows: outcome.found.iter().map(row).collect() };
    let bounds = Section { table, notes, ..Section::default() };
    let trials = Section { title: "Trials".to_owned(), table: trials, ..Section::default() };
    let title = format!("towpath-lab search  {} {}", base.kind.name(), base.target);
    let mut notes = vec![format!("ended: {}", outcome.why_ended())];
    notes.extend(outcome.failure.as_ref().map(|error| format!("the search broke off: {error:#}")));
    Report { title, notes, sections: vec![bounds, trials] }
}

fn trial(trial: &Trial) -> Vec<Cell> {
    let latency = |name: &str| {
        let value = trial.latency.iter().find(|entry| entry.0 == name).and_then(|entry| entry.1);
        Cell::from(value.map_or("–".to_owned(), |ns| units::nanoseconds(ns as u64)))
    };
    vec![
        Cell::from(units::rate(trial.rate)),
        Cell::from(format!("{:.1}", trial.seconds)),
        Cell::from(trial.sent.to_string()),
        Cell::from(trial.lost.to_string()),
        Cell::from(trial.queued.to_string()),
        latency("p50"),
        latency("p99"),
    ]
}

/// `0 of N: loss < 3/N`, or the share.
fn lost(found: &Found) -> String {
    match (found.sent, found.lost) {
        (0, _) => "–".to_owned(),
        (sent, 0) => format!("0 of {sent}: loss < 3/{sent} = {:.1e}", 3.0 / sent as f64),
        (sent, lost) => format!("{lost} of {sent}: {:.1e}", lost as f64 / sent as f64),
    }
}

/// Options of `towpath-lab calibrate`.
#[derive(Debug, clap::Args)]
pub(super) struct CalibrateArgs {
    /// ADDRESS:PORT of a reflector that nothing to be tested lies before [default: one of its own, on loopback]
    target: Option<String>,
    #[command(flatten)]
    load: Load,
    /// Give up after this time, with what is known
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    budget: Duration,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// Calibrates and prints.
pub(super) fn calibrate_main(args: CalibrateArgs) -> anyhow::Result<ExitCode> {
    let target = args.target.as_deref().map(run::resolve).transpose()?;
    let base = run::spec(Kind::Udp, target.unwrap_or_else(|| ([127, 0, 0, 1], 1).into()), args.load)?;
    base.check()?;
    base.check_rate_is_free()?;
    let stop = super::stop_flag()?;
    let bar = bar();
    let mut found = match target {
        Some(_) => calibrate(&base, args.budget, &stop, &bar)?,
        None => with_reflector(&base, |spec| calibrate(spec, args.budget, &stop, &bar))?,
    };
    bar.finish_and_clear();
    if args.json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&found)?))?;
    } else {
        super::print(&calibration(&found, &base).to_text())?;
    }
    if let Some(failure) = found.failure.take() {
        return Err(failure.context("the calibration broke off; what was measured before is printed"));
    }
    Ok(match found.end {
        Some(End::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        _ if found.ceiling.lower.is_none() => ExitCode::from(EXIT_INVALID),
        _ if !found.ceiling.complete => ExitCode::from(EXIT_INCONCLUSIVE),
        _ => ExitCode::SUCCESS,
    })
}

fn calibration(found: &Calibration, base: &RunSpec) -> Report {
    let time = |ns: Option<f64>| ns.map_or("–".to_owned(), |ns| Metric::Max.text(ns));
    let rate = |rate: Option<f64>| rate.map_or("–".to_owned(), units::rate);
    let [middle, tail] = found.response_ns;
    let row =
        |name: &str, value: String, more: String| vec![Cell::from(name), Cell::from(value), Cell::from(more)];
    let spread = |share: f64| format!("±{:.1} % from run to run", 100.0 * share);
    let at = format!("at {}", units::rate(base.rate_pps));
    let rows = vec![
        row(
            "ceiling",
            rate(found.ceiling.lower),
            format!("not VALID, or lost, at {}", rate(found.ceiling.upper)),
        ),
        row("lateness of the sender, p99.9", time(found.lateness_p999_ns), at.clone()),
        row("there and back, p50", time(middle), format!("{at}, {}", spread(found.deviation[0]))),
        row("there and back, p99", time(tail), format!("{at}, {}", spread(found.deviation[1]))),
    ];
    let mut notes: Vec<String> = found.ceiling.note.iter().map(|note| format!("ceiling: {note}")).collect();
    notes.push(format!(
        "datagrams of {} B, {}, bursts of {}{}; a limit that is found above 80 % of the ceiling may be the generator's",
        base.size,
        units::count(base.flows, "flow"),
        base.burst,
        if base.gso { " in one superpacket" } else { "" }
    ));
    let table = Table { header: ["generator", "value", ""].map(str::to_owned).into(), rows };
    let section = Section { table, notes, ..Section::default() };
    Report { title: "towpath-lab calibrate".to_owned(), notes: Vec::new(), sections: vec![section] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_that_the_generator_limited_says_so_when_its_time_is_up_too() {
        let base = RunSpec::new(Kind::Udp, ([127, 0, 0, 1], 9).into());
        let mut search = Search::new(vec!["ndr".parse().unwrap()], 1_000.0, 3_000.0, 0.005);
        search.next_trial();
        search.discard("GENERATOR-LIMITED: first");
        search.discard("GENERATOR-LIMITED: last");
        search.limit();
        let mut outcome = Outcome {
            ceiling: None,
            calibration: None,
            range: [1_000.0, 3_000.0],
            found: search.found(),
            trials: search.trials().cloned().collect(),
            not_kept: search.not_kept().cloned().collect(),
            limited: search.limited(),
            end: Some(End::OutOfTime),
            failure: None,
        };
        let text = report(&outcome, &base).to_text();
        let kept = "2 trials at 3.00 kpps were not kept; the last one: GENERATOR-LIMITED: last";
        assert!(text.contains("ended: the generator could not offer") && text.contains(kept), "{text}");
        assert!(text.contains("sender: no trial was kept; up to 1.00 ms"), "{text}");
        outcome.limited = false;
        assert!(outcome.why_ended().starts_with("the time of --budget was up"));

        // What a bound rests on: a generator that nobody measured, or more than is safe of one, and sends that were late.
        assert!(
            text.contains("not calibrated, because --max was given: a bound may be its own limit"),
            "{text}"
        );
        let late = |rate, late_ns| Trial { late_ns: Some(late_ns), ..Trial::new(rate, 1.0, 1_000, 0) };
        outcome.trials = vec![late(1_000.0, 100_000), late(2_000.0, 51_000)];
        outcome.ceiling = Some(3_000.0);
        let text = report(&outcome, &base).to_text();
        assert!(
            text.contains("--force: what is found above 80 % of it, 2.40 kpps, may be its own limit"),
            "{text}"
        );
        assert!(text.contains("in 1 of 2 trials, and 100 µs at most; up to 1.00 ms"), "{text}");
        outcome.range[1] = 2_400.0;
        assert!(!report(&outcome, &base).to_text().contains("--force"));
    }

    #[test]
    fn what_a_calibration_knew_when_it_was_interrupted_is_told() {
        let base = RunSpec::new(Kind::Udp, ([127, 0, 0, 1], 9).into());
        let range = Range {
            from: Rate::Packets(1_000.0),
            max: None,
            force: false,
            width: 0.005,
            budget: Duration::from_secs(60),
        };
        let stop = Arc::new(AtomicBool::new(true));
        let mut outcome = outcome(&base, vec!["ndr".parse().unwrap()], &range, &stop).unwrap();
        assert_eq!((outcome.end, outcome.found.len()), (Some(End::Interrupted), 0));
        outcome.calibration.as_mut().unwrap().lower = Some(5_000.0);
        let text = report(&outcome, &base).to_text();
        assert!(
            text.contains(
                "its calibration was broken off; it keeps 5.00 kpps, and what it does not keep is unknown"
            ),
            "{text}"
        );
        assert!(serde_json::to_string(&outcome).unwrap().contains("\"calibration\":{"));
    }
}
