//! `cargo run --release -p benches -- timing`: what the always-on histograms of the tunnel's stages cost.
//!
//! The loop with made-up input and a ring that takes everything, with and without timing, in turns. The kernel's part of a
//! batch, some microseconds at least, is not in it: against a real batch the share is smaller.

use std::fmt;

use rustix::time::{ClockId, clock_gettime};

use crate::stages::turn::Sealing;

/// What one turn of the loop carries: packets, their bytes, and how many turns are run at a time.
const LOADS: [(usize, usize, usize); 3] = [(1, 64, 40_000), (1, 1_420, 20_000), (45, 1_420, 500)];

/// What timing costs with one load.
#[derive(Debug)]
pub struct Cost {
    packets: usize,
    len: usize,
    /// CPU time of a turn in ns, not timed and timed; medians.
    nanoseconds: [f64; 2],
    /// How much more the timed ones took in one round, sorted.
    ratios: Vec<f64>,
}

/// Measures every load in so many rounds, each without, with, with, without.
#[must_use]
pub fn costs(rounds: u32) -> Vec<Cost> {
    LOADS.into_iter().map(|(packets, len, turns)| cost(packets, len, turns, rounds)).collect()
}

fn cost(packets: usize, len: usize, turns: usize, rounds: u32) -> Cost {
    let mut sides = [false, true].map(|timed| Sealing::new(packets, len, timed));
    let mut times = [Vec::new(), Vec::new()];
    let mut ratios = Vec::new();
    sides.iter_mut().for_each(|side| side.run(turns));
    for _ in 0..rounds {
        let mut round = [0.0; 2];
        for side in [0, 1, 1, 0] {
            let start = cpu_ns();
            sides[side].run(turns);
            let taken = (cpu_ns() - start) / turns as f64;
            times[side].push(taken);
            round[side] += taken;
        }
        ratios.push(round[1] / round[0]);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let nanoseconds = times.each_mut().map(median);
    ratios.sort_by(f64::total_cmp);
    Cost { packets, len, nanoseconds, ratios }
}

/// CPU time of this thread.
fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [without, with] = self.nanoseconds;
        let middle = self.ratios[self.ratios.len() / 2];
        write!(
            f,
            "{:>7} {:>6} {without:>11.0} {with:>11.0} {:>9.0} {middle:>8.4} {:>8.4} to {:.4}",
            self.packets,
            self.len,
            without * (middle - 1.0),
            self.ratios[0],
            self.ratios[self.ratios.len() - 1]
        )
    }
}
