//! The `uring` design over a ring that takes every operation at once: what staging, sealing, settling and recycling cost
//! without the kernel.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dataplane::egress::uring::{Reap, Submit};
use dataplane::egress::{Class, Egress, Flush, Port, Target, Uring};
use dataplane::engine::Completions;
use dataplane::sys::slab::{Slab, Slot};

use super::offload::{self, OFFLOADS, PAYLOAD_LEN};
use super::{SEGMENTS, origin};

/// Slots for datagrams and for devices, as the programs have them.
const SOCKET_SLOTS: usize = 64;
const DEVICE_SLOTS: usize = 15;

/// Operations that have completed, each with its slot and result.
type Completed = Arc<Mutex<Vec<(Slot, i32)>>>;

fn lock(completed: &Completed) -> MutexGuard<'_, Vec<(Slot, i32)>> {
    completed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The submitting half: an operation has completed when it is submitted.
pub struct Taker {
    queued: Vec<(Slot, i32)>,
    completed: Completed,
    enters: u64,
}

/// The reaping half.
pub struct TakerReap(Completed);

impl Submit for Taker {
    fn push_send(&mut self, slot: Slot, _: BorrowedFd<'_>, _: &Target, len: usize, _: usize, _: bool) {
        self.queued.push((slot, len as i32));
    }

    fn push_write(&mut self, slot: Slot, _: BorrowedFd<'_>, len: usize) {
        self.queued.push((slot, len as i32));
    }

    fn submit(&mut self) -> io::Result<usize> {
        self.enters += 1;
        let count = self.queued.len();
        lock(&self.completed).append(&mut self.queued);
        Ok(count)
    }

    fn in_flight(&self) -> usize {
        self.queued.len() + lock(&self.completed).len()
    }

    fn enters(&self) -> u64 {
        self.enters
    }

    fn cancel_all(&mut self) {}
}

impl Reap for TakerReap {
    fn peek_last(&mut self, count: usize, mut each: impl FnMut(i32)) -> bool {
        let completed = lock(&self.0);
        let Some(first) = completed.len().checked_sub(count) else { return false };
        completed[first..].iter().for_each(|(_, result)| each(*result));
        true
    }

    fn reap(&mut self, mut each: impl FnMut(Slot, i32)) -> usize {
        let mut completed = lock(&self.0);
        let count = completed.len();
        completed.drain(..).for_each(|(slot, result)| each(slot, result));
        count
    }

    fn wait(&self, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// Packets on their way out through a [`Taker`], again and again.
pub struct Leaving {
    egress: Uring<Taker, TakerReap>,
    device: Port,
    targets: Vec<Target>,
    packets: Vec<Vec<u8>>,
    now: Instant,
}

impl Leaving {
    /// [`SEGMENTS`] packets of 1,420 bytes and as many destinations as asked for.
    ///
    /// # Panics
    /// When memory or `/dev/null` is refused.
    #[must_use]
    pub fn new(destinations: u16) -> Self {
        let (slab, slots) = Slab::new(SOCKET_SLOTS + DEVICE_SLOTS).expect("memory for a ring");
        let completed = Completed::default();
        let submit = Taker { queued: Vec::new(), completed: completed.clone(), enters: 0 };
        let now = origin();
        // A completion thread would reap at moments of its own, and make no two counts equal.
        let mut egress = Uring::with_ring(
            submit,
            TakerReap(completed),
            Arc::new(slab),
            slots,
            SOCKET_SLOTS,
            true,
            Completions::Inline,
            now,
        )
        .expect("no thread to start");
        let nowhere = Arc::new(OwnedFd::from(File::open("/dev/null").expect("there is a /dev/null")));
        let port = egress.add_socket(nowhere.clone()).expect("room for a port");
        let device = egress.add_device(nowhere, OFFLOADS).expect("room for a port");
        let to = |index| SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 1_000 + index));
        let targets = (0..destinations)
            .map(|index| Target { port, to: to(index), from: None, traffic_class: 0, dont_fragment: false })
            .collect();
        Self { egress, device, targets, packets: offload::tcp_segments(SEGMENTS, PAYLOAD_LEN), now }
    }

    /// Appends each packet to every destination and submits.
    pub fn append(&mut self) {
        for packet in &self.packets {
            for target in &self.targets {
                self.egress.append(target, packet.len(), Class::Data, |slot| {
                    slot.copy_from_slice(packet);
                    true
                });
            }
        }
        self.flush();
    }

    /// Appends one packet to every destination and submits.
    pub fn append_one_each(&mut self) {
        let packet = &self.packets[0];
        for target in &self.targets {
            self.egress.append(target, packet.len(), Class::Data, |slot| {
                slot.copy_from_slice(packet);
                true
            });
        }
        self.flush();
    }

    /// Delivers each packet to the device and submits.
    pub fn deliver(&mut self) {
        for packet in &self.packets {
            self.egress.deliver(self.device, packet);
        }
        self.flush();
    }

    /// Operations so far: one for each superpacket.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.egress.stats().operations
    }

    fn flush(&mut self) {
        let flushed = self.egress.flush(self.now).expect("this ring does not break");
        debug_assert_eq!(flushed, Flush::Done, "this ring takes everything");
        self.egress.idle();
    }
}
