//! Interfaces and their addresses.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Handle};

/// An interface's counters (struct rtnl_link_stats64). A TSO or USO superpacket counts as the kernel sees it at that
/// interface: one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets dropped on reception.
    pub rx_dropped: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets dropped before they were sent; for a TUN device, because nobody read it in time.
    pub tx_dropped: u64,
}

/// How an interface is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// It was brought up (IFF_UP).
    pub up: bool,
    /// Its MTU, bytes.
    pub mtu: u32,
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address and the length of its prefix.
    pub net: IpNet,
}

impl Handle {
    /// The index of an interface.
    ///
    /// # Errors
    /// `NotFound`-like errors (ENODEV) when there is no interface of this name.
    pub fn link_index(&mut self, name: &str) -> Result<u32, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Ok(self.link(&format!("find interface {name}"), message)?.header.index)
    }

    /// The counters of an interface.
    ///
    /// # Errors
    /// When the interface does not exist.
    pub fn link_stats(&mut self, index: u32) -> Result<LinkStats, Error> {
        let answer = self.link(&format!("read the counters of interface {index}"), by_index(index))?;
        let stats = answer.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(LinkStats {
                rx_packets: stats.rx_packets,
                rx_bytes: stats.rx_bytes,
                rx_dropped: stats.rx_dropped,
                tx_packets: stats.tx_packets,
                tx_bytes: stats.tx_bytes,
                tx_dropped: stats.tx_dropped,
            }),
            _ => None,
        });
        Ok(stats.unwrap_or_default())
    }

    /// How an interface is set.
    ///
    /// # Errors
    /// ENODEV when it does not exist, here.
    pub fn link_state(&mut self, index: u32) -> Result<LinkState, Error> {
        let answer = self.link(&format!("look at interface {index}"), by_index(index))?;
        let mtu = answer.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok(LinkState { up: answer.header.flags.contains(LinkFlags::Up), mtu: mtu.unwrap_or_default() })
    }

    /// Puts an address on an interface. An IPv6 address works at once: no duplicate address detection
    /// (IFA_F_NODAD), which a point-to-point device has no use for.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, EEXIST when the interface has the address already.
    pub fn add_address(&mut self, index: u32, net: IpNet) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.family = family(net.addr());
        message.header.prefix_len = net.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(net.addr()));
        message.attributes.push(AddressAttribute::Address(net.addr()));
        match net {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => {
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        let added = self.change(
            &format!("add address {net} to interface {index}"),
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match (net, added) {
            // A missing privilege is EPERM.
            (IpNet::V6(_), Err(error)) if error.errno() == Some(libc::EACCES) => Err(error.with_remedy(
                "IPv6 is switched off for new interfaces: sysctl -w net.ipv6.conf.all.disable_ipv6=0, or leave IPv6 out of Address",
            )),
            (_, added) => added,
        }
    }

    /// All addresses of this network namespace.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let answers = self.query(
            "list addresses",
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            NLM_F_DUMP,
        )?;
        let address = |message: &AddressMessage| {
            // IFA_ADDRESS is the far end on a point-to-point interface; IFA_LOCAL, where given, is ours.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let own = local.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            })?;
            let net = IpNet::new(own, message.header.prefix_len).ok()?;
            Some(Address { index: message.header.index, net })
        };
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => address(message),
                _ => None,
            })
            .collect())
    }

    /// Sets the largest packet of an interface, in bytes.
    ///
    /// # Errors
    /// EINVAL when the device cannot do this size.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Error> {
        self.set(
            &format!("set MTU {mtu} on interface {index}"),
            by_index(index),
            vec![LinkAttribute::Mtu(mtu)],
        )
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        let mut message = by_index(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.set(&format!("bring interface {index} up"), message, Vec::new())
    }

    /// Takes an interface down: its routes and IPv6 addresses go.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn set_down(&mut self, index: u32) -> Result<(), Error> {
        let mut message = by_index(index);
        message.header.change_mask = LinkFlags::Up;
        self.set(&format!("take interface {index} down"), message, Vec::new())
    }

    /// Sets how many packets wait in front of an interface; for a TUN device, how many may wait to be read.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn set_txqueuelen(&mut self, index: u32, packets: u32) -> Result<(), Error> {
        self.set(
            &format!("set the queue of interface {index} to {packets} packets"),
            by_index(index),
            vec![LinkAttribute::TxQueueLen(packets)],
        )
    }

    /// Has the kernel give an interface no IPv6 address of the link by itself, as it does when one goes up
    /// (IN6_ADDR_GEN_MODE_NONE). Without that it has nothing to say to routers and groups there.
    ///
    /// # Errors
    /// EAFNOSUPPORT or EINVAL where the interface has no IPv6.
    pub fn leave_out_link_local(&mut self, index: u32) -> Result<(), Error> {
        let ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        self.set(
            &format!("leave the link's IPv6 address out on interface {index}"),
            by_index(index),
            vec![LinkAttribute::AfSpecUnspec(vec![ipv6])],
        )
    }

    /// Sets how many segments a superpacket handed to an interface has at most (`gso_max_segs`).
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, EINVAL above the device's own limit.
    pub fn set_gso_max_segs(&mut self, index: u32, segments: u32) -> Result<(), Error> {
        self.set(
            &format!("limit superpackets of interface {index} to {segments} segments"),
            by_index(index),
            vec![LinkAttribute::GsoMaxSegs(segments)],
        )
    }

    /// Makes a pair of interfaces joined by a virtual cable (veth(4)), both down, and returns their indices.
    ///
    /// # Errors
    /// EEXIST when a name is taken, EOPNOTSUPP when the kernel has no veth driver.
    pub fn add_veth(&mut self, name: &str, peer: &str) -> Result<(u32, u32), Error> {
        let mut far = LinkMessage::default();
        far.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.change(
            &format!("make the virtual cable {name} - {peer}"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )?;
        Ok((self.link_index(name)?, self.link_index(peer)?))
    }

    /// Moves an interface to another network namespace, where it arrives down and without addresses.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN in both namespaces.
    pub fn move_to_namespace(&mut self, index: u32, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        self.set(
            &format!("move interface {index} to another network namespace"),
            by_index(index),
            vec![LinkAttribute::NetNsFd(namespace.as_raw_fd())],
        )
    }

    /// Removes an interface; with a veth, its far end too.
    ///
    /// # Errors
    /// ENODEV when it is gone already.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        self.change(&format!("remove interface {index}"), RouteNetlinkMessage::DelLink(by_index(index)), 0)
    }

    /// Asks for one interface.
    fn link(&mut self, operation: &str, message: LinkMessage) -> Result<LinkMessage, Error> {
        self.query(operation, RouteNetlinkMessage::GetLink(message), 0)?
            .into_iter()
            .find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(message),
                _ => None,
            })
            .ok_or_else(|| Error::new(operation, std::io::Error::from_raw_os_error(libc::ENODEV)))
    }

    /// Changes attributes of an existing interface.
    fn set(
        &mut self,
        operation: &str,
        mut message: LinkMessage,
        attributes: Vec<LinkAttribute>,
    ) -> Result<(), Error> {
        message.attributes = attributes;
        self.change(operation, RouteNetlinkMessage::SetLink(message), 0)
    }
}

/// A message about the interface with this index.
fn by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// The address family of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
