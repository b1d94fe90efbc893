//! `cargo run --release -p benches -- ring`: side-by-side runs, printed as ratios.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::net::SocketAddr;

use anyhow::Context;
use benches::{forward, ring};
use clap::{Parser, Subcommand};
use dataplane::engine::{EngineArgs, IngressKind};

#[derive(Parser)]
#[command(about = "Side-by-side runs of Towpath and what it is compared with")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
    /// Forwards datagrams (started by `ring`)
    #[command(hide = true)]
    Forward {
        #[arg(long)]
        raw: bool,
        #[arg(long, default_value_t = 1)]
        sockets: u16,
        #[arg(long)]
        sink: SocketAddr,
        #[command(flatten)]
        engine: EngineArgs,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Ring { runs, seconds, engine } => compare(runs, seconds, &engine),
        Command::Forward { raw, sockets, sink, engine } => forward_here(raw, sockets, sink, &engine),
    }
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
            let (raw_ns, raw_share) = ring::measure(&case, &["--raw"])?;
            let (ours_ns, ours_share) = ring::measure(&case, &flags)?;
            arrived = arrived.min(raw_share).min(ours_share);
            raw.push(raw_ns);
            ours.push(ours_ns);
            ratios.push(ours_ns / raw_ns);
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

fn forward_here(raw: bool, sockets: u16, sink: SocketAddr, engine: &EngineArgs) -> anyhow::Result<()> {
    let first = 20_000;
    let listen: Vec<SocketAddr> =
        (0..sockets).map(|index| SocketAddr::from(([127, 0, 0, 1], first + index))).collect();
    println!("{}", listen.first().context("no sockets")?);
    if raw {
        return Ok(forward::raw(&listen, sink)?);
    }
    let default = if sockets > 1 { IngressKind::Epoll } else { IngressKind::Uring };
    Ok(dataplane::engine::run(forward::Forwarder::new(forward::bind(&listen)?, sink), engine, default)?)
}
