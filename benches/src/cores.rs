//! `benches cores`: what a second core is worth to one tunnel.
//!
//! Nobody else needs a core meanwhile: the tunnel is stopped, the queue in front of it is filled, and then it is timed how long the
//! tunnel takes to empty it. The far end is one socket of this process that reads nothing while that lasts.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use dataplane::ingress::Meta;
use dataplane::netlink::{Handle, LinkStats};
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
use dataplane::tunnel::Path;
use dataplane::tunnel::key::{KEY_LEN, SecretKey};
use dataplane::tunnel::noise::{self, CONTROL_LEN, Identity, Noise, Outset};
use dataplane::wire::wireguard::{DATA_OVERHEAD, RESPONSE};
use rustix::io::Errno;
use rustix::net::{getsockname, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tools::netns::{Address, Namespace};

use crate::peers::figures::Ledger;
use crate::peers::world::World;
use crate::process::{Process, Role, now};

const PORT: u16 = 51_820;
const DEVICE: &str = "bench-c";
/// Inside: the tunnel's own address, the far end's, and one where nobody is.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
/// Length of a packet inside: a multiple of 16 below the MTU, so that none is padded.
const PACKET: usize = 1408;
/// Packets in a superpacket: as many as a tunnel with an MTU of 1420 takes from its device at once.
const SEGMENTS: usize = 45;
/// Superpackets waiting for a tunnel in one turn, at most.
const QUEUE: usize = 2_048;
/// How long nothing may move until a turn is over.
const STILL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);
/// Without so many bytes a turn says nothing.
const MOVED_MIN: u64 = 16 << 20;

/// The command line of `benches cores`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Turns of each side
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Crypto threads of the sides that have any
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: u8,
    /// Only one way
    #[arg(long)]
    way: Option<Direction>,
}

/// Which way packets go through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// From the device to the socket.
    Out,
    /// From the socket to the device.
    In,
}

/// How the tunnel runs.
#[derive(Clone, Copy, Debug)]
struct Side {
    /// May it use every core, or one?
    every_core: bool,
    threads: u8,
}

/// What one turn came to.
#[derive(Clone, Copy, Debug)]
struct Turn {
    gb_s: f64,
    /// CPU seconds for each GB: of the loop, and of the crypto threads.
    main: f64,
    crypto: f64,
}

/// Runs it and prints what came of it.
///
/// # Errors
/// When there can be no network namespace of our own, or a tunnel does not start, lose or move anything.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    ensure!(cores > 1, "this program may use one core only: taskset and cgroups say which");
    let is_root = rustix::process::geteuid().is_root();
    let world = if is_root { World::of_root()? } else { World::new()? };
    let sides = [
        Side { every_core: false, threads: 0 },
        Side { every_core: false, threads: arguments.threads },
        Side { every_core: true, threads: 0 },
        Side { every_core: true, threads: arguments.threads },
    ];
    let ways = [Direction::Out, Direction::In];
    for direction in ways.into_iter().filter(|&way| arguments.way.is_none_or(|only| only == way)) {
        if direction == Direction::In && !is_root {
            writeln!(
                out,
                "from socket to device: left out, only root may enlarge a receive buffer so far: run it as root"
            )?;
            continue;
        }
        let mut turns: [Vec<Turn>; 4] = [const { Vec::new() }; 4];
        for round in 0..arguments.runs {
            for position in 0..sides.len() {
                // A B C D, D C B A: a machine that becomes slower favours nobody.
                let side = if round % 2 == 0 { position } else { sides.len() - 1 - position };
                turns[side].push(turn(&world, direction, sides[side])?);
            }
        }
        print(direction, &sides, &turns, cores, out)?;
    }
    Ok(())
}

fn print(
    direction: Direction,
    sides: &[Side; 4],
    turns: &[Vec<Turn>; 4],
    cores: usize,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (from, to) = match direction {
        Direction::Out => ("device", "socket"),
        Direction::In => ("socket", "device"),
    };
    writeln!(out, "from {from} to {to}, packets of {PACKET} bytes in superpackets of {SEGMENTS}")?;
    writeln!(
        out,
        "{:<24} {:>22} {:>22} {:>16} {:>18}",
        "tunnel", "GB/s", "ratio to the first", "CPU s/GB, loop", "CPU s/GB, crypto"
    )?;
    for (side, own) in sides.iter().zip(turns) {
        let name = format!(
            "{} core{}, {} crypto",
            if side.every_core { cores } else { 1 },
            if side.every_core { "s" } else { "" },
            side.threads
        );
        let ratios = own.iter().zip(&turns[0]).map(|(turn, first)| turn.gb_s / first.gb_s);
        writeln!(
            out,
            "{name:<24} {:>22} {:>22} {:>16.3} {:>18.3}",
            shown(own.iter().map(|turn| turn.gb_s).collect()),
            shown(ratios.collect()),
            middle(own.iter().map(|turn| turn.main).collect()),
            middle(own.iter().map(|turn| turn.crypto).collect()),
        )?;
    }
    Ok(())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn shown(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2} to {:.2})", values[values.len() / 2], values[0], values[values.len() - 1])
}

fn turn(world: &World, direction: Direction, side: Side) -> anyhow::Result<Turn> {
    let mut tunnel = Tunnel::start(world, side)?;
    match direction {
        Direction::Out => tunnel.fill_device(world)?,
        Direction::In => tunnel.fill_socket()?,
    }
    let turn = tunnel.empty(world, direction)?;
    tunnel.stop()?;
    Ok(turn)
}

/// The tunnel at B, stopped until it is timed, and its far end at A.
struct Tunnel {
    process: Process,
    pid: Pid,
    far: Far,
}

/// The far end: all that it does is to shake hands and to send.
struct Far {
    socket: UdpSocket,
    noise: Noise,
    to: SocketAddr,
}

impl Tunnel {
    fn start(world: &World, side: Side) -> anyhow::Result<Self> {
        let [own, far] = [random_key()?, random_key()?];
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {OWN}/24\nListenPort = {PORT}\nMTU = 1420\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.0/24\n",
            *own.to_base64(),
            noise::public_key(&far),
        );
        let file = world.write(&format!("{DEVICE}.conf"), &text)?;
        let threads = side.threads.to_string();
        let arguments = ["up", &file, "--log-format", "json", "--io", "uring", "--crypto-threads", &threads];
        let arguments = arguments.map(str::to_owned);
        let mut process = Process::start("towpath", Role::Tunnel, &arguments, Some(&world.topology.b))?;
        process.wait_for("\"ready\"", PATIENCE)?;
        let pid = Pid::from_raw(process.pid().cast_signed()).context("a process id is positive")?;
        if !side.every_core {
            pin(pid)?;
        }
        let far = Far::meet(&world.topology.a, &far, &own)?;
        kill_process(pid, Signal::STOP)?;
        world.topology.b.run(|| {
            let mut handle = Handle::open()?;
            let index = handle.link_index(DEVICE)?;
            handle.set_txqueuelen(index, 2 * QUEUE as u32)
        })??;
        Ok(Self { process, pid, far })
    }

    /// Fills the device's queue.
    fn fill_device(&self, world: &World) -> anyhow::Result<()> {
        let socket = world.topology.b.run(|| UdpSocket::bind((OWN, 0).into(), &UdpOptions::default()))??;
        let segment = PACKET - 28;
        let superpacket = vec![0x5a; SEGMENTS * segment];
        for _ in 0..QUEUE {
            socket.send_segments((FAR, 9).into(), None, 0, &superpacket, segment)?;
        }
        Ok(())
    }

    /// Fills the buffer of its socket.
    fn fill_socket(&mut self) -> anyhow::Result<()> {
        let superpackets = self.far.seal()?;
        let socket = self.socket()?;
        sockopt::set_socket_recv_buffer_size_force(&socket, 1 << 30)
            .context("cannot enlarge the tunnel's receive buffer")?;
        for superpacket in &superpackets {
            self.far.socket.send_segments(self.far.to, None, 0, superpacket, PACKET + DATA_OVERHEAD)?;
        }
        Ok(())
    }

    /// The tunnel's own socket, over IPv4.
    fn socket(&self) -> anyhow::Result<OwnedFd> {
        let process = pidfd_open(self.pid, PidfdFlags::empty())?;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.process.pid()))? {
            let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(fd) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else { continue };
            let address = getsockname(&fd).ok().and_then(|address| SocketAddr::try_from(address).ok());
            if address.is_some_and(|address| address.is_ipv4() && address.port() == PORT) {
                return Ok(fd);
            }
        }
        bail!("the tunnel has no socket on port {PORT}")
    }

    /// Lets it go on, until nothing moves any more.
    fn empty(&self, world: &World, direction: Direction) -> anyhow::Result<Turn> {
        let before = (self.moved(world, direction)?, self.cpu()?);
        let begun = now();
        kill_process(self.pid, Signal::CONT)?;
        let (mut last, mut moved): (Instant, u64) = (begun, before.0);
        loop {
            thread::sleep(Duration::from_millis(1));
            let (seen, at) = (self.moved(world, direction)?, now());
            if seen > moved {
                (last, moved) = (at, seen);
            } else if at.duration_since(last) > STILL {
                break;
            }
        }
        let bytes = moved - before.0;
        ensure!(bytes > MOVED_MIN, "only {bytes} bytes moved");
        let after = self.cpu()?;
        let gb = bytes as f64 / 1e9;
        Ok(Turn {
            gb_s: gb / last.duration_since(begun).as_secs_f64(),
            main: (after.0 - before.1.0) / gb,
            crypto: (after.1 - before.1.1) / gb,
        })
    }

    /// Bytes that have left by where they are to go.
    fn moved(&self, world: &World, direction: Direction) -> anyhow::Result<u64> {
        let stats = |name: &'static str| -> anyhow::Result<LinkStats> {
            world.topology.b.run(|| {
                let mut handle = Handle::open()?;
                let index = handle.link_index(name)?;
                Ok(handle.link_stats(index)?)
            })?
        };
        Ok(match direction {
            Direction::Out => stats("b-a")?.tx_bytes,
            Direction::In => stats(DEVICE)?.rx_bytes,
        })
    }

    /// CPU seconds of the loop and of the crypto threads.
    fn cpu(&self) -> anyhow::Result<(f64, f64)> {
        let (mut main, mut crypto) = (0.0, 0.0);
        for entry in fs::read_dir(format!("/proc/{}/task", self.process.pid()))? {
            let path = entry?.path();
            // One that has ended meanwhile was none of those that carry anything.
            let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
            let Ok(schedstat) = fs::read_to_string(path.join("schedstat")) else { continue };
            let nanoseconds = schedstat.split(' ').next().and_then(|text| text.parse::<u64>().ok());
            let seconds = nanoseconds.context("no schedstat")? as f64 / 1e9;
            match name.trim() {
                "towpath-crypto" => crypto += seconds,
                _ => main += seconds,
            }
        }
        Ok((main, crypto))
    }

    fn stop(self) -> anyhow::Result<()> {
        let ledger = Ledger::read(&self.process.stop()?).context("towpath ended without a ledger")?;
        ensure!(ledger.unexplained == 0, "the tunnel lost packets: {ledger:?}");
        Ok(())
    }
}

impl Far {
    /// Shakes hands with the tunnel.
    fn meet(namespace: &Namespace, private: &SecretKey, tunnel: &SecretKey) -> anyhow::Result<Self> {
        // What the tunnel sends later is to be dropped at once, whole.
        let options = UdpOptions { receive_buffer: 4096, send_buffer: 32 << 20, ..UdpOptions::default() };
        let socket = namespace.run(|| UdpSocket::bind((Address::A_DIRECT, 0).into(), &options))??;
        let to = SocketAddr::new(Address::B_DIRECT.into(), PORT);
        let identity = Identity::new(private, &[7; KEY_LEN]);
        let (mut noise, mut world) = (Noise::new(noise::public_key(tunnel), None), noise::World::system());
        let mut batch = ReceiveBatch::new(8, RECEIVE_LEN);
        let mut message = [0; CONTROL_LEN];
        let deadline = now() + PATIENCE;
        while now() < deadline {
            let outset = Outset { index: world.index(), path: Path::Direct { to, from: None } };
            let initiation = noise.initiate(&identity, &mut world, outset, &mut message, now());
            let len = initiation.context("no initiation")?;
            socket.send_segments(to, None, 0, &message[..len], len)?;
            thread::sleep(Duration::from_millis(30));
            if socket.receive_batch(&mut batch).unwrap_or(0) == 0 {
                continue;
            }
            for arrival in batch.iter_mut() {
                if !matches!(arrival.meta, Some(Meta::Udp { .. })) || arrival.bytes.len() != RESPONSE {
                    continue;
                }
                if let Ok(len) = noise.handle_response(&identity, &world, arrival.bytes, &mut message, now())
                {
                    socket.send_segments(to, None, 0, &message[..len], len)?;
                    thread::sleep(Duration::from_millis(30));
                    return Ok(Self { socket, noise, to });
                }
            }
        }
        bail!("the tunnel does not answer a handshake")
    }

    /// Superpackets for somebody whom the tunnel's host does not know.
    fn seal(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut packet = vec![0x5a; PACKET];
        // With DF set, as hosts send: without it they would have to be numbered to be merged.
        packet[..28].copy_from_slice(&[
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 9, 0, 0, 0, 0,
        ]);
        packet[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
        packet[12..16].copy_from_slice(&FAR.octets());
        packet[16..20].copy_from_slice(&NOBODY.octets());
        packet[24..26].copy_from_slice(&(PACKET as u16 - 20).to_be_bytes());
        let checksum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        let sum = udp_checksum(&packet);
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
        let message = PACKET + DATA_OVERHEAD;
        let mut superpackets = Vec::with_capacity(QUEUE);
        for _ in 0..QUEUE {
            let mut superpacket = vec![0; SEGMENTS * message];
            for segment in superpacket.chunks_mut(message) {
                ensure!(self.noise.seal(&packet, segment, now()), "the session is gone");
            }
            superpackets.push(superpacket);
        }
        Ok(superpackets)
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The UDP checksum of an IPv4 packet whose own is zero (RFC 768).
fn udp_checksum(packet: &[u8]) -> u16 {
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend_from_slice(&packet[24..26]);
    pseudo.extend_from_slice(&packet[20..]);
    checksum(&pseudo)
}

fn random_key() -> anyhow::Result<SecretKey> {
    let mut key = [0; KEY_LEN];
    getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(SecretKey::new(key).clamped())
}

/// Leaves the process the last core that it may use.
fn pin(pid: Pid) -> io::Result<()> {
    let all = sched_getaffinity(Some(pid))?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| all.is_set(cpu)).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(last);
    for entry in fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))? {
        if let Some(thread) =
            entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        {
            match sched_setaffinity(Some(thread), &one) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}
