//! What was done to the host, written down before it is done, so that somebody else can take it back when this process
//! cannot.
//!
//! One file for each tunnel of each network namespace, in [`DIRECTORY`]; whoever has it locked (fcntl(2), so that the
//! kernel knows which process that is) runs the tunnel. Its lines are JSON and are only ever appended:
//!
//! ```text
//!  {"namespace_cookie":4097}
//!  {"runs":"/etc/towpath/wg0.conf","with":{…}}
//!  {"done":{"rule":{…}}}
//!  {"taken_back":true}
//! ```
//!
//! What was done last is taken back first, so that a line need not say which step it is about.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockOffsetType, FlockType, Pid, fcntl_getlk};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::Step;
use super::names::Resolver;
use crate::config::Fixed;
use crate::sys::namespace;

/// Where the files are, unless the service manager names another place (`RUNTIME_DIRECTORY` of systemd.exec(5)).
pub const DIRECTORY: &str = "/run/towpath";
/// No file is longer than this, bytes; hooks are its longest lines.
const LENGTH_MAX: u64 = 16 << 20;

/// A file that this process has locked.
#[derive(Debug)]
pub struct Journal {
    /// `None` where nothing can be written: then only this process can take its steps back.
    file: Option<File>,
    path: PathBuf,
    /// What was done and not taken back, oldest first.
    steps: Vec<Step>,
}

/// What a journal turns out to be.
#[derive(Debug)]
pub enum Found {
    /// Nobody runs this tunnel. Steps in it are what a process that was killed has left.
    Free(Journal),
    /// This process runs it; `None` when it is in another PID namespace.
    Running(Option<Pid>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", untagged)]
enum Line {
    Done {
        done: Step,
    },
    /// Of another version of this program; after what is known, because the first that fits is taken.
    Unknown {
        #[serde(skip_serializing)]
        done: IgnoredAny,
    },
    TakenBack {
        taken_back: bool,
    },
    /// The configuration of the tunnel, for whoever is to read it again, and what it said at the start.
    Runs {
        runs: PathBuf,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        with: Option<Fixed>,
    },
    /// The network namespace that the tunnel is in; its inode, which the file is named after, is used again when it is gone.
    Namespace {
        namespace_cookie: u64,
    },
}

/// The directory of this process.
#[must_use]
pub fn directory() -> PathBuf {
    let given = std::env::var_os("RUNTIME_DIRECTORY").filter(|given| !given.is_empty());
    // There may be several, between colons; the first is the service's own.
    let first = given.map(|given| {
        let bytes = given.as_encoded_bytes().split(|byte| *byte == b':').next().unwrap_or_default().to_vec();
        PathBuf::from(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes))
    });
    first.unwrap_or_else(|| DIRECTORY.into())
}

impl Journal {
    /// Looks for the journal of an interface of this network namespace, and locks it. Where there is none it is made.
    ///
    /// # Errors
    /// Where nothing can be written, or what is there cannot be read.
    pub fn open(directory: &Path, interface: &str) -> io::Result<Found> {
        let path = path(directory, interface)?;
        let named = |error: io::Error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "; run as root, who may write there, or set RUNTIME_DIRECTORY to a directory of yours"
                }
                io::ErrorKind::ReadOnlyFilesystem => "; mount /run writable",
                _ => "",
            };
            io::Error::new(error.kind(), format!("{}: {error}{remedy}", path.display()))
        };
        loop {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(named)?;
            let mut options = File::options();
            let file = match options.read(true).append(true).create(true).mode(0o600).open(&path) {
                // Whoever was the last to go has just removed the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(named)?,
            };
            // POSIX locks: a process gives them up when it closes any descriptor of the file, so that it opens it once.
            match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => match holder(&file).map_err(named)? {
                    Some(process) => return Ok(Found::Running(process)),
                    None => continue,
                },
                Err(error) => return Err(named(error.into())),
            }
            // Whoever had it may have removed it before we got the lock.
            if file.metadata().map_err(named)?.nlink() == 0 {
                continue;
            }
            let mut journal = Self { file: Some(file), path: path.clone(), steps: Vec::new() };
            journal.read().map_err(named)?;
            return Ok(Found::Free(journal));
        }
    }

    /// One that is nowhere but in memory.
    #[must_use]
    pub fn unwritten() -> Self {
        Self { file: None, path: PathBuf::new(), steps: Vec::new() }
    }

    /// Writes down what is about to be done.
    ///
    /// # Errors
    /// When it cannot be written; then it is not to be done.
    pub fn note(&mut self, step: Step) -> io::Result<()> {
        let line = Line::Done { done: step };
        self.append(&line)?;
        if let Line::Done { done } = line {
            self.steps.push(done);
        }
        Ok(())
    }

    /// Writes down which configuration the tunnel has, by its absolute path, and what of it is for the start only.
    ///
    /// # Errors
    /// When it cannot be written, as with a path that is not UTF-8.
    pub fn note_file(&mut self, file: &Path, with: Fixed) -> io::Result<()> {
        self.append(&Line::Runs { runs: file.to_owned(), with: Some(with) })
    }

    /// What is to be taken back next: the newest step.
    #[must_use]
    pub fn newest(&self) -> Option<&Step> {
        self.steps.last()
    }

    /// Whether there is something to be taken back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The newest step is taken back, or cannot be.
    pub fn forget_newest(&mut self) {
        if self.steps.pop().is_some()
            && let Err(error) = self.append(&Line::TakenBack { taken_back: true })
        {
            // It would be taken back once more, which finds nothing.
            tracing::warn!("{}: {error}", self.path.display());
        }
    }

    /// Removes the file, and the directory with the last one.
    pub fn remove(self) {
        if self.file.is_none() {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{}: {error}", self.path.display());
        }
        if let Some(directory) = self.path.parent() {
            // Others have files in it, or it is the service manager's.
            let _ = fs::remove_dir(directory);
        }
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
        text.push(b'\n');
        // By one write: what is there is whole, or its last line is not and was not acted on.
        file.write_all(&text)
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = String::new();
        file.rewind()?;
        (&*file).take(LENGTH_MAX).read_to_string(&mut text)?;
        self.steps = steps_in(&text);
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        if cookie_in(&text).is_none()
            && let Ok(namespace_cookie) = namespace::cookie()
        {
            // Without it, it is as one of an older kernel, and only its name tells of which namespace it is.
            let _ = self.append(&Line::Namespace { namespace_cookie });
        }
        Ok(())
    }
}

/// The steps in a journal that are not taken back. What was not written to its end was not done either.
fn steps_in(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Line::Done { done }) => steps.push(done),
            // It has its place: a later line may say that it is taken back.
            Ok(Line::Unknown { .. }) => steps.push(Step::Unknown),
            Ok(Line::TakenBack { .. }) => _ = steps.pop(),
            Ok(Line::Runs { .. } | Line::Namespace { .. }) | Err(_) => {}
        }
    }
    steps
}

/// The network namespace that a journal is of, where that was noted.
fn cookie_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| match serde_json::from_str(line) {
        Ok(Line::Namespace { namespace_cookie }) => Some(namespace_cookie),
        _ => None,
    })
}

/// Removes the journals of tunnels that were killed in a network namespace that is gone, whose inode this one has got. What they
/// had done there is gone with it, and their hooks would be run in a namespace that is not theirs. Not for a process that has a journal
/// open: it would lose its lock.
pub fn clear_stale(directory: &Path) {
    let (Ok(namespace), Ok(cookie)) = (namespace::current(), namespace::cookie()) else { return };
    for path in journals_of(directory, namespace) {
        match remove_stale(&path, cookie) {
            Ok(Some(steps)) => tracing::warn!(
                "{}: a process that was killed has left it in a network namespace that is gone: it is removed, and no hook of it is run{}",
                path.display(),
                records_in(&steps)
            ),
            Ok(None) => {}
            Err(error) => tracing::warn!("{}: {error}", path.display()),
        }
    }
}

/// What is left outside the network namespace, and how it is removed: by a person, as another tunnel may have the name by now.
fn records_in(steps: &[Step]) -> String {
    let commands = steps.iter().filter_map(|step| match step {
        Step::Names { program: Resolver::Resolvconf, record } => Some(format!("`resolvconf -d {record}`")),
        _ => None,
    });
    let commands: Vec<_> = commands.collect();
    if commands.is_empty() {
        return String::new();
    }
    format!("; its name servers stay until {}", commands.join(" and "))
}

/// Removes a journal if it is of another network namespace; the answer is what was in it.
fn remove_stale(path: &Path, cookie: u64) -> io::Result<Option<Vec<Step>>> {
    let file = match File::options().read(true).write(true).open(path) {
        // Its process has just ended, or it is another user's.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(None);
        }
        opened => opened?,
    };
    let mut text = String::new();
    (&file).take(LENGTH_MAX).read_to_string(&mut text)?;
    if cookie_in(&text).is_none_or(|noted| noted == cookie) {
        return Ok(None);
    }
    // Whoever is as far as we are now has it, or has removed it.
    if fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || file.metadata()?.nlink() == 0 {
        return Ok(None);
    }
    fs::remove_file(path)?;
    if let Some(directory) = path.parent() {
        // Others have files in it, or it is the service manager's.
        let _ = fs::remove_dir(directory);
    }
    Ok(Some(steps_in(&text)))
}

/// The configuration that the last process to run this tunnel has noted, and what that said.
fn file_in(text: &str) -> Option<(PathBuf, Option<Fixed>)> {
    text.lines().rev().find_map(|line| match serde_json::from_str(line) {
        Ok(Line::Runs { runs, with }) => Some((runs, with)),
        _ => None,
    })
}

/// The configuration of a tunnel of this network namespace that another process runs, and what that said at the start, unless
/// an older version runs it; `None` where nobody does, or that is not known. Not for a process that has a journal open: it would
/// lose its lock.
#[must_use]
pub fn file_of(directory: &Path, interface: &str) -> Option<(PathBuf, Option<Fixed>)> {
    let file = File::open(path(directory, interface).ok()?).ok()?;
    holder(&file).ok()??;
    let mut text = String::new();
    (&file).take(LENGTH_MAX).read_to_string(&mut text).ok()?;
    file_in(&text)
}

/// Who has a file locked; `None` when nobody has it any more.
fn holder(file: &File) -> io::Result<Option<Option<Pid>>> {
    let wanted = Flock {
        start: 0,
        length: 0,
        pid: None,
        typ: FlockType::WriteLock,
        offset_type: FlockOffsetType::Set,
    };
    Ok(fcntl_getlk(file, &wanted)?.map(|lock| lock.pid))
}

/// A turn in what no two tunnels may do at the same time, such as choosing a free table; given up when dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held for its lock")] Option<File>);

/// Waits for a turn. Where there is no directory, nobody is waited for.
#[must_use]
pub fn turn(directory: &Path) -> Turn {
    let locked = |file: &File| flock(file, FlockOperation::LockExclusive).is_ok();
    Turn(File::open(directory).ok().filter(locked))
}

/// The journal's file: the same name in another network namespace is another interface.
fn path(directory: &Path, interface: &str) -> io::Result<PathBuf> {
    Ok(directory.join(format!("{interface}@{}", namespace::current()?)))
}

/// Whether there is a journal of an interface of this network namespace.
#[must_use]
pub fn exists(directory: &Path, interface: &str) -> bool {
    path(directory, interface).is_ok_and(|path| path.exists())
}

/// The steps of all other journals of this network namespace, of tunnels that run or were killed.
#[must_use]
pub fn steps_of_others(directory: &Path, interface: &str) -> Vec<Step> {
    let (Ok(own), Ok(namespace)) = (path(directory, interface), namespace::current()) else {
        return Vec::new();
    };
    let others = journals_of(directory, namespace).filter(|file| *file != own);
    let texts = others.filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| steps_in(&text)).collect()
}

/// The files of all journals of a network namespace.
fn journals_of(directory: &Path, namespace: u64) -> impl Iterator<Item = PathBuf> {
    let files =
        fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let end = format!("@{namespace}");
    files.filter(move |file| file.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(directory: &Path) -> Journal {
        match Journal::open(directory, "wg0").expect("opened") {
            Found::Free(journal) => journal,
            Found::Running(process) => panic!("{process:?} has it"),
        }
    }

    fn hook(command: &str) -> Step {
        Step::PostDown { commands: vec![command.to_owned()] }
    }

    #[test]
    fn what_was_noted_and_not_taken_back_is_there_for_the_next_process() {
        let folder = tempfile::tempdir().expect("a directory");
        let directory = folder.path().join("towpath");
        let mut journal = free(&directory);
        for command in ["one", "two", "three"] {
            journal.note(hook(command)).expect("noted");
        }
        journal.forget_newest();
        journal.note(hook("four")).expect("noted");
        let path = journal.path.clone();
        drop(journal);
        // Killed while it wrote: what was not written to its end was not done.
        let mut text = fs::read_to_string(&path).expect("text");
        text.push_str("{\"done\":{\"post_down\":{\"comm");
        fs::write(&path, &text).expect("written");

        let mut journal = free(&directory);
        assert_eq!(journal.steps, [hook("one"), hook("two"), hook("four")]);
        journal.note(hook("five")).expect("noted");
        drop(journal);
        let mut journal = free(&directory);
        for expected in ["five", "four", "two", "one"] {
            assert_eq!(journal.newest(), Some(&hook(expected)));
            journal.forget_newest();
        }
        assert!(journal.is_empty() && exists(&directory, "wg0"));
        journal.remove();
        assert!(!directory.exists());
    }

    #[test]
    fn what_is_of_a_namespace_that_is_gone_is_removed_and_what_does_not_say_so_is_kept() {
        let folder = tempfile::tempdir().expect("a directory");
        let directory = folder.path().join("towpath");
        let mut journal = free(&directory);
        journal.note(hook("ours")).expect("noted");
        let path = journal.path.clone();
        drop(journal);
        let text = fs::read_to_string(&path).expect("text");
        let cookie = namespace::cookie().expect("Linux 5.14");
        assert_eq!(cookie_in(&text), Some(cookie));
        clear_stale(&directory);
        let journal = free(&directory);
        assert_eq!(journal.steps, [hook("ours")]);
        drop(journal);
        assert_eq!(fs::read_to_string(&path).expect("text"), text, "it is said once");

        // One of an older version is as ours, and says so from now on.
        let line = |cookie: u64| format!("{{\"namespace_cookie\":{cookie}}}\n");
        fs::write(&path, text.replace(&line(cookie), "")).expect("written");
        clear_stale(&directory);
        let journal = free(&directory);
        assert_eq!(journal.steps, [hook("ours")]);
        drop(journal);
        assert_eq!(cookie_in(&fs::read_to_string(&path).expect("text")), Some(cookie));

        // One of another interface in the namespace that had our inode; of another inode nothing is known.
        let gone = text.replace(&line(cookie), &line(cookie + 1));
        let number = namespace::current().expect("a number");
        let (stale, other) =
            (directory.join(format!("wg1@{number}")), directory.join(format!("wg1@1{number}")));
        for file in [&path, &stale, &other] {
            fs::write(file, &gone).expect("written");
        }
        assert_eq!(records_in(&steps_in(&gone)), "");
        let record = Step::Names { program: Resolver::Resolvconf, record: "tun.wg0".to_owned() };
        assert_eq!(records_in(&[record]), "; its name servers stay until `resolvconf -d tun.wg0`");
        clear_stale(&directory);
        assert!(!path.exists() && !stale.exists() && other.exists());
        assert!(free(&directory).is_empty());
    }

    #[test]
    fn what_another_version_has_noted_keeps_its_place() {
        let known = |command: &str| serde_json::to_string(&Line::Done { done: hook(command) }).expect("text");
        let (one, two) = (known("one"), known("two"));
        let (unknown, back) = ("{\"done\":{\"bridge\":{\"name\":\"br0\"}}}", "{\"taken_back\":true}");
        let more = "{\"done\":{\"post_down\":{\"commands\":[\"x\"],\"user\":7}}}";
        let found = |lines: &[&str]| steps_in(&lines.join("\n"));
        assert_eq!(found(&[&one, unknown, back]), [hook("one")]);
        assert_eq!(found(&[&one, unknown, &two, back, back]), [hook("one")]);
        assert_eq!(found(&[&one, unknown, &two]), [hook("one"), Step::Unknown, hook("two")]);
        assert_eq!(found(&[&one, "\"bridge\"", "{\"done\":{\"bri", "{}", back]), []);
        assert_eq!(found(&[&one, more]).len(), 2, "more is said about it than is known");
    }

    #[test]
    fn the_configuration_is_noted_and_is_no_step() {
        let folder = tempfile::tempdir().expect("a directory");
        let mut journal = free(folder.path());
        for file in ["/one/wg0.conf", "/two/wg0.conf"] {
            journal.note(hook(file)).expect("noted");
            journal.note_file(Path::new(file), Fixed::default()).expect("noted");
        }
        journal.forget_newest();
        let text = fs::read_to_string(&journal.path).expect("text");
        assert_eq!(steps_in(&text), [hook("/one/wg0.conf")]);
        let with = Some(Fixed::default());
        assert_eq!(file_in(&text), Some(("/two/wg0.conf".into(), with)));
        assert_eq!(file_in("{\"runs\":\"/one\"}"), Some(("/one".into(), None)), "of an older version");
        assert_eq!(file_in("{\"taken_back\":true}\n{\"runs\":\"/one"), None);
        drop(journal);
        assert_eq!(file_of(folder.path(), "wg0"), None, "nobody runs it");
    }

    #[test]
    fn tunnels_of_the_same_network_namespace_know_of_each_other() {
        let folder = tempfile::tempdir().expect("a directory");
        let mut journal = free(folder.path());
        journal.note(hook("one")).expect("noted");
        assert_eq!(steps_of_others(folder.path(), "wg0"), []);
        assert_eq!(steps_of_others(folder.path(), "wg1"), [hook("one")]);
        let elsewhere = folder.path().join("wg0@1");
        fs::rename(&journal.path, elsewhere).expect("renamed");
        assert_eq!(steps_of_others(folder.path(), "wg1"), []);
    }

    #[test]
    fn nothing_is_written_where_nothing_can_be() {
        let mut journal = Journal::unwritten();
        journal.note(hook("one")).expect("noted");
        assert_eq!(journal.newest(), Some(&hook("one")));
        journal.forget_newest();
        assert!(journal.is_empty());
        journal.remove();
    }
}
