//! The figures of several workers as one.

use std::time::Instant;

use dataplane::admin;

use super::observer::Snapshot;

impl admin::Snapshot for Snapshot {
    fn taken(&self) -> Instant {
        self.taken
    }

    /// What is one for all (limits, readings of the configuration, the design) is the first's.
    fn merge(&mut self, other: Self) {
        // Named one by one, so that a new figure cannot be forgotten here.
        let Self {
            taken,
            workers,
            figures,
            refusals,
            rules,
            allocations,
            allocations_limits: _,
            census,
            hairpinned,
            port_conflicts,
            streams,
            drops,
            reloads: _,
            egress,
            egress_pending,
            egress_unexplained,
            slots_free_min,
            ingress,
            timer_lag,
            design: _,
        } = other;
        self.taken = self.taken.min(taken);
        self.workers += workers;
        self.figures.merge(&figures);
        for (code, count) in refusals {
            match self.refusals.iter_mut().find(|(known, _)| *known == code) {
                Some((_, sum)) => *sum += count,
                None => self.refusals.push((code, count)),
            }
        }
        for (rule, count) in rules {
            match self.rules.iter_mut().find(|(known, _)| *known == rule) {
                Some((_, sum)) => *sum += count,
                None => self.rules.push((rule, count)),
            }
        }
        self.allocations += allocations;
        self.census.merge(census);
        self.hairpinned.add(hairpinned);
        self.port_conflicts += port_conflicts;
        self.streams.merge(&streams);
        self.drops.merge(&drops);
        self.egress.merge(&egress);
        self.egress_pending += egress_pending;
        self.egress_unexplained += egress_unexplained;
        self.slots_free_min = self.slots_free_min.min(slots_free_min);
        self.timer_lag = self.timer_lag.max(timer_lag);
        self.ingress.merge(&ingress);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dataplane::admin::Snapshot as _;

    use crate::admin::observer::Phase;
    use crate::admin::status::Status;
    use crate::admin::status::tests::{about, origin, snapshot};
    use crate::server::figures::{Credentials, UserFigures, Volume};

    #[test]
    fn counts_add_up_limits_stay_and_a_user_of_two_workers_is_one() {
        let now = origin();
        use Credentials::{Shared, Static};
        let with = |users: &[(&str, Credentials, u32)]| {
            let mut snapshot = snapshot(now);
            let user = |&(name, credentials, allocations): &(&str, Credentials, u32)| UserFigures {
                name: name.into(),
                credentials,
                allocations,
                relayed: [Volume { packets: 1, bytes: 10 }; 2],
                shaped_packets: 1,
            };
            snapshot.census.users = users.iter().map(user).collect();
            (snapshot.census.permissions, snapshot.census.permissions_most) = (users.len() as u64, 4);
            snapshot
        };
        let mut sum = with(&[("alice", Static, 1), ("bob", Static, 2)]);
        let mut other = with(&[("bob", Shared, 3), ("alice", Static, 4)]);
        (other.slots_free_min, other.timer_lag) = (2, Duration::from_secs(9));
        sum.merge(other);
        let status = Status::new(&sum, &about(now), Phase::Serving, now + Duration::from_secs(1));
        assert_eq!((status.workers, status.allocations.live, status.allocations.limit), (2, 24, 100));
        assert_eq!((status.permissions.live, status.permissions.most_of_one_allocation), (4, 4));
        assert_eq!((status.refusals["401"], status.drops["no_permission"]), (14, 6));
        assert_eq!((status.egress.figures.sent, status.drops["kernel_rcvbuf_skbs"]), (80, 4));
        assert_eq!((status.hairpinned.packets, status.port_conflicts), (4, 2));
        assert_eq!(
            (status.egress.unexplained, status.egress.slots_free_min, status.timer_lag_s),
            (2, 2, 9.0)
        );
        assert_eq!((status.connections.live, status.connections.limit), (6, 9));
        assert_eq!((status.connections.accepted, status.connections.ended["tls"]), (16, 10));
        assert_eq!((status.reloads["applied"], status.io.as_str()), (5, "uring"));
        let alice = status.users.iter().find(|user| user.name == "alice").unwrap();
        assert_eq!((alice.allocations, alice.bytes(), status.users_in_all), (5, 40, 3));
    }
}
