//! A tolerant reader of percentile distributions as text (`.hgrm`): those of HdrHistogram's libraries in either layout, and the
//! output of programs, such as wrk2, that print one among other things.

use super::counts::{Counts, Layout};

/// Values are kept in thousandths of the unit they are printed in.
pub const PARTS: f64 = 1_000.0;

/// Most rows of a distribution.
const ROWS_MAX: usize = 1 << 20;

/// Reads the first distribution in `text`; values are thousandths of the unit in which they are printed.
///
/// The counts are exact. The values are those of the rows: each stands for all counts since the row before.
///
/// # Errors
/// When there is no distribution, a row cannot be read, or the rows do not add up to the total in the footer.
pub fn read(text: &str) -> Result<Counts, String> {
    let mut lines = (1..).zip(text.lines());
    let is_head =
        |line: &str| line.contains("Value") && line.contains("Percentile") && line.contains("TotalCount");
    if !lines.any(|(_, line)| is_head(line)) {
        return Err("no line has the headings Value, Percentile and TotalCount".to_owned());
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut total = None;
    for (number, line) in lines {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if line.starts_with('#') {
            total = total.or(total_of(line));
            if line.contains("Buckets") {
                break;
            }
            continue;
        }
        let before = rows.last().copied().unwrap_or_default();
        match Row::parse(line) {
            Some(_) if rows.len() == ROWS_MAX => {
                return Err(format!("line {number}: more than {ROWS_MAX} rows; print it with fewer ticks"));
            }
            Some(row) if row.value >= before.value && row.count >= before.count => rows.push(row),
            Some(_) => return Err(format!("line {number}: a row below the one before it")),
            // What other programs print behind it.
            None if total.is_some() => break,
            None => {
                let shown = &line[..line.floor_char_boundary(60)];
                return Err(format!("line {number}: {shown:?} is no row of a distribution"));
            }
        }
    }
    let last = rows.last().copied().unwrap_or_default();
    if let Some(total) = total.filter(|total| *total != last.count) {
        return Err(format!("the rows end at {} of {total}: some are missing", last.count));
    }
    counts(&rows)
}

/// A row: a value, and how many were not above it.
#[derive(Clone, Copy, Default)]
struct Row {
    value: f64,
    count: u64,
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line
            .split(|character: char| character.is_whitespace() || character == ',')
            .filter(|field| !field.is_empty());
        let (value, percentile, count) = (fields.next()?, fields.next()?, fields.next()?);
        let value: f64 = value.parse().ok().filter(|value: &f64| *value >= 0.0 && *value < 1e15)?;
        let _: f64 = percentile.parse().ok()?;
        Some(Self { value, count: count.parse().ok()? })
    }
}

/// The total of a line like `#[Max     =  1000.000, Total count    =  10000]`.
fn total_of(line: &str) -> Option<u64> {
    let (_, rest) = line.to_ascii_lowercase().split_once("total").map(|(_, rest)| ((), rest.to_owned()))?;
    // Python's library writes it with decimals.
    let total: f64 = rest.split_once('=')?.1.trim_matches([' ', ']']).parse().ok()?;
    (total >= 0.0).then_some(total as u64)
}

fn counts(rows: &[Row]) -> Result<Counts, String> {
    let scaled = |row: &Row| (row.value * PARTS).round() as u64;
    let highest = rows.last().map_or(0, scaled).max(2);
    let mut counts = Counts::new(Layout::new(1, highest, 3)?);
    let mut before = 0;
    for row in rows {
        counts.push(scaled(row), row.count - before)?;
        before = row.count;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::super::hgrm;
    use super::*;
    use crate::run::distribution::histogram;

    fn written() -> String {
        let mut histogram = histogram();
        (1..=10_000_u64).for_each(|value| histogram.record(value * 1_000).unwrap());
        let mut out = Vec::new();
        hgrm::write(&mut out, &histogram, 1_000.0).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_written_is_read_with_equal_counts() {
        let counts = read(&written()).unwrap();
        assert_eq!(counts.total(), 10_000);
        let median = counts.histogram().value_at_quantile(0.5);
        assert!(median.abs_diff(5_000_000) < 5_000, "{median}");
        assert_eq!(read(&written().replace('\n', "\r\n")).unwrap(), counts);
    }

    #[test]
    fn rows_with_commas_and_the_output_of_other_programs_are_read() {
        let csv = "\"Value\",\"Percentile\",\"TotalCount\",\"1/(1-Percentile)\"\n1.5,0.0,1,1.0\n2.5,1.0,4,Infinity\n";
        let counts: Vec<_> = read(csv).unwrap().iter().collect();
        assert_eq!(counts, [(1_500, 1), (2_500, 3)]);
        let wrk = format!(
            "Running 30s test\n  Thread Stats   Avg\n  Detailed Percentile spectrum:\n{}----\n  6 requests in 1s\n",
            written()
        );
        assert_eq!(read(&wrk).unwrap().total(), 10_000);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let text = written();
        assert!(read("nothing\n").unwrap_err().contains("headings"));
        assert!(read(&text.replace("       10000]", "       10001]")).unwrap_err().contains("10001"));
        let mut lines: Vec<&str> = text.lines().collect();
        lines.swap(2, 5);
        assert!(read(&lines.join("\n")).unwrap_err().contains("below the one before"));
        assert!(read(&text.replace("0.500000000000", "half")).unwrap_err().starts_with("line"));
        let head = text.lines().next().unwrap();
        let error = read(&format!("{head}\n{}", "1 0 1\n".repeat(ROWS_MAX + 1))).unwrap_err();
        assert!(error.contains("more than 1048576 rows"), "{error}");
        let error = read(&format!("{head}\n{}\n", "x".repeat(1 << 20))).unwrap_err();
        assert!(error.len() < 200, "{}", error.len());
    }
}
