//! What a process of the demo is, all of them being this program.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use super::facts;
use crate::netns::Namespace;
use crate::reexec;

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

impl Role {
    /// This program as `self`, to be completed with the role's own arguments.
    pub(super) fn command(self, namespace: Option<&Namespace>) -> anyhow::Result<Command> {
        reexec::command(&ROLES, &self, namespace)
    }
}

/// Runs the role that the command line names, if it names one; to be called first thing in `main`, before any thread.
#[must_use]
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    let (role, rest) = match reexec::settle(&ROLES, arguments)? {
        Ok(settled) => settled,
        Err(code) => return Some(code),
    };
    let named = |name: &str| std::iter::once(OsString::from(name)).chain(rest.iter().cloned());
    Some(match role {
        Role::Tunnel => dataplane::cli::main(named("towpath")),
        Role::Relay => relay::cli::main(named("towpath-relay")),
        Role::Probe => facts::probe(),
    })
}
