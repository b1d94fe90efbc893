//! `towpath-relay status`: asks a running relay for its figures.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use dataplane::admin::TURN_TIME_MAX;
use dataplane::admin::client::{self, GetError};

use super::ADDRESS_DEFAULT;
use super::status::Status;

/// How long the relay may take for the whole of its answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions to a relay whose loop has not answered the first.
const PAUSE: Duration = Duration::from_millis(100);

/// The flags of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Where the relay shows its figures: its --admin
    #[arg(long, value_name = "ADDR:PORT", default_value_t = ADDRESS_DEFAULT)]
    pub admin: SocketAddr,
    /// Print the figures as one line of JSON
    #[arg(long)]
    pub json: bool,
    /// Print them again every second, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody is there, or it cannot be reached.
    #[error(
        "{address}: {source}; is a relay running there? Its log names the address, \
         and --admin here has to be the same"
    )]
    Unreachable { address: SocketAddr, source: io::Error },
    /// Something answers that is not a relay of this version.
    #[error("{address}: {text}; is it the --admin address of a towpath-relay of this version?")]
    Strange { address: SocketAddr, text: String },
    /// The admin thread answers, and the packet loop does not.
    #[error("{address}: the relay hangs: its figures are {age_s:.0} s old, and newer ones do not come")]
    Hangs { address: SocketAddr, age_s: f64 },
}

/// Whether figures say that the loop of packets does not turn: what it was asked now, it has not answered.
pub(super) fn are_stale(status: &Status) -> bool {
    status.age_s > TURN_TIME_MAX.as_secs_f64()
}

/// Asks until the figures are of now. A loop that is only busy answers within seconds, and `/healthz` gives it as long.
#[expect(clippy::disallowed_methods, reason = "a program of its own, which waits for another")]
pub(super) fn ask_fresh(address: SocketAddr) -> Result<Status, AskError> {
    let start = Instant::now();
    loop {
        let status = ask(address)?;
        if !are_stale(&status) {
            return Ok(status);
        }
        if start.elapsed() >= TURN_TIME_MAX {
            return Err(AskError::Hangs { address, age_s: status.age_s });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Asks once. The figures may be old: [`are_stale`] tells.
pub(super) fn ask(address: SocketAddr) -> Result<Status, AskError> {
    let strange = |text: String| AskError::Strange { address, text };
    let reply = client::get(address, "/status.json", PATIENCE).map_err(|error| match error {
        GetError::Unreachable(source) => AskError::Unreachable { address, source },
        GetError::Slow(_) | GetError::Long | GetError::Strange => strange(error.to_string()),
    })?;
    if reply.code != 200 {
        let text = String::from_utf8_lossy(&reply.body);
        return Err(strange(format!("it answers {}: {}", reply.code, text.trim_end())));
    }
    serde_json::from_slice(&reply.body)
        .map_err(|error| strange(format!("it answers something else: {error}")))
}
