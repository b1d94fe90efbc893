//! The figures as tables in a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use dataplane::status::{Counts, short_number};
use rustix::termios::tcgetwinsize;

use super::client::{AskError, StatusArgs, are_stale, ask, ask_fresh};
use super::status::Status;
use crate::server::figures::Direction;

/// Between two looks: rates are counted over it.
const INTERVAL: Duration = Duration::from_secs(1);
/// The first table of what is of less interest while all goes well.
const REQUESTS: &str = "Requests, by method";
/// Users shown.
const USERS_SHOWN: usize = 20;
/// Clears a terminal, goes to its first line, and lets it cut lines that are too long.
const BEGIN: &str = "\x1b[2J\x1b[H\x1b[?7l";
/// Lets it wrap lines again.
const END: &str = "\x1b[?7h";
/// Rows of a terminal that does not say how many it has.
const ROWS: usize = 24;
/// The longest name of a user, in letters, with which a terminal of 80 columns has room for the other figures.
const NAME_MAX: usize = 20;

/// Runs `towpath-relay status`.
#[must_use]
pub fn run(args: &StatusArgs) -> ExitCode {
    let text = match show(args) {
        Ok(()) => return ExitCode::SUCCESS,
        // Whoever read has gone, as `head` does.
        Err(Failure::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::FAILURE,
        Err(Failure::Print(error)) => format!("standard output: {error}"),
        Err(Failure::Ask(error)) => error.to_string(),
    };
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "towpath-relay: {text}");
    ExitCode::FAILURE
}

/// What ends it before its time.
enum Failure {
    Ask(AskError),
    Print(io::Error),
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self::Ask(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Print(error)
    }
}

fn show(args: &StatusArgs) -> Result<(), Failure> {
    let mut out = io::stdout();
    let draws = args.watch && out.is_terminal();
    // Whoever watches wants to see a relay that hangs, all others to be told.
    let ask = |address| if args.watch { ask(address) } else { ask_fresh(address) };
    let mut before = ask(args.admin)?;
    if args.json {
        print_json(&mut out, &before)?;
        if !args.watch {
            return Ok(());
        }
    }
    loop {
        std::thread::sleep(INTERVAL);
        let now = ask(args.admin)?;
        if args.json {
            print_json(&mut out, &now)?;
        } else if draws {
            let rows = tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_row)).filter(|&rows| rows > 0);
            write!(out, "{BEGIN}{}{END}", frame(&before, &now, rows.unwrap_or(ROWS)))?;
            out.flush()?;
        } else {
            write!(out, "{}", text(&before, &now))?;
            out.flush()?;
        }
        if !args.watch {
            return Ok(());
        }
        before = now;
    }
}

fn print_json(out: &mut impl io::Write, status: &Status) -> io::Result<()> {
    serde_json::to_writer(&mut *out, status)?;
    writeln!(out)?;
    out.flush()
}

/// Two looks at a relay as tables.
fn text(before: &Status, now: &Status) -> String {
    let mut text = head(now).join("; ") + "\n";
    // Writing to a String cannot fail, here and below.
    for line in troubles(now) {
        let _ = writeln!(text, "{line}");
    }
    let rates = rates(before, now);
    let _ = writeln!(text, "{}", held(now));
    let _ = writeln!(text, "{}", traffic(rates, now));
    for (title, counts, old) in counted(before, now) {
        let old = rates.map(|(_, seconds)| (old, seconds));
        let _ = writeln!(text, "{}", counters(title, counts, old));
    }
    let _ = writeln!(text, "{}", users(now));
    text
}

/// The same for a terminal with so many rows: without borders and empty tables, and cut where there is no more room.
fn frame(before: &Status, now: &Status, rows: usize) -> String {
    let rates = rates(before, now);
    let mut lines: Vec<String> = head(now).into_iter().chain(troubles(now)).collect();
    let mut tables = vec![held(now), traffic(rates, now)];
    for (title, counts, old) in counted(before, now) {
        // Those who relay most come behind what is lost and refused.
        if title == REQUESTS && !now.users.is_empty() {
            tables.push(users(now));
        }
        if counts.values().any(|&count| count > 0) {
            tables.push(counters(title, counts, rates.map(|(_, seconds)| (old, seconds))));
        }
    }
    for mut table in tables {
        let text = table.load_style(presets::NOTHING).to_string();
        let mut rows = text.lines().map(|line| line.trim_end().to_owned());
        lines.extend(rows.next().map(|heading| format!("\x1b[1m{heading}\x1b[0m")));
        lines.extend(rows);
    }
    // The last line is for how to end it.
    let room = rows.saturating_sub(1);
    let last = if lines.len() > room {
        lines.truncate(room);
        "more: without --watch; Ctrl-C ends"
    } else {
        "Ctrl-C ends"
    };
    lines.push(last.to_owned());
    lines.join("\r\n")
}

/// What the rates are counted from: another start counts from zero, and figures that have not moved on have no rate.
fn rates<'a>(before: &'a Status, now: &Status) -> Option<(&'a Status, f64)> {
    let seconds = (now.uptime_s - now.age_s) - (before.uptime_s - before.age_s);
    (before.started_unix_s == now.started_unix_s && seconds > 0.0).then_some((before, seconds))
}

/// What it is, and how it works.
fn head(now: &Status) -> [String; 2] {
    let up = humantime::format_duration(Duration::from_secs(now.uptime_s as u64));
    let gso = if now.gso { "on" } else { "off" };
    [
        format!("towpath-relay {}, {}, up {up}", now.version, now.phase),
        format!("{} out, {} in, GSO {gso}; workers {}", now.io, now.ingress_design, now.workers),
    ]
}

/// What is wrong with it.
fn troubles(now: &Status) -> Vec<String> {
    let stale = are_stale(now).then(|| format!("the relay hangs: these figures are {:.0} s old", now.age_s));
    let refused = now.last_reload_refused.then(|| {
        "the configuration is older than its files: the log says what is wrong with them".to_owned()
    });
    stale.into_iter().chain(refused).collect()
}

/// What is counted by name, now and before; what is lost and refused comes first, for a terminal that has no room for all.
fn counted<'a>(before: &'a Status, now: &'a Status) -> [(&'static str, &'a Counts, &'a Counts); 6] {
    [
        ("Lost, by cause", &now.drops, &before.drops),
        ("Refused, by error code", &now.refusals, &before.refusals),
        ("Refused, by rule", &now.rules, &before.rules),
        (REQUESTS, &now.requests, &before.requests),
        ("Connections ended, by reason", &now.connections.ended, &before.connections.ended),
        ("Configuration read again, by outcome", &now.reloads, &before.reloads),
    ]
}

fn held(status: &Status) -> Table {
    let mut table = table(&["", "now", "limit"]);
    let (allocations, permissions, channels) = (&status.allocations, &status.permissions, &status.channels);
    table.add_row(["allocations".to_owned(), allocations.live.to_string(), allocations.limit.to_string()]);
    let connections = &status.connections;
    table.add_row(["connections".to_owned(), connections.live.to_string(), connections.limit.to_string()]);
    for (name, held) in [("permissions", permissions), ("channels", channels)] {
        let limit = format!("{} for each allocation", held.limit_of_one_allocation);
        table.add_row([name.to_owned(), held.live.to_string(), limit]);
    }
    table
}

fn traffic(rates: Option<(&Status, f64)>, now: &Status) -> Table {
    let mut table = table(&["Relayed", "packets", "bytes", "packets/s", "bit/s"]);
    for direction in Direction::ALL {
        let amount = now.relayed_in(direction);
        let per_second = |read: fn(&Status, Direction) -> u64| {
            rates.map_or_else(unknown, |(before, seconds)| {
                short_number(read(now, direction).saturating_sub(read(before, direction)) as f64 / seconds)
            })
        };
        let name = match direction {
            Direction::ToPeer => "to peers",
            Direction::ToClient => "to clients",
        };
        table.add_row([
            name.to_owned(),
            amount.packets.to_string(),
            short_number(amount.bytes as f64),
            per_second(|status, direction| status.relayed_in(direction).packets),
            per_second(|status, direction| 8 * status.relayed_in(direction).bytes),
        ]);
    }
    let rate = |read: fn(&Status) -> u64| {
        rates.map_or_else(unknown, |(before, seconds)| {
            short_number(read(now).saturating_sub(read(before)) as f64 / seconds)
        })
    };
    table.add_row([
        "of it inside".to_owned(),
        now.hairpinned.packets.to_string(),
        short_number(now.hairpinned.bytes as f64),
        rate(|status| status.hairpinned.packets),
        rate(|status| 8 * status.hairpinned.bytes),
    ]);
    table
}

/// What is not zero, most first.
fn counters(title: &str, now: &Counts, before: Option<(&Counts, f64)>) -> Table {
    let mut table = table(&[title, "all", "/s"]);
    let mut counted: Vec<_> = now.iter().filter(|&(_, &count)| count > 0).collect();
    counted.sort_by(|left, right| right.1.cmp(left.1).then_with(|| left.0.cmp(right.0)));
    for &(name, &count) in &counted {
        let rate = before.map_or_else(unknown, |(before, seconds)| {
            let old = before.get(name).copied().unwrap_or_default();
            short_number(count.saturating_sub(old) as f64 / seconds)
        });
        table.add_row([name.clone(), count.to_string(), rate]);
    }
    if counted.is_empty() {
        table.add_row(["none", "0", ""]);
    }
    table
}

fn users(status: &Status) -> Table {
    let mut table =
        table(&["Users, by bytes", "credentials", "allocations", "to peers", "to clients", "shaped"]);
    for user in status.users.iter().take(USERS_SHOWN) {
        table.add_row([
            printable(&user.name),
            user.credentials.clone(),
            user.allocations.to_string(),
            short_number(user.to_peer.bytes as f64),
            short_number(user.to_client.bytes as f64),
            short_number(user.shaped_packets as f64),
        ]);
    }
    let shown = status.users.len().min(USERS_SHOWN) as u64;
    if status.users_in_all > shown {
        table.add_row([format!("and {} more", status.users_in_all - shown)]);
    }
    table
}

/// A name without what would move a terminal's cursor, and cut where the rest would push the figures off the screen.
fn printable(name: &str) -> String {
    let mut printed: String = name
        .chars()
        .take(NAME_MAX)
        .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
        .collect();
    if name.chars().nth(NAME_MAX).is_some() {
        printed.pop();
        printed.push('…');
    }
    printed
}

fn unknown() -> String {
    "–".to_owned()
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admin::observer::{Phase, Snapshot};
    use crate::admin::status::tests::{about, origin, snapshot};
    use crate::server::figures::{Credentials, UserFigures, Volume};

    fn with_user(mut snapshot: Snapshot, bytes: u64) -> Snapshot {
        let relayed = [Volume { packets: 3, bytes }, Volume::default()];
        let user = |name: &str, credentials, allocations| UserFigures {
            name: name.into(),
            credentials,
            allocations,
            relayed,
            shaped_packets: 4,
        };
        snapshot.census.users =
            vec![user("al\x1b[2Jice", Credentials::Static, 2), user("al\x1b[2Jice", Credentials::Shared, 1)];
        snapshot
    }

    #[test]
    fn the_tables_show_counts_rates_and_users() {
        let start = origin();
        let later = start + Duration::from_secs(2);
        let first = Status::new(&with_user(snapshot(start), 0), &about(start), Phase::Serving, start);
        let mut grown = with_user(snapshot(later), 1_500_000);
        grown.drops.add(dataplane::drops::Cause::NoPermission, 20);
        let second = Status::new(&grown, &about(start), Phase::Draining, later);
        let text = text(&first, &second);
        let line = |start: &str| {
            let found = text.lines().find(|line| line.contains(start));
            found.unwrap_or_else(|| panic!("{start}: {text}")).replace(['│', '┆'], " ")
        };
        let words = |start: &str| line(start).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words("no_permission"), ["no_permission", "23", "10"]);
        assert_eq!(words("│ allocations"), ["allocations", "12", "100"]);
        assert_eq!(words("static"), ["al\u{fffd}[2Jice", "static", "2", "1.5M", "0", "4"]);
        assert_eq!(words("secret"), ["al\u{fffd}[2Jice", "secret", "1", "1.5M", "0", "4"]);
        assert!(line("towpath-relay").contains("draining, up 2s; uring out, epoll in, GSO on; workers 1"));
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_terminal_of_80_by_24_shows_the_most_important_without_scrolling_or_wrapping() {
        let start = origin();
        let later = start + Duration::from_secs(2);
        let status = |snapshot: &Snapshot, now| Status::new(snapshot, &about(start), Phase::Serving, now);
        let plain = |text: &str| text.replace("\x1b[1m", "").replace("\x1b[0m", "");
        let shown = |now: &Status, rows| {
            let frame = plain(&frame(&status(&snapshot(start), start), now, rows));
            let lines: Vec<String> = frame.split("\r\n").map(str::to_owned).collect();
            assert!(lines.len() <= rows, "{frame}");
            let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= 80, "{widest}: {frame}");
            lines
        };
        let mut quiet = status(&snapshot(later), later);
        quiet.drops.clear();
        quiet.uptime_s = 86_400.0 * 400.0 + 86_399.0;
        let lines = shown(&quiet, 60);
        assert!(lines.iter().all(|line| !line.contains("Lost") && !line.contains("Users")), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "Ctrl-C ends");
        // Long names, and then more than there is room for.
        let mut busy = status(&with_user(snapshot(later), u64::MAX / 3), later);
        for user in &mut busy.users {
            user.name = "name".repeat(100);
        }
        let is_there = |lines: &[String], part: &str| {
            assert!(lines.iter().any(|line| line.contains(part)), "{part}: {lines:?}");
        };
        let lines = shown(&busy, 60);
        for part in ["namenamenamenamenam…", "no_permission", "Connections ended"] {
            is_there(&lines, part);
        }
        busy.drops.extend((0..30).map(|number| (format!("a_long_name_of_cause_{number}"), u64::MAX)));
        let lines = shown(&busy, 24);
        assert_eq!((lines.len(), lines[23].as_str()), (24, "more: without --watch; Ctrl-C ends"));
        for part in ["allocations", "to clients", "Lost, by cause", "a_long_name_of_cause_0"] {
            is_there(&lines, part);
        }
        assert_eq!(shown(&busy, 1).len(), 1);
    }

    #[test]
    fn figures_of_a_loop_that_hangs_are_said_to_be_old() {
        let start = origin();
        let at = |seconds| {
            let now = start + Duration::from_secs(seconds);
            Status::new(&snapshot(start), &about(start), Phase::Serving, now)
        };
        assert!(!text(&at(0), &at(3)).contains("hangs"));
        assert!(text(&at(0), &at(9)).contains("the relay hangs: these figures are 9 s old"));
    }

    #[test]
    fn after_another_start_there_are_no_rates() {
        let start = origin();
        let first = Status::new(&snapshot(start), &about(start), Phase::Serving, start);
        let mut other = first.clone();
        other.started_unix_s += 1;
        other.uptime_s += 1.0;
        let text = text(&first, &other);
        let line = text.lines().find(|line| line.contains("no_permission")).unwrap();
        assert!(line.contains('–'), "{line}");
    }
}
