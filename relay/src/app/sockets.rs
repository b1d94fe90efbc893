//! The sockets of allocations, of one or of several each: opened, made to hear, and closed.
//!
//! Until its first permission a socket is bound and nothing else: whatever comes has no permission, and most of the cost of an
//! allocation would be for nothing where a client tries all relays it knows and uses one.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::drops::Cause;
use dataplane::egress::{Egress, Port};
use dataplane::ingress::{Ingress, Source, Token};
use dataplane::sys::udp::{UdpOptions, UdpSocket};

use super::{Relay, Role};
use crate::server::{AllocationId, OpenFailure, Opened};

/// Socket buffers asked for on a relay socket with one allocation, in bytes. There may be thousands of them.
const RELAY_SOCKET_BUFFER: usize = 1 << 20;
/// How often the same trouble with sockets is logged.
const TROUBLE_INTERVAL: Duration = Duration::from_secs(10);

impl Relay {
    /// Opens the socket of an allocation, on another port when somebody has the first, and answers the client.
    pub(super) fn open<I: Ingress, E: Egress>(
        &mut self,
        mut allocation: AllocationId,
        mut address: SocketAddr,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        loop {
            let result = self.open_socket(allocation, address, egress, now);
            match self.server.handle_relay_opened(allocation, result, now) {
                Opened::Reply { client } => return self.send_reply(&client, egress, now),
                Opened::Retry(other) => address = other,
                Opened::Also { allocation: other, address: its } => (allocation, address) = (other, its),
                Opened::Gone => return self.close_socket(allocation, ingress, egress),
            }
        }
    }

    fn open_socket<E: Egress>(
        &mut self,
        allocation: AllocationId,
        address: SocketAddr,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), OpenFailure> {
        if let Some(shared) = self.socket_at(address).cloned() {
            self.put_relay(allocation, shared);
            return Ok(());
        }
        let opened = UdpSocket::reserve(address).and_then(|socket| {
            let port = egress.add_socket(socket.fd().clone())?;
            Ok((socket, port))
        });
        let (socket, port) = opened.map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                return OpenFailure::PortTaken;
            }
            self.log_trouble(&error, now);
            OpenFailure::Other
        })?;
        self.put_relay(allocation, (socket, port));
        let is_shared = self.server.shares_ports();
        self.set_role(port, if is_shared { Role::Shared(address) } else { Role::Relay(allocation) });
        self.set_deaf(port, true);
        Ok(())
    }

    /// Equips the sockets of those allocations that the last datagram gave permissions, before anybody is told so.
    pub(super) fn equip_permitted(&mut self, now: Instant) {
        while let Some(allocation) = self.server.poll_permitting() {
            let Some(&(ref socket, port)) = self.relay(allocation).filter(|relay| self.is_deaf(relay.1))
            else {
                continue;
            };
            match socket.equip(&self.relay_options()) {
                Ok(forgotten) => {
                    self.drops.add(Cause::NoPermission, forgotten);
                    self.set_deaf(port, false);
                    self.equipped.push(port);
                }
                // It is tried again when the client asks again, for this peer or another.
                Err(error) => self.log_trouble(&error, now),
            }
        }
    }

    /// Receives from sockets that are equipped.
    pub(super) fn hear_equipped<I: Ingress>(&mut self, ingress: &mut I, now: Instant) {
        while let Some(port) = self.equipped.pop() {
            let Some(fd) = self.relay_socket(port).map(|socket| socket.fd().clone()) else { continue };
            if let Err(error) = ingress.add(fd, Token(port.0), Source::UdpWithErrors) {
                self.set_deaf(port, true);
                self.log_trouble(&error, now);
            }
        }
    }

    fn relay_options(&self) -> UdpOptions {
        let mut options = UdpOptions {
            gro: self.gro,
            packet_info: false,
            errors: true,
            // RFC 8656 sections 14 and 15, alternate behavior: the DF of what came is not known here, and taken to be 0.
            without_df: true,
            ..UdpOptions::default()
        };
        if !self.server.shares_ports() {
            options.receive_buffer = RELAY_SOCKET_BUFFER;
            options.send_buffer = RELAY_SOCKET_BUFFER;
        }
        options
    }

    /// Whether nothing has been received from a relay socket yet.
    fn is_deaf(&self, port: Port) -> bool {
        self.deaf.get(port.0 as usize).is_some_and(|&deaf| deaf)
    }

    fn set_deaf(&mut self, port: Port, deaf: bool) {
        let index = port.0 as usize;
        if self.deaf.len() <= index {
            self.deaf.resize(index + 1, false);
        }
        self.deaf[index] = deaf;
    }

    /// The socket that allocations at an address have already.
    fn socket_at(&self, address: SocketAddr) -> Option<&(UdpSocket, Port)> {
        self.server.tenants(address).iter().find_map(|&id| self.relay(id))
    }

    /// The socket of an allocation.
    fn relay(&self, allocation: AllocationId) -> Option<&(UdpSocket, Port)> {
        self.relays.get(allocation.0 as usize)?.as_ref()
    }

    pub(super) fn relay_port(&self, allocation: AllocationId) -> Option<Port> {
        self.relay(allocation).map(|&(_, port)| port)
    }

    /// The relay socket that a port stands for.
    pub(super) fn relay_socket(&self, port: Port) -> Option<&UdpSocket> {
        let (socket, _) = match *self.roles.get(port.0 as usize)? {
            Role::Relay(allocation) => self.relay(allocation),
            Role::Shared(address) => self.socket_at(address),
            Role::Vacant | Role::Listener(_) => None,
        }?;
        Some(socket)
    }

    fn put_relay(&mut self, allocation: AllocationId, relay: (UdpSocket, Port)) {
        let index = allocation.0 as usize;
        if self.relays.len() <= index {
            self.relays.resize_with(index + 1, || None);
        }
        self.relays[index] = Some(relay);
    }

    pub(super) fn close_socket<I: Ingress, E: Egress>(
        &mut self,
        allocation: AllocationId,
        ingress: &mut I,
        egress: &mut E,
    ) {
        let Some((socket, port)) = self.relays.get_mut(allocation.0 as usize).and_then(Option::take) else {
            return;
        };
        if self.socket_at(socket.local_addr()).is_some() {
            // Others have it still.
            return;
        }
        if !self.is_deaf(port) {
            ingress.remove(Token(port.0));
        }
        egress.remove(port);
        self.set_role(port, Role::Vacant);
    }

    fn log_trouble(&mut self, error: &io::Error, now: Instant) {
        if self.trouble_logged.is_none_or(|logged| now >= logged + TROUBLE_INTERVAL) {
            self.trouble_logged = Some(now);
            tracing::warn!(%error, "relay sockets cannot be opened, clients get 508; is the limit of open files (ulimit -n) high enough?");
        }
    }
}

/// Adds a socket to both sides of the engine, under the same number.
pub(super) fn register<I: Ingress, E: Egress>(
    socket: &UdpSocket,
    source: Source,
    ingress: &mut I,
    egress: &mut E,
) -> io::Result<Port> {
    let port = egress.add_socket(socket.fd().clone())?;
    if let Err(error) = ingress.add(socket.fd().clone(), Token(port.0), source) {
        egress.remove(port);
        return Err(error);
    }
    Ok(port)
}
