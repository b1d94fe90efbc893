//! The endpoint's own keys, and the checks a handshake message must pass before it costs a Diffie-Hellman.

use std::net::SocketAddr;

use super::cookies::Checker;
use super::handshake::{self, Claim, KeyPair};
use crate::tunnel::apart::apart;
use crate::tunnel::key::{PublicKey, SecretKey};
use crate::wire::wireguard::COOKIE_REPLY;

/// The public key that belongs to a private one.
#[must_use]
pub fn public_key(private: &SecretKey) -> PublicKey {
    apart(|| KeyPair::new(*private.expose()).public)
}

/// Whether a Diffie-Hellman exchange with this key depends on the private key used.
#[must_use]
pub fn contributes(key: &PublicKey) -> bool {
    KeyPair::new([0x42; 32]).agree(key).is_some()
}

/// The endpoint's own key pair, and what checks messages to it.
pub struct Identity {
    pub(super) keys: KeyPair,
    checker: Checker,
}

/// What the cookie check says about a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieCheck {
    /// The sender has proved that it receives at its address.
    Proved,
    /// It has not; a cookie reply for it was written.
    Reply,
}

impl Identity {
    /// Takes the private key; `cookie_secret` is random.
    #[must_use]
    pub fn new(private: &SecretKey, cookie_secret: &[u8; 32]) -> Self {
        let keys = apart(|| KeyPair::new(*private.expose()));
        let checker = Checker::new(&keys.public, cookie_secret);
        Self { keys, checker }
    }

    /// The own public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.keys.public
    }

    /// Checks mac1 of a handshake message: that the sender knows our public key.
    #[must_use]
    pub fn check_mac1(&self, datagram: &[u8]) -> bool {
        self.checker.check_mac1(datagram)
    }

    /// Checks mac2 of a handshake message whose mac1 is right, and writes a cookie reply when it is wrong. A cookie is good
    /// from one address and port, in one `period`.
    pub fn check_mac2(
        &self,
        datagram: &[u8],
        source: SocketAddr,
        period: u64,
        reply: &mut [u8; COOKIE_REPLY],
    ) -> CookieCheck {
        if self.checker.check_mac2(datagram, source, period) {
            return CookieCheck::Proved;
        }
        self.checker.reply(datagram, source, period, reply);
        CookieCheck::Reply
    }

    /// Reads who claims to have sent a handshake initiation; `None` when it was not made for us.
    #[must_use]
    pub fn claim(&self, datagram: &[u8]) -> Option<Claim> {
        apart(|| handshake::claim(&self.keys, datagram))
    }
}
