//! What the load of one side goes to: an address, or a program that is started for each run.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::Progress;
use super::server::Server;
use crate::run::clock::monotonic_ns;
use crate::run::{Problem, RunResult, RunSpec, run};

/// How long a program that was started may take until it answers.
const START_PATIENCE_NS: u64 = 10_000_000_000;
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// An address, or a program that serves there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where the load goes.
    pub address: SocketAddr,
    /// The program with its arguments, for a shell; started for each run and ended after it.
    pub command: Option<String>,
}

/// Makes one run of `target`. The CPU time of its program is the run's, beside that of the processes of `spec`.
///
/// # Errors
/// Those of [`run`]; when the program does not start or does not answer, with what it said last.
pub fn measure(
    target: &Target,
    spec: &RunSpec,
    stop: &AtomicBool,
    progress: Progress<'_>,
) -> anyhow::Result<RunResult> {
    let mut spec = RunSpec { target: target.address, ..spec.clone() };
    let Some(command) = &target.command else { return run(&spec, progress) };
    let mut server = Server::start(command)?;
    spec.dut_pids.push(server.pid());
    let deadline = monotonic_ns() + START_PATIENCE_NS;
    let result = loop {
        let error = match run(&spec, progress) {
            Ok(result) => break result,
            Err(error) => error,
        };
        let not_yet = matches!(error.downcast_ref(), Some(Problem::Setup(_)));
        if !not_yet || monotonic_ns() > deadline || stop.load(Ordering::Relaxed) || server.has_ended()? {
            return Err(match server.last_words() {
                Some(words) => error.context(format!("`{command}` said: {words}")),
                None => error,
            });
        }
        thread::sleep(ASK_EVERY);
    };
    server.stop()?;
    Ok(result)
}
