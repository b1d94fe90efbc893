//! What is demanded of a side, and whether it holds: the project's targets, and the wide bands of `--quick`.

use super::figures::{Figure, Side, Spread, ratios, resident_mib};
use super::rows::Contender;

/// A side is worse beyond noise when it is worse by more than this in the middle …
const NOISE: f64 = 1.05;
/// … and in at least this share of the turns (in all of up to nine).
const NOISE_TURNS: f64 = 0.9;
/// By chance, one side is worse in all of five turns once in 32 times; in three, once in 8.
const NOISE_TURNS_MIN: usize = 5;

/// The side that a target is about unless it says otherwise.
const OURS: &str = "towpath";

/// What is demanded of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Demand {
    /// The median of the ratios of turns of the same round is at most this.
    RatioAtMost(f64),
    /// … is at least this.
    RatioAtLeast(f64),
    /// The median is at most this; of memory, the largest.
    AtMost(f64),
    /// Not worse than the other side beyond noise.
    NotWorse,
}

/// One demand on a side.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// On which of its figures.
    pub figure: Figure,
    /// How much.
    pub demand: Demand,
    /// The name of the side.
    pub of: &'static str,
    /// The name of the side it is compared with.
    pub against: &'static str,
    /// Whether the project fails without it.
    pub must: bool,
}

impl Target {
    /// Demanded of "towpath".
    #[must_use]
    pub const fn new(figure: Figure, demand: Demand, against: &'static str) -> Self {
        Self { figure, demand, of: OURS, against, must: false }
    }

    /// The same of another side.
    #[must_use]
    pub const fn of(mut self, name: &'static str) -> Self {
        self.of = name;
        self
    }

    /// The same, and the project fails without it.
    #[must_use]
    pub const fn must(mut self) -> Self {
        self.must = true;
        self
    }
}

/// Whether a demand holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Met,
    /// It does not.
    Missed,
    /// A side has no turns.
    NotMeasured,
}

/// A target with its outcome, as a sentence.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Without the outcome.
    sentence: String,
    /// Whether it holds.
    pub outcome: Outcome,
}

impl Verdict {
    /// Judges `target` by the turns; `unit` is that of its figure.
    #[must_use]
    pub fn of(target: &Target, unit: &str, measured: &[(&Contender, Side)]) -> Self {
        let samples = |name: &str| {
            measured
                .iter()
                .find(|(contender, _)| contender.name == name)
                .map_or(&[][..], |(_, side)| side.samples())
        };
        let (own, other) = (samples(target.of), samples(target.against));
        let pairs: Vec<f64> = ratios(own, other, target.figure).collect();
        let ratio = Spread::of(pairs.iter().copied()).map(|spread| spread.median);
        let (value, holds) = match target.demand {
            Demand::RatioAtMost(limit) => (ratio, ratio.is_some_and(|ratio| ratio <= limit)),
            Demand::RatioAtLeast(limit) => (ratio, ratio.is_some_and(|ratio| ratio >= limit)),
            Demand::AtMost(limit) => {
                let value = if target.figure == Figure::Resident {
                    (!own.is_empty()).then(|| resident_mib(own))
                } else {
                    let values = own.iter().filter_map(|sample| sample.figure(target.figure));
                    Spread::of(values).map(|spread| spread.median)
                };
                (value, value.is_some_and(|value| value <= limit))
            }
            // Of fewer turns nobody can tell.
            Demand::NotWorse => {
                (ratio.filter(|_| pairs.len() >= NOISE_TURNS_MIN), !worse_beyond_noise(&pairs, target.figure))
            }
        };
        let outcome = match (value, holds) {
            (None, _) => Outcome::NotMeasured,
            (Some(_), true) => Outcome::Met,
            (Some(_), false) => Outcome::Missed,
        };
        let figure = value.map_or_else(String::new, |value| format!("{value:.3}, "));
        Self { sentence: format!("{}: {figure}", demanded(target, unit)), outcome }
    }

    /// As a target of the project.
    #[must_use]
    pub fn as_target(&self) -> String {
        format!("Target{}{}", self.sentence, self.word("met", "MISSED"))
    }

    /// As a band of `--quick`.
    #[must_use]
    pub fn as_band(&self) -> String {
        format!("Band{}{}", self.sentence, self.word("inside", "OUTSIDE"))
    }

    fn word(&self, met: &'static str, missed: &'static str) -> &'static str {
        match self.outcome {
            Outcome::Met => met,
            Outcome::Missed => missed,
            Outcome::NotMeasured => "not measured",
        }
    }
}

fn demanded(target: &Target, unit: &str) -> String {
    let must = if target.must { " (must)" } else { "" };
    let (name, against) = (target.figure.name(), target.against);
    let of = if target.of == OURS { String::new() } else { format!(" of {}", target.of) };
    let demand = match target.demand {
        Demand::RatioAtMost(limit) => format!("{name} ratio{of} to {against} at most {limit:.3}"),
        Demand::RatioAtLeast(limit) => format!("{name} ratio{of} to {against} at least {limit:.3}"),
        Demand::AtMost(limit) => format!("{unit} at most {limit:.3}"),
        Demand::NotWorse => format!("{name} of {} not worse than {against} beyond noise", target.of),
    };
    format!("{must}: {demand}")
}

/// In nearly every turn, and by more than a little in the middle.
fn worse_beyond_noise(ratios: &[f64], figure: Figure) -> bool {
    let worse = |ratio: f64| if figure.more_is_better() { 1.0 / ratio } else { ratio };
    let Some(spread) = Spread::of(ratios.iter().map(|&ratio| worse(ratio))) else { return false };
    let turns = ratios.iter().filter(|&&ratio| worse(ratio) > 1.0).count();
    spread.median > NOISE && turns as f64 >= NOISE_TURNS * ratios.len() as f64
}

#[cfg(test)]
mod tests {
    use super::super::figures::Sample;
    use super::super::rows::Who;
    use super::*;

    const FIRST: Contender = Contender { name: "first", who: Who::Coturn, flags: "" };
    const LAST: Contender = Contender { name: "towpath", who: Who::Towpath, flags: "" };

    /// A turn for each pair of cost and rate.
    fn side(turns: &[(f64, f64)]) -> Side {
        let sample = |&(cost, rate): &(f64, f64)| Sample {
            figures: vec![(Figure::Cost, cost), (Figure::Rate, rate)],
            resident_kib: 1024 * cost as u64,
            ..Sample::default()
        };
        Side::Measured(turns.iter().map(sample).collect())
    }

    fn judge(target: Target, first: Side, last: Side) -> String {
        Verdict::of(&target, "unit", &[(&FIRST, first), (&LAST, last)]).as_target()
    }

    #[test]
    fn a_ratio_is_the_median_over_the_turns_of_a_round() {
        let (first, last) = ([(10.0, 1.0), (20.0, 1.0), (10.0, 1.0)], [(5.0, 0.9), (9.0, 0.9), (15.0, 0.9)]);
        let judge = |target| judge(target, side(&first), side(&last));
        let cost = Target::new(Figure::Cost, Demand::RatioAtMost(0.5), "first");
        assert_eq!(judge(cost), "Target: cost ratio to first at most 0.500: 0.500, met");
        let rate = Target::new(Figure::Rate, Demand::RatioAtLeast(1.0), "first").must();
        assert_eq!(judge(rate), "Target (must): rate ratio to first at least 1.000: 0.900, MISSED");
    }

    #[test]
    fn an_absolute_figure_is_the_median_and_of_memory_the_largest() {
        let (first, last) = (side(&[]), [(5.0, 1.0), (9.0, 1.0), (6.0, 1.0)]);
        let cost = Target::new(Figure::Cost, Demand::AtMost(5.5), "first");
        let verdict = judge(cost, first.clone(), side(&last));
        assert_eq!(verdict, "Target: unit at most 5.500: 6.000, MISSED");
        let memory = Target::new(Figure::Resident, Demand::AtMost(9.0), "first");
        assert!(judge(memory, first, side(&last)).ends_with("9.000, met"));
    }

    #[test]
    fn a_side_or_a_figure_that_is_missing_meets_nothing() {
        let target = Target::new(Figure::Cost, Demand::RatioAtMost(10.0), "first");
        let missing = Side::Missing("apt-get".to_owned());
        assert!(judge(target, missing, side(&[(1.0, 1.0)])).ends_with("at most 10.000: not measured"));
        let target = Target::new(Figure::P99, Demand::AtMost(10.0), "first");
        assert!(judge(target, side(&[]), side(&[(1.0, 1.0)])).ends_with("not measured"));
    }

    #[test]
    fn a_few_bad_turns_are_noise_and_all_of_them_are_not() {
        let noise = [1.2, 1.2, 0.98, 1.2, 1.3];
        assert!(!worse_beyond_noise(&noise, Figure::Cost), "one turn was better");
        assert!(!worse_beyond_noise(&[1.04, 1.02, 1.03], Figure::Cost), "by too little");
        assert!(worse_beyond_noise(&[1.2, 1.1, 1.3], Figure::Cost));
        assert!(worse_beyond_noise(&[0.8, 0.9, 0.7], Figure::Rate), "more is better");
        assert!(!worse_beyond_noise(&[0.8, 0.9, 0.7], Figure::Cost));
    }

    #[test]
    fn a_few_turns_do_not_tell_noise_from_more() {
        let target = Target::new(Figure::Cost, Demand::NotWorse, "first");
        let judge =
            |turns: usize| judge(target, side(&vec![(1.0, 1.0); turns]), side(&vec![(1.2, 1.0); turns]));
        assert!(judge(4).ends_with("beyond noise: not measured"), "{}", judge(4));
        assert!(judge(5).ends_with("beyond noise: 1.200, MISSED"), "{}", judge(5));
    }

    #[test]
    fn a_band_says_on_which_side_of_it_the_figure_is() {
        let band = Target::new(Figure::Cost, Demand::RatioAtMost(2.0), "first");
        let verdict = |cost| {
            Verdict::of(&band, "unit", &[(&FIRST, side(&[(1.0, 1.0)])), (&LAST, side(&[(cost, 1.0)]))])
        };
        assert!(verdict(1.9).as_band().ends_with("1.900, inside"));
        assert!(verdict(2.1).as_band().ends_with("2.100, OUTSIDE"));
        assert_eq!(verdict(2.1).outcome, Outcome::Missed);
    }
}
