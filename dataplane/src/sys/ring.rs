//! The egress ring: pushes sends and device writes, submits them, and hands slots back with their results.
//!
//! It comes in two halves. The submitting half belongs to one thread; the reaping half is `Send` and goes behind a lock
//! so that either the completion thread or the submitter reaps.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

use super::slab::{SLOT_LEN, Slab, Slot};
use crate::egress::Target;

/// No send waits in the kernel, and none raises a signal.
const SEND_FLAGS: u32 = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32;

struct Shared {
    ring: IoUring,
    slab: Arc<Slab>,
    /// Operations pushed whose slot has not come back.
    in_flight: AtomicU32,
    /// Completions that matched no slot in flight: zero unless this program or the kernel has a bug.
    foreign: AtomicU32,
}

/// The submitting half.
pub struct SubmitHalf {
    shared: Arc<Shared>,
    /// Slots from here on are registered with the kernel as buffer 0.
    registered_from: usize,
    queued: u32,
    enters: u64,
    overflows: u64,
}

/// The reaping half.
pub struct ReapHalf {
    shared: Arc<Shared>,
    /// By slot: what a zero-copy send came to, until its notification brings the slot back.
    results: Box<[i32]>,
    /// Notifications that said the kernel had copied after all.
    copied: u64,
}

/// IORING_SEND_ZC_REPORT_USAGE and IORING_NOTIF_USAGE_ZC_COPIED of io_uring.h, which the crate does not name.
const REPORT_USAGE: u16 = 1 << 3;
const WAS_COPIED: u32 = 1 << 31;

/// IORING_REGISTER_SYNC_CANCEL (linux/io_uring.h): the crate keeps its names for registrations to itself.
pub(super) const REGISTER_SYNC_CANCEL: u8 = 24;

/// Sets up a ring for the slots of `slab`; slots from `register_from` on are registered for device writes.
/// The calling thread is the submitter from then on.
///
/// # Errors
/// What io_uring_setup(2) answers. A limit on locked memory only costs the registration: see
/// [`SubmitHalf::is_registered`].
pub fn new(slab: Arc<Slab>, register_from: usize) -> io::Result<(SubmitHalf, ReapHalf)> {
    let entries = (slab.count() as u32).next_power_of_two();
    let mut builder = IoUring::builder();
    // Twice the slots would do.
    builder.setup_cqsize(entries * 4).setup_submit_all().setup_single_issuer().setup_coop_taskrun();
    builder.setup_r_disabled();
    let ring: IoUring = builder.dontfork().build(entries)?;
    let mut registered_from = slab.count();
    if register_from < slab.count() {
        let range = libc::iovec {
            iov_base: slab.start_of(register_from).cast(),
            iov_len: (slab.count() - register_from) * SLOT_LEN,
        };
        // SAFETY: the range is part of the slab's mapping, which `shared` keeps for as long as the ring.
        if unsafe { ring.submitter().register_buffers(&[range]) }.is_ok() {
            registered_from = register_from;
        }
    }
    let results = vec![0; slab.count()].into();
    restrict(
        &ring,
        &[opcode::SendMsg::CODE, opcode::SendMsgZc::CODE, opcode::Write::CODE, opcode::WriteFixed::CODE],
        squeue::Flags::IO_LINK,
        &[REGISTER_SYNC_CANCEL],
    )?;
    let shared = Arc::new(Shared { ring, slab, in_flight: AtomicU32::new(0), foreign: AtomicU32::new(0) });
    let submit = SubmitHalf { shared: shared.clone(), registered_from, queued: 0, enters: 0, overflows: 0 };
    Ok((submit, ReapHalf { shared, results, copied: 0 }))
}

/// Narrows a disabled ring, for good, to what its owner does with it (io_uring_register(2), IORING_REGISTER_RESTRICTIONS),
/// and enables it: the calling thread is its submitter from then on. Filters of system calls do not see what a ring does,
/// so that the ring has to refuse by itself.
///
/// # Errors
/// What io_uring_register(2) answers.
pub(super) fn restrict(
    ring: &IoUring,
    operations: &[u8],
    flags: squeue::Flags,
    registrations: &[u8],
) -> io::Result<()> {
    // The kernel refuses a list with an operation that it does not have, and nobody can ask for that one anyway.
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known)?;
    let operations = operations.iter().filter(|&&operation| known.is_supported(operation));
    let operations = operations.map(|&operation| Restriction::sqe_op(operation));
    let registrations = registrations.iter().map(|&registration| Restriction::register_op(registration));
    let flags = Restriction::sqe_flags_allowed(flags.bits());
    let mut restrictions: Vec<Restriction> = operations.chain(registrations).chain([flags]).collect();
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

impl SubmitHalf {
    /// Whether the device slots are registered; without it device writes go through plain, unregistered memory.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registered_from < self.shared.slab.count()
    }

    /// `io_uring_enter` calls so far.
    #[must_use]
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Submits after which the kernel had more completions than the ring has room for (IORING_SQ_CQ_OVERFLOW, io_uring(7)). It
    /// keeps those and posts them later, so that none is lost; the ring has room for four times its slots all the same.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Queues a datagram or superpacket of `len` bytes. With `link`, the next operation waits for this one and is
    /// cancelled when it fails.
    pub fn push_send(
        &mut self,
        slot: Slot,
        fd: BorrowedFd<'_>,
        target: &Target,
        len: usize,
        segment_size: usize,
        link: bool,
    ) {
        assert!(len <= SLOT_LEN);
        let payload = self.shared.slab.address(&slot);
        let header = self.shared.slab.header(&slot);
        // SAFETY: `slot` is the only key to this header and is owned here.
        let header_ref = unsafe { &mut *header };
        header_ref.prepare(target, payload, len, segment_size);
        let fd = types::Fd(fd.as_raw_fd());
        let entry = opcode::SendMsg::new(fd, header_ref.message()).flags(SEND_FLAGS).build();
        self.push(slot, entry, link);
    }

    /// As [`push_send`](Self::push_send), but the kernel sends from the slot itself (IORING_OP_SENDMSG_ZC, io_uring_enter(2)).
    /// The slot comes back with the notification, when nothing in the kernel refers to it any more. The engine does not use
    /// it: `benches/README.md` says what it costs.
    pub fn push_send_zero_copy(
        &mut self,
        slot: Slot,
        fd: BorrowedFd<'_>,
        target: &Target,
        len: usize,
        segment_size: usize,
    ) {
        assert!(len <= SLOT_LEN);
        let payload = self.shared.slab.address(&slot);
        let header = self.shared.slab.header(&slot);
        // SAFETY: `slot` is the only key to this header and is owned here.
        let header_ref = unsafe { &mut *header };
        header_ref.prepare(target, payload, len, segment_size);
        let fd = types::Fd(fd.as_raw_fd());
        let entry =
            opcode::SendMsgZc::new(fd, header_ref.message()).flags(SEND_FLAGS).ioprio(REPORT_USAGE).build();
        self.push(slot, entry, false);
    }

    /// Queues a write of `len` bytes to a device.
    pub fn push_write(&mut self, slot: Slot, fd: BorrowedFd<'_>, len: usize) {
        assert!(len <= SLOT_LEN);
        let payload = self.shared.slab.address(&slot);
        let fd = types::Fd(fd.as_raw_fd());
        let entry = match slot.index() >= self.registered_from {
            true => opcode::WriteFixed::new(fd, payload, len as u32, 0).build(),
            false => opcode::Write::new(fd, payload, len as u32).build(),
        };
        self.push(slot, entry, false);
    }

    fn push(&mut self, slot: Slot, entry: squeue::Entry, link: bool) {
        let flags = if link { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
        let entry = entry.flags(flags).user_data(self.shared.slab.hand_over(slot));
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        // SAFETY: this half is the only user of the submission queue and is borrowed mutably.
        let mut queue = unsafe { self.shared.ring.submission_shared() };
        // SAFETY: what the entry points at is the slot and the header beside it, which belong to the kernel from
        // here to the terminal completion: `hand_over` consumed the slot.
        let pushed = unsafe { queue.push(&entry) };
        assert!(pushed.is_ok(), "the submission queue is as large as the slab");
        self.queued += 1;
    }

    /// Submits everything queued. The answer is how many operations went.
    ///
    /// # Errors
    /// EAGAIN or EBUSY when the kernel wants completions reaped first (what was not submitted stays queued); others
    /// are fatal.
    pub fn submit(&mut self) -> io::Result<usize> {
        let mut submitted = 0;
        while self.queued > 0 {
            self.enters += 1;
            match self.shared.ring.submit() {
                Ok(count) => {
                    self.queued -= count as u32;
                    submitted += count;
                    // SAFETY: this half is the only user of the submission queue and is borrowed mutably.
                    let queue = unsafe { self.shared.ring.submission_shared() };
                    self.overflows += u64::from(queue.cq_overflow());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if submitted > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(submitted)
    }

    /// Operations pushed whose slot has not come back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire) as usize
    }

    /// Cancels everything in flight; completions still have to be reaped.
    pub fn cancel_all(&mut self) {
        let _ = self.shared.ring.submitter().register_sync_cancel(None, types::CancelBuilder::any());
    }
}

impl ReapHalf {
    /// Shows the results of the last `count` completions without consuming them. `false` when some of them have been
    /// reaped already, or the kernel has not posted all: then reap to know.
    pub fn peek_last(&mut self, count: usize, mut each: impl FnMut(i32)) -> bool {
        // SAFETY: this half is the only consumer of the completion queue and is borrowed mutably. The queue is never
        // dropped, so that the head is not written back and nothing is consumed.
        let mut queue = ManuallyDrop::new(unsafe { self.shared.ring.completion_shared() });
        let Some(older) = queue.len().checked_sub(count) else { return false };
        for entry in queue.by_ref().skip(older) {
            each(entry.result());
        }
        true
    }

    /// Takes every completion there is and hands its slot and result (bytes or a negative errno) over, in the order
    /// in which the kernel completed them. The answer is how many there were.
    pub fn reap(&mut self, mut each: impl FnMut(Slot, i32)) -> usize {
        // SAFETY: this half is the only consumer of the completion queue and is borrowed mutably.
        let queue = unsafe { self.shared.ring.completion_shared() };
        let mut count = 0;
        for entry in queue {
            if cqueue::more(entry.flags()) {
                // Of a zero-copy send; the notification that follows has no result of its own.
                if let Some(result) = self.results.get_mut(entry.user_data() as u32 as usize) {
                    *result = entry.result();
                }
                continue;
            }
            match self.shared.slab.take_back(entry.user_data()) {
                Some(slot) if cqueue::notif(entry.flags()) => {
                    count += 1;
                    self.copied += u64::from(entry.result() as u32 & WAS_COPIED != 0);
                    let result = self.results[slot.index()];
                    each(slot, result);
                }
                Some(slot) => {
                    count += 1;
                    each(slot, entry.result());
                }
                None => {
                    self.shared.foreign.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        // Release: who sees the count go down sees the slots given back.
        self.shared.in_flight.fetch_sub(count as u32, Ordering::Release);
        count
    }

    /// Waits in the kernel until a completion is there or `timeout` has passed.
    ///
    /// # Errors
    /// What io_uring_enter(2) answers, other than ETIME and EINTR.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timespec = types::Timespec::from(timeout);
        let args = types::SubmitArgs::new().timespec(&timespec);
        let flags = submit_flags();
        // SAFETY: nothing is submitted; `args` and `timespec` live in this frame until the call returns.
        let answer = unsafe { self.shared.ring.submitter().enter(0, 1, flags, Some(&args)) };
        match answer {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Operations pushed whose slot has not come back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire) as usize
    }

    /// Zero-copy sends that the kernel copied after all.
    #[must_use]
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// Completions that matched no slot in flight.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        u64::from(self.shared.foreign.load(Ordering::Relaxed))
    }
}

/// IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, as numbers: the crate's flag type is private.
fn submit_flags() -> u32 {
    1 | 8
}

/// For tests of what needs a ring: there is none to be had here.
#[cfg(test)]
pub(crate) fn left_out() {
    crate::left_out::left_out("what needs a ring: sysctl kernel.io_uring_disabled=0");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Port;
    use crate::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
    use std::os::fd::AsFd;

    /// A ring, or nothing where there is none to be had, which is said.
    fn set_up(slab: &Arc<Slab>) -> Option<(SubmitHalf, ReapHalf)> {
        let halves = new(slab.clone(), slab.count()).ok();
        if halves.is_none() {
            left_out();
        }
        halves
    }

    #[test]
    fn the_ring_refuses_what_it_is_not_there_for() {
        let (slab, _slots) = Slab::new(16).expect("mapped");
        let Some((submit, mut reap)) = set_up(&Arc::new(slab)) else { return };
        let path = c"/";
        let forbidden = [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_DGRAM, 0).build(),
            opcode::Timeout::new(&types::Timespec::new()).build(),
            // The operation is one of ours; that a kernel thread is to do it is not.
            opcode::Write::new(types::Fd(2), path.as_ptr().cast(), 0).build().flags(squeue::Flags::ASYNC),
        ];
        for entry in &forbidden {
            // SAFETY: this test is the only user of the submission queue.
            let mut queue = unsafe { submit.shared.ring.submission_shared() };
            // SAFETY: what the entry points at outlives the submission below, which refuses it.
            unsafe { queue.push(entry) }.expect("room");
            drop(queue);
            submit.shared.ring.submit().expect("submitted");
            let mut result = None;
            assert!(reap.peek_last(1, |value| result = Some(value)));
            assert_eq!(result, Some(-libc::EACCES), "{entry:?}");
        }
        let another = submit.shared.ring.submitter().register_files_sparse(1);
        assert_eq!(another.map_err(|error| error.raw_os_error()), Err(Some(libc::EACCES)));
    }

    #[test]
    fn a_zero_copy_send_brings_its_own_result_back() {
        let any = "127.0.0.1:0".parse().expect("address");
        let bind =
            || UdpSocket::bind(any, &UdpOptions { gro: false, ..UdpOptions::default() }).expect("socket");
        let (sender, receiver) = (bind(), bind());
        let (slab, slots) = Slab::new(2).expect("mapped");
        let Some((mut submit, mut reap)) = set_up(&Arc::new(slab)) else { return };
        let good = Target {
            port: Port(0),
            to: receiver.local_addr(),
            from: None,
            traffic_class: 0,
            dont_fragment: false,
        };
        // EACCES: the socket has no SO_BROADCAST.
        let bad = Target { to: "255.255.255.255:9".parse().expect("address"), ..good };
        for (slot, target) in slots.into_iter().zip([good, bad]) {
            submit.push_send_zero_copy(slot, sender.fd().as_fd(), &target, 100, 100);
        }
        submit.submit().expect("submitted");
        let mut results = Vec::new();
        while results.len() < 2 {
            reap.wait(Duration::from_millis(100)).expect("waited");
            reap.reap(|slot, result| results.push((slot.index(), result)));
        }
        results.sort_unstable();
        assert_eq!(results.iter().map(|&(_, result)| result).max(), Some(100));
        assert_eq!(results.iter().map(|&(_, result)| result).min(), Some(-libc::EACCES));
        // On loopback the kernel copies what the receiver gets; what failed has nothing to copy.
        assert!(reap.copied() <= 2);
        assert_eq!((submit.in_flight(), reap.foreign()), (0, 0));
    }

    #[test]
    fn linked_sends_leave_in_order_and_are_known_when_submit_returns() {
        let any = "127.0.0.1:0".parse().expect("address");
        let bind =
            || UdpSocket::bind(any, &UdpOptions { gro: false, ..UdpOptions::default() }).expect("socket");
        let (sender, receiver) = (bind(), bind());
        let (slab, slots) = Slab::new(16).expect("mapped");
        let slab = Arc::new(slab);
        let Some((mut submit, mut reap)) = set_up(&slab) else { return };
        let target = Target {
            port: Port(0),
            to: receiver.local_addr(),
            from: None,
            traffic_class: 0,
            dont_fragment: false,
        };
        for (index, mut slot) in slots.into_iter().enumerate() {
            slab.bytes(&mut slot)[0] = index as u8;
            submit.push_send(slot, sender.fd().as_fd(), &target, 1, 1, index < 15);
        }
        assert_eq!(submit.submit().expect("submitted"), 16);
        let mut results = Vec::new();
        assert!(reap.peek_last(16, |result| results.push(result)), "every result is there");
        assert_eq!(results, vec![1; 16]);
        let mut slots = Vec::new();
        assert_eq!(reap.reap(|slot, _| slots.push(slot.index())), 16);
        assert_eq!(slots, (0..16).collect::<Vec<_>>());
        assert_eq!((submit.in_flight(), reap.foreign()), (0, 0));
        assert!(!reap.peek_last(16, |_| {}), "the reaper has taken them");
        let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
        receiver.receive_batch(&mut batch).expect("received");
        let seen: Vec<u8> = batch.iter_mut().map(|arrival| arrival.bytes[0]).collect();
        assert_eq!(seen, (0..16).collect::<Vec<u8>>());
    }
}
