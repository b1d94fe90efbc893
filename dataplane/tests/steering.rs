//! Groups of sockets on one address: each source has one member for good, whoever joins.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "support/left_out.rs"]
mod left_out;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket as PlainSocket};
use std::time::Duration;

use dataplane::sys::steering::{self, Family};
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};
use socket2::{Domain, SockRef, Socket, Type};

const SOURCES: u32 = 1000;
const SEED: u32 = 0x5eed_1234;

/// By source: the members that had datagrams of it, one for each.
type Seen = BTreeMap<SocketAddr, Vec<usize>>;

/// Takes what is there.
fn take(group: &[UdpSocket], seen: &mut Seen) {
    let mut batch = ReceiveBatch::new(16, RECEIVE_LEN);
    for (member, socket) in group.iter().enumerate() {
        while socket.receive_batch(&mut batch).unwrap() > 0 {
            for arrival in batch.iter_mut() {
                let Some(dataplane::ingress::Meta::Udp { from, .. }) = arrival.meta else { panic!() };
                seen.entry(from).or_default().push(member);
            }
        }
    }
}

/// One datagram from each of these sources.
fn send(sources: &[PlainSocket], to: SocketAddr, group: &[UdpSocket], seen: &mut Seen) {
    for source in sources {
        source.send_to(b"hello", to).unwrap();
        take(group, seen);
    }
}

/// A socket of somebody who uses the same port, and was allowed to.
fn joiner(address: SocketAddr) -> PlainSocket {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

fn each_source_keeps_its_member(listen: SocketAddr, source: impl Fn(u32) -> SocketAddr, members: u32) {
    let group = UdpSocket::bind_group(listen, &UdpOptions::default(), members, SEED).unwrap();
    let address = group[0].local_addr();
    assert!(group.iter().all(|member| member.local_addr() == address));
    let to = SocketAddr::new(source(0).ip(), address.port());
    let mut seen = Seen::new();
    let mut joiners = Vec::new();
    for from in (0..SOURCES).step_by(200) {
        // Not all at once: open files are often limited to 1,024.
        let sources: Vec<_> =
            (from..from + 200).map(|number| PlainSocket::bind(source(number)).unwrap()).collect();
        send(&sources, to, &group, &mut seen);
        joiners.push(joiner(address));
        send(&sources, to, &group, &mut seen);
        joiners.push(joiner(address));
        send(&sources, to, &group, &mut seen);
        drop(joiners.pop());
        send(&sources, to, &group, &mut seen);
    }
    assert_eq!(seen.values().map(Vec::len).sum::<usize>(), 4 * SOURCES as usize, "lost");
    // The kernel may give a port a second time.
    assert!(seen.len() > SOURCES as usize * 9 / 10, "{}", seen.len());
    let mut counts = vec![0; members as usize];
    for (source, by) in &seen {
        assert!(by.iter().all(|&member| member == by[0]), "{source} reached {by:?}");
        counts[by[0]] += 1;
    }
    let share = seen.len() / members as usize;
    assert!(counts.iter().all(|&count| count > share / 2 && count < 2 * share), "{counts:?}");
    for foreign in joiners {
        assert_eq!(foreign.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn each_of_a_thousand_sources_keeps_its_member_whoever_joins() {
    for members in [2, 3, 8] {
        // Every address and port of its own.
        let v4 = |number: u32| SocketAddr::from((Ipv4Addr::from_bits(0x7f01_0000 + number), 0));
        each_source_keeps_its_member("127.1.0.0:0".parse().unwrap(), v4, members);
        each_source_keeps_its_member("0.0.0.0:0".parse().unwrap(), v4, members);
    }
    // One address, so that only ports differ.
    let v4 = |_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    each_source_keeps_its_member("127.0.0.1:0".parse().unwrap(), v4, 4);
}

#[test]
fn each_source_keeps_its_member_over_ipv6() {
    if !has_ipv6() {
        return;
    }
    let v6 = |_| SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    each_source_keeps_its_member("[::1]:0".parse().unwrap(), v6, 4);
    each_source_keeps_its_member("[::]:0".parse().unwrap(), v6, 3);
}

#[test]
fn another_seed_spreads_otherwise() {
    let reached = |seed| {
        let address = "127.2.0.1:0".parse().unwrap();
        let group = UdpSocket::bind_group(address, &UdpOptions::default(), 2, seed).unwrap();
        let mut seen = Seen::new();
        let sources: Vec<_> = (0..100_u32)
            .map(|number| PlainSocket::bind((Ipv4Addr::from_bits(0x7f02_0100 + number), 40_000)).unwrap())
            .collect();
        send(&sources, group[0].local_addr(), &group, &mut seen);
        seen.into_values().map(|by| by[0]).collect::<Vec<_>>()
    };
    assert_eq!(reached(1), reached(1));
    assert_ne!(reached(1), reached(2));
}

#[test]
fn an_address_that_another_program_has_is_refused_although_it_would_share() {
    let address = joiner("127.0.0.1:0".parse().unwrap());
    let options = UdpOptions::default();
    let error = UdpSocket::bind_group(address.local_addr().unwrap(), &options, 2, SEED).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let group = UdpSocket::bind_group("127.0.0.1:0".parse().unwrap(), &options, 2, SEED).unwrap();
    let error = UdpSocket::bind_group(group[0].local_addr(), &options, 2, SEED).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse, "another relay on the same port");
}

fn has_ipv6() -> bool {
    let has = PlainSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !has {
        left_out::left_out("a test that needs ::1 (`sysctl net.ipv6.conf.lo.disable_ipv6=0`)");
    }
    has
}

/// A listener like those of the relay.
fn listener(address: SocketAddr, shares: bool) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if shares {
        socket.set_reuse_port(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    steering::open_group(&socket).unwrap();
    socket.listen(128).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

#[test]
fn each_source_of_connections_keeps_its_listener() {
    let families = [("127.0.0.1:0", Family::V4), ("[::1]:0", Family::V6)];
    for (address, family) in families {
        if family == Family::V6 && !has_ipv6() {
            return;
        }
        let first = listener(address.parse().unwrap(), false);
        let to = first.local_addr().unwrap();
        let group = [first, listener(to, true), listener(to, true)];
        steering::steer(&group[0], family, 3, SEED).unwrap();
        let mut by_source: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        let mut foreign = Vec::new();
        for round in 0..3 {
            for port in 45_000..45_120 {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&SocketAddr::new(to.ip(), port).into()).unwrap();
                socket.connect(&to.into()).unwrap();
                let mut stream = TcpStream::from(socket);
                stream.write_all(b"hello").unwrap();
                let (member, mut accepted) = accept(&group);
                let mut bytes = [0; 5];
                accepted.read_exact(&mut bytes).unwrap();
                by_source.entry(port).or_default().push(member);
                // By a reset, so that the port is free again at once.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            if round == 0 {
                foreign.push(listener(to, true));
            }
        }
        let mut counts = [0; 3];
        for (port, members) in &by_source {
            assert!(members.len() == 3 && members.iter().all(|member| member == &members[0]), "{port}");
            counts[members[0]] += 1;
        }
        assert!(counts.iter().all(|&count| count > 20), "{counts:?}");
        assert_eq!(foreign[0].accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

fn accept(group: &[TcpListener]) -> (usize, TcpStream) {
    loop {
        for (member, listener) in group.iter().enumerate() {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                return (member, stream);
            }
        }
    }
}
