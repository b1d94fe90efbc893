//! What must hold of a run: a figure, a relation, a value.

use std::fmt;
use std::str::FromStr;

use dataplane::drops::Cause;

use crate::run::RunResult;
use crate::run::devices::QUEUE;
use crate::units;

/// Counts of the ledger that a claim can name.
const COUNTS: [&str; 10] = [
    "intended",
    "sent",
    "received",
    "lost",
    "late",
    "duplicate",
    "reordered",
    "corrupt",
    "refused",
    "unsent",
];
/// Latencies that it can name, of the response.
const LATENCIES: [&str; 7] = ["p50", "p90", "p99", "p99.9", "p99.99", "mean", "max"];

/// For example `p99 < 5ms`, `lost = 0`, `relay:policy_rate > 0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    figure: String,
    relation: Relation,
    value: f64,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Below,
    AtMost,
    Equal,
    AtLeast,
    Above,
}

/// The longer ones first.
const RELATIONS: [(&str, Relation); 5] = [
    ("<=", Relation::AtMost),
    (">=", Relation::AtLeast),
    ("<", Relation::Below),
    (">", Relation::Above),
    ("=", Relation::Equal),
];

impl Relation {
    fn holds(self, found: f64, value: f64) -> bool {
        match self {
            Self::Below => found < value,
            Self::AtMost => found <= value,
            Self::Equal => found == value,
            Self::AtLeast => found >= value,
            Self::Above => found > value,
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl FromStr for Claim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is no claim; write a figure, a relation and a value, for example \"p99 < 5ms\" or \"lost = 0\""
            )
        };
        let found = RELATIONS.iter().find_map(|&(sign, relation)| Some((text.split_once(sign)?, relation)));
        let ((figure, value), relation) = found.ok_or_else(form)?;
        let (figure, value) = (figure.trim(), value.trim());
        let is_cause = figure.split_once(':').is_some_and(|(server, cause)| {
            let packets = cause.strip_suffix("_skbs").unwrap_or(cause);
            let of_device = cause.strip_suffix(QUEUE).is_some_and(|device| !device.is_empty());
            !server.is_empty() && (of_device || Cause::ALL.iter().any(|cause| cause.name() == packets))
        });
        let number = || value.parse::<f64>().ok().filter(|number| number.is_finite());
        let value = if LATENCIES.contains(&figure) {
            let time = humantime::parse_duration(value);
            time.map(|time| time.as_nanos() as f64)
                .map_err(|error| format!("{text:?}: {value:?} is not a time ({error}); write it like 5ms"))?
        } else if figure == "loss" {
            let percent = value.strip_suffix('%').and_then(|digits| digits.trim().parse::<f64>().ok());
            percent.map(|percent| percent / 100.0).or_else(number).ok_or_else(form)?
        } else if COUNTS.contains(&figure) || is_cause || ["unexplained", "path", "own-rx"].contains(&figure)
        {
            number().ok_or_else(form)?
        } else {
            return Err(format!(
                "{text:?}: there is no figure {figure:?}; there are {}, {}, loss, path, own-rx, unexplained, and causes like relay:policy_rate or a:a-b_queue_skbs",
                COUNTS.join(", "),
                LATENCIES.join(", ")
            ));
        };
        Ok(Self { figure: figure.to_owned(), relation, value, text: text.to_owned() })
    }
}

impl Claim {
    /// Whether it holds, and what was found.
    #[must_use]
    pub fn judge(&self, result: &RunResult) -> (bool, String) {
        let Some(found) = self.found(result) else {
            return (
                false,
                "nobody can say: too few datagrams came back, some were lost, or no server was asked"
                    .to_owned(),
            );
        };
        let shown = if LATENCIES.contains(&self.figure.as_str()) {
            units::nanoseconds(found as u64)
        } else if self.figure == "loss" {
            units::share(found)
        } else {
            format!("{found}")
        };
        (self.relation.holds(found, self.value), shown)
    }

    fn found(&self, result: &RunResult) -> Option<f64> {
        let (ledger, response) = (&result.ledger, &result.latency.response);
        let count = match self.figure.as_str() {
            "intended" => ledger.intended,
            "sent" => ledger.sent,
            "received" => ledger.received,
            "lost" => ledger.lost,
            "late" => ledger.late,
            "duplicate" => ledger.duplicate,
            "reordered" => ledger.reordered,
            "corrupt" => ledger.corrupt,
            "refused" => ledger.refused,
            "unsent" => ledger.unsent,
            "loss" => return Some(ledger.loss_fraction()),
            // Without a server's own counts everything that was lost is under `path`.
            "unexplained" if !result.account.asked => return None,
            "unexplained" => return Some(result.account.unexplained as f64),
            // What was lost has no latency, and no mean or maximum can leave it out.
            "mean" | "max" if ledger.gone() > 0 => return None,
            "mean" => return (response.count > 0).then_some(response.mean_ns),
            "max" => return response.max_ns.map(|ns| ns as f64),
            // A share of the datagrams that were lost has no latency: it is infinite.
            name if LATENCIES.contains(&name) => {
                return response.quantile(name)?.value_ns.map(|ns| ns as f64);
            }
            // Devices are looked at in any case, servers only when they are named.
            cause if cause.contains(':') && !cause.ends_with(QUEUE) && !result.account.asked => return None,
            cause => result.account.lost_by(cause),
        };
        Some(count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_and_wrong_ones_are_answered_with_what_there_is() {
        let claim = |text: &str| text.parse::<Claim>().unwrap();
        assert_eq!((claim("p99 < 5ms").value, claim("p99 < 5ms").relation), (5e6, Relation::Below));
        assert_eq!((claim("lost=0").figure.as_str(), claim("lost=0").relation), ("lost", Relation::Equal));
        assert_eq!((claim("loss <= 1%").value, claim("loss <= 1%").relation), (0.01, Relation::AtMost));
        assert_eq!(claim("tunnel:busy >= 3").relation, Relation::AtLeast);
        assert_eq!(claim("a:a-b_queue_skbs > 0").figure, "a:a-b_queue_skbs");
        for (text, hint) in [
            ("lost", "lost = 0"),
            ("p99 < 5", "5ms"),
            ("p98 < 5ms", "p99.9"),
            ("lost = none", "lost = 0"),
            (":busy = 0", "relay:policy_rate"),
            ("a:_queue_skbs = 0", "a:a-b_queue_skbs"),
        ] {
            let error = text.parse::<Claim>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
