//! What the counts of a log leave out: whether the run that made it can be believed, and what never arrived. It stands in comments,
//! which the readers of HdrHistogram pass over.
//!
//! ```text
//!  #[Verdict: GENERATOR-LIMITED, interrupted]
//!  #[Ledger: intended 1000, sent 990, refused 4]
//!  #[Ledger: unsent 6, received 965, late 5]
//!  #[Ledger: lost 20, duplicate 0, reordered 0]
//!  #[Ledger: corrupt 2]
//!  #[Lost: untagged 35]
//!  #[Lost: service 29]
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use crate::run::RunResult;
use crate::run::ledger::{Ledger, loss_statement};
use crate::run::verdict::Validity;

/// Largest count that is believed: no run sends as many datagrams, and sums of it do not overflow.
const COUNT_MAX: u64 = 1 << 48;
/// Most tags, as in a log, and most bytes of one, so that a line is shorter than the 128 bytes that the reader in C takes.
const TAGS_MAX: usize = 256;
const TAG_BYTES_MAX: usize = 80;
/// Counts in a line, which is short enough then.
const COUNTS_IN_LINE: usize = 3;
/// Stands behind the verdict of a run that was ended early.
const INTERRUPTED: &str = "interrupted";

/// What became of a run, and of what it sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// Whether it can be believed.
    pub verdict: Validity,
    /// Whether it was ended early.
    pub interrupted: bool,
    /// What became of its datagrams.
    pub ledger: Ledger,
    /// By tag (or `untagged`), how many there are beyond those that are counted, later than all of them; empty when of a part of a
    /// log that is not known.
    pub lost: BTreeMap<String, u64>,
}

impl Fate {
    /// That of a run, for its logs.
    #[must_use]
    pub fn of(result: &RunResult) -> Self {
        let latency = &result.latency;
        let tags = [
            (name(None), Some(&latency.response)),
            ("service", Some(&latency.service)),
            ("lateness", Some(&latency.lateness)),
            ("to-device", latency.to_device.as_ref()),
            ("kernel", latency.kernel.as_ref()),
            ("up", latency.up.as_ref()),
            ("down", latency.down.as_ref()),
        ];
        let lost = tags.into_iter().filter_map(|(tag, figures)| Some((tag.to_owned(), figures?.lost)));
        Self {
            verdict: result.verdict.validity,
            interrupted: result.interrupted,
            ledger: result.ledger,
            lost: lost.collect(),
        }
    }

    /// What stands in `lines`, between `#[` and `]`; `None` when there is no verdict.
    #[must_use]
    pub fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut reader = Reader::default();
        lines.into_iter().filter_map(|line| line.trim().strip_prefix('#')).for_each(|line| reader.line(line));
        reader.finish()
    }

    /// Writes it as comments.
    ///
    /// # Errors
    /// What `out` answers.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let interrupted = if self.interrupted { format!(", {INTERRUPTED}") } else { String::new() };
        writeln!(out, "#[Verdict: {}{interrupted}]", self.verdict.name())?;
        let mut ledger = self.ledger;
        for counts in counts(&mut ledger).chunks(COUNTS_IN_LINE) {
            let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(out, "#[Ledger: {}]", counts.join(", "))?;
        }
        self.lost.iter().try_for_each(|(tag, lost)| writeln!(out, "#[Lost: {tag} {lost}]"))
    }

    /// How many there are beyond those that are counted under a tag, or without one; `None` when that is not known.
    #[must_use]
    pub fn lost(&self, tag: Option<&str>) -> Option<u64> {
        self.lost.get(name(tag)).copied()
    }

    /// For a file that holds what is under one tag, and does not say so.
    #[must_use]
    pub fn alone(&self, tag: Option<&str>) -> Self {
        let lost = self.lost(tag).map(|lost| (name(None).to_owned(), lost));
        Self { lost: lost.into_iter().collect(), ..self.clone() }
    }

    /// That of several runs together: the worst verdict, and the sum of what was lost.
    #[must_use]
    pub fn together(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.verdict = both.verdict.max(other.verdict);
        both.interrupted |= other.interrupted;
        both.ledger.add(&other.ledger);
        if self.lost.is_empty() || other.lost.is_empty() {
            both.lost.clear();
            return both;
        }
        for (tag, lost) in &other.lost {
            *both.lost.entry(tag.clone()).or_default() += lost;
        }
        both
    }

    /// For people: the verdict, and what was lost of how many.
    #[must_use]
    pub fn sentence(&self) -> String {
        let interrupted = if self.interrupted { " (interrupted)" } else { "" };
        format!("{}{interrupted}, {}", self.verdict.name(), loss_statement(&self.ledger))
    }
}

/// What a tag is called.
fn name(tag: Option<&str>) -> &str {
    tag.unwrap_or("untagged")
}

/// The counts of a ledger by name.
fn counts(ledger: &mut Ledger) -> [(&'static str, &mut u64); 10] {
    [
        ("intended", &mut ledger.intended),
        ("sent", &mut ledger.sent),
        ("refused", &mut ledger.refused),
        ("unsent", &mut ledger.unsent),
        ("received", &mut ledger.received),
        ("late", &mut ledger.late),
        ("lost", &mut ledger.lost),
        ("duplicate", &mut ledger.duplicate),
        ("reordered", &mut ledger.reordered),
        ("corrupt", &mut ledger.corrupt),
    ]
}

/// Reads comment by comment; what it does not know is another's.
#[derive(Debug, Default)]
pub(super) struct Reader {
    verdict: Option<Validity>,
    interrupted: bool,
    ledger: Ledger,
    lost: BTreeMap<String, u64>,
}

impl Reader {
    /// A comment, without the `#` that begins it.
    pub(super) fn line(&mut self, comment: &str) {
        let text = comment.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let Some((word, text)) = text.and_then(|text| text.split_once(": ")) else { return };
        match word {
            "Verdict" => {
                let (name, interrupted) = text.split_once(", ").unwrap_or((text, ""));
                let all = [Validity::Valid, Validity::GeneratorLimited, Validity::Invalid];
                self.verdict = all.into_iter().find(|validity| validity.name() == name);
                self.interrupted = interrupted == INTERRUPTED;
            }
            "Ledger" => {
                for (name, count) in text.split(", ").filter_map(counted) {
                    let mut known = counts(&mut self.ledger).into_iter();
                    if let Some((_, place)) = known.find(|(known, _)| *known == name) {
                        *place = count;
                    }
                }
            }
            "Lost" => {
                let Some((tag, lost)) = counted(text) else { return };
                if self.lost.len() < TAGS_MAX && tag.len() <= TAG_BYTES_MAX {
                    self.lost.insert(tag.to_owned(), lost);
                }
            }
            _ => {}
        }
    }

    pub(super) fn finish(self) -> Option<Fate> {
        let Self { verdict, interrupted, ledger, lost } = self;
        Some(Fate { verdict: verdict?, interrupted, ledger, lost })
    }
}

/// A name and a count behind it.
fn counted(text: &str) -> Option<(&str, u64)> {
    let (name, count) = text.rsplit_once(' ')?;
    Some((name, count.parse().ok().filter(|count| *count <= COUNT_MAX)?))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A run that lost three datagrams of ten.
    pub fn lossy() -> Fate {
        let ledger = Ledger {
            intended: 11,
            sent: 9,
            refused: 1,
            unsent: 1,
            received: 7,
            lost: 2,
            reordered: 5,
            ..Ledger::default()
        };
        let lost = [("untagged", 4), ("service", 3), ("lateness", 0)];
        Fate {
            verdict: Validity::GeneratorLimited,
            interrupted: true,
            ledger,
            lost: lost.map(|(tag, lost)| (tag.to_owned(), lost)).into(),
        }
    }

    fn written(fate: &Fate) -> String {
        let mut out = Vec::new();
        fate.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_no_line_is_too_long_for_the_reader_in_c() {
        let mut largest = lossy();
        counts(&mut largest.ledger).into_iter().for_each(|(_, count)| *count = COUNT_MAX);
        largest.lost.insert("t".repeat(TAG_BYTES_MAX), COUNT_MAX);
        for fate in [lossy(), Fate { interrupted: false, ..lossy() }, largest] {
            let text = written(&fate);
            assert_eq!(Fate::read(text.lines()), Some(fate), "{text}");
            assert!(text.lines().all(|line| line.len() < 128), "{text}");
        }
        assert!(
            written(&lossy())
                .starts_with("#[Verdict: GENERATOR-LIMITED, interrupted]\n#[Ledger: intended 11, ")
        );
    }

    #[test]
    fn comments_of_others_say_nothing() {
        for text in
            ["", "#[Verdict: FINE]", "#Verdict: VALID", "#[Ledger: lost 3]", "Verdict: VALID", "#[Max = 3]"]
        {
            assert_eq!(Fate::read(text.lines()), None, "{text}");
        }
        let more = format!(
            "#[Lost: up {}]\n#[Ledger: lost x, sent -1, late 3, other 4]\n#[Verdict: VALID]",
            COUNT_MAX + 1
        );
        let fate = Fate::read(more.lines()).unwrap();
        assert_eq!((fate.lost(Some("up")), fate.ledger), (None, Ledger { late: 3, ..Ledger::default() }));
    }

    #[test]
    fn runs_together_have_the_worst_verdict_and_lost_what_each_has_lost() {
        let good = Fate { verdict: Validity::Valid, interrupted: false, ..lossy() };
        let both = good.together(&lossy());
        assert_eq!((both.verdict, both.interrupted), (Validity::GeneratorLimited, true));
        assert_eq!((both.lost(None), both.lost(Some("service")), both.ledger.lost), (Some(8), Some(6), 4));
        assert_eq!(both.lost(Some("up")), None);
        let part = Fate { lost: BTreeMap::new(), ..lossy() };
        assert_eq!((part.together(&good).lost(None), good.together(&part).lost(None)), (None, None));
        assert_eq!(both.alone(Some("service")).lost, [("untagged".to_owned(), 6)].into());
        assert_eq!(good.sentence(), "VALID, 3 of 10 lost (1 refused): 3.000e-1");
    }

    proptest! {
        #[test]
        fn no_comments_make_it_panic(lines in prop::collection::vec("\\[(Verdict: (VALID|INVALID|[ -~]{0,20})|(Ledger|Lost): (late [0-9]{0,20}|[ -~]{0,40}))\\]", 0..8)) {
            let mut reader = Reader::default();
            lines.iter().for_each(|line| reader.line(line));
            if let Some(fate) = reader.finish() {
                let both = fate.together(&fate);
                prop_assert!(both.sentence().contains("VALID") || both.sentence().contains("GENERATOR"));
            }
        }
    }
}
