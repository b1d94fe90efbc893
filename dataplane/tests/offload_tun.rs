//! Splitting and coalescing between two real kernels' worth of network stack: a TUN device in each of two network
//! namespaces, and this test as the wire between them. What one kernel hands over as TSO or USO superpackets is split,
//! every packet's checksums are verified here, some packets are corrupted, and the rest is coalesced for the other kernel,
//! whose sockets must deliver every byte and every datagram except the corrupt ones.
//!
//! Root, or where that is missing a user namespace, is needed; otherwise the test says what it lacks.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "support/here.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod here;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use dataplane::netlink::Handle;
use dataplane::offload::candidate::inspect;
use dataplane::offload::coalesce::{SLOT_LEN_MIN, Superpacket};
use dataplane::offload::split::Splitter;
use dataplane::offload::virtio;
use dataplane::packet::Packet;
use dataplane::sys::tun::{Tun, TunOptions};
use dataplane::sys::udp::{UdpOptions, UdpSocket};
use here::{again_inside_namespace, lacks};

const MTU: usize = 1280;
/// One in so many TCP packets is corrupted on the wire.
const CORRUPT_ONE_IN: usize = 97;
/// One in so many packets of an ECN-capable transport is marked as having met congestion (RFC 3168).
const CONGEST_ONE_IN: usize = 211;
const STREAM_LEN: usize = 12 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn tcp_streams_survive_superpackets_and_corruption() {
    let Some((near, far)) = hosts("tcp_streams_survive_superpackets_and_corruption") else { return };
    for (version, from) in [(4, "10.9.0.2:7000"), (6, "[fd00:9::2]:7000")] {
        let to: SocketAddr = from.parse().unwrap();
        let listener = far.call(move || TcpListener::bind(to).unwrap());
        let reader = std::thread::spawn(move || read_stream(listener));
        let writer = near.start(move || write_stream(to));
        let mut wire = Wire::new(&near, &far);
        let deadline = later(PATIENCE);
        let mut written = None;
        while !reader.is_finished() || written.is_none() {
            assert!(!passed(deadline), "the stream stalls: {:?}", wire.figures());
            wire.carry(20);
            written = written.or_else(|| writer.try_recv().ok());
        }
        assert_eq!((written, reader.join().unwrap()), (Some(STREAM_LEN), STREAM_LEN));
        let figures = wire.figures();
        println!("TCP over IPv{version}: {figures:?}");
        assert!(figures.split > 100 && figures.merged > 100, "no superpackets: {figures:?}");
        assert!(figures.corrupted > 20, "nothing was put to the test: {figures:?}");
        assert!(figures.window_reduced > 0, "no superpacket with CWR: {figures:?}");
    }
}

#[test]
fn datagrams_arrive_each_but_the_corrupt_ones() {
    let Some((near, far)) = hosts("datagrams_arrive_each_but_the_corrupt_ones") else { return };
    if !near.tun.offloads().uso {
        lacks("a kernel with USO on TUN devices (Linux 6.2)");
        return;
    }
    for (version, from, to) in [(4, "10.9.0.1:0", "10.9.0.2:7001"), (6, "[fd00:9::1]:0", "[fd00:9::2]:7001")]
    {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let sender = near.call(move || UdpSocket::bind(from, &UdpOptions::default()).unwrap());
        let receiver = far.call(move || std::net::UdpSocket::bind(to).unwrap());
        receiver.set_nonblocking(true).unwrap();
        let mut wire = Wire::new(&near, &far);
        let mut expected = 0;
        // 30 of 1,200 bytes and a shorter one: within the receiver's default buffer, so that nothing may be missing.
        for round in 0..100u32 {
            let numbers = round * 31..(round + 1) * 31;
            let datagrams: Vec<u8> = numbers.clone().flat_map(datagram).collect();
            let short = datagrams.len() - 500;
            sender.send_segments(to, None, 0, &datagrams[..short], 1_200).unwrap();
            wire.carry(0);
            for number in numbers.filter(|number| !is_corrupt(*number)) {
                let mut buffer = [0; 2_000];
                let len = receive(&receiver, &mut wire, &mut buffer);
                let whole = datagram(number);
                let sent = if number % 31 == 30 { &whole[..700] } else { &whole[..] };
                assert!(buffer[..len] == *sent, "IPv{version}: datagram {number} is lost or changed");
                expected += 1;
            }
        }
        let figures = wire.figures();
        println!("UDP over IPv{version}: {figures:?}");
        assert_eq!(expected + figures.corrupted, 3_100);
        assert!(figures.split >= 100 && figures.merged >= 100, "no superpackets: {figures:?}");
        assert!(receiver.recv(&mut [0; 10]).is_err(), "one too many");
    }
}

/// What went over the wire.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// Reads that held more than one packet.
    split: usize,
    /// Packets read.
    packets: usize,
    /// Writes that held more than one packet.
    merged: usize,
    /// All writes.
    writes: usize,
    /// Packets corrupted on the way.
    corrupted: usize,
    /// Superpackets read that begin with CWR.
    window_reduced: usize,
}

/// The wire between two TUN devices, both ways.
struct Wire<'a> {
    ways: [(&'a Tun, &'a Tun); 2],
    packet: Box<Packet>,
    buffer: Vec<u8>,
    open: Vec<(Superpacket, Vec<u8>)>,
    figures: Figures,
}

impl<'a> Wire<'a> {
    fn new(near: &'a Host, far: &'a Host) -> Self {
        Self {
            ways: [(&near.tun, &far.tun), (&far.tun, &near.tun)],
            packet: Box::new(Packet::new()),
            buffer: vec![0; 70_000],
            open: Vec::new(),
            figures: Figures::default(),
        }
    }

    fn figures(&self) -> Figures {
        self.figures
    }

    /// Waits for packets, at most `timeout_ms`, and carries what is there.
    fn carry(&mut self, timeout_ms: i64) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let [(one, other), _] = self.ways;
        let mut sources = [PollFd::new(one.fd(), PollFlags::IN), PollFd::new(other.fd(), PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout_ms * 1_000_000 };
        poll(&mut sources, Some(&timeout)).unwrap();
        for (from, to) in self.ways {
            let mut buffer = std::mem::take(&mut self.buffer);
            // Bounded, so that acknowledgements get their turn.
            for _ in 0..16 {
                match rustix::io::read(from.fd(), &mut buffer) {
                    Ok(len) => self.take_apart(&mut buffer[..len], to),
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => panic!("read from TUN: {error}"),
                }
            }
            self.buffer = buffer;
            std::mem::take(&mut self.open).into_iter().for_each(|superpacket| self.write(superpacket, to));
        }
    }

    fn take_apart(&mut self, superpacket: &mut [u8], to: &Tun) {
        self.figures.window_reduced += usize::from(virtio::Header::decode(superpacket).unwrap().ecn);
        let mut splitter = Splitter::new(superpacket).expect("the kernel tells no lies");
        self.figures.split += usize::from(splitter.segment_count() > 1);
        let mut packet = std::mem::take(&mut self.packet);
        while let Some(segment) = splitter.next_packet() {
            packet.copy_from(segment).expect("an IP packet");
            self.figures.packets += 1;
            let segment = packet.as_mut_slice();
            verify(segment);
            if self.figures.packets.is_multiple_of(CONGEST_ONE_IN) {
                congest(segment);
            }
            if self.corrupt(segment) {
                self.figures.corrupted += 1;
            }
            self.put_together(segment, to);
        }
        self.packet = packet;
    }

    /// Flips a bit of the payload of some packets; header and IP checksum stay right, so that the transport checksum is
    /// all that tells.
    fn corrupt(&self, segment: &mut [u8]) -> bool {
        let (header_len, protocol) = if segment[0] >> 4 == 4 { (20, segment[9]) } else { (40, segment[6]) };
        let unlucky = match protocol {
            6 => segment.len() > 600 && self.figures.packets.is_multiple_of(CORRUPT_ONE_IN),
            17 => {
                let payload = &segment[header_len + 8..];
                payload.first_chunk().is_some_and(|number| is_corrupt(u32::from_be_bytes(*number)))
            }
            _ => false,
        };
        if unlucky {
            *segment.last_mut().unwrap() ^= 0x10;
        }
        unlucky
    }

    /// As [`dataplane::offload::coalesce`] asks of its caller.
    fn put_together(&mut self, packet: &[u8], to: &Tun) {
        let candidate = inspect(packet, to.offloads());
        let conflict = self.open.iter().position(|(superpacket, _)| {
            matches!((superpacket.flow(), candidate.flow()), (Some(one), Some(other)) if one.conflicts(other))
        });
        if let Some(at) = conflict {
            let (superpacket, slot) = &mut self.open[at];
            if superpacket.try_append(slot, packet, &candidate) {
                return;
            }
            let superpacket = self.open.remove(at);
            self.write(superpacket, to);
        }
        let mut slot = vec![0; SLOT_LEN_MIN];
        let superpacket = Superpacket::start(&mut slot, packet, &candidate);
        self.open.push((superpacket, slot));
    }

    fn write(&mut self, (superpacket, mut slot): (Superpacket, Vec<u8>), to: &Tun) {
        self.figures.merged += usize::from(superpacket.segments() > 1);
        self.figures.writes += 1;
        let len = superpacket.finish(&mut slot);
        let header = virtio::Header::decode(&slot);
        match rustix::io::write(to.fd(), &slot[..len]) {
            Ok(written) => assert_eq!(written, len),
            Err(error) => panic!("write of {len} bytes to TUN: {error}; {header:?}"),
        }
    }
}

/// Marks a packet of an ECN-capable transport as a congested router would.
fn congest(packet: &mut [u8]) {
    if packet[0] == 0x45 && packet[1] & 3 != 0 {
        packet[1] |= 3;
        packet[10..12].fill(0);
        let field = !sum(&[&packet[..20]]) as u16;
        packet[10..12].copy_from_slice(&field.to_be_bytes());
    } else if packet[0] >> 4 == 6 && packet[1] & 0x30 != 0 {
        packet[1] |= 0x30;
    }
}

/// Checks lengths and checksums of a packet that came from a kernel, by the definition.
fn verify(packet: &[u8]) {
    assert!(packet.len() <= MTU, "{} bytes", packet.len());
    let word = |at: usize| usize::from(packet[at]) << 8 | usize::from(packet[at + 1]);
    let (addresses, protocol, transport) = match packet[0] {
        0x45 => {
            assert_eq!((word(2), sum(&[&packet[..20]])), (packet.len(), 0xffff));
            (&packet[12..20], packet[9], &packet[20..])
        }
        version => {
            assert_eq!((version >> 4, word(4) + 40), (6, packet.len()));
            (&packet[8..40], packet[6], &packet[40..])
        }
    };
    if let 6 | 17 = protocol {
        let len = (transport.len() as u16).to_be_bytes();
        assert_eq!(sum(&[addresses, &[0, protocol], &len, transport]), 0xffff, "transport checksum");
    }
}

fn sum(pieces: &[&[u8]]) -> u32 {
    let pairs = pieces.iter().flat_map(|piece| piece.chunks(2));
    let total: u32 = pairs.map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (total >> 16) + (total & 0xffff);
    (folded >> 16) + (folded & 0xffff)
}

/// Byte `at` of the stream that the writer writes and the reader expects.
fn stream_byte(at: usize) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

fn write_stream(to: SocketAddr) -> usize {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut written = 0;
    while written < STREAM_LEN {
        let piece: Vec<u8> = (written..STREAM_LEN.min(written + 100_000)).map(stream_byte).collect();
        stream.write_all(&piece).unwrap();
        written += piece.len();
    }
    written
}

fn read_stream(listener: TcpListener) -> usize {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut read = 0;
    loop {
        let len = stream.read(&mut buffer).unwrap();
        if len == 0 {
            return read;
        }
        let wrong = buffer[..len].iter().zip(read..).position(|(byte, at)| *byte != stream_byte(at));
        assert_eq!(wrong, None, "a corrupt byte was delivered behind {read}");
        read += len;
    }
}

fn is_corrupt(number: u32) -> bool {
    number % 50 == 7
}

fn datagram(number: u32) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((4..1_200usize).map(|at| (at * 7 + number as usize) as u8));
    bytes
}

/// The next datagram. Delivery through a TUN device is synchronous but for the softirq, so a little waiting is enough.
fn receive(socket: &std::net::UdpSocket, wire: &mut Wire<'_>, buffer: &mut [u8]) -> usize {
    let deadline = later(Duration::from_secs(5));
    loop {
        match socket.recv(buffer) {
            Ok(len) => return len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !passed(deadline) => wire.carry(1),
            Err(error) => panic!("{error} after {:?}", wire.figures()),
        }
    }
}

/// A thread in a network namespace of its own with a TUN device.
struct Host {
    tun: Tun,
    jobs: Sender<Box<dyn FnOnce() + Send>>,
}

impl Host {
    /// Fails where making a network namespace or a TUN device is not allowed.
    fn new(number: u8) -> io::Result<Self> {
        let (jobs, work) = channel::<Box<dyn FnOnce() + Send>>();
        let (ready, wait) = channel();
        std::thread::Builder::new().name(format!("host-{number}")).spawn(move || {
            let _ = ready.send(Self::set_up(number));
            work.into_iter().for_each(|job| job());
        })?;
        Ok(Self { tun: wait.recv().unwrap()?, jobs })
    }

    fn set_up(number: u8) -> io::Result<Tun> {
        dataplane::sys::namespace::unshare_net()?;
        let tun = Tun::open("tow0", TunOptions::ALL)?;
        // The namespace's own: ask for ECN on every connection, both families.
        std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
        let mut handle = Handle::open().unwrap();
        let index = handle.link_index("tow0").unwrap();
        handle.set_mtu(index, MTU as u32).unwrap();
        let addresses = [(format!("10.9.0.{number}"), 24), (format!("fd00:9::{number}"), 64)];
        for (address, length) in addresses {
            let address: IpAddr = address.parse().unwrap();
            handle.add_address(index, format!("{address}/{length}").parse().unwrap()).unwrap();
        }
        handle.set_up(index).unwrap();
        Ok(tun)
    }

    /// Runs something in the host's namespace.
    fn start<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> Receiver<R> {
        let (sender, receiver) = channel();
        let job = move || {
            let _ = sender.send(job());
        };
        self.jobs.send(Box::new(job)).unwrap();
        receiver
    }

    fn call<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        self.start(job).recv_timeout(PATIENCE).unwrap()
    }
}

/// Two hosts; `None` when the test ran in a user namespace instead, or could not.
fn hosts(test: &str) -> Option<(Host, Host)> {
    match Host::new(1).and_then(|near| Ok((near, Host::new(2)?))) {
        Ok(hosts) => Some(hosts),
        Err(error) => {
            again_inside_namespace(test, &error);
            None
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has its own clock")]
fn later(duration: Duration) -> Instant {
    Instant::now() + duration
}

#[expect(clippy::disallowed_methods, reason = "a test has its own clock")]
fn passed(deadline: Instant) -> bool {
    Instant::now() >= deadline
}
