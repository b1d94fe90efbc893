//! The search beside PyPI's MLRsearch on the same simulated devices.

use std::collections::HashMap;
use std::process::Command;

use serde_json::Value;

use super::{Next, Search, Trial};
use crate::oracle;

const SCRIPT: &str = "mlrsearch_bounds.py";
const RECORDED: &str = "mlrsearch_bounds.json";

/// One step of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

fn uniform(parts: [u64; 4]) -> f64 {
    let number = parts.iter().fold(0, |number, part| mixed(number ^ part));
    (number >> 11) as f64 / (1_u64 << 53) as f64
}

/// Forwards up to a capacity that varies by 1 %; one trial second in twenty loses some datagrams for no reason. What a trial
/// loses depends on the seed, on the load, and on how often that load was tried, so that both searches meet the same device.
struct Device {
    seed: u64,
    capacity: f64,
    tried: HashMap<u64, u64>,
}

impl Device {
    fn new(seed: u64) -> Self {
        Self { seed, capacity: 50_000.0 * (1.0 + 5.0 * uniform([seed, 0, 0, 0])), tried: HashMap::new() }
    }

    fn trial(&mut self, rate: f64, seconds: f64) -> Trial {
        let key = (rate + 0.5) as u64;
        let index = self.tried.entry(key).or_default();
        let draw = |salt| uniform([self.seed, key, *index, salt]);
        let jitter = 0.01 * (2.0 * draw(1) - 1.0);
        let sent = (rate * seconds) as u64;
        let mut lost = sent.saturating_sub((self.capacity * (1.0 + jitter) * seconds) as u64);
        if draw(2) < 0.05 * seconds {
            lost += 1 + (20.0 * draw(3)) as u64;
        }
        *index += 1;
        Trial::new(rate, seconds, sent, lost.min(sent))
    }
}

fn compare(theirs: &Value) {
    let number = |value: &Value| value.as_f64().unwrap();
    let (min, max, width) = (number(&theirs["min"]), number(&theirs["max"]), number(&theirs["width"]));
    let devices = theirs["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 20);
    for theirs in devices {
        let seed = theirs["seed"].as_u64().unwrap();
        let mut device = Device::new(seed);
        assert!((device.capacity - number(&theirs["capacity"])).abs() < 1e-6, "another device than theirs");
        let names = ["ndr", "pdr:0.5%"];
        let mut search = Search::new(names.map(|name| name.parse().unwrap()).into(), min, max, width);
        while let Next::Measure { rate, seconds } = search.next_trial() {
            let trial = device.trial(rate, seconds);
            search.record(trial);
        }
        for (found, name) in search.found().iter().zip(["ndr", "pdr"]) {
            let (lower, upper) = (number(&theirs[name]["lower"]), number(&theirs[name]["upper"]));
            let (ours_lower, ours_upper) = (found.lower.unwrap(), found.upper.unwrap());
            assert!(found.complete && ours_upper - ours_lower <= width * ours_upper, "{seed}: {found:?}");
            let rounding = 1.0 + 1e-9;
            assert!(
                ours_lower * rounding >= lower && ours_upper <= upper * rounding,
                "{seed} {name}: {ours_lower:.0} to {ours_upper:.0} here, {lower:.0} to {upper:.0} there"
            );
        }
    }
}

#[test]
fn the_search_ends_within_the_bounds_that_mlrsearch_reported() {
    compare(&oracle::recorded(RECORDED));
}

#[test]
fn the_search_ends_within_the_bounds_that_mlrsearch_reports_here() {
    let Some(python) = oracle::python_with("MLRsearch") else {
        return oracle::left_out(
            "the search beside MLRsearch: python3 -m venv target/python; target/python/bin/pip install MLRsearch==1.2.1",
        );
    };
    #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
    let output = Command::new(python).arg(oracle::path(SCRIPT)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    compare(&serde_json::from_slice(&output.stdout).unwrap());
}
