//! What one connection has to say in one turn of the loop.

use dataplane::stream::framing::Framer;

use crate::server::ClientSocket;

/// Bytes that were read, to be taken apart. It borrows nothing, so that the relay can act on each message.
#[derive(Debug)]
pub struct Turn {
    index: u32,
    client: ClientSocket,
    framer: Framer,
    bytes: Box<[u8]>,
    len: usize,
    used: usize,
    outcome: Outcome,
}

/// How a turn went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Something was of use to the client or the server.
    pub is_useful: bool,
    /// The rest is neither STUN nor ChannelData.
    pub is_malformed: bool,
}

impl Turn {
    pub(super) fn new(
        index: u32,
        client: ClientSocket,
        framer: Framer,
        bytes: Box<[u8]>,
        len: usize,
    ) -> Self {
        Self { index, client, framer, bytes, len, used: 0, outcome: Outcome::default() }
    }

    /// Who says it.
    #[must_use]
    pub fn client(&self) -> ClientSocket {
        self.client
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// The next whole message: STUN, or ChannelData with its padding.
    pub fn next_message(&mut self) -> Option<&mut [u8]> {
        if self.outcome.is_malformed {
            return None;
        }
        match self.framer.next(&mut self.bytes[..self.len], &mut self.used) {
            Ok(message) => message,
            Err(_) => {
                self.outcome.is_malformed = true;
                None
            }
        }
    }

    /// Whether the turn ended because the bytes are neither STUN nor ChannelData.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.outcome.is_malformed
    }

    /// A message was of use: the connection is not idle.
    pub fn note_useful(&mut self) {
        self.outcome.is_useful = true;
    }

    pub(super) fn into_parts(self) -> (Framer, Box<[u8]>, Outcome) {
        (self.framer, self.bytes, self.outcome)
    }
}
