//! Prints a row for people (Markdown, so that it can be kept) or for programs.
#![expect(clippy::print_stdout, reason = "the output of a command-line program")]

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};
use tools::run::environment::Environment;

use super::figures::{Sample, Side, Spread, ledger, ratios, resident_mib};
use super::programs::Programs;
use super::rows::{Contender, Row, Who};
use super::{Measured, Plan};

/// Says where, with what and how often.
pub fn print_head(plan: &Plan, programs: &Programs) {
    let here = Environment::read();
    println!("Linux {}, {} cores, {}", here.kernel, here.cores, here.cpu_model);
    println!("{}; towpath {}", programs.versions().join("; "), env!("CARGO_PKG_VERSION"));
    println!("load average before: {}", load_average());
    println!("{} turns of {:?} each, in turns A B B A; median (least to most)", plan.runs, plan.duration);
    if programs.version_of(Who::WireguardGo).is_some_and(|version| version.contains("20220316")) {
        println!(
            "This wireguard-go is of 2022 and cannot send UDP superpackets: to beat it says little. Build a newer one \
             (git clone https://git.zx2c4.com/wireguard-go && make) and give it with --peer wireguard-go=PATH."
        );
    }
    if cfg!(debug_assertions) {
        println!("A debug build: these figures mean nothing. Use cargo run --release.");
    }
}

/// One table and the verdicts below it.
pub fn print(row: &Row, note: &str, quick: bool, programs: &Programs, measured: &Measured<'_>) {
    let note = if note.is_empty() { String::new() } else { format!(", {note}") };
    println!("\n### {}{note} (`{}`)\n", row.title, row.name);
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header(row));
    let base = measured.first().map_or(&[][..], |(_, side)| side.samples());
    for (contender, side) in measured {
        match side {
            Side::Measured(samples) => {
                let mut cells = cells(row, contender, samples, base);
                if let Some(version) = programs.version_of(contender.who) {
                    cells[0] = version;
                }
                table.add_row(cells)
            }
            Side::Missing(reason) | Side::Failed(reason) => {
                table.add_row([contender.name.to_owned(), format!("not measured: {reason}")])
            }
        };
    }
    println!("{table}\n");
    for verdict in verdicts(row, quick, measured) {
        // Two spaces break the line in Markdown.
        println!("{verdict}  ");
    }
}

/// What makes the exit status 1.
pub fn print_faults(row: &Row, faults: &[String]) {
    for fault in faults {
        println!("failed: {}: {fault}  ", row.name);
    }
}

fn header(row: &Row) -> Vec<&'static str> {
    let figures = row
        .work
        .columns()
        .iter()
        .flat_map(|column| std::iter::once(column.unit).chain(column.compared.then_some("ratio")));
    std::iter::once("").chain(figures).chain(["lost at most", "MiB", "ledger"]).collect()
}

fn cells(row: &Row, contender: &Contender, samples: &[Sample], base: &[Sample]) -> Vec<String> {
    let mut cells = vec![contender.name.to_owned()];
    for column in row.work.columns() {
        let values = || samples.iter().filter_map(|sample| sample.figure(column.figure));
        if column.compared {
            cells.push(spread(values()));
            let first = std::ptr::eq(samples, base);
            cells.push(if first { "1".to_owned() } else { spread(ratios(samples, base, column.figure)) });
        } else {
            cells.push(Spread::of(values()).map_or_else(|| "–".to_owned(), |spread| digits(spread.median)));
        }
    }
    let lost = samples.iter().map(|sample| sample.lost).fold(0.0, f64::max);
    cells.push(format!("{:.3} %", lost * 100.0));
    cells.push(format!("{:.1}", resident_mib(samples)));
    cells.push(ledger(samples).map_or_else(|| "–".to_owned(), |ledger| ledger.line()));
    cells
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

/// What is demanded, and whether it holds.
fn verdicts(row: &Row, quick: bool, measured: &Measured<'_>) -> Vec<String> {
    if quick {
        row.bands.iter().map(|band| row.judge(band, measured).as_band()).collect()
    } else {
        row.targets.iter().map(|target| row.judge(target, measured).as_target()).collect()
    }
}

/// A row for `--json`.
#[must_use]
pub fn record(row: &Row, note: &str, quick: bool, measured: &Measured<'_>) -> Value {
    let sample = |sample: &Sample| {
        json!({
            "figures": sample
                .figures
                .iter()
                .map(|(figure, value)| (figure.name().to_owned(), json!(value)))
                .collect::<Map<String, Value>>(),
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
        "note": note,
        "units": row
            .work
            .columns()
            .iter()
            .map(|column| (column.figure.name().to_owned(), json!(column.unit)))
            .collect::<Map<String, Value>>(),
        "sides": sides.collect::<Vec<_>>(),
        "verdicts": verdicts(row, quick, measured),
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
    use super::super::figures::Figure;
    use super::*;
    use crate::peers::ROWS;

    fn row(name: &str) -> &'static Row {
        ROWS.iter().find(|row| row.name == name).unwrap()
    }

    fn turn(figures: &[(Figure, f64)]) -> Side {
        Side::Measured(vec![Sample { figures: figures.to_vec(), resident_kib: 2048, ..Sample::default() }])
    }

    #[test]
    fn a_row_has_a_cell_for_every_heading() {
        for row in ROWS {
            let samples = [Sample::default()];
            let base = [Sample::default()];
            let cells = cells(row, &row.contenders[0], &samples, &base);
            assert_eq!(cells.len(), header(row).len(), "{}", row.name);
        }
    }

    #[test]
    fn only_what_the_sides_reach_themselves_has_a_ratio() {
        let (own, base) = (turn(&[(Figure::Cost, 5.0), (Figure::Rate, 1.0)]), turn(&[(Figure::Cost, 10.0)]));
        let cells = cells(row("relay-bulk"), &row("relay-bulk").contenders[2], own.samples(), base.samples());
        assert_eq!(&cells[..4], ["towpath", "5.00 (5.00 to 5.00)", "0.50 (0.50 to 0.50)", "1.00"]);
    }

    #[test]
    fn the_record_of_a_turn_has_its_figures_by_name_and_its_units() {
        let row = row("tunnel-idle");
        let sides = [(&row.contenders[0], turn(&[(Figure::P999, 70.0)]))];
        let record = record(row, "", false, &sides);
        assert_eq!(record["sides"][0]["turns"][0]["figures"]["p99.9"], 70.0);
        assert_eq!(record["units"]["p99.9"], "p99.9 µs");
    }

    #[test]
    fn quick_is_judged_by_bands_and_else_by_targets() {
        let row = row("tunnel");
        let sides = [
            (&row.contenders[0], turn(&[(Figure::Cost, 10.0), (Figure::Rate, 1.0)])),
            (&row.contenders[1], turn(&[(Figure::Cost, 5.0), (Figure::Rate, 1.7)])),
        ];
        assert!(verdicts(row, true, &sides).iter().all(|verdict| verdict.ends_with("0.500, inside")));
        let targets = verdicts(row, false, &sides);
        assert!(
            targets[0].starts_with("Target (must): rate") && targets[0].ends_with("1.700, met"),
            "{targets:?}"
        );
        assert!(targets.contains(&"Target: CPU s/GB at most 1.800: 5.000, MISSED".to_owned()), "{targets:?}");
    }
}
