//! The ledger each tunnel and relay logs at its end: what was offered to its egress, what left, and why the rest did not.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Causes that lose what is not the load's: multicast of the TUN device's own making, or strangers.
const NOT_THE_LOAD: [&str; 6] =
    ["no_route", "no_endpoint", "allowed_ips", "malformed_inner", "malformed_outer", "staged_expired"];

/// Figures of one process, as `dataplane::engine` logs them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Packets handed to the egress.
    pub offered: u64,
    /// Packets the kernel took.
    pub sent: u64,
    /// Packets offered, not sent, and without a cause.
    pub unexplained: i64,
    /// Operations that carried them.
    pub operations: u64,
    /// `io_uring_enter` calls, or system calls without a ring.
    pub enters: u64,
    /// Times a packet waited for its socket.
    pub waited: u64,
    /// Times the ring was full and was submitted and waited for.
    pub ring_full: u64,
    /// io_uring's kernel workers at the end.
    pub kernel_workers: usize,
    /// Packets the egress lost, by cause.
    pub egress_drops: BTreeMap<String, u64>,
    /// Packets the program itself refused, by cause.
    pub application_drops: BTreeMap<String, u64>,
    /// What came in.
    pub ingress: Ingress,
}

/// Figures of a process's ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ingress {
    /// Datagrams and TUN reads.
    pub packets: u64,
    /// Superpackets they came in.
    pub superpackets: u64,
    /// Superpackets the kernel dropped because a receive buffer was full.
    pub kernel_drops_skbs: u64,
    /// Superpackets longer than the buffer.
    pub truncated: u64,
}

impl Figures {
    /// Reads the log line whose message is `ledger`.
    ///
    /// # Errors
    /// When it has no figures, or they are not what this version writes.
    pub fn read(line: &Value) -> anyhow::Result<Self> {
        let figures = line.get("figures").context("the ledger has no figures")?;
        Self::deserialize(figures).context("the ledger's figures cannot be read")
    }

    /// Packets of one operation, on average.
    #[must_use]
    pub fn segments_per_operation(&self) -> f64 {
        if self.operations == 0 { 0.0 } else { self.sent as f64 / self.operations as f64 }
    }

    /// Everything it lost, by cause.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = self.egress_drops.clone();
        for (cause, &packets) in &self.application_drops {
            *drops.entry(cause.clone()).or_default() += packets;
        }
        for (cause, skbs) in
            [("kernel_rcvbuf_skbs", self.ingress.kernel_drops_skbs), ("truncated", self.ingress.truncated)]
        {
            *drops.entry(cause.to_owned()).or_default() += skbs;
        }
        drops.retain(|_, packets| *packets > 0);
        drops
    }

    /// What it lost of the load, by cause.
    #[must_use]
    pub fn load_drops(&self) -> BTreeMap<String, u64> {
        let mut drops = self.drops();
        drops.retain(|cause, _| !NOT_THE_LOAD.contains(&cause.as_str()));
        drops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_unknown_ones_skipped() {
        let figures = serde_json::json!({
            "offered": 10, "sent": 8, "operations": 2, "enters": 1, "new_figure": 3, "egress_drops": { "busy": 2 },
            "application_drops": { "no_route": 4 }, "ingress": { "kernel_drops_skbs": 1 },
        });
        let line = serde_json::json!({ "message": "ledger", "figures": figures });
        let figures = Figures::read(&line).unwrap();
        assert_eq!((figures.offered, figures.sent), (10, 8));
        let expected = [("busy".to_owned(), 2), ("kernel_rcvbuf_skbs".to_owned(), 1)];
        assert_eq!(figures.load_drops(), BTreeMap::from(expected));
        assert_eq!(figures.drops()["no_route"], 4);
        assert!((figures.segments_per_operation() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_ledger_without_figures_is_an_error() {
        assert!(Figures::read(&serde_json::json!({ "message": "ledger" })).is_err());
        assert!(Figures::read(&serde_json::json!({ "figures": "{}" })).is_err());
    }
}
