//! The sockets of a run and how each flow's datagrams are framed on them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane::sys::udp::{UdpOptions, UdpSocket};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::problem::Problem;
use super::spec::RunSpec;

/// Descriptors a run needs besides its sockets: standard streams, epoll, results, /proc.
const SPARE_DESCRIPTORS: u64 = 32;

/// Where the load leaves.
#[derive(Debug)]
pub struct Path {
    /// Each flow names one of them.
    pub sockets: Vec<UdpSocket>,
    /// By index of the flow.
    pub flows: Vec<Flow>,
}

/// One flow of the load.
#[derive(Debug)]
pub struct Flow {
    /// Index of its socket.
    pub socket: usize,
    /// Where its datagrams go.
    pub to: SocketAddr,
    /// What comes before each payload: nothing, or a TURN header, whose lengths are put in with each payload.
    pub prefix: Vec<u8>,
}

impl Path {
    /// One socket for each flow, payloads sent as they are.
    ///
    /// # Errors
    /// [`Problem::Setup`] when sockets or descriptors are missing.
    pub fn plain(spec: &RunSpec) -> Result<Self, Problem> {
        allow_descriptors(u64::from(spec.flows))?;
        let local = local_address(spec);
        let mut sockets = Vec::new();
        let mut flows = Vec::new();
        for socket in 0..spec.flows as usize {
            sockets.push(bind(spec, local)?);
            flows.push(Flow { socket, to: spec.target, prefix: Vec::new() });
        }
        Ok(Self { sockets, flows })
    }
}

/// The address the load is sent from, port 0.
#[must_use]
pub fn local_address(spec: &RunSpec) -> SocketAddr {
    let any = match spec.target {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(spec.bind.unwrap_or(any), 0)
}

/// A socket with GRO and the buffers that `spec` asks for.
///
/// # Errors
/// [`Problem::Setup`], naming the address.
pub fn bind(spec: &RunSpec, address: SocketAddr) -> Result<UdpSocket, Problem> {
    let options = UdpOptions {
        packet_info: false,
        receive_buffer: spec.receive_buffer,
        send_buffer: spec.send_buffer,
        // They tell how late the receiver is.
        timestamps: true,
        transmit_stamps: spec.tx_stamps > 0,
        ..UdpOptions::default()
    };
    UdpSocket::bind(address, &options).map_err(|error| {
        let fix = match error.kind() {
            io::ErrorKind::AddrNotAvailable => "; the address must belong to this host (see `ip address`)",
            io::ErrorKind::AddrInUse => "; another program has this port",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => "",
        };
        Problem::Setup(format!("{error}{fix}"))
    })
}

/// Raises the soft limit of descriptors as far as `sockets` more need it.
///
/// # Errors
/// [`Problem::Setup`] when the hard limit is too low.
pub fn allow_descriptors(sockets: u64) -> Result<(), Problem> {
    let needed = sockets + SPARE_DESCRIPTORS;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        return Err(Problem::Setup(format!(
            "{sockets} sockets need {needed} descriptors, above the hard limit; run `ulimit -Hn {needed}` as root first, or lower --flows"
        )));
    }
    limit.current = Some(needed);
    setrlimit(Resource::Nofile, limit).map_err(|error| {
        Problem::Setup(format!("cannot raise the limit of descriptors to {needed}: {error}"))
    })
}

/// How many skbs the kernel has dropped so far because a receive buffer of `sockets` was full: a call for each, which takes a
/// fraction of a microsecond. Where the kernel does not tell (Linux before 4.12), none.
#[must_use]
pub fn socket_drops(sockets: &[UdpSocket]) -> u64 {
    sockets.iter().filter_map(|socket| socket.dropped().ok()).map(u64::from).sum()
}

/// Whether the kernel tells what [`socket_drops`] counts, of each of `sockets`.
#[must_use]
pub fn tells_drops(sockets: &[UdpSocket]) -> bool {
    sockets.iter().all(|socket| socket.dropped().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_receive_buffer_is_counted_for_its_own_socket_only() {
        let any = "127.0.0.1:0".parse().unwrap();
        let small = UdpOptions { receive_buffer: 4_096, packet_info: false, ..UdpOptions::default() };
        let victim = UdpSocket::bind(any, &small).unwrap();
        let other = UdpSocket::bind(any, &UdpOptions::default()).unwrap();
        for _ in 0..200 {
            other.send_segments(victim.local_addr(), None, 0, &[0; 1_000], 1_000).unwrap();
        }
        assert!(socket_drops(std::slice::from_ref(&victim)) > 100);
        assert_eq!(socket_drops(std::slice::from_ref(&other)), 0);
        assert!(tells_drops(&[victim, other]));
    }

    #[test]
    fn an_address_of_another_host_is_refused_with_a_hint() {
        let spec = RunSpec::new(super::super::kind::Kind::Udp, "192.0.2.1:9".parse().unwrap());
        let error = bind(&spec, "192.0.2.1:0".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("must belong to this host"), "{error}");
    }
}
