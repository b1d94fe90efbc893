//! Ingress by epoll and recvmmsg: cheapest for many sockets with little traffic each.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};

use super::{
    DEVICE_BYTES, Handler, Ingress, IngressStats, Meta, Received, Source, Token, give_up_gro, read_errors,
};
use crate::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};

/// Superpackets taken from one source before the next has its turn.
const BATCH: usize = 16;
/// Sources looked at in one poll.
const EVENTS: usize = 64;
/// A TUN superpacket with its virtio_net header, with slack.
const DEVICE_LEN: usize = 65_536 + 64;

struct Entry {
    fd: Arc<OwnedFd>,
    source: Source,
    reading: bool,
    writing: bool,
    /// Superpackets asked for at once: one more than there were last time, because the kernel looks once more after every
    /// packet, and all there may be once a source had as many as were asked for.
    width: usize,
    dropped: u32,
    gro_given_up: bool,
}

/// See the module.
pub struct Epoll {
    epoll: OwnedFd,
    sources: HashMap<Token, Entry, foldhash::fast::RandomState>,
    events: Vec<epoll::Event>,
    batch: ReceiveBatch,
    device: Box<[u8]>,
    more: bool,
    stats: IngressStats,
}

impl Epoll {
    /// Opens the epoll descriptor.
    ///
    /// # Errors
    /// What epoll_create1(2) answers.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: HashMap::default(),
            events: Vec::with_capacity(EVENTS),
            batch: ReceiveBatch::new(BATCH, RECEIVE_LEN),
            device: vec![0; DEVICE_LEN].into(),
            more: false,
            stats: IngressStats::default(),
        })
    }

    fn modify(&mut self, token: Token, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.sources.get_mut(&token) else { return };
        change(entry);
        let flags = interest(entry);
        let data = epoll::EventData::new_u64(u64::from(token.0));
        // It was registered with this descriptor, so this cannot fail short of memory; then the next change mends it.
        let _ = epoll::modify(&self.epoll, &entry.fd, data, flags);
    }

    fn read_source(&mut self, token: Token, failed: bool, handler: &mut impl Handler) -> io::Result<()> {
        if failed && let Some(Entry { source: Source::UdpWithErrors, fd, .. }) = self.sources.get(&token) {
            // First, so that what is pending fails neither the receive below nor a send of this batch.
            self.more |= read_errors(fd.as_fd(), token, &mut self.stats, handler);
        }
        match self.sources.get(&token) {
            // Errors are reported for a paused device too; reading is what tells that it is gone.
            Some(Entry { source: Source::Tun, reading: false, .. }) if failed => {
                self.read_device(token, handler)
            }
            Some(Entry { source: Source::Udp | Source::UdpWithErrors, reading: true, .. }) => {
                self.read_socket(token, handler);
                Ok(())
            }
            Some(Entry { source: Source::Tun, reading: true, .. }) => self.read_device(token, handler),
            // A paused one that has failed would be reported for ever, so it is handed over.
            Some(Entry { source: Source::Ready, reading, .. }) if *reading || failed => {
                handler.handle(Received::new(token, Meta::Ready, &mut []));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn read_socket(&mut self, token: Token, handler: &mut impl Handler) {
        let Some(entry) = self.sources.get_mut(&token) else { return };
        self.stats.system_calls += 1;
        let count = match UdpSocket::receive_from(entry.fd.as_fd(), &mut self.batch, entry.width) {
            Ok(count) => count,
            Err(error) => {
                // An ICMP error of an earlier send, or memory short for a moment: the socket goes on.
                self.stats.errors += 1;
                let errno = error.raw_os_error().unwrap_or_default();
                give_up_gro(entry.fd.as_fd(), errno, &mut entry.gro_given_up);
                return;
            }
        };
        if count < entry.width {
            entry.width = (count + 1).min(BATCH);
        } else {
            entry.width = BATCH;
            self.more = true;
        }
        for arrival in self.batch.iter_mut() {
            if let Some(dropped) = arrival.dropped {
                self.stats.kernel_drops_skbs += u64::from(dropped.wrapping_sub(entry.dropped));
                entry.dropped = dropped;
            }
            let Some(meta @ Meta::Udp { segment_size, .. }) = arrival.meta else {
                self.stats.truncated += 1;
                continue;
            };
            self.stats.superpackets += 1;
            self.stats.packets += (arrival.bytes.len().div_ceil(segment_size.max(1))).max(1) as u64;
            handler.handle(Received::new(token, meta, arrival.bytes));
        }
    }

    fn read_device(&mut self, token: Token, handler: &mut impl Handler) -> io::Result<()> {
        let mut bytes = 0;
        while bytes < DEVICE_BYTES {
            let Some(entry) = self.sources.get(&token) else { break };
            self.stats.system_calls += 1;
            match rustix::io::read(&entry.fd, &mut self.device[..]) {
                Ok(0) => break,
                Ok(len) => {
                    bytes += len;
                    self.stats.superpackets += 1;
                    self.stats.packets += 1;
                    handler.handle(Received::new(token, Meta::Tun, &mut self.device[..len]));
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                Err(errno) => return Err(super::device_gone(errno.into())),
            }
        }
        self.more |= bytes >= DEVICE_BYTES;
        Ok(())
    }
}

fn interest(entry: &Entry) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, entry.reading);
    flags.set(epoll::EventFlags::OUT, entry.writing);
    flags
}

impl Ingress for Epoll {
    fn add(&mut self, fd: Arc<OwnedFd>, token: Token, source: Source) -> io::Result<()> {
        let entry =
            Entry { fd, source, reading: true, writing: false, width: 2, dropped: 0, gro_given_up: false };
        epoll::add(&self.epoll, &entry.fd, epoll::EventData::new_u64(u64::from(token.0)), interest(&entry))?;
        self.sources.insert(token, entry);
        Ok(())
    }

    fn remove(&mut self, token: Token) {
        if let Some(entry) = self.sources.remove(&token) {
            let _ = epoll::delete(&self.epoll, &entry.fd);
        }
    }

    fn set_reading(&mut self, token: Token, reading: bool) {
        if self.sources.get(&token).is_some_and(|entry| entry.reading != reading) {
            self.modify(token, |entry| entry.reading = reading);
        }
    }

    fn wake_when_writable(&mut self, token: Token) {
        if self.sources.get(&token).is_some_and(|entry| !entry.writing) {
            self.modify(token, |entry| entry.writing = true);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        self.more = false;
        self.stats.system_calls += 1;
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn take(&mut self, handler: &mut impl Handler) -> io::Result<()> {
        let events = std::mem::take(&mut self.events);
        let mut result = Ok(());
        for event in &events {
            let token = Token(event.data.u64() as u32);
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.modify(token, |entry| entry.writing = false);
                if self.sources.get(&token).is_some_and(|entry| entry.source == Source::Ready) {
                    handler.handle(Received::new(token, Meta::Writable, &mut []));
                }
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
                let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
                result = result.and(self.read_source(token, failed, handler));
            }
        }
        self.more |= events.len() == EVENTS;
        self.events = events;
        // Handed over; taken again without a wait there is nothing.
        self.events.clear();
        result
    }

    fn has_more(&self) -> bool {
        self.more
    }

    /// Nothing is read before it is asked for.
    fn finish(&mut self, _: &mut impl Handler) -> io::Result<bool> {
        Ok(false)
    }

    fn stats(&self) -> IngressStats {
        self.stats
    }

    fn design(&self) -> &'static str {
        "epoll"
    }
}
