//! The splitter against packets built one by one.

use super::build::{Spec, split};
use crate::drops::Cause;
use crate::offload::split::Splitter;
use crate::offload::virtio::{Gso, HEADER_LEN, Header, PartialChecksum};
use crate::packet::MAX_LEN;
use proptest::prelude::*;

/// The packets a superpacket stands for, built one by one.
fn expected(whole: &Spec, segment_size: usize) -> Vec<Vec<u8>> {
    let pieces: Vec<_> = whole.payload.chunks(segment_size).collect();
    let build = |(index, piece): (usize, &&[u8])| {
        let mut spec = Spec { payload: piece.to_vec(), ..whole.clone() };
        spec.id = whole.id.wrapping_add(index as u16);
        spec.sequence = whole.sequence.wrapping_add((index * segment_size) as u32);
        if index > 0 {
            spec.flags &= !0x80;
        }
        if index + 1 < pieces.len() {
            spec.flags &= !0x09;
        }
        spec.build()
    };
    pieces.iter().enumerate().map(build).collect()
}

#[test]
fn superpackets_of_all_kinds_come_apart() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        for payload in [1, 99, 100, 101, 1_000, 64_000] {
            let mut whole = Spec::new(v4, tcp, payload);
            whole.tos = 0xbb;
            whole.flags = 0x10 | 0x08 | 0x80 | 0x01;
            whole.options = vec![1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4];
            whole.id = 0xfffe;
            for segment_size in [100, 1_228, 65_535] {
                let packets = split(&whole.build_super(segment_size));
                assert_eq!(
                    packets,
                    expected(&whole, usize::from(segment_size)),
                    "v4 {v4} tcp {tcp} {payload}"
                );
            }
        }
    }
}

#[test]
fn ipv4_options_and_ipv6_extension_headers_are_repeated() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut whole = Spec::new(v4, tcp, 2_500);
        whole.ip_options = if v4 {
            vec![0x94, 4, 0, 0]
        } else {
            // Destination options, hop-by-hop behind them (never so on the wire, but the walk has to stand it), TCP or UDP.
            let mut chain = vec![0, 0, 1, 4, 0, 0, 0, 0];
            chain.extend_from_slice(&[if tcp { 6 } else { 17 }, 1, 1, 12]);
            chain.extend_from_slice(&[0; 12]);
            chain
        };
        assert_eq!(split(&whole.build_super(1_000)), expected(&whole, 1_000), "v4 {v4} tcp {tcp}");
    }
}

#[test]
fn partial_checksum_of_a_single_packet_is_completed() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let spec = Spec::new(v4, tcp, 777);
        assert_eq!(split(&spec.build_super(0)), [spec.build()], "v4 {v4} tcp {tcp}");
    }
}

#[test]
fn udp_checksum_of_zero_goes_as_all_ones() {
    let mut spec = Spec::new(true, false, 2);
    spec.payload = vec![0, 0];
    let packet = spec.build();
    let checksum = u16::from_be_bytes([packet[26], packet[27]]);
    spec.payload = checksum.to_be_bytes().to_vec();
    let packet = spec.build();
    assert_eq!(packet[26..28], [0xff, 0xff], "the case is built right");
    assert_eq!(split(&spec.build_super(0)), std::slice::from_ref(&packet));
    assert_eq!(split(&spec.build_super(2)), [packet]);
}

#[test]
fn packet_without_offload_stays_as_it_is() {
    let mut packet = Spec::new(true, true, 50).build();
    packet[36] ^= 1; // a wrong checksum is none of our business here
    let read = [vec![0; HEADER_LEN], packet.clone()].concat();
    assert_eq!(split(&read), [packet]);
}

#[test]
fn routing_header_sums_over_the_final_destination() {
    let mut whole = Spec::new(false, false, 300);
    let mut routing = vec![17, 2, 4, 1, 0, 0, 0, 0];
    routing.extend_from_slice(&[0x20; 16]);
    whole.ip_options = routing;
    let mut superpacket = whole.build_super(100);
    superpacket[HEADER_LEN + 6] = 43;
    let packets = split(&superpacket);
    assert_eq!(packets.len(), 3);
    for packet in packets {
        let length = 108u16.to_be_bytes();
        let sum = super::build::naive_sum(&[&packet[8..24], &[0x20; 16], &[0, 17], &length, &packet[64..]]);
        assert_eq!(sum, 0xffff);
    }
}

#[test]
fn contradictions_are_refused() {
    let tcp4 = Spec::new(true, true, 3_000);
    let good = tcp4.build_super(1_000);
    assert!(Splitter::new(&mut good.clone()).is_ok());
    let refused = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        assert_eq!(Splitter::new(&mut bytes).err(), Some(Cause::MalformedInner), "{what}");
    };
    refused("nothing", &|bytes| bytes.clear());
    refused("header only", &|bytes| bytes.truncate(HEADER_LEN));
    refused("unknown gso_type", &|bytes| bytes[1] = 3);
    refused("TCP over the other family", &|bytes| bytes[1] = 4);
    refused("UDP segments of TCP", &|bytes| bytes[1] = 5);
    refused("segments of no size", &|bytes| bytes[4..6].fill(0));
    refused("not IP", &|bytes| bytes[HEADER_LEN] = 0x75);
    refused("IP header longer than the packet", &|bytes| bytes.truncate(HEADER_LEN + 19));
    refused("longer than there are bytes", &|bytes| bytes.truncate(HEADER_LEN + 2_000));
    refused("TCP header too short", &|bytes| bytes[HEADER_LEN + 32] = 0x40);
    refused("a fragment", &|bytes| bytes[HEADER_LEN + 6] = 0x20);
    refused("another protocol", &|bytes| bytes[HEADER_LEN + 9] = 1);
    refused("longer than an IP packet", &|bytes| bytes.resize(HEADER_LEN + MAX_LEN + 1, 0));
    let single = |start: u16, offset: u16| {
        let header =
            Header { partial_checksum: Some(PartialChecksum { start, offset }), ..Header::default() };
        Splitter::new(&mut [header.encode().to_vec(), tcp4.build()].concat()).map(|_| ())
    };
    assert_eq!(single(20, 3_018), Ok(()), "the last two bytes");
    for (start, offset) in [(20, 3_019), (19, 16), (0, 0), (3_039, 0), (u16::MAX, u16::MAX)] {
        assert_eq!(single(start, offset), Err(Cause::MalformedInner), "{start} {offset}");
    }
}

#[test]
fn nothing_follows_the_last_packet() {
    let mut superpacket = Spec::new(true, false, 10).build_super(10);
    let mut splitter = Splitter::new(&mut superpacket).expect("a superpacket");
    assert!(splitter.next_packet().is_some());
    assert_eq!(splitter.next_packet(), None);
    assert_eq!(splitter.next_packet(), None);
}

/// Headers then overlap the headers before them.
#[test]
fn payloads_shorter_than_the_headers_keep_their_headers() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let spec = Spec::new(v4, tcp, 200);
        for segment_size in [1, 2, 7, 20, 27, 28, 40, 41, 60] {
            let packets = split(&spec.build_super(segment_size));
            assert_eq!(packets, expected(&spec, segment_size.into()), "{v4} {tcp} {segment_size}");
        }
    }
}

fn any_gso() -> impl Strategy<Value = Gso> {
    prop_oneof![Just(Gso::None), Just(Gso::Tcp4), Just(Gso::Tcp6), Just(Gso::Udp)]
}

/// Splits whatever it is; a packet that comes out is no longer than what went in.
fn survive(bytes: &[u8]) {
    let mut buffer = bytes.to_vec();
    let Ok(mut splitter) = Splitter::new(&mut buffer) else { return };
    let mut count = 0;
    while let Some(packet) = splitter.next_packet() {
        assert!(packet.len() + HEADER_LEN <= bytes.len());
        count += 1;
    }
    assert_eq!(count, splitter.segment_count());
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(
        gso in any_gso(), start in any::<u16>(), offset in 0u16..40, segment_size in any::<u16>(),
        version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        mut body in prop::collection::vec(any::<u8>(), 1..400),
    ) {
        let partial_checksum = (start % 3 > 0).then_some(PartialChecksum { start: start % 500, offset });
        let header = Header { partial_checksum, gso, segment_size, ..Header::default() };
        body[0] = version;
        survive(&body);
        survive(&[header.encode().to_vec(), body].concat());
    }

    #[test]
    fn changed_superpackets_do_no_harm(
        v4: bool, tcp: bool, payload in 0usize..3000, segment_size in 0u16..1500, cut in 0usize..200,
        changes in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
    ) {
        let mut bytes = Spec::new(v4, tcp, payload).build_super(segment_size);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()) * (cut % 2));
        survive(&bytes);
    }
}
