//! The figures in the text format of Prometheus.

use dataplane::admin::metrics::Metrics;

use super::observer::Phase;
use super::status::Status;

/// Begins every name.
const PREFIX: &str = "towpath_relay_";

/// Writes all metrics.
pub(super) fn text(status: &Status) -> String {
    let mut metrics = Metrics::new(PREFIX);
    about(&mut metrics, status);
    held(&mut metrics, status);
    traffic(&mut metrics, status);
    inside(&mut metrics, status);
    connections(&mut metrics, status);
    requests(&mut metrics, status);
    egress(&mut metrics, status);
    metrics.ingress(&status.ingress);
    metrics.rings(&status.egress.figures, &status.ingress);
    metrics.text()
}

fn about(metrics: &mut Metrics, status: &Status) {
    let is = |phase: Phase| f64::from(u8::from(status.phase == phase.name()));
    let version = vec![("version", status.version.as_str())];
    metrics.info("build_info", "Always 1; the label is the version.", version);
    let design = vec![("io", status.io.as_str()), ("ingress", status.ingress_design.as_str())];
    metrics.info("design_info", "Always 1; the labels say how packets leave and come in.", design);
    metrics.gauge(
        "start_time_seconds",
        "Start of the program, in seconds since 1970.",
        status.started_unix_s as f64,
    );
    metrics.gauge("workers", "Loops that serve clients, each on a thread of its own.", status.workers as f64);
    metrics.gauge(
        "timer_lag_seconds",
        "The longest that a timer was overdue in the last minute or two.",
        status.timer_lag_s,
    );
    metrics.log(status.log_lines_lost);
    metrics.gauge("figures_age_seconds", "How old the figures of the packet loop are.", status.age_s);
    metrics.gauge("ready", "1 while clients are served and the relay is not draining.", is(Phase::Serving));
    metrics.gauge("draining", "1 while the relay serves only the allocations it has.", is(Phase::Draining));
    metrics.labelled(
        "reloads_total",
        "Readings of the configuration by outcome.",
        "outcome",
        &status.reloads,
    );
    metrics.gauge(
        "last_reload_refused",
        "1 while the files are not what is in force, because the last reading found something wrong.",
        f64::from(u8::from(status.last_reload_refused)),
    );
    if let Some(limit) = status.open_files_limit {
        let help = "Most open files of this process; every allocation needs one.";
        metrics.gauge("open_files_limit", help, limit as f64);
    }
}

fn held(metrics: &mut Metrics, status: &Status) {
    let (allocations, permissions, channels) = (&status.allocations, &status.permissions, &status.channels);
    metrics.gauge("allocations", "Allocations now.", allocations.live as f64);
    metrics.gauge("allocations_limit", "Most allocations in all.", allocations.limit as f64);
    metrics.gauge(
        "allocations_per_user_limit",
        "Most allocations of one user.",
        allocations.limit_of_one_user as f64,
    );
    metrics.counter("allocations_made_total", "Allocations made.", allocations.made);
    metrics.gauge("permissions", "Permissions now.", permissions.live as f64);
    metrics.gauge(
        "permissions_of_one_allocation_max",
        "Permissions of the allocation that has most.",
        permissions.most_of_one_allocation as f64,
    );
    metrics.gauge(
        "permissions_of_one_allocation_limit",
        "Most permissions of one allocation.",
        permissions.limit_of_one_allocation as f64,
    );
    metrics.gauge("channels", "Channels now.", channels.live as f64);
    metrics.gauge(
        "channels_of_one_allocation_max",
        "Channels of the allocation that has most.",
        channels.most_of_one_allocation as f64,
    );
    metrics.gauge(
        "channels_of_one_allocation_limit",
        "Most channels of one allocation.",
        channels.limit_of_one_allocation as f64,
    );
}

fn traffic(metrics: &mut Metrics, status: &Status) {
    let (mut packets, mut bytes) = (Vec::new(), Vec::new());
    for (direction, carriers) in &status.relayed {
        for (carrier, amount) in carriers {
            let labels = vec![("direction", direction.as_str()), ("carrier", carrier.as_str())];
            packets.push((labels.clone(), amount.packets as f64));
            bytes.push((labels, amount.bytes as f64));
        }
    }
    metrics.counters("relayed_packets_total", "Datagrams relayed.", packets);
    metrics.counters("relayed_bytes_total", "Payload relayed, in bytes.", bytes);
    metrics.labelled(
        "drops_total",
        "What was lost by cause, in packets unless the cause says skbs.",
        "cause",
        &status.drops,
    );
}

fn inside(metrics: &mut Metrics, status: &Status) {
    metrics.counter(
        "hairpinned_packets_total",
        "Datagrams that went from client to client without the kernel in between.",
        status.hairpinned.packets,
    );
    metrics.counter("hairpinned_bytes_total", "Payload in them, in bytes.", status.hairpinned.bytes);
    metrics.counter(
        "port_conflicts_total",
        "Requests refused because another allocation on the same relayed port had the peer.",
        status.port_conflicts,
    );
}

fn connections(metrics: &mut Metrics, status: &Status) {
    let connections = &status.connections;
    metrics.gauge("connections", "Connections over TCP and TLS now.", connections.live as f64);
    metrics.gauge(
        "connections_limit",
        "Most connections over TCP and TLS; 0 without listeners.",
        connections.limit as f64,
    );
    metrics.counter(
        "connections_accepted_total",
        "Connections over TCP and TLS taken.",
        connections.accepted,
    );
    metrics.labelled(
        "connections_ended_total",
        "Connections over TCP and TLS that ended or were not taken, by reason.",
        "reason",
        &connections.ended,
    );
}

fn requests(metrics: &mut Metrics, status: &Status) {
    metrics.labelled("requests_total", "Requests by method.", "method", &status.requests);
    metrics.labelled(
        "refused_requests_total",
        "Requests answered with an error, by error code; a client's first request is answered with 401.",
        "code",
        &status.refusals,
    );
    metrics.labelled(
        "refused_by_rule_total",
        "Requests and Send indications refused by a rule of the operator's, by rule.",
        "rule",
        &status.rules,
    );
    metrics.labelled(
        "authentication_failures_total",
        "Requests with a wrong user or password, a wrong nonce, or attributes missing.",
        "reason",
        &status.authentication_failures,
    );
}

fn egress(metrics: &mut Metrics, status: &Status) {
    metrics.egress(&status.egress.figures);
    metrics.gauge(
        "egress_unexplained_packets",
        "Packets offered that were neither sent nor lost for a cause and are not on their way; always 0.",
        status.egress.unexplained as f64,
    );
    metrics.gauge(
        "egress_slots_free_min",
        "Slots the kernel does not have, of the worker with fewest; 0 for designs without a ring.",
        status.egress.slots_free_min as f64,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::tests::{about, origin, snapshot};
    use crate::server::figures::{Credentials, UserFigures, Volume};

    fn of(snapshot: &crate::admin::observer::Snapshot) -> String {
        text(&Status::new(snapshot, &about(origin()), Phase::Serving, origin()))
    }

    #[test]
    fn every_sample_has_help_and_type_and_the_figures_arrive() {
        let text = of(&snapshot(origin()));
        for line in [
            "# TYPE towpath_relay_drops_total counter",
            "towpath_relay_drops_total{cause=\"no_permission\"} 3",
            "towpath_relay_drops_total{cause=\"egress_expired\"} 4",
            "towpath_relay_allocations 12",
            "towpath_relay_allocations_limit 100",
            "towpath_relay_refused_requests_total{code=\"401\"} 7",
            "towpath_relay_workers 1",
            "towpath_relay_ready 1",
            "towpath_relay_reloads_total{outcome=\"applied\"} 5",
            "towpath_relay_reloads_total{outcome=\"refused\"} 2",
            "towpath_relay_last_reload_refused 1",
            "towpath_relay_design_info{io=\"uring\",ingress=\"epoll\"} 1",
            "towpath_relay_egress_pending_packets 6",
            "towpath_relay_egress_unexplained_packets 1",
            "towpath_relay_egress_slots_free_min 7",
            "towpath_relay_timer_lag_seconds 1.5",
            "towpath_relay_cq_overflows_total{ring=\"ingress\"} 6",
            "towpath_relay_cq_overflows_total{ring=\"egress\"} 0",
            "towpath_relay_hairpinned_packets_total 2",
            "towpath_relay_port_conflicts_total 1",
            "towpath_relay_connections 3",
            "towpath_relay_connections_ended_total{reason=\"tls\"} 5",
            "towpath_relay_relayed_bytes_total{direction=\"to_peer\",carrier=\"channel\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing:\n{text}");
        }
    }

    #[test]
    fn users_and_addresses_add_no_series() {
        let mut snapshot = snapshot(origin());
        let before = of(&snapshot);
        snapshot.census.users = vec![UserFigures {
            name: "evil\"} 1\n# x".into(),
            credentials: Credentials::Shared,
            allocations: 3,
            relayed: [Volume { packets: 9, bytes: 9 }; 2],
            shaped_packets: 1,
        }];
        let after = of(&snapshot);
        let names = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
        };
        assert_eq!(names(&before), names(&after));
        assert!(!after.contains("evil"));
    }
}
