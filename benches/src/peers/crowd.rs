//! Many clients at once: how fast a relay grants allocations, and how long lists of flows come to be.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};
use rustix::event::{Timespec, epoll};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tools::netns::Address;

use super::askers::Askers;
use super::figures::{Figure, Sample};
use super::programs::Programs;
use super::relay::{Relay, TurnClient, sockets};
use super::rows::Contender;
use super::world::World;
use crate::load;
use crate::process::now;

/// How many ask at a time.
const AT_A_TIME: usize = 64;
/// How long nobody may be answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients with an allocation each, and a channel to `peer`; `AT_A_TIME` of them ask at a time.
///
/// # Errors
/// What the relay refuses, or its silence.
pub fn connect(sources: Vec<UdpSocket>, peer: SocketAddr) -> anyhow::Result<Vec<TurnClient>> {
    let total = sources.len();
    let mut sources = sources.into_iter().zip(1u64..);
    let mut clients: Vec<TurnClient> = Vec::with_capacity(total);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut batch = ReceiveBatch::new(1, RECEIVE_LEN);
    let mut events = Vec::with_capacity(AT_A_TIME);
    let (mut done, mut last) = (0, now());
    while done < total {
        while clients.len() - done < AT_A_TIME {
            // Made when it is its turn: from then on it waits for an answer.
            let Some((socket, seed)) = sources.next() else { break };
            let mut client = TurnClient::new(socket, seed);
            client.want(peer)?;
            let data = epoll::EventData::new_u64(clients.len() as u64);
            epoll::add(&epoll, client.socket().fd(), data, epoll::EventFlags::IN)?;
            client.send()?;
            clients.push(client);
        }
        events.clear();
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        if !events.is_empty() {
            last = now();
        } else if last.elapsed() > PATIENCE {
            bail!("the relay does not answer after {done} of {total} clients");
        } else {
            // What was lost is sent again.
            clients.iter_mut().try_for_each(TurnClient::send)?;
        }
        for event in &events {
            let client = &mut clients[event.data.u64() as usize];
            client.receive(&mut batch)?;
            client.send()?;
            if client.has(peer) {
                epoll::delete(&epoll, client.socket().fd())?;
                done += 1;
            }
        }
    }
    Ok(clients)
}

/// Confines this thread, and what it starts, to one core; afterwards it has those again that it had.
struct Confined {
    all: CpuSet,
}

impl Confined {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { all: sched_getaffinity(None)? })
    }

    /// The core of this number among those that it may use.
    fn to(&self, number: usize) -> anyhow::Result<()> {
        let cores = (0..CpuSet::MAX_CPU).filter(|&core| self.all.is_set(core));
        let core =
            cores.into_iter().nth(number).context("takes a core for the relay and one for its clients")?;
        let mut set = CpuSet::new();
        set.set(core);
        Ok(sched_setaffinity(None, &set)?)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // These it had before.
        let _ = sched_setaffinity(None, &self.all);
    }
}

/// One turn: `count` clients ask for an allocation, a few at a time, as fast as they are served. The relay has one core, its
/// clients another: on cores that both may use, the rate would be the clients'.
///
/// # Errors
/// When the relay does not serve all of them, or there is only one core.
pub fn measure(
    world: &World,
    contender: &Contender,
    programs: &Programs,
    count: usize,
) -> anyhow::Result<Sample> {
    let confined = Confined::new()?;
    confined.to(1)?;
    let relay = Relay::start(world, contender, programs)?;
    confined.to(0)?;
    let mut sources = sockets(&world.topology.a, Address::A_AT_RELAY.into(), count + 1, 64 << 10)?;
    // What a relay sets up for its first client, it sets up once.
    let first = TurnClient::allocate(sources.remove(0), u64::MAX)?;
    let mut askers = Askers::new(sources)?;
    let before = load::cpu_seconds(relay.pid())?;
    let start = now();
    askers.serve()?;
    let took = start.elapsed().as_secs_f64();
    let used = load::cpu_seconds_since(relay.pid(), before)?;
    let figures = vec![(Figure::Rate, count as f64 / took / 1e3), (Figure::Cost, used * 1e6 / count as f64)];
    let resident_kib = load::resident_kib(relay.pid(), "VmHWM");
    let ledger = relay.stop()?;
    drop((first, askers));
    Ok(Sample { figures, lost: 0.0, resident_kib, ledger })
}
