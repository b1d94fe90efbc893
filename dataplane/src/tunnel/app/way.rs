//! How a message leaves: its target, and what stands in front of it.

use crate::egress::Target;
use crate::stun::{ChannelNumber, channel_data};

/// The longest UDP payload over IPv4, bytes.
const DATAGRAM_MAX: usize = 65_507;

/// A target, and the channel of the relay that leads on from there.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub target: Target,
    pub channel: Option<ChannelNumber>,
}

impl Way {
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
