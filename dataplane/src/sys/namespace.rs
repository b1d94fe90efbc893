//! User, network and mount namespaces (namespaces(7)): which one this is, and, for the lab and for tests, others.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Moves this process into a new user namespace, as its root, and a new network namespace.
/// Works without privileges where user namespaces are allowed. Call it while the process has one thread.
///
/// # Errors
/// EPERM where user namespaces are forbidden (`kernel.unprivileged_userns_clone`, AppArmor), EINVAL with more threads.
pub fn unshare_user_and_net() -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
    // The order is the kernel's: gid_map can be written without privileges only after setgroups is denied.
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Moves the calling thread into a new network namespace; needs CAP_SYS_ADMIN in its user namespace.
///
/// # Errors
/// EPERM without the capability.
pub fn unshare_net() -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

/// Gives the calling thread, and threads and processes that it starts, a mount namespace of its own, with what is mounted now;
/// needs CAP_SYS_ADMIN in its user namespace.
///
/// # Errors
/// EPERM without the capability.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)
}

/// Moves the calling thread into the network namespace that `namespace` refers to (setns(2)).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EINVAL when it is not a network namespace.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: setns takes two integers and touches no memory of ours.
    let answer = unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of the calling thread's network namespace among those that there are now: its inode (namespaces(7)). Another one
/// may get it when this one is gone.
///
/// # Errors
/// Where /proc is not to be seen.
pub fn current() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// A number of the calling thread's network namespace that no other one gets while this kernel runs (SO_NETNS_COOKIE, Linux 5.14).
///
/// # Errors
/// ENOPROTOOPT before that; no descriptors.
pub fn cookie() -> io::Result<u64> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    let cookie_ptr: *mut u64 = &raw mut cookie;
    // SAFETY: `cookie` and `len` live on this stack frame until the call returns; `len` says how many bytes may be written.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            cookie_ptr.cast(),
            &raw mut len,
        )
    };
    if answer == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: unshare takes one integer. CLONE_NEWUSER, CLONE_NEWNET and CLONE_NEWNS separate no memory and no descriptors.
    let answer = unsafe { libc::unshare(flags) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
