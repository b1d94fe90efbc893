//! `towpath-relay status`: asks a running relay for its figures.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Args;
use dataplane::admin::TURN_TIME_MAX;

use super::ADDRESS_DEFAULT;
use super::status::Status;

/// How long the relay may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions to a relay whose loop has not answered the first.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest answer in bytes: a thousand users with long names.
const ANSWER_LEN_MAX: u64 = 4 << 20;
/// Most header fields of an answer.
const FIELDS_MAX: usize = 32;

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
    let answer = get(address, "/status.json").map_err(|source| AskError::Unreachable { address, source })?;
    let strange = |text: String| AskError::Strange { address, text };
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let body = match head.parse(&answer) {
        Ok(httparse::Status::Complete(len)) => &answer[len..],
        Ok(httparse::Status::Partial) | Err(_) => return Err(strange("it does not speak HTTP".into())),
    };
    if head.code != Some(200) {
        let code = head.code.unwrap_or_default();
        return Err(strange(format!("it answers {code}: {}", String::from_utf8_lossy(body).trim_end())));
    }
    serde_json::from_slice(body).map_err(|error| strange(format!("it answers something else: {error}")))
}

/// The whole answer to a GET request.
fn get(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}
