//! What relays carry, ours, coturn and plain kernel calls: from clients at A to one peer at B.

use std::time::Duration;

use anyhow::bail;
use dataplane::sys::udp::UdpSocket;
use tools::netns::Address;

use super::counter::Counter;
use super::crowd;
use super::figures::{Figure, Sample, times};
use super::programs::Programs;
use super::relay::{self, Relay, TurnClient, sockets};
use super::rows::{Contender, Traffic, Who};
use super::search;
use super::world::World;
use crate::latency::{self, Probe};
use crate::load::{self, Counted, Flow, Load};

/// A relay with its clients, ready to carry.
pub struct Carriage {
    relay: Relay,
    flows: Vec<Flow>,
    sink: UdpSocket,
}

impl Carriage {
    /// Starts what the contender has for a relay, connects a client for each flow, and sends a datagram over each.
    fn new(
        world: &World,
        contender: &Contender,
        programs: &Programs,
        flows: usize,
        size: usize,
    ) -> anyhow::Result<Self> {
        let sink = sockets(&world.topology.b, Address::B_AT_RELAY.into(), 1, 32 << 20)?.remove(0);
        let buffer = if flows > 1 { 256 << 10 } else { 8 << 20 };
        let sources = sockets(&world.topology.a, Address::A_AT_RELAY.into(), flows, buffer)?;
        let (relay, flows) = if matches!(contender.who, Who::Kernel | Who::KernelOnEveryCore) {
            let flow = |socket| Flow { socket, to: relay::server(), header: Vec::new() };
            let relay = Relay::start_middle(world, contender, sink.local_addr(), flows)?;
            (relay, sources.into_iter().map(flow).collect())
        } else {
            let relay = Relay::start(world, contender, programs)?;
            let peer = sink.local_addr();
            let clients = crowd::connect(sources, peer)?;
            let flows: anyhow::Result<Vec<Flow>> =
                clients.iter().map(|client| client.flow(peer, size)).collect();
            (relay, flows?)
        };
        Self { relay, flows, sink }.tried(size)
    }

    /// The same from one client of the relay to another, at the address relayed for that one. Both have channels.
    fn between_clients(
        world: &World,
        contender: &Contender,
        programs: &Programs,
        size: usize,
    ) -> anyhow::Result<Self> {
        let source = sockets(&world.topology.a, Address::A_AT_RELAY.into(), 1, 8 << 20)?.remove(0);
        let sink = sockets(&world.topology.b, Address::B_AT_RELAY.into(), 1, 32 << 20)?.remove(0);
        let relay = Relay::start(world, contender, programs)?;
        let (mut from, mut to) = (TurnClient::allocate(source, 1)?, TurnClient::allocate(sink.clone(), 2)?);
        let (from_relayed, to_relayed) = (from.relayed()?, to.relayed()?);
        from.bind(to_relayed)?;
        to.bind(from_relayed)?;
        let flows = vec![from.flow(to_relayed, size)?];
        Self { relay, flows, sink }.tried(size)
    }

    /// Sends a datagram over each flow.
    fn tried(self, size: usize) -> anyhow::Result<Self> {
        let first = Traffic { rate: 10_000, size, burst: 1, superpackets: false };
        let each = Duration::from_secs(1).mul_f64(self.flows.len() as f64 / first.rate as f64);
        self.run(first.lasting(each))?;
        Ok(self)
    }

    fn run(&self, load: Load) -> anyhow::Result<Counted> {
        let counted = load::run(load, &self.flows, &self.sink)?;
        if counted.arrived == 0 {
            bail!("nothing arrived at the peer");
        }
        Ok(counted)
    }

    /// Ends it; `figures` and what the relay says are the turn's.
    fn sample(self, figures: Vec<(Figure, f64)>, lost: f64) -> anyhow::Result<Sample> {
        let resident_kib = load::resident_kib(self.relay.pid(), "VmHWM");
        let ledger = self.relay.stop()?;
        Ok(Sample { figures, lost, resident_kib, ledger })
    }
}

/// One turn: clients at A send `load` over channels to B.
///
/// # Errors
/// When the relay does not serve or nothing arrives.
pub fn measure(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    load: Load,
    flows: usize,
) -> anyhow::Result<Sample> {
    cost(Carriage::new(world, contender, programs, flows, load.size)?, load)
}

/// One turn: a client at A sends `load` over a channel to a client at B, through the allocations of both.
///
/// # Errors
/// As [`measure`].
pub fn between_clients(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    load: Load,
) -> anyhow::Result<Sample> {
    cost(Carriage::between_clients(world, contender, programs, load.size)?, load)
}

/// What carrying `load` costs.
fn cost(carriage: Carriage, load: Load) -> anyhow::Result<Sample> {
    let before = load::cpu_seconds(carriage.relay.pid())?;
    let counted = carriage.run(load)?;
    let used = load::cpu_seconds_since(carriage.relay.pid(), before)?;
    let figures = vec![
        (Figure::Cost, used * 1e9 / counted.arrived as f64),
        (Figure::Rate, counted.arrived as f64 / load.duration.as_secs_f64() / 1e3),
    ];
    carriage.sample(figures, 1.0 - counted.share())
}

/// One turn of the same, counting system calls.
///
/// # Errors
/// As [`measure`], or when nothing could be counted.
pub fn system_calls(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    counter: &mut Counter,
    load: Load,
    flows: usize,
) -> anyhow::Result<Sample> {
    let carriage = Carriage::new(world, contender, programs, flows, load.size)?;
    let counting = counter.start(world, carriage.relay.pid(), load.duration)?;
    let duration = counting.load;
    let counted = carriage.run(Load { duration, ..load })?;
    let rate = counted.arrived as f64 / duration.as_secs_f64();
    let mut sample = carriage.sample(vec![(Figure::Rate, rate / 1e3)], 1.0 - counted.share())?;
    sample.figures.push((Figure::SystemCalls, counting.finish()? / rate));
    Ok(sample)
}

/// The highest rate at which one flow arrives whole, but for [`search::LOST_MAX`].
///
/// # Errors
/// When the relay does not serve, or not even the lowest rate arrives.
pub fn loss_free(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    size: usize,
    trial: Duration,
) -> anyhow::Result<u64> {
    let carriage = Carriage::new(world, contender, programs, 1, size)?;
    Ok(search::loss_free(size, trial, |load| carriage.run(load))?.rate)
}

/// One turn: how late the datagrams of one flow are at B.
///
/// # Errors
/// When the relay does not serve or nothing arrives.
pub fn latency(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    probe: Probe,
) -> anyhow::Result<Sample> {
    let carriage = Carriage::new(world, contender, programs, 1, probe.size)?;
    let latencies = latency::run(probe, &carriage.flows[0], None, &carriage.sink)?;
    if latencies.arrived() == 0 {
        bail!("nothing arrived at the peer");
    }
    let mut figures = times(&latencies);
    figures.push((Figure::Rate, probe.rate as f64 / 1e3));
    carriage.sample(figures, latencies.lost())
}
