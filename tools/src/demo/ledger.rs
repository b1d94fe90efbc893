//! The ledger each tunnel and relay logs at its end: what was offered to its egress, what left, and why the rest did not.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Causes that lose what is not the load's: multicast of the TUN device's own making, or strangers.
const NOT_THE_LOAD: [&str; 6] =
    ["no_route", "no_endpoint", "allowed_ips", "malformed_inner", "malformed_outer", "staged_expired"];

/// Figures of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Packets handed to the egress.
    pub offered: u64,
    /// Packets the kernel took.
    pub sent: u64,
    /// Operations that carried them.
    pub operations: u64,
    /// `io_uring_enter` calls, or system calls without a ring.
    pub enters: u64,
    /// Times a packet waited for its socket.
    pub waited: u64,
    /// Times the ring was full and was submitted and waited for.
    pub ring_full: u64,
    /// Lost packets by cause.
    pub drops: BTreeMap<String, u64>,
}

impl Figures {
    /// Reads the log line whose message is `ledger`.
    ///
    /// # Errors
    /// When it has no figures, or they are not what this version writes.
    pub fn read(line: &Value) -> anyhow::Result<Self> {
        let figures = match &line["figures"] {
            // A field of an event is text unless it is a number or a truth value.
            Value::String(text) => serde_json::from_str(text).context("the ledger's figures are not JSON")?,
            other => other.clone(),
        };
        serde_json::from_value(figures).context("the ledger's figures cannot be read")
    }

    /// Packets of one operation, on average.
    #[must_use]
    pub fn segments_per_operation(&self) -> f64 {
        if self.operations == 0 { 0.0 } else { self.sent as f64 / self.operations as f64 }
    }

    /// Packets lost of the load.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.load_drops().map(|(_, packets)| packets).sum()
    }

    /// The causes that lost packets of the load.
    pub fn load_drops(&self) -> impl Iterator<Item = (&str, u64)> {
        self.drops
            .iter()
            .filter(|(cause, packets)| **packets > 0 && !NOT_THE_LOAD.contains(&cause.as_str()))
            .map(|(cause, &packets)| (cause.as_str(), packets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_text_as_tracing_writes_it() {
        let figures = r#"{"offered":10,"sent":8,"operations":2,"enters":1,"new_figure":3,"drops":{"busy":2,"no_route":4}}"#;
        let line = serde_json::json!({ "message": "ledger", "figures": figures });
        let figures = Figures::read(&line).unwrap();
        assert_eq!((figures.offered, figures.sent, figures.lost()), (10, 8, 2));
        assert_eq!(figures.load_drops().collect::<Vec<_>>(), [("busy", 2)]);
        assert!((figures.segments_per_operation() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_ledger_without_figures_is_an_error() {
        assert!(Figures::read(&serde_json::json!({ "message": "ledger" })).is_err());
        assert!(Figures::read(&serde_json::json!({ "figures": "{" })).is_err());
    }
}
