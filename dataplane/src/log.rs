//! Log output: one line per event on standard error, as text for people or as JSON for programs.
//!
//! Both formats start with time (RFC 3339, UTC, nanoseconds), severity and message, in this order.
//! `jq -r '"\(.time) \(.severity) \(.message)"'` turns the JSON form into the start of the text form.
//! The fields of an event are top-level members; spans are not printed.

mod output;

use std::fmt;

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub use self::output::lines_lost;

/// How log lines look (`--log-format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people: time, severity, message, fields
    #[default]
    Text,
    /// One JSON object a line with `time`, `severity`, `message`, `target` and the event's fields
    Json,
}

/// Sends log events to standard error from now on. `RUST_LOG` decides what is logged; without it, events up to
/// `default_level`. A `RUST_LOG` that cannot be read is reported in the log and `default_level` is used.
/// What cannot be written is lost, and counted by [`lines_lost`]. A second call changes nothing.
pub fn init(format: LogFormat, default_level: LevelFilter) {
    let variable = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, problem) = filter(&variable, default_level);
    let subscriber = tracing_subscriber::fmt()
        .with_writer(output::standard_error)
        // It would report them on standard error too, in a way that panics when that cannot be written.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .event_format(Line { format })
        .finish();
    // A test or an embedding program may have set a subscriber already: theirs stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    if let Some(problem) = problem {
        tracing::warn!(problem, "RUST_LOG is ignored; write for example RUST_LOG=info,dataplane=debug");
    }
}

/// The filter that `variable` (the content of RUST_LOG) asks for, and what was wrong with it.
fn filter(variable: &str, default_level: LevelFilter) -> (EnvFilter, Option<String>) {
    let default = || EnvFilter::new(default_level.to_string());
    if variable.trim().is_empty() {
        return (default(), None);
    }
    match EnvFilter::try_new(variable) {
        Ok(filter) => (filter, None),
        Err(error) => (default(), Some(error.to_string())),
    }
}

/// Formats one event as one line.
struct Line {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = match self.format {
            LogFormat::Text => text_line(Timestamp::now(), event.metadata(), &fields),
            LogFormat::Json => json_line(Timestamp::now(), event.metadata(), &fields),
        };
        writer.write_str(&line)
    }
}

/// `TIME SEVERITY MESSAGE key=value…`; control characters are escaped, so that no value can forge a line.
fn text_line(time: Timestamp, metadata: &Metadata<'_>, fields: &Fields) -> String {
    let mut line = format!("{time:.9} {:5} ", severity(metadata.level()));
    push_printable(&mut line, &fields.message);
    for (name, value) in &fields.others {
        if let Value::Object(figures) = value {
            push_figures(&mut line, "", figures);
            continue;
        }
        line.push(' ');
        line.push_str(name);
        line.push('=');
        match value {
            Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => {
                push_printable(&mut line, text);
            }
            // A JSON string escapes C0 control characters; DEL and C1 are left to `push_printable`.
            other => push_printable(&mut line, &other.to_string()),
        }
    }
    line.push('\n');
    line
}

/// ` name=value` for each figure that is not 0, and for those that are looked for first; ` outer.inner=value` of an object in it.
fn push_figures(line: &mut String, outer: &str, figures: &serde_json::Map<String, Value>) {
    let first = FIRST.iter().filter_map(|name| figures.get_key_value(*name));
    let others = figures.iter().filter(|(name, value)| {
        !FIRST.contains(&name.as_str()) && !value.is_null() && value.as_f64() != Some(0.0)
    });
    for (name, value) in first.chain(others) {
        match value {
            Value::Object(inner) => push_figures(line, &format!("{outer}{name}."), inner),
            Value::Number(number) if number.is_f64() => {
                line.push_str(&format!(" {outer}{name}={:.2}", number.as_f64().unwrap_or_default()));
            }
            other => push_printable(line, &format!(" {outer}{name}={other}")),
        }
    }
}

fn push_printable(line: &mut String, text: &str) {
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
}

fn json_line(time: Timestamp, metadata: &Metadata<'_>, fields: &Fields) -> String {
    // Written member by member because the order is part of the format; a JSON map would sort them.
    let mut line = format!(
        r#"{{"time":"{time:.9}","severity":"{}","message":{},"target":{}"#,
        severity(metadata.level()),
        Value::from(fields.message.as_str()),
        Value::from(metadata.target()),
    );
    for (name, value) in &fields.others {
        line.push_str(&format!(",{}:{value}", Value::from(name.as_str())));
    }
    line.push_str("}\n");
    line
}

fn severity(level: &Level) -> &'static str {
    match *level {
        Level::TRACE => "TRACE",
        Level::DEBUG => "DEBUG",
        Level::INFO => "INFO",
        Level::WARN => "WARN",
        Level::ERROR => "ERROR",
    }
}

/// What comes first of an object in a line for people, and is told even when it is 0.
const FIRST: [&str; 3] = ["offered", "sent", "unexplained"];

/// The field that is an object. `tracing` has no objects among its values, so that it comes as text.
const OBJECT: &str = "figures";

/// An event's message and its other fields in the order in which they were written.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        let name = field.name();
        if name == "message" {
            self.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            return;
        }
        // By name: what others say in the text of a field must not change its type.
        let value = match value {
            Value::String(text) if name == OBJECT => {
                serde_json::from_str(&text).map_or(Value::String(text), Value::Object)
            }
            other => other,
        };
        // A field must not shadow a member every line has.
        let reserved = matches!(name, "time" | "severity" | "target");
        let name = if reserved { format!("field_{name}") } else { name.to_owned() };
        self.others.push((name, value));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities and no NaN: those become text.
        let value = if value.is_finite() { Value::from(value) } else { Value::from(value.to_string()) };
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, Value::from(value.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::from(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn captured(format: LogFormat, filter: EnvFilter, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_env_filter(filter)
            .event_format(Line { format })
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = sink.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn json_lines_have_the_promised_members_and_the_fields_beside_them() {
        let text = captured(LogFormat::Json, EnvFilter::new("trace"), || {
            tracing::warn!(
                peers = 3_u64,
                loss = f64::NAN,
                time = "mine",
                name = %"wg \"0\"",
                "two\nlines"
            );
            tracing::trace!("small");
        });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["severity"], "WARN");
        assert_eq!(lines[0]["message"], "two\nlines");
        assert_eq!(lines[0]["target"], "dataplane::log::tests");
        assert_eq!(lines[0]["peers"], 3);
        assert_eq!(lines[0]["loss"], "NaN");
        assert_eq!(lines[0]["field_time"], "mine");
        assert_eq!(lines[0]["name"], "wg \"0\"");
        assert_eq!(lines[1]["severity"], "TRACE");
        assert!(text.starts_with(r#"{"time":""#), "{text}");
    }

    #[test]
    fn figures_are_an_object_and_other_fields_are_not() {
        let log = || {
            let figures = r#"{"drops":{"busy":2,"replay":0},"each":1.3333,"enters":0,"offered":10,"sent":8,"unexplained":0}"#;
            tracing::info!(%figures, reason = %r#"{"a":1}"#, "ledger");
            tracing::info!(figures = "{", "broken");
        };
        let text = captured(LogFormat::Json, EnvFilter::new("info"), log);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines[0]["figures"]["drops"]["busy"], 2);
        assert_eq!(lines[0]["reason"], r#"{"a":1}"#);
        assert_eq!(lines[1]["figures"], "{");

        let text = captured(LogFormat::Text, EnvFilter::new("info"), log);
        let expected = r#"ledger offered=10 sent=8 unexplained=0 drops.busy=2 each=1.33 reason="{\"a\":1}""#;
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn times_are_rfc_3339_in_utc_with_nanoseconds() {
        let text = captured(LogFormat::Json, EnvFilter::new("info"), || tracing::info!("x"));
        let line: Value = serde_json::from_str(&text).expect("JSON");
        let time = line["time"].as_str().expect("text");
        assert_eq!(time.len(), "2026-01-02T03:04:05.123456789Z".len(), "{time}");
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        let age = Timestamp::now().duration_since(time.parse::<Timestamp>().expect("RFC 3339"));
        assert!((0..60).contains(&age.as_secs()), "{time}");
    }

    #[test]
    fn text_lines_have_the_same_order_and_no_value_can_forge_a_line() {
        let text = captured(LogFormat::Text, EnvFilter::new("info"), || {
            tracing::info!(port = 7_u16, who = "a b", raw = %"x\n2026 ERROR\u{9b}", "up\r\nand ready");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let (_, rest) = text.split_once(' ').expect("time");
        assert_eq!(rest, "INFO  up\\r\\nand ready port=7 who=\"a b\" raw=\"x\\n2026 ERROR\\u{9b}\"\n");
    }

    #[test]
    fn rust_log_decides_and_a_broken_one_falls_back() {
        let (by_variable, problem) = filter("debug", LevelFilter::INFO);
        assert_eq!(problem, None);
        assert!(!captured(LogFormat::Text, by_variable, || tracing::debug!("seen")).is_empty());

        let (fallback, problem) = filter("dataplane=loud", LevelFilter::INFO);
        assert!(problem.is_some());
        let text = captured(LogFormat::Text, fallback, || {
            tracing::debug!("hidden");
            tracing::info!("seen");
        });
        assert!(text.contains("seen") && !text.contains("hidden"), "{text}");
    }
}
