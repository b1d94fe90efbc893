//! Prints a row for people (Markdown, so that it can be kept) or for programs.
#![expect(clippy::print_stdout, reason = "the output of a command-line program")]

use comfy_table::{Table, presets};
use serde_json::{Value, json};
use tools::run::environment::Environment;

use super::Plan;
use super::figures::{Ledger, Sample, Side, Spread};
use super::programs::Programs;
use super::rows::{Contender, Row, Work};

type Measured<'a> = [(&'a Contender, Side)];

/// Says where, with what and how often.
pub fn print_head(plan: &Plan, programs: &Programs) {
    let here = Environment::read();
    println!("Linux {}, {} cores, {}", here.kernel, here.cores, here.cpu_model);
    println!("{}; towpath {}", programs.versions().join("; "), env!("CARGO_PKG_VERSION"));
    println!("load average before: {}", load_average());
    println!("{} turns of {:?} each, in turns A B A B; median (least to most)", plan.runs, plan.duration);
    if cfg!(debug_assertions) {
        println!("A debug build: these figures mean nothing. Use cargo run --release.");
    }
}

/// One table and the verdicts below it.
pub fn print(row: &Row, measured: &Measured<'_>) {
    println!("\n### {} (`{}`)\n", row.title, row.name);
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let rate_unit = row.work.rate_unit();
    table.set_header([
        "",
        row.work.cost_unit(),
        "ratio",
        rate_unit,
        "ratio",
        "lost at most",
        "MiB",
        "ledger",
    ]);
    let base = measured.first().map_or(&[][..], |(_, side)| side.samples());
    for (contender, side) in measured {
        match side {
            Side::Measured(samples) => table.add_row(cells(row, contender, samples, base)),
            Side::Missing(reason) | Side::Failed(reason) => {
                table.add_row([contender.name.to_owned(), format!("not measured: {reason}")])
            }
        };
    }
    println!("{table}");
    for verdict in verdicts(row, measured) {
        println!("{verdict}");
    }
}

fn cells(row: &Row, contender: &Contender, samples: &[Sample], base: &[Sample]) -> Vec<String> {
    let ratio = |figure: fn(&Sample) -> f64| {
        if std::ptr::eq(samples, base) { "1".to_owned() } else { spread(ratios(samples, base, figure)) }
    };
    // An open-loop load sets the rate; only what a closed loop reaches is worth comparing.
    let closed_loop = matches!(row.work, Work::TunnelStream);
    let rates = || samples.iter().map(|sample| sample.rate);
    let median = || Spread::of(rates()).map_or_else(String::new, |spread| digits(spread.median));
    let lost = samples.iter().map(|sample| sample.lost).fold(0.0, f64::max);
    vec![
        contender.name.to_owned(),
        spread(samples.iter().map(|sample| sample.cost)),
        ratio(|sample| sample.cost),
        if closed_loop { spread(rates()) } else { median() },
        if closed_loop { ratio(|sample| sample.rate) } else { "–".to_owned() },
        format!("{:.3} %", lost * 100.0),
        format!("{:.1}", resident_kib(samples) as f64 / 1024.0),
        ledger(samples).map_or_else(|| "–".to_owned(), |ledger| ledger.line()),
    ]
}

/// Of each turn to the turn of the first side just before it.
fn ratios<'a>(
    samples: &'a [Sample],
    base: &'a [Sample],
    figure: impl Fn(&Sample) -> f64 + 'a,
) -> impl Iterator<Item = f64> + 'a {
    samples.iter().zip(base).map(move |(sample, base)| figure(sample) / figure(base))
}

fn resident_kib(samples: &[Sample]) -> u64 {
    samples.iter().map(|sample| sample.resident_kib).max().unwrap_or(0)
}

fn ledger(samples: &[Sample]) -> Option<Ledger> {
    let mut sum: Option<Ledger> = None;
    for ledger in samples.iter().filter_map(|sample| sample.ledger.as_ref()) {
        sum.get_or_insert_default().add(ledger);
    }
    sum
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    Spread::of(values).map_or_else(
        || "–".to_owned(),
        |spread| format!("{} ({} to {})", digits(spread.median), digits(spread.min), digits(spread.max)),
    )
}

/// Three digits or more.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// What the project demands of the last side, and whether it is met.
fn verdicts(row: &Row, measured: &Measured<'_>) -> Vec<String> {
    let (Some((_, first)), Some((_, last))) = (measured.first(), measured.last()) else { return Vec::new() };
    let (base, samples) = (first.samples(), last.samples());
    let median = |values: &mut dyn Iterator<Item = f64>| Spread::of(values).map(|spread| spread.median);
    let cost_ratio = median(&mut ratios(samples, base, |sample| sample.cost));
    let rate_ratio = median(&mut ratios(samples, base, |sample| sample.rate));
    let cost = median(&mut samples.iter().map(|sample| sample.cost));
    let resident = (!samples.is_empty()).then(|| resident_kib(samples) as f64 / 1024.0);
    let target = row.target;
    let at_most = |what: &str, limit: Option<f64>, value: Option<f64>| {
        verdict(what, limit, value, "at most", |a, b| a <= b)
    };
    [
        at_most("cost ratio", target.cost_ratio_max, cost_ratio),
        verdict("rate ratio", target.rate_ratio_min, rate_ratio, "at least", |a, b| a >= b),
        at_most("resident MiB", target.resident_kib_max.map(|kib| kib as f64 / 1024.0), resident),
        at_most(row.work.cost_unit(), target.cost_max, cost),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn verdict(
    what: &str,
    limit: Option<f64>,
    value: Option<f64>,
    relation: &str,
    holds: impl Fn(f64, f64) -> bool,
) -> Option<String> {
    let limit = limit?;
    Some(match value {
        Some(value) => {
            let verdict = if holds(value, limit) { "met" } else { "MISSED" };
            format!("Target: {what} {relation} {limit:.2}: {value:.3}, {verdict}")
        }
        None => format!("Target: {what} {relation} {limit:.2}: not measured"),
    })
}

/// A row for `--json`.
#[must_use]
pub fn record(row: &Row, measured: &Measured<'_>) -> Value {
    let sample = |sample: &Sample| {
        json!({
            "cost": sample.cost,
            "rate": sample.rate,
            "lost": sample.lost,
            "resident_kib": sample.resident_kib,
            "ledger": sample.ledger.as_ref().map(|ledger| json!({
                "unexplained": ledger.unexplained,
                "sent": ledger.sent,
                "operations": ledger.operations,
                "drops": ledger.drops,
            })),
        })
    };
    let sides = measured.iter().map(|(contender, side)| {
        let reason = match side {
            Side::Measured(_) => None,
            Side::Missing(reason) | Side::Failed(reason) => Some(reason),
        };
        json!({
            "name": contender.name,
            "flags": contender.flags,
            "not_measured": reason,
            "turns": side.samples().iter().map(sample).collect::<Vec<_>>(),
        })
    });
    json!({
        "name": row.name,
        "title": row.title,
        "cost_unit": row.work.cost_unit(),
        "rate_unit": row.work.rate_unit(),
        "sides": sides.collect::<Vec<_>>(),
        "verdicts": verdicts(row, measured),
    })
}

/// The whole of `--json`.
pub fn print_records(plan: &Plan, programs: &Programs, records: &[Value]) {
    let here = Environment::read();
    let value = json!({
        "kernel": here.kernel,
        "cores": here.cores,
        "cpu_model": here.cpu_model,
        "programs": programs.versions(),
        "runs": plan.runs,
        "seconds": plan.duration.as_secs_f64(),
        "rows": records,
    });
    println!("{value:#}");
}

/// Of the last one, five and fifteen minutes.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::ROWS;

    fn samples(costs: &[f64], rate: f64) -> Side {
        let sample = |&cost: &f64| Sample { cost, rate, lost: 0.0, resident_kib: 2048, ledger: None };
        Side::Measured(costs.iter().map(sample).collect())
    }

    #[test]
    fn a_target_is_judged_by_the_median_of_the_ratios_of_neighbouring_turns() {
        let row = ROWS.iter().find(|row| row.name == "tunnel").unwrap();
        let [first, last] = [row.contenders[0], row.contenders[1]];
        let sides = [(&first, samples(&[10.0, 20.0, 10.0], 1.0)), (&last, samples(&[5.0, 9.0, 15.0], 0.9))];
        let verdicts = verdicts(row, &sides);
        assert!(verdicts[0].ends_with("0.500, met"), "{verdicts:?}");
        assert!(verdicts[1].contains("rate ratio at least 1.00: 0.900, MISSED"), "{verdicts:?}");
        assert!(verdicts[2].contains("2.000, met"), "{verdicts:?}");
    }

    #[test]
    fn a_side_that_is_missing_meets_nothing() {
        let row = ROWS.iter().find(|row| row.name == "relay-bulk").unwrap();
        let [first, last] = [row.contenders[0], row.contenders[1]];
        let sides = [(&first, Side::Missing("apt-get".to_owned())), (&last, samples(&[5.0], 1.0))];
        let verdicts = verdicts(row, &sides);
        assert!(verdicts[0].ends_with("not measured"), "{verdicts:?}");
    }
}
