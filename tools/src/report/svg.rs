//! What the plots share: the picture, its axes and their labels.

use std::fmt::Write as _;

use super::html::escape;

/// Width of every picture.
pub(super) const WIDTH: f64 = 900.0;
/// Where the axes are.
pub(super) const LEFT: f64 = 72.0;
pub(super) const RIGHT: f64 = WIDTH - 24.0;
pub(super) const TOP: f64 = 16.0;
/// Height of one line of a legend.
pub(super) const LEGEND_LINE: f64 = 20.0;
/// Colours of the style sheet (`--c0` and so on); further lines are dashed in the same colours.
pub(super) const COLOURS: usize = 8;
const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];

/// Begins a figure with a picture whose axes end at `bottom`.
pub(super) fn open(html: &mut String, kind: &str, title: &str, height: f64) {
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        html,
        "<figure data-plot=\"{kind}\"><figcaption>{0}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"{0}\">",
        escape(title)
    );
}

pub(super) fn close(html: &mut String) {
    html.push_str("</svg></figure>\n");
}

/// A logarithmic axis from bottom to top.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogAxis {
    /// Logarithms to the base of 10.
    low: f64,
    high: f64,
    bottom: f64,
}

impl LogAxis {
    /// An axis in nanoseconds over whole decades that holds all of `values`.
    pub fn decades(values: impl Iterator<Item = f64>, bottom: f64) -> Self {
        let (low, high) = ends(values.map(|value| value.max(1.0).log10())).unwrap_or((3.0, 6.0));
        let low = low.floor();
        Self { low, high: high.ceil().max(low + 1.0), bottom }
    }

    /// An axis of ratios that holds all of `values` and 1, as far below it as above.
    pub fn ratios(values: impl Iterator<Item = f64>, bottom: f64) -> Self {
        let farthest = values.map(|value| value.max(1e-3).log10().abs()).fold(0.0, f64::max);
        let end = (farthest * 1.1).clamp(0.05, 3.0);
        Self { low: -end, high: end, bottom }
    }

    pub fn y(&self, value: f64) -> f64 {
        let share = (value.max(1e-9).log10() - self.low) / (self.high - self.low);
        self.bottom - share.clamp(0.0, 1.0) * (self.bottom - TOP)
    }

    /// A line and a label for each decade.
    pub fn draw_decades(&self, svg: &mut String) {
        for decade in self.low as i32..=self.high as i32 {
            across(svg, self.y(10_f64.powi(decade)), &duration(decade));
        }
    }

    /// A line and a label for ratios that are easy to read.
    pub fn draw_ratios(&self, svg: &mut String) {
        const EASY: [f64; 17] =
            [0.01, 0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0, 100.0];
        let mut last = f64::INFINITY;
        for ratio in EASY.into_iter().filter(|ratio| (self.low..=self.high).contains(&ratio.log10())) {
            let y = self.y(ratio);
            // Labels must not touch each other; that of 1 is always there.
            if (last - y).abs() >= 16.0 && (ratio == 1.0 || (self.y(1.0) - y).abs() >= 16.0) {
                across(svg, y, &format!("{ratio}×"));
                last = y;
            }
        }
    }

    /// The powers of ten at its ends.
    pub const fn range(&self) -> (f64, f64) {
        (self.low, self.high)
    }
}

/// A linear axis from left to right.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinearAxis {
    low: f64,
    high: f64,
}

impl LinearAxis {
    pub fn new(low: f64, high: f64) -> Self {
        Self { low, high: if high > low { high } else { low + 1.0 } }
    }

    pub fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.low) / (self.high - self.low) * (RIGHT - LEFT)
    }

    /// A label every step of 1, 2 or 5, some eight of them.
    pub fn draw(&self, svg: &mut String, bottom: f64, label: impl Fn(f64) -> String) {
        let rough = (self.high - self.low) / 8.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * decade).find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        // As a person would write it: three steps of 0.2 are 0.6.
        let places = (-decade.log10()).max(0.0) as usize;
        for number in (self.low / step).ceil() as i64.. {
            let at = number as f64 * step;
            if at > self.high * (1.0 + 1e-9) {
                break;
            }
            down(svg, self.x(at), bottom, &label(format!("{at:.places$}").parse().unwrap_or(at)));
        }
    }
}

/// How many nines a quantile has: 0.5 is 0.3, 0.99 is 2.
pub(super) fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-12).log10()
}

/// An axis of nines from left to right: 0 %, 50 %, 90 %, 99 %…
#[derive(Clone, Copy, Debug)]
pub(super) struct NinesAxis {
    nines: f64,
}

impl NinesAxis {
    /// An axis that holds all of `quantiles`.
    pub fn of(quantiles: impl Iterator<Item = f64>) -> Self {
        Self { nines: quantiles.map(nines).fold(1.0, f64::max).ceil() }
    }

    pub fn x(&self, quantile: f64) -> f64 {
        LEFT + nines(quantile) / self.nines * (RIGHT - LEFT)
    }

    pub fn draw(&self, svg: &mut String, bottom: f64) {
        down(svg, self.x(0.5), bottom, "50 %");
        for nines in 0..=self.nines as i32 {
            down(svg, self.x(1.0 - 10_f64.powi(-nines)), bottom, &percent(nines));
        }
    }
}

/// The smallest and the largest; `None` of none.
fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    (low <= high).then_some((low, high))
}

/// A grid line from left to right.
fn across(svg: &mut String, y: f64, label: &str) {
    let _ = writeln!(
        svg,
        "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
        LEFT - 8.0,
        y + 4.0
    );
}

/// A grid line from top to bottom.
fn down(svg: &mut String, x: f64, bottom: f64, label: &str) {
    // The last label would be cut off at the edge of the picture.
    let anchor = if x + 1.0 > RIGHT { "end" } else { "middle" };
    let _ = writeln!(
        svg,
        "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
        bottom + 18.0,
        escape(label)
    );
}

/// What the axis from left to right counts.
pub(super) fn axis_name(svg: &mut String, bottom: f64, name: &str) {
    let y = bottom + 36.0;
    let _ = writeln!(
        svg,
        "<text class=\"faint\" x=\"{RIGHT}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>",
        escape(name)
    );
}

/// A line of the legend: a sample of the stroke and a name.
pub(super) fn legend(svg: &mut String, line: usize, y: f64, stroke: &str, name: &str) {
    let y = y + LEGEND_LINE * line as f64;
    let _ = writeln!(
        svg,
        "<polyline points=\"{LEFT},{y} {:.1},{y}\" {stroke}/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        LEFT + 28.0,
        LEFT + 36.0,
        y + 4.0,
        escape(name)
    );
}

/// Colour and dashes of a line.
pub(super) fn stroke(index: usize) -> String {
    let dash = DASHES[index / COLOURS % DASHES.len()];
    let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
    format!("stroke=\"{}\"{dash}", colour(index))
}

pub(super) fn colour(index: usize) -> String {
    format!("var(--c{})", index % COLOURS)
}

/// Points of a polyline or polygon.
pub(super) fn points(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (x, y) in points {
        let gap = if text.is_empty() { "" } else { " " };
        let _ = write!(text, "{gap}{x:.1},{y:.1}");
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_are_evenly_spaced() {
        let axis = NinesAxis::of([0.9999].into_iter());
        let x: Vec<f64> = [0.9, 0.99, 0.999].iter().map(|&quantile| axis.x(quantile)).collect();
        assert!((x[1] - x[0] - (x[2] - x[1])).abs() < 1e-6);
        let axis = LogAxis::decades([1e3, 1e6].into_iter(), 400.0);
        assert_eq!((axis.y(1e3), axis.y(1e6)), (400.0, TOP));
        assert!(axis.y(1e3) > axis.y(1e4));
    }

    #[test]
    fn ratios_lie_around_one() {
        let axis = LogAxis::ratios([0.5, 1.2].into_iter(), 400.0);
        let middle = (400.0 + TOP) / 2.0;
        assert!((axis.y(1.0) - middle).abs() < 1e-6);
        assert!((axis.y(2.0) + axis.y(0.5) - 2.0 * middle).abs() < 1e-6);
        let mut svg = String::new();
        axis.draw_ratios(&mut svg);
        assert!(svg.contains(">1×<") && svg.contains(">0.5×<") && svg.contains(">2×<"), "{svg}");
    }

    #[test]
    fn labels_read_naturally() {
        assert_eq!(
            [duration(0), duration(4), duration(8), duration(10)],
            ["1 ns", "10 µs", "100 ms", "10 s"]
        );
        assert_eq!([percent(0), percent(2), percent(4)], ["0 %", "99 %", "99.99 %"]);
        let mut svg = String::new();
        LinearAxis::new(0.0, 45.0).draw(&mut svg, 100.0, |at| format!("{at} s"));
        assert!(
            svg.contains(">0 s<") && svg.contains(">40 s<") && svg.matches("<text").count() == 5,
            "{svg}"
        );
        let mut svg = String::new();
        LinearAxis::new(0.0, 1.0).draw(&mut svg, 100.0, |at| format!("{at} s"));
        assert!(
            svg.contains(">0.6 s<") && svg.contains(">1 s<") && svg.matches("<text").count() == 6,
            "{svg}"
        );
    }
}
