//! The response by time of arrival, written while the run goes on: the receiver hands each interval that is over to a thread with
//! the file, and takes an empty histogram back. So memory does not grow with the run, and of one that is killed the lines until
//! then are there.
//!
//! ```text
//!  receiver ── full ──► lab-log thread ─► latency.hlog
//!      ▲────── empty ──────┘
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::Context;
use dataplane::hlog;
use hdrhistogram::Histogram;

use super::clock::rfc3339;
use super::distribution::{DIGITS, HIGHEST_NS};
use super::result::RunResult;
use super::spec::RunSpec;
use crate::format::bundle::RUN_JSON;
use crate::units;

/// Histograms of a run, 108 KiB each: one is counted in, the others are on their way.
const HISTOGRAMS: usize = 4;
/// Most lines of a log: what `report` and `show` hold in memory of one. The interval grows with longer runs.
const LINES_MAX: u64 = 8_192;
/// How often it is looked whether the receiver has ended without a word.
const LOOK: Duration = Duration::from_secs(1);
/// How long after the drain something may still be received: the sender gives up, and the receiver looks at the time, some tenths of
/// a second late.
const OVERTIME: Duration = Duration::from_secs(1);

fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, HIGHEST_NS, DIGITS).expect("valid bounds")
}

/// The length of a line of the log of a run, in nanoseconds.
#[must_use]
pub fn length_ns(spec: &RunSpec) -> u64 {
    // Arrivals go on through the drain, each of which may be in a line of its own.
    let receiving = spec.duration + spec.drain + OVERTIME;
    let [asked_ns, run_ns] = [spec.interval, receiving].map(|time| time.as_nanos() as u64);
    asked_ns.max(run_ns.div_ceil(LINES_MAX)).max(1)
}

/// Why lines are longer than was asked for, if they are.
#[must_use]
pub fn lengthened(spec: &RunSpec) -> Option<String> {
    let (length_ns, asked_ns) = (length_ns(spec), spec.interval.as_nanos() as u64);
    let [length, asked] = [length_ns, asked_ns].map(units::nanoseconds);
    (length_ns > asked_ns).then(|| {
        format!(
            "each line of latency.hlog is {length} long instead of {asked}: a log has {LINES_MAX} at most, so that it can be read"
        )
    })
}

/// What arrived in an interval, or in several of which nobody took the first.
#[derive(Debug)]
pub struct Piece {
    /// Nanoseconds since measured sending began.
    start_ns: u64,
    end_ns: u64,
    response: Histogram<u32>,
}

/// The receiver's half.
#[derive(Debug)]
pub struct Intervals {
    length_ns: u64,
    piece: Box<Piece>,
    full: SyncSender<Box<Piece>>,
    empty: Receiver<Box<Piece>>,
}

/// The other half, for [`Log::write`].
#[derive(Debug)]
pub struct Pieces {
    full: Receiver<Box<Piece>>,
    empty: SyncSender<Box<Piece>>,
}

impl Intervals {
    /// Both halves for intervals of `length_ns`; allocates all that they will need.
    #[must_use]
    pub fn new(length_ns: u64) -> (Self, Pieces) {
        let piece = || Box::new(Piece { start_ns: 0, end_ns: length_ns, response: histogram() });
        let (full, full_end) = sync_channel(HISTOGRAMS);
        let (empty_end, empty) = sync_channel(HISTOGRAMS);
        for _ in 1..HISTOGRAMS {
            // There is room for all there are.
            let _ = empty_end.try_send(piece());
        }
        (Self { length_ns, piece: piece(), full, empty }, Pieces { full: full_end, empty: empty_end })
    }

    /// A datagram arrived `since_start_ns` after measured sending began, no earlier than the one before.
    #[inline]
    pub fn record(&mut self, since_start_ns: u64, response_ns: u64) {
        if since_start_ns >= self.piece.end_ns {
            self.next(since_start_ns);
        }
        self.piece.response.saturating_record(response_ns);
    }

    /// Goes on to the interval of `since_start_ns`. While the file is so slow that no histogram is empty, the present one is used
    /// further, and its line is longer.
    fn next(&mut self, since_start_ns: u64) {
        let start_ns = since_start_ns / self.length_ns * self.length_ns;
        let end_ns = start_ns + self.length_ns;
        if self.piece.response.is_empty() {
            (self.piece.start_ns, self.piece.end_ns) = (start_ns, end_ns);
            return;
        }
        let Ok(mut empty) = self.empty.try_recv() else {
            self.piece.end_ns = end_ns;
            return;
        };
        (empty.start_ns, empty.end_ns) = (start_ns, end_ns);
        let full = std::mem::replace(&mut self.piece, empty);
        // There is room for all there are; without a reader the run fails for that.
        let _ = self.full.try_send(full);
    }

    /// Hands the last interval over, after which the other half ends.
    pub fn finish(self) {
        if !self.piece.response.is_empty() {
            // As above.
            let _ = self.full.try_send(self.piece);
        }
    }
}

/// An empty file for the log, and when measured sending begins, in nanoseconds since the epoch.
pub type Begun = (File, u64);

/// The thread that writes a log; what it answers is `None` for one that was not begun.
pub type Writing<'scope> = ScopedJoinHandle<'scope, Option<io::Result<Log>>>;

/// Starts it. It waits for the log to be begun, or for the sender of that to be dropped, and ends after the receiver, which says so
/// by `ended` at the latest.
///
/// # Errors
/// When there can be no further thread.
pub fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    spec: &'scope RunSpec,
    pieces: Pieces,
    ended: &'scope AtomicBool,
) -> io::Result<(SyncSender<Begun>, Writing<'scope>)> {
    let (begin, begun) = sync_channel(1);
    // Owns the file.
    let write = move || {
        let (file, started_unix_ns) = begun.recv().ok()?;
        Some(Log::new(file, spec, started_unix_ns).and_then(|log| log.write(pieces, ended)))
    };
    Ok((begin, Builder::new().name("lab-log".to_owned()).spawn_scoped(scope, write)?))
}

/// Makes an empty file for the log. What an earlier run has in its place is replaced, and its `run.json` beside it goes first, so
/// that no run stands beside the log of another.
///
/// # Errors
/// What the file system answers, with the path.
pub fn create(path: &Path) -> anyhow::Result<File> {
    let run = path.with_file_name(RUN_JSON);
    match fs::remove_file(&run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", run.display()));
        }
        _ => {}
    }
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The file, while it is written.
pub struct Log {
    lines: Lines,
    length_ns: u64,
    nothing: Histogram<u32>,
}

impl Log {
    /// Writes the header into an empty file.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn new(file: File, spec: &RunSpec, started_unix_ns: u64) -> io::Result<Self> {
        let comment = format!(
            "towpath-lab {}, values in ns, response latency, spec: {}",
            env!("CARGO_PKG_VERSION"),
            serde_json::to_string(spec)?
        );
        let date = rfc3339(started_unix_ns);
        let mut out = hlog::Writer::new(BufWriter::new(file), &comment, started_unix_ns, &date)?;
        out.flush()?;
        Ok(Self { lines: Lines { out, next_ns: 0 }, length_ns: length_ns(spec), nothing: histogram() })
    }

    /// Writes what comes, each line at once, until the receiver has finished, or has ended without.
    ///
    /// # Errors
    /// What the file system answers. The receiver does not notice.
    pub fn write(mut self, pieces: Pieces, ended: &AtomicBool) -> io::Result<Self> {
        loop {
            let mut piece = match pieces.full.recv_timeout(LOOK) {
                Ok(piece) => piece,
                Err(RecvTimeoutError::Timeout) if !ended.load(Ordering::Acquire) => continue,
                Err(_) => return Ok(self),
            };
            self.silence_until(piece.start_ns)?;
            self.lines.write(piece.end_ns, &piece.response)?;
            piece.response.reset();
            // There is room for all there are, and the receiver may have ended.
            let _ = pieces.empty.try_send(piece);
        }
    }

    /// Writes the intervals at the end in which nothing arrived, and closes the file.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn finish(mut self, measured_ns: u64) -> io::Result<()> {
        self.silence_until(measured_ns)?;
        self.lines.out.finish().map(drop)
    }

    /// Lines for the intervals before `end_ns` in which nothing arrived.
    fn silence_until(&mut self, end_ns: u64) -> io::Result<()> {
        let Self { lines, length_ns, nothing } = self;
        while lines.next_ns < end_ns {
            lines.write(lines.next_ns + *length_ns, nothing)?;
        }
        Ok(())
    }
}

/// The lines of a log.
struct Lines {
    out: hlog::Writer<BufWriter<File>>,
    /// Where the next one begins, in nanoseconds since measured sending began.
    next_ns: u64,
}

impl Lines {
    fn write(&mut self, end_ns: u64, response: &Histogram<u32>) -> io::Result<()> {
        let [start_s, length_s] = [self.next_ns, end_ns - self.next_ns].map(|ns| ns as f64 / 1e9);
        self.next_ns = end_ns;
        self.out.line(None, start_s, length_s, response)?;
        self.out.flush()
    }
}

/// Writes a log in which a whole run is one line, for one that was made without.
///
/// # Errors
/// What the file system answers, with the path.
pub fn write_whole(path: &Path, result: &RunResult, response: &Histogram<u64>) -> anyhow::Result<()> {
    let file = create(path)?;
    let write = || {
        let mut out = Log::new(file, &result.spec, result.started_unix_ns)?.lines.out;
        out.line(None, 0.0, result.measured_s, response)?;
        out.finish().map(drop)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;
    use std::thread;

    use super::*;
    use crate::run::Kind;

    const LENGTH_NS: u64 = 100_000_000;

    fn spec() -> RunSpec {
        let interval = Duration::from_nanos(LENGTH_NS);
        RunSpec { interval, ..RunSpec::new(Kind::Udp, ([127, 0, 0, 1], 9).into()) }
    }

    /// What the log says of arrivals at these times, in tenths of an interval, with a writer at work meanwhile or only behind it all.
    fn log_of(arrivals: &[u64], measured_ns: u64, meanwhile: bool) -> Vec<(u64, u64, u64)> {
        let (mut intervals, pieces) = Intervals::new(LENGTH_NS);
        let file = tempfile::NamedTempFile::new().unwrap();
        let (running, out) = (&AtomicBool::new(false), file.reopen().unwrap());
        let write = move || Log::new(out, &spec(), 7).unwrap().write(pieces, running).unwrap();
        let record = || {
            for tenths in arrivals {
                intervals.record(tenths * LENGTH_NS / 10, 5_000);
            }
            intervals.finish();
        };
        let log = if meanwhile {
            thread::scope(|scope| {
                let writing = scope.spawn(write);
                record();
                writing.join().unwrap()
            })
        } else {
            record();
            write()
        };
        log.finish(measured_ns).unwrap();
        let lines = hlog::read(&fs::read_to_string(file.path()).unwrap()).unwrap();
        let tenths = |seconds: f64| (seconds * 100.0).round() as u64;
        lines.iter().map(|line| (tenths(line.start_s), tenths(line.length_s), line.histogram.len())).collect()
    }

    #[test]
    fn each_interval_has_a_line_and_so_has_silence_while_something_was_sent() {
        let lines = log_of(&[0, 9, 10, 45, 45, 81], 9 * LENGTH_NS + 1, true);
        let lengths: Vec<u64> = lines.iter().map(|line| line.1).collect();
        let counts: Vec<u64> = lines.iter().map(|line| line.2).collect();
        assert_eq!((lengths.as_slice(), counts), (&[10; 10][..], vec![2, 1, 0, 0, 2, 0, 0, 0, 1, 0]));
        assert!(lines.iter().zip(0..).all(|(line, number)| line.0 == 10 * number), "{lines:?}");
        assert_eq!(log_of(&[35], LENGTH_NS, true).last(), Some(&(30, 10, 1)), "what came in the drain");
        assert_eq!(log_of(&[], 2 * LENGTH_NS, true), [(0, 10, 0), (10, 10, 0)]);
    }

    #[test]
    fn a_file_that_is_too_slow_gets_longer_lines_and_loses_nothing() {
        let arrivals: Vec<u64> = (0..10).map(|interval| 10 * interval).collect();
        let lines = log_of(&arrivals, 10 * LENGTH_NS, false);
        assert_eq!(lines, [(0, 10, 1), (10, 10, 1), (20, 10, 1), (30, 70, 7)]);
    }

    #[test]
    fn a_log_that_cannot_be_written_ends_its_thread_and_not_the_run() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = Log::new(full, &spec(), 7).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let (mut intervals, pieces) = Intervals::new(LENGTH_NS);
        drop(pieces);
        (0..100).for_each(|number| intervals.record(number * LENGTH_NS, 1));
        intervals.finish();
        // And one whose receiver is gone without a word.
        let (intervals, pieces) = Intervals::new(LENGTH_NS);
        assert_eq!(pieces.full.try_recv().err(), Some(TryRecvError::Empty));
        let out = tempfile::tempfile().unwrap();
        Log::new(out, &spec(), 7).unwrap().write(pieces, &AtomicBool::new(true)).unwrap();
        drop(intervals);
    }

    #[test]
    fn only_very_long_runs_have_longer_lines_than_asked_for() {
        let lasting = |seconds| RunSpec { duration: Duration::from_secs(seconds), ..spec() };
        assert_eq!((length_ns(&lasting(800)), lengthened(&lasting(800))), (LENGTH_NS, None));
        let remark = lengthened(&lasting(8_192)).unwrap();
        assert!(remark.contains("1.00 s long instead of 100 ms"), "{remark}");
    }

    #[test]
    fn what_arrives_in_the_drain_makes_no_lines_that_are_too_many() {
        let spec = RunSpec {
            interval: Duration::from_millis(1),
            duration: Duration::from_secs(8),
            drain: Duration::from_secs(60),
            ..spec()
        };
        assert!(68_000_000_000 / length_ns(&spec) < LINES_MAX, "{}", length_ns(&spec));
        assert!(lengthened(&spec).is_some());
    }

    #[test]
    fn a_log_takes_the_place_of_an_earlier_run() {
        let dir = tempfile::tempdir().unwrap();
        let (log, run) = (dir.path().join("latency.hlog"), dir.path().join(RUN_JSON));
        fs::write(&log, "old").unwrap();
        fs::write(&run, "old").unwrap();
        create(&log).unwrap();
        assert!(!run.exists() && fs::read(&log).unwrap().is_empty());
        let error = create(&dir.path().join("nowhere/latency.hlog")).unwrap_err();
        assert!(format!("{error:#}").contains("nowhere/latency.hlog"), "{error:#}");
    }
}
