//! What this program is when a lab starts it again.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use super::files;
use super::hosts::Host;
use super::keeper;
use crate::reexec;

/// Names the lab that a process belongs to, in its environment: what `lab down` finds it by.
pub const MARK: &str = "TOWPATH_LAB";
/// Begins the command line of a keeper.
pub(super) const KEEPER: &str = "__lab-keeper";

/// What this program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It becomes a program, on a host.
    Inside,
}

const ROLES: [(Role, &str); 1] = [(Role::Inside, "__inside")];

/// A command that becomes `words` on a host, and dies with this process. Start it from the main thread.
///
/// # Errors
/// When this program's own file cannot be found.
pub fn inside(host: &Host, words: &[String]) -> anyhow::Result<Command> {
    let mut command = reexec::command(&ROLES, &Role::Inside, Some(&host.network))?;
    command.arg(host.mounts.path_for_child()).args(words);
    Ok(command)
}

/// A command that becomes `words`: the programs of this project are this one under another name, so that what was just
/// compiled is what runs.
pub fn becoming(words: &[OsString]) -> std::io::Result<Command> {
    let (program, arguments) =
        words.split_first().ok_or_else(|| std::io::Error::other("no program is named"))?;
    let own = match program.to_str() {
        Some("towpath") => Some(Some("__tunnel")),
        Some("towpath-relay") => Some(Some("__relay")),
        Some("towpath-lab") => Some(None),
        _ => None,
    };
    let file = if own.is_some() { std::env::current_exe()?.into_os_string() } else { program.clone() };
    #[expect(clippy::disallowed_methods, reason = "the lab starts programs and has no ring open")]
    let mut command = Command::new(file);
    if let Some(Some(role)) = own {
        let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
        command.args([role, "-", &parent.to_string()]);
    }
    command.args(arguments);
    Ok(command)
}

/// Runs the role that the command line names, if it names one; to be called first thing in `main`, before any thread.
#[must_use]
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    if arguments.get(1).is_some_and(|name| name == KEEPER) {
        return Some(keeper::main(&arguments[2..]));
    }
    let words = match reexec::settle(&ROLES, arguments)? {
        Ok((Role::Inside, words)) => words,
        Err(code) => return Some(code),
    };
    let [mounts, words @ ..] = words else { return Some(ExitCode::from(2)) };
    let ready = files::enter(mounts).and_then(|()| Ok(becoming(words)?));
    let error = match ready {
        Ok(mut command) => command.exec().into(),
        Err(error) => error,
    };
    let name = words.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    // The lab shows the end of its log.
    let _ = writeln!(std::io::stderr(), "cannot start {name}: {error:#}; is it installed and in the PATH?");
    Some(ExitCode::from(127))
}
