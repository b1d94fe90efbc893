//! The programs of a lab: started in order, ended in reverse order, with a log file each.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use super::hosts::Hosts;
use super::role::{self, MARK};
use super::scenario::{Program, Scenario};
use super::secrets::Secrets;
use crate::run::Problem;
use crate::run::clock::monotonic_ns;

/// How long a program may take to be ready, and to end.
const PATIENCE_NS: u64 = 10_000_000_000;
/// How often a wait looks at what it waits for.
const TICK: Duration = Duration::from_millis(10);

/// Running programs. Dropping them kills them.
pub struct Programs(Vec<Running>);

struct Running {
    name: String,
    process: Child,
    log: PathBuf,
}

impl Programs {
    /// Writes the scenario's files into `directory` and starts its programs there, one after the other when it is ready.
    /// Call it from the main thread: they die with it.
    ///
    /// # Errors
    /// The program that did not start, and what it said last.
    pub fn start(
        scenario: &Scenario,
        hosts: &Hosts,
        directory: &Path,
        secrets: &mut Secrets,
        mark: &str,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        for (name, content) in &scenario.files {
            let content = secrets.fill(content).with_context(|| format!("file {name}"))?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(directory.join(name))?;
            file.write_all(content.as_bytes()).with_context(|| format!("cannot write {name}"))?;
        }
        let mut programs = Self(Vec::new());
        for (number, program) in (1..).zip(&scenario.programs) {
            let running = start(program, number, hosts, directory, secrets, mark)?;
            programs.0.push(running);
            if let (Some(ready), Some(running)) = (&program.ready, programs.0.last_mut()) {
                running.wait_ready(ready, stop)?;
            }
        }
        Ok(programs)
    }

    /// Finds one that has ended by itself.
    ///
    /// # Errors
    /// Which, how, and what it said last.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for running in &mut self.0 {
            if let Some(status) = running.process.try_wait()? {
                return Err(running.failure(&format!("ended with {status}")));
            }
        }
        Ok(())
    }

    /// Ends all of them; what does not end in time is killed.
    pub fn stop(mut self) {
        while let Some(running) = self.0.pop() {
            running.stop();
        }
    }
}

fn start(
    program: &Program,
    number: usize,
    hosts: &Hosts,
    directory: &Path,
    secrets: &mut Secrets,
    mark: &str,
) -> anyhow::Result<Running> {
    let words = program.words.iter().map(|word| secrets.fill(word)).collect::<anyhow::Result<Vec<_>>>()?;
    let short = words[0].rsplit('/').next().unwrap_or_default();
    let name = format!("{short} on {}", program.host);
    let log = directory.join(format!("{number}-{}-{short}.log", program.host));
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let process = role::inside(hosts.get(&program.host)?, &words)?
        .current_dir(directory)
        .env(MARK, mark)
        // Where a tunnel notes what it has done to its host.
        .env("RUNTIME_DIRECTORY", directory)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    Ok(Running { name, process, log })
}

impl Running {
    fn wait_ready(&mut self, ready: &str, stop: &AtomicBool) -> anyhow::Result<()> {
        let deadline = monotonic_ns() + PATIENCE_NS;
        loop {
            if fs::read_to_string(&self.log).is_ok_and(|log| log.contains(ready)) {
                return Ok(());
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Problem::Interrupted.into());
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(self.failure(&format!("ended with {status}")));
            }
            if monotonic_ns() > deadline {
                let seconds = PATIENCE_NS / 1_000_000_000;
                return Err(self.failure(&format!("did not print {ready:?} within {seconds} s")));
            }
            thread::sleep(TICK);
        }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let name = &self.name;
        match log.lines().rfind(|line| !line.trim().is_empty()) {
            Some(last) => anyhow!(Problem::Setup(format!("{name} {what}: {last}"))),
            None => anyhow!(Problem::Setup(format!("{name} {what} and said nothing"))),
        }
    }

    fn stop(mut self) {
        if let Some(pid) = Pid::from_raw(self.process.id().cast_signed()) {
            // It may have ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = monotonic_ns() + PATIENCE_NS / 2;
        while matches!(self.process.try_wait(), Ok(None)) && monotonic_ns() < deadline {
            thread::sleep(TICK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it has ended already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
