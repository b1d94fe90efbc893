//! T60: valid messages that were changed where their structure is, half of them signed again, so that they come further.
//!
//! `TOWPATH_TEST_MUTATIONS=1000000` asks for a million of them.

use dataplane::stun::{AttributeType, Class, Message, Method, TransactionId};

use super::Row;
use super::attacker::{Attacker, fix_length, message, transport};
use super::bench::Bench;
use super::harness::{UdpSocket, peer, receive};

pub const ROWS: &[Row] =
    &[(60, MUTATIONS + 2, "at most one answer, well-formed, no more bytes than came", t60)];

/// Changed messages where nothing else is said: half a second.
const MUTATIONS: u64 = 4000;
/// The longest authentic answer: addresses of both families, a lifetime and a token, with integrity and FINGERPRINT.
const ANSWER_MAX: usize = 160;
/// The longest other one: a challenge with this realm, and FINGERPRINT; or 16 unknown attributes.
const CHALLENGE_MAX: usize = 92;

/// SplitMix64: the same changes each time.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A message taken apart: type, and attributes with the length they claim.
struct Parts {
    kind: [u8; 2],
    attributes: Vec<(u16, u16, Vec<u8>)>,
}

/// A valid message of some method, without what signs it.
fn valid(random: &mut Seeded, peer: &UdpSocket) -> Parts {
    let peer = peer.local_addr().unwrap();
    let id = TransactionId([1; 12]);
    let methods = [
        Method::Binding,
        Method::Allocate,
        Method::Refresh,
        Method::CreatePermission,
        Method::ChannelBind,
        Method::Send,
    ];
    let method = methods[random.below(methods.len())];
    let class = if method == Method::Send { Class::Indication } else { Class::Request };
    let bytes = message(class, method, id, |writer| match method {
        Method::Allocate => transport(writer),
        Method::Refresh => {
            writer.lifetime(600);
        }
        Method::CreatePermission => {
            writer.xor_peer_address(peer);
        }
        Method::ChannelBind => {
            writer.attribute(AttributeType::CHANNEL_NUMBER, &[0x40, 3, 0, 0]).xor_peer_address(peer);
        }
        Method::Send => {
            writer.xor_peer_address(peer).data(b"payload");
        }
        _ => {}
    });
    let attributes = Message::parse(&bytes).unwrap().attributes();
    let attributes = attributes.map(|one| (one.kind.0, one.value.len() as u16, one.value.to_vec()));
    Parts { kind: [bytes[0], bytes[1]], attributes: attributes.collect() }
}

/// Types that mean something here, and some that do not.
const KINDS: &[u16] = &[
    0x0001, 0x0006, 0x0008, 0x0009, 0x000c, 0x000d, 0x0012, 0x0013, 0x0014, 0x0015, 0x0016, 0x0017, 0x0018,
    0x0019, 0x001a, 0x001c, 0x001d, 0x001e, 0x0020, 0x0022, 0x002a, 0x7fff, 0x8000, 0x8002, 0x8004, 0x8022,
    0x8028,
];

/// One change of structure or value.
fn change(random: &mut Seeded, parts: &mut Parts) {
    let count = parts.attributes.len();
    let place = random.below(count);
    let some = KINDS[random.below(KINDS.len())];
    match random.below(8) {
        0 => parts.kind[1] ^= 1 << random.below(8),
        1 => {
            let len = random.below(40);
            let value: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            let at = random.below(count + 1);
            parts.attributes.insert(at, (some, len as u16, value));
        }
        _ if count == 0 => parts.kind[0] ^= 1 << random.below(8),
        2 => parts.attributes.push((
            parts.attributes[place].0,
            parts.attributes[place].1,
            parts.attributes[place].2.clone(),
        )),
        3 => drop(parts.attributes.remove(place)),
        4 => parts.attributes[place].0 = some,
        5 => parts.attributes[place].1 = random.next() as u16 >> random.below(16),
        6 => parts.attributes.rotate_left(place),
        _ => {
            let value = &mut parts.attributes[place].2;
            let index = random.below(value.len());
            if let Some(byte) = value.get_mut(index) {
                *byte ^= random.next() as u8;
            }
        }
    }
}

/// The message of these parts as they are, with the lengths that they claim.
fn raw(attacker: &mut Attacker, parts: &Parts) -> Vec<u8> {
    let mut bytes = message(Class::Request, Method::Binding, attacker.transaction(), |_| {});
    bytes[..2].copy_from_slice(&parts.kind);
    for (kind, claimed, value) in &parts.attributes {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(claimed.to_be_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    fix_length(&mut bytes);
    bytes
}

/// The message of these parts, authentic: claims about lengths are then true.
fn signed(attacker: &mut Attacker, parts: &Parts) -> Vec<u8> {
    let kind = u16::from_be_bytes(parts.kind);
    let number = kind & 0xf | kind >> 1 & 0x70 | kind >> 2 & 0xf80;
    attacker.signed(Method::from_number(number), |writer| {
        for (kind, _, value) in &parts.attributes {
            writer.attribute(AttributeType(*kind), value);
        }
    })
}

/// Sends it; what comes back before the answer of a probe, which is the answer to what was sent just after it.
fn answers(attacker: &Attacker, datagram: &[u8]) -> Vec<Vec<u8>> {
    attacker.send(datagram);
    let probe = message(Class::Request, Method::Binding, TransactionId([0xee; 12]), |writer| {
        writer.attribute(AttributeType::SOFTWARE, &[b'p'; 40]);
    });
    attacker.socket.send(&probe).unwrap();
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = receive(&attacker.socket);
        if datagram[8..20] == probe[8..20] {
            return answers;
        }
        // A Send indication that is still good, to a port where nobody is: what the kernel says of it is no answer.
        let is_icmp = Message::parse(&datagram).is_ok_and(|message| {
            (message.class(), message.method()) == (Class::Indication, Method::Data)
                && matches!(message.icmp(), Ok(Some(_)))
        });
        if !is_icmp {
            answers.push(datagram);
        }
    }
}

/// How many are asked for.
fn asked() -> u64 {
    std::env::var("TOWPATH_TEST_MUTATIONS").map_or(MUTATIONS, |text| text.parse().unwrap())
}

/// How many inputs a row has that has so many where nothing else is asked for.
pub fn expected(number: u32, inputs: u64) -> u64 {
    if number == 60 { inputs - MUTATIONS + asked() } else { inputs }
}

fn t60(bench: &mut Bench) {
    let mutations = asked();
    let peer = peer();
    let mut random = Seeded(60);
    let mut attacker = bench.allocated();
    let (mut came, mut went, mut answered, mut opened) = (0, 0, 0, 0_u64);
    for round in 0..mutations {
        let mut parts = valid(&mut random, &peer);
        for _ in 0..=random.below(3) {
            change(&mut random, &mut parts);
        }
        let is_signed = round % 2 == 0;
        let mut datagram = if is_signed { signed(&mut attacker, &parts) } else { raw(&mut attacker, &parts) };
        if round % 7 == 0 {
            let index = random.below(datagram.len());
            datagram[index] ^= 1 << random.below(8);
        }
        if round % 11 == 0 {
            datagram.truncate(random.below(datagram.len()));
        }
        let got = answers(&attacker, &datagram);
        assert!(got.len() <= 1, "round {round}: {} answers to {datagram:02x?}", got.len());
        came += datagram.len();
        for reply in got {
            let message = Message::parse(&reply).expect("answers are well-formed");
            assert_eq!(message.transaction().0[..], datagram[8..20]);
            assert!(matches!(message.class(), Class::Success | Class::Error), "round {round}");
            assert_eq!(datagram[0] & 1 | datagram[1] & 0x10, 0, "round {round}: it was no request");
            // What is not authentic is at most a challenge, and a short one.
            let most = if message.has_integrity() { ANSWER_MAX } else { CHALLENGE_MAX };
            assert!(reply.len() <= most, "round {round}: {} bytes", reply.len());
            went += reply.len();
            answered += 1;
        }
        opened += drain(&peer);
    }
    println!(
        "     {answered} of {mutations} were answered, {opened} went to the peer; {came} bytes came, {went} went"
    );
    assert!(
        answered > mutations / 10 && answered < mutations,
        "the changes are neither all good nor all bad"
    );
    assert!(went <= came, "{went} bytes for {came}");
    // Of both families, if a change asked for both.
    attacker.refresh(0);
    opened += drain(&peer);
    // Changes of the peer's address bring some elsewhere, and never off this machine: the relayed address is loopback.
    let forwarded = bench.forwarded_now();
    let new = forwarded - bench.forwarded;
    assert!(opened <= new && new < mutations / 4, "{new} were forwarded, {opened} arrived");
    bench.forwarded = forwarded;
}

/// How many datagrams wait at the peer: what a Send indication that is still good may bring there.
fn drain(peer: &UdpSocket) -> u64 {
    peer.set_nonblocking(true).unwrap();
    let count = std::iter::from_fn(|| peer.recv(&mut [0; 2000]).ok()).count() as u64;
    peer.set_nonblocking(false).unwrap();
    count
}
