//! What `towpath up` does to the host beyond its interface, and how that is taken back: hooks, name servers, rules for a
//! default route, a firewall against packets that come in beside the tunnel.
//!
//! Everything that outlives the interface is a [`Step`]. It is written into the [`Journal`] before it is done, and steps are
//! taken back in reverse: at the end, or by the next `towpath up` or `towpath down` when this process was killed.

pub mod down;
mod firewall;
pub mod journal;
mod names;
mod program;
mod routes;
mod save;
mod steward;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde::{Deserialize, Serialize};

pub use self::journal::{Found, Journal};
use self::names::Resolver;
pub(crate) use self::routes::is_connected;
use crate::config::{self, Config, ConfigError, Fixed, HostSection};
use crate::netlink::{Handle, Rule};
use crate::sys::signal::{self, Signal, StopSignals};
use crate::tunnel::apart::apart;

/// The configuration that is meant by a name alone: that of the tunnel that runs under it, or one that is kept for it.
///
/// # Errors
/// When there is none of this name.
pub fn find_running(given: &Path) -> Result<PathBuf, ConfigError> {
    let running = || Some(journal::file_of(&journal::directory(), given.to_str()?)?.0);
    match config::is_name(given).then(running).flatten() {
        Some(file) => Ok(file),
        None => config::find(given),
    }
}

/// What the file of a tunnel that another process runs by `towpath up` said when it was brought up, as far as it is for the start
/// only.
#[must_use]
pub fn brought_up_with(interface: &str) -> Option<Fixed> {
    journal::file_of(&journal::directory(), interface)?.1
}

/// Something that was done to the host, with what is needed to take it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// `PostDown`: run when the interface is gone, if `PreUp` was begun.
    PostDown {
        /// For a shell.
        commands: Vec<String>,
    },
    /// The interface, which goes with its process.
    Interface,
    /// The name servers of the interface.
    Names {
        /// Who was told.
        program: Resolver,
        /// The interface, as it was called to them.
        record: String,
    },
    /// A table of nftables.
    Firewall {
        /// Of the family `ip6`, not `ip`.
        ipv6: bool,
        /// Its name.
        table: String,
    },
    /// A setting of the kernel, and what it was.
    Setting {
        /// The file in /proc/sys.
        path: PathBuf,
        /// Its content.
        before: String,
    },
    /// A policy rule.
    Rule(Rule),
    /// The unreachable default route in the tunnel's own table.
    Unreachable {
        /// Of IPv6, not of IPv4.
        ipv6: bool,
        /// The table.
        table: u32,
    },
    /// `SaveConfig`: the file is written anew.
    Save {
        /// The configuration.
        file: PathBuf,
    },
    /// `PreDown`: run while packets still pass, if `PostUp` was begun.
    PreDown {
        /// For a shell.
        commands: Vec<String>,
    },
    /// Something that another version of this program has written down.
    #[serde(skip)]
    Unknown,
}

/// The host, for as long as a tunnel is up.
#[derive(Debug)]
pub struct Host {
    interface: String,
    file: PathBuf,
    section: HostSection,
    directory: PathBuf,
    journal: Journal,
    signals: StopSignals,
    /// Where the tunnel that this process runs is asked how it is set, if that is to be saved.
    tunnel: Option<UnixStream>,
    /// The mark of the tunnel's sockets when it was brought up, 0 for none.
    mark: u32,
}

impl Host {
    /// Takes the tunnel's name for this process, and takes back what one that was killed has left. From here on SIGTERM and
    /// SIGINT are blocked, in every thread that is started later too; and so is SIGHUP, which comes when the terminal is closed.
    ///
    /// # Errors
    /// When the tunnel is up already, or somebody else has made an interface of this name: then nothing is touched.
    pub fn open(interface: &str, file: &Path, config: &Config) -> io::Result<Self> {
        let signals = stop_signals()?;
        let directory = journal::directory();
        journal::clear_stale(&directory);
        let journal = match Journal::open(&directory, interface) {
            Ok(Found::Free(journal)) => journal,
            Ok(Found::Running(process)) => {
                let process = process.map_or_else(String::new, |process| format!(", by process {process}"));
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{interface} is up already{process}: run `towpath down {interface}` first"),
                ));
            }
            Err(error) => {
                tracing::info!(
                    "`towpath down` does not find this tunnel, and what it does to the host stays if it is killed: {error}"
                );
                Journal::unwritten()
            }
        };
        if !is_gone_soon(interface) {
            let text = format!(
                "{interface} is there already, and not by `towpath up`: end it first, for example by `wg-quick down \
                 {interface}` or `ip link del {interface}`, or give the file another name"
            );
            if journal.is_empty() {
                journal.remove();
            }
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let section = config.host.clone();
        let mut host = Self {
            interface: interface.to_owned(),
            file: std::path::absolute(file)?,
            section,
            directory,
            journal,
            signals,
            tunnel: None,
            mark: 0,
        };
        if !host.journal.is_empty() {
            tracing::warn!(
                "a process that was killed has left something of {interface} behind: it is taken back"
            );
            host.take_back_all();
        }
        // What is no file, such as a pipe, cannot be read again.
        if host.file.is_file()
            && let Err(error) = host.journal.note_file(&host.file, Fixed::of(config))
        {
            tracing::info!("`towpath reload {interface}` does not find this file: {error}");
        }
        Ok(host)
    }

    /// Runs `PreUp`, before there is an interface.
    ///
    /// # Errors
    /// When a command fails, or a signal comes meanwhile.
    pub fn before_interface(&mut self) -> io::Result<()> {
        let hooks = &self.section.hooks;
        if !hooks.post_down.is_empty() {
            let commands = self.named(&hooks.post_down);
            self.journal.note(Step::PostDown { commands })?;
        }
        let commands = self.named(&self.section.hooks.pre_up);
        self.run_hooks("PreUp", &commands)?;
        self.journal.note(Step::Interface)
    }

    /// Does what may block for long, such as looking names up, on a thread of its own. A signal does not wait for that: then
    /// the thread is left to itself, and ends with the program.
    ///
    /// # Errors
    /// `Interrupted` when a signal comes meanwhile; no thread, no descriptor.
    pub fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (sender, result) = mpsc::channel();
        let finished = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let theirs = Arc::clone(&finished);
        // Owns the work; ends when that is done, or with the process.
        std::thread::Builder::new().name("towpath-beside".to_owned()).spawn(move || {
            let done = apart(|| catch_unwind(AssertUnwindSafe(work)));
            // Nobody waits any more after a signal, here and below.
            let _ = sender.send(done.ok());
            let _ = rustix::io::write(&*theirs, &1_u64.to_ne_bytes());
        })?;
        loop {
            if self.signals.take().is_some() {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "ended by a signal to this program"));
            }
            match result.try_recv() {
                Ok(Some(result)) => return Ok(result),
                Err(TryRecvError::Empty) => {}
                // It has said why.
                Ok(None) | Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("what was done beside has failed"));
                }
            }
            let mut fds = [self.signals.fd().as_fd(), finished.as_fd()]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The tunnel's end of a connection by which it will be asked what to save; `None` when nothing is to be saved. The socket
    /// that `wg` finds is no way: all network namespaces share its name, and somebody else may have it.
    ///
    /// # Errors
    /// No descriptors.
    pub fn connection(&mut self) -> io::Result<Option<UnixStream>> {
        if !self.section.save_config {
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.tunnel = Some(ours);
        Ok(Some(theirs))
    }

    /// Tells the resolver of the name servers, and leads packets into the interface. `index` is the interface's; the answer
    /// is the mark for the tunnel's own sockets, 0 for none.
    ///
    /// # Errors
    /// What the kernel or a program refused, with the remedy.
    pub fn connect(&mut self, handle: &mut Handle, index: u32, config: &Config) -> io::Result<u32> {
        self.set_names()?;
        self.mark = self.route(handle, index, config)?;
        Ok(self.mark)
    }

    /// Takes back what is still to be taken back, once the interface is gone.
    pub fn end(mut self) {
        self.forget_signals();
        while self.take_back_newest() {
            self.forget_signals();
        }
        self.journal.remove();
    }

    /// Commands with the interface's name in them.
    fn named(&self, commands: &[String]) -> Vec<String> {
        commands.iter().map(|command| command.replace("%i", &self.interface)).collect()
    }

    fn run_hooks(&self, name: &str, commands: &[String]) -> io::Result<()> {
        for command in commands {
            tracing::info!("{name}: {command}");
            program::shell(command, &self.signals)
                .map_err(|error| io::Error::new(error.kind(), format!("{name}: {command}: {error}")))?;
        }
        Ok(())
    }

    fn take_back_all(&mut self) {
        while self.take_back_newest() {}
    }

    /// Takes back what there is above the interface.
    fn take_back_to_interface(&mut self) {
        while self.journal.newest().is_some_and(|step| *step != Step::Interface) {
            self.forget_signals();
            self.take_back_newest();
        }
    }

    /// While we end, a signal ends the hook that runs when it comes, and no later one.
    fn forget_signals(&self) {
        while self.signals.take().is_some() {}
    }

    /// Takes back what was done last; `false` when there is nothing. What cannot be taken back is told and given up: the
    /// rest does not suffer from it.
    fn take_back_newest(&mut self) -> bool {
        let Some(step) = self.journal.newest().cloned() else {
            return false;
        };
        if let Err(error) = self.take_back(&step) {
            tracing::warn!("{error}");
        }
        self.journal.forget_newest();
        true
    }

    fn take_back(&self, step: &Step) -> io::Result<()> {
        match step {
            Step::PreDown { commands } => self.run_all_hooks("PreDown", commands),
            Step::PostDown { commands } => self.run_all_hooks("PostDown", commands),
            // What is above it is done, and what is below does not need it to be gone.
            Step::Interface => _ = is_gone_soon(&self.interface),
            Step::Names { program, record } => names::unset(*program, record, &self.signals)?,
            Step::Firewall { ipv6, table } => firewall::remove(*ipv6, table, &self.signals)?,
            Step::Setting { path, before } => routes::restore_setting(path, before, &self.others())?,
            Step::Rule(rule) => match Handle::open()?.delete_rule(rule) {
                // It was noted and not done, or somebody else has removed it.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                done => done?,
            },
            Step::Unreachable { ipv6, table } => match Handle::open()?.delete_unreachable(*ipv6, *table) {
                Err(error) if error.errno() == Some(libc::ESRCH) => {}
                done => done?,
            },
            Step::Unknown => {
                let text =
                    "another version of towpath has done something that this one does not know: it stays";
                return Err(io::Error::other(text));
            }
            Step::Save { file } => save::save(self.tunnel.as_ref(), file, self.mark)?,
        }
        Ok(())
    }

    /// Runs hooks of the end, all of them whatever becomes of one.
    fn run_all_hooks(&self, name: &str, commands: &[String]) {
        for command in commands {
            if let Err(error) = self.run_hooks(name, std::slice::from_ref(command)) {
                tracing::warn!("{error}");
            }
        }
    }

    /// What other tunnels of this network namespace have done.
    fn others(&self) -> Vec<Step> {
        journal::steps_of_others(&self.directory, &self.interface)
    }
}

/// The signals that end a tunnel: those that end every program, so that none of them leaves the host as it is.
fn stop_signals() -> io::Result<StopSignals> {
    if signal::is_ignored(Signal::Hangup)? {
        StopSignals::new()
    } else {
        StopSignals::with(&[Signal::Hangup])
    }
}

/// Whether there is an interface of this name in this network namespace, as far as anybody can say.
fn is_there(interface: &str) -> bool {
    Handle::open().is_ok_and(|mut handle| handle.link_index(interface).is_ok())
}

/// The interface goes with the descriptor of its device, of which a ring lets go a moment later. `false` when it stays: then it
/// is somebody else's.
fn is_gone_soon(interface: &str) -> bool {
    const LOOKS: usize = 100;
    for _ in 0..LOOKS {
        if !is_there(interface) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
