//! The design `runtime`: tokio-uring, one owned buffer and one operation per packet, one task per port.
//!
//! What an off-the-shelf runtime gives: no send flags, no superpackets, no choice of source address or ECN bits, and an
//! allocation per packet. A task waits while its socket is busy, and a full channel blocks the loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};

use super::errno::{FORGIVEN_MAX, Verdict, judge_send, judge_write};
use super::ports::{Kind, Ports};
use super::{Class, Egress, EgressStats, Flush, Port, Target};
use crate::drops::{Cause, Drops};
use crate::offload::virtio::HEADER_LEN;
use crate::sys::tun::Offloads;
use crate::sys::udp::send_message;

/// Packets on their way to one port's task.
const CHANNEL: usize = 1_000;
/// A busy socket is tried again after this: the runtime offers no readiness for a descriptor of ours.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

struct Parcel {
    /// `None` for a device.
    target: Option<Target>,
    bytes: Vec<u8>,
}

struct NewPort {
    fd: Arc<OwnedFd>,
    kind: Kind,
    parcels: Receiver<Parcel>,
}

#[derive(Default)]
struct Shared {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    operations: AtomicU64,
    drops: Mutex<Drops>,
    failed: Mutex<Option<io::Error>>,
}

impl Shared {
    fn count_drop(&self, cause: Cause) {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner).count(cause);
    }
}

/// The design `runtime`; see the module.
pub struct Runtime {
    ports: Ports<Sender<Parcel>>,
    new_ports: Option<UnboundedSender<NewPort>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    offered: u64,
    /// Packets that found no task to take them.
    closed: u64,
}

impl Runtime {
    /// Starts the runtime in a thread of its own.
    ///
    /// # Errors
    /// When io_uring or a thread cannot be had.
    pub fn new() -> io::Result<Self> {
        // tokio-uring panics without io_uring, so ask first.
        drop(io_uring::IoUring::new(4)?);
        let (new_ports, receiver) = unbounded_channel();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let (runs, running) = mpsc::channel();
        let thread = thread::Builder::new().name("towpath-runtime".into()).spawn(move || {
            tokio_uring::start(async {
                // `new` waits for it.
                let _ = runs.send(());
                serve(receiver, theirs).await;
            });
        })?;
        // Its ring is made by then: a program that confines itself afterwards may no longer make one.
        let ended = |_| io::Error::other("the runtime's thread has ended: it could not make its ring");
        running.recv().map_err(ended)?;
        let ports = Ports::default();
        Ok(Self { ports, new_ports: Some(new_ports), thread: Some(thread), shared, offered: 0, closed: 0 })
    }

    fn add(&mut self, fd: Arc<OwnedFd>, kind: Kind) -> io::Result<Port> {
        let (sender, parcels) = channel(CHANNEL);
        let new_port = NewPort { fd: fd.clone(), kind, parcels };
        let started = self.new_ports.as_ref().is_some_and(|ports| ports.send(new_port).is_ok());
        match started {
            true => self.ports.add(fd, kind, sender),
            false => Err(io::Error::other("the runtime's thread has ended")),
        }
    }

    fn put(&mut self, port: Port, parcel: Parcel) {
        self.offered += 1;
        let taken = self.ports.get(port).is_some_and(|entry| entry.state.blocking_send(parcel).is_ok());
        self.closed += u64::from(!taken);
    }
}

/// Starts a task for each port; ends when the design is closed and every task has written what it had.
async fn serve(mut new_ports: UnboundedReceiver<NewPort>, shared: Arc<Shared>) {
    let mut tasks = Vec::new();
    while let Some(new_port) = new_ports.recv().await {
        tasks.push(tokio_uring::spawn(write_port(new_port, shared.clone())));
    }
    for task in tasks {
        // A task that panicked is reported by the panic itself; the others still have to finish.
        let _ = task.await;
    }
}

enum Writer {
    Socket(tokio_uring::net::UdpSocket),
    Device(tokio_uring::fs::File),
}

async fn write_port(mut port: NewPort, shared: Arc<Shared>) {
    let Ok(fd) = port.fd.try_clone() else {
        *shared.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(io::Error::last_os_error());
        return;
    };
    let writer = match port.kind {
        Kind::Socket => Writer::Socket(tokio_uring::net::UdpSocket::from_std(fd.into())),
        Kind::Device(_) => Writer::Device(tokio_uring::fs::File::from_std(std::fs::File::from(fd))),
    };
    while let Some(parcel) = port.parcels.recv().await {
        write_parcel(&port.fd, &writer, parcel, &shared).await;
    }
    if let Writer::Device(file) = writer {
        // The descriptor is a duplicate: closing it early changes nothing for others.
        let _ = file.close().await;
    }
}

async fn write_parcel(fd: &OwnedFd, writer: &Writer, parcel: Parcel, shared: &Shared) {
    let (mut bytes, mut forgiven) = (parcel.bytes, 0);
    loop {
        let len = bytes.len();
        shared.operations.fetch_add(1, Ordering::Relaxed);
        let (result, back) = match (writer, parcel.target) {
            // The runtime passes no control messages, so what must not be fragmented goes around it.
            (Writer::Socket(_), Some(target)) if target.dont_fragment => {
                (send_message(fd, &target, &bytes, len).map(|()| len), bytes)
            }
            (Writer::Socket(socket), Some(target)) => socket.send_to(bytes, target.to).await,
            (Writer::Device(file), _) => file.write_at(bytes, 0).submit().await,
            (Writer::Socket(_), None) => return shared.count_drop(Cause::EgressInvalid),
        };
        bytes = back;
        let error = match result {
            Ok(written) if written == len => {
                shared.sent.fetch_add(1, Ordering::Relaxed);
                shared.sent_bytes.fetch_add(len as u64, Ordering::Relaxed);
                return;
            }
            Ok(_) => return shared.count_drop(Cause::EgressInvalid),
            Err(error) => error,
        };
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        match if parcel.target.is_some() { judge_send(errno, 1) } else { judge_write(errno, 1) } {
            Verdict::Busy => tokio::time::sleep(BUSY_PAUSE).await,
            Verdict::Again => {}
            Verdict::Forgive(_) if forgiven < FORGIVEN_MAX => forgiven += 1,
            Verdict::Forgive(cause) | Verdict::Drop(cause) => return shared.count_drop(cause),
            Verdict::Resegment => return shared.count_drop(Cause::EgressInvalid),
            Verdict::Fatal => {
                shared.count_drop(Cause::EgressClosed);
                *shared.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return;
            }
        }
    }
}

impl Egress for Runtime {
    fn add_socket(&mut self, fd: Arc<OwnedFd>) -> io::Result<Port> {
        self.add(fd, Kind::Socket)
    }

    fn add_device(&mut self, fd: Arc<OwnedFd>, offloads: Offloads) -> io::Result<Port> {
        self.add(fd, Kind::Device(offloads))
    }

    fn remove(&mut self, port: Port) {
        // The task writes what its channel still holds, then ends.
        self.ports.remove(port);
    }

    fn append(&mut self, target: &Target, len: usize, _class: Class, fill: impl FnOnce(&mut [u8]) -> bool) {
        let mut bytes = vec![0; len];
        if fill(&mut bytes) {
            self.put(target.port, Parcel { target: Some(*target), bytes });
        }
    }

    fn deliver(&mut self, device: Port, packet: &[u8]) {
        let kind = self.ports.get(device).map(|entry| entry.kind);
        let bare = matches!(kind, Some(Kind::Device(offloads)) if offloads.bare);
        let header_len = if bare { 0 } else { HEADER_LEN };
        let mut bytes = vec![0; header_len + packet.len()];
        bytes[header_len..].copy_from_slice(packet);
        self.put(device, Parcel { target: None, bytes });
    }

    fn flush(&mut self, _now: Instant) -> io::Result<Flush> {
        match self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(Flush::Done),
        }
    }

    fn pending(&self) -> u64 {
        let stats = self.stats();
        stats.offered - stats.sent - stats.drops.total()
    }

    fn waiting_ports(&self) -> impl Iterator<Item = Port> {
        std::iter::empty()
    }

    fn stats(&self) -> EgressStats {
        let mut drops = self.shared.drops.lock().unwrap_or_else(PoisonError::into_inner).clone();
        drops.add(Cause::EgressClosed, self.closed);
        let operations = self.shared.operations.load(Ordering::Relaxed);
        EgressStats {
            offered: self.offered,
            sent: self.shared.sent.load(Ordering::Relaxed),
            sent_bytes: self.shared.sent_bytes.load(Ordering::Relaxed),
            operations,
            // One operation a submit at best: the runtime does not say how often it enters.
            enters: operations,
            drops,
            ..EgressStats::default()
        }
    }

    fn design(&self) -> &'static str {
        "runtime"
    }

    fn close(&mut self) -> EgressStats {
        self.ports = Ports::default();
        self.new_ports = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let pending = self.pending();
        let mut stats = self.stats();
        stats.drops.add(Cause::Shutdown, pending);
        stats
    }
}
