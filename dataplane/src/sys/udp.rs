//! UDP sockets with superpackets both ways (UDP_GRO, UDP_SEGMENT), packet info and drop counts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::message::{self, SendHeader};
pub use super::receive_batch::{Arrival, ReceiveBatch};
use super::steering::{self, Family};
use super::transmit_stamps::{self, Stamp};
use super::{error_queue, socket};
use crate::drops::Cause;
use crate::egress::errno::{FORGIVEN_MAX, Verdict, judge_send};
use crate::egress::{Port, Target};

/// Longest superpacket or datagram that can arrive, in bytes.
pub const RECEIVE_LEN: usize = 65_536;

/// How a socket is set up.
#[derive(Clone, Copy, Debug)]
pub struct UdpOptions {
    /// Receive superpackets (UDP_GRO).
    pub gro: bool,
    /// Receive buffer asked for, in bytes; the kernel grants up to net.core.rmem_max without CAP_NET_ADMIN.
    pub receive_buffer: usize,
    /// Send buffer asked for, in bytes; likewise with net.core.wmem_max.
    pub send_buffer: usize,
    /// Learn the local address of each datagram (IP_PKTINFO); needed on wildcard addresses.
    pub packet_info: bool,
    /// Learn the ECN bits of each datagram (IP_RECVTOS, IPV6_RECVTCLASS).
    pub ecn: bool,
    /// Learn of ICMP errors (IP_RECVERR): read the socket as [`crate::ingress::Source::UdpWithErrors`]. An error fails one
    /// send, of whatever destination, which every egress tries again; so this is for sockets whose peers share a fate.
    pub errors: bool,
    /// Over IPv4, never set DF, whatever net.ipv4.ip_no_pmtu_disc says, and believe no path MTU (IP_PMTUDISC_OMIT):
    /// datagrams longer than the interface's MTU are fragmented here, others by whoever has to. ICMP errors are heard of
    /// all the same. [`UdpSocket::send_whole`] makes exceptions.
    pub without_df: bool,
    /// Learn when each datagram reached the kernel (SO_TIMESTAMPING); not beside `packet_info` and `ecn`, which leave no room
    /// for it.
    pub timestamps: bool,
    /// Learn when the device took what [`UdpSocket::send_stamped`] sends.
    pub transmit_stamps: bool,
    /// How long a taken address is tried again. After a crash the kernel takes some 40 ms to let go of sockets that a
    /// ring had receives armed on, so what listens on a fixed port should ask for [`LISTEN_PATIENCE`].
    pub patience: Duration,
}

/// Datagrams that [`UdpSocket::equip`] forgets at most: more than fit into the smallest receive buffer.
const RESERVED_MAX: u64 = 64;

/// For how long a listening socket tries to get its address.
pub const LISTEN_PATIENCE: Duration = Duration::from_millis(250);

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            gro: true,
            receive_buffer: 8 << 20,
            send_buffer: 8 << 20,
            packet_info: true,
            ecn: false,
            errors: false,
            without_df: false,
            timestamps: false,
            transmit_stamps: false,
            patience: Duration::ZERO,
        }
    }
}

/// A bound, non-blocking UDP socket.
#[derive(Clone, Debug)]
pub struct UdpSocket {
    fd: Arc<OwnedFd>,
    local: SocketAddr,
}

impl UdpSocket {
    /// Binds a socket. IPv6 sockets take IPv6 only, so that a mapped IPv4 address cannot pass for one.
    ///
    /// # Errors
    /// What socket(2) and bind(2) answer; the message names the address.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> io::Result<Self> {
        Self::bind_plain(address, options, |_| Ok(())).map_err(|error| on(address, &error))
    }

    /// Binds as many sockets to one address, of which each source of datagrams has one for as long as they are there, whoever
    /// else binds the address later ([`steering`]). `seed` makes it unpredictable which. One socket alone is bound as by
    /// [`UdpSocket::bind`].
    ///
    /// # Errors
    /// As [`UdpSocket::bind`]; the address may not be anybody else's.
    pub fn bind_group(
        address: SocketAddr,
        options: &UdpOptions,
        members: u32,
        seed: u32,
    ) -> io::Result<Vec<Self>> {
        let first = Self::bind(address, options)?;
        let address = first.local;
        let mut group = vec![first];
        let joined = (|| {
            if members > 1 {
                steering::open_group(&*group[0].fd)?;
            }
            for _ in 1..members {
                group.push(Self::bind_plain(address, options, |socket| steering::open_group(socket))?);
            }
            if members > 1 {
                let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
                steering::steer(&*group[0].fd, family, members, seed)?;
            }
            Ok(())
        })();
        joined.map(|()| group).map_err(|error| on(address, &error))
    }

    /// Binds another socket to the same address, which is for sending only: all that comes goes on to this one ([`steering`]).
    /// What of the other's has to wait, as for a neighbour that does not answer, fills a send buffer of its own, of
    /// `send_buffer` bytes.
    ///
    /// # Errors
    /// As [`UdpSocket::bind_group`].
    pub fn beside(&self, send_buffer: usize) -> io::Result<Self> {
        let options = UdpOptions {
            gro: false,
            receive_buffer: 0,
            send_buffer,
            packet_info: false,
            ..UdpOptions::default()
        };
        let bound = steering::open_group(&*self.fd).and_then(|()| {
            let other = Self::bind_plain(self.local, &options, |socket| steering::open_group(socket))?;
            let family = if self.local.is_ipv4() { Family::V4 } else { Family::V6 };
            // Of a group with one member that counts all goes to that one.
            steering::steer(&*self.fd, family, 1, 0)?;
            Ok(other)
        });
        bound.map_err(|error| on(self.local, &error))
    }

    fn bind_plain(
        address: SocketAddr,
        options: &UdpOptions,
        prepare: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<Self> {
        let socket = unbound(address)?;
        set_options(socket.as_fd(), address, options)?;
        prepare(&socket)?;
        bind_patiently(&socket, address, options.patience)?;
        if options.gro {
            receive_superpackets(socket.as_fd());
        }
        let local = match address.port() {
            0 => socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))?,
            _ => address,
        };
        Ok(Self { fd: Arc::new(socket.into()), local })
    }

    /// Binds a socket and no more: nobody else gets the address, and what comes stays in the smallest buffer that the kernel
    /// allows, until [`UdpSocket::equip`]. That is half of the system calls, for sockets that may never be used.
    ///
    /// # Errors
    /// What socket(2) and bind(2) answer.
    pub fn reserve(address: SocketAddr) -> io::Result<Self> {
        let socket = unbound(address)?;
        socket::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
        socket.bind(&address.into())?;
        Ok(Self { fd: Arc::new(socket.into()), local: address })
    }

    /// Makes a socket from [`UdpSocket::reserve`] what [`UdpSocket::bind`] would have made it, and forgets what has come so far:
    /// the answer is how many datagrams, as far as there was room for them.
    ///
    /// # Errors
    /// What setsockopt(2) answers.
    pub fn equip(&self, options: &UdpOptions) -> io::Result<u64> {
        set_options(self.fd.as_fd(), self.local, options)?;
        let mut forgotten = 0;
        // Not for ever, whoever sends meanwhile.
        while forgotten < RESERVED_MAX && discard(&self.fd) {
            forgotten += 1;
        }
        if options.gro {
            receive_superpackets(self.fd.as_fd());
        }
        Ok(forgotten)
    }

    /// The address it is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The descriptor, to register with an ingress and an egress.
    #[must_use]
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// How many skbs this socket has dropped so far because its receive buffer was full (wraps at 2^32). SO_RXQ_OVFL says so
    /// only with the next datagram, which may never come.
    ///
    /// # Errors
    /// What getsockopt(2) answers: Linux before 4.12 does not tell (SO_MEMINFO).
    pub fn dropped(&self) -> io::Result<u32> {
        socket::dropped(self.fd.as_fd())
    }

    /// Stops (`false`) or resumes (`true`) learning of ICMP errors. Stopping forgets those that are queued.
    ///
    /// # Errors
    /// What setsockopt(2) answers.
    pub fn set_errors(&self, on: bool) -> io::Result<()> {
        error_queue::set_errors(self.fd.as_fd(), self.local.is_ipv4(), on)
    }

    /// Sends without checksums over IPv4 (SO_NO_CHECK of socket(7)), and so without superpackets, which the kernel then refuses
    /// with EINVAL: what a socket without UDP GSO does can be seen on it.
    ///
    /// # Errors
    /// What setsockopt(2) answers.
    pub fn leave_out_checksums(&self) -> io::Result<()> {
        socket::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
    }

    /// Receives no superpackets from now on (UDP_GRO), as [`UdpOptions::gro`] has it at first.
    ///
    /// # Errors
    /// What setsockopt(2) answers.
    pub fn stop_gro(fd: BorrowedFd<'_>) -> io::Result<()> {
        socket::set_option(fd, libc::IPPROTO_UDP, message::UDP_GRO, 0)
    }

    /// Sends `bytes` as datagrams of `segment_size` bytes (the last may be shorter) in one system call, now or never.
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full, or what sendmsg(2) answers. All or nothing was sent.
    pub fn send_segments(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        traffic_class: u8,
        bytes: &[u8],
        segment_size: usize,
    ) -> io::Result<()> {
        let target = Target { port: Port(0), to, from, traffic_class, dont_fragment: false };
        send_message(&self.fd, &target, bytes, segment_size)
    }

    /// As [`UdpSocket::send_segments`], without an address of its own and a traffic class, of a socket with
    /// [`UdpOptions::transmit_stamps`]: the kernel says when the device took the first of the datagrams, under `number`, or
    /// without one under the next of its own count.
    ///
    /// # Errors
    /// As [`UdpSocket::send_segments`]; EINVAL for a number that [`transmit_stamps::takes_numbers`] denies. Whether what was refused
    /// has a number in the kernel's own count depends on its version.
    pub fn send_stamped(
        &self,
        to: SocketAddr,
        bytes: &[u8],
        segment_size: usize,
        number: Option<u32>,
    ) -> io::Result<()> {
        let target = Target { port: Port(0), to, from: None, traffic_class: 0, dont_fragment: false };
        send_once(&self.fd, &target, bytes, segment_size, Some(number))
    }

    /// Takes up to `count` messages off the error queue, and hands over those that are stamps of [`UdpSocket::send_stamped`]; the
    /// answer is how many messages there were. While any are left, the socket is ready with an error (EPOLLERR).
    pub fn take_stamps(&self, count: usize, each: impl FnMut(Stamp)) -> usize {
        transmit_stamps::take(self.fd.as_fd(), count, each)
    }

    /// Sends one datagram over IPv4 with DF from a socket with [`UdpOptions::without_df`], now or never. No message can ask
    /// for DF over IPv4 (ip(7)), so the socket sets it for the moment: what another thread or the kernel itself sends in that
    /// moment has it too.
    ///
    /// # Errors
    /// What to count: [`Cause::Busy`] when the send buffer is full, [`Cause::EgressTooBig`] above the MTU, or another
    /// answer of sendmsg(2). Nothing was sent then.
    pub fn send_whole(&self, to: SocketAddr, bytes: &[u8]) -> Result<(), Cause> {
        let fd = self.fd.as_fd();
        let target = Target { port: Port(0), to, from: None, traffic_class: 0, dont_fragment: true };
        let send = || {
            send_message(&self.fd, &target, bytes, bytes.len())
                .map_err(|error| judge_send(error.raw_os_error().unwrap_or(libc::EINVAL), 1))
        };
        set_path_mtu_discovery(fd, libc::IP_PMTUDISC_DO).map_err(|_| Cause::EgressInvalid)?;
        let mut sent = send();
        for _ in 0..FORGIVEN_MAX {
            if !matches!(sent, Err(Verdict::Forgive(_))) {
                break;
            }
            sent = send();
        }
        // The socket took this value when it was made.
        let _ = set_path_mtu_discovery(fd, libc::IP_PMTUDISC_OMIT);
        sent.map_err(|verdict| match verdict {
            Verdict::Busy => Cause::Busy,
            Verdict::Forgive(cause) | Verdict::Drop(cause) => cause,
            Verdict::Again | Verdict::Resegment | Verdict::Fatal => Cause::EgressInvalid,
        })
    }

    /// Receives what is there, up to the batch's capacity, without waiting. Zero messages when nothing is there.
    ///
    /// # Errors
    /// What recvmmsg(2) answers, other than `WouldBlock`. An ICMP error that was pending is reported once and harmless.
    pub fn receive_batch(&self, batch: &mut ReceiveBatch) -> io::Result<usize> {
        let capacity = batch.capacity();
        Self::receive_from(self.fd.as_fd(), batch, capacity)
    }

    /// As [`UdpSocket::receive_batch`] for a socket known by its descriptor, at most `messages` superpackets.
    ///
    /// # Errors
    /// As [`UdpSocket::receive_batch`].
    pub fn receive_from(fd: BorrowedFd<'_>, batch: &mut ReceiveBatch, messages: usize) -> io::Result<usize> {
        batch.receive(fd.as_raw_fd(), messages)
    }
}

/// A socket of the address's family. Those of IPv6 take IPv6 only.
fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Sets what of `options` a socket can have before it is bound.
fn set_options(fd: BorrowedFd<'_>, address: SocketAddr, options: &UdpOptions) -> io::Result<()> {
    socket::set_buffers(fd, options.receive_buffer, options.send_buffer);
    socket::set_option(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    if options.packet_info {
        let (level, name) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        };
        socket::set_option(fd, level, name, 1)?;
    }
    if options.ecn {
        let (level, name) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVTOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
        };
        socket::set_option(fd, level, name, 1)?;
    }
    if options.timestamps || options.transmit_stamps {
        transmit_stamps::report(fd, options.timestamps, options.transmit_stamps)?;
    }
    if options.without_df && address.is_ipv4() {
        set_path_mtu_discovery(fd, libc::IP_PMTUDISC_OMIT)?;
    }
    if options.errors {
        error_queue::set_errors(fd, address.is_ipv4(), true)?;
    }
    Ok(())
}

/// Sets UDP_GRO. Kernels before 5.0 lack it; datagrams then arrive one by one and everything else works.
fn receive_superpackets(fd: BorrowedFd<'_>) {
    let _ = socket::set_option(fd, libc::IPPROTO_UDP, message::UDP_GRO, 1);
}

/// Takes a datagram off the socket, if there is one.
fn discard(fd: &OwnedFd) -> bool {
    rustix::net::recv(fd, &mut [0u8; 0][..], rustix::net::RecvFlags::DONTWAIT).is_ok()
}

/// Sets IP_MTU_DISCOVER (ip(7)), of a socket of IPv4.
fn set_path_mtu_discovery(fd: BorrowedFd<'_>, mode: i32) -> io::Result<()> {
    socket::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
}

/// An error with the address that it is about.
fn on(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("UDP socket on {address}: {error}"))
}

/// Binds, and tries again every 10 ms while the address is taken and there is patience left.
fn bind_patiently(socket: &Socket, address: SocketAddr, patience: Duration) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && waited < patience => {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
            result => return result,
        }
    }
}

/// One `sendmsg` of a datagram or superpacket with `MSG_DONTWAIT`.
///
/// # Errors
/// As [`UdpSocket::send_segments`].
pub fn send_message(fd: &OwnedFd, target: &Target, bytes: &[u8], segment_size: usize) -> io::Result<()> {
    send_once(fd, target, bytes, segment_size, None)
}

/// The same, and whether it asks for a time stamp, with a number or without.
fn send_once(
    fd: &OwnedFd,
    target: &Target,
    bytes: &[u8],
    segment_size: usize,
    stamp: Option<Option<u32>>,
) -> io::Result<()> {
    let mut header = SendHeader::default();
    // The kernel only reads through this pointer: the payload of a sendmsg is not written to.
    header.prepare(target, bytes.as_ptr().cast_mut(), bytes.len(), segment_size);
    if let Some(number) = stamp {
        header.ask_for_stamp(number);
    }
    loop {
        // SAFETY: `header` and `bytes` live on in this frame until the call returns; `prepare` filled in their
        // addresses and lengths and neither has moved since.
        let sent = unsafe {
            libc::sendmsg(fd.as_raw_fd(), header.message(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        };
        if sent >= 0 {
            return if sent as usize == bytes.len() {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::EIO))
            };
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Datagrams or superpackets sent by one call of [`send_batch`].
pub const SEND_BATCH: usize = 64;

/// One `sendmmsg` with `MSG_DONTWAIT` of up to [`SEND_BATCH`] (target, bytes, segment size); the answer is how many the
/// kernel took. It stops at the first that fails.
///
/// # Errors
/// What sendmmsg(2) answers about the first.
pub fn send_batch(fd: BorrowedFd<'_>, items: &[(Target, &[u8], usize)]) -> io::Result<usize> {
    let mut sends: [SendHeader; SEND_BATCH] = std::array::from_fn(|_| SendHeader::default());
    let mut headers = [const { libc::mmsghdr { msg_hdr: message::empty_message(), msg_len: 0 } }; SEND_BATCH];
    let count = items.len().min(SEND_BATCH);
    for ((send, header), (target, bytes, segment_size)) in sends.iter_mut().zip(&mut headers).zip(items) {
        send.prepare(target, bytes.as_ptr().cast_mut(), bytes.len(), *segment_size);
        header.msg_hdr = send.copy_of_message();
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `headers` point into `sends` and at the items' bytes, all of which live and stay put until the call returns.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as u32, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::Meta;

    fn pair() -> (UdpSocket, UdpSocket) {
        let any = "127.0.0.1:0".parse().expect("address");
        let bind = || UdpSocket::bind(any, &UdpOptions::default()).expect("loopback socket");
        (bind(), bind())
    }

    #[test]
    fn a_superpacket_crosses_loopback_whole() {
        let (sender, receiver) = pair();
        let bytes: Vec<u8> = (0..10 * 1000 + 300).map(|index| index as u8).collect();
        sender.send_segments(receiver.local_addr(), None, 0, &bytes, 1000).expect("sent");
        let mut batch = ReceiveBatch::new(16, RECEIVE_LEN);
        let mut seen = Vec::new();
        for _ in 0..100 {
            receiver.receive_batch(&mut batch).expect("received");
            for arrival in batch.iter_mut() {
                let Some(Meta::Udp { from, to, segment_size, .. }) = arrival.meta else { panic!("no meta") };
                assert_eq!(from, sender.local_addr());
                assert_eq!(to, Some(receiver.local_addr().ip()));
                assert!(segment_size == 1000 || arrival.bytes.len() <= 1000);
                seen.extend_from_slice(arrival.bytes);
            }
            if seen.len() == bytes.len() {
                break;
            }
        }
        assert_eq!(seen, bytes);
    }

    #[test]
    fn a_superpacket_is_stamped_when_it_reaches_the_kernel() {
        let any = "127.0.0.1:0".parse().expect("address");
        let options = UdpOptions { packet_info: false, timestamps: true, ..UdpOptions::default() };
        let receiver = UdpSocket::bind(any, &options).expect("loopback socket");
        let sender = UdpSocket::bind(any, &UdpOptions::default()).expect("loopback socket");
        let mut batch = ReceiveBatch::new(4, RECEIVE_LEN);
        let mut once = || {
            sender.send_segments(receiver.local_addr(), None, 0, &[1; 3_000], 1_000).expect("sent");
            assert_eq!(receiver.receive_batch(&mut batch).expect("received"), 1);
            let arrival = batch.iter_mut().next().expect("arrival");
            assert!(
                matches!(arrival.meta, Some(Meta::Udp { segment_size: 1_000, .. })),
                "{:?}",
                arrival.meta
            );
            arrival.stamp_ns
        };
        // The kernel begins to stamp a moment after the first socket has asked for it.
        let pause = || std::thread::sleep(Duration::from_millis(10));
        let stamp = (0..500).find_map(|_| once().or_else(|| (pause(), None).1)).expect("a stamp");
        // Some time after 2023, so that it is no uptime.
        assert!(stamp > 1_700_000_000_000_000_000);
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_is_reported_not_cut() {
        let (sender, receiver) = pair();
        sender.send_segments(receiver.local_addr(), None, 0, &[1; 600], 600).expect("sent");
        let mut batch = ReceiveBatch::new(1, 100);
        assert_eq!(receiver.receive_batch(&mut batch).expect("received"), 1);
        assert!(batch.iter_mut().next().expect("arrival").meta.is_none());
    }

    #[test]
    fn a_reserved_socket_keeps_its_address_and_nothing_that_comes_before_it_is_equipped() {
        let (sender, taken) = pair();
        assert_eq!(UdpSocket::reserve(taken.local_addr()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let address = taken.local_addr();
        drop(taken);
        let socket = UdpSocket::reserve(address).expect("free again");
        let send = |byte: u8, times: usize| {
            for _ in 0..times {
                sender.send_segments(address, None, 0, &[byte; 1000], 1000).expect("sent");
            }
        };
        send(1, 200);
        let options = UdpOptions { packet_info: false, errors: true, ..UdpOptions::default() };
        let forgotten = socket.equip(&options).expect("equipped");
        assert!((1..20).contains(&forgotten), "{forgotten} fit into the smallest buffer");
        send(2, 20);
        let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
        assert_eq!(socket.receive_batch(&mut batch).expect("received"), 20);
        assert!(batch.iter_mut().all(|arrival| arrival.bytes == [2; 1000]));
    }

    #[test]
    fn a_socket_beside_another_sends_from_its_address_and_receives_nothing() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let options = UdpOptions::default();
            let bind = || UdpSocket::bind(any.parse().expect("address"), &options).expect("loopback socket");
            let socket = bind();
            let beside = socket.beside(1 << 20).expect("another one");
            let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
            for far in std::iter::repeat_with(bind).take(20) {
                beside.send_segments(far.local_addr(), None, 0, b"aside", 5).expect("sent");
                assert_eq!(far.receive_batch(&mut batch).expect("received"), 1);
                let arrival = batch.iter_mut().next().expect("arrival");
                assert!(matches!(arrival.meta, Some(Meta::Udp { from, .. }) if from == socket.local_addr()));
                far.send_segments(socket.local_addr(), None, 0, b"answer", 6).expect("sent");
                assert_eq!(socket.receive_batch(&mut batch).expect("received"), 1);
            }
            // Nobody else can have the address, as before.
            let again = UdpSocket::bind(socket.local_addr(), &options).map(|_| ());
            assert_eq!(again.map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
        }
    }

    #[test]
    fn an_empty_datagram_is_an_arrival() {
        let (sender, receiver) = pair();
        sender.send_segments(receiver.local_addr(), None, 0, &[], 0).expect("sent");
        let mut batch = ReceiveBatch::new(2, 100);
        assert_eq!(receiver.receive_batch(&mut batch).expect("received"), 1);
        let arrival = batch.iter_mut().next().expect("arrival");
        assert!(arrival.meta.is_some());
        assert!(arrival.bytes.is_empty());
    }
}
