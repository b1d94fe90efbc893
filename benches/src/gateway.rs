//! `benches gateway`: what many peers cost a gateway, and what a flood beside a stream does.

use std::io::Write;

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::peers::Programs;
use crate::peers::flood::{self, Beside, Flooded, Turn};
use crate::peers::gateway;
use crate::peers::world::World;

/// What is to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Resident memory and handshakes of a gateway with many peers
    Memory,
    /// A flood of handshakes with a wrong mac1 beside a stream
    Flood,
}

/// The command line of `benches gateway`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only this [default: both]
    #[arg(value_enum)]
    what: Option<What>,
    /// Peers of the gateway
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    peers: u32,
    /// Turns of the flood, and as many without
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Where iperf3 is
    #[arg(long = "peer", value_name = "NAME=PATH")]
    programs: Vec<String>,
}

/// Runs it and prints what came of it.
///
/// # Errors
/// When there can be no network namespace of our own, or nothing works in it.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let programs = Programs::find(&arguments.programs)?;
    let world = World::new()?;
    if arguments.what != Some(What::Flood) {
        memory(&world, arguments.peers as usize, out)?;
    }
    if arguments.what != Some(What::Memory) {
        beside(&world, &programs, arguments.runs, out)?;
    }
    Ok(())
}

/// What may be resident, in MiB, while every peer has one session, or two: with one peer, and with up to ten thousand.
const RESIDENT_MAX: [(usize, f64); 2] = [(1, 30.0), (10_000, 64.0)];

fn memory(world: &World, peers: usize, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "{:>7} {:>9} {:>9} {:>10} {:>9} {:>9} {:>10} {:>9} {:>9} {:>10} {:>9} {:>13}",
        "peers",
        "prefixes",
        "ready s",
        "idle MiB",
        "sessions",
        "MiB",
        "KiB/each",
        "sessions",
        "MiB",
        "KiB/each",
        "storm s",
        "CPU µs/each"
    )?;
    let mut sizes = vec![1, peers];
    sizes.dedup();
    let mut missed = Vec::new();
    for peers in sizes {
        let measured = gateway::measure(world, peers)?;
        let mib = |kib: u64| kib as f64 / 1024.0;
        write!(
            out,
            "{peers:>7} {:>9} {:>9.2} {:>10.1}",
            peers * gateway::PREFIXES_EACH,
            measured.start.as_secs_f64(),
            mib(measured.idle_kib),
        )?;
        let (mut kib_before, mut sessions_before) = (measured.idle_kib, 0);
        for (kib, sessions) in measured.active_kib.into_iter().zip(measured.sessions) {
            let each = kib.saturating_sub(kib_before) as f64 / (sessions - sessions_before) as f64;
            write!(out, " {sessions:>9} {:>9.1} {each:>10.2}", mib(kib))?;
            (kib_before, sessions_before) = (kib, sessions);
        }
        writeln!(
            out,
            " {:>9.2} {:>13.0}",
            measured.storm.as_secs_f64(),
            measured.handshake_cpu.as_secs_f64() * 1e6,
        )?;
        // For more than ten thousand there is no target.
        let Some((_, most)) = RESIDENT_MAX.iter().find(|(up_to, _)| peers <= *up_to) else { continue };
        let [one, two] = measured.active_kib.map(mib);
        let resident =
            format!("{peers} peers: {one:.1} MiB with a session each, {two:.1} with two (target {most})");
        writeln!(out, "{resident}")?;
        if one.max(two) > *most {
            missed.push(resident);
        }
    }
    if !missed.is_empty() {
        bail!("a target is missed: {}", missed.join("; "));
    }
    Ok(())
}

/// What a stream is to keep of its rate beside the flood.
const RATIO_MIN: f64 = 0.9;
/// What one wrong mac1 may cost beyond a datagram that is read and refused by its type, ns.
const BEYOND_MAX: f64 = 1_000.0;

fn beside(world: &World, programs: &Programs, runs: u32, out: &mut impl Write) -> anyhow::Result<()> {
    const SIDES: [(Beside, &str); 3] =
        [(Beside::Quiet, "quiet"), (Beside::NoMessage, "no message"), (Beside::WrongMac1, "wrong mac1")];
    let flooded = Flooded::start(world, programs)?;
    let mut plain = Vec::new();
    writeln!(
        out,
        "a TCP stream of {:.2} Gbit/s, half of what the tunnel carries, and {}/s of 148 B to its far end",
        flooded.half / 1e9,
        flood::RATE
    )?;
    let mut turns: [Vec<Turn>; SIDES.len()] = [const { Vec::new() }; SIDES.len()];
    for _ in 0..runs {
        // By turns, so that what is subtracted from each other was measured seconds apart.
        for ((beside, _), side) in SIDES.iter().zip(&mut turns) {
            side.push(flooded.turn(*beside)?);
        }
        plain.push(flood::plain_receive(world, flooded.half)?.as_secs_f64() * 1e9);
    }
    writeln!(
        out,
        "{:<12} {:>22} {:>22} {:>12} {:>26}",
        "beside it", "Gbit/s", "ratio to quiet", "flood /s", "CPU ns each above quiet"
    )?;
    let [quiet, none, wrong] = &turns;
    for ((_, name), side) in SIDES.iter().zip(&turns) {
        let of = |figure: &dyn Fn(&Turn, &Turn) -> f64| {
            spread(side.iter().zip(quiet).map(|(turn, quiet)| figure(turn, quiet)))
        };
        writeln!(
            out,
            "{name:<12} {:>22} {:>22} {:>12.0} {:>26}",
            of(&|turn, _| turn.gbit_s).shown(2),
            of(&|turn, quiet| turn.gbit_s / quiet.gbit_s).shown(3),
            of(&|turn, _| turn.flooded).middle,
            if side.iter().all(|turn| turn.flooded == 0.0) { "–".to_owned() } else { of(&cost).shown(0) },
        )?;
    }
    let receiving = spread(plain.iter().copied());
    writeln!(out, "for information: receiving one by recvmmsg beside as much: {} ns", receiving.shown(0))?;
    let [bad_tag, malformed] = flooded.stop()?;
    writeln!(out, "refused: {bad_tag} for their mac1, {malformed} for their form; none was answered")?;
    if bad_tag == 0 || malformed == 0 {
        bail!("the flood did not arrive");
    }
    let pairs = || wrong.iter().zip(quiet);
    let ratio = spread(pairs().map(|(turn, quiet)| turn.gbit_s / quiet.gbit_s));
    // Of the same socket and loop: receiving, and the waking for it, are in both.
    let beyond = spread(pairs().zip(none).map(|((turn, quiet), none)| cost(turn, quiet) - cost(none, quiet)));
    writeln!(
        out,
        "a wrong mac1: {} of the quiet rate (target {RATIO_MIN}), {} ns beyond no message (target {BEYOND_MAX})",
        ratio.shown(3),
        beyond.shown(0)
    )?;
    if ratio.middle < RATIO_MIN || beyond.middle > BEYOND_MAX {
        bail!("a target is missed");
    }
    Ok(())
}

/// What one datagram of a flood costs, ns of CPU time.
fn cost(turn: &Turn, quiet: &Turn) -> f64 {
    (turn.cpu - quiet.cpu) * 1e9 / turn.flooded.max(1.0)
}

/// Middle, least and most.
struct Spread {
    least: f64,
    middle: f64,
    most: f64,
}

impl Spread {
    fn shown(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.middle, self.least, self.most)
    }
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    Spread { least: values[0], middle: values[values.len() / 2], most: values[values.len() - 1] }
}
