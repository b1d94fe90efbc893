//! The `uring` design on a simulated ring: hundreds of seeds with faults the kernel rarely shows, a virtual clock, and
//! mutants of ring and design that the checks must find.

mod support;

use std::cell::Cell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataplane::drops::Cause;
use dataplane::egress::sim::{self, Delivered, Faults, Refused, SimControl, SimReap, SimSubmit};
use dataplane::egress::uring::{Reap, Submit, WAITING_BYTES};
use dataplane::egress::{Class, Egress, EgressStats, FORGIVEN_MAX, Flush, Port, Target, Uring};
use dataplane::engine::Completions;
use dataplane::offload::split::Splitter;
use dataplane::sys::slab::{Slab, Slot};
use dataplane::sys::tun::Offloads;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use support::designs::Subject;
use support::flows::{self, MIN_LEN, Tally};
use support::{here, ledger};

const SOCKET_SLOTS: usize = 24;
const DEVICE_SLOTS: usize = 7;

/// The mixes of faults, in chances out of 1,000.
fn mixes() -> [(&'static str, Faults); 8] {
    let none = Faults::default();
    [
        ("no faults", none),
        ("busy sockets", Faults { busy: 300, ..none }),
        ("late completions, shuffled", Faults { late: 400, shuffled: true, ..none }),
        ("late, shuffled and busy", Faults { late: 300, shuffled: true, busy: 200, ..none }),
        ("errors", Faults { error: 150, short: 30, ..none }),
        ("refused superpackets", Faults { too_big: 300, busy: 50, ..none }),
        ("refused and partial submits", Faults { partial: 400, refused: 300, busy: 100, ..none }),
        (
            "everything",
            Faults {
                busy: 120,
                late: 120,
                shuffled: true,
                error: 80,
                too_big: 80,
                partial: 150,
                refused: 150,
                short: 20,
            },
        ),
    ]
}

/// A defect put into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    None,
    /// A completed slot is not given back.
    LeakedSlot,
    /// A completion is never reported, and its slot stays with the kernel.
    SwallowedCompletion,
    /// A failure is reported as a success.
    SwallowedError,
    /// Two operations change places on their way to the ring.
    ReorderedPushes,
}

/// What the operations came to, as seen between ring and design: what each cause may be charged with.
#[derive(Clone, Copy, Debug, Default)]
struct Observed {
    /// Packets in operations that failed with EPERM, and in device writes that failed with EACCES.
    denied: u64,
    /// With ENOBUFS or ENOMEM.
    no_memory: u64,
    /// Datagrams refused with EINVAL, short completions, and device writes refused in any other way.
    invalid: u64,
    /// In device writes that failed with EIO.
    down: u64,
    /// Packets in sends that failed as if for the error of an earlier one (an unreachable destination, EACCES), the first
    /// time included.
    forgivable: u64,
    /// Sends that found their socket busy.
    busy: u64,
}

#[derive(Default)]
struct Watch {
    observed: Observed,
    /// By slot: packets, bytes and whether it goes to a socket.
    pushed: Vec<(u64, usize, bool)>,
    completions: u64,
    swallowed: Vec<Slot>,
}

struct WatchedSubmit {
    inner: SimSubmit,
    slab: Arc<Slab>,
    watch: Arc<Mutex<Watch>>,
    mutation: Mutation,
    held_back: Option<(Slot, Target, usize, usize, bool)>,
}

struct WatchedReap {
    inner: SimReap,
    watch: Arc<Mutex<Watch>>,
    mutation: Mutation,
}

impl WatchedSubmit {
    fn note(&self, slot: &Slot, packets: u64, len: usize, socket: bool) {
        let mut watch = self.watch.lock().expect("watch");
        if watch.pushed.len() <= slot.index() {
            watch.pushed.resize(slot.index() + 1, (0, 0, false));
        }
        watch.pushed[slot.index()] = (packets, len, socket);
    }
}

impl Submit for WatchedSubmit {
    fn push_send(
        &mut self,
        slot: Slot,
        fd: BorrowedFd<'_>,
        target: &Target,
        len: usize,
        segment_size: usize,
        link: bool,
    ) {
        self.note(&slot, len.div_ceil(segment_size.max(1)).max(1) as u64, len, true);
        if self.mutation == Mutation::ReorderedPushes && link && self.held_back.is_none() {
            self.held_back = Some((slot, *target, len, segment_size, link));
            return;
        }
        self.inner.push_send(slot, fd, target, len, segment_size, link);
        if let Some((slot, target, len, segment_size, link)) = self.held_back.take() {
            self.inner.push_send(slot, fd, &target, len, segment_size, link);
        }
    }

    fn push_write(&mut self, mut slot: Slot, fd: BorrowedFd<'_>, len: usize) {
        let packets = Splitter::new(&mut self.slab.bytes(&mut slot)[..len].to_vec())
            .expect("a superpacket")
            .segment_count();
        self.note(&slot, packets as u64, len, false);
        self.inner.push_write(slot, fd, len);
    }

    fn submit(&mut self) -> io::Result<usize> {
        self.inner.submit()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.watch.lock().expect("watch").swallowed.len()
    }

    fn enters(&self) -> u64 {
        self.inner.enters()
    }

    fn cancel_all(&mut self) {
        self.inner.cancel_all();
    }
}

impl Reap for WatchedReap {
    fn peek_last(&mut self, count: usize, each: impl FnMut(i32)) -> bool {
        self.inner.peek_last(count, each)
    }

    fn reap(&mut self, mut each: impl FnMut(Slot, i32)) -> usize {
        let mut kept = 0;
        let count = self.inner.reap(|slot, mut result| {
            let mut watch = self.watch.lock().expect("watch");
            watch.completions += 1;
            let unlucky = watch.completions.is_multiple_of(50);
            let (packets, len, socket) = watch.pushed[slot.index()];
            match self.mutation {
                Mutation::LeakedSlot if unlucky => return,
                Mutation::SwallowedCompletion if unlucky => {
                    watch.swallowed.push(slot);
                    kept += 1;
                    return;
                }
                Mutation::SwallowedError if result < 0 => result = len as i32,
                _ => {}
            }
            let observed = &mut watch.observed;
            match -result {
                libc::EAGAIN => observed.busy += packets,
                libc::EPERM => observed.denied += packets,
                libc::EACCES if !socket => observed.denied += packets,
                libc::ENOBUFS | libc::ENOMEM => observed.no_memory += packets,
                libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES if socket => {
                    observed.forgivable += packets;
                }
                libc::EIO | libc::EINVAL if packets > 1 => {}
                libc::EIO if !socket => observed.down += packets,
                libc::ECANCELED | libc::EINTR | libc::EMSGSIZE => {}
                _ if result == len as i32 => {}
                _ => observed.invalid += packets,
            }
            drop(watch);
            each(slot, result);
        });
        count - kept
    }

    fn wait(&self, timeout: Duration) -> io::Result<()> {
        self.inner.wait(timeout)
    }
}

/// A run: the design on the simulated ring, and what the test knows about it.
struct Run {
    egress: Uring<WatchedSubmit, WatchedReap>,
    control: SimControl,
    watch: Arc<Mutex<Watch>>,
    random: Xoshiro256PlusPlus,
    now: Instant,
    fd: Arc<OwnedFd>,
    sockets: Vec<Port>,
    device: Port,
    /// Number of the next packet, by flow.
    numbers: Vec<u64>,
    tally: Tally,
    wire: Vec<Delivered>,
}

const FLOWS: usize = 16;

impl Run {
    fn new(seed: u64, faults: Faults, completions: Completions, mutation: Mutation) -> Self {
        let (slab, slots) = Slab::new(SOCKET_SLOTS + DEVICE_SLOTS).expect("mapped");
        let slab = Arc::new(slab);
        let (submit, reap, control) = sim::ring(slab.clone(), seed, faults);
        let watch = Arc::new(Mutex::new(Watch::default()));
        let submit = WatchedSubmit {
            inner: submit,
            slab: slab.clone(),
            watch: watch.clone(),
            mutation,
            held_back: None,
        };
        let reap = WatchedReap { inner: reap, watch: watch.clone(), mutation };
        let now = here::now();
        let mut egress =
            Uring::with_ring(submit, reap, slab, slots, SOCKET_SLOTS, true, completions, now).expect("uring");
        let fd = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null")));
        let sockets = (0..3).map(|_| egress.add_socket(fd.clone()).expect("port")).collect();
        let offloads = Offloads { checksum: true, tso: true, uso: true, bare: false };
        let device = egress.add_device(fd.clone(), offloads).expect("port");
        let random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5eed);
        let (numbers, tally, wire) = (vec![0; FLOWS + 2], Tally::default(), Vec::new());
        Self { egress, control, watch, random, now, fd, sockets, device, numbers, tally, wire }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.next_u32() as usize % bound
    }

    fn step(&mut self) {
        match self.below(100) {
            0..70 => self.append(),
            70..82 => self.deliver(),
            82..96 => {
                self.flush();
            }
            96 => self.egress.reap(),
            97..99 => {
                self.now += Duration::from_micros(self.random.next_u64() % 3_000);
                self.flush();
            }
            _ => self.replace_socket(),
        }
    }

    /// One to ten packets of one flow, mostly of one size.
    fn append(&mut self) {
        let flow = self.below(FLOWS);
        // Control packets are short: their part of a waiting queue is 16 KiB.
        let size = if flow == 5 { 100 } else { [MIN_LEN, 100, 1_200, 1_200, 9_000][self.below(5)] };
        for _ in 0..1 + self.below(10) {
            let len = if self.below(12) == 0 { MIN_LEN.max(size / 2) } else { size };
            let port = self.sockets[flow % self.sockets.len()];
            let target = sim::target(port, ([192, 0, 2, 1 + (flow / 3) as u8], 7).into());
            // The class is the flow's: control goes ahead of data, so that a flow with both has no order.
            let class = if flow == 5 { Class::Control } else { Class::Data };
            let number = self.numbers[flow];
            self.numbers[flow] += 1;
            self.egress.append(&target, len, class, |bytes| {
                flows::write(bytes, flow as u32, number);
                true
            });
        }
    }

    /// One to ten UDP packets for the device.
    fn deliver(&mut self) {
        let flow = FLOWS + self.below(2);
        for _ in 0..1 + self.below(10) {
            let number = self.numbers[flow];
            self.numbers[flow] += 1;
            self.egress.deliver(self.device, &flows::inner_packet(flow as u32, number, 400));
        }
    }

    /// Closes a socket with whatever it has left, and opens another.
    fn replace_socket(&mut self) {
        let which = self.below(self.sockets.len());
        self.egress.remove(self.sockets[which]);
        self.sockets[which] = self.egress.add_socket(self.fd.clone()).expect("port");
    }

    fn flush(&mut self) -> Flush {
        let flush = self.egress.flush(self.now).expect("flush");
        ledger::check_slots(Subject::slots(&mut self.egress).expect("a ring"));
        for port in &self.sockets {
            assert!(self.egress.waiting_len(*port) <= WAITING_BYTES, "a waiting queue is above its bound");
        }
        self.look_at_the_wire();
        flush
    }

    fn look_at_the_wire(&mut self) {
        for delivered in self.control.take_wire() {
            match delivered.target {
                Some(_) => delivered
                    .bytes
                    .chunks(delivered.segment_size.max(1))
                    .for_each(|datagram| self.tally.note(datagram)),
                None => {
                    let mut bytes = delivered.bytes.clone();
                    let mut splitter = Splitter::new(&mut bytes).expect("a superpacket");
                    while let Some(packet) = splitter.next_packet() {
                        self.tally.note(&packet[flows::INNER..]);
                    }
                }
            }
            self.wire.push(delivered);
        }
    }

    /// Faults stop; everything must resolve in a bounded number of flushes.
    fn finish(mut self) -> (EgressStats, Vec<Delivered>) {
        self.control.set_faults(Faults::default());
        let mut flushes = 0;
        while self.flush() != Flush::Done {
            self.now += Duration::from_micros(500);
            flushes += 1;
            let slots = Subject::slots(&mut self.egress);
            assert!(flushes < 60, "no progress after the faults: {slots:?}, {:?}", self.egress.stats());
        }
        self.egress.reap();
        let stats = self.egress.stats();
        assert_eq!(self.egress.pending(), 0, "the fate of some is unknown after the faults: {stats:?}");
        let slots = Subject::slots(&mut self.egress).expect("a ring");
        ledger::check_slots(slots);
        assert_eq!(slots.free, slots.capacity, "every slot is free again: {slots:?}");
        let stats = self.egress.close();
        self.look_at_the_wire();
        let watch = self.watch.lock().expect("watch");
        check(&stats, &self.tally, watch.observed);
        drop(watch);
        (stats, self.wire)
    }
}

/// The checks at the end, by numbers that design and wire do not share.
fn check(stats: &EgressStats, tally: &Tally, observed: Observed) {
    tally.check();
    ledger::check(stats, 0);
    assert_eq!(tally.total(), stats.sent, "on the wire and counted as sent");
    let of = |cause| stats.drops.get(cause);
    assert_eq!(of(Cause::Shutdown), 0, "a healthy ring loses nothing to a shutdown");
    // No cause takes the blame for what did not happen.
    for (cause, seen) in [
        (Cause::EgressNoMemory, observed.no_memory),
        (Cause::EgressInvalid, observed.invalid),
        (Cause::TunDown, observed.down),
    ] {
        assert_eq!(of(cause), seen, "{} against what the ring answered", cause.name());
    }
    let Some(denied_again) = of(Cause::EgressDenied).checked_sub(observed.denied) else {
        panic!("{} packets were denied, {} counted", observed.denied, of(Cause::EgressDenied))
    };
    let given_up = of(Cause::EgressUnreachable) + denied_again;
    assert!(given_up <= observed.forgivable / u64::from(1 + FORGIVEN_MAX), "each had its chances");
    if observed.busy == 0 {
        assert_eq!(of(Cause::EgressExpired) + of(Cause::EgressQueueFull), 0, "nothing was ever busy");
    }
    let known = [
        Cause::EgressDenied,
        Cause::EgressNoMemory,
        Cause::EgressInvalid,
        Cause::TunDown,
        Cause::EgressUnreachable,
        Cause::EgressExpired,
        Cause::EgressQueueFull,
        Cause::EgressClosed,
    ];
    ledger::check_causes(stats, &known);
}

fn run(
    seed: u64,
    faults: Faults,
    completions: Completions,
    mutation: Mutation,
) -> (EgressStats, Vec<Delivered>) {
    let mut run = Run::new(seed, faults, completions, mutation);
    for _ in 0..300 {
        run.step();
    }
    run.finish()
}

/// The seed that runs, for the message of a failure.
struct Seed(Cell<(&'static str, u64)>);

impl Drop for Seed {
    #[expect(clippy::print_stdout, reason = "whoever reads the failure needs the seed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failed with {:?}", self.0.get());
        }
    }
}

#[test]
fn every_mix_of_faults_keeps_the_rules() {
    let running = Seed(Cell::new(("", 0)));
    for (name, faults) in mixes() {
        let mut sum = EgressStats::default();
        for seed in 0..50 {
            running.0.set((name, seed));
            let (stats, _) = run(seed, faults, Completions::Inline, Mutation::None);
            sum.offered += stats.offered;
            sum.sent += stats.sent;
            sum.waited += stats.waited;
            sum.ring_full += stats.ring_full;
            sum.gso_fallbacks += stats.gso_fallbacks;
            sum.drops.merge(&stats.drops);
        }
        println!("{name}: {:?}", (sum.offered, sum.sent, sum.waited, sum.ring_full, sum.gso_fallbacks));
        assert!(sum.ring_full > 0, "the ring was never full");
        assert_eq!(sum.waited > 0, faults.busy + faults.error > 0, "{name}");
        assert_eq!(sum.gso_fallbacks > 0, faults.too_big + faults.error > 0, "{name}");
    }
}

#[test]
fn the_completion_thread_keeps_the_rules() {
    let running = Seed(Cell::new(("", 0)));
    for (name, faults) in mixes() {
        for seed in 0..6 {
            running.0.set((name, seed));
            run(seed, faults, Completions::Thread, Mutation::None);
        }
    }
}

#[test]
fn the_same_seed_writes_the_same_wire() {
    let (_, faults) = mixes()[7];
    let (first, again) = (
        || run(7, faults, Completions::Inline, Mutation::None),
        || run(7, faults, Completions::Inline, Mutation::None),
    );
    let (one, other) = (first(), again());
    assert_eq!(one.1.len(), other.1.len());
    assert!(one.1 == other.1, "the wire logs differ");
    assert_ne!(one.1, run(8, faults, Completions::Inline, Mutation::None).1);
}

/// Runs a mutant under faults that bring it out, and answers what the checks said.
fn found(mutation: Mutation, faults: Faults) -> String {
    let panic = catch_unwind(|| {
        for seed in 0..5 {
            run(seed, faults, Completions::Inline, mutation);
        }
    });
    let panic = panic.expect_err("the checks did not notice");
    panic
        .downcast_ref::<String>()
        .cloned()
        .or(panic.downcast_ref::<&str>().map(ToString::to_string))
        .expect("text")
}

#[test]
fn a_leaked_slot_is_found() {
    let text = found(Mutation::LeakedSlot, Faults::default());
    assert!(text.contains("slots: "), "found for another reason: {text}");
}

#[test]
fn a_swallowed_completion_is_found() {
    let text = found(Mutation::SwallowedCompletion, Faults::default());
    assert!(text.contains("no progress after the faults"), "found for another reason: {text}");
}

#[test]
fn a_swallowed_error_is_found() {
    let text = found(Mutation::SwallowedError, Faults { error: 50, ..Faults::default() });
    assert!(text.contains("on the wire and counted as sent"), "found for another reason: {text}");
}

#[test]
fn reordered_pushes_are_found() {
    let text = found(Mutation::ReorderedPushes, Faults::default());
    assert!(text.contains("order or content"), "found for another reason: {text}");
}

#[test]
fn a_loss_booked_under_a_cause_is_found() {
    // Honest figures of a run, then one packet that never reached the wire and is put down to a firewall or a full queue.
    for cause in
        [Cause::EgressDenied, Cause::EgressNoMemory, Cause::EgressQueueFull, Cause::Busy, Cause::Shutdown]
    {
        let panic = catch_unwind(|| {
            let mut run = Run::new(1, Faults::default(), Completions::Inline, Mutation::None);
            (0..50).for_each(|_| run.append());
            while run.flush() != Flush::Done {}
            let mut stats = run.egress.close();
            run.look_at_the_wire();
            stats.offered += 1;
            check(&stats, &run.tally, Observed::default());
            stats.drops.count(cause);
            check(&stats, &run.tally, Observed::default());
        });
        assert!(panic.is_err(), "{} took the blame unnoticed", cause.name());
    }
}

#[test]
fn every_errno_spares_the_neighbours() {
    // Each errno of the table at the first, a middle and the last operation of a batch of one socket.
    let target = |index: usize| sim::target(Port(0), ([192, 0, 2, index as u8], 7).into());
    for errno in 1..134 {
        for position in [0, 4, 8] {
            let (slab, slots) = Slab::new(SOCKET_SLOTS).expect("mapped");
            let slab = Arc::new(slab);
            let (submit, reap, control) = sim::ring(slab.clone(), 0, Faults::default());
            let now = here::now();
            let mut egress =
                Uring::with_ring(submit, reap, slab, slots, SOCKET_SLOTS, true, Completions::Inline, now)
                    .expect("uring");
            let fd = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null")));
            egress.add_socket(fd).expect("port");
            control.fail_sends_to(target(position).to, errno);
            for index in 0..9 {
                egress.append(&target(index), 100, Class::Data, |bytes| {
                    flows::write(bytes, index as u32, 0);
                    true
                });
            }
            // EAGAIN waits, EINTR is tried for ever: neither loses anything.
            let endless = [libc::EAGAIN, libc::EINTR, libc::ECANCELED].contains(&errno);
            if endless && errno != libc::EAGAIN {
                continue;
            }
            let fatal = [libc::EBADF, libc::ENOTSOCK, libc::ENXIO].contains(&errno);
            assert_eq!(egress.flush(now).is_err(), fatal, "errno {errno}");
            egress.flush(now).ok();
            let wire: Vec<u8> = control
                .take_wire()
                .iter()
                .filter_map(|delivered| match delivered.target?.to.ip() {
                    std::net::IpAddr::V4(to) => Some(to.octets()[3]),
                    std::net::IpAddr::V6(_) => None,
                })
                .collect();
            let neighbours: Vec<u8> = match errno {
                // What is behind a busy send waits with it, in order.
                libc::EAGAIN => (0..position as u8).collect(),
                _ => (0..9).filter(|&index| index != position as u8).collect(),
            };
            if !fatal {
                assert_eq!(wire, neighbours, "errno {errno} at {position}");
            }
            let lost = u64::from(errno != libc::EAGAIN);
            let stats = egress.stats();
            ledger::check(&stats, egress.pending());
            if !fatal {
                assert_eq!(stats.drops.total(), lost, "errno {errno}: {stats:?}");
            }
            ledger::check_slots(Subject::slots(&mut egress).expect("a ring"));
            if errno == libc::EAGAIN {
                control.fail_sends_to(target(position).to, 0);
                assert_eq!(egress.flush(now).expect("flush"), Flush::Done);
                assert_eq!(control.take_wire().len(), 9 - position);
            }
        }
    }
}

#[test]
fn a_socket_closed_with_packets_waiting_counts_them() {
    let mut run =
        Run::new(1, Faults { busy: 1_000, ..Faults::default() }, Completions::Inline, Mutation::None);
    let port = run.sockets[0];
    let target = sim::target(port, ([192, 0, 2, 1], 7).into());
    for _ in 0..10 {
        run.egress.append(&target, 100, Class::Data, |bytes| {
            flows::write(bytes, 0, 0);
            true
        });
    }
    assert_eq!(run.flush(), Flush::Waiting);
    run.egress.remove(port);
    run.egress.append(&target, 100, Class::Data, |_| true);
    let stats = run.egress.stats();
    assert_eq!(stats.drops.get(Cause::EgressClosed), 11);
    ledger::check(&stats, 0);
    // The next socket has the number, and nothing of the old one.
    run.control.set_faults(Faults::default());
    assert_eq!(run.egress.add_socket(run.fd.clone()).expect("port"), port);
    assert_eq!(run.flush(), Flush::Done);
    assert!(run.wire.is_empty());
}

/// Appends batches to two sockets and a device, and flushes each; what the superpackets of the last batch were.
fn batches(run: &mut Run, count: usize) -> [usize; 3] {
    let mut last = [0; 3];
    for _ in 0..count {
        run.wire.clear();
        for flow in [0, 1, FLOWS] {
            for _ in 0..30 {
                let number = run.numbers[flow];
                run.numbers[flow] += 1;
                if flow == FLOWS {
                    run.egress.deliver(run.device, &flows::mergeable_packet(flow as u32, number, 400));
                    continue;
                }
                let target = sim::target(run.sockets[flow], ([192, 0, 2, 1], 7).into());
                run.egress.append(&target, 400, Class::Data, |bytes| {
                    flows::write(bytes, flow as u32, number);
                    true
                });
            }
        }
        assert_eq!(run.flush(), Flush::Done);
        last = [0; 3];
        for delivered in &run.wire {
            let of = delivered.target.map_or(2, |target| usize::from(target.port == run.sockets[1]));
            let whole = match delivered.target {
                Some(_) => delivered.segment_size < delivered.bytes.len(),
                None => delivered.bytes[1] != 0,
            };
            last[of] += usize::from(whole);
        }
    }
    last
}

#[test]
fn an_offload_that_is_refused_is_given_up_alone_and_without_loss() {
    for completions in [Completions::Inline, Completions::Thread] {
        for errno in [libc::EINVAL, libc::EIO] {
            for given_up in 0..3 {
                let mut run = Run::new(1, Faults::default(), completions, Mutation::None);
                assert_eq!(batches(&mut run, 3), [1, 1, 1], "all is well");
                let kinds = [Refused::Of(run.sockets[0]), Refused::Of(run.sockets[1]), Refused::ToDevices];
                run.control.refuse_superpackets(kinds[given_up], errno);
                let superpackets = batches(&mut run, 3);
                for (kind, count) in superpackets.into_iter().enumerate() {
                    assert_eq!(count, usize::from(kind != given_up), "{given_up}, errno {errno}");
                }
                // Not asked for again, also when the kernel would take them now.
                run.control.refuse_superpackets(kinds[given_up], 0);
                assert_eq!(batches(&mut run, 1), superpackets);
                let (stats, _) = run.finish();
                assert_eq!((stats.gso_fallbacks, stats.resent), (1, 30), "{given_up}, errno {errno}");
                assert_eq!((stats.sent, stats.drops.total()), (stats.offered, 0));
            }
        }
    }
}

#[test]
fn superpackets_are_not_given_up_for_what_is_refused_one_by_one_too() {
    for errno in [libc::EINVAL, libc::EIO] {
        let mut run = Run::new(1, Faults::default(), Completions::Inline, Mutation::None);
        let bad: std::net::SocketAddr = ([192, 0, 2, 9], 7).into();
        run.control.fail_sends_to(bad, errno);
        let target = sim::target(run.sockets[0], bad);
        for _ in 0..20 {
            run.egress.append(&target, 400, Class::Data, |_| true);
        }
        assert_eq!(run.flush(), Flush::Done);
        assert_eq!(batches(&mut run, 1), [1, 1, 1], "others on the same socket");
        let stats = run.egress.close();
        assert_eq!((stats.drops.get(Cause::EgressInvalid), stats.drops.total()), (20, 20));
        ledger::check(&stats, 0);
    }
}

#[test]
fn of_many_sockets_without_superpackets_the_next_has_its_own() {
    let mut run = Run::new(1, Faults::default(), Completions::Inline, Mutation::None);
    run.control.refuse_superpackets(Refused::Of(run.sockets[0]), libc::EINVAL);
    batches(&mut run, 1);
    run.control.refuse_superpackets(Refused::Of(run.sockets[0]), 0);
    assert_eq!(batches(&mut run, 1), [0, 1, 1]);
    let old = run.sockets[0];
    run.egress.remove(old);
    run.sockets[0] = run.egress.add_socket(run.fd.clone()).expect("port");
    assert_eq!(run.sockets[0], old, "it has the number of the one before");
    assert_eq!(batches(&mut run, 1), [1, 1, 1]);
}
