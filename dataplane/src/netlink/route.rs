//! Routes of the main table.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::link::family;
use super::{Error, Handle};

impl Handle {
    /// Routes a prefix to an interface, without a gateway. A route of the same prefix to the same interface, such as the
    /// one the kernel made with the interface's address, is enough.
    ///
    /// # Errors
    /// EEXIST when the prefix is routed to another interface: that route is left alone.
    pub fn add_route(&mut self, index: u32, net: IpNet) -> Result<(), Error> {
        let net = net.trunc();
        let mut message = to(net, RouteScope::Link);
        message.attributes.push(RouteAttribute::Oif(index));
        let added = self.change(
            &format!("route {net} to interface {index}"),
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match added {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.has_route(index, net)? {
                    return Ok(());
                }
                Err(error.with_remedy("another interface has this route: remove it or narrow the prefix"))
            }
            done => done,
        }
    }

    /// Routes a prefix through a gateway, which must be reachable already.
    ///
    /// # Errors
    /// ENETUNREACH or EHOSTUNREACH when the gateway is not on a connected network.
    pub fn add_route_via(&mut self, net: IpNet, gateway: IpAddr) -> Result<(), Error> {
        let net = net.trunc();
        let mut message = to(net, RouteScope::Universe);
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        self.change(
            &format!("route {net} through {gateway}"),
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Whether the main table routes exactly this prefix to this interface.
    fn has_route(&mut self, index: u32, net: IpNet) -> Result<bool, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(net.addr());
        let wanted = RouteAttribute::Destination(RouteAddress::from(net.addr()));
        let routes = self.query("list routes", RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        Ok(routes.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => {
                route.header.table == RouteHeader::RT_TABLE_MAIN
                    && route.header.destination_prefix_length == net.prefix_len()
                    && route.attributes.contains(&RouteAttribute::Oif(index))
                    // The kernel leaves the destination of a default route out.
                    && (net.prefix_len() == 0 || route.attributes.contains(&wanted))
            }
            _ => false,
        }))
    }
}

/// A unicast route of the main table to a prefix.
fn to(net: IpNet, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(net.addr());
    message.header.destination_prefix_length = net.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    // What `ip route add` uses: "installed during boot", that is, by an administrator's program.
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(net.addr())));
    message
}
