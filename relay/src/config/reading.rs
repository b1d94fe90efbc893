//! The TOML file: what it says, in which lines, and what is wrong with it in words that name the remedy.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::Spanned;
use zeroize::Zeroizing;

use super::{Args, ConfigError, File, alternates, check_relay_addresses};
use crate::secrets::check_private;
use crate::server::WORKERS_MAX;

/// Every setting with a value that makes sense: where one does not, this is shown.
const EXAMPLE: &str = include_str!("../../packaging/towpath-relay.toml");
/// How alike a name has to be to one that there is, to be taken for it: 1 is the same.
const LIKE_MIN: f64 = 0.8;

/// Where the settings of a file are.
#[derive(Debug, Default)]
pub(super) struct Places {
    path: PathBuf,
    /// From one, by name.
    lines: BTreeMap<String, usize>,
}

impl Places {
    /// The names of what the file sets.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.lines.keys().map(String::as_str)
    }

    /// What is wrong with a setting, which came from the flag of that name or else from here. `text` goes on after the name.
    pub(super) fn error(&self, args: &Args, name: &str, text: &str) -> ConfigError {
        match self.lines.get(name).filter(|_| !args.given.contains(name)) {
            Some(&line) => {
                ConfigError::Line { path: self.path.clone(), line, text: format!("{name} {text}") }
            }
            None => ConfigError::Usage(format!("--{name} {text}")),
        }
    }
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<File, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let mut opened = fs::File::open(path).map_err(unreadable)?;
    let mut text = Zeroizing::new(String::new());
    opened.read_to_string(&mut text).map_err(unreadable)?;
    let line_of = |start: usize| {
        text.as_bytes()[..start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
    };
    let at = |start: usize, problem: String| ConfigError::Line {
        path: path.to_owned(),
        line: line_of(start),
        text: problem,
    };
    let start_of = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let settings: Settings = toml::from_str(&text).map_err(|error| {
        let start = start_of(&error);
        at(start, syntax(error.message()))
    })?;
    let mut file: File = toml::from_str(&text).map_err(|error| {
        let start = start_of(&error);
        at(start, problem(error.message(), name_at(&settings, start)))
    })?;
    let lines = settings.keys().map(|name| (name.get_ref().clone(), line_of(name.span().start)));
    file.places = Places { path: path.to_owned(), lines: lines.collect() };
    if let Some(list) = &file.relay_address {
        check_relay_addresses(list.get_ref()).map_err(|problem| at(list.span().start, problem))?;
    }
    if let Some(workers) = &file.workers
        && !(1..=WORKERS_MAX).contains(workers.get_ref())
    {
        return Err(at(
            workers.span().start,
            format!("workers has to be at least 1 and at most {WORKERS_MAX}"),
        ));
    }
    if let Some(list) = &file.alternate_server {
        alternates::check(list.get_ref()).map_err(|problem| at(list.span().start, problem))?;
    }
    if let Some(list) = &file.alternate_server_tls {
        alternates::check_tls(list.get_ref()).map_err(|problem| at(list.span().start, problem))?;
    }
    if !file.user.is_empty() {
        check_private(&opened, path)?;
    }
    Ok(file)
}

/// The settings of a file, whatever they are called and worth.
type Settings = BTreeMap<Spanned<String>, Spanned<toml::Value>>;

/// The name of the setting that this place belongs to.
fn name_at(settings: &Settings, start: usize) -> Option<&str> {
    let here = |(name, value): &(&Spanned<String>, &Spanned<toml::Value>)| {
        name.span().contains(&start) || value.span().contains(&start)
    };
    settings.iter().find(here).map(|(name, _)| name.get_ref().as_str())
}

/// What no TOML is.
fn syntax(message: &str) -> String {
    match message {
        "duplicate key" => {
            "this name was there before: give it once, several values as a list in brackets".to_owned()
        }
        _ => format!(
            "{message}; a line is NAME = VALUE, where texts are in quotes and lists in brackets, and # begins a comment"
        ),
    }
}

/// What serde says, in our words. Without the value, which may be a secret.
fn problem(message: &str, name: Option<&str>) -> String {
    let Some(name) = name else { return message.to_owned() };
    if message.starts_with("unknown field") {
        return unknown(name);
    }
    let like = example(name).map(|line| format!("; for example: {line}")).unwrap_or_default();
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    {
        return format!("{name} has to be {}, and is {}{like}", expectation(expected), kind(found));
    }
    match message.starts_with("invalid") {
        true => format!("{name}: {message}{like}"),
        // In words of this program.
        false => message.to_owned(),
    }
}

/// What serde expects, for people who write files.
fn expectation(expected: &str) -> &str {
    match expected {
        "a sequence" => "a list in brackets",
        "a string" | "path string" | "socket address" | "IP address" | "string or table" => {
            "a text in quotes"
        }
        "a boolean" => "true or false",
        "u32" | "u16" | "u64" => "a number without quotes",
        other => other,
    }
}

/// The kind of a value without the value.
fn kind(found: &str) -> &str {
    match found.split([' ', '`']).next().unwrap_or_default() {
        "string" => "a text",
        "integer" => "a number",
        "floating" => "a number with a fraction",
        "boolean" => "true or false",
        "sequence" => "a list",
        "map" => "a table",
        _ => "something else",
    }
}

/// What to do about a name that no setting has.
fn unknown(name: &str) -> String {
    let known = || EXAMPLE.lines().filter_map(setting).map(|(name, _)| name);
    let likeness = |known: &str| strsim::jaro_winkler(known, &name.to_lowercase().replace('_', "-"));
    let nearest = known().max_by(|left, right| likeness(left).total_cmp(&likeness(right)));
    match nearest.filter(|nearest| likeness(nearest) >= LIKE_MIN) {
        Some(nearest) => format!("there is no setting {name}; {nearest} is the one most like it"),
        None => format!(
            "there is no setting {name}: towpath-relay --help has them all, with -- before each, and some are flags only"
        ),
    }
}

/// The line that shows a setting.
fn example(name: &str) -> Option<String> {
    EXAMPLE
        .lines()
        .filter_map(setting)
        .find(|setting| setting.0 == name)
        .map(|(name, value)| format!("{name} = {value}"))
}

/// Name and value in a line of the example, which may stand behind a comment sign.
fn setting(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix('#').unwrap_or(line).split_once(" = ")?;
    name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-').then_some((name, value))
}
