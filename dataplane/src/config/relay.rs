//! The relays of a configuration, and who we are to each of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::login::{Credentials, Login, LoginKind, USERNAME_MAX};
use super::value::{self, Endpoint, Transport, shown};

/// A TURN relay and how to be let in there.
#[derive(Debug)]
pub struct RelayConfig {
    /// Where it listens.
    pub server: Endpoint,
    /// How it is spoken to.
    pub transport: Transport,
    /// The line it stands on.
    pub line: usize,
    /// The file with the certificates that are trusted there, instead of the authorities of this system.
    pub certificate: Option<PathBuf>,
    /// Where user name and password come from, ...
    pub login: Login,
    /// ... and what they are now.
    pub credentials: Credentials,
}

/// The lines about relays so far.
#[derive(Default)]
pub(super) struct Relays {
    entries: Vec<Entry>,
    /// What stands above the first relay.
    above: Lines,
}

struct Entry {
    server: Endpoint,
    transport: Transport,
    line: usize,
    login: Lines,
}

/// What is said of a login, and on which line.
#[derive(Clone, Default)]
struct Lines {
    username: Option<(String, usize)>,
    password_file: Option<(String, usize)>,
    secret_file: Option<(String, usize)>,
    certificate: Option<(String, usize)>,
}

impl Lines {
    fn first(&self) -> Option<usize> {
        let line = |at: &Option<(String, usize)>| at.as_ref().map(|(_, line)| *line);
        [line(&self.username), line(&self.password_file), line(&self.secret_file)].into_iter().flatten().min()
    }

    /// A login, when there is all that one needs.
    fn login(&self, directory: &Path) -> Option<(Login, usize)> {
        let username = self.username.as_ref().map(|(name, _)| name.clone());
        let (file, line, kind) = match (&self.password_file, &self.secret_file) {
            (Some((file, line)), None) => (file, *line, LoginKind::Password),
            (None, Some((file, line))) => (file, *line, LoginKind::Secret),
            _ => return None,
        };
        Some((Login { username, file: directory.join(file), kind }, line))
    }
}

impl Relays {
    /// Takes what stands behind `#towpath: KEY =`; `None` when the key is another.
    pub(super) fn set(&mut self, key: &str, value: &str, line: usize) -> Option<Result<(), String>> {
        Some(match key.to_ascii_lowercase().as_str() {
            "relay" => self.add(value, line),
            "relayusername" if value.is_empty() || value.len() > USERNAME_MAX => {
                Err(format!("RelayUsername is 1 to {USERNAME_MAX} bytes long"))
            }
            "relayusername" => once(&mut self.lines().username, "RelayUsername", value, line),
            "relaypasswordfile" => file(&mut self.lines().password_file, "RelayPasswordFile", value, line),
            "relaysecretfile" => file(&mut self.lines().secret_file, "RelaySecretFile", value, line),
            "relaycertificate" => file(&mut self.lines().certificate, "RelayCertificate", value, line),
            "relaypassword" => {
                Err("put the password into a file of its own and write RelayPasswordFile = FILE".to_owned())
            }
            "relaysecret" => {
                Err("put the secret into a file of its own and write RelaySecretFile = FILE".to_owned())
            }
            _ => return None,
        })
    }

    fn add(&mut self, value: &str, line: usize) -> Result<(), String> {
        /// More would be tried for minutes before the first is tried again.
        const RELAYS_MAX: usize = 16;
        let (server, transport) = value::relay(value)?;
        let same = |entry: &&Entry| entry.server == server && entry.transport == transport;
        if let Some(first) = self.entries.iter().find(same) {
            return Err(format!(
                "this relay was given on line {} already; remove one of the two",
                first.line
            ));
        }
        if self.entries.len() == RELAYS_MAX {
            return Err(format!("there are {RELAYS_MAX} relays already; remove one of them"));
        }
        self.entries.push(Entry { server, transport, line, login: Lines::default() });
        Ok(())
    }

    /// To whom a login line belongs: the relay above it.
    fn lines(&mut self) -> &mut Lines {
        self.entries.last_mut().map_or(&mut self.above, |entry| &mut entry.login)
    }

    /// The relays in their order. One without a login of its own has that of the next below, and behind the last of them,
    /// of the last above.
    ///
    /// # Errors
    /// The line, and what is wrong there.
    pub(super) fn finish(
        self,
        directory: &Path,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<RelayConfig>, (usize, String)> {
        const TOGETHER: &str = "Relay, RelayUsername and RelayPasswordFile (or RelaySecretFile, where the name may be \
                                missing) are needed together";
        if self.entries.is_empty() {
            return match self.above.first() {
                Some(line) => Err((line, TOGETHER.to_owned())),
                None => Ok(Vec::new()),
            };
        }
        let mut given = self.above;
        let logins: Vec<Lines> = {
            let mut below = None;
            let mut logins: Vec<Option<Lines>> = Vec::new();
            for entry in self.entries.iter().rev() {
                below = entry.login.first().map(|_| entry.login.clone()).or(below);
                logins.push(below.clone());
            }
            let inherit = |login: Option<Lines>| {
                given = login.unwrap_or_else(|| given.clone());
                given.clone()
            };
            logins.into_iter().rev().map(inherit).collect()
        };
        let wall = wall_clock();
        let mut relays = Vec::with_capacity(logins.len());
        for (entry, lines) in self.entries.into_iter().zip(logins) {
            let line = lines.first().unwrap_or(entry.line);
            let (login, file_line) = lines.login(directory).ok_or_else(|| (line, TOGETHER.to_owned()))?;
            let credentials = login.read(wall).map_err(|problem| {
                let unnamed = login.username.is_none() && problem.contains("RelayUsername");
                (file_line, if unnamed { TOGETHER.to_owned() } else { problem })
            })?;
            let warning = format!("{0} can be read by everyone; run: chmod 600 {0}", login.file.display());
            if credentials.world_readable && !warnings.contains(&warning) {
                warnings.push(warning);
            }
            let certificate = lines.certificate.map(|(file, _)| directory.join(file));
            let Entry { server, transport, line, .. } = entry;
            relays.push(RelayConfig { server, transport, line, certificate, login, credentials });
        }
        Ok(relays)
    }
}

fn once(slot: &mut Option<(String, usize)>, key: &str, value: &str, line: usize) -> Result<(), String> {
    if let Some((_, first)) = slot {
        return Err(format!("{key} was given on line {first} already; remove one of the two"));
    }
    *slot = Some((value.to_owned(), line));
    Ok(())
}

fn file(slot: &mut Option<(String, usize)>, key: &str, value: &str, line: usize) -> Result<(), String> {
    if value.is_empty() {
        return Err("the name of a file is missing behind the equals sign".to_owned());
    }
    once(slot, key, value, line)
}

/// Time since 1970, by which names for a while are made.
#[expect(clippy::disallowed_methods, reason = "a name says until when it is good")]
fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The policy in `#towpath: Path =`.
pub(super) fn policy(value: &str) -> Result<crate::tunnel::paths::Policy, String> {
    use crate::tunnel::paths::Policy;
    match value.to_ascii_lowercase().as_str() {
        "direct" => Ok(Policy::Direct),
        "relay" => Ok(Policy::Relay),
        "auto" => Ok(Policy::Auto),
        _ => Err(format!("{} is no path; write direct, relay or auto", shown(value))),
    }
}
