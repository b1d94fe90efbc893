//! The programs Towpath is compared with: where they are, which versions, and how to get them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::bail;

use super::rows::{Contender, Row, Who, Work};

/// Program and how to get it.
const KNOWN: [(&str, &str); 7] = [
    ("wireguard-go", "apt-get install wireguard-go"),
    ("boringtun-cli", "cargo install boringtun-cli --version 0.7.1"),
    ("turnserver", "apt-get install coturn"),
    ("iperf3", "apt-get install iperf3"),
    ("ethtool", "apt-get install ethtool"),
    ("perf", "apt-get install linux-perf"),
    ("strace", "apt-get install strace"),
];
/// Where an ordinary user's PATH does not look.
const ALSO: [&str; 2] = ["/usr/sbin", "/sbin"];

/// What was found.
#[derive(Clone, Debug)]
pub struct Programs {
    found: Vec<(&'static str, Option<PathBuf>)>,
}

impl Programs {
    /// Looks in PATH, except for those that `given` names as NAME=PATH.
    ///
    /// # Errors
    /// When `given` has another form, or names a program that is not compared with or is not there.
    pub fn find(given: &[String]) -> anyhow::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        directories.extend(ALSO.map(PathBuf::from));
        let look = |name: &str| directories.iter().map(|dir| dir.join(name)).find(|file| file.is_file());
        let mut found: Vec<_> = KNOWN.iter().map(|&(name, _)| (name, look(name))).collect();
        for argument in given {
            let entry = argument.split_once('=').and_then(|(name, path)| {
                Some((found.iter_mut().find(|entry| entry.0 == name)?, Path::new(path)))
            });
            let Some((entry, path)) = entry else {
                let names = KNOWN.map(|entry| entry.0).join(", ");
                bail!("--peer {argument}: write NAME=PATH, with NAME one of {names}");
            };
            if !path.is_file() {
                bail!("--peer {argument}: there is no file {}", path.display());
            }
            entry.1 = Some(path.to_path_buf());
        }
        Ok(Self { found })
    }

    /// The path of a program.
    ///
    /// # Errors
    /// When it is not here, with the remedy.
    pub fn path(&self, name: &str) -> anyhow::Result<String> {
        let found = self.found.iter().find(|entry| entry.0 == name).and_then(|entry| entry.1.as_ref());
        match found {
            Some(path) => Ok(path.display().to_string()),
            None => bail!("{}", remedy(name)),
        }
    }

    /// Why `contender` cannot be measured at the work of `row`, if a program is missing.
    #[must_use]
    pub fn missing(&self, contender: &Contender, row: &Row) -> Option<String> {
        let program = program(contender.who);
        let load = match row.work {
            Work::TunnelStream(_) | Work::CableStream | Work::TunnelEchoBesideStream(_) => Some("iperf3"),
            // It sets the rate for everyone.
            Work::RelayLatency(_) => Some("turnserver"),
            _ => None,
        };
        let cables = (!row.segmentation).then_some("ethtool");
        let needed = [program, load, cables];
        needed.into_iter().flatten().find_map(|name| self.path(name).err()).map(|error| error.to_string())
    }

    /// Name and version of what a side runs, if that is another project's.
    #[must_use]
    pub fn version_of(&self, who: Who) -> Option<String> {
        let name = program(who)?;
        let (_, path) = self.found.iter().find(|entry| entry.0 == name)?;
        path.as_ref().map(|path| version(name, path))
    }

    /// Name and version of each, as they say it themselves.
    #[must_use]
    pub fn versions(&self) -> Vec<String> {
        let line = |(name, path): &(&str, Option<PathBuf>)| match path {
            Some(path) => version(name, path),
            None => format!("{name}: not here"),
        };
        self.found.iter().map(line).collect()
    }
}

/// The program that a side runs, besides ours.
fn program(who: Who) -> Option<&'static str> {
    match who {
        Who::Towpath | Who::Kernel | Who::KernelOnEveryCore => None,
        Who::WireguardGo => Some("wireguard-go"),
        Who::Boringtun => Some("boringtun-cli"),
        Who::Coturn => Some("turnserver"),
    }
}

fn remedy(name: &str) -> String {
    let remedy = KNOWN.iter().find(|entry| entry.0 == name).map_or("install it", |entry| entry.1);
    format!("{remedy}, or --peer {name}=PATH")
}

#[expect(clippy::disallowed_methods, reason = "a benchmark starts programs")]
fn version(name: &str, path: &Path) -> String {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    // A line with a number in it; coturn prints its version alone, behind lines of its log.
    let numbered =
        |line: &&str| line.contains('.') && line.contains(|character: char| character.is_ascii_digit());
    let line = text.lines().map(str::trim).filter(|line| !line.contains(": ")).find(numbered);
    let line = line.unwrap_or("of unknown version");
    if line.starts_with(char::is_alphabetic) { line.to_owned() } else { format!("{name} {line}") }
}

#[cfg(test)]
mod tests {
    use super::super::list::ROWS;
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let nothing = Programs { found: Vec::new() };
        let row = |name: &str| ROWS.iter().find(|row| row.name == name).unwrap();
        let missing = |name: &str, side: usize| nothing.missing(&row(name).contenders[side], row(name));
        let remedy = missing("relay-memory", 0).unwrap();
        assert_eq!(remedy, "apt-get install coturn, or --peer turnserver=PATH");
        assert_eq!(missing("relay-memory", 1), None);
        assert!(missing("tunnel", 1).unwrap().contains("iperf3"), "the load is iperf3's");
        assert!(missing("relay-train", 1).unwrap().contains("apt-get install ethtool"), "the cables");
        assert!(missing("relay-latency", 1).unwrap().contains("coturn"), "the rate is coturn's");
        assert!(
            missing("tunnel-idle", 0).unwrap().starts_with("cargo install boringtun-cli --version 0.7.1")
        );
    }

    #[test]
    fn a_program_can_be_given_and_must_be_there() {
        let program = std::env::current_exe().unwrap().display().to_string();
        let programs = Programs::find(&[format!("wireguard-go={program}")]).unwrap();
        assert_eq!(programs.path("wireguard-go").unwrap(), program);
        for wrong in ["wireguard-go", "other=/bin/sh", "iperf3=/no/such/file"] {
            assert!(Programs::find(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
