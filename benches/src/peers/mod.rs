//! The whole-system runner: each row is one kind of work, done in turns by Towpath and by what it is compared with.

mod figures;
mod memory;
mod programs;
mod relay;
mod rows;
mod table;
mod tunnel;
mod world;

use std::time::Duration;

use anyhow::Context;

pub use figures::{Ledger, Sample, Side};
pub use programs::Programs;
pub use rows::{Group, ROWS, Row, Work};

use crate::ring;
use world::World;

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Turns of each side.
    pub runs: usize,
    /// Length of a turn's load.
    pub duration: Duration,
    /// Allocations of the memory row.
    pub allocations: usize,
}

/// Runs the rows, prints each as it is done, and answers whether all sides could be measured. Call it from the main
/// thread, before any other thread exists.
///
/// # Errors
/// When there can be no network namespace of our own.
pub fn run(rows: &[&Row], plan: &Plan, programs: &Programs, json: bool) -> anyhow::Result<bool> {
    let world = World::new()?;
    let mut sound = true;
    let mut records = Vec::new();
    if !json {
        table::print_head(plan, programs);
    }
    for row in rows {
        let measured = measure(row, plan, programs, &world);
        sound &= measured.iter().all(|(_, side)| !matches!(side, Side::Failed(_)));
        if json {
            records.push(table::record(row, &measured));
        } else {
            table::print(row, &measured);
        }
    }
    if json {
        table::print_records(plan, programs, &records);
    }
    Ok(sound)
}

/// Every side of a row, a turn each, `runs` times: A B A B.
fn measure<'a>(row: &Row, plan: &Plan, programs: &Programs, world: &World) -> Vec<(&'a Contender, Side)>
where
    'static: 'a,
{
    let mut sides: Vec<(&Contender, Side)> = row
        .contenders
        .iter()
        .map(|contender| match programs.missing(contender.who, row.work) {
            Some(remedy) => (contender, Side::Missing(remedy)),
            None => (contender, Side::Measured(Vec::new())),
        })
        .collect();
    for _ in 0..row.work.runs(plan) {
        for (contender, side) in &mut sides {
            let Side::Measured(samples) = side else { continue };
            let turn = turn(row.work, contender, plan, programs, world)
                .with_context(|| format!("{}, {}", row.name, contender.name));
            match turn {
                Ok(sample) => samples.push(sample),
                Err(error) => *side = Side::Failed(format!("{error:#}")),
            }
        }
    }
    sides
}

pub use rows::{Contender, Who};

fn turn(
    work: Work,
    contender: &Contender,
    plan: &Plan,
    programs: &Programs,
    world: &World,
) -> anyhow::Result<Sample> {
    match work {
        Work::Forward(index) => {
            let case = ring::cases(plan.duration.as_secs_f64())[index];
            let flags: Vec<&str> = match contender.who {
                Who::Kernel => vec!["--raw"],
                _ => contender.flags.split_whitespace().collect(),
            };
            let turn = ring::measure(&case, &flags)?;
            Ok(Sample {
                cost: turn.nanoseconds,
                rate: turn.counted.arrived as f64 / plan.duration.as_secs_f64() / 1e3,
                lost: 1.0 - turn.counted.share(),
                resident_kib: turn.resident_kib,
                ledger: Ledger::read(&turn.log),
            })
        }
        Work::Relay(load) => relay::measure(world, contender, programs, load.lasting(plan.duration)),
        Work::TunnelStream => tunnel::stream(world, contender, programs, plan.duration),
        Work::TunnelDatagrams(load) => {
            tunnel::datagrams(world, contender, programs, load.lasting(plan.duration))
        }
        Work::RelayMemory => memory::measure(world, contender, programs, plan.allocations),
    }
}
