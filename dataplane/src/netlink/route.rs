//! Routes, of the main table and others.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::link::family;
use super::{Error, Handle};

/// The table that is asked unless a rule says otherwise.
const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

impl Handle {
    /// Routes a prefix to an interface, without a gateway. A route of the same prefix to the same interface, such as the
    /// one the kernel made with the interface's address, is enough.
    ///
    /// # Errors
    /// EEXIST when the prefix is routed to another interface: that route is left alone.
    pub fn add_route(&mut self, index: u32, net: IpNet) -> Result<(), Error> {
        self.add_route_in(index, net, MAIN_TABLE)
    }

    /// As [`Handle::add_route`], in another table.
    ///
    /// # Errors
    /// As [`Handle::add_route`].
    pub fn add_route_in(&mut self, index: u32, net: IpNet, table: u32) -> Result<(), Error> {
        let net = net.trunc();
        let mut message = to(net, RouteScope::Link, table);
        message.attributes.push(RouteAttribute::Oif(index));
        let added = self.change(
            &format!("route {net} to interface {index}"),
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match added {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.has_route(index, net, table)? {
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
        let mut message = to(net, RouteScope::Universe, MAIN_TABLE);
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        self.change(
            &format!("route {net} through {gateway}"),
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Has a table say that everything without another route there is unreachable. It is of no interface, and stays.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN. That it is there already is none.
    pub fn add_unreachable(&mut self, ipv6: bool, table: u32) -> Result<(), Error> {
        let added = self.change(
            &format!("route what is unreachable in table {table}"),
            RouteNetlinkMessage::NewRoute(unreachable(ipv6, table)),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match added {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Takes [`Handle::add_unreachable`] back.
    ///
    /// # Errors
    /// ESRCH when it is not there.
    pub fn delete_unreachable(&mut self, ipv6: bool, table: u32) -> Result<(), Error> {
        self.change(
            &format!("remove the unreachable route of table {table}"),
            RouteNetlinkMessage::DelRoute(unreachable(ipv6, table)),
            0,
        )
    }

    /// The tables that hold a route, of either family.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn tables_in_use(&mut self) -> Result<BTreeSet<u32>, Error> {
        let routes =
            self.query("list routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        Ok(routes
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Some(table_of(route)),
                _ => None,
            })
            .collect())
    }

    /// Whether a table routes exactly this prefix to this interface.
    fn has_route(&mut self, index: u32, net: IpNet, table: u32) -> Result<bool, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(net.addr());
        let wanted = RouteAttribute::Destination(RouteAddress::from(net.addr()));
        let routes = self.query("list routes", RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        Ok(routes.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => {
                table_of(route) == table
                    && route.header.destination_prefix_length == net.prefix_len()
                    && route.attributes.contains(&RouteAttribute::Oif(index))
                    // The kernel leaves the destination of a default route out.
                    && (net.prefix_len() == 0 || route.attributes.contains(&wanted))
            }
            _ => false,
        }))
    }
}

/// The table a route is in.
fn table_of(route: &RouteMessage) -> u32 {
    let given = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    given.unwrap_or_else(|| route.header.table.into())
}

/// The last of all default routes of a table, whatever metrics others have.
fn unreachable(ipv6: bool, table: u32) -> RouteMessage {
    let net = if ipv6 { IpNet::V6(Ipv6Net::default()) } else { IpNet::V4(Ipv4Net::default()) };
    let mut message = to(net, RouteScope::Universe, table);
    message.header.kind = RouteType::Unreachable;
    message.attributes.push(RouteAttribute::Priority(u32::MAX));
    message
}

/// A unicast route to a prefix, in a table.
fn to(net: IpNet, scope: RouteScope, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(net.addr());
    message.header.destination_prefix_length = net.prefix_len();
    // The header has eight bits for it; a larger number is an attribute alone.
    match u8::try_from(table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RouteAttribute::Table(table)),
    }
    // What `ip route add` uses: "installed during boot", that is, by an administrator's program.
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(net.addr())));
    message
}
