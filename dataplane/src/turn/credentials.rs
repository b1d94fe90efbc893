//! Long-term credentials (RFC 8489 section 9.2) and the messages signed with them.

use zeroize::Zeroizing;

use super::transaction::Request;
use crate::stun::{AttributeType, Class, Key, Message, TRANSPORT_UDP, TransactionId, Writer};

/// REALM and NONCE have at most 128 characters, which are at most 763 bytes (RFC 8489 sections 14.9 and 14.10).
const CHALLENGE_BYTES_MAX: usize = 763;
/// USERNAME has less than 509 bytes (RFC 8489 section 14.3).
const USERNAME_BYTES_MAX: usize = 508;
/// Header, USERNAME, REALM, NONCE and MESSAGE-INTEGRITY at their longest, and 160 bytes for what a request asks.
const REQUEST_BYTES_MAX: usize = 20 + 3 * (4 + 3) + USERNAME_BYTES_MAX + 2 * CHALLENGE_BYTES_MAX + 24 + 160;

/// SOFTWARE of the one request that cannot be signed, at its longest (RFC 8489 section 14.14): no server has to send more
/// than it got, so one that answers strangers no longer than they ask answers us.
const SOFTWARE: [u8; 127] = {
    let mut text = [b' '; 127];
    *text.first_chunk_mut().expect("longer than the name") = *b"towpath";
    text
};

/// User name and password, and what the server last challenged them with.
pub(super) struct Credentials {
    username: String,
    password: Zeroizing<String>,
    challenge: Option<Challenge>,
    /// What was signed with before the last change: answers to it are under way.
    previous: Option<Key>,
}

struct Challenge {
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: Key,
}

impl Credentials {
    /// `None` when the user name is longer than a message may carry.
    pub(super) fn new(username: String, password: Zeroizing<String>) -> Option<Self> {
        (username.len() <= USERNAME_BYTES_MAX).then_some(Self {
            username,
            password,
            challenge: None,
            previous: None,
        })
    }

    /// Takes realm and nonce from a 401 or 438; `false` when they are missing or too long.
    pub(super) fn take_challenge(&mut self, response: &Message<'_>) -> bool {
        let (Some(realm), Some(nonce)) = (response.realm(), response.nonce()) else { return false };
        if realm.len() > CHALLENGE_BYTES_MAX || nonce.len() > CHALLENGE_BYTES_MAX {
            return false;
        }
        let known = self.challenge.take().filter(|challenge| challenge.realm == realm);
        let key = known.map_or_else(
            || Key::long_term(self.username.as_bytes(), realm, self.password.as_bytes()),
            |challenge| challenge.key,
        );
        self.challenge = Some(Challenge { realm: realm.to_vec(), nonce: nonce.to_vec(), key });
        true
    }

    /// Starts over: the next request goes out unsigned, to be challenged.
    pub(super) fn forget_challenge(&mut self) {
        self.challenge = None;
    }

    /// Another name and password, for the same challenge; `false` when the name is too long.
    pub(super) fn replace(&mut self, username: String, password: Zeroizing<String>) -> bool {
        if username.len() > USERNAME_BYTES_MAX {
            return false;
        }
        (self.username, self.password) = (username, password);
        let (username, password) = (self.username.as_bytes(), self.password.as_bytes());
        self.previous = self.challenge.as_mut().map(|challenge| {
            let key = Key::long_term(username, &challenge.realm, password);
            std::mem::replace(&mut challenge.key, key)
        });
        true
    }

    /// Whether requests are signed.
    pub(super) fn can_sign(&self) -> bool {
        self.challenge.is_some()
    }

    /// Whether a response comes from the server.
    pub(super) fn verify(&self, response: &Message<'_>) -> bool {
        let current = self.challenge.as_ref().map(|challenge| &challenge.key);
        [current, self.previous.as_ref()].into_iter().flatten().any(|key| response.verify_integrity(key))
    }

    /// Builds a request, signed when the server has said with what.
    pub(super) fn build(&self, request: Request, id: TransactionId) -> Vec<u8> {
        let mut buffer = [0; REQUEST_BYTES_MAX];
        let length = self.write(request, id, &mut buffer);
        buffer[..length.expect("REQUEST_BYTES_MAX is the sum of its parts")].to_vec()
    }

    fn write(&self, request: Request, id: TransactionId, buffer: &mut [u8]) -> Option<usize> {
        let mut writer = Writer::new(buffer, Class::Request, request.method(), id)?;
        match request {
            Request::Allocate { family, .. } => {
                writer.requested_transport(TRANSPORT_UDP);
                if let Some(family) = family {
                    writer.requested_address_family(family);
                }
            }
            Request::Refresh => {}
            Request::Delete => {
                writer.lifetime(0);
            }
            Request::CreatePermission { peer } => {
                // Permissions are for addresses; the port is ignored (RFC 8656 section 9.1).
                writer.xor_peer_address(std::net::SocketAddr::new(peer, 0));
            }
            Request::ChannelBind { number, peer } => {
                writer.channel_number(number);
                writer.xor_peer_address(peer);
            }
        }
        let Some(challenge) = &self.challenge else {
            writer.attribute(AttributeType::SOFTWARE, &SOFTWARE);
            return writer.finish(None, false);
        };
        writer.attribute(AttributeType::USERNAME, self.username.as_bytes());
        writer.realm(&challenge.realm);
        writer.nonce(&challenge.nonce);
        match request {
            Request::Allocate { port, .. } => towpath(&mut writer, port),
            Request::Refresh => towpath(&mut writer, 0),
            Request::Delete | Request::CreatePermission { .. } | Request::ChannelBind { .. } => {}
        }
        writer.finish(Some(&challenge.key), false)
    }
}

fn towpath(writer: &mut Writer<'_>, port: u16) {
    let [high, low] = port.to_be_bytes();
    writer.attribute(AttributeType::TOWPATH, &[high, low, 0, 0]);
}
