//! Finds the runs in directories, for everything that takes several: each is a directory with a `run.json`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::bundle::RUN_JSON;

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The runs, by name.
    pub runs: Vec<PathBuf>,
    /// Directories beside runs that hold neither a run nor another directory, by name: their runs died, or were never written.
    pub dead: Vec<PathBuf>,
}

impl Found {
    /// Looks into the directory at `path`, and so many levels of directories in it. A path that is a run itself, or no directory,
    /// is all there is.
    ///
    /// # Errors
    /// When a directory cannot be read; the message names it.
    pub fn at(path: &Path, levels: u32) -> anyhow::Result<Self> {
        if !path.is_dir() || path.join(RUN_JSON).exists() {
            return Ok(Self { runs: vec![path.to_owned()], dead: Vec::new() });
        }
        let mut found = Self::default();
        found.look(path, levels)?;
        found.runs.sort();
        found.dead.sort();
        Ok(found)
    }

    fn look(&mut self, directory: &Path, levels: u32) -> anyhow::Result<()> {
        let inside = directories(directory)?;
        let (runs, others): (Vec<_>, Vec<_>) =
            inside.into_iter().partition(|path| path.join(RUN_JSON).exists());
        for other in others {
            if levels > 0 {
                self.look(&other, levels - 1)?;
            }
            if !runs.is_empty() && directories(&other)?.is_empty() {
                self.dead.push(other);
            }
        }
        self.runs.extend(runs);
        Ok(())
    }
}

/// What is to be said of a directory whose run died.
#[must_use]
pub fn epitaph(dead: &Path) -> String {
    format!("{} holds no {RUN_JSON}: its run died, or was never written", dead.display())
}

/// The directories in one, but for hidden ones.
fn directories(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("cannot read {}", path.display());
    let mut inside = Vec::new();
    for entry in fs::read_dir(path).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_dir() {
            inside.push(entry.path());
        }
    }
    Ok(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_as_deep_as_is_asked_and_the_dead_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a/2", "a/1", "a/died", "a/.hidden", "b/c/3", "notes/empty"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        assert_eq!(Found::at(dir.path(), 9).unwrap(), Found::default(), "no run, so nothing beside one");
        for name in ["a/2", "a/1", "b/c/3"] {
            fs::write(at(name).join(RUN_JSON), "{}").unwrap();
        }
        let found = |name: &str, levels| {
            let Found { runs, dead } = Found::at(&at(name), levels).unwrap();
            let named = |paths: Vec<PathBuf>| -> Vec<String> {
                let name = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
                paths.into_iter().map(name).collect()
            };
            (named(runs).join(" "), named(dead).join(" "))
        };
        let both = |runs: &str, dead: &str| (runs.to_owned(), dead.to_owned());
        assert_eq!(found("", 0), both("", ""));
        assert_eq!(found("", 1), both("a/1 a/2", "a/died"));
        assert_eq!(found("", 2), both("a/1 a/2 b/c/3", "a/died"));
        assert_eq!(found("a", 0), both("a/1 a/2", "a/died"));
        assert_eq!(found("a/1", 0), both("a/1", ""));
        assert_eq!(found("a/1/run.json", 0), both("a/1/run.json", ""));
        assert_eq!(found("missing", 0), both("missing", ""));
    }
}
