//! A log in another format: `.hlog`, `.hgrm`, CSV by line, or JSON with the counts.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;
use dataplane::hlog;
use serde_json::json;

use super::csv;
use super::encoding;
use super::hgrm;
use super::log::{Line, Log};
use crate::run::Distribution;

/// A format that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Interval log of HdrHistogram, values in nanoseconds
    Hlog,
    /// Percentile distribution of HdrHistogram over the whole log, values in microseconds
    Hgrm,
    /// A row of figures for each line of the log
    Csv,
    /// Figures and counts of each tag over the whole log
    Json,
}

impl Format {
    /// The format that a file's name asks for.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        Self::from_str(path.extension()?.to_str()?, true).ok()
    }
}

/// Writes a log into a file, whole or not at all.
///
/// # Errors
/// What the file system answers, with the path; when the format cannot hold the log.
pub fn write(log: &Log, format: Format, path: &Path) -> anyhow::Result<()> {
    whole_file(path, |out| write_to(log, format, out))
}

/// Makes a file that is whole or not there at all: what was there before stays until then.
///
/// # Errors
/// What the file system or `fill` answers, with the path.
pub fn whole_file(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let into = |path: &Path| -> anyhow::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        fill(&mut out)?;
        Ok(out.flush()?)
    };
    if path.exists() && !path.is_file() {
        // A pipe or a terminal: nothing was there before that could be lost.
        return into(path).with_context(failed);
    }
    let mut name = path.file_name().with_context(failed)?.to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    into(&part)
        .and_then(|()| Ok(std::fs::rename(&part, path)?))
        .inspect_err(|_| drop(std::fs::remove_file(&part)))
        .with_context(failed)
}

/// Writes a log to `out`.
///
/// # Errors
/// What `out` answers; when the format cannot hold the log.
pub fn write_to(log: &Log, format: Format, out: &mut impl Write) -> anyhow::Result<()> {
    match format {
        Format::Hlog => write_hlog(log, out)?,
        Format::Csv => write_csv(log, out)?,
        Format::Json => writeln!(out, "{}", json(log)?)?,
        Format::Hgrm => {
            let tags = log.tags();
            let [tag] = tags.as_slice() else {
                anyhow::bail!(
                    "a .hgrm holds one distribution; choose one with --tag: {}",
                    names(&tags).join(", ")
                )
            };
            hgrm::write(out, &whole(log, *tag)?.histogram(), 1_000.0)?;
            if let Some(fate) = &log.fate {
                fate.alone(*tag).write(out)?;
            }
        }
    }
    Ok(())
}

/// The names of tags, for people.
#[must_use]
pub fn names(tags: &[Option<&str>]) -> Vec<String> {
    tags.iter().map(|tag| tag.unwrap_or("untagged").to_owned()).collect()
}

/// All that was recorded under a tag which the log has.
///
/// # Errors
/// When no histogram can hold it all.
pub fn whole(log: &Log, tag: Option<&str>) -> anyhow::Result<super::counts::Counts> {
    log.whole(tag).map_err(anyhow::Error::msg)?.context("the log has no such tag")
}

fn write_hlog(log: &Log, out: &mut impl Write) -> anyhow::Result<()> {
    let start_ns = (log.start_unix_s.unwrap_or(0.0) * 1e9).round().max(0.0);
    let date =
        jiff::Timestamp::from_nanosecond(start_ns as i128).map(|date| date.to_string()).unwrap_or_default();
    if let Some(fate) = &log.fate {
        fate.write(out)?;
    }
    let mut writer = hlog::Writer::new(out, "towpath-lab convert, values in ns", start_ns as u64, &date)?;
    for Line { tag, start_s, length_s, counts } in &log.lines {
        let max = counts.ends().map_or(0, |ends| ends.1);
        writer.encoded_line(tag.as_deref(), *start_s, *length_s, max, &encoding::encode(counts)?)?;
    }
    writer.finish()?;
    Ok(())
}

const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.999_9)];

fn write_csv(log: &Log, out: &mut impl Write) -> io::Result<()> {
    let figures = QUANTILES.iter().map(|(name, _)| format!("{name}_ns"));
    let head = ["tag", "start_s", "length_s", "count", "min_ns"].map(str::to_owned).into_iter();
    csv::row(out, head.chain(figures).chain(["max_ns", "mean_ns"].map(str::to_owned)))?;
    for Line { tag, start_s, length_s, counts } in &log.lines {
        // From the counts, not from a histogram: that has millions of counters in some logs, for each line.
        let ends = counts.ends();
        let figure = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        let head = [
            tag.clone().unwrap_or_default(),
            format!("{start_s:.3}"),
            format!("{length_s:.3}"),
            counts.total().to_string(),
            figure(ends.map(|ends| ends.0)),
        ];
        let highest = |value: u64| counts.layout().highest_equivalent(value);
        let quantiles = QUANTILES.iter().map(|&(_, share)| figure(counts.quantile(share).map(highest)));
        let mean = if counts.is_empty() { String::new() } else { format!("{:.1}", counts.mean()) };
        csv::row(out, head.into_iter().chain(quantiles).chain([figure(ends.map(|ends| ends.1)), mean]))?;
    }
    Ok(())
}

/// The figures and counts of each tag, and what became of the run: null where the log does not say it.
///
/// # Errors
/// When no histogram can hold all of a tag.
pub fn json(log: &Log) -> anyhow::Result<serde_json::Value> {
    let tags = log.tags().into_iter().map(|tag| {
        let counts = whole(log, tag)?;
        let figures = Distribution::new(&counts.histogram(), log.lost(tag).unwrap_or(0));
        let counts: Vec<(u64, u64)> = counts.iter().collect();
        Ok(json!({ "tag": tag, "lines": log.tagged(tag).count(), "figures": figures, "counts": counts }))
    });
    let tags = tags.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(
        json!({ "start_unix_s": log.start_unix_s, "unit": "ns", "notes": log.notes, "run": log.fate, "tags": tags }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_as_it_was_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page.html");
        let write = |text: &'static str, then: anyhow::Result<()>| {
            whole_file(&path, |out| {
                out.write_all(text.as_bytes())?;
                out.flush()?;
                assert_ne!(std::fs::read_to_string(&path).unwrap_or_default(), text, "it is not there yet");
                then
            })
        };
        write("old", Ok(())).unwrap();
        let error = write("half of it", Err(anyhow::anyhow!("the disk is full"))).unwrap_err();
        assert!(format!("{error:#}").contains("page.html: the disk is full"), "{error:#}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        write("new", Ok(())).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "nothing else is left");
    }
}
