//! A tolerant reader of interval logs (`.hlog`), whoever wrote them: any version of the format, any line ends, with or without
//! header, tags and an end. What it cannot make sense of, it refuses with the number of the line.
//!
//! The times of a log without `BaseTime` are guessed as HdrHistogram's Java reader does (`HistogramLogReader`): those more than
//! a year before `StartTime` are offsets from it.

use std::collections::HashSet;
use std::io::{BufRead, Read as _};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::counts::Counts;
use super::encoding;
use super::fate::{self, Fate};

/// Longest line, in bytes: the largest histogram that is decoded, compressed by two thirds at least, in base64.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// Most counters that are not zero in all lines of a log together, 16 bytes each.
const ENTRIES_MAX: usize = 1 << 24;
/// Most lines with a histogram; a week of seconds.
const LINES_MAX: usize = 1_000_000;
/// Most bytes of a log, and most bytes of all its histograms together when they are decompressed: some tens of seconds.
const LOG_BYTES_MAX: u64 = 8 << 30;
const WORK_MAX: u64 = 2 << 30;
/// Most different tags, and most bytes of one.
const TAGS_MAX: usize = 256;
const TAG_BYTES_MAX: usize = 100;
/// Most bytes of a field that an error shows.
const SHOWN_BYTES_MAX: usize = 60;
/// A year before StartTime; times before that are taken for offsets.
const YEAR_S: f64 = 365.0 * 24.0 * 3_600.0;

/// What to do about a log that is too large.
const CUT: &str = "cut it into pieces";

/// Padding is left out by some writers.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The tag, if it has one.
    pub tag: Option<String>,
    /// Seconds since the start of the log.
    pub start_s: f64,
    /// Seconds.
    pub length_s: f64,
    /// What was recorded in it, in the unit of the log.
    pub counts: Counts,
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// Its start, in seconds since the epoch, when it says so.
    pub start_unix_s: Option<f64>,
    /// In the order of the log.
    pub lines: Vec<Line>,
    /// What was left out or guessed.
    pub notes: Vec<String>,
    /// What became of the run that made it, where it says so.
    pub fate: Option<Fate>,
}

impl Log {
    /// Reads a log to its end.
    ///
    /// # Errors
    /// What `input` answers, or the number of the first line that cannot be read and why.
    pub fn read(mut input: impl BufRead) -> Result<Self, String> {
        let mut parser = Parser::default();
        let mut bytes = Vec::new();
        let mut left = LOG_BYTES_MAX;
        for number in 1_u64.. {
            bytes.clear();
            let read = input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes);
            let len = read.map_err(|error| error.to_string())? as u64;
            if len == 0 {
                break;
            }
            if len > LINE_BYTES_MAX {
                return Err(format!("line {number} is longer than {LINE_BYTES_MAX} bytes"));
            }
            left = left
                .checked_sub(len)
                .ok_or_else(|| format!("the log is longer than {} GiB; {CUT}", LOG_BYTES_MAX >> 30))?;
            let is_whole = bytes.ends_with(b"\n");
            match parser.line(&bytes) {
                Ok(()) => {}
                // The writer was stopped in the middle of it.
                Err(_) if !is_whole && !parser.is_full() => {
                    parser.log.notes.push(format!("line {number}, the last one, has no end and is left out"));
                }
                Err(error) => return Err(format!("line {number}: {error}")),
            }
        }
        Ok(parser.finish())
    }

    /// The tags there are, `None` first if it is one of them, the others in the order of the log.
    #[must_use]
    pub fn tags(&self) -> Vec<Option<&str>> {
        let mut seen = HashSet::new();
        let mut tags: Vec<Option<&str>> =
            self.lines.iter().map(|line| line.tag.as_deref()).filter(|tag| seen.insert(*tag)).collect();
        tags.sort_by_key(Option::is_some);
        tags
    }

    /// The lines with a tag, or without one.
    pub fn tagged<'a>(&'a self, tag: Option<&'a str>) -> impl Iterator<Item = &'a Line> + 'a {
        self.lines.iter().filter(move |line| line.tag.as_deref() == tag)
    }

    /// All that was recorded under a tag, or without one; `None` when there is no such line.
    ///
    /// # Errors
    /// When no histogram can hold it all.
    pub fn whole(&self, tag: Option<&str>) -> Result<Option<Counts>, String> {
        Counts::sum(self.tagged(tag).map(|line| &line.counts))
    }

    /// How many there are beyond those that are counted under a tag, or without one; `None` when that is not known.
    #[must_use]
    pub fn lost(&self, tag: Option<&str>) -> Option<u64> {
        self.fate.as_ref()?.lost(tag)
    }

    /// Counters that are not zero in all lines together, which is what it takes of memory.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.lines.iter().map(|line| line.counts.len()).sum()
    }
}

/// Reads line by line.
#[derive(Default)]
struct Parser {
    log: Log,
    base_unix_s: Option<f64>,
    fate: fate::Reader,
    entries: usize,
    work: u64,
    tags: HashSet<String>,
}

impl Parser {
    fn line(&mut self, bytes: &[u8]) -> Result<(), String> {
        // Only comments can hold anything but ASCII, and nothing in them is needed then.
        let text = String::from_utf8_lossy(bytes);
        let line = text.trim_start_matches('\u{feff}').trim();
        if let Some(comment) = line.strip_prefix('#') {
            self.comment(comment);
            return Ok(());
        }
        // The legend is in quotes.
        if line.is_empty() || line.starts_with('"') {
            return Ok(());
        }
        let mut line = self.histogram(line)?;
        self.entries += line.counts.len();
        if self.is_full() {
            return Err(format!(
                "the log is too large: more than {LINES_MAX} lines, {ENTRIES_MAX} counts, {TAGS_MAX} tags or {} GiB of \
                 decompressed histograms; {CUT}",
                WORK_MAX >> 30
            ));
        }
        line.counts.shrink();
        self.log.lines.push(line);
        Ok(())
    }

    /// Whether there is more than is kept.
    fn is_full(&self) -> bool {
        self.entries > ENTRIES_MAX
            || self.work > WORK_MAX
            || self.tags.len() > TAGS_MAX
            || self.log.lines.len() >= LINES_MAX
    }

    fn comment(&mut self, comment: &str) {
        self.fate.line(comment);
        let seconds = |name: &str| -> Option<f64> {
            let rest = comment.trim_start_matches('[').strip_prefix(name)?.trim_start();
            rest.split([' ', ',', ']']).next()?.parse().ok().filter(|seconds: &f64| seconds.is_finite())
        };
        // Of a log that was begun again the first start counts, and the base that was said last.
        self.log.start_unix_s = self.log.start_unix_s.or(seconds("StartTime:"));
        self.base_unix_s = seconds("BaseTime:").or(self.base_unix_s);
    }

    fn histogram(&mut self, line: &str) -> Result<Line, String> {
        // A histogram alone, as some tools print it.
        if line.starts_with("HIST") && !line.contains(',') {
            return Ok(Line { tag: None, start_s: 0.0, length_s: 0.0, counts: self.decode(line)? });
        }
        let (tag, line) = match line.strip_prefix("Tag=") {
            Some(rest) => {
                let (tag, rest) = rest.split_once(',').ok_or("no comma after the tag")?;
                let tag = tag.trim();
                if tag.len() > TAG_BYTES_MAX {
                    return Err(format!("its tag is longer than {TAG_BYTES_MAX} bytes"));
                }
                if !self.tags.contains(tag) {
                    self.tags.insert(tag.to_owned());
                }
                (Some(tag.to_owned()), rest)
            }
            None => (None, line),
        };
        let mut fields = line.splitn(4, ',').map(str::trim);
        let mut number = |name: &str| -> Result<f64, String> {
            let field = fields.next().filter(|field| !field.is_empty()).ok_or(format!("no {name}"))?;
            let number = field.parse().ok().filter(|number: &f64| number.is_finite());
            let shown = &field[..field.floor_char_boundary(SHOWN_BYTES_MAX)];
            number.ok_or_else(|| format!("{name} {shown:?} is not a number"))
        };
        let (stamp, length_s, _max) =
            (number("start time")?, number("interval length")?, number("maximum of the interval")?);
        let encoded = fields.next().ok_or("no histogram")?;
        let counts = self.decode(encoded)?;
        Ok(Line { tag, start_s: self.since_start(stamp), length_s: length_s.max(0.0), counts })
    }

    /// A time stamp as seconds since the start.
    fn since_start(&mut self, stamp: f64) -> f64 {
        match (self.base_unix_s, self.log.start_unix_s) {
            (None, None) => {
                let is_absolute = stamp > YEAR_S;
                if is_absolute {
                    self.log.start_unix_s = Some(stamp);
                }
                if is_absolute { 0.0 } else { stamp }
            }
            (None, Some(start)) if stamp < start - YEAR_S => stamp,
            (base, start) => {
                let time = base.unwrap_or(0.0) + stamp;
                time - *self.log.start_unix_s.insert(start.unwrap_or(time))
            }
        }
    }

    fn decode(&mut self, encoded: &str) -> Result<Counts, String> {
        let bytes =
            BASE64.decode(encoded).map_err(|error| format!("the histogram is not base64: {error}"))?;
        encoding::decode(&bytes, &mut self.work)
            .map_err(|error| format!("the histogram cannot be decoded: {error}"))
    }

    fn finish(mut self) -> Log {
        if self.log.start_unix_s.is_none() && !self.log.lines.is_empty() {
            self.log.notes.push("the log does not say when it started".to_owned());
        }
        self.log.fate = self.fate.finish();
        self.log
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use dataplane::hlog;
    use proptest::prelude::*;

    use super::*;
    use crate::run::distribution::histogram;

    /// A log of our own: three lines without a tag and one with.
    fn log() -> String {
        let mut writer = hlog::Writer::new(Vec::new(), "seed 1", 1_700_000_000_500_000_000, "then").unwrap();
        for interval in 0..3_u64 {
            let mut part = histogram();
            (1..100).for_each(|value| part.record(value * 997 * (interval + 1)).unwrap());
            writer.line(None, interval as f64, 1.0, &part).unwrap();
        }
        writer.line(Some("lateness"), 0.0, 3.0, &histogram()).unwrap();
        String::from_utf8(writer.finish().unwrap()).unwrap()
    }

    fn read(text: &str) -> Result<Log, String> {
        Log::read(text.as_bytes())
    }

    fn starts(log: &Log) -> Vec<f64> {
        log.lines.iter().map(|line| (line.start_s * 1e3).round() / 1e3).collect()
    }

    #[test]
    fn a_log_of_our_own_is_read_as_the_plain_reader_reads_it() {
        let text = log();
        let (ours, plain) = (read(&text).unwrap(), hlog::read(&text).unwrap());
        assert_eq!((ours.start_unix_s, ours.notes.len()), (Some(1_700_000_000.5), 0));
        assert_eq!(ours.tags(), [None, Some("lateness")]);
        for (line, plain) in ours.lines.iter().zip(&plain) {
            assert_eq!((line.tag.as_ref(), line.length_s), (plain.tag.as_ref(), plain.length_s));
            assert_eq!(line.counts.histogram(), plain.histogram);
        }
        assert_eq!(starts(&ours), [0.0, 1.0, 2.0, 0.0]);
        let whole = ours.whole(None).unwrap().unwrap();
        assert_eq!((whole.total(), ours.whole(Some("none")).unwrap()), (297, None));
    }

    #[test]
    fn logs_of_others_are_read_whatever_their_lines_and_headers_look_like() {
        let text = log();
        let whole = read(&text).unwrap();
        let same = |altered: &str| {
            let read = read(altered).unwrap();
            assert_eq!((read.lines.len(), starts(&read)), (4, starts(&whole)), "{altered}");
            read
        };
        same(&text.replace('\n', "\r\n"));
        same(&text.replace('\n', "\n\n# a comment\n"));
        same(&format!("\u{feff}{text}"));
        same(text.trim_end());
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("HIST")).collect();
        let bare = same(&format!("{}\n", lines.join("\n")));
        assert_eq!((bare.start_unix_s, bare.notes.len()), (None, 1));
        // Times since the epoch, with a header that names the start or without one; and offsets without a base.
        let absolute = text.replace("\n0.000,", "\n1700000000.500,").replace("\n1.000,", "\n1700000001.500,");
        let absolute = absolute
            .replace("\n2.000,", "\n1700000002.500,")
            .replace("=lateness,0.000", "=lateness,1700000000.500");
        let without_base = |text: &str| {
            text.lines().filter(|line| !line.contains("BaseTime")).collect::<Vec<_>>().join("\n") + "\n"
        };
        same(&without_base(&absolute));
        same(&without_base(&text));
        let headless: Vec<&str> = absolute.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(same(&headless.join("\n")).start_unix_s, Some(1_700_000_000.5));
        // A base that is not the start.
        let moved = text.replace("BaseTime: 1700000000.500", "BaseTime: 1700000010.500");
        assert_eq!(starts(&read(&moved).unwrap()), [10.0, 11.0, 12.0, 10.0]);
        assert_eq!(read("").unwrap(), Log::default());
    }

    #[test]
    fn old_encodings_and_bare_histograms_are_read() {
        let mut histogram = histogram();
        (1..50).for_each(|value| histogram.record(value * 1_000).unwrap());
        let compressed = STANDARD.encode(encoding::tests::old(&histogram, 1, 8, true));
        let plain = STANDARD.encode(encoding::tests::old(&histogram, 0, 8, false));
        let text = format!(
            "#[Histogram log format version 1.01]\n0.127,1.007,2.769,{compressed}\n1.134,0.9,2,{plain}\n{plain}"
        );
        let log = read(&text).unwrap();
        assert_eq!(starts(&log), [0.127, 1.134, 0.0]);
        assert!(log.lines.iter().all(|line| line.counts.histogram() == histogram));
    }

    #[test]
    fn a_torn_last_line_is_left_out_with_a_note_and_any_other_is_an_error() {
        let text = log();
        let torn = read(&text[..text.len() - 30]).unwrap();
        assert_eq!((torn.lines.len(), torn.notes.len()), (3, 1));
        assert!(torn.notes[0].contains("line 9"), "{:?}", torn.notes);
        for (from, to, said) in [
            ("0.000,1.000", "0.000;1.000", "line 6: start time \"0.000;1.000\" is not a number"),
            ("0.000,1.000", "NaN,1.000", "line 6: start time"),
            ("HISTFA", "HIST*A", "line 6: the histogram is not base64"),
            ("HISTFA", "AAAAAA", "line 6: the histogram cannot be decoded: cookie"),
            ("Tag=lateness,", "Tag=lateness", "line 9: maximum of the interval"),
        ] {
            let error = read(&text.replacen(from, to, 1)).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn hostile_logs_are_refused_before_they_take_memory() {
        let long = vec![b'0'; LINE_BYTES_MAX as usize + 2];
        assert!(Log::read(long.as_slice()).unwrap_err().contains("line 1 is longer"));
        let error = read(&format!("Tag={},0,1,1,HIST\n", "t".repeat(101))).unwrap_err();
        assert!(error.contains("line 1: its tag is longer"), "{error}");
        let error = read(&format!("{},1,1,HIST\n", "x".repeat(1 << 20))).unwrap_err();
        assert!(error.len() < 200 && error.contains("is not a number"), "{}", error.len());
        // One tag a line.
        let text = log();
        let line = text.lines().nth(5).unwrap();
        let tagged =
            |count: usize| -> String { (0..count).map(|number| format!("Tag=t{number},{line}\n")).collect() };
        assert_eq!(read(&tagged(TAGS_MAX)).unwrap().tags().len(), TAGS_MAX);
        let error = read(&tagged(TAGS_MAX + 1)).unwrap_err();
        assert!(error.starts_with("line 257: ") && error.contains("256 tags"), "{error}");
        // Nor is it kept when the last line has no end.
        assert!(read(tagged(TAGS_MAX + 1).trim_end()).is_err());
    }

    #[test]
    fn lines_that_take_long_to_decompress_and_count_nothing_are_refused_too() {
        let mut parser = Parser::default();
        let text = log();
        let line = text.lines().nth(5).unwrap();
        parser.line(line.as_bytes()).unwrap();
        let once = parser.work;
        assert!(once > 100, "{once}");
        parser.work = WORK_MAX - once;
        parser.line(line.as_bytes()).unwrap();
        let error = parser.line(line.as_bytes()).unwrap_err();
        assert!(error.contains("2 GiB of decompressed histograms; cut it"), "{error}");
        let mut parser = Parser { entries: ENTRIES_MAX, ..Parser::default() };
        assert!(parser.line(line.as_bytes()).unwrap_err().contains("counts"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..2_000) {
            let _ = Log::read(bytes.as_slice());
            let mut altered = log().into_bytes();
            let at = at % altered.len();
            altered[at] = bytes.first().copied().unwrap_or(b',');
            let _ = Log::read(altered.as_slice());
        }
    }
}
