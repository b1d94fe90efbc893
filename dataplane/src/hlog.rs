//! HdrHistogram interval logs (`.hlog` 1.3): one compressed histogram per line, readable by the Java, Python, JS and C
//! readers. Those understand the *compressed* V2 encoding only, and the crate's own log writer omits StartTime, BaseTime
//! and legend, so the text is written here.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use hdrhistogram::{Counter, Histogram};

/// Bytes of a comment line: the reader in C takes the rest of a line with 128 bytes or more for the end of the header.
const COMMENT_BYTES_MAX: usize = 100;

/// The Java tools divide the largest value of a line by this: nanoseconds become milliseconds.
const MAX_VALUE_DIVISOR: f64 = 1e6;

/// Writes an interval log.
pub struct Writer<W: Write> {
    out: W,
    serializer: V2DeflateSerializer,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes the header. `comment` goes into as many comment lines as it needs; `start` is seconds since the epoch, `date` its
    /// text.
    ///
    /// # Errors
    /// What `out` answers.
    pub fn new(mut out: W, comment: &str, start_unix_ns: u64, date: &str) -> io::Result<Self> {
        let start = start_unix_ns as f64 / 1e9;
        for line in comment_lines(&comment.replace(['\n', '\r'], " ")) {
            writeln!(out, "#[{line}]")?;
        }
        writeln!(out, "#[Histogram log format version 1.3]")?;
        writeln!(out, "#[StartTime: {start:.3} (seconds since epoch), {date}]")?;
        writeln!(out, "#[BaseTime: {start:.3} (seconds since epoch)]")?;
        writeln!(
            out,
            "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\""
        )?;
        Ok(Self::append(out))
    }

    /// Goes on with a log that has its header already.
    pub fn append(out: W) -> Self {
        Self { out, serializer: V2DeflateSerializer::new(), buffer: Vec::new() }
    }

    /// Writes one line; times in seconds since the start. `tag` must have no comma, space or line break.
    ///
    /// # Errors
    /// What the output answers, and `InvalidInput` for a tag that would break the line.
    pub fn line<T: Counter>(
        &mut self,
        tag: Option<&str>,
        start_s: f64,
        length_s: f64,
        histogram: &Histogram<T>,
    ) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.serializer.serialize(histogram, &mut buffer).map_err(io::Error::other)?;
        let max = if histogram.is_empty() { 0 } else { histogram.max() };
        let written = self.encoded_line(tag, start_s, length_s, max, &buffer);
        self.buffer = buffer;
        written
    }

    /// As [`Writer::line`], of a histogram in the compressed V2 encoding whose largest value is `max`.
    ///
    /// # Errors
    /// As [`Writer::line`].
    pub fn encoded_line(
        &mut self,
        tag: Option<&str>,
        start_s: f64,
        length_s: f64,
        max: u64,
        encoded: &[u8],
    ) -> io::Result<()> {
        if let Some(tag) = tag {
            if tag.is_empty() || tag.contains([',', ' ', '\r', '\n']) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("tag {tag:?} breaks the line"),
                ));
            }
            write!(self.out, "Tag={tag},")?;
        }
        let max = max as f64 / MAX_VALUE_DIVISOR;
        writeln!(self.out, "{start_s:.3},{length_s:.3},{max:.3},{}", STANDARD.encode(encoded))
    }

    /// Flushes the output.
    ///
    /// # Errors
    /// What it answers.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Hands the output back.
    ///
    /// # Errors
    /// What flushing it answers.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A comment in pieces that are short enough.
fn comment_lines(mut comment: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (line, rest) = comment.split_at(comment.floor_char_boundary(COMMENT_BYTES_MAX));
        comment = rest;
        (!line.is_empty()).then_some(line)
    })
}

/// One line of an interval log.
#[derive(Clone, Debug)]
pub struct Line {
    /// The tag, if it has one.
    pub tag: Option<String>,
    /// Seconds since the start.
    pub start_s: f64,
    /// Seconds.
    pub length_s: f64,
    /// What was recorded in it.
    pub histogram: Histogram<u64>,
}

/// Reads an interval log. Blank lines, comments, the legend, CRLF and a last line without its end (a log cut short by a
/// crash) are tolerated.
///
/// # Errors
/// The number of the first line that cannot be read and why.
pub fn read(text: &str) -> Result<Vec<Line>, String> {
    let mut deserializer = Deserializer::new();
    let mut lines = Vec::new();
    let count = text.lines().count();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with('"') {
            continue;
        }
        match read_line(&mut deserializer, line) {
            Ok(line) => lines.push(line),
            Err(_) if index + 1 == count && !text.ends_with('\n') => {}
            Err(error) => return Err(format!("line {}: {error}", index + 1)),
        }
    }
    Ok(lines)
}

fn read_line(deserializer: &mut Deserializer, line: &str) -> Result<Line, String> {
    let (tag, line) = match line.strip_prefix("Tag=") {
        Some(rest) => {
            let (tag, rest) = rest.split_once(',').ok_or("no comma after the tag")?;
            (Some(tag.to_owned()), rest)
        }
        None => (None, line),
    };
    let mut fields = line.splitn(4, ',');
    let mut number = |name: &str| -> Result<f64, String> {
        fields.next().and_then(|field| field.trim().parse().ok()).ok_or(format!("no {name}"))
    };
    let (start_s, length_s, _max) = (number("start")?, number("length")?, number("maximum")?);
    let encoded = fields.next().ok_or("no histogram")?;
    let bytes = STANDARD.decode(encoded.trim()).map_err(|error| format!("histogram: {error}"))?;
    let histogram = deserializer
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| format!("histogram (only the compressed V2 encoding is read): {error}"))?;
    Ok(Line { tag, start_s, length_s, histogram })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram() -> Histogram<u64> {
        Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
    }

    fn log() -> (String, Histogram<u64>) {
        let mut writer =
            Writer::new(Vec::new(), "test: {\"seed\":1}", 1_700_000_000_123_456_789, "then").unwrap();
        let mut total = histogram();
        for interval in 0..3_u64 {
            let mut part = histogram();
            for value in 1..1_000 {
                part.record(value * 997 * (interval + 1)).unwrap();
            }
            writer.line(None, interval as f64, 1.0, &part).unwrap();
            total.add(&part).unwrap();
        }
        writer.line(Some("lateness"), 0.0, 3.0, &histogram()).unwrap();
        (String::from_utf8(writer.finish().unwrap()).unwrap(), total)
    }

    #[test]
    fn a_log_is_read_back_with_equal_counts_and_quantiles() {
        let (text, total) = log();
        let lines = read(&text).unwrap();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[3].tag.as_deref(), Some("lateness"));
        let mut sum = histogram();
        for line in lines.iter().filter(|line| line.tag.is_none()) {
            sum.add(&line.histogram).unwrap();
        }
        assert_eq!(sum, total);
        assert_eq!((lines[2].start_s, lines[2].length_s), (2.0, 1.0));
    }

    #[test]
    fn the_header_is_what_the_java_reader_wants() {
        let (text, _) = log();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "#[Histogram log format version 1.3]");
        assert_eq!(lines[2], "#[StartTime: 1700000000.123 (seconds since epoch), then]");
        assert_eq!(lines[3], "#[BaseTime: 1700000000.123 (seconds since epoch)]");
        assert!(lines[4].starts_with("\"StartTimestamp\",\"Interval_Length\""));
        // The compressed V2 cookie 0x1c849314 begins every histogram.
        assert!(lines[5].starts_with("0.000,1.000,0.996,HISTFA"), "{}", &lines[5][..40]);
    }

    #[test]
    fn foreign_line_ends_blank_lines_and_a_cut_last_line_are_tolerated() {
        let (text, _) = log();
        assert_eq!(read(&text.replace('\n', "\r\n\r\n")).unwrap().len(), 4);
        assert_eq!(read(&text[..text.len() - 30]).unwrap().len(), 3);
        let broken = text.replace("0.000,1.000", "0.000;1.000");
        assert!(read(&broken).unwrap_err().starts_with("line 6"), "{:?}", read(&broken));
    }

    #[test]
    fn long_comments_are_put_into_lines_that_the_reader_in_c_takes() {
        let comment = "µ".repeat(400);
        let writer = Writer::new(Vec::new(), &comment, 0, "").unwrap();
        let text = String::from_utf8(writer.finish().unwrap()).unwrap();
        assert!(text.lines().all(|line| line.len() < 127), "{text}");
        assert_eq!(text.matches('µ').count(), 400);
    }

    #[test]
    fn a_tag_that_would_break_the_line_is_refused() {
        let mut writer = Writer::new(Vec::new(), "", 0, "").unwrap();
        assert!(writer.line(Some("a,b"), 0.0, 1.0, &histogram()).is_err());
    }
}
