//! `towpath-lab reflect`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::echo::Echo;
use crate::reflect::Reflector;

/// Options of `towpath-lab reflect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Addresses to listen on; port 0 lets the kernel choose
    #[arg(required = true, value_name = "ADDR:PORT")]
    addresses: Vec<SocketAddr>,
    /// Also take TCP connections on these addresses, and send back what they bring: the far end of `run tcp`
    #[arg(long)]
    tcp: bool,
    /// End after this time [default: at SIGINT or SIGTERM]
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// Reflects, then prints the counts.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let stop = super::stop_flag()?;
    let reflector = Reflector::bind(&args.addresses)?;
    let _echo = args.tcp.then(|| Echo::bind(&reflector.local_addrs())?.start()).transpose()?;
    if !args.json {
        for address in reflector.local_addrs() {
            super::print(&format!("reflecting on {address}\n"))?;
        }
    }
    let counts = reflector.run(args.duration, &stop).context("reflecting")?;
    if args.json {
        super::print(&format!("{}\n", serde_json::to_string(&counts)?))?;
    } else {
        super::print(&format!(
            "received {} datagrams in {} skbs ({} bytes), reflected {}, refused {}, dropped by the kernel {} skbs\n",
            counts.received,
            counts.superpackets,
            counts.bytes,
            counts.reflected,
            counts.refused,
            counts.kernel_drops_skbs
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
