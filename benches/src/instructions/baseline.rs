//! The committed counts, and what they depend on besides the code.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

const HEADER: &str = "\
# Instructions of one operation, as callgrind counts them, and what the counts depend on besides the code.
# Compared and written by `cargo run --release -p benches -- instructions [--update]`.

";

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// Where the counts were made.
    pub environment: Environment,
    /// Instructions of an operation by name of the case.
    pub instructions: BTreeMap<String, u64>,
}

/// What chooses between several implementations of a function, or makes others of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of valgrind.
    pub valgrind: String,
    /// Name and version of the C library, whose memcpy is counted.
    pub libc: String,
    /// Version of the compiler.
    pub rust: String,
    /// Whether the compiler optimised as for a release.
    pub build: String,
    /// Architecture.
    pub architecture: String,
    /// Features of the processor, as the program sees them under valgrind.
    pub features: String,
}

impl Environment {
    /// Here.
    #[must_use]
    pub fn new(valgrind: &str, features: String) -> Self {
        let rust = include_str!("../../../rust-toolchain.toml")
            .lines()
            .find_map(|line| line.strip_prefix("channel = "))
            .unwrap_or_default();
        Self {
            valgrind: valgrind.to_owned(),
            libc: libc_version(),
            rust: rust.trim_matches('"').to_owned(),
            build: if cfg!(debug_assertions) { "dev" } else { "release" }.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            features,
        }
    }

    /// A sentence for each thing that is not as it was.
    #[must_use]
    pub fn differences(&self, here: &Self) -> Vec<String> {
        [
            ("valgrind", &self.valgrind, &here.valgrind),
            ("the C library", &self.libc, &here.libc),
            ("the compiler", &self.rust, &here.rust),
            ("the build", &self.build, &here.build),
            ("the architecture", &self.architecture, &here.architecture),
            ("the processor's features", &self.features, &here.features),
        ]
        .into_iter()
        .filter(|(_, before, now)| before != now)
        .map(|(what, before, now)| {
            format!("{what}: the baseline was counted with \"{before}\", here is \"{now}\"")
        })
        .collect()
    }
}

impl Baseline {
    /// Reads the file; an empty baseline when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is no baseline; the message names it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Takes over where the counts were made. `all`: every case was counted, so that what is not a case any more goes.
    ///
    /// # Errors
    /// When only some counts would be those of `here`.
    pub fn adopt(&mut self, here: Environment, all: bool) -> anyhow::Result<()> {
        let differences = self.environment.differences(&here);
        let mixed = !all && self.environment != Environment::default() && !differences.is_empty();
        anyhow::ensure!(!mixed, "update all cases together: {}", differences.join("; "));
        if all {
            self.instructions.retain(|name, _| super::CASES.iter().any(|case| case.name == name));
        }
        self.environment = here;
        Ok(())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written; the message names it.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = HEADER.to_owned() + &toml::to_string(self)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }
}

/// Name and version of the C library, as getconf(1) tells it; empty where there is no such program.
fn libc_version() -> String {
    let output = super::command("getconf").arg("GNU_LIBC_VERSION").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// The features that memcpy, checksums and ciphers choose by, as far as the processor has them.
#[must_use]
pub fn processor_features() -> String {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("ssse3", std::arch::is_x86_feature_detected!("ssse3")),
        ("sse4.1", std::arch::is_x86_feature_detected!("sse4.1")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("bmi2", std::arch::is_x86_feature_detected!("bmi2")),
        ("adx", std::arch::is_x86_feature_detected!("adx")),
        ("pclmulqdq", std::arch::is_x86_feature_detected!("pclmulqdq")),
        ("sha", std::arch::is_x86_feature_detected!("sha")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features: [(&str, bool); 0] = [];
    let present: Vec<&str> = features.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    present.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_valgrind_is_named_and_not_mixed_in() {
        let before = Environment::new("3.19.0", "avx avx2".to_owned());
        let here = Environment { valgrind: "3.24.0".to_owned(), ..before.clone() };
        let differences = before.differences(&here);
        assert_eq!(differences.len(), 1);
        assert!(differences[0].contains("3.19.0") && differences[0].contains("3.24.0"), "{differences:?}");
        let mut baseline = Baseline { environment: before.clone(), ..Baseline::default() };
        assert!(baseline.adopt(here.clone(), false).is_err());
        assert!(baseline.adopt(before, false).is_ok());
        assert!(baseline.adopt(here.clone(), true).is_ok());
        assert_eq!(baseline.environment, here);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instructions.toml");
        assert_eq!(Baseline::read(&path).unwrap(), Baseline::default());
        let baseline = Baseline {
            environment: Environment::new("3.19.0", "avx".to_owned()),
            instructions: [("split".to_owned(), 7)].into(),
        };
        baseline.write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline);
    }
}
