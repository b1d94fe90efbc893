//! Users and shared secrets as flags and files write them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use dataplane::stun::{LongTermKey, PasswordAlgorithm};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::{Config, ConfigError};
use crate::server::auth::{Credentials, NAME_LEN_MAX, SECRETS_MAX, StaticKeys};

/// A static user.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Login {
    /// The name.
    pub name: String,
    /// What proves it.
    pub proof: Proof,
}

/// What a user proves its name with.
#[derive(Clone)]
pub enum Proof {
    /// A password.
    Password(Zeroizing<String>),
    /// What a password comes to together with name and realm.
    Keys(StaticKeys),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:…", self.name)
    }
}

impl FromStr for Login {
    type Err = String;

    /// The first colon ends the name, so that a password may have some. The error never shows the text.
    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "a user is NAME:PASSWORD, for example alice:secret";
        let (name, password) = text.split_once(':').ok_or(hint)?;
        if name.is_empty() || password.is_empty() {
            return Err(format!("neither name nor password may be empty; {hint}"));
        }
        if name.len() > NAME_LEN_MAX {
            return Err(format!("a name has at most {NAME_LEN_MAX} bytes"));
        }
        let proof = if password.starts_with("0x") {
            Proof::Keys(keys(password)?)
        } else {
            Proof::Password(Zeroizing::new(password.to_owned()))
        };
        Ok(Self { name: name.to_owned(), proof })
    }
}

/// Reads `0x…`, or `0x…,0x…` with one key of each kind. What looks like a key and is none is an error: as a password it
/// would only be wrong.
fn keys(text: &str) -> Result<StaticKeys, String> {
    let hint = "behind 0x is the key of a user: 32 hexadecimal digits of MD5 or 64 of SHA-256, or both as \
                0x…,0x…; a password that starts with 0x has to be written as its key";
    let mut keys = StaticKeys::default();
    for part in text.split(',') {
        let digits = part.strip_prefix("0x").ok_or(hint)?;
        let bytes = Zeroizing::new(hexadecimal(digits).ok_or(hint)?);
        let key = LongTermKey::from_bytes(&bytes).ok_or(hint)?;
        let place = match key.algorithm() {
            PasswordAlgorithm::Md5 => &mut keys.md5,
            PasswordAlgorithm::Sha256 => &mut keys.sha256,
        };
        if place.replace(key).is_some() {
            return Err(format!("there are two keys of one kind; {hint}"));
        }
    }
    Ok(keys)
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some((digit(high)? << 4 | digit(low)?) as u8)).collect()
}

/// The secrets of a file: one a line, # starts a comment.
///
/// # Errors
/// There is none, or there are too many.
pub fn parse_secrets(path: &Path, text: &str) -> Result<Vec<Zeroizing<String>>, ConfigError> {
    let mut secrets = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if secrets.len() == SECRETS_MAX {
            return Err(ConfigError::Line {
                path: path.to_owned(),
                line: index + 1,
                text: format!("at most {SECRETS_MAX} secrets are accepted at once; take out the oldest"),
            });
        }
        secrets.push(Zeroizing::new(line.to_owned()));
    }
    if secrets.is_empty() {
        return Err(ConfigError::NoSecret { path: path.to_owned() });
    }
    Ok(secrets)
}

/// Refuses users that nobody could serve together: before a client has said who it is, it is told which password algorithm
/// to take.
///
/// # Errors
/// Which two users, and what helps.
pub fn check_together(users: &[Login]) -> Result<(), ConfigError> {
    let lacking = |lacks: fn(&StaticKeys) -> bool| {
        users.iter().find(|user| match &user.proof {
            Proof::Password(_) => false,
            Proof::Keys(keys) => lacks(keys),
        })
    };
    let (without_md5, without_sha256) =
        (lacking(|keys| keys.md5.is_none()), lacking(|keys| keys.sha256.is_none()));
    let (Some(a), Some(b)) = (without_md5, without_sha256) else { return Ok(()) };
    Err(ConfigError::Usage(format!(
        "user {:?} has no MD5 key and user {:?} no SHA-256 key, so that no password algorithm is good for both; give one of \
         them both keys (NAME:0x<32 digits>,0x<64 digits>) or its password",
        a.name, b.name
    )))
}

/// What the server is told.
#[must_use]
pub fn credentials(config: &Config) -> Credentials {
    let mut credentials = Credentials::new(&config.realm.0);
    for user in &config.users {
        match &user.proof {
            Proof::Password(password) => credentials.add(&user.name, password),
            Proof::Keys(keys) => credentials.add_keys(&user.name, keys.clone()),
        }
    }
    for secret in &config.secrets {
        credentials.add_secret(secret.as_bytes());
    }
    credentials.set_secret_validity_max(config.secret_validity_max);
    credentials
}

#[cfg(test)]
mod tests {
    use dataplane::stun::{Class, Integrity, Method, TransactionId, Writer};

    use super::*;

    const MD5: &str = "0x00112233445566778899aAbBcCdDeEfF";
    const SHA256: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn kinds(text: &str) -> Result<(bool, bool), String> {
        let login: Login = text.parse()?;
        Ok(match login.proof {
            Proof::Password(_) => (false, false),
            Proof::Keys(keys) => (keys.md5.is_some(), keys.sha256.is_some()),
        })
    }

    #[test]
    fn keys_are_told_from_passwords() {
        assert_eq!(kinds("alice:secret"), Ok((false, false)));
        assert_eq!(kinds("alice:a0x00"), Ok((false, false)));
        assert_eq!(kinds(&format!("alice:{MD5}")), Ok((true, false)));
        assert_eq!(kinds(&format!("alice:{SHA256}")), Ok((false, true)));
        assert_eq!(kinds(&format!("alice:{MD5},{SHA256}")), Ok((true, true)));
        assert_eq!(kinds(&format!("alice:{SHA256},{MD5}")), Ok((true, true)));
    }

    #[test]
    fn what_looks_like_a_key_and_is_none_says_what_would_be_one() {
        for wrong in [
            "0x",
            "0x12",
            "0xsecret",
            "0x00112233445566778899aabbccddeef",
            "0x00112233445566778899aabbccddeefg",
        ] {
            let error = kinds(&format!("alice:{wrong}")).unwrap_err();
            let shows_it = wrong.len() > 2 && error.contains(wrong);
            assert!(error.contains("32 hexadecimal digits") && !shows_it, "{error}");
        }
        let error = kinds(&format!("alice:{MD5},{MD5}")).unwrap_err();
        assert!(error.contains("two keys of one kind"), "{error}");
        assert!(kinds(&format!("alice:{MD5},secret")).is_err());
    }

    #[test]
    fn the_key_is_the_one_that_turnadmin_prints() {
        // turnadmin -k -u alice -r example.org -p secret
        let printed = "0x543e1aec5d3614f03141652d6ada51b2";
        let Proof::Keys(keys) = format!("alice:{printed}").parse::<Login>().unwrap().proof else {
            panic!("a key was read as a password")
        };
        let derived = LongTermKey::new(PasswordAlgorithm::Md5, b"alice", b"example.org", b"secret");
        let [stored, derived] = [keys.md5.unwrap(), derived].map(|key| signature(&key));
        assert_eq!(stored, derived);
    }

    /// Something that only the same key makes.
    fn signature(key: &LongTermKey) -> Vec<u8> {
        let mut buffer = [0; 100];
        let writer =
            Writer::new(&mut buffer, Class::Request, Method::Refresh, TransactionId([1; 12])).unwrap();
        let len = writer.finish(Some(&key.for_integrity(Integrity::Sha1)), false).unwrap();
        buffer[..len].to_vec()
    }

    #[test]
    fn secrets_are_one_a_line() {
        let path = Path::new("relay.secrets");
        let read = |text: &str| {
            parse_secrets(path, text)
                .map(|secrets| secrets.iter().map(|secret| secret.to_string()).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("# new\n north \n\n# old\nso:uth # 1\n").unwrap(), ["north", "so:uth # 1"]);
        assert!(read("# none\n\n").unwrap_err().contains("relay.secrets: there is no secret in it"));
        let many = "secret\n".repeat(SECRETS_MAX + 1);
        assert!(read(&many).unwrap_err().starts_with("relay.secrets:17: at most 16 secrets"));
    }

    #[test]
    fn users_without_a_common_algorithm_are_named() {
        let users = |lines: &[String]| -> Result<(), String> {
            let users: Vec<Login> = lines.iter().map(|line| line.parse().unwrap()).collect();
            check_together(&users).map_err(|error| error.to_string())
        };
        let (md5, sha256) = (format!("alice:{MD5}"), format!("bob:{SHA256}"));
        assert_eq!(users(&[md5.clone(), "carol:secret".into()]), Ok(()));
        assert_eq!(users(&[sha256.clone(), "carol:secret".into()]), Ok(()));
        assert_eq!(users(&[md5.clone(), format!("bob:{SHA256},{MD5}")]), Ok(()));
        let error = users(&[md5, sha256]).unwrap_err();
        assert!(
            error.contains("\"bob\" has no MD5 key") && error.contains("\"alice\" no SHA-256 key"),
            "{error}"
        );
    }

    #[test]
    fn passwords_do_not_show_in_debug_output() {
        let login: Login = "alice:secret".parse().unwrap();
        assert_eq!(format!("{login:?}"), "\"alice\":…");
    }
}
