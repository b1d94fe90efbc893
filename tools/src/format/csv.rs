//! Comma-separated values as RFC 4180 has them, with LF at the end of a row as Unix tools expect.

use std::io::{self, Write};

/// Writes one row.
///
/// # Errors
/// What `out` answers.
pub fn row(out: &mut impl Write, cells: impl IntoIterator<Item = String>) -> io::Result<()> {
    let mut separator = "";
    for cell in cells {
        // Section 2, rules 6 and 7: quotes around what has commas, quotes or line breaks, and quotes inside doubled.
        let is_plain = !cell.contains([',', '"', '\n', '\r']);
        let cell = if is_plain { cell } else { format!("\"{}\"", cell.replace('"', "\"\"")) };
        write!(out, "{separator}{cell}")?;
        separator = ",";
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_would_break_a_row_are_quoted() {
        let mut out = Vec::new();
        row(&mut out, ["plain", "a,b", "say \"a\"", "two\nlines", ""].map(str::to_owned)).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "plain,\"a,b\",\"say \"\"a\"\"\",\"two\nlines\",\n");
    }
}
