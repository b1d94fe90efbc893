//! ICMP errors: who is told, of what, and how often (RFC 8656 sections 11.5 and 18.13).

use dataplane::stun::{AddressFamily, AttributeType, Class, Icmp, Message, Method};

use super::super::icmp::attribute;
use super::super::*;
use super::fixture::*;

const PORT_UNREACHABLE: Icmp = Icmp { kind: 3, code: 3, error_data: 0 };

fn peer(text: &str) -> PeerSocket {
    PeerSocket(address(text))
}

#[test]
fn a_client_is_told_of_a_permitted_peer_whatever_the_port() {
    let mut fixture = Fixture::new();
    let alice = User::alice();
    fixture.allocate(&alice);
    let id = fixture.id(&alice);
    let hear = |fixture: &mut Fixture, from| {
        fixture.server.handle_icmp(id, peer(from), PORT_UNREACHABLE, fixture.now)
    };
    assert_eq!(hear(&mut fixture, "192.0.2.9:7"), FromIcmp::Ignore);
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    assert_eq!(hear(&mut fixture, "192.0.2.9:7"), FromIcmp::Indication { client: alice.client });
    assert_eq!(hear(&mut fixture, "192.0.2.8:7"), FromIcmp::Ignore);
    // A channel changes nothing: ChannelData has no room for it.
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:7"), None);
    assert_eq!(hear(&mut fixture, "192.0.2.9:7"), FromIcmp::Indication { client: alice.client });
    fixture.wait(300);
    assert_eq!(hear(&mut fixture, "192.0.2.9:7"), FromIcmp::Ignore, "the permission is over");
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    fixture.wait(299);
    assert_eq!(hear(&mut fixture, "192.0.2.9:7"), FromIcmp::Indication { client: alice.client });
    fixture.wait(1);
    assert_eq!(hear(&mut fixture, "192.0.2.9:7"), FromIcmp::Ignore, "the allocation is over");
    let nobody =
        fixture.server.handle_icmp(AllocationId(77), peer("192.0.2.9:7"), PORT_UNREACHABLE, fixture.now);
    assert_eq!(nobody, FromIcmp::Ignore);
}

#[test]
fn the_indication_names_the_peer_and_has_icmp_instead_of_data() {
    let mut fixture = Fixture::new();
    for (to, icmp, len) in [
        ("192.0.2.9:7", PORT_UNREACHABLE, 44),
        ("192.0.2.9:7", attribute(peer("192.0.2.9:7"), 3, 4, 1400), 44),
        ("[2001:db8::9]:7", attribute(peer("[2001:db8::9]:7"), 2, 0, 1280), 56),
    ] {
        let bytes = fixture.server.icmp_indication(peer(to), icmp).to_vec();
        assert_eq!(bytes.len(), len);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.class(), message.method()), (Class::Indication, Method::Data));
        assert_eq!(message.xor_peer_address(), Ok(Some(address(to))));
        assert_eq!((message.icmp(), message.data()), (Ok(Some(icmp)), None));
    }
    // Type 3 in seven bits, code 4 in nine, the MTU in 32.
    let bytes =
        fixture.server.icmp_indication(peer("192.0.2.9:7"), Icmp { kind: 3, code: 4, error_data: 1400 });
    let value = Message::parse(bytes).unwrap().first(AttributeType::ICMP).unwrap();
    assert_eq!(value, [0, 0, 6, 4, 0, 0, 5, 120]);
}

#[test]
fn only_an_mtu_is_passed_on_as_error_data() {
    let (v4, v6) = (peer("192.0.2.9:7"), peer("[2001:db8::9]:7"));
    assert_eq!(attribute(v4, 3, 4, 1400).error_data, 1400);
    assert_eq!(attribute(v4, 3, 3, 1400).error_data, 0);
    assert_eq!(attribute(v4, 2, 0, 1400).error_data, 0);
    assert_eq!(attribute(v6, 2, 0, 1280).error_data, 1280);
    assert_eq!(attribute(v6, 3, 4, 1280).error_data, 0);
}

#[test]
fn types_that_say_nothing_about_a_peer_are_ignored() {
    let told = |family, to: &str| -> Vec<u8> {
        let wanted = |&kind: &u8| {
            // One of each type, each in a fresh second.
            let mut fixture = Fixture::new();
            let alice = User::alice();
            let reply = fixture.ask(&alice, Method::Allocate, |writer| {
                writer.requested_transport(17).requested_address_family(family);
            });
            assert_eq!(reply.code(), None);
            assert_eq!(fixture.permit(&alice, &[to]), None);
            let icmp = Icmp { kind, code: 0, error_data: 0 };
            let heard = fixture.server.handle_icmp(fixture.id(&alice), peer(to), icmp, fixture.now);
            heard != FromIcmp::Ignore
        };
        (0..=255).filter(wanted).collect()
    };
    assert_eq!(told(AddressFamily::V4, "192.0.2.9:7"), [3, 11]);
    assert_eq!(told(AddressFamily::V6, "[2001:db8::9]:7"), [1, 2, 3]);
}

#[test]
fn a_storm_is_cut_off_once_a_second_and_costs_other_allocations_nothing() {
    let mut fixture = Fixture::new();
    let (alice, bob) = (User::alice(), User::bob());
    fixture.allocate(&alice);
    fixture.allocate(&bob);
    let (hers, his) = (fixture.id(&alice), fixture.id(&bob));
    assert_eq!(fixture.permit(&alice, &["192.0.2.9:1"]), None);
    assert_eq!(fixture.permit(&bob, &["192.0.2.9:1"]), None);
    for _ in 0..3 {
        let heard: Vec<FromIcmp> = (0..1000)
            // Half of them forged, about a peer without permission: they cost as much.
            .map(|index| if index % 2 == 0 { "192.0.2.9:7" } else { "192.0.2.8:7" })
            .map(|about| fixture.server.handle_icmp(hers, peer(about), PORT_UNREACHABLE, fixture.now))
            .collect();
        let count = |what: FromIcmp| heard.iter().filter(|&&heard| heard == what).count();
        assert_eq!(
            count(FromIcmp::Indication { client: alice.client }),
            usize::from(ICMP_PER_SECOND_MAX) / 2
        );
        assert_eq!(count(FromIcmp::Silence), 1);
        assert_eq!(heard[usize::from(ICMP_PER_SECOND_MAX)], FromIcmp::Silence);
        let other = fixture.server.handle_icmp(his, peer("192.0.2.9:7"), PORT_UNREACHABLE, fixture.now);
        assert_eq!(other, FromIcmp::Indication { client: bob.client });
        fixture.now += ICMP_SILENCE_TIME;
    }
}

#[test]
fn on_a_shared_port_an_error_is_for_the_one_that_its_peer_leads_to() {
    let mut fixture =
        Fixture::with(Settings { relay_ports: 50_000..=50_000, port_sharing: true, ..settings() });
    let (alice, bob) = (User::alice(), User::bob());
    let relayed = fixture.allocate(&alice);
    assert_eq!(fixture.allocate(&bob), relayed);
    assert_eq!(fixture.bind(&alice, 0x4000, "192.0.2.9:7"), None);
    assert_eq!(fixture.bind(&bob, 0x4000, "192.0.2.9:8"), None);
    assert_eq!(fixture.permit(&bob, &["192.0.2.8:1"]), None);
    let hear = |fixture: &mut Fixture, about| {
        let id = fixture.server.icmp_recipient(relayed, peer(about)).unwrap();
        fixture.server.handle_icmp(id, peer(about), PORT_UNREACHABLE, fixture.now)
    };
    assert_eq!(hear(&mut fixture, "192.0.2.9:7"), FromIcmp::Indication { client: alice.client });
    assert_eq!(hear(&mut fixture, "192.0.2.9:8"), FromIcmp::Indication { client: bob.client });
    assert_eq!(hear(&mut fixture, "192.0.2.8:77"), FromIcmp::Indication { client: bob.client });
    fixture.wait(1);
    // Those that are nobody's come to an end, too.
    let heard: Vec<FromIcmp> = (0..100).map(|_| hear(&mut fixture, "192.0.2.9:9")).collect();
    let silence = usize::from(ICMP_PER_SECOND_MAX);
    let expected = |index| if index == silence { FromIcmp::Silence } else { FromIcmp::Ignore };
    assert!(heard.iter().enumerate().all(|(index, &heard)| heard == expected(index)), "{heard:?}");
    let nobody: SocketAddr = (relayed.ip(), relayed.port() + 1).into();
    assert_eq!(fixture.server.icmp_recipient(nobody, peer("192.0.2.9:7")), None);
}
