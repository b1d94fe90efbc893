//! `towpath down`: asks the process that runs a tunnel to end, and takes back what it may have left.

use std::io;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Found, Host, Journal, journal};
use crate::config::HostSection;

/// Ends the tunnel of an interface of this network namespace, and waits for its end.
///
/// # Errors
/// When there is none, or it is another user's.
pub fn down(interface: &str) -> io::Result<()> {
    let directory = journal::directory();
    journal::clear_stale(&directory);
    if !journal::exists(&directory, interface) {
        let more = if super::is_there(interface) {
            ": somebody else has made the interface of this name; end it by `wg-quick down` or `ip link del`, or by `towpath down` \
             with the RUNTIME_DIRECTORY that its `towpath up` had"
        } else {
            ""
        };
        let text = format!("{interface} is not up by `towpath up`, in this network namespace{more}");
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let journal = loop {
        match Journal::open(&directory, interface)? {
            Found::Free(journal) => break journal,
            Found::Running(None) => {
                return Err(io::Error::other(format!(
                    "{interface} is run by a process of another PID namespace: end it there"
                )));
            }
            Found::Running(Some(process)) => end(&directory, interface, process)?,
        }
    };
    if journal.is_empty() {
        journal.remove();
        return Ok(());
    }
    if !super::is_gone_soon(interface) {
        // Its hooks, its name servers and its firewall would be taken from that one.
        let text = format!(
            "the process of {interface} was killed, and what it has left stays: somebody else has made an interface of this \
             name by now; end that one, for example by `wg-quick down {interface}` or `ip link del {interface}`, and run \
             `towpath down {interface}` again"
        );
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    tracing::warn!("the process of {interface} was killed: what it has left is taken back");
    let host = Host {
        interface: interface.to_owned(),
        file: std::path::PathBuf::new(),
        section: HostSection::default(),
        directory,
        journal,
        signals: super::stop_signals()?,
        tunnel: None,
        mark: 0,
    };
    host.end();
    // Where it lives, somebody else has it.
    let _ = crate::uapi::socket::clear_dead(interface);
    Ok(())
}

/// Asks a process to end and waits for it, if it still runs the tunnel.
fn end(directory: &std::path::Path, interface: &str, process: Pid) -> io::Result<()> {
    let handle = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(handle) => handle,
        // It has just ended.
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The number was the right one before there was a handle; only if it still is, so is the handle.
    if !matches!(Journal::open(directory, interface)?, Found::Running(Some(other)) if other == process) {
        return Ok(());
    }
    match pidfd_send_signal(&handle, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(rustix::io::Errno::PERM) => {
            let text = format!("process {process} runs {interface} and is another user's: run as root");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Err(error) => return Err(error.into()),
    }
    loop {
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
