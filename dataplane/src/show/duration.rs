//! Durations and sizes as people read them.

/// As `wg` writes one: `1 day, 2 hours, 3 seconds`; nothing of less than a second.
pub(super) fn long(seconds: u64) -> String {
    let parts = [
        (seconds / 31_536_000, "year"),
        (seconds / 86_400 % 365, "day"),
        (seconds / 3_600 % 24, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
    ];
    let named = parts.into_iter().filter(|(count, _)| *count > 0);
    let named: Vec<_> = named.map(|(count, unit)| counted(count, unit)).collect();
    named.join(", ")
}

/// A number of something: `1 peer`, `2 peers`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// How long ago something was.
pub(super) fn ago(seconds: u64) -> String {
    if seconds == 0 { "Now".to_owned() } else { format!("{} ago", long(seconds)) }
}

/// In five characters at most: `59s`, `3m07`, `23h59`, `364d`.
pub(super) fn short(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in powers of 1,024, as `wg` writes them.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|&(size, _)| bytes >= size) {
        Some((size, unit)) => format!("{:.2} {unit}", bytes as f64 / size as f64),
        None => format!("{bytes} B"),
    }
}

/// Nanoseconds with three digits: `940 ns`, `12.3 µs`, `1.20 ms`, `2.10 s`.
pub(super) fn nanoseconds(ns: u64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "µs")];
    let value = ns as f64;
    let Some((size, unit)) = units.into_iter().find(|&(size, _)| value >= size) else {
        return format!("{ns} ns");
    };
    let scaled = value / size;
    let digits = if scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_wg_writes_them() {
        for (seconds, expected) in [
            (0, "Now"),
            (1, "1 second ago"),
            (125, "2 minutes, 5 seconds ago"),
            (3_600, "1 hour ago"),
            (90_061, "1 day, 1 hour, 1 minute, 1 second ago"),
            (2 * 31_536_000 + 86_400, "2 years, 1 day ago"),
        ] {
            assert_eq!(ago(seconds), expected);
        }
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (187, "3m07"), (86_399, "23h59"), (86_400, "1d"), (86_400 * 400, "400d")]
        {
            assert_eq!(short(seconds), expected);
        }
    }

    #[test]
    fn sizes_and_latencies_have_three_digits_and_a_unit() {
        for (count, expected) in
            [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.00 KiB"), (38_333, "37.43 KiB"), (3 << 40, "3.00 TiB")]
        {
            assert_eq!(bytes(count), expected);
        }
        for (ns, expected) in [
            (940, "940 ns"),
            (1_000, "1.00 µs"),
            (12_345, "12.3 µs"),
            (123_456, "123 µs"),
            (1_204_000, "1.20 ms"),
            (2_100_000_000, "2.10 s"),
        ] {
            assert_eq!(nanoseconds(ns), expected);
        }
    }
}
