//! `show`, `convert`, `merge`, `diff` and `report` on files, those of other tools among them.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tools::format::counts::{Counts, Layout};
use tools::format::{bundle, encoding};

use super::left_out::left_out;
use super::{Reflector, output, short_run};

/// A log of two intervals, without a header, whose last line is torn.
fn foreign_log(directory: &Path) -> String {
    let mut writer = dataplane::hlog::Writer::new(Vec::new(), "", 1_700_000_000_000_000_000, "then").unwrap();
    for start in [0.0, 1.0] {
        let mut part = tools::run::distribution::histogram();
        (1..=1_000).for_each(|value| part.record(value * 1_000).unwrap());
        writer.line(None, start, 1.0, &part).unwrap();
    }
    let text = String::from_utf8(writer.finish().unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("HIST")).collect();
    let torn = &lines[0][..80];
    let path = directory.join("other.hlog");
    fs::write(&path, format!("{}\r\n\r\n{}\r\n{torn}", lines[0], lines[1])).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn logs_of_others_are_shown_converted_merged_and_compared() {
    let directory = tempfile::tempdir().unwrap();
    let log = foreign_log(directory.path());
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (code, text, stderr) = output(&["show", &log]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for part in ["2 lines", "2000", "500 µs", "has no end and is left out", "p99 over time"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for to in ["a.hgrm", "a.csv", "a.json", "a.hlog"] {
        let (code, _, stderr) = output(&["convert", &log, &path(to)]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("has no end and is left out"), "{stderr}");
    }
    let mut reader = csv::Reader::from_path(path("a.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.unwrap()).collect();
    assert_eq!((rows.len(), &rows[1][1], &rows[1][3]), (2, "1.000", "1000"));
    assert_eq!(&reader.headers().unwrap()[5], "p50_ns");
    let (code, text, stderr) = output(&["convert", &log, "/dev/stdout", "--to", "csv"]);
    assert_eq!((code, text), (0, fs::read_to_string(path("a.csv")).unwrap()), "{stderr}");
    // There and back again with equal counts.
    for from in ["a.hgrm", "a.hlog"] {
        let (code, text, _) = output(&["show", &path(from), "--json"]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &json["tags"][0]["figures"]["count"]), (0, &2_000.into()), "{from}");
    }
    let (code, _, stderr) =
        output(&["merge", &log, &path("a.hlog"), "--align", "start", "--out", &path("sum.hlog")]);
    assert_eq!(code, 0, "{stderr}");
    let (code, text, stderr) = output(&["diff", &path("sum.hlog"), &log, "--out", &path("rest.hlog")]);
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("0.50×") && text.contains("1.00×"), "{text}");
    let (_, text, _) = output(&["diff", &path("rest.hlog"), &log, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["tags"][0]["a"], json["tags"][0]["b"], "{text}");
    // The first half alone.
    let (_, text, _) = output(&["show", &log, "--until", "1s"]);
    assert!(text.contains(": 1 line\n") && text.contains("1000"), "{text}");
}

#[test]
fn a_run_that_loses_looks_no_faster_for_whoever_has_only_its_logs() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let reflector = Reflector::start_with("127.0.0.1:0", &["--loss", "30%"]);
    short_run(&reflector.address, Path::new(&path("run")), &[]);
    let run = bundle::read(Path::new(&path("run"))).unwrap();
    let (lost, count) = (run.latency.response.lost, run.latency.response.count);
    assert!(lost > 0 && count > 0);
    let verdict = run.verdict.validity.name();
    // What the files say of themselves, away from the run's directory.
    for name in ["latency.hlog", "detail.hlog", "latency.hgrm"] {
        fs::copy(path("run/").to_owned() + name, path(name)).unwrap();
    }
    for (from, to) in [("run", "all.hlog"), ("latency.hlog", "one.hgrm"), ("latency.hgrm", "two.hlog")] {
        let (code, _, stderr) = output(&["convert", &path(from), &path(to)]);
        assert_eq!(code, 0, "{stderr}");
    }
    let logs = [
        "run",
        "run/latency.hlog",
        "latency.hlog",
        "detail.hlog",
        "latency.hgrm",
        "all.hlog",
        "one.hgrm",
        "two.hlog",
    ];
    for name in logs {
        let (_, text, _) = output(&["show", &path(name)]);
        assert!(text.contains(&format!("the run: {verdict}, ")), "{name}: {text}");
        let row = text.lines().find(|line| line.starts_with("│ untagged")).unwrap();
        let cells: Vec<&str> = row.split(['│', '┆']).map(str::trim).collect();
        assert_eq!(
            (cells[2], cells[3]),
            (count.to_string().as_str(), lost.to_string().as_str()),
            "{name}: {text}"
        );
        assert_eq!(cells[7], "lost", "p99 of {name}: {text}");
        let (_, text, _) = output(&["show", &path(name), "--json"]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["run"]["ledger"], serde_json::to_value(run.ledger).unwrap(), "{name}");
        for tag in json["tags"].as_array().unwrap() {
            let lost = match tag["tag"].as_str() {
                None => lost,
                Some("service") => run.latency.service.lost,
                Some(other) => {
                    assert_eq!(other, "lateness");
                    0
                }
            };
            assert_eq!(tag["figures"]["lost"], lost, "{name}: {tag}");
        }
    }
    // One that was written before logs said it, beside its run.json.
    let old = fs::read_to_string(path("run/latency.hlog")).unwrap();
    let old: Vec<&str> =
        old.lines().filter(|line| !line.starts_with("#[Verdict") && !line.starts_with("#[Lost")).collect();
    fs::write(path("run/latency.hlog"), old.join("\n") + "\n").unwrap();
    fs::write(path("old.hlog"), old.join("\n") + "\n").unwrap();
    let (_, text, _) = output(&["diff", &path("run/latency.hlog"), &path("old.hlog")]);
    assert!(text.contains(&format!("run/latency.hlog: the run: {verdict}, ")), "{text}");
    assert!(text.contains("old.hlog: what was lost is not said"), "{text}");
    // The report takes a log for what it says as well.
    let (_, text, _) = output(&["report", &path("latency.hlog"), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["runs"][0]["response"]["lost"], lost, "{text}");
}

#[test]
fn wrong_files_are_refused_with_the_fix_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let log = foreign_log(directory.path());
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("bad.hlog"), "0.0,1.0,2.0,HISTnothing\n").unwrap();
    fs::write(path("bad.json"), "{\"a\": 1}").unwrap();
    fs::write(path("empty.hlog"), "#[StartTime: 1.0]\n").unwrap();
    fs::write(path("text.txt"), "hello\n").unwrap();
    for (arguments, code, hint) in [
        (vec!["show", "/nonexistent"], 1, "/nonexistent"),
        (vec!["show", &path("bad.hlog")], 1, "line 1: the histogram"),
        (vec!["show", &path("bad.json")], 1, "neither irtt's"),
        (vec!["show", &path("empty.hlog")], 1, "holds no histogram"),
        (vec!["show", &path("text.txt")], 1, "headings"),
        (vec!["show", &log, "--tag", "up"], 2, "its tags are: untagged"),
        (vec!["convert", &log, &path("to.xyz")], 2, "--to"),
        (vec!["merge", &log, &log, "--out", &path("to.hlog")], 2, "--align start"),
        (vec!["diff", &log, &path("sum.hlog"), "--out", &path("to.hlog")], 2, "is no part"),
        (vec!["report", "/nonexistent"], 1, "/nonexistent"),
    ] {
        if arguments.contains(&path("sum.hlog").as_str()) {
            output(&["merge", &log, &log, "--align", "start", "--out", &path("sum.hlog")]);
        }
        let (found, _, stderr) = output(&arguments);
        assert_eq!(found, code, "{arguments:?}: {stderr}");
        assert!(
            stderr.contains(hint) || hint == "is no part" && stderr.contains("--out is for"),
            "{arguments:?}: {stderr}"
        );
    }
    assert!(!directory.path().join("to.hlog").exists() && !directory.path().join("to.hlog.part").exists());
}

/// The program with 400 MB of memory and a minute, which is twenty times what it needs for what follows.
#[expect(clippy::disallowed_methods, reason = "the test limits a program by the shell")]
fn within_bounds(arguments: &[&str]) -> (i32, String, String) {
    let script = "ulimit -v 400000; exec timeout 60 \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_towpath-lab")])
        .args(arguments)
        .output()
        .unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code().unwrap_or(-1), stdout, stderr)
}

#[test]
fn hostile_files_take_neither_memory_nor_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // Lists that nobody asked for.
    let many = format!("[{}0]", "[],".repeat(12_000_000));
    fs::write(path("irtt.json"), format!("{{\"x\": {many}, \"round_trips\": []}}")).unwrap();
    let (code, _, stderr) = within_bounds(&["show", &path("irtt.json")]);
    assert_eq!(code, 0, "{stderr}");
    fs::write(path("run.json"), format!("{{\"schema\": 1, \"curve\": {many}}}")).unwrap();
    for command in ["compare", "report", "replay"] {
        let (code, _, stderr) = within_bounds(&[command, &path("run.json")]);
        assert!(
            code == 1 && (stderr.contains("longer than 32 MiB") || stderr.contains("more than any run")),
            "{stderr}"
        );
    }
    let run = path("run.json");
    let (code, _, stderr) = within_bounds(&["gate", &run, "--with", &run, "--fail", "p99>+5%"]);
    assert!(code == 1 && stderr.contains("run.json"), "{stderr}");
    // Five thousand lines of a hundred bytes, whose histograms have three million counters each.
    let mut counts = Counts::new(Layout::new(1, 3_600_000_000_000, 5).unwrap());
    counts.push(3_500_000_000_000, 1).unwrap();
    let line = STANDARD.encode(encoding::encode(&counts).unwrap());
    let lines: String = (0..5_000).map(|second| format!("{second}.0,1.0,1.0,{line}\n")).collect();
    fs::write(path("wide.hlog"), lines).unwrap();
    let (code, text, stderr) = within_bounds(&["show", &path("wide.hlog")]);
    assert!(code == 0 && text.contains("5000"), "{code} {stderr}");
    for name in ["to.csv", "to.hlog"] {
        let (code, _, stderr) = within_bounds(&["convert", &path("wide.hlog"), &path(name)]);
        assert_eq!(code, 0, "{stderr}");
    }
    let (code, _, stderr) =
        within_bounds(&["merge", &path("to.hlog"), &path("to.hlog"), "--out", &path("sum.hgrm")]);
    assert_eq!(code, 0, "{stderr}");
    assert!(fs::read_to_string(path("sum.hgrm")).unwrap().contains("= "));
    let (code, _, stderr) = within_bounds(&["show", "/dev/zero"]);
    assert!(code == 1 && stderr.contains("/dev/zero"), "{stderr}");
}

#[test]
fn a_report_is_markdown_csv_junit_and_json_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let reflector = Reflector::start("127.0.0.1:0");
    let run = directory.path().join("run");
    short_run(&reflector.address, &run, &["--label", "a|b, \"c\" <&>"]);
    let other = foreign_log(directory.path());
    let run = run.to_str().unwrap();
    let (code, text, stderr) = output(&["report", run, &other]);
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("At 2.00 kpps") && text.contains("a log does not say what was lost"), "{text}");
    // Two sides without a load in common: no heading stands over nothing.
    for only in ["Only a|b, \"c\" <&> has runs at this load", "Only other has runs at this load"] {
        assert!(text.contains(only), "{only}: {text}");
    }
    let (_, alone, _) = output(&["report", run]);
    assert!(!alone.contains("At 2.00 kpps") && alone.contains("Runs"), "{alone}");
    let (_, alone, _) = output(&["report", run, "--md"]);
    assert!(!alone.contains("At 2.00 kpps") && alone.contains("## Runs"), "{alone}");
    let (_, markdown, _) = output(&["report", run, &other, "--md"]);
    assert!(
        markdown.starts_with("# towpath-lab report") && markdown.contains("| a\\|b, \"c\" &lt;&amp;> |"),
        "{markdown}"
    );
    let (_, text, _) = output(&["report", run, &other, "--csv"]);
    let rows: Vec<csv::StringRecord> =
        csv::Reader::from_reader(text.as_bytes()).records().map(|row| row.unwrap()).collect();
    assert_eq!((rows.len(), &rows[1][0]), (2, "a|b, \"c\" <&>"), "{text}");
    let (_, text, _) = output(&["report", run, &other, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["runs"].as_array().unwrap().len(), 2);
    assert_eq!(json["runs"][1]["ledger"]["lost"], json["runs"][1]["response"]["lost"]);
    let (code, _, stderr) = output(&["report", run, "--md", "--csv"]);
    assert!(code == 2 && stderr.contains("--csv"), "{stderr}");
    let (_, text, _) = output(&["report", directory.path().to_str().unwrap(), "--by", "path", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let name = directory.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(json["sides"], serde_json::json!([name]), "the label does not count");
    junit_is_as_its_schema_has_it(directory.path(), run, &other);
}

fn junit_is_as_its_schema_has_it(directory: &Path, run: &str, other: &str) {
    // One that cannot be believed.
    let bad = directory.join("bad");
    fs::create_dir(&bad).unwrap();
    let text = fs::read_to_string(Path::new(run).join("run.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["verdict"]["validity"] = "INVALID".into();
    json["verdict"]["reasons"] = serde_json::json!(["lost <7> & \"more\""]);
    fs::write(bad.join("run.json"), json.to_string()).unwrap();
    let junit = directory.join("junit.xml");
    let (code, _, stderr) =
        output(&["report", run, other, bad.to_str().unwrap(), "--junit", junit.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("tests=\"3\"") && xml.contains("skipped=\"1\""), "{xml}");
    assert!(xml.contains("INVALID: lost &lt;7&gt; &amp; &quot;more&quot;"), "{xml}");
    is_valid_junit(&junit);
}

/// Holds a file against the schema of what we write.
#[expect(clippy::disallowed_methods, reason = "the test runs xmllint")]
pub fn is_valid_junit(path: &Path) {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/junit.xsd");
    let Ok(output) = Command::new("xmllint").args(["--noout", "--schema", schema]).arg(path).output() else {
        return left_out("JUnit against its schema: apt-get install libxml2-utils");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
