//! For tests: programs of others that say what is right, and what they said when they were last asked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;

pub(crate) use left_out::left_out;

/// A file beside the scripts.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name)
}

/// What a script printed when it was last run by hand.
pub(crate) fn recorded(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

/// A Python that has `module`: that of the system (Debian's packages are for it), the one in the PATH, or the one that
/// `.ci/run` installs packages of PyPI into.
pub(crate) fn python_with(module: &str) -> Option<String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python3");
    let candidates = ["/usr/bin/python3".to_owned(), "python3".to_owned(), own.display().to_string()];
    candidates.into_iter().find(|python| {
        #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
        let mut command = Command::new(python);
        let status = command.args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    })
}
