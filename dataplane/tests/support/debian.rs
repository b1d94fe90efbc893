//! Debian packages under test: built, looked into, and installed into this machine's own system with a layer over it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::left_out::left_out;

/// A program that a test starts.
#[expect(clippy::disallowed_methods, reason = "a test starts programs")]
fn program(name: &str) -> Command {
    Command::new(name)
}

/// What a program has printed.
pub fn errors(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Builds the package of a crate, by its folder, around the program that was built for the tests; `None` without cargo-deb.
pub fn package(folder: &Path, of: &str, built: &str) -> Option<PathBuf> {
    if !program("cargo-deb").arg("--version").output().is_ok_and(|output| output.status.success()) {
        left_out("the Debian package: cargo install cargo-deb --locked");
        return None;
    }
    if program("dpkg-deb").arg("--version").output().is_err() {
        left_out("the Debian package: apt-get install dpkg");
        return None;
    }
    // The name of a profile is nothing to rely on: the program is put where that of a release would be.
    let release = folder.join("target/release");
    fs::create_dir_all(&release).unwrap();
    symlink(built, release.join(Path::new(built).file_name().unwrap())).unwrap();
    let deb = folder.join("package.deb");
    let output = program("cargo-deb")
        .args(["--no-build", "--no-strip", "--no-dbgsym", "--fast", "--offline", "--manifest-path"])
        .arg(Path::new(of).join("Cargo.toml"))
        .arg("-o")
        .arg(&deb)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    Some(deb)
}

/// The files of a package and their modes.
pub fn contents(deb: &Path) -> BTreeMap<String, String> {
    let output = program("dpkg-deb").arg("-c").arg(deb).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let files = text.lines().filter(|line| !line.ends_with('/'));
    files
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[5].trim_start_matches("./").to_owned(), format!("{} {}", words[0], words[1]))
        })
        .collect()
}

/// This machine's system with a layer over it, in a mount namespace that ends with this.
pub struct Overlay {
    holder: Child,
    pub folder: tempfile::TempDir,
}

impl Overlay {
    /// `None` without the privilege for it.
    pub fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        // The layer is in memory, because it must not be inside what it is over. `cat` holds it until its input ends.
        let script = "set -e; cd \"$1\"; mount -t tmpfs layer .; cd \"$1\"; mkdir upper work root; \
                      mount -t overlay system -o lowerdir=/,upperdir=upper,workdir=work root; \
                      mount --rbind /proc root/proc; mount --rbind /dev root/dev; \
                      mount -t tmpfs run root/run; mount -t tmpfs tmp root/tmp; echo mounted; exec cat";
        let holder = program("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut holder) = holder else {
            left_out("installing the Debian package: apt-get install util-linux");
            return None;
        };
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let overlay = Self { holder, folder };
        if line != "mounted\n" {
            left_out("installing the Debian package: root, and a kernel with overlayfs (modprobe overlay)");
            return None;
        }
        Some(overlay)
    }

    /// A program in its namespace, outside of the overlay.
    pub fn beside(&self, name: &str) -> Command {
        let mut command = program("nsenter");
        command.args(["--mount", "--target", &self.holder.id().to_string(), name]);
        command
    }

    /// A program in the system.
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.beside("chroot");
        command.arg(self.folder.path().join("root")).arg(name);
        command
    }

    /// Runs a script in the system and returns what it prints.
    pub fn run(&self, script: &str) -> String {
        let output = self.command("sh").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", errors(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Everything with our name that was added to the system.
    pub fn added(&self) -> Vec<String> {
        let upper = self.folder.path().join("upper");
        let output = self.beside("find").arg(&upper).args(["-name", "*towpath*", "-printf", "%P\n"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // Gone already when it could not mount; the mounts go with it.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
