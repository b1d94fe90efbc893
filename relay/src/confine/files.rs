//! Landlock: which files can still be opened, and only for reading.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use crate::secrets::path_to_open;

/// The rules asked for; an older kernel enforces those that it knows.
const RULES: ABI = ABI::V6;
/// Its own state, for the figures at the end (threads of the kernel) and for reading descriptors.
const OWN_STATE: &str = "/proc/self";

/// Directories in which others keep their files, too: a rule for one of these gives away more than the relay's own.
const COMMON: &[&str] = &[
    "/",
    "/boot",
    "/dev",
    "/etc",
    "/etc/ssl",
    "/etc/ssl/private",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/usr/local/etc",
    "/var",
    "/var/lib",
    "/var/tmp",
];

/// Why nothing is restricted.
#[derive(Debug, thiserror::Error)]
pub enum NotRestricted {
    /// The kernel has no Landlock, or it is switched off.
    #[error("this kernel has no Landlock: it needs CONFIG_SECURITY_LANDLOCK, and landlock among its lsm=")]
    Absent,
    /// The kernel refuses the rules.
    #[error("Landlock: {0}")]
    Refused(#[from] RulesetError),
}

/// What can still be read.
#[derive(Debug)]
pub struct Readable {
    /// The directories, for people; `None` without restriction.
    names: Option<String>,
    /// Those of them that are not the relay's own.
    pub common: Vec<PathBuf>,
    /// Held open, because a rule is about what the kernel keeps of a directory, and of this one it keeps nothing else.
    _own_state: Option<File>,
}

impl Readable {
    /// Without restriction.
    pub fn everything() -> Self {
        Self { names: None, common: Vec::new(), _own_state: None }
    }

    /// What can be opened from now on.
    pub fn in_words(&self) -> String {
        match self.names.as_deref() {
            None => "all".to_owned(),
            Some("") => "none".to_owned(),
            Some(names) => format!("read only, below {names}"),
        }
    }
}

/// Restricts this thread and those it starts later: of all files only the directories of `files` can be read, no TCP
/// socket can be bound or connected, no other process be signalled.
///
/// Directories, because a file that is changed is usually a new one under the old name.
pub fn restrict(files: &[PathBuf]) -> Result<Readable, NotRestricted> {
    let readable = AccessFs::ReadFile | AccessFs::ReadDir;
    let own_state = File::open(OWN_STATE).ok();
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        .create()?;
    let places = places(files);
    if let Some(own_state) = &own_state {
        rules = rules.add_rule(PathBeneath::new(own_state, readable))?;
    }
    for place in &places {
        // What cannot be opened now (a closed descriptor) cannot be read later either.
        let Ok(opened) = PathFd::new(place) else { continue };
        let access = if place.is_dir() { readable } else { AccessFs::ReadFile.into() };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    if rules.restrict_self()?.ruleset == RulesetStatus::NotEnforced {
        return Err(NotRestricted::Absent);
    }
    let names: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let common = places.iter().filter(|place| is_common(place)).cloned().collect();
    Ok(Readable { names: Some(names.join(" ")), common, _own_state: own_state })
}

/// The directories that have to stay readable for `files`: where each is named, and where it really is. A file without a
/// directory (a descriptor) stands for itself.
fn places(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut places = BTreeSet::new();
    for path in files.iter().filter_map(|path| path_to_open(path)) {
        if path.starts_with(OWN_STATE) {
            // A pipe or another thing without a file behind it is not opened by a path.
            if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
                places.insert(path);
            }
            continue;
        }
        let named = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        places.extend(fs::canonicalize(named));
        places.extend(fs::canonicalize(&path).ok().and_then(|real| real.parent().map(Path::to_owned)));
    }
    places
}

/// Whether others keep their files in a directory; so do those of each person in theirs.
fn is_common(directory: &Path) -> bool {
    COMMON.iter().any(|common| directory == Path::new(common))
        || directory.parent() == Some(Path::new("/home"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_others_are_told_from_those_of_a_relay() {
        for (directory, expected) in [
            ("/", true),
            ("/etc", true),
            ("/home/alice", true),
            ("/root", true),
            ("/etc/towpath-relay", false),
            ("/home/alice/relay", false),
            ("/config", false),
            ("/run/credentials/towpath-relay.service", false),
        ] {
            assert_eq!(is_common(Path::new(directory)), expected, "{directory}");
        }
    }

    #[test]
    fn a_linked_file_needs_both_directories_and_a_relative_one_that_of_the_program() {
        let (names, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(data.path().join("users"), "").unwrap();
        std::os::unix::fs::symlink(data.path().join("users"), names.path().join("users")).unwrap();
        let real = |directory: &tempfile::TempDir| fs::canonicalize(directory.path()).unwrap();
        assert_eq!(places(&[names.path().join("users")]), [real(&names), real(&data)].into());
        let own = std::env::current_dir().unwrap();
        assert_eq!(places(&["Cargo.toml".into()]), [fs::canonicalize(own).unwrap()].into());
        assert!(places(&["fd:9999".into()]).is_empty());
    }
}
