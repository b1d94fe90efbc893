//! Logs put together and taken apart: `merge`, `diff`, and cutting a log by time and tag.

use std::collections::BTreeMap;

use super::counts::Counts;
use super::fate::Fate;
use super::log::{Line, Log};

/// Where lines of several logs meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Align {
    /// By the time of day: logs of one moment overlap, later ones follow
    Clock,
    /// By the time since each log's start, as if all had started together
    Start,
}

/// Most counts that are not zero in all logs together, 16 bytes each.
const ENTRIES_MAX: usize = 1 << 24;

/// All that the logs recorded: lines of a tag that begin in the same interval are added. The intervals are those of the log
/// with the longest.
///
/// # Errors
/// With [`Align::Clock`], when a log does not say when it started; when no histogram can hold a sum; when they are too large
/// together.
pub fn merge(logs: &[Log], align: Align) -> Result<Log, String> {
    check_together(logs)?;
    let start = logs.iter().filter_map(|log| log.start_unix_s).reduce(f64::min);
    let lines = || logs.iter().flat_map(|log| &log.lines);
    let longest = |tag: Option<&str>| {
        let lengths = lines().filter(|line| line.tag.as_deref() == tag).map(|line| line.length_s);
        lengths.fold(0.0, f64::max)
    };
    let mut grid: BTreeMap<Option<&str>, f64> = BTreeMap::new();
    let mut cells: BTreeMap<(Option<&str>, u64), Vec<&Counts>> = BTreeMap::new();
    for log in logs {
        let offset = match (align, log.start_unix_s, start) {
            (Align::Start, _, _) => 0.0,
            (Align::Clock, Some(own), Some(first)) => own - first,
            (Align::Clock, _, _) if logs.len() == 1 => 0.0,
            (Align::Clock, _, _) => {
                return Err("a log does not say when it started; merge them with --align start".to_owned());
            }
        };
        for line in &log.lines {
            let tag = line.tag.as_deref();
            let length_s = *grid.entry(tag).or_insert_with(|| longest(tag));
            // A millisecond is the precision of the stamps: what begins that much early begins in time.
            let at = (line.start_s + offset + 0.001).max(0.0);
            let index = if length_s > 0.0 { (at / length_s) as u64 } else { 0 };
            cells.entry((tag, index)).or_default().push(&line.counts);
        }
    }
    let sum = |((tag, index), parts): ((Option<&str>, u64), Vec<&Counts>)| {
        let length_s = grid.get(&tag).copied().unwrap_or(0.0);
        let counts = Counts::sum(parts)?.expect("a cell is made for a line");
        Ok(Line { tag: tag.map(str::to_owned), start_s: index as f64 * length_s, length_s, counts })
    };
    let lines = cells.into_iter().map(sum).collect::<Result<_, String>>()?;
    let mut notes: Vec<String> = logs.iter().flat_map(|log| log.notes.clone()).collect();
    let fates: Vec<&Fate> = logs.iter().filter_map(|log| log.fate.as_ref()).collect();
    let fate = match fates.as_slice() {
        [first, others @ ..] if fates.len() == logs.len() => {
            Some(others.iter().fold((*first).clone(), |sum, fate| sum.together(fate)))
        }
        [] => None,
        _ => {
            notes.push("not all of the logs say what was lost, so their sum does not".to_owned());
            None
        }
    };
    Ok(Log { start_unix_s: start, lines, notes, fate })
}

/// Refuses logs that are too large to be kept in memory together: call it after each that is read.
///
/// # Errors
/// When they have more than [`ENTRIES_MAX`] counts.
pub fn check_together(logs: &[Log]) -> Result<(), String> {
    within(logs, ENTRIES_MAX)
}

fn within(logs: &[Log], most: usize) -> Result<(), String> {
    if logs.iter().map(Log::entries).sum::<usize>() <= most {
        return Ok(());
    }
    Err(format!("the logs have more than {most} counts together; merge fewer, or parts of them"))
}

/// What `whole` counted beyond `part`.
///
/// # Errors
/// When `part` counted something more often than `whole`.
pub fn subtract(whole: &Counts, part: &Counts) -> Result<Counts, String> {
    let layout = whole.layout().with(part.layout())?;
    // Through histograms of one layout: the same time may be counted under values a little apart.
    let on_layout = |counts: &Counts| -> Result<Counts, String> {
        let mut all = Counts::new(layout);
        all.merge(counts)?;
        Ok(Counts::of(&all.histogram()))
    };
    let (whole, part) = (on_layout(whole)?, on_layout(part)?);
    let part: BTreeMap<u64, u64> = part.iter().collect();
    let mut matched = 0;
    let mut rest = Counts::new(layout);
    for (value, count) in whole.iter() {
        let less = part.get(&value).copied().unwrap_or(0);
        matched += less.min(count);
        rest.push(value, count.saturating_sub(less))?;
    }
    let missing = part.values().sum::<u64>() - matched;
    if missing > 0 {
        return Err(format!("{missing} of what is to be subtracted are not in the first"));
    }
    Ok(rest)
}

/// Keeps the lines that begin from `from_s` on and before `until_s`, and only those with `tag` when one is named.
pub fn cut(log: &mut Log, from_s: f64, until_s: f64, tag: Option<&str>) {
    let before = log.lines.len();
    log.lines.retain(|line| (from_s..until_s).contains(&line.start_s));
    if let Some(fate) = log.fate.as_mut().filter(|_| log.lines.len() < before) {
        fate.lost.clear();
        log.notes.push(
            "when something was lost is not known: of a part, the figures are those of what arrived"
                .to_owned(),
        );
    }
    log.lines.retain(|line| tag.is_none_or(|tag| line.tag.as_deref() == tag_of(tag)));
}

/// `untagged` names the lines without a tag.
#[must_use]
pub fn tag_of(name: &str) -> Option<&str> {
    Some(name).filter(|name| *name != "untagged")
}

#[cfg(test)]
mod tests {
    use super::super::counts::Layout;
    use super::super::fate::tests::lossy;
    use super::*;

    fn line(tag: Option<&str>, start_s: f64, values: &[(u64, u64)]) -> Line {
        let mut counts = Counts::new(Layout::new(1, 1_000_000, 3).unwrap());
        values.iter().for_each(|&(value, count)| counts.push(value, count).unwrap());
        Line { tag: tag.map(str::to_owned), start_s, length_s: 1.0, counts }
    }

    fn log(start: Option<f64>, lines: Vec<Line>) -> Log {
        Log { start_unix_s: start, lines, ..Log::default() }
    }

    fn shape(log: &Log) -> Vec<(Option<&str>, f64, u64)> {
        log.lines.iter().map(|line| (line.tag.as_deref(), line.start_s, line.counts.total())).collect()
    }

    #[test]
    fn logs_of_one_moment_overlap_and_later_ones_follow() {
        let first = log(Some(100.0), vec![line(None, 0.0, &[(5, 1)]), line(None, 1.0, &[(6, 1)])]);
        let beside = log(Some(100.0), vec![line(None, 0.999, &[(6, 2)]), line(Some("up"), 0.0, &[(9, 4)])]);
        let after = log(Some(110.0), vec![line(None, 0.0, &[(7, 1)])]);
        let merged = merge(&[first.clone(), beside, after.clone()], Align::Clock).unwrap();
        assert_eq!(shape(&merged), [(None, 0.0, 1), (None, 1.0, 3), (None, 10.0, 1), (Some("up"), 0.0, 4)]);
        assert_eq!(merged.start_unix_s, Some(100.0));
        let together = merge(&[first.clone(), after], Align::Start).unwrap();
        assert_eq!(shape(&together), [(None, 0.0, 2), (None, 1.0, 1)]);
        let nameless = log(None, vec![line(None, 0.0, &[(7, 1)])]);
        assert!(merge(&[first, nameless.clone()], Align::Clock).unwrap_err().contains("--align start"));
        assert_eq!(shape(&merge(&[nameless], Align::Clock).unwrap()), [(None, 0.0, 1)]);
    }

    #[test]
    fn logs_that_are_too_large_together_are_not_merged() {
        let one = log(None, vec![line(None, 0.0, &[(5, 1), (6, 1)]), line(None, 1.0, &[(5, 1)])]);
        let logs = [one.clone(), one];
        assert!(within(&logs, 6).is_ok());
        assert!(within(&logs, 5).unwrap_err().contains("more than 5 counts together; merge fewer"));
    }

    #[test]
    fn a_part_is_subtracted_and_what_is_no_part_is_refused() {
        let whole = line(None, 0.0, &[(5, 10), (70_000, 3)]).counts;
        let part = line(None, 0.0, &[(5, 4), (70_010, 3)]).counts;
        assert_eq!(subtract(&whole, &part).unwrap().iter().collect::<Vec<_>>(), [(5, 6)]);
        let other = line(None, 0.0, &[(5, 11), (90_000, 1)]).counts;
        assert!(subtract(&whole, &other).unwrap_err().starts_with("2 of"));
    }

    #[test]
    fn a_log_is_cut_by_time_and_tag() {
        let lines = vec![line(None, 0.0, &[]), line(None, 1.0, &[]), line(Some("up"), 1.0, &[])];
        let all = log(None, lines);
        let cut_to = |from, until, tag| {
            let mut log = all.clone();
            cut(&mut log, from, until, tag);
            log.lines.len()
        };
        assert_eq!(cut_to(0.0, 1.0, None), 1);
        assert_eq!(cut_to(1.0, f64::INFINITY, None), 2);
        assert_eq!((cut_to(0.0, 9.0, Some("up")), cut_to(0.0, 9.0, Some("untagged"))), (1, 2));
    }

    #[test]
    fn what_was_lost_goes_with_whole_logs_and_is_not_known_of_parts() {
        let run = |start| Log {
            fate: Some(lossy()),
            ..log(Some(start), vec![line(None, 0.0, &[]), line(None, 1.0, &[])])
        };
        let merged = merge(&[run(0.0), run(9.0)], Align::Clock).unwrap();
        assert_eq!((merged.lost(None), merged.notes.len()), (Some(8), 0));
        let nameless = Log { fate: None, ..run(9.0) };
        let merged = merge(&[run(0.0), nameless], Align::Clock).unwrap();
        assert!(
            merged.fate.is_none() && merged.notes[0].contains("not all of the logs say"),
            "{:?}",
            merged.notes
        );
        let cut_to = |until, tag| {
            let mut log = run(0.0);
            cut(&mut log, 0.0, until, tag);
            (log.lost(None), log.notes.len())
        };
        assert_eq!((cut_to(1.0, None), cut_to(2.0, Some("untagged"))), ((None, 1), (Some(4), 0)));
    }
}
