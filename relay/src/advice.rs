//! What is said at the start about settings that are right by themselves, and would all the same not do what was meant.

use std::io;
use std::net::{IpAddr, SocketAddr};

use dataplane::sys::udp::{UdpOptions, UdpSocket};

use crate::config::Config;

/// Descriptors that the relay has beside allocations and connections, at most, with a few workers.
const FILES_OF_ITS_OWN: u64 = 64;

/// Refuses relay addresses that no interface has: every allocation would fail.
///
/// # Errors
/// Which, and what to write instead.
pub fn check_relay_addresses(config: &Config) -> io::Result<()> {
    for &address in &config.relay_addresses {
        if !is_here(address) {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!(
                    "--relay-address {address}: no interface of this machine has it; the address that a NAT shows to others \
                     belongs to --external-ip"
                ),
            ));
        }
    }
    Ok(())
}

/// Says what clients will miss. `open_files`: the limit of this process; `None` is none.
pub fn give(config: &Config, open_files: Option<u64>) {
    for external in &config.external {
        let Some(local) = external.local else { continue };
        let is_used = match config.relay_addresses.is_empty() {
            true => is_here(local),
            false => config.relay_addresses.contains(&local),
        };
        if !is_used {
            tracing::warn!(
                public = %external.public, %local,
                "--external-ip is without effect: nothing is relayed at the second address"
            );
        }
    }
    for sentence in &config.host_bits {
        tracing::warn!("{sentence}");
    }
    if lacks_v4(config) {
        tracing::info!(
            "clients over IPv6 that ask for no address family get 440, as they are to have IPv4: name an IPv4 address of this \
             machine with --relay-address, beside the others"
        );
    }
    let connections = u64::from(match config.streams.tcp.is_empty() && config.streams.tls.is_empty() {
        true => 0,
        false => config.streams.limits.connections_max,
    });
    let needed = u64::from(config.allocations_max) + 2 * connections + FILES_OF_ITS_OWN;
    if open_files.is_some_and(|limit| limit < needed) {
        tracing::warn!(
            limit = open_files,
            needed,
            "the limit of open files is below what --allocations-max and --tcp-connections-max may take: raise it (ulimit -n, \
             LimitNOFILE=) or lower them"
        );
    }
}

/// Whether clients come over IPv6 and no IPv4 address is known to relay at (RFC 8656 section 7.2).
fn lacks_v4(config: &Config) -> bool {
    let streams = config.streams.tcp.iter().chain(&config.streams.tls);
    config.listen.iter().chain(streams).any(SocketAddr::is_ipv6)
        && !config.relay_addresses.iter().any(IpAddr::is_ipv4)
}

/// Whether an interface has this address, as far as can be found out.
fn is_here(address: IpAddr) -> bool {
    let bound = UdpSocket::bind(SocketAddr::new(address, 0), &UdpOptions::default());
    !bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}
