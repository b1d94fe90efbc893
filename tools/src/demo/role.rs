//! This program again under another role: no second build, and every process is the code that was just compiled.

use std::ffi::{OsStr, OsString};
use std::process::{Command, ExitCode};

use anyhow::Context;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use super::{child, facts};
use crate::netns::{self, Namespace};

/// What a process of the demo is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `towpath`.
    Tunnel,
    /// `towpath-relay`.
    Relay,
    /// Finds out what this user may do here.
    Probe,
}

const ROLES: [(Role, &str); 3] =
    [(Role::Tunnel, "__tunnel"), (Role::Relay, "__relay"), (Role::Probe, "__probe")];
/// In place of a namespace's path.
const STAY: &str = "-";

impl Role {
    fn name(self) -> &'static str {
        ROLES.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }

    /// This program as `self`, to be completed with the role's own arguments.
    pub(super) fn command(self, namespace: Option<&Namespace>) -> anyhow::Result<Command> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        #[expect(clippy::disallowed_methods, reason = "the lab starts programs and has no ring open")]
        let mut command = Command::new(program);
        command.arg(self.name());
        command.arg(namespace.map_or_else(|| STAY.to_owned(), Namespace::path_for_child));
        command.arg(getpid().as_raw_nonzero().to_string());
        child::detach(&mut command);
        Ok(command)
    }
}

/// Runs the role that the command line names, if it names one; to be called first thing in `main`, before any thread.
///
/// ```text
///  towpath-lab __tunnel NAMESPACE|- PARENT up FILE …
/// ```
#[must_use]
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    let name = arguments.get(1)?.to_str()?;
    let (role, _) = *ROLES.iter().find(|entry| entry.1 == name)?;
    let (Some(namespace), Some(parent)) = (arguments.get(2), arguments.get(3)) else {
        return Some(ExitCode::from(2));
    };
    if let Err(error) = settle(namespace, parent) {
        // The parent reads standard error; there is no log yet.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error:#}\n").as_bytes());
        return Some(ExitCode::FAILURE);
    }
    let program = match role {
        Role::Tunnel => "towpath",
        Role::Relay => "towpath-relay",
        Role::Probe => return Some(facts::probe()),
    };
    let arguments = std::iter::once(OsString::from(program)).chain(arguments[4..].iter().cloned());
    Some(match role {
        Role::Relay => relay::cli::main(arguments),
        Role::Tunnel | Role::Probe => dataplane::cli::main(arguments),
    })
}

/// Enters the namespace and makes sure that this process does not outlive the demo, even one that was killed.
fn settle(namespace: &OsStr, parent: &OsStr) -> anyhow::Result<()> {
    let namespace = namespace.to_str().context("a namespace's path is ASCII")?;
    if namespace != STAY {
        netns::enter(namespace).with_context(|| format!("cannot enter the namespace {namespace}"))?;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    // It may have ended before that took effect.
    let expected = parent.to_str().and_then(|parent| parent.parse().ok());
    let actual = getppid().map(|parent| parent.as_raw_nonzero().get());
    anyhow::ensure!(expected == actual, "the demo that started this process is gone");
    Ok(())
}
