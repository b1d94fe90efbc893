//! Who we are to a relay: a user name and a password, read again when they may have changed.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use zeroize::Zeroizing;

use super::{Password, read};

/// How long a name is good for that is made with a secret. Relays take names for a day and more.
const VALIDITY: Duration = Duration::from_secs(2 * 60 * 60);
/// A number in front of a name is an expiry only when it lies behind the year 2001.
const EXPIRY_MIN: u64 = 1_000_000_000;
/// RFC 8489 section 14.3: a USERNAME has fewer than 509 bytes.
pub(super) const USERNAME_MAX: usize = 508;

/// Where user name and password come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The name in the configuration; the file may have another.
    pub username: Option<String>,
    /// The file.
    pub file: PathBuf,
    /// What the file holds.
    pub kind: LoginKind,
}

/// What the file of a [`Login`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginKind {
    /// The password on the first line, and a user name on the second where both change together.
    Password,
    /// A secret that the relay knows as well, with which names and passwords for a while are made
    /// (draft-uberti-behave-turn-rest).
    Secret,
}

/// A user name and its password.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: Password,
    /// Until when they are good, since 1970, where the name says so.
    pub until: Option<Duration>,
    /// The file can be read by everyone.
    pub world_readable: bool,
}

impl Login {
    /// Reads the file. `wall` is the time since 1970.
    ///
    /// # Errors
    /// What is wrong with the file, and how to mend it.
    pub fn read(&self, wall: Duration) -> Result<Credentials, String> {
        let shown = self.file.display();
        let (text, world_readable) = read(&self.file).map_err(|problem| format!("{shown} {problem}"))?;
        let mut lines = text.lines().map(str::trim);
        let first = lines.next().unwrap_or_default();
        if first.is_empty() {
            return Err(match self.kind {
                LoginKind::Password => format!("{shown} is empty; write the password into it"),
                LoginKind::Secret => format!("{shown} is empty; write the secret into it"),
            });
        }
        let (username, password) = match self.kind {
            LoginKind::Password => {
                let username = lines.next().filter(|name| !name.is_empty()).or(self.username.as_deref());
                let username = username.ok_or_else(|| {
                    format!("{shown} has no user name on its second line; write RelayUsername")
                })?;
                (username.to_owned(), Zeroizing::new(first.to_owned()))
            }
            LoginKind::Secret => {
                let expiry = (wall + VALIDITY).as_secs();
                let name = self.username.as_ref().map_or_else(String::new, |name| format!(":{name}"));
                let username = format!("{expiry}{name}");
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, first.as_bytes());
                let password = BASE64.encode(hmac::sign(&key, username.as_bytes()));
                (username, Zeroizing::new(password))
            }
        };
        if username.len() > USERNAME_MAX {
            return Err(format!(
                "{shown} has a user name of more than {USERNAME_MAX} bytes; use a shorter one"
            ));
        }
        let until = expiry(&username);
        Ok(Credentials { username, password: Password(password), until, world_readable })
    }
}

/// Until when a name of the form `EXPIRY` or `EXPIRY:ID` is good, since 1970.
fn expiry(username: &str) -> Option<Duration> {
    let digits = username.split(':').next().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|seconds| *seconds >= EXPIRY_MIN).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Duration = Duration::from_secs(1_700_000_000);

    fn login(content: &str, username: Option<&str>, kind: LoginKind) -> Result<Credentials, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("secret");
        std::fs::write(&file, content).expect("written");
        Login { username: username.map(str::to_owned), file, kind }.read(WALL)
    }

    #[test]
    fn the_second_line_is_the_name_that_goes_with_the_password() {
        let read = |content| login(content, Some("alice"), LoginKind::Password).expect("both");
        let plain = read("hunter2\n");
        assert_eq!((plain.username.as_str(), plain.password.expose()), ("alice", "hunter2"));
        assert_eq!(plain.until, None);
        let timed = read("hunter3\n1700003600:bob\n");
        assert_eq!((timed.username.as_str(), timed.password.expose()), ("1700003600:bob", "hunter3"));
        assert_eq!(timed.until, Some(Duration::from_secs(1_700_003_600)));
        assert!(login("x\n", None, LoginKind::Password).expect_err("no name").contains("RelayUsername"));
        assert!(login("\n", Some("a"), LoginKind::Password).expect_err("empty").contains("password"));
    }

    #[test]
    fn a_secret_makes_the_password_that_the_draft_says() {
        // echo -n 1700007200:alice | openssl dgst -sha1 -hmac north -binary | base64
        let made = login("north\n", Some("alice"), LoginKind::Secret).expect("made");
        assert_eq!(made.username, "1700007200:alice");
        assert_eq!(made.until, Some(WALL + VALIDITY));
        assert_eq!(made.password.expose(), "DITBGaugO3wb2zgiecrBpSq8mO8=");
        assert_eq!(login("north\n", None, LoginKind::Secret).expect("made").username, "1700007200");
    }

    #[test]
    fn small_numbers_are_names() {
        assert_eq!(expiry("1000"), None);
        assert_eq!(expiry("alice"), None);
        assert_eq!(expiry("1700000000x"), None);
        assert_eq!(expiry(""), None);
    }
}
