//! ICMP errors on relay sockets: passed on to the client, and not heard of for a while when there are too many.
//!
//! A socket that is told of errors has one of its sends fail for each (ip(7)); the egress tries that one again. So what
//! bounds the errors of a socket also bounds what they cost the packets of others on it.

use std::collections::VecDeque;
use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::egress::{Class, Egress};
use dataplane::ingress::Token;
use dataplane::sys::error_queue::IcmpError;

use super::{Relay, Role};
use crate::server::icmp::attribute;
use crate::server::{AllocationId, FromIcmp, ICMP_SILENCE_TIME, PeerSocket};

/// Allocations whose sockets hear of no errors, in the order in which they will again.
#[derive(Debug, Default)]
pub(super) struct Silenced(VecDeque<(Instant, AllocationId)>);

impl Silenced {
    /// When the next one hears again.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.front().map(|&(at, _)| at)
    }

    /// The next one whose time has come.
    fn pop(&mut self, now: Instant) -> Option<AllocationId> {
        self.0.pop_front_if(|&mut (at, _)| at <= now).map(|(_, id)| id)
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
        let Some(&Role::Relay(allocation)) = self.roles.get(token.0 as usize) else { return };
        let peer = PeerSocket(error.about);
        let icmp = attribute(peer, error.kind, error.code, error.info);
        match self.server.handle_icmp(allocation, peer, icmp, now) {
            FromIcmp::Indication { client } if self.streams.serves(&client) => {
                let message = self.server.icmp_indication(peer, icmp);
                if let Some(connection) = self.streams.find(&client) {
                    self.streams.send_data(connection, message, &[], &mut self.drops, now);
                }
            }
            FromIcmp::Indication { client } => {
                let target = self.target(&client);
                let message = self.server.icmp_indication(peer, icmp);
                egress.append(&target, message.len(), Class::Data, |slot| {
                    slot.copy_from_slice(message);
                    true
                });
            }
            FromIcmp::Ignore => {}
            FromIcmp::Silence => {
                self.drops.count(Cause::RateLimited);
                if self.set_errors(allocation, false) {
                    self.silenced.0.push_back((now + ICMP_SILENCE_TIME, allocation));
                }
            }
        }
    }

    /// Turns errors on again for the sockets whose time of silence is over. One that was closed meanwhile is gone, and one
    /// that has its number hears of errors anyway.
    pub(super) fn hear_again(&mut self, now: Instant) {
        while let Some(allocation) = self.silenced.pop(now) {
            self.set_errors(allocation, true);
        }
    }

    /// Whether there is a socket, and it has done as it was told.
    fn set_errors(&self, allocation: AllocationId, on: bool) -> bool {
        let relay = self.relays.get(allocation.0 as usize).and_then(Option::as_ref);
        relay.is_some_and(|(socket, _)| socket.set_errors(on).is_ok())
    }
}
