//! The lab's network: a client on each side and a relay, joined by virtual cables.
//!
//! ```text
//!            10.71.1.0/24
//!      .1 ┌────────────────┐ .2
//!  client A               client B
//!      .1 └──── relay ─────┘ .3
//!   10.71.2.0/24  .2  .2  10.71.3.0/24
//! ```
//!
//! The relay does not forward: B reaches the relay's address on A's side because the relay owns it.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use dataplane::netlink::{Handle, IpNet, Ipv4Net};

use super::Namespace;

/// Addresses in the lab's network.
pub struct Address;

impl Address {
    /// Client A on the direct cable.
    pub const A_DIRECT: Ipv4Addr = Ipv4Addr::new(10, 71, 1, 1);
    /// Client B on the direct cable.
    pub const B_DIRECT: Ipv4Addr = Ipv4Addr::new(10, 71, 1, 2);
    /// Client A on the relay's cable.
    pub const A_AT_RELAY: Ipv4Addr = Ipv4Addr::new(10, 71, 2, 1);
    /// The relay: where it listens and relays from.
    pub const RELAY: Ipv4Addr = Ipv4Addr::new(10, 71, 2, 2);
    /// The relay on B's cable.
    pub const RELAY_AT_B: Ipv4Addr = Ipv4Addr::new(10, 71, 3, 2);
    /// Client B on the relay's cable.
    pub const B_AT_RELAY: Ipv4Addr = Ipv4Addr::new(10, 71, 3, 3);
    /// All of the above.
    pub const ALL: &str = "10.71.0.0/16";
}

/// The first device behind a socket of client A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// To client B.
    Direct,
    /// To the relay.
    Relay,
}

impl Cable {
    /// The device's name in A's namespace.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Direct => "a-b",
            Self::Relay => "a-relay",
        }
    }
}

/// Three network namespaces and their cables.
pub struct Topology {
    /// Client A, where load starts and the bottleneck is.
    pub a: Namespace,
    /// The relay.
    pub relay: Namespace,
    /// Client B, where the far end is.
    pub b: Namespace,
}

impl Topology {
    /// Builds it; the process must be allowed to (own user namespace, or CAP_SYS_ADMIN and CAP_NET_ADMIN).
    ///
    /// # Errors
    /// What could not be made, with its remedy.
    pub fn new() -> anyhow::Result<Self> {
        let namespace = || Namespace::new().context("cannot make a network namespace");
        let (a, relay, b) = (namespace()?, namespace()?, namespace()?);
        let topology = Self { a, relay, b };
        for namespace in [&topology.a, &topology.relay, &topology.b] {
            namespace.run(|| {
                let mut handle = Handle::open()?;
                let loopback = handle.link_index("lo")?;
                handle.set_up(loopback)
            })??;
        }
        topology.cable((&topology.a, "a-b", Address::A_DIRECT), (&topology.b, "b-a", Address::B_DIRECT))?;
        topology.cable(
            (&topology.a, "a-relay", Address::A_AT_RELAY),
            (&topology.relay, "relay-a", Address::RELAY),
        )?;
        topology.cable(
            (&topology.b, "b-relay", Address::B_AT_RELAY),
            (&topology.relay, "relay-b", Address::RELAY_AT_B),
        )?;
        // B answers the relay where it relays from.
        let net: IpNet = Ipv4Net::new_assert(Address::RELAY, 24).into();
        topology.b.run(|| Handle::open()?.add_route_via(net, IpAddr::V4(Address::RELAY_AT_B)))??;
        Ok(topology)
    }

    /// Limits what A sends over a cable to `rate_bytes` a second.
    ///
    /// # Errors
    /// When the kernel has no token bucket.
    pub fn add_bottleneck(
        &self,
        cable: Cable,
        rate_bytes: u32,
        burst_bytes: u32,
        limit_bytes: u32,
    ) -> anyhow::Result<()> {
        self.a.run(|| {
            let mut handle = Handle::open()?;
            let index = handle.link_index(cable.device())?;
            handle.add_tbf(index, rate_bytes, burst_bytes, limit_bytes)
        })??;
        Ok(())
    }

    /// Takes the limit away again; answers how many packets it dropped.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_bottleneck(&self, cable: Cable) -> anyhow::Result<u32> {
        let drops = self.a.run(|| {
            let mut handle = Handle::open()?;
            let index = handle.link_index(cable.device())?;
            let drops = handle.qdisc_stats(index)?.drops;
            handle.delete_qdisc(index)?;
            Ok::<_, dataplane::netlink::Error>(drops)
        })??;
        Ok(drops)
    }

    /// Joins two namespaces.
    fn cable(
        &self,
        near: (&Namespace, &str, Ipv4Addr),
        far: (&Namespace, &str, Ipv4Addr),
    ) -> anyhow::Result<()> {
        near.0.run(|| {
            let mut handle = Handle::open()?;
            let (_, index) = handle.add_veth(near.1, far.1)?;
            handle.move_to_namespace(index, std::os::fd::AsFd::as_fd(far.0))
        })??;
        for (namespace, name, address) in [near, far] {
            namespace.run(|| {
                let mut handle = Handle::open()?;
                let index = handle.link_index(name)?;
                handle.add_address(index, Ipv4Net::new_assert(address, 24).into())?;
                handle.set_up(index)
            })??;
        }
        Ok(())
    }
}
