//! The directory of one run: `run.json`, `latency.hlog`, `detail.hlog`, `latency.hgrm`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use dataplane::hlog;

use super::hgrm;
use crate::run::{Histograms, RunResult, SCHEMA};

/// Name of the JSON file in the directory.
pub const RUN_JSON: &str = "run.json";

/// Writes the result into `dir`, which is made when it does not exist; files of an earlier run are replaced.
///
/// # Errors
/// What the file system answers, with the path.
pub fn write(result: &RunResult, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    // First, so that a run.json never stands beside the histograms of another run.
    match fs::remove_file(dir.join(RUN_JSON)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", dir.join(RUN_JSON).display()));
        }
        _ => {}
    }
    if let Some(histograms) = &result.histograms {
        create(dir, "latency.hlog", |out| write_hlog(out, result, histograms, false))?;
        create(dir, "detail.hlog", |out| write_hlog(out, result, histograms, true))?;
        create(dir, "latency.hgrm", |out| hgrm::write(out, &histograms.response, 1_000.0))?;
    }
    // Last, so that a directory with a run.json is complete.
    create(dir, RUN_JSON, |out| {
        serde_json::to_writer_pretty(&mut *out, result)?;
        writeln!(out)
    })
}

fn create(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> anyhow::Result<()> {
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        let mut out = BufWriter::new(File::create(&path)?);
        fill(&mut out)?;
        out.flush()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The response by interval without a tag; with `detail`, also the other histograms of the whole run under tags.
fn write_hlog<W: Write>(
    out: &mut W,
    result: &RunResult,
    histograms: &Histograms,
    detail: bool,
) -> io::Result<()> {
    let spec = serde_json::to_string(&result.spec)?;
    let comment =
        format!("towpath-lab {}, values in ns, response latency, spec: {spec}", result.tool_version);
    let mut log = hlog::Writer::new(out, &comment, result.started_unix_ns, &result.started)?;
    for interval in &histograms.intervals {
        log.line(None, interval.start_s, interval.length_s, &interval.histogram)?;
    }
    if detail {
        let whole = [
            ("service", Some(&histograms.service)),
            ("lateness", Some(&histograms.lateness)),
            ("kernel", histograms.kernel.as_ref()),
            ("up", histograms.up.as_ref()),
            ("down", histograms.down.as_ref()),
        ];
        for (tag, histogram) in whole {
            let Some(histogram) = histogram else { continue };
            log.line(Some(tag), 0.0, result.measured_s, histogram)?;
        }
    }
    log.finish().map(drop)
}

/// Reads the result of a run from its directory or its JSON file. The histograms stay on disk.
///
/// # Errors
/// When the file is missing, is not a result, or was written by a later version; the message names the file.
pub fn read(path: &Path) -> anyhow::Result<RunResult> {
    let path: PathBuf = if path.is_dir() { path.join(RUN_JSON) } else { path.to_owned() };
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}; give a directory or run.json written by `towpath-lab run … --out DIR`",
            path.display()
        )
    })?;
    let schema = serde_json::from_str::<serde_json::Value>(&text)
        .with_context(|| format!("{} is not JSON", path.display()))?
        .get("schema")
        .and_then(serde_json::Value::as_u64);
    match schema {
        Some(version) if version == u64::from(SCHEMA) => {}
        Some(version) => anyhow::bail!(
            "{} has schema {version}, this program reads {SCHEMA}; use the version that wrote it",
            path.display()
        ),
        None => anyhow::bail!("{} is not the result of a run (no \"schema\")", path.display()),
    }
    serde_json::from_str(&text).with_context(|| format!("{} is not the result of a run", path.display()))
}
