//! What is coalesced and split again comes out byte for byte and in order, whatever went in.

use std::collections::BTreeMap;

use super::build::{Spec, naive_sum, split};
use super::coalescing::ALL;
use crate::offload::candidate::inspect;
use crate::offload::coalesce::{SEGMENTS_MAX, SLOT_LEN_MIN, Superpacket};
use crate::offload::virtio::HEADER_LEN;
use proptest::prelude::*;

/// What becomes of one packet of a flow.
#[derive(Clone, Debug)]
enum Step {
    /// The next one, of the usual size.
    Next,
    /// Of another size.
    Size(usize),
    /// With other flags.
    Flags(u8),
    /// After a gap of so many bytes in TCP sequence numbers and so many in IP identifications.
    Gap(u16, u16),
    /// The last one once more.
    Duplicate,
    /// With one bit flipped, counted in bits modulo the packet's length.
    Corrupt(usize),
    /// With other options from now on.
    Options(u8),
    /// With another TOS from now on.
    Tos(u8),
    /// As a fragment.
    Fragment(u16),
    /// DF from now on.
    DontFragment(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => Just(Step::Next),
        2 => (0usize..1500).prop_map(Step::Size),
        2 => any::<u8>().prop_map(Step::Flags),
        1 => Just(Step::Flags(0x18)),
        1 => Just(Step::Flags(0x90)),
        1 => (any::<u16>(), 0u16..3).prop_map(|(bytes, ids)| Step::Gap(bytes, ids)),
        1 => Just(Step::Duplicate),
        2 => any::<usize>().prop_map(Step::Corrupt),
        1 => any::<u8>().prop_map(Step::Options),
        1 => any::<u8>().prop_map(Step::Tos),
        1 => any::<u16>().prop_map(Step::Fragment),
        1 => any::<bool>().prop_map(Step::DontFragment),
    ]
}

/// A flow: which kind, the usual payload size, what happens.
fn flow() -> impl Strategy<Value = (bool, bool, usize, Vec<Step>)> {
    (any::<bool>(), any::<bool>(), 1usize..1500, prop::collection::vec(step(), 1..150))
}

/// The packets of a flow, each with whether it is corrupt. `spare` bytes at the front are never corrupted.
fn packets(
    number: usize,
    spare: usize,
    (v4, tcp, size, steps): &(bool, bool, usize, Vec<Step>),
) -> Vec<(Vec<u8>, bool)> {
    let mut state = Spec::new(*v4, *tcp, 0);
    state.ports.0 += number as u16;
    let mut packets: Vec<(Vec<u8>, bool)> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let mut spec = Spec {
            payload: (0..*size).map(|at| (at ^ index.wrapping_mul(17)) as u8).collect(),
            ..state.clone()
        };
        let mut flip = None;
        match step {
            Step::Next => {}
            Step::Size(size) => spec.payload.resize(*size, 0x5a),
            Step::Flags(flags) => spec.flags = *flags,
            Step::Gap(bytes, ids) => {
                spec.sequence = spec.sequence.wrapping_add(u32::from(*bytes));
                spec.id = spec.id.wrapping_add(*ids);
            }
            Step::Duplicate => {
                packets.extend(packets.last().cloned());
                continue;
            }
            Step::Corrupt(bit) => flip = Some(*bit),
            Step::Options(value) => spec.options = vec![*value; usize::from(value % 11) * 4],
            Step::Tos(tos) => spec.tos = *tos,
            Step::Fragment(fragment) => spec.fragment = *fragment,
            Step::DontFragment(df) => spec.fragment = if *df { 0x4000 } else { 0 },
        }
        let mut packet = spec.build();
        if let Some(bit) = flip {
            let bit = spare * 8 + bit % ((packet.len() - spare) * 8);
            packet[bit / 8] ^= 1 << (bit % 8);
        }
        packets.push((packet, flip.is_some()));
        state.sequence = spec.sequence.wrapping_add(spec.payload.len() as u32);
        state.id = spec.id.wrapping_add(1);
        match step {
            Step::Options(_) => state.options = spec.options,
            Step::Tos(tos) => state.tos = *tos,
            Step::DontFragment(_) => state.fragment = spec.fragment,
            _ => {}
        }
    }
    packets
}

/// Follows the procedure that [`crate::offload::coalesce`] asks of its caller, with four slots. Returns the superpackets
/// in the order in which they would be written, each with its number of segments.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(usize, Vec<u8>)> {
    let mut open: Vec<(Superpacket, Vec<u8>)> = Vec::new();
    let mut written = Vec::new();
    let write = |(superpacket, mut slot): (Superpacket, Vec<u8>), written: &mut Vec<(usize, Vec<u8>)>| {
        let segments = superpacket.segments();
        let len = superpacket.finish(&mut slot);
        slot.truncate(len);
        written.push((segments, slot));
    };
    for packet in packets {
        let candidate = inspect(packet, ALL);
        let conflicts = |superpacket: &Superpacket| matches!((superpacket.flow(), candidate.flow()), (Some(one), Some(other)) if one.conflicts(other));
        let mut appended = false;
        while let Some(at) = open.iter().position(|(superpacket, _)| conflicts(superpacket)) {
            let (superpacket, slot) = &mut open[at];
            appended = superpacket.try_append(slot, packet, &candidate);
            if appended {
                break;
            }
            write(open.remove(at), &mut written);
        }
        if !appended {
            if open.len() == 4 {
                write(open.remove(0), &mut written);
            }
            let mut slot = vec![0xa5; SLOT_LEN_MIN];
            let superpacket = Superpacket::start(&mut slot, packet, &candidate);
            open.push((superpacket, slot));
        }
        while let Some(at) = open.iter().position(|(superpacket, _)| !superpacket.is_open()) {
            write(open.remove(at), &mut written);
        }
    }
    open.into_iter().for_each(|left| write(left, &mut written));
    written
}

/// Takes the packets of superpackets out again. One that went alone is not looked into: it may be anything.
fn take_apart(written: Vec<(usize, Vec<u8>)>) -> Vec<Vec<u8>> {
    let packets = |(segments, bytes): (usize, Vec<u8>)| {
        if segments == 1 { vec![bytes[HEADER_LEN..].to_vec()] } else { split(&bytes) }
    };
    written.into_iter().flat_map(packets).collect()
}

/// What must not change about a packet: with DF the IPv4 identification has no meaning, so it is taken out together
/// with its part of the header checksum.
fn essence(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] == 0x45 && packet[6] & 0x40 != 0 && naive_sum(&[&packet[..20]]) == 0xffff {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Compares without printing kilobytes of payload.
fn compare(received: &[Vec<u8>], sent: &[Vec<u8>]) -> Result<(), TestCaseError> {
    prop_assert_eq!(received.len(), sent.len(), "number of packets");
    for (index, (one, other)) in received.iter().zip(sent).enumerate() {
        prop_assert!(essence(one) == essence(other), "packet {} of {}", index, sent.len());
    }
    Ok(())
}

/// Packets by flow, in order. A fragment is a flow of its own here, and so is a packet with corrupt addresses or ports.
fn by_flow(packets: Vec<Vec<u8>>) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        flows.entry(format!("{:?}", inspect(&packet, ALL).flow())).or_default().push(packet);
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn split_undoes_coalesce(flow in flow()) {
        // Addresses and ports stay whole, so that it is one flow and its order is kept from first to last.
        let sent = packets(0, if flow.0 { 24 } else { 44 }, &flow);
        let (corrupt, all): (Vec<_>, Vec<_>) =
            sent.into_iter().map(|(packet, corrupt)| (corrupt.then(|| packet.clone()), packet)).unzip();
        let written = coalesce(&all);
        for (segments, bytes) in &written {
            prop_assert!(*segments <= SEGMENTS_MAX && bytes.len() <= SLOT_LEN_MIN);
            if *segments > 1 {
                let merged = split(bytes);
                prop_assert_eq!(merged.len(), *segments);
                prop_assert!(!corrupt.iter().flatten().any(|bad| merged.contains(bad)), "merged a corrupt one");
            }
        }
        compare(&take_apart(written), &all)?;
    }

    #[test]
    fn flows_mixed_up_stay_in_order_each(
        flows in prop::collection::vec(flow(), 2..6), order in prop::collection::vec(any::<prop::sample::Index>(), 1..400),
    ) {
        let mut sources: Vec<_> =
            flows.iter().enumerate().map(|(number, flow)| packets(number, 0, flow).into_iter()).collect();
        let mixed: Vec<_> = order
            .iter()
            .filter_map(|index| index.get_mut(&mut sources).next())
            .map(|(packet, _)| packet)
            .collect();
        let received = by_flow(take_apart(coalesce(&mixed)));
        let sent = by_flow(mixed);
        prop_assert!(received.keys().eq(sent.keys()));
        for (flow, packets) in &sent {
            compare(&received[flow], packets)?;
        }
    }
}
