//! What is found out about the network outside while packets pass: how long they may be on the way to each peer, what MTU suits
//! all, and where names lead.

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::App;
use super::names::{Names, Subject};
use super::wake::Wake;
use super::way::Way;
use crate::config::Endpoint;
use crate::drops::Cause;
use crate::egress::Egress;
use crate::ingress::{Ingress, Source};
use crate::netlink::{AddressWatch, Handle, RouteWatch};
use crate::tunnel::bucket::{Bucket, Rate};
use crate::tunnel::key::PublicKey;
use crate::tunnel::{Path, PeerIndex, setup};
use crate::wire::ip;
use crate::wire::too_big::Message;

/// Peers whose path MTU is asked for in one turn: some 5 µs each.
const ASKED: usize = 16;
/// Errors for one sender.
const ONE: Rate = Rate { per_second: 100, burst: 100 };
/// Errors for all senders.
const ALL: Rate = Rate { per_second: 2_000, burst: 2_000 };
/// Senders are spread over this many buckets by a keyed hash.
const SENDERS: usize = 256;
/// Changes of routes come in crowds: this long they are let come.
const SETTLING: Duration = Duration::from_millis(200);
/// How often the MTU is looked at without a change: of a path MTU that is no longer true nobody tells.
const LOOK: Duration = Duration::from_secs(60);

/// What a tunnel is to find out.
#[derive(Debug, Default)]
pub struct Inquiries {
    /// Names of endpoints, looked up again when a handshake fails.
    pub names: Vec<(PeerIndex, PublicKey, Endpoint)>,
    /// Names of relays by their place in the plan, looked up again when one does not answer.
    pub relay_names: Vec<(usize, Endpoint)>,
    /// Whose names have no address yet: they are looked up until they have.
    pub missing: Vec<Subject>,
    /// The MTU of the interface follows the routes to these peers; given when it does.
    pub auto_mtu: Option<AutoMtu>,
}

/// What an MTU that is found out depends on.
#[derive(Debug)]
pub struct AutoMtu {
    /// Peers with an endpoint; those that are given one while it runs come to them.
    pub peers: BTreeSet<PeerIndex>,
    /// The smallest MTU that the interface may have, bytes.
    pub least: u16,
}

/// See the module.
pub(super) struct Outside {
    pub names: Names,
    /// Peers whose path MTU is to be asked for.
    asking: Vec<PeerIndex>,
    errors: Errors,
    auto: Option<Auto>,
    addresses: Option<AddressWatch>,
    /// Addresses of this machine came or went.
    address_news: bool,
}

struct Auto {
    of: AutoMtu,
    watch: Option<RouteWatch>,
    /// When the MTU is looked at.
    at: Option<Instant>,
}

impl Outside {
    pub fn new(inquiries: Inquiries) -> Self {
        let auto = |of| Auto { of, watch: None, at: None };
        Self {
            names: Names::new(inquiries.names, inquiries.relay_names, inquiries.missing),
            asking: Vec::new(),
            errors: Errors::new(),
            auto: inquiries.auto_mtu.map(auto),
            addresses: None,
            address_news: false,
        }
    }

    /// When [`App::look_outside`] has something to do.
    pub fn timeout(&self) -> Option<Instant> {
        let auto = self.auto.as_ref().and_then(|auto| auto.at);
        auto.into_iter().chain(self.names.timeout()).min()
    }

    /// Addresses may have changed.
    pub fn note_addresses(&mut self) {
        self.address_news |= self.addresses.as_mut().is_some_and(AddressWatch::take);
    }

    /// Somebody says where a peer is.
    pub fn note_called(&mut self, peer: PeerIndex, now: Instant) {
        if let Some(auto) = &mut self.auto {
            auto.of.peers.insert(peer);
        }
        self.note_stop(now);
    }

    /// A peer is gone.
    pub fn forget(&mut self, peer: PeerIndex, now: Instant) {
        self.names.forget(peer);
        if self.auto.as_mut().is_some_and(|auto| auto.of.peers.remove(&peer)) {
            self.note_stop(now);
        }
    }

    /// A peer or a relay is somewhere else, where another route may lead.
    pub fn note_stop(&mut self, now: Instant) {
        if let Some(auto) = &mut self.auto {
            let soon = now + SETTLING;
            auto.at = Some(auto.at.map_or(soon, |at| at.min(soon)));
        }
    }

    /// Routes may have changed.
    pub fn note_routes(&mut self, now: Instant) {
        if let Some(auto) = &mut self.auto
            && auto.watch.as_mut().is_some_and(RouteWatch::take)
        {
            auto.at = Some(now + SETTLING);
        }
    }
}

/// How many errors there may be.
struct Errors {
    all: Option<Bucket>,
    /// By the address they are for.
    each: Box<[Bucket]>,
    hasher: RandomState,
}

impl Errors {
    fn new() -> Self {
        Self { all: None, each: Box::default(), hasher: RandomState::new() }
    }

    /// Whether this one may be sent.
    fn admit(&mut self, to: IpAddr, now: Instant) -> bool {
        if self.each.is_empty() {
            self.each = vec![Bucket::full(&ONE, now); SENDERS].into();
        }
        let bucket = self.hasher.hash_one(to) as usize % SENDERS;
        // In this order, so that a sender that is above its own rate leaves that of all alone.
        self.each[bucket].take(&ONE, now)
            && self.all.get_or_insert_with(|| Bucket::full(&ALL, now)).take(&ALL, now)
    }
}

impl App {
    /// A way to a peer for packets such as this, with what is known of their longest.
    pub(super) fn measured(&mut self, way: Way, peer: PeerIndex, packet: &[u8], now: Instant) -> Way {
        if self.tunnel.wants_path_mtu(peer, packet.len(), now) {
            self.outside.asking.push(peer);
        }
        Way { limit: self.tunnel.packet_limit(peer), ..way }
    }

    /// Counts a packet that is too long for its way and sends what its sender is to be told, a bounded number of times.
    pub(super) fn refuse<E: Egress>(&mut self, message: Option<Message>, egress: &mut E, now: Instant) {
        self.tunnel.count_drop(Cause::Mtu);
        if let Some(message) = message
            && let Some(device) = self.ports.device
            && let Some(header) = ip::parse(message.as_slice())
            && self.outside.errors.admit(header.destination, now)
        {
            egress.deliver(device, message.as_slice());
        }
    }

    /// Begins to follow the addresses of this machine, and the routes where the MTU does.
    pub(super) fn open_outside<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        let opened = AddressWatch::open().map_err(io::Error::from).and_then(|watch| {
            ingress.add_borrowed(watch.as_fd(), Wake::Addresses.token(), Source::Ready)?;
            Ok(watch)
        });
        self.outside.names.hurry(now);
        match opened {
            Ok(watch) => self.outside.addresses = Some(watch),
            Err(error) => tracing::warn!("addresses that go away are noticed late: {error}"),
        }
        let Some(auto) = &mut self.outside.auto else {
            return;
        };
        auto.at = Some(now + LOOK);
        let opened = RouteWatch::open().map_err(io::Error::from).and_then(|watch| {
            ingress.add_borrowed(watch.as_fd(), Wake::Routes.token(), Source::Ready)?;
            Ok(watch)
        });
        match opened {
            Ok(watch) => auto.watch = Some(watch),
            Err(error) => tracing::warn!("changes of routes are seen once a minute only: {error}"),
        }
    }

    /// Finds out what is to be found out now.
    pub(super) fn look_outside<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        if std::mem::take(&mut self.outside.address_news) {
            self.follow_addresses();
            // Perhaps there is a network now.
            self.outside.names.hurry(now);
        }
        self.serve_names(ingress, egress, now);
        for _ in 0..ASKED {
            let Some(peer) = self.outside.asking.pop() else {
                break;
            };
            self.ask_path_mtu(peer);
        }
        if self.outside.auto.as_ref().and_then(|auto| auto.at).is_some_and(|at| at <= now) {
            self.follow_routes(now);
        }
    }

    /// What would leave from an address that is gone leaves from one that the kernel chooses.
    fn follow_addresses(&mut self) {
        // Asked for each time: who has no more than this to do with netlink need not keep a connection.
        match Handle::open().and_then(|mut handle| handle.addresses()) {
            Ok(addresses) => {
                let own: HashSet<IpAddr> = addresses.into_iter().map(|address| address.net.addr()).collect();
                self.tunnel.forget_sources(|source| !own.contains(&source));
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    fn ask_path_mtu(&mut self, peer: PeerIndex) {
        let Some(to) = self.tunnel.path(peer).and_then(|path| self.first_stop(path)) else {
            return;
        };
        if let Ok(outer) = path_mtu(to, self.binding.firewall_mark)
            && self.tunnel.note_path_mtu(peer, to.ip(), outer)
        {
            let limit = self.tunnel.packet_limit(peer);
            tracing::debug!(%to, outer, packets = limit, "path MTU");
        }
    }

    /// Where what takes a path is sent to.
    fn first_stop(&self, path: Path) -> Option<SocketAddr> {
        match path {
            Path::Direct { to, .. } => Some(to),
            // A connection takes packets of any length.
            Path::Relayed { .. } => {
                self.relay.as_ref().filter(|relay| !relay.is_stream()).map(|relay| relay.server)
            }
        }
    }

    /// Gives the interface the MTU that suits the routes.
    fn follow_routes(&mut self, now: Instant) {
        let relay = self.relay.as_ref().map(|relay| relay.server);
        let Some(auto) = &mut self.outside.auto else {
            return;
        };
        auto.at = Some(now + LOOK);
        let paths = auto.of.peers.iter().filter_map(|peer| self.tunnel.path(*peer));
        let mut stops: Vec<SocketAddr> = paths.map(|path| path.remote()).collect();
        if let Some(relay) = relay {
            stops = vec![relay];
        }
        let mtu = auto_mtu(&stops, relay.is_some(), auto.of.least, self.binding.firewall_mark);
        self.set_device_mtu(mtu.into());
    }
}

/// The MTU of an interface whose packets go to these addresses, or wherever the default route leads when there are none: that of
/// the narrowest route, less what stands around a packet over IPv6, where a peer may roam to. `least` to 9,000 bytes.
#[must_use]
pub fn auto_mtu(stops: &[SocketAddr], relayed: bool, least: u16, mark: u32) -> u16 {
    /// A host that is nowhere (RFC 5737), so that the default route leads there.
    const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
    let outer = match stops {
        [] => path_mtu(NOWHERE, mark).ok(),
        stops => stops.iter().filter_map(|stop| path_mtu(*stop, mark).ok()).min(),
    };
    let around = crate::tunnel::path_mtu::overhead(Ipv6Addr::UNSPECIFIED.into(), relayed);
    let outer = outer.unwrap_or(usize::from(setup::OUTER_MTU));
    let mtu = outer.saturating_sub(around).clamp(least.into(), crate::config::MTU_MAX.into());
    u16::try_from(mtu).unwrap_or(least)
}

/// The MTU on the way to an address as far as the kernel knows it: that of the route or its interface, or less, when ICMP has
/// said so (IP_MTU of ip(7)). Nothing is sent.
///
/// # Errors
/// ENETUNREACH and what else connect(2) answers.
fn path_mtu(to: SocketAddr, mark: u32) -> io::Result<usize> {
    let domain = socket2::Domain::for_address(to);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM.cloexec(), None)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect(&to.into())?;
    let mtu = if to.is_ipv4() {
        rustix::net::sockopt::ip_mtu(&socket)?
    } else {
        rustix::net::sockopt::ipv6_mtu(&socket)?
    };
    Ok(mtu as usize)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    #[test]
    fn errors_are_bounded_for_each_sender_and_in_all() {
        let mut errors = Errors::new();
        let start = Instant::now();
        let mut taken = |host: u32, after| {
            let to = IpAddr::V4((0x0a00_0000 + host).into());
            (0..1_000).filter(|_| errors.admit(to, start + after)).count()
        };
        assert_eq!(taken(1, Duration::ZERO), 100);
        // Who comes after one that has used up its own gets as many: of ten, those in other buckets.
        let others = (2..12).filter(|host| taken(*host, Duration::ZERO) == 100).count();
        assert!(others >= 8, "{others}");
        assert_eq!(taken(1, Duration::from_millis(20)), 2);
        let all: usize = (100..1_100).map(|host| taken(host, Duration::from_millis(20))).sum();
        // What those others did not get, because two of them were in one bucket, is left for these.
        assert!((1_800..=2_100).contains(&(all + 100 * others)), "{all} beside {others}");
    }

    #[test]
    fn the_mtu_of_loopback_is_known_and_an_automatic_one_stays_in_its_bounds() {
        let loopback: SocketAddr = "127.0.0.1:9".parse().expect("address");
        let mtu = path_mtu(loopback, 0).expect("a route");
        assert!(mtu > 1_000, "{mtu}");
        assert_eq!(auto_mtu(&[loopback], false, 1_280, 0), (mtu - 80).min(9_000) as u16);
        assert_eq!(auto_mtu(&[loopback], false, 9_000, 0), 9_000);
    }
}
