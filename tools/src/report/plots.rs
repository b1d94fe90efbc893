//! The plots of repeated runs: shift by quantile, latency over time, runs in their order, latency by load.

use std::fmt::Write as _;

use super::Plot;
use super::html::escape;
use super::shift::Shift;
use super::svg::{self, LEFT, LEGEND_LINE, LinearAxis, LogAxis, NinesAxis, RIGHT, TOP, colour, stroke};
use crate::format::log::Line;
use crate::units;

/// Columns of a heat map at most.
const COLUMNS_MAX: usize = 120;
/// Rows of a heat map for each factor of ten.
const ROWS_PER_DECADE: f64 = 12.0;
/// Shades of a heat map.
const SHADES: usize = 8;

/// The second side by the first at each quantile, for several pairs of sides.
pub(super) fn shift(title: &str, pairs: &[(String, Shift)]) -> Plot {
    const BOTTOM: f64 = 300.0;
    let points = || pairs.iter().flat_map(|(_, shift)| &shift.points);
    let lost_from = pairs.iter().flat_map(|(_, shift)| shift.lost_from).flatten();
    let x = NinesAxis::of(points().map(|point| point.quantile).chain(lost_from.filter(|from| *from < 1.0)));
    let y = LogAxis::ratios(points().flat_map(|point| [point.ratio, point.low, point.high]), BOTTOM);
    let mut html = String::new();
    svg::open(&mut html, "shift", title, BOTTOM + 52.0 + LEGEND_LINE * pairs.len() as f64);
    y.draw_ratios(&mut html);
    x.draw(&mut html, BOTTOM);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        html,
        "<line class=\"one\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>",
        y.y(1.0)
    );
    svg::axis_name(
        &mut html,
        BOTTOM,
        "quantile of the sent datagrams; above 1× is slower than the first side; beyond a triangle datagrams were lost",
    );
    for (index, (name, shift)) in pairs.iter().enumerate() {
        // The colours of the sides, of which the first is the baseline.
        let index = index + 1;
        let at = |value: fn(&super::shift::Point) -> f64| {
            move |point: &super::shift::Point| (x.x(point.quantile), y.y(value(point)))
        };
        let low = shift.points.iter().map(at(|point| point.low));
        let high = shift.points.iter().rev().map(at(|point| point.high));
        let dashed = if shift.of_intervals { " dashed" } else { "" };
        let _ = writeln!(
            html,
            "<polygon class=\"band{dashed}\" points=\"{}\" fill=\"{}\"/><polyline points=\"{}\" {}/>",
            svg::points(low.chain(high)),
            colour(index),
            svg::points(shift.points.iter().map(at(|point| point.ratio))),
            stroke(index)
        );
        for (from, side, direction) in
            [(shift.lost_from[0], "first", 1.0), (shift.lost_from[1], "second", -1.0)]
        {
            let Some(from) = from else { continue };
            // What is lost is later than all others: the ratio leaves the picture, upwards when it is the second's.
            let (at, edge) = (x.x(from), if direction > 0.0 { BOTTOM } else { TOP });
            let _ = writeln!(
                html,
                "<path class=\"lost\" d=\"M{at:.1} {edge}l-6 {0}h12z\" fill=\"{1}\"><title>{2}: beyond {3:.4} % datagrams of the {side} \
                 side were lost</title></path><line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\" stroke=\"{1}\" \
                 stroke-dasharray=\"2 3\"/>",
                -10.0 * direction,
                colour(index),
                escape(name),
                100.0 * from
            );
        }
        svg::legend(&mut html, index - 1, BOTTOM + 52.0, &stroke(index), name);
    }
    svg::close(&mut html);
    Plot(html)
}

/// Latency over time: how often which latency was seen when. `axis` holds the values of all maps that are to be compared.
pub(super) fn heat_map(title: &str, lines: &[&Line], axis_values: &[u64]) -> Plot {
    const BOTTOM: f64 = 220.0;
    let end_s = lines.iter().map(|line| line.start_s + line.length_s).fold(0.0, f64::max);
    let x = LinearAxis::new(0.0, end_s);
    let y = LogAxis::decades(axis_values.iter().map(|&value| value as f64), BOTTOM);
    let grid = Grid::new(lines, end_s, y.range());
    let mut html = String::new();
    svg::open(&mut html, "heat", title, BOTTOM + 44.0);
    y.draw_decades(&mut html);
    x.draw(&mut html, BOTTOM, |at| format!("{at} s"));
    for (shade, path) in grid.paths(BOTTOM).into_iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        let opacity = (shade + 1) as f64 / SHADES as f64;
        let _ = writeln!(html, "<path class=\"heat\" fill-opacity=\"{opacity}\" d=\"{path}\"/>");
    }
    svg::close(&mut html);
    Plot(html)
}

/// Counts by time and latency.
struct Grid {
    columns: usize,
    rows: usize,
    counts: Vec<u64>,
}

impl Grid {
    fn new(lines: &[&Line], end_s: f64, (low, high): (f64, f64)) -> Self {
        let columns = lines.len().clamp(1, COLUMNS_MAX);
        let rows = ((high - low) * ROWS_PER_DECADE).round().max(1.0) as usize;
        let mut counts = vec![0; columns * rows];
        for line in lines {
            let middle = line.start_s + line.length_s / 2.0;
            let column = ((middle / end_s.max(1e-9) * columns as f64) as usize).min(columns - 1);
            for (value, count) in line.counts.iter() {
                let row = ((value.max(1) as f64).log10() - low) * ROWS_PER_DECADE;
                counts[column * rows + (row.max(0.0) as usize).min(rows - 1)] += count;
            }
        }
        Self { columns, rows, counts }
    }

    /// One path for each shade, by the logarithm of the count.
    fn paths(&self, bottom: f64) -> Vec<String> {
        let most = self.counts.iter().copied().max().unwrap_or(1).max(1);
        let (width, height) = ((RIGHT - LEFT) / self.columns as f64, (bottom - TOP) / self.rows as f64);
        let mut paths = vec![String::new(); SHADES];
        for (index, &count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let share = (1.0 + count as f64).ln() / (1.0 + most as f64).ln();
            let shade = ((share * SHADES as f64).ceil() as usize).clamp(1, SHADES) - 1;
            let (column, row) = (index / self.rows, index % self.rows);
            let (x, y) = (LEFT + column as f64 * width, bottom - (row + 1) as f64 * height);
            let _ = write!(paths[shade], "M{x:.1} {y:.1}h{width:.2}v{height:.2}h-{width:.2}z");
        }
        paths
    }
}

/// One run of the plot of runs.
pub(super) struct Dot {
    /// Its name.
    pub name: String,
    /// The side it belongs to.
    pub side: usize,
    /// Its figure in nanoseconds; `None` where that part was lost.
    pub value_ns: Option<u64>,
}

/// A figure of each run, in the order of the runs.
pub(super) fn dots(title: &str, sides: &[String], runs: &[Dot]) -> Plot {
    const BOTTOM: f64 = 240.0;
    let values = runs.iter().filter_map(|run| run.value_ns).map(|value| value as f64);
    let y = LogAxis::decades(values, BOTTOM);
    let x = LinearAxis::new(0.0, runs.len() as f64 + 1.0);
    let mut html = String::new();
    svg::open(&mut html, "runs", title, BOTTOM + 52.0 + LEGEND_LINE * sides.len() as f64);
    y.draw_decades(&mut html);
    svg::axis_name(&mut html, BOTTOM, "runs in the order in which they were made; lines are the medians");
    for (index, side) in sides.iter().enumerate() {
        if let Some(median) = median(runs.iter().filter(|run| run.side == index)) {
            let y = y.y(median as f64);
            let _ = writeln!(
                html,
                "<polyline class=\"thin\" points=\"{LEFT},{y:.1} {RIGHT},{y:.1}\" {}/>",
                stroke(index)
            );
        }
        svg::legend(&mut html, index, BOTTOM + 52.0, &stroke(index), side);
    }
    for (order, run) in runs.iter().enumerate() {
        let value = run.value_ns.map_or("lost".to_owned(), units::nanoseconds);
        let at = run.value_ns.map_or(TOP, |value| y.y(value as f64));
        // What was lost is beyond the axis, and hollow.
        let fill = if run.value_ns.is_some() { colour(run.side) } else { "none".to_owned() };
        let _ = writeln!(
            html,
            "<circle cx=\"{:.1}\" cy=\"{at:.1}\" r=\"5\" fill=\"{fill}\" stroke=\"{}\"><title>{}: {value}</title></circle>",
            x.x(order as f64 + 1.0),
            colour(run.side),
            escape(&run.name)
        );
    }
    svg::close(&mut html);
    Plot(html)
}

fn median<'a>(runs: impl Iterator<Item = &'a Dot>) -> Option<u64> {
    // What was lost is later than any other.
    let mut values: Vec<u64> = runs.map(|run| run.value_ns.unwrap_or(u64::MAX)).collect();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied().filter(|value| *value < u64::MAX)
}

/// A quantile at one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nanoseconds.
    Ns(u64),
    /// That part of the datagrams was lost: later than any other.
    Lost,
    /// Samples are too few for it.
    Unknown,
}

impl Level {
    /// Nanoseconds, where it is known and not lost.
    #[must_use]
    pub const fn ns(self) -> Option<u64> {
        if let Self::Ns(ns) = self { Some(ns) } else { None }
    }

    /// As printed.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Ns(ns) => units::nanoseconds(ns),
            Self::Lost => "lost".to_owned(),
            Self::Unknown => "–".to_owned(),
        }
    }
}

/// A side at one rate.
#[derive(Clone, Debug)]
pub struct Load {
    /// Datagrams per second.
    pub rate_pps: f64,
    /// p50, p99 and p99.9.
    pub levels: [Level; 3],
}

/// The quantiles of the plot of loads.
pub const LOAD_QUANTILES: [&str; 3] = ["p50", "p99", "p99.9"];

/// Latency by load: three lines for each side, by rising rate.
#[must_use]
pub fn loads(title: &str, sides: &[(String, Vec<Load>)]) -> Plot {
    const BOTTOM: f64 = 320.0;
    let points = || sides.iter().flat_map(|(_, loads)| loads);
    let y = LogAxis::decades(
        points().flat_map(|load| load.levels).filter_map(Level::ns).map(|value| value as f64),
        BOTTOM,
    );
    let x = LinearAxis::new(0.0, points().map(|load| load.rate_pps).fold(0.0, f64::max));
    let mut html = String::new();
    svg::open(&mut html, "load", title, BOTTOM + 52.0 + LEGEND_LINE * sides.len() as f64);
    y.draw_decades(&mut html);
    x.draw(&mut html, BOTTOM, |rate| if rate == 0.0 { "0".to_owned() } else { units::rate(rate) });
    svg::axis_name(
        &mut html,
        BOTTOM,
        "offered load; from below: p50, p99 dashed, p99.9 dotted; a ring marks the knee",
    );
    for (index, (name, loads)) in sides.iter().enumerate() {
        for (quantile, dash) in [(0, ""), (1, "7 3"), (2, "2 3")] {
            let line =
                loads.iter().filter_map(|load| Some((x.x(load.rate_pps), height(load.levels[quantile], y)?)));
            let _ = writeln!(
                html,
                "<polyline points=\"{}\" stroke=\"{}\" stroke-dasharray=\"{dash}\"/>",
                svg::points(line),
                colour(index)
            );
        }
        for load in loads {
            marks(&mut html, load, index, x, y);
        }
        if let Some((rate, level)) = knee(loads) {
            let _ = writeln!(
                html,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"9\" fill=\"none\" stroke=\"{}\"><title>knee</title></circle>",
                x.x(rate),
                height(level, y).unwrap_or(TOP),
                colour(index)
            );
        }
        svg::legend(&mut html, index, BOTTOM + 52.0, &format!("stroke=\"{}\"", colour(index)), name);
    }
    svg::close(&mut html);
    Plot(html)
}

/// Where a level is drawn: what was lost beyond the axis.
fn height(level: Level, y: LogAxis) -> Option<f64> {
    match level {
        Level::Ns(ns) => Some(y.y(ns as f64)),
        Level::Lost => Some(TOP),
        Level::Unknown => None,
    }
}

fn marks(html: &mut String, load: &Load, side: usize, x: LinearAxis, y: LogAxis) {
    for (name, level) in LOAD_QUANTILES.iter().zip(load.levels) {
        let Some(height) = height(level, y) else { continue };
        // As in the plot of runs, what was lost is hollow.
        let fill = if level == Level::Lost { "none".to_owned() } else { colour(side) };
        let _ = writeln!(
            html,
            "<circle cx=\"{:.1}\" cy=\"{height:.1}\" r=\"3\" fill=\"{fill}\" stroke=\"{}\"><title>{name} at {}: {}</title></circle>",
            x.x(load.rate_pps),
            colour(side),
            units::rate(load.rate_pps),
            level.text()
        );
    }
}

/// The first rate whose p99 is lost, or more than twice that of the lowest rate that has one.
#[must_use]
pub fn knee(loads: &[Load]) -> Option<(f64, Level)> {
    let mut lowest = None;
    for load in loads {
        let level = load.levels[1];
        let beyond = match level {
            Level::Ns(ns) => ns > 2 * *lowest.get_or_insert(ns),
            Level::Lost => true,
            Level::Unknown => false,
        };
        if beyond {
            return Some((load.rate_pps, level));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knee_of(levels: &[Level]) -> Option<(f64, Level)> {
        let load = |(index, &p99): (usize, &Level)| Load {
            rate_pps: (index + 1) as f64,
            levels: [Level::Ns(1), p99, Level::Unknown],
        };
        knee(&levels.iter().enumerate().map(load).collect::<Vec<_>>())
    }

    #[test]
    fn a_load_whose_p99_is_lost_is_beyond_the_knee() {
        use Level::{Lost, Ns, Unknown};
        assert_eq!(knee_of(&[Ns(100), Ns(150), Ns(200)]), None);
        assert_eq!(knee_of(&[Ns(100), Ns(150), Ns(201), Lost]), Some((3.0, Ns(201))));
        assert_eq!(knee_of(&[Ns(100), Ns(150), Lost]), Some((3.0, Lost)));
        assert_eq!(knee_of(&[Lost, Ns(100)]), Some((1.0, Lost)), "the lowest as well");
        assert_eq!(knee_of(&[Unknown, Ns(100), Ns(201)]), Some((3.0, Ns(201))));
        assert_eq!(knee_of(&[Unknown, Unknown]), None);
    }

    #[test]
    fn the_shift_shows_where_a_side_lost_its_datagrams() {
        let point = super::super::shift::Point { quantile: 0.5, ratio: 1.1, low: 1.0, high: 1.2 };
        let plot = |lost_from| {
            let shift = Shift { points: vec![point], lost_from, of_intervals: false };
            let Plot(html) = super::shift("t", &[("b ÷ a".to_owned(), shift)]);
            html
        };
        assert!(!plot([None, None]).contains("class=\"lost\""));
        let html = plot([None, Some(0.98)]);
        assert!(html.contains("beyond 98.0000 % datagrams of the second side were lost"), "{html}");
        assert!(html.contains(&format!("{TOP}l-6 10h12z")), "it points upwards: {html}");
        let html = plot([Some(0.9), Some(0.98)]);
        assert!(html.contains("of the first side") && html.contains("300l-6 -10h12z"), "{html}");
    }

    #[test]
    fn what_was_lost_is_drawn_at_the_top_and_hollow() {
        let load = |rate_pps, p99| Load { rate_pps, levels: [Level::Ns(1_000), p99, Level::Unknown] };
        let sides = [("a".to_owned(), vec![load(1e3, Level::Ns(2_000)), load(2e3, Level::Lost)])];
        let Plot(html) = loads("t", &sides);
        assert!(html.contains("fill=\"none\"") && html.contains("p99 at 2.00 kpps: lost"), "{html}");
        assert!(html.contains("<title>knee</title>"), "{html}");
    }
}
