//! The figures as tables in a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use dataplane::status::{Counts, short_number};

use super::client::{AskError, StatusArgs, are_stale, ask, ask_fresh};
use super::status::Status;
use crate::server::figures::Direction;

/// Between two looks: rates are counted over it.
const INTERVAL: Duration = Duration::from_secs(1);
/// Users shown.
const USERS_SHOWN: usize = 20;
/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

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
    let clear = if args.watch && out.is_terminal() { CLEAR } else { "" };
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
        } else {
            write!(out, "{clear}{}", text(&before, &now))?;
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
    let seconds = (now.uptime_s - now.age_s) - (before.uptime_s - before.age_s);
    // Another start counts from zero, and figures that have not moved on have no rate.
    let rates = (before.started_unix_s == now.started_unix_s && seconds > 0.0).then_some((before, seconds));
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        text,
        "towpath-relay {}, {}, up {}; {} out, {} in, GSO {}; workers {}",
        now.version,
        now.phase,
        humantime::format_duration(Duration::from_secs(now.uptime_s as u64)),
        now.io,
        now.ingress_design,
        if now.gso { "on" } else { "off" },
        now.workers
    );
    if are_stale(now) {
        let _ = writeln!(text, "the relay hangs: these figures are {:.0} s old", now.age_s);
    }
    if now.last_reload_refused {
        let _ =
            writeln!(text, "the configuration is older than its files: the log says what is wrong with them");
    }
    let _ = writeln!(text, "{}", held(now));
    let _ = writeln!(text, "{}", traffic(rates, now));
    for (title, head, counts, old) in [
        ("Requests", "method", &now.requests, &before.requests),
        ("Refused", "error code", &now.refusals, &before.refusals),
        ("Refused", "rule", &now.rules, &before.rules),
        ("Lost", "cause", &now.drops, &before.drops),
        ("Connections ended", "reason", &now.connections.ended, &before.connections.ended),
        ("Configuration read again", "outcome", &now.reloads, &before.reloads),
    ] {
        let old = rates.map(|(_, seconds)| (old, seconds));
        let _ = writeln!(text, "{}", counters(title, head, counts, old));
    }
    let _ = writeln!(text, "{}", users(now));
    text
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
fn counters(title: &str, head: &str, now: &Counts, before: Option<(&Counts, f64)>) -> Table {
    let mut table = table(&[&format!("{title}, by {head}"), "all", "/s"]);
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
    let mut table = table(&[
        "Users, by bytes",
        "credentials",
        "allocations",
        "bytes to peers",
        "bytes to clients",
        "packets shaped",
    ]);
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

/// A name without what would move a terminal's cursor.
fn printable(name: &str) -> String {
    name.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
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
