//! `--check-config`: what would run, in the words of the configuration file, and nothing is bound.

use std::fmt::{self, Display, Formatter};
use std::num::NonZeroU32;

use crate::admin::ADDRESS_DEFAULT;
use crate::config::{Config, TlsAlternate};
use crate::server::ChannelNumbers;

/// A configuration as people read it: TOML, but for users, of whom only the names are shown.
pub struct Effective<'a>(pub &'a Config);

impl Display for Effective<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let config = self.0;
        writeln!(f, "listen = {:?}", texts(&config.listen))?;
        writeln!(f, "listen-tcp = {:?}", texts(&config.streams.tcp))?;
        writeln!(f, "listen-tls = {:?}", texts(&config.streams.tls))?;
        if let Some(files) = &config.streams.tls_files {
            writeln!(f, "tls-certificate = {:?}", files.certificate)?;
            writeln!(f, "tls-key = {:?}", files.key)?;
        }
        let limits = config.streams.limits;
        writeln!(f, "tcp-connections-max = {}", limits.connections_max)?;
        writeln!(f, "tcp-connections-per-address-max = {}", limits.per_address_max)?;
        writeln!(f, "tcp-queue-kib = {}", limits.queue_bytes / 1024)?;
        writeln!(f, "realm = {:?}", config.realm.0)?;
        let names: Vec<&str> = config.users.iter().map(|user| user.name.as_str()).collect();
        writeln!(f, "# {} users: {names:?}", names.len())?;
        writeln!(f, "# {} shared secrets", config.secrets.len())?;
        let validity = humantime::format_duration(config.secret_validity_max);
        writeln!(f, "secret-validity-max = \"{validity}\"")?;
        writeln!(f, "relay-ports = \"{}-{}\"", config.relay_ports.start(), config.relay_ports.end())?;
        let port_sharing = if config.port_sharing { "auto" } else { "off" };
        writeln!(f, "port-sharing = {port_sharing:?}")?;
        writeln!(f, "relay-address = {:?}", texts(&config.relay_addresses))?;
        let external = config.external.iter().map(|external| match external.local {
            Some(local) => format!("{}/{local}", external.public),
            None => external.public.to_string(),
        });
        writeln!(f, "external-ip = {:?}", external.collect::<Vec<_>>())?;
        writeln!(f, "allow-peer = {:?}", texts(&config.allow_peers))?;
        writeln!(f, "deny-peer = {:?}", texts(&config.deny_peers))?;
        writeln!(f, "deny-peer-ports = \"{}\"", config.deny_peer_ports)?;
        let numbers = match config.channel_numbers {
            ChannelNumbers::Rfc8656 => "rfc8656",
            ChannelNumbers::Rfc5766 => "rfc5766",
        };
        writeln!(f, "channel-numbers = {numbers:?}")?;
        writeln!(f, "allocations-max = {}", config.allocations_max)?;
        writeln!(f, "allocations-per-user-max = {}", config.allocations_per_user_max)?;
        let limits = &config.limits;
        writeln!(f, "allocations-per-source-max = {}", limits.allocations_per_source_max)?;
        writeln!(f, "permissions-max = {}", limits.permissions_max)?;
        writeln!(f, "channels-max = {}", limits.channels_max)?;
        writeln!(f, "new-peers-per-user = {}", limits.new_peers_per_s.map_or(0, NonZeroU32::get))?;
        for (name, rate) in [("allocation-rate", &limits.allocation_rate), ("user-rate", &limits.user_rate)] {
            match rate.is_set() {
                true => writeln!(f, "{name} = \"{rate}\"")?,
                false => writeln!(f, "# {name}: no limit")?,
            }
        }
        writeln!(f, "unpaid-replies = {}", limits.unpaid_replies_per_s)?;
        writeln!(f, "strict-reflection = {}", limits.strict_reflection)?;
        writeln!(f, "hairpin = {:?}", if config.hairpin { "on" } else { "off" })?;
        writeln!(f, "drain-timeout = {}", config.drain_timeout.as_secs())?;
        writeln!(f, "alternate-server = {:?}", texts(config.alternates.iter()))?;
        let name = config.alternates.tls_name().map(str::to_owned);
        let tls = config.alternates.tls().map(|address| TlsAlternate { address, name: name.clone() });
        writeln!(f, "alternate-server-tls = {:?}", texts(tls))?;
        match config.workers {
            Some(workers) => writeln!(f, "workers = {workers}")?,
            None => writeln!(f, "# workers: one for each core")?,
        }
        match config.admin {
            Some(admin) => writeln!(f, "admin = \"{admin}\""),
            // Unlike one that is asked for, it need not be had.
            None => writeln!(f, "# admin = \"{ADDRESS_DEFAULT}\", unless somebody else has it"),
        }
    }
}

fn texts(values: impl IntoIterator<Item = impl Display>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::Parser as _;

    use super::*;
    use crate::config::Args;

    fn load(flags: &[&str]) -> Config {
        let flags = std::iter::once("towpath-relay").chain(flags.iter().copied());
        Config::load(&Args::try_parse_from(flags).unwrap()).unwrap()
    }

    #[test]
    fn what_is_printed_is_a_file_that_means_the_same_and_shows_no_password() {
        let flags = "--listen 127.0.0.1:1 [::1]:2 --realm example.org --relay-ports 5-6 --relay-address 192.0.2.1 \
                     --external-ip 198.51.100.1/192.0.2.1 2001:db8::1 --allow-peer 10.0.0.0/8 --channel-numbers rfc8656 \
                     --allocations-max 7 --allocations-per-user-max 8 --drain-timeout 9 --hairpin off --port-sharing off \
                     --listen-tcp 127.0.0.1:3 --listen-tls [::1]:4 --tls-certificate c.pem --tls-key k.pem \
                     --tcp-connections-max 9 --tcp-connections-per-address-max 3 --tcp-queue-kib 200 \
                     --secret-validity-max 90min --deny-peer 203.0.114.0/24 --deny-peer-ports 1-5,7 --permissions-max 5 \
                     --allocations-per-source-max 6 --channels-max 4 --new-peers-per-user 3 --user-rate 10mbit,5kpps \
                     --allocation-rate 2.5gbit --unpaid-replies 2 --strict-reflection --workers 3 \
                     --alternate-server 192.0.2.9:1 [2001:db8::9]:2 \
                     --alternate-server-tls 192.0.2.9:3/r.example [2001:db8::9]:4/r.example --user alice:hunter2";
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let shown = [&flags[..], &["--admin", "[::1]:5"]].concat();
        let hidden = [&flags[..], &["--admin", "off"]].concat();
        for flags in [&flags[..], &shown, &hidden, &[]] {
            let printed = Effective(&load(flags)).to_string();
            assert!(!printed.contains("hunter2"));
            assert_eq!(printed.contains("# 1 users: [\"alice\"]"), !flags.is_empty(), "{printed}");
            for (flag, line) in [("off", "\nadmin = \"off\"\n"), ("[::1]:5", "\nadmin = \"[::1]:5\"\n")] {
                assert_eq!(printed.contains(line), flags.ends_with(&["--admin", flag]), "{printed}");
            }
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(printed.as_bytes()).unwrap();
            let mut again = vec!["--config", file.path().to_str().unwrap()];
            if !flags.is_empty() {
                again.extend(["--user", "alice:other"]);
            }
            assert_eq!(Effective(&load(&again)).to_string(), printed);
        }
    }
}
