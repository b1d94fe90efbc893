//! A tunnel that carries half of what it can while its far end is flooded with what is no message, or a handshake with a wrong
//! mac1: what that takes from the stream, and what a datagram of the flood costs.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use tools::netns::Address;

use super::ends::{INSIDE, Tunnel};
use super::programs::Programs;
use super::rows::{Contender, Who};
use super::tunnel::Iperf;
use super::world::World;
use crate::load::{self, Flow, Load};

const PORT: u16 = 51_820;
/// Datagrams of the flood in a second.
pub const RATE: u64 = 50_000;
/// Bytes of a handshake initiation.
const SIZE: usize = 148;
/// The stream runs this long before and after what is measured.
const EDGE: Duration = Duration::from_secs(1);
/// What is measured of it.
const MIDDLE: Duration = Duration::from_secs(2);

/// What comes beside the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Quiet,
    /// Datagrams whose type WireGuard does not have: what receiving costs by itself.
    NoMessage,
    /// Handshake initiations whose mac1 is wrong.
    WrongMac1,
}

/// What one turn came to.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Of the stream, over the whole turn.
    pub gbit_s: f64,
    /// CPU time of the far end, of one second.
    pub cpu: f64,
    /// Datagrams of the flood in that second, as sent.
    pub flooded: f64,
}

/// A tunnel, ready, and how fast it is.
pub struct Flooded<'a> {
    world: &'a World,
    programs: &'a Programs,
    tunnel: Tunnel,
    source: UdpSocket,
    /// Half of what the tunnel carries alone, bits a second.
    pub half: f64,
}

impl<'a> Flooded<'a> {
    /// Starts the tunnel and measures what it carries.
    ///
    /// # Errors
    /// When tunnel or iperf3 do not work.
    pub fn start(world: &'a World, programs: &'a Programs) -> anyhow::Result<Self> {
        let ours = Contender { name: "towpath", who: Who::Towpath, flags: "" };
        let tunnel = Tunnel::start(world, &ours, programs)?;
        let source = world.topology.a.run(|| {
            UdpSocket::bind(SocketAddr::new(Address::A_DIRECT.into(), 0), &UdpOptions::default())
        })??;
        let alone = Iperf::start(world, programs, INSIDE, 1, MIDDLE, None)?.finish()?.gbit_s;
        Ok(Self { world, programs, tunnel, source, half: alone * 1e9 / 2.0 })
    }

    /// One turn.
    ///
    /// # Errors
    /// As [`Flooded::start`]; or when anything is answered.
    pub fn turn(&self, beside: Beside) -> anyhow::Result<Turn> {
        let whole = MIDDLE + EDGE * 2;
        let stream = Iperf::start(self.world, self.programs, INSIDE, 1, whole, Some(self.half))?;
        let to = SocketAddr::new(Address::B_DIRECT.into(), PORT);
        let (cpu, flooded) = std::thread::scope(|scope| {
            let source = &self.source;
            let flood = scope.spawn(move || flood(beside, source, to, whole));
            std::thread::sleep(EDGE);
            let before = self.tunnel.cpu_seconds()?;
            std::thread::sleep(MIDDLE);
            let [_, used] = self.tunnel.cpu_seconds_since(before)?;
            let flooded = flood.join().map_err(|_| anyhow::anyhow!("the flood ended in a panic"))?;
            anyhow::Ok((used / MIDDLE.as_secs_f64(), flooded as f64 / whole.as_secs_f64()))
        })?;
        let gbit_s = stream.finish()?.gbit_s;
        let mut batch = ReceiveBatch::new(1, RECEIVE_LEN);
        if self.source.receive_batch(&mut batch).is_ok_and(|count| count > 0) {
            bail!("the flood was answered");
        }
        Ok(Turn { gbit_s, cpu, flooded })
    }

    /// Ends it; how many datagrams its far end refused for their mac1 and for their form.
    ///
    /// # Errors
    /// When an end keeps no ledger, or lost anything without a cause.
    pub fn stop(self) -> anyhow::Result<[u64; 2]> {
        let ledger = self.tunnel.stop()?.context("no ledger")?;
        if ledger.unexplained != 0 {
            bail!("packets were lost without a cause: {ledger:?}");
        }
        Ok(["bad_tag", "malformed_outer"].map(|cause| ledger.drops.get(cause).copied().unwrap_or(0)))
    }
}

fn flood(beside: Beside, source: &UdpSocket, to: SocketAddr, duration: Duration) -> u64 {
    let header = match beside {
        Beside::Quiet => return 0,
        Beside::NoMessage => vec![9, 0, 0, 0],
        Beside::WrongMac1 => vec![1, 0, 0, 0],
    };
    let size = SIZE - header.len();
    let flow = Flow { socket: source.clone(), to, header };
    // Some at a time, as a sender's clock allows; each by itself, as from many senders.
    let load = Load { rate: RATE, size, burst: 10, superpackets: false, duration, patient: true };
    load::send(load, &[flow], crate::process::now())
}

/// CPU time that the plain kernel takes to receive one datagram of the same flood beside a stream of `bits` a second: what a thread
/// that receives both by recvmmsg(2), looks at none of it and does nothing else takes more than for the stream alone. By itself a
/// flood costs more, because the thread is woken for it; the tunnel under a stream is awake already.
///
/// # Errors
/// When no socket can be had or nothing arrives.
pub fn plain_receive(world: &World, bits: f64) -> anyhow::Result<Duration> {
    let bind = |address: IpAddr| {
        let options = UdpOptions { receive_buffer: 8 << 20, ..UdpOptions::default() };
        UdpSocket::bind(SocketAddr::new(address, 0), &options)
    };
    let sources = world
        .topology
        .a
        .run(|| anyhow::Ok([bind(Address::A_DIRECT.into())?, bind(Address::A_DIRECT.into())?]))??;
    let sink = world.topology.b.run(|| bind(Address::B_DIRECT.into()))??;
    let turn = |beside| {
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&sink));
            let stream = scope.spawn(|| stream(bits, &sources[0], sink.local_addr()));
            let flooded = flood(beside, &sources[1], sink.local_addr(), MIDDLE);
            let streamed = stream.join();
            let received = receiver.join();
            match (received, streamed) {
                (Ok((used, taken)), Ok(streamed)) if taken > 0 && streamed > 0 => Ok((used, flooded)),
                _ => bail!("the stream did not arrive"),
            }
        })
    };
    let (alone, _) = turn(Beside::Quiet)?;
    let (both, flooded) = turn(Beside::WrongMac1)?;
    Ok(both.saturating_sub(alone) / u32::try_from(flooded)?)
}

/// A stream as the tunnel's: superpackets of full datagrams.
fn stream(bits: f64, source: &UdpSocket, to: SocketAddr) -> u64 {
    const SIZE: usize = 1_452;
    let flow = Flow { socket: source.clone(), to, header: Vec::new() };
    let rate = (bits / 8.0 / SIZE as f64) as u64;
    let load = Load { rate, size: SIZE, burst: 40, superpackets: true, duration: MIDDLE, patient: true };
    load::send(load, &[flow], crate::process::now())
}

/// Receives until nothing has come for a while; CPU time of this thread, and datagrams.
fn receive(sink: &UdpSocket) -> (Duration, u64) {
    let clock = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
    let (start, mut taken) = (clock(), 0);
    loop {
        let mut fds = [PollFd::from_borrowed_fd(sink.fd().as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 500_000_000 })).is_ok_and(|ready| ready == 0) {
            return (clock() - start, taken);
        }
        while let Ok(count) = sink.receive_batch(&mut batch)
            && count > 0
        {
            taken += count as u64;
        }
    }
}
