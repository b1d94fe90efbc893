//! The choice between two ways, against a peer that knows nothing of it, in virtual time.
#![expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DIRECT: &str = "192.0.2.2:51820";

fn direct() -> Path {
    Path::Direct { to: DIRECT.parse().expect("address"), from: None }
}

fn relayed() -> Path {
    Path::Relayed { peer: DIRECT.parse().expect("address") }
}

fn path(kind: Kind) -> Path {
    match kind {
        Kind::Direct => direct(),
        Kind::Relayed => relayed(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Data,
    Keepalive,
    Initiation,
    Response,
}

/// What a way does to messages.
#[derive(Clone, Copy, Debug)]
struct Way {
    there: bool,
    back: bool,
    delay: Duration,
}

impl Way {
    fn of(delay_ms: u32) -> Self {
        Self { there: true, back: true, delay: MS * delay_ms }
    }

    fn set(&mut self, works: bool) {
        (self.there, self.back) = (works, works);
    }
}

/// We, the peer, and what is under way.
struct World {
    ours: Paths,
    now: Instant,
    start: Instant,
    direct: Way,
    relayed: Way,
    /// Where the peer sends to: where it heard last.
    peer_at: Kind,
    /// It answers data with data.
    talks: bool,
    /// It answers nothing, and keeps alive ten seconds after it heard something.
    keepalive_at: Option<Instant>,
    /// It sends data of its own so often.
    peer_sends_every: Option<Duration>,
    peer_sends_at: Instant,
    /// When it starts a handshake because it has sent and heard nothing.
    peer_calls_at: Option<Instant>,
    /// By arrival and number; whether it is for the peer.
    under_way: BTreeMap<(Instant, u64), (bool, Kind, Message)>,
    number: u64,
    /// When we went over, and to what.
    switches: Vec<(Duration, Kind)>,
    next_send: Instant,
    send_every: Duration,
    /// Where nobody is.
    nowhere: Vec<SocketAddr>,
}

impl World {
    fn new(direct_ms: u32, relayed_ms: u32) -> Self {
        let now = Instant::now();
        let mut ours = Paths::new(Policy::Auto, Some(direct()));
        ours.set_relayed(Some(relayed()), now);
        Self {
            ours,
            now,
            start: now,
            direct: Way::of(direct_ms),
            relayed: Way::of(relayed_ms),
            peer_at: Kind::Direct,
            talks: true,
            keepalive_at: None,
            peer_sends_every: None,
            peer_sends_at: now,
            peer_calls_at: None,
            under_way: BTreeMap::new(),
            number: 0,
            switches: Vec::new(),
            next_send: now,
            send_every: 20 * MS,
            nowhere: Vec::new(),
        }
    }

    fn active(&self) -> Kind {
        self.ours.active().expect("a way").into()
    }

    fn carry(&mut self, to_peer: bool, kind: Kind, message: Message) {
        let way = if kind == Kind::Direct { self.direct } else { self.relayed };
        if if to_peer { way.there } else { way.back } {
            self.number += 1;
            self.under_way.insert((self.now + way.delay, self.number), (to_peer, kind, message));
        }
    }

    fn arrive(&mut self, to_peer: bool, kind: Kind, message: Message) {
        if !to_peer {
            self.ours.heard(path(kind), self.now);
            match message {
                Message::Response => {
                    self.ours.answered(path(kind), self.now);
                    self.carry(true, self.active(), Message::Keepalive);
                }
                Message::Initiation => {
                    self.ours.called(path(kind), self.now);
                    self.carry(true, kind, Message::Response);
                }
                Message::Data | Message::Keepalive => {}
            }
            return;
        }
        self.peer_at = kind;
        self.peer_calls_at = None;
        match message {
            Message::Initiation => self.carry(false, kind, Message::Response),
            Message::Data if self.talks => self.carry(false, kind, Message::Data),
            Message::Data => {
                self.keepalive_at.get_or_insert(self.now + 10 * SECOND);
            }
            Message::Keepalive | Message::Response => {}
        }
    }

    /// One step of ten milliseconds; timers are looked at every fifty.
    fn step(&mut self) {
        self.now += 10 * MS;
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to_peer, kind, message) = entry.remove();
            self.arrive(to_peer, kind, message);
            self.note();
        }
        if self.keepalive_at.is_some_and(|at| at <= self.now) {
            self.keepalive_at = None;
            self.carry(false, self.peer_at, Message::Keepalive);
        }
        if let Some(every) = self.peer_sends_every
            && self.peer_sends_at <= self.now
        {
            self.peer_sends_at = self.now + every;
            self.carry(false, self.peer_at, Message::Data);
            // WireGuard paper, section 6.5: after Keepalive-Timeout and Rekey-Timeout.
            self.peer_calls_at.get_or_insert(self.now + 15 * SECOND);
        }
        if self.peer_calls_at.is_some_and(|at| at <= self.now) {
            self.peer_calls_at = Some(self.now + 5 * SECOND + MS * 100);
            self.carry(false, self.peer_at, Message::Initiation);
        }
        if self.next_send <= self.now {
            self.next_send = self.now + self.send_every;
            self.ours.sent(self.now);
            self.carry(true, self.active(), Message::Data);
        }
        if (self.now - self.start).as_millis().is_multiple_of(50) {
            for _ in 0..10 {
                let Some(action) = self.ours.poll(self.now) else { break };
                self.note();
                match action {
                    Action::Probe(path) => self.initiate(path),
                    Action::Announce(path) => {
                        self.carry(true, path.into(), Message::Keepalive);
                        if Kind::from(path) == Kind::Relayed {
                            self.initiate(path);
                        }
                    }
                }
            }
            assert_eq!(self.ours.poll(self.now), None, "ten things to do at once");
            assert!(self.ours.next_timeout().is_none_or(|at| at > self.now), "a busy loop");
            self.note();
        }
    }

    fn initiate(&mut self, path: Path) {
        self.ours.initiated(path, self.now);
        if !self.nowhere.contains(&path.remote()) {
            self.carry(true, path.into(), Message::Initiation);
        }
    }

    fn note(&mut self) {
        let before = self.switches.last().map_or(Kind::Direct, |(_, kind)| *kind);
        if self.active() != before {
            self.switches.push((self.now - self.start, self.active()));
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// How long it takes until a way is in use.
    fn wait_for(&mut self, kind: Kind, limit: Duration) -> Duration {
        let start = self.now;
        while self.active() != kind {
            self.step();
            assert!(self.now - start <= limit, "{kind:?} is not in use after {limit:?}: {:?}", self.switches);
        }
        self.now - start
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_way_that_works_is_kept(
        direct_ms in 1..200_u32, relayed_ms in 1..400_u32, talks: bool, send_ms in 1..3_000_u32,
    ) {
        let mut world = World::new(direct_ms, relayed_ms);
        (world.talks, world.send_every) = (talks, MS * send_ms);
        world.pass(200 * SECOND);
        prop_assert_eq!(&world.switches, &[]);
        // Who listens only is asked once a second at most, and who talks is not.
        let probes = world.ours.figures().probes;
        prop_assert!(if talks { probes == 0 } else { probes <= 200 }, "{}", probes);
    }

    #[test]
    fn a_cut_is_noticed_within_two_seconds_and_healing_within_some_more(
        direct_ms in 1..150_u32, relayed_ms in 1..400_u32, send_ms in 1..200_u32,
        before_ms in 0..30_000_u32, cut_ms in 2_500..25_000_u32, there: bool, back: bool, talks: bool,
    ) {
        let mut world = World::new(direct_ms, relayed_ms);
        (world.talks, world.send_every) = (talks, MS * send_ms);
        world.pass(MS * before_ms);
        // One direction is as bad as both, for a peer that sends only in answer.
        (world.direct.there, world.direct.back) = (there && !back, back && !there);
        let cut_at = world.now;
        // What was under way when it was cut is still heard, and so may be the one keepalive of a peer that only listens.
        let limit = 2 * SECOND + MS * 2 * direct_ms + MS * 50;
        let may_be_heard = !talks && world.direct.back;
        world.wait_for(Kind::Relayed, limit * if may_be_heard { 2 } else { 1 });
        world.pass((cut_at + MS * cut_ms).saturating_duration_since(world.now));
        prop_assert_eq!(world.active(), Kind::Relayed, "it is not taken back while it does not work");
        prop_assert_eq!(world.switches.len(), 1);
        world.direct.set(true);
        world.wait_for(Kind::Direct, 9 * SECOND);
        world.pass(60 * SECOND);
        prop_assert_eq!(world.switches.len(), 2, "{:?}", world.switches);
    }

    #[test]
    fn a_peer_that_is_heard_and_does_not_hear_us_is_found_by_its_second_call(
        direct_ms in 1..150_u32, relayed_ms in 1..400_u32, send_ms in 1..200_u32, peer_sends_ms in 1..2_000_u32,
        before_ms in 0..30_000_u32, talks: bool,
    ) {
        let mut world = World::new(direct_ms, relayed_ms);
        (world.talks, world.send_every) = (talks, MS * send_ms);
        world.peer_sends_every = Some(MS * peer_sends_ms);
        world.pass(MS * before_ms);
        prop_assert_eq!(&world.switches, &[]);
        world.direct.there = false;
        // The peer calls after 15 s and again 5 s later; the answer to our own question is waited for no more than a second.
        world.wait_for(Kind::Relayed, 23 * SECOND);
        world.pass(60 * SECOND);
        prop_assert_eq!(world.switches.len(), 1, "it is not taken back while it does not work: {:?}", world.switches);
        world.direct.there = true;
        world.wait_for(Kind::Direct, 70 * SECOND);
        world.pass(60 * SECOND);
        prop_assert_eq!(world.switches.len(), 2, "{:?}", world.switches);
    }

    #[test]
    fn a_far_peer_that_sends_now_and_then_is_given_the_time_that_its_answer_takes(
        direct_ms in 1..200_u32, relayed_ms in 1..400_u32, send_ms in 1..200_u32, peer_sends_ms in 1_001..3_000_u32,
    ) {
        // Between two of its messages it is silent for long enough to be asked, and what it sends on its own may come before its
        // answer.
        let mut world = World::new(direct_ms, relayed_ms);
        (world.talks, world.send_every) = (false, MS * send_ms);
        world.peer_sends_every = Some(MS * peer_sends_ms);
        world.pass(200 * SECOND);
        prop_assert_eq!(&world.switches, &[]);
    }

    #[test]
    fn a_peer_that_calls_again_because_one_answer_was_lost_is_asked_and_stays(
        direct_ms in 1..150_u32, spacing_ms in 4_000..8_000_u32,
    ) {
        let mut world = World::new(direct_ms, 40);
        for _ in 0..2 {
            world.carry(false, Kind::Direct, Message::Initiation);
            world.pass(MS * spacing_ms);
        }
        world.pass(10 * SECOND);
        prop_assert_eq!((world.switches.len(), world.ours.figures().probes), (0, 1));
    }

    #[test]
    fn a_way_that_comes_and_goes_is_used_less_and_less(
        seed in proptest::collection::vec(500..12_000_u32, 100),
    ) {
        let mut world = World::new(10, 40);
        for (index, time_ms) in seed.into_iter().enumerate() {
            world.direct.set(index % 2 == 0);
            world.pass(MS * time_ms);
        }
        // Holds of 5, 10, 20 … 320 s, and one switch back after each; after a long good time they start again.
        prop_assert!(world.switches.len() <= 40, "{:?}", world.switches);
    }

    #[test]
    fn whatever_happens_the_policy_holds_and_no_timer_spins(
        policy in prop_oneof![Just(Policy::Auto), Just(Policy::Direct), Just(Policy::Relay)],
        events in proptest::collection::vec((0..12_u8, 0..4_000_u32), 1..300),
    ) {
        let mut now = Instant::now();
        let mut paths = Paths::new(policy, Some(direct()));
        for (event, wait_ms) in events {
            now += MS * wait_ms / 4;
            match event {
                0 => paths.sent(now),
                1 => paths.heard(direct(), now),
                2 => paths.heard(relayed(), now),
                3 => paths.set_relayed(Some(relayed()), now),
                4 => paths.set_relayed(None, now),
                5 => paths.set_direct(Some(direct())),
                6 => paths.initiated(direct(), now),
                7 => paths.set_direct(None),
                8 => paths.set_candidates(addresses(["192.0.2.7:1", "10.0.0.7:2", DIRECT]).into_iter(), now + SECOND, now),
                9 => paths.called(direct(), now),
                10 => paths.answered(direct(), now),
                _ => paths.forget_source(),
            }
            let mut actions = 0;
            while let Some(action) = paths.poll(now) {
                actions += 1;
                prop_assert!(actions < 10, "{:?}", paths);
                let (Action::Probe(path) | Action::Announce(path)) = action;
                prop_assert!(paths.allows(path));
                if let Action::Probe(path) = action {
                    paths.initiated(path, now);
                }
            }
            prop_assert!(paths.next_timeout().is_none_or(|at| at > now), "{:?}", paths);
            prop_assert!(paths.active().is_none_or(|path| paths.allows(path)));
        }
    }
}

#[test]
fn a_peer_that_does_not_answer_at_first_is_reached_over_the_relay() {
    let mut world = World::new(10, 40);
    world.direct.set(false);
    // The first packet waits for a handshake, of which the initiation is repeated after five seconds only.
    world.send_every = 100 * SECOND;
    world.initiate(direct());
    world.next_send = world.now + 100 * SECOND;
    assert!(world.wait_for(Kind::Relayed, 2 * SECOND) >= SECOND);
}

#[test]
fn a_download_that_stops_is_noticed_though_nothing_is_left_to_send() {
    let mut world = World::new(10, 40);
    world.pass(3 * SECOND);
    world.direct.set(false);
    world.send_every = 1_000 * SECOND;
    world.next_send = world.now + 1_000 * SECOND;
    // The last that was under way is acknowledged.
    world.pass(50 * MS);
    world.ours.sent(world.now);
    world.wait_for(Kind::Relayed, 2 * SECOND);
}

#[test]
fn the_end_of_a_short_exchange_is_no_reason_to_ask() {
    let mut world = World::new(10, 40);
    world.next_send = world.now + 1_000 * SECOND;
    for _ in 0..5 {
        world.ours.heard(direct(), world.now);
        world.ours.sent(world.now);
        world.pass(5 * SECOND);
    }
    assert_eq!(world.ours.figures(), PathFigures::default());
}

#[test]
fn without_a_relay_the_direct_way_is_kept_and_left_when_there_is_one() {
    let mut world = World::new(10, 40);
    world.ours.set_relayed(None, world.now);
    world.pass(SECOND);
    world.direct.set(false);
    world.pass(30 * SECOND);
    assert_eq!(world.switches, []);
    world.ours.set_relayed(Some(relayed()), world.now);
    world.wait_for(Kind::Relayed, SECOND);
}

#[test]
fn a_lost_relay_is_replaced_by_the_direct_way_until_it_is_back() {
    let mut world = World::new(10, 40);
    world.pass(SECOND);
    world.direct.set(false);
    world.wait_for(Kind::Relayed, 2 * SECOND);
    world.ours.set_relayed(None, world.now);
    assert_eq!(world.active(), Kind::Direct, "the last resort");
    world.pass(SECOND);
    world.ours.set_relayed(Some(relayed()), world.now);
    assert_eq!(world.active(), Kind::Relayed, "nothing has been heard directly");
}

/// What is asked at this moment.
fn asked(paths: &mut Paths, now: Instant) -> Vec<SocketAddr> {
    std::iter::from_fn(|| paths.poll(now))
        .filter_map(|action| match action {
            Action::Probe(path) => Some(path.remote()),
            Action::Announce(_) => None,
        })
        .collect()
}

/// When what is asked until then, in milliseconds.
fn questions(paths: &mut Paths, from: Instant, until: Instant) -> Vec<(u128, SocketAddr)> {
    let mut all = Vec::new();
    let mut now = from;
    while now <= until {
        all.extend(asked(paths, now).into_iter().map(|address| ((now - from).as_millis(), address)));
        now += 10 * MS;
    }
    all
}

fn addresses<const N: usize>(texts: [&str; N]) -> [SocketAddr; N] {
    texts.map(|text| text.parse().expect("address"))
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn all_addresses_that_the_peer_names_are_asked_two_at_a_time_until_one_answers() {
    let start = Instant::now();
    let mut paths = Paths::new(Policy::Auto, None);
    let named = addresses(["192.0.2.7:1", "10.0.0.7:51820", "[2001:db8::7]:51820"]);
    paths.set_candidates(named.into_iter(), start + DAY, start);
    assert_eq!(paths.active(), None, "none is known to work");
    paths.set_relayed(Some(relayed()), start);
    assert_eq!(paths.active(), Some(relayed()), "meanwhile");
    let now = start + 2_100 * MS;
    assert_eq!(
        questions(&mut paths, start, now),
        [(0, named[0]), (50, named[1]), (1_050, named[2])],
        "not more than can be answered"
    );
    // Nobody answered: once more, while something passes.
    paths.heard(relayed(), now);
    let now = now + 6 * SECOND;
    paths.heard(relayed(), now);
    assert_eq!(asked(&mut paths, now), [named[0]]);
    let now = now + 60 * MS;
    assert_eq!(asked(&mut paths, now), [named[1]]);
    // That one answers, twice; the second time nobody else is asked.
    let answer = Path::Direct { to: named[1], from: None };
    paths.heard(answer, now + 5 * MS);
    assert_eq!(questions(&mut paths, now + 10 * MS, now + 2 * SECOND / 3), []);
    let now = now + SECOND + 5 * MS;
    assert_eq!(questions(&mut paths, now, now), [(0, named[1])]);
    paths.heard(answer, now + 5 * MS);
    assert_eq!(paths.active(), Some(answer));
    // The others are not needed any more, even if this one fails.
    assert_eq!(paths.direct_addresses().collect::<Vec<_>>(), [named[1]]);
}

#[test]
fn a_relayed_initiation_is_one_of_the_two() {
    let start = Instant::now();
    let mut paths = Paths::new(Policy::Auto, None);
    paths.set_candidates(addresses(["192.0.2.7:1", "10.0.0.7:51820"]).into_iter(), start + DAY, start);
    assert_eq!(asked(&mut paths, start).len(), 1);
    paths.set_relayed(Some(relayed()), start);
    paths.initiated(relayed(), start + 10 * MS);
    assert_eq!(questions(&mut paths, start + 10 * MS, start + SECOND), []);
    assert_eq!(asked(&mut paths, start + 1_010 * MS).len(), 1);
}

#[test]
fn what_a_ticket_names_is_forgotten_with_it_and_what_was_known_before_is_not() {
    let start = Instant::now();
    let mut paths = Paths::new(Policy::Auto, Some(direct()));
    let [named] = addresses(["192.0.2.7:1"]);
    paths.set_relayed(Some(relayed()), start);
    // The Endpoint has been idle.
    paths.set_candidates([named].into_iter(), start + 60 * SECOND, start);
    assert_eq!(paths.active(), Some(relayed()));
    let all = questions(&mut paths, start, start + SECOND);
    assert_eq!(all.iter().map(|(_, address)| *address).collect::<Vec<_>>(), [direct().remote(), named]);
    let late = start + 61 * SECOND;
    paths.heard(relayed(), late);
    let late = questions(&mut paths, late, late + 10 * SECOND);
    assert!(!late.is_empty() && late.iter().all(|(_, address)| *address == direct().remote()), "{late:?}");
    assert_eq!(paths.direct_addresses().collect::<Vec<_>>(), [direct().remote()]);
}

#[test]
fn a_forged_ticket_takes_no_direct_path_away() {
    let mut world = World::new(10, 40);
    world.pass(3 * SECOND);
    world.next_send = world.now + 1_000 * SECOND;
    world.pass(100 * SECOND);
    // Nothing has passed for a while. The names lead nowhere, and neither does the relay.
    world.relayed.set(false);
    let nowhere = addresses(["203.0.113.1:1", "203.0.113.2:2", "203.0.113.3:3"]);
    world.nowhere = nowhere.to_vec();
    world.ours.set_candidates(nowhere.into_iter(), world.now + DAY, world.now);
    world.next_send = world.now;
    assert_eq!(world.active(), Kind::Relayed);
    world.wait_for(Kind::Direct, 3 * SECOND);
}

#[test]
fn both_ends_may_choose() {
    // The peer goes back to the direct way before us: it sends there, and we answer by the relay.
    let mut world = World::new(10, 40);
    world.pass(SECOND);
    world.direct.set(false);
    world.wait_for(Kind::Relayed, 2 * SECOND);
    world.pass(2 * SECOND);
    world.direct.set(true);
    world.ours.heard(direct(), world.now);
    let time = world.wait_for(Kind::Direct, SECOND);
    assert!(time < SECOND / 2, "{time:?}");
}

#[test]
fn what_the_way_left_behind_still_brings_is_counted_for_a_second() {
    let mut world = World::new(10, 40);
    world.pass(SECOND);
    world.direct.set(false);
    world.wait_for(Kind::Relayed, 2 * SECOND);
    world.ours.heard(direct(), world.now + SECOND / 2);
    assert_eq!(world.ours.figures().overlapped, 1);
    world.ours.heard(direct(), world.now + 3 * SECOND / 2);
    assert_eq!(world.ours.figures().overlapped, 1);
    assert_eq!(world.ours.figures().switches, 1);
}
