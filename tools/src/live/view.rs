//! The screen. Drawn for 80 columns and 24 lines, and larger.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Gauge, Paragraph, Row as Cells, Table};

use super::model::{Model, Row};
use crate::run::verdict::Validity;
use crate::units::{nanoseconds, rate};

/// What stands where there is nothing to tell yet.
const UNKNOWN: &str = "–";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let lines = [2, 1].map(Constraint::Length).into_iter();
    let lines = lines.chain([Constraint::Min(4)]).chain([4, 1].map(Constraint::Length));
    let [above, progress, seconds, below, bottom] = Layout::vertical(lines).areas(frame.area());
    frame.render_widget(heading(model), above);
    frame.render_widget(gauge(model), progress);
    let fits = usize::from(seconds.height.saturating_sub(3));
    frame.render_widget(table(model, fits), seconds);
    frame.render_widget(verdict(model), below);
    let foot = if model.stopping {
        "ending: what is on its way is waited for"
    } else {
        "q ends the run, and keeps what it has"
    };
    frame.render_widget(Paragraph::new(foot).dim(), bottom);
}

fn heading(model: &Model) -> Paragraph<'_> {
    let [sent, refused, dropped] = model.counts;
    let second = format!("sent {sent}   refused {refused}   dropped by our own sockets {dropped} skbs");
    Paragraph::new(vec![Line::from(model.heading.as_str().bold()), Line::from(second)])
}

fn gauge(model: &Model) -> Gauge<'_> {
    let (share, label) = match model.now_s {
        None => (0.0, "connecting".to_owned()),
        Some(now) if now < 0.0 => (0.0, "warming up".to_owned()),
        Some(now) if now > model.duration_s => (1.0, "waiting for the last datagrams".to_owned()),
        Some(now) => {
            let left = model.duration_s - now;
            (now / model.duration_s, format!("{now:.0} s of {:.0} s, {left:.0} s left", model.duration_s))
        }
    };
    Gauge::default().ratio(share.clamp(0.0, 1.0)).label(label).use_unicode(true)
}

fn table(model: &Model, fits: usize) -> Table<'_> {
    let total = model.total.iter().map(|row| cells("all", row).bold());
    let room = fits.saturating_sub(1);
    let last = model.rows.iter().skip(model.rows.len().saturating_sub(room));
    let seconds = last.map(|row| cells(&format!("{:.0} s", row.at_s), row));
    let widths = [6, 12, 8, 9, 9, 9, 12].map(Constraint::Length);
    let head = ["", "came back", "lost", "p50", "p99", "p99.9", "late p99.9"];
    Table::new(seconds.chain(total), widths)
        .header(Cells::new(head).style(Style::new().bold()))
        .block(Block::new().borders(Borders::TOP | Borders::BOTTOM).title(" response of each second "))
}

fn cells(name: &str, row: &Row) -> Cells<'static> {
    let time = |ns: Option<u64>| Cell::from(ns.map_or_else(|| UNKNOWN.to_owned(), nanoseconds));
    let response = |index: usize| time(row.response_ns.map(|values| values[index]));
    let lost = Cell::from(row.lost.to_string());
    let lost = if row.lost > 0 { lost.red() } else { lost };
    Cells::new([
        Cell::from(name.to_owned()),
        Cell::from(rate(row.rate_pps)),
        lost,
        response(0),
        response(1),
        response(2),
        time(row.lateness_ns),
    ])
}

fn verdict(model: &Model) -> Paragraph<'_> {
    let line = match &model.verdict {
        None => Line::from("so far: nothing to judge"),
        Some(verdict) => {
            let name = verdict.validity.name();
            let name = if verdict.validity == Validity::Valid { name.green() } else { name.red() };
            let reasons = verdict.reasons.join("; ");
            let gap = if reasons.is_empty() { "" } else { ": " };
            Line::from(vec!["so far: ".into(), name.bold(), format!("{gap}{reasons}").into()])
        }
    };
    Paragraph::new(line).wrap(ratatui::widgets::Wrap { trim: true })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::run::live::Live;
    use crate::run::{Kind, RunSpec};

    fn screen(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |row| (0..width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
        (0..height).map(|row| line(row).trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn every_size_of_screen_is_drawn_on() {
        let model = Model::new(&RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap()));
        let text = screen(&model, 80, 24);
        for part in
            ["udp 127.0.0.1:9  1.00 kpps, 200 B, 1 flow", "connecting", "so far: nothing", "q ends the run"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            let _ = screen(&model, width, height);
        }
    }

    #[test]
    fn seconds_their_sum_and_the_verdict_so_far_are_shown() {
        let spec = RunSpec::new(Kind::Udp, "127.0.0.1:9".parse().unwrap());
        let (live, mut model) = (Arc::new(Live::default()), Model::new(&spec));
        let mut feed = crate::run::live::tests::Feed::new(&live, 10_000_000_000);
        feed.second(1_000, 50_000, 20_000, 0);
        model.look(&live, false, 11_100_000_000);
        let text = screen(&model, 80, 24);
        let line =
            |text: &str, start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(text.contains("1 s of 5 s, 4 s left") && text.contains("so far: VALID"), "{text}");
        let words: Vec<String> = line(&text, "1 s").split_whitespace().map(str::to_owned).collect();
        assert_eq!(
            words,
            ["1", "s", "1.00", "kpps", "0", "50.0", "µs", "50.0", "µs", "50.0", "µs", "30.0", "µs"]
        );
        // A late sender and a loss.
        feed.second(998, 9_000_000, 1_000_000, 2);
        model.look(&live, true, 12_100_000_000);
        let text = screen(&model, 80, 24);
        assert!(text.contains("so far: GENERATOR-LIMITED: ") && text.contains("ending"), "{text}");
        assert!(line(&text, "2 s").contains(" 2 ") && line(&text, "all").contains(" 2 "), "{text}");
    }
}
