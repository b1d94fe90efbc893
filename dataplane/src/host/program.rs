//! Other programs: hooks in a shell, and those that know how this system is set.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, waitpid};

use crate::sys::signal::StopSignals;
use crate::sys::spawn::{Streams, spawn};

/// What a program may say about its failure, bytes.
const WORDS_MAX: u64 = 4 << 10;
/// Where programs for the administrator are, besides the PATH.
const MORE_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a program is.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    })
}

/// Runs a command in bash(1), as wg-quick does, or in sh(1) where there is none. Its streams are ours.
///
/// # Errors
/// When it fails, or a signal has ended it early.
pub(super) fn shell(command: &str, signals: &StopSignals) -> io::Result<()> {
    let shell = find("bash").unwrap_or_else(|| "/bin/sh".into());
    let process = spawn(&shell, &["-c", command].map(OsStr::new), Streams::default())?;
    judge(&wait(process, signals)?, "")
}

/// Runs a program of the system, with `input` at its standard input.
///
/// # Errors
/// When it fails, with what it said about that.
pub(super) fn run(program: &Path, arguments: &[&str], input: &str, signals: &StopSignals) -> io::Result<()> {
    // Files in memory, because a pipe would have to be read meanwhile.
    let mut said = File::from(memory()?);
    let mut given = File::from(memory()?);
    given.write_all(input.as_bytes())?;
    given.rewind()?;
    let nowhere = File::options().write(true).open("/dev/null")?;
    let streams =
        Streams { input: Some(given.as_fd()), output: Some(nowhere.as_fd()), errors: Some(said.as_fd()) };
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("{} {}: {error}", program.display(), arguments.join(" ")))
    };
    let words: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    let ended = spawn(program, &words, streams).and_then(|process| wait(process, signals)).map_err(named)?;
    let mut words = String::new();
    said.rewind()?;
    // What is no text is not worth an error of its own.
    let _ = said.take(WORDS_MAX).read_to_string(&mut words);
    judge(&ended, words.trim()).map_err(named)
}

fn memory() -> io::Result<OwnedFd> {
    Ok(memfd_create("towpath", MemfdFlags::CLOEXEC)?)
}

/// How a program has ended, and whether a signal has asked us to end meanwhile.
struct Ended {
    status: WaitStatus,
    interrupted: bool,
}

/// Waits for a program. It does not keep us from ending: at a signal it is asked to end too, at the next one it has to.
fn wait(pid: Pid, signals: &StopSignals) -> io::Result<Ended> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut interrupted = false;
    loop {
        if let Some((_, status)) = waitpid(Some(pid), WaitOptions::NOHANG)? {
            return Ok(Ended { status, interrupted });
        }
        let mut fds = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.fd().as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while signals.take().is_some() {
            let signal = if interrupted { Signal::KILL } else { Signal::TERM };
            interrupted = true;
            // It is not waited for yet, so that its number is still its own.
            let _ = kill_process(pid, signal);
        }
    }
}

fn judge(ended: &Ended, words: &str) -> io::Result<()> {
    if ended.interrupted {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "ended by a signal to this program"));
    }
    let how = match (ended.status.exit_status(), ended.status.terminating_signal()) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    let colon = if words.is_empty() { "" } else { ": " };
    Err(io::Error::other(format!("{how}{colon}{words}")))
}
