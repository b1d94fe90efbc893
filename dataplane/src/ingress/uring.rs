//! Ingress by io_uring: multishot receives and reads with provided buffers.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::ahead::Ahead;
use super::{
    DEVICE_BYTES, DEVICE_BYTES_AHEAD, Handler, Ingress, IngressStats, Meta, Received, Source, Token,
    give_up_gro, read_errors,
};
use crate::crypto::Boss;
use crate::crypto::aead::Bodies;
use crate::sys::receive_ring::{After, BATCH, Event, ReceiveRing, Taken, parse_datagram};

/// Provided buffers for datagrams, 64 KiB each; only what is used is ever touched.
const BUFFERS: u16 = 32;
/// The same for devices: what a read takes beyond one poll is kept in them.
const DEVICE_BUFFERS: u16 = 16;

/// What an operation is, in the upper bits of its user data.
const RECEIVE: u64 = 0;
const WRITABLE: u64 = 1;
const ERRORS: u64 = 2;

struct Entry {
    fd: Arc<OwnedFd>,
    source: Source,
    reading: bool,
    /// A receive is armed with the kernel.
    armed: bool,
    writing: bool,
    /// A poll for errors is armed: a receive is not told of one that a send has met already.
    watched: bool,
    /// Tells operations of an earlier source with this token apart.
    generation: u32,
    dropped: u32,
    gro_given_up: bool,
    /// Reads of a device that are kept in the ring, because it is paused or one poll has handed over enough.
    kept: usize,
}

/// See the module.
pub struct UringIngress {
    ring: ReceiveRing,
    sources: Sources,
    generation: u32,
    /// Receives that ended and are armed again once the buffers are back.
    ended: Vec<Token>,
    ahead: Option<Ahead>,
    /// The end has come: nothing is armed any more.
    finishing: bool,
    limit: usize,
    stats: IngressStats,
}

fn user_data(token: Token, generation: u32, operation: u64) -> u64 {
    u64::from(token.0) | u64::from(generation & 0x00ff_ffff) << 32 | operation << 56
}

impl UringIngress {
    /// Buffers that there are.
    pub const BUFFERS_MAX: usize = (BUFFERS + DEVICE_BUFFERS) as usize;

    /// Sets up the ring, for sockets and, if asked for, for TUN `devices`; the calling thread owns it from then on.
    ///
    /// # Errors
    /// As [`ReceiveRing::new`]; [`io::ErrorKind::Unsupported`] when the kernel reads no devices this way.
    pub fn new(devices: bool) -> io::Result<Self> {
        let ring = ReceiveRing::new(BUFFERS, DEVICE_BUFFERS)?;
        if devices && !ring.reads_devices() {
            return Err(no_device_reads());
        }
        Ok(Self {
            ring,
            sources: HashMap::default(),
            generation: 0,
            ended: Vec::with_capacity(64),
            ahead: None,
            finishing: false,
            limit: DEVICE_BYTES,
            stats: IngressStats::default(),
        })
    }

    /// Has crypto threads open what waits for its turn, from now on, and takes larger batches.
    pub fn set_boss(&mut self, boss: Boss) {
        self.ahead = Some(Ahead::new(boss, usize::from(self.ring.buffers().count()), BATCH));
        self.limit = DEVICE_BYTES_AHEAD;
    }

    /// Whether something is kept of a source that is not paused, or waits for its turn.
    fn has_kept_to_hand_over(&self) -> bool {
        if self.ahead.as_ref().is_some_and(|ahead| ahead.waiting() > 0) {
            return true;
        }
        self.ring.has_kept() && self.sources.values().any(|entry| entry.kept > 0 && entry.reading)
    }

    /// Arms what a source needs and has not armed.
    fn arm(&mut self, token: Token) -> io::Result<()> {
        arm(&mut self.ring, &mut self.sources, self.finishing, token)
    }
}

/// By token.
type Sources = HashMap<Token, Entry, foldhash::fast::RandomState>;

/// Arms what a source needs and has not armed, unless the end has come.
fn arm(ring: &mut ReceiveRing, sources: &mut Sources, finishing: bool, token: Token) -> io::Result<()> {
    let Some(entry) = sources.get_mut(&token).filter(|_| !finishing) else { return Ok(()) };
    if entry.source == Source::UdpWithErrors && !entry.watched {
        // Errors are reported whatever is asked for (poll(2)). Armed while one is queued, it completes at once.
        ring.arm_poll(entry.fd.as_fd(), libc::POLLERR, user_data(token, entry.generation, ERRORS))?;
        entry.watched = true;
    }
    if !entry.reading || entry.armed {
        return Ok(());
    }
    let data = user_data(token, entry.generation, RECEIVE);
    match entry.source {
        Source::Udp | Source::UdpWithErrors => ring.arm_receive(entry.fd.as_fd(), data)?,
        Source::Tun => ring.arm_read(entry.fd.as_fd(), data)?,
        Source::Ready => ring.arm_poll(entry.fd.as_fd(), libc::POLLIN, data)?,
    }
    entry.armed = true;
    Ok(())
}

/// Whether this is a receive of datagrams. One that has ended is to be armed again at once: what it received before may wait a while
/// for its turn, and the socket would not be read meanwhile.
fn is_datagram(taken: &mut Taken, sources: &mut Sources, ended: &mut Vec<Token>) -> bool {
    let token = Token(taken.user_data as u32);
    let Some(entry) = sources.get_mut(&token).filter(|_| taken.user_data >> 56 == RECEIVE) else {
        return false;
    };
    if !matches!(entry.source, Source::Udp | Source::UdpWithErrors)
        || taken.user_data != user_data(token, entry.generation, RECEIVE)
    {
        return false;
    }
    if !std::mem::replace(&mut taken.more, true) {
        entry.armed = false;
        ended.push(token);
    }
    true
}

/// What one poll has come to so far.
#[derive(Default)]
struct Poll {
    device_bytes: usize,
    limit: usize,
    failure: Option<io::Error>,
}

/// Deals with one completion, or with one that was `kept`.
fn complete(
    event: Event<'_>,
    kept: bool,
    bodies: Bodies,
    poll: &mut Poll,
    sources: &mut Sources,
    ended: &mut Vec<Token>,
    stats: &mut IngressStats,
    handler: &mut impl Handler,
) -> After {
    let token = Token(event.user_data as u32);
    let Some(entry) = sources.get_mut(&token) else { return After::Return };
    let generation = (event.user_data >> 32) as u32 & 0x00ff_ffff;
    if generation != entry.generation & 0x00ff_ffff {
        return After::Return;
    }
    if event.user_data >> 56 == WRITABLE {
        entry.writing = false;
        if entry.source == Source::Ready && event.result != -libc::ECANCELED {
            handler.handle(Received::new(token, Meta::Writable, &mut []));
        }
        return After::Return;
    }
    if event.user_data >> 56 == ERRORS {
        entry.watched = false;
        if event.result >= 0 {
            // What is left over completes the next poll at once.
            read_errors(entry.fd.as_fd(), token, stats, handler);
            ended.push(token);
        }
        return After::Return;
    }
    if !event.more {
        entry.armed = false;
        ended.push(token);
    }
    if event.result < 0 {
        let failure = survive(event.result, entry.source, stats).err();
        poll.failure = poll.failure.take().or(failure);
        if matches!(entry.source, Source::Udp | Source::UdpWithErrors) {
            give_up_gro(entry.fd.as_fd(), -event.result, &mut entry.gro_given_up);
        }
        return After::Return;
    }
    match (entry.source, event.bytes) {
        // A poll that was answered just before its source was paused is asked again when the source is resumed.
        (Source::Ready, _) if !entry.reading => {}
        (Source::Ready, _) => handler.handle(Received::new(token, Meta::Ready, &mut [])),
        (Source::Tun, Some(bytes)) if !bytes.is_empty() => {
            // Nothing overtakes what is kept.
            let behind = !kept && entry.kept > 0;
            if !entry.reading || behind || poll.device_bytes >= poll.limit {
                entry.kept += usize::from(!kept);
                return After::Keep;
            }
            entry.kept -= usize::from(kept);
            poll.device_bytes += bytes.len();
            stats.superpackets += 1;
            stats.packets += 1;
            handler.handle(Received::new(token, Meta::Tun, bytes));
        }
        (Source::Udp | Source::UdpWithErrors, Some(bytes)) => {
            hand_over(token, entry, bytes, bodies, stats, handler);
        }
        _ => {}
    }
    After::Return
}

fn hand_over(
    token: Token,
    entry: &mut Entry,
    bytes: &mut [u8],
    bodies: Bodies,
    stats: &mut IngressStats,
    handler: &mut impl Handler,
) {
    let Some(datagram) = parse_datagram(bytes) else {
        stats.truncated += 1;
        return;
    };
    if let Some(dropped) = datagram.info.dropped {
        stats.kernel_drops_skbs += u64::from(dropped.wrapping_sub(entry.dropped));
        entry.dropped = dropped;
    }
    let Some(from) = datagram.from else {
        stats.truncated += 1;
        return;
    };
    let len = datagram.payload.len();
    let segment_size = datagram.info.segment_size.filter(|&size| size > 0).unwrap_or(len).min(len);
    stats.superpackets += 1;
    stats.packets += len.div_ceil(segment_size.max(1)).max(1) as u64;
    let meta = Meta::Udp { from, to: datagram.info.to, segment_size, ecn: datagram.info.ecn };
    handler.handle(Received { token, meta, bytes: datagram.payload, bodies });
}

/// The error of a kernel that has io_uring and cannot read a TUN device by it.
fn no_device_reads() -> io::Error {
    let text =
        "this kernel cannot read a TUN device by io_uring (multishot reads: Linux 6.7); --ingress epoll can";
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Receive errors that are survived: the operation is armed again. ENOBUFS: every buffer was in use.
fn survive(result: i32, source: Source, stats: &mut IngressStats) -> io::Result<()> {
    let errno = -result;
    if source == Source::Tun && matches!(errno, libc::EBADFD | libc::EBADF | libc::EIO | libc::ENODEV) {
        return Err(super::device_gone(io::Error::from_raw_os_error(errno)));
    }
    if source == Source::Tun && errno == libc::EINVAL {
        // Armed again it would only fail again, at once and for ever.
        return Err(no_device_reads());
    }
    if !matches!(errno, libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR) {
        stats.errors += 1;
    }
    Ok(())
}

impl Ingress for UringIngress {
    fn add(&mut self, fd: Arc<OwnedFd>, token: Token, source: Source) -> io::Result<()> {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let entry = Entry {
            fd,
            source,
            reading: true,
            armed: false,
            writing: false,
            watched: false,
            generation,
            dropped: 0,
            gro_given_up: false,
            kept: 0,
        };
        self.sources.insert(token, entry);
        self.arm(token).inspect_err(|_| self.remove(token))
    }

    fn remove(&mut self, token: Token) {
        if let Some(entry) = self.sources.remove(&token) {
            self.ring.cancel(user_data(token, entry.generation, RECEIVE));
            self.ring.cancel(user_data(token, entry.generation, WRITABLE));
            if entry.watched {
                self.ring.cancel(user_data(token, entry.generation, ERRORS));
            }
        }
    }

    fn set_reading(&mut self, token: Token, reading: bool) {
        let Some(entry) = self.sources.get_mut(&token).filter(|entry| entry.reading != reading) else {
            return;
        };
        entry.reading = reading;
        if reading {
            // Its last receive may not have ended yet; then its last completion arms it again.
            let _ = self.arm(token);
        } else {
            self.ring.cancel(user_data(token, entry.generation, RECEIVE));
        }
    }

    fn wake_when_writable(&mut self, token: Token) {
        let Some(entry) = self.sources.get_mut(&token).filter(|entry| !entry.writing) else { return };
        let data = user_data(token, entry.generation, WRITABLE);
        entry.writing = self.ring.arm_poll(entry.fd.as_fd(), libc::POLLOUT, data).is_ok();
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // What is kept of a source that is read again has nothing to wait for.
        let timeout = if self.has_kept_to_hand_over() { Some(Duration::ZERO) } else { timeout };
        self.ring.wait(timeout)
    }

    fn take(&mut self, handler: &mut impl Handler) -> io::Result<()> {
        let Self { ring, sources, ended, stats, limit, ahead, finishing, .. } = self;
        let finishing = *finishing;
        let mut poll = Poll { limit: *limit, ..Poll::default() };
        if ring.has_kept() {
            ring.hand_over_kept(|event| {
                complete(event, true, Bodies::default(), &mut poll, sources, ended, stats, handler)
            });
        }
        match ahead {
            None => {
                ring.drain(|event| {
                    complete(event, false, Bodies::default(), &mut poll, sources, ended, stats, handler)
                });
            }
            Some(ahead) => {
                ahead.look_through(ring, BATCH, |taken| is_datagram(taken, sources, ended), handler);
                // The first is waited for: each call gets on.
                let mut patient = false;
                while let Some((taken, bodies)) = ahead.next(patient)? {
                    patient = !finishing;
                    ring.finish(taken, &mut |event| {
                        complete(event, false, bodies, &mut poll, sources, ended, stats, handler)
                    });
                }
                ring.refill();
            }
        }
        // Last come, first armed: a socket under a flood ends first and, armed first, would take every buffer again.
        for index in (0..self.ended.len()).rev() {
            self.stats.rearmed += 1;
            self.arm(self.ended[index])?;
        }
        self.ended.clear();
        self.stats.system_calls = self.ring.enters();
        self.stats.cq_overflows = self.ring.overflows();
        poll.failure.map_or(Ok(()), Err)
    }

    fn has_more(&self) -> bool {
        self.ring.has_completions() || self.has_kept_to_hand_over()
    }

    fn finish(&mut self, handler: &mut impl Handler) -> io::Result<bool> {
        if !std::mem::replace(&mut self.finishing, true) {
            self.ring.cancel_all();
            for entry in self.sources.values_mut() {
                entry.reading = true;
            }
        }
        self.poll(Some(Duration::ZERO), handler)?;
        Ok(self.has_more())
    }

    fn stats(&self) -> IngressStats {
        self.stats
    }

    fn design(&self) -> &'static str {
        "uring"
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use zeroize::Zeroizing;

    use super::*;
    use crate::crypto::aead::KEY_LEN;
    use crate::crypto::crew::Sealed;
    use crate::sys::udp::{UdpOptions, UdpSocket};

    const SEGMENT: usize = 1_200;
    const SEGMENTS: usize = 40;
    const SUPERPACKETS: u8 = 40;

    /// Has every superpacket opened ahead, and notes their order.
    struct Foreseeing(Vec<u8>);

    impl Handler for Foreseeing {
        fn handle(&mut self, received: Received<'_>) {
            assert_eq!(received.bytes.len() % SEGMENT, 0);
            self.0.extend(received.bytes.chunks(SEGMENT).map(|segment| segment[0]));
        }

        fn foresee(&mut self, _: SocketAddr, bytes: &[u8], segment_size: usize) -> Option<Sealed> {
            assert!(segment_size == SEGMENT && bytes.len() > SEGMENT);
            Some(Sealed { key: Arc::new(Zeroizing::new([3; KEY_LEN])), segment_size, front: 0 })
        }
    }

    #[test]
    fn a_socket_is_read_on_while_what_came_before_waits_for_its_turn() {
        let Ok(mut ingress) = UringIngress::new(false) else { return crate::sys::ring::left_out() };
        // Nobody but the loop opens anything: what is handed over waits.
        ingress.set_boss(Boss::start(0, 1, UringIngress::BUFFERS_MAX).expect("no threads"));
        let options = UdpOptions { gro: true, receive_buffer: 8 << 20, ..UdpOptions::default() };
        let socket = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0).into(), &options).expect("bound");
        let to = socket.local_addr();
        let sender = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0).into(), &options).expect("bound");
        for number in 0..SUPERPACKETS {
            let sent = sender.send_segments(to, None, 0, &[number; SEGMENTS * SEGMENT], SEGMENT);
            sent.expect("sent");
        }
        ingress.add(socket.fd().clone(), Token(1), Source::Udp).expect("added");
        let (mut handler, mut read_on) = (Foreseeing(Vec::new()), false);
        while handler.0.len() < usize::from(SUPERPACKETS) * SEGMENTS {
            let before = handler.0.len();
            ingress.poll(Some(Duration::from_secs(5)), &mut handler).expect("polled");
            assert!(handler.0.len() > before, "{before} of all, and nothing moves");
            let (handled, buffers) = (handler.0.len() / SEGMENTS, usize::from(BUFFERS));
            let waiting = ingress.ahead.as_ref().map_or(0, Ahead::superpackets_waiting);
            // At first the kernel has every buffer, and fills them all.
            read_on |= handled < buffers && handled + waiting > buffers;
        }
        assert!(handler.0.is_sorted(), "out of order");
        assert!(read_on, "the socket was not read until everything before was dealt with");
    }
}
