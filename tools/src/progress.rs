//! How far a command is that makes several runs, on a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Steps of the bar for each run.
pub const STEPS: u64 = 1_000;

/// A bar with the time left for `runs` runs; hidden where standard error is no terminal.
#[must_use]
pub fn bar(runs: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(runs * STEPS);
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {percent:>3} % {eta:>4} left  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Sets the bar to `share` of the run after `runs` that are done.
pub fn step(bar: &ProgressBar, runs: u64, share: f64) {
    bar.set_position(runs * STEPS + (share.clamp(0.0, 1.0) * STEPS as f64) as u64);
}
