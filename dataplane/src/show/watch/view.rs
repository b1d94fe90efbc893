//! The screen: what passes, every peer, what is lost, and where time goes. Drawn for 80 columns and 24 lines, and larger.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row as Cells, Table};

use super::super::duration::{counted, nanoseconds, short};
use super::model::{Model, Row};
use crate::stages::Stage;
use crate::status::short_number;

/// Lines of the two tables below: frame, heading, and as many as there are stages and one more.
const BELOW: u16 = 8;
/// Lines above the peers.
const ABOVE: u16 = 2;
/// What stands where there is nothing to tell yet.
const UNKNOWN: &str = "–";

/// How many peers fit.
pub(super) fn visible_peers(screen: Rect) -> usize {
    // Frame and heading of their table, and the line at the bottom.
    usize::from(screen.height.saturating_sub(ABOVE + BELOW + 4))
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let lines =
        [Constraint::Length(ABOVE), Constraint::Min(4), Constraint::Length(BELOW), Constraint::Length(1)];
    let [above, peers, below, bottom] = Layout::vertical(lines).areas(frame.area());
    let halves = [Constraint::Percentage(45), Constraint::Percentage(55)];
    let [lost, stages] = Layout::horizontal(halves).areas(below);
    frame.render_widget(heading(model), above);
    frame.render_widget(peer_table(model, peers), peers);
    frame.render_widget(loss_table(model), lost);
    frame.render_widget(stage_table(model), stages);
    frame.render_widget(foot(model), bottom);
}

fn heading(model: &Model) -> Paragraph<'_> {
    let device = &model.now.device;
    let state = if device.up { format!("up {}", short(device.uptime_s as u64)) } else { "down".to_owned() };
    let relay = device.relay.map_or_else(String::new, |relay| format!(", relay {relay}"));
    let first = Line::from(vec![
        device.interface.as_str().bold(),
        format!(
            "  {state}, port {}, MTU {}, {} out, {} in{relay}",
            device.listen_port, device.mtu, device.io, device.ingress_design
        )
        .into(),
    ]);
    let flow = |flow: Option<(f64, f64)>| {
        flow.map_or_else(
            || UNKNOWN.to_owned(),
            |(bits, packets)| format!("{} {} packets/s", bit_rate(bits), short_number(packets)),
        )
    };
    let second = format!("received {}   sent {}", flow(model.received), flow(model.sent));
    Paragraph::new(vec![first, Line::from(second)])
}

/// Bits a second: the factor of a thousand belongs to the unit.
fn bit_rate(bits: f64) -> String {
    let number = short_number(bits);
    let digits = number.trim_end_matches(|letter: char| letter.is_alphabetic());
    format!("{digits} {}bit/s", &number[digits.len()..])
}

fn peer_table(model: &Model, area: Rect) -> Table<'_> {
    let fits = usize::from(area.height.saturating_sub(3));
    let rows = model.rows.iter().skip(model.scroll).take(fits).map(peer_cells);
    let widths = [
        Constraint::Length(9),
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(9),
    ];
    let count = model.rows.len();
    let shown = if count > fits {
        format!(" peers {} to {} of {count} ", model.scroll + 1, (model.scroll + fits).min(count))
    } else {
        format!(" {} ", counted(count as u64, "peer"))
    };
    Table::new(rows, widths)
        .header(head(["peer", "path", "in bit/s", "out bit/s", "loss", "handshake"]))
        .block(Block::new().borders(Borders::TOP | Borders::BOTTOM).title(shown))
}

fn peer_cells(row: &Row) -> Cells<'static> {
    let rate = |rate: Option<f64>| rate.map_or_else(|| UNKNOWN.to_owned(), short_number);
    // Its beginning is enough to tell peers apart, and `towpath show` has the whole.
    let key: String = row.key.chars().take(8).chain(['…']).collect();
    let loss = row.loss.map_or_else(|| UNKNOWN.to_owned(), percent);
    let handshake = row.handshake_age_s.map_or_else(|| "never".to_owned(), |age| short(age as u64));
    // Nothing has been heard for longer than a session lives.
    let is_stale = row.handshake_age_s.is_none_or(|age| age > 180.0);
    let handshake = if is_stale { Cell::from(handshake).dim() } else { Cell::from(handshake) };
    let loss =
        if row.loss.is_some_and(|loss| loss >= 0.01) { Cell::from(loss).red() } else { Cell::from(loss) };
    Cells::new([
        Cell::from(key),
        Cell::from(row.way.clone()),
        Cell::from(rate(row.received)),
        Cell::from(rate(row.sent)),
        loss,
        handshake,
    ])
}

/// A part as per cent; little is not nothing.
fn percent(part: f64) -> String {
    match part * 100.0 {
        0.0 => "0 %".to_owned(),
        percent if percent < 0.01 => "<0.01 %".to_owned(),
        percent if percent < 1.0 => format!("{percent:.2} %"),
        percent => format!("{percent:.1} %"),
    }
}

fn loss_table(model: &Model) -> Table<'_> {
    let rows = model.losses.iter().take(usize::from(BELOW) - 2).map(|loss| {
        let rate = loss.rate.map_or_else(|| UNKNOWN.to_owned(), short_number);
        let cells = Cells::new([loss.cause.clone(), short_number(loss.total as f64), rate]);
        if loss.rate.is_some_and(|rate| rate > 0.0) { cells.red() } else { cells }
    });
    let title = if model.losses.is_empty() { " nothing lost " } else { " lost packets " };
    Table::new(rows, [Constraint::Fill(1), Constraint::Length(7), Constraint::Length(7)])
        .header(head(["cause", "all", "/s"]))
        .block(Block::new().title(title))
}

fn stage_table(model: &Model) -> Table<'_> {
    let rows = Stage::ALL.map(|stage| {
        let counts = model.latency(stage);
        let at = |quantile| counts.quantile_ns(quantile).map_or_else(|| UNKNOWN.to_owned(), nanoseconds);
        let packets = short_number(counts.total() as f64);
        Cells::new([stage.name().to_owned(), at(0.5), at(0.99), at(0.999), packets])
    });
    let title = match model.latency_s() {
        Some(seconds) => format!(" time by stage, last {seconds} s "),
        None => " time by stage, since the start ".to_owned(),
    };
    let widths = [
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(7),
    ];
    Table::new(rows, widths)
        .header(head(["stage", "p50", "p99", "p99.9", "packets"]))
        .block(Block::new().borders(Borders::LEFT).title(title))
}

fn head<const N: usize>(names: [&str; N]) -> Cells<'_> {
    Cells::new(names).style(Style::new().bold())
}

fn foot(model: &Model) -> Line<'_> {
    match &model.trouble {
        Some(trouble) => Line::from(trouble.as_str()).red(),
        None => Line::from("q ends, arrows and page keys scroll").dim(),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::later;
    use super::*;
    use crate::uapi::status::Peer;

    /// The lines of a screen of that size.
    fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn words(lines: &[String], start: &str) -> Vec<String> {
        let found = lines.iter().find(|line| line.contains(start));
        let line = found.unwrap_or_else(|| panic!("{start}: {lines:#?}"));
        let at = line.find(start).unwrap();
        line[at..].split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_screen_of_eighty_by_twenty_four_shows_everything() {
        let mut model = Model::default();
        model.update(later(0));
        model.update(later(2));
        let lines = screen(&model, 80, 24);
        assert_eq!(lines[0], "wg0  up 1m42, port 51820, MTU 1420, uring out, epoll in");
        assert_eq!(lines[1], "received 10.0 Mbit/s 900 packets/s   sent 1.0 Mbit/s 100 packets/s");
        assert_eq!(
            words(&lines, "HEARD=…"),
            ["HEARD=…", "relay", "203.0.113.5:3478", "10.0M", "1.0M", "10.0", "%", "1m02"]
        );
        assert_eq!(words(&lines, "SILENT=…"), ["SILENT=…", "unknown", "0", "0", "–", "never"]);
        assert_eq!(words(&lines, "no_route")[..3], ["no_route", "43", "20"]);
        assert_eq!(words(&lines, "kernel"), ["kernel", "40", "ns", "40", "ns", "40", "ns", "2"]);
        assert_eq!(words(&lines, "time by stage"), ["time", "by", "stage,", "last", "1", "s"]);
        assert!(lines[23].starts_with("q ends"), "{lines:#?}");
    }

    #[test]
    fn any_size_is_drawn() {
        let mut model = Model::default();
        for _ in 0..2 {
            let mut tunnel = later(1);
            tunnel.peers = vec![Peer { public_key: "x".repeat(44), ..Peer::default() }; 50];
            model.update(tunnel);
        }
        model.fail("nothing came for 3 s".to_owned());
        for (width, height) in [(1, 1), (10, 3), (40, 12), (80, 24), (300, 100)] {
            let lines = screen(&model, width, height);
            assert_eq!(lines.len(), usize::from(height));
        }
        let lines = screen(&model, 80, 24);
        assert_eq!(
            lines.iter().filter(|line| line.starts_with("xxxxxxxx…")).count(),
            visible_peers(Rect::new(0, 0, 80, 24))
        );
        assert_eq!(lines[23], "nothing came for 3 s");
        assert!(lines.iter().any(|line| line.contains("peers 1 to 10 of 50")), "{lines:#?}");
    }

    #[test]
    fn rates_have_a_space_before_their_unit() {
        for (bits, expected) in [(0.0, "0 bit/s"), (999.0, "999 bit/s"), (17_400.0, "17.4 kbit/s")] {
            assert_eq!(bit_rate(bits), expected);
        }
    }

    #[test]
    fn little_loss_is_not_none() {
        for (part, expected) in
            [(0.0, "0 %"), (1e-6, "<0.01 %"), (0.005, "0.50 %"), (0.123, "12.3 %"), (1.0, "100.0 %")]
        {
            assert_eq!(percent(part), expected);
        }
    }
}
