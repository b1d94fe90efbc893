//! How a message leaves: its target, and what stands in front of it.

use std::time::Instant;

use super::App;
use crate::drops::Cause;
use crate::egress::{Class, Egress, Target, Unsealed};
use crate::stun::{ChannelNumber, channel_data};
use crate::tunnel::marking::Marking;
use crate::tunnel::{Path, PeerIndex, Tunnel};
use crate::wire::too_big;

/// The longest UDP payload over IPv4, bytes.
const DATAGRAM_MAX: usize = 65_507;

/// A target, and the channel of the relay that leads on from there.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub target: Target,
    pub channel: Option<ChannelNumber>,
    /// It goes over the connection to the relay, and the target is not used.
    pub is_stream: bool,
    /// The longest packet that passes in one piece, bytes.
    pub limit: usize,
}

impl Way {
    /// A way of which no limit is known.
    pub fn new(target: Target, channel: Option<ChannelNumber>) -> Self {
        Self { target, channel, is_stream: false, limit: usize::MAX }
    }

    /// The MTU to tell the sender of a packet that does not pass.
    pub fn refuses(&self, packet: &[u8]) -> Option<usize> {
        too_big::mtu_to_tell(packet, self.limit)
    }

    /// The way of datagrams that carry such a packet.
    pub fn carrying(self, packet: &[u8], marking: Marking) -> Self {
        let traffic_class = marking.outside(packet, self.channel.is_some());
        Self { target: Target { traffic_class, ..self.target }, ..self }
    }

    /// What stands in front of a message of `len` bytes; `None` when both together are too long for a datagram.
    pub fn front(&self, len: usize) -> Option<Front> {
        let front = match self.channel {
            Some(number) => Front::Channel(channel_data::header(number, len)?),
            None => Front::Nothing,
        };
        (front.len() + len <= DATAGRAM_MAX).then_some(front)
    }
}

/// Bytes in front of a message.
pub(super) enum Front {
    Nothing,
    Channel([u8; channel_data::HEADER_LEN]),
}

impl std::ops::Deref for Front {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::Channel(header) => header,
        }
    }
}

impl App {
    /// How messages leave for `path`.
    pub(super) fn way(&mut self, path: Path, now: Instant) -> Result<Way, Cause> {
        match path {
            Path::Direct { to, from } => {
                let port = self.ports.of(to).ok_or(Cause::NoEndpoint)?;
                Ok(Way::new(Target { port, to, from, traffic_class: 0, dont_fragment: false }, None))
            }
            Path::Relayed { peer } => {
                let relay = self.relay.as_mut().ok_or(Cause::NoEndpoint)?;
                let number = relay.channel(peer, now).ok_or(Cause::NoEndpoint)?;
                let port = self.ports.of(relay.server).ok_or(Cause::NoEndpoint)?;
                let target =
                    Target { port, to: relay.server, from: None, traffic_class: 0, dont_fragment: false };
                Ok(Way { is_stream: relay.is_stream(), ..Way::new(target, Some(number)) })
            }
        }
    }
}

/// Seals a padded packet into the memory it leaves from, or counts it; `false` when there is no session for it.
pub(super) fn seal_and_append<E: Egress>(
    tunnel: &mut Tunnel,
    peer: PeerIndex,
    way: &Way,
    packet: &[u8],
    egress: &mut E,
    now: Instant,
) -> bool {
    let sealed_len = Tunnel::sealed_len(packet.len());
    let Some(front) = way.front(sealed_len) else {
        tunnel.count_drop(Cause::Mtu);
        return true;
    };
    let mut refused = false;
    let len = front.len() + sealed_len;
    egress.append_unsealed(&way.target, len, Class::Data, |slot| {
        let (head, rest) = slot.split_at_mut(front.len());
        head.copy_from_slice(&front);
        let key = tunnel.write(peer, packet, rest, now);
        refused = key.is_none();
        key.map(|key| Unsealed { key, front: front.len() })
    });
    if refused {
        tunnel.count_drop(Cause::NoSession);
    }
    !refused
}
