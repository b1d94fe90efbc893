//! ICMP errors on relay sockets: passed on to the client, and not heard of for a while when there are too many.
//!
//! A socket that is told of errors has one of its sends fail for each (ip(7)); the egress tries that one again. So what
//! bounds the errors of a socket also bounds what they cost the packets of others on it.

use std::collections::VecDeque;
use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::egress::{Egress, Port};
use dataplane::ingress::Token;
use dataplane::sys::error_queue::IcmpError;

use super::{Relay, Role};
use crate::server::icmp::attribute;
use crate::server::{FromIcmp, ICMP_SILENCE_TIME, PeerSocket};

/// Relay sockets, by port, that hear of no errors, in the order in which they will again.
#[derive(Debug, Default)]
pub(super) struct Silenced(VecDeque<(Instant, Port)>);

impl Silenced {
    /// When the next one hears again.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.front().map(|&(at, _)| at)
    }

    /// The next one whose time has come.
    fn pop(&mut self, now: Instant) -> Option<Port> {
        self.0.pop_front_if(|&mut (at, _)| at <= now).map(|(_, port)| port)
    }
}

impl Relay {
    /// An error about a datagram that left through a relay socket.
    pub(super) fn handle_icmp<E: Egress>(
        &mut self,
        token: Token,
        error: IcmpError,
        egress: &mut E,
        now: Instant,
    ) {
        let (port, peer) = (Port(token.0), PeerSocket(error.about));
        let allocation = match self.roles.get(token.0 as usize) {
            Some(&Role::Relay(allocation)) => Some(allocation),
            Some(&Role::Shared(address)) => self.server.icmp_recipient(address, peer),
            Some(Role::Vacant | Role::Listener(_)) | None => None,
        };
        let Some(allocation) = allocation else { return };
        let icmp = attribute(peer, error.kind, error.code, error.info);
        match self.server.handle_icmp(allocation, peer, icmp, now) {
            FromIcmp::Indication { client } => {
                if let Err(cause) = self.send_icmp(&client, peer, icmp, egress, now) {
                    self.drops.count(cause);
                }
            }
            FromIcmp::Ignore => {}
            FromIcmp::Silence => {
                self.drops.count(Cause::RateLimited);
                if self.set_errors(port, false) {
                    self.silenced.0.push_back((now + ICMP_SILENCE_TIME, port));
                }
            }
        }
    }

    /// Turns errors on again for the sockets whose time of silence is over. One that was closed meanwhile is gone, and one
    /// that has its number hears of errors anyway.
    pub(super) fn hear_again(&mut self, now: Instant) {
        while let Some(port) = self.silenced.pop(now) {
            self.set_errors(port, true);
        }
    }

    /// Whether there is a relay socket, and it has done as it was told.
    fn set_errors(&self, port: Port, on: bool) -> bool {
        self.relay_socket(port).is_some_and(|socket| socket.set_errors(on).is_ok())
    }
}
