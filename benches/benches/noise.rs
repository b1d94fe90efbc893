//! The protocol beside boringtun's, call by call in one process: what timers, routes and statistics cost is not in it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use benches::stages::origin;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey as Point, StaticSecret};
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use dataplane::tunnel::Path;
use dataplane::tunnel::key::SecretKey;
use dataplane::tunnel::noise::{CONTROL_LEN, Identity, Noise, Outset, World, public_key};
use dataplane::wire::wireguard::{self, DATA_OVERHEAD, Message};

/// As in `crypto.rs`.
const BATCH: u64 = 64;
const LENGTHS: [usize; 3] = [64, 1_280, 1_424];

fn secret(side: u8) -> SecretKey {
    SecretKey::new([side; 32]).clamped()
}

fn inner(len: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; len];
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}

/// By the only way that there is.
fn outset(world: &World) -> Outset {
    let to = ([192, 0, 2, 1], 1).into();
    Outset { index: world.index(), path: Path::Direct { to, from: None } }
}

/// One of our ends.
struct Ours {
    identity: Identity,
    world: World,
    noise: Noise,
    now: Instant,
}

impl Ours {
    fn new(side: u8, other: u8) -> Self {
        Self {
            identity: Identity::new(&secret(side), &[7; 32]),
            world: World::system(),
            noise: Noise::new(public_key(&secret(other)), None),
            now: origin(),
        }
    }

    fn initiate(&mut self) -> [u8; CONTROL_LEN] {
        let Self { identity, world, noise, now } = self;
        let mut out = [0; CONTROL_LEN];
        noise.initiate(identity, world, outset(world), &mut out, *now).expect("a good key");
        out
    }

    fn respond(&mut self, initiation: &[u8]) -> Vec<u8> {
        let Self { identity, world, noise, now } = self;
        let mut out = [0; CONTROL_LEN];
        let claim = identity.claim(initiation).expect("for us");
        let len =
            noise.handle_initiation(identity, world, claim, outset(world), &mut out, *now).expect("new");
        out[..len].to_vec()
    }

    fn connected() -> (Self, Self) {
        let (mut a, mut b) = (Self::new(1, 2), Self::new(2, 1));
        let response = b.respond(&a.initiate());
        let mut out = [0; CONTROL_LEN];
        let Self { identity, world, noise, now } = &mut a;
        let len = noise.handle_response(identity, world, &response, &mut out, *now).expect("its answer");
        b.open(&out[..len], &mut [0; 2_048]);
        (a, b)
    }

    fn seal(&mut self, packet: &[u8], out: &mut [u8]) {
        assert!(self.noise.seal(packet, out, self.now));
    }

    fn open(&mut self, datagram: &[u8], out: &mut [u8]) {
        let Some(Message::Data { receiver, counter }) = wireguard::parse(datagram) else {
            panic!("no data");
        };
        self.noise.open(datagram, (receiver, counter), out, self.now).expect("new");
    }
}

/// boringtun's, of the same keys.
struct Theirs {
    private: StaticSecret,
    public: Point,
    tunn: Tunn,
}

impl Theirs {
    fn new(side: u8, other: u8) -> Self {
        let private = StaticSecret::from(*secret(side).expose());
        let public = Point::from(&private);
        let peer = Point::from(public_key(&secret(other)).0);
        let limiter = Arc::new(RateLimiter::new(&public, u64::MAX));
        let tunn = Tunn::new(private.clone(), peer, None, None, side.into(), Some(limiter));
        Self { private, public, tunn }
    }

    fn initiate(&mut self) -> Vec<u8> {
        match self.tunn.format_handshake_initiation(&mut [0; CONTROL_LEN], true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// With a look at who it is from, as an endpoint of many peers needs it.
    fn respond(&mut self, initiation: &[u8]) -> Vec<u8> {
        let Ok(Packet::HandshakeInit(parsed)) = Tunn::parse_incoming_packet(initiation) else {
            panic!("no initiation");
        };
        parse_handshake_anon(&self.private, &self.public, &parsed).expect("for us");
        match self.tunn.decapsulate(None, initiation, &mut [0; CONTROL_LEN]) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn connected() -> (Self, Self) {
        let (mut a, mut b) = (Self::new(1, 2), Self::new(2, 1));
        let response = b.respond(&a.initiate());
        let mut out = [0; CONTROL_LEN];
        match a.tunn.decapsulate(None, &response, &mut out) {
            TunnResult::WriteToNetwork(keepalive) => b.open(keepalive, &mut [0; 2_048]),
            other => panic!("{other:?}"),
        }
        (a, b)
    }

    fn seal(&mut self, packet: &[u8], out: &mut [u8]) {
        assert!(matches!(self.tunn.encapsulate(packet, out), TunnResult::WriteToNetwork(_)));
    }

    fn open(&mut self, datagram: &[u8], out: &mut [u8]) {
        let opened = self.tunn.decapsulate(None, datagram, out);
        assert!(matches!(opened, TunnResult::WriteToTunnelV4(..) | TunnResult::Done));
    }
}

/// Times sealing and opening for one implementation.
fn transport<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    (sender, receiver): (T, T),
    seal: impl Fn(&mut T, &[u8], &mut [u8]),
    open: impl Fn(&mut T, &[u8], &mut [u8]),
) {
    let sender = RefCell::new(sender);
    let mut receiver = receiver;
    for len in LENGTHS {
        let packet = inner(len);
        let mut out = vec![0; len + DATA_OVERHEAD];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new(format!("seal/{name}"), len), |bencher| {
            let mut sender = sender.borrow_mut();
            bencher.iter(|| seal(&mut sender, &packet, &mut out));
        });
        group.bench_function(BenchmarkId::new(format!("open/{name}"), len), |bencher| {
            let mut opened = vec![0; 2_048];
            bencher.iter_batched_ref(
                || {
                    let mut out = vec![0; len + DATA_OVERHEAD];
                    seal(&mut sender.borrow_mut(), &packet, &mut out);
                    out
                },
                |sealed| open(&mut receiver, sealed, &mut opened),
                BatchSize::NumIterations(BATCH),
            );
        });
    }
}

fn data(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transport");
    transport(&mut group, "ours", Ours::connected(), Ours::seal, Ours::open);
    transport(&mut group, "boringtun", Theirs::connected(), Theirs::seal, Theirs::open);
}

fn mac1(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mac1");
    let mut wrong = Ours::new(1, 2).initiate();
    wrong[120] ^= 1;
    let identity = Ours::new(2, 1).identity;
    group.bench_function("ours", |bencher| bencher.iter(|| assert!(!identity.check_mac1(&wrong))));
    let limiter = RateLimiter::new(&Theirs::new(2, 1).public, u64::MAX);
    group.bench_function("boringtun", |bencher| {
        bencher.iter(|| assert!(limiter.verify_packet(None, &wrong, &mut [0; 64]).is_err()));
    });
}

/// What a handshake costs who responds.
fn handshake(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("handshake");
    let (mut initiator, mut ours, mut theirs) = (Ours::new(1, 2), Ours::new(2, 1), Theirs::new(2, 1));
    // The first makes what is kept for the next.
    ours.respond(&initiator.initiate());
    let one = BatchSize::NumIterations(16);
    group.bench_function("respond/ours", |bencher| {
        bencher.iter_batched_ref(|| initiator.initiate(), |message| ours.respond(&message[..]), one);
    });
    group.bench_function("respond/boringtun", |bencher| {
        bencher.iter_batched_ref(|| initiator.initiate(), |message| theirs.respond(&message[..]), one);
    });
    let (mut ours, mut theirs) = (Ours::new(2, 1), Theirs::new(2, 1));
    group.bench_function("initiate/ours", |bencher| bencher.iter(|| ours.initiate()));
    group.bench_function("initiate/boringtun", |bencher| bencher.iter(|| theirs.initiate()));
}

criterion_group!(benches, data, mac1, handshake);
criterion_main!(benches);
