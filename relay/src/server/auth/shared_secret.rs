//! Time-limited credentials from a secret that the relay shares with a web service (draft-uberti-behave-turn-rest):
//! USERNAME is `EXPIRY` or `EXPIRY:ID`, the expiry in seconds since 1970, and the password is
//! base64(HMAC-SHA1(secret, USERNAME)). Nobody has to tell the relay about a user, and it remembers none.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dataplane::stun::{LongTermKey, PasswordAlgorithm};
use ring::hmac;
use zeroize::Zeroizing;

/// Most secrets at once: each costs a few hashes for every request with a wrong password. Rotation needs two.
pub const SECRETS_MAX: usize = 16;
/// How far in the future a name may expire when nothing else is said.
pub const VALIDITY_MAX_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// How far the clock of whoever makes names may be ahead: names for exactly the longest time are common.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// Twenty bytes in base64.
const PASSWORD_LEN: usize = 28;

/// What a [`SecretMark`] is computed over: no name has this form, so that it is nobody's password.
const MARK_LABEL: &[u8] = b"which secret";

/// Which secret a key comes from, whatever the order of the secrets is after a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SecretMark([u8; 8]);

#[derive(Clone, Debug)]
struct Secret {
    key: hmac::Key,
    mark: SecretMark,
}

impl Secret {
    fn new(secret: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
        let tag = hmac::sign(&key, MARK_LABEL);
        let mark = tag.as_ref().first_chunk().copied().expect("a tag has twenty bytes");
        Self { key, mark: SecretMark(mark) }
    }
}

/// The secrets, all of which are accepted.
#[derive(Clone, Debug)]
pub struct Secrets {
    secrets: Vec<Secret>,
    validity_max: Duration,
}

impl Default for Secrets {
    fn default() -> Self {
        Self { secrets: Vec::new(), validity_max: VALIDITY_MAX_DEFAULT }
    }
}

impl Secrets {
    /// Adds a secret.
    ///
    /// # Panics
    /// When there are [`SECRETS_MAX`] already: check configuration before.
    pub fn add(&mut self, secret: &[u8]) {
        assert!(self.secrets.len() < SECRETS_MAX, "too many secrets");
        self.secrets.push(Secret::new(secret));
    }

    /// Sets how far in the future a name may expire.
    pub fn set_validity_max(&mut self, validity_max: Duration) {
        self.validity_max = validity_max;
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Whether a key of this mark still counts.
    #[must_use]
    pub(super) fn has(&self, mark: SecretMark) -> bool {
        self.secrets.iter().any(|secret| secret.mark == mark)
    }

    /// Whether a name may be used at this time since 1970: before its expiry, and no longer before than allowed.
    #[must_use]
    pub fn is_in_time(&self, name: TimedName<'_>, wall: Duration) -> bool {
        let latest = wall.saturating_add(self.validity_max).saturating_add(CLOCK_TOLERANCE);
        wall < name.expires && name.expires <= latest
    }

    /// The keys that a name has, one for each secret.
    pub fn long_term_keys(
        &self,
        algorithm: PasswordAlgorithm,
        username: &[u8],
        realm: &[u8],
    ) -> impl Iterator<Item = LongTermKey> {
        self.marked_keys(algorithm, username, realm).map(|(key, _)| key)
    }

    /// The same, with what secret each is from.
    pub(super) fn marked_keys(
        &self,
        algorithm: PasswordAlgorithm,
        username: &[u8],
        realm: &[u8],
    ) -> impl Iterator<Item = (LongTermKey, SecretMark)> {
        self.secrets.iter().map(move |secret| {
            let tag = hmac::sign(&secret.key, username);
            let mut password = Zeroizing::new([0; PASSWORD_LEN]);
            let written = BASE64.encode_slice(tag.as_ref(), &mut password[..]);
            debug_assert_eq!(written, Ok(PASSWORD_LEN));
            (LongTermKey::new(algorithm, username, realm, &password[..]), secret.mark)
        })
    }
}

/// A name of the form `EXPIRY` or `EXPIRY:ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedName<'a> {
    /// Since 1970, UTC.
    pub expires: Duration,
    /// Who it is: `ID`, or the whole name when there is none.
    pub id: &'a [u8],
}

impl<'a> TimedName<'a> {
    /// `None` for a name of another form: the expiry is decimal digits and fits 64 bits, a sign is none of them.
    #[must_use]
    pub fn parse(username: &'a [u8]) -> Option<Self> {
        let colon = username.iter().position(|&byte| byte == b':');
        let (digits, id) = match colon {
            Some(colon) => (&username[..colon], &username[colon + 1..]),
            None => (username, &[][..]),
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let seconds = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let id = if id.is_empty() { username } else { id };
        Some(Self { expires: Duration::from_secs(seconds), id })
    }
}

#[cfg(test)]
mod tests {
    use dataplane::stun::{Class, Integrity, Message, Method, TransactionId, Writer};

    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn the_password_is_the_one_that_web_services_compute() {
        // printf '%s' 1700000600:alice | openssl dgst -sha1 -hmac north -binary | base64
        let password = b"gthUwOpcRoLI0MMCziCEBOWYnpo=";
        let mut secrets = Secrets::default();
        secrets.add(b"south");
        secrets.add(b"north");
        let name = b"1700000600:alice";
        let expected = LongTermKey::new(PasswordAlgorithm::Md5, name, b"example.org", password);
        let mut buffer = [0; 100];
        let writer =
            Writer::new(&mut buffer, Class::Request, Method::Refresh, TransactionId([1; 12])).unwrap();
        let len = writer.finish(Some(&expected.for_integrity(Integrity::Sha1)), false).unwrap();
        let message = Message::parse(&buffer[..len]).unwrap();
        let right: Vec<bool> = secrets
            .long_term_keys(PasswordAlgorithm::Md5, name, b"example.org")
            .map(|key| message.verify_integrity(&key.for_integrity(Integrity::Sha1)))
            .collect();
        assert_eq!(right, [false, true]);
    }

    #[test]
    fn a_mark_stays_with_its_secret_in_any_order() {
        let secrets = |texts: &[&str]| {
            let mut secrets = Secrets::default();
            texts.iter().for_each(|text| secrets.add(text.as_bytes()));
            secrets
        };
        let marks = |secrets: &Secrets| -> Vec<SecretMark> {
            let keys = secrets.marked_keys(PasswordAlgorithm::Md5, b"1:x", b"example.org");
            keys.map(|(_, mark)| mark).collect()
        };
        let [north, south] = marks(&secrets(&["north", "south"]))[..] else { panic!("two secrets") };
        assert_ne!(north, south);
        let later = secrets(&["east", "south"]);
        assert_eq!(marks(&later)[1], south);
        assert!(later.has(south) && !later.has(north) && !Secrets::default().has(south));
    }

    #[test]
    fn names_have_digits_and_perhaps_an_id() {
        let parsed = |name: &'static str| {
            TimedName::parse(name.as_bytes()).map(|timed| (timed.expires.as_secs(), timed.id))
        };
        assert_eq!(parsed("1700000600:alice"), Some((1_700_000_600, &b"alice"[..])));
        assert_eq!(parsed("1700000600:a:b"), Some((1_700_000_600, &b"a:b"[..])));
        assert_eq!(parsed("1700000600"), Some((1_700_000_600, &b"1700000600"[..])));
        assert_eq!(parsed("1700000600:"), Some((1_700_000_600, &b"1700000600:"[..])));
        assert_eq!(parsed("0:x"), Some((0, &b"x"[..])));
        assert_eq!(parsed("18446744073709551615:x"), Some((u64::MAX, &b"x"[..])));
        for malformed in [
            "",
            ":",
            ":x",
            "alice",
            "alice:1700000600",
            "-1:x",
            "+1700000600:x",
            " 1700000600:x",
            "1700000600 :x",
            "1.7e9:x",
            "0x6553f100:x",
            "18446744073709551616:x",
            "99999999999999999999999999:x",
            "\u{0661}:x",
        ] {
            assert_eq!(parsed(malformed), None, "{malformed:?}");
        }
        assert_eq!(TimedName::parse(b"17\xff:x"), None);
    }

    #[test]
    fn a_name_is_in_time_from_a_day_before_its_expiry_until_then() {
        let mut secrets = Secrets::default();
        let is_in_time = |secrets: &Secrets, expires: u64| {
            secrets.is_in_time(TimedName { expires: Duration::from_secs(expires), id: b"x" }, NOW)
        };
        let now = NOW.as_secs();
        let day = 24 * 60 * 60;
        for (expires, expected) in [
            (0, false),
            (now - 1, false),
            (now, false),
            (now + 1, true),
            (now + day, true),
            (now + day + 60, true),
            (now + day + 61, false),
            (u64::MAX, false),
        ] {
            assert_eq!(is_in_time(&secrets, expires), expected, "{expires}");
        }
        secrets.set_validity_max(Duration::from_secs(u64::MAX));
        assert!(is_in_time(&secrets, u64::MAX));
        secrets.set_validity_max(Duration::from_secs(10));
        assert!(is_in_time(&secrets, now + 70) && !is_in_time(&secrets, now + 71));
    }
}
