//! In what runs were made otherwise than others: the load that was asked for, field by field, and the host.

use std::collections::BTreeMap;

use serde_json::Value;

use super::group::Group;
use crate::run::{RunResult, RunSpec};
use crate::units;

/// Fields of a [`RunSpec`] in which sides may differ: who is measured, and how that is reached, named, watched and written
/// down. Every other one, those to come included, decides what is sent or which runs are believed.
const FREE: [&str; 10] = [
    "target",
    "label",
    "seed",
    "username",
    "wireguard",
    "bind",
    "peer",
    "dut_pids",
    "server_admins",
    "interval_s",
];

/// Something that is not the same in two runs: what, and what each has.
pub type Differing = (String, String, String);

/// In what two loads differ.
#[must_use]
pub fn load(first: &RunSpec, other: &RunSpec) -> Vec<Differing> {
    let (mut a, mut b) = (fields(first), fields(other));
    for (fields, spec) in [(&mut a, first), (&mut b, other)] {
        fields.retain(|name, _| !FREE.contains(&name.as_str()));
        // Where servers are asked, the load pauses for that.
        fields.insert("servers that are asked".to_owned(), (!spec.server_admins.is_empty()).into());
        // What a trace says counts, and not where it is.
        if let Some(crc) = spec.trace.as_ref().and_then(|trace| trace.crc.clone()) {
            fields.insert("trace".to_owned(), crc.into());
        }
    }
    differing(&a, &b).map(|(name, a, b)| (spoken(name), text(name, a), text(name, b))).collect()
}

/// In what the hosts and programs of two runs differ.
#[must_use]
pub fn host(first: &RunResult, other: &RunResult) -> Vec<Differing> {
    let facts = |run: &RunResult| {
        let host = &run.environment;
        let mut facts = host.sysctls.clone();
        for (name, fact) in [
            ("version of towpath-lab", &run.tool_version),
            ("kernel", &host.kernel),
            ("processor", &host.cpu_model),
            ("number of processors", &host.cores.to_string()),
            ("clock source", &host.clock_source),
        ] {
            facts.insert(name.to_owned(), fact.clone());
        }
        facts
    };
    let (a, b) = (facts(first), facts(other));
    let known = |fact: Option<&String>| fact.map_or_else(|| "unknown".to_owned(), String::clone);
    differing(&a, &b).map(|(name, a, b)| (name.clone(), known(a), known(b))).collect()
}

/// In which fields loads differ from the first of all, each once.
#[must_use]
pub fn different<'a>(specs: impl Iterator<Item = &'a RunSpec> + Clone) -> Vec<String> {
    let Some(first) = specs.clone().next() else { return Vec::new() };
    let mut fields = Vec::new();
    for (field, _, _) in specs.flat_map(|spec| load(first, spec)) {
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    fields
}

/// How the loads of several groups' runs differ from the first of all: one sentence each.
pub(super) fn loads(groups: &[&Group]) -> Vec<String> {
    against_first(groups, &|first, run| load(&first.spec, &run.spec))
}

/// The same of their hosts.
pub(super) fn hosts(groups: &[&Group]) -> Vec<String> {
    against_first(groups, &host)
}

/// Something that differs, as a sentence.
#[must_use]
pub fn sentence((what, a, b): &Differing, in_a: &str, in_b: &str) -> String {
    format!("not the same {what}: {a} in {in_a}, {b} in {in_b}")
}

fn against_first(
    groups: &[&Group],
    differing: &dyn Fn(&RunResult, &RunResult) -> Vec<Differing>,
) -> Vec<String> {
    let Some((first, first_group)) = groups.iter().find_map(|group| Some((group.runs.first()?, group)))
    else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for group in groups {
        for differs in group.runs.iter().flat_map(|run| differing(first, run)) {
            let note = sentence(&differs, &first_group.name, &group.name);
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    notes
}

/// What two maps have otherwise, by name.
fn differing<'a, T: PartialEq>(
    a: &'a BTreeMap<String, T>,
    b: &'a BTreeMap<String, T>,
) -> impl Iterator<Item = (&'a String, Option<&'a T>, Option<&'a T>)> {
    let only_b = b.keys().filter(|name| !a.contains_key(*name));
    a.keys().chain(only_b).map(|name| (name, a.get(name), b.get(name))).filter(|(_, a, b)| a != b)
}

fn fields(spec: &RunSpec) -> BTreeMap<String, Value> {
    let fields = serde_json::to_value(spec).and_then(serde_json::from_value);
    fields.expect("a spec is written as an object with names")
}

/// A field as one says it.
fn spoken(name: &str) -> String {
    match name {
        "kind" => "kind of load".to_owned(),
        _ => name.trim_end_matches("_pps").trim_end_matches("_s").replace('_', " "),
    }
}

/// The value of a field, with its unit.
fn text(name: &str, value: Option<&Value>) -> String {
    let number = value.and_then(Value::as_f64);
    match (name, value, number) {
        (_, None | Some(Value::Null), _) => "none".to_owned(),
        (_, Some(Value::String(text)), _) => text.clone(),
        ("rate_pps", _, Some(rate)) => units::rate(rate),
        ("size" | "receive_buffer" | "send_buffer", Some(bytes), _) => format!("{bytes} B"),
        ("steal_limit", _, Some(share)) => units::share(share),
        (_, _, Some(seconds)) if name.ends_with("_s") => units::nanoseconds((seconds * 1e9) as u64),
        (_, Some(other), _) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::run::{Arrivals, Kind, Pace, SendBy};

    fn base() -> RunSpec {
        RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap())
    }

    /// What is said of a load beside the usual one.
    fn said(other: &RunSpec) -> Vec<String> {
        load(&base(), other).iter().map(|differs| sentence(differs, "A", "B")).collect()
    }

    #[test]
    fn whatever_is_sent_otherwise_is_named() {
        let second = Duration::from_secs(1);
        let others = [
            (RunSpec { kind: Kind::Tcp, ..base() }, "kind of load: udp in A, tcp in B"),
            (RunSpec { rate_pps: 2e3, ..base() }, "rate: 1.00 kpps in A, 2.00 kpps in B"),
            (RunSpec { size: 300, ..base() }, "size: 200 B in A, 300 B in B"),
            (RunSpec { flows: 2, ..base() }, "flows: 1 in A, 2 in B"),
            (RunSpec { burst: 2, ..base() }, "burst: 1 in A, 2 in B"),
            (RunSpec { gso: true, ..base() }, "gso: false in A, true in B"),
            (RunSpec { gather: 2, ..base() }, "gather: 1 in A, 2 in B"),
            (RunSpec { arrivals: Arrivals::Periodic, ..base() }, "arrivals: poisson in A, periodic in B"),
            (RunSpec { send: SendBy::Uring, ..base() }, "send: sendmmsg in A, uring in B"),
            (RunSpec { pace: Pace::Spin, ..base() }, "pace: hybrid in A, spin in B"),
            (RunSpec { duration: second, ..base() }, "duration: 5.00 s in A, 1.00 s in B"),
            (RunSpec { warmup: second, ..base() }, "warmup: 500 ms in A, 1.00 s in B"),
            (RunSpec { drain: 2 * second, ..base() }, "drain: 1.00 s in A, 2.00 s in B"),
            (RunSpec { lateness_limit: second, ..base() }, "lateness limit: 1.00 ms in A, 1.00 s in B"),
            (RunSpec { steal_limit: 0.5, ..base() }, "steal limit: 5.00 % in A, 50.00 % in B"),
            (RunSpec { tx_stamps: 64, ..base() }, "tx stamps: 0 in A, 64 in B"),
            (RunSpec { kernel_stamps: true, ..base() }, "kernel stamps: false in A, true in B"),
            (RunSpec { allocations: 2, ..base() }, "allocations: 1 in A, 2 in B"),
            (RunSpec { send_buffer: 9, ..base() }, "send buffer: 8388608 B in A, 9 B in B"),
        ];
        for (other, expected) in others {
            assert_eq!(said(&other), [format!("not the same {expected}")]);
        }
        let mix = serde_json::from_str("[{\"size\":64,\"weight\":1}]").unwrap();
        let found = said(&RunSpec { mix, ..base() });
        assert!(found.len() == 1 && found[0].starts_with("not the same mix: none in A, [{"), "{found:?}");
    }

    #[test]
    fn a_trace_is_what_it_says() {
        let traced = |file: &str, text: &str| RunSpec {
            arrivals: Arrivals::Trace,
            trace: Some(crate::run::trace::Trace::parse(file, text).unwrap()),
            ..base()
        };
        let first = traced("a", "0\n1\n");
        assert_eq!(load(&first, &traced("b", "0\n1\n")), []);
        let other = load(&first, &traced("a", "0\n1\n3\n"));
        assert!(other.len() == 1 && other[0].0 == "trace", "{other:?}");
    }

    #[test]
    fn who_is_measured_may_differ() {
        let other = RunSpec {
            target: "[::1]:10".parse().unwrap(),
            label: "new".to_owned(),
            seed: 7,
            username: Some("bob".to_owned()),
            bind: Some([127, 0, 0, 2].into()),
            peer: Some([127, 0, 0, 3].into()),
            dut_pids: vec![5],
            interval: Duration::from_millis(200),
            ..base()
        };
        assert_eq!(said(&other), [""; 0]);
        let asked = RunSpec { server_admins: vec!["127.0.0.1:9641".parse().unwrap()], ..base() };
        assert_eq!(said(&asked), ["not the same servers that are asked: false in A, true in B"]);
    }
}
