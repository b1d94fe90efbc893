//! Results that other load generators write as JSON: irtt's and fortio's.
//!
//! irtt keeps every round trip in nanoseconds. fortio keeps buckets in seconds: each is taken as its end, so that no quantile
//! looks better than it was.

use serde::Deserialize;

use super::counts::{Counts, Layout};
use super::log::{Line, Log};

/// Longest time that is read: a day.
const HIGHEST_NS: u64 = 86_400_000_000_000;
/// Significant digits that are kept.
const DIGITS: u32 = 3;

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Irtt {
        round_trips: Vec<RoundTrip>,
    },
    Fortio {
        #[serde(rename = "DurationHistogram")]
        histogram: Buckets,
    },
}

#[derive(Deserialize)]
struct RoundTrip {
    #[serde(default)]
    delay: Option<Delay>,
}

#[derive(Deserialize)]
struct Delay {
    #[serde(default)]
    rtt: Option<u64>,
}

#[derive(Deserialize)]
struct Buckets {
    #[serde(rename = "Count")]
    count: u64,
    #[serde(rename = "Data")]
    data: Vec<Bucket>,
}

#[derive(Deserialize)]
struct Bucket {
    #[serde(rename = "End")]
    end_s: f64,
    #[serde(rename = "Count")]
    count: u64,
}

/// Reads what `irtt client -o FILE` or `fortio load -json FILE` wrote, in nanoseconds.
///
/// # Errors
/// When it is neither, or its counts do not add up.
pub fn read(text: &str) -> Result<Log, String> {
    let document: Document = serde_json::from_str(text).map_err(|error| {
        format!(
            "JSON that is neither irtt's (round_trips) nor fortio's (DurationHistogram): {error}; of a run, give its directory"
        )
    })?;
    let (mut values, note) = match document {
        Document::Irtt { round_trips } => {
            let sent = round_trips.len();
            let values: Vec<(u64, u64)> =
                round_trips.into_iter().filter_map(|trip| trip.delay?.rtt).map(|rtt| (rtt, 1)).collect();
            let note = format!(
                "irtt: from the actual send time; {} of {sent} did not come back",
                sent - values.len()
            );
            (values, note)
        }
        Document::Fortio { histogram } => {
            let counted: u64 = histogram.data.iter().map(|bucket| bucket.count).fold(0, u64::saturating_add);
            if counted != histogram.count {
                return Err(format!("fortio's buckets hold {counted} of {}", histogram.count));
            }
            let values =
                histogram.data.into_iter().map(|bucket| ((bucket.end_s * 1e9).round() as u64, bucket.count));
            (values.collect(), "fortio: values are the upper ends of its buckets".to_owned())
        }
    };
    values.sort_unstable();
    let mut counts = Counts::new(Layout::new(1, HIGHEST_NS, DIGITS)?);
    for (value, count) in values {
        counts.push(value.min(HIGHEST_NS), count)?;
    }
    let line = Line { tag: None, start_s: 0.0, length_s: 0.0, counts };
    Ok(Log { start_unix_s: None, lines: vec![line], notes: vec![note] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> Vec<(u64, u64)> {
        read(text).unwrap().lines[0].counts.iter().collect()
    }

    #[test]
    fn irtt_s_round_trips_are_read_and_those_that_failed_are_told() {
        let text = r#"{"version": {"irtt": "0.9.2"}, "round_trips": [
            {"seqno": 0, "lost": "false", "delay": {"receive": 50, "rtt": 210000, "send": 60}},
            {"seqno": 1, "lost": "true"},
            {"seqno": 2, "lost": "false", "delay": {"rtt": 190000}}]}"#;
        assert_eq!(counts(text), [(190_000, 1), (210_000, 1)]);
        assert!(read(text).unwrap().notes[0].contains("1 of 3"));
    }

    #[test]
    fn fortio_s_buckets_count_at_their_upper_end() {
        let text = |count: u64| {
            format!(
                r#"{{"RunType": "HTTP", "DurationHistogram": {{"Count": {count}, "Min": 0.001, "Data": [
            {{"Start": 0.001, "End": 0.002, "Percent": 75, "Count": 3}},
            {{"Start": 0.002, "End": 0.0025, "Percent": 100, "Count": 1}}]}}}}"#
            )
        };
        assert_eq!(counts(&text(4)), [(2_000_000, 3), (2_500_000, 1)]);
        assert!(read(&text(5)).unwrap_err().contains("4 of 5"));
    }

    #[test]
    fn other_json_is_refused_with_what_is_known() {
        for text in ["{}", "{\"schema\": 1}", "{\"round_trips\": 7}", "{"] {
            let error = read(text).unwrap_err();
            assert!(error.contains("irtt") && error.contains("fortio"), "{error}");
        }
    }
}
