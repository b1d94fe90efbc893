//! What is known of labs that are up: a directory each, and the processes that bear its mark. Neither is lost when a keeper is
//! killed.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::{Pid, Signal, getpid, getuid, kill_process};
use serde::{Deserialize, Serialize};

use super::role::{KEEPER, MARK};
use crate::run::Problem;

/// Holds the mark of the lab's processes.
const MARK_FILE: &str = "mark";
/// Where the hosts are, written when all is up.
const HOSTS_FILE: &str = "hosts.json";

/// The hosts of a lab that is up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Up {
    /// Keeps the hosts.
    pub keeper: u32,
    /// Where each host is, by its name.
    pub hosts: BTreeMap<String, Place>,
}

/// Descriptors of a host's namespaces in the keeper.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Of its devices.
    pub network: i32,
    /// Of its files.
    pub mounts: i32,
}

/// A lab that is up, or was.
#[derive(Clone, Debug)]
pub struct State {
    /// What it is called.
    pub name: String,
    /// Its files.
    pub directory: PathBuf,
    /// Borne by its processes.
    pub mark: String,
}

/// Where the directories are: of this user, and closed to others.
///
/// # Errors
/// When it cannot be made or is somebody else's.
fn base() -> anyhow::Result<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = match runtime {
        Some(runtime) => runtime.join("towpath-lab"),
        None if getuid().is_root() => PathBuf::from("/run/towpath-lab"),
        None => std::env::temp_dir().join(format!("towpath-lab-{}", getuid().as_raw())),
    };
    let advice = "set XDG_RUNTIME_DIR to a directory of yours";
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&base)
        .with_context(|| format!("cannot make {}; {advice}", base.display()))?;
    let meta = fs::symlink_metadata(&base)?;
    if !meta.is_dir() || meta.uid() != getuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(Problem::Setup(format!("{} is open to others; {advice}", base.display())).into());
    }
    Ok(base)
}

impl State {
    /// Makes the directory of a new lab.
    ///
    /// # Errors
    /// When there is one of this name.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        let directory = base()?.join(name);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Problem::Setup(format!(
                    "the lab {name} is up, or was not taken down: `towpath-lab lab down {name}`, or choose another --name"
                ))
                .into());
            }
            made => made.with_context(|| format!("cannot make {}", directory.display()))?,
        }
        let mark = new_mark();
        fs::write(directory.join(MARK_FILE), &mark)?;
        Ok(Self { name: name.to_owned(), directory, mark })
    }

    /// All labs of this user.
    ///
    /// # Errors
    /// When their directory cannot be read.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(base()?)?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            // One that was killed before it had written its mark has started nothing.
            let mark = fs::read_to_string(entry.path().join(MARK_FILE)).unwrap_or_default();
            all.push(Self { name, directory: entry.path(), mark });
        }
        all.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(all)
    }

    /// The lab of this name, or the only one.
    ///
    /// # Errors
    /// When there is none, or none of this name, or when one of several has to be named.
    pub fn find(name: Option<&str>) -> anyhow::Result<Self> {
        let mut all = Self::all()?;
        let names = all.iter().map(|state| state.name.as_str()).collect::<Vec<_>>().join(", ");
        let problem = |text: String| Err(Problem::Setup(text).into());
        match (name, all.len()) {
            (_, 0) => problem("no lab is up; `towpath-lab lab up demo` makes one".to_owned()),
            (None, 1) => Ok(all.remove(0)),
            (None, _) => problem(format!(
                "several labs are up: {names}; name one, as `lab exec --lab NAME` or `lab down NAME`"
            )),
            (Some(name), _) => match all.iter().position(|state| state.name == name) {
                Some(at) => Ok(all.swap_remove(at)),
                None => problem(format!("no lab {name} is up; there is {names}")),
            },
        }
    }

    /// Notes where the hosts are.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn write_up(directory: &Path, up: &Up) -> anyhow::Result<()> {
        let new = directory.join("hosts.new");
        fs::write(&new, serde_json::to_string(up)?)?;
        fs::rename(new, directory.join(HOSTS_FILE)).context("cannot note where the hosts are")
    }

    /// Where the hosts are.
    ///
    /// # Errors
    /// When the keeper is gone, or not ready.
    pub fn up(&self) -> anyhow::Result<Up> {
        let gone = || {
            let name = &self.name;
            Problem::Setup(format!(
                "the lab {name} is not up any more: `towpath-lab lab down {name}` clears it away"
            ))
        };
        let text = fs::read_to_string(self.directory.join(HOSTS_FILE)).map_err(|_| gone())?;
        let up: Up = serde_json::from_str(&text).map_err(|_| gone())?;
        // Its number may be another process's by now.
        if bears(up.keeper, &self.mark) { Ok(up) } else { Err(gone().into()) }
    }

    /// Living processes of the lab, the keeper first; this one is left out.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        if self.mark.is_empty() {
            return Vec::new();
        }
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let own = getpid().as_raw_nonzero().get().unsigned_abs();
        let mut found: Vec<u32> = numbers.filter(|&pid| pid != own && bears(pid, &self.mark)).collect();
        found.sort_by_key(|&pid| (!is_keeper(pid), pid));
        found
    }

    /// Removes what the lab has left in the file system.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot remove {}", self.directory.display()))
    }
}

/// A number that no other lab is likely to have: random keys of the standard library.
pub fn new_mark() -> String {
    use std::hash::BuildHasher as _;
    let now = (crate::run::clock::realtime_ns(), std::process::id());
    let half = || std::hash::RandomState::new().hash_one(now);
    format!("{:016x}{:016x}", half(), half())
}

/// Whether a process was started with this mark in its environment; one that has ended and was not waited for has none.
fn bears(pid: u32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes()))
}

/// Whether a process is a keeper.
pub fn is_keeper(pid: u32) -> bool {
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command_line.split(|&byte| byte == 0).nth(1) == Some(std::ffi::OsStr::new(KEEPER).as_bytes())
}

/// Sends a signal; a process that is gone by now does not mind.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
}
