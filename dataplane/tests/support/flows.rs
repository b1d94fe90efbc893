//! Numbered packets, and the sink that judges them: sequence numbers at the far end are the truth.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::ingress::{Meta, Received};
use dataplane::offload::checksum;
use dataplane::sys::tun::Tun;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};

use super::here::wait_until;

/// The shortest packet that has a number in it, in bytes.
pub const MIN_LEN: usize = 12;

/// What the kernel charges a receive buffer for a packet of up to 1,500 bytes, and slack.
const CHARGE: u64 = 2_560;
/// Packets sent in one go.
const BATCH: u64 = 64;

/// Writes packet `number` of `flow`: both, then bytes that follow from both.
pub fn write(bytes: &mut [u8], flow: u32, number: u64) {
    bytes[..4].copy_from_slice(&flow.to_be_bytes());
    bytes[4..MIN_LEN].copy_from_slice(&number.to_be_bytes());
    bytes[MIN_LEN..].fill(flow as u8 ^ number as u8);
}

/// Length of the headers of [`inner_packet`], bytes.
pub const INNER: usize = 28;

/// An IPv4 packet with a UDP datagram (without checksum) that holds packet `number` of `flow`.
pub fn inner_packet(flow: u32, number: u64, len: usize) -> Vec<u8> {
    let mut packet = vec![0; INNER + len];
    let total = packet.len() as u16;
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..24].copy_from_slice(&[0x10, flow as u8, 0x20, 0]);
    packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    write(&mut packet[INNER..], flow, number);
    packet
}

/// The same with a checksum, so that a device's superpacket can hold it.
pub fn mergeable_packet(flow: u32, number: u64, len: usize) -> Vec<u8> {
    let mut packet = inner_packet(flow, number, len);
    let pseudo = checksum::pseudo_header(&packet[12..20], 17) + (packet.len() - 20) as u64;
    let field = checksum::finish_udp(pseudo + checksum::sum(&packet[20..]));
    packet[26..28].copy_from_slice(&field.to_be_bytes());
    packet
}

/// What has arrived, by flow.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    last: HashMap<u32, u64>,
    arrived: HashMap<u32, u64>,
    total: u64,
    faults: Vec<String>,
}

impl Tally {
    /// Notes one packet. Order and content are judged at once; [`Tally::check`] reports.
    pub fn note(&mut self, bytes: &[u8]) {
        let Some((head, rest)) = bytes.split_first_chunk::<MIN_LEN>() else {
            return self.fault(format!("a packet of {} bytes", bytes.len()));
        };
        let flow = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let number = u64::from_be_bytes(std::array::from_fn(|at| head[4 + at]));
        if rest.iter().any(|&byte| byte != flow as u8 ^ number as u8) {
            self.fault(format!("packet {number} of flow {flow} is changed"));
        }
        let last = self.last.insert(flow, number);
        if last.is_some_and(|last| last >= number) {
            self.fault(format!("flow {flow}: {number} arrives behind {last:?}"));
        }
        *self.arrived.entry(flow).or_default() += 1;
        self.total += 1;
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < 10 {
            self.faults.push(text);
        }
    }

    /// Packets of one flow that arrived.
    pub fn of(&self, flow: u32) -> u64 {
        self.arrived.get(&flow).copied().unwrap_or_default()
    }

    /// All packets that arrived.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Fails when a flow was reordered, doubled or changed.
    pub fn check(&self) {
        assert!(self.faults.is_empty(), "order or content: {:?}", self.faults);
    }
}

/// A socket or a TUN device, and the thread that reads it.
pub struct Sink {
    address: SocketAddr,
    window: u64,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    tally: Mutex<Tally>,
    arrived: AtomicU64,
    dropped: AtomicU64,
    stop: AtomicBool,
}

impl Sink {
    /// Binds `address` in the calling thread's network namespace.
    pub fn new(address: &str) -> Self {
        // Without GRO the socket's drop counter counts datagrams.
        let options = UdpOptions { gro: false, ..UdpOptions::default() };
        let socket = UdpSocket::bind(address.parse().expect("address"), &options).expect("sink");
        let granted = rustix::net::sockopt::socket_recv_buffer_size(socket.fd()).expect("SO_RCVBUF");
        let window = (granted as u64 / CHARGE).saturating_sub(BATCH).min(1_000);
        Self::start(socket.local_addr(), window, move |shared| read(&socket, shared))
    }

    /// Reads what is routed to a TUN device: datagrams over IPv4, whatever their address. What the device could not queue
    /// is missing from the count, with nothing said.
    pub fn device(tun: Tun, address: SocketAddr) -> Self {
        Self::start(address, u64::MAX, move |shared| read_device(&tun, shared))
    }

    fn start(address: SocketAddr, window: u64, read: impl FnOnce(&Shared) + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || read(&theirs));
        Self { address, window, shared, thread: Some(thread) }
    }

    /// Where to send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Packets of up to 1,500 bytes that may be on their way before the next batch of 64, so that the receive buffer, which
    /// without privileges is a small one, holds them.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Packets that have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Relaxed)
    }

    /// Waits until `packets` have arrived or nothing comes any more, and hands over what did. The socket itself must not
    /// have lost any.
    pub fn finish(mut self, packets: u64) -> Tally {
        wait_until(Duration::from_secs(5), || self.arrived() >= packets);
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("once").join().expect("sink");
        assert_eq!(self.shared.dropped.load(Ordering::Relaxed), 0, "the sink's own receive buffer was full");
        let tally = self.shared.tally.lock().expect("sink").clone();
        tally.check();
        assert_eq!(tally.total(), packets, "packets at the sink");
        tally
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn wait_readable(fd: &impl std::os::fd::AsFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)).expect("poll");
}

/// The virtio_net header in front of what a TUN device hands over, in bytes.
const VIRTIO_LEN: usize = 10;

fn read_device(tun: &Tun, shared: &Shared) {
    let mut bytes = [0; 2_048];
    while !shared.stop.load(Ordering::Relaxed) {
        wait_readable(tun.fd());
        while let Ok(len) = rustix::io::read(tun.fd(), &mut bytes) {
            // An IPv4 header without options, then a UDP header; what else the kernel says (router solicitations) is not ours.
            let packet = &bytes[VIRTIO_LEN..len];
            let Some((header, payload)) = packet.split_at_checked(28) else { continue };
            if header[0] == 0x45 && header[9] == 17 {
                let mut tally = shared.tally.lock().expect("sink");
                tally.note(payload);
                shared.arrived.store(tally.total(), Ordering::Relaxed);
            }
        }
    }
}

fn read(socket: &UdpSocket, shared: &Shared) {
    let mut batch = ReceiveBatch::new(64, RECEIVE_LEN);
    while !shared.stop.load(Ordering::Relaxed) {
        wait_readable(socket.fd());
        while socket.receive_batch(&mut batch).expect("receive") > 0 {
            let mut tally = shared.tally.lock().expect("sink");
            for arrival in batch.iter_mut() {
                if let Some(dropped) = arrival.dropped {
                    shared.dropped.store(u64::from(dropped), Ordering::Relaxed);
                }
                let Some(Meta::Udp { segment_size, .. }) = arrival.meta else { continue };
                Received::segments(arrival.bytes, segment_size).for_each(|segment| tally.note(segment));
            }
            shared.arrived.store(tally.total(), Ordering::Relaxed);
        }
    }
}
