//! Figures in the text format of Prometheus. Labels come from lists in the programs only: never an address, never a name
//! from outside, so that the number of series stays the same whatever comes from the network.

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::status::{Counts, Egress, Ingress};

/// The media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels and a value.
pub type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

/// Metrics of one program.
#[derive(Debug)]
pub struct Metrics {
    /// Begins every name.
    prefix: &'static str,
    families: Vec<MetricFamily>,
}

impl Metrics {
    /// None yet; `prefix` begins every name.
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, families: Vec::new() }
    }

    /// Adds something that only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, vec![(Vec::new(), value as f64)]);
    }

    /// Adds several that only grow, told apart by labels.
    pub fn counters(&mut self, name: &str, help: &str, samples: Vec<Sample<'_>>) {
        self.family(name, help, MetricType::COUNTER, samples);
    }

    /// Adds a counter for each name, under one label.
    pub fn labelled(&mut self, name: &str, help: &str, label: &'static str, counts: &Counts) {
        let samples = counts.iter().map(|(value, &count)| (vec![(label, value.as_str())], count as f64));
        self.counters(name, help, samples.collect());
    }

    /// Adds something that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, MetricType::GAUGE, vec![(Vec::new(), value)]);
    }

    /// Adds something whose labels are what it says; its value is always 1.
    pub fn info(&mut self, name: &str, help: &str, labels: Vec<(&'static str, &str)>) {
        self.family(name, help, MetricType::GAUGE, vec![(labels, 1.0)]);
    }

    /// Adds what became of the log.
    pub fn log(&mut self, lines_lost: u64) {
        self.counter("log_lines_lost_total", "Log lines that standard error did not take.", lines_lost);
    }

    /// Adds how packets leave.
    pub fn egress(&mut self, egress: &Egress) {
        self.counter("egress_offered_packets_total", "Packets handed to the egress.", egress.offered);
        self.counter("egress_sent_packets_total", "Packets the kernel took.", egress.sent);
        self.counter("egress_sent_bytes_total", "Bytes the kernel took.", egress.sent_bytes);
        let pending = "Packets whose fate is not known yet.";
        self.gauge("egress_pending_packets", pending, egress.pending as f64);
        self.counter("egress_operations_total", "Operations that carried them.", egress.operations);
        self.counter("egress_system_calls_total", "System calls that submitted them.", egress.system_calls);
        let waited = "Packets that had to wait for a busy socket.";
        self.counter("egress_waited_packets_total", waited, egress.waited);
        self.counter("egress_ring_full_total", "Times the ring was full and waited for.", egress.ring_full);
        let slots = "Slots of the ring; 0 for designs without one.";
        self.gauge("egress_slots", slots, egress.slots as f64);
        self.gauge("egress_slots_in_flight", "Slots the kernel has.", egress.slots_in_flight as f64);
        self.counter(
            "egress_completion_wakeups_total",
            "Times the completion thread was woken.",
            egress.completion_wakeups,
        );
        self.counter(
            "egress_gso_fallbacks_total",
            "Superpackets sent again one by one.",
            egress.gso_fallbacks,
        );
    }

    /// Adds how packets come in.
    pub fn ingress(&mut self, ingress: &Ingress) {
        self.counter("ingress_superpackets_total", "Superpackets received.", ingress.superpackets);
        self.counter("ingress_packets_total", "Datagrams in them.", ingress.packets);
        self.counter("ingress_system_calls_total", "System calls that received them.", ingress.system_calls);
        self.counter("ingress_errors_total", "Receive errors that were survived.", ingress.errors);
        self.counter("ingress_rearmed_total", "Times a multishot receive was armed again.", ingress.rearmed);
    }

    /// Adds how often rings were too small.
    pub fn rings(&mut self, egress: &Egress, ingress: &Ingress) {
        let of_rings = [("egress", egress.cq_overflows), ("ingress", ingress.cq_overflows)];
        self.counters(
            "cq_overflows_total",
            "Times that the kernel had more completions than an io_uring ring has room for; it keeps them meanwhile.",
            of_rings.map(|(ring, times)| (vec![("ring", ring)], times as f64)).into(),
        );
    }

    /// Writes all of them, in the order in which they were added.
    ///
    /// # Panics
    /// When one has no sample.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        TextEncoder::new()
            .encode_utf8(&self.families, &mut text)
            .expect("every family has a name and a sample");
        text
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType, samples: Vec<Sample<'_>>) {
        let mut family = MetricFamily::default();
        family.set_name(format!("{}{name}", self.prefix));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(samples.into_iter().map(|(labels, value)| metric(&labels, kind, value)).collect());
        self.families.push(family);
    }
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
