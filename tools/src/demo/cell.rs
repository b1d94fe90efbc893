//! One measurement: a design, a route and a load.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, anyhow};
use dataplane::netlink::Handle;
use serde::Serialize;

use super::Interrupt;
use super::ledger::Figures;
use super::plan::{self, B_INSIDE, BOTTLENECK_RATE, Bottleneck, Load, REFLECTOR_PORT, Route};
use super::stage::{DEVICE_A, DEVICE_B, Site, Stage, USER};
use super::usage::{Usage, watch};
use crate::netns::{Address, Namespace, Topology};
use crate::reflect::{Counts, Reflector};
use crate::run::{RunResult, run};

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// The I/O design, as `--io` takes it.
    pub design: &'static str,
    /// The way.
    pub route: Route,
    /// What is offered.
    pub load: Load,
}

impl Cell {
    /// As printed.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} {} {}", self.design, self.route.name(), self.load.name())
    }
}

/// A process's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// Which one.
    pub name: String,
    /// What it logged.
    pub figures: Figures,
    /// What was seen of it.
    pub usage: Usage,
}

impl Process {
    /// Kernel workers of its io_uring, seen from outside or by itself.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.usage.uring_workers.max(self.figures.kernel_workers)
    }
}

/// What a measurement found.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// What the load's two ends saw.
    pub run: RunResult,
    /// The process that sends into the bottleneck first, then the others.
    pub processes: Vec<Process>,
    /// Packets of the load lost outside tunnels and relay, by where.
    pub elsewhere: BTreeMap<&'static str, u64>,
    /// Lost datagrams that no counter names; negative where a counter counts what was not the load's. Absent where a
    /// receive buffer overflowed, which the kernel counts in superpackets of up to 64 datagrams.
    pub unexplained: Option<i64>,
}

impl Measured {
    /// Datagrams that did not come back in time.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.run.ledger.gone()
    }

    /// Every cause that lost something, with its count over all processes.
    #[must_use]
    pub fn causes(&self) -> BTreeMap<String, u64> {
        let mut causes: BTreeMap<String, u64> = BTreeMap::new();
        for process in &self.processes {
            for (cause, packets) in process.figures.load_drops() {
                *causes.entry(cause).or_default() += packets;
            }
        }
        for (&place, &packets) in self.elsewhere.iter().filter(|entry| *entry.1 > 0) {
            *causes.entry(place.to_owned()).or_default() += packets;
        }
        causes
    }
}

/// Measures one cell.
///
/// # Errors
/// What did not come up, or why the load could not be run.
pub fn measure(
    cell: &Cell,
    site: &Site,
    bottleneck: &Bottleneck,
    interrupt: &Interrupt,
    progress: impl Fn(f64) + Sync,
) -> anyhow::Result<Measured> {
    let stage = Stage::start(site, cell.design, cell.route, interrupt)?;
    let mut spec = plan::spec(cell.route, cell.load, bottleneck, cell.name(), stage.pids(), &interrupt.stop);
    if site.topology.is_none() {
        spec = plan::on_loopback(spec, site.loopback_port);
    }
    if cell.route == Route::RelayOnly {
        let peer = site.topology.as_ref().map_or(Ipv4Addr::LOCALHOST, |_| Address::A_AT_RELAY);
        spec = plan::with_user(spec, USER, &site.password, IpAddr::V4(peer));
    }
    let tunnelled = if cell.route == Route::RelayOnly { None } else { site.topology.as_ref() };
    let devices = tunnelled.map(|topology| Devices::prepare(topology, bottleneck)).transpose()?;
    let shaped = site.topology.as_ref().filter(|_| cell.load == Load::Bottleneck);
    if let Some(topology) = shaped {
        let limits = (bottleneck.token_bucket, bottleneck.limit);
        topology.add_bottleneck(cell.route.cable(), BOTTLENECK_RATE, limits.0, limits.1)?;
    }

    let loaded = with_watch(&stage.pids(), || {
        let load = || run(&spec, &progress);
        match &site.topology {
            None => Ok((load()?, Counts::default())),
            Some(topology) => {
                with_reflector(tunnelled.map(|topology| &topology.b), || topology.a.run(load)?)
            }
        }
    });

    let mut elsewhere = BTreeMap::new();
    if let Some(topology) = shaped {
        elsewhere.insert("bottleneck", u64::from(topology.remove_bottleneck(cell.route.cable())?));
    }
    let ((run, reflected), usage) = loaded?;
    if let (Some(topology), Some(devices)) = (tunnelled, devices) {
        devices.count(topology, &mut elsewhere)?;
    }
    elsewhere.insert("reflector", reflected.refused + reflected.kernel_drops_skbs);
    interrupt.check()?;

    let named = stage.stop()?;
    let processes: Vec<Process> = named
        .into_iter()
        .zip(usage)
        .map(|((name, figures), usage)| Process { name, figures, usage })
        .collect();
    let explained =
        processes.iter().flat_map(|process| process.figures.load_drops().into_values()).sum::<u64>()
            + elsewhere.values().sum::<u64>();
    let in_superpackets = reflected.kernel_drops_skbs > 0
        || processes.iter().any(|process| process.figures.ingress.kernel_drops_skbs > 0);
    let unexplained = (!in_superpackets).then(|| run.ledger.lost.cast_signed() - explained.cast_signed());
    Ok(Measured { run, processes, elsewhere, unexplained })
}

/// Runs `load` while the processes are looked at.
fn with_watch<T: Send>(
    pids: &[u32],
    load: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Vec<Usage>)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Owns nothing; ends when `done` is set.
        let watcher =
            thread::Builder::new().name("lab-usage".to_owned()).spawn_scoped(scope, || watch(pids, &done))?;
        let outcome = load();
        done.store(true, Ordering::Release);
        let usage = watcher.join().map_err(|_| anyhow!("the thread that looks at processes failed"))?;
        Ok((outcome?, usage))
    })
}

/// Runs `load` while a reflector runs in the namespace, if there is one.
pub(crate) fn with_reflector(
    namespace: Option<&Namespace>,
    load: impl FnOnce() -> anyhow::Result<RunResult>,
) -> anyhow::Result<(RunResult, Counts)> {
    let Some(namespace) = namespace else { return Ok((load()?, Counts::default())) };
    let done = AtomicBool::new(false);
    let address = SocketAddr::from((B_INSIDE, REFLECTOR_PORT));
    thread::scope(|scope| {
        // Owns the far end's socket; ends when `done` is set.
        let far_end = thread::Builder::new().name("lab-far-end".to_owned()).spawn_scoped(scope, || {
            namespace.run(|| Ok::<_, anyhow::Error>(Reflector::bind(&[address])?.run(None, &done)?))?
        })?;
        let outcome = load();
        done.store(true, Ordering::Relaxed);
        let counts = far_end.join().map_err(|_| anyhow!("the far end failed"))?;
        // Without a far end the load fails too; why it is missing says more.
        let counts = counts.context("far end")?;
        Ok((outcome?, counts))
    })
}

/// What the two TUN devices had dropped before the load.
struct Devices {
    a: u64,
    b: u64,
}

impl Devices {
    /// Makes the queue of A's device long enough for a burst, and reads both counters.
    fn prepare(topology: &Topology, bottleneck: &Bottleneck) -> anyhow::Result<Self> {
        topology.a.run(|| {
            let mut handle = Handle::open()?;
            let index = handle.link_index(DEVICE_A)?;
            handle.set_txqueuelen(index, bottleneck.device_queue)
        })??;
        Ok(Self { a: dropped(&topology.a, DEVICE_A)?, b: dropped(&topology.b, DEVICE_B)? })
    }

    fn count(&self, topology: &Topology, elsewhere: &mut BTreeMap<&'static str, u64>) -> anyhow::Result<()> {
        elsewhere.insert("tun_queue_a", dropped(&topology.a, DEVICE_A)?.saturating_sub(self.a));
        elsewhere.insert("tun_queue_b", dropped(&topology.b, DEVICE_B)?.saturating_sub(self.b));
        Ok(())
    }
}

/// Packets a device dropped so far, in both directions.
fn dropped(namespace: &Namespace, device: &str) -> anyhow::Result<u64> {
    let stats = namespace.run(|| {
        let mut handle = Handle::open()?;
        let index = handle.link_index(device)?;
        handle.link_stats(index)
    })??;
    Ok(stats.tx_dropped + stats.rx_dropped)
}
