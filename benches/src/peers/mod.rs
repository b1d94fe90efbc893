//! The whole-system runner: each row is one kind of work, done in turns by Towpath and by what it is compared with.

mod askers;
mod carriage;
mod counter;
mod crowd;
mod ends;
pub mod figures;
pub mod flood;
pub mod gateway;
mod list;
mod memory;
mod programs;
mod relay;
mod rows;
mod search;
mod table;
mod target;
mod tunnel;
pub mod world;

use std::time::Duration;

use anyhow::{Context, anyhow};

pub use figures::{Figure, Ledger, Sample, Side};
pub use list::ROWS;
pub use programs::Programs;
pub use rows::{Contender, Group, Row, Who, Work};
pub use target::{Demand, Outcome, Target, Verdict};

use crate::latency::Probe;
use crate::ring;
use counter::Counter;
use world::World;

/// Bytes of a datagram that goes there and back.
const ECHO_SIZE: usize = 64;
/// Few datagrams a second have to be timed for longer.
const ECHO_TIMES: f64 = 2.5;
/// More than this share lost of a load that both sides are said to carry is no load to compare costs at.
const LOST_SOUND: f64 = 0.01;

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Turns of each side.
    pub runs: usize,
    /// Length of a turn's load.
    pub duration: Duration,
    /// Allocations of the memory row.
    pub allocations: usize,
    /// Whether only a broken data plane is a failure.
    pub quick: bool,
}

impl Plan {
    /// Length of one trial of a search.
    fn trial(&self) -> Duration {
        (self.duration / 6).clamp(Duration::from_millis(300), Duration::from_secs(2))
    }
}

/// Where and by what means it is measured.
struct Bench<'a> {
    plan: &'a Plan,
    programs: &'a Programs,
    world: World,
    counter: Counter,
}

/// A row, measured.
pub(crate) type Measured<'a> = [(&'a Contender, Side)];

/// Runs the rows, prints each as it is done, and answers whether it is sound: that all sides could be measured, or, of
/// [`Plan::quick`], that nothing looks broken. Call it from the main thread, before any other thread exists.
///
/// # Errors
/// When there can be no network namespace of our own.
pub fn run(rows: &[&Row], plan: &Plan, programs: &Programs, json: bool) -> anyhow::Result<bool> {
    let counted = rows.iter().any(|row| matches!(row.work, Work::RelaySystemCalls { .. }));
    let counter = if counted { Counter::new(programs) } else { Counter::Missing(String::new()) };
    let mut bench = Bench { plan, programs, world: World::new()?, counter };
    let mut sound = true;
    let mut records = Vec::new();
    if !json {
        table::print_head(plan, programs);
    }
    for row in rows {
        let measured = bench.measure(row)?;
        let faults = if plan.quick { broken(row, &measured) } else { unsound(row, &measured) };
        sound &= faults.is_empty();
        let note = match row.work {
            Work::RelaySystemCalls { .. } => bench.counter.name(),
            _ => "",
        };
        if json {
            records.push(table::record(row, note, plan.quick, &measured));
        } else {
            table::print(row, note, plan.quick, programs, &measured);
            table::print_faults(row, &faults);
        }
    }
    if json {
        table::print_records(plan, programs, &records);
    }
    Ok(sound)
}

/// What keeps a row from being sound: a side whose program is here could not be measured, ours lost more than a trace or
/// anything without a cause, or a target that the project fails without was missed or not measured.
fn unsound(row: &Row, measured: &Measured<'_>) -> Vec<String> {
    let failed = measured.iter().filter_map(|(contender, side)| match side {
        Side::Failed(reason) => Some(format!("{} could not be measured: {reason}", contender.name)),
        Side::Measured(_) | Side::Missing(_) => None,
    });
    // The `drop` and `runtime` designs are there to be compared with, and lose what they lose.
    let lost = ours(measured).filter(|(contender, _)| contender.flags.contains("--io uring"));
    let lost = lost.filter_map(|(contender, side)| {
        let worst = side.samples().iter().map(|sample| sample.lost).fold(0.0, f64::max);
        let percent = |share: f64| share * 100.0;
        (worst > LOST_SOUND).then(|| {
            format!("{} lost {:.2} %, more than {} %", contender.name, percent(worst), percent(LOST_SOUND))
        })
    });
    let musts = row.targets.iter().filter(|target| target.must).filter_map(|target| {
        let verdict = row.judge(target, measured);
        (verdict.outcome != Outcome::Met).then(|| verdict.as_target())
    });
    failed.chain(lost).chain(unexplained(measured)).chain(musts).collect()
}

/// The sides that are ours.
fn ours<'a, 'b>(measured: &'b Measured<'a>) -> impl Iterator<Item = &'b (&'a Contender, Side)> {
    measured.iter().filter(|(contender, _)| contender.who == Who::Towpath)
}

/// Which of ours lost packets without a cause.
fn unexplained(measured: &Measured<'_>) -> impl Iterator<Item = String> {
    ours(measured).filter_map(|(contender, side)| {
        let count = figures::ledger(side.samples())?.unexplained;
        (count != 0).then(|| format!("{} lost {count} packets without a cause", contender.name))
    })
}

/// What looks broken rather than slow: ours could not be measured, lost packets without a cause, or is far from what it
/// should be. What is wrong with the others is printed, and not for us to mend.
fn broken(row: &Row, measured: &Measured<'_>) -> Vec<String> {
    let failed = ours(measured).filter_map(|(contender, side)| match side {
        Side::Failed(reason) => Some(format!("{} could not be measured: {reason}", contender.name)),
        Side::Measured(_) | Side::Missing(_) => None,
    });
    let outside = row.bands.iter().map(|band| row.judge(band, measured));
    let outside = outside.filter(|verdict| verdict.outcome == Outcome::Missed);
    failed.chain(unexplained(measured)).chain(outside.map(|verdict| verdict.as_band())).collect()
}

impl Bench<'_> {
    /// Every side of a row, a turn each, `runs` times, in this order and in the other: A B B A, so that a machine that
    /// becomes slower favours nobody.
    ///
    /// # Errors
    /// When the cables cannot be put back to what the other rows need.
    fn measure<'a>(&mut self, row: &'a Row) -> anyhow::Result<Vec<(&'a Contender, Side)>> {
        let side = |contender| match self.missing(contender, row) {
            Some(remedy) => (contender, Side::Missing(remedy)),
            None => (contender, Side::Measured(Vec::new())),
        };
        let mut sides: Vec<(&Contender, Side)> = row.contenders.iter().map(side).collect();
        if sides.iter().all(|(_, side)| matches!(side, Side::Missing(_))) {
            return Ok(sides);
        }
        let prepared = self.prepare(row);
        for round in 0..self.plan.runs {
            let count = sides.len();
            for position in 0..count {
                let index = if round % 2 == 0 { position } else { count - 1 - position };
                let (contender, side) = &mut sides[index];
                let Side::Measured(samples) = side else { continue };
                let prepared = prepared.as_ref().map_err(|error| anyhow!("{error:#}"));
                let turn = prepared
                    .and_then(|&rate| self.turn(row.work, rate, contender))
                    .with_context(|| format!("{}, {}", row.name, contender.name));
                match turn {
                    Ok(sample) => samples.push(sample),
                    Err(error) => *side = Side::Failed(format!("{error:#}")),
                }
            }
        }
        if !row.segmentation {
            self.world.set_segmentation(self.programs, true)?;
        }
        Ok(sides)
    }

    fn missing(&self, contender: &Contender, row: &Row) -> Option<String> {
        match (&self.counter, row.work) {
            (Counter::Missing(remedy), Work::RelaySystemCalls { .. }) => Some(remedy.clone()),
            _ => self.programs.missing(contender, row),
        }
    }

    /// Sets the cables up, and finds the rate at which a row is measured that takes it from its first side.
    fn prepare(&self, row: &Row) -> anyhow::Result<u64> {
        if !row.segmentation {
            self.world.set_segmentation(self.programs, false)?;
        }
        match row.work {
            Work::RelayLatency(size) => {
                let (first, trial) = (&row.contenders[0], self.plan.trial());
                Ok(carriage::loss_free(&self.world, first, self.programs, size, trial)? / 2)
            }
            _ => Ok(0),
        }
    }

    fn turn(&mut self, work: Work, rate: u64, contender: &Contender) -> anyhow::Result<Sample> {
        let (world, programs, plan) = (&self.world, self.programs, self.plan);
        let duration = plan.duration;
        match work {
            Work::Forward(index) => forward(index, contender, duration),
            Work::Relay { traffic, flows } => {
                carriage::measure(world, contender, programs, traffic.lasting(duration), flows)
            }
            Work::RelayHairpin(traffic) => {
                carriage::between_clients(world, contender, programs, traffic.lasting(duration))
            }
            Work::RelaySystemCalls { traffic, flows } => {
                let load = traffic.lasting(duration);
                carriage::system_calls(world, contender, programs, &mut self.counter, load, flows)
            }
            Work::RelayLatency(size) => {
                carriage::latency(world, contender, programs, Probe { rate, size, duration })
            }
            Work::RelayAllocations(count) => crowd::measure(world, contender, programs, count),
            Work::RelayMemory => memory::measure(world, contender, programs, plan.allocations),
            Work::TunnelStream(streams) => tunnel::stream(world, contender, programs, streams, duration),
            Work::CableStream => tunnel::cable(world, programs, duration),
            Work::TunnelDatagrams(traffic) => {
                tunnel::datagrams(world, contender, programs, traffic.lasting(duration))
            }
            Work::TunnelLossFree(size) => tunnel::loss_free(world, contender, programs, size, plan.trial()),
            Work::TunnelEcho(rate) | Work::TunnelEchoBesideStream(rate) => {
                let beside = matches!(work, Work::TunnelEchoBesideStream(_));
                let probe = Probe { rate, size: ECHO_SIZE, duration: duration.mul_f64(ECHO_TIMES) };
                tunnel::echo(world, contender, programs, probe, beside)
            }
        }
    }
}

fn forward(index: usize, contender: &Contender, duration: Duration) -> anyhow::Result<Sample> {
    let case = ring::cases(duration.as_secs_f64())[index];
    let flags: Vec<&str> = match contender.who {
        Who::Kernel => vec!["--raw"],
        _ => contender.flags.split_whitespace().collect(),
    };
    let turn = ring::measure(&case, &flags)?;
    let rate = turn.counted.arrived as f64 / duration.as_secs_f64() / 1e3;
    Ok(Sample {
        figures: vec![(Figure::Cost, turn.nanoseconds), (Figure::Rate, rate)],
        lost: 1.0 - turn.counted.share(),
        resident_kib: turn.resident_kib,
        ledger: Ledger::read(&turn.log),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> &'static Row {
        ROWS.iter().find(|row| row.name == name).unwrap()
    }

    fn turns(cost: f64, unexplained: i64) -> Side {
        let ledger = Some(Ledger { unexplained, ..Ledger::default() });
        Side::Measured(vec![Sample { figures: vec![(Figure::Cost, cost)], ledger, ..Sample::default() }])
    }

    fn broken_with(first: Side, last: Side) -> bool {
        let row = row("tunnel");
        !broken(row, &[(&row.contenders[0], first), (&row.contenders[1], last)]).is_empty()
    }

    #[test]
    fn a_slow_machine_is_not_broken_and_a_dear_tunnel_is() {
        assert!(!broken_with(turns(10.0, 0), turns(9.0, 0)), "far from the target, inside the band");
        assert!(broken_with(turns(10.0, 0), turns(11.0, 0)));
    }

    #[test]
    fn what_is_wrong_with_others_is_not_ours() {
        assert!(!broken_with(Side::Missing("apt-get".to_owned()), turns(9.0, 0)));
        assert!(!broken_with(Side::Failed("crashed".to_owned()), turns(9.0, 0)));
        let faults =
            unsound(row("tunnel"), &[(&row("tunnel").contenders[0], Side::Failed("crashed".to_owned()))]);
        assert_eq!(faults[0], "wireguard-go could not be measured: crashed");
    }

    #[test]
    fn a_missed_target_that_the_project_fails_without_is_unsound() {
        let tunnel = row("tunnel");
        let sound = |theirs, ours| {
            unsound(
                tunnel,
                &[(&tunnel.contenders[0], turns(theirs, 0)), (&tunnel.contenders[1], turns(ours, 0))],
            )
            .is_empty()
        };
        assert!(!sound(10.0, 9.0));
        let theirs_is_missing = [
            (&tunnel.contenders[0], Side::Missing("apt-get".to_owned())),
            (&tunnel.contenders[1], turns(1.0, 0)),
        ];
        assert!(!unsound(tunnel, &theirs_is_missing).is_empty(), "nobody looked");
        assert!(
            unsound(row("relay-single"), &[(&row("relay-single").contenders[0], turns(1.0, 0))]).is_empty()
        );
    }

    #[test]
    fn a_load_that_gets_lost_is_unsound_whatever_it_costs() {
        let single = row("relay-single");
        let with = |lost, unexplained| {
            let ledger = Some(Ledger { unexplained, ..Ledger::default() });
            let sample = Sample { figures: vec![(Figure::Cost, 1.0)], lost, ledger, ..Sample::default() };
            unsound(single, &[(&single.contenders[1], Side::Measured(vec![sample]))]).join("; ")
        };
        assert_eq!(with(0.001, 0), "");
        assert_eq!(with(0.02, 0), "towpath lost 2.00 %, more than 1 %");
        assert_eq!(with(0.0, 1), "towpath lost 1 packets without a cause");
    }

    #[test]
    fn a_side_of_ours_that_fails_or_loses_packets_unseen_is_broken() {
        assert!(broken_with(turns(10.0, 0), Side::Failed("no packet came through".to_owned())));
        assert!(broken_with(turns(10.0, 0), turns(1.0, 1)));
    }

    #[test]
    fn quick_rows_have_bands_wider_than_their_targets() {
        let quick: Vec<_> = ROWS.iter().filter(|row| !row.bands.is_empty()).collect();
        assert!(
            ["ring-bulk", "relay-bulk", "tunnel"]
                .iter()
                .all(|name| quick.iter().any(|row| row.name == *name))
        );
        for row in quick {
            for (band, target) in
                row.bands.iter().flat_map(|band| row.targets.iter().map(move |target| (band, target)))
            {
                let same = band.figure == target.figure && band.against == target.against;
                if let (true, Demand::RatioAtMost(wide), Demand::RatioAtMost(narrow)) =
                    (same, band.demand, target.demand)
                {
                    assert!(wide > narrow * 1.5, "{}: {wide} {narrow}", row.name);
                }
            }
        }
    }
}
