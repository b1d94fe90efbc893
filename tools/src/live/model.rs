//! What the live view shows: the last seconds, their sum, and what they say of the run itself.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use crate::run::distribution::histogram;
use crate::run::ledger::Ledger;
use crate::run::live::{Live, Second};
use crate::run::verdict::{self, Delays, Observations, Tolerance, Verdict};
use crate::run::{Distribution, RunSpec};

/// Seconds that are kept.
const ROWS_MAX: usize = 200;

/// A second's line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Its end, in seconds since the start of measured sending.
    pub at_s: f64,
    /// Datagrams that came back per second.
    pub rate_pps: f64,
    /// Datagrams that were overtaken and have not come, more than before.
    pub lost: u64,
    /// p50, p99 and p99.9 of the response, in nanoseconds; absent when nothing came.
    pub response_ns: Option<[u64; 3]>,
    /// p99.9 of the sender's lateness.
    pub lateness_ns: Option<u64>,
}

/// What is known of a run.
#[derive(Debug)]
pub(super) struct Model {
    /// What is sent, and where.
    pub heading: String,
    /// Seconds since measured sending began, below zero before.
    pub now_s: Option<f64>,
    /// How long it is to last.
    pub duration_s: f64,
    /// The last seconds, the latest last.
    pub rows: VecDeque<Row>,
    /// Their sum since the start.
    pub total: Option<Row>,
    /// Datagrams that the kernel took and refused, and skbs that our own sockets dropped.
    pub counts: [u64; 3],
    /// What the run would be called if it ended now.
    pub verdict: Option<Verdict>,
    /// Whether it is about to end.
    pub stopping: bool,
    tolerance: Tolerance,
    received: u64,
    overtaken: u64,
    response: Histogram<u64>,
    service: Histogram<u64>,
    lateness: Histogram<u64>,
}

impl Model {
    pub fn new(spec: &RunSpec) -> Self {
        let rate = crate::units::rate(spec.rate_pps);
        Self {
            heading: format!(
                "{} {}  {rate}, {} B, {}",
                spec.kind.name(),
                spec.target,
                spec.size,
                crate::units::count(spec.flows, "flow")
            ),
            now_s: None,
            duration_s: spec.duration.as_secs_f64(),
            rows: VecDeque::with_capacity(ROWS_MAX),
            total: None,
            counts: [0; 3],
            verdict: None,
            stopping: false,
            tolerance: Tolerance {
                lateness_ns: spec.lateness_limit.as_nanos() as u64,
                steal: spec.steal_limit,
                blind: None,
            },
            received: 0,
            overtaken: 0,
            response: histogram(),
            service: histogram(),
            lateness: histogram(),
        }
    }

    /// Takes what the run has to show.
    pub fn look(&mut self, live: &Live, stopping: bool, now: u64) {
        self.stopping = stopping;
        self.counts = live.counts();
        let Some((start_ns, _)) = live.timing() else { return };
        self.now_s = Some((now as f64 - start_ns as f64) / 1e9);
        let mut is_new = false;
        live.look(|second| {
            self.take(second, start_ns);
            is_new = true;
        });
        if is_new {
            self.sum_up();
        }
    }

    fn take(&mut self, second: &Second, start_ns: u64) {
        let at_s = second.end_ns.saturating_sub(start_ns) as f64 / 1e9;
        let received = second.response.len();
        let row = Row {
            at_s,
            rate_pps: received as f64 * 1e9 / second.length_ns.max(1) as f64,
            lost: second.overtaken.saturating_sub(self.overtaken),
            response_ns: quantiles(&second.response),
            lateness_ns: (received > 0).then(|| second.lateness.value_at_quantile(0.999)),
        };
        self.overtaken = second.overtaken;
        self.received += received;
        let sums = [
            (&mut self.response, &second.response),
            (&mut self.service, &second.service),
            (&mut self.lateness, &second.lateness),
        ];
        for (sum, part) in sums {
            for step in part.iter_recorded() {
                sum.saturating_record_n(step.value_iterated_to(), u64::from(step.count_at_value()));
            }
        }
        if self.rows.len() == ROWS_MAX {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }

    fn sum_up(&mut self) {
        let Some(last) = self.rows.back() else { return };
        let any = self.received > 0;
        self.total = Some(Row {
            at_s: last.at_s,
            rate_pps: self.received as f64 / last.at_s.max(1e-9),
            lost: self.overtaken,
            response_ns: quantiles(&self.response),
            lateness_ns: any.then(|| self.lateness.value_at_quantile(0.999)),
        });
        let [sent, refused, own_socket_drops] = self.counts;
        let ledger = Ledger {
            intended: sent + refused,
            sent,
            refused,
            received: self.received.min(sent),
            lost: sent.saturating_sub(self.received),
            ..Ledger::default()
        };
        let observed =
            Observations { ledger, legs_balance: true, own_socket_drops, ..Observations::default() };
        let (lateness, service) = (Distribution::new(&self.lateness, 0), Distribution::new(&self.service, 0));
        let delays = Delays { lateness: &lateness, receiving: None, service: &service };
        self.verdict = (sent > 0).then(|| verdict::judge(&observed, delays, self.tolerance));
    }
}

fn quantiles<T: hdrhistogram::Counter>(histogram: &Histogram<T>) -> Option<[u64; 3]> {
    (!histogram.is_empty()).then(|| [0.5, 0.99, 0.999].map(|quantile| histogram.value_at_quantile(quantile)))
}
