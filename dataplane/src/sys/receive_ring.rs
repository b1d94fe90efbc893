//! The ingress ring: multishot receives and reads into a ring of provided buffers (io_uring_register_buf_ring(3)).
//!
//! One thread owns it. A buffer belongs to the kernel until a completion names it, then to the callback for the time of
//! the call, then to the kernel again, or to the ring while the callback has it kept. Datagrams and devices have buffers
//! of their own, so that what is kept of a paused device takes none from the sockets.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::address::{self, ADDRESS_LEN};
use super::message::{self, RECEIVE_CONTROL, ReceiveInfo};
pub use super::receive_buffers::Buffer;
use super::receive_buffers::{Buffers, Mapping};
use super::ring::{REGISTER_SYNC_CANCEL, restrict};

/// `struct io_uring_recvmsg_out`.
const OUT_HEADER: usize = 16;
/// What a multishot receive puts in front of the payload of a datagram, bytes.
pub const PAYLOAD_FROM: usize = OUT_HEADER + ADDRESS_LEN.next_multiple_of(4) + RECEIVE_CONTROL;
/// Payload that fits, in bytes: a superpacket, or a TUN superpacket with its header.
pub const PAYLOAD: usize = 65_536 + 64;
/// Size of one buffer.
const BUFFER: usize = (PAYLOAD_FROM + PAYLOAD).next_multiple_of(64);
/// IORING_REGISTER_PROBE and IORING_UNREGISTER_PBUF_RING (linux/io_uring.h).
const REGISTER_PROBE: u8 = 8;
const UNREGISTER_BUFFERS: u8 = 23;
/// Completions taken at a time.
pub const BATCH: usize = 64;
/// Bytes that may arrive before the kernel runs out of buffers, for datagrams and for devices. The kernel fills one buffer
/// after the other: superpackets that walked through all of them would find none in the second-level cache, which cost a
/// stream 2 to 3 % more CPU. Single packets fill a fraction of a buffer each and get as many as there are.
const DATAGRAM_BYTES: usize = 8 * 64 * 1024;
const DEVICE_BYTES: usize = 4 * 64 * 1024;
/// The kernel always has this many to fill.
const PROVIDED_MIN: usize = 4;

/// A completion.
#[derive(Debug)]
pub struct Event<'a> {
    /// As given when it was armed.
    pub user_data: u64,
    /// Bytes or a negative errno.
    pub result: i32,
    /// Whether more completions of this operation follow; if not, arm it again.
    pub more: bool,
    /// The buffer's used part, if one was used.
    pub bytes: Option<&'a mut [u8]>,
}

/// What a multishot receive wrote into a buffer.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// The sender; `None` when it has no IP address or the datagram was truncated.
    pub from: Option<SocketAddr>,
    /// What the control messages say.
    pub info: ReceiveInfo,
    /// The payload.
    pub payload: &'a mut [u8],
}

/// Takes a received buffer apart; `None` when it is shorter than its own header.
#[must_use]
pub fn parse_datagram(bytes: &mut [u8]) -> Option<Datagram<'_>> {
    let (front, payload) = bytes.split_at_mut_checked(PAYLOAD_FROM)?;
    // struct io_uring_recvmsg_out: namelen, controllen, payloadlen, flags, each 32 bits wide.
    let word = |index: usize| -> Option<u32> {
        let bytes = front.get(index * 4..index * 4 + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (control_len, payload_len, flags) = (word(1)? as usize, word(2)? as usize, word(3)?);
    let name = OUT_HEADER..OUT_HEADER + ADDRESS_LEN;
    let control = PAYLOAD_FROM - RECEIVE_CONTROL;
    let info = message::parse_control(front.get(control..control + control_len.min(RECEIVE_CONTROL))?);
    let truncated = flags & libc::MSG_TRUNC as u32 != 0 || payload_len > payload.len();
    let from = address::decode(&front[name]).filter(|_| !truncated);
    Some(Datagram { from, info, payload: &mut payload[..payload_len.min(PAYLOAD)] })
        .filter(|datagram| datagram.payload.len() == payload_len || truncated)
}

/// What becomes of a completion's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Done with it.
    Return,
    /// It is handed over again by [`ReceiveRing::hand_over_kept`]. A completion without a buffer is not kept.
    Keep,
}

/// A completion, with its buffer.
#[derive(Debug)]
pub struct Taken {
    /// As given when it was armed.
    pub user_data: u64,
    /// Bytes or a negative errno.
    pub result: i32,
    /// Whether more completions of this operation follow; if not, arm it again.
    pub more: bool,
    /// The buffer, if one was used. It goes back by [`ReceiveRing::give_back`] or is kept by [`ReceiveRing::keep`].
    pub buffer: Option<Buffer>,
}

/// A buffer that is neither the kernel's nor a callback's.
struct Kept {
    user_data: u64,
    buffer: Buffer,
}

/// A ring of provided buffers: those from `first` on, `count` of them, a power of two.
struct Group {
    id: u16,
    first: u16,
    count: u16,
    tail: u16,
    entries: Mapping,
    /// Buffers that the kernel has not; the one used last is provided first.
    spare: Vec<u16>,
    /// Buffers that the kernel has.
    provided: usize,
    /// How many it should have.
    wanted: usize,
    /// Bytes that should fit into those.
    bytes_wanted: usize,
    /// Completions and their bytes since the last [`Group::refill`].
    seen: (usize, usize),
}

impl Group {
    fn new(id: u16, first: u16, count: u16, bytes_wanted: usize) -> io::Result<Self> {
        let entries = Mapping::new(usize::from(count) * size_of::<types::BufRingEntry>())?;
        let spare = (first..first + count).rev().collect();
        let wanted = usize::from(count);
        Ok(Self {
            id,
            first,
            count,
            tail: 0,
            entries,
            spare,
            provided: 0,
            wanted,
            bytes_wanted,
            seen: (0, 0),
        })
    }

    /// A completion has named a buffer, with so many bytes in it.
    fn taken(&mut self, len: usize) {
        self.provided -= 1;
        self.seen = (self.seen.0 + 1, self.seen.1 + len);
    }

    /// Gives the kernel as many buffers as what came last asks for. `start` says where a buffer is.
    fn refill(&mut self, start: impl Fn(u16) -> *mut u8) {
        let (completions, bytes) = std::mem::take(&mut self.seen);
        if let Some(mean) = bytes.checked_div(completions) {
            self.wanted = (self.bytes_wanted / mean.max(1)).clamp(PROVIDED_MIN, usize::from(self.count));
        }
        while self.provided < self.wanted
            && let Some(buffer) = self.spare.pop()
        {
            self.provide(buffer, start(buffer));
        }
        self.publish();
    }

    /// Puts a buffer, which starts at `address`, into the ring.
    fn provide(&mut self, buffer: u16, address: *mut u8) {
        let index = usize::from(self.tail & (self.count - 1));
        let base: *mut types::BufRingEntry = self.entries.start().cast();
        // SAFETY: `index` is below the number of entries that the mapping holds.
        let entry = unsafe { base.add(index) };
        // SAFETY: the entry is ours until `publish` moves the tail past it; the mapping is zeroed, valid memory.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address as u64);
        entry.set_len(BUFFER as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.provided += 1;
    }

    /// Lets the kernel see the buffers provided so far.
    fn publish(&self) {
        let base: *const types::BufRingEntry = self.entries.start().cast();
        // SAFETY: `base` is the registered ring; the tail lies inside its first entry.
        let tail = unsafe { types::BufRingEntry::tail(base) };
        // SAFETY: the kernel reads this aligned 16-bit word atomically; an atomic has the same layout.
        let tail = unsafe { &*tail.cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

/// The ring and its buffers.
pub struct ReceiveRing {
    ring: IoUring,
    buffers: Arc<Buffers>,
    datagrams: Group,
    devices: Group,
    kept: VecDeque<Kept>,
    /// Read by the kernel for as long as a receive is armed.
    template: Box<libc::msghdr>,
    enters: u64,
    overflows: u64,
}

// SAFETY: the pointers are to mappings and a box that this value owns; it is used by one thread at a time.
unsafe impl Send for ReceiveRing {}

impl ReceiveRing {
    /// Sets up a ring with so many buffers for datagrams and for devices (powers of two); the calling thread owns it from
    /// then on.
    ///
    /// # Errors
    /// What io_uring_setup(2) and io_uring_register(2) answer.
    pub fn new(datagrams: u16, devices: u16) -> io::Result<Self> {
        let (datagrams, devices) = (datagrams.next_power_of_two(), devices.next_power_of_two());
        let mut builder = IoUring::builder();
        builder
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(4096)
            .setup_r_disabled();
        let ring: IoUring = builder.dontfork().build(256)?;
        let count = datagrams + devices;
        let buffers = Arc::new(Buffers::new(count, BUFFER)?);
        let datagrams = Group::new(0, 0, datagrams, DATAGRAM_BYTES)?;
        let devices = Group::new(1, datagrams.count, devices, DEVICE_BYTES)?;
        let mut template = Box::new(message::empty_message());
        template.msg_namelen = ADDRESS_LEN as u32;
        template.msg_controllen = RECEIVE_CONTROL;
        for group in [&datagrams, &devices] {
            let address = group.entries.start() as u64;
            // SAFETY: the mapping holds `count` entries, is page-aligned and lives until the ring is gone (see `drop`).
            unsafe { ring.submitter().register_buf_ring_with_flags(address, group.count, group.id, 0)? };
        }
        restrict(
            &ring,
            &[opcode::RecvMsgMulti::CODE, opcode::ReadMulti::CODE, opcode::PollAdd::CODE],
            squeue::Flags::BUFFER_SELECT,
            &[REGISTER_SYNC_CANCEL, REGISTER_PROBE, UNREGISTER_BUFFERS],
        )?;
        let kept = VecDeque::with_capacity(usize::from(count));
        let mut this = Self { ring, buffers, datagrams, devices, kept, template, enters: 0, overflows: 0 };
        this.refill();
        Ok(this)
    }

    /// Whether the kernel has multishot reads (IORING_OP_READ_MULTISHOT, Linux 6.7): [`ReceiveRing::arm_read`] needs them.
    #[must_use]
    pub fn reads_devices(&self) -> bool {
        let mut probe = io_uring::Probe::new();
        self.ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::ReadMulti::CODE)
    }

    /// `io_uring_enter` calls so far.
    #[must_use]
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Waits after which the kernel had more completions than the ring has room for (IORING_SQ_CQ_OVERFLOW, io_uring(7)). It
    /// keeps those and posts them later; meanwhile every multishot receive ends after one completion.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// The group that a buffer belongs to.
    fn group(&mut self, buffer: &Buffer) -> &mut Group {
        if buffer.index() < usize::from(self.devices.first) { &mut self.datagrams } else { &mut self.devices }
    }

    /// Gives the kernel buffers to fill: call it when a batch is dealt with.
    pub fn refill(&mut self) {
        let Self { buffers, datagrams, devices, .. } = self;
        let start = |buffer: u16| buffers.start_of(buffer);
        datagrams.refill(start);
        devices.refill(start);
    }

    /// The memory of the buffers.
    #[must_use]
    pub fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Arms a multishot receive on a UDP socket.
    ///
    /// # Errors
    /// What io_uring_enter(2) answers when the queue had to be submitted first.
    pub fn arm_receive(&mut self, fd: BorrowedFd<'_>, user_data: u64) -> io::Result<()> {
        let entry = opcode::RecvMsgMulti::new(
            types::Fd(fd.as_raw_fd()),
            &raw const *self.template,
            self.datagrams.id,
        )
        .build();
        self.push(entry.user_data(user_data))
    }

    /// Arms a multishot read of a device.
    ///
    /// # Errors
    /// As [`ReceiveRing::arm_receive`].
    pub fn arm_read(&mut self, fd: BorrowedFd<'_>, user_data: u64) -> io::Result<()> {
        let entry = opcode::ReadMulti::new(types::Fd(fd.as_raw_fd()), 0, self.devices.id).build();
        self.push(entry.user_data(user_data))
    }

    /// Arms a one-shot poll for readiness (poll(2) flags).
    ///
    /// # Errors
    /// As [`ReceiveRing::arm_receive`].
    pub fn arm_poll(&mut self, fd: BorrowedFd<'_>, flags: i16, user_data: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), flags as u32).build();
        self.push(entry.user_data(user_data))
    }

    /// Cancels everything that is armed; the last completions still come.
    pub fn cancel_all(&mut self) {
        // As in `cancel`: what was armed and not submitted yet would come to life later.
        self.enters += 1;
        let _ = self.ring.submit();
        let _ = self.ring.submitter().register_sync_cancel(None, types::CancelBuilder::any());
    }

    /// Cancels what is armed under `user_data`; its last completion still comes.
    pub fn cancel(&mut self, user_data: u64) {
        if !self.ring.submission().is_empty() {
            // What was armed and never submitted cannot be cancelled; submitted later, it would read from whatever file has
            // the descriptor's number by then.
            self.enters += 1;
            let _ = self.ring.submit();
        }
        // ENOENT: it had already ended, which is what was wanted.
        let _ = self
            .ring
            .submitter()
            .register_sync_cancel(None, types::CancelBuilder::user_data(user_data).all());
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.enters += 1;
            self.ring.submit()?;
        }
        // SAFETY: what entries point at (the template) lives as long as the ring; buffers are the provided ones.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Submits what was armed and waits for a completion, at most `timeout` (`None`: for ever). Zero takes no system call where
    /// there is nothing to submit and the kernel has nothing to do for the ring.
    ///
    /// # Errors
    /// Fatal ones.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if !self.ring.completion().is_empty() && self.ring.submission().is_empty() {
            return Ok(());
        }
        let waited = if timeout == Some(Duration::ZERO) {
            let queue = self.ring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
            drop(queue);
            // To wait for one completion for no time at all would put the thread to sleep until a timer fires.
            self.enters += 1;
            self.ring.submitter().submit_and_wait(0)
        } else {
            self.enters += 1;
            let timespec = timeout.map(types::Timespec::from);
            let mut args = types::SubmitArgs::new();
            if let Some(timespec) = &timespec {
                args = args.timespec(timespec);
            }
            self.ring.submitter().submit_with_args(1, &args)
        };
        self.overflows += u64::from(self.ring.submission().cq_overflow());
        match waited {
            Ok(_) => Ok(()),
            // EAGAIN and EBUSY: memory is short for a moment, or completions have to be taken first.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether completions are waiting.
    #[must_use]
    pub fn has_completions(&self) -> bool {
        // SAFETY: this only compares head and tail; the queue is dropped with the head it was made with.
        unsafe { !self.ring.completion_shared().is_empty() }
    }

    /// The next completion.
    pub fn next_completion(&mut self) -> Option<Taken> {
        let entry = self.ring.completion().next()?;
        let (result, flags) = (entry.result(), entry.flags());
        let len = usize::try_from(result).unwrap_or(0);
        let buffer = cqueue::buffer_select(flags).and_then(|index| self.buffers.taken(index, len));
        if let Some(buffer) = &buffer {
            self.group(buffer).taken(buffer.len());
        }
        Some(Taken { user_data: entry.user_data(), result, more: cqueue::more(flags), buffer })
    }

    /// Done with a buffer: the kernel may have it at the next [`ReceiveRing::refill`].
    ///
    /// # Panics
    /// When the buffer is of another ring: a mistake in this program.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.buffers.check(&buffer);
        self.group(&buffer).spare.push(buffer.index() as u16);
    }

    /// It is handed over again by [`ReceiveRing::hand_over_kept`].
    ///
    /// # Panics
    /// As [`ReceiveRing::give_back`].
    pub fn keep(&mut self, user_data: u64, buffer: Buffer) {
        self.buffers.check(&buffer);
        self.kept.push_back(Kept { user_data, buffer });
    }

    /// Hands over up to 64 completions, in order, and gives the buffers back that are not kept. The answer is how many
    /// there were.
    pub fn drain(&mut self, mut each: impl FnMut(Event<'_>) -> After) -> usize {
        let mut count = 0;
        while count < BATCH {
            let Some(taken) = self.next_completion() else { break };
            count += 1;
            self.finish(taken, &mut each);
        }
        self.refill();
        count
    }

    /// Hands a completion over, and deals with its buffer.
    pub fn finish(&mut self, taken: Taken, each: &mut impl FnMut(Event<'_>) -> After) {
        let Taken { user_data, result, more, mut buffer } = taken;
        let bytes = buffer.as_mut().map(|buffer| self.buffers.bytes(buffer));
        let after = each(Event { user_data, result, more, bytes });
        match (buffer, after) {
            (Some(buffer), After::Return) => self.give_back(buffer),
            (Some(buffer), After::Keep) => self.keep(user_data, buffer),
            (None, _) => {}
        }
    }

    /// Whether anything is kept.
    #[must_use]
    pub fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Hands over what is kept, in order; what `each` keeps again stays in its place.
    pub fn hand_over_kept(&mut self, mut each: impl FnMut(Event<'_>) -> After) {
        for _ in 0..self.kept.len() {
            let Some(Kept { user_data, buffer }) = self.kept.pop_front() else { break };
            let result = buffer.len() as i32;
            self.finish(Taken { user_data, result, more: true, buffer: Some(buffer) }, &mut each);
        }
        self.refill();
    }
}

impl Drop for ReceiveRing {
    fn drop(&mut self) {
        // Waits until nothing is armed any more, so that the kernel writes into no buffer after it is unmapped; then
        // takes the last completions, with which the kernel lets go of the descriptors.
        let _ = self.ring.submitter().register_sync_cancel(None, types::CancelBuilder::any());
        for _ in 0..64 {
            if self.wait(Some(Duration::from_millis(1))).is_err() || self.drain(|_| After::Return) == 0 {
                break;
            }
        }
        for group in [self.datagrams.id, self.devices.id] {
            let _ = self.ring.submitter().unregister_buf_ring(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// A ring, where there is io_uring.
    fn ring() -> Option<ReceiveRing> {
        let ring = ReceiveRing::new(1, 1).ok();
        if ring.is_none() {
            crate::sys::ring::left_out();
        }
        ring
    }

    #[test]
    fn a_wait_of_no_time_asks_the_kernel_only_when_it_has_something() {
        let Some(mut ring) = ring() else { return };
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd");
        ring.arm_poll(event.as_fd(), libc::POLLIN, 5).expect("armed");
        for _ in 0..3 {
            ring.wait(Some(Duration::ZERO)).expect("waited");
            assert_eq!((ring.enters(), ring.has_completions()), (1, false), "once, to submit it");
        }
        rustix::io::write(&event, &1_u64.to_ne_bytes()).expect("written");
        ring.wait(Some(Duration::ZERO)).expect("waited");
        assert_eq!((ring.enters(), ring.next_completion().map(|taken| taken.user_data)), (2, Some(5)));
    }

    #[test]
    fn more_completions_than_there_is_room_for_are_counted_and_none_is_lost() {
        let Some(mut ring) = ring() else { return };
        // Readable from the start: each poll of it is done as soon as it is submitted.
        let ready = eventfd(1, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd");
        ring.arm_poll(ready.as_fd(), libc::POLLIN, 0).expect("armed");
        ring.wait(Some(Duration::from_secs(5))).expect("waited");
        assert_eq!((ring.drain(|_| After::Return), ring.overflows()), (1, 0));
        let polls = 5_000;
        for number in 0..polls {
            ring.arm_poll(ready.as_fd(), libc::POLLIN, number).expect("armed");
        }
        let mut seen = vec![false; polls as usize];
        while seen.contains(&false) {
            ring.wait(Some(Duration::from_secs(5))).expect("waited");
            let taken = ring.drain(|event| {
                seen[event.user_data as usize] = true;
                After::Return
            });
            assert!(taken > 0, "{} never came", seen.iter().filter(|seen| !**seen).count());
        }
        assert!(ring.overflows() > 0);
    }
}
