//! The traffic class of IP packets, called TOS in IPv4: six bits of DSCP (RFC 2474) and two of ECN (RFC 3168), and how ECN
//! crosses a tunnel (RFC 6040).

use crate::drops::Cause;
use crate::offload::checksum;

/// ECN: whoever sent it does not react to marks.
pub const NOT_ECT: u8 = 0;
/// ECN-capable transport, of the senders that regard a mark as less than a loss (RFC 8311, L4S).
pub const ECT_1: u8 = 1;
/// ECN-capable transport.
pub const ECT_0: u8 = 2;
/// Congestion experienced: the mark of a queue.
pub const CE: u8 = 3;

/// The ECN bits of a traffic class.
const ECN: u8 = 3;

/// The traffic class of a packet; zero of what is none.
#[must_use]
pub fn of(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => *second,
        // Behind four bits of version, in front of four bits of flow label.
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Takes over into a packet what became of its ECN bits outside, at the end of a tunnel (RFC 6040 section 4.2). An IPv4 header
/// checksum stays as right or wrong as it was.
///
/// | inside | outside Not-ECT | ECT(0) | ECT(1) | CE |
/// |---|---|---|---|---|
/// | Not-ECT | Not-ECT | Not-ECT | Not-ECT | dropped |
/// | ECT(0) | ECT(0) | ECT(0) | ECT(1) | CE |
/// | ECT(1) | ECT(1) | ECT(1) | ECT(1) | CE |
/// | CE | CE | CE | CE | CE |
///
/// # Errors
/// [`Cause::Ecn`]: it was marked, and its sender would not see that.
pub fn decapsulate(packet: &mut [u8], outside: u8) -> Result<(), Cause> {
    let inside = of(packet) & ECN;
    let becomes = match (inside, outside & ECN) {
        (NOT_ECT, CE) => return Err(Cause::Ecn),
        (ECT_0, ECT_1) => ECT_1,
        (ECT_0 | ECT_1, CE) => CE,
        _ => return Ok(()),
    };
    set_ecn(packet, becomes);
    Ok(())
}

fn set_ecn(packet: &mut [u8], ecn: u8) {
    match packet {
        [first, second, rest @ ..] if *first >> 4 == 4 => {
            let old = u16::from_be_bytes([*first, *second]);
            *second = *second & !ECN | ecn;
            let new = u16::from_be_bytes([*first, *second]);
            // The header checksum is bytes 10 and 11.
            if let Some(field) = rest.get_mut(8..10) {
                let updated = checksum::update(u16::from_be_bytes([field[0], field[1]]), old, new);
                field.copy_from_slice(&updated.to_be_bytes());
            }
        }
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !(ECN << 4) | ecn << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Headers of both families with a traffic class, the IPv4 one with its checksum.
    fn headers(class: u8, filling: u8) -> [Vec<u8>; 2] {
        let mut v4 = vec![filling; 20];
        (v4[0], v4[1]) = (0x45, class);
        v4[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(&v4));
        v4[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut v6 = vec![filling; 40];
        (v6[0], v6[1]) = (0x60 | class >> 4, class << 4 | filling & 0x0f);
        [v4, v6]
    }

    /// The table of RFC 6040, figure 4, row by row as it stands there.
    #[test]
    fn marks_cross_the_end_of_a_tunnel_as_rfc_6040_has_it() {
        let rows = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inside, row) in rows {
            for (outside, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                for mut packet in headers(0xb8 | inside, 0x5a) {
                    let before = packet.clone();
                    let outcome = decapsulate(&mut packet, 0xfc & 0x28 | outside);
                    match expected {
                        None => assert_eq!((outcome, &packet), (Err(Cause::Ecn), &before)),
                        Some(ecn) => {
                            assert_eq!(outcome, Ok(()), "{inside} in {outside}");
                            assert_eq!(packet, headers(0xb8 | ecn, 0x5a)[usize::from(packet.len() == 40)]);
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_right_checksum_stays_right_and_the_rest_as_it_was(
            class in any::<u8>(), outside in any::<u8>(), filling in any::<u8>(),
        ) {
            for mut packet in headers(class, filling) {
                let before = packet.clone();
                if decapsulate(&mut packet, outside).is_ok() {
                    if packet.len() == 20 {
                        prop_assert_eq!(checksum::fold(checksum::sum(&packet)), 0xffff);
                        prop_assert_eq!(&packet[2..10], &before[2..10]);
                    } else {
                        prop_assert_eq!(packet[1] & 0x0f, before[1] & 0x0f, "flow label");
                        prop_assert_eq!(&packet[2..], &before[2..]);
                    }
                    prop_assert_eq!(of(&packet) & !ECN, class & !ECN, "DSCP");
                }
            }
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..60), outside in any::<u8>()) {
            let _ = decapsulate(&mut bytes, outside);
        }
    }
}
