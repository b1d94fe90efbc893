//! A page of raw kernel calls in the place of a relay: what arrives on one socket leaves through another, one for each
//! source, to one sink. As many sockets as a TURN relay has for as many flows, as many threads as it is told to, and no
//! protocol.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::channel;
use std::thread;

use dataplane::egress::{Port, Target};
use dataplane::ingress::Meta;
use dataplane::sys::udp::{LISTEN_PATIENCE, RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket, send_batch};
use rustix::event::epoll;

/// Superpackets taken at a time.
const BATCH: usize = 16;

/// Where the sources go among threads: the relay takes a random number, a measurement the same one every time.
const SEED: u32 = 0x7074_776f;

/// The forwarder, its sockets bound.
pub struct Middle {
    parts: Vec<Part>,
}

/// What one thread has: a listening socket of the group, and its share of the sockets that flows leave through.
struct Part {
    listen: UdpSocket,
    outward: Vec<UdpSocket>,
    sink: SocketAddr,
}

impl Middle {
    /// Listens at `listen`, for as many sources as `flows`, to be forwarded by `threads` threads. The kernel gives each
    /// source to one of them, as it does for the workers of a relay; a thread that has more sources than its share of
    /// sockets lets some share one.
    ///
    /// # Errors
    /// What bind(2) answers.
    pub fn bind(listen: SocketAddr, sink: SocketAddr, flows: usize, threads: u32) -> io::Result<Self> {
        // As large as Towpath's relay asks for.
        let options = |buffer| UdpOptions {
            receive_buffer: buffer,
            send_buffer: buffer,
            packet_info: false,
            gro: true,
            patience: LISTEN_PATIENCE,
            ..UdpOptions::default()
        };
        let any = SocketAddr::new(listen.ip(), 0);
        let group = UdpSocket::bind_group(listen, &options(8 << 20), threads, SEED)?;
        let share = flows.div_ceil(group.len());
        let part = |listen| {
            let outward: io::Result<_> =
                (0..share).map(|_| UdpSocket::bind(any, &options(1 << 20))).collect();
            Ok(Part { listen, outward: outward?, sink })
        };
        Ok(Self { parts: group.into_iter().map(part).collect::<io::Result<_>>()? })
    }

    /// Forwards until it is killed, or until one of its threads fails.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn run(self) -> io::Result<()> {
        let (ended, ends) = channel();
        for (index, part) in self.parts.into_iter().enumerate() {
            let ended = ended.clone();
            let run = move || {
                // Nobody listens any more when another thread failed first.
                let _ = ended.send(part.run());
            };
            thread::Builder::new().name(format!("middle-{index}")).spawn(run)?;
        }
        drop(ended);
        ends.recv().unwrap_or(Ok(()))
    }
}

impl Part {
    /// Epoll, recvmmsg with UDP_GRO, sendmmsg with UDP_SEGMENT.
    fn run(&self) -> io::Result<()> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let sockets = std::iter::once(&self.listen).chain(&self.outward);
        for (index, socket) in sockets.enumerate() {
            epoll::add(&epoll, socket.fd(), epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
        }
        let mut batch = ReceiveBatch::new(BATCH, RECEIVE_LEN);
        let mut events = Vec::with_capacity(64);
        let mut ways = HashMap::new();
        loop {
            events.clear();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
            for event in &events {
                match event.data.u64() {
                    0 => self.forward(&mut batch, &mut ways)?,
                    // Nobody answers; what came all the same must not keep the loop awake.
                    other => drop(self.outward[other as usize - 1].receive_batch(&mut batch)?),
                }
            }
        }
    }

    fn forward(&self, batch: &mut ReceiveBatch, ways: &mut HashMap<SocketAddr, usize>) -> io::Result<()> {
        self.listen.receive_batch(batch)?;
        let target =
            Target { port: Port(0), to: self.sink, from: None, traffic_class: 0, dont_fragment: false };
        let mut items: Vec<(Target, &[u8], usize)> = Vec::with_capacity(BATCH);
        let mut way = 0;
        for arrival in batch.iter_mut() {
            let Some(Meta::Udp { from, segment_size, .. }) = arrival.meta else { continue };
            let known = ways.len();
            let next = *ways.entry(from).or_insert(known % self.outward.len());
            if next != way {
                self.flush(way, &mut items);
                way = next;
            }
            items.push((target, &*arrival.bytes, segment_size));
        }
        self.flush(way, &mut items);
        Ok(())
    }

    fn flush(&self, way: usize, items: &mut Vec<(Target, &[u8], usize)>) {
        if !items.is_empty() {
            // A full send buffer drops, as the simplest forwarder does.
            let _ = send_batch(self.outward[way].fd().as_fd(), items);
            items.clear();
        }
    }
}
