//! The part of `[Interface]` that is about the host: routing table, mark, name servers and hooks, in wg-quick's words.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::value::shown;

/// Where the prefixes in AllowedIPs are routed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// In the main table; a default route in a table of its own, with rules that leave out what the tunnel itself sends.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// In this table, a default route too; rules that lead there are the user's.
    Number(u32),
}

/// What `[Interface]` says about the host.
#[derive(Clone, Debug, Default)]
pub struct HostSection {
    /// `Table`.
    pub table: Table,
    /// `FwMark`: the mark of what the tunnel sends; 0 for none.
    pub firewall_mark: u32,
    /// The addresses among `DNS`.
    pub name_servers: Vec<IpAddr>,
    /// The names among `DNS`: domains in which short names are looked for.
    pub search_domains: Vec<String>,
    /// Shell commands, and when they are run.
    pub hooks: Hooks,
    /// `SaveConfig`: at the end, the file is written anew from how the tunnel is set then.
    pub save_config: bool,
}

/// Shell commands, in the order of the file. `%i` in them stands for the interface.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Before the interface is made.
    pub pre_up: Vec<String>,
    /// When packets can pass.
    pub post_up: Vec<String>,
    /// While packets still pass.
    pub pre_down: Vec<String>,
    /// When the interface is gone.
    pub post_down: Vec<String>,
}

impl Hooks {
    /// Whether there are any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        [&self.pre_up, &self.post_up, &self.pre_down, &self.post_down].into_iter().all(Vec::is_empty)
    }
}

/// [`HostSection`] while it is read: what may be given once, and on which line it was.
#[derive(Default)]
pub(super) struct Reading {
    section: HostSection,
    table_line: Option<usize>,
    mark_line: Option<usize>,
    save_line: Option<usize>,
}

impl Reading {
    /// Takes a line; `None` when its key is none of these.
    pub(super) fn set(&mut self, key: &str, value: &str, line: usize) -> Option<Result<(), String>> {
        let section = &mut self.section;
        let hooks = &mut section.hooks;
        Some(match key.to_ascii_lowercase().as_str() {
            "table" => once(&mut self.table_line, "Table", line)
                .and_then(|()| table(value))
                .map(|table| section.table = table),
            "fwmark" => once(&mut self.mark_line, "FwMark", line)
                .and_then(|()| mark(value))
                .map(|mark| section.firewall_mark = mark),
            "saveconfig" => once(&mut self.save_line, "SaveConfig", line)
                .and_then(|()| truth(value))
                .map(|save| section.save_config = save),
            "dns" => dns(value, section),
            "preup" => hook(&mut hooks.pre_up, value),
            "postup" => hook(&mut hooks.post_up, value),
            "predown" => hook(&mut hooks.pre_down, value),
            "postdown" => hook(&mut hooks.post_down, value),
            _ => return None,
        })
    }

    /// Whether there is a command that may set what the file does not say.
    pub(super) fn has_post_up(&self) -> bool {
        !self.section.hooks.post_up.is_empty()
    }

    /// What was read.
    pub(super) fn finish(self) -> HostSection {
        self.section
    }
}

fn once(first: &mut Option<usize>, key: &str, line: usize) -> Result<(), String> {
    match first.replace(line) {
        None => Ok(()),
        Some(first) => Err(format!("{key} was given on line {first} already; remove one of the two")),
    }
}

fn hook(hooks: &mut Vec<String>, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("the command is missing behind the equals sign".to_owned());
    }
    hooks.push(value.to_owned());
    Ok(())
}

fn truth(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{} is neither true nor false; write one of the two", shown(value))),
    }
}

/// A mark as `wg` reads it: `off`, decimal or hexadecimal.
fn mark(value: &str) -> Result<u32, String> {
    if value == "off" {
        return Ok(0);
    }
    number(value).ok_or_else(|| {
        format!("{} is not a mark; write off or a number of 32 bits, for example 0xca6c", shown(value))
    })
}

fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

/// A table as `ip route` takes it: a number, or a name of which its files know the number.
fn table(value: &str) -> Result<Table, String> {
    let wanted = |problem: &str| {
        format!("{} {problem}; write auto, off, or the number of a table, for example 51820", shown(value))
    };
    match value.to_ascii_lowercase().as_str() {
        "auto" => Ok(Table::Auto),
        "off" => Ok(Table::Off),
        "default" => Ok(Table::Number(253)),
        "main" => Ok(Table::Number(254)),
        "local" => Ok(Table::Number(255)),
        _ => match number(value).or_else(|| named_table(value)) {
            Some(0) => Err(wanted("is the number of no table")),
            Some(number) => Ok(Table::Number(number)),
            None => Err(wanted("is no table that /etc/iproute2/rt_tables names")),
        },
    }
}

/// The number that one of iproute2's files gives a name, the administrator's first.
fn named_table(name: &str) -> Option<u32> {
    ["/etc/iproute2", "/usr/share/iproute2", "/usr/lib/iproute2"].into_iter().map(Path::new).find_map(
        |folder| {
            let more = fs::read_dir(folder.join("rt_tables.d")).into_iter().flatten().filter_map(Result::ok);
            let more = more
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|end| end == "conf"));
            std::iter::once(folder.join("rt_tables"))
                .chain(more)
                .find_map(|file| number_in(&fs::read_to_string(file).ok()?, name))
        },
    )
}

/// The number of a name in lines of `NUMBER NAME`.
fn number_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let number = number(words.next()?)?;
        (words.next()? == name).then_some(number)
    })
}

/// Addresses and names between commas or spaces.
fn dns(value: &str, section: &mut HostSection) -> Result<(), String> {
    let words = value.split([',', ' ', '\t']).filter(|word| !word.is_empty());
    for word in words {
        if let Ok(address) = word.parse() {
            section.name_servers.push(address);
        } else if word.contains(':') || word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(format!(
                "{} is not the address of a name server; write for example DNS = 10.9.0.2, without a port",
                shown(word)
            ));
        } else if super::value::is_host_name(word) {
            section.search_domains.push(word.to_owned());
        } else {
            return Err(format!(
                "{} is neither the address of a name server nor a domain; write them without quotation marks, for example \
                 DNS = 10.9.0.2, example.org",
                shown(word)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_are_read_as_iproute2_has_them() {
        let text = "# reserved\n255\tlocal\n0x10 hexadecimal # sixteen\n\n300 blue\nbroken\n";
        assert_eq!(number_in(text, "blue"), Some(300));
        assert_eq!(number_in(text, "hexadecimal"), Some(16));
        for absent in ["reserved", "sixteen", "broken", ""] {
            assert_eq!(number_in(text, absent), None, "{absent}");
        }
        assert_eq!(table("MAIN"), Ok(Table::Number(254)));
        assert_eq!(table("4294967295"), Ok(Table::Number(u32::MAX)));
        for bad in ["0", "-1", "4294967296", "no-such-table"] {
            assert!(table(bad).is_err(), "{bad}");
        }
    }
}
