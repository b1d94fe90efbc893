//! What is merged, what is not, and what the superpacket looks like.

use super::build::{Spec, naive_sum, split};
use crate::offload::candidate::{Kind, inspect};
use crate::offload::coalesce::{SEGMENTS_MAX, SLOT_LEN_MIN, Superpacket};
use crate::offload::virtio::{Gso, HEADER_LEN, Header, PartialChecksum};
use crate::sys::tun::Offloads;
use proptest::prelude::*;

pub(super) const ALL: Offloads = Offloads { checksum: true, tso: true, uso: true, bare: false };

/// The specs of `count` packets of a flow, each `payload` long.
fn flow(v4: bool, tcp: bool, payload: usize, count: usize) -> Vec<Spec> {
    let first = Spec::new(v4, tcp, payload);
    let next = |index: usize| {
        let mut spec = first.clone();
        spec.id = spec.id.wrapping_add(index as u16);
        spec.sequence = spec.sequence.wrapping_add((index * payload) as u32);
        spec.payload.iter_mut().for_each(|byte| *byte = byte.wrapping_add(index as u8));
        spec
    };
    (0..count).map(next).collect()
}

/// Starts with the first and appends the others as long as they are taken; returns how many went in, and the bytes.
fn merge(packets: &[Vec<u8>]) -> (usize, Vec<u8>) {
    let mut slot = vec![0xa5; SLOT_LEN_MIN];
    let mut superpacket = Superpacket::start(&mut slot, &packets[0], &inspect(&packets[0], ALL));
    for packet in &packets[1..] {
        if !superpacket.try_append(&mut slot, packet, &inspect(packet, ALL)) {
            break;
        }
    }
    let segments = superpacket.segments();
    let len = superpacket.finish(&mut slot);
    slot.truncate(len);
    (segments, slot)
}

fn build(specs: &[Spec]) -> Vec<Vec<u8>> {
    specs.iter().map(Spec::build).collect()
}

#[test]
fn header_of_a_superpacket_is_what_linux_wants() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let specs = flow(v4, tcp, 1_000, 3);
        let (segments, bytes) = merge(&build(&specs));
        assert_eq!(segments, 3);
        let start = if v4 { 20 } else { 40 };
        let expected = Header {
            partial_checksum: Some(PartialChecksum { start, offset: if tcp { 16 } else { 6 } }),
            data_valid: false,
            gso: match (tcp, v4) {
                (true, true) => Gso::Tcp4,
                (true, false) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            ecn: false,
            header_len: start + if tcp { 20 } else { 8 },
            segment_size: 1_000,
        };
        assert_eq!(Header::decode(&bytes), Some(expected));
        // The rest is what a kernel would have built with the whole payload.
        let mut whole = specs[0].clone();
        whole.payload = specs.iter().flat_map(|spec| spec.payload.clone()).collect();
        assert_eq!(bytes, whole.build_super(1_000), "v4 {v4} tcp {tcp}");
    }
}

#[test]
fn single_packet_stays_unchanged_and_claims_nothing() {
    for spec in [Spec::new(true, true, 100), Spec::new(false, false, 0)] {
        let (segments, bytes) = merge(&[spec.build()]);
        assert_eq!((segments, &bytes[..HEADER_LEN]), (1, &[0; HEADER_LEN][..]));
        assert_eq!(bytes[HEADER_LEN..], spec.build());
    }
}

#[test]
fn sixty_four_segments_and_not_one_more() {
    let packets = build(&flow(true, false, 100, SEGMENTS_MAX + 1));
    assert_eq!(merge(&packets).0, SEGMENTS_MAX);
}

#[test]
fn superpacket_is_never_longer_than_an_ip_packet() {
    for v4 in [true, false] {
        let (segments, bytes) = merge(&build(&flow(v4, false, 1_500, SEGMENTS_MAX)));
        let headers = if v4 { 28 } else { 48 };
        assert_eq!(segments, (65_535 - headers) / 1_500);
        assert_eq!(bytes.len(), HEADER_LEN + headers + segments * 1_500);
    }
}

#[test]
fn shorter_segment_is_the_last_and_a_longer_one_starts_anew() {
    for tcp in [true, false] {
        let mut specs = flow(true, tcp, 100, 4);
        specs[2].payload.truncate(99);
        assert_eq!(merge(&build(&specs)).0, 3);
        let mut specs = flow(true, tcp, 100, 4);
        specs[1].payload.push(1);
        assert_eq!(merge(&build(&specs)).0, 1);
    }
}

#[test]
fn push_is_the_last_and_is_kept() {
    let mut specs = flow(true, true, 100, 4);
    specs[1].flags |= 0x08;
    let packets = build(&specs);
    let (segments, bytes) = merge(&packets);
    assert_eq!(segments, 2);
    assert_eq!(split(&bytes), packets[..2]);
    specs[0].flags |= 0x08;
    assert_eq!(merge(&build(&specs)).0, 1);
}

#[test]
fn window_reduced_flag_is_the_first_ones_only() {
    let mut specs = flow(false, true, 100, 3);
    specs[0].flags |= 0x80;
    let packets = build(&specs);
    let (segments, bytes) = merge(&packets);
    assert_eq!(segments, 3);
    assert!(Header::decode(&bytes).expect("a header").ecn);
    assert_eq!(split(&bytes), packets);
    specs[1].flags |= 0x80;
    assert_eq!(merge(&build(&specs)).0, 1);
}

#[test]
fn every_difference_in_the_headers_starts_anew() {
    type Change = fn(&mut Spec);
    let both: [(&str, Change); 5] = [
        ("TOS", |spec| spec.tos = 1),
        ("TTL", |spec| spec.ttl = 63),
        ("address", |spec| spec.host = 9),
        ("source port", |spec| spec.ports.0 += 1),
        ("destination port", |spec| spec.ports.1 += 1),
    ];
    let v4: [(&str, Change); 2] =
        [("DF", |spec| spec.fragment = 0x4000), ("identification", |spec| spec.id += 1)];
    let tcp: [(&str, Change); 6] = [
        ("gap", |spec| spec.sequence += 1),
        ("duplicate", |spec| spec.sequence -= 100),
        ("window", |spec| spec.window += 1),
        ("ECE", |spec| spec.flags |= 0x40),
        ("options", |spec| spec.options[3] ^= 1),
        ("fewer options", |spec| spec.options.truncate(8)),
    ];
    for (is_v4, is_tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let changes = both.iter().chain(v4.iter().filter(|_| is_v4)).chain(tcp.iter().filter(|_| is_tcp));
        for (what, change) in changes {
            let mut specs = flow(is_v4, is_tcp, 100, 3);
            specs.iter_mut().for_each(|spec| spec.options = vec![1; 12]);
            assert_eq!(merge(&build(&specs)).0, 3);
            change(&mut specs[1]);
            assert_eq!(merge(&build(&specs)).0, 1, "{what}, v4 {is_v4}, tcp {is_tcp}");
        }
    }
}

#[test]
fn identification_does_not_matter_where_df_is_set() {
    let mut specs = flow(true, true, 100, 3);
    for (spec, id) in specs.iter_mut().zip([0, 0, 77]) {
        spec.id = id;
        spec.fragment = 0x4000;
    }
    assert_eq!(merge(&build(&specs)).0, 3);
}

#[test]
fn what_has_to_go_alone_does_and_still_names_its_flow() {
    type Change = fn(&mut Spec);
    let changes: [(&str, bool, bool, Change); 12] = [
        ("pure ACK", true, true, |spec| spec.payload.clear()),
        ("SYN", true, true, |spec| spec.flags |= 0x02),
        ("FIN", false, true, |spec| spec.flags |= 0x01),
        ("RST", true, true, |spec| spec.flags |= 0x04),
        ("URG", true, true, |spec| spec.flags |= 0x20),
        ("no ACK", true, true, |spec| spec.flags = 0),
        ("first fragment", true, false, |spec| spec.fragment = 0x2000),
        ("later fragment", true, false, |spec| spec.fragment = 0x0010),
        ("reserved bit", true, false, |spec| spec.fragment = 0x8000),
        ("IPv4 options", true, true, |spec| spec.ip_options = vec![0x94, 4, 0, 0]),
        ("extension header", false, false, |spec| spec.ip_options = vec![17, 0, 1, 4, 0, 0, 0, 0]),
        ("empty datagram", false, false, |spec| spec.payload.clear()),
    ];
    for (what, v4, tcp, change) in changes {
        let mut spec = Spec::new(v4, tcp, 100);
        let plain = inspect(&spec.build(), ALL);
        assert_ne!(plain.kind(), Kind::Alone);
        change(&mut spec);
        let candidate = inspect(&spec.build(), ALL);
        assert_eq!(candidate.kind(), Kind::Alone, "{what}");
        let (flow, plain) = (candidate.flow().expect("a flow"), plain.flow().expect("a flow"));
        assert!(flow.conflicts(plain) && plain.conflicts(flow), "{what}");
    }
}

#[test]
fn other_flows_do_not_conflict() {
    let flow = |spec: &Spec| inspect(&spec.build(), ALL).flow().expect("a flow");
    let mut spec = Spec::new(true, false, 10);
    let first = flow(&spec);
    assert!(!first.conflicts(flow(&Spec::new(true, true, 10))), "TCP and UDP");
    assert!(!first.conflicts(flow(&Spec::new(false, false, 10))), "families");
    spec.ports.0 += 1;
    assert!(!first.conflicts(flow(&spec)), "ports");
    spec.fragment = 1;
    assert!(first.conflicts(flow(&spec)), "a fragment may be of any flow of these hosts");
    spec.host += 1;
    assert!(!first.conflicts(flow(&spec)), "but not of other hosts");
    assert_eq!(inspect(&[], ALL).flow(), None);
    assert_eq!(inspect(&[0x45; 19], ALL).flow(), None);
}

#[test]
fn missing_offloads_and_lying_lengths_go_alone() {
    let tcp = Spec::new(true, true, 100).build();
    let udp = Spec::new(false, false, 100).build();
    assert_eq!(inspect(&tcp, Offloads { tso: false, ..ALL }).kind(), Kind::Alone);
    assert_eq!(inspect(&udp, Offloads { uso: false, ..ALL }).kind(), Kind::Alone);
    assert_eq!(inspect(&tcp, Offloads { checksum: false, ..ALL }).kind(), Kind::Alone);
    assert_eq!(inspect(&tcp, Offloads { uso: false, ..ALL }).kind(), Kind::Tcp4);
    assert_eq!(inspect(&udp, Offloads { tso: false, ..ALL }).kind(), Kind::Udp6);
    assert_eq!(inspect(&[&tcp[..], &[0]].concat(), ALL).kind(), Kind::Alone, "bytes behind the packet");
    let mut short = udp;
    short[45] -= 1; // UDP length, which the checksum covers twice
    assert_eq!(inspect(&short, ALL).kind(), Kind::Alone);
    let mut unsummed = Spec::new(true, false, 100).build();
    unsummed[26..28].fill(0);
    assert_eq!(inspect(&unsummed, ALL).kind(), Kind::Alone, "UDP without checksum");
}

#[test]
fn every_single_flipped_bit_keeps_a_segment_out() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let packets = build(&flow(v4, tcp, 40, 2));
        for bit in 0..packets[0].len() * 8 {
            let mut first_bad = packets.clone();
            first_bad[0][bit / 8] ^= 1 << (bit % 8);
            let (segments, bytes) = merge(&first_bad);
            assert_eq!(segments, 1, "first, bit {bit}, v4 {v4}, tcp {tcp}");
            assert_eq!(bytes[HEADER_LEN..], first_bad[0]);
            let mut second_bad = packets.clone();
            second_bad[1][bit / 8] ^= 1 << (bit % 8);
            let (segments, bytes) = merge(&second_bad);
            // The checksum of IPv6 does not cover traffic class, flow label and hop limit, but they are compared.
            assert_eq!(segments, 1, "second, bit {bit}, v4 {v4}, tcp {tcp}");
            assert_eq!(bytes[HEADER_LEN..], packets[0]);
        }
    }
}

#[test]
fn other_spelling_of_a_zero_checksum_goes_alone() {
    // A TCP packet whose checksum is zero, written as 0xffff: valid, but the kernel would write zero.
    let mut spec = Spec::new(true, true, 2);
    spec.payload = vec![0, 0];
    let packet = spec.build();
    spec.payload = packet[36..38].to_vec();
    let mut packet = spec.build();
    assert_eq!(packet[36..38], [0, 0], "the case is built right");
    assert_eq!(inspect(&packet, ALL).kind(), Kind::Tcp4);
    packet[36..38].fill(0xff);
    assert_eq!(naive_sum(&[&packet[12..20], &[0, 6, 0, 22], &packet[20..]]), 0xffff, "still valid");
    assert_eq!(inspect(&packet, ALL).kind(), Kind::Alone);
}

proptest! {
    #[test]
    fn random_bytes_go_alone_unchanged(
        version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        mut packet in prop::collection::vec(any::<u8>(), 0..300), length: bool,
    ) {
        if let Some(first) = packet.first_mut() { *first = version; }
        // Half of them with a true length, so that they get further.
        let len = packet.len();
        if length && len >= 40 {
            match version >> 4 {
                4 => packet[2..4].copy_from_slice(&(len as u16).to_be_bytes()),
                _ => packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes()),
            }
        }
        let mut slot = vec![0; SLOT_LEN_MIN];
        let candidate = inspect(&packet, ALL);
        let mut superpacket = Superpacket::start(&mut slot, &packet, &candidate);
        let good = Spec::new(true, true, 10).build();
        prop_assert!(!superpacket.try_append(&mut slot, &good, &inspect(&good, ALL)));
        let len = superpacket.finish(&mut slot);
        prop_assert_eq!(&slot[..HEADER_LEN], &[0; HEADER_LEN][..]);
        prop_assert_eq!(&slot[HEADER_LEN..len], &packet[..]);
    }
}
