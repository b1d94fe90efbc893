//! A relay whose configuration can be changed while it runs.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::{Client, PASSWORD, REALM, RelayProcess, USER, program, write_private};

/// Clients may reach loopback.
pub const LOOPBACK: &str = "allow-peer = [\"127.0.0.0/8\"]";

/// A relay with a configuration file and a user file that can be changed.
pub struct Configured {
    directory: tempfile::TempDir,
    flags: Vec<String>,
    pub relay: RelayProcess,
}

impl Configured {
    pub fn start(config: &str, flags: &[&str]) -> Self {
        Self::start_with(config, flags, |_| {})
    }

    pub fn start_with(config: &str, flags: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), config, flags, prepare)
    }

    /// As [`Configured::start`], in a directory with other files that the configuration names.
    pub fn start_in(
        directory: tempfile::TempDir,
        config: &str,
        flags: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        write_private(&directory.path().join("users"), &format!("{USER}:{PASSWORD}\n"));
        let path = directory.path().join("relay.toml");
        write_private(&path, &Self::text(directory.path(), config));
        let mut flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        // As in `RelayProcess::start`.
        if !flags.iter().any(|flag| flag == "--admin") && !config.contains("admin =") {
            flags.extend(["--admin".to_owned(), "off".to_owned()]);
        }
        let mut command = Self::command(directory.path(), &flags);
        prepare(&mut command);
        Self { relay: RelayProcess::spawn(command), flags, directory }
    }

    fn command(directory: &Path, flags: &[String]) -> Command {
        let mut command = program(env!("CARGO_BIN_EXE_towpath-relay"));
        command.arg("--config").arg(directory.join("relay.toml")).args(flags);
        command
    }

    /// Waits for the end of the relay and starts the next, as the service manager does by the unit file: after a `pause`, and
    /// after a check of the configuration.
    pub fn restart_after_end(&mut self, pause: Duration) {
        self.relay.wait_for_end();
        std::thread::sleep(pause);
        let check = Self::command(self.directory.path(), &self.flags).arg("--check-config").output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        self.relay = RelayProcess::spawn(Self::command(self.directory.path(), &self.flags));
    }

    /// The file: what every test needs, and what this one adds.
    fn text(directory: &Path, config: &str) -> String {
        let users = directory.join("users");
        format!("listen = [\"127.0.0.1:0\"]\nrealm = \"{REALM}\"\nuser-file = {users:?}\n{config}\n")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn rewrite(&self, config: &str) {
        write_private(&self.path("relay.toml"), &Self::text(self.directory.path(), config));
    }

    pub fn reload(&self) -> String {
        self.relay.signal(Signal::HUP);
        self.relay.wait_for("the configuration ")
    }

    pub fn client(&self) -> Client {
        Client::new(self.relay.listen[0])
    }
}
