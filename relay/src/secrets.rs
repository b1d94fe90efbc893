//! Where secrets are read from (a file, a descriptor, a credential of systemd), and who else may read them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::ConfigError;

/// Where systemd puts the credentials of a service (systemd.exec(5), LoadCredential).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Reads secrets, and remembers those that can be read only once.
#[derive(Default)]
pub struct Secrets {
    /// What came through pipes, by descriptor: a reload gets it again.
    pipes: BTreeMap<u32, Zeroizing<String>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} from pipes)", self.pipes.len())
    }
}

/// Who may read a secret.
#[derive(Clone, Copy, Debug)]
enum Readers {
    Owner,
    Group,
}

/// What a path in flags or file stands for.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Descriptor(u32),
}

impl Secrets {
    /// The text of a private key, as [`Secrets::read`]; a group may read it, because several services share one certificate.
    ///
    /// # Errors
    /// When it cannot be read, or others could read it as well.
    pub fn read_key(&mut self, path: &Path) -> Result<Zeroizing<String>, ConfigError> {
        self.read_for(path, Readers::Group)
    }

    /// The text of a secret file. `fd:N` and `/dev/fd/N` are a descriptor that the relay was started with, `credential:NAME` is a
    /// credential of systemd, everything else is a path.
    ///
    /// # Errors
    /// When it cannot be read, or group or others could read it as well.
    pub fn read(&mut self, path: &Path) -> Result<Zeroizing<String>, ConfigError> {
        self.read_for(path, Readers::Owner)
    }

    fn read_for(&mut self, path: &Path, readers: Readers) -> Result<Zeroizing<String>, ConfigError> {
        match place(path)? {
            Place::File(file) => read_file(&file, readers),
            Place::Descriptor(number) => self.read_descriptor(path, number, readers),
        }
    }

    fn read_descriptor(
        &mut self,
        path: &Path,
        number: u32,
        readers: Readers,
    ) -> Result<Zeroizing<String>, ConfigError> {
        if let Some(text) = self.pipes.get(&number) {
            return Ok(text.clone());
        }
        // Opened anew, so that each reading starts at the beginning of a file.
        let mut file = File::open(descriptor_path(number)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ConfigError::NoDescriptor { path: path.to_owned(), number },
            _ => ConfigError::Unreadable { path: path.to_owned(), source },
        })?;
        let text = read_checked(&mut file, path, readers)?;
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            self.pipes.insert(number, text.clone());
        }
        Ok(text)
    }
}

/// The path under which a secret can be opened again, where there is one.
pub fn path_to_open(path: &Path) -> Option<PathBuf> {
    match place(path).ok()? {
        Place::File(file) => Some(file),
        Place::Descriptor(number) => Some(descriptor_path(number)),
    }
}

fn descriptor_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{number}"))
}

fn place(path: &Path) -> Result<Place, ConfigError> {
    let Some(text) = path.to_str() else { return Ok(Place::File(path.to_owned())) };
    let number =
        ["fd:", "/dev/fd/", "/proc/self/fd/"].into_iter().find_map(|prefix| text.strip_prefix(prefix));
    if let Some(number) = number {
        return number.parse().map(Place::Descriptor).map_err(|_| {
            ConfigError::Usage(format!("{text:?} is no descriptor: write its number, for example fd:3"))
        });
    }
    let Some(name) = text.strip_prefix("credential:") else { return Ok(Place::File(path.to_owned())) };
    if name.is_empty() || name.contains('/') {
        return Err(ConfigError::Usage(format!(
            "{text:?} is no credential: write the name from LoadCredential=, for example credential:users"
        )));
    }
    match std::env::var_os(CREDENTIALS) {
        Some(directory) => Ok(Place::File(Path::new(&directory).join(name))),
        None => Err(ConfigError::Usage(format!(
            "{text}: ${CREDENTIALS} is not set; start the relay by systemd with LoadCredential={name}:FILE, or name a file"
        ))),
    }
}

fn read_file(path: &Path, readers: Readers) -> Result<Zeroizing<String>, ConfigError> {
    let mut file =
        File::open(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    read_checked(&mut file, path, readers)
}

/// Checks what was opened and not what has the name by now.
fn read_checked(file: &mut File, path: &Path, readers: Readers) -> Result<Zeroizing<String>, ConfigError> {
    match readers {
        Readers::Owner => check_private(file, path)?,
        Readers::Group => check_key(file, path)?,
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    Ok(text)
}

/// Refuses a key that every user of the machine can read.
fn check_key(file: &File, path: &Path) -> Result<(), ConfigError> {
    if mode(file, path)? & 0o007 != 0 {
        return Err(ConfigError::KeyReadable { path: path.to_owned() });
    }
    Ok(())
}

/// The permission bits of a file that has a name; none of one that has not.
fn mode(file: &File, path: &Path) -> Result<u32, ConfigError> {
    let metadata =
        file.metadata().map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    Ok(if metadata.is_file() && metadata.nlink() > 0 { metadata.mode() } else { 0 })
}

/// Refuses a file whose secrets others on the machine can read.
///
/// # Errors
/// When its mode lets group or others do anything, with two exceptions. What has no name (a pipe, a memfd) can be opened
/// by nobody else whatever its mode. A credential of systemd may have group bits: there they are the mask of the access
/// list that lets the service's user in, and the directory is closed to all others.
pub fn check_private(file: &File, path: &Path) -> Result<(), ConfigError> {
    let forbidden = if is_credential(path) { 0o007 } else { 0o077 };
    if mode(file, path)? & forbidden != 0 {
        return Err(ConfigError::WorldReadable { path: path.to_owned() });
    }
    Ok(())
}

fn is_credential(path: &Path) -> bool {
    std::env::var_os(CREDENTIALS).is_some_and(|directory| {
        // Only what lies in it: a way out by `..` is none.
        path.parent() == Some(Path::new(&directory)) && path.file_name().is_some()
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_path_a_descriptor_and_a_credential_are_told_apart() {
        let is = |text: &str| place(Path::new(text)).map_err(|error| error.to_string());
        for text in ["fd:3", "/dev/fd/3", "/proc/self/fd/3"] {
            assert_eq!(is(text), Ok(Place::Descriptor(3)));
        }
        assert_eq!(is("users"), Ok(Place::File("users".into())));
        assert!(is("fd:three").unwrap_err().contains("fd:3"));
        for text in ["credential:", "credential:../users"] {
            assert!(is(text).unwrap_err().contains("LoadCredential"), "{text}");
        }
        // Tests share one environment, which is left alone: under a service manager it may even be set.
        if std::env::var_os(CREDENTIALS).is_none() {
            assert!(is("credential:users").unwrap_err().contains("LoadCredential=users:FILE"));
        }
    }

    #[test]
    fn a_pipe_is_read_once_and_remembered_and_a_file_is_read_again() {
        let mut secrets = Secrets::default();
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"alice:a\n").unwrap();
        drop(writer);
        let path = PathBuf::from(format!("fd:{}", reader.as_raw_fd()));
        for _ in 0..2 {
            assert_eq!(*secrets.read(&path).unwrap(), "alice:a\n");
        }

        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"one").unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", file.as_raw_fd()));
        assert_eq!(*secrets.read(&path).unwrap(), "one");
        io::Write::write_all(&mut file, b" two").unwrap();
        assert_eq!(*secrets.read(&path).unwrap(), "one two");
    }

    #[test]
    fn what_others_can_read_is_refused_by_any_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let by_descriptor = PathBuf::from(format!("fd:{}", file.as_file().as_raw_fd()));
        for mode in [0o640, 0o604, 0o620, 0o601, 0o600] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            for path in [file.path(), &by_descriptor] {
                let read = Secrets::default().read(path);
                assert_eq!(read.is_ok(), mode == 0o600, "{mode:o} {}", path.display());
            }
        }
        let closed = Secrets::default().read(Path::new("fd:9999")).unwrap_err().to_string();
        assert!(closed.contains("9999<"), "{closed}");
    }
}
