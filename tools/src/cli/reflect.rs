//! `towpath-lab reflect`.

use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::echo::Echo;
use crate::reflect::journal::{Journal, RunTotals};
use crate::reflect::plan::{Delay, Plan, Reorder, Share, Stall};
use crate::reflect::{Counts, Reflector};
use crate::run::Problem;
use crate::run::clock::{realtime_ns, rfc3339};
use crate::units::count;

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
    /// Share of the datagrams that is not sent back, for example 1%
    #[arg(long, value_name = "SHARE")]
    loss: Option<Share>,
    /// Share that is sent back twice
    #[arg(long, value_name = "SHARE")]
    duplicate: Option<Share>,
    /// Share that is held back until 3 (or N) others of its flow have passed, or for 100 ms
    #[arg(long, value_name = "SHARE[:N]")]
    reorder: Option<Reorder>,
    /// Share in which a bit is changed
    #[arg(long, value_name = "SHARE")]
    corrupt: Option<Share>,
    /// How long datagrams are kept: 5ms for all, exp:200us by an exponential law, 1%:750ms for some; may be repeated
    #[arg(long, value_name = "[SHARE:]TIME")]
    delay: Vec<Delay>,
    /// Nothing is sent back for the first time in each of the second, for example 100ms/1s
    #[arg(long, value_name = "TIME/TIME")]
    stall: Option<Stall>,
    /// Fixes which datagrams are harmed: the same in each run, by flow and sequence number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write what was done, datagram by datagram, as lines of JSON
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    fn plan(&self) -> Result<Plan, Problem> {
        let plan = Plan {
            seed: self.seed,
            loss: self.loss.unwrap_or_default(),
            duplicate: self.duplicate.unwrap_or_default(),
            reorder: self.reorder.unwrap_or_default(),
            corrupt: self.corrupt.unwrap_or_default(),
            delay: self.delay.clone(),
            stall: self.stall,
        };
        plan.check().map_err(Problem::Usage)?;
        Ok(plan)
    }

    /// The log with its head; made before anything is reflected.
    fn journal(&self, plan: &Plan) -> anyhow::Result<Option<Journal<BufWriter<File>>>> {
        let Some(path) = &self.log else { return Ok(None) };
        let begin = || {
            let out = BufWriter::new(File::create(path)?);
            Journal::new(out, plan, &rfc3339(realtime_ns()))
        };
        Ok(Some(begin().with_context(|| format!("cannot write {}; choose another --log", path.display()))?))
    }
}

/// Reflects, then prints the counts.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = args.plan()?;
    let stop = super::stop_flag()?;
    let reflector = Reflector::bind(&args.addresses)?;
    // Not before: a port that is taken must not cost the log of the last run.
    let journal = args.journal(&plan)?;
    let _echo = args.tcp.then(|| Echo::bind(&reflector.local_addrs())?.start()).transpose()?;
    if !args.json {
        for address in reflector.local_addrs() {
            super::print(&format!("reflecting on {address}\n"))?;
        }
    }
    if plan.is_faithful() && journal.is_none() {
        let counts = reflector.run(args.duration, &stop).context("reflecting")?;
        super::print(&if args.json {
            format!("{}\n", serde_json::to_string(&counts)?)
        } else {
            sentence(&counts)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let (counts, runs) = reflector.run_by_plan(plan, journal, args.duration, &stop).context("reflecting")?;
    if args.json {
        let mut all = serde_json::to_value(counts)?;
        all["runs"] = serde_json::to_value(runs)?;
        super::print(&format!("{all}\n"))?;
    } else {
        let of_runs: String = runs.iter().map(sentence_of_run).collect();
        super::print(&format!("{}{of_runs}", sentence(&counts)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sentence(counts: &Counts) -> String {
    format!(
        "received {} in {} ({}), reflected {}, refused {}, dropped by the kernel {}\n",
        count(counts.received, "datagram"),
        count(counts.superpackets, "skb"),
        count(counts.bytes, "byte"),
        counts.reflected,
        counts.refused,
        count(counts.kernel_drops_skbs, "skb")
    )
}

fn sentence_of_run(RunTotals { run, totals }: &RunTotals) -> String {
    format!(
        "run {run}: seen {} = returned {} + lost {} + corrupt {} + overflow {} + refused {} + discarded {}; \
         duplicate {}, reordered {}, delayed {}, stalled {}\n",
        totals.seen,
        totals.returned,
        totals.lost,
        totals.corrupt,
        totals.overflow,
        totals.refused,
        totals.discarded,
        totals.duplicate,
        totals.reordered,
        totals.delayed,
        totals.stalled
    )
}
