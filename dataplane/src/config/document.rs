//! The same configuration as TOML: `[interface]`, `[[peer]]`, the keys with hyphens, lists where several values may be.
//!
//! ```toml
//! [interface]
//! private-key-file = "wg0.key"
//! address = ["10.0.0.1/24", "fd00::1/64"]
//! relay = "turn:relay.example:3478"
//!
//! [[peer]]
//! public-key = "…"
//! allowed-ips = ["10.0.0.2/32"]
//! endpoint = "192.0.2.1:51820"
//! ```
//!
//! Every value goes through what reads wg-quick's format, so that both know the same keys and refuse the same mistakes.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroize as _;

use super::parse::{self, Interface, OURS, Peer, Sections};
use super::value::shown;
use super::{Config, ConfigError};

/// What is wrong, and where in the text.
type Problem = (Range<usize>, String);

/// Reads the text of `file`; files it names are looked for beside it.
pub(super) fn parse(file: &Path, text: &str, warnings: &mut Vec<String>) -> Result<Config, ConfigError> {
    let last = text.lines().count().max(1);
    let line = |span: Range<usize>| {
        let before = text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
        (before + 1).min(last)
    };
    let at = |line, problem| ConfigError { file: file.into(), line, problem };
    let mut document = DeTable::parse(text).map_err(|error| {
        // Its own display shows the line, which may hold a key.
        at(error.span().map(line), format!("this is not TOML: {}", error.message()))
    })?;
    let sections = sections(document.get_ref(), &line);
    wipe(document.get_mut());
    let sections = sections.map_err(|(span, problem)| at(Some(line(span)), problem))?;
    parse::finish(file, sections, warnings)
}

/// Wipes what the document does not borrow from the text: values with escapes in them, of which one may be a key.
fn wipe(table: &mut DeTable<'_>) {
    fn wipe_value(value: &mut DeValue<'_>) {
        match value {
            DeValue::String(Cow::Owned(text)) => text.zeroize(),
            DeValue::Array(values) => values.iter_mut().for_each(|value| wipe_value(value.get_mut())),
            DeValue::Table(table) => wipe(table),
            _ => {}
        }
    }
    for (_, value) in table.iter_mut() {
        wipe_value(value.get_mut());
    }
}

fn sections(document: &DeTable<'_>, line: &impl Fn(Range<usize>) -> usize) -> Result<Sections, Problem> {
    let mut sections = Sections::default();
    for (key, value) in document {
        match (bare(key.get_ref()).as_str(), value.get_ref()) {
            ("interface", DeValue::Table(table)) => {
                let mut interface = Interface::on(line(key.span()));
                each_value(table, line, |key, value, line| {
                    if OURS.contains(&key) {
                        return interface.set_ours(key, value, line);
                    }
                    if key == "saveconfig" && value == "true" {
                        return Err(
                            "only a file in wg-quick's format can be written anew; leave it out".to_owned()
                        );
                    }
                    interface.set(key, value, line)
                })?;
                sections.interface = Some(interface);
            }
            ("peer", DeValue::Array(peers)) => {
                for peer in peers.iter() {
                    let DeValue::Table(table) = peer.get_ref() else {
                        return Err((peer.span(), "a peer is a section; write [[peer]]".to_owned()));
                    };
                    let mut section = Peer::on(line(peer.span()));
                    each_value(table, line, |key, value, line| match key {
                        "path" => section.set_ours(key, value, line),
                        _ => section.set(key, value, line),
                    })?;
                    sections.peers.push(section);
                }
            }
            ("peer", _) => return Err((key.span(), "there may be several peers; write [[peer]]".to_owned())),
            _ => {
                return Err((
                    key.span(),
                    "there is no such section; write [interface] or [[peer]]".to_owned(),
                ));
            }
        }
    }
    Ok(sections)
}

/// Hands over every value of a section as text, those of a list one by one, in the order of the file.
fn each_value(
    table: &DeTable<'_>,
    line: &impl Fn(Range<usize>) -> usize,
    mut set: impl FnMut(&str, &str, usize) -> Result<(), String>,
) -> Result<(), Problem> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let name = bare(key.get_ref());
        let values: Vec<&Spanned<DeValue<'_>>> = match value.get_ref() {
            DeValue::Array(values) => values.iter().collect(),
            _ => vec![value],
        };
        for value in values {
            // A text is not copied: it may be a key.
            let text = match value.get_ref() {
                DeValue::String(text) => Cow::Borrowed(&**text),
                DeValue::Integer(number) => integer(number.as_str(), number.radix()).into(),
                DeValue::Boolean(truth) => truth.to_string().into(),
                _ => {
                    let problem =
                        format!("{} is a text, a whole number, or true or false", shown(key.get_ref()));
                    return Err((value.span(), problem));
                }
            };
            set(&name, &text, line(value.span())).map_err(|problem| (value.span(), problem))?;
        }
    }
    Ok(())
}

/// A number as wg-quick's format has it: decimal, or hexadecimal for a mark.
fn integer(digits: &str, radix: u32) -> String {
    match i64::from_str_radix(&digits.replace('_', ""), radix) {
        Ok(number) => number.to_string(),
        // Too large for anything; what refuses it shows it.
        Err(_) => digits.to_owned(),
    }
}

/// A key as it is compared: `private-key`, `PrivateKey` and `private_key` are one.
pub(super) fn bare(key: &str) -> String {
    key.chars().filter(|letter| !matches!(letter, '-' | '_')).collect::<String>().to_ascii_lowercase()
}
