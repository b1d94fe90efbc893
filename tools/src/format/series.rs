//! What became of the runs of one `ab`, `aa` or `sweep`: a file beside the directories of its sides, so that whoever reads them later
//! knows whether all were made, and which were repeated. It says that they were cut from the first run to the last.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::bounded;
use super::output::whole_file;

/// Name of the file.
pub const SERIES_JSON: &str = "series.json";
/// Most bytes of it.
const BYTES_MAX: u64 = 1 << 20;

/// Runs of several sides that were made in one go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Runs of each side that were asked for.
    pub planned: u32,
    /// The sides, by the names of their directories.
    pub sides: Vec<Side>,
    /// Whether a run that was made again was so with its whole block; absent, and false, in files of earlier versions.
    #[serde(default)]
    pub whole_blocks: bool,
    /// Why not all were made; absent when all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// What it is called.
    pub name: String,
    /// Runs that are there.
    pub made: usize,
    /// Runs that were made again because they could not be believed.
    pub repeated: u32,
}

/// A side of a series, found by the place of its runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The directory of the side.
    pub directory: PathBuf,
    /// All sides.
    pub series: Series,
    /// Index of this one.
    pub side: usize,
}

impl Series {
    /// Writes it into the directory that has one for each side.
    ///
    /// # Errors
    /// What the file system answers, with the path.
    pub fn write(&self, out: &Path) -> anyhow::Result<()> {
        whole_file(&out.join(SERIES_JSON), |file| Ok(serde_json::to_writer_pretty(file, self)?))
    }
}

impl Member {
    /// The series that the runs at `path` belong to: a side's directory, one of its runs, or the `run.json` of that.
    ///
    /// # Errors
    /// When there is a file that cannot be read, or is another's.
    pub fn of(path: &Path) -> anyhow::Result<Option<Self>> {
        let Ok(path) = path.canonicalize() else { return Ok(None) };
        for directory in path.ancestors().take(3) {
            let (Some(out), Some(name)) = (directory.parent(), directory.file_name()) else { continue };
            let file = out.join(SERIES_JSON);
            if !file.exists() {
                continue;
            }
            let text = bounded::read_to_string(&file, BYTES_MAX)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let series: Series = serde_json::from_str(&text)
                .with_context(|| format!("{} is not from `towpath-lab ab`, aa or sweep", file.display()))?;
            if let Some(side) = series.sides.iter().position(|side| name == side.name.as_str()) {
                return Ok(Some(Self { directory: directory.to_owned(), series, side }));
            }
        }
        Ok(None)
    }

    /// How many of its runs were made again because they could not be believed.
    #[must_use]
    pub fn repeated(&self) -> u32 {
        self.series.sides[self.side].repeated
    }

    /// Whether these were made again without the other runs of their blocks.
    #[must_use]
    pub fn repeated_alone(&self) -> bool {
        !self.series.whole_blocks && self.repeated() > 0
    }

    /// That not all of its runs were made, and why, in a sentence; `None` when all were.
    #[must_use]
    pub fn cut(&self) -> Option<String> {
        let why = self.series.cut.as_ref()?;
        Some(format!(
            "{} was cut short ({why}): {} of {} runs are there",
            self.directory.display(),
            self.series.sides[self.side].made,
            self.series.planned
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn runs_know_the_series_that_they_are_of() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().canonicalize().unwrap();
        let side = |name: &str, made| Side { name: name.to_owned(), made, repeated: 2 };
        let cut = Some("interrupted".to_owned());
        let series = Series { planned: 6, sides: vec![side("A", 4), side("B", 3)], whole_blocks: true, cut };
        for run in ["A/01", "B/01", "C/01"] {
            fs::create_dir_all(out.join(run)).unwrap();
            fs::write(out.join(run).join("run.json"), "{}").unwrap();
        }
        assert_eq!(Member::of(&out.join("A")).unwrap(), None);
        series.write(&out).unwrap();
        for path in ["B", "B/01", "B/01/run.json"] {
            let found = Member::of(&out.join(path)).unwrap().unwrap();
            assert_eq!((found.side, &found.series, &found.directory), (1, &series, &out.join("B")));
            let said = found.cut().unwrap();
            assert!(said.ends_with("B was cut short (interrupted): 3 of 6 runs are there"), "{said}");
        }
        assert_eq!(Member::of(&out.join("C/01")).unwrap(), None, "it is not of the series");
        let text = fs::read_to_string(out.join(SERIES_JSON)).unwrap();
        let earlier = text.replace("\"whole_blocks\": true,", "");
        assert_ne!(text, earlier);
        fs::write(out.join(SERIES_JSON), earlier).unwrap();
        let member = Member::of(&out.join("A")).unwrap().unwrap();
        assert!(member.repeated_alone(), "a file of an earlier version is read, and says that");
        Series { cut: None, ..series }.write(&out).unwrap();
        assert_eq!(Member::of(&out.join("A")).unwrap().unwrap().cut(), None);
        fs::write(out.join(SERIES_JSON), "[]").unwrap();
        let error = format!("{:#}", Member::of(&out.join("A")).unwrap_err());
        assert!(error.contains("series.json is not from"), "{error}");
    }
}
