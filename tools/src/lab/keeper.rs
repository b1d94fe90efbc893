//! `lab up` and `lab down`: a process in the background keeps the hosts and their programs.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use dataplane::sys::signal::StopSignals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use super::hosts::{Host, Hosts};
use super::programs::Programs;
use super::role::{KEEPER, MARK};
use super::scenario::Scenario;
use super::secrets::Secrets;
use super::state::{Place, State, Up, is_keeper, signal};
use crate::demo::isolate;
use crate::run::Problem;
use crate::run::clock::monotonic_ns;

/// Copy of the scenario in the lab's directory.
const SCENARIO_FILE: &str = "scenario.toml";
/// What the keeper says when all is up.
const READY: &str = "ready";
/// How long processes may take to end before they are killed: the keeper ends its programs, 5 s each at most.
const PATIENCE_NS: u64 = 20_000_000_000;
/// The same for those that are not the keeper's.
const STRANGERS_PATIENCE_NS: u64 = 2_000_000_000;
/// How often a wait looks at what it waits for.
const TICK: Duration = Duration::from_millis(10);

/// Makes the lab of a scenario and answers what can be done in it.
///
/// # Errors
/// When there is one of this name, or what could not be made. Nothing is left of it then.
pub fn up(name: &str, text: &str, scenario: &Scenario) -> anyhow::Result<String> {
    let state = State::create(name)?;
    let started = start(&state, text);
    if started.is_err() {
        end(&state);
        // What went wrong first is worth more.
        let _ = state.remove();
    }
    started?;
    Ok(welcome(&state, scenario))
}

fn start(state: &State, text: &str) -> anyhow::Result<()> {
    fs::write(state.directory.join(SCENARIO_FILE), text)?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    #[expect(clippy::disallowed_methods, reason = "the lab starts programs and has no ring open")]
    let mut keeper = Command::new(program)
        .arg(KEEPER)
        .args([state.directory.as_os_str(), state.mark.as_ref()])
        .env(MARK, &state.mark)
        // Ctrl-C is for whoever is in the foreground.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(state.directory.join("keeper.log"))?)
        .spawn()
        .context("cannot start the keeper")?;
    let mut line = String::new();
    if let Some(stdout) = keeper.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim() == READY {
        return Ok(());
    }
    let _ = keeper.wait();
    let log = fs::read_to_string(state.directory.join("keeper.log")).unwrap_or_default();
    let last = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(Problem::Setup(last.trim_start_matches("towpath-lab: ").to_owned()).into())
}

/// What `lab up` prints.
fn welcome(state: &State, scenario: &Scenario) -> String {
    let is_alone = State::all().is_ok_and(|all| all.len() == 1);
    let several = if is_alone { String::new() } else { format!(" --lab {}", state.name) };
    let mut text = format!("lab {} is up; files and logs are in {}\n", state.name, state.directory.display());
    for name in scenario.hosts.keys() {
        let addresses = scenario.links.iter().flat_map(|link| {
            let of = |end: usize| (link.ends[end] == *name).then_some(&link.addresses[end]);
            [of(0), of(1)].into_iter().flatten().flatten()
        });
        let addresses: Vec<String> = addresses.map(|net| net.addr().to_string()).collect();
        let programs = scenario.programs.iter().filter(|program| program.host == *name);
        let programs: Vec<String> = programs.map(|program| program.words.join(" ")).collect();
        text.push_str(&format!("host {name:<8} {}", addresses.join(" ")));
        if !programs.is_empty() {
            text.push_str(&format!("  runs {}", programs.join("; ")));
        }
        text.push('\n');
    }
    if let Some(first) = scenario.hosts.keys().next() {
        text.push_str(&format!("a shell on a host:    towpath-lab lab exec{several} {first}\n"));
    }
    if let Some(load) = &scenario.load {
        let (host, words) = (&load.host, load.words.join(" "));
        text.push_str(&format!(
            "load as the file has: towpath-lab lab exec{several} {host} towpath-lab run {words}\n"
        ));
    }
    text.push_str(&format!("end it:               towpath-lab lab down {}\n", state.name));
    text
}

/// The keeper's own side; `arguments` are the lab's directory and its mark.
pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    let [directory, mark] = arguments else { return ExitCode::from(2) };
    match keep(Path::new(directory), &mark.to_string_lossy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Read by `lab up`.
            let _ = writeln!(std::io::stderr(), "towpath-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn keep(directory: &Path, mark: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(directory.join(SCENARIO_FILE))?;
    let scenario = Scenario::parse(SCENARIO_FILE, &text)?;
    isolate()?;
    let signals = StopSignals::new().context("cannot watch for signals")?;
    let hosts = Hosts::new(&scenario, directory)?;
    let mut secrets = Secrets::new(directory)?;
    let never = AtomicBool::new(false);
    let programs = Programs::start(&scenario, &hosts, directory, &mut secrets, mark, &never)?;
    let place = |(name, host): (&str, &Host)| {
        let place = Place { network: host.network.as_fd().as_raw_fd(), mounts: host.mounts.descriptor() };
        (name.to_owned(), place)
    };
    State::write_up(directory, &Up { keeper: std::process::id(), hosts: hosts.iter().map(place).collect() })?;
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush())?;
    while signals.take().is_none() {
        // EINTR only means another look.
        let _ = poll(&mut [PollFd::new(signals.fd(), PollFlags::IN)], None);
    }
    programs.stop();
    Ok(())
}

/// Ends a lab: its keeper, its programs, whoever is in it, and its files. It may have been killed before.
///
/// # Errors
/// When there is no such lab, or its files cannot be removed.
pub fn down(name: Option<&str>) -> anyhow::Result<String> {
    let state = State::find(name)?;
    if std::env::var(MARK).is_ok_and(|mark| mark == state.mark) {
        let text = "this shell is in the lab itself and would end with it; leave it first (exit)";
        return Err(Problem::Setup(text.to_owned()).into());
    }
    let ended = end(&state);
    state.remove()?;
    let processes = if ended == 1 { "process" } else { "processes" };
    Ok(format!("lab {} is down, {ended} {processes} ended\n", state.name))
}

/// Ends all processes that bear the mark, the keeper first; answers how many there were.
fn end(state: &State) -> usize {
    let first = state.processes();
    if let Some(&keeper) = first.first().filter(|&&pid| is_keeper(pid)) {
        signal(keeper, Signal::TERM);
        wait_until_gone(state, PATIENCE_NS, |left| !left.contains(&keeper));
    }
    state.processes().into_iter().for_each(|pid| signal(pid, Signal::TERM));
    wait_until_gone(state, STRANGERS_PATIENCE_NS, <[u32]>::is_empty);
    // A shell ignores SIGTERM.
    state.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    wait_until_gone(state, STRANGERS_PATIENCE_NS, <[u32]>::is_empty);
    first.len()
}

fn wait_until_gone(state: &State, patience_ns: u64, is_so: impl Fn(&[u32]) -> bool) {
    let deadline = monotonic_ns() + patience_ns;
    while !is_so(&state.processes()) && monotonic_ns() < deadline {
        thread::sleep(TICK);
    }
}
