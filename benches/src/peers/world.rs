//! Where it happens: three hosts in namespaces of our own, and a directory for their configuration.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use dataplane::netlink::Handle;
use dataplane::sys::namespace;
use dataplane::sys::signal::StopSignals;
use rustix::event::{PollFd, PollFlags, poll};
use tools::netns::Topology;

use super::programs::Programs;
use crate::process::{Process, Role};

/// Exit code of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// The hosts and the files.
pub struct World {
    /// `a` and `b` are the clients, `relay` is between them.
    pub topology: Topology,
    directory: Directory,
}

impl World {
    /// Moves this process, which must have one thread, into a network of its own and builds the hosts.
    ///
    /// # Errors
    /// Where neither user namespaces nor CAP_SYS_ADMIN are at hand, with the remedy.
    pub fn new() -> anyhow::Result<Self> {
        if let Err(refusal) = namespace::unshare_user_and_net() {
            // Root in a container without user namespaces may still make network namespaces.
            namespace::unshare_net().with_context(|| {
                format!("user namespaces are forbidden here ({refusal}): run as root, or sysctl kernel.unprivileged_userns_clone=1")
            })?;
        }
        Self::build()
    }

    /// As [`World::new`], without a user namespace: root stays root, and may have socket buffers of any size.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn of_root() -> anyhow::Result<Self> {
        namespace::unshare_net().context("no network namespace without root")?;
        Self::build()
    }

    fn build() -> anyhow::Result<Self> {
        let mut handle = Handle::open()?;
        let loopback = handle.link_index("lo")?;
        handle.set_up(loopback)?;
        let topology = Topology::new()?;
        let directory = Directory::new()?;
        end_in_order(directory.0.clone())?;
        Ok(Self { topology, directory })
    }

    /// A path for a file of this run.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.directory.0.join(name).display().to_string()
    }

    /// Writes a file that only this user can read, and answers its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<String> {
        let path = self.path(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(content.as_bytes()).with_context(|| format!("cannot write {path}"))?;
        Ok(path)
    }
}

/// How long `ethtool` may take.
const ETHTOOL_PATIENCE: Duration = Duration::from_secs(10);

impl World {
    /// Lets all cables take UDP superpackets whole, or makes the kernel cut them before (`ethtool -K`).
    ///
    /// # Errors
    /// When `ethtool` is missing or refuses.
    pub fn set_segmentation(&self, programs: &Programs, on: bool) -> anyhow::Result<()> {
        let ethtool = programs.path("ethtool")?;
        let Topology { a, relay, b } = &self.topology;
        let cables = [(a, ["a-b", "a-relay"]), (relay, ["relay-a", "relay-b"]), (b, ["b-a", "b-relay"])];
        for (namespace, devices) in cables {
            for device in devices {
                let state = if on { "on" } else { "off" };
                let command = [&ethtool, "-K", device, "tx-udp-segmentation", state].map(str::to_owned);
                Process::start("ethtool", Role::Program, &command, Some(namespace))?
                    .finish(ETHTOOL_PATIENCE)?;
            }
        }
        Ok(())
    }
}

/// On SIGINT or SIGTERM the directory goes, and with this process its children: the kernel kills them (PR_SET_PDEATHSIG).
fn end_in_order(directory: PathBuf) -> anyhow::Result<()> {
    let signals = StopSignals::new().context("cannot watch for signals")?;
    // Owns the signal descriptor; ends with the process.
    std::thread::Builder::new().name("bench-signals".to_owned()).spawn(move || {
        while signals.take().is_none() {
            // EINTR only means another look.
            let _ = poll(&mut [PollFd::new(signals.fd(), PollFlags::IN)], None);
        }
        remove(&directory);
        std::process::exit(INTERRUPTED);
    })?;
    Ok(())
}

/// A directory that goes away with this value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("towpath-benches-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot make {}; set TMPDIR to a directory you can write", path.display())
        })?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(directory: &Path) {
    // Left behind, it costs some disk; there is nobody to tell at this point.
    let _ = fs::remove_dir_all(directory);
}
