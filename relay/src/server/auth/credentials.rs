//! Who may allocate, as configuration has it: static users with their keys, and shared secrets. Nothing in here changes
//! while the relay runs, so that other credentials can take its place at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dataplane::stun::password::{USERHASH_LEN, userhash};
use dataplane::stun::{LongTermKey, PasswordAlgorithm};
use foldhash::fast::RandomState;

use super::nonce::Offer;
use super::shared_secret::Secrets;

/// The keys of a static user; one may be missing when the password is not known.
#[derive(Clone, Debug, Default)]
pub struct StaticKeys {
    /// What clients before RFC 8489 need.
    pub md5: Option<LongTermKey>,
    /// What clients of RFC 8489 prefer.
    pub sha256: Option<LongTermKey>,
}

impl StaticKeys {
    fn get(&self, algorithm: PasswordAlgorithm) -> Option<&LongTermKey> {
        match algorithm {
            PasswordAlgorithm::Md5 => self.md5.as_ref(),
            PasswordAlgorithm::Sha256 => self.sha256.as_ref(),
        }
    }
}

#[derive(Clone, Debug)]
struct StaticUser {
    name: Box<[u8]>,
    keys: StaticKeys,
}

/// Everyone who may allocate. A clone is the same memory: every worker has one.
#[derive(Clone, Debug)]
pub struct Credentials(Arc<Everyone>);

#[derive(Clone, Debug)]
struct Everyone {
    realm: String,
    users: Vec<StaticUser>,
    /// Indices of `users`.
    by_name: HashMap<Box<[u8]>, usize, RandomState>,
    by_hash: HashMap<[u8; USERHASH_LEN], usize, RandomState>,
    secrets: Secrets,
    /// How many users have no MD5 key, and no SHA-256 key.
    without: [usize; 2],
    /// What unknown users are checked against, so that they take as long as known ones.
    nobody: [LongTermKey; 2],
}

impl Credentials {
    /// Nobody yet, in a realm.
    #[must_use]
    pub fn new(realm: &str) -> Self {
        let nobody = |algorithm| LongTermKey::new(algorithm, b"", b"", b"");
        Self(Arc::new(Everyone {
            realm: realm.to_owned(),
            users: Vec::new(),
            by_name: HashMap::default(),
            by_hash: HashMap::default(),
            secrets: Secrets::default(),
            without: [0; 2],
            nobody: [PasswordAlgorithm::Md5, PasswordAlgorithm::Sha256].map(nobody),
        }))
    }

    /// Adds a user, or replaces the keys of one.
    pub fn add(&mut self, name: &str, password: &str) {
        let realm = self.0.realm.as_bytes();
        let key = |algorithm| Some(LongTermKey::new(algorithm, name.as_bytes(), realm, password.as_bytes()));
        let keys = StaticKeys { md5: key(PasswordAlgorithm::Md5), sha256: key(PasswordAlgorithm::Sha256) };
        self.add_keys(name, keys);
    }

    /// Adds a user whose password is not known, or replaces the keys of one. The keys are bound to name and realm.
    pub fn add_keys(&mut self, name: &str, keys: StaticKeys) {
        let everyone = Arc::make_mut(&mut self.0);
        let name = name.as_bytes();
        let without = |keys: &StaticKeys| [keys.md5.is_none(), keys.sha256.is_none()].map(usize::from);
        for (sum, one) in everyone.without.iter_mut().zip(without(&keys)) {
            *sum += one;
        }
        if let Some(&index) = everyone.by_name.get(name) {
            let old = std::mem::replace(&mut everyone.users[index].keys, keys);
            for (sum, one) in everyone.without.iter_mut().zip(without(&old)) {
                *sum -= one;
            }
            return;
        }
        let index = everyone.users.len();
        everyone.users.push(StaticUser { name: name.into(), keys });
        everyone.by_name.insert(name.into(), index);
        everyone.by_hash.insert(userhash(name, everyone.realm.as_bytes()), index);
    }

    /// Adds a shared secret.
    ///
    /// # Panics
    /// When there are [`super::SECRETS_MAX`] already: check configuration before.
    pub fn add_secret(&mut self, secret: &[u8]) {
        let everyone = Arc::make_mut(&mut self.0);
        everyone.secrets.add(secret);
    }

    /// Sets how far in the future names from shared secrets may expire.
    pub fn set_secret_validity_max(&mut self, validity_max: Duration) {
        let everyone = Arc::make_mut(&mut self.0);
        everyone.secrets.set_validity_max(validity_max);
    }

    /// Whether there is a static user of this name.
    #[must_use]
    pub fn has_user(&self, name: &[u8]) -> bool {
        self.0.by_name.contains_key(name)
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &str {
        &self.0.realm
    }

    /// The shared secrets.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.0.secrets
    }

    /// What all users can do. A client takes the first algorithm it knows before it has said who it is, so that one which
    /// a single user lacks cannot be offered; and a name from a shared secret cannot be found by its hash.
    #[must_use]
    pub fn offer(&self) -> Offer {
        let [without_md5, without_sha256] = self.0.without;
        Offer {
            md5: without_md5 == 0,
            sha256: without_sha256 == 0,
            username_anonymity: self.0.secrets.is_empty(),
        }
    }

    /// The name and key of a static user.
    #[must_use]
    pub(super) fn find(
        &self,
        username: Username<'_>,
        algorithm: PasswordAlgorithm,
    ) -> Option<(&[u8], &LongTermKey)> {
        let index = match username {
            Username::Plain(name) => self.0.by_name.get(name),
            Username::Hashed(hash) => self.0.by_hash.get(hash),
        };
        let user = &self.0.users[*index?];
        Some((&user.name, user.keys.get(algorithm)?))
    }

    /// The key that nobody has.
    #[must_use]
    pub(super) fn nobody(&self, algorithm: PasswordAlgorithm) -> &LongTermKey {
        let [md5, sha256] = &self.0.nobody;
        match algorithm {
            PasswordAlgorithm::Md5 => md5,
            PasswordAlgorithm::Sha256 => sha256,
        }
    }
}

/// How a request says who sent it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Username<'a> {
    /// By USERNAME.
    Plain(&'a [u8]),
    /// By USERHASH.
    Hashed(&'a [u8]),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_user_lacks_is_offered_to_nobody() {
        let mut credentials = Credentials::new("example.org");
        let offer = |credentials: &Credentials| {
            let offer = credentials.offer();
            (offer.sha256, offer.md5, offer.username_anonymity)
        };
        assert_eq!(offer(&credentials), (true, true, true));
        credentials.add("alice", "secret");
        assert_eq!(offer(&credentials), (true, true, true));
        let key = |len| LongTermKey::from_bytes(&[7; 32][..len]);
        credentials.add_keys("bob", StaticKeys { md5: key(16), sha256: None });
        assert_eq!(offer(&credentials), (false, true, true));
        credentials.add_keys("bob", StaticKeys { md5: None, sha256: key(32) });
        assert_eq!(offer(&credentials), (true, false, true));
        credentials.add_keys("bob", StaticKeys { md5: key(16), sha256: key(32) });
        credentials.add_secret(b"north");
        assert_eq!(offer(&credentials), (true, true, false));
    }
}
