//! What the connections count about themselves, at one moment.

use super::{End, Streams, Traffic};

/// Connections over TCP and TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFigures {
    /// Now.
    pub connections: u64,
    /// Most there may be; 0 without listeners.
    pub limit: u64,
    /// Taken since the start.
    pub accepted: u64,
    /// Ended or not taken since the start, for every [`End`].
    pub ends: Vec<(End, u64)>,
}

impl StreamFigures {
    /// Adds another worker's. The limit is one for all.
    pub fn merge(&mut self, other: &Self) {
        // Named one by one, so that a new figure cannot be forgotten here.
        let Self { connections, limit: _, accepted, ends } = other;
        self.connections += connections;
        self.accepted += accepted;
        for &(end, count) in ends {
            match self.ends.iter_mut().find(|(known, _)| *known == end) {
                Some((_, sum)) => *sum += count,
                None => self.ends.push((end, count)),
            }
        }
    }
}

impl Streams {
    /// Messages for clients so far, of all connections.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.connections.iter().fold(self.traffic, |sum, (_, connection)| sum + connection.traffic)
    }

    /// Messages that wait to be written.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.connections.iter().map(|(_, connection)| connection.queued()).sum()
    }

    /// Memory that queues and begun messages hold, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.connections.iter().map(|(_, connection)| connection.memory()).sum()
    }

    /// Most bytes that may wait for one client, with as many as there are; O(1).
    pub(super) fn queue_bytes(&self) -> usize {
        self.limits.queue_bytes_of_each(self.admission.total())
    }

    /// The figures of this moment; O(1).
    #[must_use]
    pub fn figures(&self) -> StreamFigures {
        StreamFigures {
            connections: self.connections.len() as u64,
            limit: if self.listeners.is_empty() { 0 } else { self.admission.limit().into() },
            accepted: self.accepted_total,
            ends: End::ALL.iter().map(|&end| (end, self.ends.get(end))).collect(),
        }
    }
}
