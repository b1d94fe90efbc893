//! What on this host will spoil a measurement, and how it is mended. Judging is a function of a [`Snapshot`]; only
//! [`Snapshot::take`] looks at the host.

mod findings;
mod snapshot;

use serde::Serialize;

use crate::report::{Cell, Report, Section, Table, Tone};

pub use findings::examine;
pub use snapshot::{Qdisc, Snapshot};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Figures will be wrong, or runs void.
    Spoils,
    /// Figures hold for this host as it is, and are worse or less steady than they need to be.
    Limits,
    /// To be known when figures are read.
    Note,
}

impl Severity {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spoils => "spoils",
            Self::Limits => "limits",
            Self::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A name that stays the same: `steal`, `governor`…
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was seen, with its figure.
    pub seen: String,
    /// What it does to a measurement.
    pub why: &'static str,
    /// The command that mends it, or what has to be done where no command can.
    pub fix: String,
}

/// The findings as a table for a person.
#[must_use]
pub fn report(findings: &[Finding]) -> Report {
    let title = match findings.iter().filter(|finding| finding.severity == Severity::Spoils).count() {
        0 if findings.is_empty() => "nothing here spoils a measurement".to_owned(),
        0 => "nothing here spoils a measurement; to be known:".to_owned(),
        1 => "1 thing here spoils a measurement".to_owned(),
        count => format!("{count} things here spoil a measurement"),
    };
    if findings.is_empty() {
        return Report { title, ..Report::default() };
    }
    let mut table = Table { header: ["", "what", "seen"].map(str::to_owned).into(), rows: Vec::new() };
    let mut notes = Vec::new();
    for finding in findings {
        let tone = if finding.severity == Severity::Spoils { Tone::Bad } else { Tone::Plain };
        let name = Cell::new(finding.severity.name(), tone);
        table.rows.push(vec![name, Cell::from(finding.name), Cell::from(finding.seen.clone())]);
        notes.push(format!("{}: {}\n    {}", finding.name, finding.why, finding.fix));
    }
    Report { title, notes: Vec::new(), sections: vec![Section { table, notes, ..Section::default() }] }
}
