//! Every option of coturn that this importer knows, and what becomes of it.

use super::translate::Setting;

/// What becomes of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It becomes settings of ours.
    Translated(Setting),
    /// What it asks for is so in any case.
    Already(&'static str),
    /// It asks for what is so in any case, when it has this value, and for what there is not otherwise.
    AlreadyIf(&'static str, &'static str),
    /// There is nothing like it: the reason, or what to do instead.
    Missing(&'static str),
}

/// The options, by name. A flag may be taken back by its value (`no-cli=0`); for an option that wants a value it is one.
const OPTIONS: &[(&str, Takes, Fate)] = &[
    // Where clients are served.
    ("listening-ip", Takes::Value, Fate::Translated(Setting::ListeningIp)),
    ("listening-port", Takes::Value, Fate::Translated(Setting::ListeningPort)),
    ("tls-listening-port", Takes::Value, Fate::Translated(Setting::TlsListeningPort)),
    ("aux-server", Takes::Value, Fate::Translated(Setting::AuxServer)),
    ("no-udp", Takes::Flag, Fate::Translated(Setting::NoUdp)),
    ("no-tcp", Takes::Flag, Fate::Translated(Setting::NoTcp)),
    ("no-tls", Takes::Flag, Fate::Translated(Setting::NoTls)),
    ("no-dtls", Takes::Flag, Fate::Translated(Setting::NoDtls)),
    ("listening-device", Takes::Value, Fate::Missing("name the addresses of the interface in `listen`")),
    ("relay-device", Takes::Value, Fate::Missing("name the addresses of the interface in `relay-address`")),
    ("alt-listening-port", Takes::Value, Fate::Missing(NO_5780)),
    ("alt-tls-listening-port", Takes::Value, Fate::Missing(NO_5780)),
    ("rfc5780", Takes::Flag, Fate::Missing(NO_5780)),
    ("no-rfc5780", Takes::Flag, Fate::Already("NAT behaviour discovery (RFC 5780) is not offered")),
    ("response-origin-only-with-rfc5780", Takes::Flag, Fate::Already("RESPONSE-ORIGIN is never sent")),
    (
        "tcp-proxy-port",
        Takes::Value,
        Fate::Missing(
            "the PROXY protocol is not understood: balance by DNS SRV records, or pass connections on with their source address",
        ),
    ),
    ("udp-self-balance", Takes::Flag, Fate::Missing("clients are not sent from one listener to another")),
    // Where allocations are.
    ("relay-ip", Takes::Value, Fate::Translated(Setting::RelayIp)),
    ("external-ip", Takes::Value, Fate::Translated(Setting::ExternalIp)),
    ("min-port", Takes::Value, Fate::Translated(Setting::MinPort)),
    ("max-port", Takes::Value, Fate::Translated(Setting::MaxPort)),
    (
        "no-udp-relay",
        Takes::Flag,
        Fate::Missing("allocations are for UDP; without users (`stun-only`) there are none"),
    ),
    ("no-tcp-relay", Takes::Flag, Fate::Already("there are no allocations over TCP (RFC 6062)")),
    (
        "allocation-default-address-family",
        Takes::Value,
        Fate::AlreadyIf("ipv4", "a client that asks for no family is given IPv4, as RFC 8656 has it"),
    ),
    (
        "keep-address-family",
        Takes::Flag,
        Fate::Missing("a client that asks for no family is given IPv4, as RFC 8656 has it"),
    ),
    (
        "max-allocate-lifetime",
        Takes::Value,
        Fate::AlreadyIf("3600", "an allocation lasts an hour at most, without a choice"),
    ),
    (
        "channel-lifetime",
        Takes::Value,
        Fate::AlreadyIf("600", "a channel lasts 10 minutes, as RFC 8656 has it"),
    ),
    (
        "permission-lifetime",
        Takes::Value,
        Fate::AlreadyIf("300", "a permission lasts 5 minutes, as RFC 8656 has it"),
    ),
    (
        "max-allocate-timeout",
        Takes::Value,
        Fate::Missing(
            "a connection without an allocation ends after 30 seconds, a stranger's datagram leaves nothing behind",
        ),
    ),
    ("mobility", Takes::Flag, Fate::Missing("mobility (RFC 8016) is not offered; the client allocates anew")),
    ("server-relay", Takes::Flag, Fate::Missing("what a peer sends always needs a permission")),
    // Who is served.
    ("realm", Takes::Value, Fate::Translated(Setting::Realm)),
    ("user", Takes::Value, Fate::Translated(Setting::User)),
    ("use-auth-secret", Takes::Flag, Fate::Translated(Setting::UseAuthSecret)),
    ("static-auth-secret", Takes::Value, Fate::Translated(Setting::StaticAuthSecret)),
    ("stun-only", Takes::Flag, Fate::Translated(Setting::StunOnly)),
    ("lt-cred-mech", Takes::Flag, Fate::Already("TURN always takes long-term credentials")),
    (
        "no-auth",
        Takes::Flag,
        Fate::Missing(
            "nobody gets an allocation without credentials: give clients a user, or a web service a secret",
        ),
    ),
    ("no-stun", Takes::Flag, Fate::Missing("Binding is always answered, within --unpaid-replies")),
    (
        "secure-stun",
        Takes::Flag,
        Fate::Missing(
            "Binding is answered without credentials; --strict-reflection bounds what it costs others",
        ),
    ),
    ("rest-api-separator", Takes::Value, Fate::AlreadyIf(":", "time-limited names are EXPIRY:ID")),
    ("no-auth-pings", Takes::Flag, Fate::Already("there is no database to look after")),
    ("oauth", Takes::Flag, Fate::Missing("OAuth (RFC 7635) is not offered: use shared secrets")),
    ("server-name", Takes::Value, Fate::Missing("it belongs to OAuth (RFC 7635), which is not offered")),
    ("check-origin-consistency", Takes::Flag, Fate::Missing("ORIGIN is not looked at")),
    ("stale-nonce", Takes::Value, Fate::Already("nonces always expire, at a time of their own")),
    // Databases.
    ("userdb", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("db", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("psql-userdb", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("sql-userdb", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("mysql-userdb", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("mongo-userdb", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("redis-userdb", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("secret-key-file", Takes::Value, Fate::Missing(NO_DATABASE)),
    ("redis-statsdb", Takes::Value, Fate::Missing("figures are at /metrics and /status.json of `admin`")),
    (
        "no-dynamic-ip-list",
        Takes::Flag,
        Fate::Already("peers are allowed and denied by the file; SIGHUP reads it again"),
    ),
    ("no-dynamic-realms", Takes::Flag, Fate::Already("there is one realm")),
    // What they may reach and take.
    ("allowed-peer-ip", Takes::Value, Fate::Translated(Setting::AllowedPeer)),
    ("denied-peer-ip", Takes::Value, Fate::Translated(Setting::DeniedPeer)),
    ("allow-loopback-peers", Takes::Flag, Fate::Translated(Setting::AllowLoopback)),
    (
        "no-loopback-peers",
        Takes::Flag,
        Fate::Already("loopback peers are refused unless `allow-peer` says otherwise"),
    ),
    ("no-multicast-peers", Takes::Flag, Fate::Already("multicast peers are refused")),
    ("user-quota", Takes::Value, Fate::Translated(Setting::UserQuota)),
    ("total-quota", Takes::Value, Fate::Translated(Setting::TotalQuota)),
    ("max-bps", Takes::Value, Fate::Translated(Setting::MaxBps)),
    ("bps-capacity", Takes::Value, Fate::Translated(Setting::BpsCapacity)),
    // TLS.
    ("cert", Takes::Value, Fate::Translated(Setting::Certificate)),
    ("pkey", Takes::Value, Fate::Translated(Setting::Key)),
    (
        "pkey-pwd",
        Takes::Value,
        Fate::Missing(
            "the key has to be without a password: openssl pkey -in OLD -out NEW, then chmod 600 NEW",
        ),
    ),
    ("CA-file", Takes::Value, Fate::Missing("certificates of clients are not asked for")),
    ("cipher-list", Takes::Value, Fate::Missing(TLS_FIXED)),
    ("ec-curve-name", Takes::Value, Fate::Missing(TLS_FIXED)),
    ("dh-file", Takes::Value, Fate::Missing(TLS_FIXED)),
    ("dh566", Takes::Flag, Fate::Missing(TLS_FIXED)),
    ("dh1066", Takes::Flag, Fate::Missing(TLS_FIXED)),
    ("dh2066", Takes::Flag, Fate::Missing(TLS_FIXED)),
    ("no-sslv2", Takes::Flag, Fate::Already(TLS_FIXED)),
    ("no-sslv3", Takes::Flag, Fate::Already(TLS_FIXED)),
    ("no-tlsv1", Takes::Flag, Fate::Already(TLS_FIXED)),
    ("no-tlsv1_1", Takes::Flag, Fate::Already(TLS_FIXED)),
    ("no-tlsv1_2", Takes::Flag, Fate::Missing(TLS_FIXED)),
    ("no-tlsv1_3", Takes::Flag, Fate::Missing(TLS_FIXED)),
    ("raw-public-keys", Takes::Flag, Fate::Missing("clients are shown a certificate")),
    // Other servers.
    ("alternate-server", Takes::Value, Fate::Translated(Setting::AlternateServer)),
    ("tls-alternate-server", Takes::Value, Fate::Translated(Setting::TlsAlternateServer)),
    ("acme-redirect", Takes::Value, Fate::Missing(NO_HTTP)),
    ("respond-http-unsupported", Takes::Flag, Fate::Missing(NO_HTTP)),
    ("no-http", Takes::Flag, Fate::Already(NO_HTTP)),
    // What is in messages.
    ("fingerprint", Takes::Flag, Fate::Already("answers carry FINGERPRINT where the request does")),
    ("no-software-attribute", Takes::Flag, Fate::Already("answers do not carry SOFTWARE")),
    ("prod", Takes::Flag, Fate::Already("answers do not carry SOFTWARE")),
    ("no-stun-backward-compatibility", Takes::Flag, Fate::Already("old STUN (RFC 3489) is not answered")),
    ("stun-backward-compatibility", Takes::Flag, Fate::Missing("old STUN (RFC 3489) is not answered")),
    // Seeing what it does.
    ("prometheus", Takes::Flag, Fate::Translated(Setting::Prometheus)),
    ("prometheus-port", Takes::Value, Fate::Translated(Setting::PrometheusPort)),
    ("prometheus-address", Takes::Value, Fate::Translated(Setting::PrometheusAddress)),
    ("prometheus-path", Takes::Value, Fate::AlreadyIf("/metrics", "metrics are at /metrics")),
    (
        "prometheus-username-labels",
        Takes::Flag,
        Fate::Missing("metrics have no user names; /status.json has them"),
    ),
    (
        "prometheus-session-id-labels",
        Takes::Flag,
        Fate::Missing("metrics have no labels that come from clients; /status.json has users"),
    ),
    ("verbose", Takes::Flag, Fate::Missing(LOG_LEVEL)),
    ("Verbose", Takes::Flag, Fate::Missing(LOG_LEVEL)),
    (
        "log-binding",
        Takes::Flag,
        Fate::Missing("there is no log line per request; `towpath-relay status` counts them"),
    ),
    ("log-file", Takes::Value, Fate::Missing(LOG_PLACE)),
    ("syslog", Takes::Flag, Fate::Already(LOG_PLACE)),
    ("syslog-facility", Takes::Value, Fate::Missing("set SyslogFacility= in the systemd unit")),
    ("no-stdout-log", Takes::Flag, Fate::Already(LOG_PLACE)),
    ("simple-log", Takes::Flag, Fate::Already("there is no log file that could roll over")),
    ("new-log-timestamp", Takes::Flag, Fate::Already("log lines begin with their time (RFC 3339)")),
    (
        "new-log-timestamp-format",
        Takes::Value,
        Fate::Missing("log lines begin with their time as RFC 3339 has it"),
    ),
    ("no-cli", Takes::Flag, Fate::Already("there is no telnet server")),
    ("cli-ip", Takes::Value, Fate::Missing(NO_CLI)),
    ("cli-port", Takes::Value, Fate::Missing(NO_CLI)),
    ("cli-password", Takes::Value, Fate::Missing(NO_CLI)),
    ("cli-max-output-sessions", Takes::Value, Fate::Missing(NO_CLI)),
    ("web-admin", Takes::Flag, Fate::Missing(NO_WEB_ADMIN)),
    ("web-admin-ip", Takes::Value, Fate::Missing(NO_WEB_ADMIN)),
    ("web-admin-port", Takes::Value, Fate::Missing(NO_WEB_ADMIN)),
    ("web-admin-listen-on-workers", Takes::Flag, Fate::Missing(NO_WEB_ADMIN)),
    // The process.
    ("relay-threads", Takes::Value, Fate::Translated(Setting::RelayThreads)),
    (
        "cpus",
        Takes::Value,
        Fate::Missing("the relay has one worker for each core, or as many as `workers` says"),
    ),
    ("ne", Takes::Value, Fate::Missing("--io chooses how packets move")),
    ("daemon", Takes::Flag, Fate::Missing("the relay stays in the foreground: start it by the systemd unit")),
    ("pidfile", Takes::Value, Fate::Missing("systemd knows the process: systemctl reload towpath-relay")),
    (
        "proc-user",
        Takes::Value,
        Fate::Missing("set User= in the systemd unit; the one that is packaged makes a user of its own"),
    ),
    (
        "proc-group",
        Takes::Value,
        Fate::Missing("set Group= in the systemd unit; the one that is packaged makes a group of its own"),
    ),
    ("version", Takes::Flag, Fate::Missing("it is for the command line: towpath-relay --version")),
];

const NO_5780: &str = "NAT behaviour discovery (RFC 5780) is not offered";
const NO_DATABASE: &str = "there is no database: write its users into `user-file`, its secrets into `secret-file`, and send SIGHUP after a change";
const TLS_FIXED: &str = "TLS is 1.2 or 1.3 with the ciphers and curves of rustls";
const NO_HTTP: &str = "HTTP is not answered where TURN clients are served";
const LOG_LEVEL: &str = "set RUST_LOG=debug in the environment";
const LOG_PLACE: &str = "log lines go to standard error, which systemd takes to its journal";
const NO_CLI: &str = "there is no telnet server: use towpath-relay status";
const NO_WEB_ADMIN: &str =
    "there is a page to look at, at `admin`; changes are made in the file, and SIGHUP reads it";

/// Whether an option wants a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// It need not have one, and one may take it back.
    Flag,
    /// It is nothing without.
    Value,
}

/// What becomes of an option; `None` when nothing is known about it.
#[must_use]
pub fn look_up(name: &str) -> Option<(Takes, Fate)> {
    OPTIONS.iter().find(|(other, ..)| *other == name).map(|&(_, takes, fate)| (takes, fate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_is_there_once_and_each_says_something() {
        for (index, (name, _, fate)) in OPTIONS.iter().enumerate() {
            assert!(!OPTIONS[..index].iter().any(|(other, ..)| other == name), "{name} is there twice");
            match fate {
                Fate::Already(text) | Fate::AlreadyIf(_, text) | Fate::Missing(text) => {
                    assert!(
                        text.len() > 10 && !text.ends_with('.') && !text.contains('\n'),
                        "{name}: {text}"
                    );
                }
                Fate::Translated(_) => {}
            }
        }
        assert_eq!(look_up("no-such-option"), None);
    }
}
