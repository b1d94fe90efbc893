//! What the histograms of a packet's way cost, which are always on: the work of one turn of the loop by itself, and a forwarder
//! on the engine with and without them, in turns.

use std::hint::black_box;
use std::time::Instant;

use dataplane::stages::{Stages, Stopwatch, Timing};

use crate::ring::{self, Case};

/// Turns of the loop that are timed together.
const TURNS: u64 = 4_000_000;

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock, and so does what it measures")]
fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds for what the driver and the egress do for the histograms in a turn with one superpacket and one submission,
/// on average over turns that are timed and those that are not.
#[must_use]
pub fn of_a_turn() -> f64 {
    let (mut stages, mut stopwatch, mut offered) = (Stages::default(), Stopwatch::default(), 0);
    let begun = now();
    for _ in 0..TURNS {
        turn(&mut stages, &mut stopwatch, &mut offered);
    }
    begun.elapsed().as_nanos() as f64 / TURNS as f64
}

/// As `driver::Loop::turn` and `Uring::flush` have it.
fn turn(stages: &mut Stages, stopwatch: &mut Stopwatch, offered: &mut u64) {
    let mut timing = stages.is_due().then(|| {
        stopwatch.start();
        Timing::new(*offered, now())
    });
    let begun = timing.is_some().then(now);
    *offered += black_box(1);
    if let (Some(timing), Some(begun)) = (&mut timing, begun) {
        timing.handled(begun.elapsed());
    }
    if let Some(timing) = &mut timing {
        timing.all_handed_over(now());
    }
    let since = stopwatch.begin();
    black_box(&mut *stopwatch).in_kernel(since);
    if let Some(timing) = timing {
        timing.finish(stages, *offered, Some(stopwatch.stop()), now());
    }
}

/// CPU nanoseconds for a packet of one case.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Without the histograms.
    pub without: f64,
    /// With them.
    pub with: f64,
}

/// Four turns in the order A B B A, so that neither is always the later.
///
/// # Errors
/// As [`ring::measure`].
pub fn compare(case: &Case, engine: &[&str]) -> anyhow::Result<Pair> {
    let with_stages: Vec<&str> = engine.iter().copied().chain(["--stages"]).collect();
    let side =
        |arguments: &[&str]| -> anyhow::Result<f64> { Ok(ring::measure(case, arguments)?.nanoseconds) };
    let first = side(engine)?;
    let with = (side(&with_stages)? + side(&with_stages)?) / 2.0;
    Ok(Pair { without: (first + side(engine)?) / 2.0, with })
}
