//! `towpath-lab compare`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::compare::Comparison;

/// Options of `towpath-lab compare`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directories written by `run --out`, or their run.json; ratios are to the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Also write a page with table and percentile plot; it needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Compares and prints.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let comparison = Comparison::read(&args.runs)?;
    let report = comparison.report();
    if let Some(path) = &args.html {
        std::fs::write(path, report.to_html()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        super::print(&format!("{}\n", serde_json::to_string_pretty(&comparison.rows())?))?;
    } else {
        super::print(&report.to_text())?;
    }
    Ok(ExitCode::SUCCESS)
}
