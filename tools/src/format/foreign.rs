//! Results that other load generators write as JSON: irtt's and fortio's.
//!
//! irtt keeps every round trip in nanoseconds. fortio keeps buckets in seconds: each is taken as its end, so that no quantile
//! looks better than it was.

use std::fmt;
use std::io::{BufReader, Read};
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::counts::{Counts, Layout};
use super::log::{Line, Log};

/// Longest time that is read: a day.
const HIGHEST_NS: u64 = 86_400_000_000_000;
/// Significant digits that are kept.
const DIGITS: u32 = 3;
/// Most round trips or buckets of a file, 16 bytes each at most.
const VALUES_MAX: usize = 1 << 23;

/// What is looked for; whatever else there is is passed over and takes no memory.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    round_trips: Option<RoundTrips>,
    #[serde(default, rename = "DurationHistogram")]
    histogram: Option<Buckets>,
}

/// irtt's, of which only the times are kept.
#[derive(Default)]
struct RoundTrips {
    sent: usize,
    rtt_ns: Vec<u64>,
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
    #[serde(rename = "Data", deserialize_with = "buckets")]
    data: Vec<Bucket>,
}

#[derive(Deserialize)]
struct Bucket {
    #[serde(rename = "End")]
    end_s: f64,
    #[serde(rename = "Count")]
    count: u64,
}

/// Hands the elements of a list on one by one.
struct Each<T, F>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T) -> Result<(), String>> Visitor<'de> for Each<T, F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element()? {
            self.0(element).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RoundTrips {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut all = Self::default();
        let take = |trip: RoundTrip| {
            all.sent += 1;
            all.rtt_ns.extend(trip.delay.and_then(|delay| delay.rtt));
            bounded(all.rtt_ns.len())
        };
        deserializer.deserialize_seq(Each(take, PhantomData))?;
        Ok(all)
    }
}

fn buckets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Bucket>, D::Error> {
    let mut all = Vec::new();
    let take = |bucket: Bucket| {
        all.push(bucket);
        bounded(all.len())
    };
    deserializer.deserialize_seq(Each(take, PhantomData))?;
    Ok(all)
}

fn bounded(values: usize) -> Result<(), String> {
    if values <= VALUES_MAX { Ok(()) } else { Err(format!("more than {VALUES_MAX} values")) }
}

/// Reads what `irtt client -o FILE` or `fortio load -json FILE` wrote, in nanoseconds.
///
/// # Errors
/// When it is neither, or its counts do not add up.
pub fn read(input: impl Read) -> Result<Log, String> {
    let unknown = |why: &str| {
        format!(
            "JSON that is neither irtt's (round_trips) nor fortio's (DurationHistogram): {why}; of a run, give its directory"
        )
    };
    let document: Document =
        serde_json::from_reader(BufReader::new(input)).map_err(|error| unknown(&error.to_string()))?;
    let (mut values, note) = match (document.round_trips, document.histogram) {
        (Some(RoundTrips { sent, rtt_ns }), _) => {
            let lost = sent - rtt_ns.len();
            let note = format!("irtt: from the actual send time; {lost} of {sent} did not come back");
            (rtt_ns.into_iter().map(|rtt| (rtt, 1)).collect::<Vec<(u64, u64)>>(), note)
        }
        (None, Some(histogram)) => {
            let counted: u64 = histogram.data.iter().map(|bucket| bucket.count).fold(0, u64::saturating_add);
            if counted != histogram.count {
                return Err(format!("fortio's buckets hold {counted} of {}", histogram.count));
            }
            let values =
                histogram.data.into_iter().map(|bucket| ((bucket.end_s * 1e9).round() as u64, bucket.count));
            (values.collect(), "fortio: values are the upper ends of its buckets".to_owned())
        }
        (None, None) => return Err(unknown("it has neither")),
    };
    values.sort_unstable();
    let mut counts = Counts::new(Layout::new(1, HIGHEST_NS, DIGITS)?);
    for (value, count) in values {
        counts.push(value.min(HIGHEST_NS), count)?;
    }
    let line = Line { tag: None, start_s: 0.0, length_s: 0.0, counts };
    Ok(Log { start_unix_s: None, lines: vec![line], notes: vec![note], fate: None })
}

#[cfg(test)]
mod tests {
    use super::super::bounded::Bounded;
    use super::*;

    fn read(text: &str) -> Result<Log, String> {
        super::read(text.as_bytes())
    }

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

    #[test]
    fn hostile_json_is_refused_before_it_takes_memory() {
        // What is not looked for is passed over, however deep it is.
        let deep =
            format!("{{\"other\": {}{}, \"round_trips\": []}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(read(&deep).is_ok());
        let deep = format!("{{\"round_trips\": {}", "[".repeat(100_000));
        assert!(read(&deep).unwrap_err().contains("irtt"));
        assert!(bounded(VALUES_MAX).is_ok() && bounded(VALUES_MAX + 1).unwrap_err().contains("8388608"));
        let endless = b"{\"x\": [".chain(std::io::repeat(b'['));
        let error = super::read(Bounded::new(endless, 8 << 20)).unwrap_err();
        assert!(error.contains("longer than 8 MiB"), "{error}");
    }
}
