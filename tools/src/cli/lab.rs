//! `towpath-lab lab`: `up`, `exec`, `down`, `run`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use super::{EXIT_FILES, EXIT_INTERRUPTED, EXIT_INVALID};
use crate::demo::isolate;
use crate::format::bundle;
use crate::lab::{self, DEMO, Ran, Scenario, Verdict};
use crate::progress;
use crate::run::Problem;
use crate::run::verdict::Validity;

/// Options of `towpath-lab lab`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the hosts of a scenario and start its programs; they stay until `lab down`
    Up {
        /// The scenario, or `demo`
        file: PathBuf,
        /// What the lab is called [default: the file's name without its ending]
        #[arg(long)]
        name: Option<String>,
    },
    /// Run a program, or a shell, on a host of a lab that is up
    Exec {
        /// Which lab, when several are up
        #[arg(long)]
        lab: Option<String>,
        /// The host
        host: String,
        /// The program with its arguments [default: your shell]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// End a lab and everything in it
    Down {
        /// Which lab, when several are up
        name: Option<String>,
    },
    /// Make the hosts, run the scenario's load, say whether what must hold does, and take everything away
    Run {
        /// The scenario, or `demo`
        file: PathBuf,
        /// New directory for the files of the run
        #[arg(long)]
        out: Option<PathBuf>,
        /// Print run.json and what must hold instead of tables
        #[arg(long)]
        json: bool,
    },
}

/// Does what the command says.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Up { file, name } => {
            let name = match name {
                Some(name) => name.clone(),
                None => file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            };
            check_name(&name)?;
            let (text, scenario) = read(file)?;
            super::print(&lab::up(&name, &text, &scenario)?)?;
        }
        Command::Exec { lab, host, words } => return Err(lab::exec(lab.as_deref(), host, words)),
        Command::Down { name } => super::print(&lab::down(name.as_deref())?)?,
        Command::Run { file, out, json } => return run(file, out.as_deref(), *json),
    }
    Ok(ExitCode::SUCCESS)
}

fn check_name(name: &str) -> Result<(), Problem> {
    let good = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    if !name.is_empty() && name.chars().all(good) {
        return Ok(());
    }
    Err(Problem::Usage(format!(
        "a lab cannot be called {name:?}; give it a --name of letters, digits, - and _"
    )))
}

fn read(file: &Path) -> anyhow::Result<(String, Scenario)> {
    if file == Path::new("demo") {
        let scenario = Scenario::parse("demo", DEMO)?;
        return Ok((DEMO.to_owned(), scenario));
    }
    let scenario = Scenario::load(file)?;
    Ok((std::fs::read_to_string(file)?, scenario))
}

fn run(file: &Path, out: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let (_, scenario) = read(file)?;
    super::run::claim_directory(out)?;
    // Before there are threads.
    isolate().map_err(|error| Problem::Setup(format!("{error:#}")))?;
    let stop = super::stop_flag()?;
    let bar = progress::bar(1);
    bar.set_message(file.display().to_string());
    let log = out.map(|dir| dir.join(bundle::LATENCY_HLOG));
    let ran = lab::run(&scenario, &stop, log, |share| progress::step(&bar, 0, share));
    bar.finish_and_clear();
    let Ran { mut result, verdicts, failure } = ran?;
    result.scenario = Some(file.display().to_string());
    // What was measured is printed even where it cannot be written.
    let written = out.map_or(Ok(()), |dir| bundle::write(&result, dir));
    if json {
        let all = serde_json::json!({ "run": result, "hold": verdicts });
        super::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    } else {
        let lines: String = verdicts.iter().map(line).collect();
        super::print(&format!("{}{lines}", super::run::text(&result, out.filter(|_| written.is_ok()))))?;
    }
    written?;
    if let Some(failure) = failure {
        return Err(failure.context("what was measured is printed, but a program ended meanwhile"));
    }
    let holds = verdicts.iter().all(|verdict| verdict.holds);
    Ok(match (result.interrupted, result.verdict.validity) {
        (true, _) => ExitCode::from(EXIT_INTERRUPTED),
        (false, Validity::Valid) if holds => ExitCode::SUCCESS,
        (false, Validity::Valid) => ExitCode::from(EXIT_FILES),
        (false, _) => ExitCode::from(EXIT_INVALID),
    })
}

fn line(verdict: &Verdict) -> String {
    let word = if verdict.holds { "holds" } else { "FAILS" };
    format!("{word}  {}  (found {})\n", verdict.claim, verdict.found)
}
