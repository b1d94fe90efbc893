//! What programs write outside of their network namespace: the sockets of `wg`, notes on interfaces, name servers. Each host of a
//! lab has these places for itself, so that it changes nothing of the machine's, nor of another host's or lab's.

use std::ffi::CStr;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context;
use dataplane::sys::namespace;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::run::Problem;

/// Made where they do not exist, as far as this user may: tunnels make them otherwise, and share them then.
const MADE: [&str; 2] = ["/run/wireguard", "/run/towpath"];
/// Emptied where they exist: the state of resolvconf, and the way to systemd-resolved, which would take the number of an
/// interface for that of one of the host's.
const EMPTIED: [&str; 2] = ["/run/resolvconf", "/run/dbus"];
/// Read by every program that looks up names.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Who may what in the lab's own directories.
const MODE: &CStr = c"mode=755";

/// A mount namespace in which these places are a host's own; alive as long as this value or a process in it.
#[derive(Debug)]
pub struct Mounts(File);

impl Mounts {
    /// Makes it for the host of this name, in a lab with this directory. The calling thread stays in its own.
    ///
    /// # Errors
    /// [`Problem::Setup`] where mounts are forbidden, with the fix.
    pub(super) fn new(host: &str, directory: &Path) -> anyhow::Result<Self> {
        let problem = |error: anyhow::Error| {
            Problem::Setup(format!(
                "cannot keep the files of the host {host} apart from the machine's: {error:#}; mounts are forbidden here: in a \
                 container, --security-opt apparmor=unconfined"
            ))
        };
        // A thread of its own, whose mounts end with it and with the value.
        let made = thread::scope(|scope| -> anyhow::Result<File> {
            let work = || mount_own(host, directory);
            let worker = thread::Builder::new().name("lab-mounts".to_owned()).spawn_scoped(scope, work)?;
            worker.join().map_err(|_| anyhow::anyhow!("the thread that mounts failed"))?
        });
        Ok(Self(made.map_err(problem)?))
    }

    /// Its descriptor, which child processes inherit.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Where a child process finds it: a path for [`enter`].
    #[must_use]
    pub fn path_for_child(&self) -> String {
        format!("/proc/self/fd/{}", self.descriptor())
    }
}

/// Moves this process, which must have one thread, into the mount namespace at `path`; it stays in its directory.
///
/// # Errors
/// When the path is not a mount namespace, or without CAP_SYS_ADMIN.
pub(super) fn enter(path: &OsStr) -> anyhow::Result<()> {
    let here = std::env::current_dir();
    let mounts = File::open(path).with_context(|| format!("cannot open {}", Path::new(path).display()))?;
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
        .context("cannot enter the host's own /run and /etc")?;
    // That has led to the root directory; a directory that is not there any more is none of the lab's business.
    let _ = here.and_then(std::env::set_current_dir);
    Ok(())
}

fn mount_own(host: &str, directory: &Path) -> anyhow::Result<File> {
    let resolv_conf = fs::read(RESOLV_CONF).ok().zip(fs::canonicalize(RESOLV_CONF).ok());
    for path in MADE {
        // Who may not make it here may not in the lab either: then nobody writes there.
        let _ = fs::create_dir(path);
    }
    namespace::unshare_mounts()?;
    // What is mounted from now on is seen here only.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let places: Vec<PathBuf> =
        MADE.iter().chain(&EMPTIED).map(PathBuf::from).filter(|path| path.is_dir()).collect();
    for path in &places {
        mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, MODE)
            .with_context(|| format!("a tmpfs at {}", path.display()))?;
    }
    // Inherited by child processes, so that they can enter it.
    let made = File::open("/proc/thread-self/ns/mnt")?;
    fcntl_setfd(&made, FdFlags::empty())?;
    let Some((content, path)) = resolv_conf else { return Ok(made) };
    if places.iter().any(|place| path.starts_with(place)) {
        // It was a link to where nothing is now.
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(made);
    }
    let own = directory.join(format!("resolv-{host}.conf"));
    fs::write(&own, content).with_context(|| format!("cannot write {}", own.display()))?;
    mount_bind(&own, &path).with_context(|| format!("{} over {}", own.display(), path.display()))?;
    Ok(made)
}
