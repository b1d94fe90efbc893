//! A file that a long command writes at its end: that it can be written is made sure of at the beginning.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::format::output::whole_file;

/// The place of the file.
#[derive(Debug)]
pub(super) struct Page(PathBuf);

impl Page {
    /// Makes the directory and opens the file, which is left as it was: one that was there keeps its content, and none is made.
    ///
    /// # Errors
    /// What the file system answers, with the path.
    pub(super) fn claim(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot write {}", path.display());
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).with_context(failed)?;
        }
        let is_new = !path.exists();
        fs::OpenOptions::new().append(true).create(true).open(path).with_context(failed)?;
        if is_new {
            // An empty file would be taken for one of this command's.
            fs::remove_file(path).with_context(failed)?;
        }
        Ok(Self(path.to_owned()))
    }

    /// Writes the file: the whole of it, or it stays as it was.
    ///
    /// # Errors
    /// What the file system answers, with the path.
    pub(super) fn write(&self, text: &str) -> anyhow::Result<()> {
        whole_file(&self.0, |out| Ok(out.write_all(text.as_bytes())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_as_it_was_until_there_is_something_to_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not/yet/page.html");
        let page = Page::claim(&path).unwrap();
        assert!(path.parent().unwrap().is_dir() && !path.exists());
        page.write("old").unwrap();
        let page = Page::claim(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        page.write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let error = Page::claim(&path.join("below")).unwrap_err();
        assert!(format!("{error:#}").contains("page.html/below"), "{error:#}");
    }
}
