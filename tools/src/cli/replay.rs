//! `towpath-lab replay`: a run once more, with the same datagrams at the same times.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::format::bundle;
use crate::run::Problem;
use crate::run::schedule;
use crate::run::server::ServerAdmin;

/// Options of `towpath-lab replay`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory or run.json of the run
    run: PathBuf,
    /// The reflector or relay, when it is at another address now
    #[arg(long, value_name = "ADDR:PORT")]
    target: Option<SocketAddr>,
    /// TURN credentials NAME:PASSWORD: a run keeps no password
    #[arg(long)]
    user: Option<String>,
    /// --admin address of a server that is asked what it lost [default: those of the run]
    #[arg(long = "server-admin", value_name = "ADDR:PORT")]
    server_admins: Vec<ServerAdmin>,
    /// Process whose CPU time is divided by the datagrams; those of the run are not taken over
    #[arg(long = "dut-pid", value_name = "PID")]
    dut_pids: Vec<u32>,
    /// Name of the run in tables and plots [default: that of the run]
    #[arg(long)]
    label: Option<String>,
    /// New directory for run.json, latency.hlog, detail.hlog and latency.hgrm
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print run.json instead of a table
    #[arg(long)]
    json: bool,
}

/// Makes the run again, writes and prints it.
pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let before = bundle::read(&args.run)?;
    let mut spec = before.spec;
    spec.target = args.target.unwrap_or(spec.target);
    if let Some(user) = &args.user {
        let (name, password) = super::run::credentials(user)?;
        (spec.username, spec.password) = (Some(name), Some(password));
    }
    if !args.server_admins.is_empty() {
        spec.server_admins = args.server_admins;
    } else if let Some(file) = &before.scenario {
        // They were on hosts that are gone: here, other servers or none have their addresses.
        spec.server_admins.clear();
        super::tell(&format!(
            "the load alone is repeated, from here to {}: the run was made on the hosts of a scenario, which are not made again, nor are \
             its servers asked; for all of it `towpath-lab lab run {file}`",
            spec.target
        ));
    }
    spec.label = args.label.unwrap_or(spec.label);
    spec.dut_pids = args.dut_pids;
    spec.check()?;
    if let Some(loaded) = crate::run::load(&spec)? {
        spec = loaded;
    }
    let (then, now) = (before.schedule, schedule::digest(&spec));
    if then.as_ref().is_some_and(|then| *then != now) {
        return Err(Problem::Usage(format!(
            "this version makes another schedule of the same seed ({now} instead of {}); use version {}, which made the run",
            then.unwrap_or_default(),
            before.tool_version
        ))
        .into());
    }
    super::run::perform(spec, args.out.as_deref(), args.json)
}
