//! What programs write outside of their network namespace: the sockets of `wg`, notes on interfaces, name servers. A lab has
//! these places for itself, so that it changes nothing of the host's, nor of another lab's.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dataplane::sys::namespace;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

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

/// Gives the calling thread, and what it starts, these places anew, in a mount namespace of its own. `directory` is the lab's.
///
/// # Errors
/// [`Problem::Setup`] where mounts are forbidden, with the fix.
pub(super) fn separate(directory: &Path) -> anyhow::Result<()> {
    let problem = |error: anyhow::Error| {
        Problem::Setup(format!(
            "cannot keep the lab's files apart from the host's: {error:#}; mounts are forbidden here: in a container, \
             --security-opt apparmor=unconfined"
        ))
    };
    Ok(mount_own(directory).map_err(problem)?)
}

fn mount_own(directory: &Path) -> anyhow::Result<()> {
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
    let Some((content, path)) = resolv_conf else { return Ok(()) };
    if places.iter().any(|place| path.starts_with(place)) {
        // It was a link to where nothing is now.
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        return fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()));
    }
    let own = directory.join("resolv.conf");
    fs::write(&own, content).with_context(|| format!("cannot write {}", own.display()))?;
    mount_bind(&own, &path).with_context(|| format!("{} over {}", own.display(), path.display()))
}
