//! The TOML file that a translation comes to: the commented example with its settings in place of the example's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::translate::{Note, Translation};

/// The commented example, which has every setting once.
const EXAMPLE: &str = include_str!("../../packaging/towpath-relay.toml");
/// Longest line of a comment.
const WIDTH: usize = 120;

/// The whole file; `source` is what it was made from.
pub fn document(source: &str, translation: &Translation) -> String {
    let mut out = String::new();
    comment(
        &mut out,
        "",
        &format!("Made from {source} by towpath-relay import. What has no equivalent is at the end."),
    );
    out.push('\n');
    out.push_str(&filled_in(&translation.settings));
    for (title, notes) in [
        ("Options without an equivalent, by their line", &translation.missing),
        ("What differs from coturn", &translation.differences),
        ("Options that need no setting, because it is so in any case", &translation.already),
    ] {
        if !notes.is_empty() {
            let _ = write!(out, "\n# {title}:\n");
        }
        for note in notes {
            comment(&mut out, "- ", &in_words(note));
        }
    }
    out
}

/// A note as people read it.
pub fn in_words(note: &Note) -> String {
    match note.line {
        Some(line) => format!("line {line}: {}", note.text),
        None => note.text.clone(),
    }
}

/// The example with these settings; all others are shown as comments.
fn filled_in(settings: &BTreeMap<&'static str, String>) -> String {
    let mut out = String::new();
    for line in EXAMPLE.lines() {
        let setting = line.strip_prefix('#').unwrap_or(line).split_once(" = ");
        match setting.filter(|(name, _)| is_name(name)) {
            Some((name, value)) => match settings.get(name) {
                Some(ours) => _ = writeln!(out, "{name} = {ours}"),
                None => _ = writeln!(out, "#{name} = {value}"),
            },
            None => _ = writeln!(out, "{line}"),
        }
    }
    out
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// Writes a comment in lines of a readable length.
fn comment(out: &mut String, before: &str, text: &str) {
    let mut line = format!("# {before}");
    let indent = line.len();
    for word in text.split_whitespace() {
        if line.len() > indent && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = format!("#{}", " ".repeat(indent - 1));
        }
        if line.len() > indent {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_in_the_example_once_so_that_none_is_lost() {
        let names = [
            "listen",
            "listen-tcp",
            "listen-tls",
            "tls-certificate",
            "tls-key",
            "realm",
            "user-file",
            "secret-file",
            "relay-ports",
            "relay-address",
            "external-ip",
            "allow-peer",
            "deny-peer",
            "allocations-max",
            "allocations-per-user-max",
            "allocation-rate",
            "admin",
            "workers",
        ];
        let settings: BTreeMap<_, _> = names.into_iter().map(|name| (name, "OURS".to_owned())).collect();
        let filled = filled_in(&settings);
        for name in names {
            assert_eq!(filled.matches(&format!("\n{name} = OURS\n")).count(), 1, "{name}\n{filled}");
        }
        let others = filled.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        assert_eq!(others.count(), names.len());
        assert!(filled_in(&BTreeMap::new()).lines().all(|line| line.is_empty() || line.starts_with('#')));
    }

    #[test]
    fn comments_are_broken_between_words() {
        let mut out = String::new();
        comment(&mut out, "- ", &"word ".repeat(40));
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("# - word word") && lines[0].len() <= WIDTH);
        assert!(lines[1].starts_with("#   word"));
    }
}
