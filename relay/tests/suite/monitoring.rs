//! What is delivered for Prometheus and Grafana: the rules are good and fire when they should, and neither rules nor
//! dashboard ask for a metric that a relay does not have.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::harness::http::get;
use crate::harness::{Client, RelayProcess, program};
use crate::left_out::left_out;
use serde_json::Value;

const PREFIX: &str = "towpath_relay_";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs promtool with these arguments and this input; `None` when there is none.
fn promtool(arguments: &[&str], input: &str) -> Option<Output> {
    let child = program("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        left_out("what promtool checks: apt-get install prometheus");
        return None;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn metrics() -> String {
    let relay = RelayProcess::on_loopback(&["--admin", "127.0.0.1:0"]);
    Client::new(relay.listen[0]).allocate();
    get(relay.admin(), "/metrics").body
}

/// The names of all metrics.
fn names() -> BTreeSet<String> {
    let metrics = metrics();
    let typed = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    typed.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// The metrics of a relay that a query names.
fn named_in(query: &str) -> Vec<String> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with(PREFIX)).map(str::to_owned).collect()
}

/// Every query of the dashboard.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(query) if name == "expr" => found.push(query.clone()),
                    Value::String(query) if name == "query" && query.contains(PREFIX) => {
                        found.push(query.clone());
                    }
                    _ => queries(member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

fn dashboard() -> Value {
    let text = fs::read_to_string(here("packaging/grafana-dashboard.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let metrics = metrics();
    let Some(output) = promtool(&["check", "metrics"], &metrics) else { return };
    assert!(output.status.success() && text(&output).is_empty(), "{}\n{metrics}", text(&output));
    // It does find what is wrong.
    let broken = promtool(&["check", "metrics"], "x_total{a=} 1\n").unwrap();
    assert!(!broken.status.success());
}

#[test]
fn the_alert_rules_are_good_and_fire_when_they_should() {
    let rules = here("packaging/prometheus-rules.yml");
    let Some(output) = promtool(&["check", "rules", rules.to_str().unwrap()], "") else { return };
    assert!(output.status.success() && text(&output).contains("SUCCESS"), "{}", text(&output));
    let tests = here("tests/prometheus-rules-test.yml");
    let output = promtool(&["test", "rules", tests.to_str().unwrap()], "").unwrap();
    assert!(output.status.success(), "{}", text(&output));
    // Every alert is among the tests, and its text is.
    let (rules, tests) = (fs::read_to_string(rules).unwrap(), fs::read_to_string(tests).unwrap());
    let mut seen = 0;
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(
            tests.matches(&format!("alertname: {alert}\n")).count() >= 2,
            "{alert} is not tested both ways"
        );
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} alerts were found");
}

/// A relay that never answered is known by the name of its job only.
#[test]
fn the_job_of_the_readme_is_one_that_the_alert_on_silence_knows() {
    let readme = fs::read_to_string(here("README.md")).unwrap();
    let job = readme.lines().find_map(|line| line.trim().strip_prefix("- job_name: ")).unwrap();
    let rules = fs::read_to_string(here("packaging/prometheus-rules.yml")).unwrap();
    assert!(rules.contains("up{job=~\".*towpath.*\"} == 0") && job.contains("towpath"), "{job}");
}

#[test]
fn rules_and_dashboard_ask_only_for_what_there_is() {
    let names = names();
    assert!(names.len() > 30, "{names:?}");
    let mut found = Vec::new();
    queries(&dashboard(), &mut found);
    assert!(found.len() > 20, "only {} queries were found", found.len());
    let rules = fs::read_to_string(here("packaging/prometheus-rules.yml")).unwrap();
    for query in found.iter().chain([&rules]) {
        let asked = named_in(query);
        assert!(!asked.is_empty(), "{query} asks a relay for nothing");
        for name in asked {
            assert!(names.contains(&name), "no relay has {name}, which is asked for in\n{query}");
        }
    }
    // What nobody looks at need not be measured.
    let all = found.join("\n") + &rules;
    let unused: Vec<&String> = names.iter().filter(|name| !named_in(&all).contains(name)).collect();
    assert!(unused.is_empty(), "neither rules nor dashboard show {unused:?}");
}

#[test]
fn the_queries_of_the_dashboard_are_good() {
    let mut found = Vec::new();
    let dashboard = dashboard();
    queries(&dashboard, &mut found);
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    let panels = found.iter().filter(|query| !query.starts_with("label_values("));
    for (count, query) in panels.enumerate() {
        let query = query.replace("$__rate_interval", "5m").replace("$__range", "1h");
        let query = query.replace("$instance", ".*").replace("$job", ".*");
        assert!(!query.contains('$'), "a variable that nobody sets: {query}");
        let query = serde_json::to_string(&query).unwrap();
        rules.push_str(&format!("  - record: dashboard:query{count}\n    expr: {query}\n"));
    }
    let mut file = tempfile::NamedTempFile::with_suffix(".yml").unwrap();
    file.write_all(rules.as_bytes()).unwrap();
    let Some(output) = promtool(&["check", "rules", file.path().to_str().unwrap()], "") else { return };
    assert!(output.status.success(), "{}\n{rules}", text(&output));
    // Panels do not cover each other, and their numbers are their own.
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut cells = BTreeSet::new();
    for panel in panels {
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{} covers another panel", panel["title"]);
            }
        }
    }
}
