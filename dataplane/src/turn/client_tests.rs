//! The client against a scripted server that enforces the lifetimes of RFC 8656, in virtual time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::drops::Cause;
use crate::stun::{
    AddressFamily, AttributeType, ChannelNumber, Class, ErrorCode, Key, Message, Method, TransactionId,
    Writer,
};

const SERVER: &str = "192.0.2.1:3478";
const RELAYED: &str = "192.0.2.1:50000";
const MAPPED: &str = "198.51.100.7:1024";
const PEER: &str = "203.0.113.5:51820";
const OTHER: &str = "203.0.113.6:51820";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What the server knows of the one client, and how it misbehaves.
pub(crate) struct Server {
    nonce: Vec<u8>,
    pub(crate) allocated_until: Option<Instant>,
    lifetime: u32,
    pub(crate) channels: BTreeMap<u16, (SocketAddr, Instant)>,
    permissions: BTreeMap<IpAddr, Instant>,
    forbidden: Option<IpAddr>,
    mismatches: u32,
    silent: bool,
    always_stale: bool,
    /// Allocate and Refresh are refused with 300 and this server, in a signed message or not.
    alternate: Option<(SocketAddr, bool)>,
    password: &'static str,
    requests: Vec<(Method, bool)>,
    /// Which ports were asked for again.
    pub(crate) ports: Vec<u16>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self {
            nonce: b"first".to_vec(),
            allocated_until: None,
            lifetime: 600,
            channels: BTreeMap::new(),
            permissions: BTreeMap::new(),
            forbidden: None,
            mismatches: 0,
            silent: false,
            always_stale: false,
            alternate: None,
            password: "secret",
            requests: Vec::new(),
            ports: Vec::new(),
        }
    }

    pub(crate) fn count(&self, method: Method) -> usize {
        self.requests.iter().filter(|request| request.0 == method).count()
    }

    fn has_allocation(&self, now: Instant) -> bool {
        self.allocated_until.is_some_and(|until| until > now)
    }

    pub(crate) fn answer(&mut self, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
        let message = Message::parse(bytes).expect("the client writes well-formed messages");
        assert_eq!(message.class(), Class::Request);
        let signed = message.has_integrity();
        self.requests.push((message.method(), signed));
        if self.silent {
            return None;
        }
        let key = Key::long_term(b"alice", b"realm", self.password.as_bytes());
        let nonce = self.nonce.clone();
        let refuse = |code: u16| {
            Some(respond(&message, Class::Error, None, |writer| {
                writer.error_code(ErrorCode(code), "no");
                writer.realm(b"realm");
                writer.nonce(&nonce);
            }))
        };
        if !signed || !message.verify_integrity(&key) {
            return refuse(401);
        }
        if self.always_stale || message.nonce() != Some(&self.nonce) {
            return refuse(438);
        }
        let may_leave = message.first(AttributeType::TOWPATH).is_some();
        if let Some((to, signed)) = self.alternate.filter(|_| may_leave) {
            return Some(respond(&message, Class::Error, signed.then_some(&key), |writer| {
                writer.error_code(ErrorCode(300), "elsewhere").alternate_server(to);
            }));
        }
        let code = self.act(&message, now);
        if code != 0 {
            return refuse(code);
        }
        Some(respond(&message, Class::Success, Some(&key), |writer| {
            if message.method() == Method::Allocate {
                writer.xor_relayed_address(address(RELAYED)).xor_mapped_address(address(MAPPED));
            }
            writer.lifetime(self.lifetime);
        }))
    }

    /// Does what a signed request asks; zero or an error code.
    fn act(&mut self, message: &Message<'_>, now: Instant) -> u16 {
        let allocated = self.has_allocation(now);
        match message.method() {
            Method::Allocate if self.mismatches > 0 || allocated => {
                self.mismatches = self.mismatches.saturating_sub(1);
                return 437;
            }
            Method::Allocate => {
                assert_eq!(message.requested_transport(), Ok(Some(17)));
                let [high, low, 0, 0] = *message.first(AttributeType::TOWPATH).expect("ours") else {
                    panic!("four bytes")
                };
                self.ports.push(u16::from_be_bytes([high, low]));
                self.allocated_until = Some(now + Duration::from_secs(self.lifetime.into()));
                self.channels.clear();
                self.permissions.clear();
            }
            Method::Refresh if message.lifetime() == Ok(Some(0)) => self.allocated_until = None,
            _ if !allocated => return 437,
            Method::Refresh => {
                self.allocated_until = Some(now + Duration::from_secs(self.lifetime.into()));
            }
            Method::CreatePermission | Method::ChannelBind => {
                let peer = message.xor_peer_address().unwrap().unwrap();
                if self.forbidden == Some(peer.ip()) {
                    return 403;
                }
                self.permissions.insert(peer.ip(), now + Duration::from_secs(300));
                if let Some(number) = message.channel_number().unwrap() {
                    self.channels.insert(number.get(), (peer, now + Duration::from_secs(600)));
                }
            }
            other => panic!("unexpected {other:?}"),
        }
        0
    }
}

fn respond(
    request: &Message<'_>,
    class: Class,
    key: Option<&Key>,
    fill: impl FnOnce(&mut Writer<'_>),
) -> Vec<u8> {
    let mut buffer = [0; 1000];
    let mut writer = Writer::new(&mut buffer, class, request.method(), request.transaction()).unwrap();
    fill(&mut writer);
    let len = writer.finish(key, false).unwrap();
    buffer[..len].to_vec()
}

fn client_with(password: &str, now: Instant) -> Client {
    let config = ClientConfig {
        server: address(SERVER),
        username: "alice".to_owned(),
        password: Zeroizing::new(password.to_owned()),
        family: Some(AddressFamily::V4),
        seed: 7,
    };
    Client::new(config, now)
}

#[expect(clippy::disallowed_methods, reason = "an Instant has no other origin; time itself is virtual")]
fn start() -> Instant {
    Instant::now()
}

/// Passes everything to and fro until both are quiet.
fn settle(client: &mut Client, server: &mut Server, now: Instant) {
    for _ in 0..10_000 {
        let Some(bytes) = client.poll_transmit() else { return };
        if let Some(answer) = server.answer(&bytes, now) {
            assert_eq!(client.handle_input(&answer, now), Input::Consumed);
        }
    }
    panic!("client and server talk for ever");
}

/// Runs both until `until`, jumping from deadline to deadline.
fn run(client: &mut Client, server: &mut Server, mut now: Instant, until: Instant) {
    settle(client, server, now);
    while let Some(deadline) = client.poll_timeout().filter(|&deadline| deadline <= until) {
        assert!(deadline > now, "a deadline that does not move is a busy loop");
        now = deadline;
        client.handle_timeout(now);
        settle(client, server, now);
    }
}

fn events(client: &mut Client) -> Vec<Event> {
    std::iter::from_fn(|| client.poll_event()).collect()
}

fn reasons(client: &mut Client) -> Vec<String> {
    let reason = |event| match event {
        Event::Failed { reason } => Some(reason),
        _ => None,
    };
    events(client).into_iter().filter_map(reason).collect()
}

/// A client with an allocation and a channel to [`PEER`].
fn bound(now: Instant) -> (Client, Server, ChannelNumber) {
    let (mut client, mut server) = (client_with("secret", now), Server::new());
    let number = client.bind_channel(address(PEER), now).unwrap();
    settle(&mut client, &mut server, now);
    events(&mut client);
    assert_eq!(client.channel(address(PEER)), Some(number));
    (client, server, number)
}

#[test]
fn allocates_after_one_challenge_and_binds() {
    let now = start();
    let (mut client, mut server) = (client_with("secret", now), Server::new());
    let number = client.bind_channel(address(PEER), now).unwrap();
    assert_eq!(client.channel(address(PEER)), None);
    settle(&mut client, &mut server, now);
    assert_eq!(
        events(&mut client),
        [
            Event::Allocated { relayed: address(RELAYED), mapped: Some(address(MAPPED)) },
            Event::ChannelBound { peer: address(PEER), number },
        ]
    );
    assert_eq!(
        server.requests,
        [(Method::Allocate, false), (Method::Allocate, true), (Method::ChannelBind, true)]
    );
    assert_eq!(client.channel(address(PEER)), Some(number));
    assert_eq!(client.channel(address(OTHER)), None);
}

#[test]
fn the_address_family_is_asked_for() {
    let now = start();
    let mut client = client_with("secret", now);
    let bytes = client.poll_transmit().unwrap();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.requested_address_family(), Ok(Some(AddressFamily::V4)));
    assert_eq!(message.requested_transport(), Ok(Some(17)));
}

#[test]
fn channel_data_comes_in_under_its_peer() {
    let now = start();
    let (mut client, _server, number) = bound(now);
    let [high, low] = number.get().to_be_bytes();
    let datagram = [&[high, low, 0, 5][..], b"hello", b"pad"].concat();
    assert_eq!(client.handle_input(&datagram, now), Input::Data { peer: address(PEER), payload: 4..9 });
    assert_eq!(client.handle_input(&[0x40, 9, 0, 0], now), Input::Ignored(Cause::NoChannel));
    assert_eq!(client.handle_input(&[0x40, 0, 0, 9, 1], now), Input::Ignored(Cause::MalformedOuter));
}

#[test]
fn data_indications_need_a_permission() {
    let now = start();
    let (mut client, _server, _) = bound(now);
    let indication = |peer| {
        let mut buffer = [0; 100];
        let mut writer =
            Writer::new(&mut buffer, Class::Indication, Method::Data, TransactionId([1; 12])).unwrap();
        writer.xor_peer_address(address(peer)).data(b"hello");
        let len = writer.finish(None, false).unwrap();
        buffer[..len].to_vec()
    };
    let datagram = indication(PEER);
    let Input::Data { peer, payload } = client.handle_input(&datagram, now) else { panic!("data") };
    assert_eq!((peer, &datagram[payload]), (address(PEER), &b"hello"[..]));
    assert_eq!(client.handle_input(&indication(OTHER), now), Input::Ignored(Cause::NoPermission));
}

#[test]
fn retransmits_on_the_schedule_of_the_rfc_and_says_why_it_gave_up() {
    let begin = start();
    let mut client = client_with("secret", begin);
    let first = client.poll_transmit().unwrap();
    let mut sent_ms = Vec::new();
    while events_are_empty(&mut client) {
        let now = client.poll_timeout().unwrap();
        client.handle_timeout(now);
        if let Some(bytes) = client.poll_transmit() {
            assert_eq!(bytes, first, "a retransmission is the same message");
            sent_ms.push((now - begin).as_millis());
        } else {
            assert_eq!((now - begin).as_millis(), 39_500);
        }
    }
    assert_eq!(sent_ms, [500, 1_500, 3_500, 7_500, 15_500, 31_500]);

    fn events_are_empty(client: &mut Client) -> bool {
        match client.poll_event() {
            None => true,
            Some(Event::Failed { reason }) => {
                assert!(reason.contains("does not answer"), "{reason}");
                false
            }
            Some(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_dead_server_is_tried_for_ever_with_bounded_pauses_and_taken_up_again() {
    let begin = start();
    let (mut client, mut server, _) = bound(begin);
    server.silent = true;
    let hour = begin + Duration::from_secs(3_600);
    run(&mut client, &mut server, begin, hour);
    assert_eq!(client.channel(address(PEER)), None);
    let events = events(&mut client);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::ChannelLost { .. })).count(), 1);
    let failures = events.iter().filter(|event| matches!(event, Event::Failed { .. })).count();
    assert!((1..=2).contains(&failures), "said once for each reason: {events:?}");
    let attempts = server.count(Method::Allocate) / 7;
    assert!((25..60).contains(&attempts), "about every 100 s: {attempts}");

    server.silent = false;
    run(&mut client, &mut server, hour, hour + Duration::from_secs(120));
    assert!(client.channel(address(PEER)).is_some());
}

#[test]
fn wrong_credentials_are_named_and_not_hammered() {
    let begin = start();
    let (mut client, mut server) = (client_with("wrong", begin), Server::new());
    run(&mut client, &mut server, begin, begin + Duration::from_secs(600));
    let reasons = reasons(&mut client);
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].contains("alice") && reasons[0].contains("RelayPasswordFile"), "{reasons:?}");
    // 1, 2, 4 … 60 s: two requests each.
    assert!(server.requests.len() <= 2 * 18, "{}", server.requests.len());
}

#[test]
fn a_stale_nonce_is_replaced_without_a_word() {
    let now = start();
    let (mut client, mut server, _) = bound(now);
    server.nonce = b"second".to_vec();
    client.bind_channel(address(OTHER), now).unwrap();
    settle(&mut client, &mut server, now);
    assert!(client.channel(address(OTHER)).is_some());
    assert!(reasons(&mut client).is_empty());
}

#[test]
fn a_server_whose_nonces_are_always_stale_is_given_up() {
    let now = start();
    let (mut client, mut server) = (client_with("secret", now), Server::new());
    server.always_stale = true;
    settle(&mut client, &mut server, now);
    assert_eq!(server.requests.len(), 1 + 4);
    assert!(reasons(&mut client)[0].contains("438"));
}

#[test]
fn a_lost_allocation_is_made_anew_with_the_same_channels() {
    let now = start();
    let (mut client, mut server, number) = bound(now);
    // The server restarts and forgets.
    server.allocated_until = None;
    server.nonce = b"after the restart".to_vec();
    run(&mut client, &mut server, now, now + Duration::from_secs(320));
    let events = events(&mut client);
    let position = |wanted: &Event| events.iter().position(|event| event == wanted);
    let lost = position(&Event::ChannelLost { peer: address(PEER) }).expect("lost");
    let bound = position(&Event::ChannelBound { peer: address(PEER), number }).expect("bound again");
    assert!(lost < bound, "{events:?}");
    assert_eq!(client.channel(address(PEER)), Some(number));
}

#[test]
fn an_old_allocation_in_the_way_is_deleted() {
    let now = start();
    let (mut client, mut server) = (client_with("secret", now), Server::new());
    server.allocated_until = Some(now + Duration::from_secs(3_600));
    run(&mut client, &mut server, now, now + Duration::from_secs(3));
    assert!(events(&mut client).iter().any(|event| matches!(event, Event::Allocated { .. })));
    assert_eq!(server.count(Method::Refresh), 1);
}

#[test]
fn everything_is_renewed_before_it_expires() {
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    let other: IpAddr = address(OTHER).ip();
    assert!(client.create_permission(other, begin));
    let mut now = begin;
    for _ in 0..4 * 60 * 6 {
        let next = now + Duration::from_secs(10);
        run(&mut client, &mut server, now, next);
        now = next;
        assert!(server.has_allocation(now));
        assert!(server.channels[&number.get()].1 > now, "channel expired");
        assert!(server.permissions[&address(PEER).ip()] > now, "permission of the channel expired");
        assert!(server.permissions[&other] > now, "permission expired");
    }
    assert!(events(&mut client).is_empty());
    // Four hours: a refresh each 300 s, a rebinding each 480 to 540 s, two permissions each 240 s.
    assert_eq!(server.count(Method::Refresh), 48);
    assert!((27..=31).contains(&server.count(Method::ChannelBind)));
    assert!(server.count(Method::CreatePermission) <= 2 * 60 + 1);
}

#[test]
fn a_forbidden_peer_is_named_and_does_not_harm_the_others() {
    let begin = start();
    let (mut client, mut server, _) = bound(begin);
    server.forbidden = Some(address(OTHER).ip());
    client.bind_channel(address(OTHER), begin).unwrap();
    run(&mut client, &mut server, begin, begin + Duration::from_secs(30));
    let reasons = reasons(&mut client);
    assert_eq!(reasons.len(), 1);
    assert!(reasons[0].contains(OTHER) && reasons[0].contains("--allow-peer"), "{reasons:?}");
    assert!(client.channel(address(PEER)).is_some());
    assert!(client.channel(address(OTHER)).is_none());
    server.forbidden = None;
    run(&mut client, &mut server, begin + Duration::from_secs(30), begin + Duration::from_secs(90));
    assert!(client.channel(address(OTHER)).is_some(), "tried again after a minute");
}

#[test]
fn a_forbidden_peer_is_asked_for_again_every_five_seconds_while_it_is_missed() {
    let mut now = start();
    let (mut client, mut server, _) = bound(now);
    server.forbidden = Some(address(OTHER).ip());
    client.bind_channel(address(OTHER), now).unwrap();
    let end = now + 30 * SECOND;
    while now < end {
        client.wanted(now);
        run(&mut client, &mut server, now, now + SECOND / 4);
        now += SECOND / 4;
    }
    let asked = server.count(Method::ChannelBind);
    assert!((5..=9).contains(&asked), "{asked}");
    server.forbidden = None;
    let end = now + 6 * SECOND;
    while now < end {
        client.wanted(now);
        run(&mut client, &mut server, now, now + SECOND / 4);
        now += SECOND / 4;
    }
    assert!(client.channel(address(OTHER)).is_some());
    let asked = server.count(Method::ChannelBind);
    client.wanted(now);
    run(&mut client, &mut server, now, now + 30 * SECOND);
    assert_eq!(server.count(Method::ChannelBind), asked, "nothing is refused any more");
}

#[test]
fn an_unsigned_success_to_a_signed_request_is_not_believed() {
    let now = start();
    let (mut client, mut server, _) = bound(now);
    client.bind_channel(address(OTHER), now).unwrap();
    let request = client.poll_transmit().unwrap();
    let parsed = Message::parse(&request).unwrap();
    let forged = respond(&parsed, Class::Success, None, |_| {});
    assert_eq!(client.handle_input(&forged, now), Input::Ignored(Cause::Unauthenticated));
    let forged = respond(&parsed, Class::Success, Some(&Key::from_bytes(b"guess")), |_| {});
    assert_eq!(client.handle_input(&forged, now), Input::Ignored(Cause::Unauthenticated));
    assert_eq!(client.channel(address(OTHER)), None);
    let genuine = server.answer(&request, now).unwrap();
    assert_eq!(client.handle_input(&genuine, now), Input::Consumed);
    assert!(client.channel(address(OTHER)).is_some());
    assert_eq!(client.handle_input(&genuine, now), Input::Consumed, "repeated by the network");
    assert!(client.channel(address(OTHER)).is_some());
}

#[test]
fn close_deletes_the_allocation_and_is_silent_afterwards() {
    let now = start();
    let (mut client, mut server, _) = bound(now);
    client.close(now);
    settle(&mut client, &mut server, now);
    assert!(!server.has_allocation(now));
    assert_eq!(client.poll_timeout(), None);
    client.handle_timeout(now + Duration::from_secs(10_000));
    client.bind_channel(address(OTHER), now);
    assert_eq!(client.poll_transmit(), None);
    assert_eq!(client.channel(address(PEER)), None);
}

#[test]
fn a_thousand_peers_are_bound_a_few_at_a_time() {
    let now = start();
    let (mut client, mut server) = (client_with("secret", now), Server::new());
    let peers: Vec<SocketAddr> = (1..=1_000).map(|port| SocketAddr::new(address(PEER).ip(), port)).collect();
    for &peer in &peers {
        client.bind_channel(peer, now).unwrap();
    }
    for _ in 0..2 {
        let bytes = client.poll_transmit().unwrap();
        let answer = server.answer(&bytes, now).unwrap();
        client.handle_input(&answer, now);
    }
    let burst: Vec<_> = std::iter::from_fn(|| client.poll_transmit()).collect();
    assert_eq!(burst.len(), 64);
    assert!(client.poll_timeout().unwrap() > now, "no busy loop while the rest waits");
    for bytes in burst {
        let answer = server.answer(&bytes, now).unwrap();
        client.handle_input(&answer, now);
    }
    settle(&mut client, &mut server, now);
    assert!(peers.iter().all(|&peer| client.channel(peer).is_some()));
}

#[test]
fn numbers_run_out_and_come_back_after_they_have_rested() {
    let now = start();
    let mut client = client_with("secret", now);
    let peer = |port| SocketAddr::new(address(PEER).ip(), port);
    for port in 1..=4_096 {
        assert!(client.bind_channel(peer(port), now).is_some());
    }
    assert_eq!(client.bind_channel(peer(5_000), now), None);
    let first = client.bind_channel(peer(1), now).unwrap();
    client.release_channel(peer(1), now);
    assert_eq!(client.bind_channel(peer(5_000), now + Duration::from_secs(899)), None);
    assert_eq!(client.bind_channel(peer(5_000), now + Duration::from_secs(900)), Some(first));
}

#[test]
fn a_released_channel_is_forgotten() {
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    client.release_channel(address(PEER), begin);
    assert_eq!(client.channel(address(PEER)), None);
    let [high, low] = number.get().to_be_bytes();
    assert_eq!(client.handle_input(&[high, low, 0, 0], begin), Input::Ignored(Cause::NoChannel));
    run(&mut client, &mut server, begin, begin + Duration::from_secs(3_600));
    assert_eq!(server.count(Method::ChannelBind), 1);
    assert_eq!(server.count(Method::CreatePermission), 0);
}

#[test]
fn a_peer_that_comes_back_has_the_number_that_the_server_knows() {
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    client.release_channel(address(PEER), begin);
    let other = SocketAddr::new(address(PEER).ip(), 1);
    let next = client.bind_channel(other, begin);
    assert!(next.is_some_and(|next| next != number), "it rests for others");
    assert_eq!(client.bind_channel(address(PEER), begin), Some(number));
    settle(&mut client, &mut server, begin);
    assert_eq!(client.channel(address(PEER)), Some(number));
}

#[test]
fn a_challenge_without_realm_or_with_an_endless_one_is_refused_not_looped() {
    for realm in [0, 764] {
        let now = start();
        let mut client = client_with("secret", now);
        let request = client.poll_transmit().unwrap();
        let answer = respond(&Message::parse(&request).unwrap(), Class::Error, None, |writer| {
            writer.error_code(ErrorCode(401), "").nonce(b"n");
            if realm > 0 {
                writer.attribute(AttributeType::REALM, &vec![b'r'; realm]);
            }
        });
        assert_eq!(client.handle_input(&answer, now), Input::Consumed);
        assert_eq!(client.poll_transmit(), None);
        assert_eq!(reasons(&mut client).len(), 1);
        assert!(client.poll_timeout().unwrap() > now);
    }
}

#[test]
fn an_allocation_of_the_other_family_is_given_up_for_one_of_the_family_that_is_needed() {
    let now = start();
    let (mut client, mut server, _) = bound(now);
    while client.poll_event().is_some() {}
    client.set_family(AddressFamily::V4, now);
    assert_eq!((client.poll_transmit(), client.poll_event()), (None, None), "it is that already");
    client.set_family(AddressFamily::V6, now);
    assert_eq!(client.poll_event(), Some(Event::Deallocated));
    assert_eq!(client.poll_event(), Some(Event::ChannelLost { peer: address(PEER) }));
    assert_eq!(client.channel(address(PEER)), None);
    let [delete, allocate] = [(); 2].map(|()| client.poll_transmit().unwrap());
    let delete = Message::parse(&delete).unwrap();
    assert_eq!((delete.method(), delete.lifetime()), (Method::Refresh, Ok(Some(0))));
    let request = Message::parse(&allocate).unwrap();
    assert_eq!(request.method(), Method::Allocate);
    assert_eq!(request.requested_address_family(), Ok(Some(AddressFamily::V6)));
    // The channel is wanted as before.
    server.allocated_until = None;
    server.channels.clear();
    let answer = server.answer(&allocate, now).unwrap();
    assert_eq!(client.handle_input(&answer, now), Input::Consumed);
    settle(&mut client, &mut server, now);
    assert!(client.channel(address(PEER)).is_some());
}

#[test]
fn a_user_name_too_long_to_send_is_said_at_once() {
    let now = start();
    let mut config = ClientConfig {
        server: address(SERVER),
        username: "u".repeat(508),
        password: Zeroizing::new(String::new()),
        family: None,
        seed: 1,
    };
    config.username.push('u');
    let mut client = Client::new(config, now);
    assert_eq!(client.poll_transmit(), None);
    assert!(reasons(&mut client)[0].contains("RelayUsername"));
}

proptest! {
    #[test]
    fn no_datagram_harms(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let now = start();
        let (mut client, _server, number) = bound(now);
        for datagram in &datagrams {
            if let Input::Data { payload, .. } = client.handle_input(datagram, now) {
                prop_assert!(payload.end <= datagram.len());
            }
        }
        prop_assert_eq!(client.channel(address(PEER)), Some(number));
        prop_assert!(client.poll_transmit().is_none());
    }

    #[test]
    fn no_flipped_bit_in_a_response_harms(bit in 0_usize..800, method in 0..3) {
        let now = start();
        let (mut client, mut server) = (client_with("secret", now), Server::new());
        for step in 0..=method {
            let Some(request) = client.poll_transmit() else { break };
            let mut answer = server.answer(&request, now).unwrap();
            if step == method {
                let bit = bit % (answer.len() * 8);
                answer[bit / 8] ^= 1 << (bit % 8);
            }
            client.handle_input(&answer, now);
        }
        // Whatever it did, the client gets its channel in the end.
        client.bind_channel(address(PEER), now);
        run(&mut client, &mut server, now, now + Duration::from_secs(300));
        prop_assert!(client.channel(address(PEER)).is_some());
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_server_that_was_started_again_is_noticed_by_its_silence() {
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    let now = begin + 10 * SECOND;
    (server.allocated_until, server.nonce) = (None, b"second".to_vec());
    client.sent(now);
    run(&mut client, &mut server, now, now + 499 * SECOND / 1000);
    assert!(!server.has_allocation(now), "half a second of silence is nothing");
    run(&mut client, &mut server, now, now + SECOND / 2);
    assert_eq!(client.channel(address(PEER)), Some(number), "bound again at once");
    let seen = events(&mut client);
    assert!(seen.contains(&Event::ChannelLost { peer: address(PEER) }), "{seen:?}");
    assert!(seen.contains(&Event::ChannelBound { peer: address(PEER), number }), "{seen:?}");
}

#[test]
fn a_server_that_is_well_is_asked_once_a_second_while_its_peers_only_listen() {
    let begin = start();
    let (mut client, mut server, _) = bound(begin);
    let before = server.count(Method::Refresh);
    let mut now = begin;
    while now < begin + 60 * SECOND {
        client.sent(now);
        let next = now + SECOND / 10;
        run(&mut client, &mut server, now, next);
        now = next;
    }
    let asked = server.count(Method::Refresh) - before;
    assert!((45..=62).contains(&asked), "{asked}");
}

#[test]
fn a_silent_server_is_given_up_soon_and_asked_often_until_it_is_back() {
    let begin = start();
    let (mut client, mut server, _) = bound(begin);
    server.silent = true;
    client.sent(begin);
    run(&mut client, &mut server, begin, begin + 2 * SECOND);
    let seen = events(&mut client);
    assert!(seen.contains(&Event::Unusable { alternate: None }), "{seen:?}");
    run(&mut client, &mut server, begin + 2 * SECOND, begin + 20 * SECOND);
    (server.silent, server.allocated_until) = (false, None);
    let back = begin + 20 * SECOND;
    run(&mut client, &mut server, back, back + SECOND / 2);
    assert!(client.channel(address(PEER)).is_some(), "within half a second");
}

#[test]
fn over_a_connection_nothing_is_sent_twice_and_silence_is_noticed_all_the_same() {
    let begin = start();
    let (mut client, mut server) = (client_with("secret", begin), Server::new());
    client.over_stream(begin);
    server.silent = true;
    run(&mut client, &mut server, begin, begin + 39 * SECOND);
    assert_eq!(server.requests.len(), 1, "TCP repeats what is lost");
    run(&mut client, &mut server, begin + 39 * SECOND, begin + 42 * SECOND);
    assert_eq!(server.requests.len(), 2, "Ti of RFC 8489, and a pause");
    let seen = events(&mut client);
    assert!(seen.iter().any(|event| matches!(event, Event::Failed { .. })), "{seen:?}");
    // Who waits for it finds it silent as soon as over UDP.
    client.hurry(begin + 42 * SECOND);
    run(&mut client, &mut server, begin + 42 * SECOND, begin + 44 * SECOND);
    let seen = events(&mut client);
    assert!(seen.contains(&Event::Unusable { alternate: None }), "{seen:?}");
}

#[test]
fn the_end_of_a_connection_is_that_of_the_allocation_which_is_made_again_at_once() {
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    client.over_stream(begin);
    let end = begin + 3 * SECOND;
    client.disconnected("it was closed", end);
    assert_eq!(client.channel(address(PEER)), None);
    let seen = events(&mut client);
    assert!(seen.contains(&Event::ChannelLost { peer: address(PEER) }), "{seen:?}");
    assert!(seen.contains(&Event::Unusable { alternate: None }), "{seen:?}");
    assert!(client.has_transmit(), "no pause: it lasted");
    // The server is being started again, and refuses at first.
    client.disconnected("connection refused", end);
    assert!(!client.has_transmit(), "a pause: it is not hammered");
    let refused = reasons(&mut client);
    assert!(refused.iter().any(|reason| reason.contains("connection refused")), "{refused:?}");
    server.allocated_until = None;
    run(&mut client, &mut server, end, end + SECOND);
    assert_eq!(client.channel(address(PEER)), Some(number), "within a second");
    // After the last word there is none.
    client.close(end + SECOND);
    events(&mut client);
    client.disconnected("it was closed", end + SECOND);
    assert_eq!(events(&mut client), []);
}

#[test]
fn another_server_is_believed_only_when_the_message_is_signed() {
    for (signed, expected) in [(true, Some(address(OTHER))), (false, None)] {
        let now = start();
        let (mut client, mut server) = (client_with("secret", now), Server::new());
        server.alternate = Some((address(OTHER), signed));
        settle(&mut client, &mut server, now);
        let seen = events(&mut client);
        assert!(seen.contains(&Event::Unusable { alternate: expected }), "{seen:?}");
    }
}

#[test]
fn new_credentials_are_used_at_once_and_from_the_next_request_on() {
    let begin = start();
    let (mut client, mut server) = (client_with("wrong", begin), Server::new());
    settle(&mut client, &mut server, begin);
    assert!(events(&mut client).contains(&Event::Unauthorized));
    client.set_credentials("alice".to_owned(), Zeroizing::new("secret".to_owned()), begin);
    settle(&mut client, &mut server, begin);
    assert!(server.has_allocation(begin), "no pause");
    // A change while the allocation stands: the next Refresh has the new password.
    server.password = "third";
    client.set_credentials("alice".to_owned(), Zeroizing::new("third".to_owned()), begin);
    events(&mut client);
    run(&mut client, &mut server, begin, begin + 400 * SECOND);
    assert_eq!(events(&mut client), []);
    assert!(server.allocated_until.is_some_and(|until| until > begin + 600 * SECOND));
}

#[test]
fn a_server_that_was_away_for_long_is_found_soon_when_somebody_waits_for_it() {
    let begin = start();
    let (mut client, mut server, _) = bound(begin);
    (server.silent, server.allocated_until) = (true, None);
    client.sent(begin);
    let mut now = begin + 600 * SECOND;
    run(&mut client, &mut server, begin, now);
    let before = server.requests.len();
    let wait = |client: &mut Client, server: &mut Server, from: Instant, until: Instant| {
        let mut now = from;
        while now < until && client.channel(address(PEER)).is_none() {
            client.wanted(now);
            run(client, server, now, now + SECOND / 20);
            now += SECOND / 20;
        }
        now
    };
    now = wait(&mut client, &mut server, now, now + 60 * SECOND);
    let asked = server.requests.len() - before;
    assert!((120..=220).contains(&asked), "two to four a second: {asked}");
    server.silent = false;
    let back = now;
    now = wait(&mut client, &mut server, now, now + 10 * SECOND);
    assert!(now - back <= 3 * SECOND / 2, "after {:?}", now - back);
    assert!(client.channel(address(PEER)).is_some());
}

#[test]
fn a_server_that_refuses_is_not_asked_more_often_because_somebody_waits() {
    let begin = start();
    let (mut client, mut server) = (client_with("wrong", begin), Server::new());
    let mut now = begin;
    while now < begin + 600 * SECOND {
        client.wanted(now);
        run(&mut client, &mut server, now, now + SECOND);
        now += SECOND;
    }
    assert!(server.requests.len() <= 2 * 18, "{}", server.requests.len());
}

#[test]
fn an_allocation_that_is_gone_is_said_to_be_and_its_port_asked_for_again() {
    let begin = start();
    let (mut client, mut server, _) = bound(begin);
    assert_eq!(server.ports, [0]);
    server.allocated_until = None;
    let now = begin + 10 * SECOND;
    client.sent(now);
    run(&mut client, &mut server, now, now + SECOND);
    let seen = events(&mut client);
    assert_eq!(seen.iter().filter(|event| **event == Event::Deallocated).count(), 1, "{seen:?}");
    assert_eq!(server.ports, [0, address(RELAYED).port()]);
    // Also by the client that is made when this server is gone back to.
    let mut client = client_with("secret", now);
    client.prefer(address("192.0.2.1:50007"));
    server.allocated_until = None;
    settle(&mut client, &mut server, now);
    assert_eq!(server.ports.last(), Some(&50_007));
}

#[test]
fn what_anybody_could_have_sent_does_not_hide_that_the_server_is_gone() {
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    let mut now = begin + 10 * SECOND;
    (server.allocated_until, server.nonce) = (None, b"second".to_vec());
    let [high, low] = number.get().to_be_bytes();
    let forged = [high, low, 0, 1, 7, 0, 0, 0];
    for _ in 0..20 {
        client.sent(now);
        assert!(matches!(client.handle_input(&forged, now), Input::Data { .. } | Input::Ignored(_)));
        run(&mut client, &mut server, now, now + SECOND / 20);
        now += SECOND / 20;
    }
    assert!(server.has_allocation(now), "made again within a second");
    // What has been found authentic keeps it from being asked.
    let asked = server.requests.len();
    for _ in 0..40 {
        client.sent(now);
        client.heard_data(now);
        run(&mut client, &mut server, now, now + SECOND / 20);
        now += SECOND / 20;
    }
    assert_eq!(server.requests.len(), asked);
}

#[test]
fn a_hint_makes_the_client_ask_and_a_signed_answer_sends_it_elsewhere_with_its_allocation_kept() {
    let hint = {
        let mut buffer = [0; 20];
        let id = TransactionId([1; 12]);
        let writer = Writer::new(&mut buffer, Class::Indication, Method::Binding, id).unwrap();
        writer.finish(None, false).unwrap();
        buffer
    };
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    let refreshes = server.count(Method::Refresh);
    // Anybody could send that: it costs no more than a request in three seconds, and changes nothing.
    for tenth in 0..60 {
        let now = begin + SECOND * tenth / 10;
        assert_eq!(client.handle_input(&hint, now), Input::Consumed);
        run(&mut client, &mut server, now, now + SECOND / 10);
    }
    assert!((1..=3).contains(&(server.count(Method::Refresh) - refreshes)));
    assert_eq!(events(&mut client), []);
    server.alternate = Some((address(OTHER), true));
    let now = begin + 20 * SECOND;
    assert_eq!(client.handle_input(&hint, now), Input::Consumed);
    run(&mut client, &mut server, now, now + 2 * SECOND);
    assert_eq!(events(&mut client), [Event::Unusable { alternate: Some(address(OTHER)) }]);
    assert_eq!(client.channel(address(PEER)), Some(number), "until it has left");
    // It does.
    client.close(now + 2 * SECOND);
    settle(&mut client, &mut server, now + 2 * SECOND);
    assert!(!server.has_allocation(now + 2 * SECOND));
    // Unsigned it would be a refusal.
    let (mut client, mut server, _) = bound(begin);
    server.alternate = Some((address(OTHER), false));
    assert_eq!(client.handle_input(&hint, begin), Input::Consumed);
    run(&mut client, &mut server, begin, begin + 2 * SECOND);
    assert!(events(&mut client).contains(&Event::Unusable { alternate: None }));
}

#[test]
fn who_only_listens_notices_too_that_the_server_was_started_again() {
    let begin = start();
    let (mut client, mut server, number) = bound(begin);
    let now = begin + 10 * SECOND;
    client.heard_data(now);
    (server.allocated_until, server.nonce) = (None, b"second".to_vec());
    run(&mut client, &mut server, now, now + SECOND);
    assert!(server.has_allocation(now + SECOND));
    assert_eq!(client.channel(address(PEER)), Some(number));
}
