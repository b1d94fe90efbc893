//! Asks running tunnels, over their sockets.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::uapi::status::{Device, Peer, Wanted};

/// How long a tunnel may take for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest line, bytes: a peer with 200,000 prefixes.
const LINE_MAX: u64 = 16 << 20;

/// A tunnel at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tunnel {
    /// The device.
    pub device: Device,
    /// Its peers.
    pub peers: Vec<Peer>,
}

/// Why a tunnel does not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is none at all.
    #[error("no tunnel is running: there is no socket in {}", .0.display())]
    Nobody(PathBuf),
    /// There is none of this name.
    #[error("no tunnel {interface} is running here: {others}")]
    Unknown {
        /// The name.
        interface: String,
        /// Those that there are.
        others: String,
    },
    /// There are several.
    #[error("several tunnels are running: name one of {0}")]
    Several(String),
    /// The socket is somebody else's.
    #[error("{}: permission denied; its owner may ask, mostly root: sudo towpath show", .0.display())]
    Denied(PathBuf),
    /// The program behind the socket is another one.
    #[error("{}: it is served by another program than this version of towpath; `wg show` may know it", .0.display())]
    Foreign(PathBuf),
    /// The tunnel does not answer.
    #[error("{}: {source}; the tunnel does not answer", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// The names of those that have a socket, sorted.
fn interfaces(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix(".sock").map(str::to_owned)
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The tunnel, when there is one only.
///
/// # Errors
/// When there are several, or none.
pub(super) fn the_only_one(directory: &Path) -> Result<String, AskError> {
    let mut living: Vec<_> =
        interfaces(directory).into_iter().filter(|name| !is_dead(&path_of(directory, name))).collect();
    match living.len() {
        0 => Err(AskError::Nobody(directory.to_owned())),
        1 => Ok(living.swap_remove(0)),
        _ => Err(AskError::Several(living.join(", "))),
    }
}

/// Nobody serves the socket any more.
fn is_dead(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Asks one, or all. Of all, those that belong to other programs are passed over, unless there are no others.
///
/// # Errors
/// The first reason why one does not answer that should.
pub(super) fn ask_all(
    directory: &Path,
    named: Option<&str>,
    wanted: Wanted,
) -> Result<Vec<Tunnel>, AskError> {
    if let Some(name) = named {
        return ask(directory, name, wanted).map(|tunnel| vec![tunnel]);
    }
    let mut tunnels = Vec::new();
    let mut foreign = None;
    for name in interfaces(directory) {
        match ask(directory, &name, wanted) {
            Ok(tunnel) => tunnels.push(tunnel),
            // The socket of a process that was killed.
            Err(AskError::Unknown { .. }) => {}
            Err(error @ AskError::Foreign(_)) => foreign = Some(error),
            Err(error) => return Err(error),
        }
    }
    if tunnels.is_empty() {
        return Err(foreign.unwrap_or_else(|| AskError::Nobody(directory.to_owned())));
    }
    Ok(tunnels)
}

/// Asks one.
///
/// # Errors
/// Why it does not answer.
pub(crate) fn ask(directory: &Path, interface: &str, wanted: Wanted) -> Result<Tunnel, AskError> {
    let path = path_of(directory, interface);
    let silent = |source| AskError::Silent { path: path.clone(), source };
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => unknown(directory, interface),
                io::ErrorKind::PermissionDenied => AskError::Denied(path),
                _ => silent(error),
            });
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    (&stream).write_all(wanted.request().as_bytes()).map_err(silent)?;
    let mut lines = Lines { reader: BufReader::new(stream), path: &path, line: String::new() };
    let device = lines.next()?.ok_or_else(|| AskError::Foreign(path.clone()))?;
    let mut peers = Vec::new();
    while let Some(peer) = lines.next()? {
        peers.push(peer);
    }
    Ok(Tunnel { device, peers })
}

fn path_of(directory: &Path, interface: &str) -> PathBuf {
    directory.join(format!("{interface}.sock"))
}

fn unknown(directory: &Path, interface: &str) -> AskError {
    let others = interfaces(directory);
    let others = others.into_iter().filter(|name| !is_dead(&path_of(directory, name))).collect::<Vec<_>>();
    let others = if others.is_empty() {
        "there is none".to_owned()
    } else {
        format!("there is {}", others.join(", "))
    };
    AskError::Unknown { interface: interface.to_owned(), others }
}

/// The lines of an answer.
struct Lines<'a> {
    reader: BufReader<UnixStream>,
    path: &'a Path,
    line: String,
}

impl Lines<'_> {
    /// The next line of JSON; `None` at the end.
    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, AskError> {
        let foreign = || AskError::Foreign(self.path.to_owned());
        self.line.clear();
        match (&mut self.reader).take(LINE_MAX).read_line(&mut self.line) {
            // Closed without a word, as others do who do not know the request.
            Ok(0) => return Err(foreign()),
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::InvalidData) =>
            {
                return Err(foreign());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("nothing came for {} s", PATIENCE.as_secs());
                let source = io::Error::new(io::ErrorKind::TimedOut, text);
                return Err(AskError::Silent { path: self.path.to_owned(), source });
            }
            Err(source) => return Err(AskError::Silent { path: self.path.to_owned(), source }),
        }
        match self.line.trim_end() {
            "errno=0" => Ok(None),
            text => serde_json::from_str(text).map(Some).map_err(|_| foreign()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::uapi::answer;
    use crate::uapi::status::line;

    /// Answers one client with `answer`, whatever it asks; the request is what the thread returns.
    fn serve(directory: &Path, name: &str, answer: String) -> std::thread::JoinHandle<String> {
        let listener = UnixListener::bind(path_of(directory, name)).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 256];
            let len = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request[..len].to_vec()).unwrap()
        })
    }

    fn answer_of(tunnel: &Tunnel) -> String {
        let peers: String = tunnel.peers.iter().map(|peer| line(peer).to_string()).collect();
        format!("{}{peers}{}", *line(&tunnel.device), *answer::end(None))
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let peer = Peer { public_key: "abc".into(), sent_bytes: 7, ..Peer::default() };
        let device = Device { interface: "wg0".into(), ..Device::default() };
        let tunnel = Tunnel { device, peers: vec![peer.clone(), Peer { sent_bytes: 8, ..peer }] };
        let server = serve(directory.path(), "wg0", answer_of(&tunnel));
        let wanted = Wanted { allowed_ips: true, stages: true };
        assert_eq!(ask(directory.path(), "wg0", wanted).unwrap(), tunnel);
        assert_eq!(server.join().unwrap(), "status=1\nallowed_ips=true\nstages=true\n\n");
    }

    #[test]
    fn what_is_missing_is_named_with_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = Wanted::default();
        let text = |error: AskError| error.to_string();
        let nobody = text(ask_all(directory.path(), None, nothing).unwrap_err());
        assert!(nobody.contains("no tunnel is running"), "{nobody}");
        assert_eq!(
            text(ask_all(&directory.path().join("gone"), None, nothing).unwrap_err()),
            nobody.replace(
                &directory.path().display().to_string(),
                &directory.path().join("gone").display().to_string(),
            )
        );
        // A dead one is none.
        drop(UnixListener::bind(path_of(directory.path(), "dead")).unwrap());
        assert!(matches!(the_only_one(directory.path()), Err(AskError::Nobody(_))));
        let _living = UnixListener::bind(path_of(directory.path(), "wg0")).unwrap();
        assert_eq!(the_only_one(directory.path()).unwrap(), "wg0");
        let unknown = text(ask(directory.path(), "wg7", nothing).unwrap_err());
        assert_eq!(unknown, "no tunnel wg7 is running here: there is wg0");
        let _other = UnixListener::bind(path_of(directory.path(), "wg1")).unwrap();
        assert!(text(the_only_one(directory.path()).unwrap_err()).contains("name one of wg0, wg1"));
    }

    #[test]
    fn other_programs_are_passed_over_unless_they_are_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let tunnel = Tunnel::default();
        let servers = [
            serve(directory.path(), "a", String::new()),
            serve(directory.path(), "b", answer_of(&tunnel)),
            serve(directory.path(), "c", "errno=-22\n\n".to_owned()),
        ];
        assert_eq!(ask_all(directory.path(), None, Wanted::default()).unwrap(), vec![tunnel]);
        for server in servers {
            server.join().unwrap();
        }
        for answer in ["", "errno=0\n\n", "private_key=00\n", "{\"version\":1}\n"] {
            let directory = tempfile::tempdir().unwrap();
            let server = serve(directory.path(), "wg0", answer.to_owned());
            let error = ask_all(directory.path(), None, Wanted::default()).unwrap_err();
            assert!(matches!(error, AskError::Foreign(_)), "{answer:?}: {error}");
            server.join().unwrap();
        }
    }
}
