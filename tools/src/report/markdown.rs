//! Reports as Markdown with tables as GitHub has them, for a comment or a summary.

use std::fmt::Write as _;

use super::{Cell, Report, Table, Tone};

pub(super) fn page(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "# {}", escape(&report.title));
    notes(&mut text, &report.notes);
    for section in report.sections.iter().filter(|section| section.has_text()) {
        if !section.title.is_empty() {
            let _ = writeln!(text, "\n## {}", escape(&section.title));
        }
        if !section.table.header.is_empty() {
            table(&mut text, &section.table);
        }
        notes(&mut text, &section.notes);
    }
    text
}

fn notes(text: &mut String, notes: &[String]) {
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        let _ = writeln!(text, "- {}", escape(note));
    }
}

fn table(text: &mut String, table: &Table) {
    let row = |text: &mut String, cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    text.push('\n');
    row(text, &mut table.header.iter().map(|heading| escape(heading)));
    row(text, &mut (0..table.header.len()).map(|column| if column == 0 { "---" } else { "---:" }.to_owned()));
    for cells in &table.rows {
        row(text, &mut cells.iter().map(cell));
    }
}

fn cell(cell: &Cell) -> String {
    let text = escape(&cell.text);
    match cell.tone {
        Tone::Weak => format!("({text})"),
        Tone::Bad => format!("**{text}**"),
        Tone::Plain | Tone::Good | Tone::Stroke => text,
    }
}

/// Text without what Markdown or HTML would act on, in one line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '|' | '*' | '_' | '`' | '[' | ']' | '~' | '#' => escaped.extend(['\\', character]),
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::Section;
    use super::*;

    #[test]
    fn names_cannot_break_a_table_or_become_markup() {
        let report = Report {
            title: "a|b".to_owned(),
            notes: vec!["first\nsecond <img>".to_owned()],
            sections: vec![Section {
                table: Table {
                    header: vec!["run".to_owned(), "p50".to_owned()],
                    rows: vec![vec!["x|y *z*".into(), Cell::new("1 µs", Tone::Bad)]],
                },
                ..Section::default()
            }],
        };
        let lines = [
            "# a\\|b",
            "",
            "- first second &lt;img>",
            "",
            "| run | p50 |",
            "| --- | ---: |",
            "| x\\|y \\*z\\* | **1 µs** |",
        ];
        assert_eq!(report.to_markdown().lines().collect::<Vec<_>>(), lines);
    }
}
