//! `towpath-lab show`, `convert`, `merge` and `diff`: logs and distributions of any origin.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::format::combine::{self, Align};
use crate::format::input::{self, Unit};
use crate::format::log::Log;
use crate::format::output::{self, Format, names, whole};
use crate::report::logs;
use crate::run::Problem;

/// What part of a log is meant.
#[derive(Debug, clap::Args)]
pub(super) struct Part {
    /// Only the lines with this tag; `untagged` for those without one
    #[arg(long)]
    tag: Option<String>,
    /// Only what begins so long after the start of the log, or later
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    from: Duration,
    /// Only what begins earlier than this after the start of the log
    #[arg(long, value_parser = humantime::parse_duration)]
    until: Option<Duration>,
    /// The unit of the values, where it is not nanoseconds (microseconds in a .hgrm)
    #[arg(long, value_enum)]
    unit: Option<Unit>,
}

impl Part {
    fn read(&self, path: &Path) -> anyhow::Result<Log> {
        let mut log = input::read(path, self.unit)?;
        let there = names(&log.tags()).join(", ");
        let until_s = self.until.map_or(f64::INFINITY, |until| until.as_secs_f64());
        combine::cut(&mut log, self.from.as_secs_f64(), until_s, self.tag.as_deref());
        if log.lines.is_empty() {
            let message = format!("nothing of {} is in that part; its tags are: {there}", path.display());
            return Err(Problem::Usage(message).into());
        }
        Ok(log)
    }
}

/// Options of `towpath-lab show`.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// Directories of `run --out`, .hlog, .hgrm, or JSON of irtt or fortio
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    part: Part,
    /// Print figures and counts as JSON, one line for each file
    #[arg(long)]
    json: bool,
}

/// Prints what files hold.
pub(super) fn show(args: &Show) -> anyhow::Result<ExitCode> {
    for (index, path) in args.files.iter().enumerate() {
        let log = args.part.read(path)?;
        if args.json {
            super::print(&format!("{}\n", output::json(&log)?))?;
            continue;
        }
        let gap = if index > 0 { "\n" } else { "" };
        super::print(&format!("{gap}{}", logs::show(&path.display().to_string(), &log)?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Options of `towpath-lab convert`.
#[derive(Debug, clap::Args)]
pub(super) struct Convert {
    /// What is read, as by `show`
    #[arg(value_name = "FILE")]
    from_file: PathBuf,
    /// What is written: .hlog, .hgrm, .csv or .json
    #[arg(value_name = "TO")]
    to_file: PathBuf,
    /// The format of TO, where its name does not say it
    #[arg(long, value_enum)]
    to: Option<Format>,
    #[command(flatten)]
    part: Part,
}

/// Writes a file in another format.
pub(super) fn convert(args: &Convert) -> anyhow::Result<ExitCode> {
    let format = format_of(&args.to_file, args.to)?;
    let log = args.part.read(&args.from_file)?;
    write(&log, format, &args.to_file)?;
    Ok(ExitCode::SUCCESS)
}

/// Options of `towpath-lab merge`.
#[derive(Debug, clap::Args)]
pub(super) struct Merge {
    /// What is read, as by `show`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What is written: .hlog, .hgrm, .csv or .json
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The format of --out, where its name does not say it
    #[arg(long, value_enum)]
    to: Option<Format>,
    /// Where lines of several logs meet
    #[arg(long, value_enum, default_value = "clock")]
    align: Align,
    #[command(flatten)]
    part: Part,
}

/// Adds files up.
pub(super) fn merge(args: &Merge) -> anyhow::Result<ExitCode> {
    let format = format_of(&args.out, args.to)?;
    let mut logs = Vec::with_capacity(args.files.len());
    for path in &args.files {
        logs.push(args.part.read(path)?);
        combine::check_together(&logs).map_err(Problem::Usage)?;
    }
    let merged = combine::merge(&logs, args.align).map_err(Problem::Usage)?;
    write(&merged, format, &args.out)?;
    Ok(ExitCode::SUCCESS)
}

/// Options of `towpath-lab diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    /// The first, as `show` reads it
    a: PathBuf,
    /// The second
    b: PathBuf,
    /// Also write what A counted beyond B; refused when B is no part of A
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The format of --out, where its name does not say it
    #[arg(long, value_enum)]
    to: Option<Format>,
    #[command(flatten)]
    part: Part,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Puts two files side by side, and subtracts one from the other.
pub(super) fn diff(args: &Diff) -> anyhow::Result<ExitCode> {
    let out =
        args.out.as_ref().map(|path| Ok::<_, Problem>((path, format_of(path, args.to)?))).transpose()?;
    let (a, b) = (args.part.read(&args.a)?, args.part.read(&args.b)?);
    if let Some((path, format)) = out {
        write(&beyond(&a, &b)?, format, path)?;
    }
    let difference = logs::Difference::new(&a, &b)?;
    if args.json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&difference)?))?;
    } else {
        let name = |path: &PathBuf| path.display().to_string();
        super::print(&difference.report(&name(&args.a), &name(&args.b)).to_text())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the first counted beyond the second, a line for each tag of the first.
fn beyond(a: &Log, b: &Log) -> anyhow::Result<Log> {
    let mut rest = Log { start_unix_s: a.start_unix_s, ..Log::default() };
    if a.fate.is_some() {
        rest.notes.push("what was lost is not said of what A counted beyond B".to_owned());
    }
    for tag in a.tags() {
        let mut counts = whole(a, tag)?;
        if let Some(part) = b.whole(tag).map_err(Problem::Usage)? {
            counts = combine::subtract(&counts, &part).map_err(|error| {
                let name = tag.unwrap_or("untagged");
                Problem::Usage(format!("{name}: {error}; --out is for a log and a part of it"))
            })?;
        }
        let end = a.tagged(tag).map(|line| line.start_s + line.length_s).fold(0.0, f64::max);
        let tag = tag.map(str::to_owned);
        rest.lines.push(crate::format::log::Line { tag, start_s: 0.0, length_s: end, counts });
    }
    Ok(rest)
}

fn format_of(path: &Path, given: Option<Format>) -> Result<Format, Problem> {
    given.or_else(|| Format::of(path)).ok_or_else(|| {
        Problem::Usage(format!(
            "{} does not say its format; name it .hlog, .hgrm, .csv or .json, or add --to",
            path.display()
        ))
    })
}

/// Writes, and says on standard error what was left out or guessed.
fn write(log: &Log, format: Format, path: &Path) -> anyhow::Result<()> {
    for note in &log.notes {
        super::tell(note);
    }
    if let Some(fate) = log.fate.as_ref().filter(|_| format == Format::Csv) {
        super::tell(&format!("rows of {} have no place for it: {}", path.display(), fate.sentence()));
    }
    output::write(log, format, path)
}
