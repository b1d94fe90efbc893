//! `towpath show`: what the tunnels of this machine do, as text, as JSON, as histograms, or live.
//!
//! It asks over the sockets that `wg` uses ([`crate::uapi::status`]), so it needs the same rights, and sees tunnels of either
//! kind, `towpath up` and `towpath wg0`.

mod client;
mod duration;
mod json;
mod log;
mod text;
mod watch;

pub(crate) use self::client::ask;
pub use self::client::{AskError, Tunnel};
pub(crate) use self::duration::counted;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::uapi::DIRECTORY;
use crate::uapi::status::Wanted;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// The name that stands for all tunnels.
const ALL: &str = "all";

/// The flags of `towpath show`.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Only this interface [default: all]
    #[arg(value_name = "INTERFACE")]
    interface: Option<String>,
    /// One line of JSON for each tunnel, with everything that is known of every peer
    #[arg(long)]
    json: bool,
    /// Look again every second: live in a terminal, q ends it; with --json, lines
    #[arg(long)]
    watch: bool,
    /// Write the time that packets spend in each stage to this file, as an HdrHistogram log: since the tunnel's start, or with --watch second by second
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
}

/// Why there is nothing more to show.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// A tunnel does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The request makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It cannot be written.
    #[error("standard output: {0}")]
    Print(#[from] io::Error),
    /// Nor can this.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Runs `towpath show`.
///
/// # Errors
/// The text is for people, and names the remedy.
pub fn run(args: &ShowArgs) -> Result<(), ShowError> {
    run_in(Path::new(DIRECTORY), args)
}

fn run_in(directory: &Path, args: &ShowArgs) -> Result<(), ShowError> {
    let named = args.interface.as_deref().filter(|name| *name != ALL);
    if args.watch || args.hlog.is_some() {
        let one = match named {
            Some(name) => name.to_owned(),
            None => client::the_only_one(directory)?,
        };
        return follow(directory, &one, args);
    }
    let wanted = Wanted { allowed_ips: true, stages: args.json };
    let mut out = io::stdout().lock();
    let mut first = true;
    for tunnel in client::ask_all(directory, named, wanted)? {
        if args.json {
            writeln!(out, "{}", json::object(&tunnel))?;
            continue;
        }
        let gap = if std::mem::take(&mut first) { "" } else { "\n" };
        write!(out, "{gap}{}", text::of(&tunnel))?;
    }
    out.flush()?;
    Ok(())
}

/// What needs one tunnel: histograms, and looking again.
fn follow(directory: &Path, name: &str, args: &ShowArgs) -> Result<(), ShowError> {
    let mut log = args.hlog.as_deref().map(log::Log::create).transpose()?;
    if !args.watch {
        let wanted = Wanted { allowed_ips: args.json, stages: true };
        let tunnel = ask(directory, name, wanted)?;
        if let Some(log) = &mut log {
            log.write_all(&tunnel)?;
        }
        if args.json {
            writeln!(io::stdout(), "{}", json::object(&tunnel))?;
        }
        return Ok(());
    }
    if args.json {
        return repeat(directory, name, log.as_mut());
    }
    if !io::stdout().is_terminal() {
        let text = "--watch draws on a terminal, which standard output is not; --watch --json prints a line a second";
        return Err(ShowError::Usage(text.to_owned()));
    }
    watch::run(directory, name, log.as_mut())
}

/// A line of JSON a second, until nobody reads or answers.
fn repeat(directory: &Path, name: &str, mut log: Option<&mut log::Log>) -> Result<(), ShowError> {
    let mut out = io::stdout();
    loop {
        let tunnel = ask(directory, name, Wanted { allowed_ips: false, stages: true })?;
        if let Some(log) = &mut log {
            log.write_interval(&tunnel)?;
        }
        writeln!(out, "{}", json::object(&tunnel))?;
        out.flush()?;
        std::thread::sleep(INTERVAL);
    }
}
