//! Tickets: our own, for `towpath ticket`, and those of peers.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};
use zeroize::Zeroizing;

use super::App;
use super::control::wall_clock;
use crate::tunnel::apart::apart;
use crate::tunnel::ticket::{Candidate, Signer, Ticket};
use crate::tunnel::{Path, PeerIndex};
use crate::uapi::Refusal;
use crate::uapi::answer::{self, Part};

/// There is no address at a relay: none is configured, or it has not given us one yet.
pub const NO_RELAY: Refusal = Refusal::System(libc::ENETUNREACH);
/// The ticket is older than one that was taken before, or another signed that one.
pub const NOT_THE_NEXT: Refusal = Refusal::System(libc::ESTALE);

impl App {
    /// Our ticket, as it is now.
    pub(super) fn tell_ticket(&self) -> VecDeque<Part> {
        match self.ticket() {
            Ok(text) => [Zeroizing::new(format!("ticket={text}\n")), answer::end(None)].into(),
            Err(refusal) => [answer::end(Some(refusal))].into(),
        }
    }

    fn ticket(&self) -> Result<String, Refusal> {
        let relay = self.relay.as_ref().ok_or(NO_RELAY)?;
        let relayed = relay.relayed.ok_or(NO_RELAY)?;
        let private = self.tunnel.private_key().ok_or(Refusal::Unsupported)?;
        let mut candidates = vec![Candidate::Relayed(relayed)];
        candidates.extend(relay.mapped.map(Candidate::Mapped));
        let (port, mark) = (self.sockets.port(), self.binding.firewall_mark);
        let is_useful =
            |own: &SocketAddr| relay.mapped != Some(*own) && (mark != 0 || !self.tunnel.is_inside(own.ip()));
        candidates.extend(own_addresses(relay.server, port, mark).filter(is_useful).map(Candidate::Own));
        Ok(apart(|| Signer::new(private).sign(&candidates, wall_clock())))
    }

    /// Takes a peer's ticket.
    pub(super) fn take_ticket(
        &mut self,
        index: PeerIndex,
        ticket: &Ticket,
        now: Instant,
    ) -> Result<(), Refusal> {
        let is_theirs = self.tunnel.view(index).is_some_and(|view| view.public_key == ticket.public_key);
        if !is_theirs {
            return Err(Refusal::Invalid);
        }
        let known = self.tickets.get(&ticket.public_key);
        if known.is_some_and(|&(signer, issued)| signer != ticket.signer || issued > ticket.issued) {
            return Err(NOT_THE_NEXT);
        }
        let relay = self.relay.as_mut().ok_or(NO_RELAY)?;
        let wall = wall_clock();
        ticket.check_time(wall).map_err(|_| Refusal::Invalid)?;
        self.tickets.insert(ticket.public_key, (ticket.signer, ticket.issued));
        let marked = self.binding.firewall_mark != 0;
        let reachable = |address: &SocketAddr| self.ports.of(*address).is_some();
        let until = now + ticket.expires.saturating_sub(wall);
        self.tunnel.set_candidates(index, ticket.direct().filter(reachable), until, marked, now);
        if let Some(address) = ticket.relayed() {
            let bound = relay.set_peer(index, address, now);
            relay.note_met(index);
            self.tunnel.set_relayed(index, bound.then_some(Path::Relayed { peer: address }), now);
        }
        Ok(())
    }
}

/// The addresses that what we send comes from, with our port: to `server`, and to wherever the default route of the other
/// family leads, for peers that have no more than that.
fn own_addresses(server: SocketAddr, port: u16, firewall_mark: u32) -> impl Iterator<Item = SocketAddr> {
    /// Hosts that are nowhere (RFC 5737, RFC 3849).
    const NOWHERE: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
    let elsewhere = SocketAddr::new(NOWHERE[usize::from(server.is_ipv4())], 9);
    [server, elsewhere].into_iter().filter_map(move |to| own_address(to, port, firewall_mark))
}

/// The address that what we send to `server` comes from, with our port.
fn own_address(server: SocketAddr, port: u16, firewall_mark: u32) -> Option<SocketAddr> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM.cloexec(), Some(Protocol::UDP)).ok()?;
    if firewall_mark != 0 {
        // As for our packets: with a default route through the tunnel the mark leads around it.
        socket.set_mark(firewall_mark).ok()?;
    }
    socket.bind(&SocketAddr::new(any, 0).into()).ok()?;
    // Nothing is sent: the kernel looks for a route.
    socket.connect(&server.into()).ok()?;
    let ip = socket.local_addr().ok()?.as_socket()?.ip();
    (port != 0 && !ip.is_loopback()).then(|| SocketAddr::new(ip, port))
}
