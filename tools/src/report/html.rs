//! Reports as one HTML file. The content security policy forbids it everything but its own styles, which proves that it
//! needs no network.

use std::fmt::Write;

use super::{Cell, Report, Section, Table, Tone, plot};

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b1f24;--page:#fff;--faint:#6b7280;--line:#d5d9df;--bad:#b42318;--good:#067647;
--c0:#1f6feb;--c1:#d1570a;--c2:#1a7f37;--c3:#8250df;--c4:#bf3989;--c5:#0b7285;--c6:#9a6700;--c7:#57606a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--page:#14171b;--faint:#9aa3ad;--line:#363c44;--bad:#ff8a7a;--good:#5bd39a;
--c0:#6cb0ff;--c1:#ffa45c;--c2:#5fd37e;--c3:#c29bff;--c4:#ff8cc6;--c5:#5fd3e6;--c6:#e8c14d;--c7:#aab4be}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:84rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.weak{color:var(--faint)}.bad{color:var(--bad);font-weight:600}.good{color:var(--good)}td.stroke{text-align:left;color:var(--c0);letter-spacing:-1px}
.note{color:var(--faint);margin:.4rem 0}
svg{max-width:100%;height:auto;margin-top:1rem}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
svg .faint{fill:var(--faint)}svg .grid{stroke:var(--line);stroke-width:1}
svg polyline{fill:none;stroke-width:2;stroke-linejoin:round}svg .lost{stroke-dasharray:3 3;stroke-width:1.5}
svg polyline.thin{stroke-width:1}svg .band{fill-opacity:.18;stroke:none}svg .one{stroke:var(--ink);stroke-width:1.5}
svg .dashed{stroke-dasharray:6 4;fill-opacity:.08}svg .heat{stroke:none;fill:var(--c0)}svg .frame{fill:none;stroke:var(--line)}
figure{margin:1.6rem 0}figcaption{font-weight:600}
@media print{body{max-width:none}}
";

pub(super) fn page(report: &Report) -> String {
    let mut html = String::with_capacity(64 << 10);
    html.push_str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n");
    html.push_str("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n");
    html.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n");
    // Writing to a String cannot fail, here and below.
    let _ = write!(
        html,
        "<title>{0}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        escape(&report.title)
    );
    notes(&mut html, &report.notes);
    for section in &report.sections {
        self::section(&mut html, section);
    }
    html.push_str("</body>\n</html>\n");
    html
}

fn section(html: &mut String, section: &Section) {
    html.push_str("<section>\n");
    if !section.title.is_empty() {
        let _ = writeln!(html, "<h2>{}</h2>", escape(&section.title));
    }
    if !section.table.header.is_empty() {
        table(html, &section.table);
    }
    if !section.curves.is_empty() {
        plot::percentiles(html, &section.curves);
    }
    for plot in &section.plots {
        html.push_str(&plot.0);
    }
    notes(html, &section.notes);
    html.push_str("</section>\n");
}

fn notes(html: &mut String, notes: &[String]) {
    for note in notes {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(note));
    }
}

fn table(html: &mut String, table: &Table) {
    html.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for heading in &table.header {
        let _ = write!(html, "<th>{}</th>", escape(heading));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        html.push_str("<tr>");
        for cell in row {
            self::cell(html, cell);
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table></div>\n");
}

fn cell(html: &mut String, cell: &Cell) {
    let class = match cell.tone {
        Tone::Plain => "",
        Tone::Weak => " class=\"weak\"",
        Tone::Bad => " class=\"bad\"",
        Tone::Good => " class=\"good\"",
        Tone::Stroke => " class=\"stroke\"",
    };
    let _ = write!(html, "<td{class}>{}</td>", escape(&cell.text));
}

/// Text as HTML and XML content or attribute value; control characters, which XML forbids, become spaces.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            control if control.is_control() && control != '\n' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::Curve;
    use super::*;
    use crate::run::CurvePoint;

    /// Every element that is opened is closed in order; attributes are quoted; text has no bare special characters.
    fn assert_well_formed(html: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = html.strip_prefix("<!DOCTYPE html>").expect("doctype");
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "bare > in {:?}", &rest[..at]);
            let end = at + rest[at..].find('>').expect("tag ends");
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "</{name}>");
            } else if !tag.ends_with('/') {
                let name = tag.split_whitespace().next().expect("name");
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    fn report() -> Report {
        let point = |quantile, value_ns| CurvePoint { quantile, value_ns };
        let curve = |name: &str, lost_fraction| Curve {
            name: name.to_owned(),
            side: None,
            points: vec![point(0.0, 900), point(0.5, 15_000), point(0.9, 40_000), point(0.99, 3_000_000)],
            lost_fraction,
        };
        let empty =
            Curve { name: "nothing arrived".into(), side: None, points: Vec::new(), lost_fraction: 1.0 };
        Report {
            title: "A <b> & \"c\" 'd'".into(),
            notes: vec!["note \u{1b}[31m".into()],
            sections: vec![Section {
                title: "<script>alert(1)</script>".into(),
                notes: vec![],
                table: Table {
                    header: vec!["run".into(), "p50".into()],
                    rows: vec![vec!["x<y".into(), Cell::new("1 µs", Tone::Weak)]],
                },
                curves: vec![curve("a<&>", 0.0), curve("b", 0.005), empty],
                plots: Vec::new(),
            }],
        }
    }

    #[test]
    fn the_page_is_well_formed_whatever_the_texts_hold() {
        let html = report().to_html();
        assert_well_formed(&html);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;") && !html.contains('\u{1b}'));
        assert_well_formed(&Report::default().to_html());
    }

    #[test]
    fn the_page_refers_to_nothing_outside_itself() {
        let html = report().to_html();
        for reference in ["http://", "https://", "src=", "href=", "url(", "@import", "//"] {
            assert!(!html.contains(reference), "{reference}");
        }
        assert!(html.contains("default-src 'none'"));
    }

    #[test]
    fn losses_are_said_in_the_plot() {
        let html = report().to_html();
        assert!(html.contains("0.5 % lost") && html.contains("100 % lost"), "{html}");
        assert_eq!(html.matches("class=\"lost\"").count(), 1);
    }
}
