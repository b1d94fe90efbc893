//! Flags and settings for clients over TCP and TLS.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Args, ConfigError, File, first_of};
use crate::secrets::Secrets;
use crate::stream::tls::{self, Tls, TlsFiles};
use crate::stream::{Limits, QUEUE_BYTES_MIN};

/// Most connections when nothing is said.
const CONNECTIONS_MAX: u32 = 10_000;
/// Most connections of one address when nothing is said: an office behind one address, and no more of one stranger.
const PER_ADDRESS_MAX: u32 = 256;
/// KiB that wait for one client when nothing is said.
const QUEUE_KIB: u32 = 256;
/// The longest message is 64 KiB, so less would not hold two of them.
const QUEUE_KIB_MIN: u32 = 128;
const QUEUE_KIB_MAX: u32 = 16 * 1024;
/// MiB that wait for all clients when nothing is said: with the default of connections, more than the least for each.
const QUEUES_MIB: u32 = 768;

const MIB: usize = 1024 * 1024;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Where clients are served over TCP.
    pub tcp: Vec<SocketAddr>,
    /// Where clients are served over TLS.
    pub tls: Vec<SocketAddr>,
    /// Certificate and key, where they were named; always when there are TLS listeners.
    pub tls_files: Option<TlsFiles>,
    /// What clients may take up.
    pub limits: Limits,
}

impl StreamConfig {
    /// Reads certificate and key, where they were named.
    ///
    /// # Errors
    /// Which file is wrong, and the remedy.
    pub fn load_tls(&self, secrets: &mut Secrets) -> Result<Option<Tls>, ConfigError> {
        self.tls_files.as_ref().map(|files| tls::load(files, secrets)).transpose()
    }

    /// The files that are read again at a reload, as they were named.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.tls_files.iter().flat_map(|files| [files.certificate.clone(), files.key.clone()])
    }

    pub(super) fn merge(args: &Args, file: &File) -> Result<Self, ConfigError> {
        let wrong = |name: &str, text: &str| Err(file.places.error(args, name, text));
        let tcp = first_of(args.listen_tcp.clone(), file.listen_tcp.clone()).unwrap_or_default();
        let tls = first_of(args.listen_tls.clone(), file.listen_tls.clone()).unwrap_or_default();
        let certificate = args.tls_certificate.as_ref().or(file.tls_certificate.as_ref());
        let key = args.tls_key.as_ref().or(file.tls_key.as_ref());
        let tls_files = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                Some(TlsFiles { certificate: certificate.clone(), key: key.clone() })
            }
            (None, None) if tls.is_empty() => None,
            (None, None) => {
                return wrong(
                    "listen-tls",
                    "needs a certificate: add tls-certificate and tls-key, each with a FILE",
                );
            }
            (None, Some(_)) => {
                return wrong("tls-key", "needs the certificate it is for: add tls-certificate FILE");
            }
            (Some(_), None) => {
                return wrong("tls-certificate", "needs the key of the certificate: add tls-key FILE");
            }
        };
        let connections_max = args.tcp_connections_max.or(file.tcp_connections_max);
        let per_address_max = args.tcp_connections_per_address_max.or(file.tcp_connections_per_address_max);
        let queue_kib = args.tcp_queue_kib.or(file.tcp_queue_kib).unwrap_or(QUEUE_KIB);
        if !(QUEUE_KIB_MIN..=QUEUE_KIB_MAX).contains(&queue_kib) {
            let text = format!("takes {QUEUE_KIB_MIN} to {QUEUE_KIB_MAX} KiB, for example {QUEUE_KIB}");
            return wrong("tcp-queue-kib", &text);
        }
        let connections_max = connections_max.unwrap_or(CONNECTIONS_MAX);
        let least_mib = (connections_max as usize * QUEUE_BYTES_MIN).div_ceil(MIB);
        let queues_mib = match args.tcp_queues_mib.or(file.tcp_queues_mib) {
            None => least_mib.max(QUEUES_MIB as usize),
            Some(mib) if mib as usize >= least_mib => mib as usize,
            Some(_) => {
                let text = format!(
                    "has to be at least {least_mib} for {connections_max} connections: raise it, or lower tcp-connections-max"
                );
                return wrong("tcp-queues-mib", &text);
            }
        };
        Ok(Self {
            tcp,
            tls,
            tls_files,
            limits: Limits {
                connections_max,
                per_address_max: per_address_max.unwrap_or(PER_ADDRESS_MAX),
                queue_bytes: queue_kib as usize * 1024,
                queues_bytes: queues_mib * MIB,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Config;
    use super::*;

    fn load(flags: &[&str]) -> Result<StreamConfig, String> {
        let args =
            Args::try_parse_from([&["towpath-relay"], flags].concat()).map_err(|error| error.to_string())?;
        Config::load(&args).map(|config| config.streams).map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_there_are_no_streams() {
        let streams = load(&[]).unwrap();
        assert!(streams.tcp.is_empty() && streams.tls.is_empty() && streams.tls_files.is_none());
        let limits = Limits {
            connections_max: 10_000,
            per_address_max: 256,
            queue_bytes: 262_144,
            queues_bytes: 768 * MIB,
        };
        assert_eq!(streams.limits, limits);
    }

    #[test]
    fn flags_win_over_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let text = "listen-tcp = [\"127.0.0.1:1\"]\nlisten-tls = [\"127.0.0.1:2\"]\ntls-certificate = \"a\"\n\
                    tls-key = \"b\"\ntcp-connections-max = 7\ntcp-queue-kib = 128\n";
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let flags =
            ["--listen-tcp", "127.0.0.1:3", "[::1]:4", "--tls-key", "c", "--tcp-connections-max", "8"];
        let streams = load(&[&["--config", path], &flags[..]].concat()).unwrap();
        assert_eq!(streams.tcp, ["127.0.0.1:3".parse().unwrap(), "[::1]:4".parse().unwrap()]);
        assert_eq!(streams.tls, ["127.0.0.1:2".parse().unwrap()]);
        assert_eq!(streams.tls_files, Some(TlsFiles { certificate: "a".into(), key: "c".into() }));
        let limits = Limits {
            connections_max: 8,
            per_address_max: 256,
            queue_bytes: 131_072,
            queues_bytes: 768 * MIB,
        };
        assert_eq!(streams.limits, limits);
    }

    #[test]
    fn there_is_room_for_a_message_of_each_connection() {
        let bytes = |flags: &[&str]| load(flags).unwrap().limits.queues_bytes;
        assert_eq!(bytes(&["--tcp-connections-max", "100000"]), 6_446 * MIB);
        assert_eq!(bytes(&["--tcp-connections-max", "100", "--tcp-queues-mib", "7"]), 7 * MIB);
    }

    #[test]
    fn what_makes_no_sense_says_what_would() {
        for (flags, hint) in [
            (&["--listen-tls", "127.0.0.1:1"][..], "add tls-certificate and tls-key"),
            (&["--listen-tls", "127.0.0.1:1", "--tls-certificate", "a"], "add tls-key FILE"),
            (&["--tls-key", "a"], "add tls-certificate FILE"),
            (&["--tcp-queue-kib", "127"], "128 to 16384"),
            (&["--tcp-queues-mib", "644"], "at least 645 for 10000 connections"),
            (&["--listen-tcp", "3478"], "ADDRESS:PORT"),
        ] {
            let error = load(flags).unwrap_err();
            assert!(error.contains(hint), "{flags:?}: {error}");
        }
    }
}
