//! `towpath-lab doctor`.

use std::process::ExitCode;

use serde_json::json;

use crate::doctor::{self, Severity, Snapshot};

/// Options of `towpath-lab doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print what was seen and what was found as JSON
    #[arg(long)]
    json: bool,
}

/// Looks at the host; 1 when something spoils measurements.
pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let snapshot = Snapshot::take();
    let findings = doctor::examine(&snapshot);
    if args.json {
        let all = json!({ "host": snapshot, "findings": findings });
        super::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    } else {
        super::print(&doctor::report(&findings).to_text())?;
    }
    let spoils = findings.iter().any(|finding| finding.severity == Severity::Spoils);
    Ok(if spoils { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
