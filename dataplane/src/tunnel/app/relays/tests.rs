//! Which channels there are, as peers come, move and go.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use super::*;
use crate::config::{LoginKind, Password};
use crate::turn::Event;
use crate::turn::client_tests::Server;

const SERVER: &str = "192.0.2.1:3478";
const SECOND: Duration = Duration::from_secs(1);
const FIRST: PeerIndex = PeerIndex(0);
const SECOND_PEER: PeerIndex = PeerIndex(1);

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// The peer from one port after the other, as behind a NAT that is started again.
fn at(port: u16) -> SocketAddr {
    SocketAddr::new(address("203.0.113.5:1").ip(), port)
}

fn choice(server: &str) -> RelayChoice {
    let file = "password".into();
    RelayChoice {
        server: Some(address(server)),
        carrier: Carrier::Udp,
        login: Login { username: Some("alice".to_owned()), file, kind: LoginKind::Secret },
        credentials: Credentials {
            username: "alice".to_owned(),
            password: Password::new("secret"),
            until: Some(Duration::MAX),
            world_readable: false,
        },
    }
}

struct World {
    relay: Relay,
    server: Server,
    now: Instant,
}

impl World {
    /// A tunnel with one peer behind the relay.
    fn new(choices: &[&str]) -> Self {
        Self::with(choices, vec![(FIRST, at(1))], HashMap::new())
    }

    fn with(
        choices: &[&str],
        peers: Vec<(PeerIndex, SocketAddr)>,
        policies: HashMap<PublicKey, Policy>,
    ) -> Self {
        let now = Instant::now();
        let choices = choices.iter().map(|server| choice(server)).collect();
        let plan = RelayPlan { choices, peers, policies, family: None, seed: 7 };
        let mut world = Self { relay: Relay::new(plan, now), server: Server::new(), now };
        world.settle();
        world
    }

    /// Carries messages until there are none, and does what the endpoint does with what happened.
    fn settle(&mut self) {
        while let Some(bytes) = self.relay.client.poll_transmit() {
            if let Some(answer) = self.server.answer(&bytes, self.now) {
                assert_eq!(self.relay.handle_input(&answer, self.now), Input::Consumed);
            }
        }
        while let Some(event) = self.relay.client.poll_event() {
            match event {
                Event::ChannelBound { .. } => self.relay.release_left(self.now),
                Event::Allocated { relayed, .. } => self.relay.note_address(relayed),
                _ => {}
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some(due) = self.relay.client.poll_timeout().filter(|due| *due <= end) {
            self.now = due;
            self.relay.client.handle_timeout(due);
            self.settle();
        }
        self.now = end;
    }

    /// Where channels lead to that are kept: those that the server still has in an hour.
    fn kept(&mut self) -> Vec<SocketAddr> {
        self.pass(3_600 * SECOND);
        let now = self.now;
        let mut kept: Vec<_> =
            self.server.channels.values().filter(|(_, until)| *until > now).map(|(peer, _)| *peer).collect();
        kept.sort();
        kept
    }
}

#[test]
fn a_peer_that_moves_a_hundred_times_has_one_channel() {
    let mut world = World::new(&[SERVER]);
    for port in 2..=100 {
        world.relay.follow_peer(FIRST, at(port), world.now);
        assert!(world.relay.channel(at(port), world.now).is_none(), "not yet");
        assert!(world.relay.channel(at(port - 1), world.now).is_some(), "for what is under way");
        world.settle();
        assert!(world.relay.channel(at(port), world.now).is_some());
        assert!(world.relay.channel(at(port - 1), world.now).is_none());
    }
    assert_eq!(world.kept(), [at(100)]);
}

#[test]
fn a_peer_that_has_moved_is_there_after_the_next_allocation() {
    let mut world = World::new(&[SERVER]);
    world.relay.follow_peer(FIRST, at(2), world.now);
    world.settle();
    assert_eq!(world.relay.peer(FIRST), Some(at(2)));
    world.server.allocated_until = None;
    world.pass(700 * SECOND);
    assert!(world.relay.channel(at(2), world.now).is_some());
    assert_eq!(world.kept(), [at(2)]);
    // By another relay as well.
    let mut world = World::new(&[SERVER, "192.0.2.2:3478"]);
    world.relay.follow_peer(FIRST, at(2), world.now);
    world.settle();
    assert!(world.relay.go_on(None, &mut Vec::new(), world.now));
    world.server = Server::new();
    world.settle();
    assert_eq!(world.kept(), [at(2)]);
}

#[test]
fn channels_go_with_the_last_peer_that_has_them() {
    let mut world = World::new(&[SERVER]);
    let now = world.now;
    world.relay.set_peer(SECOND_PEER, at(1), now);
    world.relay.set_peer(FIRST, at(2), now);
    world.settle();
    assert!(world.relay.channel(at(1), now).is_some(), "it is the second's as well");
    world.relay.forget_peer(SECOND_PEER, now);
    assert!(world.relay.channel(at(1), now).is_none());
    assert_eq!(world.kept(), [at(2)]);
    let now = world.now;
    world.relay.forget_peer(FIRST, now);
    assert!(world.kept().is_empty());
}

#[test]
fn nobody_gets_a_channel_by_having_something_sent_to_him() {
    let mut world = World::new(&[SERVER]);
    // As the answer to a handshake that is not known to be authentic.
    assert!(world.relay.channel(at(9), world.now).is_none());
    assert_eq!(world.kept(), [at(1)]);
}

#[test]
fn each_relay_is_asked_under_other_transaction_ids_and_for_the_port_of_before() {
    let mut world = World::new(&[SERVER, "192.0.2.2:3478"]);
    let first_words = |relay: &mut Relay, now| {
        assert!(relay.go_on(None, &mut Vec::new(), now));
        relay.client.poll_transmit().expect("an Allocate")
    };
    let now = world.now;
    let [one, other] = [first_words(&mut world.relay, now), first_words(&mut world.relay, now)];
    assert_ne!(one[8..20], other[8..20]);
    // Back at the first.
    world.server = Server::new();
    assert_eq!(
        world.server.answer(&other, now).map(|answer| world.relay.handle_input(&answer, now)),
        Some(Input::Consumed)
    );
    world.settle();
    assert_eq!(world.server.ports, [50_000]);
}

#[test]
fn a_relay_at_which_peers_were_met_is_waited_for_a_minute() {
    let mut world = World::new(&[SERVER, "192.0.2.2:3478"]);
    let now = world.now;
    world.relay.relayed = Some(address("192.0.2.1:50000"));
    assert!(!world.relay.stays(now), "its peer is found from anywhere");
    world.relay.note_met(FIRST);
    assert!(world.relay.stays(now), "the peer sends there");
    world.relay.relayed = None;
    assert!(world.relay.stays(now) && world.relay.stays(now + 59 * SECOND));
    assert!(!world.relay.stays(now + 60 * SECOND));
    // It is there again, and goes away later.
    world.relay.note_address(address("192.0.2.1:50000"));
    assert!(world.relay.stays(now + 100 * SECOND));
    world.relay.set_peer(SECOND_PEER, at(2), now);
    assert!(!world.relay.stays(now + 100 * SECOND), "one can be reached from elsewhere");
    world.relay.forget_peer(SECOND_PEER, now);
    world.relay.set_peer(FIRST, at(3), now);
    assert!(!world.relay.stays(now + 100 * SECOND), "an Endpoint took the place of the ticket's");
}

#[test]
fn a_name_that_leads_elsewhere_moves_a_relay_that_gives_no_address() {
    let (elsewhere, third) = (address("192.0.2.3:3478"), address("192.0.2.4:3478"));
    let mut world = World::new(&[SERVER]);
    let now = world.now;
    let mut last_words = Vec::new();
    world.relay.relayed = Some(address("192.0.2.1:50000"));
    assert!(!world.relay.move_to(0, elsewhere, &mut last_words, now), "it works where it is");
    assert_eq!((world.relay.server, world.relay.server_of(0)), (address(SERVER), Some(address(SERVER))));
    world.relay.relayed = None;
    assert!(world.relay.move_to(0, elsewhere, &mut last_words, now));
    assert_eq!(world.relay.server, elsewhere);
    assert_eq!(last_words.len(), 1, "the former is asked to delete what it may have");
    world.server = Server::new();
    world.settle();
    assert_eq!(world.kept(), [at(1)]);
    // One that is not in use is asked there when it is its turn.
    let mut world = World::new(&[SERVER, "192.0.2.2:3478"]);
    assert!(!world.relay.move_to(1, third, &mut last_words, now));
    assert_eq!(world.relay.server, address(SERVER));
    assert!(world.relay.go_on(None, &mut last_words, now));
    assert_eq!((world.relay.server, world.relay.in_use_by_name()), (third, Some(1)));
    // One that another has named is not where its own name leads.
    assert!(world.relay.go_on(Some(elsewhere), &mut last_words, now));
    assert_eq!(world.relay.in_use_by_name(), None);
    assert!(!world.relay.move_to(1, address("192.0.2.5:3478"), &mut last_words, now));
    assert_eq!(world.relay.server, elsewhere);
}

#[test]
fn who_is_reached_directly_only_does_not_decide_the_family_of_the_relayed_address() {
    let [direct, relayed, third] = [1, 2, 3].map(|byte| PublicKey([byte; 32]));
    let policies = [(direct, Policy::Direct), (relayed, Policy::Relay)].into();
    let mut world = World::with(&[SERVER], Vec::new(), policies);
    let (ipv4, ipv6) = (at(1), address("[2001:db8::5]:1"));
    let now = world.now;
    world.relay.choose_family(&direct, ipv4, now);
    assert_eq!((world.relay.plan.family, world.relay.client.poll_transmit()), (None, None));
    world.relay.choose_family(&relayed, ipv6, now);
    assert_eq!(world.relay.plan.family, Some(AddressFamily::V6));
    assert!(world.relay.client.poll_transmit().is_some(), "the one of no family is given back");
    // One address has one family: that of the first.
    world.relay.set_peer(FIRST, ipv6, now);
    world.relay.choose_family(&third, ipv4, now);
    assert_eq!(world.relay.plan.family, Some(AddressFamily::V6));
}
