//! HdrHistogram's libraries in Java, Python, JavaScript and C read our logs, and count what we count.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use dataplane::hlog;
use hdrhistogram::Histogram;
use tools::format::{bundle, hgrm_reader};
use tools::run::distribution::histogram;

use super::left_out::left_out;
use super::{Reflector, output, short_run};

/// Where Debian puts the Java library.
const JAR: &str = "/usr/share/java/hdrhistogram.jar";

/// The logs of a run: `latency.hlog` without tags, `detail.hlog` with the same and two tags.
struct Logs {
    directory: tempfile::TempDir,
    latency: PathBuf,
    detail: PathBuf,
}

/// So many values from 1 µs to about 50 ms, as if at random.
fn values(seed: u64, count: usize) -> impl Iterator<Item = u64> {
    let next = |state: &u64| {
        Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    };
    // Each power of two is as likely as the others.
    std::iter::successors(Some(seed), next)
        .skip(1)
        .take(count)
        .map(|word| 1_000 + (word >> 20) % (1 << (10 + (word >> 60))))
}

fn recorded(seed: u64, count: usize) -> Histogram<u64> {
    let mut histogram = histogram();
    values(seed, count).for_each(|value| histogram.record(value).unwrap());
    histogram
}

impl Logs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (latency, detail) = (directory.path().join("latency.hlog"), directory.path().join("detail.hlog"));
        for (path, tags) in [(&latency, &[][..]), (&detail, &["service", "lateness"][..])] {
            let file = fs::File::create(path).unwrap();
            let mut log = hlog::Writer::new(
                file,
                &"as long as a spec is ".repeat(20),
                1_700_000_000_123_456_789,
                "then",
            )
            .unwrap();
            for interval in 0..5 {
                let part = recorded(interval + 1, 2_000 * (interval as usize + 1));
                log.line(None, interval as f64, 1.0, &part).unwrap();
            }
            for (seed, tag) in (100..).zip(tags) {
                log.line(Some(tag), 0.0, 5.0, &recorded(seed, 3_000)).unwrap();
            }
            log.finish().unwrap();
        }
        Self { directory, latency, detail }
    }

    /// What the program itself reads under a tag: the smallest value of each counter in nanoseconds, and its count.
    fn ours(log: &Path, tag: &str) -> Vec<(u64, u64)> {
        let (code, text, stderr) = output(&["show", log.to_str().unwrap(), "--tag", tag, "--json"]);
        assert_eq!((code, stderr.as_str()), (0, ""));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        serde_json::from_value(json["tags"][0]["counts"].clone()).unwrap()
    }
}

/// A run that the program has made and written, for all readers.
fn run() -> &'static Path {
    static RUN: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = RUN.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let reflector = Reflector::start_with("127.0.0.1:0", &["--loss", "5%"]);
        short_run(&reflector.address, directory.path(), &["--flows", "3"]);
        directory
    });
    made.path()
}

/// The logs of a run have as many values for others as its `run.json` says, and the same.
fn check_run(reader: &str, print: &impl Fn(&Path, &str) -> String) {
    let (latency, detail) = (run().join("latency.hlog"), run().join("detail.hlog"));
    let result = bundle::read(run()).unwrap();
    let figures = &result.latency;
    let (received, sent) = (result.ledger.received, result.ledger.sent);
    assert!(received > 0 && received < sent, "{:?}", result.ledger);
    for (log, tag, count) in [
        (&latency, "untagged", received),
        (&detail, "untagged", received),
        (&detail, "service", figures.service.count),
        (&detail, "lateness", figures.lateness.count),
    ] {
        let ours = Logs::ours(log, tag);
        assert_eq!(ours.iter().map(|(_, count)| count).sum::<u64>(), count, "{tag}");
        assert_same(reader, &print(log, tag), &ours);
    }
    assert_eq!((figures.service.count, figures.lateness.count), (received, sent));
    let hgrm = fs::read_to_string(run().join("latency.hgrm")).unwrap();
    assert_same(reader, &hgrm, &Logs::ours(&latency, "untagged"));
}

/// What a reader prints.
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "the test runs other people's programs")]
fn program(name: &str) -> Command {
    Command::new(name)
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers").join(name)
}

/// Every row of another's distribution says how many values are not above one: so many are not above it in ours. The rows
/// themselves may be others, and so may the end of a counter's values that is printed.
fn assert_same(reader: &str, theirs: &str, ours: &[(u64, u64)]) {
    let counts = hgrm_reader::read(theirs).unwrap_or_else(|error| panic!("{reader}: {error}: {theirs}"));
    let mut sum = 0;
    for (rows, (value, count)) in counts.iter().enumerate() {
        sum += count;
        let below: u64 = ours.iter().take_while(|(lowest, _)| *lowest <= value).map(|(_, count)| count).sum();
        assert_eq!(sum, below, "{reader}: row {rows} of {value} ns: {theirs}");
    }
    assert!(counts.len() > 20, "{reader}: {theirs}");
    assert_eq!(sum, ours.iter().map(|(_, count)| count).sum::<u64>(), "{reader}: {theirs}");
}

fn check(reader: &str, tags: &[&str], print: impl Fn(&Path, &str) -> String) {
    let logs = Logs::new();
    let ours = Logs::ours(&logs.latency, "untagged");
    assert_eq!(ours.iter().map(|(_, count)| count).sum::<u64>(), 30_000);
    let theirs = print(&logs.latency, "untagged");
    assert_same(reader, &theirs, &ours);
    for tag in tags {
        assert_same(reader, &print(&logs.detail, tag), &Logs::ours(&logs.detail, tag));
    }
    check_run(reader, &print);
    // Our own distribution, too, is read as theirs is.
    let hgrm = logs.directory.path().join("latency.hgrm");
    let (code, _, stderr) = output(&["convert", logs.latency.to_str().unwrap(), hgrm.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let hgrm = fs::read_to_string(hgrm).unwrap();
    assert_same(reader, &hgrm, &ours);
    if reader == "Java" {
        // The library whose layout it is: heading and end are the same to the letter.
        let ends = |text: &str| -> Vec<String> {
            let is_end =
                |line: &&str| line.contains("TotalCount") || line.starts_with("#[") && !line.contains("Time");
            text.lines().filter(is_end).map(|line| line.trim_end().to_owned()).collect()
        };
        assert_eq!(ends(&hgrm).len(), 4, "{hgrm}");
        assert_eq!(ends(&hgrm), ends(&theirs));
    }
}

#[test]
fn java_counts_what_we_count() {
    if !Path::new(JAR).exists() || !succeeds(program("java").arg("-version")) {
        return left_out(
            "HdrHistogram's Java library: apt-get install libhdrhistogram-java default-jre-headless",
        );
    }
    check("Java", &["untagged", "service", "lateness"], |log, tag| {
        let mut java = program("java");
        java.args([
            "-cp",
            JAR,
            "org.HdrHistogram.HistogramLogProcessor",
            "-outputValueUnitRatio",
            "1000",
            "-i",
        ])
        .arg(log);
        if tag != "untagged" {
            java.args(["-tag", tag]);
        }
        printed(&mut java)
    });
}

#[test]
fn python_counts_what_we_count() {
    if !succeeds(program("python3").args(["-c", "import hdrh"])) {
        return left_out(
            "HdrHistogram's Python library: python3 -m venv v && v/bin/pip install hdrhistogram, with v/bin first in PATH",
        );
    }
    check("Python", &["untagged", "service", "lateness"], |log, tag| {
        printed(program("python3").arg(script("reader.py")).arg(log).arg(tag))
    });
}

#[test]
fn javascript_counts_what_we_count() {
    if !succeeds(program("node").args(["-e", "require('hdr-histogram-js')"])) {
        return left_out(
            "HdrHistogram's JavaScript library: npm install --prefix n hdr-histogram-js, with NODE_PATH=n/node_modules",
        );
    }
    check("JavaScript", &["untagged", "service", "lateness"], |log, tag| {
        printed(program("node").arg(script("reader.js")).arg(log).arg(tag))
    });
}

/// The sources of HdrHistogram_c, which npm's binding of it brings along.
fn c_sources() -> Option<PathBuf> {
    let folders = std::env::var_os("NODE_PATH").unwrap_or_default();
    let sources = |folder: PathBuf| folder.join("native-hdr-histogram/HdrHistogram_c/src");
    std::env::split_paths(&folders).map(sources).find(|path| path.join("hdr_histogram.h").exists())
}

#[test]
fn c_counts_what_we_count() {
    let directory = tempfile::tempdir().unwrap();
    let reader = directory.path().join("reader");
    let compiled = c_sources().is_some_and(|sources| {
        let mut compiler = program("cc");
        compiler.arg("-I").arg(&sources).arg("-o").arg(&reader).arg(script("reader.c"));
        let files = ["hdr_encoding", "hdr_histogram", "hdr_histogram_log", "hdr_time"];
        compiler.args(files.map(|name| sources.join(name).with_extension("c"))).args(["-lz", "-lm"]);
        succeeds(&mut compiler)
    });
    if !compiled {
        return left_out(
            "HdrHistogram's C library: apt-get install gcc zlib1g-dev, and \
             npm install --ignore-scripts --prefix n native-hdr-histogram, with NODE_PATH=n/node_modules",
        );
    }
    check("C", &["untagged", "service", "lateness"], |log, tag| {
        printed(program(reader.to_str().unwrap()).arg(log).arg(tag))
    });
}
