//! Two forwarders for the same traffic: a page of raw kernel calls, and the engine. Both send what arrives to one sink,
//! through the socket it arrived on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use dataplane::driver::{Application, Next};
use dataplane::drops::Drops;
use dataplane::egress::{Class, Egress, Port, Target};
use dataplane::engine::IngressKind;
use dataplane::ingress::{Ingress, Meta, Received, Source, Token};
use dataplane::stages::Stages;
use dataplane::sys::signal::StopSignals;
use dataplane::sys::udp::{LISTEN_PATIENCE, RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket, send_batch};
use rustix::event::{Timespec, epoll};

/// Superpackets taken from one socket at a time.
const BATCH: usize = 16;

/// The raw path: epoll, recvmmsg with UDP_GRO, sendmmsg with UDP_SEGMENT. Ends on SIGTERM.
///
/// # Errors
/// What the kernel answers.
pub fn raw(sockets: &[UdpSocket], sink: SocketAddr) -> io::Result<()> {
    let signals = StopSignals::new()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, socket) in sockets.iter().enumerate() {
        epoll::add(&epoll, socket.fd(), epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
    }
    epoll::add(&epoll, signals.fd(), epoll::EventData::new_u64(u64::MAX), epoll::EventFlags::IN)?;
    let mut batch = ReceiveBatch::new(BATCH, RECEIVE_LEN);
    let mut events = Vec::with_capacity(64);
    let width = if sockets.len() > 1 { 1 } else { BATCH };
    loop {
        events.clear();
        let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        for event in &events {
            let Some(socket) = sockets.get(event.data.u64() as usize) else { return Ok(()) };
            forward_raw(socket, sink, &mut batch, width)?;
        }
    }
}

fn forward_raw(
    socket: &UdpSocket,
    sink: SocketAddr,
    batch: &mut ReceiveBatch,
    width: usize,
) -> io::Result<()> {
    UdpSocket::receive_from(socket.fd().as_fd(), batch, width)?;
    let target = Target { port: Port(0), to: sink, from: None, traffic_class: 0, dont_fragment: false };
    let items: Vec<(Target, &[u8], usize)> = batch
        .iter_mut()
        .filter_map(|arrival| match arrival.meta {
            Some(Meta::Udp { segment_size, .. }) => Some((target, &*arrival.bytes, segment_size)),
            _ => None,
        })
        .collect();
    if !items.is_empty() {
        // A full send buffer drops, as the simplest forwarder does.
        let _ = send_batch(socket.fd().as_fd(), &items);
    }
    Ok(())
}

/// Binds the sockets a forwarder listens on.
///
/// # Errors
/// What bind(2) answers.
pub fn bind(listen: &[SocketAddr]) -> io::Result<Vec<UdpSocket>> {
    let buffer = if listen.len() > 1 { 256 << 10 } else { 8 << 20 };
    let options = UdpOptions {
        receive_buffer: buffer,
        send_buffer: 4 << 20,
        packet_info: false,
        gro: true,
        patience: LISTEN_PATIENCE,
        ..UdpOptions::default()
    };
    listen.iter().map(|address| UdpSocket::bind(*address, &options)).collect()
}

/// The same work as an application of the engine.
pub struct Forwarder {
    sockets: Vec<UdpSocket>,
    sink: SocketAddr,
    stages: Option<Stages>,
}

impl Forwarder {
    /// Forwards what arrives on `sockets` to `sink`; `timed` keeps the histograms that tunnel and relay have.
    #[must_use]
    pub fn new(sockets: Vec<UdpSocket>, sink: SocketAddr, timed: bool) -> Self {
        Self { sockets, sink, stages: timed.then(Stages::default) }
    }
}

impl Application for Forwarder {
    fn default_ingress(&self) -> IngressKind {
        IngressKind::Epoll
    }

    fn start<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        _now: Instant,
    ) -> io::Result<()> {
        for socket in &self.sockets {
            let port = egress.add_socket(socket.fd().clone())?;
            ingress.add(socket.fd().clone(), Token(port.0), Source::Udp)?;
        }
        Ok(())
    }

    fn handle<E: Egress>(&mut self, received: Received<'_>, egress: &mut E, _now: Instant) {
        let Meta::Udp { segment_size, .. } = received.meta else { return };
        let target = Target {
            port: Port(received.token.0),
            to: self.sink,
            from: None,
            traffic_class: 0,
            dont_fragment: false,
        };
        for segment in Received::segments(received.bytes, segment_size) {
            egress.append(&target, segment.len(), Class::Data, |slot| {
                slot.copy_from_slice(segment);
                true
            });
        }
    }

    fn handle_timeout<E: Egress>(&mut self, _egress: &mut E, _now: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn maintain<I: Ingress, E: Egress>(&mut self, _ingress: &mut I, _egress: &mut E, _now: Instant) -> Next {
        Next::Continue
    }

    fn slow_down<I: Ingress>(&mut self, _ingress: &mut I, _reading: bool) {}

    fn stop<E: Egress>(&mut self, _egress: &mut E, _now: Instant) {}

    fn drops(&self) -> Drops {
        Drops::default()
    }

    fn stages(&mut self) -> Option<&mut Stages> {
        self.stages.as_mut()
    }
}
