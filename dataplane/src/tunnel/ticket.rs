//! Tickets: a short signed text that says where an endpoint can be reached, for two people to exchange once.
//!
//! ```text
//!  towpath1: base64url(
//!   1 byte  version, 1
//!  32 bytes WireGuard public key          32 bytes Ed25519 public key
//!   8 bytes issued, 8 bytes expires       seconds since 1970, big-endian
//!   1 byte  number of addresses, then of each: 1 byte what it is, 1 byte family, address, 2 bytes port
//!  64 bytes Ed25519 signature of a label and all of the above )
//! ```
//!
//! The signing key is derived from the WireGuard private key and used for nothing else, so that there is no second secret to
//! keep, and the same endpoint always signs with the same key. The signature binds addresses, times and WireGuard key
//! to that signing key. It cannot prove that the signing key belongs to the WireGuard key, because an X25519 key signs
//! nothing: whoever reads a first ticket trusts the channel by which it came, as with any public key, and remembers the
//! signing key; later tickets for the same WireGuard key must bear the same signature and not be older.
//!
//! What a forged one can do: send us to wrong addresses, where handshakes that nobody but the owner of the WireGuard key
//! can answer are tried, to [`ADDRESSES_MAX`] addresses and seldom, and keep the two ends apart where they have no direct path. It
//! cannot impersonate the peer, read, or take away a direct path that works.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use super::key::{PublicKey, SecretKey};
use super::noise;

/// Most addresses in one.
pub const ADDRESSES_MAX: usize = 16;
/// How long one is good for.
pub const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);
/// How far the clocks of two people may be apart.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);
/// What every one begins with.
const PREFIX: &str = "towpath1:";
const VERSION: u8 = 1;
/// The key is for this and nothing else.
const KEY_LABEL: &[u8] = b"towpath ticket signing key 1";
/// So is the signature.
const SIGNATURE_LABEL: &[u8] = b"towpath ticket 1\0";
const KEY_LEN: usize = 32;
const SIGNATURE_LEN: usize = 64;
/// Longer texts are none, bytes.
const TEXT_MAX: usize = 1_024;

/// What an address is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// An interface of the endpoint has it.
    Own(SocketAddr),
    /// A relay sees the endpoint's packets come from there: a NAT's, where there is one.
    Mapped(SocketAddr),
    /// A relay has it for the endpoint.
    Relayed(SocketAddr),
}

/// What a ticket says, once its signature has been found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Whose it is.
    pub public_key: PublicKey,
    /// Who signed it; to be compared with earlier ones.
    pub signer: [u8; KEY_LEN],
    /// When it was made, since 1970.
    pub issued: Duration,
    /// Until when it is good, since 1970.
    pub expires: Duration,
    /// Where the endpoint is reached.
    pub candidates: Vec<Candidate>,
}

/// Why a text is no ticket that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTicket {
    /// It does not begin like one, or was cut.
    #[error("this is no ticket, or only a part of one: it begins with {PREFIX} and is one line")]
    Malformed,
    /// Somebody changed it.
    #[error("the ticket's signature is wrong: a character was changed on the way; copy it again")]
    Forged,
    /// Its time is over.
    #[error("the ticket has expired; ask for a new one, and check the clock")]
    Expired,
    /// Its time has not come.
    #[error("the ticket is from the future; check the clocks of both ends")]
    Early,
}

/// Signs tickets of one endpoint.
pub struct Signer {
    public_key: PublicKey,
    key: Ed25519KeyPair,
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Signer").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

impl Signer {
    /// The signer of the endpoint with this key.
    #[must_use]
    pub fn new(private: &SecretKey) -> Self {
        // HMAC as a pseudorandom function: the signing key tells nothing about the private key.
        let seed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, private.expose()), KEY_LABEL);
        let key = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).expect("a seed has 32 bytes");
        Self { public_key: noise::public_key(private), key }
    }

    /// A ticket, as text, made at `now` since 1970. Addresses beyond [`ADDRESSES_MAX`] are left out.
    #[must_use]
    pub fn sign(&self, candidates: &[Candidate], now: Duration) -> String {
        let mut body = vec![VERSION];
        body.extend(self.public_key.0);
        body.extend(self.key.public_key().as_ref());
        body.extend(now.as_secs().to_be_bytes());
        body.extend((now + VALIDITY).as_secs().to_be_bytes());
        let candidates = &candidates[..candidates.len().min(ADDRESSES_MAX)];
        body.push(candidates.len() as u8);
        for candidate in candidates {
            let (kind, address) = match *candidate {
                Candidate::Own(address) => (0, address),
                Candidate::Mapped(address) => (1, address),
                Candidate::Relayed(address) => (2, address),
            };
            body.push(kind);
            match address.ip() {
                IpAddr::V4(ip) => {
                    body.push(4);
                    body.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    body.push(6);
                    body.extend(ip.octets());
                }
            }
            body.extend(address.port().to_be_bytes());
        }
        let signature = self.key.sign(&[SIGNATURE_LABEL, &body].concat());
        body.extend(signature.as_ref());
        format!("{PREFIX}{}", BASE64.encode(body))
    }
}

impl Ticket {
    /// Whether it may be used at this time since 1970.
    ///
    /// # Errors
    /// When it may not.
    pub fn check_time(&self, now: Duration) -> Result<(), BadTicket> {
        if now > self.expires + CLOCK_TOLERANCE {
            return Err(BadTicket::Expired);
        }
        if now + CLOCK_TOLERANCE < self.issued {
            return Err(BadTicket::Early);
        }
        Ok(())
    }

    /// Where the peer may be reached directly, mapped addresses first.
    pub fn direct(&self) -> impl Iterator<Item = SocketAddr> {
        let mapped = self.candidates.iter().filter_map(|candidate| match *candidate {
            Candidate::Mapped(address) => Some(address),
            Candidate::Own(_) | Candidate::Relayed(_) => None,
        });
        let own = self.candidates.iter().filter_map(|candidate| match *candidate {
            Candidate::Own(address) => Some(address),
            Candidate::Mapped(_) | Candidate::Relayed(_) => None,
        });
        mapped.chain(own)
    }

    /// Where a relay forwards to the peer.
    #[must_use]
    pub fn relayed(&self) -> Option<SocketAddr> {
        self.candidates.iter().find_map(|candidate| match *candidate {
            Candidate::Relayed(address) => Some(address),
            Candidate::Own(_) | Candidate::Mapped(_) => None,
        })
    }
}

impl FromStr for Ticket {
    type Err = BadTicket;

    fn from_str(text: &str) -> Result<Self, BadTicket> {
        let text = text.trim();
        let encoded =
            text.strip_prefix(PREFIX).filter(|_| text.len() <= TEXT_MAX).ok_or(BadTicket::Malformed)?;
        let bytes = BASE64.decode(encoded).map_err(|_| BadTicket::Malformed)?;
        let split = bytes.len().checked_sub(SIGNATURE_LEN).ok_or(BadTicket::Malformed)?;
        let (body, signature) = bytes.split_at(split);
        let ticket = parse(body).ok_or(BadTicket::Malformed)?;
        UnparsedPublicKey::new(&ED25519, ticket.signer)
            .verify(&[SIGNATURE_LABEL, body].concat(), signature)
            .map_err(|_| BadTicket::Forged)?;
        Ok(ticket)
    }
}

fn parse(body: &[u8]) -> Option<Ticket> {
    let (&[version], rest) = body.split_first_chunk()?;
    let (public_key, rest) = rest.split_first_chunk::<KEY_LEN>()?;
    let (signer, rest) = rest.split_first_chunk::<KEY_LEN>()?;
    let (issued, rest) = rest.split_first_chunk()?;
    let (expires, rest) = rest.split_first_chunk()?;
    let (&[count], mut rest) = rest.split_first_chunk()?;
    if version != VERSION || usize::from(count) > ADDRESSES_MAX {
        return None;
    }
    let mut candidates = Vec::with_capacity(count.into());
    for _ in 0..count {
        let (&[kind, family], after) = rest.split_first_chunk()?;
        let (ip, after) = match family {
            4 => {
                let (octets, after) = after.split_first_chunk::<4>()?;
                (IpAddr::V4(Ipv4Addr::from(*octets)), after)
            }
            6 => {
                let (octets, after) = after.split_first_chunk::<16>()?;
                (IpAddr::V6(Ipv6Addr::from(*octets)), after)
            }
            _ => return None,
        };
        let (port, after) = after.split_first_chunk()?;
        rest = after;
        let address = SocketAddr::new(ip, u16::from_be_bytes(*port));
        crate::config::check_endpoint(address).ok()?;
        candidates.push(match kind {
            0 => Candidate::Own(address),
            1 => Candidate::Mapped(address),
            2 => Candidate::Relayed(address),
            _ => return None,
        });
    }
    let public_key = PublicKey(*public_key);
    let seconds = |bytes: &[u8; 8]| Some(u64::from_be_bytes(*bytes)).filter(|seconds| *seconds < 1 << 40);
    let (issued, expires) = (seconds(issued)?, seconds(expires)?);
    (rest.is_empty() && !public_key.is_low_order()).then_some(Ticket {
        public_key,
        signer: *signer,
        issued: Duration::from_secs(issued),
        expires: Duration::from_secs(expires),
        candidates,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn candidates() -> Vec<Candidate> {
        vec![
            Candidate::Own("10.0.0.7:51820".parse().expect("address")),
            Candidate::Mapped("192.0.2.1:40000".parse().expect("address")),
            Candidate::Relayed("[2001:db8::5]:50001".parse().expect("address")),
        ]
    }

    fn signer(seed: u8) -> Signer {
        Signer::new(&SecretKey::new([seed; 32]).clamped())
    }

    #[test]
    fn what_was_signed_is_read() {
        let text = signer(1).sign(&candidates(), NOW);
        assert!(text.len() < 400, "{}", text.len());
        let ticket: Ticket = text.parse().expect("a ticket");
        assert_eq!(ticket.public_key, noise::public_key(&SecretKey::new([1; 32]).clamped()));
        assert_eq!(ticket.candidates, candidates());
        let direct: Vec<String> = ticket.direct().map(|address| address.to_string()).collect();
        assert_eq!(direct, ["192.0.2.1:40000", "10.0.0.7:51820"]);
        assert_eq!(ticket.relayed().map(|address| address.port()), Some(50_001));
        // The same endpoint signs with the same key, another with another.
        let again: Ticket = signer(1).sign(&[], NOW).parse().expect("a ticket");
        let other: Ticket = signer(2).sign(&[], NOW).parse().expect("a ticket");
        assert_eq!(ticket.signer, again.signer);
        assert_ne!(ticket.signer, other.signer);
    }

    #[test]
    fn one_is_good_for_a_day() {
        let ticket: Ticket = signer(1).sign(&[], NOW).parse().expect("a ticket");
        let at = |seconds: i64| {
            ticket.check_time(Duration::from_secs(NOW.as_secs().saturating_add_signed(seconds)))
        };
        assert_eq!(at(0), Ok(()));
        assert_eq!(at(-299), Ok(()));
        assert_eq!(at(-301), Err(BadTicket::Early));
        assert_eq!(at(86_400 + 299), Ok(()));
        assert_eq!(at(86_400 + 301), Err(BadTicket::Expired));
    }

    #[test]
    fn more_addresses_than_fit_are_left_out() {
        let many = vec![candidates()[0]; 40];
        let ticket: Ticket = signer(1).sign(&many, NOW).parse().expect("a ticket");
        assert_eq!(ticket.candidates.len(), ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(position: prop::sample::Index, flip in 1..=255_u8) {
            let text = signer(1).sign(&candidates(), NOW);
            let mut bytes = BASE64.decode(&text[PREFIX.len()..]).expect("base64");
            let index = position.index(bytes.len());
            bytes[index] ^= flip;
            let changed = format!("{PREFIX}{}", BASE64.encode(bytes));
            prop_assert!(changed.parse::<Ticket>().is_err());
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = text.parse::<Ticket>();
            let random = format!("{PREFIX}{}", BASE64.encode(bytes));
            prop_assert!(random.parse::<Ticket>().is_err());
        }
    }
}
