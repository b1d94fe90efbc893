//! A tunnel as one line of JSON.

use serde_json::{Value, json};

use super::Tunnel;
use crate::stages::Counts;

/// The object: what the tunnel has said, the peers in a list, and percentiles in place of counts.
pub(super) fn object(tunnel: &Tunnel) -> Value {
    // Strings, finite numbers and lists only.
    let mut object = serde_json::to_value(&tunnel.device).expect("it is JSON");
    if let Some(stages) = &tunnel.device.stages {
        object["stages"] = json!({
            "read": latency(&stages.read),
            "crypto": latency(&stages.crypto),
            "ring": latency(&stages.ring),
            "kernel": latency(&stages.kernel),
        });
    }
    object["peers"] = serde_json::to_value(&tunnel.peers).expect("it is JSON");
    object
}

/// Nothing has no percentiles: they are null.
fn latency(counts: &Counts) -> Value {
    json!({
        "packets": counts.total(),
        "p50_ns": counts.quantile_ns(0.5),
        "p99_ns": counts.quantile_ns(0.99),
        "p999_ns": counts.quantile_ns(0.999),
        "max_ns": counts.quantile_ns(1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::status::Stages;

    #[test]
    fn percentiles_stand_in_place_of_counts() {
        let mut tunnel = super::super::text::tests::tunnel();
        assert_eq!(object(&tunnel)["stages"], Value::Null);
        let counts = |text| serde_json::from_str(text).unwrap();
        // Buckets below 128 are one nanosecond wide.
        let crypto = counts("[[10,98],[20,1],[120,1]]");
        tunnel.device.stages = Some(Stages { crypto, ..Stages::default() });
        let object = object(&tunnel);
        let crypto = json!({"packets": 100, "p50_ns": 10, "p99_ns": 20, "p999_ns": 120, "max_ns": 120});
        assert_eq!(object["stages"]["crypto"], crypto);
        assert_eq!(object["stages"]["kernel"]["p50_ns"], Value::Null);
        assert_eq!(object["peers"][1]["path"], "relayed");
        assert_eq!((&object["interface"], &object["drops"]["bad_tag"]), (&json!("wg0"), &json!(70)));
    }
}
