//! Network namespaces of our own, so that traffic never leaves the machine and nothing of it is changed.

mod topology;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread;

use dataplane::sys::namespace;
use rustix::io::{FdFlags, fcntl_setfd};

pub use topology::{Address, Cable, Topology};

/// A network namespace, alive as long as this value or a process in it.
#[derive(Debug)]
pub struct Namespace {
    /// Inherited by child processes, so that they can enter it.
    file: File,
}

impl Namespace {
    /// Makes a network namespace. The calling thread stays in its own.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN in the user namespace; ENOSPC when `user.max_net_namespaces` is reached.
    pub fn new() -> io::Result<Self> {
        let file = on_new_thread(|| {
            namespace::unshare_net()?;
            File::open("/proc/thread-self/ns/net")
        })?;
        fcntl_setfd(&file, FdFlags::empty())?;
        Ok(Self { file })
    }

    /// Runs `work` on a thread inside the namespace. Sockets it opens and threads it starts belong there.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN in the user namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_new_thread(|| {
            namespace::enter(&self.file)?;
            Ok(work())
        })
    }

    /// Where a child process finds the namespace: a path for [`enter`].
    #[must_use]
    pub fn path_for_child(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves this process, which must have one thread, into the namespace at `path`.
///
/// # Errors
/// When the path is not a network namespace, or without CAP_SYS_ADMIN.
pub fn enter(path: &str) -> io::Result<()> {
    namespace::enter(File::open(path)?)
}

/// Runs `work` on a thread of its own, whose network namespace ends with it.
fn on_new_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("lab-namespace".to_owned()).spawn_scoped(scope, work)?;
        worker.join().map_err(|_| io::Error::other("a thread in a namespace panicked"))?
    })
}
