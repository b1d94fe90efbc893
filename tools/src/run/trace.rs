//! Arrivals out of a file: when each datagram was sent, and how long it was.
//!
//! One datagram a line: seconds since the start, then its size in bytes if it is known, with a comma between. Blank lines
//! and lines that begin with `#` are left out. `tshark -T fields -E separator=, -e frame.time_relative -e udp.length` writes
//! such lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::payload;
use super::problem::Problem;
use super::spec::SIZE_MAX;
use crate::format::bounded;

/// Most datagrams in a trace (24 bytes of memory each).
const POINTS_MAX: usize = 10_000_000;
/// Most bytes of its file.
const BYTES_MAX: u64 = 512 << 20;
/// Longest time of a trace, seconds: nanoseconds of it fit a float without rounding.
const SECONDS_MAX: f64 = 1e6;

/// One datagram of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Nanoseconds since the start.
    pub due_ns: u64,
    /// UDP payload in bytes, where the trace says.
    pub size: Option<usize>,
}

/// A trace by its file; the file is read when the run starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// The file.
    pub file: PathBuf,
    /// CRC 32 of what it said, once it was read: files of one name may hold different traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc: Option<String>,
    #[serde(skip)]
    points: Option<Arc<Points>>,
}

/// What a trace says.
#[derive(Clone, Debug, PartialEq)]
pub struct Points {
    list: Vec<Point>,
    round_ns: u64,
    /// Datagrams that were shorter than the header of a payload, and are sent with its length.
    pub raised: usize,
}

impl Points {
    /// The datagrams in order of time; at least two.
    #[must_use]
    pub fn list(&self) -> &[Point] {
        &self.list
    }

    /// After how many nanoseconds the trace begins again: its last time and one mean gap more.
    #[must_use]
    pub fn round_ns(&self) -> u64 {
        self.round_ns
    }

    /// Datagrams per second.
    #[must_use]
    pub fn rate_pps(&self) -> f64 {
        self.list.len() as f64 * 1e9 / self.round_ns as f64
    }

    /// The longest datagram; `size` for those whose length it does not say.
    #[must_use]
    pub fn size_max(&self, size: usize) -> usize {
        self.list.iter().map(|point| point.size.unwrap_or(size)).max().unwrap_or(size)
    }
}

impl Trace {
    /// The trace in `file`, not read yet.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file, crc: None, points: None }
    }

    /// What it says, once it is loaded.
    #[must_use]
    pub fn points(&self) -> Option<&Points> {
        self.points.as_deref()
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`Problem::File`] when it cannot be read; [`Problem::Usage`], naming file and line and how a line looks.
    pub fn load(&self) -> Result<Self, Problem> {
        let text = bounded::read_to_string(&self.file, BYTES_MAX)
            .map_err(|error| Problem::File(format!("--arrivals trace:{}: {error}", self.file.display())))?;
        Self::parse(&self.file, &text)
    }

    /// Reads the text of a trace file.
    ///
    /// # Errors
    /// As [`Trace::load`].
    pub fn parse(file: impl AsRef<Path>, text: &str) -> Result<Self, Problem> {
        let file = file.as_ref();
        let wrong = |line: usize, why: &str| {
            Problem::Usage(format!(
                "{}:{}: {why}; a line is SECONDS or SECONDS,BYTES, for example 0.0125,172",
                file.display(),
                line + 1
            ))
        };
        let (mut list, mut raised) = (Vec::new(), 0);
        let mut last = 0;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut point = point(line).map_err(|why| wrong(number, why))?;
            if point.due_ns < last {
                return Err(wrong(number, "times must not go back"));
            }
            if list.len() == POINTS_MAX {
                return Err(wrong(number, "a trace has at most 10,000,000 datagrams"));
            }
            last = point.due_ns;
            if let Some(size) = &mut point.size
                && *size < payload::LEN
            {
                *size = payload::LEN;
                raised += 1;
            }
            list.push(point);
        }
        let gaps = list.len().saturating_sub(1) as u64;
        if gaps == 0 || last == 0 {
            return Err(wrong(0, "a trace needs two datagrams that are not due at the same time"));
        }
        let round_ns = last + last.div_ceil(gaps);
        let crc = Some(format!("{:08x}", crc32fast::hash(text.as_bytes())));
        Ok(Self { file: file.to_owned(), crc, points: Some(Arc::new(Points { list, round_ns, raised })) })
    }
}

fn point(line: &str) -> Result<Point, &'static str> {
    let (time, size) = match line.split_once(',') {
        Some((time, size)) => (time, Some(size.trim()).filter(|size| !size.is_empty())),
        None => (line, None),
    };
    let seconds: f64 = time.trim().parse().map_err(|_| "no time")?;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return Err("a time is from 0 to 1,000,000 seconds");
    }
    let size = size.map(str::parse).transpose().map_err(|_| "no size")?;
    if size.is_some_and(|size| size > SIZE_MAX) {
        return Err("a size is at most 65,507 bytes");
    }
    Ok(Point { due_ns: (seconds * 1e9).round() as u64, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_with_its_rate_and_short_datagrams_are_raised() {
        let trace = Trace::parse("t", "# from a capture\n0.0, 20\n\n0.5,1200\n1.0\n").unwrap();
        let points = trace.points().unwrap();
        assert_eq!(points.list()[0], Point { due_ns: 0, size: Some(payload::LEN) });
        assert_eq!(points.list()[2], Point { due_ns: 1_000_000_000, size: None });
        assert_eq!((points.rate_pps(), points.raised, points.size_max(200)), (2.0, 1, 1_200));
    }

    #[test]
    fn a_bad_line_is_named_with_a_good_one() {
        let cases = [
            ("0.1\nlate\n", "t:2: no time"),
            ("0.2\n0.1\n", "t:2: times must not go back"),
            ("0,9\n1,many\n", "t:2: no size"),
            ("0\n1,65508\n", "t:2: a size is at most"),
            ("-1\n", "t:1: a time is"),
            ("nan\n1\n", "t:1: a time is"),
            ("1e9\n", "t:1: a time is"),
            ("", "two datagrams"),
            ("0\n0\n", "two datagrams"),
        ];
        for (text, expected) in cases {
            let error = Trace::parse("t", text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("SECONDS,BYTES"), "{text:?}: {error}");
        }
        assert!(Trace::new("/nonexistent".into()).load().unwrap_err().to_string().contains("/nonexistent"));
    }
}
