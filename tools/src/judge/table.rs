//! Verdicts and differences as tables.

use super::circumstances::{hosts, loads};
use super::differences::{Difference, Found};
use super::group::{Group, Side};
use super::metric::Metric;
use super::moments::out_of_turn;
use super::verdict::{Judgement, Verdict};
use crate::report::{Cell, Table, Tone};
use crate::statistics::sample::median;
use crate::units;

/// What the columns of both tables are, in a sentence.
pub const COLUMNS: &str = "The columns of the sides are medians of their runs; between the sides stands the Hodges-Lehmann shift, the median over \
     all pairs of a run of each, which need not be the quotient of the two.";

/// One row for each rule.
#[must_use]
pub fn verdict_table(judgements: &[Judgement]) -> Table {
    let header = ["rule", "A", "B", "B to A", "at least", "at most", "limit", "p fail", "p pass", "verdict"];
    let row = |judged: &Judgement| {
        let change = |value: Option<f64>| change(judged.rule.metric, judged.rule.by_difference(), value);
        let tone = match judged.verdict {
            Verdict::Pass => Tone::Good,
            Verdict::Inconclusive => Tone::Plain,
            Verdict::Fail => Tone::Bad,
        };
        vec![
            Cell::from(judged.rule.to_string()),
            middle(judged.rule.metric, &judged.a),
            middle(judged.rule.metric, &judged.b),
            change(judged.estimate),
            change(judged.low),
            change(judged.high),
            change(judged.limit),
            probability(judged.p_fail),
            probability(judged.p_pass),
            Cell::new(judged.verdict.name(), tone),
        ]
    };
    Table { header: header.map(str::to_owned).into(), rows: judgements.iter().map(row).collect() }
}

/// One row for each side and metric.
#[must_use]
pub fn difference_table(baseline: &str, differences: &[Difference]) -> Table {
    let header = ["side", "metric", baseline, "this side", "ratio", "from", "to", "p", "found"];
    let row = |difference: &Difference| {
        let change = |value: Option<f64>| change(difference.metric, !difference.metric.by_ratio(), value);
        let tone = match difference.found {
            Found::Better => Tone::Good,
            Found::Worse => Tone::Bad,
            Found::Same | Found::Open => Tone::Plain,
        };
        vec![
            Cell::from(difference.side.clone()),
            Cell::from(difference.metric.name()),
            middle(difference.metric, &difference.a),
            middle(difference.metric, &difference.b),
            change(difference.estimate),
            change(difference.low),
            change(difference.high),
            probability(difference.p_adjusted),
            Cell::new(difference.found.name(), tone),
        ]
    };
    Table { header: header.map(str::to_owned).into(), rows: differences.iter().map(row).collect() }
}

/// What a reader of a table has to know: that sides did not take turns, how runs were made otherwise, what cannot be believed or was repeated, and what was lost.
#[must_use]
pub fn notes(groups: &[&Group]) -> Vec<String> {
    let mut notes: Vec<String> = groups
        .split_first()
        .into_iter()
        .flat_map(|(first, others)| others.iter().filter_map(|other| out_of_turn(first, other)))
        .collect();
    notes.extend(loads(groups));
    notes.extend(hosts(groups));
    notes.extend(groups.iter().flat_map(|group| group.doubts()));
    if groups.iter().any(|group| group.repeated > 0) {
        let of = |group: &&Group| format!("{} of {}", group.repeated, group.name);
        let by_side = groups.iter().map(of).collect::<Vec<_>>().join(", ");
        let alone = groups.len() > 1 && groups.iter().any(|group| group.repeated > 0 && group.repeated_alone);
        let how = match alone {
            true => ", each for itself: sides that were repeated unequally were not picked alike",
            false => "",
        };
        notes.push(format!("repeated because they were not VALID: {by_side}{how}"));
    }
    for group in groups {
        let lost = group.side(Metric::Loss).lost;
        notes.push(match lost.some {
            0 => format!(
                "{}: 0 of {} lost: loss < {:.1e} at 95 %",
                group.name,
                lost.all,
                3.0 / lost.all.max(1) as f64
            ),
            some => format!("{}: {some} of {} lost: {:.3e}", group.name, lost.all, lost.share()),
        });
    }
    notes
}

/// The median of a side's runs.
fn middle(metric: Metric, side: &Side) -> Cell {
    Cell::from(median(&side.values).map_or("–".to_owned(), |value| metric.text(value)))
}

/// A ratio or a difference.
fn change(metric: Metric, by_difference: bool, value: Option<f64>) -> Cell {
    let Some(value) = value else { return Cell::from("–") };
    if !value.is_finite() || (!by_difference && value == 0.0) {
        return Cell::from("–");
    }
    if !by_difference {
        return Cell::from(if value < 10.0 { format!("{value:.3}×") } else { format!("{value:.1}×") });
    }
    let sign = if value < 0.0 { "-" } else { "+" };
    let size = match metric {
        Metric::Loss if value == 0.0 => "0".to_owned(),
        Metric::Loss => format!("{:.1e}", value.abs()),
        Metric::Rate => units::rate(value.abs()),
        _ => units::nanoseconds(value.abs() as u64),
    };
    Cell::from(format!("{sign}{size}"))
}

fn probability(p: Option<f64>) -> Cell {
    Cell::from(p.map_or("–".to_owned(), |p| if p < 0.001 { format!("{p:.0e}") } else { format!("{p:.3}") }))
}
