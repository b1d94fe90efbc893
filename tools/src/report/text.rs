//! Reports as plain text.

use std::fmt::Write;

use comfy_table::{Cell as TextCell, CellAlignment, Table as TextTable, presets};

use super::{Cell, Report, Section, Table, Tone};

pub(super) fn page(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "{}", report.title);
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    for section in &report.sections {
        self::section(&mut text, section);
    }
    text
}

fn section(text: &mut String, section: &Section) {
    if !section.has_text() {
        return;
    }
    if !section.title.is_empty() {
        let _ = writeln!(text, "\n{}", section.title);
    }
    if !section.table.header.is_empty() {
        let _ = writeln!(text, "{}", table(&section.table));
    }
    for note in &section.notes {
        let _ = writeln!(text, "{note}");
    }
}

fn table(table: &Table) -> String {
    let mut out = TextTable::new();
    out.load_style(presets::UTF8_FULL_CONDENSED);
    out.set_header(&table.header);
    for row in &table.rows {
        out.add_row(row.iter().map(cell));
    }
    for column in out.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    out.trim_fmt()
}

/// Grey does not exist in plain text: figures that rest on too few samples stand in parentheses.
fn cell(cell: &Cell) -> TextCell {
    match cell.tone {
        Tone::Weak => TextCell::new(format!("({})", cell.text)),
        Tone::Plain | Tone::Bad | Tone::Good => TextCell::new(&cell.text),
        Tone::Stroke => TextCell::new(&cell.text).set_alignment(CellAlignment::Left),
    }
}
