//! The figures as they are shown: what `/status.json` holds, what metrics are made of, and what `status` reads back.

use std::collections::BTreeMap;
use std::time::Instant;

use dataplane::status::{self, Counts};
use serde::{Deserialize, Serialize};

use super::observer::{Phase, Snapshot};
use crate::server::figures::{Carrier, Direction, UserFigures, Volume};
use crate::server::{CHANNELS_MAX, PERMISSIONS_MAX};

/// Users shown, those who relayed most; a list of all would grow with them.
pub(super) const USERS_MAX: usize = 1000;

/// Everything there is to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Status {
    pub version: String,
    pub phase: String,
    /// Seconds since 1970, UTC.
    pub started_unix_s: u64,
    pub uptime_s: f64,
    /// Loops that serve clients, each on a thread of its own.
    pub workers: u64,
    /// How old these figures are.
    pub age_s: f64,
    /// The longest that a timer was overdue in the last minute or two.
    pub timer_lag_s: f64,
    /// How packets leave and come in, by the names of the flags.
    pub io: String,
    pub ingress_design: String,
    pub gso: bool,
    /// Every allocation needs one.
    pub open_files_limit: Option<u64>,
    /// Log lines that standard error did not take.
    #[serde(default)]
    pub log_lines_lost: u64,
    /// Readings of the configuration since the start, by outcome.
    pub reloads: Counts,
    /// What is in force is older than the files.
    pub last_reload_refused: bool,
    pub allocations: Allocations,
    pub permissions: Held,
    pub channels: Held,
    /// By direction, and by what carries it to or from the client.
    pub relayed: BTreeMap<String, BTreeMap<String, Amount>>,
    /// The part of it that went from client to client without the kernel in between.
    pub hairpinned: Amount,
    /// Clients over TCP and TLS.
    pub connections: Connections,
    pub requests: Counts,
    /// By error code.
    pub refusals: Counts,
    /// By rule, where an operator's rule refused; a Send indication can be, which has no code.
    pub rules: Counts,
    pub authentication_failures: Counts,
    /// Requests refused because another allocation on the same relayed port had the peer.
    pub port_conflicts: u64,
    /// In packets, unless the name says skbs.
    pub drops: Counts,
    pub egress: Egress,
    pub ingress: status::Ingress,
    /// Users who hold allocations or have relayed anything; `users` has at most 1,000 of them.
    pub users_in_all: u64,
    pub users: Vec<User>,
}

/// Allocations against their limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Allocations {
    pub live: u64,
    pub limit: u64,
    pub limit_of_one_user: u64,
    pub made: u64,
}

/// What allocations hold, against the limit that each of them has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub live: u64,
    pub most_of_one_allocation: u64,
    pub limit_of_one_allocation: u64,
}

/// Connections over TCP and TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Connections {
    pub live: u64,
    pub limit: u64,
    pub accepted: u64,
    /// Ended or not taken, by reason.
    pub ended: Counts,
}

/// Payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Amount {
    pub packets: u64,
    pub bytes: u64,
}

impl From<Volume> for Amount {
    fn from(volume: Volume) -> Self {
        Self { packets: volume.packets, bytes: volume.bytes }
    }
}

/// How packets leave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Egress {
    #[serde(flatten)]
    pub figures: status::Egress,
    /// Offered, and neither sent nor lost for a cause nor on their way: always 0.
    pub unexplained: u64,
    /// Of the worker that has fewest.
    pub slots_free_min: u64,
}

/// One user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    pub name: String,
    /// `static`, or `secret` where a web service made the name: one name may be two users.
    pub credentials: String,
    pub allocations: u32,
    pub to_peer: Amount,
    pub to_client: Amount,
    /// Packets dropped above a rate or a fair share.
    pub shaped_packets: u64,
}

impl User {
    pub fn bytes(&self) -> u64 {
        self.to_peer.bytes + self.to_client.bytes
    }
}

/// What does not change while the program runs, and what the admin thread knows by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    pub started: Instant,
    pub started_unix_s: u64,
    pub gso: bool,
    pub open_files_limit: Option<u64>,
}

impl Status {
    /// The status of one moment.
    pub fn new(snapshot: &Snapshot, about: &About, phase: Phase, now: Instant) -> Self {
        let census = &snapshot.census;
        let (limit, limit_of_one_user) = snapshot.allocations_limits;
        let reloads = [("applied", snapshot.reloads.applied), ("refused", snapshot.reloads.refused)];
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: phase.name().to_owned(),
            started_unix_s: about.started_unix_s,
            workers: snapshot.workers as u64,
            uptime_s: now.saturating_duration_since(about.started).as_secs_f64(),
            age_s: now.saturating_duration_since(snapshot.taken).as_secs_f64(),
            timer_lag_s: snapshot.timer_lag.as_secs_f64(),
            io: snapshot.design.0.to_owned(),
            ingress_design: snapshot.design.1.to_owned(),
            gso: about.gso,
            open_files_limit: about.open_files_limit,
            log_lines_lost: dataplane::log::lines_lost(),
            reloads: counts(reloads.into_iter()),
            last_reload_refused: snapshot.reloads.last_refused,
            allocations: Allocations {
                live: snapshot.allocations as u64,
                limit: limit.into(),
                limit_of_one_user: limit_of_one_user.into(),
                made: snapshot.figures.allocations_made(),
            },
            permissions: held(census.permissions, census.permissions_most, PERMISSIONS_MAX),
            channels: held(census.channels, census.channels_most, CHANNELS_MAX),
            relayed: relayed(snapshot),
            hairpinned: snapshot.hairpinned.into(),
            connections: Connections {
                live: snapshot.streams.connections,
                limit: snapshot.streams.limit,
                accepted: snapshot.streams.accepted,
                ended: counts(snapshot.streams.ends.iter().map(|&(end, count)| (end.name(), count))),
            },
            port_conflicts: snapshot.port_conflicts,
            requests: counts(snapshot.figures.requests()),
            refusals: counts(snapshot.refusals.iter().copied()),
            rules: counts(snapshot.rules.iter().map(|&(rule, count)| (rule.name(), count))),
            authentication_failures: counts(snapshot.figures.authentication_failures()),
            drops: status::losses(&snapshot.drops, &snapshot.egress, &snapshot.ingress),
            egress: Egress {
                figures: status::Egress::new(&snapshot.egress, snapshot.egress_pending),
                unexplained: snapshot.egress_unexplained,
                slots_free_min: snapshot.slots_free_min,
            },
            ingress: snapshot.ingress,
            users_in_all: census.users.len() as u64,
            users: users(&census.users),
        }
    }

    /// Relayed payload of one direction.
    pub fn relayed_in(&self, direction: Direction) -> Amount {
        let carriers = self.relayed.get(direction.name()).into_iter().flat_map(BTreeMap::values);
        carriers.fold(Amount::default(), |sum, amount| Amount {
            packets: sum.packets + amount.packets,
            bytes: sum.bytes + amount.bytes,
        })
    }
}

fn counts(counters: impl Iterator<Item = (impl ToString, u64)>) -> Counts {
    counters.map(|(name, count)| (name.to_string(), count)).collect()
}

fn held(live: u64, most: u64, limit: usize) -> Held {
    Held { live, most_of_one_allocation: most, limit_of_one_allocation: limit as u64 }
}

fn relayed(snapshot: &Snapshot) -> BTreeMap<String, BTreeMap<String, Amount>> {
    let by_carrier = |direction| {
        let amount = |carrier| snapshot.figures.relayed(direction, carrier).into();
        Carrier::ALL.into_iter().map(|carrier| (carrier.name().to_owned(), amount(carrier))).collect()
    };
    Direction::ALL.into_iter().map(|direction| (direction.name().to_owned(), by_carrier(direction))).collect()
}

/// Those who relayed most, most first.
fn users(all: &[UserFigures]) -> Vec<User> {
    let of = |user: &UserFigures, direction| user.relayed[direction as usize].into();
    let mut users: Vec<User> = all
        .iter()
        .map(|user| User {
            name: user.name.to_string(),
            credentials: user.credentials.name().to_owned(),
            allocations: user.allocations,
            to_peer: of(user, Direction::ToPeer),
            to_client: of(user, Direction::ToClient),
            shaped_packets: user.shaped_packets,
        })
        .collect();
    users.sort_by(|left, right| right.bytes().cmp(&left.bytes()).then_with(|| left.name.cmp(&right.name)));
    users.truncate(USERS_MAX);
    users
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use dataplane::drops::{Cause, Drops};
    use dataplane::egress::EgressStats;
    use dataplane::ingress::IngressStats;

    use super::*;
    use crate::life::Reloads;
    use crate::server::figures::{Census, Credentials, Figures};
    use crate::server::rules::Rule;
    use crate::stream::{End, StreamFigures};

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for virtual time")]
    pub fn origin() -> Instant {
        Instant::now()
    }

    pub fn about(started: Instant) -> About {
        About { started, started_unix_s: 1_700_000_000, gso: true, open_files_limit: Some(1024) }
    }

    /// Something everywhere.
    pub fn snapshot(taken: Instant) -> Snapshot {
        let mut drops = Drops::default();
        drops.add(Cause::NoPermission, 3);
        let mut egress_drops = Drops::default();
        egress_drops.add(Cause::EgressExpired, 4);
        Snapshot {
            taken,
            workers: 1,
            figures: Figures::default(),
            refusals: vec![(400, 0), (401, 7)],
            rules: vec![(Rule::DenyPeer, 3)],
            allocations: 12,
            allocations_limits: (100, 10),
            census: Census::default(),
            hairpinned: Volume { packets: 2, bytes: 200 },
            port_conflicts: 1,
            streams: StreamFigures { connections: 3, limit: 9, accepted: 8, ends: vec![(End::Tls, 5)] },
            drops,
            reloads: Reloads { applied: 5, refused: 2, last_refused: true },
            egress: EgressStats {
                offered: 50,
                sent: 40,
                operations: 10,
                drops: egress_drops,
                ..EgressStats::default()
            },
            egress_pending: 6,
            egress_unexplained: 1,
            slots_free_min: 7,
            ingress: IngressStats { kernel_drops_skbs: 2, cq_overflows: 6, ..IngressStats::default() },
            timer_lag: Duration::from_millis(1500),
            design: ("uring", "epoll"),
        }
    }

    #[test]
    fn losses_of_all_stages_are_one_list_without_gaps() {
        let now = origin();
        let status = Status::new(&snapshot(now), &about(now), Phase::Serving, now + Duration::from_secs(2));
        assert_eq!(status.drops.len(), Cause::ALL.len());
        assert_eq!((status.drops["no_permission"], status.drops["egress_expired"]), (3, 4));
        assert_eq!((status.drops["kernel_rcvbuf_skbs"], status.drops["replay"]), (2, 0));
        assert_eq!(
            (status.uptime_s, status.age_s, status.egress.figures.segments_per_operation),
            (2.0, 2.0, 4.0)
        );
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }

    #[test]
    fn the_list_of_users_is_bounded_and_has_the_largest_first() {
        let now = origin();
        let mut snapshot = snapshot(now);
        snapshot.census.users = (0..USERS_MAX as u64 + 5)
            .map(|index| UserFigures {
                credentials: Credentials::Static,
                name: format!("user {index}").into(),
                allocations: 1,
                relayed: [Volume { packets: 1, bytes: index }, Volume::default()],
                shaped_packets: 0,
            })
            .collect();
        let status = Status::new(&snapshot, &about(now), Phase::Serving, now);
        assert_eq!((status.users_in_all, status.users.len()), (1005, 1000));
        assert_eq!(status.users[0].name, "user 1004");
        assert_eq!(status.users[999].bytes(), 5);
    }
}
