//! The calling test again as root of a user, network and mount namespace: nothing of the machine is touched, and no privilege is
//! needed where everyone may make them.

#[path = "left_out.rs"]
pub mod left_out;

use std::ffi::OsStr;
use std::process::{Command, Output};

use left_out::left_out;

/// Set for the process that runs inside the namespaces.
const INSIDE: &str = "TOWPATH_TEST_INSIDE_NAMESPACE";

/// Why a test cannot run inside namespaces.
pub enum Lack {
    /// The program that makes them does not start.
    Program(std::io::Error),
    /// They are refused; what it said.
    Namespaces(String),
}

/// Whether the calling test is inside already. If not, runs it again there; where that cannot be done it is left out.
pub fn inside(test: &str) -> bool {
    if is_inside() {
        return true;
    }
    match again(test) {
        Ok(()) => {}
        Err(Lack::Program(error)) => left_out(&format!("util-linux's `unshare`: {error}")),
        Err(Lack::Namespaces(refusal)) => left_out(&format!("user namespaces: {refusal}")),
    }
    false
}

/// Whether this process is the one inside.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the calling test again inside, and fails as it does. What it leaves out there is left out here.
#[expect(clippy::print_stdout, reason = "passes on what the test inside printed")]
pub fn again(test: &str) -> Result<(), Lack> {
    // Made for nothing first: whatever goes wrong after that is the test's fault.
    let probe = unshare(OsStr::new("true"), &[]).map_err(Lack::Program)?;
    if !probe.status.success() {
        return Err(Lack::Namespaces(String::from_utf8_lossy(&probe.stderr).trim_end().to_owned()));
    }
    let program = std::env::current_exe().expect("this test");
    let output = unshare(program.as_os_str(), &["--exact", test, "--nocapture"]).expect("it started before");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{text}");
    for line in errors.lines() {
        if let Some(what) = line.strip_prefix("left out: ") {
            left_out(what);
        }
    }
    assert!(output.status.success(), "{errors}");
    assert!(text.contains("1 passed"), "the test did not run inside the namespace: {text}");
    Ok(())
}

/// A program as root of new namespaces. Only a process with one thread can make a user namespace (unshare(2)), which a
/// test never is, so that util-linux's `unshare` makes it.
fn unshare(program: &OsStr, arguments: &[&str]) -> std::io::Result<Output> {
    #[expect(clippy::disallowed_methods, reason = "a test may start a program")]
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .arg(program)
        .args(arguments)
        .env(INSIDE, "1")
        .output()
}
