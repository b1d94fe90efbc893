//! What the server under test says that it lost, by cause: the drop counters of a relay or tunnel of this project, read at
//! its `--admin` address before and after measured sending.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dataplane::admin::client::{self, GetError};
use serde::{Deserialize, Serialize};

use super::clock::monotonic_ns;
use super::problem::Problem;
use super::spec::GSO_SEGMENTS_MAX;
use crate::netns::Namespace;

/// How long a server may take for its answer, and for figures that are new.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions to a server whose figures are old.
const PAUSE: Duration = Duration::from_millis(20);
/// What the programs of this project are called, by how the names of their metrics begin; the longer ones first.
const PROGRAMS: [(&str, &str); 2] = [("towpath_relay_", "relay"), ("towpath_", "tunnel")];

/// Where a server shows its figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerAdmin {
    /// Its `--admin`.
    pub address: SocketAddr,
    /// Where that address is, when not here.
    pub namespace: Option<Arc<Namespace>>,
    /// What it is called in the account, when not by what it is.
    pub name: Option<String>,
}

impl FromStr for ServerAdmin {
    type Err = String;

    /// Reads `ADDRESS:PORT` or `NAME=ADDRESS:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').map_or((None, text), |(name, rest)| (Some(name), rest));
        let address = address.parse().map_err(|_| {
            format!("{text:?} is not ADDRESS:PORT; give what the server has as --admin, for example 127.0.0.1:9641")
        })?;
        Ok(Self { address, namespace: None, name: name.map(str::to_owned) })
    }
}

impl TryFrom<String> for ServerAdmin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ServerAdmin> for String {
    fn from(admin: ServerAdmin) -> Self {
        admin.to_string()
    }
}

impl fmt::Display for ServerAdmin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(formatter, "{name}={}", self.address),
            None => write!(formatter, "{}", self.address),
        }
    }
}

/// What a server lost during a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerDrops {
    /// What it is called in the account.
    pub name: String,
    /// By cause; in packets, unless the cause says skbs. Causes that lost nothing are left out.
    pub causes: BTreeMap<String, u64>,
    /// Why the figures are not those of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Datagrams in the superpackets that it got, beyond one in each: 0 when it got none that held several.
    #[serde(default)]
    pub beyond_one: u64,
}

impl ServerDrops {
    /// Datagrams that the largest superpacket which it got can have held.
    #[must_use]
    pub fn segments_max(&self) -> u64 {
        self.beyond_one.saturating_add(1).min(u64::from(GSO_SEGMENTS_MAX))
    }
}

/// The counters of one server at one moment.
#[derive(Clone, Debug, PartialEq)]
struct Counters {
    program: &'static str,
    age_s: f64,
    started: f64,
    drops: BTreeMap<String, u64>,
    /// Datagrams received, and the superpackets that they came in.
    received: [u64; 2],
}

/// The counters of all servers at one moment.
#[derive(Debug)]
pub(super) struct Snapshot(Vec<(ServerAdmin, Counters)>);

impl Snapshot {
    /// Asks all of them.
    ///
    /// # Errors
    /// [`Problem::Setup`], naming the one that does not answer and what to do.
    pub(super) fn take(admins: &[ServerAdmin]) -> Result<Self, Problem> {
        let ask = |admin: &ServerAdmin| Ok((admin.clone(), read(admin)?));
        Ok(Self(admins.iter().map(ask).collect::<Result<_, _>>()?))
    }

    /// What each has lost since.
    #[must_use]
    pub(super) fn until_now(self) -> Vec<ServerDrops> {
        let mut found: Vec<ServerDrops> = Vec::new();
        for (admin, before) in self.0 {
            let name = admin.name.clone().unwrap_or_else(|| before.program.to_owned());
            let taken = |name: &str| found.iter().any(|other| other.name == name);
            let numbered = (2..).map(|number| format!("{name}{number}"));
            let name =
                std::iter::once(name.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(name);
            found.push(match read(&admin) {
                Ok(after) => difference(name, &before, &after),
                Err(problem) => {
                    ServerDrops { name, trouble: Some(problem.to_string()), ..ServerDrops::default() }
                }
            });
        }
        found
    }
}

fn difference(name: String, before: &Counters, after: &Counters) -> ServerDrops {
    // A tunnel works it out from how long it has been running, so that it varies a little.
    let restarted = (after.started - before.started).abs() > 1.0;
    let since = |(cause, &now): (&String, &u64)| {
        let then = if restarted { 0 } else { before.drops.get(cause).copied().unwrap_or(0) };
        (cause.clone(), now.saturating_sub(then))
    };
    let causes = after.drops.iter().map(since).filter(|entry| entry.1 > 0).collect();
    let trouble =
        restarted.then(|| "it was started anew during the run; what it lost before is gone".to_owned());
    let then = if restarted { [0, 0] } else { before.received };
    let [datagrams, superpackets] = [0, 1].map(|place| after.received[place].saturating_sub(then[place]));
    ServerDrops { name, causes, trouble, beyond_one: datagrams.saturating_sub(superpackets) }
}

/// The counters of a moment that is not before this call.
fn read(admin: &ServerAdmin) -> Result<Counters, Problem> {
    let begin = monotonic_ns();
    loop {
        let counters = match &admin.namespace {
            None => ask(admin.address)?,
            Some(namespace) => namespace
                .run(|| ask(admin.address))
                .map_err(|error| Problem::Setup(format!("--server-admin {admin}: {error}")))??,
        };
        let waited_s = (monotonic_ns() - begin) as f64 / 1e9;
        if counters.age_s <= waited_s {
            return Ok(counters);
        }
        if waited_s > PATIENCE.as_secs_f64() {
            return Err(Problem::Setup(format!(
                "--server-admin {admin}: the figures are {:.0} s old and newer ones do not come; the server hangs",
                counters.age_s
            )));
        }
        thread::sleep(PAUSE);
    }
}

fn ask(address: SocketAddr) -> Result<Counters, Problem> {
    let problem = |what: &str, fix: &str| Problem::Setup(format!("--server-admin {address}: {what}; {fix}"));
    let strange =
        |what: &str| problem(what, "it has to be the --admin address of a towpath or towpath-relay");
    let reply = client::get(address, "/metrics", PATIENCE).map_err(|error| match error {
        GetError::Unreachable(_) => {
            let fix =
                format!("start the server with --admin {address}, or give the address that its log names");
            problem(&error.to_string(), &fix)
        }
        GetError::Slow(_) | GetError::Long | GetError::Strange => strange(&error.to_string()),
    })?;
    if reply.code != 200 {
        return Err(strange(&format!("it answers {}", reply.code)));
    }
    let text = String::from_utf8_lossy(&reply.body);
    parse(&text).ok_or_else(|| strange("it shows no drop counters of this project"))
}

/// What metrics say, in the text format of Prometheus.
fn parse(text: &str) -> Option<Counters> {
    let (prefix, program) = PROGRAMS.into_iter().find(|(prefix, _)| {
        let (info, plain) = (format!("{prefix}build_info{{"), format!("{prefix}build_info "));
        text.lines().any(|line| line.starts_with(&info) || line.starts_with(&plain))
    })?;
    let value = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(prefix)?.strip_prefix(name));
        rest.and_then(|rest| rest.trim().parse::<f64>().ok())
    };
    let head = format!("{prefix}drops_total{{cause=\"");
    let drop = |line: &str| {
        let (cause, count) = line.strip_prefix(&head)?.split_once("\"}")?;
        Some((cause.to_owned(), count.trim().parse::<f64>().ok()? as u64))
    };
    let drops: BTreeMap<String, u64> = text.lines().filter_map(drop).collect();
    if drops.is_empty() {
        return None;
    }
    Some(Counters {
        program,
        age_s: value("figures_age_seconds ")?,
        started: value("start_time_seconds ")?,
        drops,
        received: [value("ingress_packets_total ")? as u64, value("ingress_superpackets_total ")? as u64],
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};

    use super::*;

    const RELAY: &str = "# HELP towpath_relay_build_info Always 1.\ntowpath_relay_build_info{version=\"0.1.0\"} 1\n\
        towpath_relay_start_time_seconds 1700000000\ntowpath_relay_figures_age_seconds 0.05\n\
        # TYPE towpath_relay_drops_total counter\ntowpath_relay_drops_total{cause=\"busy\"} 3\n\
        towpath_relay_drops_total{cause=\"policy_rate\"} 1000000\n\
        towpath_relay_ingress_packets_total 90\ntowpath_relay_ingress_superpackets_total 80\n";

    fn counters(drops: &[(&str, u64)], started: f64) -> Counters {
        let drops = drops.iter().map(|&(cause, count)| (cause.to_owned(), count)).collect();
        Counters { program: "relay", age_s: 0.05, started, drops, received: [90, 80] }
    }

    #[test]
    fn both_programs_are_known_by_their_metrics_and_others_are_not() {
        assert_eq!(parse(RELAY).unwrap(), counters(&[("busy", 3), ("policy_rate", 1_000_000)], 1.7e9));
        assert_eq!(parse(&RELAY.replace("_relay_", "_")).unwrap().program, "tunnel");
        for text in ["", "hello", "node_build_info{version=\"1\"} 1\n", &RELAY.replace("drops", "drips")] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_was_lost_before_is_not_counted_unless_the_server_began_anew() {
        let before = counters(&[("busy", 3), ("replay", 5)], 1.0);
        let found =
            difference("relay".into(), &before, &counters(&[("busy", 7), ("replay", 5), ("ecn", 1)], 1.01));
        assert_eq!(found.causes, [("busy".to_owned(), 4), ("ecn".to_owned(), 1)].into());
        assert_eq!((found.trouble.as_ref(), found.beyond_one, found.segments_max()), (None, 0, 1));
        let got = |datagrams: u64, superpackets: u64| {
            let after = Counters { received: [90 + datagrams, 80 + superpackets], ..before.clone() };
            difference("relay".into(), &before, &after).segments_max()
        };
        assert_eq!((got(500, 500), got(500, 493), got(50_000, 900)), (1, 8, 64));
        let anew = difference("relay".into(), &before, &counters(&[("busy", 2)], 3.0));
        assert_eq!(anew.causes, [("busy".to_owned(), 2)].into());
        assert!(anew.trouble.unwrap().contains("anew"));
    }

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["127.0.0.1:9641", "far=[::1]:9642"] {
            assert_eq!(text.parse::<ServerAdmin>().unwrap().to_string(), text);
        }
        assert!("9641".parse::<ServerAdmin>().unwrap_err().contains("127.0.0.1:9641"));
    }

    #[test]
    fn a_server_that_is_not_there_or_another_one_is_named_with_the_fix() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // To the end of the request: closing with some of it unread would reset the connection.
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.map(Result::unwrap).take_while(|line| !line.is_empty()).for_each(drop);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").unwrap();
        });
        let admin: ServerAdmin = address.to_string().parse().unwrap();
        let error = Snapshot::take(std::slice::from_ref(&admin)).unwrap_err();
        assert!(error.to_string().contains("--admin address of a towpath"), "{error}");
        server.join().unwrap();
        let error = Snapshot::take(&[admin]).unwrap_err();
        assert!(error.to_string().contains(&format!("--admin {address}")), "{error}");
    }
}
