//! The directory of one run: `run.json`, `latency.hlog`, `detail.hlog`, `latency.hgrm`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use dataplane::hlog;
use serde::Deserialize;

use super::bounded;
use super::fate::Fate;
use super::hgrm;
use super::output::whole_file;
use crate::run::{Histograms, RunResult, SCHEMA, intervals};

/// Name of the JSON file in the directory.
pub const RUN_JSON: &str = "run.json";
/// Name of the interval log in it.
pub const LATENCY_HLOG: &str = "latency.hlog";
/// Name of the log in it that has the other histograms as well.
pub const DETAIL_HLOG: &str = "detail.hlog";
/// Name of the distribution in it.
pub const LATENCY_HGRM: &str = "latency.hgrm";

/// Most bytes of a `run.json`, and most commas in it: it has ten figures of each of up to 65,536 flows.
const RUN_BYTES_MAX: u64 = 32 << 20;
const RUN_VALUES_MAX: usize = 1 << 20;
/// Most runs that are looked at together.
pub const RUNS_MAX: usize = 1_000;

/// The part of a `run.json` that every version has.
#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    schema: Option<u64>,
}

/// Writes the result into `dir`, which is made when it does not exist; files of an earlier run are replaced. The interval log is
/// there already when it is that of the run's spec, else it gets one line.
///
/// # Errors
/// What the file system answers, with the path; why the interval log is not whole.
pub fn write(result: &RunResult, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let log = dir.join(LATENCY_HLOG);
    let is_there = result.spec.log.as_ref() == Some(&log);
    if let Some(error) = result.log_error.as_ref().filter(|_| is_there) {
        anyhow::bail!("cannot write {}: {error}", log.display());
    }
    if let Some(histograms) = &result.histograms {
        if !is_there {
            intervals::write_whole(&log, result, &histograms.response)?;
        }
        let fate = Fate::of(result);
        put_on_top(&log, &fate)?;
        let detail = dir.join(DETAIL_HLOG);
        let add_detail = || {
            fs::copy(&log, &detail)?;
            write_detail(&detail, result, histograms)
        };
        add_detail().with_context(|| format!("cannot write {}", detail.display()))?;
        create(dir, LATENCY_HGRM, |out| {
            hgrm::write(out, &histograms.response, 1_000.0)?;
            fate.alone(None).write(out)
        })?;
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
    write().with_context(|| {
        // Half of it would be taken for all of it, or for that of another program.
        let _ = fs::remove_file(&path);
        format!("cannot write {}", path.display())
    })
}

/// Writes what became of the run into the header of its log, where every reader looks for comments; it was not known when the log
/// was begun.
fn put_on_top(log: &Path, fate: &Fate) -> anyhow::Result<()> {
    whole_file(log, |out| {
        fate.write(out)?;
        io::copy(&mut File::open(log)?, out)?;
        Ok(())
    })
}

/// Adds the other histograms of the whole run to a log, under tags.
fn write_detail(path: &Path, result: &RunResult, histograms: &Histograms) -> io::Result<()> {
    let whole = [
        ("service", Some(&histograms.service)),
        ("lateness", Some(&histograms.lateness)),
        ("to-device", histograms.to_device.as_ref()),
        ("kernel", histograms.kernel.as_ref()),
        ("up", histograms.up.as_ref()),
        ("down", histograms.down.as_ref()),
    ];
    let mut log = hlog::Writer::append(BufWriter::new(File::options().append(true).open(path)?));
    for (tag, histogram) in whole {
        let Some(histogram) = histogram else { continue };
        log.line(Some(tag), 0.0, result.measured_s, histogram)?;
    }
    log.finish().map(drop)
}

/// Reads the result of a run from its directory or its JSON file. The histograms stay on disk.
///
/// # Errors
/// When the file is missing, is not a result, or was written by a later version; the message names the file.
pub fn read(path: &Path) -> anyhow::Result<RunResult> {
    let path: PathBuf = if path.is_dir() { path.join(RUN_JSON) } else { path.to_owned() };
    let text = bounded::read_to_string(&path, RUN_BYTES_MAX).with_context(|| {
        format!(
            "cannot read {}; give a directory or run.json written by `towpath-lab run … --out DIR`",
            path.display()
        )
    })?;
    // Every element of a list but the first needs one: so many values take no more than 100 MiB.
    let values = text.bytes().filter(|byte| *byte == b',').count();
    anyhow::ensure!(
        values <= RUN_VALUES_MAX,
        "{} has {values} values, more than any run: it is not the result of one",
        path.display()
    );
    let version: Version =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON of a run", path.display()))?;
    match version.schema {
        Some(version) if version == u64::from(SCHEMA) => {}
        Some(version) => anyhow::bail!(
            "{} has schema {version}, this program reads {SCHEMA}; use the version that wrote it",
            path.display()
        ),
        None => anyhow::bail!("{} is not the result of a run (no \"schema\")", path.display()),
    }
    serde_json::from_str(&text).with_context(|| format!("{} is not the result of a run", path.display()))
}

/// Refuses to look at more runs at once than anybody compares.
///
/// # Errors
/// When there are more than [`RUNS_MAX`].
pub fn check_number(runs: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        runs <= RUNS_MAX,
        "{runs} runs are more than the {RUNS_MAX} that are looked at together; name fewer"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_does_not_fit_leaves_no_run_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(RUN_JSON);
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let result = RunResult { histograms: None, ..crate::ab::tests::run_of_a_moment() };
        let error = format!("{:#}", write(&result, directory.path()).unwrap_err());
        assert!(error.contains("cannot write") && error.contains("No space left"), "{error}");
        assert!(fs::symlink_metadata(&path).is_err(), "it would be there and not whole");
    }

    #[test]
    fn what_no_run_has_written_is_refused_before_it_takes_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(RUN_JSON);
        let refused = |text: &str| {
            fs::write(&path, text).unwrap();
            format!("{:#}", read(directory.path()).unwrap_err())
        };
        let list = format!("{{\"schema\": 1, \"curve\": [0{}]}}", ",0".repeat(RUN_VALUES_MAX));
        let error = refused(&list);
        assert!(error.contains("1048577 values, more than any run"), "{error}");
        let error = refused(&" ".repeat(RUN_BYTES_MAX as usize + 1));
        assert!(error.contains("longer than 32 MiB") && error.contains("give a directory"), "{error}");
        let error = refused(&format!("{{\"schema\": 1, \"spec\": {}", "[".repeat(1 << 20)));
        assert!(error.contains("is not JSON of a run"), "{error}");
        for (text, said) in
            [("{}", "no \"schema\""), ("{\"schema\": 9}", "has schema 9"), ("[]", "no \"schema\"")]
        {
            let error = refused(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(check_number(RUNS_MAX).is_ok() && check_number(RUNS_MAX + 1).is_err());
    }
}
