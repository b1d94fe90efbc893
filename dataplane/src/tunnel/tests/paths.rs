//! Two ways to a peer that knows nothing of the choice: sessions, windows and packets under way.

use super::*;
use crate::tunnel::paths::Policy;

const MS: Duration = Duration::from_millis(1);

fn relayed() -> Path {
    Path::Relayed { peer: B_OUTSIDE.parse().expect("address") }
}

/// What is on its way: when it arrives, by which path, and whether it is for `b`.
struct Flight {
    at: Instant,
    path: Path,
    to_b: bool,
    bytes: Vec<u8>,
}

/// `a` reaches `b` by two ways; `b` has one path, and follows.
struct World {
    a: Tunnel,
    b: Tunnel,
    now: Instant,
    flights: Vec<Flight>,
    delays: [Duration; 2],
    direct_works: bool,
    sent: u64,
    arrived: u64,
    /// Packets that the cut took.
    cut: u64,
    order: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let Pair { mut a, b, now } = Pair::new();
        a.choose_paths(PEER, Policy::Auto, true, now);
        a.set_relayed(PEER, Some(relayed()), now);
        Self {
            a,
            b,
            now,
            flights: Vec::new(),
            delays: [5 * MS, 400 * MS],
            direct_works: true,
            sent: 0,
            arrived: 0,
            cut: 0,
            order: Vec::new(),
        }
    }

    fn fly(&mut self, path: Path, to_b: bool, bytes: Vec<u8>) {
        let is_relayed = matches!(path, Path::Relayed { .. });
        if is_relayed || self.direct_works {
            self.flights.push(Flight {
                at: self.now + self.delays[usize::from(is_relayed)],
                path,
                to_b,
                bytes,
            });
        } else {
            // Data, and no keepalive.
            self.cut += u64::from(bytes[0] == 4 && bytes.len() > 32);
        }
    }

    /// How `b` sees a message of `a`, or `a` one of `b`.
    fn seen(path: Path, by_b: bool) -> Path {
        match (path, by_b) {
            (Path::Direct { .. }, true) => super::path(A_OUTSIDE),
            (Path::Relayed { .. }, true) => super::path("198.51.100.9:50000"),
            (Path::Direct { .. }, false) => super::path(B_OUTSIDE),
            (Path::Relayed { .. }, false) => relayed(),
        }
    }

    fn collect(&mut self) {
        for message in std::iter::from_fn(|| self.a.poll_transmit()).collect::<Vec<_>>() {
            self.fly(message.path, true, message.bytes().to_vec());
        }
        for message in std::iter::from_fn(|| self.b.poll_transmit()).collect::<Vec<_>>() {
            let over_relay = message.path == path("198.51.100.9:50000");
            let path = if over_relay { relayed() } else { path(B_OUTSIDE) };
            self.fly(path, false, message.bytes().to_vec());
        }
        let mut stack = Packet::new();
        while let Some(index) = self.a.poll_staged(&mut stack, self.now) {
            let path = self.a.path(index).expect("a path");
            let mut sealed = vec![0; Tunnel::sealed_len(stack.len())];
            assert!(self.a.seal(index, stack.as_slice(), &mut sealed, self.now));
            self.fly(path, true, sealed);
        }
    }

    /// A millisecond, in which `a` sends some packets with numbers.
    fn step(&mut self, packets: u64) {
        self.now += MS;
        self.flights.sort_by_key(|flight| flight.at);
        while self.flights.first().is_some_and(|flight| flight.at <= self.now) {
            let flight = self.flights.remove(0);
            let end = if flight.to_b { &mut self.b } else { &mut self.a };
            let mut out = Packet::new();
            let opened = end.open(&flight.bytes, Self::seen(flight.path, flight.to_b), &mut out, self.now);
            assert!(!matches!(opened, Opened::Dropped(_)), "{opened:?}");
            if let Opened::Packet(_) = opened {
                self.arrived += 1;
                let number = out.as_slice()[20..28].try_into().expect("eight bytes");
                self.order.push(u64::from_be_bytes(number));
            }
            self.collect();
        }
        for _ in 0..packets {
            let inner = packet(A_INSIDE, B_INSIDE, &self.sent.to_be_bytes());
            self.sent += 1;
            match self.a.ready(PEER, self.now) {
                Some(path) => {
                    let sealed = try_seal(&mut self.a, &inner, self.now).expect("ready");
                    self.fly(path, true, sealed);
                }
                None => self.a.stage(PEER, &inner, self.now),
            }
        }
        self.a.handle_timeout(self.now);
        self.b.handle_timeout(self.now);
        self.collect();
    }

    fn run(&mut self, time: Duration, packets: u64) {
        let end = self.now + time;
        while self.now < end {
            self.step(packets);
        }
    }
}

#[test]
fn what_is_on_the_slow_way_arrives_though_the_fast_one_is_thousands_of_packets_ahead() {
    let mut world = World::new();
    world.run(SECOND, 1);
    world.direct_works = false;
    world.run(3 * SECOND, 1);
    assert_eq!(world.a.path(PEER), Some(relayed()));
    world.direct_works = true;
    // 400 ms of 4 packets each are under way when the direct way, 80 times as fast, is taken back.
    while matches!(world.a.path(PEER), Some(Path::Relayed { .. })) {
        world.step(4);
    }
    let before = world.arrived;
    world.run(2 * SECOND, 8);
    world.run(SECOND, 0);
    assert!(world.arrived - before > 3_000);
    let late = world.order.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(late > 0, "they do arrive out of order");
    // What either way delivered was accepted.
    assert_eq!(world.arrived + world.cut, world.sent);
    assert_eq!(world.b.drops().total(), 0);
    assert_eq!(world.a.path_figures(PEER).switches, 2);
}

#[test]
fn a_relay_only_peer_is_never_answered_directly() {
    let mut pair = Pair::new();
    let now = pair.now;
    // This time `b` chooses, and `a` calls directly.
    pair.b.choose_paths(PEER, Policy::Relay, true, now);
    pair.a.stage(PEER, &packet(A_INSIDE, B_INSIDE, b"hello"), now);
    for message in outgoing(&mut pair.a, now) {
        pair.at_b(&message);
    }
    assert!(pair.b.poll_transmit().is_none(), "no answer leaves but over the relay");
    assert_eq!(pair.b.path(PEER), None);
}
