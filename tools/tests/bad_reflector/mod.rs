//! A reflector that harms datagrams by a seeded plan and keeps its own account of it, to hold the lab's ledger against. It reads
//! datagrams and order by itself, so that what the lab gets wrong is not wrong here too.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use tools::run::clock::monotonic_ns;

/// What happens to each measured datagram, in parts per thousand; the rest is reflected as it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    pub seed: u64,
    pub drop: u64,
    pub duplicate: u64,
    /// Held back until three later datagrams of any flow have gone.
    pub overtake: u64,
    pub corrupt: u64,
    /// Held back until `late_after` of silence.
    pub late: u64,
    pub late_after: Duration,
    /// For each datagram also send one of another run.
    pub strangers: bool,
    /// At this sequence number of flow 0, do nothing for this long.
    pub stall: Option<(u64, Duration)>,
    /// In each second since the first measured datagram, do nothing for this long, half a second in.
    pub stall_each_second: Option<Duration>,
}

/// The reflector's own account of the measured datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Received by it.
    pub seen: u64,
    pub returned: u64,
    pub late: u64,
    pub duplicates: u64,
    pub corrupted: u64,
    /// By the definition of RFC 4737 section 3.3 over the order in which they were returned.
    pub reordered: u64,
    /// How many were overtaken by at least so many that were returned right before them, from 1 (section 5).
    pub by_degree: [u64; 8],
    /// Sum of the extents (section 4.2).
    pub extent_sum: u64,
    /// The largest of them.
    pub extent_max: u64,
}

impl Log {
    /// Adds a flow whose datagrams were returned in this order.
    fn add_order(&mut self, numbers: &[u64]) {
        for (place, number) in numbers.iter().enumerate() {
            let before = &numbers[..place];
            let Some(first_later) = before.iter().position(|earlier| earlier > number) else { continue };
            self.reordered += 1;
            let degree = before.iter().rev().take_while(|earlier| *earlier > number).count();
            self.by_degree.iter_mut().take(degree).for_each(|count| *count += 1);
            let extent = (place - first_later) as u64;
            self.extent_sum += extent;
            self.extent_max = self.extent_max.max(extent);
        }
    }
}

/// Number and flow of a measured datagram of the load, as the table in the lab's `payload` module has them; `None` of others.
fn measured(datagram: &[u8]) -> Option<(u64, u32)> {
    assert_eq!(&datagram[..4], b"towl", "not ours");
    let long = |at: usize| u64::from_be_bytes(datagram[at..at + 8].try_into().unwrap());
    (datagram[5] >> 1 == 2).then(|| (long(16), u32::from_be_bytes(datagram[48..52].try_into().unwrap())))
}

/// The same datagram of another run.
fn of_another_run(datagram: &[u8]) -> Vec<u8> {
    let mut other = datagram.to_vec();
    other[15] ^= 1;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&other[..52]);
    crc.update(&other[56..]);
    other[52..56].copy_from_slice(&crc.finalize().to_be_bytes());
    other
}

pub struct BadReflector {
    pub address: SocketAddr,
    /// When the first measured datagram came (CLOCK_MONOTONIC, nanoseconds); 0 before.
    pub began_ns: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Log>,
}

impl BadReflector {
    pub fn start(plan: Plan) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let began_ns = Arc::new(AtomicU64::new(0));
        let worker = Worker::new(socket, plan, Arc::clone(&began_ns));
        let thread = thread::spawn(move || worker.run(&flag));
        Self { address, began_ns, stop, thread }
    }

    pub fn finish(self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

type Held = (Vec<u8>, SocketAddr);

struct Worker {
    socket: UdpSocket,
    plan: Plan,
    random: Xoshiro256PlusPlus,
    log: Log,
    /// Numbers of each flow in the order in which they were returned.
    orders: HashMap<u32, Vec<u64>>,
    began_ns: Arc<AtomicU64>,
    stalls: u64,
    /// With the number of datagrams still to let pass.
    overtaken: Vec<(u32, Held)>,
    late: Vec<Held>,
}

impl Worker {
    fn new(socket: UdpSocket, plan: Plan, began_ns: Arc<AtomicU64>) -> Self {
        let random = Xoshiro256PlusPlus::seed_from_u64(plan.seed);
        let (log, orders, overtaken, late) = Default::default();
        Self { socket, plan, random, log, orders, began_ns, stalls: 0, overtaken, late }
    }

    fn run(mut self, stop: &AtomicBool) -> Log {
        let mut buffer = vec![0; 65_536];
        let mut last = monotonic_ns();
        while !stop.load(Ordering::Relaxed) {
            self.stall();
            if let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
                last = monotonic_ns();
                self.handle(&buffer[..len], from);
            }
            let silence = Duration::from_nanos(monotonic_ns() - last);
            if silence > Duration::from_millis(50) {
                for (_, held) in std::mem::take(&mut self.overtaken) {
                    self.give_back(&held);
                }
            }
            if silence > self.plan.late_after {
                for held in std::mem::take(&mut self.late) {
                    self.log.late += 1;
                    self.give_back(&held);
                }
            }
        }
        self.orders.values().for_each(|numbers| self.log.add_order(numbers));
        self.log
    }

    /// Does nothing while the plan says so.
    fn stall(&mut self) {
        let began_ns = self.began_ns.load(Ordering::Relaxed);
        let Some(length) = self.plan.stall_each_second.filter(|_| began_ns > 0) else { return };
        let start_ns = began_ns + 500_000_000 + self.stalls * 1_000_000_000;
        let end_ns = start_ns + length.as_nanos() as u64;
        if monotonic_ns() < start_ns {
            return;
        }
        self.stalls += 1;
        thread::sleep(Duration::from_nanos(end_ns.saturating_sub(monotonic_ns() + 1_000_000)));
        while monotonic_ns() < end_ns {}
    }

    fn handle(&mut self, datagram: &[u8], from: SocketAddr) {
        let Some((number, flow)) = measured(datagram) else {
            self.socket.send_to(datagram, from).unwrap();
            return;
        };
        self.log.seen += 1;
        // Only the first one finds a zero.
        let _ = self.began_ns.compare_exchange(0, monotonic_ns(), Ordering::Relaxed, Ordering::Relaxed);
        if let Some((seq, length)) = self.plan.stall
            && (flow, number) == (0, seq)
        {
            thread::sleep(length);
        }
        if self.plan.strangers {
            self.socket.send_to(&of_another_run(datagram), from).unwrap();
        }
        self.decide((datagram.to_vec(), from));
        self.let_overtaken_go();
    }

    fn decide(&mut self, held: Held) {
        let mut dice = self.random.next_u64() % 1_000;
        let mut chosen = |share: u64| {
            let hit = dice < share;
            dice = dice.wrapping_sub(share);
            hit
        };
        if chosen(self.plan.drop) {
            // Gone.
        } else if chosen(self.plan.duplicate) {
            self.give_back(&held);
            self.socket.send_to(&held.0, held.1).unwrap();
            self.log.duplicates += 1;
        } else if chosen(self.plan.overtake) {
            self.overtaken.push((4, held));
        } else if chosen(self.plan.corrupt) {
            let (mut datagram, from) = held;
            let at = 8 + (self.random.next_u64() % (datagram.len() as u64 - 8)) as usize;
            datagram[at] ^= 0x40;
            self.socket.send_to(&datagram, from).unwrap();
            self.log.corrupted += 1;
        } else if chosen(self.plan.late) {
            self.late.push(held);
        } else {
            self.give_back(&held);
        }
    }

    fn let_overtaken_go(&mut self) {
        for (left, _) in &mut self.overtaken {
            *left -= 1;
        }
        let (go, stay) = std::mem::take(&mut self.overtaken).into_iter().partition(|(left, _)| *left == 0);
        self.overtaken = stay;
        let go: Vec<_> = go;
        for (_, held) in &go {
            self.give_back(held);
        }
    }

    fn give_back(&mut self, (datagram, from): &Held) {
        let Some((number, flow)) = measured(datagram) else { unreachable!() };
        self.socket.send_to(datagram, from).unwrap();
        self.log.returned += 1;
        self.orders.entry(flow).or_default().push(number);
    }
}
