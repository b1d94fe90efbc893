//! When runs were made: whether two sides took turns, and whether their values drift. What changes on the machine between the
//! runs of one side and those of the other looks like a difference between the two; where they take turns it weighs on both alike.

use super::group::{Group, Side};
use crate::statistics::sample::mean;
use crate::statistics::trend::{p_trend, slope};
use crate::units;

/// Fewer runs a side cannot show a drift.
const RUNS_MIN: usize = 6;
/// The chance of a drift that is none.
const ALPHA: f64 = 0.05;

/// What follows of a drift that may be all of a difference, behind [`Drift::text`].
pub(super) const UNSHARED: &str = "which may be all that the sides differ by, or hide what they do; make them in turns with `towpath-lab ab`";

/// That the sides did not take turns, with the fix, in a sentence; `None` where they did, or where a side has one run.
#[must_use]
pub fn out_of_turn(a: &Group, b: &Group) -> Option<String> {
    let starts = |group: &Group| group.runs.iter().map(|run| run.started_unix_ns).collect::<Vec<_>>();
    let (on_a, on_b) = (starts(a), starts(b));
    if on_a.len() < 2 || on_b.len() < 2 {
        return None;
    }
    // By how much the share of one side that had been made was ahead of the other's, at most.
    let made = |starts: &[u64], by: u64| {
        starts.iter().filter(|&&start| start <= by).count() as f64 / starts.len() as f64
    };
    let ahead = |by: &u64| made(&on_a, *by) - made(&on_b, *by);
    let (most, least) = on_a
        .iter()
        .chain(&on_b)
        .map(ahead)
        .fold((0.0_f64, 0.0_f64), |(most, least), ahead| (most.max(ahead), least.min(ahead)));
    let how = match (most.max(-least), most >= -least) {
        (ahead, true) if ahead >= 1.0 => {
            format!("all runs of {} were made before the first of {}", a.name, b.name)
        }
        (ahead, false) if ahead >= 1.0 => {
            format!("all runs of {} were made before the first of {}", b.name, a.name)
        }
        // In blocks of one run each it is at most half, with two blocks.
        (ahead, _) if ahead > 0.5 => format!("the runs of {} and {} were not made in turns", a.name, b.name),
        _ => return None,
    };
    let few = if on_a.len().min(on_b.len()) < RUNS_MIN {
        format!(" (with fewer than {RUNS_MIN} runs a side a drift cannot be seen)")
    } else {
        String::new()
    };
    Some(format!(
        "{how}: what changed on the machine meanwhile looks like a difference{few}; make them in turns with `towpath-lab ab`"
    ))
}

/// A drift of a side's values over time that chance does not explain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drift {
    /// What it adds to the values of B less those of A, by the mean times of their runs, at most: in logarithms, or in the metric's unit.
    pub(super) between: f64,
    /// What it comes to from the first run of the side to its last.
    along: f64,
    side: String,
    p: f64,
}

impl Drift {
    /// The steeper drift of the two sides; `None` where neither has one, or has too few runs. `logarithmic` says on what scale.
    pub(super) fn of(a: &Side, b: &Side, logarithmic: bool) -> Option<Self> {
        let between_s = mean(&b.starts_s) - mean(&a.starts_s);
        let of = |side: &Side| {
            let starts_s = &side.starts_s;
            if side.values.len() < RUNS_MIN || starts_s.len() != side.values.len() {
                return None;
            }
            let scaled = |&value: &f64| if logarithmic { value.ln() } else { value };
            let values: Vec<f64> = side.values.iter().map(scaled).collect();
            let p = p_trend(starts_s, &values);
            let slope = slope(starts_s, &values).filter(|_| p <= ALPHA)?;
            let along = slope * (starts_s.last()? - starts_s.first()?);
            Some(Self { between: (slope * between_s).abs(), along, side: side.name.clone(), p })
        };
        [of(a), of(b)]
            .into_iter()
            .flatten()
            .max_by(|one, other| one.along.abs().total_cmp(&other.along.abs()))
    }

    /// Whether it may be all that there is of something so large: then it shows nothing.
    pub(super) fn explains(&self, size: f64) -> bool {
        self.between >= size.abs()
    }

    /// Whether it is larger than the difference between the sides.
    pub(super) fn exceeds(&self, difference: f64) -> bool {
        self.along.abs() > difference.abs()
    }

    /// What it is, in a clause.
    pub(super) fn text(&self, metric: super::Metric, logarithmic: bool) -> String {
        let size = match (logarithmic, metric) {
            (true, _) => format!("{:+.1} %", 100.0 * self.along.exp_m1()),
            (false, super::Metric::Loss) => format!("{:+.1e}", self.along),
            (false, super::Metric::Rate) => {
                format!("{}{}", if self.along < 0.0 { "-" } else { "+" }, units::rate(self.along.abs()))
            }
            (false, _) => {
                let time = units::nanoseconds(self.along.abs() as u64);
                format!("{}{time}", if self.along < 0.0 { "-" } else { "+" })
            }
        };
        format!(
            "{} drifts by {size} from the first run of {} to its last (Theil-Sen, p {:.3})",
            metric.name(),
            self.side,
            self.p
        )
    }
}
