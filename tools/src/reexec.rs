//! This program again under another role: no second build, and every process is the code that was just compiled.
//!
//! ```text
//!  towpath-lab __tunnel NAMESPACE|- PARENT up FILE …
//! ```

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::mpsc::Sender;
use std::{io, thread};

use anyhow::Context;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use crate::netns::{self, Namespace};

/// In place of a namespace's path.
const STAY: &str = "-";

/// This program as the one of `roles` that is `role`, to be completed with the role's own arguments. Start it from the
/// main thread: it dies with the thread that started it.
///
/// # Errors
/// When this program's own file cannot be found.
pub fn command<R: PartialEq>(
    roles: &[(R, &str)],
    role: &R,
    namespace: Option<&Namespace>,
) -> anyhow::Result<Command> {
    let name = roles.iter().find(|entry| entry.0 == *role).map_or("", |entry| entry.1);
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever starts processes to measure them has no ring open"
    )]
    let mut command = Command::new(program);
    command.arg(name).arg(namespace.map_or_else(|| STAY.to_owned(), Namespace::path_for_child));
    command.arg(getpid().as_raw_nonzero().to_string());
    // A group of its own: Ctrl-C reaches only the parent, which then ends its processes in order.
    command.process_group(0).env("RUST_LOG", "info");
    Ok(command)
}

/// Settles into the one of `roles` that the command line names, if it names one, and answers it with its own arguments;
/// to be called first thing in `main`, before any thread.
///
/// # Errors
/// How to exit when it cannot; why has been said.
pub fn settle<'a, R: Copy>(
    roles: &[(R, &str)],
    arguments: &'a [OsString],
) -> Option<Result<(R, &'a [OsString]), ExitCode>> {
    let name = arguments.get(1)?.to_str()?;
    let (role, _) = *roles.iter().find(|entry| entry.1 == name)?;
    let [_, _, namespace, parent, rest @ ..] = arguments else {
        return Some(Err(ExitCode::from(2)));
    };
    if let Err(error) = enter(namespace, parent) {
        // The parent reads standard error; there is no log yet.
        let _ = writeln!(io::stderr(), "{error:#}");
        return Some(Err(ExitCode::FAILURE));
    }
    Some(Ok((role, rest)))
}

/// Enters the namespace and makes sure that this process does not outlive its parent, even one that was killed.
fn enter(namespace: &OsStr, parent: &OsStr) -> anyhow::Result<()> {
    let namespace = namespace.to_str().context("a namespace's path is ASCII")?;
    if namespace != STAY {
        netns::enter(namespace).with_context(|| format!("cannot enter the namespace {namespace}"))?;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    // It may have ended before that took effect.
    let expected = parent.to_str().and_then(|parent| parent.parse().ok());
    let actual = getppid().map(|parent| parent.as_raw_nonzero().get());
    anyhow::ensure!(expected == actual, "the program that started this process is gone");
    Ok(())
}

/// Reads the lines that a process prints on a thread, which ends with the pipe.
///
/// # Errors
/// When the thread cannot be started.
pub fn read_lines(pipe: impl Read + Send + 'static, lines: Sender<String>) -> io::Result<()> {
    thread::Builder::new().name("child-lines".to_owned()).spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
