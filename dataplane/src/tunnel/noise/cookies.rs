//! The two MACs at the end of a handshake message (WireGuard paper, sections 5.3, 5.4.4 and 5.4.7): mac1 shows that its sender
//! knows whom it writes to, mac2 that it receives what is sent to where it writes from.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::digest::consts::{U16, U24};
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use chacha20poly1305::{AeadInPlace as _, Tag, XChaCha20Poly1305, XNonce};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::Outset;
use crate::drops::Cause;
use crate::tunnel::key::PublicKey;
use crate::tunnel::peer::Path;
use crate::wire::wireguard::{COOKIE_REPLY, INITIATION, RESPONSE, SessionIndex};

/// A received cookie is used for so long (section 5.4.7).
const COOKIE_AGE_MAX: Duration = Duration::from_secs(120);
const MAC: usize = 16;
/// Both at the end of a message.
const MACS: usize = 2 * MAC;

type Mac = [u8; MAC];

/// Where the parts of a cookie reply begin.
const REPLY_NONCE: usize = 8;
const REPLY_COOKIE: usize = 32;
const REPLY_TAG: usize = 48;

fn labelled(label: &[u8], key: &PublicKey) -> [u8; 32] {
    Blake2s256::new().chain_update(label).chain_update(key.0).finalize().into()
}

/// The key of mac1 of messages to `receiver`.
fn mac1_key(receiver: &PublicKey) -> [u8; 32] {
    labelled(b"mac1----", receiver)
}

/// What seals cookies that `sender` gives.
fn cookie_cipher(sender: &PublicKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&labelled(b"cookie--", sender).into())
}

fn keyed(key: &[u8]) -> Blake2sMac<U16> {
    Blake2sMac::new_from_slice(key).expect("32 bytes at most")
}

fn mac(key: &[u8], data: &[u8]) -> Mac {
    keyed(key).chain(data).finalize_fixed().into()
}

/// Checks messages to us, and gives cookies.
pub(super) struct Checker {
    /// mac1 as it is after the key and the type of an initiation, so that the key costs nothing for each message.
    initiation: Blake2sMac<U16>,
    response: Blake2sMac<U16>,
    cipher: XChaCha20Poly1305,
    secret: Zeroizing<[u8; 32]>,
}

impl Checker {
    /// For messages to `own`. Cookies are made with `secret`.
    pub fn new(own: &PublicKey, secret: &[u8; 32]) -> Self {
        let mac1 = keyed(&mac1_key(own));
        Self {
            initiation: mac1.clone().chain([1, 0, 0, 0]),
            response: mac1.chain([2, 0, 0, 0]),
            cipher: cookie_cipher(own),
            secret: Zeroizing::new(*secret),
        }
    }

    /// Whether it is a handshake message whose mac1 is right.
    pub fn check_mac1(&self, datagram: &[u8]) -> bool {
        let (begun, rest) = match datagram {
            [1, 0, 0, 0, rest @ ..] if datagram.len() == INITIATION => (&self.initiation, rest),
            [2, 0, 0, 0, rest @ ..] if datagram.len() == RESPONSE => (&self.response, rest),
            _ => return false,
        };
        let (covered, macs) = rest.split_at(rest.len() - MACS);
        let expected: Mac = begun.clone().chain(covered).finalize_fixed().into();
        expected.ct_eq(&macs[..MAC]).into()
    }

    /// Whether a message that [`Checker::check_mac1`] lets pass has the cookie that its sender is to have in this `period`.
    pub fn check_mac2(&self, datagram: &[u8], source: SocketAddr, period: u64) -> bool {
        let (covered, mac2) = datagram.split_at(datagram.len() - MAC);
        mac(&self.cookie(source, period), covered).ct_eq(mac2).into()
    }

    /// Writes the reply that gives the sender of a message its cookie.
    pub fn reply(&self, datagram: &[u8], source: SocketAddr, period: u64, out: &mut [u8; COOKIE_REPLY]) {
        let mac1 = &datagram[datagram.len() - MACS..][..MAC];
        let mut cookie = self.cookie(source, period);
        // Two replies have one nonce if they are the same reply, and else by chance of 2^-96.
        let nonce: [u8; 24] = Blake2sMac::<U24>::new_from_slice(self.secret.as_slice())
            .expect("32 bytes")
            .chain(mac1)
            .chain(cookie)
            .finalize_fixed()
            .into();
        let sealed = self.cipher.encrypt_in_place_detached(XNonce::from_slice(&nonce), mac1, &mut cookie);
        out[..4].copy_from_slice(&[3, 0, 0, 0]);
        out[4..REPLY_NONCE].copy_from_slice(&datagram[4..8]);
        out[REPLY_NONCE..REPLY_COOKIE].copy_from_slice(&nonce);
        out[REPLY_COOKIE..REPLY_TAG].copy_from_slice(&cookie);
        out[REPLY_TAG..].copy_from_slice(&sealed.expect("a short message"));
    }

    /// The cookie of one address and port in one period.
    fn cookie(&self, source: SocketAddr, period: u64) -> Mac {
        let address = match source.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        keyed(self.secret.as_slice())
            .chain(address.octets())
            .chain(source.port().to_be_bytes())
            .chain(period.to_be_bytes())
            .finalize_fixed()
            .into()
    }
}

/// Ways to a peer whose cookies are kept: messages leave by two at a time at most. More ways than these take turns.
const WAYS: usize = 2;

/// Completes messages to one peer, with the cookies it gave. A cookie is for the address that the peer sees, and that is another
/// one by each way: over a relay, or to another address of the peer's.
#[derive(Default)]
pub(super) struct Jar {
    /// The one used last is first. Each is in memory of its own: most peers have none, see [`Jar::forget`].
    ways: [Option<Box<Way>>; WAYS],
}

/// What there is of one way.
struct Way {
    path: Path,
    /// Index and mac1 of the last message, until it is answered: a reply is good once.
    last: Option<(SessionIndex, Mac)>,
    cookie: Option<(Mac, Instant)>,
}

impl Jar {
    /// Writes both MACs of a message to `peer`.
    pub fn complete(&mut self, peer: &PublicKey, outset: Outset, message: &mut [u8], now: Instant) {
        let (covered, macs) = message.split_at_mut(message.len() - MACS);
        let mac1 = mac(&mac1_key(peer), covered);
        macs[..MAC].copy_from_slice(&mac1);
        macs[MAC..].fill(0);
        let way = self.way(outset.path);
        (way.path, way.last) = (outset.path, Some((outset.index, mac1)));
        way.cookie.take_if(|(_, since)| now.saturating_duration_since(*since) >= COOKIE_AGE_MAX);
        if let Some((cookie, _)) = &way.cookie {
            let (covered, mac2) = message.split_at_mut(message.len() - MAC);
            mac2.copy_from_slice(&mac(cookie, covered));
        }
    }

    /// Takes the cookie out of a reply of `peer`, and says by which way the message had left.
    ///
    /// # Errors
    /// [`Cause::UnknownIndex`] or [`Cause::BadTag`] when it does not answer the last message by some way.
    pub fn take(
        &mut self,
        peer: &PublicKey,
        receiver: SessionIndex,
        reply: &[u8; COOKIE_REPLY],
        now: Instant,
    ) -> Result<Path, Cause> {
        let mut ways = self.ways.iter_mut().flatten();
        let (way, mac1) = ways
            .find_map(|way| {
                let (_, mac1) = way.last.filter(|(index, _)| *index == receiver)?;
                Some((way, mac1))
            })
            .ok_or(Cause::UnknownIndex)?;
        let nonce = XNonce::from_slice(&reply[REPLY_NONCE..REPLY_COOKIE]);
        let mut cookie = Mac::default();
        cookie.copy_from_slice(&reply[REPLY_COOKIE..REPLY_TAG]);
        cookie_cipher(peer)
            .decrypt_in_place_detached(nonce, &mac1, &mut cookie, Tag::from_slice(&reply[REPLY_TAG..]))
            .map_err(|_| Cause::BadTag)?;
        (way.last, way.cookie) = (None, Some((cookie, now)));
        Ok(way.path)
    }

    /// A message has been answered by more than a cookie: no reply to it is waited for. A way of which there is no cookie is forgotten.
    pub fn forget(&mut self, answered: SessionIndex) {
        for way in &mut self.ways {
            if let Some(held) = way
                && held.last.take_if(|(index, _)| *index == answered).is_some()
                && held.cookie.is_none()
            {
                *way = None;
            }
        }
    }

    /// What there is of a way, in the place of the one that was not used for longest if it is new.
    fn way(&mut self, path: Path) -> &mut Way {
        let known = self.ways.iter().position(|way| way.as_ref().is_some_and(|way| way.path.leads_as(path)));
        let vacant = || self.ways.iter().position(Option::is_none);
        let place = known.or_else(vacant).unwrap_or(WAYS - 1);
        self.ways[..=place].rotate_right(1);
        if known.is_none() {
            self.ways[0] = None;
        }
        self.ways[0].get_or_insert_with(|| Box::new(Way { path, last: None, cookie: None }))
    }
}
