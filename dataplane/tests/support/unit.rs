//! Unit files for systemd: what is in them, how systemd's own tools judge them, and which system calls they let pass.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::left_out::left_out;

/// Runs a program that reads packaged files; `None` when it is not there.
#[expect(clippy::disallowed_methods, reason = "a test starts programs")]
pub fn run(name: &str, arguments: &[&str], install: &str) -> Option<Output> {
    let output = Command::new(name).args(arguments).stdin(Stdio::null()).output();
    if output.is_err() {
        left_out(&format!("what {name} says of packaged files: apt-get install {install}"));
    }
    output.ok()
}

/// What a unit file says under a name, line by line.
pub fn lines_of(unit: &str, name: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

/// How much a unit leaves open, from 0 to 10; it has no mistake. `None` without systemd.
pub fn exposure(unit: &str, name: &str) -> Option<f64> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, unit).unwrap();
    let path = path.to_str().unwrap();
    let verified = run("systemd-analyze", &["verify", "--man=no", path], "systemd")?;
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    let judged = run("systemd-analyze", &["security", "--offline=true", "--no-pager", path], "systemd")?;
    let text = String::from_utf8(judged.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("Overall exposure level"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().find_map(|word| word.parse().ok())
}

/// The groups of system calls that unit files name, as this systemd has them; `None` without systemd.
pub fn call_groups() -> Option<BTreeMap<String, Vec<String>>> {
    let output = run("systemd-analyze", &["syscall-filter", "--no-pager"], "systemd")?;
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let word = line.trim();
        if line.starts_with('@') {
            name = word.to_owned();
        } else if !word.is_empty() && !word.starts_with('#') {
            groups.entry(name.clone()).or_default().push(word.to_owned());
        }
    }
    Some(groups)
}

/// The system calls behind a name.
fn calls_of(name: &str, groups: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return [name.to_owned()].into();
    }
    let members = groups.get(name).unwrap_or_else(|| panic!("no group {name} in {groups:#?}"));
    members.iter().flat_map(|member| calls_of(member, groups)).collect()
}

/// What the filter of a unit lets pass.
pub fn allowed_calls(unit: &str, groups: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for value in lines_of(unit, "SystemCallFilter") {
        let names = value.trim_start_matches('~').split(' ');
        for call in names.flat_map(|name| calls_of(name, groups)) {
            if value.starts_with('~') {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
    }
    allowed
}

/// The system calls in what `strace -f -o` has written, once it has written all of it: the first process has ended well.
pub fn calls_in(trace: &Path) -> BTreeSet<String> {
    let whole = (0..500).find_map(|_| {
        let text = fs::read_to_string(trace).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(10));
        // The number of the process, which strace pads to five digits.
        let first = text.split_whitespace().next()?;
        let mut lines = text.lines();
        let ended = lines.any(|line| line.starts_with(first) && line.ends_with("+++ exited with 0 +++"));
        ended.then(|| text.clone())
    });
    let whole = whole.unwrap();
    // Process, call and arguments; a call that another one interrupted is named when it begins.
    let calls = whole.lines().filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('));
    let is_name = |name: &&str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    calls.map(|(name, _)| name).filter(is_name).map(str::to_owned).collect()
}
