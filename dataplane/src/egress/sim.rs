//! A simulated ring: the same two halves as the real one, seeded faults, and a log of what reached the wire.
//!
//! The production code of the `uring` design runs on it unchanged, so that faults the kernel rarely shows can be shown
//! at will and again.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::uring::{Reap, Submit};
use super::{Port, Target};
use crate::sys::slab::{Slab, Slot};

/// Chances out of 1,000 that something goes wrong, for each operation or call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A send finds its socket busy (EAGAIN).
    pub busy: u32,
    /// An operation completes later than its submit.
    pub late: u32,
    /// Late completions come in another order.
    pub shuffled: bool,
    /// An operation fails with one of the errnos of [`ERRNOS`].
    pub error: u32,
    /// A superpacket is refused (EMSGSIZE).
    pub too_big: u32,
    /// A submit takes only some of what is queued.
    pub partial: u32,
    /// A submit answers EAGAIN or EBUSY.
    pub refused: u32,
    /// A completion reports fewer bytes than were sent.
    pub short: u32,
}

/// Errors that an operation may fail with.
pub const ERRNOS: [i32; 9] = [
    libc::ECONNREFUSED,
    libc::EHOSTUNREACH,
    libc::ENETUNREACH,
    libc::EPERM,
    libc::EACCES,
    libc::ENOBUFS,
    libc::ENOMEM,
    libc::EINVAL,
    libc::EINTR,
];

/// What reached the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Where it went; `None` for a device.
    pub target: Option<Target>,
    /// Segment size of a superpacket.
    pub segment_size: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Superpackets that a kernel refuses as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Those of a socket.
    Of(Port),
    /// Those to devices.
    ToDevices,
}

struct Operation {
    slot: Slot,
    target: Option<Target>,
    len: usize,
    segment_size: usize,
    link: bool,
}

struct Kernel {
    slab: Arc<Slab>,
    random: Xoshiro256PlusPlus,
    faults: Faults,
    /// Sends to this address fail with this errno.
    failing: Option<(std::net::SocketAddr, i32)>,
    refused: Option<(Refused, i32)>,
    queued: VecDeque<Operation>,
    late: Vec<(Operation, i32)>,
    completed: VecDeque<(Slot, i32)>,
    /// Results of the last submit, in order; cleared by the next.
    last: Vec<Option<i32>>,
    /// The chain that the next operation belongs to has failed.
    broken: bool,
    wire: Vec<Delivered>,
    injected: u64,
    enters: u64,
}

/// The submitting half.
pub struct SimSubmit(Arc<Mutex<Kernel>>);
/// The reaping half.
pub struct SimReap(Arc<Mutex<Kernel>>);
/// Looks into the simulated kernel and changes its faults.
#[derive(Clone)]
pub struct SimControl(Arc<Mutex<Kernel>>);

/// A simulated ring over `slab`.
#[must_use]
pub fn ring(slab: Arc<Slab>, seed: u64, faults: Faults) -> (SimSubmit, SimReap, SimControl) {
    let kernel = Arc::new(Mutex::new(Kernel {
        slab,
        random: Xoshiro256PlusPlus::seed_from_u64(seed),
        faults,
        failing: None,
        refused: None,
        queued: VecDeque::new(),
        late: Vec::new(),
        completed: VecDeque::new(),
        last: Vec::new(),
        broken: false,
        wire: Vec::new(),
        injected: 0,
        enters: 0,
    }));
    (SimSubmit(kernel.clone()), SimReap(kernel.clone()), SimControl(kernel))
}

fn lock(kernel: &Mutex<Kernel>) -> MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernel {
    fn chance(&mut self, fault: fn(&Faults) -> u32) -> bool {
        let of_1000 = fault(&self.faults);
        let hit = of_1000 > 0 && self.random.next_u32() % 1000 < of_1000;
        self.injected += u64::from(hit);
        hit
    }

    fn execute(&mut self, mut operation: Operation) {
        let cancelled = self.broken;
        let superpacket = operation.target.is_some() && operation.segment_size < operation.len;
        let result = if cancelled {
            -libc::ECANCELED
        } else if let Some(errno) = self.refusing_errno(&mut operation) {
            -errno
        } else if let Some(errno) = self.failing_errno(&operation) {
            -errno
        } else if operation.target.is_some() && self.chance(|faults| faults.busy) {
            -libc::EAGAIN
        } else if superpacket && self.chance(|faults| faults.too_big) {
            -libc::EMSGSIZE
        } else if self.chance(|faults| faults.error) {
            match ERRNOS[self.random.next_u32() as usize % ERRNOS.len()] {
                // A write to a non-blocking device never sleeps, so no signal interrupts it.
                libc::EINTR if operation.target.is_none() => -libc::EIO,
                errno => -errno,
            }
        } else if operation.len > 1 && self.chance(|faults| faults.short) {
            operation.len as i32 - 1
        } else {
            let bytes = self.slab.bytes(&mut operation.slot)[..operation.len].to_vec();
            let (target, segment_size) = (operation.target, operation.segment_size);
            self.wire.push(Delivered { target, segment_size, bytes });
            operation.len as i32
        };
        self.broken = operation.link && result != operation.len as i32;
        if self.chance(|faults| faults.late) {
            self.last.push(None);
            self.late.push((operation, result));
        } else {
            self.last.push(Some(result));
            self.completed.push_back((operation.slot, result));
        }
    }

    fn refusing_errno(&self, operation: &mut Operation) -> Option<i32> {
        /// `gso_type` of a virtio_net header, the second byte; zero for a packet alone.
        const GSO_TYPE: usize = 1;
        let (refused, errno) = self.refused?;
        let hit = match (refused, operation.target) {
            (Refused::Of(port), Some(target)) => {
                target.port == port && operation.segment_size < operation.len
            }
            (Refused::ToDevices, None) => self.slab.bytes(&mut operation.slot)[GSO_TYPE] != 0,
            _ => false,
        };
        hit.then_some(errno)
    }

    fn failing_errno(&self, operation: &Operation) -> Option<i32> {
        let (to, errno) = self.failing?;
        operation.target.filter(|target| target.to == to).map(|_| errno)
    }

    /// Time passes: what was late completes.
    fn complete_late(&mut self) {
        while !self.late.is_empty() {
            let shuffled = self.faults.shuffled;
            let index = if shuffled { self.random.next_u32() as usize % self.late.len() } else { 0 };
            let (operation, result) = self.late.remove(index);
            self.completed.push_back((operation.slot, result));
        }
    }
}

impl SimControl {
    /// What reached the wire so far, taken out.
    #[must_use]
    pub fn take_wire(&self) -> Vec<Delivered> {
        std::mem::take(&mut lock(&self.0).wire)
    }

    /// Faults injected so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        lock(&self.0).injected
    }

    /// Lets every send to `to` fail with `errno`, and no longer those to an address named before. Zero: none fails.
    pub fn fail_sends_to(&self, to: std::net::SocketAddr, errno: i32) {
        lock(&self.0).failing = (errno != 0).then_some((to, errno));
    }

    /// Lets every superpacket of a kind fail with `errno`, and no longer those of a kind named before. Zero: none fails.
    pub fn refuse_superpackets(&self, refused: Refused, errno: i32) {
        lock(&self.0).refused = (errno != 0).then_some((refused, errno));
    }

    /// Replaces the faults: none lets everything through.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.0).faults = faults;
    }
}

impl SimSubmit {
    fn queue(&self, operation: Operation) {
        lock(&self.0).queued.push_back(operation);
    }
}

impl Submit for SimSubmit {
    fn push_send(
        &mut self,
        slot: Slot,
        _fd: BorrowedFd<'_>,
        target: &Target,
        len: usize,
        segment_size: usize,
        link: bool,
    ) {
        self.queue(Operation { slot, target: Some(*target), len, segment_size, link });
    }

    fn push_write(&mut self, slot: Slot, _fd: BorrowedFd<'_>, len: usize) {
        self.queue(Operation { slot, target: None, len, segment_size: len, link: false });
    }

    fn submit(&mut self) -> io::Result<usize> {
        let mut kernel = lock(&self.0);
        kernel.enters += 1;
        if kernel.chance(|faults| faults.refused) {
            let errno = if kernel.random.next_u32() & 1 == 0 { libc::EAGAIN } else { libc::EBUSY };
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut count = kernel.queued.len();
        if count > 1 && kernel.chance(|faults| faults.partial) {
            // A chain is submitted whole: the kernel would cut it, and what is cut would run unlinked.
            count = 1 + kernel.random.next_u32() as usize % (count - 1);
            while count < kernel.queued.len() && kernel.queued[count - 1].link {
                count += 1;
            }
        }
        kernel.last.clear();
        for _ in 0..count {
            if let Some(operation) = kernel.queued.pop_front() {
                kernel.execute(operation);
            }
        }
        Ok(count)
    }

    fn in_flight(&self) -> usize {
        let kernel = lock(&self.0);
        kernel.queued.len() + kernel.late.len() + kernel.completed.len()
    }

    fn enters(&self) -> u64 {
        lock(&self.0).enters
    }

    fn cancel_all(&mut self) {
        lock(&self.0).complete_late();
    }
}

impl Reap for SimReap {
    fn peek_last(&mut self, count: usize, mut each: impl FnMut(i32)) -> bool {
        let kernel = lock(&self.0);
        let known = kernel.last.len() >= count && kernel.last.iter().all(Option::is_some);
        if known {
            kernel.last[kernel.last.len() - count..].iter().flatten().for_each(|&result| each(result));
        }
        known
    }

    fn reap(&mut self, mut each: impl FnMut(Slot, i32)) -> usize {
        let completed = std::mem::take(&mut lock(&self.0).completed);
        let count = completed.len();
        completed.into_iter().for_each(|(slot, result)| each(slot, result));
        count
    }

    fn wait(&self, _timeout: Duration) -> io::Result<()> {
        lock(&self.0).complete_late();
        Ok(())
    }
}

/// A port for targets on a simulated ring.
#[must_use]
pub fn target(port: Port, to: std::net::SocketAddr) -> Target {
    Target { port, to, from: None, traffic_class: 0, dont_fragment: false }
}
