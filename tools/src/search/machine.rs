//! Which trial comes next, and what is known when none does.

use std::collections::BTreeMap;

use serde::Serialize;

use super::goal::Goal;
use super::trials::{Bound, Trial, classify, conditional_loss};

/// The least time for what comes after the last send of a trial, in nanoseconds: both ends may have to wait for a core.
const PATIENCE_MIN_NS: u64 = 5_000_000;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Make a trial at `rate` datagrams a second for `seconds`, and answer by [`Search::record`] or [`Search::limit`].
    Measure {
        /// Datagrams a second.
        rate: f64,
        /// Seconds of measured sending.
        seconds: f64,
    },
    /// Every goal is reached or out of reach.
    Done,
}

/// What was found of a goal.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The goal.
    pub goal: Goal,
    /// The highest load known to hold below [`Self::upper`], in datagrams a second.
    pub lower: Option<f64>,
    /// The lowest load known not to hold.
    pub upper: Option<f64>,
    /// What arrived at the lower bound, by the trial that stands for it.
    pub throughput: Option<f64>,
    /// Whether both bounds are known and as close as asked, or one lies at an end of the range.
    pub complete: bool,
    /// Sent and lost in the deciding trials at the lower bound.
    pub sent: u64,
    /// Of them lost.
    pub lost: u64,
    /// The share of bad seconds at the lower bound.
    pub exceeded: f64,
    /// What a reader has to know.
    pub note: Option<String>,
}

/// Loads are numbered points of a geometric grid, so that bounds meet exactly.
#[derive(Clone, Copy, Debug)]
struct Grid {
    min: f64,
    max: f64,
    /// The highest number.
    last: usize,
}

impl Grid {
    /// Points that lie at most `width` apart.
    fn new(min: f64, max: f64, width: f64) -> Self {
        let steps = (max / min).ln() / -(-width).ln_1p();
        // A little narrower than asked, lest rounding make it wider.
        Self { min, max, last: ((steps / 0.999_999).ceil() as usize).max(1) }
    }

    fn rate(&self, load: usize) -> f64 {
        match load {
            0 => self.min,
            load if load >= self.last => self.max,
            load => self.min * ((self.max / self.min).ln() * load as f64 / self.last as f64).exp(),
        }
    }

    /// The highest load at or below `rate`.
    fn below(&self, rate: f64) -> usize {
        if rate <= self.min {
            return 0;
        }
        let steps = (rate / self.min).ln() / (self.max / self.min).ln() * self.last as f64;
        (steps as usize).min(self.last)
    }
}

/// Trials at one load that do not count, because their runs were not VALID.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NotKept {
    /// What should have been offered, in datagrams a second.
    pub rate: f64,
    /// How many there were.
    pub trials: u64,
    /// Validity and reasons of the last.
    pub reason: String,
}

/// How far a goal has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    phase: usize,
    /// Bounds of the phase before.
    lower_hint: Option<usize>,
    upper_hint: Option<usize>,
    /// The load that was last tried outside of the bounds, and how far from them the next one is.
    extension: Option<(usize, usize)>,
    over: bool,
}

/// A search for several goals at once, whose trials serve all of them.
#[derive(Clone, Debug)]
pub struct Search {
    goals: Vec<(Goal, Progress)>,
    width: f64,
    grid: Grid,
    trials: BTreeMap<usize, Vec<Trial>>,
    not_kept: BTreeMap<usize, NotKept>,
    /// The highest load that the generator can offer.
    ceiling: usize,
    /// The load of the trial that is being made.
    asked: Option<usize>,
}

impl Search {
    /// A search between `min` and `max` datagrams a second, for bounds at most `width` apart as a share of the upper one.
    #[must_use]
    pub fn new(goals: Vec<Goal>, min: f64, max: f64, width: f64) -> Self {
        let grid = Grid::new(min, max.max(min * 1.000_001), width);
        let goals = goals.into_iter().map(|goal| (goal, Progress::default())).collect();
        Self {
            goals,
            width,
            grid,
            trials: BTreeMap::new(),
            not_kept: BTreeMap::new(),
            ceiling: grid.last,
            asked: None,
        }
    }

    /// How long after the last send of a trial of so many seconds what a queue held may come, in nanoseconds: as large a share of the
    /// trial as the bounds may lie apart. A load that is further above the capacity than that leaves a longer queue.
    #[must_use]
    pub fn patience_ns(&self, seconds: f64) -> u64 {
        PATIENCE_MIN_NS.max((1e9 * seconds * self.width) as u64)
    }

    /// The next trial. The same until it is answered.
    pub fn next_trial(&mut self) -> Next {
        let Some((load, seconds)) = self.choose() else { return Next::Done };
        self.asked = Some(load);
        Next::Measure { rate: self.grid.rate(load), seconds }
    }

    /// Takes the result of the trial that was asked for.
    pub fn record(&mut self, trial: Trial) {
        let Some(load) = self.asked.take() else { return };
        self.trials.entry(load).or_default().push(trial);
    }

    /// A run at the load that was asked for was not VALID, for `reason`: it may be made again.
    pub fn discard(&mut self, reason: &str) {
        let Some(load) = self.asked else { return };
        let none = NotKept { rate: self.grid.rate(load), trials: 0, reason: String::new() };
        let not_kept = self.not_kept.entry(load).or_insert(none);
        not_kept.trials += 1;
        reason.clone_into(&mut not_kept.reason);
    }

    /// What was discarded, by rising load.
    pub fn not_kept(&self) -> impl Iterator<Item = &NotKept> {
        self.not_kept.values()
    }

    /// The generator cannot offer the load that was asked for: the search stays below it.
    pub fn limit(&mut self) {
        let Some(load) = self.asked.take() else { return };
        self.ceiling = load.saturating_sub(1);
        // What was not offered says nothing of the device.
        self.trials.retain(|&other, _| other < load);
        for (_, progress) in &mut self.goals {
            progress.extension = None;
            progress.upper_hint = progress.upper_hint.filter(|&hint| hint < load);
        }
        if load == 0 {
            self.goals.iter_mut().for_each(|(_, progress)| progress.over = true);
        }
    }

    /// Whether the generator was the limit at some load.
    #[must_use]
    pub fn limited(&self) -> bool {
        self.ceiling < self.grid.last
    }

    /// The share of the work that is done, roughly.
    #[must_use]
    pub fn share(&self) -> f64 {
        let phases = |(goal, progress): &(Goal, Progress)| {
            if progress.over { goal.phases().len() as f64 } else { progress.phase as f64 }
        };
        self.goals.iter().map(phases).sum::<f64>() / (3 * self.goals.len()).max(1) as f64
    }

    /// Every trial, by rising load.
    pub fn trials(&self) -> impl Iterator<Item = &Trial> {
        self.trials.values().flatten()
    }

    /// What is known of each goal now.
    #[must_use]
    pub fn found(&self) -> Vec<Found> {
        self.goals.iter().map(|(goal, progress)| self.found_of(goal, progress)).collect()
    }

    fn found_of(&self, goal: &Goal, progress: &Progress) -> Found {
        let last = &goal.phases()[2];
        let (lower, upper) = self.bounds(goal, 2);
        let trials = lower.and_then(|load| self.trials.get(&load)).map_or(&[][..], Vec::as_slice);
        let long: Vec<&Trial> = trials.iter().filter(|trial| trial.seconds >= last.trial_s - 1e-9).collect();
        let (all_s, bad_s) = long.iter().fold((0.0, 0.0), |(all, bad), trial| {
            (all + trial.seconds, bad + if goal.criterion.is_bad(trial) { trial.seconds } else { 0.0 })
        });
        let loss = conditional_loss(trials, goal, last);
        Found {
            goal: goal.clone(),
            lower: lower.map(|load| self.grid.rate(load)),
            upper: upper.map(|load| self.grid.rate(load)),
            throughput: lower.map(|load| self.grid.rate(load) * (1.0 - loss)),
            complete: progress.over && (lower.is_some() || upper.is_some()),
            sent: long.iter().map(|trial| trial.sent).sum(),
            lost: long.iter().map(|trial| trial.lost).sum(),
            exceeded: if all_s > 0.0 { bad_s / all_s } else { 0.0 },
            note: self.note(goal, progress, lower, upper),
        }
    }

    fn note(
        &self,
        goal: &Goal,
        progress: &Progress,
        lower: Option<usize>,
        upper: Option<usize>,
    ) -> Option<String> {
        if !progress.over {
            return Some("undecided: the search did not come to its end".to_owned());
        }
        match (lower, upper) {
            (Some(_), Some(_)) => None,
            (Some(_), None) if self.limited() => {
                Some("limited by the generator: the device carries at least that".to_owned())
            }
            (Some(_), None) => {
                Some("the highest rate of the search: the device carries at least that".to_owned())
            }
            (None, _) if self.limited() && self.ceiling == 0 => {
                Some("the generator cannot offer even the lowest rate".to_owned())
            }
            (None, _) => {
                let lowest = self.trials.get(&0).map_or(&[][..], Vec::as_slice);
                let worst = lowest
                    .iter()
                    .filter(|trial| goal.criterion.is_bad(trial))
                    .max_by(|a, b| a.loss.total_cmp(&b.loss));
                Some(worst.map_or("not even the lowest rate holds".to_owned(), |trial| {
                    format!(
                        "not even the lowest rate holds: {} of {} lost in {} s",
                        trial.lost, trial.sent, trial.seconds
                    )
                }))
            }
        }
    }

    /// Load and length of the next trial; `None` when all goals are over.
    fn choose(&mut self) -> Option<(usize, f64)> {
        // Coarse phases of all goals first: their trials are short and narrow the field for everyone.
        loop {
            let index = (0..self.goals.len())
                .filter(|&index| !self.goals[index].1.over)
                .min_by_key(|&index| self.goals[index].1.phase)?;
            let (goal, mut progress) = self.goals[index].clone();
            let phase = goal.phases()[progress.phase];
            if self.trials.is_empty() {
                // How much of the most comes through tells where to look.
                return Some((self.ceiling, phase.trial_s));
            }
            let (lower, upper) = self.bounds(&goal, progress.phase);
            let load = self.nominate(&mut progress, lower, upper, phase.coarser);
            if load.is_none() {
                let last = progress.phase + 1 == goal.phases().len();
                let next = Progress {
                    phase: progress.phase + 1,
                    lower_hint: lower,
                    upper_hint: upper,
                    ..Progress::default()
                };
                progress = if last { Progress { over: true, ..progress } } else { next };
            }
            self.goals[index].1 = progress;
            if let Some(load) = load {
                return Some((load, phase.trial_s));
            }
        }
    }

    /// The lowest load that does not hold in this phase, and the highest below it that does.
    fn bounds(&self, goal: &Goal, phase: usize) -> (Option<usize>, Option<usize>) {
        let phase = goal.phases()[phase];
        let mut lower = None;
        for (&load, trials) in &self.trials {
            match classify(trials, goal, &phase) {
                Bound::Lower => lower = Some(load),
                Bound::Upper => return (lower, Some(load)),
                Bound::Open => {}
            }
        }
        (lower, None)
    }

    /// The load at which a trial helps most: a bound of the phase before, then beyond what is known, then in the middle.
    fn nominate(
        &self,
        progress: &mut Progress,
        lower: Option<usize>,
        upper: Option<usize>,
        width: usize,
    ) -> Option<usize> {
        let inside =
            |load: &usize| lower.is_none_or(|lower| *load > lower) && upper.is_none_or(|upper| *load < upper);
        if let (Some(lower), Some(upper)) = (lower, upper)
            && upper - lower <= width
        {
            return None;
        }
        if progress.phase == 0 && progress.lower_hint.is_none() {
            progress.lower_hint = self.forwarded();
        }
        if let Some(hint) = [progress.lower_hint, progress.upper_hint].into_iter().flatten().find(inside) {
            return Some(hint.min(self.ceiling));
        }
        match (lower, upper) {
            (None, None) => Some(self.ceiling),
            (None, Some(0)) => None,
            (None, Some(upper)) => Some(extend(progress, width, |step| upper.saturating_sub(step))),
            (Some(lower), None) if lower >= self.ceiling => None,
            (Some(lower), None) => Some(extend(progress, width, |step| (lower + step).min(self.ceiling))),
            (Some(lower), Some(upper)) => Some(middle(lower, upper, width)),
        }
    }

    /// The load that the device forwarded when it was offered the most.
    fn forwarded(&self) -> Option<usize> {
        let most = self.trials.values().next_back()?.first()?;
        Some(self.grid.below(most.rate * (1.0 - most.loss)))
    }
}

/// A load outside of the known bounds, twice as far from them each time that one is decided.
fn extend(progress: &mut Progress, width: usize, at: impl Fn(usize) -> usize) -> usize {
    let step = match progress.extension {
        None => width,
        // Still the same distance while the load there is open.
        Some((load, step)) if at(step) == load => step,
        Some((_, step)) => 2 * step,
    };
    progress.extension = Some((at(step), step));
    at(step)
}

/// A load in the middle, a multiple of `width` below the upper bound where there is room: narrower bounds then fit.
fn middle(lower: usize, upper: usize, width: usize) -> usize {
    let half = (upper - lower) / 2;
    let whole = half / width * width;
    upper - if whole == 0 { half.max(1) } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_may_last_as_large_a_share_of_a_trial_as_the_bounds_may_lie_apart() {
        let patience_ms = |width, seconds| {
            Search::new(vec!["ndr".parse().unwrap()], 1_000.0, 2_000.0, width).patience_ns(seconds)
                / 1_000_000
        };
        assert_eq!([patience_ms(0.005, 60.0), patience_ms(0.05, 1.0)], [300, 50]);
        assert_eq!([patience_ms(0.005, 1.0), patience_ms(0.005, 0.1)], [5, 5]);
    }

    fn goals(names: &[&str]) -> Vec<Goal> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    /// Searches a device that answers by `lost`; how many trials it took.
    fn run(search: &mut Search, mut lost: impl FnMut(f64, f64) -> f64) -> usize {
        for trials in 0..2_000 {
            let Next::Measure { rate, seconds } = search.next_trial() else { return trials };
            let sent = (rate * seconds) as u64;
            search.record(Trial::new(rate, seconds, sent, (lost(rate, seconds) * sent as f64).ceil() as u64));
        }
        panic!("no end after 2000 trials: {:?}", search.found());
    }

    fn beyond(capacity: f64) -> impl Fn(f64, f64) -> f64 {
        move |rate, _| if rate > capacity { 1.0 - capacity / rate } else { 0.0 }
    }

    #[test]
    fn a_firm_capacity_is_enclosed_as_closely_as_asked_from_anywhere_in_few_trials() {
        for capacity in [1_001.0, 1_500.0, 9_999.0, 123_456.0, 500_000.0, 999_000.0] {
            let mut search = Search::new(goals(&["ndr", "pdr:0.5%"]), 1_000.0, 1e6, 0.005);
            let trials = run(&mut search, beyond(capacity));
            let found = &search.found()[0];
            let (lower, upper) = (found.lower.unwrap(), found.upper.unwrap());
            assert!(lower <= capacity && capacity < upper && upper - lower <= 0.005 * upper, "{found:?}");
            assert!(
                found.complete && found.lost == 0 && found.sent > 0 && found.throughput == found.lower,
                "{found:?}"
            );
            assert!(trials <= 120, "{trials} trials for {capacity}");
            let partial = &search.found()[1];
            // Half a percent above the highest capacity there is no rate any more.
            let enclosed = partial.upper.is_none_or(|upper| upper <= capacity * 1.0115);
            assert!(partial.lower.unwrap() >= lower && enclosed, "{partial:?}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_ends() {
        let mut search = Search::new(goals(&["ndr"]), 1_000.0, 10_000.0, 0.01);
        run(&mut search, |_, _| 0.0);
        let found = search.found().remove(0);
        assert_eq!((found.lower, found.upper, found.complete), (Some(10_000.0), None, true));
        assert!(found.note.unwrap().contains("at least"));
        let mut search = Search::new(goals(&["ndr"]), 1_000.0, 10_000.0, 0.01);
        run(&mut search, |_, _| 0.5);
        let found = search.found().remove(0);
        assert_eq!((found.lower, found.upper, found.throughput), (None, Some(1_000.0), None));
        assert!(found.note.unwrap().contains("lost in"));
    }

    #[test]
    fn a_generator_that_cannot_offer_more_is_said_to_be_the_limit() {
        let mut search = Search::new(goals(&["ndr", "slo:p99<500us"]), 1_000.0, 1e6, 0.005);
        for _ in 0..2_000 {
            let Next::Measure { rate, seconds } = search.next_trial() else { break };
            if rate > 50_000.0 {
                search.limit();
                continue;
            }
            let latency = vec![("p99", Some(if rate > 20_000.0 { 1e6 } else { 1e5 }))];
            search.record(Trial { latency, ..Trial::new(rate, seconds, 1_000, 0) });
        }
        let found = search.found();
        assert!(found[0].lower.unwrap() > 49_000.0 && found[0].upper.is_none(), "{found:?}");
        assert!(found[0].note.as_ref().unwrap().contains("generator"), "{found:?}");
        let (lower, upper) = (found[1].lower.unwrap(), found[1].upper.unwrap());
        assert!(lower <= 20_000.0 && 20_000.0 < upper && found[1].note.is_none(), "{found:?}");
    }

    #[test]
    fn a_load_whose_quantile_is_lost_does_not_hold() {
        let mut search = Search::new(goals(&["slo:p99<500us"]), 1_000.0, 1e6, 0.005);
        while let Next::Measure { rate, seconds } = search.next_trial() {
            // Above 20 kpps 2 % are lost, and what arrives does so in time.
            let lost = if rate > 20_000.0 { 20 } else { 0 };
            let latency = vec![("p50", Some(1e5)), ("p99", (lost == 0).then_some(1e5))];
            search.record(Trial { latency, ..Trial::new(rate, seconds, 1_000, lost) });
        }
        let found = search.found().remove(0);
        let (lower, upper) = (found.lower.unwrap(), found.upper.unwrap());
        assert!(lower <= 20_000.0 && 20_000.0 < upper && upper < 20_200.0, "{found:?}");
    }

    #[test]
    fn a_rate_that_does_better_than_a_lower_one_does_not_count() {
        // Between 30,000 and 40,000 everything is lost, above nothing up to 100,000.
        let mut search = Search::new(goals(&["ndr"]), 1_000.0, 100_000.0, 0.01);
        let hole = |rate: f64, _| if (30_000.0..40_000.0).contains(&rate) { 0.5 } else { 0.0 };
        run(&mut search, hole);
        let found = search.found().remove(0);
        assert_eq!(found.lower, Some(100_000.0), "nothing below was ever tried");
        // Once the hole was met, what lies above it is no lower bound any more.
        let mut search = Search::new(goals(&["ndr"]), 1_000.0, 100_000.0, 0.01);
        run(
            &mut search,
            |rate, seconds| if rate > 90_000.0 { 1.0 - 35_000.0 / rate } else { hole(rate, seconds) },
        );
        let found = search.found().remove(0);
        assert!(found.lower.unwrap() < 30_000.0 && found.upper.unwrap() < 30_400.0, "{found:?}");
    }

    #[test]
    fn a_search_without_time_is_undecided_and_says_what_it_knows() {
        let mut search = Search::new(goals(&["ndr"]), 1_000.0, 1e6, 0.005);
        let Next::Measure { rate, seconds } = search.next_trial() else { panic!("a first trial") };
        assert_eq!((rate, seconds), (1e6, 1.0));
        assert_eq!(search.next_trial(), Next::Measure { rate, seconds });
        search.record(Trial::new(rate, seconds, 1_000_000, 900_000));
        let found = search.found().remove(0);
        assert!(!found.complete && found.lower.is_none() && found.note.unwrap().contains("undecided"));
    }
}
