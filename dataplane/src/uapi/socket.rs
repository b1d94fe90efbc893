//! The socket that `wg` finds: made for its owner alone, in place of one that nobody serves, and removed at the end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, fchmod, inotify};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::DIRECTORY;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening socket with its file.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: Option<(u64, u64)>,
    /// Tells of changes of the file.
    watch: Option<OwnedFd>,
}

impl Listener {
    /// Makes the socket of an interface, readable and writable for its owner alone. A file that a dead process has left is
    /// replaced.
    ///
    /// # Errors
    /// `AddrInUse` when a living one is there; a missing permission. The text names the remedy.
    pub fn bind(interface: &str) -> io::Result<Self> {
        Self::bind_in(Path::new(DIRECTORY), interface)
    }

    /// As [`Listener::bind`], in another directory.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind_in(directory: &Path, interface: &str) -> io::Result<Self> {
        let path = directory.join(format!("{interface}.sock"));
        let name = path.display();
        let cannot = |error: io::Error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "; run as root, who may write there",
                io::ErrorKind::ReadOnlyFilesystem => "; mount /run writable",
                _ => "",
            };
            io::Error::new(error.kind(), format!("the socket {name} cannot be made: {error}{remedy}"))
        };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(cannot)?;
        clear(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                let text =
                    format!("{name} is served by another program: stop it or use another interface name");
                return io::Error::new(error.kind(), text);
            }
            cannot(error)
        })?;
        let made = || -> io::Result<OwnedFd> {
            let socket = new_socket()?;
            // The file gets the mode of the socket (unix(7)), so that it is never open to others.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        Ok(Self::new(made().map_err(cannot)?.into(), path))
    }

    /// Takes a socket that listens already, of the same interface (WG_UAPI_FD).
    ///
    /// # Errors
    /// When it is no listening socket of this kind.
    pub fn inherited(socket: OwnedFd, interface: &str) -> io::Result<Self> {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let listens = rustix::net::sockopt::socket_acceptconn(&listener)?;
        let address = listener.local_addr()?;
        if !listens {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
        }
        let default = Path::new(DIRECTORY).join(format!("{interface}.sock"));
        let path = address.as_pathname().map_or(default, Path::to_owned);
        Ok(Self::new(listener, path))
    }

    fn new(listener: UnixListener, path: PathBuf) -> Self {
        let file = inode(&path);
        let watch = watch(&path);
        if let Err(error) = &watch {
            tracing::debug!("{}: its removal is not noticed: {error}", path.display());
        }
        Self { listener, path, file, watch: watch.ok() }
    }

    /// The next connection.
    ///
    /// # Errors
    /// What accept(2) answers; `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// What is readable when its file has changed; read it by [`Listener::is_removed`].
    #[must_use]
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Whether its file is gone or another one by now.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        if let Some(watch) = &self.watch {
            // What has happened does not matter, how things are does.
            let mut events = [0; 512];
            while rustix::io::read(watch, &mut events).is_ok_and(|len| len > 0) {}
        }
        self.file.is_some() && inode(&self.path) != self.file
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && inode(&self.path) == self.file {
            // When it is gone at this very moment, all is well too.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Removes the file that a dead process has left for an interface, if any.
///
/// # Errors
/// `AddrInUse` when a living one has it; a missing permission.
pub fn clear_dead(interface: &str) -> io::Result<()> {
    clear(&Path::new(DIRECTORY).join(format!("{interface}.sock")))
}

/// Removes the file of a socket that nobody serves. One that is served is looked at again for a moment: a process that was
/// killed closes one descriptor after the other.
fn clear(path: &Path) -> io::Result<()> {
    const LOOKS: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(25);
    for _ in 1..LOOKS {
        match clear_now(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(PAUSE),
            cleared => return cleared,
        }
    }
    clear_now(path)
}

fn clear_now(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket has its name"));
    }
    match connect(new_socket()?, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Err(Errno::NOENT) => Ok(()),
        // AGAIN: someone has it who has not accepted for a while.
        Ok(()) | Err(Errno::AGAIN) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error.into()),
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Watches for the removal of a file. The file itself lives on in the socket, so that its link count says that it is removed.
fn watch(path: &Path) -> io::Result<OwnedFd> {
    use inotify::WatchFlags as Flags;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, path, Flags::ATTRIB | Flags::DELETE_SELF | Flags::MOVE_SELF)?;
    Ok(watch)
}

/// The index of an interface of this network namespace, by its name.
pub(super) fn interface_index(name: &str) -> Option<u32> {
    rustix::net::netdevice::name_to_index(new_socket().ok()?, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_owners_alone_and_goes_with_the_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let inside = directory.path().join("wireguard");
        let listener = Listener::bind_in(&inside, "wg0").expect("bound");
        let path = listener.path().to_owned();
        assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o7777, 0o600);
        assert!(UnixStream::connect(&path).is_ok() && listener.accept().is_ok());
        assert!(!listener.is_removed());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_one_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wg0.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists(), "closed without being removed");
        let living = Listener::bind_in(directory.path(), "wg0").expect("the dead one is replaced");
        let error = Listener::bind_in(directory.path(), "wg0").expect_err("it lives");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another interface name"), "{error}");
        assert!(UnixStream::connect(&path).is_ok(), "it still lives");
        drop(living);

        fs::write(&path, "mine").expect("written");
        let error = Listener::bind_in(directory.path(), "wg0").expect_err("not ours to remove");
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"mine");
    }

    #[test]
    fn removal_is_noticed_and_a_successors_file_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = Listener::bind_in(directory.path(), "wg0").expect("bound");
        let path = listener.path().to_owned();
        fs::remove_file(&path).expect("removed");
        let watch = listener.watch().expect("a watch");
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1));
        assert!(listener.is_removed());
        let successor = Listener::bind_in(directory.path(), "wg0").expect("bound");
        drop(listener);
        assert!(path.exists() && !successor.is_removed());
    }
}
