//! Name servers of the interface: told to resolvconf(8), or to systemd-resolved by resolvectl(1).

use std::fmt::Write as _;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::{Host, Step, program};
use crate::config::HostSection;
use crate::sys::signal::StopSignals;

/// Who knows the name servers of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolver {
    /// openresolv, Debian's resolvconf, or what systemd-resolved has under this name.
    Resolvconf,
    /// systemd-resolved itself.
    Resolvectl,
}

impl Resolver {
    fn name(self) -> &'static str {
        match self {
            Self::Resolvconf => "resolvconf",
            Self::Resolvectl => "resolvectl",
        }
    }

    /// The first that there is; wg-quick knows resolvconf only.
    fn find() -> Option<Self> {
        [Self::Resolvconf, Self::Resolvectl].into_iter().find(|it| program::find(it.name()).is_some())
    }
}

impl Host {
    /// Makes the name servers of the configuration those of this host.
    pub(super) fn set_names(&mut self) -> io::Result<()> {
        if self.section.name_servers.is_empty() {
            if !self.section.search_domains.is_empty() {
                tracing::warn!(
                    "DNS names domains only: without the address of a name server they are not used"
                );
            }
            return Ok(());
        }
        let resolver = Resolver::find().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "DNS needs resolvconf or resolvectl: apt-get install openresolv, or systemd-resolved, or remove the line",
            )
        })?;
        let record = match resolver {
            Resolver::Resolvconf => format!("{}{}", record_prefix(), self.interface),
            Resolver::Resolvectl => self.interface.clone(),
        };
        self.journal.note(Step::Names { program: resolver, record: record.clone() })?;
        set(resolver, &record, &self.section, &self.signals)
    }
}

/// Every question goes to these servers, whatever others there are.
fn set(resolver: Resolver, record: &str, section: &HostSection, signals: &StopSignals) -> io::Result<()> {
    let servers: Vec<String> = section.name_servers.iter().map(ToString::to_string).collect();
    match resolver {
        Resolver::Resolvconf => {
            let mut text = String::new();
            for server in &servers {
                // Writing to a string does not fail.
                let _ = writeln!(text, "nameserver {server}");
            }
            if !section.search_domains.is_empty() {
                let _ = writeln!(text, "search {}", section.search_domains.join(" "));
            }
            run(resolver, &["-a", record, "-m", "0", "-x"], &text, signals)
        }
        Resolver::Resolvectl => {
            let words = |verb, values: &[String]| -> Vec<String> {
                [verb, record].into_iter().map(str::to_owned).chain(values.iter().cloned()).collect()
            };
            let domains: Vec<String> =
                std::iter::once("~.".to_owned()).chain(section.search_domains.iter().cloned()).collect();
            for command in [words("dns", &servers), words("domain", &domains)] {
                run(resolver, &command.iter().map(String::as_str).collect::<Vec<_>>(), "", signals)?;
            }
            Ok(())
        }
    }
}

/// Takes the name servers back.
pub(super) fn unset(resolver: Resolver, record: &str, signals: &StopSignals) -> io::Result<()> {
    match resolver {
        Resolver::Resolvconf => run(resolver, &["-d", record, "-f"], "", signals),
        // Of an interface that is gone it knows nothing any more.
        Resolver::Resolvectl if !super::is_there(record) => Ok(()),
        Resolver::Resolvectl => run(resolver, &["revert", record], "", signals),
    }
}

fn run(resolver: Resolver, arguments: &[&str], input: &str, signals: &StopSignals) -> io::Result<()> {
    let path = program::find(resolver.name()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{} is not there any more", resolver.name()))
    })?;
    program::run(&path, arguments, input, signals)
}

/// Debian's resolvconf orders records by the beginning of their names; one that its file names comes before all others.
fn record_prefix() -> String {
    let order = fs::read_to_string("/etc/resolvconf/interface-order").unwrap_or_default();
    prefix_in(&order).map_or_else(String::new, |prefix| format!("{prefix}."))
}

/// The first line of the form `tun*`.
fn prefix_in(order: &str) -> Option<&str> {
    let is_name = |name: &&str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    order.lines().filter_map(|line| line.trim().strip_suffix('*')).find(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_goes_where_debians_resolvconf_looks_first() {
        let order = "# interface-order(5)\nlo.inet6\nlo.inet\nlo.@(dnsmasq|pdnsd)\ntun*\ntap*\nhso*\n";
        assert_eq!(prefix_in(order), Some("tun"));
        assert_eq!(prefix_in("@(br)*([^.]).inet6\n*\n"), None);
    }
}
