//! The last steps of data: out of a relay socket to a peer, or to a client as ChannelData or Data indication.

use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::egress::{Class, Egress, Port, Target};
use dataplane::stun::channel_data::{self, ChannelNumber};
use dataplane::stun::writer::padding;

use super::Relay;
use crate::server::{AllocationId, ClientSocket, FromPeer, PeerSocket, Route};

/// Longest UDP payload in bytes, over IPv4.
const PAYLOAD_MAX: usize = 65_507;

/// Where a client's data goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Out of this relay socket to a peer.
    Socket(Port, PeerSocket),
    /// To another client of this relay.
    Hairpin(Delivery),
}

/// How a client gets what a peer sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Delivery {
    /// As ChannelData of this number.
    Channel(ClientSocket, ChannelNumber),
    /// As Data indications that name this peer.
    Indication(ClientSocket, PeerSocket),
}

impl Delivery {
    /// What the server said about datagrams of `peer`.
    ///
    /// # Errors
    /// The cause to count, when they are lost.
    pub fn of(from_peer: FromPeer, peer: PeerSocket) -> Result<Self, Cause> {
        match from_peer {
            FromPeer::Channel { client, number } => Ok(Self::Channel(client, number)),
            FromPeer::Indication { client } => Ok(Self::Indication(client, peer)),
            FromPeer::Drop(cause) => Err(cause),
        }
    }
}

/// What went from client to client without the kernel in between.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hairpinned {
    /// Datagrams.
    pub packets: u64,
    /// Bytes of payload in them.
    pub bytes: u64,
}

impl Hairpinned {
    fn count(&mut self, payload: &[u8]) {
        self.packets += 1;
        self.bytes += payload.len() as u64;
    }

    /// Says so at the end, if there was any.
    pub(super) fn log(self) {
        if self.packets > 0 {
            tracing::info!(packets = self.packets, bytes = self.bytes, "hairpin");
        }
    }
}

impl Relay {
    /// What went from client to client so far.
    #[must_use]
    pub fn hairpinned(&self) -> Hairpinned {
        self.hairpinned
    }

    /// The way of a client's data to a peer it may send to, for as long as nothing changes.
    pub(super) fn way(
        &self,
        allocation: AllocationId,
        port: Port,
        peer: PeerSocket,
        now: Instant,
    ) -> Result<Way, Cause> {
        match self.server.route(allocation, peer, now)? {
            Route::Socket => Ok(Way::Socket(port, peer)),
            Route::Client { to, seen_as } => Delivery::of(to, seen_as).map(Way::Hairpin),
        }
    }

    /// Sends a client's data on.
    pub(super) fn forward<E: Egress>(
        &mut self,
        way: &Way,
        payload: &[u8],
        egress: &mut E,
    ) -> Result<(), Cause> {
        match way {
            Way::Socket(port, peer) => send_to_peer(*port, *peer, payload, egress),
            Way::Hairpin(delivery) => {
                self.deliver(delivery, payload, egress)?;
                self.hairpinned.count(payload);
            }
        }
        Ok(())
    }

    /// Sends a peer's data to a client.
    pub(super) fn deliver<E: Egress>(
        &mut self,
        delivery: &Delivery,
        payload: &[u8],
        egress: &mut E,
    ) -> Result<(), Cause> {
        let sent = match delivery {
            Delivery::Channel(client, number) => {
                send_channel_data(&self.target(client), *number, payload, egress)
            }
            Delivery::Indication(client, peer) => {
                let target = self.target(client);
                self.send_indication(&target, *peer, payload, egress)
            }
        };
        if sent { Ok(()) } else { Err(Cause::Mtu) }
    }

    /// Whether it was not too long.
    fn send_indication<E: Egress>(
        &mut self,
        target: &Target,
        peer: PeerSocket,
        payload: &[u8],
        egress: &mut E,
    ) -> bool {
        let Some(header) = self.server.data_indication(peer, payload.len()) else { return false };
        let data_end = header.len() + payload.len();
        let len = data_end + padding(payload.len());
        if len > PAYLOAD_MAX {
            return false;
        }
        egress.append(target, len, Class::Data, |slot| {
            slot[..header.len()].copy_from_slice(header);
            slot[header.len()..data_end].copy_from_slice(payload);
            slot[data_end..].fill(0);
            true
        });
        true
    }
}

fn send_to_peer<E: Egress>(port: Port, peer: PeerSocket, payload: &[u8], egress: &mut E) {
    let target = Target { port, to: peer.0, from: None, ecn: 0 };
    egress.append(&target, payload.len(), Class::Data, |slot| {
        slot.copy_from_slice(payload);
        true
    });
}

/// Whether it was not too long.
fn send_channel_data<E: Egress>(
    target: &Target,
    number: ChannelNumber,
    payload: &[u8],
    egress: &mut E,
) -> bool {
    let len = channel_data::HEADER_LEN + payload.len();
    let Some(header) = channel_data::header(number, payload.len()).filter(|_| len <= PAYLOAD_MAX) else {
        return false;
    };
    egress.append(target, len, Class::Data, |slot| {
        slot[..channel_data::HEADER_LEN].copy_from_slice(&header);
        slot[channel_data::HEADER_LEN..].copy_from_slice(payload);
        true
    });
    true
}
