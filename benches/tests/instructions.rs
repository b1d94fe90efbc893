//! Counting instructions: that it works under this machine's valgrind, repeats, and notices a difference.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

/// Says what is left out, and fails where everything was asked for, as the tests of the dataplane do.
fn left_out(what: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "left out: {what}");
    assert!(
        std::env::var_os("TOWPATH_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "required here: {what}"
    );
}

fn instructions(baseline: &Path, arguments: &[&str]) -> Output {
    #[expect(clippy::disallowed_methods, reason = "a test starts programs and has no ring open")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_benches"));
    command.arg("instructions").arg("--baseline").arg(baseline).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn counts_repeat_and_a_difference_fails() {
    let folder = tempfile::tempdir().unwrap();
    let baseline = folder.path().join("instructions.toml");
    let first = instructions(&baseline, &["checksum", "--update"]);
    if text(&first.stderr).contains("apt-get install valgrind") {
        return left_out("instruction counts: apt-get install valgrind");
    }
    assert!(first.status.success(), "{}{}", text(&first.stdout), text(&first.stderr));
    let counted = std::fs::read_to_string(&baseline).unwrap();

    let again = instructions(&baseline, &["checksum"]);
    let table = text(&again.stdout);
    assert!(again.status.success(), "{table}{}", text(&again.stderr));
    assert!(!table.contains("not comparable"), "{table}");
    let line = table.lines().find(|line| line.starts_with("checksum ")).unwrap();
    let numbers: Vec<u64> =
        line.split_whitespace().skip(1).take(2).map(|word| word.parse().unwrap()).collect();
    assert_eq!(numbers[0], numbers[1], "equal to the last instruction: {table}");

    // A case that got twice as expensive, counted by another valgrind.
    let half = counted.replace(&format!("= {}", numbers[0]), &format!("= {}", numbers[0] / 2));
    let other = half.replacen("valgrind = \"", "valgrind = \"0.", 1);
    assert_ne!(half, counted);
    std::fs::write(&baseline, other).unwrap();
    let differing = instructions(&baseline, &["checksum"]);
    let table = text(&differing.stdout);
    assert_eq!(differing.status.code(), Some(1), "{table}");
    assert!(table.contains("--update") && table.contains("not comparable in full: valgrind"), "{table}");
}

#[test]
fn a_case_that_does_not_exist_is_named_with_the_remedy() {
    let output = instructions(Path::new("/nonexistent"), &["no-such-case"]);
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("no-such-case") && error.contains("--list"), "{error}");
}

#[test]
fn a_missing_valgrind_is_named_with_its_package() {
    #[expect(clippy::disallowed_methods, reason = "a test starts programs and has no ring open")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_benches"));
    let output = command.args(["instructions", "checksum"]).env("PATH", "/nonexistent").output().unwrap();
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("apt-get install valgrind"), "{error}");
}
