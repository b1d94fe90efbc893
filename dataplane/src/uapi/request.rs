//! From bytes to requests, bounded in length, without I/O.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use zeroize::{Zeroize as _, Zeroizing};

use super::Refusal;
use super::status::Wanted;
use crate::tunnel::key::{KEY_LEN, PublicKey, SecretKey};
use crate::tunnel::ticket::Ticket;

/// The longest line, bytes: a ticket with its name.
const LINE_MAX: usize = 1_280;
/// The longest request, bytes: 10,000 peers with preshared keys and 200,000 prefixes fit.
const REQUEST_MAX: usize = 16 << 20;

/// What a client asks for.
#[derive(Debug)]
pub enum Request {
    /// Everything that `wg` knows.
    Get,
    /// The figures that `towpath show` shows.
    Status(Wanted),
    /// The ticket that `towpath ticket` prints.
    Ticket,
    /// Changes.
    Set(Set),
    /// Nothing that can be done; the reason.
    Bad(Refusal),
}

/// Changes in the order in which they have to be made.
#[derive(Debug, Default)]
pub struct Set {
    /// Those in front of the first mistake.
    pub changes: Vec<Change>,
    /// The first mistake.
    pub mistake: Option<Refusal>,
}

/// One change. Those of a peer follow its [`Change::Peer`]. Secret keys are boxed: a list that grows moves what is in it, and
/// would leave copies behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Replaces our private key, or takes it away.
    PrivateKey(Option<Box<SecretKey>>),
    /// The UDP port; 0 lets the kernel choose.
    ListenPort(u16),
    /// The mark of what is sent (SO_MARK); 0 for none.
    FirewallMark(u32),
    /// Removes all peers.
    ReplacePeers,
    /// What follows is about this peer, which is made if it is not there.
    Peer {
        /// Who.
        key: PublicKey,
        /// It is not made; then what follows is for nobody.
        update_only: bool,
        /// It is removed, and what follows is for nobody.
        remove: bool,
    },
    /// The secret shared beforehand, or none.
    PresharedKey(Option<Box<SecretKey>>),
    /// Where it is reached.
    Endpoint(SocketAddr),
    /// Where it says that it is reached; ours alone, `wg` does not know it.
    Ticket(Box<Ticket>),
    /// Seconds; 0 for none.
    PersistentKeepalive(u16),
    /// Takes all prefixes away.
    ReplaceAllowedIps,
    /// Gives it a prefix.
    AllowedIp(IpNet),
    /// Takes a prefix from it.
    NotAllowedIp(IpNet),
}

/// What has been read of one client's request.
pub struct Parser {
    line: Zeroizing<Vec<u8>>,
    /// The line is longer than it may be.
    overlong: bool,
    len: usize,
    state: State,
}

enum State {
    /// Between two requests.
    Idle,
    /// Behind `get=1`; a line that should not be there is a mistake.
    Get { mistake: Option<Refusal> },
    /// Behind `ticket=1`.
    Ticket { mistake: Option<Refusal> },
    /// Behind `status=1`.
    Status { wanted: Wanted, mistake: Option<Refusal> },
    /// Behind `set=1`; where the peer stands to which lines belong.
    Set { set: Set, peer: Option<usize> },
}

/// What bytes have come to.
#[derive(Debug)]
pub enum Parsed {
    /// More are needed.
    Incomplete,
    /// A request ended behind so many bytes.
    Complete(Request, usize),
    /// This is another protocol: the connection is to be closed.
    Foreign,
}

impl Default for Parser {
    fn default() -> Self {
        let line = Zeroizing::new(Vec::with_capacity(LINE_MAX));
        Self { line, overlong: false, len: 0, state: State::Idle }
    }
}

impl Parser {
    /// Whether no request has begun.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && self.line.is_empty()
    }

    /// Takes bytes until a request is complete. The rest has to be given again.
    pub fn push(&mut self, bytes: &[u8]) -> Parsed {
        let mut at = 0;
        while let Some(len) = bytes[at..].iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[at..at + len]);
            at += len + 1;
            let Ok(ended) = self.end_line() else {
                return Parsed::Foreign;
            };
            if let Some(request) = ended {
                return Parsed::Complete(request, at);
            }
        }
        self.extend(&bytes[at..]);
        Parsed::Incomplete
    }

    /// Adds to the line what it has room for: its memory never moves, so that no copy of a key stays behind.
    fn extend(&mut self, bytes: &[u8]) {
        let room = LINE_MAX - self.line.len();
        self.overlong |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.len = self.len.saturating_add(bytes.len() + 1);
    }

    /// Deals with a whole line; a request that it ends.
    fn end_line(&mut self) -> Result<Option<Request>, Foreign> {
        let overlong = std::mem::take(&mut self.overlong);
        let outcome = match &mut self.state {
            State::Idle => match self.line.as_slice() {
                b"get=1" if !overlong => {
                    self.state = State::Get { mistake: None };
                    Ok(None)
                }
                b"ticket=1" if !overlong => {
                    self.state = State::Ticket { mistake: None };
                    Ok(None)
                }
                b"status=1" if !overlong => {
                    self.state = State::Status { wanted: Wanted::default(), mistake: None };
                    Ok(None)
                }
                b"set=1" if !overlong => {
                    self.state = State::Set { set: Set::default(), peer: None };
                    Ok(None)
                }
                _ => Err(Foreign),
            },
            State::Get { mistake } if self.line.is_empty() => {
                Ok(Some(mistake.map_or(Request::Get, Request::Bad)))
            }
            State::Ticket { mistake } if self.line.is_empty() => {
                Ok(Some(mistake.map_or(Request::Ticket, Request::Bad)))
            }
            State::Get { mistake } | State::Ticket { mistake } => {
                *mistake = Some(Refusal::Invalid);
                Ok(None)
            }
            State::Status { wanted, mistake } if self.line.is_empty() => {
                Ok(Some(mistake.map_or(Request::Status(*wanted), Request::Bad)))
            }
            State::Status { wanted, mistake } => {
                let taken = if overlong { Err(Refusal::Invalid) } else { wanted.take(&self.line) };
                *mistake = mistake.or(taken.err());
                Ok(None)
            }
            State::Set { set, .. } if self.line.is_empty() => Ok(Some(Request::Set(std::mem::take(set)))),
            State::Set { set, peer } => {
                // Behind a mistake only the end of the request is looked for.
                if set.mistake.is_none() {
                    let taken = if self.len > REQUEST_MAX {
                        Err(Refusal::TooLong)
                    } else if overlong {
                        Err(Refusal::Invalid)
                    } else {
                        take(&self.line, set, peer)
                    };
                    set.mistake = taken.err();
                }
                Ok(None)
            }
        };
        self.line.as_mut_slice().zeroize();
        self.line.clear();
        if matches!(outcome, Ok(Some(_))) {
            self.state = State::Idle;
            self.len = 0;
        }
        outcome
    }
}

/// The first line of a request is not one of this protocol.
struct Foreign;

/// Adds what a line says to the changes.
fn take(line: &[u8], set: &mut Set, peer: &mut Option<usize>) -> Result<(), Refusal> {
    let line = std::str::from_utf8(line).map_err(|_| Refusal::Protocol)?;
    let (key, value) = line.split_once('=').ok_or(Refusal::Protocol)?;
    if key == "public_key" {
        let key = PublicKey(*key_of(value)?);
        *peer = Some(set.changes.len());
        set.changes.push(Change::Peer { key, update_only: false, remove: false });
        return Ok(());
    }
    let Some(at) = *peer else {
        set.changes.push(of_device(key, value)?);
        return Ok(());
    };
    let Some(Change::Peer { update_only, remove, .. }) = set.changes.get_mut(at) else {
        return Err(Refusal::Protocol);
    };
    match key {
        "update_only" => *update_only = is_true(value)?,
        "remove" => *remove = is_true(value)?,
        "protocol_version" if value == "1" => {}
        _ => set.changes.push(of_peer(key, value)?),
    }
    Ok(())
}

fn of_device(key: &str, value: &str) -> Result<Change, Refusal> {
    match key {
        "private_key" => {
            let key = secret(value)?.map(|key| Box::new(key.clamped()));
            Ok(Change::PrivateKey(key))
        }
        "listen_port" => Ok(Change::ListenPort(number(value)?)),
        "fwmark" => Ok(Change::FirewallMark(number(value)?)),
        "replace_peers" => is_true(value).map(|_| Change::ReplacePeers),
        _ => Err(Refusal::Invalid),
    }
}

fn of_peer(key: &str, value: &str) -> Result<Change, Refusal> {
    match key {
        "preshared_key" => Ok(Change::PresharedKey(secret(value)?.map(Box::new))),
        "towpath_ticket" => {
            value.parse().map(|ticket| Change::Ticket(Box::new(ticket))).map_err(|_| Refusal::Invalid)
        }
        "endpoint" => Ok(Change::Endpoint(endpoint(value)?)),
        "persistent_keepalive_interval" => Ok(Change::PersistentKeepalive(number(value)?)),
        "replace_allowed_ips" => is_true(value).map(|_| Change::ReplaceAllowedIps),
        "allowed_ip" => match value.strip_prefix('-') {
            Some(value) => Ok(Change::NotAllowedIp(prefix(value)?)),
            None => Ok(Change::AllowedIp(prefix(value)?)),
        },
        _ => Err(Refusal::Invalid),
    }
}

fn is_true(value: &str) -> Result<bool, Refusal> {
    if value == "true" { Ok(true) } else { Err(Refusal::Invalid) }
}

/// Decimal digits alone: no sign, as everyone else reads it.
fn number<N: std::str::FromStr>(value: &str) -> Result<N, Refusal> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or(Refusal::Invalid)
}

fn prefix(value: &str) -> Result<IpNet, Refusal> {
    value.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| Refusal::Invalid)
}

/// 64 hexadecimal digits.
fn key_of(value: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, Refusal> {
    let digits = value.as_bytes();
    let mut key = Zeroizing::new([0; KEY_LEN]);
    if digits.len() != 2 * KEY_LEN {
        return Err(Refusal::Invalid);
    }
    let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or(Refusal::Invalid)?;
        *byte = high << 4 | low;
    }
    Ok(key)
}

/// A secret key; zeros stand for none.
fn secret(value: &str) -> Result<Option<SecretKey>, Refusal> {
    let key = SecretKey::new(*key_of(value)?);
    Ok(Some(key).filter(|key| !key.is_zero()))
}

/// `ADDRESS:PORT` or `[ADDRESS]:PORT`; an IPv6 address may name its interface by name, as getnameinfo(3) writes it.
fn endpoint(value: &str) -> Result<SocketAddr, Refusal> {
    let named = || {
        let (address, rest) = value.strip_prefix('[')?.split_once('%')?;
        let (interface, port) = rest.split_once("]:")?;
        let index = super::socket::interface_index(interface)?;
        format!("[{address}%{index}]:{port}").parse().ok()
    };
    let address: SocketAddr = value.parse().ok().or_else(named).ok_or(Refusal::Invalid)?;
    Ok(match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::ticket::{ADDRESSES_MAX, Candidate, Signer};

    fn parse(text: &str) -> Vec<Request> {
        let mut parser = Parser::default();
        let mut rest = text.as_bytes();
        let mut requests = Vec::new();
        loop {
            match parser.push(rest) {
                Parsed::Complete(request, len) => {
                    requests.push(request);
                    rest = &rest[len..];
                }
                Parsed::Incomplete => return requests,
                Parsed::Foreign => panic!("foreign: {text:?}"),
            }
        }
    }

    fn set(text: &str) -> Set {
        match parse(&format!("set=1\n{text}\n")).pop() {
            Some(Request::Set(set)) => set,
            other => panic!("{other:?}"),
        }
    }

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
    const PUBLIC: &str = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";

    #[test]
    fn the_example_of_the_specification_is_understood() {
        let set = set(&format!(
            "private_key={KEY}\nfwmark=0\nlisten_port=12912\nreplace_peers=true\npublic_key={PUBLIC}\n\
             preshared_key={KEY}\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/32\n\
             endpoint=[abcd:23::33%2]:51820\npublic_key={KEY}\nendpoint=182.122.22.19:3233\n\
             persistent_keepalive_interval=111\nprotocol_version=1\nallowed_ip=-192.168.4.6/24\n\
             public_key={PUBLIC}\nremove=true\npublic_key={KEY}\nupdate_only=true\n"
        ));
        assert_eq!(set.mistake, None);
        let secret = |text| secret(text).expect("a key").expect("not zero");
        let public = |text: &str| PublicKey(*key_of(text).expect("a key"));
        let peer = |key, update_only, remove| Change::Peer { key: public(key), update_only, remove };
        let address = |text: &str| text.parse().expect("an address");
        let net = |text: &str| text.parse().expect("a prefix");
        let expected = [
            Change::PrivateKey(Some(Box::new(secret(KEY).clamped()))),
            Change::FirewallMark(0),
            Change::ListenPort(12_912),
            Change::ReplacePeers,
            peer(PUBLIC, false, false),
            Change::PresharedKey(Some(Box::new(secret(KEY)))),
            Change::ReplaceAllowedIps,
            Change::AllowedIp(net("192.168.4.4/32")),
            Change::Endpoint(address("[abcd:23::33%2]:51820")),
            peer(KEY, false, false),
            Change::Endpoint(address("182.122.22.19:3233")),
            Change::PersistentKeepalive(111),
            Change::NotAllowedIp(net("192.168.4.0/24")),
            peer(PUBLIC, false, true),
            peer(KEY, true, false),
        ];
        assert_eq!(set.changes, expected);
    }

    #[test]
    fn zeros_stand_for_no_key() {
        let zeros = "0".repeat(64);
        let set = set(&format!("private_key={zeros}\npublic_key={PUBLIC}\npreshared_key={zeros}\n"));
        assert_eq!((set.mistake, set.changes.len()), (None, 3));
        assert_eq!(set.changes[0], Change::PrivateKey(None));
        assert_eq!(set.changes[2], Change::PresharedKey(None));
    }

    #[test]
    fn a_mistake_ends_the_changes_and_the_next_request_is_read_all_the_same() {
        let key = format!("public_key={PUBLIC}\n");
        let bad: &[(&str, Refusal)] = &[
            ("nonsense", Refusal::Protocol),
            ("listen_port=65536", Refusal::Invalid),
            ("listen_port=+1", Refusal::Invalid),
            ("listen_port=", Refusal::Invalid),
            ("fwmark=0x1", Refusal::Invalid),
            ("replace_peers=false", Refusal::Invalid),
            ("private_key=00", Refusal::Invalid),
            ("allowed_ip=10.0.0.0/8", Refusal::Invalid),
            ("\u{fc}=1", Refusal::Invalid),
        ];
        let bad_of_peers: &[(&str, Refusal)] = &[
            ("listen_port=1", Refusal::Invalid),
            ("allowed_ip=10.0.0.1", Refusal::Invalid),
            ("allowed_ip=10.0.0.1/33", Refusal::Invalid),
            ("endpoint=10.0.0.1", Refusal::Invalid),
            ("endpoint=host:1", Refusal::Invalid),
            ("persistent_keepalive_interval=off", Refusal::Invalid),
            ("protocol_version=2", Refusal::Invalid),
            ("remove=1", Refusal::Invalid),
            ("preshared_key=xx", Refusal::Invalid),
        ];
        for (front, (line, refusal)) in
            bad.iter().map(|case| ("", case)).chain(bad_of_peers.iter().map(|case| (key.as_str(), case)))
        {
            let text = format!("set=1\n{front}{line}\nlisten_port=1\n\nget=1\n\n");
            let requests = parse(&text);
            let [Request::Set(set), Request::Get] = requests.as_slice() else {
                panic!("{line}: {requests:?}");
            };
            assert_eq!(set.mistake, Some(*refusal), "{line}");
            assert_eq!(set.changes.len(), usize::from(!front.is_empty()), "{line}");
        }
    }

    #[test]
    fn lines_and_requests_are_bounded() {
        let long = set(&format!("listen_port={}1\n", "0".repeat(1 << 20)));
        assert_eq!((long.mistake, long.changes.len()), (Some(Refusal::Invalid), 0));
        let mut many = format!("public_key={PUBLIC}\n");
        while many.len() <= REQUEST_MAX {
            many.push_str("allowed_ip=255.255.255.255/32\n");
        }
        let many = set(&many);
        assert_eq!(many.mistake, Some(Refusal::TooLong));
        assert!(many.changes.len() < REQUEST_MAX / 29);
    }

    #[test]
    fn figures_are_asked_for_with_what_else_is_wanted() {
        for wanted in [(false, false), (true, false), (true, true)] {
            let wanted = Wanted { allowed_ips: wanted.0, stages: wanted.1 };
            let requests = parse(&format!("{}get=1\n\n", wanted.request()));
            assert!(matches!(requests[..], [Request::Status(asked), Request::Get] if asked == wanted));
        }
        let long = format!("status=1\n{}\n\n", "stages=true".repeat(100));
        for text in ["status=1\nget=1\n\n", "status=1\nstages=false\nstages=true\n\n", &long] {
            assert!(matches!(parse(text)[..], [Request::Bad(Refusal::Invalid)]), "{text:?}");
        }
    }

    #[test]
    fn tickets_are_asked_for_and_taken() {
        assert!(matches!(parse("ticket=1\n\nget=1\n\n")[..], [Request::Ticket, Request::Get]));
        assert!(matches!(parse("ticket=1\nticket=1\n\n")[..], [Request::Bad(Refusal::Invalid)]));
        let private = SecretKey::new([7; KEY_LEN]).clamped();
        let addresses =
            [Candidate::Own(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 1))); ADDRESSES_MAX];
        let text = Signer::new(&private).sign(&addresses, std::time::Duration::from_secs(1_800_000_000));
        let taken = set(&format!("public_key={PUBLIC}\ntowpath_ticket={text}\n"));
        assert_eq!(taken.mistake, None, "the longest fits");
        assert_eq!(taken.changes.last(), Some(&Change::Ticket(Box::new(text.parse().expect("a ticket")))));
        let cut = set(&format!("public_key={PUBLIC}\ntowpath_ticket={}\n", &text[..text.len() - 4]));
        assert_eq!(cut.mistake, Some(Refusal::Invalid));
    }

    #[test]
    fn other_protocols_are_told_apart() {
        for text in ["GET / HTTP/1.1\n", "get=2\n", "status=2\n", "\n", &format!("{}\n", "x".repeat(4_000))] {
            assert!(matches!(Parser::default().push(text.as_bytes()), Parsed::Foreign), "{text:?}");
        }
        assert!(matches!(parse("get=1\nx=1\n\n")[..], [Request::Bad(Refusal::Invalid)]));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(cuts in prop::collection::vec(1..40_usize, 0..40)) {
            let text = format!("get=1\n\nset=1\npublic_key={PUBLIC}\nallowed_ip=::/0\n\nget=1\n\n");
            let mut parser = Parser::default();
            let mut kinds = Vec::new();
            let mut rest = text.as_bytes();
            let mut cuts = cuts.into_iter();
            while !rest.is_empty() {
                let mut piece = &rest[..cuts.next().unwrap_or(rest.len()).min(rest.len())];
                rest = &rest[piece.len()..];
                while let Parsed::Complete(request, len) = parser.push(piece) {
                    kinds.push(matches!(request, Request::Get));
                    piece = &piece[len..];
                }
            }
            prop_assert_eq!(kinds, vec![true, false, true]);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), front in prop::sample::select(vec!["", "set=1\n", "status=1\n"])) {
            let mut parser = Parser::default();
            parser.push(front.as_bytes());
            parser.push(&bytes);
        }
    }
}
