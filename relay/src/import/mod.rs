//! `towpath-relay import`: turns the turnserver.conf of coturn into a configuration of ours, and says what does not come over.
//!
//! ```text
//!   turnserver.conf ─ conf ─► entries ─ options, translate ─► settings, users, secrets, notes ─ document ─► TOML
//! ```
//! Secrets go into files that only their owner can read, beside the TOML, and never to standard output or error.

mod conf;
mod document;
mod options;
mod ranges;
#[cfg(test)]
mod tests;
mod translate;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use zeroize::Zeroizing;

use self::document::{document, in_words};
pub use self::options::{Fate, Takes, look_up};
pub use self::translate::Setting;
use self::translate::{Note, Translation, quoted, translate};

/// The exit code for input that cannot be used, as for flags.
const EXIT_USAGE: u8 = 2;
/// Where the files with secrets are when the configuration goes to standard output: where the packaged unit has them.
const FOLDER_DEFAULT: &str = "/etc/towpath-relay";
/// Names of the files with secrets.
const USERS: &str = "users";
const SECRETS: &str = "secrets";
/// Longest file that is read, in bytes: coturn's own example has 30 KiB.
const INPUT_LEN_MAX: u64 = 16 << 20;

/// The flags of `import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// The configuration of coturn, for example /etc/turnserver.conf
    #[arg(value_name = "TURNSERVER_CONF")]
    pub source: PathBuf,
    /// Where to write the configuration; users and secrets go into files beside it [default: standard output, without secrets]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite files that are there already
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// Why nothing is imported.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    /// The file cannot be read.
    #[error("{}: {source}; check the path and who may read it", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// A value that makes no sense.
    #[error("{}:{line}: {text}", path.display())]
    Line { path: PathBuf, line: usize, text: String },
    /// A file would be lost.
    #[error("{}: it is there already; choose another --output, or overwrite it and the files beside it with --force", path.display())]
    Exists { path: PathBuf },
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Print(io::Error),
}

/// Runs `towpath-relay import`.
#[must_use]
pub fn run(args: &ImportArgs) -> ExitCode {
    match import(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error.to_string());
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Says something to whoever started it.
fn tell(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "towpath-relay: {text}");
}

fn import(args: &ImportArgs) -> Result<(), ImportError> {
    let text = read(&args.source)?;
    let folder =
        args.source.parent().map(|parent| std::path::absolute(parent).unwrap_or_else(|_| parent.to_owned()));
    let mut translation = translate(&text, &folder.unwrap_or_default()).map_err(|bad| ImportError::Line {
        path: args.source.clone(),
        line: bad.line,
        text: bad.text,
    })?;
    let beside = match &args.output {
        Some(output) => absolute_folder(output),
        None => PathBuf::from(FOLDER_DEFAULT),
    };
    let (users, secrets) = name_files(&mut translation, &beside);
    let document = document(&args.source.display().to_string(), &translation);
    match &args.output {
        Some(output) => {
            let mut files = vec![];
            files.extend(users.map(|path| (path, lines(&translation.users), true)));
            files.extend(secrets.map(|path| (path, lines(&translation.secrets), true)));
            files.push((output.clone(), Zeroizing::new(document), false));
            write_all(&files, args.force)?;
            for (path, ..) in &files {
                tell(&format!("wrote {}", path.display()));
            }
            tell(&format!("check it with: towpath-relay --config {} --check-config", output.display()));
        }
        None => {
            io::stdout().write_all(document.as_bytes()).map_err(ImportError::Print)?;
            for (path, what, count) in [
                (&users, "one NAME:PASSWORD a line", translation.users.len()),
                (&secrets, "one secret a line", translation.secrets.len()),
            ] {
                if let Some(path) = path {
                    tell(&format!(
                        "write {count} of them into {}, {what}, and chmod 600 it; or run this again with --output, which does it",
                        path.display()
                    ));
                }
            }
        }
    }
    for note in translation.missing.iter().chain(&translation.differences) {
        tell(&format!("{}: {}", args.source.display(), in_words(note)));
    }
    Ok(())
}

/// The folder of a file that is to be written, so that paths in it hold wherever the relay is started.
fn absolute_folder(output: &Path) -> PathBuf {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // What cannot be looked up cannot be written either, and that is told then.
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

/// Names the files with secrets in the settings, where there are secrets.
fn name_files(translation: &mut Translation, folder: &Path) -> (Option<PathBuf>, Option<PathBuf>) {
    let mut name = |setting, file: &str, is_needed: bool| {
        let path = is_needed.then(|| folder.join(file))?;
        translation.settings.insert(setting, quoted(&path.to_string_lossy()));
        Some(path)
    };
    let users = name("user-file", USERS, !translation.users.is_empty());
    let secrets = name("secret-file", SECRETS, !translation.secrets.is_empty());
    let files: Vec<String> = users.iter().chain(&secrets).map(|path| path.display().to_string()).collect();
    if !files.is_empty() {
        translation.differences.push(Note {
            line: None,
            text: format!(
                "the packaged systemd unit runs the relay as a user of its own, which has to be able to read them: chown towpath-relay: {}",
                files.join(" ")
            ),
        });
    }
    (users, secrets)
}

fn read(path: &Path) -> Result<Zeroizing<String>, ImportError> {
    let unreadable = |source| ImportError::Unreadable { path: path.to_owned(), source };
    let mut text = Zeroizing::new(String::new());
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(INPUT_LEN_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn lines(values: &[Zeroizing<String>]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(values.iter().map(|value| value.len() + 1).sum()));
    for value in values {
        text.push_str(value);
        text.push('\n');
    }
    text
}

/// Writes all files, or none when one is there that must not be lost. The last of them names the others, so that whoever finds it
/// finds them.
fn write_all(files: &[(PathBuf, Zeroizing<String>, bool)], force: bool) -> Result<(), ImportError> {
    if let Some((path, ..)) = files.iter().find(|(path, ..)| !force && path.symlink_metadata().is_ok()) {
        return Err(ImportError::Exists { path: path.clone() });
    }
    files.iter().try_for_each(|(path, text, is_secret)| write(path, text, *is_secret, force))
}

/// Writes a new file and puts it in its place: nobody reads half of it, and the mode is not that of an old one.
fn write(path: &Path, text: &str, is_secret: bool, force: bool) -> Result<(), ImportError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => ImportError::Exists { path: path.to_owned() },
        _ => ImportError::Unwritable { path: path.to_owned(), source },
    };
    let name = path.file_name().unwrap_or(OsStr::new(""));
    let new = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(if is_secret { 0o600 } else { 0o644 });
    let written = options.open(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A link, unlike a rename, fails where something is.
        if force { fs::rename(&new, path) } else { fs::hard_link(&new, path) }
    });
    if written.is_err() || !force {
        // It was not made, or has its right name by now.
        let _ = fs::remove_file(&new);
    }
    written.map_err(failed)
}
