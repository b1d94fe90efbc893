//! `towpath ticket`: prints the ticket of a running tunnel, or gives it a peer's.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::Failure;
use crate::tunnel::app::{NO_RELAY, NOT_THE_NEXT};
use crate::tunnel::ticket::Ticket;
use crate::uapi::DIRECTORY;

/// How long the running tunnel may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// No answer is longer, bytes.
const ANSWER_MAX: u64 = 4_096;

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// The interface of a running tunnel that has a relay
    interface: String,
    /// A peer's ticket, to be used from now on; - reads it from standard input
    #[arg(long, value_name = "TICKET")]
    accept: Option<String>,
}

pub(super) fn run(flags: &Flags) -> Result<(), Failure> {
    match &flags.accept {
        None => print(&flags.interface),
        Some(text) if text == "-" => {
            let mut text = String::new();
            io::stdin().take(4_096).read_to_string(&mut text)?;
            accept(&flags.interface, &text)
        }
        Some(text) => accept(&flags.interface, text),
    }
}

fn print(interface: &str) -> Result<(), Failure> {
    let answer = ask(interface, "ticket=1\n\n")?;
    if number(&answer) == Some(NO_RELAY.number()) {
        return Err(Failure::other(format!(
            "{interface} has no address at a relay: write #towpath: Relay = turn:HOST:PORT into its file (with wg-quick, that \
             is /etc/wireguard/{interface}.conf) and bring it up again; or wait until the relay has answered"
        )));
    }
    let ticket =
        answer.lines().find_map(|line| line.strip_prefix("ticket=")).ok_or_else(|| odd(interface))?;
    writeln!(io::stdout(), "{ticket}")?;
    Ok(())
}

fn accept(interface: &str, text: &str) -> Result<(), Failure> {
    let ticket: Ticket = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    ticket.check_time(wall_clock()).map_err(|error| Failure::usage(format!("{error}")))?;
    let key = ticket.public_key;
    let hex: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let request = format!("set=1\npublic_key={hex}\nupdate_only=true\ntowpath_ticket={}\n\n", text.trim());
    let refused = number(&ask(interface, &request)?).ok_or_else(|| odd(interface))?;
    if refused == 0 {
        writeln!(io::stderr(), "the peer {key} is looked for at {} addresses", ticket.candidates.len())?;
        return Ok(());
    }
    Err(Failure::other(if refused == libc::ENOENT {
        format!(
            "{interface} has no peer {key}: write a [Peer] section with PublicKey = {key} and AllowedIPs, or run \
             wg set {interface} peer {key} allowed-ips PREFIXES"
        )
    } else if refused == NOT_THE_NEXT.number() {
        format!(
            "{interface} has taken a newer ticket of {key}, or one with another signature, of which one is forged: ask the \
             peer for a new one by a channel that you trust; if it is refused again, remove the peer from the tunnel and add it again"
        )
    } else if refused == NO_RELAY.number() {
        format!(
            "{interface} has no relay: write #towpath: Relay = turn:HOST:PORT into its file (with wg-quick, that is \
             /etc/wireguard/{interface}.conf) and bring it up again"
        )
    } else {
        format!("{interface} refuses the ticket: {}", io::Error::from_raw_os_error(refused))
    }))
}

/// The error number at the end of an answer, positive.
pub(super) fn number(answer: &str) -> Option<i32> {
    answer.lines().find_map(|line| line.strip_prefix("errno=")?.parse().ok()).map(i32::wrapping_neg)
}

pub(super) fn odd(interface: &str) -> Failure {
    Failure::other(format!(
        "{interface} is run by another program, or an older towpath; start it again with towpath up"
    ))
}

/// A request to the running tunnel, and its answer.
pub(super) fn ask(interface: &str, request: &str) -> Result<String, Failure> {
    let (file, failed) = (path(interface), |error| unreachable(interface, &error));
    let mut socket = UnixStream::connect(&file).map_err(failed)?;
    refuse_elsewhere(&socket, interface)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    socket.write_all(request.as_bytes()).map_err(failed)?;
    socket.shutdown(Shutdown::Write).map_err(failed)?;
    let mut answer = String::new();
    // One that closes without a word, or with a reset, does not know the request.
    match socket.take(ANSWER_MAX).read_to_string(&mut answer) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(failed(error)),
        Ok(_) | Err(_) => Ok(answer),
    }
}

fn path(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}

fn unreachable(interface: &str, error: &io::Error) -> Failure {
    Failure::other(format!(
        "{}: {error}; a tunnel of that name has to run, and it answers who started it, and root",
        path(interface).display()
    ))
}

/// Makes sure that the tunnel of this name, if there is one, is of the network namespace that this program is in.
pub(super) fn is_here(interface: &str) -> Result<(), Failure> {
    UnixStream::connect(path(interface)).map_or(Ok(()), |socket| refuse_elsewhere(&socket, interface))
}

/// Refuses a tunnel of another network namespace: all of them share the folder of sockets, and what this namespace's file says is
/// not for it. Whose namespace cannot be told (its process is not seen, or was another when it began to listen) is believed.
fn refuse_elsewhere(socket: &UnixStream, interface: &str) -> Result<(), Failure> {
    let Ok(server) = rustix::net::sockopt::socket_peercred(socket) else { return Ok(()) };
    let namespace = |process: &str| {
        fs::metadata(format!("/proc/{process}/ns/net")).map(|found| (found.dev(), found.ino()))
    };
    let server = server.pid.as_raw_nonzero();
    match (namespace("self"), namespace(&server.to_string())) {
        (Ok(ours), Ok(other)) if ours != other => Err(Failure::other(format!(
            "{interface}: the tunnel of this name is in another network namespace, that of process {server}: run this there, or \
             give the two tunnels different names"
        ))),
        _ => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "a ticket says until when it is good")]
fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
