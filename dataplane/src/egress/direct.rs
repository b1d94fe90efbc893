//! The designs `suspend` and `drop`: superpackets are written with a system call each, at the end of a batch.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::errno::{FORGIVEN_MAX, Verdict, judge_send, judge_write, tells_of_offload};
use super::given_up::give_up;
use super::ports::{Kind, Ports};
use super::staging::{Content, Filled, Place, Staging};
use super::{Class, Egress, EgressStats, Flush, Port, Target};
use crate::drops::Cause;
use crate::offload::split::Splitter;
use crate::offload::virtio;
use crate::stages::Stopwatch;
use crate::sys::slab::Slab;
use crate::sys::tun::Offloads;
use crate::sys::udp::send_message;

/// Slots filled before they are written: as many as the `uring` design has, so that batches are alike.
const SOCKET_SLOTS: usize = 64;
const DEVICE_SLOTS: usize = 15;
/// How long one flush waits for write-readiness before control traffic and signals get their turn.
const PATIENCE: Duration = Duration::from_millis(10);

/// What happens to a packet whose socket or device is busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBusy {
    /// The loop is suspended until everything is written (`--io suspend`).
    Suspend,
    /// It is dropped and counted as `busy` (`--io drop`).
    Drop,
}

/// Writes with system calls; see the module.
pub struct Direct {
    when_busy: WhenBusy,
    staging: Staging,
    ports: Ports<()>,
    /// Sealed slots that have not left, in order.
    queue: Vec<Filled>,
    /// Port that the loop is suspended for.
    busy: Option<Port>,
    failure: Option<io::Error>,
    stats: EgressStats,
    stopwatch: Stopwatch,
}

impl Direct {
    /// Maps the slots.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(when_busy: WhenBusy, gso: bool) -> io::Result<Self> {
        let (slab, slots) = Slab::new(SOCKET_SLOTS + DEVICE_SLOTS)?;
        Ok(Self {
            when_busy,
            staging: Staging::new(Arc::new(slab), slots, SOCKET_SLOTS, gso),
            ports: Ports::default(),
            queue: Vec::with_capacity(SOCKET_SLOTS + DEVICE_SLOTS),
            busy: None,
            failure: None,
            stats: EgressStats::default(),
            stopwatch: Stopwatch::default(),
        })
    }

    /// Writes what is queued, in order, until everything has left or something is busy.
    fn write_queue(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        self.staging.close();
        if let Err(error) = self.staging.take_sealed(0, &mut queue) {
            self.failure = Some(error.into());
        }
        self.busy = None;
        let since = self.stopwatch.begin();
        let mut rest = queue.drain(..);
        for mut filled in rest.by_ref() {
            if !self.write(&mut filled) {
                self.busy = Some(filled.port());
                self.queue.push(filled);
                break;
            }
            self.staging.release(filled.slot);
        }
        self.queue.extend(rest);
        self.stopwatch.in_kernel(since);
    }

    /// Writes one slot; `false` when it has to wait.
    fn write(&mut self, filled: &mut Filled) -> bool {
        let segments = filled.segments();
        match self.write_once(filled) {
            Ok(()) => self.count_sent(filled, segments),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
                let verdict = match filled.content {
                    Content::Datagrams { segments, .. } => judge_send(errno, segments),
                    Content::Device { .. } => judge_write(errno, segments),
                };
                return self.act(verdict, filled, segments, error);
            }
        }
        true
    }

    fn act(&mut self, verdict: Verdict, filled: &mut Filled, segments: usize, error: io::Error) -> bool {
        match verdict {
            Verdict::Busy if self.when_busy == WhenBusy::Suspend => return false,
            Verdict::Busy => self.stats.drops.add(Cause::Busy, segments as u64),
            Verdict::Again => return self.write(filled),
            Verdict::Forgive(cause) => return self.forgive(cause, filled, segments),
            Verdict::Resegment => {
                self.write_apart(filled, segments, error.raw_os_error().unwrap_or_default());
            }
            Verdict::Drop(cause) => self.stats.drops.add(cause, segments as u64),
            Verdict::Fatal => {
                self.stats.drops.add(Cause::EgressClosed, segments as u64);
                self.failure = Some(error);
            }
        }
        true
    }

    /// Writes again what may have met the error of another, and acts on what comes of it.
    fn forgive(&mut self, mut cause: Cause, filled: &mut Filled, segments: usize) -> bool {
        for _ in 0..FORGIVEN_MAX {
            let Err(error) = self.write_once(filled) else {
                self.count_sent(filled, segments);
                return true;
            };
            match judge_send(error.raw_os_error().unwrap_or(libc::EINVAL), segments) {
                Verdict::Forgive(next) => cause = next,
                Verdict::Again => {}
                verdict => return self.act(verdict, filled, segments, error),
            }
        }
        self.stats.drops.add(cause, segments as u64);
        true
    }

    fn count_sent(&mut self, filled: &Filled, segments: usize) {
        self.stats.sent += segments as u64;
        self.stats.sent_bytes += filled.len as u64;
    }

    /// One system call for the whole slot.
    fn write_once(&mut self, filled: &mut Filled) -> io::Result<()> {
        let closed = || io::Error::from_raw_os_error(libc::EINVAL);
        let entry = self.ports.get(filled.port()).ok_or_else(closed)?;
        self.stats.operations += 1;
        self.stats.enters += 1;
        let bytes = &self.staging.slab().bytes(&mut filled.slot)[..filled.len];
        match &filled.content {
            Content::Datagrams { target, segment_size, .. } => {
                send_message(&entry.fd, target, bytes, *segment_size)
            }
            Content::Device { .. } => match rustix::io::write(&entry.fd, bytes) {
                Ok(len) if len == bytes.len() => Ok(()),
                Ok(_) => Err(closed()),
                Err(errno) => Err(errno.into()),
            },
        }
    }

    /// The superpacket was refused with `errno`: each packet on its own. If that is how they leave, there are no more.
    fn write_apart(&mut self, filled: &mut Filled, segments: usize, errno: i32) {
        self.stats.gso_fallbacks += 1;
        self.stats.resent += segments as u64;
        let sent = self.stats.sent;
        match filled.content {
            Content::Datagrams { target, segment_size, .. } => {
                self.write_segments(filled, target, segment_size);
            }
            Content::Device { port, .. } => self.write_packets(filled, port, segments),
        }
        if tells_of_offload(errno)
            && self.stats.sent > sent
            && let Some(entry) = self.ports.get_mut(filled.port())
        {
            give_up(&mut self.staging, filled.port(), &mut entry.kind, errno);
        }
    }

    /// The packets of a device's superpacket.
    fn write_packets(&mut self, filled: &mut Filled, port: Port, segments: usize) {
        let Some(fd) = self.ports.get(port).map(|entry| entry.fd.clone()) else { return };
        let Ok(mut splitter) = Splitter::new(&mut self.staging.slab().bytes(&mut filled.slot)[..filled.len])
        else {
            return self.stats.drops.add(Cause::EgressInvalid, segments as u64);
        };
        while let Some(packet) = splitter.next_packet() {
            let parts = [IoSlice::new(&[0; virtio::HEADER_LEN]), IoSlice::new(packet)];
            let cause = loop {
                self.stats.operations += 1;
                self.stats.enters += 1;
                let Err(errno) = rustix::io::writev(&fd, &parts) else { break None };
                break match judge_write(errno.raw_os_error(), 1) {
                    Verdict::Again => continue,
                    Verdict::Busy if self.when_busy == WhenBusy::Suspend => {
                        wait_writable(&fd);
                        continue;
                    }
                    Verdict::Busy => Some(Cause::Busy),
                    Verdict::Forgive(cause) | Verdict::Drop(cause) => Some(cause),
                    Verdict::Resegment => Some(Cause::EgressInvalid),
                    Verdict::Fatal => {
                        self.failure = Some(errno.into());
                        Some(Cause::EgressClosed)
                    }
                };
            };
            match cause {
                Some(cause) => self.stats.drops.count(cause),
                None => {
                    self.stats.sent += 1;
                    self.stats.sent_bytes += (virtio::HEADER_LEN + packet.len()) as u64;
                }
            }
        }
    }

    /// The datagrams of a socket's superpacket.
    fn write_segments(&mut self, filled: &mut Filled, target: Target, segment_size: usize) {
        let Some(entry) = self.ports.get(target.port) else { return };
        let fd = entry.fd.clone();
        let len = filled.len;
        let (mut start, mut forgiven) = (0, 0);
        while start < len {
            let end = len.min(start + segment_size);
            self.stats.operations += 1;
            self.stats.enters += 1;
            let bytes = &self.staging.slab().bytes(&mut filled.slot)[start..end];
            match send_message(&fd, &target, bytes, bytes.len()) {
                Ok(()) => {
                    self.stats.sent += 1;
                    self.stats.sent_bytes += (end - start) as u64;
                }
                Err(error) => {
                    let verdict = judge_send(error.raw_os_error().unwrap_or(libc::EINVAL), 1);
                    if matches!(verdict, Verdict::Forgive(_)) && forgiven < FORGIVEN_MAX {
                        forgiven += 1;
                        continue;
                    }
                    let cause = match verdict {
                        Verdict::Busy if self.when_busy == WhenBusy::Suspend => {
                            wait_writable(&fd);
                            continue;
                        }
                        Verdict::Busy => Cause::Busy,
                        Verdict::Forgive(cause) | Verdict::Drop(cause) => cause,
                        Verdict::Again | Verdict::Resegment => Cause::EgressInvalid,
                        Verdict::Fatal => {
                            self.failure = Some(error);
                            Cause::EgressClosed
                        }
                    };
                    self.stats.drops.count(cause);
                }
            }
            start = end;
            forgiven = 0;
        }
    }

    /// Writes until a slot is free again.
    fn make_room(&mut self, has_room: impl Fn(&Staging) -> bool) {
        self.stats.ring_full += 1;
        let since = self.stopwatch.begin();
        self.write_until(has_room);
        self.stopwatch.made_room(since);
    }

    fn write_until(&mut self, has_room: impl Fn(&Staging) -> bool) {
        while !has_room(&self.staging) {
            self.write_queue();
            if let Some(entry) = self.busy.and_then(|port| self.ports.get(port)) {
                wait_writable(&entry.fd);
            } else if !has_room(&self.staging) && self.queue.is_empty() && self.staging.filled_count() == 0 {
                return;
            }
        }
    }
}

fn wait_writable(fd: &OwnedFd) {
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: PATIENCE.as_nanos() as _ };
    // Nothing depends on the answer: the write that follows says whether the socket is still busy.
    let _ = poll(&mut fds, Some(&timeout));
}

impl Egress for Direct {
    fn add_socket(&mut self, fd: Arc<OwnedFd>) -> io::Result<Port> {
        self.ports.add(fd, Kind::Socket, ())
    }

    fn add_device(&mut self, fd: Arc<OwnedFd>, offloads: Offloads) -> io::Result<Port> {
        self.ports.add(fd, Kind::Device(offloads), ())
    }

    fn remove(&mut self, port: Port) {
        self.write_queue();
        let mut closed = 0;
        for filled in std::mem::take(&mut self.queue) {
            if filled.port() == port {
                closed += filled.segments() as u64;
                self.staging.release(filled.slot);
            } else {
                self.queue.push(filled);
            }
        }
        self.stats.drops.add(Cause::EgressClosed, closed);
        self.ports.remove(port);
        self.staging.forget_port(port);
    }

    fn append(&mut self, target: &Target, len: usize, class: Class, fill: impl FnOnce(&mut [u8]) -> bool) {
        if self.ports.get(target.port).is_none() {
            self.stats.offered += 1;
            self.stats.drops.count(Cause::EgressClosed);
            return;
        }
        let mut place = self.staging.place(target, len, class);
        if place == Place::Full {
            self.make_room(|staging| staging.place(target, len, class) != Place::Full);
            place = self.staging.place(target, len, class);
        }
        if place == Place::Full {
            self.stats.offered += 1;
            self.stats.drops.count(Cause::Shutdown);
            return;
        }
        if self.staging.append(place, target, len, class, fill) {
            self.stats.offered += 1;
        }
    }

    fn deliver(&mut self, device: Port, packet: &[u8]) {
        self.stats.offered += 1;
        let Some(&Kind::Device(offloads)) = self.ports.get(device).map(|entry| &entry.kind) else {
            self.stats.drops.count(Cause::EgressClosed);
            return;
        };
        if self.staging.deliver(device, packet, offloads) {
            return;
        }
        self.make_room(Staging::has_device_slot);
        if !self.staging.deliver(device, packet, offloads) {
            self.stats.drops.count(Cause::Shutdown);
        }
    }

    fn flush(&mut self, _now: Instant) -> io::Result<Flush> {
        self.write_queue();
        if let Some(entry) = self.busy.and_then(|port| self.ports.get(port)) {
            wait_writable(&entry.fd);
            self.write_queue();
        }
        match self.failure.take() {
            Some(error) => Err(error),
            None if self.busy.is_some() => Ok(Flush::Suspended),
            None => Ok(Flush::Done),
        }
    }

    fn pending(&self) -> u64 {
        self.stats.offered - self.stats.sent - self.stats.drops.total()
    }

    fn waiting_ports(&self) -> impl Iterator<Item = Port> {
        self.busy.into_iter()
    }

    fn stats(&self) -> EgressStats {
        self.stats.clone()
    }

    fn offered(&self) -> u64 {
        self.stats.offered
    }

    fn stopwatch(&mut self) -> Option<&mut Stopwatch> {
        Some(&mut self.stopwatch)
    }

    fn design(&self) -> &'static str {
        match self.when_busy {
            WhenBusy::Suspend => "suspend",
            WhenBusy::Drop => "drop",
        }
    }

    fn close(&mut self) -> EgressStats {
        self.write_queue();
        let pending = self.pending();
        self.stats.drops.add(Cause::Shutdown, pending);
        for filled in std::mem::take(&mut self.queue) {
            self.staging.release(filled.slot);
        }
        self.stats.clone()
    }
}
