//! The last steps of whatever leaves: out of a relay socket to a peer, or to a client, over UDP or over its connection.

use std::net::SocketAddr;
use std::time::Instant;

use dataplane::drops::Cause;
use dataplane::egress::{Class, Egress, Port, Target};
use dataplane::stun::Icmp;
use dataplane::stun::channel_data::{self, ChannelNumber};
use dataplane::stun::writer::padding;

use super::Relay;
use crate::server::figures::{Carrier, Direction, Volume};
use crate::server::{AllocationId, ClientSocket, FromPeer, PeerSocket, Route, WorkerId};

/// Longest UDP payload in bytes, over IPv4.
const PAYLOAD_MAX: usize = 65_507;

/// Where a client's data goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Out of a relay socket to a peer.
    Socket(Target),
    /// The same over IPv4 with DF.
    Whole {
        /// The relay socket.
        port: Port,
        /// The peer.
        to: SocketAddr,
    },
    /// To another client of this relay.
    Hairpin {
        /// Whose datagrams they are there.
        receiver: AllocationId,
        /// How that client gets them.
        delivery: Delivery,
    },
    /// To another worker's client.
    Foreign {
        /// The receiver's relayed address.
        relayed: SocketAddr,
        /// How that client gets them.
        delivery: Delivery,
    },
    /// To the worker who serves that client.
    Worker {
        /// Who that is.
        worker: WorkerId,
        /// The receiver's relayed address.
        relayed: SocketAddr,
        /// The sender's relayed address as the receiver knows it.
        seen_as: PeerSocket,
    },
}

/// How a client gets what is for it. Good until the relay goes on to other input: what the server knows may change then, and
/// connections that have ended are closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    to: Destination,
    form: Form,
}

impl Delivery {
    /// What its data is counted as.
    pub(super) fn carrier(&self) -> Carrier {
        match self.form {
            Form::Channel(_) => Carrier::Channel,
            Form::Answer | Form::Indication(_) | Form::Icmp(..) => Carrier::Indication,
        }
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug)]
enum Destination {
    /// Where datagrams reach it, from the socket and address it talks to.
    Datagrams(Target),
    /// Its connection.
    Stream(u32),
}

/// What a client is sent.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// The answer that the server has written.
    Answer,
    /// ChannelData of this number.
    Channel(ChannelNumber),
    /// Data indications that name this peer.
    Indication(PeerSocket),
    /// What became of a datagram to this peer.
    Icmp(PeerSocket, Icmp),
}

impl Relay {
    /// The way of a client's data to a peer it may send to, for as long as nothing changes.
    pub(super) fn way(
        &self,
        allocation: AllocationId,
        peer: PeerSocket,
        dont_fragment: bool,
        now: Instant,
    ) -> Result<Way, Cause> {
        let port = self.relay_port(allocation).ok_or(Cause::NoAllocation)?;
        match self.server.route(allocation, peer, now)? {
            Route::Socket if dont_fragment && peer.0.is_ipv4() => Ok(Way::Whole { port, to: peer.0 }),
            Route::Socket => {
                Ok(Way::Socket(Target { port, to: peer.0, from: None, traffic_class: 0, dont_fragment }))
            }
            // Inside the relay nothing is fragmented, whatever the sender asked for.
            Route::Client { receiver, to, seen_as } => {
                Ok(Way::Hairpin { receiver, delivery: self.delivery(to, seen_as)? })
            }
            // Connections are their own worker's.
            Route::Foreign { worker, relayed, to, seen_as } if self.is_on_stream(&to) => {
                Ok(Way::Worker { worker, relayed, seen_as })
            }
            Route::Foreign { relayed, to, seen_as, .. } => {
                Ok(Way::Foreign { relayed, delivery: self.delivery(to, seen_as)? })
            }
            Route::Worker { worker, relayed, seen_as } => Ok(Way::Worker { worker, relayed, seen_as }),
        }
    }

    /// Sends a client's data on.
    pub(super) fn forward<E: Egress>(
        &mut self,
        way: &Way,
        payload: &[u8],
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        // A stream can bring more than a datagram takes.
        if payload.len() > PAYLOAD_MAX {
            return Err(Cause::Mtu);
        }
        match way {
            Way::Socket(target) => {
                egress.append(target, payload.len(), Class::Data, |slot| {
                    slot.copy_from_slice(payload);
                    true
                });
            }
            // By itself, ahead of what is being collected.
            &Way::Whole { port, to } => {
                self.relay_socket(port).ok_or(Cause::NoAllocation)?.send_whole(to, payload)?;
            }
            Way::Hairpin { receiver, delivery } => {
                let volume = Volume::of(payload.len());
                self.server.admit(*receiver, Direction::ToClient, volume, now)?;
                self.deliver(delivery, payload, egress, now)?;
                self.hairpinned.count(payload.len());
                // The sender's side is counted with everything else it sends.
                self.server.count_relayed(*receiver, Direction::ToClient, delivery.carrier(), volume);
            }
            Way::Foreign { relayed, delivery } => {
                self.deliver(delivery, payload, egress, now)?;
                self.hairpinned.count(payload.len());
                self.posted.count(payload.len());
                self.server.count_foreign(*relayed, delivery.carrier(), Volume::of(payload.len()));
            }
            &Way::Worker { worker, relayed, seen_as } => {
                self.post(worker, relayed, seen_as, payload)?;
            }
        }
        Ok(())
    }

    /// How a client gets what the server said about datagrams of `peer`.
    ///
    /// # Errors
    /// The cause to count, when they are lost.
    pub(super) fn delivery(&self, from_peer: FromPeer, peer: PeerSocket) -> Result<Delivery, Cause> {
        let (client, form) = match from_peer {
            FromPeer::Channel { client, number } => (client, Form::Channel(number)),
            FromPeer::Indication { client } => (client, Form::Indication(peer)),
            FromPeer::Drop(cause) => return Err(cause),
        };
        Ok(Delivery { to: self.destination(&client)?, form })
    }

    /// Sends a client the answer that the server has written.
    pub(super) fn send_reply<E: Egress>(&mut self, client: &ClientSocket, egress: &mut E, now: Instant) {
        // Nobody waits for it where the connection has ended.
        let Ok(to) = self.destination(client) else { return };
        let sent = self.deliver(&Delivery { to, form: Form::Answer }, &[], egress, now);
        debug_assert!(sent.is_ok(), "answers are short");
    }

    /// Tells a client what became of a datagram to a peer.
    ///
    /// # Errors
    /// The cause to count, when there is no way to the client.
    pub(super) fn send_icmp<E: Egress>(
        &mut self,
        client: &ClientSocket,
        peer: PeerSocket,
        icmp: Icmp,
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        let delivery = Delivery { to: self.destination(client)?, form: Form::Icmp(peer, icmp) };
        self.deliver(&delivery, &[], egress, now)
    }

    fn is_on_stream(&self, to: &FromPeer) -> bool {
        match to {
            FromPeer::Channel { client, .. } | FromPeer::Indication { client } => self.streams.serves(client),
            FromPeer::Drop(_) => false,
        }
    }

    fn destination(&self, client: &ClientSocket) -> Result<Destination, Cause> {
        if self.streams.serves(client) {
            return self.streams.find(client).map(Destination::Stream).ok_or(Cause::NoAllocation);
        }
        let listener = &self.listeners[usize::from(client.listener.0)];
        // A socket bound to one address needs no telling.
        let from = client.local.filter(|_| listener.is_wildcard());
        let to = client.address;
        Ok(Destination::Datagrams(Target {
            port: listener.port,
            to,
            from,
            traffic_class: 0,
            dont_fragment: false,
        }))
    }

    /// Sends something to a client. Whatever is for clients passes here.
    ///
    /// # Errors
    /// The cause to count, when it is too long.
    pub(super) fn deliver<E: Egress>(
        &mut self,
        delivery: &Delivery,
        payload: &[u8],
        egress: &mut E,
        now: Instant,
    ) -> Result<(), Cause> {
        let channel_header;
        let (head, padding, class) = match delivery.form {
            Form::Answer => (self.server.reply(), 0, Class::Control),
            Form::Channel(number) => {
                channel_header = channel_data::header(number, payload.len()).ok_or(Cause::Mtu)?;
                // Padded over streams only (RFC 8656 section 12.5).
                (&channel_header[..], 0, Class::Data)
            }
            Form::Indication(peer) => {
                let head = self.server.data_indication(peer, payload.len()).ok_or(Cause::Mtu)?;
                (head, padding(payload.len()), Class::Data)
            }
            Form::Icmp(peer, icmp) => (self.server.icmp_indication(peer, icmp), 0, Class::Data),
        };
        match (&delivery.to, class) {
            (Destination::Datagrams(target), class) => {
                let data_end = head.len() + payload.len();
                let len = data_end + padding;
                if len > PAYLOAD_MAX {
                    return Err(Cause::Mtu);
                }
                egress.append(target, len, class, |slot| {
                    slot[..head.len()].copy_from_slice(head);
                    slot[head.len()..data_end].copy_from_slice(payload);
                    slot[data_end..].fill(0);
                    true
                });
            }
            (&Destination::Stream(connection), Class::Control) => {
                self.streams.send_answer(connection, head, &mut self.drops, now);
            }
            (&Destination::Stream(connection), Class::Data) => {
                self.streams.send_data(connection, head, payload, &mut self.drops, now);
            }
        }
        Ok(())
    }
}
