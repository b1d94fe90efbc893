//! Interfaces, addresses, routes, rules and queueing disciplines by rtnetlink(7), blocking, so that no `ip` or `tc` program is needed.
//!
//! A [`Handle`] belongs to the network namespace its thread was in when it was opened, and stays there.

mod error;
mod link;
mod qdisc;
mod route;
mod rule;
mod watch;

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use error::Error;
pub use ipnet::{IpNet, Ipv4Net};
pub use link::{Address, LinkState, LinkStats};
pub use qdisc::QdiscStats;
pub use rule::Rule;
pub use watch::{AddressWatch, LinkWatch, RouteWatch};

/// The kernel's answers to a dump are at most 32 KiB a piece (netlink_dump); the rest is slack.
const RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// A connection to the kernel's routing tables in one network namespace.
pub struct Handle {
    socket: Socket,
    sequence: u32,
    receive_buffer: Vec<u8>,
}

impl Handle {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no NETLINK_ROUTE or a sandbox forbids it.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // The kernel then explains refusals in words, behind the header of the refused message.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|source| Error::new("open a netlink socket", source))?;
        Ok(Self { socket, sequence: 0, receive_buffer: Vec::with_capacity(RECEIVE_BUFFER_BYTES) })
    }

    /// Sends a change and waits until the kernel has made it. `operation` completes the sentence "cannot …".
    fn change(&mut self, operation: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.exchange(message, NLM_F_ACK | flags, |_| ()).map_err(|failure| failure.named(operation))
    }

    /// Asks for one object or, with [`NLM_F_DUMP`], for all of a kind.
    fn query(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut found = Vec::new();
        self.exchange(message, flags, |answer| found.push(answer))
            .map_err(|failure| failure.named(operation))?;
        Ok(found)
    }

    /// One request and all of its answers. Ends at the acknowledgement, the end of a dump, or the single answer.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), error::Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let single = flags & (NLM_F_ACK | NLM_F_DUMP) == 0;
        loop {
            self.receive()?;
            let mut rest = self.receive_buffer.as_slice();
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (answer.header.length as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[length.max(1)..];
                if answer.header.sequence_number != self.sequence {
                    // An answer to a request that was given up on after an error.
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error::Failure::refused(&error));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(message) => {
                        take(message);
                        if single {
                            return Ok(());
                        }
                    }
                    NetlinkPayload::Overrun(_) => return Err(io::Error::other("netlink overrun").into()),
                    _ => {}
                }
            }
        }
    }

    /// Reads the kernel's next datagram into the receive buffer.
    fn receive(&mut self) -> io::Result<()> {
        loop {
            self.receive_buffer.clear();
            match self.socket.recv(&mut self.receive_buffer, 0) {
                Ok(length) if length > self.receive_buffer.len() => {
                    return Err(io::Error::other("netlink answer longer than the receive buffer"));
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
