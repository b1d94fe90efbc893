//! `lab exec`: a program, or a shell, on a host of a lab that is up.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::files;
use super::role::{MARK, becoming};
use super::state::State;
use crate::run::Problem;

/// Becomes `words` on a host, or a shell when there are none. Call it while this process has one thread.
///
/// # Errors
/// Why it could not; it does not return otherwise.
pub fn exec(lab: Option<&str>, host: &str, words: &[OsString]) -> anyhow::Error {
    prepare(lab, host, words).map_or_else(
        |error| error,
        |mut command| {
            let error = command.exec();
            let name = command.get_program().to_string_lossy().into_owned();
            anyhow!(Problem::Setup(format!("cannot start {name}: {error}; is it installed and in the PATH?")))
        },
    )
}

fn prepare(lab: Option<&str>, host: &str, words: &[OsString]) -> anyhow::Result<std::process::Command> {
    let state = State::find(lab)?;
    let up = state.up()?;
    let place = up.hosts.get(host).ok_or_else(|| {
        let there = up.hosts.keys().cloned().collect::<Vec<_>>().join(", ");
        Problem::Usage(format!("the lab {} has no host {host:?}; it has {there}", state.name))
    })?;
    let keeper = up.keeper;
    let network = open(&format!("/proc/{keeper}/fd/{}", place.network))?;
    let mounts = format!("/proc/{keeper}/fd/{}", place.mounts);
    let users = open(&format!("/proc/{keeper}/ns/user"))?;
    // Who is root already stays in the namespace of users it is in.
    if fs::metadata("/proc/self/ns/user")?.ino() != users.metadata()?.ino() {
        move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))
            .context("cannot become root of the lab")?;
    }
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter the host {host}"))?;
    files::enter(mounts.as_ref())?;
    let shell = || std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let words = if words.is_empty() { vec![shell()] } else { words.to_vec() };
    let mut command = becoming(&words)?;
    command.env(MARK, &state.mark).env("TOWPATH_LAB_HOST", host);
    Ok(command)
}

fn open(path: &str) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open {path}; a lab belongs to the user who made it"))
}
