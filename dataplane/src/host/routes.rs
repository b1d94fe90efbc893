//! Routes to the peers' prefixes. A default route gets a table of its own, which every packet is looked up in but those that
//! the tunnel sends, which are marked; routes of the main table that are narrower still win:
//!
//! ```text
//!  P - 1: from all lookup main suppress_prefixlength 0
//!  P:     not from all fwmark M lookup M
//! ```
//!
//! Behind the default route that table has an unreachable one. The first goes with the interface, also when that is only set
//! down, or the process is killed; then packets are refused, and do not leave beside the tunnel.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::{Host, Step, firewall, journal};
use crate::config::{Config, Table};
use crate::netlink::{Handle, Rule};

/// The main table.
const MAIN: u32 = 254;
/// Where a free table is looked for from, as wg-quick does. It is the port people know WireGuard by.
const FIRST_TABLE: u32 = 51_820;
/// Whether the reverse path of a packet is looked for with its mark (ip-sysctl.rst of Linux).
const VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

impl Host {
    /// Routes the peers' prefixes into the interface, narrow ones first. The answer is the mark for the tunnel's sockets.
    pub(super) fn route(&mut self, handle: &mut Handle, index: u32, config: &Config) -> io::Result<u32> {
        let mut mark = self.section.firewall_mark;
        let mut nets: Vec<IpNet> =
            config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied()).collect();
        nets.sort_by_key(|net| (std::cmp::Reverse(net.prefix_len()), *net));
        nets.dedup();
        match self.section.table {
            Table::Off => {}
            Table::Number(table) => {
                for net in nets {
                    handle.add_route_in(index, net, table)?;
                }
            }
            Table::Auto => {
                let (defaults, narrow): (Vec<IpNet>, Vec<IpNet>) =
                    nets.into_iter().partition(|net| net.prefix_len() == 0);
                for net in narrow.iter().filter(|net| !is_connected(&config.addresses, net)) {
                    handle.add_route(index, *net)?;
                }
                if !defaults.is_empty() {
                    let _turn = journal::turn(&self.directory);
                    if mark == 0 {
                        mark = free_table(handle)?;
                    }
                    for net in defaults {
                        self.add_default(handle, index, net, mark, config)?;
                    }
                }
            }
        }
        Ok(mark)
    }

    fn add_default(
        &mut self,
        handle: &mut Handle,
        index: u32,
        net: IpNet,
        mark: u32,
        config: &Config,
    ) -> io::Result<()> {
        let ipv6 = matches!(net, IpNet::V6(_));
        self.close_to_outside(ipv6, mark, config)?;
        if !ipv6 {
            self.look_for_marked_paths()?;
        }
        handle.add_route_in(index, net, mark)?;
        self.journal.note(Step::Unreachable { ipv6, table: mark })?;
        handle.add_unreachable(ipv6, mark)?;
        // As the kernel does it for a rule without a priority: before all others but the first, the one of local addresses.
        let second = handle.rule_priorities(ipv6)?.into_iter().nth(1).unwrap_or(u32::MAX);
        let priority = second.checked_sub(2).filter(|priority| *priority > 0).ok_or_else(|| {
            io::Error::other(format!(
                "a rule has priority {second}, and there is no room before it: give it a higher one (`ip rule`), or write \
                 Table = off and make the rules yourself"
            ))
        })?;
        let rule = Rule { ipv6, priority, table: MAIN, unless_mark: None, suppressed_prefix_len: Some(0) };
        let others = Rule {
            priority: priority + 1,
            table: mark,
            unless_mark: Some(mark),
            suppressed_prefix_len: None,
            ..rule
        };
        for rule in [rule, others] {
            self.journal.note(Step::Rule(rule))?;
            handle.add_rule(&rule)?;
        }
        Ok(())
    }

    /// A tunnel without it works, but for strict reverse-path filtering; so that is no reason to fail.
    fn close_to_outside(&mut self, ipv6: bool, mark: u32, config: &Config) -> io::Result<()> {
        let consequence = "others on the network can send to the tunnel's addresses, and with net.ipv4.conf.*.rp_filter = 1 \
                           nothing is received";
        if !firewall::is_there() {
            tracing::warn!("nft is not there (apt-get install nftables): {consequence}");
            return Ok(());
        }
        let table = firewall::table_of(&self.interface);
        self.journal.note(Step::Firewall { ipv6, table })?;
        let addresses: Vec<IpAddr> = config.addresses.iter().map(IpNet::addr).collect();
        if let Err(error) = firewall::add(ipv6, &self.interface, &addresses, mark, &self.signals) {
            if error.kind() == io::ErrorKind::Interrupted {
                return Err(error);
            }
            tracing::warn!("{error}: {consequence}");
        }
        Ok(())
    }

    /// Lets the kernel look for reverse paths with the mark. Tunnels share the setting: each knows what it was before the
    /// first of them, and the last puts it back.
    fn look_for_marked_paths(&mut self) -> io::Result<()> {
        let path = PathBuf::from(VALID_MARK);
        let of_others = self.others().into_iter().find_map(|step| match step {
            Step::Setting { path: other, before } if other == path => Some(before),
            _ => None,
        });
        let now = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
        let before = match of_others {
            Some(before) => before,
            None if now == "1" => return Ok(()),
            None => now,
        };
        self.journal.note(Step::Setting { path, before })?;
        if let Err(error) = fs::write(VALID_MARK, "1") {
            tracing::warn!(
                "{VALID_MARK}: {error}: where rp_filter is 1, nothing is received; set net.ipv4.conf.all.src_valid_mark = 1 \
                 in /etc/sysctl.d"
            );
        }
        Ok(())
    }
}

/// Puts a setting back, unless another tunnel still needs it.
pub(super) fn restore_setting(path: &Path, before: &str, others: &[Step]) -> io::Result<()> {
    let needed = others.iter().any(|step| matches!(step, Step::Setting { path: other, .. } if other == path));
    // It may never have been set, where that is forbidden.
    let is_so = fs::read_to_string(path).is_ok_and(|now| now.trim() == before);
    if needed || is_so {
        return Ok(());
    }
    fs::write(path, before)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Whether the kernel has made a route with an address of the interface that leads there already.
pub(crate) fn is_connected(addresses: &[IpNet], net: &IpNet) -> bool {
    addresses.iter().any(|address| match address {
        // An address alone is local and gets no other route.
        IpNet::V4(v4) => v4.prefix_len() < 32 && address.contains(net),
        IpNet::V6(_) => address.contains(net),
    })
}

/// A table without routes in both families.
fn free_table(handle: &mut Handle) -> io::Result<u32> {
    let used = handle.tables_in_use()?;
    (FIRST_TABLE..u32::MAX)
        .find(|table| !used.contains(table))
        .ok_or_else(|| io::Error::other("every routing table has routes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_the_network_of_an_address_has_a_route() {
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().expect("a prefix")).collect()
        };
        let own = nets(&["10.9.0.1/24", "10.7.7.7/32", "fd09::1/64"]);
        for connected in nets(&["10.9.0.2/32", "10.9.0.0/24", "fd09::2/128"]) {
            assert!(is_connected(&own, &connected), "{connected}");
        }
        for other in nets(&["10.9.0.0/23", "10.7.7.7/32", "10.8.0.1/32", "fd09::/48", "0.0.0.0/0"]) {
            assert!(!is_connected(&own, &other), "{other}");
        }
    }
}
