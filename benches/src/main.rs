//! `cargo run --release -p benches -- peers`: side-by-side runs, printed as ratios.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use benches::peers::{self, Group, Plan, Programs, ROWS, Row};
use benches::{cores, forward, gateway, instructions, middle, process, ring, slots, timing, zero_copy};
use clap::{Args, Parser, Subcommand};
use dataplane::engine::EngineArgs;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[derive(Parser)]
#[command(about = "Side-by-side runs of Towpath and what it is compared with")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Whole programs beside wireguard-go, coturn and the plain kernel, in namespaces of their own
    Peers(PeersArguments),
    /// What the ring costs above the raw kernel path
    Ring {
        /// Turns of each side
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Seconds of load in a turn
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Flags of the engine's side, for example "--io suspend"
        #[arg(long, default_value = "--io uring", allow_hyphen_values = true)]
        engine: String,
    },
    /// What the histograms of a packet's way cost, which are always on
    Stages {
        /// Comparisons, each of four turns
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
        /// Seconds of load in a turn
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Flags of the engine, for example "--io suspend"
        #[arg(long, default_value = "--io uring", allow_hyphen_values = true)]
        engine: String,
    },
    /// What zero-copy sends cost beside copying ones
    ZeroCopy {
        /// Turns of each side
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
        /// Where to, when not to a socket on loopback; nobody looks whether it arrives
        #[arg(long, value_name = "ADDRESS:PORT")]
        to: Option<SocketAddr>,
    },
    /// What the number of slots costs
    Slots {
        /// Turns of each size
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
    },
    /// What a second core is worth to one tunnel
    Cores(cores::Arguments),
    /// What many peers cost a gateway, and what a flood beside a stream does
    Gateway(gateway::Arguments),
    /// Instructions of the hot functions, counted by callgrind and compared with a baseline
    Instructions(instructions::Arguments),
    /// Forwards datagrams (started by `ring` and `peers`)
    #[command(hide = true)]
    Forward {
        #[arg(long)]
        raw: bool,
        #[arg(long)]
        stages: bool,
        #[arg(long, default_value_t = 1)]
        sockets: u16,
        #[arg(long)]
        sink: SocketAddr,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// Forwards datagrams in a relay's place, with plain kernel calls (started by `peers`)
    #[command(hide = true)]
    Middle {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        sink: SocketAddr,
        #[arg(long, default_value_t = 1)]
        flows: usize,
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
        threads: u32,
    },
}

#[derive(Args)]
struct PeersArguments {
    /// Only the row of this name, or those whose names start like this [default: the rows with targets]
    #[arg(value_name = "ROW")]
    rows: Vec<String>,
    /// Print the names of the rows and end
    #[arg(long)]
    list: bool,
    /// Only the I/O designs beside each other, which are also run by default
    #[arg(long)]
    io: bool,
    /// Only what --ingress, --completions, --busy-poll and --gso are worth
    #[arg(long)]
    settings: bool,
    /// Turns of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Seconds of load in a turn
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// A few rows with short turns in a minute; fails only when a ratio is far from what it should be
    #[arg(long, conflicts_with_all = ["runs", "seconds", "allocations"])]
    quick: bool,
    /// Allocations that the memory row holds
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    allocations: u32,
    /// Where a program is: wireguard-go, boringtun-cli, turnserver, iperf3, ethtool, perf or strace
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<String>,
    /// Every turn as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(code) = process::dispatch(&arguments) {
        return Ok(code);
    }
    raise_open_files();
    match Arguments::parse_from(arguments).command {
        Command::Peers(arguments) => compare_with_peers(&arguments),
        Command::Ring { runs, seconds, engine } => {
            compare(runs, seconds, &engine)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Stages { runs, seconds, engine } => {
            compare_stages(runs, seconds, &engine)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ZeroCopy { runs, to } => {
            let mut sink = to.map_or_else(zero_copy::Sink::here, |to| Ok(zero_copy::Sink::There(to)))?;
            println!(
                "{:>10} {:>14} {:>14} {:>8} {:>15} {:>11}",
                "datagrams", "copying ns", "zero-copy ns", "ratio", "spread", "copied"
            );
            for compared in zero_copy::compare(&mut sink, runs as usize, Duration::from_millis(500))? {
                println!("{compared}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Slots { runs } => {
            compare_slots(runs)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Cores(arguments) => {
            cores::run(&arguments, &mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Gateway(arguments) => {
            gateway::run(&arguments, &mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Instructions(arguments) => instructions::run(&arguments),
        Command::Forward { raw, stages, sockets, sink, engine } => {
            forward_here((raw, stages), sockets, sink, &engine)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Middle { listen, sink, flows, threads } => {
            let middle = middle::Middle::bind(listen, sink, flows.max(1), threads)?;
            println!("{listen}");
            middle.run()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn compare_with_peers(arguments: &PeersArguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        for row in ROWS {
            println!("{:<26} {}", row.name, row.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = selected(arguments)?;
    let plan = if arguments.quick {
        Plan { runs: 3, duration: Duration::from_secs(1), allocations: 500, quick: true }
    } else {
        let duration = Duration::try_from_secs_f64(arguments.seconds)
            .ok()
            .filter(|duration| (Duration::from_millis(100)..=Duration::from_secs(60)).contains(duration))
            .context("--seconds takes 0.1 to 60")?;
        let (runs, allocations) = (arguments.runs as usize, arguments.allocations as usize);
        Plan { runs, duration, allocations, quick: false }
    };
    let programs = Programs::find(&arguments.peers)?;
    let sound = peers::run(&rows, &plan, &programs, arguments.json)?;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn selected(arguments: &PeersArguments) -> anyhow::Result<Vec<&'static Row>> {
    // A whole name means that row alone, although others may start like it.
    let whole = |name: &str| ROWS.iter().any(|row| row.name == name);
    let means = |name: &str, row: &Row| row.name == name || !whole(name) && row.name.starts_with(name);
    if let Some(name) = arguments.rows.iter().find(|name| !ROWS.iter().any(|row| means(name, row))) {
        bail!("no row is called {name}; peers --list prints the names");
    }
    let all = arguments.rows.is_empty() && !arguments.io && !arguments.settings;
    let wanted = |row: &&Row| {
        let named = arguments.rows.iter().any(|name| means(name, row));
        named
            || match row.group {
                Group::Targets if arguments.quick => arguments.rows.is_empty() && !row.bands.is_empty(),
                Group::Targets => all,
                Group::Designs => arguments.io || all && !arguments.quick,
                Group::Settings => arguments.settings,
            }
    };
    Ok(ROWS.iter().filter(wanted).collect())
}

/// A thousand sockets are one side of a row: the soft limit of open files is often 1,024, the hard one far above.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, opening the sockets says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(runs: usize, seconds: f64, engine: &str) -> anyhow::Result<()> {
    let flags: Vec<&str> = engine.split_whitespace().collect();
    println!(
        "{:<32} {:>12} {:>12} {:>8} {:>15} {:>6}  arrived",
        "case", "raw ns/pkt", "ours ns/pkt", "ratio", "spread", "limit"
    );
    for case in ring::cases(seconds) {
        let (mut raw, mut ours, mut ratios, mut arrived) = (Vec::new(), Vec::new(), Vec::new(), 1.0f64);
        for _ in 0..runs {
            let (first, second) = (ring::measure(&case, &["--raw"])?, ring::measure(&case, &flags)?);
            arrived = arrived.min(first.counted.share()).min(second.counted.share());
            raw.push(first.nanoseconds);
            ours.push(second.nanoseconds);
            ratios.push(second.nanoseconds / first.nanoseconds);
        }
        let (raw, ours, ratio) = (median(&mut raw), median(&mut ours), median(&mut ratios));
        let spread = format!("{:.2} to {:.2}", ratios[0], ratios[ratios.len() - 1]);
        println!(
            "{:<32} {raw:>12.0} {ours:>12.0} {ratio:>8.2} {spread:>15} {:>6.2}  {:.4}",
            case.name, case.limit, arrived
        );
    }
    Ok(())
}

fn compare_stages(runs: u32, seconds: f64, engine: &str) -> anyhow::Result<()> {
    let flags: Vec<&str> = engine.split_whitespace().collect();
    let mut turns: Vec<f64> = (0..runs).map(|_| timing::of_a_turn()).collect();
    let turn = median(&mut turns);
    println!("a turn of the loop: {turn:.1} ns ({:.1} to {:.1})", turns[0], turns[turns.len() - 1]);
    println!(
        "{:<32} {:>12} {:>12} {:>8} {:>15}  at most",
        "case", "without", "with ns/pkt", "ratio", "spread"
    );
    for case in ring::cases(seconds) {
        let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            let pair = timing::compare(&case, &flags)?;
            without.push(pair.without);
            with.push(pair.with);
            ratios.push(pair.with / pair.without);
        }
        let (without, with, ratio) = (median(&mut without), median(&mut with), median(&mut ratios));
        let spread = format!("{:.3} to {:.3}", ratios[0], ratios[ratios.len() - 1]);
        let share = 100.0 * turn / (without * case.load.burst as f64);
        println!("{:<32} {without:>12.0} {with:>12.0} {ratio:>8.3} {spread:>15}  {share:.2} %", case.name);
    }
    Ok(())
}

fn compare_slots(runs: u32) -> anyhow::Result<()> {
    let mut costs = [const { Vec::new() }; slots::COUNTS.len()];
    for _ in 0..runs {
        for (count, costs) in slots::COUNTS.into_iter().zip(&mut costs) {
            costs.push(slots::cost(count, Duration::from_millis(500))?);
        }
    }
    println!(
        "{:>6} {:>9} {:>12} {:>8}  spread of the ratio to the first",
        "slots", "KiB", "ns/datagram", "ratio"
    );
    let first = costs[0].clone();
    for (count, costs) in slots::COUNTS.into_iter().zip(&mut costs) {
        let mut ratios: Vec<f64> = costs.iter().zip(&first).map(|(cost, first)| cost / first).collect();
        let (cost, ratio) = (median(costs), median(&mut ratios));
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        println!("{count:>6} {:>9} {cost:>12.0} {ratio:>8.2}  {least:.2} to {most:.2}", count * 66);
    }
    Ok(())
}

fn forward_here(
    (raw, timed): (bool, bool),
    sockets: u16,
    sink: SocketAddr,
    engine: &EngineArgs,
) -> anyhow::Result<()> {
    let first = 20_000;
    let listen: Vec<SocketAddr> =
        (0..sockets).map(|index| SocketAddr::from(([127, 0, 0, 1], first + index))).collect();
    let ready = listen.first().context("no sockets")?;
    let sockets = forward::bind(&listen)?;
    println!("{ready}");
    if raw {
        return Ok(forward::raw(&sockets, sink)?);
    }
    dataplane::log::init(dataplane::log::LogFormat::Json, tracing::level_filters::LevelFilter::INFO);
    // The default of tunnel and relay.
    Ok(dataplane::engine::run(forward::Forwarder::new(sockets, sink, timed), engine)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the rows that a command line selects.
    fn names(line: &str) -> anyhow::Result<Vec<&'static str>> {
        let words = ["benches", "peers"].into_iter().chain(line.split_whitespace());
        let Command::Peers(arguments) = Arguments::parse_from(words).command else { unreachable!() };
        Ok(selected(&arguments)?.iter().map(|row| row.name).collect())
    }

    #[test]
    fn a_whole_name_is_one_row_and_a_part_of_it_all_that_start_so() {
        assert_eq!(names("tunnel").unwrap(), ["tunnel"]);
        assert_eq!(names("tunnel-loss").unwrap(), ["tunnel-loss-free-64", "tunnel-loss-free-1200"]);
        assert!(names("tunnel no-such-row").unwrap_err().to_string().contains("no-such-row"));
    }

    #[test]
    fn quick_takes_the_rows_that_have_bands_unless_told_otherwise() {
        let quick =
            ["ring-bulk", "ring-sparse", "relay-bulk", "relay-hairpin", "relay-allocations", "tunnel"];
        assert_eq!(names("--quick").unwrap(), quick);
        assert_eq!(names("--quick relay-train").unwrap(), ["relay-train"]);
        let all = names("").unwrap();
        let has = |name| all.contains(&name);
        assert!(has("relay-latency") && has("io-tunnel") && !has("gso-relay"), "{all:?}");
        let io = names("--io").unwrap();
        assert!(io.contains(&"io-tunnel") && !io.contains(&"tunnel"), "{io:?}");
        assert!(names("--settings").unwrap().contains(&"gso-relay"));
    }
}
