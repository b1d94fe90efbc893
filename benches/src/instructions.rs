//! `cargo run --release -p benches -- instructions`: instructions of the hot functions, counted by callgrind and compared
//! with a baseline.
//!
//! Time on a shared machine varies by a tenth and more, the number of instructions hardly at all: it shows a change of a few
//! per cent, and no other load disturbs it. It does not know what an instruction costs; the micro-benchmarks do.
//!
//! ```text
//!  this program ─► valgrind ─► this program again, with one case: set-up, warm-up │ counted_loop │ end
//!                                                                                  \_ counted _/
//! ```

mod baseline;
mod cases;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Args;

use self::baseline::{Baseline, Environment};
pub use self::cases::CASES;
use self::cases::Case;

/// A count this much larger or smaller than its baseline is a difference, per cent: what the compiler makes of
/// unrelated changes stays below it.
pub const TOLERANCE_PERCENT: f64 = 5.0;
/// The name that callgrind is told, as [`counted_loop`] is called in the executable.
const COUNTED: &str = "*counted_loop*";
/// Runs of a case before it is counted: what happens once only (tables made, pages touched) happens then.
const WARM_UPS: usize = 2;
/// What the line with the processor's features begins with.
const FEATURES: &str = "features ";

/// Flags of `benches instructions`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only these cases [default: all]
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
    /// Write what is counted to the baseline
    #[arg(long)]
    update: bool,
    /// The baseline
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml"))]
    baseline: PathBuf,
    /// Run a case (started by this command, under valgrind)
    #[arg(long, hide = true)]
    run: Option<String>,
}

/// Counts, compares and prints. The exit status is 1 when a count differs from its baseline.
///
/// # Errors
/// When valgrind is missing or says something else than expected, a case does not exist, or a file cannot be read or written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if let Some(name) = &arguments.run {
        writeln!(out, "{FEATURES}{}", baseline::processor_features())?;
        run_counted(find(name)?);
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.list {
        for case in CASES {
            writeln!(out, "{:<20} {}", case.name, case.title)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cases: Vec<&Case> = if arguments.cases.is_empty() {
        CASES.iter().collect()
    } else {
        arguments.cases.iter().map(|name| find(name)).collect::<anyhow::Result<_>>()?
    };
    let valgrind = valgrind_version()?;
    let mut known = Baseline::read(&arguments.baseline)?;
    let mut here = None;
    let mut differing = 0;
    writeln!(out, "{:<20} {:>12} {:>12} {:>8}  operation", "case", "instructions", "baseline", "change")?;
    for case in cases {
        let (count, features) = count(case)?;
        here.get_or_insert_with(|| Environment::new(&valgrind, features));
        let before = known.instructions.get(case.name).copied();
        let change = before.map(|before| change_percent(before, count));
        differing += u32::from(change.is_none_or(|change| change.abs() > TOLERANCE_PERCENT));
        let before = before.map_or("none".to_owned(), |before| before.to_string());
        let change = change.map_or("new".to_owned(), |change| format!("{change:+.1} %"));
        writeln!(out, "{:<20} {count:>12} {before:>12} {change:>8}  {}", case.name, case.title)?;
        if arguments.update {
            known.instructions.insert(case.name.to_owned(), count);
        }
    }
    let here = here.context("there are cases")?;
    if arguments.update {
        known.adopt(here, arguments.cases.is_empty())?;
        known.write(&arguments.baseline)?;
        writeln!(out, "written to {}", arguments.baseline.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Without a baseline there is nothing to differ from.
    let differences =
        if known.instructions.is_empty() { vec![] } else { known.environment.differences(&here) };
    for difference in differences {
        writeln!(out, "not comparable in full: {difference}")?;
    }
    if differing == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{differing} differ by more than {TOLERANCE_PERCENT} % from {}. Where that is meant, `--update` writes the counts there",
        arguments.baseline.display()
    )?;
    Ok(ExitCode::FAILURE)
}

/// How much larger `after` is, per cent.
fn change_percent(before: u64, after: u64) -> f64 {
    (after as f64 / before.max(1) as f64 - 1.0) * 100.0
}

fn find(name: &str) -> anyhow::Result<&'static Case> {
    let found = CASES.iter().find(|case| case.name == name);
    found.with_context(|| format!("no case is called {name}; instructions --list prints the names"))
}

/// What runs under valgrind.
fn run_counted(case: &Case) {
    let mut operation = (case.set_up)();
    (0..WARM_UPS).for_each(|_| operation());
    counted_loop(&mut *operation, case.operations);
}

/// The only function whose instructions are counted, with all it calls. Dynamic dispatch keeps the compiler from moving
/// work out of the loop, for half a dozen instructions an operation.
#[inline(never)]
fn counted_loop(operation: &mut dyn FnMut(), operations: usize) {
    for _ in 0..operations {
        operation();
    }
}

/// `valgrind-3.19.0` without its name.
fn valgrind_version() -> anyhow::Result<String> {
    let output = match command("valgrind").arg("--version").output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("valgrind is not installed: apt-get install valgrind")
        }
        output => output.context("valgrind --version")?,
    };
    let version = String::from_utf8_lossy(&output.stdout);
    Ok(version.trim().trim_start_matches("valgrind-").to_owned())
}

/// Instructions of one operation, and the features of the processor that valgrind shows.
fn count(case: &Case) -> anyhow::Result<(u64, String)> {
    let output = command("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--read-inline-info=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(std::env::current_exe()?)
        .args(["instructions", "--run", case.name])
        .output()
        .context("valgrind")?;
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{} under valgrind ended with {}:\n{log}", case.name, output.status);
    }
    let collected = log.lines().find_map(|line| line.split_once("Collected : "));
    let total: u64 = collected
        .and_then(|(_, number)| number.trim().parse().ok())
        .filter(|total| *total > 0)
        .with_context(|| format!("callgrind counted nothing for {}:\n{log}", case.name))?;
    let features = said.lines().find_map(|line| line.strip_prefix(FEATURES)).unwrap_or_default();
    let operations = case.operations as u64;
    Ok(((total + operations / 2) / operations, features.to_owned()))
}

fn command(program: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the benchmark runs programs and has no ring open")]
    Command::new(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_and_has_a_baseline() {
        let baseline =
            Baseline::read(concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml").as_ref()).unwrap();
        for case in CASES {
            run_counted(case);
            assert!(
                baseline.instructions.contains_key(case.name),
                "{}: run instructions --update",
                case.name
            );
        }
        assert_eq!(baseline.instructions.len(), CASES.len(), "a case is gone: run instructions --update");
    }

    #[test]
    fn a_change_is_counted_from_the_baseline() {
        assert!((change_percent(200, 210) - 5.0).abs() < 1e-9);
        assert!((change_percent(200, 100) + 50.0).abs() < 1e-9);
    }
}
