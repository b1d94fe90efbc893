//! The percentile plot as SVG: x counts nines (logarithm of 1/(1-q)), y is latency on a logarithmic axis. A curve ends
//! where the sent datagrams stopped arriving, and the gap up to the right is marked. Runs of one side are thin lines in one
//! colour, over the band between the fastest and the slowest of them.

use std::fmt::Write as _;

use super::Curve;
use super::svg::{self, LEGEND_LINE, LogAxis, NinesAxis, TOP, colour, stroke};
use crate::run::CurvePoint;

const BOTTOM: f64 = 376.0;

/// Appends the plot of all curves with its legend.
pub(super) fn percentiles(html: &mut String, curves: &[Curve]) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let x = NinesAxis::of(points().map(|point| point.quantile));
    let y = LogAxis::decades(points().map(|point| point.value_ns as f64), BOTTOM);
    let groups = groups(curves);
    let height = BOTTOM + 52.0 + LEGEND_LINE * groups.len() as f64;
    svg::open(html, "percentiles", "Latency by percentile", height);
    y.draw_decades(html);
    x.draw(html, BOTTOM);
    svg::axis_name(html, BOTTOM, "share of the sent datagrams that arrived within this time");
    for (order, group) in groups.iter().enumerate() {
        let index = group[0].side.as_ref().map_or(order, |(side, _)| *side);
        band(html, x, y, index, group);
        for curve in group {
            line(html, x, y, index, curve, group.len() > 1);
        }
        svg::legend(html, order, BOTTOM + 52.0, &stroke(index), &name(group));
    }
    svg::close(html);
}

/// Curves by side; a curve without a side is one of its own, in its place.
fn groups(curves: &[Curve]) -> Vec<Vec<&Curve>> {
    let mut groups: Vec<Vec<&Curve>> = Vec::new();
    for curve in curves {
        let with = groups.iter_mut().find(|group| curve.side.is_some() && group[0].side == curve.side);
        match with {
            Some(group) => group.push(curve),
            None => groups.push(vec![curve]),
        }
    }
    groups.sort_by_key(|group| group[0].side.as_ref().map(|(side, _)| *side));
    groups
}

fn name(group: &[&Curve]) -> String {
    let lost = group.iter().map(|curve| curve.lost_fraction).fold(0.0, f64::max);
    let lost = match (lost, group.len()) {
        (lost, 1) if lost > 0.0 => format!(" — {} lost", percent_of(lost)),
        (lost, _) if lost > 0.0 => format!(" — up to {} lost", percent_of(lost)),
        _ => String::new(),
    };
    let first = group[0];
    let runs = if group.len() > 1 { format!(", {} runs", group.len()) } else { String::new() };
    format!("{}{runs}{lost}", first.side.as_ref().map_or(&first.name, |(_, name)| name))
}

/// From the smallest to the largest value of all runs, as far as every run reaches.
fn band(html: &mut String, x: NinesAxis, y: LogAxis, index: usize, group: &[&Curve]) {
    let reach = group.iter().map(|curve| curve.points.len()).min().unwrap_or(0);
    if group.len() < 2 || reach < 2 {
        return;
    }
    // Curves of one build have the same quantiles step by step.
    let values = |step: usize| group.iter().map(move |curve| curve.points[step].value_ns);
    let x_of = |step: usize| x.x(group[0].points[step].quantile);
    let low = (0..reach).map(|step| (x_of(step), y.y(values(step).min().unwrap_or(1) as f64)));
    let high = (0..reach).rev().map(|step| (x_of(step), y.y(values(step).max().unwrap_or(1) as f64)));
    let _ = writeln!(
        html,
        "<polygon class=\"band\" points=\"{}\" fill=\"{}\"/>",
        svg::points(low.chain(high)),
        colour(index)
    );
}

fn line(html: &mut String, x: NinesAxis, y: LogAxis, index: usize, curve: &Curve, thin: bool) {
    let Some(&CurvePoint { quantile, value_ns }) = curve.points.last() else { return };
    let points =
        svg::points(curve.points.iter().map(|point| (x.x(point.quantile), y.y(point.value_ns as f64))));
    let class = if thin { " class=\"thin\"" } else { "" };
    let _ = writeln!(html, "<polyline{class} points=\"{points}\" {}/>", stroke(index));
    if curve.lost_fraction > 0.0 {
        // From the last datagram that arrived straight up: the next one takes for ever.
        let (x, y) = (x.x(quantile), y.y(value_ns as f64));
        let _ = writeln!(
            html,
            "<line class=\"lost\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" y2=\"{TOP}\" stroke=\"{}\"/>",
            colour(index)
        );
    }
}

/// A share as a percentage with three significant digits.
fn percent_of(share: f64) -> String {
    let percent = 100.0 * share;
    let digits = (2 - percent.log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{percent:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_three_digits() {
        assert_eq!([percent_of(1.0), percent_of(0.005), percent_of(0.12345)], ["100 %", "0.5 %", "12.3 %"]);
    }

    #[test]
    fn runs_of_a_side_share_colour_band_and_name() {
        let curve = |name: &str, side: Option<&str>, value_ns| Curve {
            name: name.to_owned(),
            side: side.map(|name| (1, name.to_owned())),
            points: [0.0, 0.5, 0.9].map(|quantile| CurvePoint { quantile, value_ns }).into(),
            lost_fraction: 0.0,
        };
        let curves = [curve("a1", Some("a"), 1_000), curve("b", None, 5_000), curve("a2", Some("a"), 2_000)];
        let mut html = String::new();
        percentiles(&mut html, &curves);
        assert_eq!((html.matches("class=\"band\"").count(), html.matches("class=\"thin\"").count()), (1, 2));
        assert!(html.contains(">a, 2 runs<") && html.contains(">b<") && !html.contains(">a1<"), "{html}");
    }
}
