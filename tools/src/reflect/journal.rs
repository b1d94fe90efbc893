//! The log of a reflector that impairs datagrams: JSON, one line for each datagram that something was done to, and the
//! totals of each run at the end.
//!
//! ```text
//! {"reflector":{"version":"0.1.0","started":"…","plan":{"seed":1,"loss":0.01,…}}}
//! {"run":"6e5b…","flow":3,"seq":17,"did":"lost"}
//! {"run":"6e5b…","flow":3,"seq":21,"did":"held","overtaken_by":3}
//! {"run":"6e5b…","totals":{"seen":5000,"returned":4950,"lost":50,…}}
//! ```

use std::fmt;
use std::io::{self, Write};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::plan::Plan;

/// Most lines before the last totals, so that nobody fills the disk from outside; the totals go on counting.
const LINES_MAX: u64 = 4_000_000;

/// What became of the datagrams of one run, in datagrams.
/// `seen = returned + lost + corrupt + overflow + refused + discarded` once the reflector has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Received.
    pub seen: u64,
    /// Sent back unharmed; each counted once.
    pub returned: u64,
    /// Not sent back, as planned.
    pub lost: u64,
    /// Second copies sent.
    pub duplicate: u64,
    /// Sent back with a bit changed.
    pub corrupt: u64,
    /// Held back for others to overtake.
    pub held: u64,
    /// Sent back after one of the same flow with a higher number, for whatever reason (RFC 4737 section 3.3).
    pub reordered: u64,
    /// Kept longer than the others.
    pub delayed: u64,
    /// Kept until the end of a stall.
    pub stalled: u64,
    /// Not kept because too many were.
    pub overflow: u64,
    /// Not sent because the kernel refused.
    pub refused: u64,
    /// Still kept when the reflector ended.
    pub discarded: u64,
}

/// What was done to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
pub enum Did {
    /// It was not sent back.
    Lost,
    /// It was sent back twice.
    Duplicate,
    /// A bit was changed.
    Corrupt,
    /// It was sent back after others.
    Held {
        /// How many of its flow came before it; fewer than planned when no more came in time.
        overtaken_by: u32,
    },
    /// It was kept longer than the others.
    Delayed {
        /// By so many nanoseconds.
        ns: u64,
    },
    /// It was kept until the end of a stall.
    Stalled {
        /// For so many nanoseconds.
        ns: u64,
    },
    /// Too many were kept.
    Overflow,
    /// The kernel refused to send it.
    Refused,
    /// It was still kept when the reflector ended.
    Discarded,
}

/// A run's id; written in hexadecimal, as in its `run.json`, or as `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(pub u64);

impl RunId {
    /// In place of a run: datagrams that are not the lab's. All of them are one flow.
    pub const OTHER: Self = Self(0);
}

impl fmt::Display for RunId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::OTHER { formatter.write_str("other") } else { write!(formatter, "{:016x}", self.0) }
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "other" {
            return Ok(Self::OTHER);
        }
        u64::from_str_radix(&text, 16).map(Self).map_err(D::Error::custom)
    }
}

/// One line about one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its run.
    pub run: RunId,
    /// Index of the flow.
    pub flow: u32,
    /// Number in the flow; of datagrams that are not the lab's, in the order in which they came.
    pub seq: u64,
    /// What was done to it.
    #[serde(flatten)]
    pub did: Did,
}

/// The totals of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTotals {
    /// The run.
    pub run: RunId,
    /// What became of its datagrams.
    pub totals: Totals,
}

/// Writes the lines.
pub struct Journal<W> {
    out: W,
    lines: u64,
}

impl<W: Write> Journal<W> {
    /// Begins with the plan.
    ///
    /// # Errors
    /// What the writer answers.
    pub fn new(mut out: W, plan: &Plan, started: &str) -> io::Result<Self> {
        let version = env!("CARGO_PKG_VERSION");
        let about =
            serde_json::json!({ "reflector": { "version": version, "started": started, "plan": plan } });
        writeln!(out, "{about}")?;
        Ok(Self { out, lines: 0 })
    }

    /// Adds a line, unless there are too many already.
    ///
    /// # Errors
    /// What the writer answers.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.line(entry)
    }

    /// Adds the totals of a run that is over, unless there are too many lines already.
    ///
    /// # Errors
    /// What the writer answers.
    pub fn closed(&mut self, totals: &RunTotals) -> io::Result<()> {
        self.line(totals)
    }

    /// Ends the log with the totals of the last runs; one that is too long for all of its lines says so.
    ///
    /// # Errors
    /// What the writer answers.
    pub fn finish(mut self, totals: &[RunTotals]) -> io::Result<W> {
        for totals in totals {
            Self::write(&mut self.out, totals)?;
        }
        if self.lines > LINES_MAX {
            let left_out = self.lines - LINES_MAX;
            writeln!(self.out, "{}", serde_json::json!({ "lines_left_out": left_out }))?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn line(&mut self, content: &impl Serialize) -> io::Result<()> {
        self.lines += 1;
        if self.lines > LINES_MAX { Ok(()) } else { Self::write(&mut self.out, content) }
    }

    fn write(out: &mut W, content: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *out, content)?;
        out.write_all(b"\n")
    }
}

/// Reads the entries and the totals of a log; lines that are neither are passed over.
#[must_use]
pub fn read(text: &str) -> (Vec<Entry>, Vec<RunTotals>) {
    let entries = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let totals = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    (entries, totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let run = RunId(255);
        let dids = [Did::Lost, Did::Held { overtaken_by: 3 }, Did::Delayed { ns: 5 }, Did::Stalled { ns: 6 }];
        let entries = dids.map(|did| Entry { run, flow: 2, seq: u64::MAX, did });
        let totals = RunTotals { run, totals: Totals { seen: 4, lost: 1, returned: 3, ..Totals::default() } };
        let mut journal = Journal::new(Vec::new(), &Plan::default(), "now").unwrap();
        entries.iter().for_each(|entry| journal.entry(entry).unwrap());
        let text = String::from_utf8(journal.finish(&[totals]).unwrap()).unwrap();
        assert!(text.starts_with("{\"reflector\":{") && text.lines().count() == 6, "{text}");
        let line =
            r#"{"run":"00000000000000ff","flow":2,"seq":18446744073709551615,"did":"held","overtaken_by":3}"#;
        assert!(text.lines().any(|other| other == line), "{text}");
        assert_eq!(read(&text), (entries.to_vec(), vec![totals]));
        let other = serde_json::to_string(&RunId::OTHER).unwrap();
        assert_eq!((other.as_str(), serde_json::from_str(&other).unwrap()), ("\"other\"", RunId::OTHER));
    }

    #[test]
    fn a_flood_does_not_fill_the_disk() {
        let mut journal = Journal { out: Vec::new(), lines: LINES_MAX - 1 };
        let totals = RunTotals { run: RunId(1), totals: Totals::default() };
        let entry = Entry { run: RunId::OTHER, flow: 0, seq: 0, did: Did::Lost };
        for _ in 0..3 {
            journal.entry(&entry).unwrap();
            journal.closed(&totals).unwrap();
        }
        let text = String::from_utf8(journal.finish(&[totals]).unwrap()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.ends_with("{\"lines_left_out\":5}\n"), "{text}");
    }
}
