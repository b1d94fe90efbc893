//! From a configuration to a running interface: paths and MTU are decided, sockets bound, addresses and routes set.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path as FilePath;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;

use super::app::{AutoMtu, Carrier, Inquiries, RelayChoice, RelayPlan, Sockets, Subject, auto_mtu};
use super::lookup::Found;
use super::paths::Policy;
use super::{Path, PeerConfig, PeerIndex, TunnelConfig, tls};
use crate::config::{
    Config, ConfigError, Host, Lines, MTU_MIN_IPV4, MTU_MIN_IPV6, RelayConfig, Table, Transport,
};
use crate::egress;
use crate::netlink;
use crate::stun::AddressFamily;
use crate::stun::channel_data;
use crate::sys::tun::{Tun, TunOptions};
use crate::sys::udp::{LISTEN_PATIENCE, UdpOptions, UdpSocket};
use crate::wire::wireguard::DATA_OVERHEAD;

/// The MTU every way between two hosts is taken to have, bytes: Ethernet's.
pub(super) const OUTER_MTU: u16 = 1_500;
const UDP_HEADER: u16 = 8;
/// Packets that may wait in front of the TUN device while its reading is stopped or slow.
const TX_QUEUE: u32 = 1_000;

/// MTU of an interface of which nothing is known yet, bytes: what fits [`OUTER_MTU`] over IPv6 too.
pub const BARE_MTU: usize = 1_420;

/// A configuration whose names have been looked up, once at least.
pub struct Plan {
    /// The endpoint.
    pub tunnel: TunnelConfig,
    /// The relays, and which peer they reach at which address.
    pub relay: Option<RelayPlan>,
    /// What is found out while it runs.
    pub inquiries: Inquiries,
    /// What should be looked at.
    pub warnings: Vec<String>,
}

/// Decides paths and MTU by the addresses that were `found`. `seeds` are random: one for the endpoint, one for the TURN client.
///
/// # Errors
/// A relay that cannot be spoken to; with the line it stands on.
pub fn plan(
    file: &FilePath,
    config: &Config,
    found: Found,
    seeds: [u64; 2],
    cookie_secret: [u8; 32],
) -> Result<Plan, ConfigError> {
    let mut warnings: Vec<String> = found.missing.into_iter().map(|(_, sentence)| sentence).collect();
    let mut peers = Vec::with_capacity(config.peers.len());
    let mut relayed = Vec::new();
    let mut inquiries = Inquiries::default();
    let mut called = BTreeSet::new();
    let mut policies = HashMap::new();
    let choices = choices(file, &config.relays, &found.relays, &mut inquiries)?;
    let mut outside: Vec<SocketAddr> = choices.iter().filter_map(|choice| choice.server).collect();
    let has_relay = !choices.is_empty();
    for ((index, section), address) in (0..).map(PeerIndex).zip(&config.peers).zip(found.peers) {
        if let Some((endpoint, _)) = section.endpoint.as_ref().filter(|(endpoint, _)| endpoint.may_move()) {
            inquiries.names.push((index, section.public_key, endpoint.clone()));
        }
        let has_endpoint = section.endpoint.is_some();
        called.extend(has_endpoint.then_some(index));
        inquiries.missing.extend((has_endpoint && address.is_none()).then_some(Subject::Peer(index)));
        let goes_direct = !has_relay || section.path != Policy::Relay;
        let goes_over_relay = has_relay && section.path != Policy::Direct;
        outside.extend(address.filter(|_| goes_direct));
        relayed.extend(address.filter(|_| goes_over_relay).map(|address| (index, address)));
        policies.extend(has_relay.then_some((section.public_key, section.path)));
        peers.push(PeerConfig {
            public_key: section.public_key,
            preshared_key: section.preshared_key.clone(),
            allowed_ips: section.allowed_ips.clone(),
            path: address.filter(|_| goes_direct).map(|to| Path::Direct { to, from: None }),
            awaits_path: has_endpoint && !(goes_direct && address.is_some()),
            persistent_keepalive: Some(section.persistent_keepalive),
        });
    }
    if config.peers.is_empty() {
        warnings.push("there is no [Peer] section: nobody can be reached, and nobody is answered".to_owned());
    }
    warn_of_loops(config, &outside, &mut warnings);
    // Of one that is still to be found the longer header is assumed.
    let ip = |choice: &RelayChoice| choice.server.map_or(Ipv6Addr::UNSPECIFIED.into(), |server| server.ip());
    let servers: Vec<IpAddr> = choices.iter().map(ip).collect();
    let mtu = if config.mtu_auto {
        let least = if config.has_ipv6() { MTU_MIN_IPV6 } else { MTU_MIN_IPV4 };
        inquiries.auto_mtu = Some(AutoMtu { peers: called, least });
        auto_mtu(&outside, has_relay, least, 0)
    } else if has_relay {
        clamp_mtu(config.mtu, &servers, &relayed, &mut warnings)
    } else {
        config.mtu
    };
    let relay = has_relay.then(|| RelayPlan {
        choices,
        family: relay_family(&relayed, &mut warnings),
        peers: relayed,
        policies,
        seed: seeds[1],
    });
    let tunnel = TunnelConfig {
        private_key: config.private_key.clone(),
        mtu: mtu.into(),
        peers,
        seed: seeds[0],
        cookie_secret,
    };
    Ok(Plan { tunnel, relay, inquiries, warnings })
}

/// The relays of a configuration; how names may be looked up again is left in `inquiries`.
fn choices(
    file: &FilePath,
    relays: &[RelayConfig],
    found: &[Option<SocketAddr>],
    inquiries: &mut Inquiries,
) -> Result<Vec<RelayChoice>, ConfigError> {
    let mut choices = Vec::with_capacity(relays.len());
    for ((place, relay), &server) in relays.iter().enumerate().zip(found) {
        if relay.server.may_move() {
            inquiries.relay_names.push((place, relay.server.clone()));
        }
        inquiries.missing.extend(server.is_none().then_some(Subject::Relay(place)));
        let (login, credentials) = (relay.login.clone(), relay.credentials.clone());
        let carrier = carrier(file, relay)?;
        choices.push(RelayChoice { server, carrier, login, credentials });
    }
    Ok(choices)
}

/// The relays of lines whose peers `wg` sets later, at the addresses that were `found`, and what is found out about them while it
/// runs.
///
/// # Errors
/// As [`plan`].
pub fn relay_plan(
    lines: &Lines,
    found: &Found,
    seed: u64,
) -> Result<(Option<RelayPlan>, Inquiries), ConfigError> {
    let mut inquiries = Inquiries::default();
    let choices = choices(&lines.file, &lines.relays, &found.relays, &mut inquiries)?;
    let policies = lines.policies.iter().copied().collect();
    let plan = RelayPlan { choices, peers: Vec::new(), policies, family: None, seed };
    Ok(((!plan.choices.is_empty()).then_some(plan), inquiries))
}

/// How a relay is spoken to, with what is trusted there.
fn carrier(file: &FilePath, relay: &RelayConfig) -> Result<Carrier, ConfigError> {
    let refuse = |problem| ConfigError { file: file.into(), line: Some(relay.line), problem };
    match relay.transport {
        Transport::Udp => Ok(Carrier::Udp),
        Transport::Tcp => Ok(Carrier::Tcp),
        Transport::Tls => {
            let config = tls::config(relay.certificate.as_deref()).map_err(refuse)?;
            let name = match &relay.server.host {
                Host::Address(address) => (*address).into(),
                Host::Scoped(address, _) => IpAddr::from(*address).into(),
                Host::Name(name) => ServerName::try_from(name.clone()).map_err(|error| {
                    refuse(format!("{name}: {error}; write the name that the certificate has"))
                })?,
            };
            Ok(Carrier::Tls(config, name))
        }
    }
}

/// What goes to these addresses must not be routed into the tunnel it comes out of.
fn warn_of_loops(config: &Config, outside: &[SocketAddr], warnings: &mut Vec<String>) {
    // A default route leaves out what the tunnel sends, and other tables are led to by the user's rules.
    let routed = |net: &&IpNet| config.host.table == Table::Auto && net.prefix_len() > 0;
    for address in outside {
        let nets = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
        let inside = nets.filter(routed).find(|net| net.contains(&address.ip()));
        if let Some(net) = inside {
            warnings.push(format!(
                "{address} lies in AllowedIPs {net}: unless a narrower route leads there, what the tunnel sends goes \
                 back into it"
            ));
        }
    }
}

/// The largest MTU at which a packet fits [`OUTER_MTU`] on both legs of the way over a relay: to the relay it has four
/// bytes of ChannelData in front, and behind the relay it may meet the longer header of IPv6. Packets are not padded
/// beyond the MTU, so that its remainder by 16 does not matter.
#[must_use]
pub fn relay_mtu(server: IpAddr, peers: &[IpAddr]) -> u16 {
    const CHANNEL: u16 = channel_data::HEADER_LEN as u16;
    const SEAL: u16 = DATA_OVERHEAD as u16;
    let ip_header = |address: &IpAddr| if address.is_ipv4() { 20 } else { 40 };
    let behind = peers.iter().map(ip_header).max().unwrap_or(0);
    let overhead = (ip_header(&server) + CHANNEL).max(behind) + UDP_HEADER + SEAL;
    OUTER_MTU - overhead
}

fn clamp_mtu(
    mtu: u16,
    servers: &[IpAddr],
    peers: &[(PeerIndex, SocketAddr)],
    warnings: &mut Vec<String>,
) -> u16 {
    let peers: Vec<IpAddr> = peers.iter().map(|(_, address)| address.ip()).collect();
    let fits = servers.iter().map(|server| relay_mtu(*server, &peers)).min().unwrap_or(mtu);
    if mtu <= fits {
        return mtu;
    }
    warnings.push(format!(
        "MTU {mtu} does not fit through the relay in packets of {OUTER_MTU} bytes: {fits} is used; write MTU = {fits}, \
         at the other end too"
    ));
    fits
}

/// A relayed address has one family, and reaches peers of that family.
pub(super) fn relay_family(
    peers: &[(PeerIndex, SocketAddr)],
    warnings: &mut Vec<String>,
) -> Option<AddressFamily> {
    let (_, first) = peers.first()?;
    if let Some((_, other)) = peers.iter().find(|(_, address)| address.is_ipv4() != first.is_ipv4()) {
        warnings.push(format!(
            "the relay is asked for an address that reaches {first}; {other} is of the other family and cannot be \
             reached: give all peers behind one relay Endpoints of one family"
        ));
    }
    Some(if first.is_ipv4() { AddressFamily::V4 } else { AddressFamily::V6 })
}

/// Binds one socket for each family, on one port. One that is taken is tried again for as long as `patience` says
/// ([`LISTEN_PATIENCE`]).
///
/// # Errors
/// When the port is taken or may not be used, with the remedy; a machine without IPv6 (or without IPv4) is no error.
pub fn bind_sockets(port: u16, gro: bool, patience: Duration) -> io::Result<Sockets> {
    /// With a port chosen by the kernel for one family, it may be taken in the other.
    const ATTEMPTS: usize = 16;
    let options = UdpOptions { gro, patience, ecn: true, ..UdpOptions::default() };
    let bind = |address: IpAddr, port: u16| UdpSocket::bind(SocketAddr::new(address, port), &options);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let v4 = or_without_family(bind(Ipv4Addr::UNSPECIFIED.into(), port), port)?;
        let chosen = v4.as_ref().map_or(port, |socket| socket.local_addr().port());
        match or_without_family(bind(Ipv6Addr::UNSPECIFIED.into(), chosen), chosen) {
            Err(_) if port == 0 && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
            Ok(None) if v4.is_none() => {
                return Err(io::Error::other("this machine has neither IPv4 nor IPv6: enable one of them"));
            }
            Ok(v6) => return Ok(Sockets::new(v4, v6)),
        }
    }
}

/// Marks what leaves by some sockets (SO_MARK); 0 takes the mark away.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn mark_sockets(sockets: &Sockets, mark: u32) -> io::Result<()> {
    for socket in sockets.iter().chain(sockets.aside.iter().flatten()) {
        let option = socket2::SockRef::from(&**socket.fd());
        // Without privileges it may be left as it is.
        if option.mark()? != mark {
            option.set_mark(mark)?;
        }
    }
    Ok(())
}

/// A family the machine does not have is no error.
fn or_without_family(bound: io::Result<UdpSocket>, port: u16) -> io::Result<Option<UdpSocket>> {
    let error = match bound {
        Ok(socket) => return Ok(Some(socket)),
        Err(error) => error,
    };
    let remedy = match error.kind() {
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported => return Ok(None),
        io::ErrorKind::AddrInUse => format!("another program uses port {port}: stop it or change ListenPort"),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: run as root or choose a higher ListenPort".to_owned()
        }
        // The family's EAFNOSUPPORT has no kind of its own.
        _ if error.to_string().contains("not supported by protocol") => return Ok(None),
        _ => "check ListenPort".to_owned(),
    };
    Err(io::Error::new(error.kind(), format!("{error}; {remedy}")))
}

/// Full-sized packets that one UDP superpacket carries when they are sealed: TCP of this machine shall put no more into a
/// TUN superpacket, so that each leaves as one and not as one and a bit. `None` where the limit would be far below what
/// small segments may come to.
///
/// What TCP has not sized itself and has more segments, the kernel hands over packet by packet: datagrams by UDP_SEGMENT,
/// and what is forwarded (see [`forwards`]).
fn superpacket_segments(mtu: u32, relayed: bool) -> Option<u32> {
    let channel = if relayed { channel_data::HEADER_LEN } else { 0 };
    let sealed = mtu as usize + DATA_OVERHEAD + channel;
    let segments = (egress::BYTES_MAX / sealed).min(egress::SEGMENTS_MAX) as u32;
    (mtu <= OUTER_MTU.into()).then_some(segments)
}

/// Whether this machine forwards: then superpackets arrive that others have filled, with some segments more.
fn forwards() -> bool {
    ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].into_iter().any(|name| {
        std::fs::read_to_string(format!("/proc/sys/net/{name}")).is_ok_and(|value| value.trim() != "0")
    })
}

/// Tells TCP of this machine how much to put into a superpacket; another MTU takes another number.
pub fn fit_superpackets(handle: &mut netlink::Handle, index: u32, mtu: u32, relayed: bool) {
    // Without the limit superpackets take two slots each, the second with a segment or two: slower, and nothing else.
    if let Some(segments) = superpacket_segments(mtu, relayed).filter(|_| !forwards())
        && let Err(error) = handle.set_gso_max_segs(index, segments)
    {
        tracing::debug!("{error}");
    }
}

/// Creates the interface, gives it its addresses and MTU, and brings it up. It goes away with the descriptor; one that is there
/// already is left alone. The index is for whoever routes packets into it.
///
/// # Errors
/// One sentence that names what the kernel refused, and the remedy.
pub fn make_interface(
    handle: &mut netlink::Handle,
    name: &str,
    config: &Config,
    mtu: usize,
    options: TunOptions,
) -> io::Result<(Tun, u32)> {
    let tun = open_device(|| Tun::create(name, options))?;
    let index = set_device(handle, name, mtu)?;
    let relayed = !config.relays.is_empty();
    fit_superpackets(handle, index, u32::try_from(mtu).map_err(io::Error::other)?, relayed);
    for address in &config.addresses {
        handle
            .add_address(index, *address)
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
    }
    handle.set_up(index)?;
    // Nothing is routed into it yet, so that nothing is lost.
    if !takes_packets(&tun) {
        drop(tun);
        return make_interface(handle, name, config, mtu, TunOptions::BARE);
    }
    Ok((tun, index))
}

/// Creates an interface that is down and has no address, as `ip link add type wireguard` does, with the same MTU of 1,420
/// bytes. It goes away with the descriptor. As wireguard-go does, it takes a device that somebody has made to be taken
/// (`ip tuntap add`).
///
/// # Errors
/// As [`make_interface`].
pub fn make_bare_interface(name: &str, options: TunOptions) -> io::Result<Tun> {
    let mut handle = netlink::Handle::open()?;
    let is_ours = handle.link_index(name).is_err();
    let tun = open_device(|| Tun::open(name, options))?;
    let index = set_device(&mut handle, name, BARE_MTU)?;
    // Only what is up takes packets. Nobody has set anything on it yet that would be lost when it goes down again.
    if is_ours && !tun.offloads().bare {
        handle.set_up(index)?;
        let takes_packets = takes_packets(&tun);
        handle.set_down(index)?;
        if !takes_packets {
            drop(tun);
            return make_bare_interface(name, TunOptions::BARE);
        }
    }
    Ok(tun)
}

/// Whether a device that is up takes a packet behind its header. Says so, when it does not.
fn takes_packets(tun: &Tun) -> bool {
    let tried = tun.try_packet();
    if let Err(error) = &tried {
        tracing::warn!(
            "the header in front of the interface's packets (vnet-hdr) is given up, and superpackets with it: the kernel \
             refuses a packet behind it ({error})"
        );
    }
    tried.is_ok()
}

/// Opens the device. One that is taken is tried again for a moment: of the descriptors of a process that was killed a ring
/// lets go a little later.
fn open_device(open: impl Fn() -> io::Result<Tun>) -> io::Result<Tun> {
    const PAUSE: Duration = Duration::from_millis(25);
    let mut left = LISTEN_PATIENCE;
    loop {
        match open() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && !left.is_zero() => {
                std::thread::sleep(PAUSE);
                left = left.saturating_sub(PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Sets what every interface of ours has; its index.
fn set_device(handle: &mut netlink::Handle, name: &str, mtu: usize) -> io::Result<u32> {
    let index = handle.link_index(name)?;
    handle.set_mtu(index, u32::try_from(mtu).map_err(io::Error::other)?)?;
    handle.set_txqueuelen(index, TX_QUEUE)?;
    // As the kernel's WireGuard does: what the kernel would send from such an address, to routers and groups, is for no peer, and
    // would look like packets lost.
    if let Err(error) = handle.leave_out_link_local(index) {
        tracing::debug!("{error}");
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn packets_of_the_clamped_mtu_fill_1500_bytes_on_the_longer_leg() {
        let (v4, v6) = (ip("192.0.2.1"), ip("2001:db8::1"));
        assert_eq!(relay_mtu(v6, &[v4]), 1_416);
        assert_eq!(40 + 8 + 4 + 32 + relay_mtu(v6, &[v4]), 1_500);
        assert_eq!(relay_mtu(v4, &[v4]), 1_436);
        assert_eq!(relay_mtu(v4, &[v4, v6]), 1_420, "the leg behind the relay is the longer one");
        assert_eq!(relay_mtu(v6, &[]), 1_416);
    }

    #[test]
    fn a_tun_superpacket_fits_one_udp_superpacket() {
        for (mtu, relayed, segments) in
            [(1420, false, 45), (1420, true, 44), (1280, false, 49), (576, false, 64)]
        {
            assert_eq!(superpacket_segments(mtu, relayed), Some(segments), "MTU {mtu}");
        }
        assert_eq!(superpacket_segments(9000, false), None, "seven, and TCP may have small segments");
    }

    #[test]
    fn both_families_share_a_port_and_a_taken_one_names_the_remedy() {
        let sockets = bind_sockets(0, true, Duration::ZERO).expect("bound");
        let port = |socket: &Option<UdpSocket>| socket.as_ref().map(|socket| socket.local_addr().port());
        let v4 = port(&sockets.v4).expect("IPv4");
        assert!(port(&sockets.v6).is_none_or(|v6| v6 == v4));
        let error = bind_sockets(v4, true, Duration::ZERO).expect_err("taken").to_string();
        assert!(error.contains("ListenPort") && error.contains(&v4.to_string()), "{error}");
    }
}
