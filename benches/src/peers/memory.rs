//! What an allocation costs a relay in resident memory.

use std::time::Duration;

use anyhow::bail;
use tools::netns::Address;

use super::crowd;
use super::figures::{Figure, Sample};
use super::programs::Programs;
use super::relay::{Relay, TurnClient, sockets};
use super::rows::Contender;
use super::world::World;
use crate::load::{self, Load};

/// Datagrams over each allocation, so that nothing is only promised.
const DATAGRAMS_EACH: u64 = 10;

/// One turn: `allocations` clients with a socket, an allocation and a channel each, and a little traffic on all.
///
/// # Errors
/// When the relay does not serve all of them.
pub fn measure(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    allocations: usize,
) -> anyhow::Result<Sample> {
    let relay = Relay::start(world, contender, programs)?;
    let sink = sockets(&world.topology.b, Address::B_AT_RELAY.into(), 1, 32 << 20)?.remove(0);
    let peer = sink.local_addr();
    let mut sources = sockets(&world.topology.a, Address::A_AT_RELAY.into(), allocations + 1, 64 << 10)?;
    let size = 200;
    let rate = 10_000;
    let lasting = |datagrams: u64| Load {
        rate,
        size,
        burst: 1,
        superpackets: false,
        patient: false,
        duration: Duration::from_secs(1).mul_f64(datagrams as f64 / rate as f64),
    };
    // The first client is not counted: what a relay sets up for it, it sets up once.
    let first = TurnClient::connect(sources.remove(0), peer, u64::MAX)?;
    load::run(lasting(2_000), &[first.flow(peer, size)?], &sink)?;
    let before = load::resident_kib(relay.pid(), "VmRSS");
    let clients = crowd::connect(sources, peer)?;
    let flows: anyhow::Result<Vec<_>> = clients.iter().map(|client| client.flow(peer, size)).collect();
    let counted = load::run(lasting(allocations as u64 * DATAGRAMS_EACH), &flows?, &sink)?;
    let after = load::resident_kib(relay.pid(), "VmRSS");
    let resident_kib = load::resident_kib(relay.pid(), "VmHWM");
    if counted.arrived == 0 {
        bail!("nothing arrived at the peer");
    }
    Ok(Sample {
        figures: vec![
            (Figure::Cost, after.saturating_sub(before) as f64 / allocations as f64),
            (Figure::Rate, allocations as f64),
        ],
        lost: 1.0 - counted.share(),
        resident_kib,
        ledger: relay.stop()?,
    })
}
