//! The test vector of RFC 8489 appendix B.1, byte for byte, and what section 14.6 says of truncation and order.
//!
//! The vector is the one of the verified erratum 6268: as first printed, the request has a length that counts the header
//! and lacks PASSWORD-ALGORITHM, so that no parser could take it.

use ring::hmac;

use super::key::INTEGRITY_SHA256_LEN;
use super::password::userhash;
use super::rfc5769::bytes;
use super::*;

const REQUEST: &str = "\
    00010090 2112a442 78ad3433 c6ad72c0 29da412e \
    001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41 407f1704 \
    00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476 79363473 41000000 \
    0014000b 6578616d 706c652e 6f726700 001d0004 00020000 \
    001c0020 b5c7bf00 5b6c52a2 1c51c5e8 92f81924 136296cb 927c4314 9309278c c6518e65";

/// The same as first printed in the RFC.
const REQUEST_AS_PRINTED: &str = "\
    0001009c 2112a442 78ad3433 c6ad72c0 29da412e \
    001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41 407f1704 \
    00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476 79363473 41000000 \
    0014000b 6578616d 706c652e 6f726700 \
    001c0020 e4686c8f 0edeb590 13e07090 010a93ef ccbccc54 4c0a45d9 f830aa6d 6f735a01";

const USERNAME: &str = "\u{30de}\u{30c8}\u{30ea}\u{30c3}\u{30af}\u{30b9}";
const NONCE: &[u8] = b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA";
const REALM: &[u8] = b"example.org";

fn stored_key() -> LongTermKey {
    LongTermKey::new(PasswordAlgorithm::Sha256, USERNAME.as_bytes(), REALM, b"TheMatrIX")
}

fn key() -> Key {
    stored_key().for_integrity(Integrity::Sha256)
}

#[test]
fn appendix_b_1_is_read_and_written() {
    let bytes = bytes(REQUEST);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Request, Method::Binding));
    assert_eq!(message.userhash(), Some(&userhash(USERNAME.as_bytes(), REALM)[..]));
    assert_eq!((message.nonce(), message.realm(), message.username()), (Some(NONCE), Some(REALM), None));
    assert_eq!(message.password_algorithm(), Ok(Some(PasswordAlgorithm::Sha256)));
    assert_eq!(message.password_algorithms(), None);
    assert!(message.has_integrity_sha256() && !message.has_integrity());
    assert!(message.verify_integrity(&key()));

    let mut buffer = [0xff; 200];
    let mut writer =
        Writer::new(&mut buffer, Class::Request, Method::Binding, message.transaction()).unwrap();
    writer.userhash(&userhash(USERNAME.as_bytes(), REALM)).nonce(NONCE).realm(REALM);
    writer.password_algorithm(PasswordAlgorithm::Sha256);
    let len = writer.finish(Some(&key()), false).unwrap();
    assert_eq!(buffer[..len], bytes);
}

#[test]
fn appendix_b_1_as_printed_has_our_keys_and_a_length_that_nobody_can_take() {
    let bytes = bytes(REQUEST_AS_PRINTED);
    assert_eq!(Message::parse(&bytes).unwrap_err(), Malformed::Length);
    let hash = &bytes[24..56];
    assert_eq!(hash, userhash(USERNAME.as_bytes(), REALM));
    let (before, value) = bytes.split_at(bytes.len() - 32);
    // The key's bytes come from elsewhere than the function under test.
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(format!("{USERNAME}:example.org:TheMatrIX").as_bytes());
    let printed = hmac::Key::new(hmac::HMAC_SHA256, context.finish().as_ref());
    assert_eq!(hmac::sign(&printed, &before[..before.len() - 4]).as_ref(), value);
}

#[test]
fn every_flipped_bit_of_the_value_is_noticed() {
    let good = bytes(REQUEST);
    for bit in 0..256 {
        let mut bad = good.clone();
        let index = bad.len() - 32 + bit / 8;
        bad[index] ^= 1 << (bit % 8);
        assert!(!Message::parse(&bad).unwrap().verify_integrity(&key()), "bit {bit}");
    }
}

#[test]
fn any_flipped_bit_breaks_integrity_or_the_message() {
    let good = bytes(REQUEST);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let Ok(message) = Message::parse(&bad) else { continue };
        assert!(!message.verify_integrity(&key()), "bit {bit}");
    }
}

/// A request that ends with MESSAGE-INTEGRITY-SHA256 of `len` bytes, computed without the code under test.
fn truncated(len: usize) -> Vec<u8> {
    let whole = bytes(REQUEST);
    let mut message = whole[..whole.len() - 36].to_vec();
    let length = (message.len() + 4 + len.next_multiple_of(4) - HEADER_LEN) as u16;
    message[2..4].copy_from_slice(&length.to_be_bytes());
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(format!("{USERNAME}:example.org:TheMatrIX").as_bytes());
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, context.finish().as_ref()), &message);
    message.extend([0, 0x1c, 0, len as u8]);
    message.extend(tag.as_ref().iter().chain(&[0; 8]).take(len));
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

#[test]
fn truncation_is_accepted_where_allowed_and_only_there() {
    for len in 0..=40 {
        let bytes = truncated(len);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.verify_integrity(&key()), len == INTEGRITY_SHA256_LEN, "{len} bytes, whole");
        for len_min in [0, 16, 20, 32] {
            let expected = len.is_multiple_of(4) && (16.max(len_min)..=32).contains(&len);
            assert_eq!(message.verify_truncated_integrity(&key(), len_min), expected, "{len} of {len_min}");
        }
        let mut bad = bytes.clone();
        if let Some(byte) = bad.get_mut(bytes.len() - len.next_multiple_of(4)) {
            *byte ^= 0x80;
            let message = Message::parse(&bad).unwrap();
            assert!(!message.verify_truncated_integrity(&key(), 0), "{len} bytes, the first one changed");
        }
    }
}

#[test]
fn message_integrity_is_never_truncated() {
    let sha1 = Key::from_bytes(b"key");
    let mut buffer = [0; 100];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TransactionId([1; 12])).unwrap();
    let len = writer.finish(Some(&sha1), false).unwrap();
    assert!(Message::parse(&buffer[..len]).unwrap().verify_truncated_integrity(&sha1, 0));
    buffer[3] -= 4;
    buffer[23] -= 4;
    assert!(!Message::parse(&buffer[..len - 4]).unwrap().verify_truncated_integrity(&sha1, 0));
}

/// A message with both attributes and what is put between and behind them.
fn both(between: &[u8], behind: &[u8], with_fingerprint: bool) -> Vec<u8> {
    let mut buffer = [0; 300];
    let transaction = TransactionId([1; 12]);
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::Refresh, transaction).unwrap();
    writer.username(b"user").integrity(&stored_key().for_integrity(Integrity::Sha1));
    if !between.is_empty() {
        writer.attribute(AttributeType::LIFETIME, between);
    }
    writer.integrity(&key());
    if !behind.is_empty() {
        writer.attribute(AttributeType::LIFETIME, behind);
    }
    let len = writer.finish(None, with_fingerprint).unwrap();
    buffer[..len].to_vec()
}

#[test]
fn both_attributes_are_verified_each_over_what_is_in_front_of_it() {
    for with_fingerprint in [false, true] {
        let bytes = both(&[], &[], with_fingerprint);
        let message = Message::parse(&bytes).unwrap();
        assert!(message.verify_integrity(&stored_key().for_integrity(Integrity::Sha1)));
        assert!(message.verify_integrity(&key()));
        assert!(!message.verify_integrity(&Key::for_integrity(Integrity::Sha256, b"other")));
        assert_eq!(message.verify_fingerprint(), with_fingerprint.then_some(true));
        assert_eq!(message.attributes().count(), 1);
    }
}

#[test]
fn what_stands_behind_either_attribute_is_not_seen() {
    let (between, behind) = (both(&[0, 0, 0, 1], &[], false), both(&[], &[0, 0, 0, 1], true));
    for bytes in [between, behind] {
        let message = Message::parse(&bytes).unwrap();
        assert!(message.verify_integrity(&key()));
        assert_eq!((message.lifetime(), message.username()), (Ok(None), Some(&b"user"[..])));
        assert_eq!(message.attributes().count(), 1);
    }
}

#[test]
fn fingerprint_in_front_of_an_integrity_attribute_is_malformed() {
    let mut buffer = [0; 200];
    let transaction = TransactionId([1; 12]);
    for integrity in [Integrity::Sha1, Integrity::Sha256] {
        let mut writer = Writer::new(&mut buffer, Class::Request, Method::Binding, transaction).unwrap();
        writer.attribute(AttributeType::FINGERPRINT, &[0; 4]);
        let len = writer.finish(Some(&Key::for_integrity(integrity, b"key")), false).unwrap();
        assert_eq!(Message::parse(&buffer[..len]).unwrap_err(), Malformed::Fingerprint);
    }
}
