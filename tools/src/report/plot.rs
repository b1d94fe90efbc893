//! The percentile plot as SVG: x counts nines (logarithm of 1/(1-q)), y is latency on a logarithmic axis. A curve ends
//! where the sent datagrams stopped arriving, and the gap up to the right is marked.

use std::fmt::Write;

use super::Curve;
use super::html::escape;
use crate::run::CurvePoint;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Height of one line of the legend.
const LEGEND_LINE: f64 = 20.0;
/// Colours of the style sheet (`--c0` and so on); further curves are dashed in the same colours.
const COLOURS: usize = 8;
const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];

/// Maps quantiles and latencies to the plane.
struct Axes {
    nines: f64,
    lowest: f64,
    highest: f64,
}

impl Axes {
    /// Axes that hold every point; whole decades on y.
    fn of(curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let values = || points().map(|point| (point.value_ns.max(1) as f64).log10());
        let nines = points().map(|point| nines(point.quantile)).fold(1.0, f64::max);
        let lowest = values().fold(f64::INFINITY, f64::min);
        let highest = values().fold(f64::NEG_INFINITY, f64::max);
        if lowest > highest {
            return Self { nines, lowest: 3.0, highest: 6.0 };
        }
        let lowest = lowest.floor();
        Self { nines: nines.ceil(), lowest, highest: highest.ceil().max(lowest + 1.0) }
    }

    fn x(&self, nines: f64) -> f64 {
        LEFT + nines / self.nines * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value_ns: f64) -> f64 {
        let share = (value_ns.max(1.0).log10() - self.lowest) / (self.highest - self.lowest);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// How many nines a quantile has: 0.5 is 0.3, 0.99 is 2.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-12).log10()
}

/// Appends the plot of all curves with its legend.
pub(super) fn percentiles(svg: &mut String, curves: &[Curve]) {
    let axes = Axes::of(curves);
    let height = HEIGHT + LEGEND_LINE * curves.len() as f64 + 8.0;
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        svg,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"latency by percentile\">"
    );
    grid(svg, &axes);
    for (index, curve) in curves.iter().enumerate() {
        line(svg, &axes, index, curve);
        legend(svg, index, curve);
    }
    svg.push_str("</svg>\n");
}

fn grid(svg: &mut String, axes: &Axes) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for decade in axes.lowest as i32..=axes.highest as i32 {
        let y = axes.y(10_f64.powi(decade));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            duration(decade)
        );
    }
    let median = std::iter::once((nines(0.5), "50 %".to_owned()));
    let whole = (0..=axes.nines as i32).map(|nines| (f64::from(nines), percent(nines)));
    for (nines, label) in median.chain(whole) {
        let x = axes.x(nines);
        // The last label would be cut off at the edge of the picture.
        let anchor = if x + 1.0 > right { "end" } else { "middle" };
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{label}</text>",
            bottom + 18.0
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"faint\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">share of the sent datagrams that arrived within this time</text>",
        bottom + 36.0
    );
}

fn line(svg: &mut String, axes: &Axes, index: usize, curve: &Curve) {
    let Some(&CurvePoint { quantile, value_ns }) = curve.points.last() else { return };
    let mut points = String::new();
    for point in &curve.points {
        let _ = write!(points, "{:.1},{:.1} ", axes.x(nines(point.quantile)), axes.y(point.value_ns as f64));
    }
    let _ = writeln!(svg, "<polyline points=\"{}\" {}/>", points.trim_end(), stroke(index));
    if curve.lost_fraction > 0.0 {
        // From the last datagram that arrived straight up: the next one takes for ever.
        let (x, y) = (axes.x(nines(quantile)), axes.y(value_ns as f64));
        let _ = writeln!(
            svg,
            "<line class=\"lost\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" y2=\"{TOP}\" stroke=\"var(--c{})\"/>",
            index % COLOURS
        );
    }
}

fn legend(svg: &mut String, index: usize, curve: &Curve) {
    let y = HEIGHT + LEGEND_LINE * index as f64 + 4.0;
    let lost = match curve.lost_fraction {
        lost if lost > 0.0 => format!(" — {} lost", percent_of(lost)),
        _ => String::new(),
    };
    let _ = writeln!(
        svg,
        "<polyline points=\"{LEFT},{y} {:.1},{y}\" {}/><text x=\"{:.1}\" y=\"{:.1}\">{}{lost}</text>",
        LEFT + 28.0,
        stroke(index),
        LEFT + 36.0,
        y + 4.0,
        escape(&curve.name)
    );
}

fn stroke(index: usize) -> String {
    let dash = DASHES[index / COLOURS % DASHES.len()];
    let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
    format!("stroke=\"var(--c{})\"{dash}", index % COLOURS)
}

/// 10^`decade` ns for an axis.
fn duration(decade: i32) -> String {
    match decade {
        ..=2 => format!("{} ns", 10_u64.pow(decade.max(0) as u32)),
        3..=5 => format!("{} µs", 10_u64.pow(decade as u32 - 3)),
        6..=8 => format!("{} ms", 10_u64.pow(decade as u32 - 6)),
        _ => format!("{} s", 10_u64.pow(decade.min(18) as u32 - 9)),
    }
}

/// The percentage with so many nines: 0, 90, 99, 99.9.
fn percent(nines: i32) -> String {
    match nines {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        more => format!("99.{} %", "9".repeat(more as usize - 2)),
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
    fn nines_are_evenly_spaced() {
        let axes = Axes { nines: 4.0, lowest: 3.0, highest: 6.0 };
        let x: Vec<f64> = [0.9, 0.99, 0.999].iter().map(|&quantile| axes.x(nines(quantile))).collect();
        assert!((x[1] - x[0] - (x[2] - x[1])).abs() < 1e-6);
        assert!(axes.y(1e3) > axes.y(1e4));
        assert_eq!(axes.y(1e3), HEIGHT - BOTTOM);
        assert_eq!(axes.y(1e6), TOP);
    }

    #[test]
    fn labels_read_naturally() {
        assert_eq!(
            [duration(0), duration(4), duration(8), duration(10)],
            ["1 ns", "10 µs", "100 ms", "10 s"]
        );
        assert_eq!([percent(0), percent(2), percent(4)], ["0 %", "99 %", "99.99 %"]);
        assert_eq!([percent_of(1.0), percent_of(0.005), percent_of(0.12345)], ["100 %", "0.5 %", "12.3 %"]);
    }
}
