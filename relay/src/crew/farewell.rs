//! What a worker has to say at its end, to be logged once for all.

use crate::server::figures::Volume;
use crate::stream::Traffic;

/// The figures that the log ends with.
#[derive(Clone, Debug, Default)]
pub struct Farewell {
    /// Who has said it.
    pub workers: usize,
    /// What went from client to client.
    pub hairpinned: Volume,
    /// The part of it that came from another worker's.
    pub posted: Volume,
    /// Connections taken from clients over TCP and TLS.
    pub connections: u64,
    /// Messages for them.
    pub traffic: Traffic,
}

impl Farewell {
    /// Adds another worker's.
    pub fn merge(&mut self, other: &Self) {
        let Self { workers, hairpinned, posted, connections, traffic } = other;
        self.workers += workers;
        self.hairpinned.add(*hairpinned);
        self.posted.add(*posted);
        self.connections += connections;
        self.traffic = self.traffic + *traffic;
    }

    /// Says what there is to say.
    pub fn log(&self) {
        if self.connections > 0 {
            let connections = self.connections;
            let Traffic { offered, sent, writes } = self.traffic;
            tracing::info!(connections, offered, sent, writes, "clients over TCP and TLS");
        }
        for (volume, name) in [(self.hairpinned, "hairpin"), (self.posted, "hairpin between workers")] {
            let Volume { packets, bytes } = volume;
            if packets > 0 {
                tracing::info!(packets, bytes, "{name}");
            }
        }
    }
}
