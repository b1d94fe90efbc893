use proptest::prelude::*;

use super::super::key::Key;
use super::super::writer::{Writer, padding};
use super::*;

const TRANSACTION: TransactionId = TransactionId([7; 12]);

/// A message made of raw attributes; the length field is right.
fn raw(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    bytes.extend([7; 12]);
    for (kind, value) in attributes {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(*value);
        bytes.extend(std::iter::repeat_n(0, padding(value.len())));
    }
    let length = (bytes.len() - HEADER_LEN) as u16;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Every getter once, so that none can panic unseen.
fn read_everything(message: &Message<'_>) {
    let key = Key::from_bytes(b"key");
    let _ = (message.class(), message.method(), message.transaction());
    let _ = (message.mapped_address(), message.xor_mapped_address(), message.xor_relayed_address());
    let _ = (message.xor_peer_address(), message.xor_peer_addresses().count());
    let _ = (message.username(), message.realm(), message.nonce(), message.software(), message.data());
    let _ = (message.error_code(), message.lifetime(), message.channel_number());
    let _ = (message.requested_transport(), message.requested_address_family(), message.even_port());
    let _ = (message.reservation_token(), message.dont_fragment(), message.icmp());
    let _ = (message.additional_address_family(), message.unknown_attributes().count());
    let _ = (message.verify_integrity(&key), message.verify_fingerprint());
    let key = Key::for_integrity(Integrity::Sha256, b"key");
    let _ = (message.verify_integrity(&key), message.verify_truncated_integrity(&key, 16));
    let _ = (message.userhash(), message.password_algorithm(), message.password_algorithms());
    let _ = message.unknown_required(&[AttributeType::USERNAME]);
    assert!(message.attributes().count() <= ATTRIBUTES_MAX);
}

#[test]
fn headers_that_lie_are_refused() {
    let good = raw(&[]);
    assert!(Message::parse(&good).is_ok());
    for len in 0..HEADER_LEN {
        assert_eq!(Message::parse(&good[..len]).unwrap_err(), Malformed::TooShort);
    }
    let changed = |index: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[index] = value;
        Message::parse(&bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(changed(0, 0x40), Malformed::NotStun);
    assert_eq!(changed(0, 0x80), Malformed::NotStun);
    assert_eq!(changed(0, 0xc0), Malformed::NotStun);
    assert_eq!(changed(3, 4), Malformed::Length);
    assert_eq!(changed(3, 2), Malformed::Length);
    assert_eq!(changed(4, 0x20), Malformed::Cookie);
    let mut trailing = good.clone();
    trailing.extend([0; 4]);
    assert_eq!(Message::parse(&trailing).unwrap_err(), Malformed::Length);
}

#[test]
fn attributes_that_overrun_are_refused() {
    let mut bytes = raw(&[(0x8022, b"abcd")]);
    for length in [5_u16, 8, 0xfffd, 0xffff] {
        bytes[22..24].copy_from_slice(&length.to_be_bytes());
        assert_eq!(Message::parse(&bytes).unwrap_err(), Malformed::Attribute, "{length}");
    }
}

#[test]
fn at_most_64_attributes_are_looked_at() {
    let many = |count| raw(&vec![(0x8022_u16, &b""[..]); count]);
    assert_eq!(Message::parse(&many(64)).unwrap().attributes().count(), 64);
    assert_eq!(Message::parse(&many(65)).unwrap_err(), Malformed::TooManyAttributes);
    assert_eq!(Message::parse(&many(16_000)).unwrap_err(), Malformed::TooManyAttributes);
}

#[test]
fn the_first_of_duplicates_wins() {
    let bytes = raw(&[(0x000d, &[0, 0, 0, 1]), (0x000d, &[0, 0, 0, 2])]);
    assert_eq!(Message::parse(&bytes).unwrap().lifetime(), Ok(Some(1)));
}

#[test]
fn nothing_behind_message_integrity_counts() {
    let key = Key::from_bytes(b"key");
    let mut buffer = [0; 200];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::Refresh, TRANSACTION).unwrap();
    writer.username(b"user");
    let len = writer.finish(Some(&key), false).unwrap();
    let mut bytes = buffer[..len].to_vec();
    bytes.extend([0, 0x0d, 0, 4, 0, 0, 0, 77, 0x7f, 0xff, 0, 0]);
    bytes[3] = (bytes.len() - HEADER_LEN) as u8;
    let message = Message::parse(&bytes).unwrap();
    assert!(message.verify_integrity(&key));
    assert_eq!((message.lifetime(), message.username()), (Ok(None), Some(&b"user"[..])));
    assert!(message.unknown_required(&[AttributeType::USERNAME]).is_empty());
}

#[test]
fn the_sha256_variant_ends_what_is_visible_too() {
    let bytes = raw(&[(0x001c, &[0; 32]), (0x0008, &[0; 20]), (0x000d, &[0, 0, 0, 1])]);
    let message = Message::parse(&bytes).unwrap();
    assert!(message.has_integrity_sha256() && !message.has_integrity());
    assert_eq!(message.lifetime(), Ok(None));
}

#[test]
fn integrity_of_another_length_is_wrong_but_well_formed() {
    for len in [0, 4, 16, 19, 24, 32] {
        let bytes = raw(&[(0x0008, &vec![0; len])]);
        let message = Message::parse(&bytes).unwrap();
        assert!(message.has_integrity() && !message.verify_integrity(&Key::from_bytes(b"key")));
    }
}

#[test]
fn fingerprint_has_to_be_last_and_four_bytes() {
    assert_eq!(
        Message::parse(&raw(&[(0x8028, &[0; 4]), (0x8022, b"")])).unwrap_err(),
        Malformed::Fingerprint
    );
    assert_eq!(Message::parse(&raw(&[(0x8028, &[0; 5])])).unwrap_err(), Malformed::Fingerprint);
    assert_eq!(Message::parse(&raw(&[(0x8028, &[0; 4])])).unwrap().verify_fingerprint(), Some(false));
    assert_eq!(Message::parse(&raw(&[])).unwrap().verify_fingerprint(), None);
}

#[test]
fn malformed_values_are_told_from_absent_ones() {
    let parsed = |kind, value: &[u8]| {
        let bytes = raw(&[(kind, value)]);
        let message = Message::parse(&bytes).unwrap();
        [
            message.xor_peer_address().is_err(),
            message.lifetime().is_err(),
            message.channel_number().is_err(),
            message.requested_transport().is_err(),
            message.even_port().is_err(),
            message.reservation_token().is_err(),
            message.error_code().is_err(),
        ]
    };
    let only = |index| {
        let mut expected = [false; 7];
        expected[index] = true;
        expected
    };
    assert_eq!(parsed(0x0012, &[0, 1, 0, 0, 0]), only(0));
    assert_eq!(parsed(0x0012, &[0, 9, 0, 0, 1, 2, 3, 4]), only(0));
    assert_eq!(parsed(0x0012, &[0, 2, 0, 0, 1, 2, 3, 4]), only(0));
    assert_eq!(parsed(0x000d, &[0, 0, 1]), only(1));
    assert_eq!(parsed(0x000c, &[0x3f, 0xff, 0, 0]), only(2));
    assert_eq!(parsed(0x000c, &[0x80, 0, 0, 0]), only(2));
    assert_eq!(parsed(0x0019, &[17]), only(3));
    assert_eq!(parsed(0x0018, &[0, 0]), only(4));
    assert_eq!(parsed(0x0022, &[0; 7]), only(5));
    assert_eq!(parsed(0x0009, &[0, 0, 2, 0]), only(6));
    assert_eq!(parsed(0x0009, &[0, 0, 4, 100]), only(6));
    assert_eq!(parsed(0x0009, &[0, 0, 4, 38]), [false; 7]);
}

#[test]
fn unknown_required_types_are_listed_once_and_bounded() {
    let twice = raw(&[(0x7000, b""), (0x7000, b""), (0x7001, b""), (0xf000, b"")]);
    assert_eq!(Message::parse(&twice).unwrap().unknown_required(&[]).as_slice(), [0x7000, 0x7001]);
    let many: Vec<(u16, &[u8])> = (0..60).map(|index| (0x7000 + index, &b""[..])).collect();
    let many = raw(&many);
    assert_eq!(Message::parse(&many).unwrap().unknown_required(&[]).as_slice().len(), UnknownAttributes::MAX);
}

#[test]
fn a_data_indication_can_be_written_around_its_payload() {
    let payload = b"seven b";
    let mut buffer = [0xff; 128];
    let mut writer = Writer::new(&mut buffer, Class::Indication, Method::Data, TRANSACTION).unwrap();
    writer.xor_peer_address("192.0.2.9:9".parse().unwrap());
    let len = writer.finish_before_data(payload.len()).unwrap();
    let mut bytes = buffer[..len].to_vec();
    bytes.extend(payload);
    bytes.extend(std::iter::repeat_n(0, padding(payload.len())));
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.data(), Some(&payload[..]));
    assert_eq!(message.xor_peer_address(), Ok(Some("192.0.2.9:9".parse().unwrap())));
}

#[test]
fn a_buffer_that_is_too_small_is_reported() {
    let key = Key::from_bytes(b"key");
    let mut buffer = [0; 72];
    assert!(Writer::new(&mut buffer[..19], Class::Request, Method::Binding, TRANSACTION).is_none());
    for len in 20..72 {
        let mut writer =
            Writer::new(&mut buffer[..len], Class::Request, Method::Binding, TRANSACTION).unwrap();
        writer.nonce(b"sixteen bytes...");
        assert_eq!(writer.finish(Some(&key), true), None, "{len}");
    }
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TRANSACTION).unwrap();
    writer.nonce(b"sixteen bytes...");
    assert_eq!(writer.finish(Some(&key), true), Some(72));
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TRANSACTION).unwrap();
    writer.data(&[0; 65_536]);
    assert_eq!(writer.finish(None, false), None);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::parse(&bytes) {
            read_everything(&message);
        }
    }

    #[test]
    fn random_attributes_never_panic(
        attributes in proptest::collection::vec((0_u16..0x30, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        optional in any::<bool>(),
        cut in 0_usize..40,
        flip in any::<(u16, u8)>(),
    ) {
        let offset = if optional { 0x8000 } else { 0 };
        let list: Vec<(u16, &[u8])> = attributes.iter().map(|(kind, value)| (kind | offset, &value[..])).collect();
        let mut bytes = raw(&list);
        if let Ok(message) = Message::parse(&bytes) {
            read_everything(&message);
        }
        let index = usize::from(flip.0) % bytes.len();
        bytes[index] ^= flip.1;
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        if let Ok(message) = Message::parse(&bytes) {
            read_everything(&message);
        }
    }

    #[test]
    fn what_is_written_is_read(
        transaction in any::<[u8; 12]>(),
        ip in any::<std::net::IpAddr>(),
        port in any::<u16>(),
        data in proptest::collection::vec(any::<u8>(), 0..300),
        lifetime in any::<u32>(),
        code in 300_u16..700,
        number in 0x4000_u16..0x8000,
        token in any::<[u8; 8]>(),
        icmp in (0_u8..128, 0_u16..512, any::<u32>()),
        dirt in any::<u8>(),
        with_fingerprint in any::<bool>(),
    ) {
        let address = SocketAddr::new(ip, port);
        let number = ChannelNumber::new(number).unwrap();
        let icmp = Icmp { kind: icmp.0, code: icmp.1, error_data: icmp.2 };
        let key = Key::long_term(b"user", b"realm", b"password");
        let mut buffer = [dirt; 1000];
        let mut writer = Writer::new(&mut buffer, Class::Error, Method::Allocate, TransactionId(transaction)).unwrap();
        writer.xor_mapped_address(address).xor_peer_address(address).xor_relayed_address(address);
        writer.alternate_server(address);
        writer.address(AttributeType::MAPPED_ADDRESS, address).lifetime(lifetime).channel_number(number);
        writer.error_code(ErrorCode(code), "because").reservation_token(token).icmp(icmp).even_port(true);
        writer.requested_transport(17).requested_address_family(AddressFamily::V6).dont_fragment();
        writer.unknown_attributes(&[1, 2]).username(b"u").realm(b"r").nonce(b"n").data(&data);
        let len = writer.finish(Some(&key), with_fingerprint).unwrap();

        let message = Message::parse(&buffer[..len]).unwrap();
        prop_assert_eq!((message.class(), message.method()), (Class::Error, Method::Allocate));
        prop_assert_eq!(message.transaction(), TransactionId(transaction));
        prop_assert_eq!(message.xor_mapped_address(), Ok(Some(address)));
        prop_assert_eq!(message.xor_peer_addresses().collect::<Vec<_>>(), vec![Ok(address)]);
        prop_assert_eq!(message.xor_relayed_address(), Ok(Some(address)));
        prop_assert_eq!(message.mapped_address(), Ok(Some(address)));
        prop_assert_eq!(message.address(AttributeType::ALTERNATE_SERVER), Ok(Some(address)));
        prop_assert_eq!(message.lifetime(), Ok(Some(lifetime)));
        prop_assert_eq!(message.channel_number(), Ok(Some(number)));
        prop_assert_eq!(message.error_code(), Ok(Some(ErrorCode(code))));
        prop_assert_eq!(message.reservation_token(), Ok(Some(token)));
        prop_assert_eq!(message.icmp(), Ok(Some(icmp)));
        prop_assert_eq!(message.even_port(), Ok(Some(true)));
        prop_assert_eq!(message.requested_transport(), Ok(Some(17)));
        prop_assert_eq!(message.requested_address_family(), Ok(Some(AddressFamily::V6)));
        prop_assert!(message.dont_fragment());
        prop_assert_eq!(message.unknown_attributes().collect::<Vec<_>>(), vec![AttributeType(1), AttributeType(2)]);
        prop_assert_eq!(message.username(), Some(&b"u"[..]));
        prop_assert_eq!(message.data(), Some(&data[..]));
        prop_assert_eq!(&buffer[message.data_range().unwrap()], &data[..]);
        prop_assert!(message.verify_integrity(&key));
        prop_assert!(!message.verify_integrity(&Key::from_bytes(b"other")));
        prop_assert_eq!(message.verify_fingerprint(), with_fingerprint.then_some(true));
        // Padding is zero over any dirt: taking the attributes apart and putting them together again changes nothing.
        let list: Vec<(u16, &[u8])> = message.attributes().map(|attribute| (attribute.kind.0, attribute.value)).collect();
        let again = raw(&list);
        prop_assert_eq!(&again[HEADER_LEN..], &buffer[HEADER_LEN..again.len()]);
    }
}

#[test]
fn an_additional_family_is_read_under_its_number_and_under_that_of_the_drafts() {
    let read = |fill: &dyn Fn(&mut Writer<'_>)| {
        let mut buffer = [0; 100];
        let mut writer =
            Writer::new(&mut buffer, Class::Request, Method::Allocate, TransactionId([1; 12])).unwrap();
        fill(&mut writer);
        let len = writer.finish(None, false).unwrap();
        Message::parse(&buffer[..len]).unwrap().additional_address_family()
    };
    let (own, draft) =
        (AttributeType::ADDITIONAL_ADDRESS_FAMILY, AttributeType::ADDITIONAL_ADDRESS_FAMILY_DRAFT);
    assert_eq!(read(&|_| {}), Ok(None));
    for kind in [own, draft] {
        let family = |writer: &mut Writer<'_>| {
            writer.attribute(kind, &[2, 0, 0, 0]);
        };
        assert_eq!(read(&family), Ok(Some(AddressFamily::V6)));
        let short = |writer: &mut Writer<'_>| {
            writer.attribute(kind, &[2]);
        };
        assert_eq!(read(&short), Err(BadAttribute(kind.0)));
    }
    let both = |writer: &mut Writer<'_>| {
        writer.attribute(draft, &[2, 0, 0, 0]).attribute(own, &[1, 0, 0, 0]);
    };
    assert_eq!(read(&both), Ok(Some(AddressFamily::V4)), "its own number wins");
}
