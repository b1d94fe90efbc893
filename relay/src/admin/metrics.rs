//! The figures in the text format of Prometheus. Labels come from lists in this program only: never an address, never a
//! user name, so that the number of series stays the same whatever comes from the network.

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::observer::Phase;
use super::status::{Counts, Status};

/// The media type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Begins every name.
const PREFIX: &str = "towpath_relay_";

/// Labels and a value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

/// Writes all metrics.
pub(super) fn text(status: &Status) -> String {
    let mut families = about(status);
    families.extend(held(status));
    families.extend(traffic(status));
    families.extend(inside(status));
    families.extend(connections(status));
    families.extend(requests(status));
    families.extend(egress(status));
    families.extend(ingress(status));
    let mut text = String::new();
    // It can only fail for a family without a name or a sample, and all have both.
    TextEncoder::new().encode_utf8(&families, &mut text).expect("every family has a name and a sample");
    text
}

fn about(status: &Status) -> Vec<MetricFamily> {
    let is = |phase: Phase| f64::from(u8::from(status.phase == phase.name()));
    let design = vec![("io", status.io.as_str()), ("ingress", status.ingress_design.as_str())];
    let mut families = vec![
        family(
            "build_info",
            "Always 1; the label is the version.",
            MetricType::GAUGE,
            vec![(vec![("version", status.version.as_str())], 1.0)],
        ),
        family(
            "design_info",
            "Always 1; the labels say how packets leave and come in.",
            MetricType::GAUGE,
            vec![(design, 1.0)],
        ),
        gauge(
            "start_time_seconds",
            "Start of the program, in seconds since 1970.",
            status.started_unix_s as f64,
        ),
        gauge("workers", "Loops that serve clients, each on a thread of its own.", status.workers as f64),
        gauge(
            "timer_lag_seconds",
            "The longest that a timer was overdue in the last minute or two.",
            status.timer_lag_s,
        ),
        gauge("figures_age_seconds", "How old the figures of the packet loop are.", status.age_s),
        gauge("ready", "1 while clients are served and the relay is not draining.", is(Phase::Serving)),
        gauge("draining", "1 while the relay serves only the allocations it has.", is(Phase::Draining)),
        labelled("reloads_total", "Readings of the configuration by outcome.", "outcome", &status.reloads),
        gauge(
            "last_reload_refused",
            "1 while the files are not what is in force, because the last reading found something wrong.",
            f64::from(u8::from(status.last_reload_refused)),
        ),
    ];
    if let Some(limit) = status.open_files_limit {
        let help = "Most open files of this process; every allocation needs one.";
        families.push(gauge("open_files_limit", help, limit as f64));
    }
    families
}

fn held(status: &Status) -> [MetricFamily; 10] {
    let (allocations, permissions, channels) = (&status.allocations, &status.permissions, &status.channels);
    [
        gauge("allocations", "Allocations now.", allocations.live as f64),
        gauge("allocations_limit", "Most allocations in all.", allocations.limit as f64),
        gauge(
            "allocations_per_user_limit",
            "Most allocations of one user.",
            allocations.limit_of_one_user as f64,
        ),
        counter("allocations_made_total", "Allocations made.", allocations.made),
        gauge("permissions", "Permissions now.", permissions.live as f64),
        gauge(
            "permissions_of_one_allocation_max",
            "Permissions of the allocation that has most.",
            permissions.most_of_one_allocation as f64,
        ),
        gauge(
            "permissions_of_one_allocation_limit",
            "Most permissions of one allocation.",
            permissions.limit_of_one_allocation as f64,
        ),
        gauge("channels", "Channels now.", channels.live as f64),
        gauge(
            "channels_of_one_allocation_max",
            "Channels of the allocation that has most.",
            channels.most_of_one_allocation as f64,
        ),
        gauge(
            "channels_of_one_allocation_limit",
            "Most channels of one allocation.",
            channels.limit_of_one_allocation as f64,
        ),
    ]
}

fn traffic(status: &Status) -> [MetricFamily; 3] {
    let (mut packets, mut bytes) = (Vec::new(), Vec::new());
    for (direction, carriers) in &status.relayed {
        for (carrier, amount) in carriers {
            let labels = vec![("direction", direction.as_str()), ("carrier", carrier.as_str())];
            packets.push((labels.clone(), amount.packets as f64));
            bytes.push((labels, amount.bytes as f64));
        }
    }
    [
        family("relayed_packets_total", "Datagrams relayed.", MetricType::COUNTER, packets),
        family("relayed_bytes_total", "Payload relayed, in bytes.", MetricType::COUNTER, bytes),
        labelled(
            "drops_total",
            "What was lost by cause, in packets unless the cause says skbs.",
            "cause",
            &status.drops,
        ),
    ]
}

fn inside(status: &Status) -> [MetricFamily; 3] {
    [
        counter(
            "hairpinned_packets_total",
            "Datagrams that went from client to client without the kernel in between.",
            status.hairpinned.packets,
        ),
        counter("hairpinned_bytes_total", "Payload in them, in bytes.", status.hairpinned.bytes),
        counter(
            "port_conflicts_total",
            "Requests refused because another allocation on the same relayed port had the peer.",
            status.port_conflicts,
        ),
    ]
}

fn connections(status: &Status) -> [MetricFamily; 4] {
    let connections = &status.connections;
    [
        gauge("connections", "Connections over TCP and TLS now.", connections.live as f64),
        gauge(
            "connections_limit",
            "Most connections over TCP and TLS; 0 without listeners.",
            connections.limit as f64,
        ),
        counter("connections_accepted_total", "Connections over TCP and TLS taken.", connections.accepted),
        labelled(
            "connections_ended_total",
            "Connections over TCP and TLS that ended or were not taken, by reason.",
            "reason",
            &connections.ended,
        ),
    ]
}

fn requests(status: &Status) -> [MetricFamily; 4] {
    [
        labelled("requests_total", "Requests by method.", "method", &status.requests),
        labelled(
            "refused_requests_total",
            "Requests answered with an error, by error code; a client's first request is answered with 401.",
            "code",
            &status.refusals,
        ),
        labelled(
            "refused_by_rule_total",
            "Requests and Send indications refused by a rule of the operator's, by rule.",
            "rule",
            &status.rules,
        ),
        labelled(
            "authentication_failures_total",
            "Requests with a wrong user or password, a wrong nonce, or attributes missing.",
            "reason",
            &status.authentication_failures,
        ),
    ]
}

fn egress(status: &Status) -> [MetricFamily; 14] {
    let egress = &status.egress;
    [
        counter("egress_offered_packets_total", "Packets handed to the egress.", egress.offered),
        counter("egress_sent_packets_total", "Packets the kernel took.", egress.sent),
        counter("egress_sent_bytes_total", "Bytes the kernel took.", egress.sent_bytes),
        gauge("egress_pending_packets", "Packets whose fate is not known yet.", egress.pending as f64),
        gauge(
            "egress_unexplained_packets",
            "Packets offered that were neither sent nor lost for a cause and are not on their way; always 0.",
            egress.unexplained as f64,
        ),
        counter("egress_operations_total", "Operations that carried them.", egress.operations),
        counter("egress_system_calls_total", "System calls that submitted them.", egress.system_calls),
        counter("egress_waited_packets_total", "Packets that had to wait for a busy socket.", egress.waited),
        counter("egress_ring_full_total", "Times the ring was full and waited for.", egress.ring_full),
        gauge("egress_slots", "Slots of the ring; 0 for designs without one.", egress.slots as f64),
        gauge("egress_slots_in_flight", "Slots the kernel has.", egress.slots_in_flight as f64),
        gauge(
            "egress_slots_free_min",
            "Slots the kernel does not have, of the worker with fewest; 0 for designs without a ring.",
            egress.slots_free_min as f64,
        ),
        counter(
            "egress_completion_wakeups_total",
            "Times the completion thread was woken.",
            egress.completion_wakeups,
        ),
        counter("egress_gso_fallbacks_total", "Superpackets sent again one by one.", egress.gso_fallbacks),
    ]
}

fn ingress(status: &Status) -> [MetricFamily; 5] {
    let ingress = &status.ingress;
    [
        counter("ingress_superpackets_total", "Superpackets received.", ingress.superpackets),
        counter("ingress_packets_total", "Datagrams in them.", ingress.packets),
        counter("ingress_system_calls_total", "System calls that received them.", ingress.system_calls),
        counter("ingress_errors_total", "Receive errors that were survived.", ingress.errors),
        counter("ingress_rearmed_total", "Times a multishot receive was armed again.", ingress.rearmed),
    ]
}

fn counter(name: &str, help: &str, value: u64) -> MetricFamily {
    family(name, help, MetricType::COUNTER, vec![(Vec::new(), value as f64)])
}

fn gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    family(name, help, MetricType::GAUGE, vec![(Vec::new(), value)])
}

/// A counter for each name, under one label.
fn labelled(name: &str, help: &str, label: &'static str, counts: &Counts) -> MetricFamily {
    let samples = counts.iter().map(|(value, &count)| (vec![(label, value.as_str())], count as f64));
    family(name, help, MetricType::COUNTER, samples.collect())
}

fn family(name: &str, help: &str, kind: MetricType, samples: Vec<Sample<'_>>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("{PREFIX}{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(samples.into_iter().map(|(labels, value)| metric(&labels, kind, value)).collect());
    family
}

fn metric(labels: &[(&'static str, &str)], kind: MetricType, value: f64) -> Metric {
    let mut metric = Metric::default();
    let pair = |&(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    metric.set_label(labels.iter().map(pair).collect());
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
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
