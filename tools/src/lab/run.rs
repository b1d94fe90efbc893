//! `lab run`: makes the hosts of a scenario, measures, and judges what must hold. All of it ends with this process.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use serde::Serialize;

use super::hosts::{self, Hosts};
use super::programs::Programs;
use super::scenario::{Load, Scenario};
use super::secrets::Secrets;
use super::state::new_mark;
use crate::cli::run_spec;
use crate::run::devices::Host;
use crate::run::server::ServerAdmin;
use crate::run::{Problem, RunResult, run as measure};

/// What became of something that must hold.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// As the scenario has it.
    pub claim: String,
    /// Whether it does.
    pub holds: bool,
    /// The figure.
    pub found: String,
}

/// What a scenario came to.
#[derive(Debug)]
pub struct Ran {
    /// What was measured.
    pub result: RunResult,
    /// What became of each claim.
    pub verdicts: Vec<Verdict>,
    /// The program that ended meanwhile, which makes nothing of what was measured untrue, but the scenario another.
    pub failure: Option<anyhow::Error>,
}

/// Runs a scenario, with an interval log where one is named. This process must be in a network namespace of its own already; call it from
/// the main thread.
///
/// # Errors
/// What could not be made or started, or why the load could not be run.
pub fn run(
    scenario: &Scenario,
    stop: &Arc<AtomicBool>,
    log: Option<PathBuf>,
    progress: impl Fn(f64) + Send,
) -> anyhow::Result<Ran> {
    let load = scenario.load.as_ref().ok_or_else(|| {
        Problem::Usage(
            "the scenario has no [load], so there is nothing to run; `towpath-lab lab up` makes its hosts"
                .to_owned(),
        )
    })?;
    let directory = Directory::new()?;
    let hosts = Hosts::new(scenario, &directory.0).map_err(|error| Problem::Setup(format!("{error:#}")))?;
    let mut secrets = Secrets::new(&directory.0)?;
    let mut programs = Programs::start(scenario, &hosts, &directory.0, &mut secrets, &new_mark(), stop)?;
    let result = run_load(load, &hosts, &mut secrets, log, stop, progress);
    let ended = programs.check();
    programs.stop();
    let (result, failure) = match (result, ended) {
        (Ok(result), ended) => (result, ended.err()),
        // Why a program ended says more than what the load saw of it.
        (Err(_), Err(ended)) => return Err(ended),
        (Err(error), Ok(())) => return Err(error),
    };
    let judged = load.claims.iter().map(|claim| {
        let (holds, found) = claim.judge(&result);
        Verdict { claim: claim.to_string(), holds, found }
    });
    let verdicts = judged.collect();
    Ok(Ran { result, verdicts, failure })
}

fn run_load(
    load: &Load,
    hosts: &Hosts,
    secrets: &mut Secrets,
    log: Option<PathBuf>,
    stop: &Arc<AtomicBool>,
    progress: impl Fn(f64) + Send,
) -> anyhow::Result<RunResult> {
    let words = load.words.iter().map(|word| secrets.fill(word)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut spec = run_spec(&words).map_err(Problem::Usage)?;
    (spec.stop, spec.log) = (Some(Arc::clone(stop)), log);
    for (host, admin) in &load.admins {
        let namespace = Some(Arc::clone(&hosts.get(host)?.network));
        let name = Some(admin.name.clone().unwrap_or_else(|| host.clone()));
        spec.server_admins.push(ServerAdmin { namespace, name, ..admin.clone() });
    }
    let host = |(name, host): (&str, &hosts::Host)| Host {
        name: name.to_owned(),
        namespace: Arc::clone(&host.network),
    };
    spec.hosts = hosts.iter().map(host).collect();
    hosts.get(&load.host)?.network.run(|| measure(&spec, progress))?
}

/// A directory that goes away with this value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("towpath-lab-run-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot make {}; set TMPDIR to a directory you can write", path.display())
        })?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Left behind, it costs some disk; there is nobody to tell at this point.
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}
