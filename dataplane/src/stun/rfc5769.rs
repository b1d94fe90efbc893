//! The test vectors of RFC 5769, byte for byte.

use super::*;

const ICE_PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

const REQUEST: &str = "\
    00010058 2112a442 b7e7a701 bc34d686 fa87dfae 80220010 5354554e 20746573 7420636c 69656e74 \
    00240004 6e0001ff 80290008 932ff9b1 51263b36 00060009 6576746a 3a683676 59202020 \
    00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2 80280004 e57a3bcf";

const RESPONSE_V4: &str = "\
    0101003c 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200008 0001a147 e112a643 \
    00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7 80280004 c07d4c96";

const RESPONSE_V6: &str = "\
    01010048 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 \
    00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9 \
    00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41 80280004 c8fb0b4c";

const LONG_TERM_REQUEST: &str = "\
    00010060 2112a442 78ad3433 c6ad72c0 29da412e 00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000 \
    0015001c 662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341 \
    0014000b 6578616d 706c652e 6f726700 00080014 f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666";

pub(super) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn section_2_1_sample_request() {
    let bytes = bytes(REQUEST);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Request, Method::Binding));
    assert_eq!(message.software(), Some(&b"STUN test client"[..]));
    assert_eq!(message.username(), Some(&b"evtj:h6vY"[..]));
    assert_eq!(message.first(AttributeType(0x0024)), Some(&[0x6e, 0x00, 0x01, 0xff][..]));
    assert_eq!(message.unknown_required(&[AttributeType::USERNAME]).as_slice(), [0x0024]);
    assert!(message.verify_integrity(&Key::from_bytes(ICE_PASSWORD)));
    assert_eq!(message.verify_fingerprint(), Some(true));
}

#[test]
fn sections_2_2_and_2_3_sample_responses() {
    for (hex, address) in
        [(RESPONSE_V4, "192.0.2.1:32853"), (RESPONSE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
    {
        let bytes = bytes(hex);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.class(), message.method()), (Class::Success, Method::Binding));
        assert_eq!(message.xor_mapped_address(), Ok(Some(address.parse().unwrap())));
        assert_eq!(message.software(), Some(&b"test vector"[..]));
        assert!(message.verify_integrity(&Key::from_bytes(ICE_PASSWORD)));
        assert_eq!(message.verify_fingerprint(), Some(true));
    }
}

#[test]
fn section_2_4_long_term_request_is_read_and_written() {
    let bytes = bytes(LONG_TERM_REQUEST);
    let username = "\u{30de}\u{30c8}\u{30ea}\u{30c3}\u{30af}\u{30b9}".as_bytes();
    let key = Key::long_term(username, b"example.org", b"TheMatrIX");
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.username(), Some(username));
    assert_eq!(message.nonce(), Some(&b"f//499k954d6OL34oL9FSTvy64sA"[..]));
    assert_eq!(message.realm(), Some(&b"example.org"[..]));
    assert!(message.verify_integrity(&key));
    assert_eq!(message.verify_fingerprint(), None);

    let mut buffer = [0xff; 200];
    let mut writer =
        Writer::new(&mut buffer, Class::Request, Method::Binding, message.transaction()).unwrap();
    writer.username(username).nonce(b"f//499k954d6OL34oL9FSTvy64sA").realm(b"example.org");
    let len = writer.finish(Some(&key), false).unwrap();
    assert_eq!(buffer[..len], bytes);
}

#[test]
fn any_flipped_bit_breaks_integrity_or_the_message() {
    let good = bytes(REQUEST);
    let key = Key::from_bytes(ICE_PASSWORD);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let Ok(message) = Message::parse(&bad) else { continue };
        assert_ne!(message.verify_fingerprint(), Some(true), "bit {bit}");
        // MESSAGE-INTEGRITY protects all but itself's successor, the eight bytes of FINGERPRINT.
        if bit / 8 < good.len() - 8 {
            assert!(!message.verify_integrity(&key), "bit {bit}");
        }
    }
}
