//! The design `threaded`: stack packets through two channels of 1,000 to two writer threads, one for sockets and one for
//! devices. A full channel blocks the loop; the design it stands for dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::direct::{Direct, WhenBusy};
use super::ports::{Kind, Ports};
use super::{Class, Egress, EgressStats, Flush, Port, Target};
use crate::drops::Cause;
use crate::sys::tun::Offloads;

/// Packets in one channel.
const CHANNEL: usize = 1_000;
/// Packets written in one batch.
const BATCH: usize = 64;
/// Bytes of a packet that travel in the channel itself; longer ones spill to the heap.
const INLINE: usize = 2_048;

/// A packet on its way to a writer thread.
struct Parcel {
    len: usize,
    inline: [u8; INLINE],
    /// The whole packet when it is longer than [`INLINE`]: jumbo frames are rare, and 64 KiB a place would be 64 MiB.
    spilled: Option<Box<[u8]>>,
}

impl Parcel {
    fn new(len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> Option<Self> {
        let mut parcel = Self { len, inline: [0; INLINE], spilled: None };
        let filled = match parcel.inline.get_mut(..len) {
            Some(bytes) => fill(bytes),
            None => fill(parcel.spilled.insert(vec![0; len].into())),
        };
        filled.then_some(parcel)
    }

    fn bytes(&self) -> &[u8] {
        match &self.spilled {
            Some(bytes) => bytes,
            None => &self.inline[..self.len],
        }
    }
}

enum Job {
    Add(Port, Arc<OwnedFd>, Kind),
    Remove(Port),
    Send(Target, Class, Parcel),
    Deliver(Port, Parcel),
}

/// One writer thread and the channel to it.
struct Writer {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    stats: EgressStats,
    failure: Option<io::Error>,
}

impl Writer {
    fn start(name: &str, gso: bool) -> io::Result<Self> {
        let (jobs, received) = sync_channel(CHANNEL);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let direct = Direct::new(WhenBusy::Suspend, gso)?;
        let theirs = shared.clone();
        let thread =
            thread::Builder::new().name(name.into()).spawn(move || write_all(&received, direct, &theirs))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), shared })
    }

    /// Blocks while the channel is full. `false` when the thread is gone.
    fn put(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    fn stats(&self) -> EgressStats {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).stats.clone()
    }

    fn stop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The writer thread: owns its end of the channel and its slots; ends when the channel is closed and empty.
fn write_all(jobs: &Receiver<Job>, mut direct: Direct, shared: &Mutex<Shared>) {
    // The writer's own port numbers are those of the loop: it is told about every one of its kind, in order.
    let mut ports: std::collections::BTreeMap<Port, Port> = std::collections::BTreeMap::new();
    while let Ok(first) = jobs.recv() {
        let more = (1..BATCH).map_while(|_| jobs.try_recv().ok());
        for job in std::iter::once(first).chain(more) {
            handle(job, &mut direct, &mut ports);
        }
        let failure = flush_all(&mut direct).err();
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.stats = direct.stats();
        shared.failure = shared.failure.take().or(failure);
    }
    let stats = direct.close();
    shared.lock().unwrap_or_else(PoisonError::into_inner).stats = stats;
}

fn handle(job: Job, direct: &mut Direct, ports: &mut std::collections::BTreeMap<Port, Port>) {
    match job {
        Job::Add(port, fd, kind) => {
            let added = match kind {
                Kind::Socket => direct.add_socket(fd),
                Kind::Device(offloads) => direct.add_device(fd, offloads),
            };
            if let Ok(own) = added {
                ports.insert(port, own);
            }
        }
        Job::Remove(port) => {
            if let Some(own) = ports.remove(&port) {
                direct.remove(own);
            }
        }
        Job::Send(target, class, parcel) => {
            let port = ports.get(&target.port).copied().unwrap_or(Port(u32::MAX));
            direct.append(&Target { port, ..target }, parcel.len, class, |slot| {
                slot.copy_from_slice(parcel.bytes());
                true
            });
        }
        Job::Deliver(device, parcel) => {
            direct.deliver(ports.get(&device).copied().unwrap_or(Port(u32::MAX)), parcel.bytes());
        }
    }
}

/// Writes until nothing is left: this thread may wait for its sockets for as long as it takes.
fn flush_all(direct: &mut Direct) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a writer thread has no loop that would hand it the time")]
    while direct.flush(Instant::now())? != Flush::Done {}
    Ok(())
}

/// The design `threaded`; see the module.
pub struct Threaded {
    sockets: Writer,
    devices: Writer,
    ports: Ports<()>,
    offered: u64,
    closed: u64,
}

impl Threaded {
    /// Starts the two writer threads.
    ///
    /// # Errors
    /// When a thread or its memory cannot be had.
    pub fn new(gso: bool) -> io::Result<Self> {
        let (sockets, devices) = (Writer::start("towpath-udp", gso)?, Writer::start("towpath-tun", gso)?);
        Ok(Self { sockets, devices, ports: Ports::default(), offered: 0, closed: 0 })
    }

    fn writer(&self, kind: Kind) -> &Writer {
        match kind {
            Kind::Socket => &self.sockets,
            Kind::Device(_) => &self.devices,
        }
    }

    fn add(&mut self, fd: Arc<OwnedFd>, kind: Kind) -> io::Result<Port> {
        let port = self.ports.add(fd.clone(), kind, ())?;
        match self.writer(kind).put(Job::Add(port, fd, kind)) {
            true => Ok(port),
            false => Err(io::Error::other("the writer thread has ended")),
        }
    }

    fn put(&mut self, port: Port, job: Job) {
        self.offered += 1;
        let sent = self.ports.get(port).is_some_and(|entry| self.writer(entry.kind).put(job));
        self.closed += u64::from(!sent);
    }
}

impl Egress for Threaded {
    fn add_socket(&mut self, fd: Arc<OwnedFd>) -> io::Result<Port> {
        self.add(fd, Kind::Socket)
    }

    fn add_device(&mut self, fd: Arc<OwnedFd>, offloads: Offloads) -> io::Result<Port> {
        self.add(fd, Kind::Device(offloads))
    }

    fn remove(&mut self, port: Port) {
        if let Some(entry) = self.ports.remove(port) {
            self.writer(entry.kind).put(Job::Remove(port));
        }
    }

    fn append(&mut self, target: &Target, len: usize, class: Class, fill: impl FnOnce(&mut [u8]) -> bool) {
        if let Some(parcel) = Parcel::new(len, fill) {
            self.put(target.port, Job::Send(*target, class, parcel));
        }
    }

    fn deliver(&mut self, device: Port, packet: &[u8]) {
        let parcel = Parcel::new(packet.len(), |bytes| {
            bytes.copy_from_slice(packet);
            true
        });
        if let Some(parcel) = parcel {
            self.put(device, Job::Deliver(device, parcel));
        }
    }

    fn flush(&mut self, _now: Instant) -> io::Result<Flush> {
        for writer in [&self.sockets, &self.devices] {
            let failure = writer.shared.lock().unwrap_or_else(PoisonError::into_inner).failure.take();
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(Flush::Done)
    }

    fn pending(&self) -> u64 {
        let stats = self.stats();
        stats.offered - stats.sent - stats.drops.total()
    }

    fn waiting_ports(&self) -> impl Iterator<Item = Port> {
        std::iter::empty()
    }

    fn stats(&self) -> EgressStats {
        let (mut stats, devices) = (self.sockets.stats(), self.devices.stats());
        stats.sent += devices.sent;
        stats.sent_bytes += devices.sent_bytes;
        stats.operations += devices.operations;
        stats.enters += devices.enters;
        stats.gso_fallbacks += devices.gso_fallbacks;
        stats.resent += devices.resent;
        stats.drops.merge(&devices.drops);
        stats.offered = self.offered;
        stats.drops.add(Cause::EgressClosed, self.closed);
        stats
    }

    fn design(&self) -> &'static str {
        "threaded"
    }

    fn close(&mut self) -> EgressStats {
        self.sockets.stop();
        self.devices.stop();
        // Nothing is left in the channels, unless a writer thread has died.
        let pending = self.pending();
        let mut stats = self.stats();
        stats.drops.add(Cause::Shutdown, pending);
        stats
    }
}
