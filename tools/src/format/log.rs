//! A tolerant reader of interval logs (`.hlog`), whoever wrote them: any version of the format, any line ends, with or without
//! header, tags and an end. What it cannot make sense of, it refuses with the number of the line.
//!
//! The times of a log without `BaseTime` are guessed as HdrHistogram's Java reader does (`HistogramLogReader`): those more than
//! a year before `StartTime` are offsets from it.

use std::io::{BufRead, Read as _};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::counts::Counts;
use super::encoding;

/// Longest line, in bytes: the largest histogram that is decoded, compressed by two thirds at least, in base64.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// Most counters that are not zero in all lines of a log together, 16 bytes each.
const ENTRIES_MAX: usize = 1 << 24;
/// Most lines with a histogram; a week of seconds.
const LINES_MAX: usize = 1_000_000;
/// A year before StartTime; times before that are taken for offsets.
const YEAR_S: f64 = 365.0 * 24.0 * 3_600.0;

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
}

impl Log {
    /// Reads a log to its end.
    ///
    /// # Errors
    /// What `input` answers, or the number of the first line that cannot be read and why.
    pub fn read(mut input: impl BufRead) -> Result<Self, String> {
        let mut parser = Parser::default();
        let mut bytes = Vec::new();
        for number in 1_u64.. {
            bytes.clear();
            let read = input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes);
            match read.map_err(|error| error.to_string())? {
                0 => break,
                len if len as u64 > LINE_BYTES_MAX => {
                    return Err(format!("line {number} is longer than {LINE_BYTES_MAX} bytes"));
                }
                _ => {}
            }
            let is_whole = bytes.ends_with(b"\n");
            match parser.line(&bytes) {
                Ok(()) => {}
                // The writer was stopped in the middle of it.
                Err(_) if !is_whole => {
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
        let mut tags: Vec<Option<&str>> = Vec::new();
        for line in &self.lines {
            let tag = line.tag.as_deref();
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
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
        let mut lines = self.tagged(tag);
        let Some(first) = lines.next() else { return Ok(None) };
        let mut whole = first.counts.clone();
        lines.try_for_each(|line| whole.merge(&line.counts))?;
        Ok(Some(whole))
    }
}

/// Reads line by line.
#[derive(Default)]
struct Parser {
    log: Log,
    base_unix_s: Option<f64>,
    entries: usize,
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
        let line = self.histogram(line)?;
        self.entries += line.counts.len();
        if self.entries > ENTRIES_MAX || self.log.lines.len() == LINES_MAX {
            return Err(format!(
                "the log is too large: more than {LINES_MAX} lines or {ENTRIES_MAX} counts; cut it into pieces"
            ));
        }
        self.log.lines.push(line);
        Ok(())
    }

    fn comment(&mut self, comment: &str) {
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
            return Ok(Line { tag: None, start_s: 0.0, length_s: 0.0, counts: decode(line)? });
        }
        let (tag, line) = match line.strip_prefix("Tag=") {
            Some(rest) => {
                let (tag, rest) = rest.split_once(',').ok_or("no comma after the tag")?;
                (Some(tag.trim().to_owned()), rest)
            }
            None => (None, line),
        };
        let mut fields = line.splitn(4, ',').map(str::trim);
        let mut number = |name: &str| -> Result<f64, String> {
            let field = fields.next().filter(|field| !field.is_empty()).ok_or(format!("no {name}"))?;
            let number = field.parse().ok().filter(|number: &f64| number.is_finite());
            number.ok_or(format!("{name} {field:?} is not a number"))
        };
        let (stamp, length_s, _max) =
            (number("start time")?, number("interval length")?, number("maximum of the interval")?);
        let encoded = fields.next().ok_or("no histogram")?;
        let counts = decode(encoded)?;
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

    fn finish(mut self) -> Log {
        if self.log.start_unix_s.is_none() && !self.log.lines.is_empty() {
            self.log.notes.push("the log does not say when it started".to_owned());
        }
        self.log
    }
}

fn decode(encoded: &str) -> Result<Counts, String> {
    let bytes = BASE64.decode(encoded).map_err(|error| format!("the histogram is not base64: {error}"))?;
    encoding::decode(&bytes).map_err(|error| format!("the histogram cannot be decoded: {error}"))
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
